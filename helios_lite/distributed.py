"""The processes of a run from inside: who this one is, what they tell each other, networks that span them.

Methods marked "call on every rank" are collective: a rank that leaves one out makes the others wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

PARENT = "HELIOS_LITE_PARENT"
"""The environment variable that tells a process which one launched it, if that was a trainer and not torchrun."""


@dataclasses.dataclass(frozen=True)
class World:
    """The place of this process among those of the run.

    Attributes:
        rank: its number among all, from 0; rank 0 prints and writes.
        local_rank: its number on this machine.
        size: how many there are on all machines.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

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

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0. Call on every rank; any picklable value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def maximum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the largest value over the ranks, place by place. Call on every rank."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()


def is_launched() -> bool:
    """Say whether torchrun or a trainer has started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_world(device_type: str) -> World:
    """Join the processes that torchrun or the trainer has started; a process that nobody started so is alone.

    Call on every rank. The process group stays until the process ends, so that a test can follow a fit.

    Args:
        device_type: "cuda" communicates by NCCL, everything else by gloo.
    """
    if not is_launched():
        return World()
    if not dist.is_initialized():
        store, rank, size = next(rendezvous("env://"))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun on one machine keeps the store when it restarts processes: they would find addresses of the dead.
            store = dist.PrefixStore(  # type: ignore[attr-defined]
                os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store
            )
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        atexit.register(_leave_world)
    return World(dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0")), dist.get_world_size())


def _leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
        # The thread of gloo that has sent the last tensor lets go of it only now, and needs the interpreter for that:
        # if the interpreter is ending, it aborts the process ("terminate called without an active exception").
        time.sleep(0.2)


def choose_accelerator(accelerator: str) -> str:
    """Return the type of device to compute on: "cuda", "mps" or "cpu".

    Args:
        accelerator: "auto" (CUDA, then MPS, then CPU), or the one that must be used.

    Raises:
        RuntimeError: the accelerator asked for is not there; nothing falls back silently to the CPU.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return next(name for name, there in available.items() if there)
    if not available[accelerator]:
        found = ", ".join(name for name, there in available.items() if there)
        raise RuntimeError(f"accelerator={accelerator!r} is not available on this machine, which has: {found}")
    return accelerator


def choose_devices(device_type: str, devices: int | str | Sequence[int]) -> list[int]:
    """Return the numbers of the devices to use, one process for each.

    Args:
        device_type: "cuda", "mps" or "cpu"; the CPU takes any number of processes, MPS one.
        devices: how many, their numbers, or "auto": every GPU, one process otherwise.

    Raises:
        RuntimeError: there are not so many.
    """
    there = torch.cuda.device_count() if device_type == "cuda" else 1
    if devices == "auto":
        return list(range(there))
    chosen = list(range(devices)) if isinstance(devices, int) else [int(number) for number in devices]
    if device_type != "cpu" and max(chosen) >= there:
        raise RuntimeError(f"devices={devices!r}: this machine has {there} of type {device_type}")
    return chosen


def choose_device(device_type: str, devices: int | str | Sequence[int], world: World) -> torch.device:
    """Return this process's device: the one of `devices` that its local rank means; under torchrun all count."""
    if device_type != "cuda":
        return torch.device(device_type)
    numbers = choose_devices(device_type, devices if world.size == 1 or PARENT in os.environ else "auto")
    return torch.device(device_type, numbers[world.local_rank])


class Parallel:
    """Networks on their device, alike or sharded over the processes.

    Checkpoints need not know: state dicts of networks and optimizers have plain names and whole tensors under every
    strategy. Sharded ones are gathered when asked for, so `state_dict` is then to be called on every rank.

    Args:
        device: of this process.
        world: the processes.
        strategy: "ddp" or "fsdp"; without effect for a process that is alone.
        compile: compile networks in place.
    """

    def __init__(self, device: torch.device, world: World, strategy: str = "ddp", compile: bool = False) -> None:
        self.device, self.world = device, world
        self._strategy, self._compile = strategy, compile
        self._synced = True
        self._replicated: list[_Replicated] = []
        self._sharded: list[Any] = []  # Roots; each an FSDPModule.

    def wrap(self, net: nn.Module, blocks: tuple[type[nn.Module], ...]) -> nn.Module:
        """Return the network ready for training. Call on every rank, in the same order.

        Args:
            net: initialised alike on every rank.
            blocks: types of submodules that FSDP shards one by one; the network as a whole besides.
        """
        net = net.to(self.device)
        if self._compile:
            net.compile()
        if self.world.size == 1 or not any(p.requires_grad for p in net.parameters()):
            return net
        if self._strategy == "ddp":
            replicated = _Replicated(net, device_ids=[self.device.index] if self.device.type == "cuda" else None)
            self._replicated.append(replicated)
            return replicated
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world.size,))
        for module in reversed(list(net.modules())):
            if module is net or (blocks and isinstance(module, blocks)):
                fully_shard(module, mesh=mesh)
        net.register_state_dict_post_hook(_gather_after_state_dict)  # type: ignore[no-untyped-call]
        net.register_load_state_dict_pre_hook(_shard_before_load_state_dict)  # type: ignore[no-untyped-call]
        self._sharded.append(net)
        return net

    def prepare(self, parts: Sequence[tuple[str, Any]]) -> None:
        """Look at what a model consists of, after its `setup`.

        Lets optimizers of sharded networks save and load whole tensors.

        Raises:
            ValueError: something is trained that was not wrapped; with several processes it would silently become
                another one in each. The message names the attribute.
        """
        if self.world.size == 1:
            return
        wrapped = {id(p) for net in [*self._replicated, *self._sharded] for p in net.parameters()}
        optimizers = [part for _, part in parts if isinstance(part, torch.optim.Optimizer)]
        trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        for name, part in parts:
            if isinstance(part, nn.Module) and any(id(p) in trained - wrapped for p in part.parameters()):
                raise ValueError(
                    f"{name}: is trained by {self.world.size} processes but not passed through parallelize"
                )
        if self._sharded:
            for optimizer in optimizers:
                optimizer.register_state_dict_post_hook(_gather_optimizer_state)
                optimizer.register_load_state_dict_pre_hook(_shard_optimizer_state)

    def sync_gradients(self, now: bool) -> None:
        """Say whether the coming forward and backward pass are to reduce gradients over the ranks."""
        if now != self._synced:
            self._synced = now
            for net in self._replicated:
                net.require_backward_grad_sync = now
            for net in self._sharded:
                net.set_requires_gradient_sync(now)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Make forward passes local, so that ranks may evaluate different numbers of batches. Call on every rank.

        Buffers (statistics of batch norm) are those of rank 0, as they will be in the next training step anyway.
        """
        shards = [module for net in self._sharded for module in net.modules() if hasattr(module, "unshard")]
        for replicated in self._replicated:
            for buffer in replicated.module.buffers():
                dist.broadcast(buffer, src=0)
            replicated.local = True
        for module in shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for replicated in self._replicated:
                replicated.local = False
            for module in shards:
                module.reshard()
                module.set_reshard_after_forward(module not in self._sharded, recurse=False)


class _Replicated(DistributedDataParallel):
    """DDP that looks like the network inside: its attributes, its names in state dicts, its copies.

    Attributes:
        local: whether forward passes are to leave DDP out, which sends buffers around even in evaluation mode.
    """

    local = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.module if self.local else super().forward)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        twin: nn.Module = copy.deepcopy(self.module, memo)
        return twin


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the network inside of DDP; any other network itself."""
    return net.module if isinstance(net, DistributedDataParallel) else net


def whole(value: Any) -> Any:
    """Return a sharded tensor's whole value, anything else as it is. Call on every rank."""
    return value.full_tensor() if _is_sharded(value) else value


def _is_sharded(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _shard_like(value: Any, like: Any) -> Any:
    """Return a whole tensor sharded as a DTensor of the same shape is; anything else as it is."""
    from torch.distributed.tensor import distribute_tensor

    if isinstance(value, Tensor) and _is_sharded(like) and not _is_sharded(value) and value.shape == like.shape:
        # Every rank has read the whole tensor: nothing needs to be sent.
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def _gather_after_state_dict(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, value in state.items():
        if _is_sharded(value):
            state[name] = whole(value)


def _shard_before_load_state_dict(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
) -> None:
    own = {prefix + name: value for name, value in [*module.named_parameters(), *module.named_buffers()]}
    for name, value in own.items():
        if name in state:
            state[name] = _shard_like(state[name], value)


def _gather_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parts = {number: {name: whole(value) for name, value in part.items()} for number, part in state["state"].items()}
    return {**state, "state": parts}


def _shard_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        number: {name: _shard_like(value, parameters[number]) for name, value in part.items()}
        for number, part in state["state"].items()
    }
    return {**state, "state": parts}
