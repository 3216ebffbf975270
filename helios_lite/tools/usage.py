"""The error that every command raises for wrong usage, and the checks for what a command reads."""

from __future__ import annotations

from pathlib import Path

from helios_lite.checkpoints import naming


class UsageError(Exception):
    """The command was used in a wrong way. The message is a single line for the user."""


def require_file(path: Path) -> None:
    """Raise a `UsageError` unless `path` is a file."""
    if not path.is_file():
        raise UsageError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")


def require_checkpoint(path: Path) -> None:
    """Raise a `UsageError` unless `path` is a file, or the folder of a sharded checkpoint."""
    if not naming.is_sharded(path):
        require_file(path)
