"""What config.json and checkpoints say of a run: what `setup` has made, the data, and where it runs."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helios_lite.changes.made import changed_tensors, describe
from helios_lite.data import DataModule, Split
from helios_lite.loading.loaders import split_parts
from helios_lite.nested import leaves
from helios_lite.processes.devices import device_name, matmul_precision
from helios_lite.version import __version__


def describe_run(
    parts: Mapping[str, Any], datamodule: DataModule, device: torch.device, processes: int
) -> dict[str, Any]:
    """Return tables of plain values.

    "made" are the networks, optimizers and schedulers of the model; see `made.describe`. "data" has a table for each
    split, named as its metrics are. "environment" holds what the numbers may depend on besides: versions, device, and
    numbers of processes and threads.

    Args:
        parts: the stateful parts of the model by name, as `setup` has made them.
        datamodule: the data.
        device: the device of this process.
        processes: the number of ranks.
    """
    splits = {}
    for phase in ("train", "valid", "test"):
        splits.update({name: describe_split(split) for name, split in split_parts(datamodule, phase).items()})
    tables = {"made": describe(parts), "data": splits, "environment": _environment(device, processes)}
    plain: dict[str, Any] = _plain(tables)
    return plain


def changes_of_run(saved: Mapping[str, Any], now: Mapping[str, Any], *, is_inside_epoch: bool) -> list[str]:
    """Return a sentence for each thing that differs between two of what `describe_run` has returned.

    Args:
        saved: of the run until now.
        now: of this start.
        is_inside_epoch: whether an epoch has begun; what it means for its samples is said when it goes on.
    """
    found = changed_tensors(saved["made"], now["made"])
    for table in ("data", "environment"):
        before, after = dict(leaves(saved[table])), dict(leaves(now[table]))
        for name in [name for name in after if name in before and before[name] != after[name]]:
            if name == "train.batch_size" and "loader" in now["data"].get("train", {}) and is_inside_epoch:
                found.append(
                    "the train split is a loader, whose position is counted in batches: until this epoch ends samples "
                    "are seen twice or missed; resume with the batch size of before until then"
                )
            is_of_epoch = name.startswith(("train.", "train/")) and name.endswith(
                (".samples", ".shuffle", ".shuffle_block", "sampler")
            )
            if name != "processes" and not (is_of_epoch and is_inside_epoch):
                found.append(f"{name}: {before[name]!r} before, {after[name]!r} now")
    return found


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts of a run that its config.json has, in order; none if there is no such file, or a damaged one.

    Each has "step" and "checkpoint" (where it goes on; None at the beginning), "weights_digest" (of its first weights),
    "sources" and "commit" (see `describe_code`), and "environment".
    """
    try:
        starts = json.loads(path.read_bytes())["starts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    found = starts if isinstance(starts, list) else []
    return [each for each in found if isinstance(each, dict) and type(each.get("step")) is int]


def describe_split(split: Any) -> dict[str, Any]:
    """Return the options of a Split by name, with the names of classes in place of objects; else the name of a class.

    The length of a dataset is "samples"; it is left out if the dataset has none.
    """
    if not isinstance(split, Split):
        size = getattr(split, "batch_size", None)
        return {"loader": type(split).__name__, **({"batch_size": size} if isinstance(size, int) else {})}
    described: dict[str, Any] = {}
    for name, value in vars(split).items():
        is_value = value is None or isinstance(value, bool | int | float | str)
        described[name] = value if is_value else getattr(value, "__name__", type(value).__name__)
        if name == "dataset":
            with contextlib.suppress(TypeError, NotImplementedError):
                described["samples"] = len(value)
    return described


def _plain(value: Any) -> Any:
    """Return a value whose numbers and texts are of Python's own types, which every file can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if kind is None else kind(value)


def _environment(device: torch.device, processes: int) -> Mapping[str, Any]:
    return {
        "helios_lite": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "device_name": device_name(device) or platform.machine(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32_matmul_precision": matmul_precision(),
    }
