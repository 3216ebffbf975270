"""Networks made under `torch.device("meta")`: their tensors get memory and initial values on the device, one module at
a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def bottom_up(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every submodule once with its path, submodules before the module that has them, the network last.

    It is the order in which constructors usually initialize modules.
    """
    paths: dict[nn.Module, str] = {module: path for path, module in net.named_modules()}

    def visit(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        path = paths.pop(module)
        for child in module.children():
            if child in paths:
                yield from visit(child)
        yield path, module

    return visit(net)


def materialize(net: nn.Module, device: torch.device) -> None:
    """Give all tensors of a network that are on the meta device memory on a device, and values."""
    initializer = MetaInitializer(net, device)
    for path, module in bottom_up(net):
        initializer.fill(path, module)


class MetaInitializer:
    """Gives the tensors of a network that are on the meta device memory, and the values of `reset_parameters`.

    The random numbers are drawn in the order of `bottom_up`. They are thus those of the same network made without
    `torch.device("meta")` on that device, if the constructor of each module initializes it by `reset_parameters` after
    its submodules, as those of PyTorch do. A parameter that several modules share keeps the values of the first.

    Args:
        net: the network, of which all or some tensors may be on the meta device.
        device: the device of the new tensors.

    Raises:
        ValueError: a module has tensors on the meta device and no `reset_parameters`. The message names it.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self._device = device
        self._incomplete: set[nn.Module] = set()
        self._owners: defaultdict[Tensor, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in net.modules():
            for name, tensor in _own_tensors(module):
                if tensor.is_meta:
                    self._incomplete.add(module)
                    self._owners[tensor].append((module, name))
        for path, module in net.named_modules():
            if module in self._incomplete and not callable(getattr(module, "reset_parameters", None)):
                names = ", ".join(name for name, tensor in _own_tensors(module) if tensor.is_meta)
                raise ValueError(
                    f"{path or 'the network'}: {type(module).__name__} was made under torch.device('meta') and needs a "
                    f"method reset_parameters() that fills {names}"
                )

    def fill(self, path: str, module: nn.Module) -> None:
        """Fill a module's own parameters and buffers, if any of them were on the meta device.

        Args:
            path: the name of the module, for messages.
            module: a submodule of the network; those inside it are left as they are.

        Raises:
            ValueError: `reset_parameters` leaves a tensor without values. The message names the tensor.
        """
        if module not in self._incomplete:
            return
        shared = [(tensor, tensor.detach().clone()) for _, tensor in _own_tensors(module) if not tensor.is_meta]
        for _, tensor in _own_tensors(module):
            if tensor in self._owners:
                self._allocate(tensor)
        module.reset_parameters()  # type: ignore[operator]
        with torch.no_grad():
            for tensor, values in shared:
                tensor.copy_(values)
        for name, tensor in _own_tensors(module):
            if tensor.is_meta or (tensor.is_floating_point() and bool(tensor.isnan().any())):
                raise ValueError(f"{path}.{name}: reset_parameters of {type(module).__name__} does not fill it")

    def _allocate(self, tensor: Tensor) -> None:
        """Replace a meta tensor, in every module that has it, by one on the device. Its values are NaN if it can."""
        new = torch.empty_like(tensor, device=self._device, requires_grad=False)
        if new.is_floating_point():
            new.fill_(torch.nan)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, tensor.requires_grad)
        vars(new).update(vars(tensor))
        for module, name in self._owners.pop(tensor):
            setattr(module, name, new)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    return [*parameters, *module.named_buffers(recurse=False, remove_duplicate=False)]
