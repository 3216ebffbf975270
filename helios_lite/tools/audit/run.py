"""Runs one trial of an audit in this process."""

from __future__ import annotations

import dataclasses
import os
import random
import traceback
from pathlib import Path
from typing import Any

import torch

from helios_lite.runtime.checkpoint_files import find
from helios_lite.tools.audit.record import Record
from helios_lite.tools.audit.recorder import Enough, Recorder
from helios_lite.tools.audit.trial import EPOCH_UPDATES, Source, Trial
from helios_lite.trainer import Trainer

_RUN = "run"  # The name of the run folder of a trial.


def run_trial(source: Source, trial: Trial, folder: Path) -> Record:
    """Run a trial in this process and return its record. Call on every rank.

    Args:
        source: the program.
        trial: what to change.
        folder: where the run folder is; a trial in the same folder resumes.
    """
    _scatter_unseeded()
    trainer, model, datamodule = source.make()
    recorder = Recorder(trial)
    trainer = dataclasses.replace(trainer, **_options(trainer, trial, folder), callbacks=[*trainer.callbacks, recorder])
    if trial.loads_checkpoint:
        model = type(model).load_from_checkpoint(find(folder / _RUN / "checkpoints", model.save_name)[0])
        trainer.validate(model, datamodule, checkpoint=None)
        return recorder.record()
    try:
        trainer.fit(model, datamodule)
    except Enough:
        pass
    except Exception as error:  # What was recorded before it may explain it.
        traceback.print_exc()
        return dataclasses.replace(recorder.record(), error=f"{type(error).__name__}: {error}")
    return recorder.record()


def _scatter_unseeded() -> None:
    """Give the global generators other states than those of other trials, which begin as copies of one process."""
    number = int.from_bytes(os.urandom(4), "little")
    random.seed(number)
    torch.manual_seed(number)


def _options(trainer: Trainer, trial: Trial, folder: Path) -> dict[str, Any]:
    """Return the options of a trial: small epochs with a validation each, and nothing that is shown or not kept."""
    is_endless = trainer.steps_per_epoch is not None
    options: dict[str, Any] = {
        "root": folder,
        "run_name": _RUN,
        "resume": "auto",
        "fast_dev_run": False,
        "max_epochs": None if trainer.max_epochs is None else max(trainer.max_epochs, trial.updates),
        "max_steps": trial.updates,
        "max_minutes": None,
        "steps_per_epoch": EPOCH_UPDATES if is_endless else None,
        "limit_train_batches": None if is_endless else EPOCH_UPDATES * trainer.accumulation_steps,
        "limit_valid_batches": 2,
        "overfit_batches": None,
        "valid_every_epochs": 1,
        "valid_every_steps": None,
        "patience": None,
        "save_every_epochs": None,
        "save_every_steps": None,
        "save_every_minutes": None,
        "async_save": False,
        "devices": 1,
        "strategy": "ddp",
        "max_restarts": 0,
        "hang_minutes": None,
        "compile": False,
        "loggers": [],
        "log_level": "quiet",
        "progress": False,
        "print_banner": False,
    }
    return {**options, **trial.options}
