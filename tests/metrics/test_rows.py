"""The file of rows, opened by a run that goes on: what stays, and what is read for it."""

import json
import logging
from pathlib import Path

import pytest

from helios_lite.metrics.rows import JsonlLogger, append_evaluation


def write(path: Path, steps: int) -> JsonlLogger:
    rows = JsonlLogger(path, rows=0)
    for step in range(1, steps + 1):
        rows.log_metrics({"train/loss": 1 / step}, step)
    return rows


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_bytes().splitlines() if line.startswith(b"{")]


def test_only_what_follows_the_last_row_of_a_checkpoint_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes before it may be anything: here it is no row any more, which nobody notices."""
    path = tmp_path / "metrics.jsonl"
    rows = write(path, 5)
    place = rows.place
    for step in (6, 7):
        rows.log_metrics({}, step)
    rows.close()
    append_evaluation(path, {}, 5, kind="test", checkpoint="x.pth", limit=None)
    append_evaluation(path, {}, 7, kind="test", checkpoint="y.pth", limit=None)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'{"step": 1,', b'["step": 1,'))
    rows = JsonlLogger(path, rows=5, step=5, place=place)
    assert (rows.rows, rows.place, rows.has_cut) == (5, place, True)
    rows.log_metrics({}, 6)
    rows.close()
    assert steps_of(path) == [2, 3, 4, 5, 5, 6]
    assert caplog.text == ""


@pytest.mark.parametrize("damage", ["shorter", "fewer", "other rows", "another place"])
def test_a_file_without_that_row_is_read_from_its_start(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = write(path, 5)
    place = rows.place
    rows.close()
    lines = path.read_bytes().splitlines(keepends=True)
    longer = [line.replace(b"{", b"{" + b" " * len(line)) for line in lines[:3]]  # As long as the five together.
    left = {"shorter": lines[:3], "fewer": longer, "other rows": lines[1:] + lines[:1]}
    path.write_bytes(b"".join(left.get(damage, lines)))
    assert place is not None
    place = place._replace(checksum=1) if damage == "another place" else place
    with caplog.at_level(logging.WARNING):
        rows = JsonlLogger(path, rows=5, step=5, place=place)
    rows.close()
    assert rows.rows == (3 if damage in ("shorter", "fewer") else 5)
    assert ("expected 5 rows" in caplog.text) is (damage in ("shorter", "fewer"))


def test_an_evaluation_is_appended_after_the_last_finished_line_however_long_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for content in (b"", b"unfinished", b'{"step": 1}\n' + b"x" * 3_000_000):
        path.write_bytes(content)
        append_evaluation(path, {}, 2, kind="test", checkpoint=None, limit=None)
        assert steps_of(path) == ([1, 2] if b"step" in content else [2])
