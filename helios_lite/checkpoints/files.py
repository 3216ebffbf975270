"""Writes checkpoint files durably and reads them safely.

A file holds tensors and plain containers only, so that any program can read it with
`torch.load(path, weights_only=True)`.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import errno
import json
import logging
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from helios_lite.checkpoints.naming import COUNTERS, is_sharded
from helios_lite.file_errors import follow_no_link, naming
from helios_lite.processes.output import harmless
from helios_lite.version import __version__

logger = logging.getLogger("helios_lite")
FORMAT_VERSION = 5
"""The version of the layout of a checkpoint's content; a file with another one is refused."""
WHEN_FULL = "the disk is full: make room, and run the program again, which goes on from the last checkpoint"
_PLAIN_TYPES = {type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device}
_TENSOR_TYPES = {torch.Tensor, torch.nn.Parameter}
# Mappings whose type torch.load(weights_only=True) restores; schedulers count milestones in a Counter.
_MAPPING_TYPES = {dict, collections.OrderedDict, collections.Counter}


class CheckpointError(RuntimeError):
    """A file is not a checkpoint that this version can read; the message names the file and the reason."""

    def __str__(self) -> str:
        """Return the message, in which nothing of the file steers a terminal."""
        return harmless(super().__str__())


class OtherFormatError(CheckpointError):
    """A file is a checkpoint of a newer or an older format: it is not damaged, and must not be replaced."""


def write_file(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: at any moment the complete file exists under that name, or none.

    Raises:
        TypeError: a value is neither a tensor nor plain data; the message says where it is.
        OSError: the disk is full, or the folder is not writable or gone; no partial file is left.
    """
    write_serializable(to_serializable(content), path)


def write_serializable(content: dict[str, Any], path: Path) -> None:
    """Write what `to_serializable` has returned, as `write_file`.

    Raises:
        OSError: as `write_file`.
    """
    _write_atomically(path, lambda file: torch.save(content, file))


def read_file(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint, with its tensors in CPU memory; only tensors and plain containers are ever unpickled.

    Args:
        path: a file.
        mmap: map the tensors into memory, so that only those that are used take it.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is unreadable, damaged, unsafe or foreign.
        OtherFormatError: the file has a newer or an older format.
        MemoryError: the content does not fit.
    """
    with explained(path):
        # torch.load does not compare the checksums of tensors: a flipped bit would load as another weight.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    return _checked(path, content)


def read_header(path: Path) -> dict[str, Any]:
    """Read a checkpoint without its tensors, whose values are not verified: fast for files of any size.

    Raises:
        FileNotFoundError, CheckpointError, OtherFormatError: as `read_file`.
    """
    with explained(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    archive.read(name)  # Compares the checksum.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return _checked(path, content)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Context in which a file is read; an error becomes a `CheckpointError` that names it."""
    try:
        path.open("rb").close()
        yield
    except (CheckpointError, FileNotFoundError, MemoryError, torch.OutOfMemoryError):
        raise
    except IsADirectoryError as error:
        raise CheckpointError(
            f"{path}: is a folder, and no sharded checkpoint; give the path of a checkpoint, or, where a run folder is "
            "accepted, one that contains checkpoints/"
        ) from error
    except (PermissionError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:
        # torch raises errors of many types for damaged files; for unsafe ones it explains how to load them anyway.
        reason = "it is damaged, or holds more than tensors and plain containers"
        raise CheckpointError(f"{path}: {reason} ({type(error).__name__})") from error


def check_device(device: torch.device | str) -> None:
    """Raise a ValueError if a device cannot be used, so that the file is not reported as damaged."""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # Of many types: the device is unknown, has no driver, or PyTorch lacks its kind.
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device={str(device)!r} cannot be used: {reason}") from error


def _checked(path: Path, content: Any) -> dict[str, Any]:
    """Return the content of a file if it is that of a checkpoint whose format is known."""
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointError(f"{path}: is not a helios_lite checkpoint")
    if content["format"] != FORMAT_VERSION:
        is_newer = content["format"] > FORMAT_VERSION
        way_out = (
            "install a newer helios_lite" if is_newer else "finish that run with the helios_lite that has begun it"
        )
        raise OtherFormatError(
            f"{path}: {'a newer' if is_newer else 'an older'} helios_lite ({content.get('version', 'unknown')}) wrote "
            f"it in format {content['format']}, and this one ({__version__}) reads format {FORMAT_VERSION}; {way_out}, "
            "or choose another file, or start anew under another run_name"
        )
    return content


def require_parts(path: Path, content: dict[str, Any], names: Iterable[str]) -> None:
    """Raise a `CheckpointError` if the content of a file lacks what every checkpoint of a training has."""
    missing = [repr(name) for name in names if name not in content]
    if missing:
        raise CheckpointError(f"{path}: is not complete: it has no {', '.join(missing)}")


def temporary_folder(path: Path) -> Path:
    """Return the folder in which a sharded checkpoint is written before it gets its name."""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.shards.tmp")


def publish_folder(temporary: Path, path: Path) -> None:
    """Give a folder that was written completely its name; one that has this name is replaced."""
    replaced = path.with_name(f".{path.name}.old")
    if path.exists():
        path.rename(replaced)
    temporary.rename(path)
    _sync_folder(path.parent)
    if replaced.exists():
        _delete(replaced)


def remove(path: Path) -> None:
    """Delete a checkpoint, if it exists. A folder loses its name first, so that no part of it counts as one.

    Raises:
        OSError: it cannot be deleted. What is left of a folder that has lost its name is deleted by another call.
    """
    temporary = temporary_folder(path)
    if temporary.is_dir():
        shutil.rmtree(temporary)
    if path.suffix != ".pth" and path.is_dir():
        path.rename(temporary)
        shutil.rmtree(temporary)
    else:
        path.unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Remove what a killed process was writing or deleting, and give a folder back the name that it had taken away."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+\.shards\.tmp" if path.is_dir() else r"\..+\.\d+\.tmp", path.name):
            _delete(path)
        elif re.fullmatch(rf"\..+{COUNTERS}.*\.old", path.name) and is_sharded(path):
            named = path.with_name(path.name[1:].removesuffix(".old"))
            if named.exists():
                _delete(path)
            else:
                path.rename(named)


def _delete(path: Path) -> None:
    """Delete a file or a folder that is no checkpoint; one that cannot be deleted, such as a busy one, is a warning."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning(
            "%s: cannot be deleted (%s); the next start of the run tries again", path, error.strerror or error
        )


def write_json(content: Any, path: Path, *, is_durable: bool = True) -> None:
    """Write plain data as json, atomically as a checkpoint; other objects are written as their `str`.

    Args:
        content: the data.
        path: the file.
        is_durable: whether it is on the disk afterwards. If not, it does not wait for the disk, and a machine that
            fails within seconds may leave an older or an empty file.
    """
    write_text(json.dumps(content, indent=2, default=str) + "\n", path, is_durable=is_durable)


def write_text(text: str, path: Path, *, is_durable: bool = True) -> None:
    """Write a text, atomically as a checkpoint. Arguments as for `write_json`."""
    write_bytes(text.encode(), path, is_durable=is_durable)


def write_bytes(content: bytes, path: Path, *, is_durable: bool = True) -> None:
    """Write bytes, atomically as a checkpoint. Arguments as for `write_json`."""
    _write_atomically(path, lambda file: file.write(content), is_durable=is_durable)


def to_serializable(value: Any, where: str = "checkpoint") -> Any:
    """Return a value in new containers, with numpy numbers as Python numbers; tensors are not copied.

    Args:
        value: the value.
        where: the name of the value in the error message.

    Raises:
        TypeError: the value holds something that `torch.load(weights_only=True)` refuses; the message says where.
    """
    try:
        return _to_serializable(value, where)
    except RecursionError:
        raise TypeError(f"{where} contains itself, or its containers are nested too deeply for a file") from None


def _to_serializable(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _MAPPING_TYPES:
        copied = copy.copy(value)  # An OrderedDict keeps the versions of modules, which are an attribute of it.
        copied.clear()
        for key, item in value.items():
            key_there = key if type(key) in _PLAIN_TYPES else _to_serializable(key, f"a key of {where}")
            copied[key_there] = _to_serializable(item, f"{where}[{key!r}]")
        if kind is not dict:
            _to_serializable(dict(vars(value)), f"vars({where})")
        return copied
    if kind in (list, tuple, set):
        return kind(_to_serializable(item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind in _TENSOR_TYPES:
        _to_serializable(dict(vars(value)), f"vars({where})")
        return value
    if kind in _PLAIN_TYPES:
        return value
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        return _to_serializable(value.item(), where)
    raise TypeError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}: a checkpoint holds only tensors, numbers, strings, and "
        "dicts, lists, tuples and sets of them; leave it out of the state, or save what it is made of again, such as "
        "dict(table), torch.from_numpy(array) or generator.get_state()"
    )


def _write_atomically(path: Path, write: Callable[[IO[bytes]], Any], *, is_durable: bool = True) -> None:
    """Write a file under a temporary name in the same folder, fsync it, rename it to `path`, and fsync the folder."""
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    with naming(path, when_full=WHEN_FULL):
        try:
            with open(temporary, "wb", opener=follow_no_link) as file:
                write(file)
                file.flush()
                if is_durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # The folder may be gone.
                temporary.unlink(missing_ok=True)
            raise
        if is_durable:
            _sync_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Check that files in a folder can be written, appended to and replaced, which not all file systems can.

    Raises:
        OSError: they cannot; the message says what is missing.
    """
    one, other = (folder / f".{name}.{os.getpid()}.tmp" for name in ("probe", "probed"))

    def write(path: Path, mode: str) -> None:
        with open(path, mode, opener=follow_no_link) as file:
            file.write(b"x")

    def append() -> None:
        write(one, "ab")
        if one.stat().st_size != 2:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def replace() -> None:
        write(other, "wb")
        one.replace(other)

    actions = {"written": lambda: write(one, "wb"), "appended to": append, "replaced by renaming another": replace}
    try:
        for what, action in actions.items():
            try:
                action()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    with naming(folder, when_full=WHEN_FULL):
                        raise
                text = f"no file can be {what} there ({error.strerror})"
                found = OSError(error.errno, text, str(folder))
                found.add_note("set root to a folder on a file system that can do so, such as a local disk")
                raise found from error
    finally:
        for path in (one, other):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # Some file systems have no such thing.
            raise
    finally:
        os.close(folder)
