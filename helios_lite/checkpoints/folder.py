"""The checkpoints of a run folder: which are written and kept, and which one a choice or a path names."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.lock import folder_lock
from helios_lite.checkpoints.manifest import Entry, Manifest
from helios_lite.checkpoints.reading import read_checkpoint_header
from helios_lite.checkpoints.sharded_content import take_sharded
from helios_lite.checkpoints.snapshot import CpuSnapshot
from helios_lite.file_errors import naming as naming_file
from helios_lite.processes.world import World

if TYPE_CHECKING:
    from helios_lite.checkpoints.sharded import Places, ShardWriter

logger = logging.getLogger("helios_lite")


class _Save(NamedTuple):
    """The next checkpoint.

    Attributes:
        path: its path.
        entries: those of the manifest while it is written, its own included.
        deleted: the files that are not kept after it.
    """

    path: Path
    entries: list[Entry]
    deleted: list[str]


class CheckpointFolder:
    """The checkpoints of one model in one folder, and which of them are kept.

    `manifest.json` beside them lists the files that runs in this folder wrote, with scores. Only files listed there are
    ever deleted, and only after a newer one is durable. One that cannot be deleted, such as a busy file, stays listed,
    and each save tries again. The manifest is read at the first call that needs it, on rank 0.

    Args:
        folder: made by `locked` if missing.
        save_name: the model's name; files of other models are left alone.
        mode: "min" or "max": which scores are better.
        keep_last: number of newest files kept, at least one; -1: all.
        keep_best: number of best files kept; -1: all that have a score or an improvement.
        background: write in a thread, from a snapshot, while training continues.
        on_saved: called when a checkpoint is durable and the manifest lists it, in the thread that writes, with its
            path and whether the validation of exactly these weights was the best so far. Its error is that of the save.
    """

    def __init__(
        self,
        folder: Path,
        save_name: str,
        *,
        mode: str,
        keep_last: int,
        keep_best: int,
        background: bool,
        on_saved: Callable[[Path, bool], None] | None = None,
    ) -> None:
        self.folder = folder
        self.save_name = save_name
        self._manifest = Manifest(folder, save_name)
        self._sign = 1 if mode == "min" else -1
        self._keep_last, self._keep_best = keep_last, keep_best
        self._background, self._on_saved = background, on_saved
        self._snapshot = CpuSnapshot(of_all=background)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._shards: ShardWriter | None = None
        self._unfinished: tuple[_Save, Path] | None = None  # The last sharded checkpoint, and where it is written.
        self._entries: list[Entry] = []
        self._undeleted: set[str] = set()  # What a warning has named.
        self._is_open = self._is_locked = False
        self._durable: tuple[Path | None, Path | None] = (None, None)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A context that keeps other runs out of the folder; it removes half-written files, and `join`s at its end.

        Raises:
            RuntimeError: another run holds the lock.
        """
        with naming_file(self.folder, when_read_only="set root to a folder that can be written to"):
            self.folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.folder):
            files.remove_half_written(self.folder)
            files.check_folder(self.folder)
            self._is_locked = True
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # The caller must see the error that ended the run.
                    self.join()
                raise
            finally:
                self._is_locked = False
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
        protect: Path | None,
        deletes: bool = True,
    ) -> Path:
        """Write a checkpoint, then delete the files that are neither among the newest nor among the best.

        Args:
            content: the content of the file.
            epoch: number of finished epochs.
            step: number of finished steps.
            append_metadata: as in `naming.file_name`.
            score: the monitored value of exactly these weights, None if there is none.
            improved: whether a validation of exactly these weights was the best so far.
            protect: a file that is not deleted: the one that this run was resumed from.
            deletes: whether any is deleted.

        Returns:
            The path of the file. When written in the background, it is durable after `join`.

        Raises:
            TypeError, OSError: as `files.write_file`, also for the previous write in the background.
        """
        self.join()
        content = files.to_serializable(content)
        plan = self._plan(False, epoch, step, append_metadata, score, improved, protect, deletes)
        content = self._snapshot.copy(content)
        if self._background:
            self._thread = threading.Thread(
                target=self._commit_and_keep_error, args=(plan, lambda: files.write_serializable(content, plan.path))
            )
            self._thread.start()
        else:
            self._commit(plan, lambda: files.write_serializable(content, plan.path))
        return plan.path

    def save_sharded(self, content: dict[str, Any], world: World, names: Mapping[str, str], **about: Any) -> Path:
        """Write a checkpoint that holds DTensors as a folder; every rank writes its part. Call on every rank.

        Args:
            content: the content; of what is not sharded, that of rank 0 is written.
            world: the ranks; all must see the same folder.
            names: as in `sharded_content.take_sharded`.
            about: the other arguments of `save`, which matter on rank 0 alone.

        Returns:
            The path of the folder. When written in the background, it is durable after `join`.

        Raises:
            TypeError, OSError: as `save`; on every rank if one of them cannot write its part.
        """
        from helios_lite.checkpoints.sharded import ShardWriter, write_main

        self.join()
        main, sharded = take_sharded(content, names)
        path, plan = self.folder, None
        if world.is_main:
            main = self._snapshot.copy(files.to_serializable(main))
            plan = self._plan(is_sharded=True, **about)
            path = plan.path
        path, temporary = world.broadcast((path, files.temporary_folder(path)))
        self._unfinished = None if plan is None else (plan, temporary)

        def publish(places: Places) -> None:
            assert plan is not None
            write_main(main, places, temporary)
            self._commit(plan, lambda: files.publish_folder(temporary, path))

        self._shards = self._shards or ShardWriter(world)
        with self._undone_on_error():
            self._shards.write(sharded, temporary, publish, background=self._background)
        return path

    def join(self) -> None:
        """Wait for the write in the background, and raise its error, if any. Call on every rank."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._shards is not None:
            with self._undone_on_error():
                self._shards.join()

    def would_be_kept(self, score: float | None, improved: bool) -> bool:
        """Return whether a checkpoint with that score would be kept as one of the best."""
        self._open()
        if self._keep_best == 0 or (score is None and not improved):
            return False
        if self._keep_best < 0 or improved:
            return True
        rank, last = self._rank({"score": score}), self._last_improved()
        better = [entry for entry in self._ranked() if entry is last or self._rank(entry) <= rank]
        return len(better) < self._keep_best

    def set_final_score(self, path: Path, score: float | None, improved: bool) -> None:
        """Note the score of the file of the end of a run, which was validated after it had been written.

        Nothing is deleted, since a run that goes on has never had that validation.

        Args:
            path: the file; without effect if it is none of this folder.
            score: the monitored value of its weights, None if there is none.
            improved: whether their validation was the best so far.
        """
        self._set(path, {"score": score, "improved": improved, "final": True})

    def forget_final_score(self, path: Path) -> None:
        """Forget what `set_final_score` has noted, because the run goes on from there."""
        self._set(path, {"score": None, "improved": False, "final": False})

    def final_decision(self, path: Path) -> bool | None:
        """Return whether the final validation of a file was noted to be the best so far, None if none was noted."""
        self._open()
        entry = next((each for each in self._entries if self.folder / each["file"] == path), {})
        return bool(entry["improved"]) if entry.get("final") is True else None

    def _set(self, path: Path, values: Entry) -> None:
        self._open()
        changed = [{**entry, **values} if self.folder / entry["file"] == path else entry for entry in self._entries]
        if changed != self._entries:
            self._entries = changed
            self._manifest.write(changed)
            self._note_durable()

    def is_best(self, path: Path) -> bool:
        """Return whether the last validation that was the best so far is that of a file."""
        self._open()
        last = self._last_improved()
        return last is not None and self.folder / last["file"] == path

    def forget_scores(self) -> None:
        """Forget all scores and improvements, because another metric is monitored from now on."""
        self._open()
        self._entries = [{**entry, "score": None, "improved": False} for entry in self._entries]

    def durable(self) -> tuple[Path | None, Path | None]:
        """Return the last file and the best one that are durable; None for one that does not exist. No file is read."""
        self._open()
        return self._durable

    def _note_durable(self) -> None:
        entries = [self._entries[-1] if self._entries else None, self._best()]
        last, best = (None if entry is None else self.folder / entry["file"] for entry in entries)
        self._durable = (last, best)

    def newest(self) -> Path | None:
        """Return the newest file, None if there is none."""
        return next(iter(naming.find(self.folder, self.save_name)), None)

    def newer_than(self, path: Path) -> list[Path]:
        """Return the files that are newer than one of them, newest first."""
        return list(itertools.takewhile(lambda each: each != path, naming.find(self.folder, self.save_name)))

    def move(self, paths: list[Path], target: Path) -> None:
        """Move files to another folder, which is made if missing. They belong to this run no more."""
        self._open()
        target.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.rename(target / path.name)
        moved = {path.name for path in paths}
        self._entries = [entry for entry in self._entries if entry["file"] not in moved]
        self._manifest.write(self._entries)

    def newest_header(self) -> dict[str, Any] | None:
        """Return the content of the newest readable file, whose tensors are not read; None if there is none.

        Raises:
            OtherFormatError: as `candidates`.
        """
        for path in naming.find(self.folder, self.save_name):
            try:
                content = read_checkpoint_header(path)
            except files.OtherFormatError:
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
            paths = naming.find(self.folder, self.save_name)
            return next((path for path in paths if self._counters(path)[0] == step and self._is_readable(path)), None)
        self._open()
        best = self._best()
        return None if best is None else self.folder / best["file"]

    def candidates(self, choice: str) -> Iterator[Path]:
        """Yield the checkpoints to read for the "best" or the "last" one, until one of them can be read.

        The best comes first if it is chosen, then the newest and older ones. A file whose header cannot be read is
        passed over with a warning that names it. One that was renamed, so that its name has other counters than its
        content, comes after all others.

        Raises:
            OtherFormatError: a file that would be read has a newer or an older format. It is not passed over: a
                training would begin anew, or go back to another file, and later write over it.
            ValueError: the file belongs to a model with another name that gives the same file names.
        """
        self._open()
        best = self._best_by_newest() if choice == "best" else None
        renamed = []
        for path in dict.fromkeys(([] if best is None else [best]) + naming.find(self.folder, self.save_name)):
            try:
                content = read_checkpoint_header(path)
            except files.OtherFormatError:
                raise
            except (files.CheckpointError, FileNotFoundError) as error:
                logger.warning("passing over a checkpoint: %s", error)
                continue
            self._check_owner(path, content)
            if self._is_named_by_content(path, content):
                yield path
            else:
                logger.warning("passing over a checkpoint: %s: its name has other counters than its content", path)
                renamed.append(path)
        yield from renamed

    def _open(self) -> None:
        """Read the manifest, once; when the folder is locked, also put it in order."""
        if self._is_open:
            return
        self._is_open = True
        self._manifest.read()
        self._entries = self._manifest.own
        self._note_durable()
        if self._is_locked:
            self._manifest.tidy()

    def _best_by_newest(self) -> Path | None:
        """Return the file that the newest readable file names as the best, None if it was not kept."""
        newest = self.newest_header()
        if newest is None:
            return None
        state = newest.get("state")
        if not isinstance(state, dict):
            return self.best()
        # The final weights of a run may have been validated after they had been written.
        last = self._last_improved()
        is_final = last is not None and last["step"] == state.get("step")
        return self.best(state.get("step" if is_final else "best_step"))

    def _is_readable(self, path: Path) -> bool:
        try:
            if self._is_named_by_content(path, read_checkpoint_header(path)):
                return True
            reason = f"{path}: its name has other counters than its content"
        except (files.CheckpointError, FileNotFoundError) as error:
            reason = str(error)
        logger.warning("not the best checkpoint any more: %s", reason)
        return False

    def _counters(self, path: Path) -> tuple[int, int]:
        return naming.counters(path.name, self.save_name) or (0, 0)

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

    def _plan(
        self,
        is_sharded: bool,
        epoch: int,
        step: int,
        append_metadata: Callable[[str], str],
        score: float | None,
        improved: bool,
        protect: Path | None,
        deletes: bool = True,
    ) -> _Save:
        """Return the name of the next checkpoint, and what is deleted after it."""
        self._open()
        name = naming.file_name(self.save_name, epoch, step, append_metadata)
        name = naming.folder_name(name) if is_sharded else name
        entries = [entry for entry in self._entries if entry["file"] != name]
        entries.append({"file": name, "epoch": epoch, "step": step, "score": score, "improved": improved})
        self._entries = entries
        deleted = self._superseded(name, protect) if deletes and self._keep_last >= 0 else []
        self._entries = _without(entries, set(deleted))
        return _Save(self.folder / name, entries, deleted)

    def _superseded(self, name: str, protect: Path | None) -> list[str]:
        """Return the files that are neither among the newest nor among the best, and that this run may delete.

        Args:
            name: the file that is written, which is the last entry.
            protect: as for `save`.
        """
        newest = self._entries[-max(1, self._keep_last) :]
        best = self._ranked()[: None if self._keep_best < 0 else self._keep_best]
        kept = {entry["file"] for entry in (*newest, *best)} | self._manifest.found - {name}
        if protect is not None and protect.parent.resolve() == self.folder.resolve():
            kept.add(protect.name)
        return [entry["file"] for entry in self._entries if entry["file"] not in kept]

    def _commit(self, save: _Save, write: Callable[[], object]) -> None:
        """Write a checkpoint by calling `write`, and delete those that are not kept, as far as they can be deleted."""
        # The manifest lists the file before it exists: a run that is killed in between must not leave a file behind
        # that no later run deletes.
        self._manifest.found.discard(save.path.name)  # From now on it is a file that this run wrote.
        self._manifest.write(save.entries, unsure={save.path.name, *save.deleted})
        try:
            write()
        except BaseException:
            self._forget(save)
            raise
        left = [name for name in save.deleted if not self._delete(name)]
        self._entries = _without(save.entries, set(save.deleted).difference(left))
        self._manifest.write(self._entries, unsure=left)
        self._note_durable()
        if self._on_saved is not None:
            self._on_saved(save.path, save.entries[-1]["improved"])

    def _delete(self, name: str) -> bool:
        """Delete a checkpoint; return False if it cannot be deleted, with a warning the first time."""
        try:
            files.remove(self.folder / name)
        except OSError as error:
            if name not in self._undeleted:
                text = "%s: cannot be deleted (%s); it is tried again at each save"
                logger.warning(text, self.folder / name, error.strerror or error)
            self._undeleted.add(name)
            return False
        return True

    def _commit_and_keep_error(self, *arguments: Any) -> None:
        try:
            self._commit(*arguments)
        except BaseException as error:
            self._error = error

    @contextlib.contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """A context that removes what has been written of a sharded checkpoint if an error leaves it."""
        try:
            yield
        except BaseException:
            if self._unfinished is not None:
                save, temporary = self._unfinished
                shutil.rmtree(temporary, ignore_errors=True)
                self._forget(save)
            raise

    def _forget(self, save: _Save) -> None:
        """Keep the entries of the checkpoints that exist, after one could not be written."""
        self._entries = [entry for entry in save.entries if naming.exists(self.folder / entry["file"])]

    def _ranked(self) -> list[Entry]:
        """Return the entries that were validated: the last improvement, then the others by score, ties by step."""
        validated = sorted(self._validated(), key=self._order)
        last = self._last_improved()
        return validated if last is None else [last, *(entry for entry in validated if entry is not last)]

    def _best(self) -> Entry | None:
        """Return the first of `_ranked`, None if there is none."""
        last = self._last_improved()
        return min(self._validated(), key=self._order, default=None) if last is None else last

    def _validated(self) -> list[Entry]:
        return [entry for entry in self._entries if entry["improved"] or entry["score"] is not None]

    def _last_improved(self) -> Entry | None:
        return max(
            (entry for entry in self._entries if entry["improved"]), key=lambda entry: entry["step"], default=None
        )

    def _order(self, entry: Entry) -> tuple[float, int]:
        return self._rank(entry), entry["step"]

    def _rank(self, entry: Entry) -> float:
        return math.inf if entry["score"] is None else self._sign * entry["score"]


def _without(entries: list[Entry], names: set[str]) -> list[Entry]:
    return [entry for entry in entries if entry["file"] not in names] if names else entries


def candidates_of_run(path: Path, choice: str, save_name: str) -> Iterator[Path]:
    """Yield the checkpoints of any run folder, as `CheckpointFolder.candidates`.

    Args:
        path: the folder of a run.
        choice: "best" (the newest if there is no best one) or "last".
        save_name: the model whose checkpoints are meant if the folder has those of several.

    Raises:
        OtherFormatError: as `CheckpointFolder.candidates`.
        ValueError: as `checkpoints_of_run`.
    """
    checkpoints = checkpoints_of_run(path, save_name)
    if checkpoints is not None:
        yield from checkpoints.candidates(choice)


def checkpoints_of_run(path: Path, save_name: str = "") -> CheckpointFolder | None:
    """Return the checkpoints of any run folder, only to be read; None if none can be read.

    Args:
        path: the folder of a run.
        save_name: the model whose checkpoints are meant if the folder has those of several.

    Raises:
        OtherFormatError: as `CheckpointFolder.candidates`.
        ValueError: the folder has checkpoints of several models, and none of them has that `save_name`.
    """
    folder = path / "checkpoints"
    names = [save_name] if naming.find(folder, save_name) else naming.save_names(folder)
    if len(names) > 1:
        raise ValueError(f"{path}: has checkpoints of several models ({', '.join(names)}); give the path of one file")
    # The name and the mode are those of the run that wrote the files: characters of its `save_name` may be replaced.
    newest = None if not names else _open(folder, names[0], "min").newest_header()
    return None if newest is None else _open(folder, newest["save_name"], newest["config"]["mode"])


def _open(folder: Path, save_name: str, mode: str) -> CheckpointFolder:
    """Return the checkpoints of a model in a folder, only to be read."""
    return CheckpointFolder(folder, save_name, mode=mode, keep_last=-1, keep_best=-1, background=False)
