"""Which devices a run computes on, how PyTorch is set for them, and moving batches to them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from helios_lite.processes.world import PARENT, World


def choose_accelerator(accelerator: str) -> str:
    """Return the type of device to compute on: "cuda", "mps" or "cpu".

    Args:
        accelerator: a device type, or "auto": CUDA, else MPS, else CPU.

    Raises:
        RuntimeError: the accelerator is not available; there is no silent fallback to the CPU.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return next(name for name, is_available in available.items() if is_available)
    if not available[accelerator]:
        found = ", ".join(name for name, is_available in available.items() if is_available)
        raise RuntimeError(f"accelerator={accelerator!r} is not available on this machine, which has: {found}")
    return accelerator


def choose_devices(device_type: str, devices: int | str | Sequence[int]) -> list[int]:
    """Return the indices of the devices to use, one process for each.

    Args:
        device_type: "cuda", "mps" or "cpu". The CPU takes any number of processes, MPS takes one.
        devices: the number of devices, their indices, or "auto": all GPUs, else one process.

    Raises:
        RuntimeError: the machine has fewer devices.
    """
    count = torch.cuda.device_count() if device_type == "cuda" else 1
    if devices == "auto":
        return list(range(count))
    chosen = list(range(devices)) if isinstance(devices, int) else [int(index) for index in devices]
    if device_type != "cpu" and max(chosen) >= count:
        raise RuntimeError(f"devices={devices!r}: this machine has {count} of type {device_type}")
    return chosen


def choose_device(device_type: str, devices: int | str | Sequence[int], world: World) -> torch.device:
    """Return the device of this process, the entry of `devices` at its local rank, and make it the current one.

    Under torchrun and srun all GPUs count that the process sees; if it sees only one, it is that one.
    """
    if device_type != "cuda":
        return torch.device(device_type)
    indices = choose_devices(device_type, devices if world.size == 1 or PARENT in os.environ else "auto")
    device = torch.device(device_type, indices[world.local_rank if len(indices) > 1 else 0])
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def backend_flags(deterministic: bool, benchmark: bool) -> Iterator[None]:
    """Set PyTorch's global flags for the time of a context.

    Args:
        deterministic: use deterministic algorithms only.
        benchmark: let cuDNN choose algorithms by measuring them.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it.
        torch.use_deterministic_algorithms(True)
    try:
        with cudnn_benchmark(benchmark):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns_only)


@contextlib.contextmanager
def cudnn_benchmark(value: bool) -> Iterator[None]:
    """Set whether cuDNN chooses algorithms by measuring them, for the time of a context."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = value
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class DeviceMover:
    """Moves batches to a device: tensors, other objects with `.to`, and both in dicts, lists, tuples and dataclasses.

    Tensors are copied to a GPU from pinned memory on a separate CUDA stream, so that the copy overlaps with
    computation; only the step that uses the batch waits for it.

    Args:
        device: the device to move to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the stream, which cannot be copied; a copy of the mover copies on the present one."""
        return {**vars(self), "_stream": None}

    def __call__(self, batch: Any) -> Any:
        """Return the batch on the device, in new containers of the same types; other objects are not copied."""
        moved = self._move(batch)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return moved

    def _move(self, batch: Any) -> Any:
        if isinstance(batch, Tensor):
            return batch if batch.device == self.device else self._copy(batch)
        if type(batch) in (list, tuple):
            return type(batch)([self._move(value) for value in batch])
        if callable(getattr(batch, "to", None)):
            return batch.to(self.device)
        if isinstance(batch, dict):
            moved = copy.copy(batch)  # Keeps the default of a defaultdict.
            for key, value in batch.items():  # A Counter would count the pairs in `update`, and others forbid it.
                moved[key] = self._move(value)
            return moved
        if isinstance(batch, Mapping):
            return type(batch)({key: self._move(value) for key, value in batch.items()})  # type: ignore[call-arg]
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*(self._move(value) for value in batch))
        if isinstance(batch, list | tuple):
            return type(batch)(self._move(value) for value in batch)
        if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            record = copy.copy(batch)
            for field in dataclasses.fields(batch):
                object.__setattr__(record, field.name, self._move(getattr(batch, field.name)))  # It may be frozen.
            return record
        return batch

    def _copy(self, tensor: Tensor) -> Tensor:
        if self._stream is None or not tensor.is_cpu:
            # A copy to the CPU that does not wait would be read before it is complete.
            return tensor.to(self.device, non_blocking=self.device.type != "cpu")
        with torch.cuda.stream(self._stream):
            copied = tensor.pin_memory().to(self.device, non_blocking=True)
        copied.record_stream(torch.cuda.current_stream(self.device))  # Its memory is kept until the step is over.
        return copied
