"""The order in which ranks gather and average the parts of sharded networks, compared before every step."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather
from torch.optim.optimizer import register_optimizer_step_pre_hook

from helios_lite.networks.gradient_reducer import cpu_group, hook_gradient
from helios_lite.processes.world import World


class GatherOrder:
    """Notes what this rank gathers and averages, and compares it with the other ranks before an optimizer steps.

    FSDP2 sends parameters and gradients without a name. A rank that runs another block than the rest would get parts of
    its parameters for those of another block, without notice if the shapes agree.

    Args:
        world: the ranks.
    """

    def __init__(self, world: World) -> None:
        self._world, self._group = world, cpu_group(dist.group.WORLD)
        self._names: list[str] = []
        self._order: list[int] = []  # Indices of names, since the last comparison.
        self._parameters: dict[int, nn.Parameter] = {}  # By identity.
        self._roots: list[Any] = []
        self._is_on = True
        self._compared: torch.optim.Optimizer | None = None
        self._step_hook = register_optimizer_step_pre_hook(functools.partial(_tell_of_step, weakref.ref(self)))

    def add(self, net: nn.Module) -> None:
        """Note what a sharded network gathers and averages from now on. Call on every rank, in the same order."""
        own = weakref.ref(self)
        self._roots.append(net)
        for path, module in net.named_modules():
            if hasattr(module, "unshard"):
                module.set_custom_all_gather(_NotedGather(own, len(self._names)))
                self._names.append(f"gathers {path or 'a ' + type(net).__name__.removeprefix('FSDP')}")
        for name, p in net.named_parameters():
            self._parameters[id(p)] = p
            hook_gradient(p, functools.partial(_note, own, len(self._names)))
            self._names.append(f"averages the gradient of {name}")

    def compare(self, optimizer: torch.optim.Optimizer) -> None:
        """Compare what the ranks have gathered and averaged since the last comparison. Call on every rank.

        Args:
            optimizer: steps next.

        Raises:
            RuntimeError: it was not the same. The message names the first difference. Or a backward pass has failed.
        """
        # No public name says that a backward pass has begun and not ended. A hook may step while one goes on.
        is_outside = torch._C._current_graph_task_id() == -1
        if is_outside and any(
            net._get_fsdp_state()._state_ctx.post_backward_final_callback_queued for net in self._roots
        ):
            raise RuntimeError(
                "optimizer_step: a backward pass through a sharded network has failed before, and what it has left "
                "behind would be a part of this step; end the run where it fails, or use strategy='ddp'"
            )
        self._compared = optimizer
        mine, order = hash(tuple(self._order)), [*self._order]
        self._order.clear()
        ends = torch.tensor([mine, ~mine])
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=self._group)
        highest, inverse_of_lowest = ends.tolist()
        if highest == ~inverse_of_lowest:
            return
        orders: list[Any] = [None] * self._world.size
        dist.all_gather_object(orders, order, group=self._group)
        for parts in itertools.zip_longest(*orders):
            other = next((rank for rank, part in enumerate(parts) if part != parts[0]), None)
            if other is not None:
                first, second = ("nothing more" if parts[i] is None else self._names[parts[i]] for i in (0, other))
                raise RuntimeError(
                    f"optimizer_step: the ranks have run other parts of sharded networks: rank 0 {first} where rank "
                    f"{other} {second}. All ranks must run the same blocks in the same order; multiply by 0 what is "
                    "not to count, or use strategy='ddp'"
                )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the ranks agree on what they gather by other means."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def last(self) -> str | None:
        """Return what this rank has gathered or averaged last since the last comparison."""
        return self._names[self._order[-1]] if self._order else None

    def close(self) -> None:
        """Compare nothing any more."""
        self._step_hook.remove()

    def note(self, index: int) -> None:
        """Note that something is gathered or averaged."""
        if self._is_on:
            self._order.append(index)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Compare before a program steps an optimizer itself."""
        if optimizer is self._compared:
            self._compared = None
        elif any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"]):
            self.compare(optimizer)
            self._compared = None


class _NotedGather(DefaultAllGather):
    """Gathers the shards of a module as FSDP2 does."""

    def __init__(self, order: weakref.ref[GatherOrder], index: int) -> None:
        self._order, self._index = order, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _note(self._order, self._index)
        return super().__call__(*args, **kwargs)


def _note(order: weakref.ref[GatherOrder], index: int, p: Tensor | None = None) -> None:
    if (own := order()) is not None:
        own.note(index)


def _tell_of_step(order: weakref.ref[GatherOrder], optimizer: Any, *arguments: Any) -> None:
    if (own := order()) is not None:
        own.before_step(optimizer)
