"""What a training measures of itself: learning rates, samples per second, the part of the time that it waits for
batches, memory of the device, norms of parameters and gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from helios_lite.networks.dtensors import alike, full_tensor, total_norm
from helios_lite.state import MEASURED


class LearningRates:
    """Notes the learning rates with which the optimizers step.

    A scheduler changes a rate right after the step that used it, and a model may set it right before. Hooks of the
    optimizers therefore read it when they step. They are registered for the steps that a row may follow only.

    Attributes:
        used: the rates of the last step since the last row, by the name of the optimizer.
    """

    def __init__(self) -> None:
        self.used: dict[str, list[float]] = {}
        self._optimizers: dict[str, Optimizer] = {}
        self._handles: list[RemovableHandle] = []

    def set_optimizers(self, optimizers: Mapping[str, Optimizer]) -> None:
        """Use these optimizers, by the names of the model's attributes, from now on."""
        self.unwatch()
        self._optimizers = dict(optimizers)

    def watch(self) -> None:
        """Note the rates of the optimizers that step from now on, until `take`."""
        if not self._handles:
            self._handles = before_steps(self._optimizers, self._note)

    def take(self) -> dict[str, float]:
        """Return the rates of all parameter groups, and stop watching.

        The name is "train/lr", with that of the optimizer if there are several, and the index of the group if the
        optimizer has several. Of an optimizer that did not step, or has no hooks, it is the present rate.
        """
        rates = dict[str, float]()
        for name, optimizer in self._optimizers.items():
            used = self.used.get(name, learning_rates(optimizer))
            rates |= zip(rate_names(name, len(self._optimizers), len(used)), used, strict=True)
        self.unwatch()
        self.used = {}
        return rates

    def restore(self, used: dict[str, list[float]]) -> None:
        """Set `used` to that of a checkpoint."""
        self.used = used

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, name: str, optimizer: Optimizer) -> None:
        self.used[name] = learning_rates(optimizer)


def rate_names(optimizer: str, num_optimizers: int, num_groups: int) -> list[str]:
    """Return the names in a row of the rates of an optimizer; see `LearningRates.take`."""
    name = f"train/lr/{optimizer}" if num_optimizers > 1 else "train/lr"
    return [f"{name}/{i}" for i in range(num_groups)] if num_groups > 1 else [name]


def learning_rates(optimizer: Optimizer) -> list[float]:
    """Return the present learning rate of each parameter group, NaN for one that has none, or chooses it itself."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    return [math.nan if rate is None else float(rate) for rate in rates]


def before_steps(optimizers: Mapping[str, Optimizer], call: Callable[[str, Optimizer], None]) -> list[RemovableHandle]:
    """Call a function with name and optimizer before each step of these, until the handles are removed."""

    def hook(name: str) -> Callable[..., None]:
        return lambda optimizer, arguments, options: call(name, optimizer)

    return [
        optimizer.register_step_pre_hook(hook(name))
        for name, optimizer in optimizers.items()
        # One that wraps another may not have called `Optimizer.__init__`, which makes hooks possible.
        if hasattr(optimizer, "_optimizer_step_pre_hooks")
    ]


def is_measured(name: str) -> bool:
    """Return whether a value is measured by the trainer with a clock or a meter, by its name in a row."""
    return name in MEASURED


def peak_memory_mib(device: torch.device) -> float | None:
    """Return the most memory that PyTorch has had allocated on the device so far, in MiB; None if it does not count it.

    It counts on GPUs, without waiting for them, and not on the CPU.
    """
    count = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    return None if count is None else count(device) / 2**20


@torch.no_grad()
def parameter_norms(networks: Mapping[str, nn.Module], *, of_each: bool) -> dict[str, Tensor]:
    """Return the 2-norm of all trained parameters as "param_norm", and if asked of each. Call on every rank.

    Args:
        networks: the networks by name.
        of_each: whether to return the norm of each parameter too, as `norms_by_parameter` does.
    """
    trained = {id(p): p for net in networks.values() for p in net.parameters() if p.requires_grad}
    norms = {"param_norm": total_norm(alike(trained.values()))}
    if of_each:
        norms |= norms_by_parameter("param_norm", networks, [(p, p) for p in trained.values()])
    return norms


def norms_by_parameter(
    kind: str, networks: Mapping[str, nn.Module], pairs: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Return 2-norms as "<kind>/<name of the parameter>". Call on every rank.

    Args:
        kind: what the norms are of, such as "grad_norm".
        networks: the networks by name, which have the parameters.
        pairs: parameters, each with the tensor of which to take the norm.
    """
    names = {id(p): f"{name}.{path}" for name, net in networks.items() for path, p in net.named_parameters()}
    norms: dict[int, Tensor] = {}
    for tensors in alike(tensor for _, tensor in pairs):
        norms |= zip(map(id, tensors), torch._foreach_norm(tensors), strict=True)
    return {f"{kind}/{names.get(id(parameter), '?')}": full_tensor(norms[id(tensor)]) for parameter, tensor in pairs}


class Throughput:
    """Counts what the speed since the last row of metrics needs.

    Attributes:
        loading_failed: whether the last batch could not be loaded.
    """

    def __init__(self) -> None:
        self.loading_failed = False
        self._waited = 0.0  # Seconds.
        self._samples = 0  # Of all ranks.

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches; count their samples, and the time that each is waited for."""
        clock = time.perf_counter
        started = clock()
        try:
            for batch in batches:
                self._waited += clock() - started
                self._samples += batch[2]
                yield batch
                started = clock()
        except Exception:
            self.loading_failed = True
            raise

    def take(self, seconds: float, steps: int) -> dict[str, float]:
        """Return the metrics of a row by full name, and begin the next one.

        Args:
            seconds: time since the last row, without validations and saves.
            steps: steps since the last row.
        """
        waited, samples = self._waited, self._samples
        self._waited, self._samples = 0.0, 0
        return {
            "train/step_seconds": seconds / steps,
            "train/compute_seconds": max(0.0, seconds - waited) / steps,
            "train/data_wait": min(1.0, waited / seconds) if seconds > 0 else 0.0,
            "train/samples_per_second": samples / seconds if seconds > 0 else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what has been counted since the last row."""
        return {"wait_seconds": self._waited, "samples": self._samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._waited, self._samples = state_dict["wait_seconds"], state_dict["samples"]
