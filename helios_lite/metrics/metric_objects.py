"""Objects that compute a metric, such as those of torchmetrics and torcheval: `update`, `compute` and `reset`.

Those of torchmetrics are modules whose states are no part of their `state_dict`, and whose `compute` communicates. They
are known by their property `metric_state`. All others are asked for `state_dict` and, to merge them, for torcheval's
`merge_state`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class MetricObject(Protocol):
    """What `Model.log` takes in place of a number: `compute` returns one, or a dict of them."""

    update: Callable[..., Any]
    compute: Callable[..., Any]
    reset: Callable[..., Any]


def is_metric_object(value: Any) -> bool:
    """Return whether an object (not a class) has `update`, `compute` and `reset`, and is no network that is trained."""
    if isinstance(value, type) or not all(
        callable(getattr(value, name, None)) for name in MetricObject.__annotations__
    ):
        return False
    return not isinstance(value, nn.Module) or _is_of_torchmetrics(value) or _is_frozen(value)


def is_network(part: Any) -> bool:
    """Return whether a part of a model is a module, and neither a metric object nor a container of metric objects."""
    if not isinstance(part, nn.Module) or is_metric_object(part):
        return False
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
    values = (
        {f"{name}/{key}": value for key, value in result.items()} if isinstance(result, Mapping) else {name: result}
    )
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
        if not _is_of_torchmetrics(earlier):
            earlier.merge_state([later])
            return earlier
        for (_, before), (_, after) in zip(_stateful_metrics(earlier), _stateful_metrics(later), strict=True):
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
    """Return a copy of a metric object, which does not communicate."""
    copied = copy.deepcopy(metric)
    if _is_of_torchmetrics(copied):
        for module in copied.modules():
            if hasattr(module, "distributed_available_fn"):
                module.distributed_available_fn = _never
                module._computed = None  # It is kept until the next update, and a merge is none.
    return copied


def state_of(metric: Any) -> dict[str, Any]:
    """Return what a metric object has seen: tensors and plain containers."""
    if not _is_of_torchmetrics(metric):
        return {"state": metric.state_dict()}
    states = {
        path: {"updates": each.update_count, "states": {k: _detached(v) for k, v in each.metric_state.items()}}
        for path, each in _stateful_metrics(metric)
    }
    return {"metrics": states}


def restore(metric: Any, state: dict[str, Any]) -> None:
    """Set what a metric object has seen, as `state_of` has returned it."""
    metric.reset()
    if not _is_of_torchmetrics(metric):
        metric.load_state_dict(state["state"])
        return
    for path, each in _stateful_metrics(metric):
        if path in state["metrics"]:
            saved = state["metrics"][path]
            for name, value in saved["states"].items():
                setattr(each, name, _moved(value, each.device))
            each._update_count = saved["updates"]


def _stateful_metrics(metric: nn.Module) -> list[tuple[str, Any]]:
    """Return the metrics of torchmetrics that a metric consists of, itself included, and that have states."""
    return [
        (path, each)
        for path, each in metric.named_modules()
        if _is_of_torchmetrics(each) and not isinstance(each, nn.ModuleDict) and each.metric_state
    ]


def _is_of_torchmetrics(value: Any) -> bool:
    return isinstance(value, nn.Module) and hasattr(type(value), "metric_state")


def _is_frozen(net: nn.Module) -> bool:
    return not any(p.requires_grad for p in net.parameters())


def _detached(value: Any) -> Any:
    if isinstance(value, list):  # A new list, since `reset` clears the old one.
        return [_detached(item) for item in value]
    return value.detach() if isinstance(value, Tensor) else value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _never() -> bool:
    return False
