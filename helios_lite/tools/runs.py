"""The commands `fit`, `test`, `predict` and `replay`, which run what a TOML file describes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
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
    with _usage_errors():
        metrics = trainer.test(model, data, checkpoint=arguments.checkpoint)
    if (not trainer.print_banner or trainer.log_level == "quiet") and model.global_rank == 0:
        console.show_metrics("test", metrics)


def predict(arguments: argparse.Namespace) -> None:
    """Write the outputs of the model that a TOML file describes, with a checkpoint of its run, to a file of tensors.

    The file is that of `Trainer.write_predictions`: torch.load(FILE, weights_only=True) has "indices" and "outputs".
    """
    trainer, model, data = _load(arguments)
    _require_checkpoint(arguments.checkpoint, trainer, model)
    with _usage_errors():
        trainer.write_predictions(model, data, arguments.output, checkpoint=arguments.checkpoint)


def replay(arguments: argparse.Namespace) -> None:
    """Compute one update of a run of a TOML file again, from the newest checkpoint before it, and show its samples,
    losses, learning rates, gradient norms, and the first module that is not finite. The run folder is only read.
    """
    trainer, model, data = _load(arguments)
    try:
        with _usage_errors():
            replayed = trainer.replay(model, data, arguments.step)
    except (FileNotFoundError, ValueError) as error:
        if not str(error).startswith("step="):
            raise
        raise UsageError(str(error)) from error
    if model.global_rank == 0:
        print(replayed)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Context in which a checkpoint that cannot be read is wrong usage."""
    try:
        yield
    except checkpoint_files.CheckpointError as error:
        raise UsageError(str(error)) from error


def _load(arguments: argparse.Namespace) -> tuple[Trainer, Model, DataModule]:
    require_file(arguments.file)
    return load(arguments.file, arguments.overrides)


def _require_checkpoint(name: str, trainer: Trainer, model: Model) -> None:
    """Raise a `UsageError` if there is no checkpoint to use. The trainer would use untrained weights."""
    if name not in ("best", "last"):
        if not (Path(name) / "checkpoints").is_dir():  # A run folder, whose best checkpoint is meant.
            require_checkpoint(Path(name))
        return
    if trainer.fast_dev_run or type(model).load_for_testing is not Model.load_for_testing:
        return  # The model is used without a checkpoint of the run.
    folder = run_folder(trainer, model)
    if folder is None or not checkpoint_files.find(folder / "checkpoints", model.save_name):
        run = "a run without files" if folder is None else folder
        raise UsageError(f"{run} has no checkpoint; train first, or name one with --checkpoint PATH")
