"""The error that every command raises for wrong usage. Standard library only, as `--help` needs nothing else."""

from __future__ import annotations

from pathlib import Path


class UsageError(Exception):
    """The command was used in a wrong way. The message is a single line for the user."""


def require_file(path: Path) -> None:
    """Raise a `UsageError` unless `path` is a file."""
    if not path.is_file():
        raise UsageError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
