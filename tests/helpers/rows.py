"""What a run has measured."""

import json
from pathlib import Path
from typing import Any


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, in their order in the file."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
