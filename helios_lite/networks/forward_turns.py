"""Forward passes of sharded networks on ranks that do not run the same number of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helios_lite.nested import leaves
from helios_lite.processes.world import World


class ForwardTurns:
    """Lets ranks that share sharded networks run different forward passes, with one block gathered at a time.

    FSDP2 gathers the parameters of a block from all ranks whenever the block runs, so all ranks must run the same
    blocks in the same order. In an evaluation they do not: one rank has a batch more than another, or generates a
    longer text. While this object is active, the ranks agree on every gather before it happens. A rank that is about to
    run a block requests it, and the request of the lowest rank is served first: all ranks gather this block, and those
    that did not request it free it at once. Ranks that request the same block run it together. A rank that has no batch
    left serves the others in `finish`. A backward pass is an error.

    An agreement is an all-reduce of one integer on the CPU, which takes less than 0.1 ms between two processes of one
    machine. Two other ways were measured (benchmarks/sharded_validation.py). To gather whole networks before the
    evaluation takes no agreements, but the memory of a network that is not sharded. To pad with batches whose results
    are dropped takes no agreements either, but calls `valid_step` for batches that do not count, which a metric that is
    updated there cannot know.

    Args:
        modules: all sharded modules, in the same order on every rank.
        world: the ranks.
    """

    def __init__(self, modules: Sequence[Any], world: World) -> None:
        self._modules, self._world = modules, world
        self._index = {module: index for index, module in enumerate(modules)}
        self._running: set[nn.Module] = set()
        self._handles: list[Any] = []

    def start(self) -> None:
        """Agree on gathers from now on. Call on every rank, while no network is gathered."""
        # A compiled module calls its hooks from its graph, which cannot hold an agreement. FSDP leaves its own out too.
        before = torch.compiler.disable(self._before_forward)  # type: ignore[no-untyped-call]
        after = torch.compiler.disable(self._after_forward)  # type: ignore[no-untyped-call]
        for module in self._modules:
            # Before the hooks by which FSDP gathers and frees the parameters, and looks at outputs.
            self._handles.append(module.register_forward_pre_hook(before, prepend=True))
            self._handles.append(module.register_forward_hook(after, prepend=True))

    def finish(self) -> None:
        """Gather what other ranks request, until all ranks have come here. Call on every rank."""
        nothing = self._world.size * len(self._modules)
        while (request := self._exchange(nothing)) != nothing:
            self._help(request % len(self._modules))

    def stop(self) -> None:
        """Gather without agreements from now on. It does not communicate, so it may follow an error."""
        while self._handles:
            self._handles.pop().remove()
        self._running.clear()

    def _before_forward(self, module: nn.Module, arguments: Any) -> None:
        index = self._index[module]
        mine = self._world.rank * len(self._modules) + index
        while (request := self._exchange(mine) % len(self._modules)) != index:
            self._help(request)
        self._running.add(module)

    def _after_forward(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._running.discard(module)
        for _, value in leaves(output):
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(_refuse)  # type: ignore[no-untyped-call]

    def _exchange(self, request: int) -> int:
        """Return the smallest request of all ranks: rank * number of modules + index of the module."""
        smallest = torch.tensor(request)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    def _help(self, index: int) -> None:
        """Take part in gathering a module for another rank."""
        module = self._modules[index]
        is_running = module in self._running
        if is_running:  # This rank has gathered it already, but must take part: it gathers it anew, in the same memory.
            module.reshard()
        module.unshard()
        if not is_running:
            module.reshard()


def _refuse(gradient: Tensor) -> None:
    raise RuntimeError(
        "valid_step, test_step: a backward pass through a sharded network gathers its blocks from all ranks, which may "
        "have different numbers of batches; use strategy='ddp'"
    )
