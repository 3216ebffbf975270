"""Reads the checkpoint that a path names: a file or folder of its own, or one of those in a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from helios_lite.engine.checkpoint_folder import CheckpointFolder
from helios_lite.runtime import checkpoint_files as files


def read_path(
    path: Path, choice: str, save_name: str, read: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """Read a checkpoint, and return its path and its content.

    Args:
        path: a checkpoint, or the folder of a run.
        choice: which checkpoint of a run folder: "best" (the newest if there is no best one) or "last".
        save_name: the model whose checkpoints are meant if a run folder has those of several.
        read: reads a checkpoint.

    Raises:
        FileNotFoundError: the path does not exist, or the run folder has no checkpoint that can be read.
        CheckpointError, NewerFormatError: the file cannot be read.
        ValueError: the run folder has checkpoints of several models, and none of them has that `save_name`.
    """
    folder = path / "checkpoints"
    if not folder.is_dir():
        return path, read(path)
    names = [save_name] if files.find(folder, save_name) else files.save_names(folder)
    if len(names) > 1:
        raise ValueError(f"{path}: has checkpoints of several models ({', '.join(names)}); give the path of one file")
    # The name and the mode are those of the run that wrote the files: characters of its `save_name` may be replaced.
    newest = None if not names else _open(folder, names[0], "min").newest_header()
    found = None
    if newest is not None:
        found = _open(folder, newest["save_name"], newest["config"]["mode"]).load(choice, read)
    if found is None:
        raise FileNotFoundError(f"{path}: this run folder has no checkpoint that can be read")
    return found


def _open(folder: Path, save_name: str, mode: str) -> CheckpointFolder:
    """Return the checkpoints of a model in a folder, only to be read."""
    return CheckpointFolder(folder, save_name, mode=mode, keep_last=-1, keep_best=-1, background=False)
