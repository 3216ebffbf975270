"""What people see: banner, tables, progress bars and the log. Everything here runs on global rank 0 only."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helios_lite.state import FitResult, TrainingState
from helios_lite.version import __version__

if TYPE_CHECKING:
    from rich.table import Table
    from tqdm import tqdm

logger = logging.getLogger("helios_lite")

_REFRESH = 0.1  # Seconds between two looks at the progress bars.


def banner_text(run: str, device: torch.device, precision: str) -> str:
    """Return the lines of the banner: what runs, where, and on which versions."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return (
        f"helios_lite {__version__}   torch {torch.__version__}   Python {platform.python_version()}\n"
        f"run {run}   device {device} ({place})   1 process   {precision}"
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
    table = Table(box=box.SIMPLE_HEAD, title=f"stopped by {result.stop_reason}", title_justify="left")
    table.add_column("", overflow="fold")
    table.add_column("last", justify="right")
    if judged:
        table.add_column("best", justify="right")
    for name in result.metrics:
        row: list[Text | str] = [Text(name), f"{result.metrics[name]:.6g}"]
        if judged:
            row.append(f"{result.best_metrics[name]:.6g}" if name in result.best_metrics else "")
        table.add_row(*row)
    table.add_section()
    state = result.state
    table.add_row("epochs / steps", f"{state.epoch} / {state.step}", *([f"step {state.best_step}"] if judged else []))
    table.add_row("time", f"{state.seconds:.1f} s")
    if monitor is not None and len(history) > 1:
        name = monitor if isinstance(monitor, str) else " + ".join(monitor)
        table.caption = f"{name}  {sparkline(history)}"
    return table


def show_result(result: FitResult, monitor: str | Sequence[str] | None, history: Sequence[float]) -> None:
    """Print the final table, and the files in lines of their own, which a terminal must not cut."""
    show_table(result_table(result, monitor, history))
    if result.best_checkpoint is not None:
        print(f"best checkpoint: {result.best_checkpoint}")
    if result.last_checkpoint is not None:
        print(f"last checkpoint: {result.last_checkpoint}")


def show_metrics(metrics: dict[str, float]) -> None:
    """Print the values of an evaluation, a row each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in metrics.items():
        table.add_row(Text(name), f"{value:.6g}")
    show_table(table)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return values as a line of blocks, at most `width` of them, each the mean of its part of the values."""
    parts = min(width, len(values))
    means = []
    for i in range(parts):
        part = values[i * len(values) // parts : (i + 1) * len(values) // parts]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


class Bars:
    """A bar over the run and one over the epoch or the evaluation; drawn by tqdm on stderr if that is a terminal.

    Args:
        enabled: False draws nothing.
        state: the counters, read when a bar is drawn.
        total: what the run's bar counts to, None if nobody knows.
        unit: what it counts: "step" or "epoch".
    """

    def __init__(self, enabled: bool, state: TrainingState, total: int | None, unit: str) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self._state = state
        self._unit = unit
        self._due = 0.0
        self._run: tqdm[Any] | None = None
        self._part: tqdm[Any] | None = None
        if self.enabled:
            from tqdm import tqdm

            self._run = tqdm(
                total=total,
                initial=self._count(),
                unit=unit,
                desc="run",
                position=0,
                dynamic_ncols=True,
                leave=False,
            )

    def start(self, name: str, total: int | None, done: int = 0) -> tqdm[Any] | None:
        """Put a bar for an epoch or an evaluation below; return the one it hides, for `finish`."""
        hidden = self._part
        if self.enabled:
            from tqdm import tqdm

            if hidden is not None:
                hidden.clear()
            self._part = tqdm(
                total=total,
                initial=done,
                unit="batch",
                desc=name,
                position=1,
                dynamic_ncols=True,
                leave=False,
            )
        return hidden

    def update(self, done: int, metrics: dict[str, float]) -> None:
        """Redraw if the last time is long enough ago: a step costs one look at the clock."""
        now = time.monotonic()
        if self._part is None or now < self._due:
            return
        self._due = now + _REFRESH
        self._part.n = done
        self._part.refresh()
        if self._run is not None:
            self._run.n = self._count()
            shown = [f"{name}={value:.4g}" for name, value in metrics.items() if not name.endswith("_seconds")]
            self._run.set_postfix_str(" ".join(shown[:3]))

    def finish(self, hidden: tqdm[Any] | None = None) -> None:
        """Take away the lower bar and show the one it hid."""
        if self._part is not None:
            self._part.close()
            self._part = hidden
            self._due = 0.0

    def close(self) -> None:
        """Take away both bars."""
        self.finish()
        if self._run is not None:
            self._run.close()
            self._run = None

    def _count(self) -> int:
        return self._state.step if self._unit == "step" else self._state.epoch


class RunLog:
    """Sends the log of `helios_lite` to stderr and to a file for the time of a run, and takes both away again.

    A program that has set up logging itself (the root logger has handlers) keeps the say over what is shown; then
    only the file is added.

    Args:
        path: the file, appended to; None writes none.
    """

    def __init__(self, path: Path | None) -> None:
        self._handlers: list[logging.Handler] = []
        self._level = logger.level
        if not logging.getLogger().handlers:
            shown = _BesideBars()
            shown.setLevel(logging.INFO)
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
