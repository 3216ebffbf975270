"""What a run counts and what it returns. Standard library only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helios_lite.html_table import html_table

MEASURED = frozenset(
    {
        "seconds",
        "train/epoch_seconds",
        "train/step_seconds",
        "train/compute_seconds",
        "train/samples_per_second",
        "train/data_wait",
        "train/memory_mib",
        "train/memory_mib/epoch",
    }
)
"""The names in a row of what the trainer measures with a clock or a meter, which differs in every run."""


def is_extra(name: str) -> bool:
    """Return whether a metric is left out where few are shown: a time or speed, a mean over an epoch beside the values
    of its rows, or the norm of a single parameter.
    """
    is_of_epoch = name.endswith("/epoch")
    return is_of_epoch or name in MEASURED or name.startswith(("train/grad_norm/", "train/param_norm/"))


def table_of_metrics(metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """Return what a table of results has of metrics, by full name, and lines that explain it.

    Training metrics are means over the last epoch where there are some, and not the values of the last row.
    """
    shown = {name: metrics.get(f"{name}/epoch", value) for name, value in metrics.items() if not is_extra(name)}
    has_means = any(f"{name}/epoch" in metrics for name in shown)
    return shown, ["train/...: means over the last epoch"] if has_means else []


@dataclasses.dataclass
class TrainingState:
    """The counters of a run. They count what is finished, so resuming needs no correction.

    The trainer alone writes them; hooks read them. Equal on every rank, but for `seconds`.
    """

    epoch: int = 0
    """Epochs finished; while the third epoch runs it is 2."""
    step: int = 0
    """Steps finished, the clock of everything public (logs, limits, file names)."""
    skipped_steps: int = 0
    """Steps in which an optimizer was left out because gradients of fp16 were not finite, and windows that were no step
    because no optimizer has stepped.
    """
    batch: int = 0
    """Micro-batches finished since the start of the run."""
    epoch_batch: int = 0
    """Micro-batches finished in the current epoch."""
    epoch_samples: int = 0
    """Samples of the current epoch finished by all ranks together: the position in the data."""
    validation_cycle: int = 0
    """Validations finished (sanity batches do not count)."""
    validated_step: int | None = None
    """`step` at the last validation, so that none is ever done twice; None before the first."""
    early_stop_count: int = 0
    """Validations in a row without an improvement."""
    best_score: float | None = None
    """The best monitored value so far, None without `monitor` or before the first validation."""
    best_step: int | None = None
    """`step` at the best validation, None before it."""
    seconds: float = 0.0
    """Wall time spent training and validating, over all resumes."""

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as a plain dict."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the counters from `state_dict()` of another one; an unknown name is an AttributeError."""
        known = {field.name for field in dataclasses.fields(self)}
        for name, value in state_dict.items():
            if name not in known:
                raise AttributeError(f"TrainingState has no counter {name!r}; it has {sorted(known)}")
            setattr(self, name, value)


@dataclasses.dataclass(frozen=True, repr=False)
class FitResult:
    """What `Trainer.fit` returns. It is the same on every rank. A notebook shows it as a table.

    Paths are absolute.
    """

    state: TrainingState
    """The counters at the end."""
    metrics: dict[str, float]
    """The last value of every metric, by its full name ("train/loss", "valid/accuracy")."""
    best_metrics: dict[str, float]
    """`metrics` as they were at the best validation; empty if no validation was compared."""
    best_checkpoint: Path | None
    """The file with the best validation, None if no validation was compared or none is kept."""
    last_checkpoint: Path | None
    """The newest file, None with `root=None`."""
    stop_reason: str
    """Why it ended: "max_epochs", "max_steps", "max_minutes", "patience", "should_training_stop" or "fast_dev_run"."""
    run_folder: Path | None = None
    """The folder of the run, which `Trainer.test`, the command line and `load_from_checkpoint` take; None with
    `root=None`.
    """
    monitor: str | Sequence[str] | None = None
    """The `monitor` of the trainer, whose best value is `state.best_score`."""
    rows: list[dict[str, Any]] | None = dataclasses.field(default=None, compare=False)
    """The rows of a run without a folder; `history` reads those of others."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics of the run, of earlier starts too, oldest first, as `pandas.DataFrame(...)` takes them.

        Each has "step", "epoch" and "seconds", metrics by full name, and in a run with a folder texts that name what
        has made it ("weights_digest", "samples_digest", "batch_digest"). Training rows and validations are rows of
        their own, and so is what was logged after the last step. They are read from metrics.jsonl, where a value that
        is not finite is None.
        """
        if self.rows is not None or self.run_folder is None:
            return list(self.rows or [])
        lines = (self.run_folder / "metrics.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row.pop("kind", "end") == "end"]  # Others are of `validate` and `test`.

    def __repr__(self) -> str:
        """Return one line: how the run ended, its best monitored value, and the run folder."""
        parts = [f"stopped by {self.stop_reason} at step {self.state.step}"]
        if self.state.best_step is not None:
            parts.append(f"best {self._score()}at step {self.state.best_step}")
        if self.run_folder is not None:
            parts.append(f"in {self.run_folder}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the final table of the run."""
        state, best = self.state, f"best (step {self.state.best_step})"
        has_best = bool(self.best_metrics)
        rows, (shown, captions) = [], table_of_metrics(self.metrics)
        for name, value in shown.items():
            # Training metrics belong to the steps before a row, not to the best state.
            best_value = self.best_metrics.get(name) if name.startswith("valid/") else None
            cells = [name, f"{value:.6g}", "" if best_value is None else f"{best_value:.6g}"]
            rows.append(cells if has_best else cells[:2])
        files = {"best checkpoint": self.best_checkpoint, "last checkpoint": self.last_checkpoint}
        title = f"stopped by {self.stop_reason}: {state.epoch} epochs, {state.step} steps, {state.seconds:.1f} s"
        headers = ["metric", "last", best] if has_best else ["metric", "last"]
        notes = [*captions, *(f"{name}: {path}" for name, path in files.items() if path is not None)]
        return html_table(title, headers, rows, notes)

    def _score(self) -> str:
        """Return "valid/accuracy=0.97 ", or nothing if no value was compared."""
        if self.state.best_score is None or self.monitor is None:
            return ""
        name = self.monitor if isinstance(self.monitor, str) else " + ".join(self.monitor)
        return f"{name}={self.state.best_score:.6g} "
