"""What `setup` has made of networks, optimizers and schedulers; and how a run that goes on uses what is other now."""

from __future__ import annotations

import functools
import inspect
import math
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

_NUMBERS = (bool, int, float, str, type(None))
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
        if before["class"] != made["class"]:
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

    The states of optimizers whose numbers have not changed, and whose schedulers have not, are left as they were saved.
    The schedulers of the others are moved to the step that the run has reached.

    Args:
        parts: the stateful parts of the model by name, as `setup` has made them.
        saved: what `describe` has returned when the run that saved the states was set up.
        states: the saved states by name.

    Attributes:
        states: the states to load in place of the saved ones.
        changes: a sentence for each number that differs.
    """

    def __init__(self, parts: Mapping[str, Any], saved: Mapping[str, Any], states: Mapping[str, Any]) -> None:
        self.changes: list[str] = []
        self._parts, self._saved, self._now = parts, saved, describe(parts)
        self.states = dict(states)
        for name, optimizer in parts.items():
            if isinstance(optimizer, Optimizer) and name in saved:
                self._prepare(name, optimizer)

    def _prepare(self, name: str, optimizer: Optimizer) -> None:
        schedulers = {
            key: part
            for key, part in self._parts.items()
            if isinstance(part, LRScheduler) and getattr(part, "optimizer", None) is optimizer and key in self._saved
        }
        changes = [*_differences(name, self._saved[name]["groups"], self._now[name]["groups"])]
        for key in schedulers:
            changes += _differences(key, {"class": self._saved[key]["class"]}, {"class": self._now[key]["class"]})
            changes += _differences(key, self._saved[key]["numbers"], self._now[key]["numbers"])
        if not changes:
            return
        # The rates that a schedule begins with are those of the optimizer, which are said.
        said = [text for text in changes if ": base_lrs." not in text]
        self.changes += dict.fromkeys(said or changes)
        factors = self._move(name, schedulers)
        groups = []
        for saved, made, factor in zip(self.states[name]["param_groups"], optimizer.param_groups, factors, strict=True):
            numbers = _numbers_of(made)
            groups.append(
                {**saved, **numbers, "lr": numbers["lr"] * factor} if "lr" in numbers else {**saved, **numbers}
            )
        for key, scheduler in schedulers.items():
            state = scheduler.state_dict()
            if isinstance(scheduler, ReduceLROnPlateau):  # Nobody can show it again the metrics that it has seen.
                kept = {"best", "num_bad_epochs", "cooldown_counter", *_POSITION}
                state |= {part: value for part, value in self.states[key].items() if part in kept}
                state["_last_lr"] = [group["lr"] for group in groups]
            self.states[key] = state
        self.states[name] = {**self.states[name], "param_groups": groups}

    def _move(self, name: str, schedulers: Mapping[str, LRScheduler]) -> list[float]:
        """Step schedulers as often as those of the run; return by which factors those of plateaus have cut rates."""
        plateaus = [key for key, each in schedulers.items() if isinstance(each, ReduceLROnPlateau)]
        steps = {key: _number_of_steps(self.states[key]) for key in schedulers if key not in plateaus}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The optimizer does not step in between, and epochs are not given.
            for step in range(max(steps.values(), default=0)):
                for key, number in steps.items():
                    if step < number:
                        schedulers[key].step()
        made, saved = self._saved[name]["groups"], self.states[name]["param_groups"]
        is_cut = bool(plateaus) and not steps
        return [
            after["lr"] / before["lr"] if is_cut and before.get("lr") else 1.0
            for before, after in zip(made, saved, strict=True)
        ]


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
        arguments = inspect.signature(value.func).bind_partial(*value.args, **value.keywords).arguments
        return {name: _arguments(each) for name, each in arguments.items()}
    if isinstance(value, types.FunctionType):
        around = inspect.getclosurevars(value).nonlocals
        return {**around, "constants": [each for each in value.__code__.co_consts if isinstance(each, int | float)]}
    return value


def _numbers_of(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params" and _is_plain(value)}


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
        if before != after and not is_nan and key != "initial_lr":
            shown = key.rpartition(".")[2] if "functions." in key else key
            yield f"{name}: {shown} {before} before, {after} now"
