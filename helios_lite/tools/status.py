"""The command `status`: what runs are doing, or how they have ended."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helios_lite.display import console
from helios_lite.display.lines import duration
from helios_lite.tools.run_files import run_folders
from helios_lite.tools.usage import UsageError
from helios_lite.training.status_file import STATUS_FILE, has_ended, is_left_behind, read_status


def status(arguments: argparse.Namespace) -> None:
    """Show the status of runs. Exits with status 1 if one has failed, or its process is gone without a word."""
    found = [_status(run) for path in arguments.runs for run in run_folders(path, STATUS_FILE)]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        headers = ["run", "state", ">step", ">epoch", ">left", "why", ">exit status", "written"]
        console.show_table(console.make_table(headers, map(_cells, found)))
    if any(each["state"] == "failed" or each["is_dead"] for each in found):
        sys.exit(1)


def _status(run: Path) -> dict[str, Any]:
    """Return the status of a run, with its folder, and whether the process that wrote it is dead (None: unknown)."""
    content = read_status(run)
    if content is None:
        raise UsageError(f"{run / STATUS_FILE}: cannot be read, or is none of this version")
    return {"run": str(run), **content, "is_dead": is_left_behind(content)}


def _cells(found: Mapping[str, Any]) -> list[str]:
    state = str(found["state"])
    if found["is_dead"]:
        state = f"dead while {state}"
    elif found["is_dead"] is None:
        state = f"{state} on {found.get('host')}?"
    left = None if has_ended(found) or found["is_dead"] else found.get("seconds_left")
    return [
        str(found["run"]),
        state,
        _count(found.get("step"), found.get("total_steps")),
        _count(found.get("epoch"), found.get("max_epochs")),
        duration(left) if isinstance(left, int | float) else "",
        _shortened(found.get("reason")),
        "" if found.get("exit_status") is None else str(found["exit_status"]),
        _age(found.get("updated")),
    ]


def _count(number: Any, limit: Any) -> str:
    return "" if number is None else f"{number}" if limit is None else f"{number}/{limit}"


def _age(updated: Any) -> str:
    """Return how long ago a status was written; the clock of another machine may be ahead."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(updated)).total_seconds()
    except (TypeError, ValueError):
        return ""
    return f"{duration(max(0.0, seconds))} ago"


def _shortened(reason: Any) -> str:
    text = "" if reason is None else str(reason)
    return text if len(text) <= 60 else f"{text[:59]}…"
