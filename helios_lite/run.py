"""What surrounds every loop: setting up and taking down, hooks, evaluation, the choice of a checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helios_lite import checkpoint, console, rng
from helios_lite.checkpoint import Checkpoints
from helios_lite.data import DataModule, Loader, make_loader
from helios_lite.distributed import Parallel, choose_accelerator, choose_device, join_world
from helios_lite.hooks import Hooks
from helios_lite.metrics import Metrics
from helios_lite.model import Model, Runtime
from helios_lite.precision import Precision
from helios_lite.state import TrainingState
from helios_lite.transfer import Transfer

if TYPE_CHECKING:
    from helios_lite.trainer import Trainer

logger = logging.getLogger("helios_lite")


class Run:
    """A model, its data and its folder for the time of one call of the trainer, in one of its processes.

    Args:
        trainer: the options, and what `model.trainer` returns.
        model: the model.
        datamodule: its data.
        prepared: whether `prepare_data` has run, in the process that launched this one.
    """

    def __init__(self, trainer: Trainer, model: Model, datamodule: DataModule, prepared: bool = False) -> None:
        self.trainer, self.model, self.datamodule = trainer, model, datamodule
        self.prepared = prepared
        kind = choose_accelerator(trainer.accelerator)
        self.world = join_world(kind)
        self.device = choose_device(kind, trainer.devices, self.world)
        if kind == "cuda":
            torch.cuda.set_device(self.device)
        self.state = TrainingState()
        self.metrics = Metrics(self.device)
        self.bars = console.Bars(False)
        self.folder: Path | None = None
        if trainer.root is not None and not trainer.fast_dev_run:
            self.folder = Path(trainer.root) / (trainer.run_name or model.save_name)
        self.checkpoints: Checkpoints | None = None

    @contextlib.contextmanager
    def around(self, writes: bool = False) -> Iterator[None]:
        """Do what comes before and after everything, however it ends. Call on every rank.

        Args:
            writes: whether the run's folder is written to, and so kept from other runs. Rank 0 does it.
        """
        trainer = self.trainer
        with contextlib.ExitStack() as self.stack:
            self.stack.enter_context(at_the_end(self.datamodule.teardown))
            self.stack.callback(self.leave)
            log_file = None
            if self.folder is not None:
                self.checkpoints = Checkpoints(
                    self.folder / "checkpoints",
                    self.model.save_name,
                    mode=trainer.mode,
                    keep_last=trainer.keep_last,
                    keep_best=trainer.keep_best,
                    background=trainer.async_save,
                )
                if writes and self.world.is_main:
                    self.stack.enter_context(self.checkpoints.opened())
                    log_file = self.folder / "train.log"
            log = console.RunLog(log_file, self.world.is_main)
            self.stack.callback(log.close)
            self.stack.callback(lambda: self.bars.close())
            self.stack.enter_context(_backend_flags(trainer.deterministic, trainer.benchmark))
            if self.world.is_main and not self.prepared:
                self.datamodule.prepare_data()
            self.world.broadcast(None)  # Until then the others wait.
            yield

    def setup(self, *, fast_init: bool) -> None:
        """Let the datamodule, the model (unless it has been set up and only its networks count) and callbacks build."""
        trainer, model = self.trainer, self.model
        rng.seed_all(trainer.seed)
        self.datamodule.setup()
        before = model._runtime
        reused = fast_init and before.is_set_up
        parallel = Parallel(self.device, self.world, trainer.strategy, trainer.compile)
        if reused and (before.parallel.world, before.device) == (self.world, self.device):
            parallel = before.parallel  # It knows the networks that a fit in this process has wrapped.
        precision = Precision(trainer.precision, self.device, trainer.clip_norm, self.world)
        self.precision = precision
        self.runtime = model._runtime = Runtime(
            trainer, self.device, precision, parallel, Transfer(self.device), self.metrics
        )
        for table in (model._loss_items, model._running_losses, model._val_scores, model._test_scores):
            table.clear()
        # Seeded anew, so that the weights do not depend on what the data drew; and alike on every rank.
        rng.seed_all(trainer.seed)
        if reused:
            for net in model._modules():
                net.to(self.device)
        else:
            model.setup(fast_init=fast_init)
            parallel.prepare(list(model._stateful()))
        self.runtime.is_set_up = True
        self.moves = self.device.type != "cpu" or type(model).batch_to_device is not Model.batch_to_device
        for callback in trainer.callbacks:
            callback.model = model
            callback.setup(fast_init=fast_init)
        if not self.world.is_main:
            rng.seed_all(rng.derive(trainer.seed, self.world.rank))  # From here on dropout differs among the ranks.

    def named_callbacks(self) -> dict[str, Any]:
        """Return the callbacks by a name that is the same at a resume: the class's, numbered if there are several."""
        names: dict[str, Any] = {}
        for callback in self.trainer.callbacks:
            kind = type(callback).__name__
            same = sum(name.split("#")[0] == kind for name in names)
            names[f"{kind}#{same + 1}" if same else kind] = callback
        return names

    def restore_callbacks(self, content: dict[str, Any]) -> list[str]:
        """Restore the callbacks' states from a checkpoint; return the names of those that this run has not."""
        callbacks = self.named_callbacks()
        for name, state in content["callbacks"].items():
            if name in callbacks:
                callbacks[name].load_state_dict(state)
        return [name for name in content["callbacks"] if name not in callbacks]

    def leave(self) -> None:
        """Let the model know that the run is over; its device and last metrics stay."""
        self.model._runtime.trainer = self.model._runtime.metrics = None

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the model and then of every callback."""
        getattr(self.model, hook)(*arguments)
        for callback in self.trainer.callbacks:
            getattr(callback, hook)(*arguments)

    def hears(self, hook: str) -> bool:
        """Say whether the model or a callback has written a hook of its own."""
        listeners = [self.model, *self.trainer.callbacks]
        written = [getattr(getattr(listener, hook), "__func__", None) for listener in listeners]
        return any(function not in (getattr(Model, hook), getattr(Hooks, hook)) for function in written)

    def loaders(self, phase: str) -> dict[str, Loader]:
        """Return the loaders of the validation or test split by the prefix of their metrics."""
        source = getattr(self.datamodule, phase)
        if source is None:
            return {}
        parts = {f"/{name}": part for name, part in source.items()} if isinstance(source, Mapping) else {"": source}
        return {
            phase + name: make_loader(part, phase + name, self.trainer.seed, self.world) for name, part in parts.items()
        }

    def evaluate(self, phase: str, loaders: dict[str, Loader], cycle: int, limit: int | None) -> dict[str, float]:
        """Run one evaluation and return its metrics over all ranks; not one bit of the training changes by it.

        Call on every rank.

        Args:
            phase: "valid" or "test".
            loaders: the split's loaders by the prefix of their metrics.
            cycle: number of the validation; a test has none.
            limit: batches of each split, None for all.
        """
        model, runtime = self.model, self.runtime
        testing = phase == "test"
        hooks = "on_testing" if testing else "on_validation"
        numbers = () if testing else (cycle,)
        step_on = model.test_step if testing else model.valid_step
        modes = [(module, module.training) for net in model._modules() for module in net.modules()]
        runtime.metrics = Metrics(self.device)
        hears = self.hears(f"{hooks}_batch_start") or self.hears(f"{hooks}_batch_end")
        step = 0
        # no_grad, not inference_mode: a buffer first made here (a cache of positions) must serve training later.
        with rng.isolated(self.device), torch.no_grad(), runtime.parallel.evaluating():
            rng.seed_all(rng.derive(self.trainer.seed), self.device)  # The same draws in every validation.
            model.eval()
            self.call(f"{hooks}_start", *numbers)
            for prefix, loader in loaders.items():
                batches, length = loader.epoch(0)
                self.bars.start(prefix, length)
                for done, batch in enumerate(itertools.islice(batches, limit), start=1):
                    runtime.phase, runtime.batch_size = prefix, batch.size
                    if hears:
                        self.call(f"{hooks}_batch_start", step)
                    step_on(model.batch_to_device(batch.data, phase) if self.moves else batch.data, step)
                    if hears:
                        self.call(f"{hooks}_batch_end", step)
                    step += 1
                    if self.bars.enabled:
                        self.bars.update(done)
                self.bars.finish()
            runtime.phase, runtime.batch_size = phase, 1
            self.call(f"{hooks}_end", *numbers)
        for name, score in (model._test_scores if testing else model._val_scores).items():
            runtime.metrics.add(f"{phase}/{name}", score, 1)
        values = runtime.metrics.compute(self.world, idle=step < len(loaders)).values
        model.train()
        for module, training in modes:  # A part that its user had frozen stays in the mode it had.
            module.training = training
        runtime.metrics, runtime.phase = self.metrics, "train"
        return values

    def load(self, choice: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]] | None:
        """Read the checkpoint that "best", "last" or a path means; None if the run's folder has none.

        Call on every rank; rank 0 chooses. All must be able to read the file.
        """
        found = None
        if self.world.is_main:
            if choice not in ("best", "last"):
                found = Path(choice), checkpoint.load(Path(choice), self.device)
            elif self.checkpoints is not None:
                found = self.checkpoints.load(str(choice), self.device)
        path = self.world.broadcast(None if found is None else found[0])
        if path is None:
            return None
        return found or (path, checkpoint.load(path, self.device))


class Evaluation(Run):
    """One call of `validate` or `test`."""

    def run(self, phase: str, choice: str | os.PathLike[str] | None) -> dict[str, float]:
        """Return the metrics of the "valid" or "test" split with the checkpoint that was chosen."""
        model, trainer = self.model, self.trainer
        with self.around():
            untouched = not model._runtime.is_set_up
            self.setup(fast_init=True)
            loaders = self.loaders(phase)
            if not loaders:
                raise ValueError(f"the datamodule has no {phase} split")
            title = phase
            found = None if choice is None else self.load(choice)
            if found is not None:
                path, content = found
                title = f"{phase} of {path.name}"
                model.load_state_dict(content["model"], fast_init=True)
                self.restore_callbacks(content)  # Averaged weights are tested as they were validated.
            elif choice is not None or untouched:
                model.load_for_testing()
            self.bars = console.Bars(trainer.progress and self.world.is_main)
            metrics = self.evaluate(phase, loaders, cycle=1, limit=1 if trainer.fast_dev_run else None)
            model.eval()
            self.bars.close()
            logger.debug("%s: %s", title, metrics)
            if trainer.print_banner and self.world.is_main:
                console.show_metrics(title, metrics)
            return metrics


@contextlib.contextmanager
def at_the_end(function: Callable[[], Any]) -> Iterator[None]:
    """Call a function after a block, however it ends; of two exceptions the block's is the one to be seen."""
    try:
        yield
    except BaseException:
        try:
            function()
        except Exception:
            logger.exception("one more error while cleaning up")
        raise
    function()


@contextlib.contextmanager
def _backend_flags(deterministic: bool, benchmark: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses to be deterministic without.
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
