"""Networks that span the processes of a run: replicated, or sharded by FSDP2; recomputed activations."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint

from helios_lite.networks import dtensors, sharded_optimizers
from helios_lite.networks.forward_turns import ForwardTurns
from helios_lite.networks.fsdp import (
    check_hooks,
    check_modules,
    check_version,
    explain,
    make_mesh,
    reshard,
    shard,
    sharded_modules,
)
from helios_lite.networks.gradient_reducer import GradientReducer
from helios_lite.networks.meta_device import materialize
from helios_lite.networks.shard_units import scalars
from helios_lite.processes.devices import can_replace_memory, move_in_place
from helios_lite.processes.world import World

if TYPE_CHECKING:
    from helios_lite.networks.gather_order import GatherOrder

_MESSAGE_BYTES = 2**25


class ParallelStrategy:
    """Puts networks on their device, and replicates or shards them over the processes.

    Networks remain what they are, with their names and methods. The state dicts of sharded networks and their
    optimizers hold DTensors; `load_state_dict` takes full tensors as well.

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
        self._completes_step = True
        self._networks: list[nn.Module] = []
        self._with_buffers: list[nn.Module] = []
        self._reducer: GradientReducer | None = None  # Of those that are not sharded.
        self._sharded: list[Any] = []  # Root modules; each is an FSDPModule.
        self._turns: ForwardTurns | None = None
        self._order: GatherOrder | None = None  # Of those that are sharded.
        self._until_closed: list[Callable[[], Any]] = []  # End what holds as long as networks are sharded.
        # By identity, all parameters that networks have, or had before they were sharded: which ones they are.
        self._owners: dict[int, tuple[Callable[[], Tensor | None], str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out references that cannot be pickled with a model that has been set up."""
        return {**vars(self), "_owners": {}}

    def wrap(self, net: nn.Module, block_types: tuple[type[nn.Module], ...]) -> nn.Module:
        """Return the network ready for training. Call on every rank, in the same order.

        Args:
            net: initialized alike on every rank, or made under `torch.device("meta")` and initialized here.
            block_types: types of submodules that are sharded, compiled and recomputed one by one.
        """
        if net in self._networks:
            return net
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if nn.parameter.is_lazy(tensor):
                raise ValueError(
                    f"parallelize: {name} has no shape yet (it belongs to a lazy module); call the network with a "
                    "batch before it is passed to parallelize"
                )
        blocks = [
            module
            for module in net.modules()
            if isinstance(module, block_types) and not isinstance(module, NonDynamicallyQuantizableLinear)
        ]  # The latter is a part of nn.MultiheadAttention, which uses its parameters without calling it.
        self._has_blocks |= len(blocks) > 0
        if self._checkpoint_activations:
            for block in blocks:
                checkpoint_activations(block)
        if self._compile:
            for part in blocks or [net]:
                compile_in_place(part)
        is_frozen = not any(p.requires_grad for p in net.parameters())
        is_sharded = self._strategy != "ddp" and self.world.size > 1 and not is_frozen
        self._check_not_shared(net, is_sharded=is_sharded)
        check_hooks(
            (name, p)
            for name, p in net.named_parameters()
            if (is_sharded and p.ndim > 0) or not can_replace_memory(p, self.device)
        )
        if is_sharded:
            check_version()
            check_modules(net)
        if self._strategy != "ddp" and self.world.size > 1 and not isinstance(net, torch.jit.ScriptModule):
            dtensors.load_any_placement(net)
        self._networks.append(net)
        kind = type(net).__name__
        move_in_place(net, self.device)  # Before anything refers to them.
        self._note_owner(net, kind, is_sharded=is_sharded)
        if is_sharded:
            mesh = make_mesh(self.device, self.world, is_hybrid=self._strategy == "hsdp")
            shard(net, blocks, mesh, self.device, self._precision)
            if self._order is None:
                from helios_lite.networks.gather_order import GatherOrder  # Here, because it imports FSDP2.

                self._order = GatherOrder(self.world)
                self._until_closed = [
                    register_optimizer_step_pre_hook(sharded_optimizers.step_by_parameter).remove,
                    register_optimizer_step_post_hook(sharded_optimizers.settle_states).remove,
                    dtensors.forbid_reading_parts(),
                ]
            self._order.add(net)
            self._sharded.append(net)
            self._note_owner(net, kind, is_sharded=is_sharded)
            if scalars(net):
                self._replicate(nn.ParameterList(scalars(net)))
        else:
            materialize(net, self.device)
            net.to(self.device)
            if self.world.size > 1:
                self._replicate(net)
        self._find_buffers()
        return net

    def _note_owner(self, net: nn.Module, kind: str, *, is_sharded: bool) -> None:
        """Note whose the parameters are.

        They are referred to weakly, so that their memory can go, but for those that PyTorch moves by swapping, such as
        quantized ones: `nn.Module.to` refuses them then.
        """
        for name, p in net.named_parameters():
            is_swapped = not is_sharded and is_traceable_wrapper_subclass(p)
            refer: Callable[[], Tensor | None] = functools.partial(_itself, p) if is_swapped else weakref.ref(p)
            self._owners[id(p)] = (refer, f"{name} of a {kind}")

    def _owner(self, p: Tensor) -> str | None:
        """Return which parameter a tensor is or was in a network that was passed before; None if it is new."""
        known, owner = self._owners.get(id(p), (None, ""))
        return None if known is None or known() is not p else owner

    def _check_not_shared(self, net: nn.Module, *, is_sharded: bool) -> None:
        """Raise a ValueError for a parameter that another network has too, and that would become two.

        Replicas keep their parameters. Sharded networks, and those from the meta device, get others.
        """
        present = {id(p) for each in self._networks for p in each.parameters()}
        for name, p in net.named_parameters():
            owner = self._owner(p)
            if dtensors.is_dtensor(p) or (owner is not None and (is_sharded or id(p) not in present)):
                raise ValueError(
                    f"parallelize: {name} of a {type(net).__name__} is also {owner or 'sharded already'}, and would "
                    "become another parameter; pass one module that contains both networks to parallelize"
                )

    def _replicate(self, net: nn.Module) -> None:
        """Give a network the values of rank 0, and average its gradients from now on."""
        tensors = [*net.named_parameters(), *net.named_buffers()]
        descriptions = [
            f"{name} ({tuple(tensor.shape)}, {tensor.dtype}, {'trained' if tensor.requires_grad else 'frozen'})"
            for name, tensor in tensors
        ]
        for rank, others in enumerate(self.world.gather(descriptions)):
            for mine, other in itertools.zip_longest(descriptions, others, fillvalue="nothing"):
                if mine != other:
                    raise ValueError(
                        f"parallelize: the ranks have made different networks; rank {self.world.rank} has {mine} where "
                        f"rank {rank} has {other}"
                    )
        _broadcast([tensor for _, tensor in tensors], is_main=self.world.is_main)
        if self._reducer is None:
            self._reducer = GradientReducer(self.world)
        self._reducer.add(net)

    def _find_buffers(self) -> None:
        modules = dict.fromkeys(module for net in self._networks for module in net.modules())
        self._with_buffers = [
            module for module in modules if {*module._buffers.keys()} - module._non_persistent_buffers_set
        ]

    def check_passed(self, parts: Sequence[tuple[str, Any]]) -> None:
        """Check what a model consists of after its `setup`, and let optimizers load full and sharded tensors.

        Args:
            parts: the stateful attributes of the model by name.

        Raises:
            ValueError: an optimizer trains a network that was not passed to `parallelize`. With several processes each
                would train a different network without notice. The message names the attribute. Or activations are to
                be recomputed, and no network has blocks.
        """
        if self._checkpoint_activations and not self._has_blocks:
            raise ValueError(
                "checkpoint_activations=True: no network has blocks; pass the types of its layers to "
                "parallelize(net, blocks=(...,))"
            )
        if self.world.size == 1:
            return
        passed = {id(p) for net in self._networks for p in net.parameters()}
        optimizers = [part for _, part in parts if isinstance(part, torch.optim.Optimizer)]
        trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        for name, part in parts:
            others = [p for p in part.parameters() if id(p) not in passed] if isinstance(part, nn.Module) else []
            if any(id(p) in trained or self._owner(p) for p in others):
                raise ValueError(
                    f"{name}: is trained by {self.world.size} processes but not passed through parallelize"
                )
        if self._sharded:
            for name, part in parts:
                if isinstance(part, torch.optim.Optimizer):
                    sharded_optimizers.check_can_step(name, part)
                    part.register_load_state_dict_pre_hook(sharded_optimizers.place_states)

    def sharded_parameter(self) -> nn.Parameter | None:
        """Return a sharded parameter, whose device mesh and placements all others have; None if nothing is sharded."""
        self.reshard()
        parameters = (p for net in self._sharded for p in net.parameters() if dtensors.is_dtensor(p))
        return next(parameters, None)

    def reshard(self) -> None:
        """Free the full parameters that a forward pass without a backward pass has left in sharded networks."""
        for net in self._sharded:
            reshard(net)

    def refresh(self) -> None:
        """Take parameters that were added to networks, with the values of rank 0. Call on every rank.

        Raises:
            ValueError: one was added to a sharded network, or has a hook that is never called.
        """
        self.reshard()  # The parameters of a sharded network are those that optimizers train.
        for net in self._sharded:
            for name, p in net.named_parameters():
                if not dtensors.is_dtensor(p) and self._owner(p) is None:
                    raise ValueError(f"{name}: was added to a network after parallelize, which has sharded the rest")
            check_hooks((name, p) for name, p in net.named_parameters() if p.ndim > 0)
        self._find_buffers()
        if self._reducer is not None:
            _broadcast(self._reducer.refresh(), is_main=self.world.is_main)

    def state_dict(self) -> dict[str, Any]:
        """Return what the averages of replicas depend on: plain containers, the same on all ranks."""
        return {} if self._reducer is None else self._reducer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` has returned, also with another number of ranks."""
        if self._reducer is not None and state_dict:
            self.refresh()  # What the model has loaded may have more parameters than `setup` has made.
            self._reducer.load_state_dict(state_dict)

    def begin_micro_batch(self, completes_step: bool) -> None:
        """Prepare for a forward and backward pass. Call on every rank.

        A window begins with the buffers of rank 0, as a resumed run does. Its last micro-batch averages gradients of
        replicas. Those of sharded networks are averaged in every one, so that they stay sharded.
        """
        begins_window, self._completes_step = self._completes_step, completes_step
        if self.world.size == 1:
            return
        if begins_window:
            self.share_buffers()
        if self._reducer is not None:
            self._reducer.begin_micro_batch(begins_window=begins_window, syncs=completes_step)

    def note_loss(self, *, has_weight: bool) -> None:
        """Let the other ranks know whether the backward pass that follows is that of a loss with a weight."""
        if self._reducer is not None:
            self._reducer.note_loss(has_weight=has_weight)

    def average_gradients(self, optimizer: torch.optim.Optimizer) -> bool:
        """Let an optimizer find averages over the ranks, whatever its gradients come from. Call on every rank.

        Returns:
            Whether the last loss has a weight on another rank that this rank cannot know of.

        Raises:
            RuntimeError: the ranks have run different parts of sharded networks, or are at different places.
        """
        if self._order is not None:
            self._order.compare(optimizer)
        return self._reducer is not None and self._reducer.finish(optimizer)

    def averages(self) -> list[object]:
        """Return what notes where this rank is in a step, to be taken back with it."""
        return [part for part in (self._reducer, self._order) if part is not None]

    def skip_pass(self) -> bool:
        """Leave out the backward pass of a loss with the weight 0, which others may run; return whether this can be."""
        if self._sharded:
            return False
        self.note_loss(has_weight=True)
        if self._reducer is not None:
            self._reducer.skip_pass()
        return True

    def close(self) -> None:
        """Let go of the networks, whose gradients are not averaged any more."""
        for end in self._until_closed:
            end()
        self._until_closed.clear()
        for part in (self._reducer, self._order):
            if part is not None:
                part.close()

    def end_window(self) -> None:
        """Check that all ranks end a window, before they communicate otherwise. Call on every rank."""
        if self._reducer is not None:
            self._reducer.check_place()

    @contextlib.contextmanager
    def uneven_forward(self) -> Iterator[None]:
        """A context of an evaluation, in which ranks may run different numbers of passes.

        Call on every rank. Replicas do not communicate; sharded networks do, as `ForwardTurns` describes. All ranks use
        the buffers (running statistics of batch norm) of rank 0, which are those that are saved.
        """
        with contextlib.ExitStack() as stack:
            self.share_buffers()
            stack.enter_context(self.without_averages())
            if self._order is not None:
                stack.enter_context(self._order.paused())
                stack.enter_context(self._turns_of_forward())
            yield

    def share_buffers(self) -> None:
        """Set the buffers that state dicts of the networks hold to those of rank 0. Call on every rank."""
        if self.world.size > 1 and self._with_buffers:
            _broadcast(
                [
                    buffer
                    for module in self._with_buffers
                    for name, buffer in module._buffers.items()
                    if buffer is not None and name not in module._non_persistent_buffers_set
                ],
                is_main=self.world.is_main,
            )

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

    @property
    def has_shards(self) -> bool:
        """Whether a network is sharded."""
        return len(self._sharded) > 0

    def without_averages(self) -> contextlib.AbstractContextManager[None]:
        """A context in which ranks may run different backward passes through replicas, which are not averaged."""
        return contextlib.nullcontext() if self._reducer is None else self._reducer.paused()

    def explain(self, error: BaseException, networks: Mapping[str, nn.Module]) -> None:
        """Add a note to an error that a sharded network has caused by how it was used.

        Args:
            error: raised by the program.
            networks: those of the model by name.
        """
        sharded = {name: net for name, net in networks.items() if net in self._sharded}
        explain(error, sharded, self._precision, self.last_message())

    def last_message(self) -> str | None:
        """Return what this rank has gathered or averaged last of sharded networks, if it is not long ago."""
        return None if self._order is None else self._order.last()

    def finish_forward(self) -> None:
        """Wait in an evaluation until no rank runs a forward pass before it comes here. Call on every rank."""
        if self._turns is not None:
            self._turns.finish()


def _itself(p: Tensor) -> Tensor:
    return p


def _broadcast(tensors: Sequence[Tensor], *, is_main: bool) -> None:
    """Set tensors to those of rank 0, by as few messages as their sizes allow. Call on every rank.

    The bytes of the others count as 0 in a sum. A rank that averages gradients meanwhile thus meets a message of
    another size, which ends the run, and does not wait for ever for one of its kind.
    """
    waiting = deque(sorted(tensors, key=lambda tensor: -tensor.element_size()))  # So that messages keep all aligned.
    while waiting:
        group = [waiting.popleft()]
        while waiting and sum(tensor.nbytes for tensor in group) < _MESSAGE_BYTES:
            group.append(waiting.popleft())
        message = torch.cat([tensor.detach().reshape(-1).view(torch.uint8) for tensor in group])
        dist.all_reduce(message if is_main else message.zero_())
        for part, tensor in zip(torch.split(message, [tensor.nbytes for tensor in group]), group, strict=True):
            with torch.no_grad():
                tensor.copy_(part.view(tensor.dtype).view_as(tensor))


def compile_in_place(module: nn.Module) -> None:
    """Compile a module by its method `compile`, also if its `forward` is one of PyTorch's own.

    The compiler skips what is called from files of torch.nn only, and so it would leave out, without a word, a network
    or a block whose class is one of them, such as `nn.TransformerEncoderLayer`. A scripted module is compiled already.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return
    if type(module).forward.__module__.startswith("torch.nn.") and "forward" not in vars(module):
        # Unlike a closure, it can be copied and pickled with the module.
        module.forward = functools.partial(_forward_of_class, module)
    module.compile()


def _forward_of_class(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(module).forward(module, *args, **kwargs)


def checkpoint_activations(block: nn.Module) -> None:
    """Let a block keep only its inputs for the backward pass, which runs its forward pass again.

    RNG states and buffers are those of the forward pass, and buffers do not change again. Thus dropout and the
    statistics of batch norm are the same, and the result has the same bits. The class of the block, a `forward` that it
    has of its own, and the names in its state dict do not change, and copies of the block work. Hooks run once: FSDP
    gathers the parameters for the recomputation when it does so for the backward pass.
    """
    own = vars(block).get("forward")
    if not isinstance(own, functools.partial) or own.func is not _forward:
        # Unlike a closure, it can be copied and pickled with the block.
        block.forward = functools.partial(_forward, block, own)


def _forward(block: nn.Module, own: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(functools.partial(type(block).forward, block) if own is None else own, **kwargs)
    if not torch.is_grad_enabled():
        return forward(*args)
    if torch.compiler.is_compiling():  # A compiled block changes its buffers once.
        return checkpoint(forward, *args, use_reentrant=False)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=functools.partial(_buffer_contexts, block))


def _buffer_contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], _BuffersOfForward]:
    first = _BuffersOfForward()
    return first.noted(block), first


class _BuffersOfForward:
    """The buffers that a forward pass of a block has changed, with their values before it.

    It is a context of the recomputation, which begins with these values, and whose changes end with it. A backward pass
    that is run twice enters it twice.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, dict[str, Tensor]]] = []
        self._now: list[dict[str, Tensor | None]] = []

    @contextlib.contextmanager
    def noted(self, block: nn.Module) -> Iterator[None]:
        """Return a context of the forward pass. If a module changes one buffer all are kept, as batch norm does not
        count its changes of the others.
        """
        found = []
        for module in block.modules():
            buffers = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
            if buffers:
                copies = {name: buffer.detach().clone() for name, buffer in buffers.items()}
                found.append((module, copies, {name: (each, each._version) for name, each in buffers.items()}))
        yield
        for module, copies, before in found:
            now = module._buffers
            if any(now.get(name) is not each or each._version != version for name, (each, version) in before.items()):
                self._before.append((module, copies))

    def __enter__(self) -> None:
        self._now = [dict(module._buffers) for module, _ in self._before]
        for module, buffers in self._before:
            module._buffers.update((name, each.clone()) for name, each in buffers.items())

    def __exit__(self, *error: object) -> None:
        for (module, _), buffers in zip(self._before, self._now, strict=True):
            module._buffers.update(buffers)
