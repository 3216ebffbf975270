"""Logged values, kept until a logging step without waiting for the device, and reduced exactly.

A value on the CPU is added to running totals at once. A value on an accelerator is copied there, and read at the
logging step together with all others. Memory does not grow with the number of batches. The totals of rows give the
means of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from helios_lite.processes.world import World


class EpochMeans:
    """Merges the totals of the rows of an epoch, so that its metrics are as exact as those of a row."""

    def __init__(self) -> None:
        self._totals: dict[str, ReducedTotals] | None = {}  # None if rows of the epoch are unknown.

    def begin(self) -> None:
        """Begin an epoch."""
        self._totals = {}

    def add(self, totals: Mapping[str, ReducedTotals]) -> None:
        """Add the totals of a row, over all ranks. A value that is reduced by "last" is that of a row alone."""
        if self._totals is None:
            return
        for name, (reduce, one) in totals.items():
            if reduce != "last":
                earlier = self._totals.get(name)
                self._totals[name] = (reduce, one if earlier is None else merge_totals(earlier[1], one))

    def take(self) -> dict[str, float]:
        """Return the metrics of the epoch by the full names of those of its rows, and end it."""
        totals, self._totals = self._totals or {}, {}
        return {name: reduced(reduce, one) for name, (reduce, one) in totals.items()}

    def state_dict(self) -> dict[str, Any] | None:
        """Return the totals as plain numbers, None if rows of the epoch are unknown."""
        if self._totals is None:
            return None
        return {name: {"reduce": reduce, "totals": tuple(one)} for name, (reduce, one) in self._totals.items()}

    def load_state_dict(self, state_dict: dict[str, Any] | None) -> None:
        """Restore what `state_dict` returned. With None (earlier versions) the epoch has none."""
        self._totals = None
        if state_dict is not None:
            self._totals = {name: (one["reduce"], Totals(*one["totals"])) for name, one in state_dict.items()}


Reduce = Literal["mean", "sum", "min", "max", "last", "std"]
_MAX_PENDING = 4096  # Values on the device; when there are more, they are read before the logging step.
_NEVER = math.inf  # The step at which a metric became not finite, for a metric that has always been finite.


class Totals(NamedTuple):
    """The running totals of values v_i with weights w_i. A checkpoint holds them in this order."""

    weight: float = 0.0
    """sum of w"""
    weighted_sum: float = 0.0
    """sum of w * v"""
    m2: float = 0.0
    """sum of w * (v - mean)^2"""
    sum: float = 0.0
    """sum of v"""
    low: float = math.inf
    high: float = -math.inf
    last: float = 0.0
    first_not_finite: float = _NEVER
    """step of the first v that was NaN or infinite"""


_RESULT: dict[str, Callable[[Totals], float]] = {
    "mean": lambda totals: totals.weighted_sum / totals.weight if totals.weight else math.nan,
    "std": lambda totals: math.sqrt(totals.m2 / totals.weight) if totals.weight else math.nan,
    "sum": lambda totals: totals.sum,
    "min": lambda totals: totals.low,
    "max": lambda totals: totals.high,
    "last": lambda totals: totals.last,
}
ReducedTotals = tuple[Reduce, Totals]


class Summary(NamedTuple):
    """Metrics over all ranks.

    Attributes:
        values: the reduced metrics by full name.
        totals: the totals from which they were reduced, by full name.
        first_not_finite: the name and step of the first value that was NaN or infinite, None if all were finite.
        loss_is_finite: whether the loss that was passed to `compute` is finite on all ranks.
    """

    values: dict[str, float]
    totals: dict[str, ReducedTotals]
    first_not_finite: tuple[str, int] | None
    loss_is_finite: bool


def reduced(reduce: Reduce, totals: Totals) -> float:
    """Return the value of a metric."""
    return _RESULT[reduce](totals)


def named_reductions(name: str, reduce: Sequence[Reduce]) -> list[tuple[str, Reduce]]:
    """Return the full names of several reductions of one metric: the first has its name, others "<name>/<reduction>".

    Raises:
        ValueError: there is no reduction, or one twice.
    """
    if not isinstance(reduce, tuple | list) or len(reduce) == 0 or len(set(reduce)) < len(reduce):
        choices = ", ".join(_RESULT)
        raise ValueError(f"log({name!r}): reduce={reduce!r} must be one of {choices}, or several different ones")
    return [(name if i == 0 else f"{name}/{each}", each) for i, each in enumerate(reduce)]


class MetricAccumulator:
    """The values logged in one phase since the last row of metrics.

    Args:
        device: where the model computes; values on other accelerators are moved there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._running: dict[str, _RunningStats] = {}
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        # Values that are still on the device, in order: running totals, value, weight, step.
        self._pending: list[tuple[_RunningStats, Tensor | float, Tensor | float, int]] = []

    def update(
        self, name: str, value: Tensor | float, weight: Tensor | float, reduce: Reduce = "mean", step: int = 0
    ) -> None:
        """Add one value.

        Args:
            name: full name, such as "train/loss".
            value: a number or a tensor of one element, of any dtype and device.
            weight: the number of samples (or tokens) of which the value is the mean; used by "mean" and "std".
            reduce: "mean" and "std" (of the population) are weighted; "sum", "min", "max" and "last" are not.
            step: the optimizer update in progress, reported if the value is not finite.

        Raises:
            ValueError: `reduce` is unknown or differs from an earlier call, or the tensor has several elements.
            TypeError: the value or the weight is no number, such as None.
        """
        try:
            value = self._number(name, value) if isinstance(value, Tensor) else float(value)
            weight = self._number(name, weight) if isinstance(weight, Tensor) else float(weight)
        except (TypeError, ValueError) as error:
            if str(error).startswith("log("):  # A tensor has several elements.
                raise
            raise TypeError(f"log({name!r}): {error}") from None
        running = self._running.get(name)
        if running is None:
            if reduce not in _RESULT:
                raise ValueError(f"log({name!r}): reduce={reduce!r} must be one of {', '.join(_RESULT)}")
            running = self._running[name] = _RunningStats(reduce)
        elif running.reduce != reduce:
            raise ValueError(f"log({name!r}): reduce={reduce!r}, but it was {running.reduce!r} before")
        if isinstance(value, float) and isinstance(weight, float) and not self._pending:
            running.update(value, weight, step)
        else:
            self._pending.append((running, value, weight, step))
            if len(self._pending) == _MAX_PENDING:
                self._read_pending()

    def compute(
        self,
        world: World = World(),  # noqa: B008 (frozen)
        *,
        is_idle: bool = False,
        loss: Tensor | None = None,
    ) -> Summary:
        """Return the value of every metric over all ranks, without changing it. Call on every rank.

        Reads from the device once, and communicates once. Ranks must have logged the same names. Those that a
        checkpoint has restored are not compared: the run that saved it has done so, and another number of ranks may
        have run then.

        Args:
            world: the ranks.
            is_idle: whether this rank had no batch, so that names logged by others may be missing here.
            loss: a tensor of one element, read together with the metrics, but not a metric itself.

        Raises:
            ValueError: ranks that had batches logged different names; raised on every rank.
        """
        loss_is_finite = self._read_pending(loss)
        totals = {name: (running.reduce, running.totals()) for name, running in self._running.items()}
        if world.size > 1:
            restored = {name for name, running in self._running.items() if running.is_restored}
            gathered = world.gather(((totals, restored, is_idle), loss_is_finite))
            totals = _merged([rank for rank, _ in gathered])
            loss_is_finite = all(is_finite for _, is_finite in gathered)
        values = {name: reduced(reduce, one) for name, (reduce, one) in totals.items()}
        bad = {name: int(one.first_not_finite) for name, (_, one) in totals.items() if one.first_not_finite != _NEVER}
        first_not_finite = min(bad.items(), key=lambda item: item[1]) if bad else None
        return Summary(values, totals, first_not_finite, loss_is_finite)

    def reset(self) -> None:
        """Forget all values and names."""
        self._running.clear()
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the running totals as plain numbers."""
        self._read_pending()
        return {
            name: {"reduce": running.reduce, "totals": tuple(running.totals())}
            for name, running in self._running.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Merge the totals that `state_dict` returned into the present ones."""
        self._read_pending()
        for name, state in state_dict.items():
            totals = Totals(*state["totals"])
            present = self._running.get(name)
            if present is not None:
                totals = merge_totals(present.totals(), totals)
            self._running[name] = _RunningStats(state["reduce"], totals, is_restored=True)

    def _number(self, name: str, tensor: Tensor) -> Tensor | float:
        if tensor.numel() != 1:
            raise ValueError(f"log({name!r}): needs one number, not a tensor of shape {tuple(tensor.shape)}")
        if tensor.is_cpu:
            return float(tensor.item())  # Reading it waits for nothing.
        # A copy: the user's tensor may change in place (or be the output of a CUDA graph) before it is read.
        return tensor.detach().to(self.device, self._dtype, copy=True).reshape(())

    def _read_pending(self, loss: Tensor | None = None) -> bool:
        """Read the values that are still on the device, with one synchronization; return whether the loss is finite."""
        tensors = [number for entry in self._pending for number in entry[1:3] if isinstance(number, Tensor)]
        number = 0.0 if loss is None else self._number("loss", loss)
        tensors += [number] if isinstance(number, Tensor) else []
        numbers = iter(torch.stack(tensors).tolist() if tensors else ())
        for running, value, weight, step in self._pending:
            value, weight = (next(numbers) if isinstance(x, Tensor) else x for x in (value, weight))
            running.update(value, weight, step)
        self._pending.clear()
        return math.isfinite(next(numbers) if isinstance(number, Tensor) else number)


class _RunningStats:
    """The running totals of one metric; see `Totals`. `is_restored` says that all values are from a checkpoint."""

    __slots__ = (*Totals._fields, "is_restored", "reduce")

    def __init__(
        self,
        reduce: Reduce,
        totals: Totals = Totals(),  # noqa: B008 (immutable)
        *,
        is_restored: bool = False,
    ) -> None:
        self.reduce, self.is_restored = reduce, is_restored
        self.weight, self.weighted_sum, self.m2, self.sum, self.low, self.high, self.last, self.first_not_finite = (
            totals
        )

    def totals(self) -> Totals:
        return Totals(
            self.weight, self.weighted_sum, self.m2, self.sum, self.low, self.high, self.last, self.first_not_finite
        )

    def update(self, value: float, weight: float, step: int) -> None:
        reduce = self.reduce
        self.is_restored = False
        # A value of weight 0 (the mean over no tokens is NaN) must not make the mean of the others NaN.
        if weight > 0:
            before = self.weight
            self.weight = before + weight
            if reduce == "std":  # West, "Updating mean and variance estimates: an improved method", 1979.
                delta = value - (self.weighted_sum / before if before else 0.0)
                self.m2 += delta * delta * weight * before / self.weight
            self.weighted_sum += weight * value
        elif reduce in ("mean", "std"):
            return
        self.sum += value
        self.last = value
        if reduce == "min" and not value >= self.low:
            self.low = value
        elif reduce == "max" and not value <= self.high:
            self.high = value
        if value - value != 0.0 and step < self.first_not_finite:  # NaN or infinite.
            self.first_not_finite = step


def _merged(by_rank: list[tuple[dict[str, ReducedTotals], set[str], bool]]) -> dict[str, ReducedTotals]:
    """Return the totals of all ranks together.

    Args:
        by_rank: the totals of each rank, the names that a checkpoint has restored, and whether the rank was idle.

    Raises:
        ValueError: a rank that was not idle has not logged a name.
    """
    known = {name for totals, restored, _ in by_rank for name in totals.keys() - restored}
    merged: dict[str, ReducedTotals] = {}
    for rank, (totals, _, is_idle) in enumerate(by_rank):
        if not is_idle and (missing := sorted(known - totals.keys())):
            raise ValueError(f"metrics differ among the ranks: rank {rank} did not log {missing}")
        for name, (reduce, one) in totals.items():
            earlier = merged.get(name)
            merged[name] = (reduce, one if earlier is None else merge_totals(earlier[1], one))
    return merged


def merge_totals(a: Totals, b: Totals) -> Totals:
    """Return the totals of the values of both.

    M2 by Chan, Golub and LeVeque, "Updating formulae ... for computing sample variances", 1982.
    """
    weight = a.weight + b.weight
    delta = (b.weighted_sum / b.weight if b.weight > 0 else 0.0) - (a.weighted_sum / a.weight if a.weight > 0 else 0.0)
    return Totals(
        weight=weight,
        weighted_sum=a.weighted_sum + b.weighted_sum,
        m2=a.m2 + b.m2 + (delta * delta * a.weight * b.weight / weight if weight > 0 else 0.0),
        sum=a.sum + b.sum,
        # A NaN stays: it is neither smaller nor equal to itself.
        low=a.low if not b.low < a.low and b.low == b.low else b.low,
        high=a.high if not b.high > a.high and b.high == b.high else b.high,
        last=b.last,
        first_not_finite=min(a.first_not_finite, b.first_not_finite),
    )
