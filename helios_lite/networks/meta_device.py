"""Networks made under `torch.device("meta")`: their tensors get memory and initial values on the device, one module at
a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helios_lite.processes.rng import fork_rng


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
            ValueError: a tensor remains without values. The message names it.
        """
        if module in self._incomplete:
            self._fill(path, module)
        for name, value in vars(module).items() if self._incomplete else ():
            if isinstance(value, Tensor) and value.is_meta:
                raise ValueError(
                    f"{_join(path, name)}: was made under torch.device('meta') and gets no values, as it is neither a "
                    "parameter nor a buffer; register it by register_buffer, and fill it in reset_parameters()"
                )

    def _fill(self, path: str, module: nn.Module) -> None:
        """Give tensors memory and call `reset_parameters`; if some cannot be NaN, twice, on other memory each time."""
        shared = [(tensor, tensor.detach().clone()) for _, tensor in _own_tensors(module) if not tensor.is_meta]
        filled_twice = list[str]()
        for name, tensor in _own_tensors(module):
            if tensor in self._owners:
                filled_twice += [] if _can_be_nan(tensor) else [name]
                self._allocate(tensor)
        if filled_twice:
            with fork_rng(self._device):
                module.reset_parameters()  # type: ignore[operator]
        earlier = {name: tensor.clone() for name, tensor in _own_tensors(module) if name in filled_twice}
        for name, tensor in _own_tensors(module):
            if name in filled_twice:
                tensor.fill_(1)
        module.reset_parameters()  # type: ignore[operator]
        with torch.no_grad():
            for tensor, values in shared:
                tensor.copy_(values)
        for name, tensor in _own_tensors(module):
            if tensor.is_meta or (_can_be_nan(tensor) and bool(tensor.isnan().any())):
                raise ValueError(f"{_join(path, name)}: reset_parameters of {type(module).__name__} does not fill it")
            if name in earlier and not torch.equal(tensor, earlier[name]):
                raise ValueError(
                    f"{_join(path, name)}: reset_parameters of {type(module).__name__} does not fill it, or with other "
                    "values when it is called again with the same RNG states"
                )

    def _allocate(self, tensor: Tensor) -> None:
        """Replace a meta tensor, in every module that has it, by one on the device. Its values are NaN if it can."""
        new = torch.empty_like(tensor, device=self._device, requires_grad=False)
        new.fill_(complex(torch.nan, torch.nan) if new.is_complex() else torch.nan if _can_be_nan(new) else 0)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, tensor.requires_grad)
        vars(new).update(vars(tensor))
        for module, name in self._owners.pop(tensor):
            setattr(module, name, new)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _can_be_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    return [*parameters, *module.named_buffers(recurse=False, remove_duplicate=False)]
