"""The file metrics.jsonl of a run folder: one row of metrics a line."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self

from helios_lite.file_errors import follow_no_link, naming

logger = logging.getLogger("helios_lite")

DIGESTS = ("samples_digest", "batch_digest", "weights_digest")
"""What names in a row what has made it, in the order of cause and effect; see `digests`."""
HIGHEST_LOSS = "highest_loss"
"""The largest of the values of "train/loss" of which a row has the mean."""
ROW_COLUMNS = ("step", "kind", "epoch", "seconds", "checkpoint", "limit", HIGHEST_LOSS, *DIGESTS)
"""What the rows of metrics.jsonl have beside the metrics."""
_BLOCK = 1 << 20


class Place(NamedTuple):
    """Where a row is in the file, and its checksum.

    Attributes:
        end: the number of bytes up to its end.
        size: its number of bytes.
        checksum: its CRC-32.
    """

    end: int
    size: int
    checksum: int

    @classmethod
    def of(cls, line: bytes, end: int) -> Self:
        """Return the place of a row that ends there."""
        return cls(end, len(line), zlib.crc32(line))

    def is_in(self, file: BinaryIO) -> bool:
        """Return whether that row is there in a file."""
        if self.end < self.size or file.seek(0, os.SEEK_END) < self.end:
            return False
        file.seek(self.end - self.size)
        return zlib.crc32(file.read(self.size)) == self.checksum


class JsonlLogger:
    """One json object a line: `{"step": 50, "epoch": 1, "seconds": 0.8, "train/loss": 0.31}`.

    Every row is flushed, so a killed run keeps all of its rows. A value that is NaN or infinite is written as
    null, because json knows neither.

    Rows of other kinds have a key "kind". One of kind "end" has what was logged after the last regular row of a
    training, whose checkpoint holds these values too: if the training goes on, the row goes, and the next row has them.
    Rows of the kinds "validate" and "test" are those of `append_evaluation`. They stay, except those of later steps
    than the one from which the training goes on.

    Attributes:
        rows: how many rows the file has, without those of other kinds.
        place: where the last of them is.
        end: the values of the rows of kind "end" that have stayed, None if there is none.
        has_cut: whether rows of a training have been removed, which come again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rows: int | None = None,
        step: int | None = None,
        *,
        keep_end: bool = False,
        place: Sequence[int] | None = None,
    ) -> None:
        """Open the file and leave in it the rows up to a checkpoint, if their number is given.

        Otherwise it is opened when there is something to write, and a training leaves the rows up to its start in it.

        Args:
            path: the file, made if missing.
            rows: how many rows of an existing file stay, besides those of other kinds. What follows was written after
                the checkpoint that a run resumes from, and will be written again. If the file has more or fewer rows,
                or lines that are no rows, a warning says so, and the file as it was is copied to `<path>.damaged`.
            step: the step of that checkpoint; rows of later steps do not stay either. None: any step.
            keep_end: whether a row of kind "end" stays, because the training does not go on.
            place: the `place` of the last row that stays, if it is known. If that row is still there, only what follows
                it is read, so that the time does not depend on the number of rows.

        Raises:
            OSError: the file cannot be opened or written; the message names it.
        """
        self.path = Path(path)
        self.rows = 0
        self.place: Place | None = None
        self.end: dict[str, float] | None = None
        self.has_cut = False
        self._file: BinaryIO | None = None
        self._has_failed = False
        if rows is not None:
            self._open(rows, step, keep_end, None if place is None else Place(*place))

    def _open(self, rows: int | None, step: int | None, keep_end: bool, place: Place | None = None) -> BinaryIO:
        """Open the file, cut it, and return it; `rows` is None for as many as it has."""
        self.close()
        self._file = _opened(self.path)
        # Up to the place of the last row that stays nothing changes, and there are so many rows.
        start, before = (0, 0) if not rows or place is None or not place.is_in(self._file) else (place.end, rows)
        self.place = place if start > 0 else None
        self._file.seek(start)
        lines = self._file.readlines()
        kinds = [_kind_of_row(line, math.inf if step is None else step) for line in lines]
        rows = kinds.count("train") if rows is None else rows
        self.rows = min(rows, before + kinds.count("train"))
        self.has_cut = before + kinds.count("train") > rows or "later" in kinds
        kept, num_trained, end = [], before, start
        for line, kind in zip(lines, kinds, strict=True):
            num_trained += kind == "train"
            if (kind == "train" and num_trained <= rows) or kind == "evaluation" or (kind == "end" and keep_end):
                kept.append(line)
                end += len(line)
                if kind == "end":
                    self.end = {**(self.end or {}), **_values(line)}
                elif kind == "train":
                    self.place = Place.of(line, end)
        num_found = self.rows if step is None else num_trained
        missing = rows - before
        found = [kind for kind in kinds if kind not in ("evaluation", "end")][:missing]
        is_expected = rows == 0 or (found == ["train"] * missing and num_found == rows)
        if kept == lines[: len(kept)] and (is_expected or not lines):
            # Cut in place: a kill at this moment must not lose the rows that stay. An unfinished line is no row.
            self._file.truncate(end)
        else:
            self._file = self._replaced(self._file, start, kept, is_damaged=not is_expected)
        if not is_expected:
            text = "%s: expected %d rows up to step %s and found %d, with %d lines that are no rows; %d rows stay"
            count = (rows, "?" if step is None else step, num_found, kinds.count(None), self.rows)
            logger.warning(text, self.path, *count)
        return self._file

    def rewind(self, step: int) -> None:
        """Remove the rows after a step, because those steps are done again; all, set aside, if a training begins."""
        if step == 0:
            self.branch(step)
        else:
            self._open(None, step, keep_end=False)

    def branch(self, step: int) -> None:
        """Remove the rows after a step, after copying the file to `<path>.set_aside_1` (2, 3, ...) if it has some."""
        before = self.path.read_bytes() if self.path.exists() else b""
        self._open(None, step, keep_end=False)
        if self.path.stat().st_size < len(before):
            found = (self.path.with_name(f"{self.path.name}.set_aside_{i}") for i in itertools.count(1))
            _write(before, next(path for path in found if not os.path.lexists(path)))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing: `config.json` in the run folder holds it."""

    def log_metrics(self, metrics: Mapping[str, float | str], step: int) -> None:
        """Append one row."""
        line = _line(metrics, step)
        self.place = Place.of(line, self._append(line))
        self.rows += 1

    def log_end(self, metrics: Mapping[str, float | str], step: int) -> None:
        """Append the row of kind "end"."""
        self._append(_line(metrics, step, kind="end"))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError) if self._has_failed else contextlib.nullcontext():
                self._file.close()
            self._file = None

    def _append(self, line: bytes) -> int:
        """Append a line, and return where it ends."""
        file = self._open(None, None, keep_end=True) if self._file is None else self._file
        self._has_failed = True
        with naming(self.path):
            file.write(line)
            file.flush()
        self._has_failed = False
        return file.tell()

    def _replaced(self, file: BinaryIO, start: int, lines: list[bytes], *, is_damaged: bool) -> BinaryIO:
        """Write the lines to a new file that takes the place of the file; a copy of a damaged one stays beside it.

        Before them comes what the file has up to `start`.
        """
        path = self.path
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with naming(path):
            if is_damaged:
                _write(path.read_bytes(), path.with_name(f"{path.name}.damaged"))
            with open(temporary, "wb", opener=follow_no_link) as new:
                file.seek(0)
                for _ in range(start // _BLOCK):
                    new.write(file.read(_BLOCK))
                new.write(file.read(start % _BLOCK))
                new.writelines(lines)
            temporary.replace(path)
        file.close()
        return _opened(path)


def append_evaluation(
    path: Path,
    metrics: Mapping[str, float],
    step: int,
    *,
    kind: str,
    checkpoint: str | None,
    limit: int | float | None,
) -> None:
    """Append the row of a call of `validate` or `test` to a file of metrics. No training may be writing to it.

    Args:
        path: the file, made if missing.
        metrics: the values by full name.
        step: the step of the evaluated checkpoint.
        kind: "validate" or "test".
        checkpoint: the name of the evaluated file, None if no file was.
        limit: the number or part of the batches that were evaluated, None for all, of which the row says nothing.

    Raises:
        OSError: the file cannot be written.
    """
    with naming(path), _opened(path) as file:
        # A kill may have left an unfinished line, which is no row; the new row must not become a part of it.
        file.truncate(_end_of_last_line(file))
        limited = {} if limit is None else {"limit": limit}
        file.write(_line(metrics, step, kind=kind, checkpoint=checkpoint, **limited))


def read_rows(path: Path, *, with_evaluations: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a training in a file of metrics, without lines that are no rows.

    Args:
        path: the file, which need not exist.
        with_evaluations: whether to return those of `validate` and `test` too.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        is_row = isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**63
        if is_row and (with_evaluations or row.get("kind", "end") == "end"):
            rows.append(row)
    return rows


def _end_of_last_line(file: BinaryIO) -> int:
    """Return where the last finished line of a file ends; it is read from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _opened(path: Path) -> BinaryIO:
    """Open a file to read and append; a symbolic link is an OSError."""
    return open(path, "a+b", opener=follow_no_link)


def _write(content: bytes, path: Path) -> None:
    with open(path, "wb", opener=follow_no_link) as file:
        file.write(content)


def _line(metrics: Mapping[str, float | str], step: int, **extra: str | float | None) -> bytes:
    row = {name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in metrics.items()}
    return (json.dumps({"step": step, **extra, **row}) + "\n").encode()


def _values(line: bytes) -> dict[str, float]:
    """Return the metrics in a row; null, which may have been infinite, is NaN."""
    row = json.loads(line)
    return {name: math.nan if row[name] is None else row[name] for name in row if name not in ROW_COLUMNS}


def _kind_of_row(line: bytes, latest_step: float) -> Literal["train", "evaluation", "end", "later"] | None:
    """Return the kind of a line of metrics.jsonl; None if it is no row, such as the unfinished one of a kill."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
        step = row["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(step) is not int:
        return None
    if step > latest_step:
        return "later"
    kind = row.get("kind", "train")
    return kind if kind in ("train", "end") else "evaluation"
