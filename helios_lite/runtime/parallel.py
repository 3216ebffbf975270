"""Networks that span the processes of a run: replicated by DDP, or sharded by FSDP2."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helios_lite.runtime import sharding
from helios_lite.runtime.distributed import World


class ParallelStrategy:
    """Puts networks on their device, and replicates or shards them over the processes.

    Checkpoints do not depend on it: state dicts of networks and optimizers have the names of the unwrapped network and
    full tensors under every strategy. Sharded ones are gathered, so `state_dict` must then be called on every rank.

    Args:
        device: the device of this process.
        world: the processes.
        strategy: "ddp" or "fsdp"; without effect for a single process.
        compile: compile networks in place.
    """

    def __init__(self, device: torch.device, world: World, strategy: str = "ddp", compile: bool = False) -> None:
        self.device, self.world = device, world
        self._strategy, self._compile = strategy, compile
        self._syncs_gradients = True
        self._replicated: list[_Replicated] = []
        self._sharded: list[Any] = []  # Root modules; each is an FSDPModule.

    def wrap(self, net: nn.Module, blocks: tuple[type[nn.Module], ...]) -> nn.Module:
        """Return the network ready for training. Call on every rank, in the same order.

        Args:
            net: initialized alike on every rank.
            blocks: types of submodules that FSDP shards one by one, besides the network itself.
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
        sharding.use_full_tensors_in_network(net)
        self._sharded.append(net)
        return net

    def check_wrapped(self, parts: Sequence[tuple[str, Any]]) -> None:
        """Check what a model consists of after its `setup`, and let optimizers of sharded networks save full tensors.

        Args:
            parts: the stateful attributes of the model by name.

        Raises:
            ValueError: an optimizer trains a network that was not wrapped. With several processes each would train a
                different network without notice. The message names the attribute.
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
                sharding.use_full_tensors_in_optimizer(optimizer)

    def reshard(self) -> None:
        """Free the full parameters that a forward pass without a backward pass has left in sharded networks."""
        for module in self._sharded_modules():
            module.reshard()

    def _sharded_modules(self) -> list[Any]:
        """Return the modules that FSDP shards one by one: the blocks and the roots."""
        return [module for net in self._sharded for module in net.modules() if hasattr(module, "unshard")]

    def set_requires_gradient_sync(self, value: bool) -> None:
        """Set whether the next forward and backward pass reduces gradients over the ranks."""
        if value != self._syncs_gradients:
            self._syncs_gradients = value
            for net in self._replicated:
                net.require_backward_grad_sync = value
            for net in self._sharded:
                net.set_requires_gradient_sync(value)

    @contextlib.contextmanager
    def local_forward(self) -> Iterator[None]:
        """A context in which forward passes do not communicate, so that ranks may have different numbers of batches.

        Call on every rank. Buffers (running statistics of batch norm) are set to those of rank 0, as DDP would do in
        the next training step.
        """
        shards = self._sharded_modules()
        with contextlib.ExitStack() as stack:
            for replicated in self._replicated:
                for buffer in replicated.module.buffers():
                    dist.broadcast(buffer, src=0)
                stack.enter_context(replicated.local_forward())
            for module in shards:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
            try:
                yield
            finally:
                for module in shards:
                    module.reshard()
                    module.set_reshard_after_forward(module not in self._sharded, recurse=False)
                    # FSDP notes the order of forward passes until the next backward pass, which gathers parameters
                    # ahead in the order it finds: after an evaluation a rank without a batch would gather others than
                    # the rest. Only a root that has run has notes, and no public name says which module that is.
                    if module._get_fsdp_state()._is_root:
                        module.reset_iter_state()


class _Replicated(DistributedDataParallel):
    """DDP that passes on the attributes of the network inside, its names in state dicts, and its copies.

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
