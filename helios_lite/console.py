"""What people see: banner, tables, progress bars and the log. Everything here runs on global rank 0 only."""

from __future__ import annotations

import logging
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helios_lite.state import FitResult
from helios_lite.version import __version__

if TYPE_CHECKING:
    from rich.table import Table
    from tqdm import tqdm

logger = logging.getLogger("helios_lite")

_REFRESH = 0.1  # Seconds between two looks at the progress bars.


def banner_text(run: str, device: torch.device, processes: int, strategy: str, precision: str) -> str:
    """Return the lines of the banner: what runs, where, and on which versions."""
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
        monitor: name of the monitored metric, or names of several, if there is one.
        history: its value at every validation of this process's part of the run.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    judged = bool(result.best_metrics)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    table.add_column("last", justify="right")
    if judged:
        table.add_column("best", justify="right")
    for name in result.metrics:
        row: list[Text | str] = [Text(name), f"{result.metrics[name]:.6g}"]
        if judged:
            # Training metrics belong to the updates before a log point, not to the best state.
            best = result.best_metrics.get(name) if name.startswith("valid/") else None
            row.append("" if best is None else f"{best:.6g}")
        table.add_row(*row)
    table.add_section()
    state = result.state
    table.add_row("epochs / steps", f"{state.epoch} / {state.step}", *([f"step {state.best_step}"] if judged else []))
    table.add_row("time", f"{state.seconds:.1f} s")
    if monitor is not None and len(history) > 1 and (sys.stdout.encoding or "").lower().startswith("utf"):
        name = monitor if isinstance(monitor, str) else " + ".join(monitor)
        table.caption = Text(f"{name}  {sparkline(history)}")
    return table


def show_result(title: str, result: FitResult, monitor: str | Sequence[str] | None, history: Sequence[float]) -> None:
    """Print how the run ended, the final table, and the files in lines of their own, which no table must cut."""
    print(title)
    show_table(result_table(result, monitor, history))
    if result.best_checkpoint is not None:
        print(f"best checkpoint: {result.best_checkpoint}")
    if result.last_checkpoint is not None:
        print(f"last checkpoint: {result.last_checkpoint}")


def show_metrics(title: str, metrics: dict[str, float]) -> None:
    """Print the values of an evaluation, a row each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in metrics.items():
        table.add_row(Text(name), f"{value:.6g}")
    print(title)
    show_table(table)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return values as a line of blocks, at most `width` of them, each the mean of its part.

    A part that is not finite is left blank.
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


class Bars:
    """A bar over the run and one over the epoch or the evaluation, drawn by tqdm on stderr if that is a terminal.

    Args:
        enabled: False draws nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self._due = 0.0
        self._run: tqdm[Any] | None = None
        self._look: Callable[[], tuple[int, str]] = lambda: (0, "")
        self._parts: list[tqdm[Any]] = []

    def show_run(self, total: int | None, unit: str, look: Callable[[], tuple[int, str]]) -> None:
        """Draw the bar over the run; `look` returns its position and a word on how things stand."""
        if self.enabled:
            self._look = look
            self._run = self._bar(desc="run", total=total, initial=look()[0], unit=unit, position=0)

    def start(self, name: str, total: int | None, done: int = 0) -> None:
        """Draw a bar for an epoch or an evaluation in the lower line, instead of what is there, until `finish`."""
        if self.enabled:
            if self._parts:
                self._parts[-1].clear()
            self._parts.append(self._bar(desc=name, total=total, initial=done, unit="batch", position=1))

    def update(self, done: int) -> None:
        """Redraw if the last time is long enough ago: a step costs one look at the clock."""
        if not self._parts or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _REFRESH
        self._parts[-1].n = done
        self._parts[-1].refresh()
        self._refresh_run()

    def finish(self) -> None:
        """Take away the lower bar; the one that it replaced comes back at the next `update`."""
        if self._parts:
            self._parts.pop().close()
            self._due = 0.0
            self._refresh_run()

    def close(self) -> None:
        """Take away all bars."""
        while self._parts:
            self.finish()
        if self._run is not None:
            self._run.close()
            self._run = None

    def _refresh_run(self) -> None:
        if self._run is not None:
            self._run.n, word = self._look()
            self._run.set_postfix_str(word)

    @staticmethod
    def _bar(**options: Any) -> tqdm[Any]:
        from tqdm import tqdm

        return tqdm(**options, dynamic_ncols=True, leave=False)


class RunLog:
    """Sends the log of `helios_lite` to stderr and to a file for the time of a run, and takes both away again.

    A program that has set up logging itself (the root logger has handlers) keeps the say over what is shown; then
    only the file is added.

    Args:
        path: the file, appended to; None writes none.
        is_main: whether this is rank 0; the others show warnings only.
    """

    def __init__(self, path: Path | None, is_main: bool = True) -> None:
        self._handlers: list[logging.Handler] = []
        self._level = logger.level
        if not logging.getLogger().handlers:
            shown = _BesideBars()
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
        """Take the handlers away and close the file."""
        logger.setLevel(self._level)
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()


class _BesideBars(logging.Handler):
    """Prints records on stderr without tearing the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        else:
            print(self.format(record), file=sys.stderr)
