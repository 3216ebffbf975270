"""Banner, tables and log of a run. Rank 0 prints; of the other ranks only warnings are seen."""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from helios_lite.engine.progress import write_above_bars
from helios_lite.state import FitResult
from helios_lite.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger("helios_lite")

LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
"""The least level of the records that the console gets, by the option `log_level`."""


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


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Return metrics on one line: "train/loss=0.31 train/lr=0.001"."""
    return " ".join(f"{name}={value:.6g}" for name, value in metrics.items())


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
    """Context in which the records of the logger `helios_lite` go to train.log and to the console.

    train.log gets all of rank 0, and the warnings of the other ranks. The console gets the records that `log_level`
    asks for, above the progress bars on stderr. If the program has configured logging itself (the root logger has
    handlers), they go to its handlers in place of stderr; a level that it has set for the logger `helios_lite` counts
    too. An exception that ends the context is written to train.log with its traceback. On exit logging is as before.

    Args:
        path: train.log; None writes no file.
        log_level: "quiet", "normal" or "verbose".
        rank: the rank of this process.
        is_required: whether it is an error if the file cannot be written to. Otherwise the records are lost.
        records_failure: False leaves an exception to the process that has launched this one.
    """

    def __init__(
        self,
        path: Path | None,
        log_level: str = "normal",
        *,
        rank: int = 0,
        is_required: bool = True,
        records_failure: bool = True,
    ) -> None:
        self._path, self._log_level, self._rank = path, log_level, rank
        self._is_required, self._records_failure = is_required, records_failure
        self._level, self._propagates = logger.level, logger.propagate
        self._file: logging.FileHandler | None = None
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> Self:
        self._level, self._propagates = logger.level, logger.propagate
        console: logging.Handler = _Program() if logging.getLogger().handlers else _AboveBars()
        console.setLevel(max(LEVELS[self._log_level], self._level, logging.WARNING if self._rank > 0 else 0))
        console.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self._handlers.append(console)
        if self._path is not None:
            kind = logging.FileHandler if self._is_required and self._rank == 0 else _OptionalFile
            self._file = kind(self._path, encoding="utf-8", delay=kind is _OptionalFile)
            self._file.setLevel(logging.WARNING if self._rank > 0 else logging.DEBUG)
            place = f" rank {self._rank}:" if self._rank > 0 else ""
            self._file.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s{place} %(message)s"))
            self._handlers.append(self._file)
        for handler in self._handlers:
            logger.addHandler(handler)
        # Who sees what is decided by these handlers alone: DEBUG records must not reach those of the program.
        logger.setLevel(min(handler.level for handler in self._handlers))
        logger.propagate = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._records_failure:
            self.record_failure(error)
        logger.setLevel(self._level)
        logger.propagate = self._propagates
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        self._handlers.clear()

    def record_failure(self, error: BaseException) -> None:
        """Write an exception to train.log with its traceback. The console gets it from Python."""
        if self._file is not None:
            # An exception that is no error, such as KeyboardInterrupt, needs no traceback.
            details = (type(error), error, error.__traceback__) if isinstance(error, Exception) else None
            text = f"ended by {type(error).__name__}"
            self._file.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), details))


class _OptionalFile(logging.FileHandler):
    """Appends records to a file as long as that is possible."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Program(logging.Handler):
    """Gives records to the handlers of the program."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)


class _AboveBars(logging.Handler):
    """Prints records above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        write_above_bars(self.format(record))
