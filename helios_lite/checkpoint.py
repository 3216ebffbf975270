"""Checkpoint files: their names, their safe writing and reading, and which of them stay.

A file is `<save_name>_epoch_<E>_iter_<S><metadata>.pth`, with the epochs and optimizer updates finished. It holds
tensors and plain containers only, so that any program can read it with `torch.load(path, weights_only=True)`.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import fcntl
import json
import logging
import math
import os
import re
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

logger = logging.getLogger("helios_lite")

FORMAT = 1
"""The number of this layout of a checkpoint's content; a file with a higher one is refused."""

_MARKER = r"_epoch_(\d+)_iter_(\d+)"
_PLAIN = {type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device}
_TENSORS = {torch.Tensor, torch.nn.Parameter}
# What torch.load(weights_only=True) restores as the type it was; schedulers count milestones in a Counter.
_MAPPINGS = {dict, collections.OrderedDict, collections.Counter}


class CheckpointError(RuntimeError):
    """A file that is no checkpoint this version can read; the message names it and says why."""


def file_name(save_name: str, epoch: int, step: int, append_metadata: Callable[[str], str]) -> str:
    """Return the name of a checkpoint file.

    Args:
        save_name: the model's name; characters that file systems treat specially are replaced.
        epoch: epochs finished.
        step: optimizer updates finished.
        append_metadata: gets the name without extension and returns it with something appended
            (`Model.append_metadata_to_chkpt_name`).

    Raises:
        ValueError: the metadata was not appended.
    """
    stem = f"{_flat(save_name)}_epoch_{epoch}_iter_{step}"
    named = append_metadata(stem)
    if not isinstance(named, str) or not named.startswith(stem):
        raise ValueError(f"append_metadata_to_chkpt_name({stem!r}) returned {named!r}: it may only append")
    # A marker inside the metadata would read as another file's counters; 255 bytes is what file systems allow.
    metadata = re.sub(_MARKER, r"-epoch-\1-iter-\2", _flat(named[len(stem) :]))
    if metadata[:1].isdigit():  # It would read as more digits of the step.
        metadata = f"-{metadata}"
    return f"{stem}{metadata[: max(0, 250 - len(stem))]}.pth"


def find(folder: Path, save_name: str) -> list[Path]:
    """Return the checkpoint files of a model in a folder, newest first: by (step, epoch) in their names."""
    pattern = re.compile(re.escape(_flat(save_name)) + _MARKER + rf"(?:(?!{_MARKER}).)*\.pth")
    found = []
    for path in folder.glob("*.pth"):
        if match := pattern.fullmatch(path.name):
            found.append((int(match[2]), int(match[1]), path))
    return [path for *_, path in sorted(found, reverse=True)]


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that at any moment there is either the whole file or none of that name.

    Raises:
        TypeError: something in it is neither a tensor nor plain; the message tells where it is.
        OSError: the disk is full, or the folder cannot be written; no partial file stays.
    """
    content = plain(content)
    try:
        _replace(path, lambda file: torch.save(content, file))
    except RuntimeError as error:
        # torch fails to close its archive after a failed write, which hides what happened first.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing but tensors and plain containers is ever unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, unsafe, foreign or of a newer format.
    """
    try:
        # torch.load does not compare the checksums of tensors: a flipped bit would load as another weight.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # torch raises many types for damaged files; for unsafe ones it explains how to load them, which we will not.
        reason = "it is damaged, or holds more than tensors and plain containers"
        raise CheckpointError(f"{path}: {reason} ({type(error).__name__})") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointError(f"{path}: it is no helios_lite checkpoint")
    if content["format"] > FORMAT:
        writer = f"helios_lite {content.get('version', 'of a later version')}"
        raise CheckpointError(f"{path}: {writer} wrote it in format {content['format']}; this one reads up to {FORMAT}")
    return content


def write_json(content: Any, path: Path) -> None:
    """Write plain data as json, with the same safety as a checkpoint; other objects are written as their str."""
    _replace(path, lambda file: file.write((json.dumps(content, indent=2, default=str) + "\n").encode()))


def plain(value: Any, where: str = "checkpoint") -> Any:
    """Return a value in fresh containers, with numpy's numbers as Python's, and the same tensors.

    Raises:
        TypeError: something in it is what `weights_only=True` does not load; the message tells where.
    """
    kind = type(value)
    if kind in _MAPPINGS:
        twin = copy.copy(value)  # Of an OrderedDict it keeps the versions of modules, which hang on it as an attribute.
        twin.clear()
        for key, item in value.items():
            twin[plain(key, where)] = plain(item, f"{where}[{key!r}]")
        if kind is not dict:
            plain(dict(vars(value)), f"vars({where})")
        return twin
    if kind in (list, tuple, set):
        return kind(plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind in _TENSORS:
        plain(dict(vars(value)), f"vars({where})")
        return value
    if kind in _PLAIN:
        return value
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        return plain(value.item(), where)
    name = f"{kind.__module__}.{kind.__qualname__}"
    raise TypeError(f"{where} is a {name}: a checkpoint holds tensors and plain containers only")


class Snapshots:
    """Copies of states in CPU memory, which later changes do not reach; tensors that were one stay one.

    The memory of one copy serves for the next, which spares the operating system's work for fresh pages.
    """

    def __init__(self) -> None:
        self._memory: list[torch.Tensor] = []

    def take(self, value: Any) -> Any:
        """Return a copy; the one before must no longer be in use."""
        memory, self._memory = self._memory, []
        return self._copy(value, {}, iter(memory))

    def _copy(self, value: Any, copies: dict[Any, torch.Tensor], memory: Iterator[torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.numel() == 0:
                return value.detach().to("cpu", copy=True)
            key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if key not in copies:
                old, form = next(memory, None), (value.dtype, value.shape, value.stride())
                if old is not None and (old.dtype, old.shape, old.stride()) == form:
                    copies[key] = old.copy_(value.detach())
                else:
                    copies[key] = value.detach().to("cpu", copy=True)
                self._memory.append(copies[key])
            return copies[key]
        if isinstance(value, dict):
            twin = copy.copy(value)
            for name, item in value.items():
                twin[name] = self._copy(item, copies, memory)
            return twin
        if type(value) in (list, tuple, set):
            return type(value)([self._copy(item, copies, memory) for item in value])
        return value


_opened_here: set[Path] = set()  # The operating system's locks are between processes only.


class Checkpoints:
    """The checkpoints of one model in one folder, and which of them stay.

    `manifest.json` beside them lists what runs in this folder wrote, with scores. Only files listed there are ever
    deleted, and only after a newer one is durable.

    Args:
        folder: made by `opened`, if missing.
        save_name: the model's name; files of other models are left alone.
        mode: "min" or "max": which scores are better.
        keep_last: how many of the newest stay, the newest in any case; -1: all.
        keep_best: how many of the best stay; -1: all that were judged.
        background: write in a thread, from a snapshot, while training goes on.
    """

    def __init__(
        self, folder: Path, save_name: str, *, mode: str, keep_last: int, keep_best: int, background: bool
    ) -> None:
        self.folder = folder
        self.save_name = save_name
        self._manifest = folder / "manifest.json"
        self._sign = 1 if mode == "min" else -1
        self._keep_last, self._keep_best = keep_last, keep_best
        self._background = background
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._entries: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            entries = json.loads(self._manifest.read_text())["checkpoints"]
            names = ("file", "epoch", "step", "score", "improved")
            self._entries = [{name: entry[name] for name in names} for entry in entries]
        mine = {path.name for path in find(folder, save_name)}
        self._of_others = [entry for entry in self._entries if entry["file"] not in mine]
        self._entries = [entry for entry in self._entries if entry["file"] in mine]

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep other runs out of the folder, clear away what a killed one left half-written, and `join` at the end.

        The lock is the operating system's and this process's: it ends with the process, however that ends. (lockf,
        not flock: forked loading processes, which outlive a killed parent for seconds, would inherit the latter.)

        Raises:
            RuntimeError: another run holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = self.folder.resolve()
        if folder in _opened_here:
            raise RuntimeError(f"{self.folder}: another run of this process is running here")
        with (self.folder / ".lock").open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise RuntimeError(f"{self.folder}: process {file.read().strip()} is running here") from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            for path in self.folder.glob(".*.tmp"):
                path.unlink()
            _opened_here.add(folder)
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # What ended the run is what its caller must see.
                    self.join()
                raise
            finally:
                _opened_here.discard(folder)
            self.join()

    def save(
        self,
        content: dict[str, Any],
        *,
        epoch: int,
        step: int,
        append_metadata: Callable[[str], str],
        score: float | None,
        improved: bool,
        spare: Path | None,
    ) -> Path:
        """Write a checkpoint, then delete what is neither among the newest nor among the best.

        Args:
            content: what the file holds.
            epoch: epochs finished.
            step: optimizer updates finished.
            append_metadata: as in `file_name`.
            score: the monitored value of this very state, None if there is none.
            improved: whether a validation of this state called it the best so far.
            spare: a file that stays: the one this run was resumed from.

        Returns:
            The file; in the background mode it is durable after `join`.

        Raises:
            TypeError, OSError: as `save`, and what the previous one met in the background.
        """
        self.join()
        name = file_name(self.save_name, epoch, step, append_metadata)
        content = plain(content)
        before = [entry for entry in self._entries if entry["file"] != name]
        before.append({"file": name, "epoch": epoch, "step": step, "score": score, "improved": improved})
        self._entries = before
        kept = before if self._keep_last < 0 else before[-max(1, self._keep_last) :]
        kept = kept + self._ranked()[: None if self._keep_best < 0 else self._keep_best]
        spared = None if spare is None or spare.parent.resolve() != self.folder.resolve() else spare.name
        self._entries = [entry for entry in before if entry in kept or entry["file"] == spared]
        if self._background:
            self._thread = threading.Thread(
                target=self._write_and_keep_error, args=(self._snapshots.take(content), name, before, self._entries)
            )
            self._thread.start()
        else:
            self._write(content, name, before, self._entries)
        return self.folder / name

    def join(self) -> None:
        """Wait for what is being written in the background, and raise what it met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(
        self, content: dict[str, Any], name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]
    ) -> None:
        # Listed before it exists: a run that is killed in between must not leave a file that nobody ever deletes.
        write_json({"checkpoints": self._of_others + before}, self._manifest)
        try:
            save(content, self.folder / name)
        except BaseException:
            self._entries = [entry for entry in before if (self.folder / entry["file"]).exists()]
            raise
        for entry in before:
            if entry not in after:
                (self.folder / entry["file"]).unlink(missing_ok=True)
        write_json({"checkpoints": self._of_others + after}, self._manifest)

    def _write_and_keep_error(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:
            self._error = error

    def would_be_kept(self, score: float | None, improved: bool) -> bool:
        """Say whether a checkpoint of that score would stay as one of the best."""
        if self._keep_best == 0 or (score is None and not improved):
            return False
        if self._keep_best < 0 or improved:
            return True
        rank = self._rank({"score": score})
        before = [entry for entry in self._ranked() if entry is self._last_improved() or self._rank(entry) <= rank]
        return len(before) < self._keep_best

    def forget_scores(self) -> None:
        """Take all verdicts back: from now on something else is monitored."""
        for entry in self._entries:
            entry["score"], entry["improved"] = None, False

    def newest(self) -> Path | None:
        """Return the newest file; None if there is none."""
        return next(iter(find(self.folder, self.save_name)), None)

    def best(self) -> Path | None:
        """Return the best file; None if none was judged."""
        ranked = self._ranked()
        return self.folder / ranked[0]["file"] if ranked else None

    def load(self, choice: str, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
        """Read the "best" checkpoint or the "last"; None if there is none.

        A file that cannot be read is passed over with a warning that names it: the best one for the newest, and
        that for the next older one.
        """
        best = [path for path in (self.best(),) if choice == "best" and path is not None]
        for path in best + find(self.folder, self.save_name):
            try:
                return path, load(path, device)
            except (CheckpointError, FileNotFoundError) as error:
                logger.warning("passing over a checkpoint: %s", error)
        return None

    def _ranked(self) -> list[dict[str, Any]]:
        """Return the judged entries: the last improvement, then the others by their scores, the earlier first."""
        judged = [entry for entry in self._entries if entry["improved"] or entry["score"] is not None]
        judged.sort(key=lambda entry: (self._rank(entry), entry["step"]))
        last = self._last_improved()
        return judged if last is None else [last, *(entry for entry in judged if entry is not last)]

    def _last_improved(self) -> dict[str, Any] | None:
        return max(
            (entry for entry in self._entries if entry["improved"]), key=lambda entry: entry["step"], default=None
        )

    def _rank(self, entry: dict[str, Any]) -> float:
        return math.inf if entry["score"] is None else self._sign * entry["score"]


def _flat(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", text)


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside `path`, make it durable, and only then give it its name."""
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with _opened(path.parent) as folder:
        os.fsync(folder)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
