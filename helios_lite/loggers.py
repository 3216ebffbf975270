"""Where metrics go: the Logger protocol, the file that every run writes, and adapters to other libraries.

An adapter imports its library when a run begins, so that it can be sent to other processes before.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

logger = logging.getLogger("helios_lite")


@runtime_checkable
class Logger(Protocol):
    """The methods of a logger. The trainer calls them on global rank 0 only."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the trainer's options and the model's `hparams` (plain data); called once per start of a run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one row of values by full name ("train/loss"), after `step` optimizer updates."""

    def close(self) -> None:
        """Write out pending values; called however the run ends."""


class JsonlLogger:
    """One json object a line: `{"step": 50, "epoch": 1, "seconds": 0.8, "train/loss": 0.31}`.

    Every row is flushed, so a killed run keeps all of its rows. A value that is NaN or infinite is written as
    null, because json knows neither.

    Args:
        path: the file, made if missing.
        rows: how many rows of an existing file stay. What follows was written after the checkpoint that a run
            resumes from, and will be written again. If the file has more or fewer rows, or lines that are no rows, a
            warning says so, and the file as it was is copied to `<path>.damaged`.
        step: the step of that checkpoint; rows of later steps do not stay either. None: any step.

    Raises:
        OSError: the file cannot be opened or written; the message names it.

    Attributes:
        rows: how many rows the file has.
    """

    def __init__(self, path: Path, rows: int = 0, step: int | None = None) -> None:
        self._file = path.open("a+b")
        self._file.seek(0)
        lines = self._file.readlines() if rows > 0 else []
        latest = math.inf if step is None else step
        steps = [_step_of_row(line) for line in lines]
        valid = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= latest]
        kept = valid[:rows]
        self.rows = len(kept)
        num_found = len(kept) if step is None else len(valid)
        is_expected = kept == lines[:rows] and num_found == rows
        if is_expected or not lines:
            # Cut in place: a kill at this moment must not lose the rows that stay. An unfinished line is no row.
            self._file.truncate(sum(map(len, kept)))
        else:
            self._replace(path, kept)
        if not is_expected:
            text = "%s: expected %d rows up to step %s and found %d, with %d lines that are no rows; %d rows stay"
            logger.warning(text, path, rows, "?" if step is None else step, num_found, steps.count(None), len(kept))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing: `config.json` in the run folder holds it."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write((json.dumps({"step": step, **row}) + "\n").encode())
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _replace(self, path: Path, lines: list[bytes]) -> None:
        """Write the lines to a new file that takes the place of the file, of which a copy stays beside it."""
        shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(b"".join(lines))
        temporary.replace(path)
        self._file.close()
        self._file = path.open("a+b")


def _step_of_row(line: bytes) -> int | None:
    """Return the step of a line of metrics.jsonl; None if it is no row, such as the unfinished one of a kill."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


class TensorBoardLogger:
    """Writes event files for TensorBoard, by `torch.utils.tensorboard`: pip install helios_lite[tensorboard].

    A resumed run writes the rows after its checkpoint again; TensorBoard shows the new ones only.

    Args:
        folder: the folder of the event files, one for each run.
        options: options of `torch.utils.tensorboard.SummaryWriter`, such as `flush_secs`.

    Raises:
        ModuleNotFoundError: tensorboard is not installed; the message has the command that installs it.
    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        _require("tensorboard")
        self._folder, self._options = Path(folder), options
        self._config: Mapping[str, Any] = {}
        self._writer: Any = None

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Show the options in the TEXT tab."""
        self._config = config

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of every metric."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Rows that an earlier process has written from this step on belong to updates that are done again.
            self._writer = SummaryWriter(str(self._folder), purge_step=step, **self._options)
            rows = "\n".join(f"    {name}: {value!r}" for name, value in self._config.items())
            self._writer.add_text("config", rows, step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out pending values and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflowLogger:
    """Logs to MLflow, to local files or to a server: pip install helios_lite[mlflow].

    The id of the MLflow run is stored in a file, so that a resumed run continues the same MLflow run. Rows that were
    written between the last checkpoint and a kill are not added again.

    Args:
        experiment: the name of the experiment; it is created if it does not exist.
        id_file: the path of the file with the id, such as "runs/digits/mlflow-id".
        run_name: the name of a new MLflow run.
        tracking_uri: the address of a server or store ("sqlite:///mlflow.db"); MLflow's own default if None.

    Raises:
        ModuleNotFoundError: mlflow is not installed; the message has the command that installs it.
    """

    def __init__(
        self,
        experiment: str,
        id_file: str | os.PathLike[str],
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        _require("mlflow")
        self._experiment, self._id_file = experiment, Path(id_file)
        self._run_name, self._tracking_uri = run_name, tracking_uri
        self._client: Any = None
        self._last: dict[str, float] = {}

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, None before the first start."""
        return self._id_file.read_text().strip() if self._id_file.exists() else None

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Continue the MLflow run of the file, or start a new one and log the options as its parameters."""
        import mlflow

        self._client = mlflow.MlflowClient(self._tracking_uri)
        if self.run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            where = found.experiment_id if found else self._client.create_experiment(self._experiment)
            created = self._client.create_run(where, run_name=self._run_name)
            self._id_file.parent.mkdir(parents=True, exist_ok=True)
            self._id_file.write_text(created.info.run_id)
            for name, value in _flat(config):
                self._client.log_param(created.info.run_id, name, str(value)[:6000])
        else:  # MLflow does not let parameters change: those of the first start are kept.
            self._client.set_terminated(self.run_id, "RUNNING")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to every metric that has no point at this step or later."""
        from mlflow.entities import Metric

        now, points = int(time.time() * 1000), []
        for name, value in metrics.items():
            if name not in self._last:
                known = self._client.get_metric_history(self.run_id, name)
                self._last[name] = max((point.step for point in known), default=-math.inf)
            if step > self._last[name]:
                self._last[name] = step
                points.append(Metric(name, value, now, step))
        self._client.log_batch(self.run_id, metrics=points)

    def log_artifact(self, path: str | os.PathLike[str]) -> None:
        """Store a file, such as `FitResult.best_checkpoint`, with the MLflow run; call it after the training."""
        import mlflow

        mlflow.MlflowClient(self._tracking_uri).log_artifact(self.run_id, str(path))

    def close(self) -> None:
        """Mark the MLflow run as finished."""
        if self._client is not None:
            self._client.set_terminated(self.run_id)
            self._client = None


class WandbLogger:
    """Logs to Weights & Biases: pip install helios_lite[wandb].

    The id of the W&B run, and the last step of every metric, are stored in a file. A resumed run continues the same W&B
    run, and does not add the rows again that were written between the last checkpoint and a kill.

    Args:
        project: the name of the project.
        id_file: the path of that file, such as "runs/digits/wandb.json".
        options: options of `wandb.init`, such as `name`, `mode="offline"` or `dir`.

    Raises:
        ModuleNotFoundError: wandb is not installed; the message has the command that installs it.
    """

    def __init__(self, project: str, id_file: str | os.PathLike[str], **options: Any) -> None:
        _require("wandb")
        self._project, self._id_file, self._options = project, Path(id_file), options
        self._run: Any = None
        self._last: dict[str, int] = {}

    @property
    def run_id(self) -> str | None:
        """The id of the W&B run, None before the first start."""
        return json.loads(self._id_file.read_text())["id"] if self._id_file.exists() else None

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Continue the W&B run of the file, or start a new one; log the options."""
        import wandb

        self._last = json.loads(self._id_file.read_text())["last"] if self._id_file.exists() else {}
        self._run = wandb.init(
            project=self._project, id=self.run_id, resume="allow", config=dict(config), **self._options
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._remember()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a row with the metrics that have no value at this step or later."""
        new = {name: value for name, value in metrics.items() if step > self._last.get(name, -1)}
        if new:
            self._run.log({"step": step, **new})
            self._last |= dict.fromkeys(new, step)
            self._remember()

    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _remember(self) -> None:
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        part = self._id_file.with_name(self._id_file.name + ".part")
        part.write_text(json.dumps({"id": self._run.id, "last": self._last}))
        part.replace(self._id_file)


def _require(library: str) -> None:
    """Raise a ModuleNotFoundError with the command that installs a library, unless it is installed."""
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(f"{library} is not installed: pip install 'helios_lite[{library}]'")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
