"""Seeds derived from numbers; the RNG states of torch, random and numpy, saved and restored."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import torch

_MASK = (1 << 64) - 1


def derive_seed(*numbers: int) -> int:
    """Mix any integers into one seed of 63 bits; neighbouring numbers give unrelated seeds.

    The mixing step is SplitMix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 1


def seed_all(seed: int, device: torch.device | None = None) -> None:
    """Seed torch and random, and numpy if the program has imported it.

    Args:
        seed: below 2**64.
        device: the only accelerator to seed, since torch takes time to look for others; None seeds all of them.
    """
    seed_cpu(seed)
    if device is None:
        if torch.accelerator.is_available():  # Otherwise torch would note, with a traceback, what to seed later.
            torch.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_cpu(seed: int) -> None:
    """Seed torch, random and numpy on the CPU only. This is fast, and allowed in a DataLoader worker."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed & 0xFFFFFFFF)


def get_state(device: torch.device) -> dict[str, Any]:
    """Return the RNG states of torch, random and numpy as tensors and plain values, as a checkpoint holds them.

    Args:
        device: the accelerator whose RNG state is included; the CPU adds nothing.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"torch": _torch_state(), "random": [version, _tensor(words), gauss]}
    if device.type != "cpu":
        state[device.type] = _torch_state(torch.get_device_module(device))
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = [name, _tensor(keys.tolist()), *rest]
    return state


def _tensor(words: Iterable[int]) -> torch.Tensor:
    """Return integers as `torch.tensor` does, in a tenth of the time."""
    return torch.frombuffer(array("q", words), dtype=torch.int64)


def _torch_state(module: Any = torch, *index: int) -> torch.Tensor:
    """Return the RNG state of torch, or of the module of a device, without collecting garbage meanwhile.

    PyTorch makes the tensor while it holds the lock of the generator. What is collected then, such as a prediction that
    its caller has dropped, would wait for the lock for ever if it asks for the state in its turn.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return module.get_rng_state(*index)  # type: ignore[no-any-return]
    finally:
        if collects:
            gc.enable()


def set_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the RNG states that `get_state` returned; a state of another type of device is ignored."""
    torch.set_rng_state(state["torch"].cpu())
    version, words, gauss = state["random"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type].cpu())
    if "numpy" in state and "numpy" in sys.modules:
        name, keys, *rest = state["numpy"]
        sys.modules["numpy"].random.set_state((name, keys.tolist(), *rest))


def has_drawn(since: dict[str, Any]) -> bool:
    """Return whether torch, random or numpy have drawn random numbers on the CPU since `get_state` returned this."""
    now = get_state(torch.device("cpu"))
    return any(
        not torch.equal(a, b) if isinstance(a, torch.Tensor) else a != b
        for name in ("torch", "random", "numpy")
        if name in since and name in now
        for a, b in zip(_flat(since[name]), _flat(now[name]), strict=True)
    )


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@contextlib.contextmanager
def callers_rng() -> Iterator[None]:
    """Context of a call of a trainer, after which the generators are as its caller had them: those of torch on every
    device, of random, and of numpy. If devices or numpy were not used before, they begin as they would have done.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    module: Any = None if accelerator is None else torch.get_device_module(accelerator)
    was_used = module is not None and getattr(module, "is_initialized", lambda: True)()
    states = [_torch_state(module, i) for i in range(module.device_count())] if was_used else []
    had_numpy = "numpy" in sys.modules
    try:
        with fork_rng(torch.device("cpu")):
            yield
    finally:
        for i, state in enumerate(states):
            module.set_rng_state(state, i)
        if module is not None and not was_used and hasattr(module, "manual_seed_all"):
            module.manual_seed_all(torch.initial_seed())  # `torch.manual_seed` seeds devices that are used later.
        if "numpy" in sys.modules and not had_numpy:
            sys.modules["numpy"].random.seed()


@contextlib.contextmanager
def fork_rng(device: torch.device) -> Iterator[None]:
    """Restore all RNG states at the end of the context, as `torch.random.fork_rng` does for torch alone.

    Args:
        device: the accelerator whose RNG state is restored too.
    """
    numpy = sys.modules.get("numpy")
    torch_state, random_state = _torch_state(), random.getstate()
    numpy_state = None if numpy is None else numpy.random.get_state()
    device_state = None if device.type == "cpu" else _torch_state(torch.get_device_module(device))
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(random_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        if device_state is not None:
            torch.get_device_module(device).set_rng_state(device_state)
