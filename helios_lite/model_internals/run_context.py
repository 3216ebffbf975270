"""The device, precision, strategy and metrics that a run gives to its model."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_lite.data import DataModule
from helios_lite.loading.planned_steps import PlannedSteps
from helios_lite.metrics.accumulator import MetricAccumulator, Reduce, named_reductions
from helios_lite.metrics.metric_objects import MetricObject
from helios_lite.metrics.score_tables import ScoreTables
from helios_lite.networks.parallel import ParallelStrategy
from helios_lite.networks.precision import Precision
from helios_lite.options import Options
from helios_lite.processes.devices import DeviceMover
from helios_lite.processes.world import World

logger = logging.getLogger("helios_lite")


class RunContext:
    """What a run gives to its model. The engine updates it through methods only, and the model reads it.

    Args:
        precision: the number format of the forward pass, and how a loss becomes a step.
        parallel: puts networks on the device and spans them over the processes.
        mover: moves batches to the device.
        trainer: what `Model.trainer` returns; None outside of a run.
        datamodule: the data of the run.
        run_folder: the run folder, None if no file is written.
        planned: the planned number of steps; None outside of a run.

    Attributes:
        device: the device of this process.
        world: the rank of this process and the number of processes.
        metrics: takes logged values; None outside of a run and in `refuse_log`.
        improved: what `monitor` says about the last validation; True without a monitor.
        latest: the last value of every metric, by full name.
        shown: full names of the metrics that are shown beside the bar, in the order in which they were logged first.
        is_set_up: whether `Model.setup` has run.
        expects_row: whether a row of training metrics may follow the present batch.
        split_name: the split at work: "train", "valid", "test" or "predict", for one of several splits "valid/<name>".
        batch: the batch on the device, in batch hooks; None elsewhere.
    """

    def __init__(
        self,
        precision: Precision,
        parallel: ParallelStrategy,
        mover: DeviceMover,
        trainer: Options | None = None,
        datamodule: DataModule | None = None,
        run_folder: Path | None = None,
        planned: PlannedSteps | None = None,
    ) -> None:
        self.precision, self.parallel, self.mover, self.trainer = precision, parallel, mover, trainer
        self.datamodule, self.run_folder, self.planned = datamodule, run_folder, planned
        self.device, self.world = parallel.device, parallel.world
        self.metrics: MetricAccumulator | None = None
        self.improved = True
        self.latest: dict[str, float] = {}
        self.shown: list[str] = []
        self.is_set_up = self.expects_row = False
        self._requests: Callable[[str], None] | None = None
        self._logged: set[str] = set()  # Full names of what has been logged.
        self._num_begun = 0  # Batches, in trainings and in evaluations.
        self._is_callers_turn = False
        self.split_name = "train"
        self.batch: Any = None
        self._batch_size = 1
        self._step = 0
        self._global_batch_size = 1

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a copy of the model, such as a teacher, does not use: the data, and the training."""
        return {**vars(self), "datamodule": None, "planned": None, "batch": None, "_requests": None}

    @classmethod
    def standalone(cls, device: torch.device, *of_run: Any) -> RunContext:
        """Return the context of a model outside of a training: one process, fp32.

        Args:
            device: the device.
            of_run: what `setup` may ask of a run, from `trainer` on; nothing outside of one.
        """
        return cls(Precision("fp32", device), ParallelStrategy(device, World()), DeviceMover(device), *of_run)

    def show_run(self, trainer: Options, run_folder: Path | None) -> None:
        """Show the model another trainer and run folder than those that the call uses."""
        self.trainer, self.run_folder = trainer, run_folder

    def running_trainer(self, name: str) -> Options:
        """Return the trainer; raise a RuntimeError that has the name of what was asked for if none runs the model."""
        if self.trainer is None:
            raise RuntimeError(f"{name}: no Trainer is running this model")
        return self.trainer

    def num_training_steps(self) -> int:
        """Return the planned number of steps; see `Model.num_training_steps`."""
        self.running_trainer("num_training_steps")
        assert self.planned is not None  # As long as a trainer runs the model.
        return self.planned.total()

    def begin_batch(self, batch_size: int, step: int, global_batch_size: int) -> None:
        """Prepare for a training batch.

        Args:
            batch_size: number of samples, the default weight of a logged value.
            step: the step in progress, reported if a logged value is not finite.
            global_batch_size: number of samples of all ranks in this batch together.
        """
        self._num_begun += 1
        self._batch_size, self._step, self._global_batch_size = batch_size, step, global_batch_size

    def begin_phase(self, phase: str, metrics: MetricAccumulator, batch_size: int = 1) -> None:
        """Send the values logged from now on to an accumulator.

        Args:
            phase: "train", "valid" or "test", for one of several splits "valid/<name>": the prefix of the names.
            metrics: takes the values.
            batch_size: number of samples in the batch of an evaluation.
        """
        self._num_begun += 1
        self.split_name, self.metrics, self._batch_size = phase, metrics, batch_size

    def hold_batch(self, batch: Any) -> Any:
        """Show a batch to the hooks, and return it; None ends it."""
        self.batch = batch
        return batch

    def begin_predictions(self, split_name: str) -> None:
        """Note which split is predicted."""
        self.split_name = split_name

    def expect_row(self, expects: bool) -> None:
        """Set whether a row of training metrics may follow the present batch."""
        self.expects_row = expects

    @contextlib.contextmanager
    def logging_to(self, metrics: MetricAccumulator | None) -> Iterator[None]:
        """A context in which logged values go to another accumulator, or with None in which `log` is an error."""
        before, self.metrics = self.metrics, metrics
        try:
            yield
        finally:
            self.metrics = before

    def refuse_log(self) -> contextlib.AbstractContextManager[None]:
        """A context in which `log` is an error, because the metrics have been reduced already."""
        return self.logging_to(None)

    def log(
        self,
        name: str,
        value: Tensor | float | MetricObject,
        weight: Tensor | float | None,
        reduce: Reduce | Sequence[Reduce],
        bar: bool = False,
    ) -> None:
        """Add a logged value; see `Model.log`."""
        if self.metrics is None:
            raise RuntimeError(
                f"log({name!r}): works only while a Trainer runs the model, and not in process_metrics or predict_step"
            )
        weight = self._batch_size if weight is None else weight
        full_name = f"{self.split_name}/{name}"
        if full_name not in self._logged:
            self._logged.add(full_name)
            if name.startswith(f"{self.split_name}/"):
                logger.warning(
                    "log(%r): the phase is put before the name, which makes %r; write log(%r)",
                    name, full_name, name.removeprefix(f"{self.split_name}/"),
                )  # fmt: skip
        if isinstance(reduce, str):
            self.metrics.update(full_name, value, weight, reduce, self._step)
        else:
            for part, one in named_reductions(full_name, reduce):
                self.metrics.update(part, value, weight, one, self._step)
        if bar and full_name not in self.shown:
            self.shown.append(full_name)

    def log_losses(self, tables: ScoreTables, should_log: bool) -> None:
        """Log the losses of a training batch and add them to the running losses. Call on every rank.

        Args:
            tables: the tables of the model.
            should_log: whether the ranks bring `running_losses` up to date; one rank always does.
        """
        tables.add_losses(self._batch_size / self._global_batch_size)
        for name, loss in tables.loss_items.items():
            self.log(name, loss, None, "mean")
        if should_log or self.world.size == 1:
            tables.reduce_losses(self.world)

    def take_requests(self, requests: Callable[[str], None] | None) -> None:
        """Give what hooks ask of a training ("stop", "save", "validation") to a function from now on."""
        self._requests = requests

    def request(self, what: str) -> None:
        """Ask the training for something; see `Model.request_stop`."""
        if self._requests is None:
            raise RuntimeError(f"request_{what}: no training is running this model")
        self._requests(what)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks; see `Model.gather`."""
        return self.world.gather(DeviceMover(torch.device("cpu"))(value))

    def progress(self) -> float:
        """Return a number that changes as long as the run goes on, or the caller of the trainer has the turn."""
        return time.monotonic() if self._is_callers_turn else self._num_begun

    @contextlib.contextmanager
    def callers_turn(self) -> Iterator[None]:
        """A context in which the caller of the trainer has an output; the time that it takes is no hang."""
        self._is_callers_turn = True
        yield
        self._is_callers_turn = False
        self._num_begun += 1

    def use_strategy(self, parallel: ParallelStrategy) -> None:
        """Use the strategy of an earlier run, which has the networks."""
        self.parallel = parallel

    def record(self, values: dict[str, float]) -> None:
        """Set the last values of metrics, by full name."""
        self.latest.update(values)

    def mark_set_up(self) -> None:
        """Note that `Model.setup` has run."""
        self.is_set_up = True

    def set_improved(self, improved: bool) -> None:
        """Set what `monitor` says about the last validation."""
        self.improved = improved

    def end_run(self) -> None:
        """Note that no trainer runs the model any more; its device and its last metrics are kept."""
        self.trainer = self.datamodule = self.run_folder = self.planned = self.metrics = self.batch = None
        self._requests = None
