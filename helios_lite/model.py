"""The Model: what a user writes, and what a run gives it to work with."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from helios_lite import checkpoint
from helios_lite.distributed import Parallel, World, unwrapped
from helios_lite.hooks import Hooks
from helios_lite.metrics import Metrics, Reduce
from helios_lite.precision import Precision
from helios_lite.state import TrainingState
from helios_lite.transfer import Transfer

if TYPE_CHECKING:
    from rich.table import Table

    from helios_lite.trainer import Trainer

Net = TypeVar("Net", bound=nn.Module)


@dataclasses.dataclass
class Runtime:
    """What a run tells its model: the trainer writes it, the model reads it.

    Attributes:
        trainer: the trainer, None outside of a run.
        device: where the model computes.
        precision: the number format of the forward pass, and how a loss becomes an update.
        parallel: puts networks on the device and across the processes.
        transfer: moves batches to the device.
        metrics: takes logged values; None outside of a run.
        phase: "train", "valid" or "test", or with a split's name "valid/<name>": the prefix of logged names.
        batch_size: samples in the batch being used: the default weight of a logged value.
        improved: what `monitor` says of the last validation; True without a monitor.
        latest: the last value of every metric, by full name.
        is_set_up: whether `setup` has run.
    """

    trainer: Trainer | None
    device: torch.device
    precision: Precision
    parallel: Parallel
    transfer: Transfer
    metrics: Metrics | None = None
    phase: str = "train"
    batch_size: int = 1
    improved: bool = True
    latest: dict[str, float] = dataclasses.field(default_factory=dict)
    is_set_up: bool = False


def outside(device: torch.device) -> Runtime:
    """Return the runtime of a model that no trainer runs: alone, in fp32."""
    return Runtime(None, device, Precision("fp32", device), Parallel(device, World()), Transfer(device))


class Model(Hooks, abc.ABC):
    """The networks of a project and what one step with them is.

    Write `setup` and the steps that are needed; every other method has a default. The attributes assigned in
    `setup` that have `state_dict` and `load_state_dict` (networks, optimizers, schedulers, averaged weights,
    torchmetrics, also in lists, tuples and dicts) are what checkpoints hold.

    Args:
        save_name: the name of the model in file names.

    Attributes:
        hparams: a plain dict that the subclass may fill with its constructor's arguments; it is stored in
            checkpoints, given to loggers and used by `load_from_checkpoint`.
        _loss_items: losses of the current batch, by name, filled in `train_step` by who likes tables better than
            `log`; cleared before every batch, logged as "train/<name>" after it.
        _running_losses: sums of `_loss_items` since the last validation, as tensors on the device.
        _val_scores: values of the current validation, filled by its hooks; logged as "valid/<name>" at its end.
        _test_scores: the same for testing, "test/<name>".
    """

    def __init__(self, save_name: str) -> None:
        if not isinstance(save_name, str) or not save_name:
            raise TypeError(f"save_name={save_name!r}: must be a str that is not empty")
        self._save_name = save_name
        self._runtime = outside(torch.device("cpu"))
        self.hparams: dict[str, Any] = {}
        self._loss_items: dict[str, Tensor] = {}
        self._running_losses: dict[str, Tensor] = {}
        self._val_scores: dict[str, Any] = {}
        self._test_scores: dict[str, Any] = {}

    # What the run is.

    @property
    def save_name(self) -> str:
        """The name of the model in file names."""
        return self._save_name

    @property
    def trainer(self) -> Trainer:
        """The trainer of the run; a RuntimeError outside of one."""
        if self._runtime.trainer is None:
            raise RuntimeError(f"{type(self).__name__}.trainer: there is none before a Trainer runs the model")
        return self._runtime.trainer

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._runtime.device

    @property
    def map_loc(self) -> str | dict[str, str]:
        """Where loaded weights belong, for `torch.load(..., map_location=self.map_loc)`."""
        return str(self._runtime.device)

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train together."""
        return self._runtime.parallel.world.size > 1

    @property
    def rank(self) -> int:
        """The number of this process on its machine (the local rank); 0 if it is alone."""
        return self._runtime.parallel.world.local_rank

    @property
    def global_rank(self) -> int:
        """The number of this process among all; 0 if it is alone."""
        return self._runtime.parallel.world.rank

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self._runtime.parallel.world.size

    @property
    def metrics(self) -> dict[str, float]:
        """The last known value of every metric, by full name: for decisions, names of files, messages."""
        return self._runtime.latest

    # What a user writes.

    @abc.abstractmethod
    def setup(self, fast_init: bool = False) -> None:
        """Build networks, losses, optimizers and schedulers; the process and its `device` are known.

        Args:
            fast_init: leave out what only training needs (optimizers, schedulers): for testing and inference.
        """

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Do forward pass, `backward` and `optimizer_step` for one batch.

        Args:
            batch: what the training split gives, moved by `batch_to_device`.
            state: the counters, without this batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no train_step")

    def valid_step(self, batch: Any, step: int) -> None:
        """Evaluate one batch, in evaluation mode without gradients, and `log` what is found.

        Args:
            batch: what the validation split gives, moved by `batch_to_device`.
            step: index of the batch in this validation, from 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no valid_step")

    def test_step(self, batch: Any, step: int) -> None:
        """Evaluate one batch of the test split; `valid_step` if it is not written."""
        self.valid_step(batch, step)

    def load_for_testing(self) -> None:
        """Load the networks for testing when no checkpoint is found; `setup(fast_init=True)` has run."""

    def have_metrics_improved(self) -> bool:
        """Say whether the validation that has just ended was the best so far.

        Without an improvement for `patience` validations in a row, training ends. The default is what the
        trainer's `monitor`, `mode` and `min_delta` say, and True without a monitor. `self.metrics` has the values.
        """
        return self._runtime.improved

    def should_training_stop(self) -> bool:
        """Say whether training should end now: asked after every batch, every validation and every epoch."""
        return False

    def should_save_checkpoint(self) -> bool:
        """Say whether a checkpoint that is due may be saved; the last state of a run is saved in any case."""
        return True

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        """Return the name of a checkpoint with something appended, such as a metric; the extension follows.

        Characters that file systems treat specially are replaced.
        """
        return chkpt_name

    def append_to_banner(self, banner: str) -> str:
        """Return the text of the start-up banner with something appended; unused with `print_banner=False`."""
        return banner

    # What checkpoints hold.

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every stateful attribute by name, in the order assigned.

        In lists, tuples and dicts the names are "name.0" and "name.key".
        """
        return {name: part.state_dict() for name, part in self._stateful()}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Restore what `state_dict` returned; tensors are on the right device already.

        Args:
            state_dict: the state by attribute's name.
            fast_init: restore networks only.

        Raises:
            KeyError: an attribute has no saved state, or (unless `fast_init`) the other way round.
        """
        parts = dict(self._stateful())
        if fast_init:
            parts = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        missing = [name for name in parts if name not in state_dict]
        unknown = [] if fast_init else [name for name in state_dict if name not in parts]
        if missing or unknown:
            raise KeyError(
                f"{type(self).__name__}: the checkpoint and the model differ: "
                f"only in the model {missing}, only in the checkpoint {unknown}"
            )
        for name, part in parts.items():
            part.load_state_dict(state_dict[name])

    def trained_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the state of the networks alone, for a file of the finished model."""
        return {name: part.state_dict() for name, part in self._stateful() if isinstance(part, nn.Module)}

    @classmethod
    def load_from_checkpoint(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", **overrides: Any
    ) -> Self:
        """Build the model from the `hparams` in a checkpoint and load its networks, in evaluation mode.

        Args:
            path: a checkpoint file.
            device: where to put it.
            overrides: constructor arguments that replace or complete the stored ones.

        Raises:
            FileNotFoundError, CheckpointError: the file cannot be read.
            TypeError: the constructor needs arguments that `hparams` does not hold.
        """
        content = checkpoint.load(Path(path), device)
        arguments = {**content["hparams"], **overrides}
        if "save_name" in inspect.signature(cls).parameters:
            arguments.setdefault("save_name", content["save_name"])
        model = cls(**arguments)
        model._runtime = outside(torch.device(device))
        model.setup(fast_init=True)
        model._runtime.is_set_up = True
        model.load_state_dict(content["model"], fast_init=True)
        model.eval()
        return model

    # What steps use.

    def parallelize(self, net: Net, blocks: tuple[type[nn.Module], ...] = ()) -> Net:
        """Move a network to the device, compile it if asked, and span it over the processes.

        To be called in `setup`, on every rank alike, before the network's optimizer is made. With several processes
        and `strategy="ddp"` the result is DistributedDataParallel, which passes attributes of the network through;
        with "fsdp" it is the same network, sharded by FSDP2. A process that is alone gets the network itself.

        Args:
            net: initialised alike on every rank, as it is when `setup` draws from the seeded generators.
            blocks: for "fsdp": types of submodules (a transformer's layers) to shard one by one.
        """
        return cast(Net, self._runtime.parallel.wrap(net, blocks))

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context for the forward pass: the trainer's `precision`."""
        return self._runtime.precision.autocast()

    def batch_to_device(self, batch: Any, phase: str) -> Any:
        """Move a batch to the device: tensors, what has `.to`, and these in containers of any nesting.

        On the CPU, where a batch is already, a run calls it only if it was overridden.

        Args:
            batch: what the split gives.
            phase: "train", "valid" or "test".
        """
        return self._runtime.transfer(batch)

    def backward(self, loss: Tensor, weight: Tensor | float | None = None) -> None:
        """Add the gradients of a loss, scaled so that an accumulation window equals one large batch.

        Args:
            loss: scalar, the mean over the samples of the batch.
            weight: what the loss is the mean over, if not samples (such as the number of tokens in the batch,
                as a number or scalar tensor): the update is then that of sum(weight * loss) / sum(weight) over
                the window. `optimizer_step` must follow before the next weighted backward.

        Under accumulation gradients stay until their optimizer steps, so a loss that runs through somebody else's
        parameters (a generator's through the critic) needs `requires_grad_(False)` on those meanwhile.
        """
        self._runtime.precision.backward(loss, weight)

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, scheduler: Any = None, clip_norm: float | None = None
    ) -> bool:
        """Update the parameters once the accumulation window is complete; before that, do nothing.

        Args:
            optimizer: whose parameters; their gradients are clipped, used and cleared.
            scheduler: anything with `step()`, moved once per update.
            clip_norm: largest 2-norm of the gradients; the trainer's `clip_norm` if None.

        Returns:
            Whether the parameters changed.
        """
        return self._runtime.precision.step(optimizer, scheduler, clip_norm)

    def log(
        self, name: str, value: Tensor | float, count: Tensor | float | None = None, reduce: Reduce = "mean"
    ) -> None:
        """Take a value for the metrics; it stays on the device until a log point.

        Args:
            name: its name, which gets the phase as a prefix: "loss" becomes "train/loss", "valid/loss", "test/loss".
            value: a number or a tensor of one element.
            count: what it is the mean over, its weight in "mean" and "std"; the batch's size if None.
            reduce: how values between log points, or of an evaluation, become one: "mean", "sum", "min", "max",
                "last" or "std" (of the population).

        Raises:
            RuntimeError: no trainer runs the model.
            ValueError: the value has several elements, or `reduce` is unknown or changed.
        """
        runtime = self._runtime
        if runtime.metrics is None:
            raise RuntimeError(f"log({name!r}): works only while a Trainer runs the model")
        count = runtime.batch_size if count is None else count
        runtime.metrics.add(f"{runtime.phase}/{name}", value, count, reduce)

    # Modes and defaults of the hooks.

    def train(self) -> None:
        """Switch everything that has modes to training."""
        for _, part in self._stateful():
            if callable(getattr(part, "train", None)):
                part.train()

    def eval(self) -> None:
        """Switch everything that has modes to evaluation."""
        for _, part in self._stateful():
            if callable(getattr(part, "eval", None)):
                part.eval()

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Clear `_loss_items`."""
        if self._loss_items:
            self._loss_items.clear()

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Log `_loss_items` and add them to `_running_losses`."""
        for name, loss in self._loss_items.items():
            self.log(name, loss)
            value = torch.as_tensor(loss).detach()
            self._running_losses[name] = self._running_losses.get(name, torch.zeros_like(value)) + value

    def on_validation_start(self, validation_cycle: int) -> None:
        """Clear `_val_scores`."""
        self._val_scores.clear()

    def on_validation_end(self, validation_cycle: int) -> None:
        """Clear `_running_losses`."""
        self._running_losses.clear()

    def on_testing_start(self) -> None:
        """Clear `_test_scores`."""
        self._test_scores.clear()

    # What it consists of.

    def num_parameters(self, trainable_only: bool = False) -> int:
        """Return the number of parameters of all networks, each counted once however often it is shared."""
        parameters = {id(p): p for net in self._modules() for p in net.parameters()}
        return sum(p.numel() for p in parameters.values() if p.requires_grad or not trainable_only)

    def summary(self) -> Table:
        """Return a rich table of the networks and their direct submodules with their numbers of parameters."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        title = Text(f"{self.save_name} ({type(self).__name__})")
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        table.add_column("module", overflow="fold")
        table.add_column("type")
        table.add_column("parameters", justify="right")
        table.add_column("trainable", justify="right")
        for name, net in self._stateful():
            if not isinstance(net, nn.Module):
                continue
            net = unwrapped(net)
            for path, module in [("", net), *net.named_children()]:
                sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
                if path and not sizes:
                    continue
                total = sum(size for size, _ in sizes)
                trainable = sum(size for size, grad in sizes if grad)
                full = f"  {name}.{path}" if path else name
                table.add_row(Text(full), type(module).__name__, f"{total:,}", f"{trainable:,}")
        table.add_section()
        table.add_row("total", "", f"{self.num_parameters():,}", f"{self.num_parameters(trainable_only=True):,}")
        return table

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: part for name, part in self._stateful() if isinstance(part, torch.optim.Optimizer)}

    def _modules(self) -> list[nn.Module]:
        return [part for _, part in self._stateful() if isinstance(part, nn.Module)]

    def _stateful(self) -> Iterator[tuple[str, Any]]:
        """Yield every attribute that has a state, by name, in the order assigned."""
        for name, value in vars(self).items():
            yield from _stateful_parts(name, value)


_STATELESS = (type, str, int, float, NoneType)


def _stateful_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _STATELESS):  # Most of all, and a vocabulary may have millions.
        return
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _stateful_parts(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _stateful_parts(f"{name}.{i}", item)
