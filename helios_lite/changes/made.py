"""What `setup` has made of networks, optimizers and schedulers; and how a run that goes on uses what is other now."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from helios_lite.model_internals.attributes import moves, optimizers

_NUMBERS = (bool, int, float, str, type(None))
_DERIVED = ("base_lrs.", "_", "start ")
_POSITION = {"last_epoch", "_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step"}


def describe(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every network, optimizer and scheduler consists of, as it is now: plain data.

    Of a network these are the tensors by name, as "float32 (8, 3)"; of an optimizer the numbers of its groups and the
    names of their parameters; of a scheduler its numbers.

    Args:
        parts: the stateful parts of a model by name.
    """
    nets = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    names = {id(p): f"{net}.{name}" for net, part in nets.items() for name, p in part.named_parameters()}
    made: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            made[name] = {"class": _class_of(part), "tensors": _tensors_of(part)}
        elif isinstance(part, Optimizer):
            made[name] = {"class": _class_of(part), "groups": [_numbers_of(group) for group in part.param_groups]}
            made[name]["parameters"] = [[names.get(id(p), "") for p in group["params"]] for group in part.param_groups]
        elif isinstance(part, LRScheduler):
            made[name] = {"class": _class_of(part), **_of_schedule(part)}
    return made


def other_parts(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each optimizer that is of another class, or trains its parameters in another order.

    Args:
        saved, now: what `describe` has returned for the run until now, and for this start.
    """
    found = []
    for name, made in now.items():
        before = saved.get(name, made)
        if "groups" not in made or "groups" not in before:
            continue
        if _name_of(before["class"]) != _name_of(made["class"]):  # Its module may have moved.
            found.append(f"{name}: {before['class']} in the checkpoint, {made['class']} now")
        pairs = zip(before["parameters"], made["parameters"], strict=False)
        for index, (old, new) in enumerate(pairs):
            place = next((i for i in range(min(len(old), len(new))) if old[i] != new[i]), None)
            if place is not None:
                found.append(
                    f"{name}: parameter {place} of group {index} is {old[place] or 'of no network'} in the checkpoint, "
                    f"{new[place] or 'of no network'} now"
                )
                break
    return found


def changed_tensors(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each network whose tensors have other types, or are trained otherwise, than before.

    Args:
        saved, now: as in `other_parts`.
    """
    found = []
    for name, made in now.items():
        before, after = saved.get(name, {}).get("tensors", {}), made.get("tensors", {})
        differ = [key for key in after if key in before and before[key] != after[key]]
        if differ:
            key, more = differ[0], len(differ) - 1
            others = f", and {more} more tensor{'s' * (more > 1)}" if more > 0 else ""
            found.append(f"{name}.{key}{others}: {before[key]} before, {after[key]} now")
    return found


class Remaking:
    """Makes of saved states those of a run that had begun with the numbers that `setup` makes now.

    What has not changed is left as it was saved. Where a learning rate or a schedule has changed, the schedulers of the
    optimizer are moved to the step that the run has reached.

    Args:
        parts: the stateful parts of the model by name, as `setup` has made them.
        saved: what `describe` has returned when the run that saved the states was set up.
        states: the saved states by name.
        counters: the saved counters of the run, "step" and "epoch".

    Attributes:
        states: the states to load in place of the saved ones.
        changes: a sentence for each number that differs.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        saved: Mapping[str, Any],
        states: Mapping[str, Any],
        counters: Mapping[str, Any],
    ) -> None:
        self.changes: list[str] = []
        self._parts, self._saved, self._now, self._counters = parts, saved, describe(parts), counters
        self.states = dict(states)
        first = {id(part): name for name, part in list(parts.items())[::-1]}
        for name, optimizer in optimizers(parts.items()).items():
            if first[id(optimizer)] == name in saved and "param_groups" in states[name]:
                self._prepare(name, optimizer)

    def _prepare(self, name: str, optimizer: Optimizer) -> None:
        schedulers = self._schedulers_of(optimizer)
        of_optimizer = [*_differences(name, self._saved[name]["groups"], self._now[name]["groups"])]
        of_schedules = [text for key in schedulers for text in self._differences_of(key)]
        if not of_optimizer and not of_schedules:
            return
        # What follows from other numbers is not said: rates that are those of the optimizer, parts of a schedule.
        initial = [text for text in of_optimizer if ": initial_lr " in text]
        if (
            initial or of_schedules
        ):  # The rate that the optimizer was made with, before a schedule has set the first one.
            of_optimizer = [text for text in of_optimizer if ": lr " not in text]
        changes = [text.replace(": initial_lr ", ": lr ") for text in (*of_optimizer, *of_schedules)]
        said = [text for text in changes if not any(f": {derived}" in text for derived in _DERIVED)]
        self.changes += dict.fromkeys(said or changes)
        changed = [_changed(*pair) for pair in zip(self._saved[name]["groups"], self._now[name]["groups"], strict=True)]
        factors = [1.0] * len(changed)
        if has_moved := bool(of_schedules) or any({"lr", "initial_lr"} & keys for keys in changed):
            factors = self._move(name, schedulers)
            changed = [keys | {"lr", "initial_lr"} for keys in changed]
        groups = []
        triples = zip(self.states[name]["param_groups"], optimizer.param_groups, changed, factors, strict=True)
        for saved, made, keys, factor in triples:
            numbers = {key: made[key] for key in keys if key in made}
            if "lr" in numbers and factor != 1.0:
                numbers["lr"] = numbers["lr"] * factor
            groups.append({**saved, **numbers})
        for key, scheduler in self._parts.items():
            if has_moved and _is_of(scheduler, optimizer) and key in self.states:
                self.states[key] = self._moved_state(key, scheduler, groups)
        for key, part in self._parts.items():
            if part is optimizer:
                self.states[key] = {**self.states[key], "param_groups": groups}

    def _schedulers_of(self, optimizer: Optimizer) -> dict[str, LRScheduler]:
        """Return the schedulers of an optimizer that are stepped, each under its first name."""
        own = {key: part for key, part in self._parts.items() if _is_of(part, optimizer) and key in self._saved}
        inner = {id(each) for part in own.values() for each in getattr(part, "_schedulers", ())}
        first = {id(part): key for key, part in list(own.items())[::-1] if id(part) not in inner}
        return {key: own[key] for key in reversed(first.values())}

    def _differences_of(self, key: str) -> list[str]:
        saved, now = self._saved[key], self._now[key]
        if _name_of(saved["class"]) != _name_of(now["class"]):
            return [f"{key}: {_name_of(saved['class'])} before, {_name_of(now['class'])} now"]
        return [*_differences(key, saved["numbers"], now["numbers"])]

    def _moved_state(self, key: str, scheduler: LRScheduler, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        state = scheduler.state_dict()
        if isinstance(scheduler, ReduceLROnPlateau):  # Nobody can show it again the metrics that it has seen.
            kept = {"best", "num_bad_epochs", "cooldown_counter", *_POSITION}
            state |= {part: value for part, value in self.states[key].items() if part in kept}
            state["_last_lr"] = [group["lr"] for group in groups]
        return state

    def _move(self, name: str, schedulers: Mapping[str, LRScheduler]) -> list[float]:
        """Step schedulers as often as those of the run; return by which factors those of plateaus have cut rates."""
        plateaus = [key for key, each in schedulers.items() if isinstance(each, ReduceLROnPlateau)]
        stepped = {key: each for key, each in schedulers.items() if key not in plateaus}
        order = self._order(name, stepped)
        factors = [1.0] * len(self._now[name]["groups"])
        changed = [key for key in stepped if not all("base_lrs." in text for text in self._differences_of(key))]
        if plateaus and changed:
            names = ", ".join(plateaus), ", ".join(changed)
            self.changes.append(f"{names[0]}: cut rates before, and uncut ones now because {names[1]} has changed")
        elif plateaus:
            pairs = zip(self.states[name]["param_groups"], self._uncut_rates(name, stepped, order), strict=True)
            factors = [float(group["lr"]) / rate if rate else 1.0 for group, rate in pairs]
        _step(stepped, order)
        return factors

    def _order(self, name: str, schedulers: Mapping[str, LRScheduler]) -> list[str]:
        """Return the names of the schedulers in the order in which the run has stepped them, as far as it shows.

        They were used one after the other if each step, or epoch, was one of theirs, and together otherwise.
        """
        numbers = {key: _number_of_steps(self.states[key]) for key in schedulers}
        finished = (self._counters["step"], self._counters["epoch"])
        if sum(numbers.values()) in finished and not {*numbers.values()} <= {*finished}:
            rates = [group["lr"] for group in self.states[name]["param_groups"]]
            last = sorted(numbers, key=lambda key: self.states[key].get("_last_lr") == rates)  # That of now is theirs.
            return [key for key in last for _ in range(numbers[key])]
        together = range(max(numbers.values(), default=0))
        return [key for step in together for key, number in numbers.items() if step < number]

    def _uncut_rates(self, name: str, schedulers: Mapping[str, LRScheduler], order: Sequence[str]) -> list[float]:
        """Return the rates that these schedulers, which have changed in nothing but the rate, have set in the run.

        For that they are moved from the rate that the optimizer had, and back again.
        """
        groups = self._parts[name].param_groups
        values = [dict(group) for group in groups]
        states = {key: copy.deepcopy(each.state_dict()) for key, each in schedulers.items()}
        for group, made in zip(groups, self._saved[name]["groups"], strict=True):
            group.update(made)
        for scheduler in _with_inner(schedulers.values()):
            if hasattr(scheduler, "base_lrs"):  # One that chains others has none.
                scheduler.base_lrs = [group["initial_lr"] for group in groups]
        _step(schedulers, order)
        rates = [float(group["lr"]) for group in groups]
        for group, before in zip(groups, values, strict=True):
            group.clear()
            group.update(before)
        for key, state in states.items():
            schedulers[key].load_state_dict(state)
        return rates


def changed_numbers(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each number of an optimizer that differs; see `other_parts`."""
    return [
        text
        for name, made in now.items()
        if "groups" in made and "groups" in saved.get(name, {})
        for text in _differences(name, saved[name]["groups"], made["groups"])
    ]


def _is_of(part: Any, optimizer: Optimizer) -> bool:
    return isinstance(part, LRScheduler) and moves(part, optimizer)


def _with_inner(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Yield schedulers, and those inside of them."""
    for scheduler in schedulers:
        yield scheduler
        yield from _with_inner(getattr(scheduler, "_schedulers", ()))


def _step(schedulers: Mapping[str, LRScheduler], order: Iterable[str]) -> None:
    """Step schedulers by name in an order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The optimizer does not step in between, and epochs are not given.
        for key in order:
            schedulers[key].step()


def _changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Return the names of the numbers of a group that differ."""
    return {key for key in now if saved.get(key) != now[key]}


def _name_of(path: str) -> str:
    return path.rpartition(".")[2]


def _number_of_steps(state: Mapping[str, Any]) -> int:
    """Return how often a scheduler has been stepped; a chained one does not say it of itself."""
    inner = state.get("_schedulers", ())
    return int(state["last_epoch"]) if "last_epoch" in state else max(map(_number_of_steps, inner), default=0)


def _class_of(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _tensors_of(net: nn.Module) -> dict[str, str]:
    frozen = {name for name, p in net.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{', frozen' * (name in frozen)}"
        for name, value in net.state_dict().items()
        if isinstance(value, Tensor)
    }


def _of_schedule(scheduler: LRScheduler) -> dict[str, Any]:
    return {"numbers": dict(_leaves("", {**scheduler.state_dict(), **_functions_of(scheduler)}))}


def _functions_of(scheduler: Any) -> dict[str, Any]:
    """Return the arguments of the functions of a scheduler, and of those inside it, as far as they can be seen."""
    return {
        "functions": [_arguments(function) for function in getattr(scheduler, "lr_lambdas", [])],
        "schedulers": [
            {"class": _class_of(each), **_functions_of(each)} for each in getattr(scheduler, "_schedulers", [])
        ],
    }


def _arguments(value: Any) -> Any:
    """Return the arguments of a partial function by name, of which some may be partial functions, and what a function
    uses of the variables around it, and its constants.
    """
    if isinstance(value, functools.partial):
        try:
            arguments = inspect.signature(value.func).bind_partial(*value.args, **value.keywords).arguments
        except (ValueError, TypeError):  # Functions of C may have no signature.
            arguments = {str(i): each for i, each in enumerate((*value.args, *value.keywords.values()))}
        return {name: _arguments(each) for name, each in arguments.items()}
    if isinstance(value, types.FunctionType):
        around = inspect.getclosurevars(value).nonlocals
        numbers = {name: each for name, each in around.items() if isinstance(each, _NUMBERS)}
        return {**numbers, "constants": [each for each in value.__code__.co_consts if isinstance(each, int | float)]}
    return value if isinstance(value, _NUMBERS) else None


def _numbers_of(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in group.items() if key != "params" and _is_plain(_plain(value))}


def _plain(value: Any) -> Any:
    """Return a tensor of one element, or a number of numpy, as a number of Python; anything else as it is."""
    is_of_numpy = type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0
    return value.item() if is_of_numpy or (isinstance(value, Tensor) and value.numel() == 1) else value


def _is_plain(value: Any) -> bool:
    return isinstance(value, _NUMBERS) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers in containers by path, without those that say where a schedule is."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _POSITION:
                yield from _leaves(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(f"{path}.{index}", item)
    elif isinstance(value, _NUMBERS):
        yield path, value


def _differences(name: str, saved: Any, now: Any) -> Iterator[str]:
    if isinstance(saved, Sequence) and not isinstance(saved, str):
        for index, (before, after) in enumerate(zip(saved, now, strict=False)):
            yield from _differences(f"{name}, group {index}" if len(now) > 1 else name, before, after)
        return
    for key in dict.fromkeys([*saved, *now]):
        before, after = saved.get(key), now.get(key)
        is_nan = isinstance(before, float) and isinstance(after, float) and math.isnan(before) and math.isnan(after)
        if before != after and not is_nan:
            shown = key.rpartition(".")[2] if "functions." in key else key
            yield f"{name}: {shown} {_shown(before)} before, {_shown(after)} now"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"
