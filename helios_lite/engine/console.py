"""Banner, tables and log of a run. Rank 0 prints; the other ranks log warnings only."""

from __future__ import annotations

import logging
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from helios_lite.state import FitResult
from helios_lite.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger("helios_lite")


def banner_text(run: str, device: torch.device, processes: int, strategy: str, precision: str) -> str:
    """Return the lines of the banner: the run, its devices, and the versions."""
    count = "1 process" if processes == 1 else f"{processes} processes ({strategy})"
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return (
        f"helios_lite {__version__}   torch {torch.__version__}   Python {platform.python_version()}\n"
        f"run {run}   device {device} ({place})   {count}   {precision}"
    )


def show_banner(text: str) -> None:
    """Print the banner in a frame."""
    from rich.console import Console
    from rich.panel import Panel

    Console().print(Panel.fit(text, border_style="dim"), highlight=False, markup=False)


def show_table(table: Table) -> None:
    """Print a table."""
    from rich.console import Console

    Console().print(table)


def result_table(result: FitResult, monitor: str | Sequence[str] | None, history: Sequence[float]) -> Table:
    """Return the final table.

    Args:
        result: what `fit` returns.
        monitor: the name of the monitored metric, the names of several, or None.
        history: the monitored value at every validation.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    has_best = bool(result.best_metrics)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    table.add_column("last", justify="right")
    if has_best:
        table.add_column("best", justify="right")
    for name in result.metrics:
        row: list[Text | str] = [Text(name), f"{result.metrics[name]:.6g}"]
        if has_best:
            # Training metrics belong to the updates before a logging step, not to the best state.
            best = result.best_metrics.get(name) if name.startswith("valid/") else None
            row.append("" if best is None else f"{best:.6g}")
        table.add_row(*row)
    table.add_section()
    state = result.state
    table.add_row("epochs / steps", f"{state.epoch} / {state.step}", *([f"step {state.best_step}"] if has_best else []))
    table.add_row("time", f"{state.seconds:.1f} s")
    if monitor is not None and len(history) > 1 and (sys.stdout.encoding or "").lower().startswith("utf"):
        name = monitor if isinstance(monitor, str) else " + ".join(monitor)
        table.caption = Text(f"{name}  {sparkline(history)}")
    return table


def show_result(title: str, result: FitResult, monitor: str | Sequence[str] | None, history: Sequence[float]) -> None:
    """Print how the run ended, the final table, and the files in lines of their own, where no table cuts them."""
    print(title)
    show_table(result_table(result, monitor, history))
    if result.best_checkpoint is not None:
        print(f"best checkpoint: {result.best_checkpoint}")
    if result.last_checkpoint is not None:
        print(f"last checkpoint: {result.last_checkpoint}")


def show_metrics(title: str, metrics: dict[str, float]) -> None:
    """Print the metrics of an evaluation, one per row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in metrics.items():
        table.add_row(Text(name), f"{value:.6g}")
    print(title)
    show_table(table)


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


class RunLog:
    """Sends the log of `helios_lite` to stderr and to a file, until `close`.

    If the program has configured logging itself (the root logger has handlers), only the file is added.

    Args:
        path: the file to append to; None writes no file.
        is_main: whether this is rank 0; the other ranks show warnings only.
    """

    def __init__(self, path: Path | None, is_main: bool = True) -> None:
        self._handlers: list[logging.Handler] = []
        self._level = logger.level
        if not logging.getLogger().handlers:
            shown = _AboveBars()
            shown.setLevel(logging.INFO if is_main else logging.WARNING)
            shown.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
            self._handlers.append(shown)
        if path is not None:
            written = logging.FileHandler(path, encoding="utf-8")
            written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._handlers.append(written)
        for handler in self._handlers:
            logger.addHandler(handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.DEBUG if path is not None else logging.INFO)

    def close(self) -> None:
        """Remove the handlers and close the file."""
        logger.setLevel(self._level)
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()


class _AboveBars(logging.Handler):
    """Prints records on stderr above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        else:
            print(self.format(record), file=sys.stderr)
