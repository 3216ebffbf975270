"""Reads the learning rates that a scheduler is going to set, from a copy that is moved to other steps."""

from __future__ import annotations

import bisect
import copy
import dis
import functools
import types
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from helios_lite.model_internals.attributes import moves, optimizers

_PURE = {"abs", "bool", "cos", "exp", "float", "int", "log", "math", "max", "min", "pi", "pow", "round", "sin", "sqrt"}
_NUM_READ = 400  # Positions, from which the shape of a schedule is seen.
_MOST_STEPS = 50_000  # About 0.2 s. Only schedulers of other classes than PyTorch's common ones are stepped.


class Schedule:
    """The learning rates of a scheduler, as `setup` has made it, by the number of times that it has been stepped.

    A rate is the highest one of all parameter groups.

    Args:
        name: the name of the scheduler in the model.
        scheduler: the scheduler, which is copied and stays as it is. The copy has no parameters.

    Attributes:
        name: as given.
        kind: what it is called: the name of a function of `helios_lite.schedules`, or of the class.
        is_of_package: whether it is one of `helios_lite.schedules`, which are stepped at every step.
    """

    def __init__(self, name: str, scheduler: LRScheduler) -> None:
        self.name, self.kind = name, _kind(scheduler)
        self.is_of_package = self.kind != type(scheduler).__name__
        self._scheduler = _copied(scheduler)

    def can_reach(self, position: int) -> bool:
        """Return whether the rate at a position is known by a formula, or without too many steps."""
        return position <= _MOST_STEPS or _formula(self._scheduler) is not None

    def rates(self, positions: Sequence[int]) -> list[float]:
        """Return the rates after so many steps each, in ascending order; fewer if the scheduler raises an error."""
        return self._read(positions)[0]

    def _read(self, positions: Sequence[int]) -> tuple[list[float], Exception | None]:
        """Return the rates, and the error that has ended them."""
        scheduler = copy.deepcopy(self._scheduler)
        formula = _formula(scheduler)
        found: list[float] = []
        done = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # No optimizer steps in between.
            for position in positions:
                try:
                    if formula is not None:
                        found.append(max(formula(position)))
                        continue
                    for _ in range(done, position):
                        scheduler.step()
                    done = position
                    found.append(max(float(group["lr"]) for group in scheduler.optimizer.param_groups))
                except Exception as error:  # A ValueError of OneCycleLR after its end; any of a user's function.
                    return found, error
        return found, None

    def first_highest_last(self, steps: int) -> tuple[float, float, float] | None:
        """Return the first, the highest and the last rate of so many steps; None if they cannot be read."""
        positions = _spread(0, steps)
        rates = self.rates(positions) if self.can_reach(steps) else []
        if len(rates) < len(positions):
            return None
        first, last = rates[0], rates[-1]
        while len(positions) < positions[-1] - positions[0] + 1:  # Look closer around the highest one.
            top = max(range(len(rates)), key=lambda i: rates[i])
            positions = _spread(positions[max(0, top - 1)], positions[min(len(positions) - 1, top + 1)] + 1)
            rates = self.rates(positions)
        return first, max(first, last, *rates), last

    def misfit(self, steps: int) -> str | None:
        """Return what is wrong with the schedule if it is stepped so many times; None if nothing is.

        A schedule that is constant, falls in stages or falls for ever is right for any number.
        """
        if not self.can_reach(steps):
            return None
        inside = _spread(0, steps)
        beyond = [*_spread(steps, 3 * steps), *(int(steps * 3 * 1.1**i) for i in range(1, 50))]
        beyond = [position for position in beyond if self.can_reach(position)]
        rates, error = self._read([*inside, *beyond])
        has_end = isinstance(error, ValueError)  # Of PyTorch. Others say that it cannot be read, such as an overflow.
        if len(rates) < len(inside) and not has_end:
            return None
        if len(rates) < len(inside):
            last = self._last_step(inside[len(rates) - 1], inside[len(rates)])
            return f"ends after {last:,} of {steps:,} steps, and raises an error then"
        now = rates[: len(inside)]
        high = max(now)
        if high <= 0 or steps < 3:
            return None
        at_zero = next((i for i in range(len(now)) if max(now[i:]) <= 1e-6 * high), None)
        if at_zero is not None and len(now) - at_zero > max(1, len(now) // 20):
            return f"falls to 0 after about {inside[at_zero]:,} of {steps:,} steps, and stays there"
        bottom = next((i for i in range(1, len(now) - 1) if now[i - 1] > now[i] < now[i + 1]), None)
        if self._turns() and bottom is not None and max(now[bottom:]) - now[bottom] > 0.1 * high:
            return f"is at its end after about {inside[bottom]:,} of {steps:,} steps, and rises again then"
        positions = [*inside, *beyond]
        if isinstance(self._scheduler, CosineAnnealingWarmRestarts | CyclicLR):  # Every cycle has an end.
            return None
        return self._unreached(steps, rates, positions if has_end else positions[: len(rates)])

    def moves(self, steps: int) -> bool:
        """Return whether the rates of so many steps differ by a third or more."""
        rates = self.rates(_spread(0, steps))
        return min(rates) < 0.7 * max(rates)

    def _unreached(self, steps: int, rates: Sequence[float], positions: Sequence[int]) -> str | None:
        """Return a text if a schedule is still on the way to its end, or to its highest rate, after so many steps.

        Args:
            steps: the number of steps.
            rates: the rates at the positions, and at no more of them if the schedule raises an error then.
            positions: some before and some after that number.
        """
        last = positions.index(steps - 1)
        if last < 2 or not rates[last] != rates[last - 1] != rates[last - 2] or len(rates) < last + 3:
            return None
        has_failed = len(rates) < len(positions)
        low, top = min(rates[last:]), max(rates)
        # An end is where the rate stays, turns or ends in an error. What falls for ever does most of it early.
        start = rates.index(max(rates[: last + 1]))
        span = rates[start] - low
        end = next(i for i in range(start, len(rates)) if rates[i] <= low + 0.02 * span)
        while end + 1 < len(rates) and rates[end + 1] < rates[end]:
            end += 1
        middle = bisect.bisect_left(positions, (positions[start] + positions[end]) / 2)
        has_end = has_failed or rates[-1] == rates[-2] or rates[-1] > low
        is_far = positions[end] > 1.1 * steps and rates[last] - low > 0.1 * rates[start]
        if has_end and is_far and rates[middle] - low > 0.15 * span:
            at = self._last_step(positions[len(rates) - 1], positions[len(rates)]) if has_failed else None
            at = self._lowest(positions[end - 1], positions[min(end + 1, len(rates) - 1)]) if at is None else at
            return f"would reach its end after about {at:,} steps, but is stepped {steps:,} times"
        if rates[last] >= 0.999 * max(rates[: last + 1]) and rates[last] < 0.9 * top:
            return f"rises until step {positions[rates.index(top)]:,} or so, but is stepped {steps:,} times"
        return None

    def _lowest(self, first: int, last: int) -> int:
        """Return the position of the lowest rate between two others, of which it is the only one."""
        positions = _spread(first, last + 1)
        rates = self.rates(positions)
        while len(positions) < positions[-1] - positions[0] + 1:  # Look closer around it.
            bottom = rates.index(min(rates))
            positions = _spread(positions[max(0, bottom - 1)], positions[min(len(positions) - 1, bottom + 1)] + 1)
            rates = self.rates(positions)
        return positions[rates.index(min(rates))]

    def _last_step(self, good: int, bad: int) -> int:
        """Return the last position between two others that can be read, of which the second one cannot."""
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.rates([middle]) else (good, middle)
        return good

    def _turns(self) -> bool:
        """Return whether it is PyTorch's cosine, which rises again after its end, alone or as the last of several."""
        scheduler: Any = self._scheduler
        while isinstance(scheduler, SequentialLR):
            scheduler = scheduler._schedulers[-1]
        return isinstance(scheduler, CosineAnnealingLR)


def schedules_of(parts: Sequence[tuple[str, Any]]) -> dict[str, list[Schedule]]:
    """Return the schedules of every optimizer, by the name of the optimizer.

    Those of plateaus, and those that cannot be copied, cannot be read and are left out.

    Args:
        parts: the stateful parts of the model by name, as `setup` has made them.
    """
    schedulers = [(name, part) for name, part in parts if isinstance(part, LRScheduler)]
    inner = {id(each) for _, part in schedulers for each in getattr(part, "_schedulers", ())}
    found: dict[str, list[Schedule]] = {}
    for name, optimizer in optimizers(parts).items():
        own = [(key, part) for key, part in schedulers if moves(part, optimizer) and id(part) not in inner]
        made = [_made(key, part) for key, part in own if not isinstance(part, ReduceLROnPlateau)]
        found[name] = [schedule for schedule in made if schedule is not None]
    return found


def _made(name: str, scheduler: LRScheduler) -> Schedule | None:
    """Return the schedule of a scheduler of PyTorch, if no function of the user's that may have effects is called."""
    if not _is_readable(scheduler):
        return None
    try:
        return Schedule(name, scheduler)
    except Exception:  # Whatever an optimizer of the user holds: it is only looked at.
        return None


def _is_readable(scheduler: Any) -> bool:
    functions = [*getattr(scheduler, "lr_lambdas", ()), *filter(None, [getattr(scheduler, "_scale_fn_custom", None)])]
    return (
        type(scheduler).__module__.startswith("torch.")
        and all(map(_is_pure, functions))
        and all(map(_is_readable, getattr(scheduler, "_schedulers", ())))
    )


def _is_pure(function: Any) -> bool:
    """Return whether a function is known to have no effects: it computes with numbers by well-known functions."""
    if isinstance(function, functools.partial):
        parts = [*function.args, *function.keywords.values()]
        is_ours = getattr(function.func, "__module__", "") == "helios_lite.schedules"
        return is_ours or (_is_pure(function.func) and all(map(_is_number, parts)))
    if not isinstance(function, types.FunctionType):
        return False
    around = [cell.cell_contents for cell in function.__closure__ or ()]
    has_effects = any(each.opname.startswith("STORE_DEREF") for each in dis.get_instructions(function))
    return {*function.__code__.co_names} <= _PURE and all(map(_is_number, around)) and not has_effects


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _copied(scheduler: LRScheduler) -> Any:
    """Return a copy with an optimizer that has the same numbers, and no parameters and states."""
    groups = copy.deepcopy([{**group, "params": []} for group in scheduler.optimizer.param_groups])
    return copy.deepcopy(scheduler, {id(scheduler.optimizer): copied_optimizer(scheduler.optimizer, groups)})


def copied_optimizer(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Return an optimizer of the same class with other groups, and without states and hooks."""
    copied = copy.copy(optimizer)
    hooks: dict[str, Any] = {name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")}
    vars(copied).update(hooks, param_groups=groups, state=defaultdict(dict))
    return copied


def _formula(scheduler: Any) -> Callable[[int], list[float]] | None:
    """Return what computes the rates at any step, for the classes of which PyTorch has such a formula."""
    if isinstance(scheduler, SequentialLR):
        formulas = [_formula(each) for each in scheduler._schedulers]
        known = [formula for formula in formulas if formula is not None]
        is_known = len(known) == len(formulas)
        return functools.partial(_of_sequence, known, scheduler._milestones) if is_known else None
    if type(scheduler) is LambdaLR:
        return functools.partial(_of_functions, scheduler)
    has_formula = hasattr(scheduler, "_get_closed_form_lr") or isinstance(scheduler, OneCycleLR)
    is_known = has_formula and type(scheduler).__module__.startswith("torch.")
    return functools.partial(_at, scheduler) if is_known else None


def _of_sequence(inner: Sequence[Callable[[int], list[float]]], milestones: Sequence[int], step: int) -> list[float]:
    index = bisect.bisect_right(milestones, step)
    return inner[index](step - (milestones[index - 1] if index > 0 else 0))


def _of_functions(scheduler: LambdaLR, step: int) -> list[float]:
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    return [float(rate) * function(step) for rate, function in pairs]


def _at(scheduler: Any, step: int) -> list[float]:
    scheduler.last_epoch = step
    rates = scheduler.get_lr() if isinstance(scheduler, OneCycleLR) else scheduler._get_closed_form_lr()
    return [float(rate) for rate in rates]


def _spread(start: int, end: int) -> list[int]:
    """Return positions from `start` to `end`, without it: all, or many at the same distance, and the last three."""
    if end - start <= _NUM_READ:
        return list(range(start, end))
    places = {start + (end - 1 - start) * i // (_NUM_READ - 1) for i in range(_NUM_READ)}
    return sorted(places | {end - 3, end - 2})


def _kind(scheduler: Any) -> str:
    """Return "cosine" for a schedule of `helios_lite.schedules`, else the name of the class."""
    for function in getattr(scheduler, "lr_lambdas", [])[:1]:
        fall = (getattr(function, "args", None) or (None,))[-1]
        if isinstance(fall, functools.partial) and fall.func.__module__ == "helios_lite.schedules":
            return {"_cosine": "cosine", "_linear": "linear", "_inverse_sqrt": "inverse_sqrt"}.get(
                fall.func.__name__, "constant, 1-sqrt"
            )
    return type(scheduler).__name__
