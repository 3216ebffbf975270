"""A model outside of a run: set up with trained networks, to be used or evaluated in this process."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_lite.checkpoints.files import CheckpointError, check_device, require_parts
from helios_lite.checkpoints.folder import candidates_of_run
from helios_lite.checkpoints.reading import evaluation_state, read_checkpoint
from helios_lite.model_internals.attributes import named_networks
from helios_lite.model_internals.evaluation_weights import expect_evaluation_weights
from helios_lite.model_internals.run_context import RunContext
from helios_lite.processes import rng
from helios_lite.processes.output import harmless_errors

logger = logging.getLogger("helios_lite")


@harmless_errors()
def load_for_inference(cls: Any, path: Path, device: torch.device | str, overrides: dict[str, Any]) -> Any:
    """Return a Model of a class with the networks in a checkpoint, in evaluation mode.

    Args:
        cls: the class of the model.
        path: the checkpoint, or a run folder, of which the best one is loaded (the newest if no one is best).
        device: the device of the networks.
        overrides: arguments of the constructor that replace or complete the stored `hparams`.
    """
    check_device(device)
    content = _read(path, overrides.get("save_name", ""))
    require_parts(path, content, ("model", "hparams", "save_name"))
    arguments = {**content["hparams"], **overrides}
    signature = inspect.signature(cls)
    if "save_name" in signature.parameters:
        arguments.setdefault("save_name", content["save_name"])
    try:
        signature.bind(**arguments)
    except TypeError as error:
        stored = ", ".join(content["hparams"]) or "none"
        raise TypeError(
            f"{cls.__name__}: {error}. load_from_checkpoint calls the constructor with the hparams that the checkpoint "
            f"holds ({stored}); set self.hparams in __init__ to a dict of its arguments before you train, or pass the "
            "arguments to load_from_checkpoint"
        ) from None
    with rng.fork_rng(torch.device(device)):  # The initial weights, which are replaced, are none of the caller's.
        model = cls(**arguments)
        _set_up(model, RunContext.standalone(torch.device(device)))
        expect_evaluation_weights(model)
        model.load_state_dict(evaluation_state(content), fast_init=True)
    model.eval()
    return model


def _read(path: Path, save_name: str) -> dict[str, Any]:
    """Return the content of a checkpoint, of which the networks alone are read; they copy it to their device."""
    if not (path / "checkpoints").is_dir():
        return read_checkpoint(path, mmap=True)
    for candidate in candidates_of_run(path, "best", save_name):
        try:
            return read_checkpoint(candidate, mmap=True)
        except (CheckpointError, FileNotFoundError) as error:
            logger.warning("passing over a checkpoint: %s", error)
    raise FileNotFoundError(f"{path}: this run folder has no checkpoint that can be read")


def predict_with_only_network(model: Any, batch: Any) -> Any:
    """Return the output of the only network of a model for a batch; see `Model.predict_step`.

    Raises:
        NotImplementedError: the model does not have one network.
        TypeError: the batch is not a tensor, nor a tuple or list that begins with one.
    """
    name, nets = type(model).__name__, named_networks(model)
    if len(nets) != 1:
        found = f"{len(nets)} networks ({', '.join(nets)})" if nets else "no network"
        raise NotImplementedError(f"{name} has {found}, so it needs a predict_step that says what a prediction is")
    first = batch[0] if isinstance(batch, list | tuple) and len(batch) > 0 else batch
    if not isinstance(first, Tensor):
        raise TypeError(
            f"{name} needs a predict_step: the default gives its network a batch that is a tensor, or the first "
            f"element of a tuple or list, and this is a {type(first).__name__}"
        )
    with model.autocast():
        return next(iter(nets.values()))(first)


def set_up_trained(model: Any, content: dict[str, Any], *of_run: Any) -> None:
    """Set a model up as it was at the end of a run in other processes: with its networks, metrics and hparams.

    Args:
        model: a Model.
        content: the states of the "model", its "metrics" and, after a training, its "hparams".
        of_run: the trainer, and what else `setup` may ask of the run; see `RunContext`.
    """
    context = RunContext.standalone(torch.device("cpu"), *of_run)
    try:
        _set_up(model, context)
        model.load_state_dict(content["model"], fast_init=True)
    finally:
        model._attach(context, content.get("hparams"))
        context.record(content["metrics"])
        context.end_run()


def _set_up(model: Any, context: RunContext) -> None:
    model._attach(context)
    from helios_lite.schedules import planned_steps  # Here, because only some programs use schedules.

    with planned_steps(context.num_training_steps):
        model.setup(fast_init=True)
    context.mark_set_up()
