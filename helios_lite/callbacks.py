"""Callbacks for what many trainings want; each works with any model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helios_lite.distributed import unwrapped
from helios_lite.hooks import Callback
from helios_lite.state import TrainingState


class EMA(Callback):
    """Keeps an exponential moving average of a network's weights, and lets validations and tests use it.

    Over `torch.optim.swa_utils.AveragedModel`. Training goes on with the weights themselves, untouched. The average
    is in the `callbacks` part of checkpoints; `averaged.module` is the network with it. Runs on every rank.

    Args:
        decay: how much of the average stays at an update.
        name: the model's attribute that holds the network.

    Raises:
        ValueError: the network is sharded (`strategy="fsdp"`).
    """

    averaged: Any = None

    def __init__(self, decay: float = 0.999, name: str = "net") -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r}: must be at least 0 and below 1")
        self.decay, self.name = decay, name
        self._step = 0

    def setup(self, fast_init: bool = False) -> None:
        """Copy the network; a test that follows a training in the same process keeps the average."""
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        net = self._net()
        if any(hasattr(module, "unshard") for module in net.modules()):
            raise ValueError("EMA: does not work with strategy='fsdp'")
        if fast_init and self.averaged is not None:
            self.averaged.to(self.model.device)
        else:
            average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
            self._step = 0

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Move the average, if there was an update."""
        if state.step != self._step:
            self._step = state.step
            self.averaged.update_parameters(self._net())

    def on_validation_start(self, validation_cycle: int) -> None:
        """Put the average in place of the weights."""
        self._swap()

    def on_validation_end(self, validation_cycle: int) -> None:
        """Put the weights back."""
        self._swap()

    def on_testing_start(self) -> None:
        """Put the average in place of the weights."""
        self._swap()

    def on_testing_end(self) -> None:
        """Put the weights back."""
        self._swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"averaged": self.averaged.state_dict(), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.averaged.load_state_dict(state_dict["averaged"])
        self._step = state_dict["step"]

    def _net(self) -> nn.Module:
        return unwrapped(getattr(self.model, self.name))

    def _swap(self) -> None:
        net, average = self._net(), self.averaged.module
        pairs = zip([*net.parameters(), *net.buffers()], [*average.parameters(), *average.buffers()], strict=True)
        for mine, averaged in pairs:
            mine.data, averaged.data = averaged.data, mine.data


class ActivationStatistics(Callback):
    """Logs mean, standard deviation and share of zeros of what some modules put out, in the updates of log points.

    As "train/activation/<path>/mean", "/std" and "/zeros", by forward hooks that are there only then. Every rank
    measures its part of the batch.

    Args:
        paths: of modules from the model on: "net.0", "encoder.layers.3".
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self._handles: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        """Find the modules; an AttributeError names a path that leads nowhere."""
        self._modules = {path: self._find(path) for path in self.paths}

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Hang the hooks in, if the coming update has a log point."""
        if not self._handles and (state.step + 1) % self.model.trainer.log_every_steps == 0:
            for path, module in self._modules.items():
                self._handles.append(module.register_forward_hook(self._measure(path)))

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Take them away after the update."""
        if should_log:
            self._remove()

    def on_validation_start(self, validation_cycle: int) -> None:
        """Take them away: an update may have been left out (fp16)."""
        self._remove()

    def on_training_end(self) -> None:
        """Take them away."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _find(self, path: str) -> nn.Module:
        name, _, rest = path.partition(".")
        return unwrapped(getattr(self.model, name)).get_submodule(rest)

    def _measure(self, path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                values = output.detach().float()
                self.model.log(f"activation/{path}/mean", values.mean())
                self.model.log(f"activation/{path}/std", values.std())
                self.model.log(f"activation/{path}/zeros", (values == 0).float().mean())

        return hook


class DeviceMemory(Callback):
    """Logs the largest memory used so far, in MiB: "train/memory_mib", of the rank that used most.

    On CUDA what PyTorch had allocated on the device; otherwise what the process had of the machine's memory.
    """

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Log it at log points."""
        if should_log:
            self.model.log("memory_mib", self._bytes() / 2**20, reduce="max")

    def _bytes(self) -> float:
        if self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB.


class Profile(Callback):
    """Records some updates with `torch.profiler`, in a file for each rank that Perfetto and chrome://tracing open.

    Args:
        folder: where "trace_<rank>.json" is written.
        first: the update to begin with, from 1; the ones before it warm up.
        last: the update to end with.
        options: of `torch.profiler.profile`, such as `with_stack=True`.
    """

    def __init__(self, folder: str | os.PathLike[str], first: int, last: int, **options: Any) -> None:
        if not 1 <= first <= last:
            raise ValueError(f"first={first}, last={last}: must be 1 <= first <= last")
        self.folder, self.first, self.last, self.options = Path(folder), first, last, options
        self._profiler: Any = None

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Begin to record, if it is time."""
        if self._profiler is None and state.step + 1 == self.first:
            from torch.profiler import profile

            self._profiler = profile(**self.options)
            self._profiler.start()

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Stop and write the file, if it is time."""
        if state.step >= self.last:
            self._write()

    def on_training_end(self) -> None:
        """Write what was recorded, if the run ended before the last update."""
        self._write()

    def _write(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self.folder / f"trace_{self.model.global_rank}.json"))
            self._profiler = None
