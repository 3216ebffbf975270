"""Reads a checkpoint of either kind: a file, or the folder of a sharded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helios_lite.checkpoints import files, naming


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the content of a checkpoint, with full tensors. Only tensors and plain containers are ever unpickled.

    Raises:
        FileNotFoundError, CheckpointError, ValueError, MemoryError: as `files.read_file`.
    """
    if path.name == naming.MAIN and naming.is_sharded(path.parent):
        raise files.CheckpointError(f"{path}: is a part of a sharded checkpoint; give its folder, {path.parent}")
    if not naming.is_sharded(path):
        return files.read_file(path, device)
    files.check_device(device)
    from helios_lite.checkpoints.sharded import read_full

    return read_full(path, device)


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

    The state of a callback that averages weights has them under "evaluation_weights", by the name of the network.
    """
    state = dict(content["model"])
    for callback in content.get("callbacks", {}).values():
        weights = callback.get("evaluation_weights", {}) if isinstance(callback, dict) else {}
        state.update((name, weights[name]) for name in weights if name in state)
    return state
