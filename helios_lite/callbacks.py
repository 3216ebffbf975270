"""Callback, and callbacks that many trainings use; each works with any model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor, nn

from helios_lite.arguments import integer, require, require_kind
from helios_lite.data import DataModule
from helios_lite.hooks import Hooks
from helios_lite.metrics.measurements import peak_memory_mib
from helios_lite.model import Model
from helios_lite.model_internals.attributes import named_networks
from helios_lite.nested import leaves
from helios_lite.networks.dtensors import is_dtensor, load_any_placement
from helios_lite.networks.fsdp import has_shards, reshard, shards_of
from helios_lite.options import Options
from helios_lite.state import TrainingState

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # One with a default, which `typing` has from Python 3.13 on.

    ModelT = TypeVar("ModelT", bound=Model, default=Model)
else:
    from typing import TypeVar

    ModelT = TypeVar("ModelT", bound=Model)


class Callback(Hooks, Generic[ModelT]):
    """A part of training that can be added to any model: the same hooks, called after the model's.

    A callback whose state must survive a resume overrides `state_dict` and `load_state_dict`. One that is slow may set
    `every_n_steps` or `every_n_epochs`, in its class or in `__init__`. For type checkers, one that is for a class of
    models names it, as in `class Notes(Callback[Digits])`, so that `self.model` is one.
    """

    every_n_steps: int = 1
    """Call `on_training_batch_start` and `on_training_batch_end` only for the batches of every n-th step: with 100,
    those of steps 100, 200, ... With accumulation a step has several batches.
    """
    every_n_epochs: int = 1
    """Call `on_training_epoch_start`, `on_training_epoch_end` and the hooks of validations only in every n-th epoch:
    with 5, in epochs 5, 10, ... The hooks of the sanity validation, of `Trainer.validate` and of `Trainer.test`, and
    those of predictions, are always called.
    """
    _run_model: ModelT | None = None
    _run_datamodule: DataModule | None = None

    @property
    def trainer(self) -> Options:
        """The trainer of the run, with its options; a RuntimeError if no Trainer runs the callback."""
        trainer = None if self._run_model is None else self._run_model._context.trainer
        if trainer is None:
            raise self._not_running("trainer")
        return trainer

    @property
    def model(self) -> ModelT:
        """The model (its `device`, `log`, `run_folder`), from `setup` on, which runs after the model's.

        It stays after the run. Before the first one it is a RuntimeError.
        """
        if self._run_model is None:
            raise self._not_running("model")
        return self._run_model

    @property
    def datamodule(self) -> DataModule:
        """The data, whose own `setup` has assigned the splits; otherwise as `model`."""
        if self._run_datamodule is None:
            raise self._not_running("datamodule")
        return self._run_datamodule

    @property
    def run_folder(self) -> Path | None:
        """The run folder, as `Model.run_folder`; a RuntimeError if no Trainer runs the callback."""
        if self._run_model is None:
            raise self._not_running("run_folder")
        return self._run_model.run_folder

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should hold of this callback: tensors and plain containers.

        A callback that evaluates other weights than are trained puts them under the key "evaluation_weights": the state
        dicts of networks by their names in `Model.state_dict`. Tests and `Model.load_from_checkpoint` then load these.

        Called on every rank. The state of rank 0 is saved, and every rank gets it at a resume. What differs among ranks
        can be collected here by `self.model.gather`.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called only if a checkpoint holds a state of this callback."""

    def forget_state(self) -> None:
        """Called when the model gets weights from a checkpoint that has no state of this callback."""

    def _not_running(self, name: str) -> RuntimeError:
        """Return the error of what a run gives, by its name, without one."""
        return RuntimeError(f"{type(self).__name__}.{name}: no Trainer is running this callback")

    def _attach(self, model: ModelT, datamodule: DataModule) -> None:
        """Use the model and the data of a run; raise an error that names a period that is not an int of at least 1."""
        self._run_model, self._run_datamodule = model, datamodule
        for name, value in (("every_n_steps", self.every_n_steps), ("every_n_epochs", self.every_n_epochs)):
            require(f"{type(self).__name__}.{name}", value, integer(least=1))


class EMA(Callback):
    """Keeps an exponential moving average of a network's weights, and uses it in validations, tests and predictions.

    Training continues with the weights themselves, which are not changed. The average begins with the weights after the
    first step; before it, evaluations use the weights. Parameters and buffers of floating-point numbers are averaged,
    in fp32 if their format is smaller; what else there is, such as ids and counters, is that of the network. The
    average is in the `callbacks` part of checkpoints, and a test and `Model.load_from_checkpoint` give the network its
    average, with which it was validated. `averaged.module` is a copy of the network that has it. Of a sharded network
    every rank averages its own shards, and `averaged.module` has no forward pass. Runs on every rank.

    Of several averages of one network, or of networks that share a part, evaluations use the last one in the order of
    the callbacks.
    """

    averaged: Any = None
    """The `AveragedModel` of the network, made in `setup`; its attribute `module` is a copy that has the average."""

    def __init__(self, decay: float = 0.999, name: str = "net") -> None:
        """Make the callback of one network.

        Args:
            decay: the factor of the average at a step; the weights have the factor 1 - decay.
            name: the model's attribute that holds the network.
        """
        require_kind("decay", decay, (int, float), "a number")
        require_kind("name", name, str, "the name of an attribute")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r}: must be at least 0 and below 1")
        self.decay, self.name = decay, name
        self._step = self._num_averaged = 0
        self._is_sharded = False
        self._averaged_model: Model | None = None  # Of which the average is.
        self._kept: list[tuple[Tensor, Tensor]] = []  # In evaluations: tensors of the network and what they had.

    def setup(self, fast_init: bool = False) -> None:
        """Copy the network. A test of the same model after its training in this process keeps the average."""
        from torch.optim.swa_utils import AveragedModel

        net = self._net()
        if fast_init and self.averaged is not None and self._averaged_model is self.model:
            self.averaged.to(self.model.device)
            return
        self._averaged_model = self.model
        self._is_sharded = has_shards(net)
        source = shards_of(net) if self._is_sharded else net
        self.averaged = AveragedModel(source)
        _widen(self.averaged.module)
        if self._is_sharded:
            load_any_placement(self.averaged.module)
        self._step = self._num_averaged = 0

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Update the average, if the optimizer has made a step."""
        if state.step != self._step:
            self._step = state.step
            net = self._net()
            if self._is_sharded:
                reshard(net)
            self._update(net)

    def on_validation_start(self, validation_cycle: int) -> None:
        """Put the average in place of the weights."""
        self._put_in_place()

    def on_validation_end(self, validation_cycle: int) -> None:
        """Put the weights back."""
        self._put_back()

    def on_testing_start(self) -> None:
        """Put the average in place of the weights."""
        self._put_in_place()

    def on_testing_end(self) -> None:
        """Put the weights back."""
        self._put_back()

    def on_predicting_start(self) -> None:
        """Put the average in place of the weights."""
        self._put_in_place()

    def on_predicting_end(self) -> None:
        """Put the weights back."""
        self._put_back()

    def state_dict(self) -> dict[str, Any]:
        """Return the average, also of what other networks share with this one, by their names."""
        return {
            "evaluation_weights": {**self._shared(), self.name: self.averaged.module.state_dict()},
            "name": self.name,
            "num_averaged": self._num_averaged,
            "step": self._step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the average; raise a ValueError if it is that of another network."""
        saved = state_dict.get("name", self.name)
        if saved != self.name:
            raise ValueError(
                f"EMA(name={self.name!r}): the checkpoint has the average of {saved!r} in its place; averages are "
                "found by their order, so give the callbacks EMA in the order that the run began with"
            )
        self.averaged.module.load_state_dict(state_dict["evaluation_weights"][self.name])
        self._num_averaged = int(state_dict["num_averaged"])
        self._step = state_dict["step"]

    def forget_state(self) -> None:
        """Forget the average: the model has weights of which there is none, such as those of another training."""
        self._step = 0

    def on_exception(self, error: BaseException) -> None:
        """Put the weights back if an evaluation has ended before its end."""
        self._put_back()

    def _net(self) -> nn.Module:
        networks = named_networks(self.model)
        if self.name not in networks:
            raise ValueError(
                f"EMA: {type(self.model).__name__} has no network {self.name!r}; name one of those that it has, as in "
                f"EMA(name={next(iter(networks), 'net')!r}): {', '.join(networks) or 'none'}"
            )
        return networks[self.name]

    def _shared(self) -> dict[str, dict[str, Tensor]]:
        """Return the averages of tensors that other networks have too, by network and by name in its `state_dict`."""
        means = {id(mine): mean for mine, mean in self._pairs()}
        shared = {}
        for name, net in named_networks(self.model).items():
            tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
            saved = net.state_dict() if name != self.name else {}
            shared[name] = {key: means[id(each)] for key, each in tensors if key in saved and id(each) in means}
        return {name: tensors for name, tensors in shared.items() if tensors}

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return each tensor of the network with its average."""
        return [*zip(_tensors(self._net()), _tensors(self.averaged.module), strict=True)]

    @torch.no_grad()
    def _update(self, net: nn.Module) -> None:
        is_first = self._num_averaged == 0
        averaged, current = [], []
        for mean, value in zip(_tensors(self.averaged.module), _tensors(net), strict=True):
            if is_first or not mean.is_floating_point():
                mean.copy_(value)
            else:
                averaged.append(mean)
                current.append(value.to(mean.dtype))
        for kind in (True, False):  # One operation cannot take both shards and buffers, which are not sharded.
            chosen = [i for i, mean in enumerate(averaged) if is_dtensor(mean) is kind]
            if chosen:
                torch._foreach_lerp_([averaged[i] for i in chosen], [current[i] for i in chosen], 1 - self.decay)
        self._num_averaged += 1

    @torch.no_grad()
    def _put_in_place(self) -> None:
        """Put the average in place of the weights, and keep them."""
        if self._step == 0:
            return  # There is no average yet, but only a copy of the weights that `Model.setup` made.
        for mine, mean in self._pairs():
            if is_dtensor(mine):  # FSDP gathers from the memory of the shard that it has made, so the values move.
                self._kept.append((mine, mine.detach().clone()))
                mine.copy_(mean)
            else:
                self._kept.append((mine, mine.data))
                mine.data = mean.data.to(mine.dtype)

    @torch.no_grad()
    def _put_back(self) -> None:
        """Put back what was in the place of the average, in reverse: another average, or the weights."""
        while self._kept:
            mine, value = self._kept.pop()
            if is_dtensor(mine):
                mine.copy_(value)
            else:
                mine.data = value


def _widen(net: nn.Module) -> None:
    """Replace the floating-point parameters and buffers of a network that have fewer bits than 32."""
    # Held until the end: of a scripted network they are made when they are asked for, and others would get their
    # identities. By these, since a network may have a tensor at several places.
    parameters, buffers = ([each for each in some if _is_narrow(each)] for some in (net.parameters(), net.buffers()))
    wide: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().float(), p.requires_grad) for p in parameters}
    wide |= {id(buffer): buffer.float() for buffer in buffers}
    for module in net.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in wide:
                    tensors[name] = wide[id(tensor)]  # type: ignore[assignment]


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


class ActivationStatistics(Callback):
    """Logs mean, standard deviation and fraction of zeros of the outputs of modules, in the last batch before each row.

    The names are "train/activation/<path>/mean", "/std" and "/zeros". Of a module whose output is a tuple, a list or a
    dict, every floating-point tensor in it is measured, with its place after the path: "train/activation/lstm/1.0/mean"
    is that of the first state that an LSTM returns. For a module that is called several times in the batch, the value
    is the mean of the calls. The forward hooks are registered for these batches only. Every rank measures its part of
    the batch.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Make the callback of some modules.

        Args:
            paths: paths of modules, from the model on: "net.0", "encoder.layers.3".
        """
        is_list = isinstance(paths, Sequence) and not isinstance(paths, str)
        require_kind("paths", paths if is_list else None, Sequence, "a list of paths of modules")
        for path in paths:
            require_kind("paths", path, str, "a list of paths of modules")
        self.paths = list(paths)
        self._handles: list[Any] = []
        self._modules: dict[str, nn.Module] = {}
        self._measured: dict[str, list[Tensor]] = {}  # Mean, standard deviation and zeros of each call.

    def setup(self, fast_init: bool = False) -> None:
        """Find the modules; an AttributeError names a path that does not exist, a ValueError one that is scripted."""
        self._modules.update((path, self._find(path)) for path in self.paths)

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Register the hooks, if a row may follow the batch."""
        if self.model._context.expects_row:
            for path, module in self._modules.items():
                self._handles.append(module.register_forward_hook(self._measure(path)))

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Remove the hooks, and log what they have measured."""
        self._remove()
        for name, calls in self._measured.items():
            for kind, value in zip(("mean", "std", "zeros"), torch.stack(calls).mean(0), strict=True):
                self.model.log(f"activation/{name}/{kind}", value, reduce="last")
        self._measured.clear()

    def on_exception(self, error: BaseException) -> None:
        """Remove the hooks."""
        self._remove()
        self._measured.clear()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _find(self, path: str) -> nn.Module:
        name, _, rest = path.partition(".")
        net: nn.Module = getattr(self.model, name)
        module = net if isinstance(net, torch.jit.ScriptModule) else net.get_submodule(rest)
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"ActivationStatistics: {path} is a scripted module, or a part of one, and takes no hooks")
        return module

    def _measure(self, path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            for place, value in leaves(output):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0:
                    values = value.detach().float()
                    deviation = values.std() if values.numel() > 1 else torch.zeros_like(values.mean())
                    measured = torch.stack([values.mean(), deviation, (values == 0).float().mean()])
                    self._measured.setdefault(f"{path}/{place}" if place else path, []).append(measured)

        return hook


class DeviceMemory(Callback):
    """Logs the peak memory in MiB as "train/memory_mib", the maximum over the ranks.

    On an accelerator whose memory PyTorch counts it is what was allocated there, otherwise the resident memory of the
    process. Without this callback rows have that of rank 0, on accelerators only.
    """

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Log the peak memory, if a row may follow the batch."""
        if self.model._context.expects_row:
            self.model.log("memory_mib", self._mib(), reduce="max")

    def _mib(self) -> float:
        if (mib := peak_memory_mib(self.model.device)) is not None:
            return mib
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # Linux counts in KiB.


class Profile(Callback):
    """Records some steps with `torch.profiler`, in one file per rank for Perfetto or chrome://tracing.

    However the training ends, the profiler ends with it, and the file has what was recorded until then. A training that
    is resumed between the first and the last step records the rest in a file of its own. `fast_dev_run`, a replay and
    an audit record nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], first: int, last: int, **options: Any) -> None:
        """Make the callback of a range of steps.

        Args:
            folder: the folder of the files "trace_<rank>.json"; of a training that is resumed behind the first step
                they are "trace_<rank>_from_<step>.json". If it is relative, it belongs to the working directory in
                which the callback is made.
            first: the first recorded step, from 1; earlier steps are the warm-up.
            last: the last recorded step.
            options: options of `torch.profiler.profile`, such as `with_stack=True`.
        """
        if not 1 <= first <= last:
            raise ValueError(f"first={first}, last={last}: must be 1 <= first <= last")
        self.folder, self.first, self.last, self.options = Path(folder), first, last, options
        self._path = self.folder.absolute()
        self._profiler: Any = None
        self._begun = first

    def setup(self, fast_init: bool = False) -> None:
        """Check that no other callback records the same steps or writes the same files; a ValueError names both."""
        for each in self.trainer.callbacks:
            if not isinstance(each, Profile) or each is self:
                continue
            if each._path == self._path:
                raise ValueError(f"Profile(folder={str(self.folder)!r}): another Profile has it; give each its own")
            if each.first <= self.last and self.first <= each.last:
                raise ValueError(
                    f"Profile(first={self.first}, last={self.last}): another Profile records steps {each.first} to "
                    f"{each.last}, and there can be one at a time; give each a range of steps of its own"
                )

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Start recording before the first step that is left of the range; a RuntimeError if another profiler runs."""
        step = state.step + 1
        if self._profiler is None and self.first <= step <= self.last and not self.trainer.fast_dev_run:
            from torch.profiler import profile

            if torch._C._autograd._profiler_enabled():  # PyTorch would crash.
                raise RuntimeError(
                    f"Profile(first={self.first}, last={self.last}): another profiler is recording at step {step}, and "
                    "there can be one at a time; give each of several a range of steps of its own"
                )
            self._profiler, self._begun = profile(**self.options), step
            self._profiler.start()

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Write the file after the last step."""
        if state.step >= self.last:
            self._write()

    def on_training_end(self) -> None:
        """Write the file, if the run ended before the last step."""
        self._write()

    def on_exception(self, error: BaseException) -> None:
        """Write the file, if the recording has not ended."""
        self._write()

    def _write(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
            self._path.mkdir(parents=True, exist_ok=True)
            of_rest = f"_from_{self._begun}" if self._begun > self.first else ""
            profiler.export_chrome_trace(str(self._path / f"trace_{self.model.global_rank}{of_rest}.json"))
