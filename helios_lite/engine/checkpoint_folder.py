"""The checkpoints of a run folder: the lock, the manifest, which files are kept, and which one is loaded."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from helios_lite.engine.manifest import Entry, Manifest
from helios_lite.runtime import checkpoint_files as files
from helios_lite.runtime.snapshot import CpuSnapshot

logger = logging.getLogger("helios_lite")

_locked_here: set[Path] = set()  # The operating system's locks exclude other processes only.
_guard = threading.Lock()  # Of `_locked_here`, for runs in threads.
_HALF_WRITTEN = re.compile(r"\..+\.\d+\.tmp")


class CheckpointFolder:
    """The checkpoints of one model in one folder, and which of them are kept.

    `manifest.json` beside them lists the files that runs in this folder wrote, with scores. Only files listed there are
    ever deleted, and only after a newer one is durable. It is read at the first call that needs it, on rank 0.

    Args:
        folder: made by `locked` if missing.
        save_name: the model's name; files of other models are left alone.
        mode: "min" or "max": which scores are better.
        keep_last: number of newest files kept, at least one; -1: all.
        keep_best: number of best files kept; -1: all that have a score or an improvement.
        background: write in a thread, from a snapshot, while training continues.
    """

    def __init__(
        self, folder: Path, save_name: str, *, mode: str, keep_last: int, keep_best: int, background: bool
    ) -> None:
        self.folder = folder
        self.save_name = save_name
        self._manifest = Manifest(folder, save_name)
        self._sign = 1 if mode == "min" else -1
        self._keep_last, self._keep_best = keep_last, keep_best
        self._background = background
        self._snapshot = CpuSnapshot()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._entries: list[Entry] = []
        self._is_open = self._is_locked = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A context that keeps other runs out of the folder; it removes half-written files, and `join`s at its end.

        The lock is the operating system's and this process's: it ends with the process, however that ends. It is
        lockf and not flock, which forked workers would inherit; they may outlive a killed parent for seconds.

        Raises:
            RuntimeError: another run holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = self.folder.resolve()
        with _guard:
            if folder in _locked_here:
                raise RuntimeError(f"{self.folder}: another run of this process is running here")
            _locked_here.add(folder)
        try:
            with _system_lock(self.folder / ".lock"):
                self._remove_half_written()
                self._is_locked = True
                try:
                    yield
                except BaseException:
                    with contextlib.suppress(Exception):  # The caller must see the error that ended the run.
                        self.join()
                    raise
                self.join()
        finally:
            self._is_locked = False
            _locked_here.discard(folder)

    def save(
        self,
        content: dict[str, Any],
        *,
        epoch: int,
        step: int,
        append_metadata: Callable[[str], str],
        score: float | None,
        improved: bool,
        protect: Path | None,
    ) -> Path:
        """Write a checkpoint, then delete the files that are neither among the newest nor among the best.

        Args:
            content: the content of the file.
            epoch: number of finished epochs.
            step: number of finished optimizer updates.
            append_metadata: as in `checkpoint_files.file_name`.
            score: the monitored value of exactly these weights, None if there is none.
            improved: whether a validation of exactly these weights was the best so far.
            protect: a file that is not deleted: the one that this run was resumed from.

        Returns:
            The path of the file. When written in the background, it is durable after `join`.

        Raises:
            TypeError, OSError: as `checkpoint_files.write_file`, also for the previous write in the background.
        """
        self.join()
        self._open()
        name = files.file_name(self.save_name, epoch, step, append_metadata)
        content = files.to_serializable(content)
        before = [entry for entry in self._entries if entry["file"] != name]
        before.append({"file": name, "epoch": epoch, "step": step, "score": score, "improved": improved})
        self._entries = before
        kept = before if self._keep_last < 0 else before[-max(1, self._keep_last) :]
        kept = kept + self._ranked()[: None if self._keep_best < 0 else self._keep_best]
        is_here = protect is not None and protect.parent.resolve() == self.folder.resolve()
        safe = self._manifest.found - {name} | ({protect.name} if protect is not None and is_here else set())
        self._entries = [entry for entry in before if entry in kept or entry["file"] in safe]
        if self._background:
            self._thread = threading.Thread(
                target=self._write_and_keep_error, args=(self._snapshot.copy(content), name, before, self._entries)
            )
            self._thread.start()
        else:
            self._write(content, name, before, self._entries)
        return self.folder / name

    def join(self) -> None:
        """Wait for the write in the background, and raise its error, if any."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def would_be_kept(self, score: float | None, improved: bool) -> bool:
        """Return whether a checkpoint with that score would be kept as one of the best."""
        self._open()
        if self._keep_best == 0 or (score is None and not improved):
            return False
        if self._keep_best < 0 or improved:
            return True
        rank = self._rank({"score": score})
        better = [entry for entry in self._ranked() if entry is self._last_improved() or self._rank(entry) <= rank]
        return len(better) < self._keep_best

    def forget_scores(self) -> None:
        """Forget all scores and improvements, because another metric is monitored from now on."""
        self._open()
        self._entries = [{**entry, "score": None, "improved": False} for entry in self._entries]

    def newest(self) -> Path | None:
        """Return the newest file, None if there is none."""
        return next(iter(files.find(self.folder, self.save_name)), None)

    def newer_than(self, path: Path) -> list[Path]:
        """Return the files that are newer than one of them, newest first."""
        return list(itertools.takewhile(lambda each: each != path, files.find(self.folder, self.save_name)))

    def move(self, paths: list[Path], target: Path) -> None:
        """Move files to another folder, which is made if missing. They belong to this run no more."""
        self._open()
        target.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.rename(target / path.name)
        moved = {path.name for path in paths}
        self._entries = [entry for entry in self._entries if entry["file"] not in moved]

    def newest_header(self) -> dict[str, Any] | None:
        """Return the content of the newest readable file, whose tensors are not read; None if there is none.

        Raises:
            NewerFormatError: as `load`.
        """
        for path in files.find(self.folder, self.save_name):
            try:
                content = files.read_header(path)
            except files.NewerFormatError:
                raise
            except (files.CheckpointError, FileNotFoundError):
                continue
            if self._is_named_by_content(path, content):
                return content
        return None

    def best(self, step: int | None = None) -> Path | None:
        """Return the best file, None if there is none, or it was not kept. No tensors are read.

        Args:
            step: the step of the best validation, `TrainingState.best_step`; if None, the scores decide.
        """
        if step is not None:
            paths = files.find(self.folder, self.save_name)
            return next((path for path in paths if self._counters(path)[0] == step and self._is_readable(path)), None)
        self._open()
        ranked = self._ranked()
        return self.folder / ranked[0]["file"] if ranked else None

    def load(self, choice: str, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
        """Read the "best" or the "last" checkpoint; return None if there is none.

        A file that cannot be read is passed over with a warning that names it: the best file for the newest, and the
        newest for the next older one. A file that was renamed, so that its name has other counters than its content,
        is read only if there is no other.

        Raises:
            NewerFormatError: a file that would be read has a newer format. It is not passed over: a training would
                begin anew, or go back to an older file, and later write over it.
            ValueError: the file belongs to a model with another name that gives the same file names.
        """
        self._open()
        best = self._best_by_newest() if choice == "best" else None
        renamed = []
        for path in ([] if best is None else [best]) + files.find(self.folder, self.save_name):
            try:
                content = files.read_file(path, device)
            except files.NewerFormatError:
                raise
            except (files.CheckpointError, FileNotFoundError) as error:
                logger.warning("passing over a checkpoint: %s", error)
                continue
            self._check_owner(path, content)
            if self._is_named_by_content(path, content):
                return path, content
            logger.warning("passing over a checkpoint: %s: its name has other counters than its content", path)
            renamed.append(path)
        return (renamed[0], files.read_file(renamed[0], device)) if renamed else None

    def _open(self) -> None:
        """Read the manifest, once; when the folder is locked, also put it in order."""
        if self._is_open:
            return
        self._is_open = True
        self._manifest.read()
        self._entries = self._manifest.own
        if self._is_locked:
            self._manifest.tidy()

    def _best_by_newest(self) -> Path | None:
        """Return the file that the newest readable file names as the best, None if it was not kept."""
        newest = self.newest_header()
        if newest is None:
            return None
        state = newest.get("state")
        return self.best(state.get("best_step") if isinstance(state, dict) else None)

    def _is_readable(self, path: Path) -> bool:
        try:
            if self._is_named_by_content(path, files.read_header(path)):
                return True
            reason = f"{path}: its name has other counters than its content"
        except (files.CheckpointError, FileNotFoundError) as error:
            reason = str(error)
        logger.warning("not the best checkpoint any more: %s", reason)
        return False

    def _counters(self, path: Path) -> tuple[int, int]:
        return files.counters(path.name, self.save_name) or (0, 0)

    def _is_named_by_content(self, path: Path, content: dict[str, Any]) -> bool:
        state = content.get("state")
        return not isinstance(state, dict) or self._counters(path) == (state.get("step"), state.get("epoch"))

    def _check_owner(self, path: Path, content: dict[str, Any]) -> None:
        owner = content.get("save_name", self.save_name)
        if owner != self.save_name:
            raise ValueError(
                f"{path}: belongs to a model with save_name={owner!r}, whose files have the same names as those of "
                f"save_name={self.save_name!r}; choose another run_name or save_name"
            )

    def _remove_half_written(self) -> None:
        for path in self.folder.glob(".*.tmp"):
            if _HALF_WRITTEN.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)

    def _write(self, content: dict[str, Any], name: str, before: list[Entry], after: list[Entry]) -> None:
        # The manifest lists the file before it exists: a run that is killed in between must not leave a file behind
        # that no later run deletes.
        self._manifest.found.discard(name)  # From now on it is a file that this run wrote.
        self._manifest.write(before)
        try:
            files.write_file(content, self.folder / name)
        except BaseException:
            self._entries = [entry for entry in before if (self.folder / entry["file"]).exists()]
            raise
        for entry in before:
            if entry not in after:
                (self.folder / entry["file"]).unlink(missing_ok=True)
        self._manifest.write(after)

    def _write_and_keep_error(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:
            self._error = error

    def _ranked(self) -> list[Entry]:
        """Return the entries that were validated: the last improvement, then the others by score, ties by step."""
        validated = [entry for entry in self._entries if entry["improved"] or entry["score"] is not None]
        validated.sort(key=lambda entry: (self._rank(entry), entry["step"]))
        last = self._last_improved()
        return validated if last is None else [last, *(entry for entry in validated if entry is not last)]

    def _last_improved(self) -> Entry | None:
        return max(
            (entry for entry in self._entries if entry["improved"]), key=lambda entry: entry["step"], default=None
        )

    def _rank(self, entry: Entry) -> float:
        return math.inf if entry["score"] is None else self._sign * entry["score"]


@contextlib.contextmanager
def _system_lock(path: Path) -> Iterator[None]:
    """Context in which this process holds the lock of a file, which has the id of the process in it.

    Raises:
        RuntimeError: another process holds the lock, or the file is a link, whose target is not written to.
        OSError: the file cannot be opened; the message names it.
    """
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RuntimeError(f"{path}: is a symbolic link, and a lock must be a file; remove it") from None
        raise
    with open(number, "r+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = file.read(20).decode(errors="replace").strip()
            raise RuntimeError(f"{path.parent}: process {holder} is running here") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        yield
