"""Parameter groups that a training adds after `setup`, which a start makes again from the checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def added_groups(parts: Iterable[tuple[str, Any]], made: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the groups that optimizers have beyond those that `setup` has made, by the name of the optimizer.

    A group is plain data: "parameters", the names of its parameters as "net.0.weight" (empty for a tensor of no
    network), and "trained", whether each requires a gradient.

    Args:
        parts: the stateful parts of the model by name.
        made: what `made.describe` has returned after `setup`.
    """
    parts = list(parts)
    known = _made_optimizers(parts, made)
    added = {name: part.param_groups[len(made[name]["groups"]) :] for name, part in known.items()}
    names = {id(p): name for name, p in _parameters(parts).items()} if any(added.values()) else {}
    return {
        name: [
            {
                "parameters": [names.get(id(p), "") for p in group["params"]],
                "trained": [p.requires_grad for p in group["params"]],
            }
            for group in groups
        ]
        for name, groups in added.items()
        if groups
    }


def not_made_again(parts: Iterable[tuple[str, Any]], made: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each optimizer with groups that no start can make again; the arguments are as above."""
    parts = list(parts)
    found = [
        f"{name}: has a new group with a tensor that is in no network"
        for name, groups in added_groups(parts, made).items()
        if any("" in group["parameters"] for group in groups)
    ]
    for name, part in _made_optimizers(parts, made).items():
        before, now = [*map(len, made[name]["parameters"])], [len(group["params"]) for group in part.param_groups]
        if now[: len(before)] != before:
            found.append(
                f"{name}: has groups of {_listed(now)} parameters, and setup has made groups of {_listed(before)}"
            )
    return found


class AddedGroups:
    """The groups that a checkpoint has beyond those that `setup` has made, which are made again.

    Args:
        parts: the stateful parts of the model by name, as `setup` has made them.
        saved: what `added_groups` has returned when the checkpoint was saved.
        states: the states in the checkpoint by name.
    """

    def __init__(self, parts: Mapping[str, Any], saved: Mapping[str, Any], states: Mapping[str, Any]) -> None:
        known = _parameters(parts.items())
        self._groups: dict[str, list[dict[str, Any]]] = {}
        self._optimizers: dict[str, Optimizer] = {}
        self._num_groups: dict[str, int] = {}
        self._trained: list[tuple[nn.Parameter, bool]] = []
        for name, groups in saved.items():
            optimizer = parts.get(name)
            if not isinstance(optimizer, Optimizer):
                continue
            of_checkpoint = states.get(name, {}).get("param_groups", [])
            names = [each for group in groups for each in group["parameters"]]
            if len(optimizer.param_groups) + len(groups) != len(of_checkpoint):
                continue  # `setup` makes these groups now, or others.
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if all(each in known and id(known[each]) not in trained for each in names):
                self._optimizers[name], self._num_groups[name] = optimizer, len(of_checkpoint)
                self._groups[name] = [
                    {**numbers, "params": [known[each] for each in group["parameters"]]}
                    for numbers, group in zip(of_checkpoint[-len(groups) :], groups, strict=True)
                ]
                flags = [flag for group in groups for flag in group["trained"]]
                self._trained += [(known[each], flag) for each, flag in zip(names, flags, strict=True)]

    def left_out(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return states in which optimizers have the groups that `setup` has made."""
        return dict(states) | {
            name: {**states[name], "param_groups": states[name]["param_groups"][: -len(groups)]}
            for name, groups in self._groups.items()
        }

    def put_back(self, states: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return states with the groups that `left_out` has left out of the saved ones."""
        return dict(states) | {
            name: {
                **states[name],
                "param_groups": [*states[name]["param_groups"], *saved[name]["param_groups"][-len(groups) :]],
            }
            for name, groups in self._groups.items()
        }

    def make(self) -> None:
        """Add the groups to the optimizers, and freeze their parameters or not, as they were.

        A hook that a start calls again, such as that of an epoch that has begun, may add a group once more: this has no
        effect.
        """
        for name, optimizer in self._optimizers.items():
            groups = self._groups[name]
            num_missing = self._num_groups[name] - len(optimizer.param_groups)  # Of a wrapped one they may be there.
            for group in groups[len(groups) - num_missing :]:
                optimizer.add_param_group(group)
            pending = [{id(p) for p in group["params"]} for group in groups]
            vars(optimizer)["add_param_group"] = functools.partial(_add_if_new, optimizer, pending)
        for p, is_trained in self._trained:
            p.requires_grad_(is_trained)


def _add_if_new(optimizer: Optimizer, pending: list[set[int]], group: dict[str, Any]) -> None:
    """Add a group to an optimizer, unless its parameters are those of one that is pending, which ends that."""
    if not isinstance(group["params"], Tensor | set):
        group["params"] = list(group["params"])
    parameters = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    found = {id(p[1] if isinstance(p, tuple) else p) for p in parameters}
    if found not in pending:
        type(optimizer).add_param_group(optimizer, group)
        return
    pending.remove(found)
    if not pending:
        del vars(optimizer)["add_param_group"]


def _made_optimizers(parts: Iterable[tuple[str, Any]], made: Mapping[str, Any]) -> dict[str, Optimizer]:
    return {name: part for name, part in parts if isinstance(part, Optimizer) and "groups" in made.get(name, {})}


def _parameters(parts: Iterable[tuple[str, Any]]) -> dict[str, nn.Parameter]:
    """Return the parameters of the networks by name; one that is shared under the first."""
    networks = ((name, part) for name, part in parts if isinstance(part, nn.Module))
    return {f"{name}.{path}": p for name, net in networks for path, p in net.named_parameters()}


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
