"""The Trainer: it holds the options of a run, and runs each of its calls in one process or several."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import Tensor, nn

from helios_lite.arguments import integer, require, require_kind, require_path
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.checkpoints.reading import read_checkpoint_header
from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.model_internals.checks import check_no_method_is_hidden
from helios_lite.object_tables import build
from helios_lite.option_class import documented, option_class, option_hint
from helios_lite.options import Options
from helios_lite.processes.devices import choose_accelerator, choose_devices
from helios_lite.processes.job import warn_if_alone
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.processes.slurm import adopt_world_of_srun
from helios_lite.processes.tracebacks import ShortTraceback
from helios_lite.processes.world import is_launched
from helios_lite.state import FitResult

if TYPE_CHECKING:
    from helios_lite.calls.launching import Call
    from helios_lite.calls.replay_result import Replay
    from helios_lite.display.plan import Plan


@option_class
@dataclasses.dataclass(kw_only=True, repr=False, eq=False)  # Its own, since editors show no inherited constructor.
class Trainer(Options):
    """Trains, tests and uses models. It holds the options of a run (see `Options`), never its state."""

    def __init_subclass__(cls) -> None:
        documented(cls)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """Return a trainer with the options that `config` returned; the two are inverse.

        The dict is a program: the modules of the classes that it names (callbacks, loggers) are imported, and the
        classes are called. For the options in a file of someone else use `from_checkpoint`, which does neither.

        Args:
            config: the options by name. Those that are missing have their defaults.
            overrides: options that replace or complete them.

        Raises:
            ConfigError: an option is unknown or invalid, or an object cannot be made, because `config` found only the
                name of its class. The message names it; pass the object in `overrides`. This is a ValueError.
            ConfigTypeError: an option has a wrong type. This is a ConfigError and a TypeError.
            Exception: the import of a module or a constructor failed.
        """
        require_kind("config", config, Mapping, "a dict of options by name")
        with ShortTraceback():
            trainer: Self = build(cls, {**config, **overrides}, "", None, option_hint)
        return trainer

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **overrides: Any) -> Self:
        """Return a trainer with the options that a checkpoint holds.

        Nothing in the file is imported or called. Callbacks and loggers are therefore not made from it: if the run had
        any, pass them. If you trust the file, pass its "config" to `from_config` instead.

        Args:
            path: a checkpoint file.
            overrides: options that replace or complete those of the file.

        Raises:
            FileNotFoundError, CheckpointError: the file cannot be read, or holds no options.
            TypeError, ValueError: an option is invalid, or callbacks or loggers of the run are not given.
        """
        require_path("path", path)
        config = read_checkpoint_header(Path(path)).get("config")
        if not isinstance(config, dict):
            raise CheckpointError(f"{path}: holds no options")
        for name in ("callbacks", "loggers"):
            if name not in overrides and config.get(name):
                raise ValueError(
                    f"{name}: the run of {path} had {config[name]}; no object is made from a file, so pass "
                    f"{name}=[...], or {name}=[] for none"
                )
        return cls(**{**config, **overrides})

    def fit(self, model: Model, datamodule: DataModule) -> FitResult:
        """Train the model, or resume a training that was stopped. Afterwards the model has the final weights.

        The result is the same on every rank. With `devices=2` or more, `setup` of the datamodule and of the model run
        in this process too, after the training, because the model was trained in other processes. If they fail here, a
        warning has the exception, and the result is returned nevertheless.

        Raises:
            FloatingPointError: a logged training value or a loss is not finite (`check_finite`).
            FileExistsError: `resume="never"`, and the run folder has checkpoints.
            FileNotFoundError, CheckpointError: the file of `resume` or `init_from` is not there or cannot be read.
            RuntimeError: another call of a trainer is running in this process, for example around this hook; validate
                and test raise it too. Start another process instead.
            ValueError: a split is empty, or an option does not fit the model or the data; the message names it.
            TypeError: a split is no Split and no iterable of batches.
            AttributeError: an attribute of the trainer is no option, or one of the model hides a method of Model.
            Exception: any exception of the model, the data or a callback, unchanged, after `teardown`.
        """
        shutdown = self._shutdown(saves=True)
        with ShortTraceback(), shutdown.at_once():
            call = self._call("fit", model, datamodule, shutdown)
            self._check_limits(model)
            from helios_lite.calls.fit import train
            from helios_lite.calls.launching import run

            return run(call, train)

    def plan(self, model: Model, datamodule: DataModule) -> Plan:
        """Return what `fit` would do now, without training. `print` of the result shows it.

        It has the length of the run, the learning rates, the validations, the checkpoints and their size, and whether
        `fit` would begin, go on from a checkpoint with which changes, or find the run finished. Nothing is written. The
        data and the model are set up, and the checkpoint is loaded, as in `fit`.

        Raises:
            Exception: any exception of the model, the data or a callback. An error that `fit` would raise because the
                run folder does not fit is told in `Plan.start`.
        """
        shutdown = self._shutdown()
        with ShortTraceback(), shutdown.at_once():
            call = self._call("plan", model, datamodule, shutdown)
            self._check_limits(model)
            from helios_lite.calls.plan import plan

            return plan(call)

    def validate(
        self, model: Model, datamodule: DataModule, checkpoint: str | os.PathLike[str] | None = "best"
    ) -> dict[str, float]:
        """Evaluate the validation split and return its metrics by full name; `checkpoint` is as in `test`."""
        with ShortTraceback():
            return self._evaluate("validate", model, datamodule, checkpoint)

    def test(
        self, model: Model, datamodule: DataModule, checkpoint: str | os.PathLike[str] | None = "best"
    ) -> dict[str, float]:
        """Evaluate the test split and return its metrics by full name.

        Args:
            model: the model; it is set up with `fast_init=True` unless a run has set it up already.
            datamodule: the data; its `test` split is used.
            checkpoint: "best" (the newest if no validation was compared), "last", the path of a file or of a run folder
                (its best), or None for the weights that the model has. If the run folder has no checkpoint,
                `load_for_testing` is called. The model keeps the weights of the checkpoint, which are the averaged ones
                (`EMA`) if they were validated.

        Raises:
            FileNotFoundError, CheckpointError: the file of a path cannot be read.
            ValueError: the datamodule has no test split.
        """
        with ShortTraceback():
            return self._evaluate("test", model, datamodule, checkpoint)

    def predict(
        self, model: Model, datamodule: DataModule, checkpoint: str | os.PathLike[str] | None = "best"
    ) -> Iterator[tuple[Tensor, Any]]:
        """Return an iterator over what `Model.predict_step` returns for each batch of the `predict` split.

        Each item is (indices, output): the indices of the samples in the dataset, int64 of shape (batch_size,), and the
        output, its tensors on the CPU. Every sample comes once, and batches, order and random numbers are those of one
        process for any number of `devices`. Memory does not grow: launched processes leave outputs in files of the
        temporary folder, and wait if the caller is slow (not with sharded networks). Under torchrun each rank yields
        the batches that it has computed, which are dealt to the ranks in turn.

        Nothing runs before the first item is asked for. The call ends, and its processes with it, when the iterator is
        exhausted, closed or deleted. Until then no other call of a trainer can run in this process.

        Args:
            model: as in `test`.
            datamodule: the data; its `predict` split is used, or `test` if that is None. The samples of a custom loader
                are counted, because it does not say their indices.
            checkpoint: as in `test`.

        Raises:
            ValueError: the datamodule has neither split, or a dict of them.
            Exception: any exception of the model, the data or a callback, unchanged, also after some items. Processes
                that fail are not started again (`max_restarts`), because the caller has some of the items.
        """
        require_path("checkpoint", checkpoint, or_none=True)
        shutdown = self._shutdown()
        with ShortTraceback(), shutdown.at_once():
            call = self._call("predict", model, datamodule, shutdown)
            from helios_lite.calls.predict import predict

        return predict(call, checkpoint)

    def write_predictions(
        self,
        model: Model,
        datamodule: DataModule,
        path: str | os.PathLike[str],
        checkpoint: str | os.PathLike[str] | None = "best",
    ) -> None:
        """Write what `predict` yields to one file, with the memory of one batch. Call on every rank under torchrun.

        `torch.load(path, weights_only=True)` returns `{"indices": indices, "outputs": outputs}`. Both are joined along
        the first dimension, in the order of `predict`, so that `outputs[i]` is that of sample `indices[i]`.
        `predict_step` may return a tensor of shape (batch_size, ...), or dicts, lists and tuples of such tensors. The
        file appears under its name when it is complete, and replaces an earlier one. A line of the log has its
        path, the number of samples and the shapes.

        Raises:
            TypeError, ValueError: outputs cannot be joined; the message names the output and the difference.
            Exception: as `predict`.
        """
        require_path("path", path)
        require_path("checkpoint", checkpoint, or_none=True)
        shutdown = self._shutdown()
        with ShortTraceback(), shutdown.at_once():
            call = self._call("predict", model, datamodule, shutdown)
            from helios_lite.calls.predict import predict_to_file

            predict_to_file(call, checkpoint, path)

    def replay(self, model: Model, datamodule: DataModule, step: int | Literal["worst"]) -> Replay:
        """Compute one step of a run again, bit for bit, and return what it shows.

        The training goes on from the newest checkpoint before the step, or begins anew if there is none. It writes no
        files, reads the run folder only, and calls no logger. Pass the model, the data and the options of the run.
        Afterwards the model has the weights after the step. The callbacks are copies of the trainer's, and what hooks
        write to `run_folder` goes to a scratch folder, which is deleted.

        If a loss before the step is not finite (with `check_finite`), the first such step is returned, because it
        is the cause of the others. `print` of the result shows a short table.

        Args:
            model: a model as it is passed to `fit`.
            datamodule: its data.
            step: the number of the step, as `TrainingState.step` counts it after the step, from 1. "worst" is the
                one with the highest value that was logged as "loss": of the row that has it, all steps are computed
                again to find it.

        Raises:
            FileNotFoundError: there is no run folder.
            CheckpointError: the checkpoint cannot be read.
            TypeError, ValueError: `step` is not an int of at least 1 or "worst", or the run ends before the step.
            Exception: any exception of the model, the data or a callback.
        """
        if step != "worst":
            require("step", step, integer(least=1))
        shutdown = self._shutdown()
        with ShortTraceback(), shutdown.at_once():
            call = self._call("replay", model, datamodule, shutdown)
            from helios_lite.calls.replay import replay

            return replay(call, step)

    def _evaluate(self, method: str, model: Model, datamodule: DataModule, checkpoint: Any) -> dict[str, float]:
        """Evaluate the split of a method: "validate" or "test"."""
        require_path("checkpoint", checkpoint, or_none=True)
        shutdown, phase = self._shutdown(), "valid" if method == "validate" else method
        with shutdown.at_once():
            call = self._call(method, model, datamodule, shutdown)
            from helios_lite.calls.evaluate import evaluate
            from helios_lite.calls.launching import run

            return run(call, functools.partial(evaluate, phase=phase, checkpoint=checkpoint))

    def _shutdown(self, *, saves: bool = False) -> GracefulShutdown:
        """Return what signals do in this process during a call."""
        return GracefulShutdown(saves=saves, stops_on_usr1=self.sigusr1 == "stop")

    def _call(self, method: str, model: Model, datamodule: DataModule, shutdown: GracefulShutdown) -> Call:
        """Check the arguments and options, and return the call of a method."""
        for name, value, kind in (("model", model, Model), ("datamodule", datamodule, DataModule)):
            if name == "model" and isinstance(value, nn.Module):
                raise TypeError(f"{name}: is an nn.Module; assign it in `setup` of a Model, and pass that Model")
            if not isinstance(value, kind):
                raise TypeError(f"{name}={value!r}: must be a {kind.__name__} object")
            if kind is Model and "_save_name" not in vars(value):
                raise TypeError(f"{type(value).__name__}.__init__ must call super().__init__(save_name) first")
            check_no_method_is_hidden(value, kind)
        self.check()
        adopt_world_of_srun(self.devices)
        warn_if_alone()
        # Imported when the trainer is called, so that `import helios_lite` stays fast.
        from helios_lite.calls.launching import Call

        devices = choose_devices(choose_accelerator(self.accelerator), self.devices)
        processes = 1 if is_launched() else len(devices)
        return Call(method, self, model, datamodule, processes, Path.cwd(), shutdown)

    def _check_limits(self, model: Model) -> None:
        """Raise a ValueError if nothing would end a training. Whether a hook does is not known before `fit`."""
        has_limit = self.fast_dev_run or not self.max_epochs is self.max_steps is self.max_minutes is None
        stops = any(
            type(each).should_training_stop is not Model.should_training_stop for each in (model, *self.callbacks)
        )
        if not has_limit and not stops:
            raise ValueError(
                "max_epochs, max_steps, max_minutes: at least one is needed, unless the model or a callback overrides "
                "should_training_stop"
            )
