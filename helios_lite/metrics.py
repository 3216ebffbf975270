"""Logged values, kept on the device until a log point and reduced exactly.

Logging copies one scalar into a slot of a small buffer: no synchronisation, no arithmetic, no allocation. A full
buffer is folded into seven running totals, so memory does not grow with the number of batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from helios_lite.distributed import World

Reduce = Literal["mean", "sum", "min", "max", "last", "std"]

_BLOCK = 64
_NEVER = 2**53  # A step that no run reaches; still exact in the totals' float64.

# The totals of some values v_i with weights w_i, in this order:
# W = sum w, S = sum w*v, M2 = sum w*(v - S/W)^2, sum v, min v, max v, last v.
_RESULT: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda totals: totals[1] / totals[0] if totals[0] else math.nan,
    "std": lambda totals: math.sqrt(totals[2] / totals[0]) if totals[0] else math.nan,
    "sum": lambda totals: totals[3],
    "min": lambda totals: totals[4],
    "max": lambda totals: totals[5],
    "last": lambda totals: totals[6],
}


class Summary(NamedTuple):
    """Metrics by full name, and name and step of the first logged value that was NaN or infinite, if one was."""

    values: dict[str, float]
    first_not_finite: tuple[str, int] | None


class Metrics:
    """The values logged in one phase since the last row of metrics.

    Args:
        device: where values are kept. Totals are float64, except on MPS, which has only float32.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step = 0
        """The update being worked on: set by the loop, remembered for values that are not finite."""
        self._series: dict[str, _Series] = {}

    def add(self, name: str, value: Tensor | float, count: Tensor | float, reduce: Reduce = "mean") -> None:
        """Take one value.

        Args:
            name: full name, such as "train/loss".
            value: a number or a tensor of one element, any dtype and device.
            count: how many samples (or tokens) the value is the mean of; its weight in "mean" and "std".
            reduce: "mean" and "std" (of the population) are weighted by count; "sum", "min", "max" and "last" not.

        Raises:
            ValueError: `reduce` is unknown or differs from before, or the tensor has several elements.
        """
        series = self._series.get(name)
        if series is None:
            if reduce not in _RESULT:
                raise ValueError(f"log({name!r}): reduce={reduce!r} must be one of {', '.join(_RESULT)}")
            series = self._series[name] = _Series(reduce, self.device)
        elif series.reduce != reduce:
            raise ValueError(f"log({name!r}): reduce={reduce!r}, but it was {series.reduce!r} before")
        series.add(name, value, count, self.step)

    def compute(self, world: World = World(), *, idle: bool = False) -> Summary:  # noqa: B008 (frozen)
        """Return every metric's value so far over all ranks; nothing changes. Call on every rank.

        Reads from the device once, and communicates once.

        Args:
            world: the ranks.
            idle: this rank had no batch, and so may lack names that others have.

        Raises:
            ValueError: ranks that had batches logged different names; raised on every rank.
        """
        rows = {name: (self._series[name].reduce, totals) for name, totals in self._totals().items()}
        found = world.gather((idle, rows))
        known = {name for _, other in found for name in other}
        for rank, (was_idle, other) in enumerate(found):
            if not was_idle and (missing := sorted(known - other.keys())):
                raise ValueError(f"metrics differ among the ranks: rank {rank} did not log {missing}")
        merged: dict[str, tuple[str, list[float]]] = {}
        for _, other in found:
            for name, (reduce, totals) in other.items():
                before = merged.get(name)
                merged[name] = (reduce, totals if before is None else _merge_rows(before[1], totals))
        values = {name: _RESULT[reduce](totals) for name, (reduce, totals) in merged.items()}
        bad = {name: int(totals[-1]) for name, (_, totals) in merged.items() if totals[-1] != _NEVER}
        return Summary(values, min(bad.items(), key=lambda item: item[1]) if bad else None)

    def clear(self) -> None:
        """Forget every value and name."""
        self._series.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the values as they lie in the buffers: folding early would change the last bit of a mean."""
        return {name: series.state_dict() for name, series in self._series.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another `state_dict` stopped; values that are here already are kept besides."""
        for name, state in state_dict.items():
            loaded = _Series(state["reduce"], self.device)
            loaded.load_state_dict(state)
            present = self._series.get(name)
            if present is not None and (mine := present.totals()) is not None:
                loaded.folded = mine if (other := loaded.totals()) is None else _merge(mine, other)
                loaded.counts.clear()
                loaded.steps.clear()
            self._series[name] = loaded

    def _totals(self) -> dict[str, list[float]]:
        totals = {name: series.totals() for name, series in self._series.items()}
        present = {name: value for name, value in totals.items() if value is not None}
        if not present:
            return {}
        rows: list[list[float]] = torch.stack(list(present.values())).tolist()
        return dict(zip(present, rows, strict=True))


class _Series:
    """One metric: up to a block of single values, and the totals of all blocks before."""

    __slots__ = ("counts", "folded", "reduce", "slots", "steps", "values")

    def __init__(self, reduce: Reduce, device: torch.device) -> None:
        self.reduce = reduce
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(_BLOCK, dtype=dtype, device=device)
        self.slots = [self.values[i] for i in range(_BLOCK)]
        self.counts: list[Tensor | float] = []
        self.steps: list[int] = []
        self.folded: Tensor | None = None

    def add(self, name: str, value: Tensor | float, count: Tensor | float, step: int) -> None:
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"log({name!r}): needs one number, not a tensor of shape {tuple(value.shape)}")
            self.slots[len(self.counts)].copy_(value.detach().reshape(()))
        else:
            self.slots[len(self.counts)].fill_(value)
        if isinstance(count, Tensor) and count.numel() != 1:
            raise ValueError(f"log({name!r}): needs one count, not a tensor of shape {tuple(count.shape)}")
        # A user's tensor is copied, since it may change in place (or be the output of a CUDA graph) before it is read.
        self.counts.append(count.detach().clone() if isinstance(count, Tensor) else float(count))
        self.steps.append(step)
        if len(self.counts) == _BLOCK:
            self.folded = self.totals()
            self.counts.clear()
            self.steps.clear()

    def totals(self) -> Tensor | None:
        """Return the seven totals and the step of the first value that was not finite; None without values."""
        if not self.counts:
            return self.folded
        value = self.values[: len(self.counts)]
        weight = self._counts_tensor()
        step = self._to_device(self.steps)
        # A value that counts for nothing (the mean over no tokens is NaN) must not poison the others.
        counted = torch.where(weight > 0, value, 0)
        total = weight.sum()
        weighted = (weight * counted).sum()
        mean = torch.where(total > 0, weighted / total, 0)
        m2 = (weight * (counted - mean) ** 2).sum()
        seen = counted if self.reduce in ("mean", "std") else value
        bad = torch.where(seen.isfinite(), _NEVER, step).min()
        block = torch.stack([total, weighted, m2, value.sum(), value.min(), value.max(), value[-1].clone(), bad])
        return block if self.folded is None else _merge(self.folded, block)

    def state_dict(self) -> dict[str, Any]:
        n = len(self.counts)
        return {
            "reduce": self.reduce,
            "values": self.values[:n].clone(),
            "counts": [count.clone() if isinstance(count, Tensor) else count for count in self.counts],
            "steps": list(self.steps),
            "folded": self.folded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device, dtype = self.values.device, self.values.dtype
        self.counts = [count.to(device) if isinstance(count, Tensor) else count for count in state["counts"]]
        self.steps = list(state["steps"])
        self.values[: len(self.counts)] = state["values"]
        self.folded = None if state["folded"] is None else state["folded"].to(device, dtype)

    def _counts_tensor(self) -> Tensor:
        if not any(isinstance(count, Tensor) for count in self.counts):
            return self._to_device(self.counts)
        device, dtype = self.values.device, self.values.dtype
        return torch.stack([torch.as_tensor(count).to(device, dtype).reshape(()) for count in self.counts])

    def _to_device(self, numbers: list[Any]) -> Tensor:
        # From pinned memory the copy does not wait for the device.
        pinned = self.values.device.type == "cuda"
        host = torch.tensor(numbers, dtype=self.values.dtype, pin_memory=pinned)
        return host.to(self.values.device, non_blocking=True)


def _merge_rows(a: list[float], b: list[float]) -> list[float]:
    merged: list[float] = _merge(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)).tolist()
    return merged


def _merge(a: Tensor, b: Tensor) -> Tensor:
    """Merge two rows of totals.

    M2 by Chan, Golub and LeVeque, "Updating formulae ... for computing sample variances", 1982.
    """
    total = a[0] + b[0]
    delta = torch.where(b[0] > 0, b[1] / b[0], 0) - torch.where(a[0] > 0, a[1] / a[0], 0)
    m2 = a[2] + b[2] + torch.where(total > 0, delta**2 * a[0] * b[0] / total, 0)
    return torch.stack(
        [
            total,
            a[1] + b[1],
            m2,
            a[3] + b[3],
            torch.minimum(a[4], b[4]),
            torch.maximum(a[5], b[5]),
            b[6],
            torch.minimum(a[7], b[7]),
        ]
    )
