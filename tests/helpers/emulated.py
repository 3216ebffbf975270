"""A second device for a PyTorch without a GPU: `emulate()` registers it as "emu".

Its tensors are plain tensors with real values, in memory that only its own operations reach. The rules are those of a
GPU: what mixes devices raises, and the host sees a value only by a copy or by a read. `recorded()` notes what makes the
host wait, with its place in the code: reads (`item`, `nonzero`, ...), blocking copies, and waits for all work.
`torch.accelerator` and `torch.get_device_module` know the device, so no function of the package is replaced.

Ranks send its tensors by gloo. FSDP2 frees none of its memory.

It shows devices, copies and waits. No work goes on beside the host, so streams, pinned memory and NCCL are left to a
real GPU; and so are recurrent layers, and most of what autocast does.
"""

import contextlib
import functools
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

HOST = torch.device("cpu")
READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_consecutive"}
TAKES_HOST_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
PRODUCTS = {"mm", "addmm", "bmm"}
SENT_BY_GLOO = {
    "c10d": ("allreduce_", "broadcast_", "allgather_", "_allgather_base_", "_reduce_scatter_base_"),
    "_c10d_functional": ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor", "wait_tensor"),
}
KERNELS_OF_HOST = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

_libraries: list[torch.library.Library] = []  # They hold what they have registered.
_waits: list[tuple[str, str]] | None = None  # None while nothing is recorded.


class _Module(backend_registration._DummyBackendModule):
    """What `torch.get_device_module` returns."""

    has_float64 = True
    allocated = 0  # Bytes.

    def __init__(self) -> None:
        self.generator = torch.Generator()

    def manual_seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.generator.set_state(state)  # It refuses a state that is on the device.

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_device_name(self, device: Any = None) -> str:
        return "emulated"

    def memory_allocated(self, device: Any = None) -> int:
        return self.allocated

    max_memory_allocated = memory_allocated  # Nothing is ever counted as freed.

    def before_product(self) -> None:
        """Called before matrices are multiplied."""

    def set_device(self, device: Any) -> None:
        pass

    Stream, Event = torch.cpu.Stream, torch.cpu.Event
    current_stream, stream = staticmethod(torch.cpu.current_stream), staticmethod(torch.cpu.stream)

    def synchronize(self, device: Any = None) -> None:
        _note("synchronize")


MODULE = _Module()


def emulate() -> torch.device:
    """Register the device as the accelerator of this process, and return it. There is no way back."""
    if not _libraries:
        backend_registration._setup_privateuseone_for_python_backend("emu", backend_module=MODULE)
        for key, function in (("PrivateUse1", _run), ("AutocastPrivateUse1", torch.library.fallthrough_kernel)):
            _libraries.append(torch.library.Library("_", "IMPL", key))
            _libraries[-1].fallback(function)
        _libraries.append(torch.library.Library("aten", "IMPL", "PrivateUse1"))
        _libraries[-1].impl("_copy_from", _copy)
        _libraries[-1].impl("convolution_overrideable", _instead(torch.ops.aten.convolution.default))
        _libraries[-1].impl("convolution_backward_overrideable", _convolution_backward)
        _libraries.append(torch.library.Library("aten", "IMPL", "AutocastPrivateUse1"))
        for name in ("linear", "matmul", "mm", "addmm", "conv2d"):
            _libraries[-1].impl(name, functools.partial(_lowered, getattr(torch.ops.aten, name)))
        for namespace, names in SENT_BY_GLOO.items():
            _libraries.append(torch.library.Library(namespace, "IMPL", "PrivateUse1"))
            for name in names:
                op = getattr(getattr(torch.ops, namespace), name).default
                with warnings.catch_warnings(action="ignore"):  # The kernels of PyTorch for such devices are replaced.
                    _libraries[-1].impl(name, _instead(op), allow_override=True)
        # What PyTorch does by an allocator, which only C++ can register.
        torch.UntypedStorage.clone = _storage_function(torch.UntypedStorage.clone)  # type: ignore[method-assign]
        torch.UntypedStorage.resize_ = _resize(torch.UntypedStorage.resize_)  # type: ignore[method-assign]
        torch.serialization.register_package(0, lambda storage: None, _deserialized)
        torch.accelerator.synchronize = MODULE.synchronize  # type: ignore[assignment]
    return torch.device("emu", 0)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, str]]]:
    """Context that yields what makes the host wait in it, as it comes: pairs of what it is, and where."""
    global _waits
    before, _waits = _waits, []
    try:
        yield _waits
    finally:
        _waits = before


def _note(what: str) -> None:
    if _waits is None:
        return
    frames = [f for f in traceback.extract_stack() if f.filename != __file__ and "/torch/_" not in f.filename]
    ours = [f for f in frames if "/helios_lite/" in f.filename]
    places = [frames[-1], *(ours[-1:] if ours and ours[-1] is not frames[-1] else [])]
    _waits.append((what, " in ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in places)))


def is_emulated(value: Any) -> bool:
    """Return whether a value is a tensor of the device."""
    return isinstance(value, Tensor) and value.device.type == "emu"


def host_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor of the host with the memory of one of the device."""
    storage = tensor.untyped_storage()
    memory = getattr(storage, "memory", None)
    if memory is None:  # PyTorch has made another storage for the same memory.
        memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), HOST, storage.nbytes())
    alias = torch.empty(0, dtype=tensor.dtype)
    return alias.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())


def device_storage(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    """Return a storage of the device with memory of the host, which it keeps."""
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device("emu", 0), memory.nbytes())
    storage.memory = memory
    MODULE.allocated += memory.nbytes()
    return storage


def device_tensor(tensor: Tensor, storage: torch.UntypedStorage | None = None) -> Tensor:
    """Return a tensor of the device with the memory of one of the host, which nobody else may use."""
    made = torch._C._acc.create_empty_tensor([0], tensor.dtype)
    return _set(made, device_storage(tensor.untyped_storage()) if storage is None else storage, tensor)


def _set(tensor: Tensor, storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    with torch._C._AutoDispatchBelowAutograd():
        set_.redispatch(KERNELS_OF_HOST, tensor, storage, like.storage_offset(), like.size(), like.stride())
    return tensor


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Do any operation that has a tensor of the device, or makes one."""
    name, tensors, takes_generator, has_out = _facts(op)
    if name == "record_stream":
        return None
    if name == "set_":
        return _set_source(*args)
    aliases: dict[int, tuple[Tensor, Tensor]] = {}  # By the identity of either: a tensor of the device, and its alias.
    on_host: list[Tensor] = []

    def unwrapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.is_cpu:
                on_host.append(value)
                return value
            if id(value) not in aliases:
                alias = host_tensor(value)
                aliases[id(value)] = aliases[id(alias)] = (value, alias)
            return aliases[id(value)][1]
        if isinstance(value, list | tuple):
            return type(value)([unwrapped(item) for item in value])
        return HOST if isinstance(value, torch.device) else value

    host_args = [
        torch.tensor(value) if i in tensors and isinstance(value, int | float) else unwrapped(value)
        for i, value in enumerate(args)
    ]
    host_kwargs = {key: unwrapped(value) for key, value in kwargs.items() if key != "pin_memory"}
    if takes_generator and host_kwargs.get("generator") is None:
        host_kwargs["generator"] = MODULE.generator
    if has_out and (out := host_kwargs["out"]).dim() == 0 and all(out is not each for each in host_args):
        out.resize_(0)  # PyTorch gives it to other devices as it is, and warns if it does not fit.
    _check(name, args, on_host, has_device=len(aliases) > 0)
    with torch._C._AutoDispatchBelowAutograd():
        result = op(*host_args, **host_kwargs)
    storages = {}
    for tensor, alias in aliases.values():
        if alias.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or alias.size() != tensor.size():
            _set(tensor, device_storage(alias.untyped_storage()), alias)  # It was resized.
        storages[alias.untyped_storage().data_ptr()] = tensor.untyped_storage()

    if not MODULE.has_float64 and any(getattr(each, "dtype", None) is torch.float64 for each in (result, *host_args)):
        raise TypeError("the device has no float64")

    def wrapped(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)([wrapped(item) for item in value])
        if not isinstance(value, Tensor) or any(value is each for each in on_host):
            return value
        if id(value) in aliases:
            return aliases[id(value)][0]
        return device_tensor(value, storages.get(value.untyped_storage().data_ptr()) if value.numel() else None)

    return wrapped(result)


@functools.cache
def _facts(op: Any) -> tuple[str, set[int], bool, bool]:
    """Return the name of an operation, which arguments are tensors, and whether it takes a generator, or an output."""
    arguments = op._schema.arguments
    tensors = {i for i, each in enumerate(arguments) if str(each.type) == "Tensor"}
    names = [each.name for each in arguments]
    return op._schema.name.removeprefix("aten::"), tensors, "generator" in names, "out" in names


def _set_source(tensor: Tensor, source: Any, *place: Any) -> Tensor:
    if isinstance(source, Tensor):
        return _set(tensor, source.untyped_storage(), source)
    offset, size, stride = [*place, ()][:3] if place else (0, (source.nbytes() // tensor.itemsize,), (1,))
    memory = getattr(source, "memory", None) or torch.UntypedStorage(0)
    return _set(tensor, source, torch.empty(0, dtype=tensor.dtype).set_(memory, offset, size, stride))


def _check(name: str, args: Any, on_host: list[Tensor], *, has_device: bool) -> None:
    """Raise for operations that mix devices, and note what makes the host wait."""
    if name in PRODUCTS:
        MODULE.before_product()
    if name in READS:
        _note(name.removeprefix("_"))
    if name in TAKES_HOST_INDICES:
        if args[0].is_cpu:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
        if any(index.dim() > 0 for index in on_host):
            _note("copy of indices")
        if any(index.dtype == torch.bool for index in args[1] if index is not None):
            _note("nonzero")
    elif has_device and any(tensor.dim() > 0 for tensor in on_host):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found emu:0 and cpu")


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy to the device, from it, or there."""
    is_dense = source.is_contiguous() or source.numel() == source.untyped_storage().nbytes() // source.itemsize
    if source.device != target.device and not (non_blocking and is_dense):
        _note(f"copy from {source.device.type} to {target.device.type} of shape {tuple(source.shape)}")
    source, memory = (host_tensor(tensor) if is_emulated(tensor) else tensor for tensor in (source, target))
    with torch._C._AutoDispatchBelowAutograd():
        memory.copy_(source)
    return target


def _lowered(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Do an operation as autocast does it: in the format that it has chosen."""
    dtype = torch.get_autocast_dtype("emu")
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        lower = [x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args]
        return op(*lower, **kwargs)


def _instead(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(op, *args, **kwargs)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *options: Any) -> Any:
    *options, mask = options
    backward = torch.ops.aten.convolution_backward.default
    return _run(backward, gradient, x, weight, [weight.shape[0]] if mask[2] else None, *options, mask)


def _storage_function(of_others: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def clone(storage: Any) -> Any:
        return device_storage(storage.memory.clone()) if storage.device.type == "emu" else of_others(storage)

    return clone


def _resize(of_others: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Memory of the device is never given back."""
    return lambda storage, size: storage if storage.device.type == "emu" else of_others(storage, size)


def _deserialized(storage: Any, location: str) -> Any:
    return device_storage(storage) if location.startswith("emu") else None
