"""The folders of runs that have a name in common: "digits", "digits-2", "digits-3" and so on."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

CLAIM = ".claim"
"""The file that says who has claimed a folder. One with a number in its name that nobody has claimed is another run."""


def claim(named: Path, owner: str, *, is_restarted: bool = False) -> Path:
    """Make the next folder of a name, and return it. Processes that ask at the same moment get different ones.

    It has the number after the highest, so that the highest is always the newest.

    Args:
        named: the folder of the name itself, which is the first one.
        owner: who claims it.
        is_restarted: return the newest folder that the owner has claimed before, if there is one.

    Raises:
        OSError: no folder can be made there.
    """
    found = _numbered(named)
    own = [path for path in found.values() if is_restarted and _owner(path) == owner]
    if own:
        return own[-1]
    for number in itertools.count(max(found, default=0) + 1):
        path = named if number == 1 else named.with_name(f"{named.name}-{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        (path / CLAIM).write_text(f"{owner}\n", encoding="utf-8")
        return path
    raise AssertionError("there is always a next number")


def give_back(path: Path) -> bool:
    """Remove a claimed folder in which no run has begun, and return whether it is removed; one with other files stays.

    A run begins when it has been set up, and writes its options then.
    """
    files = {each.relative_to(path).as_posix() for each in path.rglob("*") if not each.is_dir()}
    if not files <= {CLAIM, "train.log", "status.json", "checkpoints/.lock"}:
        return False
    shutil.rmtree(path, ignore_errors=True)
    return True


def newest(named: Path) -> Path:
    """Return the newest folder of a name, or that of the name itself if there is none."""
    return [named, *_numbered(named).values()][-1]


def _numbered(named: Path) -> dict[int, Path]:
    """Return the folders of a name by their number, in that order."""
    found = {1: named} if named.exists() else {}
    for path in named.parent.glob("*"):
        match = re.fullmatch(re.escape(named.name) + r"-([1-9]\d*)", path.name)
        if match is not None and _owner(path) is not None:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _owner(path: Path) -> str | None:
    """Return who has claimed a folder, None if nobody has."""
    try:
        return (path / CLAIM).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
