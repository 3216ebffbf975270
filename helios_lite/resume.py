"""What a training knows at any moment, how it is saved, and how it is restored."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_lite import checkpoint, rng
from helios_lite.data import DataModule, Loader, make_loader
from helios_lite.loggers import JsonlLogger, Logger
from helios_lite.model import Model
from helios_lite.run import Run
from helios_lite.stopping import save_due
from helios_lite.version import __version__

if TYPE_CHECKING:
    from helios_lite.trainer import Trainer

logger = logging.getLogger("helios_lite")


class ResumableRun(Run):
    """A training's state, which the loop moves forward and checkpoints hold."""

    def __init__(self, trainer: Trainer, model: Model, datamodule: DataModule, prepared: bool = False) -> None:
        super().__init__(trainer, model, datamodule, prepared)
        self.score: float | None = None  # Of the last validation.
        self.history: list[float] = []  # Of every validation.
        self.best_metrics: dict[str, float] = {}
        self.flushed_step = 0
        self.clock = self.flush_clock = time.monotonic()
        self.loggers: list[Logger] = list(trainer.loggers)
        self.rows: JsonlLogger | None = None
        self.kept_rows = 0
        self.train_loader: Loader | None = None
        self.loader_state: dict[str, Any] = {}
        self.rng_state: dict[str, Any] | None = None  # Of the checkpoint, until it is time.
        self.resumed_from: Path | None = None
        self.last_checkpoint: Path | None = None
        self.saved_at: tuple[int, int] | None = None
        self.saved_seconds = 0.0

    def save_due(self) -> bool:
        """Say whether this boundary has a checkpoint, and the model lets it be. Call on every rank."""
        state, trainer, model = self.state, self.trainer, self.model
        if self.checkpoints is None or self.saved_at == (state.step, state.epoch):
            return False
        due = trainer.keep_last != 0 and save_due(
            state,
            seconds_since=state.seconds - self.saved_seconds,
            every_epochs=trainer.save_every_epochs,
            every_steps=trainer.save_every_steps,
            every_minutes=trainer.save_every_minutes,
        )
        if state.validated_step == state.step:
            due = self.world.broadcast(due or self.checkpoints.would_be_kept(*self.verdict()))
        if due and type(model).should_save_checkpoint is not Model.should_save_checkpoint:
            due = self.world.broadcast(model.should_save_checkpoint())
        return due

    def verdict(self) -> tuple[float | None, bool]:
        """Return score and improvement of these very weights; None and False if they were not judged."""
        if self.state.validated_step != self.state.step:
            return None, False
        score = None if self.score is None or math.isnan(self.score) else self.score
        return score, self.state.best_step == self.state.step

    def save(self) -> None:
        """Write a checkpoint of this moment; `restore` is its counterpart. Call on every rank."""
        if self.checkpoints is None:
            return
        started = time.monotonic()
        self.finite_metrics()
        self.tick()
        state, trainer, model = self.state, self.trainer, self.model
        of_each = self.world.gather((rng.capture(self.device), self.metrics.state_dict()))
        content = {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "save_name": model.save_name,
            "state": state.state_dict(),
            "model": model.state_dict(),
            "precision": self.runtime.precision.state_dict(),
            "rng": [generators for generators, _ in of_each],
            "data": {} if self.train_loader is None else self.train_loader.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in self.named_callbacks().items()},
            "config": trainer.config(),
            "hparams": model.hparams,
            "metrics": {
                "latest": self.runtime.latest,
                "best": self.best_metrics,
                "history": self.history,
                "score": self.score,
                "flushed_step": self.flushed_step,
                "pending": [pending for _, pending in of_each],
                "running_losses": model._running_losses,
                "rows": 0 if self.rows is None else self.rows.rows,
            },
        }
        if self.world.is_main:
            score, improved = self.verdict()
            self.last_checkpoint = self.checkpoints.save(
                content,
                epoch=state.epoch,
                step=state.step,
                append_metadata=model.append_metadata_to_chkpt_name,
                score=score,
                improved=improved,
                spare=self.resumed_from,
            )
            logger.debug("saved %s", self.last_checkpoint)
        self.saved_at, self.saved_seconds = (state.step, state.epoch), state.seconds
        self.flush_clock += time.monotonic() - started

    def restore(self) -> None:
        """Continue from a checkpoint, if the options say so and there is one."""
        # A group of processes that was started again after a failure goes on from its own checkpoints.
        resume = "auto" if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 else self.trainer.resume
        found = self.load("last" if resume in ("auto", "never") else resume)
        if found is None:
            return
        path, content = found
        if resume == "never":
            raise FileExistsError(f'resume="never", but there is {path}; choose another run_name')
        newest = None if self.checkpoints is None else self.checkpoints.newest()
        if newest is not None and resume != "auto" and not newest.samefile(path):
            # The next start with "auto" would go on from that one.
            raise ValueError(f"resume={str(resume)!r}: the run folder has {newest}; choose another run_name")
        self.model.load_state_dict(content["model"])
        self.runtime.precision.load_state_dict(content["precision"])
        self.state.load_state_dict(content["state"])
        if self.world.rank < len(content["rng"]):  # A rank that is new keeps the generators it has.
            self.rng_state = content["rng"][self.world.rank]
        self.loader_state = content["data"]
        for name in self.restore_callbacks(content):
            logger.warning("the checkpoint has the state of a callback that this run has not: %s", name)
        metrics = content["metrics"]
        self.runtime.latest.update(metrics["latest"])
        self.best_metrics, self.history, self.score = metrics["best"], metrics["history"], metrics["score"]
        self.flushed_step = metrics["flushed_step"]
        for pending in metrics["pending"][self.world.rank :: self.world.size]:
            self.metrics.load_state_dict(pending)
        self.model._running_losses.update(metrics["running_losses"])
        self.kept_rows = metrics["rows"]
        self.resumed_from = self.last_checkpoint = path
        self.saved_at, self.saved_seconds = (self.state.step, self.state.epoch), self.state.seconds
        logger.info("continuing from %s (epoch %d, step %d)", path, self.state.epoch, self.state.step)
        now = {**self.trainer.config(), **{f"hparams[{name!r}]": value for name, value in self.model.hparams.items()}}
        then = {**content["config"], **{f"hparams[{name!r}]": value for name, value in content["hparams"].items()}}
        for name, value in now.items():
            if str(then.get(name)) != str(value):
                logger.info("%s: %r in the checkpoint, %r now", name, then.get(name), value)
        if (then.get("monitor"), then.get("mode")) != (now["monitor"], now["mode"]):
            logger.warning("something else is monitored now: what was best so far is forgotten")
            self.state.best_score = self.state.best_step = self.score = None
            self.state.early_stop_count = 0
            self.best_metrics, self.history = {}, []
            if self.checkpoints is not None:
                self.checkpoints.forget_scores()

    def restore_rng(self) -> None:
        """Set this rank's generators as they were at the checkpoint, once."""
        if self.rng_state is not None:
            rng.restore(self.rng_state, self.device)
            self.rng_state = None

    def epoch_loader(self) -> Loader:
        """Return the loader of what the datamodule calls its train split now."""
        source = self.datamodule.train
        if source is None:
            raise ValueError("the datamodule has no train split")
        if self.train_loader is None or self.train_loader.source is not source:
            self.train_loader = make_loader(source, "train", self.trainer.seed, self.world)
            self.train_loader.load_state_dict(self.loader_state)
            self.loader_state = {}
        return self.train_loader

    def finite_metrics(self) -> dict[str, float]:
        """Return the metrics since the last row. Call on every rank.

        Raises:
            FloatingPointError: one was not finite (`check_finite`); the message names it and its step.
        """
        summary = self.metrics.compute(self.world)
        if self.trainer.check_finite and summary.first_not_finite is not None:
            name, step = summary.first_not_finite
            raise FloatingPointError(f"{name} is not finite at step {step}")
        return summary.values

    def tick(self) -> None:
        """Bring `state.seconds` up to date."""
        now = time.monotonic()
        self.state.seconds += now - self.clock
        self.clock = now
