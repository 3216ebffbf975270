"""The Model: what a user writes, and what a run gives it to work with."""

from __future__ import annotations

import abc
import contextlib
import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from helios_lite.arguments import check_save_name, require_kind, require_path
from helios_lite.changes.misfits import load_parts
from helios_lite.data import DataModule
from helios_lite.hooks import Hooks
from helios_lite.metrics import score_tables
from helios_lite.metrics.accumulator import Reduce
from helios_lite.metrics.metric_objects import MetricObject
from helios_lite.model_internals.attributes import Modes, named_networks, networks, stateful_parts
from helios_lite.model_internals.checks import check_is_no_module
from helios_lite.model_internals.inference import load_for_inference, predict_with_only_network
from helios_lite.model_internals.run_context import RunContext
from helios_lite.model_internals.summary import description, num_parameters, parameter_table
from helios_lite.nested import count_samples
from helios_lite.networks.dtensors import gathered_to_rank_0
from helios_lite.state import TrainingState

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from helios_lite.options import Options

Net = TypeVar("Net", bound=nn.Module)


class Model(Hooks, abc.ABC):
    """The networks of a project, and what one step with them does.

    Override `setup` and the steps that are used; every other method has a default. A checkpoint holds the attributes
    that have `state_dict` and `load_state_dict`: networks, optimizers, schedulers, averaged weights, torchmetrics, also
    in lists, tuples, deques, dicts, SimpleNamespaces and dataclasses; and optimizers and schedulers that networks and
    optimizers have. What an optimizer trains must be among them.

    A Model is not an `nn.Module`, and a subclass that is one too is a TypeError. An attribute with the name of a method
    of this class (`self.log = []`) is an AttributeError when a trainer is called, or after `setup`.

    Args:
        save_name: the name of the model in file names, of at most 200 bytes. It is also the name of the run folder
            unless the trainer has a `run_name`, so it must be a path inside of `root`.

    Attributes:
        _loss_items, _running_losses, _val_scores, _test_scores: tables by name, which may be filled instead of calling
            `log`; see `helios_lite.metrics.score_tables.ScoreTables`.
    """

    _loss_items = score_tables.Table("loss_items")
    _running_losses = score_tables.Table("running_losses")
    _val_scores = score_tables.Table("val_scores")
    _test_scores = score_tables.Table("test_scores")

    state_attributes: Sequence[str] = ()
    """Names of plain attributes, such as a running average, a pool of images or a hidden state, that checkpoints hold
    too: tensors, NumPy arrays, numbers, strings, and lists, tuples, sets, dicts and deques of them. Those of rank 0 are
    saved, and every rank gets them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_is_no_module(cls)

    def __init__(self, save_name: str) -> None:
        check_save_name(save_name)
        self._save_name = save_name
        self._context = RunContext.standalone(torch.device("cpu"))
        self._tables = score_tables.ScoreTables()
        self._modes = Modes()
        self._folders: dict[Path, Path] = {}
        self.hparams: dict[str, Any] = {}
        """A plain dict that the subclass may fill with the arguments of its constructor. It is stored in checkpoints,
        given to loggers and used by `load_from_checkpoint`.
        """

    def _attach(self, context: RunContext, hparams: dict[str, Any] | None = None) -> None:
        """Use the device, precision, strategy and metrics of a run from now on, and the hparams that a run has set."""
        self._context = context
        self.hparams = self.hparams if hparams is None else hparams
        self._tables.clear()

    def _as_new(self) -> Self:
        """Return a copy that can be set up without a change of this one, which shares what `__init__` has made."""
        copied = copy.copy(self)
        of_runs = {"_context": RunContext.standalone(torch.device("cpu")), "_tables": score_tables.ScoreTables()}
        vars(copied).update(of_runs, _modes=Modes())
        return copied

    def _forget_modes(self) -> None:
        """Forget the modes of modules that `setup` is about to replace."""
        self._modes = Modes()

    # The run.

    @property
    def save_name(self) -> str:
        """The name of the model in file names."""
        return self._save_name

    @property
    def trainer(self) -> Options:
        """The trainer of the run, with its options; a RuntimeError if no Trainer runs the model."""
        return self._context.running_trainer(f"{type(self).__name__}.trainer")

    @property
    def datamodule(self) -> DataModule:
        """The data of the run, whose `setup` has assigned the splits; a RuntimeError if no Trainer runs the model."""
        self._context.running_trainer(f"{type(self).__name__}.datamodule")
        return cast(DataModule, self._context.datamodule)

    @property
    def run_folder(self) -> Path | None:
        """The run folder, which exists in a training from its start on and in which a hook may write files of its own.

        The path is absolute. None with `root=None` and `fast_dev_run`; a RuntimeError if no Trainer runs the model.
        """
        self._context.running_trainer(f"{type(self).__name__}.run_folder")
        return self._context.run_folder

    @property
    def split_name(self) -> str:
        """The split at work, which is also the prefix of what is logged: "train", "valid" or "test".

        One of several splits is "valid/clean". In predictions it is "predict", or "test" if that split is predicted. A
        RuntimeError if no Trainer runs the model.
        """
        self._context.running_trainer(f"{type(self).__name__}.split_name")
        return self._context.split_name

    @property
    def batch(self) -> Any:
        """The batch on the device, as the step gets it, in the hooks before and after the step; None elsewhere."""
        return self._context.batch

    @property
    def num_training_steps(self) -> int:
        """The planned number of steps, also in `setup`, where the data is known: for the length of a schedule.

        It is what `max_steps` says, or `max_epochs` times the steps of an epoch, whichever is less. The steps that
        fp16 skips count. A run that is resumed with another number of epochs, another batch size or more data has
        another number: the epochs that are finished count as they were. `max_minutes`, `patience` and
        `should_training_stop` may end the run earlier, and `fast_dev_run` is not counted in.

        Raises:
            RuntimeError: no Trainer runs the model.
            ValueError: the number cannot be known, because no limit is set, or the train split has no length.
        """
        return self._context.num_training_steps()

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._context.device

    @property
    def map_loc(self) -> str | dict[str, str]:
        """The `map_location` of `torch.load` for weights of this process."""
        return str(self._context.device)

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train together."""
        return self._context.world.size > 1

    @property
    def rank(self) -> int:
        """The local rank of this process: its index on this machine; 0 for a single process."""
        return self._context.world.local_rank

    @property
    def global_rank(self) -> int:
        """The global rank of this process; 0 for a single process."""
        return self._context.world.rank

    @property
    def world_size(self) -> int:
        """The number of processes on all machines."""
        return self._context.world.size

    @property
    def metrics(self) -> dict[str, float]:
        """The last known value of every metric of this call of a trainer, or of the last one, by full name."""
        return self._context.latest

    # What a user overrides.

    @abc.abstractmethod
    def setup(self, fast_init: bool = False) -> None:
        """Build networks, losses, optimizers and schedulers; the process and its `device` are known.

        Args:
            fast_init: leave out what only training needs (optimizers, schedulers), for testing and inference.
        """

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Run the forward pass, `backward` and `optimizer_step` for one batch.

        Args:
            batch: a batch of the train split, moved by `batch_to_device`.
            state: the counters; they do not count this batch yet.
        """
        raise NotImplementedError(f"{type(self).__name__} has no train_step")

    def valid_step(self, batch: Any, step: int) -> None:
        """Evaluate one batch, in evaluation mode without gradients, and `log` the results.

        Args:
            batch: a batch of the validation split, moved by `batch_to_device`.
            step: index of the batch in this validation, from 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no valid_step")

    def test_step(self, batch: Any, step: int) -> None:
        """Evaluate one batch of the test split; the default calls `valid_step`."""
        self.valid_step(batch, step)

    def predict_step(self, batch: Any, step: int) -> Any:
        """Return the outputs for one batch, in evaluation mode without gradients; see `Trainer.predict`.

        The default gives the batch to the only network of the model, in the trainer's precision: a tuple or list gives
        its first element. A dict, or a model with several networks, needs an override.

        Args:
            batch: a batch of the split, moved by `batch_to_device`.
            step: index of the batch among those of all ranks, from 0.
        """
        return predict_with_only_network(self, batch)

    def load_for_testing(self) -> None:
        """Load the networks for a test when no checkpoint is found; `setup(fast_init=True)` has run."""

    def have_metrics_improved(self) -> bool:
        """Return whether the validation that has just ended was the best so far.

        After `patience` validations in a row without an improvement, training ends. The default depends on the
        trainer's `monitor`, `mode` and `min_delta`, and is True without a monitor. `self.metrics` has the values.
        """
        return self._context.improved

    def should_save_checkpoint(self) -> bool:
        """Return whether a checkpoint that is due may be saved; the last state of a run is saved in any case."""
        return True

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        """Return the name of a checkpoint (without extension) with metadata appended, such as a metric.

        Characters that file systems treat specially are replaced.
        """
        return chkpt_name

    def append_to_banner(self, banner: str) -> str:
        """Return the text of the start-up banner with lines appended; not called if nothing is printed."""
        return banner

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every stateful attribute, and of those in `state_attributes`, by name.

        In lists, tuples, deques and dicts the names are "name.0" and "name.key", in SimpleNamespaces and dataclasses
        "name.attribute". Call on every rank; that of rank 0 is saved. What an override returns is not checked.
        """
        return {name: part.state_dict() for name, part in stateful_parts(self)}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Restore what `state_dict` returned. Call on every rank.

        Args:
            state_dict: the states by attribute name, with tensors on this process's device; those of networks and
                optimizers may be in CPU memory.
            fast_init: restore networks only.

        Raises:
            ValueError: a part or a tensor is missing on one side, or has another shape; nothing is loaded then.
        """
        load_parts(type(self).__name__, dict(stateful_parts(self)), state_dict, networks_only=fast_init)

    def trained_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the states of the networks by name, for a file of the finished model. Call on every rank.

        The tensors of sharded networks are gathered one by one into CPU memory of rank 0; on the other ranks the states
        of these networks are empty.
        """
        is_main = self._context.world.is_main
        return {name: gathered_to_rank_0(net.state_dict(), is_main) for name, net in named_networks(self).items()}

    @classmethod
    def load_from_checkpoint(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", **overrides: Any
    ) -> Self:
        """Build a model from the `hparams` in a checkpoint, load its networks and switch it to evaluation mode.

        A network of which a callback has averaged the weights (`EMA`) gets the average, with which it was validated.

        Args:
            path: a checkpoint (a file, or the folder of a sharded one), or a run folder, of which the best one is
                loaded (the newest if no one is best).
            device: the device of the networks.
            overrides: constructor arguments that replace or complete the stored ones.

        Raises:
            FileNotFoundError, CheckpointError: the file cannot be read.
            ValueError: there is no such device.
            TypeError: the constructor needs arguments that `hparams` does not hold.
        """
        require_path("path", path)
        return cast(Self, load_for_inference(cls, Path(path), device, overrides))

    # What setup and the steps use.

    def parallelize(self, net: Net, blocks: tuple[type[nn.Module], ...] = ()) -> Net:
        """Move a network to the device, compile it (`compile=True`), and span it over the processes.

        Call it in `setup` on every rank, before the network's optimizer is made. It returns the network itself. With
        several processes and `strategy="ddp"` each has a replica, with the values of rank 0, and the gradients are
        averaged over the ranks at the end of every backward pass, whatever has called the network. With "fsdp" and
        "hsdp" the network is sharded by FSDP2.

        A network made under `torch.device("meta")` is initialized here, by the method `reset_parameters` of each module
        that has parameters or buffers of its own. Under "fsdp" and "hsdp" it never exists as a whole.

        Args:
            net: a network with the same initial weights on every rank, as `setup` makes it (all ranks are seeded
                alike), or on the meta device.
            blocks: types of submodules (a transformer's layers) that are sharded, compiled and recomputed
                (`checkpoint_activations=True`) one by one.

        Raises:
            ValueError: a module on the meta device has no `reset_parameters`, or one that leaves a tensor unfilled; or,
                with several processes, the ranks have made different networks, or a parameter has no shape yet. Or one
                that is sharded, or on the meta device, has a hook already, or belongs to another network as well; or
                one module is to be sharded whose parameters have several data types, or sparse gradients.
        """
        require_kind("net", net, nn.Module, "an nn.Module")
        if not isinstance(blocks, tuple) or not all(isinstance(block, type) for block in blocks):
            raise TypeError(f"blocks={blocks!r}: must be a tuple of classes of modules")
        return cast(Net, self._context.parallel.wrap(net, blocks))

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of the forward pass, which applies the trainer's `precision`."""
        return self._context.precision.autocast()

    def count_samples(self, batch: Any) -> int:
        """Return the number of samples in a batch of a loader that does not know it.

        A Split knows it, and so does a DataLoader with PyTorch's batch sampler. The default is the first dimension that
        all tensors of the batch have. Means, sums of weights and the position in the data are computed from it.

        Args:
            batch: a batch as the loader gives it, on the CPU; of several train splits that of one of them.

        Raises:
            ValueError: the tensors have different first dimensions, or the batch is an object that is not known.
        """
        return count_samples(batch)

    def batch_to_device(self, batch: Any, phase: str) -> Any:
        """Move a batch to the device: tensors, other objects with `.to`, and both in containers of any nesting.

        On the CPU a run calls it only if it is overridden.

        Args:
            batch: a batch of the split.
            phase: "train", "valid", "test" or "predict".
        """
        return self._context.mover(batch)

    def backward(self, loss: Tensor, weight: Tensor | float | None = None, retain_graph: bool = False) -> None:
        """Add the gradients of a loss, scaled so that an accumulation window equals one large batch.

        Args:
            loss: scalar, the mean over the samples of the batch.
            weight: the number of items of which the loss is the mean, if these are not samples (such as the tokens of
                the batch), as a number or scalar tensor. The step is then that of sum(weight * loss) / sum(weight)
                over the window and all ranks. `optimizer_step` must be called before the next weighted backward.
            retain_graph: keep the graph, because another loss of the same forward pass follows.

        A loss that passes through the parameters of another optimizer (a generator's loss through the critic) leaves
        gradients there, which are cleared at the end of the window. If that optimizer steps later in the same
        batch, or with accumulation, use `requires_grad_(False)` on its parameters meanwhile.
        """
        self._context.precision.backward(loss, weight, retain_graph)

    def optimizer_step(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        clip_norm: float | None = None,
        closure: Callable[[], Any] | None = None,
    ) -> bool:
        """Update the parameters if the accumulation window is complete; do nothing before that.

        Several updates of one batch are several calls, each after its `backward`; they count as one step.

        Args:
            optimizer: the optimizer; the gradients of its parameters are clipped, used and cleared.
            scheduler: any object with `step()`, called once per step.
            clip_norm: largest 2-norm of the gradients; the trainer's `clip_norm` if None.
            closure: for an optimizer that computes the loss itself, such as `LBFGS` or SAM: a function that clears the
                gradients, computes the loss of the batch, passes it to `backward` without a weight and returns it. Its
                gradients are averaged over the ranks and clipped, and all ranks get the mean loss.

        Returns:
            Whether the parameters changed. Without any gradient they do not, and the scheduler is not called.

        Raises:
            ValueError: a closure with `precision="fp16"`, with `accumulation_steps` or for sharded networks.
        """
        if closure is not None:
            self._context.precision.step_with_closure(optimizer, scheduler, clip_norm, closure)
            return True
        return self._context.precision.step(optimizer, scheduler, clip_norm)

    def log(
        self,
        name: str,
        value: Tensor | float | MetricObject,
        count: Tensor | float | None = None,
        reduce: Reduce | Sequence[Reduce] = "mean",
        bar: bool = False,
    ) -> None:
        """Log a value; it is kept on the device until the next logging step.

        Args:
            name: the name without the phase: "loss" becomes "train/loss", "valid/loss" or "test/loss".
            value: a number or a tensor of one element; or a metric object of torchmetrics, torcheval or your own, with
                `update`, `compute` and `reset`. Such an object is computed over the row of metrics, in training also
                over the epoch, or over the evaluation, and over all ranks, and is reset then. It must be an attribute
                of the model if it is logged in training. A dict that it computes gives "<name>/<key>".
            count: the number of items of which the value is the mean, its weight in "mean" and "std"; the number of
                samples in the batch if None.
            reduce: how the values since the last logging step, or of an evaluation, are reduced over batches and
                ranks: "mean", "sum", "min", "max", "last" or "std" (of the population). Of several, the first has the
                name, and the others have names of their own: ("mean", "std") gives "train/loss" and "train/loss/std".
            bar: show the last known value beside the progress bar: that of the last logging step or evaluation.

        Raises:
            RuntimeError: no Trainer is running the model.
            TypeError, ValueError: the value is not one number, or `reduce` is unknown, differs from an earlier call or
                is given with a metric object; later: ranks have a metric object without a `merge_state`.
        """
        self._context.log(name, value, count, reduce, bar)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank; in one process a list of one. Call on every rank.

        Args:
            value: any value that can be pickled. Tensors in it arrive on the CPU; detach those that need gradients.
        """
        return self._context.gather(value)

    # What a hook may ask for.

    def request_stop(self) -> None:
        """End the training at the next boundary, as if `should_training_stop` had returned True.

        A boundary is the end of a step; with several processes it is one at which they communicate, about twice a
        second, and it is enough that one rank asks. So it is for the other requests.
        """
        self._context.request("stop")

    def request_save(self) -> None:
        """Save a checkpoint at the next boundary; see `request_stop`."""
        self._context.request("save")

    def request_validation(self) -> None:
        """Validate at the next boundary, unless these weights have been validated; see `request_stop`.

        In a run that does not validate, because it has no valid split or its validations are turned off, that boundary
        raises a RuntimeError.
        """
        self._context.request("validation")

    # Modes, and the defaults of the hooks that keep the tables.

    def train(self) -> None:
        """Switch every attribute that has modes to training mode, but for what was in evaluation mode before `eval`.

        A frozen teacher that `setup` or `on_training_start` has put in evaluation mode stays in it.
        """
        self._modes.train(part for _, part in stateful_parts(self))

    def eval(self) -> None:
        """Switch every attribute that has modes to evaluation mode."""
        self._modes.eval(part for _, part in stateful_parts(self))

    on_training_batch_start = score_tables.on_training_batch_start
    on_training_batch_end = score_tables.on_training_batch_end
    on_validation_start = score_tables.on_validation_start
    on_validation_end = score_tables.on_validation_end
    on_testing_start = score_tables.on_testing_start

    # Its parameters.

    def __repr__(self) -> str:
        """Return one line: the name, the number of parameters and the device, or that `setup` has not run."""
        return description(self)

    def num_parameters(self, trainable_only: bool = False) -> int:
        """Return the number of parameters of all networks; a shared parameter counts once."""
        return num_parameters(networks(self), trainable_only)

    def summary(self, depth: int | None = 1) -> RichTable:
        """Return a rich table of the networks and their submodules, with their numbers of parameters.

        Args:
            depth: the number of levels of submodules to show below each network; None shows all of them, and each
                parameter with its data type and shape.
        """
        return parameter_table(f"{self.save_name} ({type(self).__name__})", named_networks(self), depth)
