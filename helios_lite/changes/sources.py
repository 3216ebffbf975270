"""Which code a run is of: the digests of its source files, and the commit of the repository that has them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def describe_code(owners: Iterable[type], others: Iterable[type]) -> dict[str, Any]:
    """Return plain values that tell the code of a program from another one.

    "sources" has the digest of each file in which the classes are, and of those that these import at their top, but
    none of packages that are installed. Of a class without a file, as in a notebook, it is that of its methods.
    "commit" is that of the repository around the first class, None without one; files may have changed since.

    Args:
        owners: the classes of the program itself, such as that of its model, with those that they inherit from.
        others: further classes, such as those of the modules in its networks.
    """
    own = [kind for owner in owners for kind in owner.__mro__ if _is_of_program(kind.__module__)]
    digests: dict[str, str] = {}
    commit = None
    for kind in own:
        if (path := _path(kind.__module__)) is None:
            digests[f"{kind.__module__}.{kind.__qualname__}"] = _digest_of_methods(kind)
        elif commit is None:
            commit = _commit(path.parent)
    pending, seen = [kind.__module__ for kind in (*own, *others)], set[str]()
    while pending:
        name = pending.pop()
        path = _path(name)
        if name not in seen and path is not None and _is_of_program(name):
            with contextlib.suppress(OSError):
                about = path.stat()
                digest, imported = _read(name, path, about.st_mtime_ns, about.st_size)
                levels = name.count(".") + 1 + (path.name == "__init__.py")
                digests["/".join(path.parts[-levels:])] = digest
                pending += imported
        seen.add(name)
    return {"commit": commit, "sources": dict(sorted(digests.items()))}


@functools.cache
def _places_of_packages() -> tuple[Path, ...]:
    """Return the folders with what is installed, and with this package."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return (*(Path(folder).resolve() for folder in folders), Path(__file__).resolve().parents[1])


@functools.lru_cache(maxsize=4096)
def _is_installed(path: Path) -> bool:
    real = path.resolve()
    return any(real.is_relative_to(place) for place in _places_of_packages())


def _path(name: str) -> Path | None:
    """Return the source file of a module that is imported, None if it has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(".py") else None


def _is_of_program(name: str) -> bool:
    """Return whether a module is part of a program, and not of an installed package, of Python or of this one."""
    path = _path(name)
    return name == "__main__" if path is None else not _is_installed(path)


@functools.lru_cache(maxsize=4096)
def _read(name: str, path: Path, changed: int, size: int) -> tuple[str, frozenset[str]]:
    """Return the digest of the source file of a module, and the modules that it uses; the other values are its version.

    Those are the modules among its global names, and those of the classes and functions there. `isinstance` would ask
    every object for its class, which deprecated names of PyTorch answer with a warning, and proxies with an error.
    """
    values = [*vars(sys.modules[name]).values()]
    imported = {value.__name__ for value in values if issubclass(type(value), ModuleType)}
    imported |= {str(value.__module__) for value in values if issubclass(type(value), type | FunctionType)}
    return blake2b(path.read_bytes(), digest_size=8).hexdigest(), frozenset(imported)


def _digest_of_methods(kind: type) -> str:
    """Return the digest of the source of a class without a file."""
    texts = []
    for name, value in vars(kind).items():
        if isinstance(value, FunctionType):
            with contextlib.suppress(OSError, TypeError):
                texts.append(f"{name}\n{inspect.getsource(value)}")
    return blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()


def _commit(folder: Path) -> str | None:
    """Return the commit of the Git repository around a folder, read from its files; None without one."""
    folder = folder.resolve()
    with contextlib.suppress(OSError, ValueError, StopIteration):
        git = next(each / ".git" for each in (folder, *folder.parents) if (each / ".git").exists())
        if git.is_file():  # Of a worktree or of a submodule.
            git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            shared = (
                git / (git / "commondir").read_text(encoding="utf-8").strip() if (git / "commondir").exists() else git
            )
            loose = next((each / name for each in (git, shared) if (each / name).is_file()), None)
            if loose is not None:
                head = loose.read_text(encoding="utf-8").strip()
            else:
                lines = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
                head = next(line.split(" ")[0] for line in lines if line.endswith(f" {name}"))
        return head if _COMMIT.fullmatch(head) else None
    return None
