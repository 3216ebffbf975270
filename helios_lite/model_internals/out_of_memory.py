"""What is said when the memory of a device is used up in a step: the batch, and what needs less."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor

from helios_lite.nested import leaves

_STEPS = ("train_step", "valid_step", "test_step", "predict_step")
_MANY = 8  # Tensors of a batch.


def explain_memory(error: BaseException, model: Any, *, can_replay: bool) -> None:
    """Add to an error of used-up memory which batch a step had, and what to do; other errors stay as they are.

    Args:
        error: raised by the program.
        model: the model.
        can_replay: whether there is a run folder, from which the step can be done again.
    """
    step = _step(error, model) if isinstance(error, torch.OutOfMemoryError) else None
    if step is None:
        return
    name, batch, state = step
    tensors = [(place, leaf) for place, leaf in leaves(batch) if isinstance(leaf, Tensor)]
    shown = ", ".join(f"{place or 'batch'} {tuple(each.shape)}" for place, each in tensors[:_MANY])
    samples = next((f"{each.shape[0]} samples" for _, each in tensors if each.ndim > 0), "a batch")
    where = f"step {state.step + 1}" if name == "train_step" else name
    words = f"The memory of the device was used up in {where}, by {samples}: {shown or type(batch).__name__}."
    if name == "train_step":
        words += (
            ' Less is needed by a smaller batch_size with accumulation_steps, by precision="bf16", and by '
            "checkpoint_activations=True with blocks."
        )
        if can_replay:
            words += (
                f" Trainer.replay(model, datamodule, step={state.step + 1}), or helios-lite replay FILE --step "
                f"{state.step + 1}, does this step alone."
            )
    else:
        words += " Less is needed by a smaller batch_size of this split."
    error.add_note(words)


def _step(error: BaseException, model: Any) -> tuple[str, Any, Any] | None:
    """Return the name of the step of the model that has raised an error, with its batch and what else it was given."""
    codes = {getattr(getattr(type(model), name), "__code__", None): name for name in _STEPS}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code in codes and frame.f_code.co_argcount == 3:
            batch, other = (frame.f_locals.get(name) for name in frame.f_code.co_varnames[1:3])
            return codes[frame.f_code], batch, other
    return None
