"""From a loss to an update: the number format of the forward pass, accumulation windows, weights, clipping."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helios_lite.distributed import World

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


class Precision:
    """Makes the updates of a run exact: an accumulation window equals one large batch.

    Args:
        name: "fp32" or "bf16": the format of the forward pass.
        device: where it runs.
        clip_norm: largest 2-norm of the gradients of one optimizer, None for no limit.
        world: the ranks whose gradients are averaged.

    Attributes:
        share: the current batch's part of the samples of its window, times the number of ranks. Set by the loop.
        window_opens: whether the current batch is the first of its window. Set by the loop.
        window_closes: whether the current batch is the last of its window. Set by the loop.
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
        self.share = 1.0
        self.window_opens = self.window_closes = True
        # The weight of the last backward and the optimizers that have counted it; and what each has in this window.
        self._weight: Tensor | float | None = None
        self._counted: set[int] = set()
        self._totals: dict[int, Tensor | float] = {}

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which PyTorch chooses the format per operation; for fp32 it does nothing."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor, weight: Tensor | float | None) -> None:
        """Add the gradients of a loss; see `Model.backward`."""
        if weight is not None and self._weight is not None and not self._counted:
            raise RuntimeError("backward(weight=...): the optimizer_step that belongs to the previous one is missing")
        self._weight = weight
        self._counted.clear()
        scale = self.share if weight is None else weight
        # A batch alone in its window needs no scaling: it would be multiplied and divided by the same number.
        scaled = loss if self._alone() or (weight is None and scale == 1.0) else loss * scale
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, scheduler: Any, clip_norm: float | None) -> bool:
        """Update the parameters if the window closes; see `Model.optimizer_step`."""
        if self._weight is not None and id(optimizer) not in self._counted:
            self._counted.add(id(optimizer))
            if not self._alone():
                self._totals[id(optimizer)] = self._totals.get(id(optimizer), 0.0) + self._weight
        if not self.window_closes:
            return False
        total = self._totals.pop(id(optimizer), None)
        limit = self._clip_norm if clip_norm is None else clip_norm
        if limit is not None or total is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if total is not None:
                torch._foreach_div_([p.grad for p in parameters], self._mean_weight(total))
            if limit is not None:
                nn.utils.clip_grad_norm_(parameters, limit)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return True

    def _alone(self) -> bool:
        return self.window_opens and self.window_closes and self._world.size == 1

    def _mean_weight(self, total: Tensor | float) -> Tensor | float:
        """Return the window's weight over all ranks, divided by their number, as their gradients are."""
        if self._world.size == 1:
            return total
        weight = torch.as_tensor(total, dtype=torch.float32, device=self._device).clone()
        dist.all_reduce(weight)
        return weight / self._world.size
