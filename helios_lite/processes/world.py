"""The processes of a run: joining them, and what they tell each other.

Methods marked "call on every rank" are collective: if one rank does not call them, the other ranks wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import faulthandler
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from helios_lite.processes.output import flush_output

T = TypeVar("T")
PARENT = "HELIOS_LITE_PARENT"
"""The environment variable with the process that launched this one, set if a trainer did so and not torchrun."""
_WITHOUT_LIMIT = datetime.timedelta(days=365)
_SECONDS_TO_END = 3.0  # The program of a rank that has failed, with its process groups.
_has_failed = threading.Event()


@dataclasses.dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes.

    Attributes:
        rank: the global rank, from 0; rank 0 prints and writes.
        local_rank: the rank on this machine, from 0.
        size: the number of processes on all machines.
        local_size: the number of processes on this machine.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank. Call on every rank; any picklable value."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_to_main(self, value: T) -> list[T]:
        """Return the values of all ranks on rank 0, by rank, and nothing on the others. Call on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.is_main else None, dst=0)
        return values if self.is_main else []

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0. Call on every rank; any picklable value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until all ranks have come here. Call on every rank."""
        self.gather(None)

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise maximum over all ranks, from CPU to CPU. Call on every rank."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()


def is_launched() -> bool:
    """Return whether torchrun or a trainer has started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_world(device_type: str) -> World:
    """Join the processes that torchrun or the trainer has started; return a world of one if neither has.

    Call on every rank. The process group lives until the process ends, so that a test can follow a fit.

    Args:
        device_type: tensors of the CPU are sent by gloo, and those of an accelerator by the backend that PyTorch has
            for it, such as NCCL.
    """
    if not is_launched():
        return World()
    if not dist.is_initialized():
        store, rank, size = next(rendezvous("env://"))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun on one machine keeps the store when it restarts the processes, which would find the addresses
            # of dead ones there.
            store = dist.PrefixStore(  # type: ignore[attr-defined]
                os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store
            )
        # That of "mps" is gloo, and so is that of an accelerator without a backend of its own.
        own = dist.Backend.default_device_backend_map.get(device_type, "gloo")
        backend = "gloo" if own == "gloo" else f"cpu:gloo,{device_type}:{own}"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        atexit.register(_destroy_process_group)
    size = dist.get_world_size()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return World(dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0")), size, local_size)


def limit_waiting(is_limited: bool) -> None:
    """Let this process wait for the others with the limits of PyTorch, or as long as it takes, in all groups.

    A group that was made with a limit of its own keeps it.
    """
    for group in list(dist.distributed_c10d._world.pg_map) if dist.is_initialized() else ():
        for device in group._device_types:
            with contextlib.suppress(AttributeError, RuntimeError, ValueError):  # Its backend has none that can be set.
                backend: Any = group._get_backend(device)
                default = dist.distributed_c10d._get_default_timeout(backend.name())
                before, after = (_WITHOUT_LIMIT, default) if is_limited else (default, _WITHOUT_LIMIT)
                if backend.options._timeout == before:
                    backend._set_default_timeout(after)


@contextlib.contextmanager
def ending_after_failure() -> Iterator[None]:
    """A context after whose error this process does not wait for the others for long when it ends.

    They may wait for it, in a step that it has not finished, and destroying the process groups would wait for that.
    """
    _has_failed.clear()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, GeneratorExit):  # Who no longer wants the results of `predict`.
            _has_failed.set()
        raise


def sends_by_device(device_type: str) -> bool:
    """Return whether tensors of an accelerator are sent by a backend of its own, which needs one device for each rank.

    A program that has made the process group itself may have chosen gloo, which takes them over the CPU.
    """
    backends = dict(part.split(":") for part in dist.get_backend_config().split(",")) if dist.is_initialized() else {}
    return backends.get(device_type, "gloo") != "gloo"


def _destroy_process_group() -> None:
    if dist.is_initialized():
        if _has_failed.is_set():
            # Exits with status 1, by a thread in C: Python starts none at its end. Where the program still refers to a
            # group, that is destroyed later.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            faulthandler.dump_traceback_later(_SECONDS_TO_END, exit=True, file=nowhere)
            flush_output()
        dist.destroy_process_group()
        # The thread of gloo that sent the last tensor releases it only now and needs the interpreter for that. If the
        # interpreter is shutting down, the process aborts ("terminate called without an active exception").
        time.sleep(0.2)
