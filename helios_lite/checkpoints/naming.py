"""The names of checkpoints, and finding them in a folder.

A checkpoint is named `<save_name>_epoch_<E>_iter_<S><metadata>.pth`, with the numbers of finished epochs and optimizer
steps. A sharded one is a folder of that name without `.pth`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

MAIN = "main.pth"
"""The file in the folder of a sharded checkpoint that holds everything but the sharded tensors."""
COUNTERS = r"_epoch_(\d+)_iter_(\d+)"


def file_name(save_name: str, epoch: int, step: int, append_metadata: Callable[[str], str]) -> str:
    """Return the name of a checkpoint file.

    Args:
        save_name: the model's name; characters that file systems treat specially are replaced.
        epoch: number of finished epochs.
        step: number of finished steps.
        append_metadata: takes the name without extension and returns it with metadata appended
            (`Model.append_metadata_to_chkpt_name`).

    Raises:
        ValueError: `append_metadata` changed the name instead of appending to it.
    """
    stem = f"{_portable(save_name)}_epoch_{epoch}_iter_{step}"
    named = append_metadata(stem)
    if not isinstance(named, str) or not named.startswith(stem):
        raise ValueError(f"append_metadata_to_chkpt_name({stem!r}) returned {named!r}: it may only append")
    # Epoch and step inside the metadata would read as those of another file. File systems allow 255 bytes.
    metadata = re.sub(COUNTERS, r"-epoch-\1-iter-\2", _portable(named[len(stem) :]))
    if metadata[:1].isdigit():  # They would read as further digits of the step.
        metadata = f"-{metadata}"
    return f"{stem}{metadata[: max(0, 250 - len(stem))]}.pth"


def find(folder: Path, save_name: str) -> list[Path]:
    """Return the checkpoints of a model in a folder, newest first, by (step, epoch) in their names."""
    named = [(counters(path.name, save_name), path) for path in folder.glob("*") if _may_be_checkpoint(path)]
    return [path for _, path in sorted(((at, path) for at, path in named if at is not None), reverse=True)]


def save_names(folder: Path) -> list[str]:
    """Return the names of the models that have checkpoints in a folder, as the names of these have them."""
    pattern = rf"(.+){COUNTERS}(?:(?!{COUNTERS}).)*"
    matches = [re.fullmatch(pattern, path.name) for path in folder.glob("*") if _may_be_checkpoint(path)]
    return sorted({match[1] for match in matches if match is not None})


def is_sharded(path: Path) -> bool:
    """Return whether a path is the folder of a sharded checkpoint, or what is left of one."""
    return path.suffix != ".pth" and any((path / name).is_file() for name in (MAIN, ".metadata"))


def size(path: Path) -> int:
    """Return the number of bytes of a checkpoint."""
    return sum(file.stat().st_size for file in path.iterdir()) if is_sharded(path) else path.stat().st_size


def exists(path: Path) -> bool:
    """Return whether there is a file, or the folder of a sharded checkpoint."""
    return path.is_file() if path.suffix == ".pth" else is_sharded(path)


def _may_be_checkpoint(path: Path) -> bool:
    return path.suffix == ".pth" or is_sharded(path)


def counters(name: str, save_name: str) -> tuple[int, int] | None:
    """Return (step, epoch) of the name of a checkpoint; None if it is not the name of one of that model."""
    pattern = re.escape(_portable(save_name)) + COUNTERS + rf"(?:(?!{COUNTERS}).)*"
    match = re.fullmatch(pattern, name.removesuffix(".pth"))
    return None if match is None else (int(match[2]), int(match[1]))


def folder_name(name: str) -> str:
    """Return the name of a sharded checkpoint from that of a file."""
    while name.endswith(".pth"):
        name = name.removesuffix(".pth")
    return name


def _portable(text: str) -> str:
    """Replace characters that file systems treat specially."""
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", text)
