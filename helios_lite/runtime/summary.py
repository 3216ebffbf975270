"""The numbers of parameters of networks, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from helios_lite.runtime.parallel import unwrap_model

if TYPE_CHECKING:
    from rich.table import Table


def num_parameters(networks: Iterable[nn.Module], trainable_only: bool = False) -> int:
    """Return the number of parameters of some networks; a shared parameter counts once."""
    parameters = {id(p): p for net in networks for p in net.parameters()}
    return sum(p.numel() for p in parameters.values() if p.requires_grad or not trainable_only)


def parameter_table(title: str, networks: dict[str, nn.Module]) -> Table:
    """Return a rich table of networks by name and their direct submodules, with numbers of parameters."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    table.add_column("module", overflow="fold")
    table.add_column("type")
    table.add_column("parameters", justify="right")
    table.add_column("trainable", justify="right")
    for name, wrapped in networks.items():
        net = unwrap_model(wrapped)
        for path, module in [("", net), *net.named_children()]:
            sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
            if path and not sizes:
                continue
            total = sum(size for size, _ in sizes)
            trainable = sum(size for size, requires_grad in sizes if requires_grad)
            full_name = f"  {name}.{path}" if path else name
            table.add_row(Text(full_name), type(module).__name__, f"{total:,}", f"{trainable:,}")
    table.add_section()
    everything = networks.values()
    table.add_row("total", "", f"{num_parameters(everything):,}", f"{num_parameters(everything, True):,}")
    return table
