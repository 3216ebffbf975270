"""The commands `fit` and `test`. They run the trainer, model and data that a TOML file describes."""

from __future__ import annotations

import argparse
from pathlib import Path

from helios_lite.config import load
from helios_lite.data import DataModule
from helios_lite.engine import console
from helios_lite.engine.session import run_folder
from helios_lite.model import Model
from helios_lite.runtime import checkpoint_files
from helios_lite.tools.errors import UsageError, require_checkpoint, require_file
from helios_lite.trainer import Trainer


def fit(arguments: argparse.Namespace) -> None:
    """Train the model that a TOML file describes, or resume its training if it was stopped."""
    trainer, model, data = _load(arguments)
    trainer.fit(model, data)


def test(arguments: argparse.Namespace) -> None:
    """Test the model that a TOML file describes, with a checkpoint of its run, and print the metrics."""
    trainer, model, data = _load(arguments)
    _require_checkpoint(arguments.checkpoint, trainer, model)
    try:
        metrics = trainer.test(model, data, checkpoint=arguments.checkpoint)
    except checkpoint_files.CheckpointError as error:
        raise UsageError(str(error)) from error
    if (not trainer.print_banner or trainer.log_level == "quiet") and model.global_rank == 0:
        console.show_metrics("test", metrics)


def _load(arguments: argparse.Namespace) -> tuple[Trainer, Model, DataModule]:
    require_file(arguments.file)
    return load(arguments.file, arguments.overrides)


def _require_checkpoint(name: str, trainer: Trainer, model: Model) -> None:
    """Raise a `UsageError` if there is no checkpoint to test. `Trainer.test` would test untrained weights."""
    if name not in ("best", "last"):
        require_checkpoint(Path(name))
        return
    if trainer.fast_dev_run or type(model).load_for_testing is not Model.load_for_testing:
        return  # The model is tested without a checkpoint of the run.
    folder = run_folder(trainer, model)
    if folder is None or not checkpoint_files.find(folder / "checkpoints", model.save_name):
        run = "a run without files" if folder is None else folder
        raise UsageError(f"{run} has no checkpoint; train first, or name one with --checkpoint PATH")
