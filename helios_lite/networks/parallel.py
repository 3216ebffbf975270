"""Networks that span the processes of a run: replicated by DDP, or sharded by FSDP2; recomputed activations."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from helios_lite.networks import dtensors
from helios_lite.networks.forward_turns import ForwardTurns
from helios_lite.networks.fsdp import make_mesh, reshard, shard, sharded_modules
from helios_lite.networks.meta_device import materialize
from helios_lite.processes.world import World


class ParallelStrategy:
    """Puts networks on their device, and replicates or shards them over the processes.

    State dicts of networks have the names of the unwrapped network under every strategy. Those of sharded networks and
    their optimizers hold DTensors; `load_state_dict` takes full tensors as well.

    Args:
        device: the device of this process.
        world: the processes.
        strategy: "ddp", "fsdp" or "hsdp"; without effect for a single process.
        precision: the trainer's precision, which decides the data type in which "fsdp" and "hsdp" gather parameters.
        compile: compile networks in place, block by block if they have blocks.
        checkpoint_activations: recompute the activations of blocks in the backward pass.
    """

    def __init__(
        self,
        device: torch.device,
        world: World,
        strategy: str = "ddp",
        precision: str = "fp32",
        compile: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        self.device, self.world = device, world
        self._strategy, self._precision = strategy, precision
        self._compile, self._checkpoint_activations = compile, checkpoint_activations
        self._has_blocks = False  # Any network.
        self._syncs_gradients = True
        self._replicated: list[_Replicated] = []
        self._sharded: list[Any] = []  # Root modules; each is an FSDPModule.
        self._turns: ForwardTurns | None = None

    def wrap(self, net: nn.Module, block_types: tuple[type[nn.Module], ...]) -> nn.Module:
        """Return the network ready for training. Call on every rank, in the same order.

        Args:
            net: initialized alike on every rank, or made under `torch.device("meta")` and initialized here.
            block_types: types of submodules that are sharded, compiled and recomputed one by one.
        """
        blocks = [module for module in net.modules() if isinstance(module, block_types)]
        self._has_blocks |= len(blocks) > 0
        if self._checkpoint_activations:
            for block in blocks:
                checkpoint_activations(block)
        if self._compile:
            for part in blocks or [net]:
                part.compile()
        if self._strategy != "ddp" and self.world.size > 1:
            dtensors.load_any_placement(net)
        is_local = self.world.size == 1 or not any(p.requires_grad for p in net.parameters())
        if is_local or self._strategy == "ddp":
            materialize(net, self.device)
            net = net.to(self.device)
            return net if is_local else self._replicate(net)
        mesh = make_mesh(self.device, self.world, is_hybrid=self._strategy == "hsdp")
        shard(net, blocks, mesh, self.device, self._precision)
        self._sharded.append(net)
        return net

    def _replicate(self, net: nn.Module) -> nn.Module:
        replicated = _Replicated(net, device_ids=[self.device.index] if self.device.type == "cuda" else None)
        self._replicated.append(replicated)
        return replicated

    def check_wrapped(self, parts: Sequence[tuple[str, Any]]) -> None:
        """Check what a model consists of after its `setup`, and let optimizers load full and sharded tensors.

        Args:
            parts: the stateful attributes of the model by name.

        Raises:
            ValueError: an optimizer trains a network that was not wrapped. With several processes each would train a
                different network without notice. The message names the attribute. Or activations are to be
                recomputed, and no network has blocks.
        """
        if self._checkpoint_activations and not self._has_blocks:
            raise ValueError(
                "checkpoint_activations=True: no network has blocks; pass the types of its layers to "
                "parallelize(net, blocks=(...,))"
            )
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
                dtensors.load_any_placement(optimizer)

    def sharded_parameter(self) -> nn.Parameter | None:
        """Return a sharded parameter, whose device mesh and placements all others have; None if nothing is sharded."""
        self.reshard()
        parameters = (p for net in self._sharded for p in net.parameters() if dtensors.is_dtensor(p))
        return next(parameters, None)

    def reshard(self) -> None:
        """Free the full parameters that a forward pass without a backward pass has left in sharded networks."""
        for net in self._sharded:
            reshard(net)

    def set_requires_gradient_sync(self, value: bool) -> None:
        """Set whether the next forward and backward pass reduces gradients over the ranks."""
        if value != self._syncs_gradients:
            self._syncs_gradients = value
            for net in self._replicated:
                net.require_backward_grad_sync = value
            for net in self._sharded:
                net.set_requires_gradient_sync(value)

    @contextlib.contextmanager
    def uneven_forward(self) -> Iterator[None]:
        """A context of an evaluation, in which ranks may run different numbers of forward passes.

        Call on every rank. Replicas do not communicate; sharded networks do, as `ForwardTurns` describes. Buffers
        (running statistics of batch norm) are set to those of rank 0, as DDP would do in the next training step. FSDP
        would not; but those of rank 0 are saved, so that ranks with others would evaluate otherwise after a resume.
        """
        with contextlib.ExitStack() as stack:
            self.share_buffers()
            for replicated in self._replicated:
                stack.enter_context(replicated.local_forward())
            if self._sharded:
                stack.enter_context(self._turns_of_forward())
            yield

    def share_buffers(self) -> None:
        """Set the buffers of networks to those of rank 0. Call on every rank."""
        for net in [*self._replicated, *self._sharded]:
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def _turns_of_forward(self) -> Iterator[None]:
        shards = [module for net in self._sharded for module in sharded_modules(net)]
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)
        self._turns = ForwardTurns(shards, self.world)
        self._turns.start()
        try:
            yield
        finally:
            self._turns.stop()
            self._turns = None
            for module in shards:
                module.reshard()
                module.set_reshard_after_forward(module not in self._sharded, recurse=False)
                # FSDP notes the order of forward passes until the next backward pass, which gathers parameters ahead
                # in the order it finds: after an evaluation a rank without a batch would gather others than the rest.
                # Only a root that has run has notes. No public name says which module that is, and the public
                # `reset_iter_state` is not in the oldest PyTorch that we support.
                state = module._get_fsdp_state()
                if state._is_root:
                    state._comm_ctx.post_forward_order.clear()
                    state._state_ctx.iter_forward_root = None

    def finish_forward(self) -> None:
        """Wait in an evaluation until no rank runs a forward pass before it comes here. Call on every rank."""
        if self._turns is not None:
            self._turns.finish()


class _Replicated(DistributedDataParallel):
    """DDP that passes on the attributes and items of the network inside, its names in state dicts, and its copies.

    `local_forward` leaves DDP out, whose forward pass broadcasts buffers even in evaluation mode. No option of DDP does
    this: with `require_forward_param_sync = False` a step that enables gradients (a gradient penalty in `valid_step`)
    still rebuilds the reducer's buckets, which may communicate. The composable `replicate` cannot be deep-copied, which
    averaged weights need.
    """

    _is_local = False

    @contextlib.contextmanager
    def local_forward(self) -> Iterator[None]:
        self._is_local = True
        try:
            yield
        finally:
            self._is_local = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.module if self._is_local else super().forward)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def __getitem__(self, index: Any) -> Any:  # Python looks for these two at the class.
        return self.module[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.module)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        copied: nn.Module = copy.deepcopy(self.module, memo)
        return copied


def unwrap_model(net: nn.Module) -> nn.Module:
    """Return the network inside of DDP, and any other network as it is."""
    return net.module if isinstance(net, DistributedDataParallel) else net


def checkpoint_activations(block: nn.Module) -> None:
    """Let a block keep only its inputs for the backward pass, which runs its forward pass again.

    RNG states are restored for that, so that dropout is the same and the result has the same bits. The class of the
    block and the names in its state dict do not change, and copies of the block work. Hooks run once: FSDP gathers the
    parameters for the recomputation when it does so for the backward pass.
    """
    forward = functools.partial(_forward, block)  # Unlike a closure, it can be copied and pickled with the block.
    block.forward = forward


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
