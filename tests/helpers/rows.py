"""What a run has measured, and what it says of itself."""

import json
from pathlib import Path
from typing import Any


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, in their order in the file."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_status(run: Path) -> dict[str, Any]:
    """The content of status.json."""
    content: dict[str, Any] = json.loads((run / "status.json").read_text())
    return content
