"""Logged values, kept until a logging step without waiting for the device, and reduced exactly.

A value on the CPU is added to running totals at once. A value on an accelerator is copied there, and read at the
logging step together with all others. Memory does not grow with the number of batches. The totals of rows give the
means of epochs.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from helios_lite.processes.world import World

Reduce = Literal["mean", "sum", "min", "max", "last", "std"]
_MAX_PENDING = 4096  # Values on the device; when there are more, they are read before the logging step.
_NEVER = math.inf  # The step at which a metric became not finite, for a metric that has always been finite.


class MetricAccumulator:
    """The values logged in one phase since the last row of metrics.

    Args:
        device: where the model computes; values on other accelerators are moved there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._running: dict[str, Totals] = {}
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        # Values that are still on the device, in order: running totals, value, weight, step.
        self._pending: list[tuple[Totals, Tensor | float, Tensor | float, int]] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been logged."""
        return not self._running

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
            running = self._running[name] = Totals(reduce)
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
        totals = {name: copy.copy(running) for name, running in self._running.items()}
        if world.size > 1:
            gathered = world.gather(((totals, is_idle), loss_is_finite))
            totals = _merged([rank for rank, _ in gathered])
            loss_is_finite = all(is_finite for _, is_finite in gathered)
        values = {name: one.result() for name, one in totals.items()}
        bad = {name: int(one.first_not_finite) for name, one in totals.items() if one.first_not_finite != _NEVER}
        first_not_finite = min(bad.items(), key=lambda item: item[1]) if bad else None
        return Summary(values, totals, first_not_finite, loss_is_finite)

    def reset(self) -> None:
        """Forget all values and names."""
        self._running.clear()
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the running totals as plain numbers."""
        self._read_pending()
        return {name: running.state_dict() for name, running in self._running.items()}

    def load_ranks(self, by_rank: list[dict[str, Any]], world: World) -> None:
        """Merge the totals that `state_dict` has returned on the ranks into those of the present ranks.

        Args:
            by_rank: what it has returned, by rank.
            world: the ranks of now; each takes its part of a larger number.
        """
        for state_dict in by_rank[world.rank :: world.size]:
            self.load_state_dict(state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Merge the totals that `state_dict` returned into the present ones."""
        self._read_pending()
        for name, state in state_dict.items():
            restored = Totals.of_state(state)
            self._running[name] = self._running[name].merged(restored) if name in self._running else restored

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


class Summary(NamedTuple):
    """Metrics over all ranks.

    Attributes:
        values: the reduced metrics by full name.
        totals: the totals from which they were reduced, by full name.
        first_not_finite: the name and step of the first value that was NaN or infinite, None if all were finite.
        loss_is_finite: whether the loss that was passed to `compute` is finite on all ranks.
    """

    values: dict[str, float]
    totals: dict[str, Totals]
    first_not_finite: tuple[str, int] | None
    loss_is_finite: bool


class EpochMeans:
    """Merges the totals of the rows of an epoch, so that its metrics are as exact as those of a row."""

    def __init__(self) -> None:
        self._totals: dict[str, Totals] = {}

    def begin(self) -> None:
        """Begin an epoch."""
        self._totals = {}

    def add(self, totals: Mapping[str, Totals]) -> None:
        """Add the totals of a row, over all ranks. A value that is reduced by "last" is that of a row alone."""
        for name, one in totals.items():
            if one.reduce != "last":
                self._totals[name] = self._totals[name].merged(one) if name in self._totals else one

    def take(self) -> dict[str, float]:
        """Return the metrics of the epoch by the full names of those of its rows, and end it."""
        totals, self._totals = self._totals, {}
        return {name: one.result() for name, one in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the totals as plain numbers."""
        return {name: one.state_dict() for name, one in self._totals.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._totals = {name: Totals.of_state(state) for name, state in state_dict.items()}


@dataclasses.dataclass(slots=True)
class Totals:
    """The running totals of the values v_i of a metric with weights w_i. A checkpoint holds them in this order.

    Attributes:
        reduce: how they are reduced.
        weight: sum of w.
        weighted_sum: sum of w * v.
        m2: sum of w * (v - mean)^2, for "std" only.
        sum: sum of v.
        low: the least v, for "min" only.
        high: the largest v, for "max" only.
        last: the last v.
        first_not_finite: step of the first v that was NaN or infinite.
        is_restored: whether all values are from a checkpoint. Not a part of it.
    """

    reduce: Reduce
    weight: float = 0.0
    weighted_sum: float = 0.0
    m2: float = 0.0
    sum: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    last: float = 0.0
    first_not_finite: float = _NEVER
    is_restored: bool = False

    def update(self, value: float, weight: float, step: int) -> None:
        """Add a value."""
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
        # A NaN stays: it is not equal to itself.
        if reduce == "min" and not value >= self.low and self.low == self.low:
            self.low = value
        elif reduce == "max" and not value <= self.high and self.high == self.high:
            self.high = value
        if value - value != 0.0 and step < self.first_not_finite:  # NaN or infinite.
            self.first_not_finite = step

    def result(self) -> float:
        """Return the value of the metric."""
        return _RESULT[self.reduce](self)

    def merged(self, later: Totals) -> Totals:
        """Return the totals of these and later values.

        M2 by Chan, Golub and LeVeque, "Updating formulae ... for computing sample variances", 1982.
        """
        a, b = self, later
        weight = a.weight + b.weight
        means = [each.weighted_sum / each.weight if each.weight > 0 else 0.0 for each in (a, b)]
        delta = means[1] - means[0]
        return Totals(
            a.reduce,
            weight=weight,
            weighted_sum=a.weighted_sum + b.weighted_sum,
            m2=a.m2 + b.m2 + (delta * delta * a.weight * b.weight / weight if weight > 0 else 0.0),
            sum=a.sum + b.sum,
            # A NaN stays: it is neither smaller nor equal to itself.
            low=a.low if not b.low < a.low and b.low == b.low else b.low,
            high=a.high if not b.high > a.high and b.high == b.high else b.high,
            last=b.last,
            first_not_finite=min(a.first_not_finite, b.first_not_finite),
            is_restored=a.is_restored and b.is_restored,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return them as plain numbers."""
        reduce, *totals, _ = dataclasses.astuple(self)
        return {"reduce": reduce, "totals": tuple(totals)}

    @classmethod
    def of_state(cls, state_dict: dict[str, Any]) -> Totals:
        """Return what `state_dict` describes."""
        return cls(*[state_dict["reduce"], *state_dict["totals"], True])


_RESULT: dict[str, Callable[[Totals], float]] = {
    "mean": lambda totals: totals.weighted_sum / totals.weight if totals.weight else math.nan,
    "std": lambda totals: math.sqrt(totals.m2 / totals.weight) if totals.weight else math.nan,
    "sum": lambda totals: totals.sum,
    "min": lambda totals: totals.low,
    "max": lambda totals: totals.high,
    "last": lambda totals: totals.last,
}


def named_reductions(name: str, reduce: Sequence[Reduce]) -> list[tuple[str, Reduce]]:
    """Return the full names of several reductions of one metric: the first has its name, others "<name>/<reduction>".

    Raises:
        ValueError: there is no reduction, or one twice.
    """
    if not isinstance(reduce, tuple | list) or len(reduce) == 0 or len(set(reduce)) < len(reduce):
        choices = ", ".join(_RESULT)
        raise ValueError(f"log({name!r}): reduce={reduce!r} must be one of {choices}, or several different ones")
    return [(name if i == 0 else f"{name}/{each}", each) for i, each in enumerate(reduce)]


def _merged(by_rank: list[tuple[dict[str, Totals], bool]]) -> dict[str, Totals]:
    """Return the totals of all ranks together.

    Args:
        by_rank: the totals of each rank, and whether the rank was idle.

    Raises:
        ValueError: a rank that was not idle has not logged a name.
    """
    known = {name for totals, _ in by_rank for name, one in totals.items() if not one.is_restored}
    merged: dict[str, Totals] = {}
    for rank, (totals, is_idle) in enumerate(by_rank):
        if not is_idle and (missing := sorted(known - totals.keys())):
            raise ValueError(f"metrics differ among the ranks: rank {rank} did not log {missing}")
        for name, one in totals.items():
            merged[name] = merged[name].merged(one) if name in merged else one
    return merged
