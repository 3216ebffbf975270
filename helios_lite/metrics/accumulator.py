"""Logged values, kept until a logging step without waiting for the device, and reduced exactly.

A value on the CPU is added to running totals at once. A value on an accelerator is copied there, and read at the
logging step together with all others. Memory does not grow with the number of batches. The totals of rows give the
means of epochs.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from helios_lite.metrics import metric_objects
from helios_lite.metrics.metric_objects import MetricObject, is_metric_object
from helios_lite.processes.devices import sum_dtype
from helios_lite.processes.world import World

logger = logging.getLogger("helios_lite")
Reduce = Literal["mean", "sum", "min", "max", "last", "std"]
_MAX_PENDING = 4096  # Values on the device; when there are more, they are read before the logging step.
_NEVER = math.inf  # The step at which a metric became not finite, for a metric that has always been finite.


class MetricAccumulator:
    """The values logged in one phase since the last row of metrics.

    Args:
        device: where the model computes; values on other accelerators are moved there.
        is_held: returns whether checkpoints hold what a metric object has seen; None if they need not.

    Attributes:
        objects: the metric objects that have been logged, by full name. They have seen what is to be reduced.
    """

    def __init__(self, device: torch.device, is_held: Callable[[object], bool] | None = None) -> None:
        self.device = device
        self._is_held = is_held
        self.objects: dict[str, MetricObject] = {}
        self._running: dict[str, Totals] = {}
        self._dtype = sum_dtype(device)
        # Values that are still on the device, in order: running totals, value, weight, step.
        self._pending: list[tuple[Totals, Tensor | float, Tensor | float, int]] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been logged."""
        return not self._running and not self.objects

    def update(
        self,
        name: str,
        value: Tensor | float | MetricObject,
        weight: Tensor | float,
        reduce: Reduce = "mean",
        step: int = 0,
    ) -> None:
        """Add one value.

        Args:
            name: full name, such as "train/loss".
            value: a number or a tensor of one element, of any dtype and device; or a metric object.
            weight: the number of samples (or tokens) of which the value is the mean; used by "mean" and "std".
            reduce: "mean" and "std" (of the population) are weighted; "sum", "min", "max" and "last" are not.
            step: the step in progress, reported if the value is not finite.

        Raises:
            ValueError: `reduce` is unknown or differs from an earlier call, or the tensor has several elements.
            TypeError: the value or the weight is no number, such as None.
        """
        try:
            value = self._number(name, value) if isinstance(value, Tensor) else float(value)  # type: ignore[arg-type]
            weight = self._number(name, weight) if isinstance(weight, Tensor) else float(weight)
        except (TypeError, ValueError) as error:
            if is_metric_object(value):
                self._add_object(name, value, reduce)  # type: ignore[arg-type]
                return
            if str(error).startswith("log("):  # A tensor has several elements.
                raise
            raise TypeError(f"log({name!r}): {error}") from None
        running = self._running.get(name)
        if running is None:
            if name in self.objects:
                raise ValueError(
                    f"log({name!r}): a metric object was logged with this name, and its value is computed from it; "
                    "log this number with another name, or not at all"
                )
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

    def _add_object(self, name: str, metric: MetricObject, reduce: Reduce) -> None:
        if reduce != "mean":
            raise ValueError(f"log({name!r}): reduce={reduce!r} is for numbers; a metric object reduces by itself")
        if name in self._running or self.objects.get(name, metric) is not metric:
            raise ValueError(f"log({name!r}): was something else before; give each metric object a name of its own")
        if name not in self.objects and self._is_held is not None and not self._is_held(metric):
            raise ValueError(
                f"log({name!r}): the {type(metric).__name__} must be an attribute of the model, or of one of its "
                "networks, and have state_dict and load_state_dict, so that checkpoints hold what it has seen"
            )
        self.objects[name] = metric

    def detach_objects(self) -> None:
        """Keep what the metric objects have seen so far in copies, and reset them."""
        originals, self.objects = self.objects, {}
        for name, metric in originals.items():
            self.objects[name] = metric_objects.copied_metric(metric)
        for metric in originals.values():
            metric.reset()

    def compute(
        self,
        world: World = World(),  # noqa: B008 (frozen)
        *,
        is_idle: bool = False,
        loss: Tensor | None = None,
        with_objects: bool = True,
    ) -> Summary:
        """Return the value of every metric over all ranks, without changing it. Call on every rank.

        Reads from the device once, and communicates once. Ranks must have logged the same names. Those that a
        checkpoint has restored are not compared: the run that saved it has done so, and another number of ranks may
        have run then.

        Args:
            world: the ranks.
            is_idle: whether this rank had no batch, so that names logged by others may be missing here.
            loss: a tensor of one element, read together with the metrics, but not a metric itself.
            with_objects: whether to return the metric objects too; they have not computed their values yet.

        Raises:
            ValueError: ranks that had batches logged different names; raised on every rank.
            TypeError: a metric object cannot be merged over ranks.
        """
        loss_is_finite = self._read_pending(loss)
        totals = {name: copy.copy(running) for name, running in self._running.items()}
        objects = dict(self.objects) if with_objects else {}
        if world.size > 1:
            objects = {name: metric_objects.portable(name, metric) for name, metric in objects.items()}
            gathered = world.gather((totals, objects, is_idle, loss_is_finite))
            totals = _merged([(rank[0], rank[2]) for rank in gathered])
            objects = _merged_objects([(rank[1], rank[2]) for rank in gathered])
            loss_is_finite = all(rank[3] for rank in gathered)
        values = {name: one.result() for name, one in totals.items()}
        bad = {name: int(one.first_not_finite) for name, one in totals.items() if one.first_not_finite != _NEVER}
        first_not_finite = min(bad.items(), key=lambda item: item[1]) if bad else None
        return Summary(values, totals, objects, first_not_finite, loss_is_finite)

    def reset(self) -> None:
        """Forget all values and names, and reset the metric objects."""
        self._running.clear()
        self._pending.clear()
        objects, self.objects = self.objects, {}
        for metric in objects.values():
            metric.reset()

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
        values: the reduced metrics by full name, without those of metric objects.
        totals: the totals from which they were reduced, by full name.
        objects: the metric objects, merged over the ranks, by full name.
        first_not_finite: the name and step of the first value that was NaN or infinite, None if all were finite.
        loss_is_finite: whether the loss that was passed to `compute` is finite on all ranks.
    """

    values: dict[str, float]
    totals: dict[str, Totals]
    objects: dict[str, Any]
    first_not_finite: tuple[str, int] | None
    loss_is_finite: bool


class EpochMeans:
    """Merges the totals of the rows of an epoch, so that its metrics are as exact as those of a row."""

    def __init__(self) -> None:
        self._totals: dict[str, Totals] = {}
        self._objects: dict[str, _EpochObject] = {}
        self._not_merged: set[str] = set()  # Full names that a warning has named; below too.
        self._not_computed: set[str] = set()

    def begin(self) -> None:
        """Begin an epoch."""
        self._totals, self._objects = {}, {}

    def add(self, summary: Summary, logged: Mapping[str, MetricObject]) -> None:
        """Add a row, over all ranks. A value that is reduced by "last" is that of a row alone.

        Args:
            summary: the values of the row.
            logged: the metric objects of this rank that were logged, by full name.
        """
        for name, one in summary.totals.items():
            if one.reduce != "last":
                self._totals[name] = self._totals[name].merged(one) if name in self._totals else one
        for name, metric in summary.objects.items():
            row, earlier = metric_objects.copied_metric(metric), self._objects.get(name)
            if earlier is None:
                self._objects[name] = _EpochObject(logged.get(name), row, 1)
            elif earlier.merged is not None:
                self._objects[name] = earlier._replace(
                    merged=self._with_row(name, earlier, row), num_rows=earlier.num_rows + 1
                )

    def _with_row(self, name: str, earlier: _EpochObject, row: Any) -> Any:
        try:
            return metric_objects.merged_pair(name, earlier.merged, row, earlier.num_rows + 1)
        except TypeError as error:
            if name not in self._not_merged:
                self._not_merged.add(name)
                logger.warning("%s; there is no value over the epoch", error)
            return None

    def take(self) -> dict[str, float]:
        """Return the metrics of the epoch by the full names of those of its rows, and end it."""
        values = {name: one.result() for name, one in self._totals.items()}
        values |= self.computed({name: one.merged for name, one in self._objects.items() if one.merged is not None})
        self.begin()
        return values

    def computed(self, objects: Mapping[str, Any]) -> dict[str, float]:
        """Return what metric objects compute, by full name, without those that cannot, which a warning names once.

        A few samples, or those of one class, may not be enough for a value.
        """
        values: dict[str, float] = {}
        for name, metric in objects.items():
            try:
                values |= metric_objects.values_of(name, metric)
            except Exception as error:
                if isinstance(error, ValueError) and str(error).startswith("log("):  # It never returns a number.
                    raise
                if name not in self._not_computed:
                    self._not_computed.add(name)
                    logger.warning("log(%r): no value in this row, because compute() raised: %s", name, error)
        return values

    def state_dict(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Return the totals as plain numbers, and what the metric objects have seen.

        Args:
            names: under which attribute the model has a metric object, by its id.
        """
        objects = {
            name: {
                "attribute": names[id(one.logged)],
                "rows": one.num_rows,
                "state": None if one.merged is None else metric_objects.state_of(one.merged),
            }
            for name, one in self._objects.items()
            if id(one.logged) in names  # Otherwise another has taken its place.
        }
        return {"totals": {name: one.state_dict() for name, one in self._totals.items()}, "objects": objects}

    def load_state_dict(self, state_dict: dict[str, Any], attributes: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state_dict: the state.
            attributes: the metric objects of the model.
        """
        self._totals = {name: Totals.of_state(state) for name, state in state_dict["totals"].items()}
        self._objects = {}
        for name, saved in state_dict["objects"].items():
            logged = attributes.get(saved["attribute"])
            if logged is not None:
                merged = None if saved["state"] is None else metric_objects.copied_metric(logged)
                if merged is not None:
                    metric_objects.restore(merged, saved["state"])
                self._objects[name] = _EpochObject(logged, merged, saved["rows"])


class _EpochObject(NamedTuple):
    """What a metric object has seen in an epoch.

    Attributes:
        logged: the object itself; None on a rank that has not logged it.
        merged: a copy that has seen the rows of the epoch on all ranks; None if they cannot be merged.
        num_rows: the number of rows.
    """

    logged: MetricObject | None
    merged: Any
    num_rows: int


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
        high: the largest v, for "max" and "mean" only.
        last: the last v.
        last_weight: its w, for "last" only.
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
    last_weight: float = 0.0
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
        if reduce == "mean" or reduce == "max":
            if not value <= self.high and self.high == self.high:
                self.high = value
        elif reduce == "min" and not value >= self.low and self.low == self.low:
            self.low = value
        elif reduce == "last":
            self.last_weight = weight
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
            last_weight=b.last_weight,
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
    for name, one in merged.items():
        if one.reduce == "last":
            last = _last_of_all([totals[name] for totals, _ in by_rank if name in totals])
            merged[name] = dataclasses.replace(one, last=last)
    return merged


def _last_of_all(ranks: list[Totals]) -> float:
    """Return the last value in one process: the mean over the parts that the ranks have of the last batch."""
    weight = sum(one.last_weight for one in ranks)
    if weight == 0 or all(one.last == ranks[-1].last for one in ranks):
        return ranks[-1].last
    return sum(one.last_weight * one.last for one in ranks) / weight


def _merged_objects(by_rank: list[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
    """Return the metric objects of all ranks together, as `_merged` does with totals."""
    known = {name: None for objects, _ in by_rank for name in objects}
    for rank, (objects, is_idle) in enumerate(by_rank):
        if not is_idle and (missing := sorted(known.keys() - objects.keys())):
            raise ValueError(f"metrics differ among the ranks: rank {rank} did not log {missing}")
    try:
        return {
            name: metric_objects.merged(name, [objects[name] for objects, _ in by_rank if name in objects])
            for name in known
        }
    except TypeError as error:
        raise TypeError(
            f"{error}, which several ranks need; call its compute() in a hook at the end and log what it returns"
        ) from None
