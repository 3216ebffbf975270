"""Which modules of a network are gathered and freed as one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

import torch
from torch import nn


def scalars(net: nn.Module) -> list[nn.Parameter]:
    """Return the parameters without a dimension, of which there is nothing to shard: they are replicated."""
    return [p for p in net.parameters() if p.ndim == 0]


def find_units(net: nn.Module, blocks: Collection[nn.Module]) -> dict[nn.Module, torch.dtype | None]:
    """Return the modules that FSDP2 shards one by one, each with the dtype of all that it trains.

    They are the network and its blocks. A block that shares a parameter belongs to a larger one, which has all modules
    with this parameter. A submodule whose parameters have another dtype than the rest of its block is sharded alone.

    Args:
        net: the network.
        blocks: submodules.

    Raises:
        ValueError: parameters of several dtypes cannot be told apart by their modules. The message names one.
    """
    units = {net, *blocks}
    for apart in _divided(net, units).values():
        units -= apart
    dtypes: dict[nn.Module, torch.dtype | None] = {}
    waiting = [net, *(block for block in blocks if block in units)]
    for unit in waiting:
        own = {module: _trained_sizes(module) for module in _members(unit, units)}
        dtypes[unit] = _largest(own[unit]) or _largest(sum(own.values(), Counter()))
        others = [module for module, sizes in own.items() if sizes and _largest(sizes) is not dtypes[unit]]
        units.update(others)
        waiting += others
    shared = _divided(net, units)
    for path, module in net.named_modules():
        found = _trained_sizes(module)
        problem = None
        if len(found) > 1:
            kinds = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
            problem = f"trains parameters of {kinds} itself"
        elif any(p in shared for p in module.parameters(recurse=False)):
            problem = "shares a parameter with another module, beside parameters of another dtype"
        if problem is not None:
            raise ValueError(
                f"parallelize: {path or 'the network'} of a {type(net).__name__} {problem}, and one message has one "
                "dtype; convert them, give those of each dtype a submodule that is called, or use strategy='ddp'"
            )
    return dtypes


def _divided(net: nn.Module, units: set[nn.Module]) -> dict[nn.Parameter, set[nn.Module]]:
    """Return the parameters that units share, each with those that do not have all modules with this parameter."""
    around = defaultdict[nn.Parameter, list[set[nn.Module]]](list)

    def visit(module: nn.Module, outer: set[nn.Module]) -> None:
        outer = outer | ({module} & units)
        for p in module.parameters(recurse=False):
            around[p].append(outer)
        for child in module.children():
            visit(child, outer)

    visit(net, set())
    apart = {p: found[0].union(*found) - found[0].intersection(*found) for p, found in around.items()}
    return {p: found for p, found in apart.items() if found}


def _members(unit: nn.Module, units: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield a module, and those inside it that belong to no smaller unit."""
    yield unit
    for child in unit.children():
        if child not in units:
            yield from _members(child, units)


def _trained_sizes(module: nn.Module) -> Counter[torch.dtype]:
    """Return how many elements of each dtype a module itself has to train."""
    sizes = Counter[torch.dtype]()
    for p in module.parameters(recurse=False):
        if p.requires_grad and p.ndim > 0:
            sizes[p.dtype] += p.numel()
    return sizes


def _largest(sizes: Counter[torch.dtype]) -> torch.dtype | None:
    return max(sizes, key=sizes.__getitem__, default=None)
