"""What the files of a run folder tell. Others may have written them: nothing in them needs to be of the right type."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from helios_lite.metrics.rows import ROW_COLUMNS, read_rows
from helios_lite.nested import leaves
from helios_lite.tools.usage import UsageError
from helios_lite.training.status_file import STATUS_FILE, is_left_behind, read_status

ROWS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
WHERE_ONLY = {
    "run_folder",
    "trainer.root",
    "trainer.run_name",
    "trainer.progress",
    "trainer.print_banner",
    "trainer.log_level",
}
"""Values of config.json that say where a run writes and what is seen of it."""


def run_folders(path: Path, file: str) -> list[Path]:
    """Return a run folder, or those that are directly in a folder, by name; each has the file of that name.

    Raises:
        UsageError: there is no such folder, or no run folder in it.
    """
    _require_folder(path)
    if (path / file).exists():
        return [path]
    found = sorted(each for each in path.iterdir() if (each / file).exists())
    if not found:
        raise UsageError(f"{path}: is no run folder, which has {file}, and has none in it")
    return found


def all_run_folders(path: Path) -> list[Path]:
    """Return the run folders in a folder, at any depth, by name; the folder itself if it is one.

    Raises:
        UsageError: there is no such folder, or no run folder in it.
    """
    _require_folder(path)
    found = []
    for folder, inside, names in os.walk(path):
        is_run = STATUS_FILE in names or ROWS_FILE in names or (CONFIG_FILE in names and "checkpoints" in inside)
        inside[:] = sorted(name for name in inside if not (is_run and name == "checkpoints"))
        if is_run:
            found.append(Path(folder))
    if not found:
        raise UsageError(f"{path}: has no run folder in it, which has {STATUS_FILE} or {ROWS_FILE}")
    return found


def numbers_of_rows(folder: Path, *, with_evaluations: bool = False) -> Iterator[tuple[str, int, float | None]]:
    """Yield the name, the step and the value of each number in the rows of a run; None for one that was not finite.

    Args:
        folder: the run folder.
        with_evaluations: whether to read the rows of `validate` and `test` too.
    """
    for row in read_rows(folder / ROWS_FILE, with_evaluations=with_evaluations):
        for name, value in row.items():
            is_number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            if name not in ROW_COLUMNS and is_number:  # It may be a text.
                yield name, row["step"], number(value)


def labels(runs: Sequence[Path]) -> list[str]:
    """Return a label for each run: the name of its folder, or its path if several folders have this name."""
    names = [run.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for run, name in zip(runs, names, strict=True)]


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(f"{path}: {'is a file' if path.exists() else 'there is no such folder'}; name a run folder")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What the files of one run tell.

    Attributes:
        folder: the run folder.
        status: the content of status.json, empty if there is none that can be read.
        config: the values of config.json by dotted name, without the starts; empty if there is none that can be read.
        error: why config.json cannot be read, None if it can, or if there is none.
    """

    folder: Path
    status: Mapping[str, Any]
    config: Mapping[str, Any]
    error: str | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what the files of a run folder tell."""
        path, config, error = folder / CONFIG_FILE, dict[str, Any](), None
        try:
            content = json.loads(path.read_bytes()) if path.exists() else {}
            content = {name: value for name, value in content.items() if name != "starts"}
            config = dict(leaves(content)) if content else {}
        except (ValueError, OSError, RecursionError, AttributeError) as found:
            error = f"{path}: cannot be read ({found})"
        return cls(folder, read_status(folder) or {}, config, error)

    @property
    def state(self) -> str:
        """Return the state in status.json, "dead while ..." if the process is gone without a word; "" if unknown."""
        state = str(self.status.get("state", ""))
        return f"dead while {state}" if self.is_dead else state

    @property
    def is_dead(self) -> bool:
        """Return whether the process that wrote the status is known to be gone without having said how it ended."""
        return bool(self.status) and is_left_behind(self.status) is True

    @property
    def step(self) -> int | None:
        """Return the last finished step, by the last row if the status does not say so; None if it is unknown."""
        if type(step := self.status.get("step")) is int:
            return step
        rows = [] if self.status else read_rows(self.folder / ROWS_FILE)
        return max((row["step"] for row in rows), default=None)

    @property
    def best_score(self) -> float | None:
        """Return the best monitored value; None if there is none, or it is not finite."""
        return number(self.status.get("best_score"))

    @property
    def monitor(self) -> str:
        """Return the name of the monitored metric, "a + b" of several, "" without one."""
        names = [value for name, value in self.config.items() if f"{name}.".startswith("trainer.monitor.")]
        return " + ".join(name for name in names if isinstance(name, str))

    @property
    def is_higher_better(self) -> bool:
        """Return whether the monitored metric is to rise."""
        return self.config.get("trainer.mode") == "max"


def differing(configs: Sequence[Mapping[str, Any]], *tables: str) -> Iterator[str]:
    """Yield the names of the values that are not the same in all configurations, in their order.

    Args:
        configs: values by dotted name.
        tables: the first parts of the names that are compared; all without any.
    """
    for name in dict.fromkeys(name for config in configs for name in config):
        if name in WHERE_ONLY or (tables and name.partition(".")[0] not in tables):
            continue
        # The type counts: 1, 1.0 and true are equal for Python.
        if len({repr(config[name]) if name in config else None for config in configs}) > 1:
            yield name


def number(value: Any) -> float | None:
    """Return a value as a float if it is a finite number, else None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:  # An int may have more digits.
        return None
    return found if math.isfinite(found) else None
