"""The command `runs`: a table of runs with what differs in their options."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helios_lite.arguments import did_you_mean
from helios_lite.display import console
from helios_lite.processes.output import harmless
from helios_lite.tools.run_files import RunFiles, all_run_folders, differing
from helios_lite.tools.usage import UsageError

_COLUMNS = ("run", "state", "step", "best")
_MOST_COLUMNS = 6  # Of options: more do not fit a terminal.
_LONGEST_VALUE = 40


def runs(arguments: argparse.Namespace) -> None:
    """Show the runs of a folder. Exits with status 1 if one has failed or is dead, 2 if a file cannot be read."""
    found = table_of_runs(arguments.folder, arguments.sort)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    for run in found["runs"]:
        if run["error"] is not None:
            print(harmless(run["error"]), file=sys.stderr)
    if any(run["is_dead"] or run["state"] == "failed" for run in found["runs"]):
        sys.exit(1)
    if any(run["error"] is not None for run in found["runs"]):
        sys.exit(2)


def table_of_runs(folder: Path, sort: str = "best") -> dict[str, Any]:
    """Return the runs in a folder, at any depth, as plain values.

    Args:
        folder: a folder of runs.
        sort: "best" for the best monitored value, the best one first; "run", "step", or an option that differs, the
            smallest first. Runs without a value come last, and others by name.

    Returns:
        "differs", the names of the options, hparams and values of splits that differ; and "runs", of which each has
        "run", "state", "is_dead", "step", "total_steps", "monitor", "mode", "best_score", "best_step", "options" (the
        values of those names, null for one that a run does not have), and "error", why its config.json cannot be read.

    Raises:
        UsageError: there is no run folder, or nothing to sort by of that name.
    """
    found = [RunFiles.read(each) for each in all_run_folders(folder)]
    names = [*differing([run.config for run in found if run.config], "trainer", "hparams", "data")]
    if sort not in _COLUMNS:
        full = {**{name: name for name in names}, **{short: name for name, short in _short_names(names).items()}}
        if sort not in full:
            raise UsageError(f"--sort {sort}: unknown; {did_you_mean(sort, [*_COLUMNS, *full])}")
        sort = full[sort]
    ordered = sorted(found, key=lambda run: (_order(run, sort), run.folder))
    return {"differs": names, "runs": [_as_dict(run, folder, names) for run in ordered]}


def _order(run: RunFiles, column: str) -> tuple[Any, ...]:
    """Return what runs are sorted by; values of other types come after numbers."""
    if column == "run":
        return ()
    if column == "best":  # Scores of other metrics do not compare.
        score = math.inf if run.best_score is None else -run.best_score if run.is_higher_better else run.best_score
        return (run.best_score is None, run.monitor, run.is_higher_better, score)
    value = run.step if column == "step" else run.config.get(column)
    is_number = isinstance(value, int | float) and value == value  # NaN has no order.
    return (value is None, not is_number, value if is_number else str(value))


def _as_dict(run: RunFiles, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    total, best_step = run.status.get("total_steps"), run.status.get("best_step")
    return {
        "run": str(run.folder),
        "name": str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.resolve().name,
        "state": run.state,
        "is_dead": run.is_dead,
        "step": run.step,
        "total_steps": total if type(total) is int else None,
        "monitor": run.monitor or None,
        "mode": "max" if run.is_higher_better else "min",
        "best_score": run.best_score,
        "best_step": best_step if type(best_step) is int else None,
        "options": {name: _plain(run.config.get(name)) for name in names},
        "error": run.error,
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: what is not finite as a text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _show(found: dict[str, Any]) -> None:
    names, monitors = found["differs"], {run["monitor"] for run in found["runs"]} - {None}
    shown, short = names[:_MOST_COLUMNS], _short_names(names)
    best = f">best {next(iter(monitors))}" if len(monitors) == 1 else ">best"
    headers = ["run", "state", ">step", best, ">at step", *(short[name] for name in shown)]
    console.show_table(console.make_table(headers, [_cells(run, shown) for run in found["runs"]]))
    if len(names) > len(shown):
        print(harmless(f"these differ too, see --json: {', '.join(names[len(shown) :])}"))


def _cells(run: dict[str, Any], names: Sequence[str]) -> list[str]:
    step = "" if run["step"] is None else f"{run['step']}"
    total = f"/{run['total_steps']}" if run["total_steps"] is not None else ""
    best = "" if run["best_step"] is None else str(run["best_step"])
    values = ["" if run["options"][name] is None else str(run["options"][name]) for name in names]
    values = [value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…" for value in values]
    return [run["name"], run["state"], step + total, console.format_number(run["best_score"]), best, *values]


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted name, or the whole name where that says too little."""
    last = [name.rpartition(".")[2] for name in names]
    return {
        name: part if last.count(part) == 1 and part not in _COLUMNS and not part.isdecimal() else name
        for name, part in zip(names, last, strict=True)
    }
