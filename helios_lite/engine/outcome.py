"""What a process that launches others does before and after them: it prepares the data, and takes over the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from helios_lite.data import DataModule
from helios_lite.engine.cleanup import cleanup
from helios_lite.engine.session import Session
from helios_lite.model import Model
from helios_lite.options import Options
from helios_lite.runtime import rng, standalone
from helios_lite.runtime.checkpoint_files import FORMAT_VERSION, to_serializable, write_file
from helios_lite.runtime.read_checkpoint import read_checkpoint
from helios_lite.runtime.sharding import take_sharded

logger = logging.getLogger("helios_lite")


def prepare_data(datamodule: DataModule) -> None:
    """Prepare the data before processes are launched; after an error it is torn down."""
    try:
        datamodule.prepare_data()
    except BaseException:
        datamodule.teardown()
        raise


def write_outcome(outcome: dict[str, Any], session: Session, path: Path) -> None:
    """Leave what a model has in the end where the process reads it that has launched this one. Call on every rank.

    It is a file, or a folder if networks are sharded, so that no rank needs memory for all of it.
    """
    outcome = {"format": FORMAT_VERSION, **outcome}
    if session.context.parallel.sharded_parameter() is None:
        if session.world.is_main:
            write_file(to_serializable(outcome), path)
        return
    from helios_lite.runtime.sharded_files import ShardWriter, write_main

    main, sharded = take_sharded(outcome, {})
    ShardWriter(session.world).write(sharded, path, lambda: write_main(to_serializable(main), path), background=False)


def take_over(outcome: Path, options: Options, model: Model, datamodule: DataModule, *, is_training: bool) -> None:
    """Give the model of this process what that of rank 0 had in the end: its networks, `hparams` and `metrics`.

    Args:
        outcome: the file or folder of `write_outcome`. If the model cannot take it over, a warning has the exception:
            the run has ended, and its result must not be lost.
        options: the trainer, which `setup` may use.
        model: the model; its `setup` is called.
        datamodule: its data; `setup` is called before, and `teardown` after that of the model.
        is_training: whether the processes have trained; otherwise the model is left in evaluation mode.
    """
    try:
        content = read_checkpoint(outcome)
        with rng.fork_rng(torch.device("cpu")), cleanup(datamodule.teardown):
            rng.seed_cpu(options.seed)
            datamodule.setup()
            rng.seed_cpu(options.seed)
            standalone.take_over(model, content, options)
        if not is_training:
            model.eval()
    except Exception as error:
        logger.warning(
            "the run has ended, and its result is returned; but after the run the model could not be set up in the "
            "calling process (%s: %s), so it does not have the final networks: use %s.load_from_checkpoint",
            type(error).__name__,
            error,
            type(model).__name__,
            exc_info=True,
        )
