"""Sharding a network by FSDP2, block by block."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from helios_lite.networks.dtensors import is_dtensor
from helios_lite.networks.meta_device import MetaInitializer, bottom_up
from helios_lite.networks.shard_units import find_units, scalars
from helios_lite.networks.sharded_optimizers import note_of_step
from helios_lite.processes.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Modules that PyTorch cannot compute with running statistics or inputs in fp32, and parameters in bf16."""


def make_mesh(device: torch.device, world: World, *, is_hybrid: bool) -> DeviceMesh:
    """Return the device mesh over which networks are sharded. Call on every rank.

    Args:
        device: the device of this process.
        world: the processes.
        is_hybrid: shard inside of each machine and replicate over the machines: a mesh of (machines, processes of one
            machine). With one machine it is the same as without: one dimension, over which parameters are sharded.

    Raises:
        ValueError: `is_hybrid`, and the machines do not run the same number of processes each.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if not is_hybrid or world.local_size == world.size:
        return init_device_mesh(device.type, (world.size,))
    sizes = world.gather(world.local_size)
    if len(set(sizes)) > 1:
        raise ValueError(
            f"strategy='hsdp' needs the same number of processes on every machine, but the ranks count {sizes} on "
            "theirs; use 'fsdp'"
        )
    return init_device_mesh(
        device.type, (world.size // world.local_size, world.local_size), mesh_dim_names=("replicate", "shard")
    )


def check_version() -> None:
    """Raise a RuntimeError if this PyTorch is one of those that are not known to train shards rightly."""
    if torch.__version__ < "2.13":
        raise RuntimeError(
            f"strategy: sharded networks need PyTorch 2.13 or newer, and this is {torch.__version__}: older ones have "
            "ended with other weights, silently; update PyTorch, or use strategy='ddp'"
        )


def shard(
    net: nn.Module, blocks: Collection[nn.Module], mesh: DeviceMesh, device: torch.device, precision: str
) -> None:
    """Shard a network in place and move it to the device, so that it never exists there as a whole.

    The blocks, and then what is left of the network, are moved (or initialized, if they are on the meta device) and
    sharded one after the other: a rank never has more on the device than its shards, one block, and what belongs to no
    block. Call on every rank.

    Args:
        net: the network, alike on every rank, on the CPU, the meta device or the device.
        blocks: the submodules that are gathered one by one.
        mesh: the ranks.
        device: the device of this process.
        precision: with "bf16", parameters are gathered and used in bf16, and gradients are reduced in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    units = find_units(net, blocks)
    if precision == "bf16":
        for module in net.modules():
            kind: Any = type(module)
            if issubclass(kind, _NORMS):
                module.__class__ = _normalizing_in_fp32(kind)
    attributes = {name: dict(vars(p)) for name, p in net.named_parameters()}
    initializer = MetaInitializer(net, device)
    for path, module in bottom_up(net):
        initializer.fill(path, module)
        if module not in units:
            continue
        policy: Any = MixedPrecisionPolicy()
        if precision == "bf16" and units[module] is not torch.float64:  # Autocast leaves float64 as it is, too.
            policy = _LikeAutocast(device.type)
        for p in module.parameters():
            if not is_dtensor(p) and not p.is_contiguous():
                p.data = p.data.contiguous()
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=set(scalars(module)))
        setattr(type(module), "__deepcopy__", _refuse_copy)  # noqa: B010 (FSDP2 has made the class.)
    for p in scalars(net):
        p.data = p.data.to(device)
    _set_attributes(net, attributes)
    if any(attributes.values()):  # The forward pass sees gathered parameters, which exist from the first time on.
        for module in sharded_modules(net):
            module.unshard()
            _set_attributes(net, attributes)
            module.reshard()


def _refuse_copy(net: nn.Module, memo: Any) -> NoReturn:
    raise RuntimeError(
        "copy.deepcopy: a sharded network cannot be copied; copy it before parallelize, and pass the copy to "
        "parallelize too"
    )


def _set_attributes(net: nn.Module, attributes: dict[str, dict[str, Any]]) -> None:
    for name, p in net.named_parameters():
        vars(p).update(attributes[name])


class _LikeAutocast:
    """The policy of FSDP2 that gathers parameters in bf16, and leaves the inputs of networks and blocks to autocast.

    Outside of autocast inputs become bf16, as the parameters that meet them are.
    """

    param_dtype, reduce_dtype, output_dtype = torch.bfloat16, torch.float32, None

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type

    @property
    def cast_forward_inputs(self) -> bool:
        return not torch.is_autocast_enabled(self._device_type)


@functools.cache
def _normalizing_in_fp32(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a type of normalizations whose parameters are fp32 in the forward pass, as under autocast.

    A compiler takes one type for all modules of a kind, where it would take a method of each for something else.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        parameters: dict[str, Any] = self._parameters
        gathered = dict(parameters)
        in_bf16 = {name: p for name, p in gathered.items() if p is not None and p.dtype is torch.bfloat16}
        parameters.update({name: p.float() for name, p in in_bf16.items()})
        try:
            return kind.forward(self, *args, **kwargs)
        finally:
            parameters.update(gathered)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def check_hooks(parameters: Iterable[tuple[str, Any]]) -> None:
    """Raise a ValueError that names a parameter whose hook is never called, as it is sharded or gets its memory."""
    for name, p in parameters:
        if p._backward_hooks or (p._post_accumulate_grad_hooks and not is_dtensor(p)):
            raise ValueError(
                f"parallelize: {name} has a hook that would never be called; register it after parallelize, if the "
                "network is sharded by register_post_accumulate_grad_hook, to which p.grad is a shard of the average"
            )


def check_modules(net: nn.Module) -> None:
    """Raise a ValueError that names a module that FSDP2 cannot shard: a scripted one, or one with sparse gradients."""
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"parallelize: {name or 'the network'} is scripted, and cannot be sharded; use strategy='ddp', or do "
                "not script what is trained"
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.requires_grad:
            raise ValueError(
                f"parallelize: {name or 'the network'} is an {type(module).__name__} with sparse=True, whose gradients "
                "cannot be sharded; make it without, or use strategy='ddp'"
            )


def sharded_modules(net: nn.Module) -> list[Any]:
    """Return the modules of a network that FSDP2 shards one by one: the blocks and the network itself."""
    return [module for module in net.modules() if hasattr(module, "unshard")]


def has_shards(net: nn.Module) -> bool:
    """Return whether FSDP2 shards a network or a part of it."""
    return len(sharded_modules(net)) > 0


def reshard(net: nn.Module) -> None:
    """Free the full parameters that a forward pass without a backward pass has left in a network."""
    for module in sharded_modules(net):
        module.reshard()


def shards_of(net: nn.Module) -> nn.Module:
    """Return a module that has the parameters and buffers of a network under the same names, and no forward pass.

    It can be copied, which FSDP2 does not allow for the network itself. Parameters are DTensors, of which each rank has
    its shard; the tensors are those of the network, not copies.
    """
    reshard(net)
    known: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if module not in known:
            part = known[module] = nn.Module()
            for name, parameter in module._parameters.items():
                part.register_parameter(name, parameter)
            for name, buffer in module._buffers.items():
                part.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
            for name, child in module._modules.items():
                part.add_module(name, None if child is None else visit(child))
        return known[module]

    return visit(net)


def explain(error: BaseException, networks: Mapping[str, nn.Module], precision: str, message: str | None) -> None:
    """Add to the message of an error what a program has done that FSDP2 cannot do, and what to do instead.

    Args:
        error: raised by the program.
        networks: its sharded networks by name.
        precision: the trainer's.
        message: what this rank has gathered or averaged last.
    """
    words = (note_of_step(error) or _words(error, networks, precision, message)) if networks else None
    if words is not None:
        error.args = (f"{str(error).rstrip()}\n{words}", *error.args[1:])


def _words(error: BaseException, networks: Mapping[str, nn.Module], precision: str, message: str | None) -> str | None:
    text, name = str(error), next(iter(networks))
    if isinstance(error, AssertionError) and "expects uniform gradient dtype" in text:
        return (
            "a block has unfrozen parameters of another dtype; unfreeze them before the network is passed to "
            "parallelize, and freeze them again after it"
        )
    if not isinstance(error, RuntimeError):
        return None
    if "got mixed torch.Tensor and DTensor" in text:
        return (
            "the parameters of a sharded network are full tensors only while the network itself, or the block that has "
            f"them, is called; otherwise they are DTensors, of which each rank has a part{_way_around(error, networks)}"
        )
    if "setStorage" in text:
        return (
            "the gradient of a gradient needs parameters that a sharded network has freed: call "
            f"self.{name}.set_reshard_after_backward(False) before torch.autograd.grad(..., create_graph=True) and "
            f"self.{name}.set_reshard_after_backward(True) before self.backward"
        )
    if "appears to not have been used in the graph" in text:
        return (
            "torch.autograd.grad does not reach the parameters of a sharded network; use self.backward, after which "
            "p.grad has this rank's part of the average, or strategy='ddp'"
        )
    if "gloo" in text and message is not None:
        return (
            "another rank has ended. If it did so by SIGABRT, it has run other parts of a sharded network than this "
            f"one, which {message}: all ranks must run the same blocks in the same order; multiply by 0 what is not "
            "to count, or use strategy='ddp'"
        )
    if precision == "bf16" and ("dtype" in text or "scalar type" in text):
        return (
            "with precision='bf16' the parameters of a sharded network are bfloat16 while it runs, also where one "
            "process has float32; convert one of the tensors, as by x.to(parameter.dtype)"
        )
    return None


def _way_around(error: BaseException, networks: Mapping[str, nn.Module]) -> str:
    """Return which call of a program went around the forward pass of a sharded network, as far as it is found."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        function, arguments = frame.f_code.co_name, frame.f_code.co_varnames[: frame.f_code.co_argcount]
        owner = frame.f_locals.get(arguments[0]) if arguments else None
        if getattr(getattr(type(owner), function, None), "__code__", None) is not frame.f_code:
            continue  # A function inside of a method.
        for name, net in networks.items():
            register = f"in setup, after parallelize, write register_fsdp_forward_method(self.{name}, "
            source = "), which torch.distributed.fsdp has"
            if owner is net and not function.startswith("_") and function != "forward":
                return f". self.{name}.{function} is a method: {register}{function!r}{source}"
            if owner is net and function == "forward":
                return "; leave those out of blocks whose parameters are used without a call of the block"
            if owner is not net and (path := next((path for path, m in net.named_modules() if m is owner), None)):
                return f". {path} is a part of self.{name}: call it in a method, and {register}<its name>{source}"
    return "; p.full_tensor() returns the whole of one, called on every rank"
