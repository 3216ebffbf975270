"""A model outside of a run: set up with trained networks, to be used or evaluated in this process."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from helios_lite.runtime.checkpoint_files import evaluation_state
from helios_lite.runtime.context import RunContext
from helios_lite.runtime.read_checkpoint import read_checkpoint


def load_for_inference(cls: Any, path: Path, device: torch.device | str, overrides: dict[str, Any]) -> Any:
    """Return a Model of a class with the networks in a checkpoint, in evaluation mode.

    Args:
        cls: the class of the model.
        path: the checkpoint.
        device: the device of the networks.
        overrides: arguments of the constructor that replace or complete the stored `hparams`.
    """
    content = read_checkpoint(path, device)
    arguments = {**content["hparams"], **overrides}
    if "save_name" in inspect.signature(cls).parameters:
        arguments.setdefault("save_name", content["save_name"])
    model = cls(**arguments)
    _set_up(model, evaluation_state(content), RunContext.standalone(torch.device(device)))
    model.eval()
    return model


def take_over(model: Any, outcome: dict[str, Any], trainer: Any) -> None:
    """Set a model up as it was at the end of a run in other processes: with its networks, metrics and hparams.

    Args:
        model: a Model.
        outcome: the states of the "model", its "metrics" and, after a training, its "hparams".
        trainer: the trainer, which `setup` may use.
    """
    context = RunContext.standalone(torch.device("cpu"), trainer)
    try:
        _set_up(model, outcome["model"], context)
    finally:
        model._attach(context, outcome.get("hparams"))
        context.record(outcome["metrics"])
        context.end_run()


def _set_up(model: Any, state_dict: dict[str, Any], context: RunContext) -> None:
    model._attach(context)
    model.setup(fast_init=True)
    context.mark_set_up()
    model.load_state_dict(state_dict, fast_init=True)
