"""Where metrics go: a protocol of three methods, and the file that every run writes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Logger(Protocol):
    """What a logger must be able to do. The trainer calls it on global rank 0 only."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Take the trainer's options and the model's `hparams` (plain data), once per start of a run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one row of values by full name ("train/loss"), as of that many optimizer updates."""

    def close(self) -> None:
        """Write out what is pending; called however the run ends."""


class JsonlLogger:
    """One json object a line: `{"step": 50, "epoch": 1, "seconds": 0.8, "train/loss": 0.31}`.

    Every row is flushed, so a killed run keeps all of its rows. A value that is NaN or infinite is written as
    null, because json knows neither.

    Args:
        path: the file, made if missing.
        rows: how many rows of an existing file stay. What follows was written after the checkpoint that a run
            resumes from, and will be written again.

    Attributes:
        rows: how many rows the file has.
    """

    def __init__(self, path: Path, rows: int = 0) -> None:
        self._file = path.open("a+", encoding="utf-8")
        self._file.seek(0)
        # Cut in place: a kill at this moment must not lose the rows that stay. An unfinished line is no row.
        kept = [line for line in itertools.islice(self._file, rows) if line.endswith("\n")]
        self._file.truncate(len("".join(kept).encode()))
        self.rows = len(kept)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing: `config.json` in the run folder holds it."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()
