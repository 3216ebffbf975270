"""Logged values: kept until a log point without waiting for the device, and reduced exactly.

On the CPU a value goes to a list; on an accelerator it is copied, and read at the log point with all others. A long
list is folded into seven running totals, so memory does not grow with the number of batches.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from helios_lite.distributed import World

Reduce = Literal["mean", "sum", "min", "max", "last", "std"]

_BLOCK = 1024  # Values of one metric, after which they are read from the device in any case.
_NEVER = math.inf  # The step at which a metric that is finite was not.

# The totals of some values v_i with weights w_i, in this order:
# W = sum w, S = sum w*v, M2 = sum w*(v - S/W)^2, sum v, min v, max v, last v, step of the first v that is not finite.
_RESULT: dict[str, Callable[[Sequence[float]], float]] = {
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
        device: where the model computes; values on other accelerators are moved there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step = 0
        """The update being worked on: set by the loop, remembered for values that are not finite."""
        self._series: dict[str, _Series] = {}
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._waiting: list[tuple[list[Any], int]] = []  # Where copies on the device stand in place of numbers.

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
        value = self._number(name, value) if isinstance(value, Tensor) else float(value)
        count = self._number(name, count) if isinstance(count, Tensor) else float(count)
        series = self._series.get(name)
        if series is None:
            if reduce not in _RESULT:
                raise ValueError(f"log({name!r}): reduce={reduce!r} must be one of {', '.join(_RESULT)}")
            series = self._series[name] = _Series(reduce)
        elif series.reduce != reduce:
            raise ValueError(f"log({name!r}): reduce={reduce!r}, but it was {series.reduce!r} before")
        for numbers, number in ((series.values, value), (series.counts, count)):
            if isinstance(number, Tensor):
                self._waiting.append((numbers, len(numbers)))
            numbers.append(number)
        series.steps.append(self.step)
        if len(series.steps) == _BLOCK:
            self._read()
            series.fold()

    def _number(self, name: str, tensor: Tensor) -> Tensor | float:
        if tensor.numel() != 1:
            raise ValueError(f"log({name!r}): needs one number, not a tensor of shape {tuple(tensor.shape)}")
        if tensor.is_cpu:
            return float(tensor.item())  # Nothing waits for it.
        # A copy: what the user has may change in place (or be the output of a CUDA graph) before it is read.
        return tensor.detach().to(self.device, self._dtype, copy=True).reshape(())

    def compute(self, world: World = World(), *, idle: bool = False) -> Summary:  # noqa: B008 (frozen)
        """Return every metric's value so far over all ranks; nothing changes. Call on every rank.

        Reads from the device once, and communicates once.

        Args:
            world: the ranks.
            idle: this rank had no batch, and so may lack names that others have.

        Raises:
            ValueError: ranks that had batches logged different names; raised on every rank.
        """
        self._read()
        rows = {name: (series.reduce, series.totals()) for name, series in self._series.items()}
        found = world.gather((idle, rows))
        known = {name for _, other in found for name in other}
        for rank, (was_idle, other) in enumerate(found):
            if not was_idle and (missing := sorted(known - other.keys())):
                raise ValueError(f"metrics differ among the ranks: rank {rank} did not log {missing}")
        merged: dict[str, tuple[str, _Totals]] = {}
        for _, other in found:
            for name, (reduce, totals) in other.items():
                before = merged.get(name)
                merged[name] = (reduce, totals if before is None else _merge(before[1], totals))
        values = {name: _RESULT[reduce](totals) for name, (reduce, totals) in merged.items()}
        bad = {name: int(totals[-1]) for name, (_, totals) in merged.items() if totals[-1] != _NEVER}
        return Summary(values, min(bad.items(), key=lambda item: item[1]) if bad else None)

    def clear(self) -> None:
        """Forget every value and name."""
        self._series.clear()
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the values as they are: folding early would change the last bit of a mean."""
        self._read()
        return {name: series.state_dict() for name, series in self._series.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another `state_dict` stopped; values that are here already are kept besides."""
        self._read()
        for name, state in state_dict.items():
            loaded = _Series(state["reduce"])
            loaded.load_state_dict(state)
            present = self._series.get(name)
            if present is not None:
                loaded.folded = _merge(present.totals(), loaded.totals())
                loaded.clear()
            self._series[name] = loaded

    def _read(self) -> None:
        """Replace what waits on the device by numbers."""
        if self._waiting:
            found = torch.stack([numbers[i] for numbers, i in self._waiting]).tolist()
            for (numbers, i), number in zip(self._waiting, found, strict=True):
                numbers[i] = number
            self._waiting.clear()


class _Series:
    """One metric: a list of single values, and the totals of all before."""

    __slots__ = ("counts", "folded", "reduce", "steps", "values")

    def __init__(self, reduce: Reduce) -> None:
        self.reduce = reduce
        self.values: list[Any] = []  # Floats, and tensors that wait to be read.
        self.counts: list[Any] = []
        self.steps: list[int] = []
        self.folded: _Totals | None = None

    def clear(self) -> None:
        for numbers in (self.values, self.counts, self.steps):
            numbers.clear()

    def fold(self) -> None:
        self.folded = self.totals()
        self.clear()

    def totals(self) -> _Totals:
        values, counts = self.values, self.counts
        if not values:
            assert self.folded is not None  # A series begins with a value.
            return self.folded
        # A value that counts for nothing (the mean over no tokens is NaN) must not poison the others.
        counted = values if min(counts) > 0 else [v if w > 0 else 0.0 for v, w in zip(values, counts, strict=True)]
        total, weighted = sum(counts), sum(map(operator.mul, counts, counted))
        m2, low, high = 0.0, values[-1], values[-1]  # Computed only where wanted.
        if self.reduce == "std":
            mean = weighted / total if total > 0 else 0.0
            m2 = sum(w * (v - mean) * (v - mean) for v, w in zip(counted, counts, strict=True))
        if self.reduce in ("min", "max"):
            low, high = _least(values), -_least([-v for v in values])
        seen = counted if self.reduce in ("mean", "std") else values
        bad = _NEVER
        if not all(map(math.isfinite, seen)):
            bad = min(step for v, step in zip(seen, self.steps, strict=True) if not math.isfinite(v))
        block = (total, weighted, m2, sum(values), low, high, values[-1], bad)
        return block if self.folded is None else _merge(self.folded, block)

    def state_dict(self) -> dict[str, Any]:
        return {name: copy.copy(getattr(self, name)) for name in self.__slots__}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.__slots__:
            setattr(self, name, copy.copy(state[name]))


_Totals = tuple[float, float, float, float, float, float, float, float]


def _merge(a: _Totals, b: _Totals) -> _Totals:
    """Merge two rows of totals.

    M2 by Chan, Golub and LeVeque, "Updating formulae ... for computing sample variances", 1982.
    """
    total = a[0] + b[0]
    delta = (b[1] / b[0] if b[0] > 0 else 0.0) - (a[1] / a[0] if a[0] > 0 else 0.0)
    m2 = a[2] + b[2] + (delta * delta * a[0] * b[0] / total if total > 0 else 0.0)
    high = -_least((-a[5], -b[5]))
    return total, a[1] + b[1], m2, a[3] + b[3], _least((a[4], b[4])), high, b[6], min(a[7], b[7])


def _least(values: Sequence[float]) -> float:
    """Return the smallest value, NaN if there is one, as PyTorch does."""
    return min(values) if not any(map(math.isnan, values)) else math.nan
