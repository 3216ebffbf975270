"""What differs between a checkpoint and a model; loads the states of the one into the other if they fit."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite.checkpoints.optimizer_states import load_optimizer
from helios_lite.metrics.metric_objects import is_network
from helios_lite.model_internals.attributes import AttributeState, share_groups

_NUM_SHOWN = 5


def misfits(parts: Mapping[str, Any], states: Mapping[str, Any], *, networks_only: bool = False) -> list[str]:
    """Return a sentence for each difference, such as "net.0.weight: (8, 3) in the checkpoint, (16, 3) now".

    What parts of other classes than networks and optimizers hold is not compared, nor are networks that change names or
    shapes themselves when they load a state.

    Args:
        parts: the stateful parts of the model by name.
        states: the states in the checkpoint by name.
        networks_only: leave out parts that are not networks, and what only the checkpoint has.
    """
    if networks_only:
        parts = {name: part for name, part in parts.items() if is_network(part)}
    # A plain attribute that the checkpoint lacks keeps what `setup` has given it.
    new = [name for name, part in parts.items() if name not in states and not isinstance(part, AttributeState)]
    found = [f"{name}: only in the model" for name in new]
    if not networks_only:
        found += [f"{name}: only in the checkpoint" for name in states if name not in parts]
    for name, part in parts.items():
        if name not in states:
            continue
        if isinstance(part, nn.Module) and not _changes_states(part):
            found += _of_network(name, _shapes(part.state_dict()), _shapes(states[name]))
        elif isinstance(part, Optimizer) and type(part).load_state_dict is Optimizer.load_state_dict:
            found += _of_optimizer(name, part.param_groups, states[name]["param_groups"])
    return found


def differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Return a sentence for each hparam that differs, such as "hparams['width']: 8 in the checkpoint, 16 now".

    What saving and loading changes is no difference: numpy numbers are numbers, and tensors may be on another device.
    Numbers are compared by value, NaN equals NaN, and a list equals a tuple.

    Args:
        saved: the hparams in a checkpoint.
        present: the hparams of the model.
    """
    return [
        f"hparams[{name!r}]: {_shown(saved, name)} in the checkpoint, {_shown(present, name)} now"
        for name in [*saved, *(name for name in present if name not in saved)]
        if not (name in saved and name in present and is_equal(saved[name], present[name]))
    ]


def _shown(hparams: dict[str, Any], name: str) -> str:
    text = " ".join(repr(hparams[name]).split()) if name in hparams else "missing"
    return text if len(text) <= 200 else f"{text[:100]}...{text[-100:]}"


def is_equal(a: Any, b: Any) -> bool:
    """Return whether two values of `hparams` or of options are equal, as `differences` compares them."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        a, b = a.detach().cpu(), b.detach().cpu()
        return bool(((a == b) | ((a != a) & (b != b))).all())  # Only NaN differs from itself.
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return bool(a == b or (a != a and b != b))


def load_parts(owner: str, parts: Mapping[str, Any], states: Mapping[str, Any], *, networks_only: bool) -> None:
    """Restore parts from their states by name, all of them or none.

    Args:
        owner: the name of what has the parts, for the message.
        parts: the parts by name.
        states: their states by name.
        networks_only: leave out parts that are not networks.

    Raises:
        ValueError: a part or a tensor is missing on one side, or has another shape.
    """
    if found := misfits(parts, states, networks_only=networks_only):
        raise ValueError(f"{owner}: the model and the checkpoint do not fit: {first(found)}")
    with shared_groups(parts):
        for name, part in parts.items():
            if is_network(part) or (not networks_only and name in states):
                load_part(part, states[name], parts, states)


def load_part(part: Any, state: Any, parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Restore one of the parts, of which the others have these states."""
    if not isinstance(part, Optimizer):
        part.load_state_dict(state)
        return
    saved_types = {
        id(p): states[name][path].dtype
        for name, net in parts.items()
        if isinstance(net, nn.Module) and isinstance(states.get(name), Mapping)
        for path, p in net.named_parameters(remove_duplicate=False)
        if isinstance(states[name].get(path), Tensor)
    }
    load_optimizer(part, state, saved_types)


@contextlib.contextmanager
def shared_groups(parts: Mapping[str, Any]) -> Iterator[None]:
    """A context in which states are loaded, after which optimizers share what they have shared before.

    `Optimizer.load_state_dict` makes new groups, but one that wraps another steps with those of the other.
    """
    optimizers = [part for part in parts.values() if isinstance(part, Optimizer)]
    pairs = [(a, b, a.param_groups is b.param_groups) for a, b in itertools.combinations(optimizers, 2)]
    pairs = [(a, b, is_same_list) for a, b, is_same_list in pairs if share_groups(a, b)]
    of_states = [(a, b) for a, b in itertools.combinations(optimizers, 2) if a is not b and a.state is b.state]
    yield
    for a, b, is_same_list in pairs:
        if not share_groups(a, b):
            groups = a.param_groups if is_same_list else [*a.param_groups]
            b.__setstate__({"state": b.state, "param_groups": groups})
    for a, b in of_states:
        if a.state is not b.state:
            a.__setstate__({"state": b.state, "param_groups": a.param_groups})


def first(found: Sequence[str]) -> str:
    """Return the first few of some sentences, and the number of the others."""
    more = len(found) - _NUM_SHOWN
    return "; ".join([*found[:_NUM_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _of_network(name: str, now: Mapping[str, tuple[int, ...]], saved: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for path, shape in now.items():
        if path not in saved:
            yield f"{name}.{path}: only in the model, of shape {shape}"
        elif saved[path] != shape:
            yield f"{name}.{path}: {saved[path]} in the checkpoint, {shape} now"
    for path, shape in saved.items():
        if path not in now:
            yield f"{name}.{path}: only in the checkpoint, of shape {shape}"


def _of_optimizer(name: str, now: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    sizes_now, sizes_saved = ([len(group["params"]) for group in groups] for groups in (now, saved))
    if sizes_now != sizes_saved:
        numbers_saved, numbers_now = (", ".join(map(str, sizes)) for sizes in (sizes_saved, sizes_now))
        yield f"{name}: groups of {numbers_saved} parameters in the checkpoint, of {numbers_now} now"


def _changes_states(net: nn.Module) -> bool:
    """Return whether a network may change what it loads, by hooks or methods that PyTorch's modules do not have."""
    for module in net.modules():
        is_own = not type(module).__module__.startswith("torch.")
        if is_own and type(module)._load_from_state_dict is not nn.Module._load_from_state_dict:
            return True
        if type(module).load_state_dict is not nn.Module.load_state_dict:
            return True
        if not all(map(_is_known, module._load_state_dict_pre_hooks.values())):
            return True
    return False


def _is_known(hook: Any) -> bool:
    """Return whether a hook is one of this package or of FSDP2, which find the places of shards only."""
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith((__name__.partition(".")[0], "torch.distributed.fsdp"))
