"""From a loss to an update: the number format of the forward pass, accumulation windows, weights, clipping."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite.arguments import require_kind
from helios_lite.networks.dtensors import full_tensor
from helios_lite.processes.world import World

_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_SKIPPED_IN_A_ROW = 100
"""Updates in a row that may be skipped: the loss scale has then fallen from 2**16 to 2**-84."""
GradientReport = Callable[[Optimizer, list[Tensor], Tensor], None]
"""Takes an optimizer, its parameters (which have gradients) and the 2-norm of these gradients before clipping."""


class Precision:
    """Makes updates exact: an accumulation window equals one large batch.

    Args:
        name: "fp32", "bf16" or "fp16": the format of the forward pass.
        device: the device it runs on.
        clip_norm: largest 2-norm of the gradients of one optimizer, None for no limit.
        world: the ranks over which gradients are averaged.

    Attributes:
        scaler: scales the losses of fp16, so that small gradients do not underflow; None for other formats.
        last_loss: the last loss passed to `backward`, whose graph has been freed; None after an update that fp16 has
            skipped.
        has_several_optimizers: whether `step` was called for more than one optimizer.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        clip_norm: float | None = None,
        world: World = World(),  # noqa: B008 (frozen)
    ) -> None:
        self._world = world
        self._dtype = _AUTOCAST_DTYPES[name]
        self._device = device
        self._clip_norm = clip_norm
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self.last_loss: Tensor | None = None
        self._loss_weight = 1.0
        self._is_first_micro_batch = self._is_last_micro_batch = True
        self._report_gradients: GradientReport | None = None
        # The weight of the last backward, the optimizers that have counted it, and the weight of each in this window.
        self._weight: Tensor | float | None = None
        self._counted: set[int] = set()
        self._totals: dict[int, Tensor | float] = {}
        self._has_stepped = self._has_skipped = False  # Any optimizer, in this window.
        self._optimizers: list[Optimizer] = []  # The last one is the one that stepped last.
        self.has_several_optimizers = False
        self._skipped_in_a_row = 0

    def begin_micro_batch(
        self, loss_weight: float, completes_update: bool, report_gradients: GradientReport | None = None
    ) -> None:
        """Prepare for the next micro-batch; called by the loop before `train_step`.

        Args:
            loss_weight: the micro-batch's part of the samples of its window, times the number of ranks.
            completes_update: whether it is the last of its window.
            report_gradients: called before clipping by every optimizer that steps.
        """
        self._loss_weight = loss_weight
        self._is_first_micro_batch, self._is_last_micro_batch = self._is_last_micro_batch, completes_update
        self._report_gradients = report_gradients

    def add_gradient_report(self, report: GradientReport) -> None:
        """Call one more report in the present micro-batch; see `begin_micro_batch`."""
        earlier = self._report_gradients

        def both(optimizer: Optimizer, parameters: list[Tensor], norm: Tensor) -> None:
            if earlier is not None:
                earlier(optimizer, parameters, norm)
            report(optimizer, parameters, norm)

        self._report_gradients = both

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the last loss, which is not a leaf and cannot be copied. To detach it would cost every step."""
        return {**vars(self), "last_loss": None, "_optimizers": [], "has_several_optimizers": False}

    def forget_loss(self) -> None:
        """Forget the last loss, which has been checked."""
        self.last_loss = None

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which PyTorch chooses the format of each operation; for fp32 it does nothing."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor, weight: Tensor | float | None) -> None:
        """Add the gradients of a loss; see `Model.backward`."""
        if weight is not None:
            if self._weight is not None and not self._counted:
                raise RuntimeError("backward(weight=...): the optimizer_step of the previous one is missing")
            self._counted.clear()
        self._weight = weight
        self.last_loss = loss
        if weight is None:
            if self._loss_weight != 1.0:
                loss = loss * self._loss_weight
        elif not self._is_single_batch_window():  # There the weight would be multiplied and divided again.
            loss = loss * weight
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except AttributeError:
            require_kind("loss", loss, Tensor, "a tensor of one element")
            raise

    def step(self, optimizer: Optimizer, scheduler: Any, clip_norm: float | None) -> bool:
        """Update the parameters if the window is complete; see `Model.optimizer_step`."""
        if not self._optimizers or optimizer is not self._optimizers[-1]:
            self._note(optimizer)
        if self._weight is not None:
            self._add_weight(optimizer)
        if not self._is_last_micro_batch:
            return False
        limit = self._clip_norm if clip_norm is None else clip_norm
        total = self._totals.pop(id(optimizer), None) if self._totals else None
        first = optimizer.param_groups[0]["params"]  # Nearly always enough to know, and cheaper than a call.
        if (not first or first[0].grad is None) and not _has_gradients(optimizer):
            if not _step_without_gradients(optimizer):
                return False
            self._has_stepped = True
        elif limit is None and total is None and self._report_gradients is None and self.scaler is None:
            optimizer.step()
        elif not self._clip_and_step(optimizer, limit, total):
            optimizer.zero_grad(set_to_none=True)
            return False
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return True

    def clear_gradients(self) -> None:
        """Clear what a loss has left in the parameters of an optimizer that had stepped before, at the end of a window.

        A resumed run does not have these gradients either.
        """
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def close_window(self) -> tuple[bool, bool]:
        """End a window of fp16 after all optimizers have stepped: adapt the scale of the next losses.

        Returns:
            Whether it was an update (also that of a model that does not use `optimizer_step`), and whether an
            optimizer was skipped because its gradients were not finite.

        Raises:
            FloatingPointError: gradients were not finite for so many windows in a row that no scale will help.
        """
        assert self.scaler is not None
        stepped, skipped = self._has_stepped, self._has_skipped
        self._has_stepped = self._has_skipped = False
        if stepped or skipped:
            self.scaler.update()
        if skipped:
            self.last_loss = None
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped and not stepped else 0
        if self._skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(f"gradients were not finite in {_MAX_SKIPPED_IN_A_ROW} steps in a row")
        return stepped or not skipped, skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scaler: tensors and plain containers."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the scaler; without effect if the format was or is not fp16."""
        if self.scaler is not None and state_dict:
            self.scaler.load_state_dict(state_dict)

    def _note(self, optimizer: Optimizer) -> None:
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer_step: needs an optimizer, not a {type(optimizer).__name__}")
        self._optimizers = [*(each for each in self._optimizers if each is not optimizer), optimizer]
        self.has_several_optimizers = len(self._optimizers) > 1

    def _clip_and_step(self, optimizer: Optimizer, limit: float | None, total: Tensor | float | None) -> bool:
        """Unscale, divide by the weight, report, clip, step, in this order; return whether parameters changed."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.scaler is not None and not self._unscale(self.scaler, optimizer):
            self._has_skipped = True
            return False
        gradients = [p.grad for p in parameters if p.grad is not None]
        if total is not None:
            torch._foreach_div_(gradients, self._mean_weight(total))
        if limit is not None or self._report_gradients is not None:
            norm = full_tensor(nn.utils.get_total_norm(gradients))
            if self._report_gradients is not None:
                self._report_gradients(optimizer, parameters, norm)
            if limit is not None:
                nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        optimizer.step()
        self._has_stepped = True
        return True

    def _unscale(self, scaler: torch.amp.GradScaler, optimizer: Optimizer) -> bool:
        """Divide gradients by the scale, and return whether they are finite. DDP and FSDP2 make all ranks agree."""
        scaler.unscale_(optimizer)
        return not any(flag.item() for flag in scaler._found_inf_per_device(optimizer).values())

    def _add_weight(self, optimizer: Optimizer) -> None:
        """Add the weight of the last backward to the optimizer's weight in this window."""
        assert self._weight is not None
        if id(optimizer) not in self._counted:
            self._counted.add(id(optimizer))
            if not self._is_single_batch_window():
                self._totals[id(optimizer)] = self._totals.get(id(optimizer), 0.0) + self._weight

    def _is_single_batch_window(self) -> bool:
        return self._is_first_micro_batch and self._is_last_micro_batch and self._world.size == 1

    def _mean_weight(self, total: Tensor | float) -> Tensor | float:
        """Return the weight of the window over all ranks, divided by their number, as their gradients are."""
        if self._world.size == 1:
            return total
        weight = torch.as_tensor(total, dtype=torch.float32, device=self._device).clone()
        dist.all_reduce(weight)
        return weight / self._world.size


def _has_gradients(optimizer: Optimizer) -> bool:
    """Return whether any parameter has a gradient. DDP and FSDP2 make all ranks agree."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                return True
    return False


def _step_without_gradients(optimizer: Optimizer) -> bool:
    """Let an optimizer step, and return whether it has changed a parameter.

    Those of PyTorch do nothing without gradients. Others may compute an update of their own, or take the gradients
    from copies of the parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p._version for p in parameters]
    optimizer.step()
    return _has_gradients(optimizer) or before != [p._version for p in parameters]
