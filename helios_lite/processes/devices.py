"""Which devices a run computes on, how PyTorch is set for them, and moving batches to them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helios_lite.processes.world import PARENT, World, sends_by_device

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def choose_accelerator(accelerator: str) -> str:
    """Return the type of device to compute on, such as "cuda", "xpu", "mps" or "cpu".

    Args:
        accelerator: a type of device, or "auto": the accelerator that PyTorch finds, else the CPU.

    Raises:
        RuntimeError: the accelerator is not available; there is no silent fallback to the CPU.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    available = ["cpu"] if found is None else [found.type, "cpu"]
    if accelerator == "auto":
        return available[0]
    if accelerator not in available:
        raise RuntimeError(
            f"accelerator={accelerator!r} is not available on this machine, which has: {', '.join(available)}"
        )
    return accelerator


def choose_devices(device_type: str, devices: int | str | Sequence[int]) -> list[int]:
    """Return the indices of the devices to use, one process for each.

    Args:
        device_type: as `choose_accelerator` has returned it. The CPU takes any number of processes.
        devices: the number of devices, their indices, or "auto": all accelerators, else one process.

    Raises:
        RuntimeError: the machine has fewer devices.
    """
    count = 1 if device_type == "cpu" else torch.accelerator.device_count()
    if devices == "auto":
        return list(range(count))
    chosen = list(range(devices)) if isinstance(devices, int) else [int(index) for index in devices]
    if device_type != "cpu" and max(chosen) >= count:
        raise RuntimeError(f"devices={devices!r}: this machine has {count} of type {device_type}")
    return chosen


def choose_device(device_type: str, devices: int | str | Sequence[int], world: World) -> torch.device:
    """Return the device of this process, the entry of `devices` at its local rank, and make it the current one.

    Under torchrun and srun all devices count that the process sees; if it sees only one, it is that one.

    Raises:
        RuntimeError: the process sees fewer devices than there are processes on this machine.
    """
    if device_type == "cpu":
        return torch.device(device_type)
    indices = choose_devices(device_type, devices if world.size == 1 or PARENT in os.environ else "auto")
    place = world.local_rank if len(indices) > 1 else 0
    if place >= len(indices):
        raise RuntimeError(
            f"LOCAL_RANK={world.local_rank}: this process sees {len(indices)} devices of type {device_type}; start at "
            'most so many processes on this machine (torchrun --nproc-per-node), or set accelerator="cpu"'
        )
    torch.accelerator.set_device_index(indices[place])
    return torch.device(device_type, indices[place])


def check_own_devices(device: torch.device, world: World) -> None:
    """Check that no two ranks have the same accelerator. Call on every rank.

    Raises:
        RuntimeError: two have, and the backend that sends between devices would hang, or refuse it without a way out.
    """
    if device.type == "cpu" or world.size == 1 or not sends_by_device(device.type):
        return
    properties = getattr(torch.get_device_module(device), "get_device_properties", None)
    uuid = None if properties is None else getattr(properties(device), "uuid", None)
    found = world.gather(None if uuid is None else str(uuid))  # Indices say nothing: each may see one of its own.
    for rank, one in enumerate(found):
        if one is not None and (first := found.index(one)) != rank:
            raise RuntimeError(
                f"ranks {first} and {rank} have the same device ({one}), and ranks on {device.type} need one each; "
                "start fewer processes on this machine, or let each see a device of its own (CUDA_VISIBLE_DEVICES)"
            )


def copies_asynchronously(device: torch.device) -> bool:
    """Return whether the host may go on while a tensor is copied to a device: not if it is the CPU, whose reader would
    not wait, nor on MPS, which reads the memory of the host when the copy comes to its turn.
    """
    return device.type not in ("cpu", "mps")


@functools.cache
def pins_memory(device: torch.device) -> bool:
    """Return whether memory of the CPU can be pinned for a device, from which it copies beside its computation."""
    found = torch.accelerator.current_accelerator()
    if found is None or found.type != device.type or not copies_asynchronously(device):
        return False
    try:
        torch.empty(1, pin_memory=True)
    except RuntimeError:
        return False
    return True


@functools.cache
def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the format of long sums on a device: float64, or float32 on one that has no float64."""
    try:
        torch.zeros((), dtype=torch.float64, device=device).add(1)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def device_name(device: torch.device) -> str | None:
    """Return the name of an accelerator, such as "NVIDIA H100"; None of the CPU and of one that does not say it."""
    name = None if device.type == "cpu" else getattr(torch.get_device_module(device), "get_device_name", None)
    return None if name is None else str(name(device))


@contextlib.contextmanager
def backend_flags(deterministic: bool, benchmark: bool | None, device: torch.device) -> Iterator[None]:
    """Set PyTorch's global flags for the time of a context.

    Args:
        deterministic: use deterministic algorithms only.
        benchmark: let cuDNN choose algorithms by measuring them; None leaves it as the program has set it.
        device: the device of this process.

    Raises:
        RuntimeError: `deterministic`, but it is too late for this process to multiply matrices so on the device.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as stack:
        if deterministic:
            stack.enter_context(_cublas_workspace())
            stack.callback(torch.use_deterministic_algorithms, before, warn_only=warns_only)
            torch.use_deterministic_algorithms(True)
            _check_products(device)
        stack.enter_context(cudnn_benchmark(False if deterministic else benchmark))
        yield


@contextlib.contextmanager
def _cublas_workspace() -> Iterator[None]:
    """Set the environment variable without which cuBLAS is not deterministic, if the user has not."""
    if _CUBLAS in os.environ:
        yield
        return
    os.environ[_CUBLAS] = ":4096:8"
    try:
        yield
    finally:
        os.environ.pop(_CUBLAS, None)


def _check_products(device: torch.device) -> None:
    """Raise the error of the first product of matrices before a run begins, in words that say what to do."""
    try:
        square = torch.ones(1, 1, device=device)
        square @ square
    except RuntimeError as error:
        if _CUBLAS not in str(error):
            raise
        raise RuntimeError(
            f"deterministic=True: PyTorch reads {_CUBLAS} once, before its first product of matrices on the GPU, and "
            f"this process has done one already; start the program with {_CUBLAS}=:4096:8 in its environment"
        ) from None


@contextlib.contextmanager
def cudnn_benchmark(value: bool | None) -> Iterator[None]:
    """Set whether cuDNN chooses algorithms by measuring them, for the time of a context; None leaves it as it is."""
    before = torch.backends.cudnn.benchmark
    if value is not None:
        torch.backends.cudnn.benchmark = value
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def matmul_precision() -> str:
    """Return the precision of products of float32 matrices, as PyTorch names it."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # Of PyTorch 2.9: it names the newer one.
            return torch.get_float32_matmul_precision()
    except RuntimeError:  # The program has set it by the newer name, after which PyTorch refuses to read the older one.
        return str(torch.backends.cuda.matmul.fp32_precision)


def is_slower_than_it_might_be(device: torch.device) -> bool:
    """Return whether a device has TensorFloat32, and products of float32 matrices do not use it."""
    supported = getattr(torch.get_device_module(device), "is_tf32_supported", None)
    return supported is not None and supported() and matmul_precision() == "highest"


def move_in_place(net: nn.Module, device: torch.device) -> None:
    """Move what cannot get memory of the device, so that tied parameters remain tied and keep their attributes.

    `nn.Module.to` makes other parameters in place of them, and FSDP2 fails. Nothing is done for a device that PyTorch
    knows by itself, and with tensors on the meta device.

    Raises:
        RuntimeError: something refers weakly to such a parameter.
    """
    for p in net.parameters():
        if p.is_meta or can_replace_memory(p, device):
            continue
        kind, attributes, gradient = type(p), vars(p), p.grad
        p.grad = None
        moved = nn.Parameter(p.detach().to(device), p.requires_grad)
        torch.utils.swap_tensors(p, moved)  # type: ignore[no-untyped-call]
        p.__class__ = kind
        vars(p).update(attributes)
        p.grad = None if gradient is None else gradient.to(device)
    for module in net.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta and not can_replace_memory(buffer, device):
                module._buffers[name] = buffer.to(device)


def can_replace_memory(p: Tensor, device: torch.device) -> bool:
    """Return whether a tensor can get memory of a device, and keeps its hooks.

    PyTorch can do that for the devices that it knows by itself, and not for those that packages add: `nn.Module.to`
    makes new parameters for them.
    """
    return p.device.type == device.type or torch._has_compatible_shallow_copy_type(p, torch.empty(0, device=device))


class DeviceMover:
    """Moves batches to a device: tensors, other objects with `.to`, and both in dicts, lists, tuples and dataclasses.

    Tensors are copied to a GPU from pinned memory on a stream of their own, so that the copy overlaps with
    computation; only the step that uses the batch waits for it.

    Args:
        device: the device to move to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.Stream(device) if pins_memory(device) else None
        self._waits = not copies_asynchronously(device)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the stream, which cannot be copied; a copy of the mover copies on the present one."""
        return {**vars(self), "_stream": None}

    def __call__(self, batch: Any) -> Any:
        """Return the batch on the device, in new containers of the same types; other objects are not copied."""
        moved = map_batch(batch, self._tensor, self._object)
        if self._stream is not None:
            torch.accelerator.current_stream(self.device).wait_stream(self._stream)
        return moved

    def _tensor(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.device == self.device else self._copy(tensor)

    def _object(self, value: Any) -> Any:
        return value.to(self.device, **_options_of_to(value.__class__, self._waits))

    def _copy(self, tensor: Tensor) -> Tensor:
        if self._waits or not tensor.is_cpu or type(tensor) is not Tensor or tensor.layout != torch.strided:
            return tensor.to(self.device, non_blocking=not self._waits)
        if self._stream is None:  # What is not dense, such as an expanded tensor, would be waited for.
            return tensor.clone().to(self.device, non_blocking=True)
        with self._stream:
            source = tensor if tensor.is_pinned() else torch.empty_like(tensor, pin_memory=True).copy_(tensor)
            copied = source.to(self.device, non_blocking=True)
        copied.record_stream(torch.accelerator.current_stream(self.device))  # Its memory is kept until the step ends.
        return copied


def map_batch(batch: Any, of_tensor: Callable[[Tensor], Any], of_object: Callable[[Any], Any]) -> Any:
    """Return a batch with other tensors and other objects that have `.to`, in new containers of the same types."""
    if isinstance(batch, Tensor):
        return of_tensor(batch)
    if type(batch) in (list, tuple):
        return type(batch)([map_batch(value, of_tensor, of_object) for value in batch])
    if callable(getattr(batch, "to", None)):
        return of_object(batch)
    if isinstance(batch, dict):
        mapped = copy.copy(batch)  # Keeps the default of a defaultdict.
        for key, value in batch.items():  # A Counter would count the pairs in `update`, and others forbid it.
            mapped[key] = map_batch(value, of_tensor, of_object)
        return mapped
    if isinstance(batch, Mapping):
        values = {key: map_batch(value, of_tensor, of_object) for key, value in batch.items()}
        return type(batch)(values)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_batch(value, of_tensor, of_object) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_batch(value, of_tensor, of_object) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        record = copy.copy(batch)
        for field in dataclasses.fields(batch):
            value = map_batch(getattr(batch, field.name), of_tensor, of_object)
            object.__setattr__(record, field.name, value)  # It may be frozen.
        return record
    return batch


@functools.cache
def _options_of_to(kind: Any, waits: bool) -> dict[str, bool]:
    """Return the options of the method `to` of a class with which it does not wait for the device, if it has them."""
    try:
        parameters = inspect.signature(kind.to).parameters
    except (AttributeError, TypeError, ValueError):  # The object may have the method, and not its class.
        return {}
    is_of_torch = kind.__module__.split(".")[0] in ("torch", "tensordict")  # They pass any options on to tensors.
    return {} if waits or not (is_of_torch or "non_blocking" in parameters) else {"non_blocking": True}
