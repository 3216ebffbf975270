"""Reads a checkpoint of either kind: a file, or the folder of a sharded one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from helios_lite.checkpoints import files, naming
from helios_lite.processes.world import World

T = TypeVar("T")


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint, with full tensors in CPU memory. Only tensors and plain containers are ever
    unpickled.

    Args:
        path: the checkpoint.
        mmap: map the tensors of a file into memory, for a reader that uses some of them.

    Raises:
        FileNotFoundError, CheckpointError, ValueError, MemoryError: as `files.read_file`.
    """
    if path.name == naming.MAIN and naming.is_sharded(path.parent):
        raise files.CheckpointError(f"{path}: is a part of a sharded checkpoint; give its folder, {path.parent}")
    if not naming.is_sharded(path):
        return files.read_file(path, mmap=mmap)
    from helios_lite.checkpoints.sharded import read_full

    return read_full(path)


def read_on_every_rank(
    path: Path, world: World, like: Tensor | None, is_needed: Callable[[str], bool], *, mmap: bool = False
) -> dict[str, Any]:
    """Return the content of a checkpoint, with its tensors in CPU memory. Call on every rank.

    Args:
        path: a checkpoint, which all ranks must see.
        world: the ranks.
        like: a DTensor of a sharded network: each rank reads its part of what a sharded checkpoint holds, to the device
            of the network, and of a file the tensors that are used. None if no network is sharded: each rank reads all.
        is_needed: tells by the name of a sharded tensor whether it is read as a part; the others keep their markers.
        mmap: as in `read_checkpoint`.

    Raises:
        FileNotFoundError, CheckpointError, ValueError, MemoryError: as `read_checkpoint`, if no rank can read it.
        RuntimeError: one rank cannot read it, and another one can; raised on every rank.
    """
    if like is None:
        return _together(path, world, lambda: read_checkpoint(path, mmap=mmap))
    if not naming.is_sharded(path):
        return _together(path, world, lambda: files.read_file(path, mmap=True))
    from helios_lite.checkpoints.sharded import read_main, read_parts

    content, metadata = _together(path, world, lambda: read_main(path))
    return _together(path, world, lambda: read_parts(path, content, metadata, like, is_needed))


def _together(path: Path, world: World, read: Callable[[], T]) -> T:
    """Return what `read` returns; raise an error on every rank if it fails on one."""
    error: Exception | None = None
    try:
        value = read()
    except Exception as raised:
        error = raised
    reasons = world.gather(None if error is None else f"{type(error).__name__}: {error}")
    if all(reasons):
        assert error is not None
        raise error
    for rank, reason in enumerate(reasons):
        if reason is not None:
            able = reasons.index(None)
            raise RuntimeError(f"{path}: rank {rank} cannot read it, but rank {able} can ({reason})") from error
    return value


def read_checkpoint_header(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, with values of tensors that are not verified, or with markers.

    It is fast for checkpoints of any size. Of a sharded one the sizes of the files are checked as well.

    Raises:
        FileNotFoundError, CheckpointError: as `files.read_file`.
    """
    if not naming.is_sharded(path):
        return files.read_header(path)
    from helios_lite.checkpoints.sharded import read_main

    return read_main(path)[0]


def evaluation_state(content: dict[str, Any]) -> dict[str, Any]:
    """Return the model's state in a checkpoint, with the weights that evaluations use.

    The state of a callback that averages weights has them under "evaluation_weights", by the name of the network. Those
    of optimizers that evaluate other weights than they train are under this key of the checkpoint itself.
    """
    state = dict(content["model"])
    state.update(content.get("evaluation_weights", {}))
    for callback in content.get("callbacks", {}).values():
        weights = callback.get("evaluation_weights", {}) if isinstance(callback, dict) else {}
        state.update((name, {**state[name], **weights[name]}) for name in weights if name in state)
    return state
