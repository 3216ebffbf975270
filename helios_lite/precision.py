"""From a loss to an update: the number format of the forward pass, accumulation windows, weights, clipping."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite.distributed import World, whole

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_MOST_SKIPPED = 100
"""Updates in a row that may be skipped: the scale of the loss has then fallen from 2**16 to 2**-84."""


class Precision:
    """Makes the updates of a run exact: an accumulation window equals one large batch.

    Args:
        name: "fp32", "bf16" or "fp16": the format of the forward pass.
        device: where it runs.
        clip_norm: largest 2-norm of the gradients of one optimizer, None for no limit.
        world: the ranks whose gradients are averaged.

    Attributes:
        share: the current batch's part of the samples of its window, times the number of ranks. Set by the loop.
        window_opens: whether the current batch is the first of its window. Set by the loop.
        window_closes: whether the current batch is the last of its window. Set by the loop.
        report: takes an optimizer, its parameters (while they have gradients) and the 2-norm of these before clipping;
            None if nobody wants to know. Set by the loop.
        scaler: makes the losses of fp16 so large that small gradients do not vanish; None for other formats.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        clip_norm: float | None = None,
        world: World = World(),  # noqa: B008 (frozen)
    ) -> None:
        self._world = world
        self._dtype = _AUTOCAST[name]
        self._device = device
        self._clip_norm = clip_norm
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self.share = 1.0
        self.window_opens = self.window_closes = True
        self.report: Callable[[Optimizer, list[Tensor], Tensor], None] | None = None
        # The weight of the last backward and the optimizers that have counted it; and what each has in this window.
        self._weight: Tensor | float | None = None
        self._counted: set[int] = set()
        self._totals: dict[int, Tensor | float] = {}
        self._stepped = self._skipped = False  # In this window, by any optimizer.
        self._skipped_in_a_row = 0

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which PyTorch chooses the format per operation; for fp32 it does nothing."""
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
        # A batch alone in its window needs no weight: it would be multiplied and divided by the same number.
        scale = self.share if weight is None else 1.0 if self._is_alone() else weight
        if isinstance(scale, Tensor) or scale != 1.0:
            loss = loss * scale
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer, scheduler: Any, clip_norm: float | None) -> bool:
        """Update the parameters if the window closes; see `Model.optimizer_step`."""
        if self._weight is not None:
            self._count(optimizer)
        if not self.window_closes:
            return False
        limit = self._clip_norm if clip_norm is None else clip_norm
        total = self._totals.pop(id(optimizer), None)
        if limit is None and total is None and self.report is None and self.scaler is None:
            optimizer.step()
        elif not self._step_carefully(optimizer, limit, total):
            optimizer.zero_grad(set_to_none=True)
            return False
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return True

    def close_window(self) -> tuple[bool, bool]:
        """End a window of fp16, when all optimizers have had their turn: adapt the scale of the next losses.

        Returns:
            Whether it was an update (also that of a model which does without `optimizer_step`), and whether an
            optimizer was left out because its gradients were not finite.

        Raises:
            FloatingPointError: they were not for so many windows in a row that no scale will help.
        """
        assert self.scaler is not None
        stepped, skipped = self._stepped, self._skipped
        self._stepped = self._skipped = False
        if stepped or skipped:
            self.scaler.update()
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped and not stepped else 0
        if self._skipped_in_a_row == _MOST_SKIPPED:
            raise FloatingPointError(f"gradients were not finite in {_MOST_SKIPPED} updates in a row")
        return stepped or not skipped, skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scaler: tensors and plain containers."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; without effect if the format was or is another one than fp16."""
        if self.scaler is not None and state_dict:
            self.scaler.load_state_dict(state_dict)

    def _step_carefully(self, optimizer: Optimizer, limit: float | None, total: Tensor | float | None) -> bool:
        """Unscale, divide by the weight, measure, clip, step, in this order; return whether it was a step."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaler = self.scaler if parameters else None
        if scaler is not None and not self._unscale(scaler, optimizer):
            self._skipped = True
            return False
        gradients = [p.grad for p in parameters if p.grad is not None]
        if total is not None:
            torch._foreach_div_(gradients, self._mean_weight(total))
        if limit is not None or self.report is not None:
            norm = whole(nn.utils.get_total_norm(gradients))
            if self.report is not None:
                self.report(optimizer, parameters, norm)
            if limit is not None:
                nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        optimizer.step()
        self._stepped = True
        return True

    def _unscale(self, scaler: torch.amp.GradScaler, optimizer: Optimizer) -> bool:
        """Divide gradients by the scale and return whether they are finite; DDP and FSDP2 make all ranks agree."""
        scaler.unscale_(optimizer)
        return not any(flag.item() for flag in scaler._found_inf_per_device(optimizer).values())

    def _count(self, optimizer: Optimizer) -> None:
        """Add the weight of the last backward to what the optimizer has in this window."""
        assert self._weight is not None
        if id(optimizer) not in self._counted:
            self._counted.add(id(optimizer))
            if not self._is_alone():
                self._totals[id(optimizer)] = self._totals.get(id(optimizer), 0.0) + self._weight

    def _is_alone(self) -> bool:
        return self.window_opens and self.window_closes and self._world.size == 1

    def _mean_weight(self, total: Tensor | float) -> Tensor | float:
        """Return the window's weight over all ranks, divided by their number, as their gradients are."""
        if self._world.size == 1:
            return total
        weight = torch.as_tensor(total, dtype=torch.float32, device=self._device).clone()
        dist.all_reduce(weight)
        return weight / self._world.size
