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

import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from helios_lite.metrics.rows import JsonlLogger as JsonlLogger
from helios_lite.nested import leaves
from helios_lite.processes.world import is_launched

logger = logging.getLogger("helios_lite")
_BRANCHED = "%s keeps what it has: the rows after step %d are in a new run, %s, whose parent is %s"
RunStatus = Literal["finished", "failed", "interrupted"]
"""How a training ended: as it should, by an exception, or by a signal."""


@runtime_checkable
class Logger(Protocol):
    """The methods of a logger. The trainer calls them on global rank 0 only.

    `fit` calls `log_config`, `log_metrics` for every row, and `close`. `validate` and `test` call `log_metrics` for
    their one row, and `close`. A logger may have three more methods, which the trainer calls if they are there:

    - `rewind(step: int)`, before `log_config`: the training starts or resumes after this step, so that rows of
      later steps that an earlier start has written will be written again.
    - `branch(step: int)`, in its place if the later rows will have other values: the training goes back to its best
      checkpoint (`resume="best"`), or is the first of a run folder with `resume="new"`.
    - `log_status(status: RunStatus)`, before the `close` of a training: "finished", "failed" or "interrupted" (by a
      signal). After a failure of processes that the trainer has started, it calls both methods in its own process too,
      because rank 0 may have been ended before it could.
    """

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the trainer's options and the model's `hparams` (plain data); called once per start of a training."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one row of values by full name ("train/loss") after a step."""

    def close(self) -> None:
        """Write out pending values; called however the run ends, also if nothing was logged."""


class TensorBoardLogger:
    """Writes event files for TensorBoard, by `torch.utils.tensorboard`: pip install tensorboard.

    A resumed run writes the rows after its checkpoint again; TensorBoard shows the new ones only. `writer` is for what
    is no number: images, text, histograms.
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
        self._purge_step: int | None = None
        self._writer: Any = None

    @property
    def writer(self) -> Any:
        """The `SummaryWriter`, made when it is first used; None on other ranks than 0."""
        if self._writer is None and _is_main():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._path), purge_step=self._purge_step, **self._options)
            self._purge_step = None
        return self._writer

    def rewind(self, step: int) -> None:
        """Hide what was written after a step, because those steps are done again."""
        self._purge_step = step + 1

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Show the options in the TEXT tab."""
        step = 0 if self._purge_step is None else self._purge_step - 1
        self.writer.add_text("config", "\n".join(f"    {name}: {value!r}" for name, value in config.items()), step)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of every metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out pending values and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflowLogger:
    """Logs to MLflow, to local files or to a server: pip install mlflow.

    The id of the MLflow run is stored in a file, so that a resumed run continues the same MLflow run, and `validate`
    and `test` add to it. Rows that were written between the last checkpoint and a kill are not added again. To log to
    an MLflow run that exists already, write its id to the file before the first start. `client` is for what is no
    number: images, text, files.

    MLflow keeps every point. A training that goes back (`resume="best"`) therefore begins a new MLflow run, a child of
    the one before, with copies of the points up to there; a log line names both. So does every run of `resume="new"`.

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
        self._is_training = False
        self._last: dict[str, float] = {}

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, None before the first start."""
        return self._path.read_text().strip() if self._path.exists() else None

    @property
    def client(self) -> Any:
        """The `MlflowClient` of the run `run_id`, made when it is first used; None on other ranks than 0."""
        if self._client is None and _is_main():
            import mlflow

            self._client = mlflow.MlflowClient(self._tracking_uri)
            if self.run_id is None:
                found = self._client.get_experiment_by_name(self._experiment)
                self._begin(found.experiment_id if found else self._client.create_experiment(self._experiment))
        return self._client

    def branch(self, step: int) -> None:
        """Begin a new MLflow run, with the points of the one before up to a step; nothing if there is none yet."""
        if self.run_id is None:
            return
        before = self.client.get_run(self.run_id)
        histories = [self.client.get_metric_history(before.info.run_id, name) for name in before.data.metrics]
        self._begin(before.info.experiment_id, {"mlflow.parentRunId": before.info.run_id})
        points = [point for history in histories for point in history if point.step <= step]
        for i in range(0, len(points), 1000):  # As many as MLflow takes at once.
            self.client.log_batch(self.run_id, metrics=points[i : i + 1000])
        logger.info(_BRANCHED, "MLflow", step, self.run_id, before.info.run_id)

    def _begin(self, experiment_id: str, tags: Mapping[str, str] | None = None) -> None:
        """Make an MLflow run, and note its id."""
        created = self._client.create_run(experiment_id, run_name=self._run_name, tags=tags)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(created.info.run_id)
        self._client.set_terminated(created.info.run_id)  # It runs only during a training.

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Start the MLflow run, or continue it; log the options that it does not have as its parameters.

        MLflow does not let parameters change: those of the first start are kept.
        """
        client = self.client
        self._is_training = True
        client.set_terminated(self.run_id, "RUNNING")
        known = client.get_run(self.run_id).data.params
        for name, value in leaves(config, entered=Mapping):
            if name not in known and value != {}:
                client.log_param(self.run_id, name, str(value)[:6000])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to every metric; in a training, to those that have no point at this step or later."""
        from mlflow.entities import Metric

        client, now, points = self.client, int(time.time() * 1000), []
        for name, value in metrics.items():
            if self._is_training and name not in self._last:
                known = client.get_metric_history(self.run_id, name)
                self._last[name] = max((point.step for point in known), default=-math.inf)
            if not self._is_training or step > self._last[name]:
                self._last[name] = step
                points.append(Metric(name, value, now, step))
        client.log_batch(self.run_id, metrics=points)

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
        self._client, self._is_training, self._last = None, False, {}


class WandbLogger:
    """Logs to Weights & Biases: pip install wandb.

    The id of the W&B run, and the last step of every metric, are stored in a file. A resumed run continues the same W&B
    run, and does not add the rows again that were written between the last checkpoint and a kill; `validate` and `test`
    add to it. `run` is for what is no number: images, text, tables. After an exception W&B shows the run as failed,
    and after a signal as killed.

    W&B keeps every row. A training that goes back (`resume="best"`) therefore begins a new W&B run, with the rows from
    there on; "parent_run" in its configuration is the id of the one before, and a log line names both. So does every
    run of `resume="new"`.
    """

    def __init__(self, project: str, id_file: str | os.PathLike[str], **options: Any) -> None:
        """Make the logger of one run.

        Args:
            project: the name of the project.
            id_file: the path of the file with the id and the last steps, such as "runs/digits/wandb.json".
            options: options of `wandb.init`, such as `name`, `mode="offline"` or `dir`.

        Raises:
            ModuleNotFoundError: wandb is not installed; the message has the command that installs it.
        """
        _require("wandb")
        self._project, self._id_file, self._options = project, Path(id_file), options
        self._path = self._id_file.absolute()
        self._run: Any = None
        self._is_training = False
        self._exit_code = 0
        self._last: dict[str, int] = {}
        self._branches_from: str | None = None

    @property
    def run_id(self) -> str | None:
        """The id of the W&B run, None before the first start."""
        return json.loads(self._path.read_text())["id"] if self._path.exists() else None

    @property
    def run(self) -> Any:
        """The run that `wandb.init` returns, made when it is first used; None on other ranks than 0."""
        if self._run is None and _is_main():
            import wandb

            parent, self._branches_from = self._branches_from, None
            own = None if parent is not None else self.run_id
            self._last = {} if own is None else json.loads(self._path.read_text())["last"]
            self._run = wandb.init(project=self._project, id=own, resume="allow", **self._options)
            if parent is not None:
                self._run.config.update({"parent_run": parent})
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
            self._remember()
        return self._run

    def branch(self, step: int) -> None:
        """Begin a new W&B run, for the rows after a step; nothing if there is none yet."""
        before = self._branches_from = self.run_id
        if before is not None:
            logger.info(_BRANCHED, "W&B", step, self.run.id, before)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Start the W&B run, or continue it; log the options."""
        self.run.config.update(dict(config), allow_val_change=True)
        self._is_training = True

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a row; in a training, with the metrics that have no value at this step or later."""
        run = self.run
        if not self._is_training:
            run.log({"step": step, **metrics})
            return
        new = {name: value for name, value in metrics.items() if step > self._last.get(name, -1)}
        if new:
            run.log({"step": step, **new})
            self._last |= dict.fromkeys(new, step)
            self._remember()

    def log_status(self, status: RunStatus) -> None:
        """Note the exit code of the W&B run: 0, 1 after an exception, 255 after a signal, as `wandb` itself."""
        self._exit_code = {"finished": 0, "failed": 1, "interrupted": 255}[status]

    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is not None:
            self._run.finish(exit_code=self._exit_code)
        self._run, self._is_training, self._exit_code = None, False, 0

    def _remember(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps({"id": self._run.id, "last": self._last}))
        part.replace(self._path)


def _is_main() -> bool:
    """Return whether this process is rank 0, or one that no launcher has started."""
    return not is_launched() or os.environ["RANK"] == "0"


def _require(library: str) -> None:
    """Raise a ModuleNotFoundError with the command that installs a library, unless it is installed."""
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(f"{library} is not installed: pip install {library}")
