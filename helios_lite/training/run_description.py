"""What config.json says of a run: its options, its hyperparameters, its data, and where it runs."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from typing import Any

import torch

from helios_lite.data import Split
from helios_lite.loading.loaders import split_parts
from helios_lite.training.session import Session
from helios_lite.version import __version__


def describe_run(session: Session) -> dict[str, Any]:
    """Return the tables of config.json, of plain values.

    "trainer" are the options, and "hparams" those of the model. "data" has a table for each split, named as its metrics
    are. "environment" holds what the numbers may depend on besides: versions, device, and numbers of processes and
    threads.
    """
    splits = {}
    for phase in ("train", "valid", "test"):
        splits.update({name: describe_split(split) for name, split in split_parts(session.datamodule, phase).items()})
    return {
        "trainer": session.options.config(),
        "hparams": session.model.hparams,
        "data": splits,
        "environment": _environment(session),
    }


def describe_split(split: Any) -> dict[str, Any]:
    """Return the options of a Split by name, with the names of classes in place of objects; else the name of a class.

    The length of a dataset is "samples"; it is left out if the dataset has none.
    """
    if not isinstance(split, Split):
        return {"loader": type(split).__name__}
    described: dict[str, Any] = {}
    for name, value in vars(split).items():
        is_value = value is None or isinstance(value, bool | int | float | str)
        described[name] = value if is_value else getattr(value, "__name__", type(value).__name__)
        if name == "dataset":
            with contextlib.suppress(TypeError, NotImplementedError):
                described["samples"] = len(value)
    return described


def _environment(session: Session) -> Mapping[str, Any]:
    device = session.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "helios_lite": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "device_name": name,
        "processes": session.world.size,
        "threads": torch.get_num_threads(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
