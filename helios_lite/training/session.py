"""Sets up and takes down what one call of the trainer works with in one process."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_lite.callbacks import Callback
from helios_lite.changes.added_groups import not_made_again
from helios_lite.changes.run_description import describe_run
from helios_lite.checkpoints.folder import CheckpointFolder
from helios_lite.checkpoints.run_folders import newest
from helios_lite.data import DataModule
from helios_lite.display import console
from helios_lite.display.progress import Progress
from helios_lite.display.run_log import RunLog
from helios_lite.loading.batches import Loader
from helios_lite.loading.loaders import LoaderKeeper, check_splits, make_loader, split_parts
from helios_lite.loading.planned_steps import PlannedSteps
from helios_lite.loading.train_data import TrainData
from helios_lite.metrics.accumulator import MetricAccumulator
from helios_lite.model import Model
from helios_lite.model_internals.attributes import (
    metric_names,
    named_networks,
    networks,
    stateful_parts,
    trained_in_evaluation_mode,
)
from helios_lite.model_internals.checks import (
    check_held,
    check_hidden_parts,
    check_names,
    check_no_method_is_hidden,
    check_trained,
    misspelt_hooks,
)
from helios_lite.model_internals.out_of_memory import explain_memory
from helios_lite.model_internals.run_context import RunContext
from helios_lite.nested import count_samples
from helios_lite.networks.parallel import ParallelStrategy
from helios_lite.networks.precision import Precision
from helios_lite.options import Options
from helios_lite.processes import rng
from helios_lite.processes.devices import (
    DeviceMover,
    backend_flags,
    check_own_devices,
    choose_accelerator,
    choose_device,
    is_slower_than_it_might_be,
    pins_memory,
)
from helios_lite.processes.output import flush_output, say_what_is_off
from helios_lite.processes.world import join_world
from helios_lite.training.cleanup import cleanup
from helios_lite.training.hook_dispatch import HookDispatcher
from helios_lite.training.run_loggers import RunLoggers
from helios_lite.training.status_file import StatusFile

if TYPE_CHECKING:
    from helios_lite.checkpoints.compiled import CompiledNetworks

logger = logging.getLogger("helios_lite")


class Session:
    """The objects that one call of the trainer uses in one process. They are not replaced after `setup`.

    Args:
        options: the trainer, which is also what `model.trainer` returns.
        model: the model.
        datamodule: its data.
        directory: the working directory in which the call has begun; relative paths in options belong to it.
        method: the method of the trainer.
        status: the status of the call, which is written only on rank 0 of a `fit` with files.

    Attributes:
        status, method: as above.
        world: the rank of this process and the number of processes.
        device: the device of this process.
        folder: the run folder, None if no file is written.
        checkpoints: the checkpoints in the run folder.
        compiled: what the compiler has made of the networks of this run; None if nothing of it is kept.
        hooks: calls the hooks of the model and the callbacks.
        loggers: the loggers, on rank 0. A `fast_dev_run`, a `replay` and a `plan` leave nothing in them.
        progress: what is seen while the call lasts, on rank 0 only.
        prints: whether this process prints the banner and the tables.
        metrics: the training values logged since the last row.
        train_data: the batches of the train split.
        planned: the planned number of steps.
        context: what the model is given.
        tables: what this start consists of; see `describe_run`.
        was_set_up: whether an earlier call in this process has set the model up.
        needs_transfer: whether `Model.batch_to_device` must be called.
    """

    def __init__(
        self,
        options: Options,
        model: Model,
        datamodule: DataModule,
        directory: Path,
        method: str,
        status: StatusFile,
    ) -> None:
        self.options, self.model, self.datamodule, self.directory = options, model, datamodule, directory
        self.status, self.method = status, method
        device_type = choose_accelerator(options.accelerator)
        self.world = join_world(device_type)
        self.device = choose_device(device_type, options.devices, self.world)
        check_own_devices(self.device, self.world)
        self.folder = run_folder(options, model, directory)
        if options.resume == "new" and self.folder is not None:  # Another program may make a newer one at this moment.
            self.folder = self.folder.with_name(self.world.broadcast(self.folder.name))
        self.hooks = HookDispatcher(model, datamodule, options)
        self.checkpoints: CheckpointFolder | None = None
        if self.folder is not None:
            self.checkpoints = checkpoint_folder(options, model, self.folder, self.hooks.checkpoint_saved)
        self.compiled: CompiledNetworks | None = None
        if options.compile and self.folder is not None and method == "fit":
            from helios_lite.checkpoints.compiled import CompiledNetworks  # Here, because few programs need it.

            self.compiled = CompiledNetworks(self.folder, self.device, self.world)
        self.loggers = RunLoggers(
            options.loggers if self.world.is_main else (),
            run_folder=self.folder,
            method=method,
            keeps=not options.fast_dev_run and method not in ("replay", "plan"),
        )
        is_seen = self.world.is_main and options.log_level != "quiet"
        self.progress = Progress(options.progress and is_seen)
        self.prints = options.print_banner and is_seen
        self.metrics = MetricAccumulator(self.device, is_held=lambda metric: id(metric) in metric_names(model))
        self._keepers: dict[str, LoaderKeeper] = {}
        self.was_set_up = model._context.is_set_up
        self.tables: dict[str, Any] = {}
        self._said: set[str] = set()  # Of groups that no start can make again.
        self.train_data = TrainData(datamodule, options, self.world, self.count_samples, pins_memory(self.device))
        self.planned = PlannedSteps(options, self.train_data)
        self.context = self._make_context()
        overrides_transfer = type(model).batch_to_device is not Model.batch_to_device
        self.needs_transfer = self.device.type != "cpu" or overrides_transfer

    def setup(self, *, fast_init: bool) -> None:
        """Call `setup` of the datamodule, the model and the callbacks. Call on every rank.

        Args:
            fast_init: only networks are needed; a model that was set up in this process before is used as it is.
        """
        options, model = self.options, self.model
        rng.seed_all(options.seed)
        if self.compiled is not None:
            self.compiled.load()
        self.datamodule.setup()
        check_no_method_is_hidden(self.datamodule, DataModule)
        check_splits(self.datamodule)
        earlier = model._context
        is_reused = fast_init and self.was_set_up
        if is_reused and (earlier.world, earlier.device) == (self.world, self.device):
            self.context.use_strategy(earlier.parallel)  # It has the networks of the earlier call.
        self.context.begin_phase("train", self.metrics)
        model._attach(self.context)
        # Seeded again, so that the weights do not depend on the random numbers that the data used; alike on every rank.
        rng.seed_all(options.seed)
        if is_reused:
            for net in networks(model):
                net.to(self.device)
        else:
            model._forget_modes()
            from helios_lite.schedules import planned_steps  # Here, because only some programs use schedules.

            with planned_steps(self.planned.total):
                model.setup(fast_init=fast_init)
            check_no_method_is_hidden(model, Model)
            parts = self.check_checkpoint_holds_all()
            if type(model).state_dict is Model.state_dict:
                check_hidden_parts(model, parts)
            self.context.parallel.check_passed(parts)
            self.tables = describe_run(dict(parts), self.datamodule, self.device, self.world.size)
        self.context.mark_set_up()
        self.hooks.set_up_callbacks(fast_init)
        if self.world.is_main:
            self._warn_of_likely_mistakes(fast_init)
        if not self.world.is_main:  # From here on dropout differs among the ranks.
            rng.seed_all(rng.derive_seed(options.seed, self.world.rank))

    def _warn_of_likely_mistakes(self, fast_init: bool) -> None:
        callbacks = ((callback, Callback) for callback in self.options.callbacks)
        for owner, base in ((self.model, Model), (self.datamodule, DataModule), *callbacks):
            for name, instead in misspelt_hooks(owner, base):
                logger.warning("%s is never called: there is no such hook; %s", name, instead)
        if not fast_init and self.options.precision == "fp32" and is_slower_than_it_might_be(self.device):
            logger.info(
                "products of float32 matrices do not use TensorFloat32, which this device has, and which is several "
                'times faster: call torch.set_float32_matmul_precision("high") in the program, or use precision="bf16"'
            )
        in_evaluation = [] if fast_init else trained_in_evaluation_mode(self.model)
        if in_evaluation and type(self.model).train is Model.train:
            text = (
                "%s (%d modules in all) is trained in evaluation mode, in which setup has left it; for the other mode, "
            )
            logger.warning(text + "call its method train() in setup", in_evaluation[0], len(in_evaluation))

    def check_checkpoint_holds_all(self) -> list[tuple[str, Any]]:
        """Return the stateful parts of the model, after checking that a checkpoint of them holds all that is trained.

        Called after `Model.setup`, at the start of every epoch and at every save, since hooks may add parameters. A
        model that overrides `state_dict` is not checked: it decides itself what checkpoints hold.

        Raises:
            ValueError: an optimizer trains a tensor that no checkpoint would hold, or two parts have the same name.
        """
        self.context.parallel.refresh()
        if type(self.model).state_dict is not Model.state_dict:
            return list(stateful_parts(self.model))
        parts = check_names(self.model)
        check_trained(self.model, parts)
        if self.checkpoints is not None and self.tables and self.world.is_main:
            for text in not_made_again(parts, self.tables["made"]):
                if text not in self._said:
                    self._said.add(text)
                    logger.warning(
                        "%s: no start can go on from the checkpoints that follow. Make all groups in setup: a frozen "
                        "parameter has no gradient, and an optimizer leaves it as it is", text,
                    )  # fmt: skip
        return parts

    @property
    def name(self) -> str:
        """What messages call the run: its folder, or the model."""
        return self.model.save_name if self.folder is None else str(console.shown_path(self.folder, self.directory))

    @property
    def check_held(self) -> Callable[[Any], None] | None:
        """What raises a ValueError for an optimizer that no checkpoint would hold; None if none is checked.

        What callbacks have is theirs to hold.
        """
        if self.checkpoints is None or type(self.model).state_dict is not Model.state_dict:
            return None
        return functools.partial(check_held, self.model, self.options.callbacks)

    @property
    def count_samples(self) -> Callable[[Any], int]:
        """The function that counts the samples in a batch: the model's, if it overrides `Model.count_samples`."""
        is_own = type(self.model).count_samples is not Model.count_samples
        return self.model.count_samples if is_own else count_samples

    def open_split(self, phase: str) -> list[str]:
        """Make the loaders of the "valid" or "test" split, and return the prefixes of their metrics; none if off."""
        parts = {} if self.options.limit_of(phase) == 0 else split_parts(self.datamodule, phase)
        for name, part in parts.items():
            self.open_loader(part, name, self.options.limit_of(phase))
        return [*parts]

    def open_loader(self, source: Any, name: str, limit: int | float | None = None) -> Loader:
        """Return the loader of a part of a split, whose workers end with the session."""
        seed, world, count, pins = self.options.seed, self.world, self.count_samples, pins_memory(self.device)
        keeper = LoaderKeeper(lambda source: make_loader(source, name, seed, world, limit, count=count, pins=pins))
        self._keepers[name] = keeper
        return keeper.of(source)

    def loader(self, name: str) -> Loader:
        """Return the loader of a part of a split that was opened, as its split is now."""
        return self._keepers[name].current()

    def close(self) -> None:
        """End the workers of all loaders, let networks go, and reset metric objects of a row that was not written."""
        self.context.parallel.close()
        self.metrics.reset()
        for keeper in self._keepers.values():
            keeper.close()

    def _make_context(self) -> RunContext:
        options = self.options
        parallel = ParallelStrategy(
            self.device,
            self.world,
            options.strategy,
            options.precision,
            options.compile,
            options.checkpoint_activations,
        )
        is_alone = self.world.size == 1
        precision = Precision(
            options.precision, self.device, options.clip_norm, self.world, None if is_alone else parallel
        )
        mover = DeviceMover(self.device)
        return RunContext(precision, parallel, mover, options, self.datamodule, self.folder, self.planned)


def checkpoint_folder(
    options: Options, model: Model, folder: Path, on_saved: Callable[[Path, bool], None] | None = None
) -> CheckpointFolder:
    """Return the checkpoints in a run folder, with what the options say of keeping them.

    Args:
        options: the trainer.
        model: the model.
        folder: the run folder.
        on_saved: as for `CheckpointFolder`.
    """
    return CheckpointFolder(
        folder / "checkpoints",
        model.save_name,
        mode=options.mode,
        keep_last=options.keep_last,
        keep_best=options.keep_best,
        background=options.async_save,
        on_saved=on_saved,
    )


def run_folder(options: Options, model: Model, directory: Path) -> Path | None:
    """Return the run folder of a call that has begun in a working directory, None if the run writes no files.

    With `resume="new"` it is the one that the last `fit` of this model has claimed, else the newest of the name.
    """
    named = named_folder(options, model, directory)
    if named is None or options.resume != "new":
        return named
    return model._folders.get(named) or newest(named)


def named_folder(options: Options, model: Model, directory: Path) -> Path | None:
    """Return the run folder that the options name, None if the run writes no files. Arguments as for `run_folder`."""
    if options.root is None or options.fast_dev_run:
        return None
    return directory / options.root / (options.run_name or model.save_name)


@contextlib.contextmanager
def open_session(
    options: Options,
    model: Model,
    datamodule: DataModule,
    directory: Path,
    *,
    method: str,
    status: StatusFile,
    data_is_prepared: bool,
) -> Iterator[Session]:
    """Context of one call of the trainer: prepares the data, locks the run folder and opens its log.

    On exit everything is undone, also after an error. Call on every rank.

    Args:
        options: the trainer.
        model: the model.
        datamodule: its data.
        directory: the working directory in which the call has begun.
        method: the method of the trainer. During `fit` and `replay` the run folder is closed to other runs, by rank 0;
            `plan` does not write its log.
        status: the status of the call, which begins here.
        data_is_prepared: whether `prepare_data` has run, in the process that launched this one.
    """
    is_training = method in ("fit", "replay")
    with contextlib.ExitStack() as stack:
        stack.enter_context(cleanup(datamodule.teardown))
        session = Session(options, model, datamodule, directory, method, status)
        stack.callback(lambda: model._context.end_run())
        stack.callback(session.close)
        if is_training and session.world.is_main and session.checkpoints is not None:
            stack.enter_context(session.checkpoints.locked())
            if method == "fit" and session.folder is not None:
                status.begin(session.folder)
        log = RunLog(
            None if session.folder is None or method == "plan" else session.folder / "train.log",
            options.log_level,
            rank=session.world.rank,
            is_required=is_training,
            records_failure=not data_is_prepared,  # By the launching process, which knows which rank was the first.
        )
        stack.enter_context(log)
        say_what_is_off()
        stack.callback(flush_output)  # What cannot be shown is said in the log.
        stack.callback(session.progress.close)
        stack.enter_context(backend_flags(options.deterministic, options.benchmark, session.device))
        if session.world.is_main and not data_is_prepared:
            datamodule.prepare_data()
        session.world.barrier()  # The other ranks wait for the data.
        stack.enter_context(session.loggers)
        try:
            yield session
        except BaseException as error:
            session.context.parallel.explain(error, named_networks(model))
            explain_memory(error, model, can_replay=method == "fit" and session.folder is not None)
            session.hooks.report_exception(error)
            raise
