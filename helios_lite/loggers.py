"""Where metrics go: the Logger protocol, and adapters to other libraries.

An adapter imports its library when a run begins, so that it can be sent to other processes before. A relative path
belongs to the working directory in which the adapter is made. What a library can show besides numbers goes to its own
object, which every adapter has as an attribute, on rank 0 only:

    def on_validation_end(self, validation_cycle):
        writer = self.trainer.loggers[0].writer
        if writer is not None:
            writer.add_image("samples", self.samples, validation_cycle)
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import os
import posixpath
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from helios_lite.metrics.rows import JsonlLogger as JsonlLogger
from helios_lite.nested import leaves
from helios_lite.processes.world import is_launched

logger = logging.getLogger("helios_lite")
_BRANCHED = "%s keeps what it has: the rows after step %d are in a new run, %s, whose parent is %s"
_RUN_TAG = "helios_lite.run_folder"
_NO_FOLDER = "none"
_RUN_OF_EVENTS = re.compile(r"\.(?:run|call)-([0-9a-f]{8})$")
RunStatus = Literal["finished", "failed", "interrupted"]
"""How a training ended: as it should, by an exception, or by a signal."""


@runtime_checkable
class Logger(Protocol):
    """The methods of a logger. The trainer calls them on global rank 0 only.

    `fit` calls `log_config`, `log_metrics` for every row, and `close`. `validate` and `test` call `log_metrics` for
    their one row, and `close`. A `fast_dev_run` and the other methods of the trainer call nothing of it. A logger may
    have more methods, which the trainer calls if they are there:

    - `rewind(step: int)`, before `log_config`: the training starts or resumes after this step, so that rows of
      later steps that an earlier start has written will be written again. It is not called if the run has ended
      already, and no row comes.
    - `branch(step: int)`, in its place if the later rows will have other values: the training goes back to its best
      checkpoint (`resume="best"`), is the first of a run folder with `resume="new"`, or has been changed since an
      earlier start wrote later rows.
    - `log_end(metrics, step)`, in the place of `log_metrics`, for the last row of a training: what was logged after its
      last checkpoint. If the training goes on later, metrics.jsonl does not have this row any more.
    - `log_status(status: RunStatus)`, before the `close` of a training: "finished", "failed" or "interrupted" (by a
      signal). After a failure of processes that the trainer has started, it calls both methods in its own process too,
      because rank 0 may have been ended before it could.
    - `state_dict()` and `load_state_dict(state_dict)`: what a checkpoint holds of the logger (plain containers). What
      was logged until `state_dict` returns must outlive a kill. The state is loaded before `rewind` or `branch`, if the
      training goes on from a checkpoint of its own run folder.
    - `begin_call(run_folder: str | None, *, trains: bool, keeps: bool)`, before all others, in every call of the
      trainer: its run folder, whether it is a `fit`, and whether what is logged is kept. It is not in a
      `fast_dev_run`, a replay and a plan, of which nothing else is called but `close`.
    """

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the trainer's options and the model's `hparams` (plain data); called once per start of a training."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one row of values by full name ("train/loss") after a step."""

    def close(self) -> None:
        """Write out pending values; called however the run ends, also if nothing was logged."""


class TensorBoardLogger:
    """Writes event files for TensorBoard, by `torch.utils.tensorboard`: pip install tensorboard.

    When a run goes on from a checkpoint, what was written after it is removed, and written again: rows, and what the
    program has given to `writer`, such as images, text and histograms. If it will not be the same, because the training
    goes back to its best checkpoint, begins anew or has been changed, all files are copied to the folder
    "set_aside_1" (2, 3, ...) in the folder first, which TensorBoard shows beside it.

    The first run has the folder itself. Another one that is given the same folder has "2" in it, and so on.
    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Make the logger of one run.

        Args:
            folder: the folder of the event files, one for each run.
            options: options of `torch.utils.tensorboard.SummaryWriter`, such as `flush_secs`.

        Raises:
            ModuleNotFoundError: tensorboard is not installed; the message has the command that installs it.
        """
        _require("tensorboard")
        self._folder, self._options = Path(folder), options
        self._path = self._folder.absolute()
        self._writer: Any = None
        self._keeps = True
        self._place = self._path  # The folder of the present run.
        self._run_folder = _NO_FOLDER
        self._digest = self._suffix = ""  # Of the run folder; with which the names of new files end.
        self._earlier: list[Path] = []  # The files of the trainings of this run when the call began.
        self._saved: dict[str, int] | None = None  # Their sizes in bytes at the checkpoint.
        self._step = 0
        self._purge_step: int | None = None

    @property
    def writer(self) -> Any:
        """The `SummaryWriter`, made when it is first used; None on other ranks than 0.

        In a call that keeps nothing, such as one with `fast_dev_run`, an object that takes all calls and does nothing.
        """
        if not self._keeps:
            return _Nothing()
        if self._writer is None and _is_main():
            from torch.utils.tensorboard import SummaryWriter

            suffix = f"{self._options.get('filename_suffix', '')}{self._suffix}"
            options = {**self._options, "filename_suffix": suffix, "purge_step": self._purge_step}
            self._writer, self._purge_step = SummaryWriter(str(self._place), **options), None
        return self._writer

    def begin_call(self, run_folder: str | None, *, trains: bool, keeps: bool) -> None:
        """Find the files of the run."""
        self._keeps, self._saved, self._step = keeps, None, 0
        self._earlier = []
        if not keeps:
            return
        self._run_folder = run_folder or _NO_FOLDER
        if run_folder is not None or trains:
            # A run without a run folder is never continued: nobody else has its name.
            name = (run_folder or os.urandom(8).hex()).encode()
            self._digest = hashlib.blake2s(name, digest_size=4).hexdigest()
            self._place = self._find_place()
        self._suffix = f".{'run' if trains else 'call'}-{self._digest}"
        if trains:
            self._earlier = self._own_files()

    def _find_place(self) -> Path:
        """Return the folder that has event files of this run, or else the first without those of another one."""
        for i in itertools.count(1):
            place = self._path if i == 1 else self._path / str(i)
            ends = [end[1] for path in place.glob("*.tfevents.*") if (end := _RUN_OF_EVENTS.search(path.name))]
            if not ends or self._digest in ends:
                break
        return place

    def _own_files(self) -> list[Path]:
        """Return the files that trainings of the run have written. Those of other calls end with ".call-"."""
        return sorted(self._place.glob(f"*.tfevents.*.run-{self._digest}"))

    def state_dict(self) -> dict[str, Any]:
        """Return the files of the run and their sizes; what was written until now is in them."""
        if self._writer is not None:
            self._writer.flush()
        sizes = {path.name: path.stat().st_size for path in {*self._earlier, *self._own_files()} if path.exists()}
        place = os.path.relpath(self._place, self._path)
        return {"run_folder": self._run_folder, "folder": place, "sizes": sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the sizes of the files at the checkpoint."""
        self._saved = state_dict["sizes"]
        if state_dict["run_folder"] != self._run_folder and (
            not Path(state_dict["run_folder"]).exists() or Path(self._run_folder) in self._path.parents
        ):  # The run folder has been moved, or copied with the event files in it.
            self._place = self._path / state_dict["folder"]
            self._earlier = [path for name in self._saved if (path := self._place / name).exists()]
        if not any(path.name in self._saved for path in self._earlier):
            self._saved = None  # It is the state of another logger: the loggers have another order now.

    def rewind(self, step: int) -> None:
        """Remove what was written after the checkpoint of a step; all, set aside, if the training begins anew."""
        self._remove_later(step, is_set_aside=step == 0 and self._saved is None)

    def branch(self, step: int) -> None:
        """Remove what was written after the checkpoint of a step, and set a copy of all files aside."""
        self._remove_later(step, is_set_aside=True)

    def _remove_later(self, step: int, *, is_set_aside: bool) -> None:
        self._step = step
        saved = {} if self._saved is None else self._saved
        later = [path for path in self._earlier if path.stat().st_size > saved.get(path.name, 0)]
        if not later:
            return
        if is_set_aside:
            found = (self._place / f"set_aside_{i}" for i in itertools.count(1))
            target = next(path for path in found if not path.exists())
            target.mkdir()
            for path in self._earlier:
                shutil.copyfile(path, target / path.name)
        if self._saved is None and step > 0:  # A checkpoint without this logger: TensorBoard hides the later steps.
            self._close_writer()
            self._purge_step = step + 1
            return
        for path in later:
            with contextlib.suppress(PermissionError):  # On Windows, of a file that TensorBoard reads.
                if path.name in saved:
                    os.truncate(path, saved[path.name])
                else:
                    path.unlink()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Show the options in the TEXT tab."""
        text = "\n".join(f"    {name}: {value!r}" for name, value in config.items())
        self.writer.add_text("config", text, self._step)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of every metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_end(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of every metric."""
        self.log_metrics(metrics, step)

    def close(self) -> None:
        """Write out pending values and close the file."""
        self._close_writer()
        self._keeps, self._purge_step = True, None

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflowLogger:
    """Logs to MLflow, to local files or to a server: pip install mlflow.

    The id of the MLflow run is stored in a file, so that a resumed run continues the same MLflow run, and `validate`
    and `test` add to it. Rows that were written between the last checkpoint and a kill are not added again. To log to
    an MLflow run that exists already, write its id to the file before the first start. `client` is for what is no
    number: images, text, files. A character in the name of a metric that MLflow does not take is replaced: "acc@5" is
    "acc_at_5" there.

    MLflow keeps every point. If rows after the checkpoint will have other values, because the training goes back to its
    best checkpoint, begins anew or has been changed, it therefore begins a new MLflow run, a child of the one before,
    with copies of the points up to there; a log line names both. An id file may be that of several runs, each of which
    has an MLflow run of its own with a tag that names the run folder; the file has the id of the last.

    The status of the MLflow run is RUNNING during a training and FINISHED, FAILED (after an exception) or KILLED (after
    a signal that ended it) afterwards. A program that is killed itself leaves it RUNNING until its next start.
    """

    def __init__(
        self,
        experiment: str,
        id_file: str | os.PathLike[str],
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        """Make the logger of one run.

        Args:
            experiment: the name of the experiment; it is created if it does not exist.
            id_file: the path of the file with the id, such as "runs/digits/mlflow-id".
            run_name: the name of a new MLflow run.
            tracking_uri: the address of a server or store ("sqlite:///mlflow.db"); MLflow's own default if None.

        Raises:
            ModuleNotFoundError: mlflow is not installed; the message has the command that installs it.
        """
        _require("mlflow")
        self._experiment, self._id_file = experiment, Path(id_file)
        self._path = self._id_file.absolute()
        self._run_name, self._tracking_uri = run_name, tracking_uri
        self._client: Any = None
        self._keeps = True
        self._run_folder: str | None = None  # None outside of a call.
        self._is_training = False
        self._repeats = _Repeats()

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, None before the first start."""
        return self._path.read_text().strip() if self._path.exists() else None

    @property
    def client(self) -> Any:
        """The `MlflowClient` of the run `run_id`, made when it is first used; None on other ranks than 0.

        In a call that keeps nothing, such as one with `fast_dev_run`, an object that takes all calls and does nothing.
        """
        if not self._keeps:
            return _Nothing()
        if self._client is None and _is_main():
            import mlflow

            self._client = mlflow.MlflowClient(self._tracking_uri)
            self._find_run()
        return self._client

    def begin_call(self, run_folder: str | None, *, trains: bool, keeps: bool) -> None:
        """Note of which run the call is."""
        self._keeps, self._run_folder = keeps, run_folder or _NO_FOLDER

    def _find_run(self) -> None:
        """Write the id of the MLflow run of this run to the file, and make one if there is none."""
        if self.run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            self._begin(found.experiment_id if found else self._client.create_experiment(self._experiment))
        elif self._run_folder is not None:
            last = self._client.get_run(self.run_id)
            owner = last.data.tags.get(_RUN_TAG, self._run_folder)
            if owner == self._run_folder or (owner != _NO_FOLDER and not Path(owner).exists()):
                return  # It is this run's, or the user's own, or the run folder has been moved.
            quote = '"' if "'" in self._run_folder else "'"
            own = self._client.search_runs(
                [last.info.experiment_id],
                f"tags.`{_RUN_TAG}` = {quote}{self._run_folder}{quote}",
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
            if own:
                self._path.write_text(own[0].info.run_id)
            else:
                self._begin(last.info.experiment_id)

    def _begin(self, experiment_id: str, tags: Mapping[str, str] | None = None) -> None:
        """Make an MLflow run, and note its id."""
        tags = {**({} if self._run_folder is None else {_RUN_TAG: self._run_folder}), **(tags or {})}
        created = self._client.create_run(experiment_id, run_name=self._run_name, tags=tags)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(created.info.run_id)
        self._client.set_terminated(created.info.run_id)  # It runs only during a training.

    def state_dict(self) -> dict[str, Any]:
        """Return the last step with a row, and how many points each metric has there."""
        return self._repeats.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._repeats.load_state_dict(state_dict)

    def rewind(self, step: int) -> None:
        """Note which rows come again; begin a new MLflow run if the training begins anew and there are rows."""
        self._go_on(step, differs=step == 0)

    def branch(self, step: int) -> None:
        """Begin a new MLflow run, with the points of the one before up to a step, if that has points of later steps."""
        self._go_on(step, differs=True)

    def _go_on(self, step: int, *, differs: bool) -> None:
        client = self.client
        run = client.get_run(self.run_id)
        names, run_id = run.data.metrics.keys(), run.info.run_id
        if _RUN_TAG not in run.data.tags:
            return  # It is the user's own, and what it has is not of a training.
        histories = [client.get_metric_history(run_id, name) for name in names] if differs else []
        if any(point.step > step for history in histories for point in history):
            self._begin(run.info.experiment_id, {"mlflow.parentRunId": run_id})
            points = [point for history in histories for point in history if point.step <= step]
            for i in range(0, len(points), 1000):  # As many as MLflow takes at once.
                client.log_batch(self.run_id, metrics=points[i : i + 1000])
            logger.info(_BRANCHED, "MLflow", step, self.run_id, run_id)

        def steps_of(name: str) -> Iterable[int]:
            points = client.get_metric_history(self.run_id, name) if name in names else []
            return (point.step for point in points)

        self._repeats.expect(steps_of)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Start the MLflow run, or continue it; log the options that it does not have as its parameters.

        MLflow does not let parameters change: those of the first start are kept.
        """
        from mlflow.entities import Param, RunTag

        client = self.client
        self._is_training = True
        client.set_terminated(self.run_id, "RUNNING")
        known = client.get_run(self.run_id).data.params
        values = {_mlflow_name(name): value for name, value in leaves(config, entered=Mapping) if value != {}}
        params = [Param(name, str(value)[:6000]) for name, value in values.items() if name not in known]
        tags = [] if self._run_folder is None else [RunTag(_RUN_TAG, self._run_folder)]
        for i in range(0, max(1, len(params)), 90):  # MLflow takes a hundred at once.
            client.log_batch(self.run_id, params=params[i : i + 90], tags=tags)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to every metric; in a training, not for those that an earlier start has added."""
        from mlflow.entities import Metric

        client, now = self.client, int(time.time() * 1000)
        named = {_mlflow_name(name): value for name, value in metrics.items()}
        new = self._repeats.new(named, step) if self._is_training else named
        client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in new.items()])

    def log_end(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to every metric, not for those that an earlier start has added."""
        self.log_metrics(metrics, step)

    def log_artifact(self, path: str | os.PathLike[str]) -> None:
        """Store a file, such as `FitResult.best_checkpoint`, with the MLflow run."""
        self.client.log_artifact(self.run_id, str(path))

    def log_status(self, status: RunStatus) -> None:
        """Set the status of the MLflow run, if there is one."""
        if self.run_id is not None:
            mlflow_status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[status]
            self.client.set_terminated(self.run_id, mlflow_status)

    def close(self) -> None:
        """Forget the client; MLflow has written everything already."""
        self._client, self._is_training, self._keeps, self._run_folder = None, False, True, None
        self._repeats = _Repeats()


class WandbLogger:
    """Logs to Weights & Biases: pip install wandb.

    The id of the W&B run is stored in a file, with the rows beside it. A resumed run continues the same W&B run, and
    does not add the rows again that were written between the last checkpoint and an exception or a signal; `validate`
    and `test` add to it. `run` is for what is no number: images, text, tables. It is not `wandb.run`, which stays the
    program's own. After an exception W&B shows the run as failed, and after a signal as killed.

    W&B keeps every row. If rows after the checkpoint will have other values, because the training goes back to its best
    checkpoint, begins anew or has been changed, it therefore begins a new W&B run, with copies of the rows up to there;
    "parent_run" in its configuration is the id of the one before, and a log line names both. So does a program that was
    killed (SIGKILL) when it goes on, because W&B loses the rows of the last seconds before. An id file may be that of
    several runs, each of which has a W&B run of its own; `run_id` is that of the last.
    """

    def __init__(self, project: str, id_file: str | os.PathLike[str], **options: Any) -> None:
        """Make the logger of one run.

        Args:
            project: the name of the project.
            id_file: the path of the file with the id, such as "runs/digits/wandb.json"; the rows are in files whose
                names begin with its name.
            options: options of `wandb.init`, such as `name`, `mode="offline"` or `dir`.

        Raises:
            ModuleNotFoundError: wandb is not installed; the message has the command that installs it.
        """
        _require("wandb")
        self._project, self._id_file, self._options = project, Path(id_file), options
        self._path = self._id_file.absolute()
        self._run: Any = None
        self._keeps = True
        self._run_folder: str | None = None  # None outside of a call.
        self._trains = self._is_training = False  # A training logs its rows after its options.
        self._exit_code = 0
        self._repeats = _Repeats()

    @property
    def run_id(self) -> str | None:
        """The id of the W&B run, None before the first start."""
        found = self._read()["id"]
        return None if found is None else str(found)

    @property
    def run(self) -> Any:
        """The run that `wandb.init` returns, made when it is first used; None on other ranks than 0.

        In a call that keeps nothing, such as one with `fast_dev_run`, an object that takes all calls and does nothing.
        """
        if not self._keeps:
            return _Nothing()
        if self._run is None and _is_main():
            own = self._own_id()
            was_killed = own is not None and self._trains and own in self._read()["open"]
            self._begin(None if was_killed else own, parent=own if was_killed else None)
        return self._run

    def begin_call(self, run_folder: str | None, *, trains: bool, keeps: bool) -> None:
        """Note of which run the call is."""
        self._trains, self._keeps, self._run_folder = trains, keeps, run_folder or _NO_FOLDER

    def _own_id(self) -> str | None:
        """Return the id of the W&B run of this run, None if there is none."""
        about = self._read()
        if self._run_folder is None or not about["runs"]:
            return self.run_id
        moved = (
            run_id for run_id, folder in about["runs"].items() if folder != _NO_FOLDER and not Path(folder).exists()
        )
        own = [run_id for run_id, folder in about["runs"].items() if folder == self._run_folder]
        return own[-1] if own else next(moved, None)

    def _begin(self, run_id: str | None, parent: str | None = None, last_step: float = math.inf) -> None:
        """Begin or continue a W&B run, and note its id.

        Args:
            run_id: the id, None for a new run.
            parent: the run in whose place the new one is, whose rows it gets.
            last_step: up to which step.
        """
        import wandb

        # A run that the program has begun itself stays as it is.
        options = {"resume": "allow", "reinit": "create_new", **self._options}
        run: Any = wandb.init(project=self._project, id=run_id, **options)
        self._run = run
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        rows = [] if parent is None else [row for row in self._rows(parent) if row["step"] <= last_step]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if rows:
            self._file_of_rows(run.id).write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = self._read()
        about["id"] = run.id
        about["runs"].pop(run.id, None)
        about["runs"][run.id] = self._run_folder or _NO_FOLDER
        if self._trains:  # Until it is closed: a killed one lacks rows.
            about["open"] = [*({*about["open"]} - {parent, run.id}), run.id]
        self._write(about)
        if parent is not None:
            run.config.update({"parent_run": parent})
            for row in rows:
                run.log({"step": row["step"], **row["values"]})
            logger.info(_BRANCHED, "W&B", max((row["step"] for row in rows), default=0), run.id, parent)

    def _file_of_rows(self, run_id: str) -> Path:
        """Return the file of the rows that a W&B run has."""
        return self._path.with_name(f"{self._path.name}.{run_id}.jsonl")

    def _rows(self, run_id: str) -> list[dict[str, Any]]:
        """Return the rows that a W&B run has, in their order; without the unfinished one of a kill."""
        file = self._file_of_rows(run_id)
        return [json.loads(line) for line in file.open() if line.endswith("\n")] if file.exists() else []

    def state_dict(self) -> dict[str, Any]:
        """Return the last step with a row, and how many values each metric has there."""
        return self._repeats.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._repeats.load_state_dict(state_dict)

    def rewind(self, step: int) -> None:
        """Note which rows come again; begin a new W&B run if the training begins anew and there are rows."""
        self._go_on(step, differs=step == 0)

    def branch(self, step: int) -> None:
        """Begin a new W&B run, with the rows up to a step, if there are later ones."""
        self._go_on(step, differs=True)

    def _go_on(self, step: int, *, differs: bool) -> None:
        run = self.run
        if differs and any(row["step"] > step and row["kind"] != "evaluation" for row in self._rows(run.id)):
            run.finish()
            self._begin(None, parent=run.id, last_step=step)
        steps: dict[str, list[int]] = {}
        for row in self._rows(self._run.id):
            for name in row["values"] if row["kind"] != "evaluation" else ():
                steps.setdefault(name, []).append(row["step"])
        self._repeats.expect(lambda name: steps.get(name, ()))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Start the W&B run, or continue it; log the options."""
        self.run.config.update(dict(config), allow_val_change=True)
        self._is_training = True

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a row; in a training, without the values that an earlier start has added."""
        if not self._is_training:
            self._write_row({"step": step, "kind": "evaluation", "values": dict(metrics)})
        elif new := self._repeats.new(metrics, step):
            self._write_row({"step": step, "kind": "train", "values": new})

    def log_end(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a row, without the values that an earlier start has added."""
        if new := self._repeats.new(metrics, step):
            self._write_row({"step": step, "kind": "end", "values": new})

    def _write_row(self, row: Mapping[str, Any]) -> None:
        """Give a row to W&B, and keep it."""
        run = self.run
        run.log({"step": row["step"], **row["values"]})
        with self._file_of_rows(run.id).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def log_status(self, status: RunStatus) -> None:
        """Note the exit code of the W&B run: 0, 1 after an exception, 255 after a signal, as `wandb` itself."""
        self._exit_code = {"finished": 0, "failed": 1, "interrupted": 255}[status]

    def close(self) -> None:
        """Finish the W&B run."""
        try:
            if self._run is not None:
                self._run.finish(exit_code=self._exit_code)
                if self._trains:
                    about = self._read()
                    self._write({**about, "open": [run_id for run_id in about["open"] if run_id != self._run.id]})
        finally:
            self._run, self._trains, self._is_training, self._exit_code, self._keeps = None, False, False, 0, True
            self._run_folder, self._repeats = None, _Repeats()

    def _read(self) -> dict[str, Any]:
        """Return the last id, the run folders by id, and the ids of runs whose training has not ended."""
        found = json.loads(self._path.read_text()) if self._path.exists() else {}
        return {"id": None, "runs": {}, "open": [], **found}

    def _write(self, about: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps(about))
        part.replace(self._path)


class _Repeats:
    """Tells which values of the rows of a training a library has already, because an earlier start has added them."""

    def __init__(self) -> None:
        self._step, self._points = 0, Counter[str]()  # The last step with a row, and its number of values by name.
        self._steps_of: Callable[[str], Iterable[int]] | None = None
        self._later: dict[str, Counter[int]] = {}

    def expect(self, steps_of: Callable[[str], Iterable[int]]) -> None:
        """Use the steps of the values of a metric that the library has, as a function of the name."""
        self._steps_of, self._later = steps_of, {}

    def new(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Return the values of a row that the library does not have."""
        found = {name: value for name, value in metrics.items() if not self._is_repeated(name, step)}
        if step != self._step:
            self._step, self._points = step, Counter()
        self._points.update(metrics.keys())
        return found

    def _is_repeated(self, name: str, step: int) -> bool:
        if name not in self._later:
            steps = () if self._steps_of is None else self._steps_of(name)
            self._later[name] = Counter(each for each in steps if each >= self._step)
            self._later[name][self._step] -= self._points[name]  # Those before the checkpoint.
        self._later[name][step] -= 1
        return self._later[name][step] >= 0

    def state_dict(self) -> dict[str, Any]:
        """Return the last step with a row, and how many values each metric has there."""
        return {"step": self._step, "points": dict(self._points)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._step, self._points = state_dict["step"], Counter(state_dict["points"])


class _Nothing:
    """Takes the place of the object of a library in a call that keeps nothing: takes all calls, and does nothing."""

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> _Nothing:
        return self


_MLFLOW_WORDS = {"@": "_at_", "<": "_lt_", ">": "_gt_", "=": "_eq_", "%": "_percent_", "+": "_plus_", "*": "_times_"}


def _mlflow_name(name: str) -> str:
    """Return a name that MLflow takes for a metric or parameter; different names stay different."""
    taken = re.sub(r"[^/\w.\- ]", lambda found: _MLFLOW_WORDS.get(found[0], f"_x{ord(found[0]):x}_"), name)
    if posixpath.normpath(taken) != taken or taken.startswith(("/", "..")) or taken == ".":  # No path of a file.
        taken = "/".join(part if part.strip(".") else f"_{part}" for part in taken.split("/"))
    if len(taken) > 250:  # As many characters as MLflow takes.
        taken = f"{taken[:240]}_{hashlib.blake2s(taken.encode(), digest_size=4).hexdigest()}"
    return taken


def _is_main() -> bool:
    """Return whether this process is rank 0, or one that no launcher has started."""
    return not is_launched() or os.environ["RANK"] == "0"


def _require(library: str) -> None:
    """Raise a ModuleNotFoundError with the command that installs a library, unless it is installed."""
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(f"{library} is not installed: pip install {library}")
