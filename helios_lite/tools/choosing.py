"""The checkpoint that a command reads: the one that is named, or one of a run folder."""

from __future__ import annotations

from pathlib import Path

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.folder import checkpoints_of_run
from helios_lite.tools.usage import UsageError, require_file


def chosen_checkpoint(path: Path, save_name: str = "") -> tuple[Path, str]:
    """Return the checkpoint of a path, which may be that of a run folder, and why it was chosen, for people.

    Args:
        path: a file, or the folder of a sharded checkpoint; then no reason is given. Of a run folder it is the best
            checkpoint, or the newest if there is no best one.
        save_name: the model whose checkpoints are meant if a run folder has those of several.

    Raises:
        UsageError: there is no such file or folder, or it is neither, or the run folder has no checkpoint to read.
    """
    if naming.is_sharded(path) or not path.is_dir():
        if not path.is_dir():
            require_file(path)
        return path, ""
    if not (path / "checkpoints").is_dir():
        raise UsageError(f"{path}: is a folder, but no sharded checkpoint and no run folder, which has checkpoints/")
    try:
        checkpoints = checkpoints_of_run(path, save_name)
        found = None if checkpoints is None else next(checkpoints.candidates("best"), None)
    except (files.CheckpointError, ValueError) as error:
        raise UsageError(str(error)) from error
    if checkpoints is None or found is None:
        raise UsageError(f"{path}: this run folder has no checkpoint that can be read")
    if checkpoints.is_best(found):
        return found, f"the best checkpoint of {path}"
    return found, f"the newest checkpoint of {path}, which has no best one"
