"""The banner of a run and its tables, and the format of the numbers in them. Rank 0 prints."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from helios_lite.display.lines import duration
from helios_lite.metrics.measurements import is_measured
from helios_lite.options import Options
from helios_lite.processes.devices import device_name
from helios_lite.processes.output import harmless
from helios_lite.processes.rng import fork_rng
from helios_lite.state import FitResult, table_of_metrics
from helios_lite.version import __version__

if TYPE_CHECKING:
    from rich.table import Table


def banner_text(run: str, device: torch.device, processes: int, options: Options) -> str:
    """Return the lines of the banner: the run, its devices, and the versions."""
    count = "1 process" if processes == 1 else f"{processes} processes ({options.strategy})"
    place = device_name(device) or f"{torch.get_num_threads()} threads"
    return (
        f"helios_lite {__version__}   torch {torch.__version__}   Python {platform.python_version()}\n"
        f"run {run}   device {device} ({place})   {count}   {options.precision}"
    )


def show_banner(text: str) -> None:
    """Print the banner in a frame."""
    with fork_rng(torch.device("cpu")):
        from rich.console import Console
        from rich.panel import Panel

        Console().print(Panel.fit(text, border_style="dim"), highlight=False, markup=False)


def show_table(table: Table) -> None:
    """Print a table."""
    with fork_rng(torch.device("cpu")):
        from rich.console import Console

        Console().print(table)


def result_table(result: FitResult) -> Table:
    """Return the final table of what `fit` returns."""
    has_best, state = bool(result.best_metrics), result.state
    # Training metrics belong to the steps before a row, not to the best state.
    best = {name: value for name, value in result.best_metrics.items() if name.startswith("valid/")}
    shown, _ = table_of_metrics(result.metrics)
    rows = [(name, format_number(value), format_number(best.get(name))) for name, value in shown.items()]
    counters = ("epochs / steps", f"{state.epoch} / {state.step}", f"step {state.best_step}")
    columns = 3 if has_best else 2
    return make_table(
        ["", ">last", ">best"][:columns],
        [row[:columns] for row in rows],
        counters[:columns],
        ("time", duration(state.seconds)),
    )


def shown_path(path: Path, directory: Path) -> Path:
    """Return a path as people see it: relative to the working directory of the call, if it is below it."""
    return path.relative_to(directory) if path.is_relative_to(directory) else path


def show_result(
    title: str,
    result: FitResult,
    monitor: str | Sequence[str] | None,
    history: Sequence[float],
    directory: Path,
    *,
    with_timings: bool = False,
) -> None:
    """Print how the run ended, the final table, and below it what no table may cut: the curve and the files.

    Args:
        title: how the run ended.
        result: what `fit` returns.
        monitor: the name of the monitored metric, the names of several, or None.
        history: the monitored value at every validation.
        directory: the working directory of the call.
        with_timings: whether a second table has what was measured with a clock or a meter.
    """
    print(title)
    show_table(result_table(result))
    for caption in table_of_metrics(result.metrics)[1]:
        print(caption)
    if monitor is not None and len(history) > 1 and can_print("▁█"):
        name = monitor if isinstance(monitor, str) else " + ".join(monitor)
        print(f"{name}: {history[0]:.4g} {sparkline(history)} {history[-1]:.4g}")
    if with_timings:
        measured = [(name, format_number(value)) for name, value in result.metrics.items() if is_measured(name)]
        show_table(make_table(["measured", ">last"], measured))
    if result.best_checkpoint is not None:
        print(f"best checkpoint: {shown_path(result.best_checkpoint, directory)}")
    if result.last_checkpoint is not None:
        print(f"last checkpoint: {shown_path(result.last_checkpoint, directory)}")


def show_metrics(title: str, metrics: dict[str, float]) -> None:
    """Print the metrics of an evaluation, one per row."""
    print(title)
    show_table(make_table(["", ""], [(name, format_number(value)) for name, value in metrics.items()]))


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Return metrics on one line: "train/loss=0.31 train/lr=0.001"."""
    return " ".join(f"{name}={value:.6g}" for name, value in metrics.items())


def painted(text: str, color: Literal["green", "yellow"]) -> str:
    """Return a text in a color, for a line on stderr; as it is where that is no terminal, or `NO_COLOR` is set."""
    has_colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{32 if color == 'green' else 33}m{text}\033[0m" if has_colors else text


def width() -> int:
    """Return the number of columns of the terminal."""
    return shutil.get_terminal_size().columns


def can_print(text: str) -> bool:
    """Return whether stdout takes the characters of a text."""
    return text.isascii() or (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return values as a line of at most `width` block characters, each the mean of some values.

    A mean that is not finite is left blank.
    """
    parts = min(width, len(values))
    means = []
    for i in range(parts):
        part = values[i * len(values) // parts : (i + 1) * len(values) // parts]
        means.append(sum(part) / len(part))
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


def make_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *totals: Sequence[str], title: str | None = None
) -> Table:
    """Return a rich table.

    Args:
        headers: the header of each column; none is shown if all are empty. A header that starts with ">" right-aligns
            its column, for numbers.
        rows: the cells of each row.
        totals: the cells of last rows, separated by a line.
        title: what to show above the table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown_title = None if title is None else Text(harmless(title))
    table = Table(box=box.SIMPLE_HEAD, show_header=any(headers), title=shown_title, title_justify="left")
    for header in headers:
        is_number = header.startswith(">")
        text = Text(harmless(header.removeprefix(">")))
        table.add_column(text, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, map(harmless, row)))
    table.add_section()
    for row in totals:
        table.add_row(*map(Text, map(harmless, row)))
    return table


def format_number(value: float | None) -> str:
    """Return a number with six significant digits, or an empty string for None."""
    return "" if value is None else f"{value:.6g}"


def printable(text: str) -> str:
    """Return a name of a foreign file as it is if a terminal may show it, else quoted, with escapes."""
    return text if text.isprintable() else repr(text)
