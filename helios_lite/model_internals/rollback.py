"""What objects hold, kept in memory, so that it can be put back in place: what a step has changed is taken back."""

from __future__ import annotations

import functools
import io
import random
import sys
import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from helios_lite.data import DataModule
from helios_lite.metrics.digests import bits_of
from helios_lite.networks.dtensors import is_dtensor

_ATOMS = frozenset({bool, int, float, complex, str, bytes, NoneType, torch.device, torch.dtype, torch.Size})
_CONTAINERS = (dict, list, deque, set, tuple, frozenset)
_CLOSED = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, Dataset, DataLoader, DataModule)
_OPEN_OF_PYTORCH = (nn.Module, Optimizer, LRScheduler, torch.amp.GradScaler)
_HANDLES = (type(threading.Lock()), type(threading.RLock()), threading.Thread, io.IOBase)
"""What has one of these among its attributes, as a logger or a bar, belongs to the world outside of the model."""


class Rollback:
    """Keeps what is reachable from objects, until it is put back.

    That is what containers, modules, optimizers, schedulers and objects of other classes have, the elements of tensors
    and arrays, gradients, and the states of generators of random numbers. All stay the objects that they are. What is
    not entered, and not put back: functions, modules of Python, objects of the standard library, datasets and loaders,
    and objects with a lock, a thread or a file.

    Args:
        roots: the objects by the names that errors have for them.
        opened: objects that would not be entered otherwise.
        held: identities of tensors whose elements are not kept, because something else looks after them.

    Raises:
        ValueError: an iterator is reachable, whose position cannot be put back. The message has its path.
    """

    def __init__(self, roots: dict[str, Any], opened: Iterable[Any] = (), held: Collection[int] = ()) -> None:
        self._undo: list[Callable[[], object]] = []
        self._held = held
        opened = [each for each in opened if each is not None]
        self._opened = {id(each) for each in opened}
        pending = deque([*roots.items(), *((type(each).__name__, each) for each in opened)])
        seen: dict[int, Any] = {}  # With the objects, so that no other one gets the identity of one that has ended.
        with torch.no_grad():
            while pending:
                path, value = pending.popleft()
                if type(value) not in _ATOMS and id(value) not in seen:
                    seen[id(value)] = value
                    pending.extend((f"{path}.{name}" if path else name, each) for name, each in self._keep(path, value))

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _keep(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Keep what an object has, and yield what it refers to by name."""
        if isinstance(value, Tensor):
            yield from self._keep_tensor(value)
        elif isinstance(value, _CONTAINERS):
            yield from self._keep_items(value)
            if hasattr(value, "__dict__") and self._is_open(value):  # It is of a class of the program.
                yield from self._keep_attributes(value)
        elif isinstance(value, bytearray | array):
            self._undo.append(functools.partial(value.__setitem__, slice(None), value[:]))
        elif (generator := _state_of_generator(value)) is not None:
            self._undo.append(generator)
        elif "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray):
            if value.flags.writeable:
                self._undo.append(functools.partial(value.__setitem__, ..., value.copy()))
        elif isinstance(value, Iterator) and not isinstance(value, io.IOBase):
            raise ValueError(
                f"verify_every_steps: {path} is an iterator ({type(value).__name__}), whose position cannot be put "
                "back for the second time that a step is computed; draw from it in on_training_batch_start, or let a "
                "split of the datamodule have the data"
            )
        elif self._is_open(value):
            yield from self._keep_attributes(value)

    def _keep_items(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            yield from self._keep_dict(value)
            return
        if isinstance(value, list):
            self._undo.append(functools.partial(list.__setitem__, value, slice(None), [*value]))
        elif isinstance(value, deque | set):
            self._undo.append(functools.partial(_fill, value, [*value]))
        yield from _numbered(value)

    def _keep_attributes(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, torch.jit.ScriptModule):  # What it has is in C++, and not among its attributes.
            buffers = dict(value.named_buffers(recurse=False))
            for name, kept in {**buffers, "training": value.training}.items():
                self._undo.append(functools.partial(setattr, value, name, kept))
            yield from buffers.items()
            yield from value.named_parameters(recurse=False)
            yield from value.named_children()
            return
        if hasattr(value, "__dict__"):
            yield from self._keep_dict(vars(value))
        slots = {name: getattr(value, name) for name in _slots(value) if hasattr(value, name)}
        self._undo.append(functools.partial(_set_slots, value, slots))
        yield from slots.items()

    def _keep_dict(self, value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
        kept = {**value} if kind is dict else OrderedDict(value)
        self._undo.append(functools.partial(_refill, kind, value, kept))
        for key, each in () if _ATOMS.issuperset(map(type, kept.values())) else kept.items():
            yield str(key) if isinstance(key, str | int) else type(key).__name__, each

    def _keep_tensor(self, tensor: Tensor) -> Iterator[tuple[str, Any]]:
        gradient = tensor.grad if tensor.is_leaf else None
        if tensor.is_leaf:
            self._undo.append(functools.partial(_put_back_leaf, tensor, gradient, tensor.requires_grad))
        if gradient is not None:
            yield "grad", gradient
        if tensor.is_inference() and tensor.layout is torch.strided and not tensor.is_nested:
            with torch.inference_mode():
                self._undo.append(functools.partial(_copy_in_inference, tensor, tensor.clone()))
        elif id(tensor) not in self._held and (own := elements(tensor)) is not None:
            if own.layout is torch.sparse_coo:
                self._undo.append(functools.partial(setattr, tensor, "data", own.clone()))
                return
            if not is_dtensor(tensor):
                self._undo.append(functools.partial(_point_to, tensor, own))
            # Elements that are one in memory are written once.
            own = own[tuple(slice(0, 1) if step == 0 else slice(None) for step in own.stride())]
            self._undo.append(functools.partial(_copy_back, own, own.clone()))

    def _is_open(self, value: Any) -> bool:
        """Return whether the attributes of an object are kept."""
        if id(value) in self._opened or isinstance(value, nn.Module):
            return True
        attributes = getattr(value, "__dict__", {})
        has_any = hasattr(value, "__dict__") or _slots(value)  # One of a class with defaults gets them in a step.
        if isinstance(value, _CLOSED) or not isinstance(attributes, dict) or not has_any:
            return False
        package = type(value).__module__.partition(".")[0]
        if package in ("torch", "helios_lite"):
            return isinstance(value, _OPEN_OF_PYTORCH)
        is_of_python = package in sys.stdlib_module_names and package not in ("types", "collections", "__main__")
        return not is_of_python and not any(isinstance(each, _HANDLES) for each in attributes.values())


def elements(tensor: Tensor) -> Tensor | None:
    """Return a tensor that shares the memory of another one and not its history; of a shard that of this rank.

    None if there is no such memory, or it cannot be read in order.
    """
    own = tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    is_known = type(own).__torch_dispatch__ is Tensor.__torch_dispatch__ and not (own.is_meta or own.is_quantized)
    if not is_known or own.is_nested or own.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(own):
        return None
    return own.data if own.layout in (torch.strided, torch.sparse_coo) else None


@torch.inference_mode()
def _copy_in_inference(tensor: Tensor, kept: Tensor) -> None:
    tensor.copy_(kept)


def _numbered(items: Collection[Any]) -> Iterator[tuple[str, Any]]:
    """Yield items by their number, none if there is nothing to keep of them, as in a long list of numbers."""
    return ((str(i), each) for i, each in enumerate(() if _ATOMS.issuperset(map(type, items)) else items))


def _slots(value: Any) -> list[str]:
    """Return the names of the attributes that a class of Python has no dict for."""
    found = (getattr(cls, "__slots__", ()) for cls in type(value).__mro__)
    names = (name for slots in found for name in ([slots] if isinstance(slots, str) else slots))
    return [name for name in names if not name.startswith("__")]


def _set_slots(value: Any, kept: dict[str, Any]) -> None:
    for name in _slots(value):
        if name in kept:
            object.__setattr__(value, name, kept[name])
        elif hasattr(value, name):
            object.__delattr__(value, name)


def _refill(kind: Any, value: dict[Any, Any], kept: dict[Any, Any]) -> None:
    """Let a dict have the items, in the order, that it had; one that has not changed is not touched."""
    items = [*kind.items(value)]
    if len(items) != len(kept) or any(
        now is not before or each is not other
        for (now, each), (before, other) in zip(items, kind.items(kept), strict=True)
    ):
        kind.clear(value)
        kind.update(value, kept)


def _fill(value: Any, kept: list[Any]) -> None:
    value.clear()
    (value.extend if isinstance(value, deque) else value.update)(kept)


def _put_back_leaf(tensor: Tensor, gradient: Tensor | None, requires_grad: bool) -> None:
    if tensor.grad is not gradient:
        tensor.grad = gradient
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)


def _point_to(tensor: Tensor, own: Tensor) -> None:
    """Let a tensor have its memory and its shape again, if `tensor.data` was assigned, or after `unsqueeze_`."""
    if _place(tensor) != _place(own):
        tensor.data = own


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _copy_back(own: Tensor, kept: Tensor) -> None:
    """Let memory have what it had. Where nothing has changed, nothing is written: it may be that of a file to read."""
    if not own.is_cpu or own.element_size() > 8 or not torch.equal(bits_of(own), bits_of(kept)):
        own.copy_(kept)


def _state_of_generator(value: Any) -> Callable[[], object] | None:
    """Return what puts a generator of random numbers back, None for anything else."""
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return functools.partial(value.setstate, value.getstate())
    if "numpy" in sys.modules:
        of_numpy = sys.modules["numpy"].random
        if isinstance(value, of_numpy.RandomState):
            return functools.partial(value.set_state, value.get_state())
        if isinstance(value, of_numpy.Generator):
            bits = value.bit_generator
            return functools.partial(type(bits).state.__set__, bits, bits.state)
    return None
