"""Logged values: kept until a log point without waiting for the device, and reduced exactly.

A value of the CPU is added to running totals at once; one on an accelerator is copied, and read at the log point with
all others. Memory does not grow with the number of batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from helios_lite.distributed import World

Reduce = Literal["mean", "sum", "min", "max", "last", "std"]

_MOST_WAITING = 4096  # Values on the device; then they are read in any case.
_NEVER = math.inf  # The step at which a metric that is finite was not.

# The totals of some values v_i with weights w_i, in this order:
# W = sum w, S = sum w*v, M2 = sum w*(v - S/W)^2, sum v, min v, max v, last v, step of the first v that is not finite.
_Totals = tuple[float, float, float, float, float, float, float, float]
_RESULT: dict[str, Callable[[_Totals], float]] = {
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
        # What is still on the device, in order: series, value, count, step.
        self._waiting: list[tuple[_Series, Tensor | float, Tensor | float, int]] = []

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
        if isinstance(value, float) and isinstance(count, float) and not self._waiting:
            series.take(value, count, self.step)
        else:
            self._waiting.append((series, value, count, self.step))
            if len(self._waiting) == _MOST_WAITING:
                self._read()

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
        """Return the totals so far: plain numbers."""
        self._read()
        return {name: {"reduce": series.reduce, "totals": series.totals()} for name, series in self._series.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another `state_dict` stopped; values that are here already are kept besides."""
        self._read()
        for name, state in state_dict.items():
            loaded = _Series(state["reduce"], state["totals"])
            present = self._series.get(name)
            if present is not None:
                loaded = _Series(loaded.reduce, _merge(present.totals(), loaded.totals()))
            self._series[name] = loaded

    def _read(self) -> None:
        """Take what waits on the device, with one synchronisation."""
        if not self._waiting:
            return
        tensors = [number for entry in self._waiting for number in entry[1:3] if isinstance(number, Tensor)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else ())
        for series, value, count, step in self._waiting:
            value, count = (next(numbers) if isinstance(x, Tensor) else x for x in (value, count))
            series.take(value, count, step)
        self._waiting.clear()


class _Series:
    """One metric's totals, as they are named above."""

    __slots__ = ("bad", "high", "last", "low", "m2", "reduce", "sum", "weight", "weighted")

    def __init__(
        self, reduce: Reduce, totals: _Totals = (0.0, 0.0, 0.0, 0.0, math.inf, -math.inf, 0.0, _NEVER)
    ) -> None:
        self.reduce = reduce
        self.weight, self.weighted, self.m2, self.sum, self.low, self.high, self.last, self.bad = totals

    def totals(self) -> _Totals:
        return self.weight, self.weighted, self.m2, self.sum, self.low, self.high, self.last, self.bad

    def take(self, value: float, count: float, step: int) -> None:
        reduce = self.reduce
        # A value that counts for nothing (the mean over no tokens is NaN) must not poison the others.
        if count > 0:
            before = self.weight
            self.weight = before + count
            if reduce == "std":  # West, "Updating mean and variance estimates: an improved method", 1979.
                delta = value - (self.weighted / before if before else 0.0)
                self.m2 += delta * delta * count * before / self.weight
            self.weighted += count * value
        elif reduce in ("mean", "std"):
            return
        self.sum += value
        self.last = value
        if reduce == "min" and not value >= self.low:
            self.low = value
        elif reduce == "max" and not value <= self.high:
            self.high = value
        if value - value != 0.0 and step < self.bad:  # NaN or infinite.
            self.bad = step


def _merge(a: _Totals, b: _Totals) -> _Totals:
    """Merge two rows of totals.

    M2 by Chan, Golub and LeVeque, "Updating formulae ... for computing sample variances", 1982.
    """
    total = a[0] + b[0]
    delta = (b[1] / b[0] if b[0] > 0 else 0.0) - (a[1] / a[0] if a[0] > 0 else 0.0)
    m2 = a[2] + b[2] + (delta * delta * a[0] * b[0] / total if total > 0 else 0.0)
    low = a[4] if not b[4] < a[4] and b[4] == b[4] else b[4]
    high = a[5] if not b[5] > a[5] and b[5] == b[5] else b[5]
    return total, a[1] + b[1], m2, a[3] + b[3], low, high, b[6], min(a[7], b[7])
