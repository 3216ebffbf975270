"""Comparing what two runs ended with."""

import math
from pathlib import Path
from typing import Any

import torch

from helios_lite import Model
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.metrics.measurements import is_measured
from helios_lite.networks.dtensors import full_tensor


def same(a: Any, b: Any) -> bool:
    """Bit for bit: tensors by torch.equal, everything else by ==."""
    return _alike(a, b, exact=True)


def close(a: Any, b: Any) -> bool:
    """Equal structure, tensors and floats equal to 1e-6."""
    return _alike(a, b, exact=False)


def _alike(a: Any, b: Any, exact: bool) -> bool:
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.is_complex():
            a, b = torch.view_as_real(a), torch.view_as_real(b)
        return torch.equal(a, b) if exact else torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_alike(a[key], b[key], exact) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_alike(x, y, exact) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and not exact:
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)
    return bool(a == b)


def weights(model: Model) -> dict[str, Any]:
    """Everything a checkpoint holds of a model, copied; sharded tensors in full. Call on every rank."""
    return {name: _copied(part) for name, part in model.state_dict().items()}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return full_tensor(value).clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def saved(run: Path, *parts: str) -> dict[str, Any]:
    """Parts of a run's newest checkpoint, and its name as "name", without measured times."""
    newest = max((run / "checkpoints").glob("*_iter_*"), key=lambda path: path.stat().st_mtime_ns)
    content = read_checkpoint(newest)
    return {"name": newest.name, **timeless({part: content[part] for part in parts})}


def timeless(value: Any) -> Any:
    """The same without measured times, which differ from run to run."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not _is_timed(str(key))}
    if isinstance(value, list | tuple):
        return [timeless(item) for item in value]
    return value


def _is_timed(name: str) -> bool:
    """Whether a value is measured: a metric of the trainer, a stopwatch in a checkpoint, or made of such values."""
    return is_measured(name) or name.endswith("seconds") or name == "place_of_last_row"


def listing(folder: Path) -> dict[str, bytes]:
    """Names and contents of a folder's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
