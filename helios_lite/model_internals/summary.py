"""The numbers of parameters of networks, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from helios_lite.arguments import integer, optional, require
from helios_lite.display.console import make_table
from helios_lite.model_internals.attributes import networks

if TYPE_CHECKING:
    from rich.table import Table


def num_parameters(nets: Iterable[nn.Module], trainable_only: bool = False) -> int:
    """Return the number of parameters of some networks; a shared parameter counts once."""
    parameters = {id(p): p for net in nets for p in net.parameters()}
    return sum(p.numel() for p in parameters.values() if p.requires_grad or not trainable_only)


def description(model: Any) -> str:
    """Return one line about a Model, whatever state it is in: "Digits('digits', 29,162 parameters, cpu)"."""
    name = vars(model).get("_save_name")
    parts = [] if name is None else [repr(name)]
    found = networks(model)
    if not found:
        parts.append("no networks yet")
    elif any(isinstance(parameter, UninitializedParameter) for net in found for parameter in net.parameters()):
        parts.append("parameters without a shape yet")
    else:
        parts.append(f"{num_parameters(found):,} parameters")
        parts += sorted({str(parameter.device) for net in found for parameter in net.parameters()})
    return f"{type(model).__name__}({', '.join(parts)})"


def parameter_table(title: str, nets: dict[str, nn.Module], depth: int | None) -> Table:
    """Return a rich table of networks by name and their submodules, with numbers of parameters.

    Args:
        title: the title of the table.
        nets: the networks by name.
        depth: the number of levels of submodules below each network; None shows all of them, and every parameter with
            its shape and data type.

    Raises:
        TypeError, ValueError: `depth` is not None or an int of at least 0.
    """
    require("depth", depth, optional(integer(least=0)))
    rows = []
    for name, net in nets.items():
        for path, level, part in _parts(name, net, math.inf if depth is None else depth):
            if isinstance(part, nn.Module):
                type_name, sizes = type(part).__name__, [(p.numel(), p.requires_grad) for p in part.parameters()]
            elif depth is None:
                dtype = str(part.dtype).removeprefix("torch.")
                type_name, sizes = f"{dtype} {tuple(part.shape)}", [(part.numel(), part.requires_grad)]
            else:
                continue
            total = sum(size for size, _ in sizes)
            trainable = sum(size for size, requires_grad in sizes if requires_grad)
            rows.append(("  " * level + path, type_name, f"{total:,}", f"{trainable:,}"))
    everything = nets.values()
    totals = ("total", "", f"{num_parameters(everything):,}", f"{num_parameters(everything, True):,}")
    return make_table(["module", "type", ">parameters", ">trainable"], rows, totals, title=title)


def _parts(
    path: str, module: nn.Module, depth: float, level: int = 0
) -> Iterator[tuple[str, int, nn.Module | nn.Parameter]]:
    """Yield a module, its own parameters, and its submodules that have parameters, with their paths and levels."""
    yield path, level, module
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        yield f"{path}.{name}", level + 1, parameter
    for name, child in module.named_children():
        if level < depth and any(True for _ in child.parameters()):
            yield from _parts(f"{path}.{name}", child, depth, level + 1)
