"""Objects that compute a metric, such as those of torchmetrics and torcheval: `update`, `compute` and `reset`.

Those of torchmetrics are modules whose states are no part of their `state_dict`, and whose `compute` communicates. They
are known by their property `metric_state`, also inside of other modules. All others are asked for `state_dict` and, to
merge them, for torcheval's `merge_state`.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class MetricObject(Protocol):
    """What `Model.log` takes in place of a number: `compute` returns one, or a dict of them."""

    @property
    def update(self) -> Callable[..., Any]:
        """Takes samples."""

    @property
    def compute(self) -> Callable[..., Any]:
        """Returns the value of what was seen since the last `reset`."""

    @property
    def reset(self) -> Callable[..., Any]:
        """Forgets what was seen."""


def is_metric_object(value: Any) -> bool:
    """Return whether an object (not a class) has `update`, `compute` and `reset`, and is no network that is trained."""
    methods = (getattr(value, name, None) for name in ("update", "compute", "reset"))
    if isinstance(value, type) or not all(map(callable, methods)):
        return False
    return not isinstance(value, nn.Module) or is_of_torchmetrics(value) or _is_frozen(value)


def is_of_torchmetrics(value: Any) -> bool:
    """Return whether an object is a metric, a wrapper or a collection of torchmetrics."""
    return isinstance(value, nn.Module) and hasattr(type(value), "metric_state")


def is_network(part: Any) -> bool:
    """Return whether a part of a model is a module, and neither a metric object nor a container of metric objects.

    A module with a state that can be loaded is a network, whatever its methods are.
    """
    if not isinstance(part, nn.Module) or is_of_torchmetrics(part):
        return False
    if is_metric_object(part):
        return len(part.state_dict()) > 0
    children = [*part.children()] if isinstance(part, nn.ModuleDict | nn.ModuleList) else []
    return not children or any(map(is_network, children))


def metric_objects_in(name: str, part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the metric objects among a part of a model and its submodules, by name; none that is inside another."""
    if is_metric_object(part):
        yield name, part
    elif isinstance(part, nn.Module):
        for child_name, child in part.named_children():
            yield from metric_objects_in(f"{name}.{child_name}", child)


def values_of(name: str, metric: Any) -> dict[str, float]:
    """Return what a metric object computes: one number under its name, or those of a dict as "<name>/<key>"."""
    try:
        result = metric.compute()
    except Exception as error:
        error.add_note(f"raised by compute() of what was logged as {name!r}")
        raise
    is_dict = isinstance(result, Mapping)
    values = {f"{name}/{key}": value for key, value in result.items()} if is_dict else {name: result}
    for each, value in values.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(
                f"log({each!r}): compute() of {type(metric).__name__} must return one number, not a tensor of shape "
                f"{tuple(value.shape)}; log parts of it by themselves"
            )
    return {each: float(value) for each, value in values.items()}


def portable(name: str, metric: Any) -> Any:
    """Return a copy of a metric object that another rank can use: on the CPU, and without communication of its own."""
    try:
        copied = copied_metric(metric)
        move = getattr(copied, "to", None)
        return move("cpu") if callable(move) else copied
    except Exception as error:
        error.add_note(f"raised when what was logged as {name!r} was copied for the other ranks")
        raise


def merged(name: str, metrics: Sequence[Any]) -> Any:
    """Return a metric object that has seen what some of one kind have seen, in their order.

    Raises:
        TypeError: they cannot be merged.
    """
    result = metrics[0]
    for number, metric in enumerate(metrics[1:], start=2):
        result = merged_pair(name, result, metric, number)
    return result


def merged_pair(name: str, earlier: Any, later: Any, number: int) -> Any:
    """Return a metric object that has seen what both have seen; one of them is changed.

    Args:
        name: as which they were logged, for the message.
        earlier: what has been merged so far.
        later: what is added to it.
        number: how many there are with `later`, the weight of states that are a mean.

    Raises:
        TypeError: they cannot be merged.
    """
    try:
        pairs = [*zip(_metrics_in(earlier), _metrics_in(later), strict=True)]
        if not is_of_torchmetrics(earlier) and (not pairs or hasattr(earlier, "merge_state")):
            earlier.merge_state([later])
            return earlier
        for (_, before), (_, after) in pairs:
            # torchmetrics means it for one batch after what has been before: `after` is the new one.
            num_updates = before.update_count + after.update_count
            after._update_count = number
            after.merge_state(before)
            after._update_count = num_updates
        return later
    except (AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"log({name!r}): a {type(later).__name__} has no merge_state that can merge two of them ({error})"
        ) from error


def copied_metric(metric: Any) -> Any:
    """Return a copy of a metric object, which does not communicate and has no graph."""
    modules = [*metric.modules()] if isinstance(metric, nn.Module) else [metric]
    # Only leaves of a graph can be copied; what a step has computed may be kept as it is.
    kept = [tensor for module in modules for tensor in _tensors(getattr(module, "__dict__", {}))]
    copied = copy.deepcopy(metric, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})
    copies: Any = copied.modules() if isinstance(copied, nn.Module) else ()
    for module in copies:
        if is_of_torchmetrics(module) and hasattr(module, "distributed_available_fn"):
            module.distributed_available_fn = _never
            module._computed = None  # It is kept until the next update, and a merge is none.
    return copied


def state_of(metric: Any) -> dict[str, Any]:
    """Return what a metric object has seen: tensors and plain containers."""
    state = {} if is_of_torchmetrics(metric) else {"own": _detached(metric.state_dict())}
    return state | {
        "metrics": {
            path: {
                "updates": each.update_count,
                "states": {name: _detached(value) for name, value in each.metric_state.items()},
            }
            for path, each in _metrics_in(metric)
        }
    }


def has_seen(state: dict[str, Any]) -> bool:
    """Return whether a metric object of torchmetrics had seen anything when `state_of` returned this."""
    return any(each["updates"] > 0 for each in state["metrics"].values())


def restore(metric: Any, state: dict[str, Any]) -> None:
    """Set what a metric object has seen, as `state_of` has returned it."""
    if "own" in state:
        metric.load_state_dict(state["own"])
    for path, each in _metrics_in(metric):
        if path in state["metrics"]:
            saved = state["metrics"][path]
            each.reset()
            for name, value in saved["states"].items():
                setattr(each, name, _moved(value, each.device))
            each._update_count = saved["updates"]


def _metrics_in(metric: Any) -> list[tuple[str, Any]]:
    """Return the metrics of torchmetrics that a metric object consists of, itself included, that have states.

    Collections and wrappers have those of others.
    """
    modules = metric.named_modules() if isinstance(metric, nn.Module) else ()
    return [
        (path, each)
        for path, each in modules
        if is_of_torchmetrics(each) and vars(each).keys() & each.metric_state.keys()
    ]


def _is_frozen(net: nn.Module) -> bool:
    return not any(p.requires_grad for p in net.parameters())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, list | tuple | deque):
        yield from (tensor for item in value for tensor in _tensors(item))


def _detached(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _detached(item) for name, item in value.items()}
    if isinstance(value, list):  # A new list, since `reset` clears the old one.
        return [_detached(item) for item in value]
    return value.detach() if isinstance(value, Tensor) else value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _never() -> bool:
    return False
