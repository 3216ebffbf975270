"""Tables for the terminal, and the format of the numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def make_table(headers: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None) -> Table:
    """Return a rich table.

    Args:
        headers: the header of each column. A header that starts with ">" right-aligns its column, for numbers.
        rows: the cells of each row.
        total: the cells of a last row, separated by a line. A table without rows has no such row.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for header in headers:
        is_number = header.startswith(">")
        table.add_column(header.removeprefix(">"), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if total is not None and table.rows:
        table.add_section()
        table.add_row(*total)
    return table


def format_number(value: float | None) -> str:
    """Return a number with six significant digits, or an empty string for None."""
    return "" if value is None else f"{value:.6g}"


def printable(text: str) -> str:
    """Return a text of a foreign file as it is if a terminal may show it, else with escapes for control characters."""
    return text if text.isprintable() else repr(text)
