"""The command `consolidate`: makes a file of the folder of a sharded checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from helios_lite.runtime import checkpoint_files
from helios_lite.runtime.read_checkpoint import read_checkpoint
from helios_lite.tools.errors import UsageError


def consolidate(arguments: argparse.Namespace) -> None:
    """Write a sharded checkpoint as one file, as a training in one process does. This process needs memory for all of
    its tensors. Any program can read the file with torch.load(path, weights_only=True).
    """
    folder: Path = arguments.folder
    file = arguments.file if arguments.file is not None else folder.with_name(f"{folder.name}.pth")
    if not checkpoint_files.is_sharded(folder):
        raise UsageError(f"{folder}: is not the folder of a sharded checkpoint")
    if file.exists():
        raise UsageError(f"{file}: exists already; name another file")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: there is no such folder")
    try:
        content = read_checkpoint(folder)
    except checkpoint_files.CheckpointError as error:
        raise UsageError(str(error)) from error
    checkpoint_files.write_file(content, file)
    print(file)
