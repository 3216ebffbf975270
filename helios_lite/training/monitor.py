"""Tracks the best validation, or the best epoch, and counts those without an improvement."""

from __future__ import annotations

import logging
import math
from typing import Any

from helios_lite.model import Model
from helios_lite.planning.due import has_improved, monitored_score
from helios_lite.state import TrainingState
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")


class Monitor:
    """Compares validations, by the option `monitor` or by the model's own `have_metrics_improved`.

    If a metric of the train split is monitored, epochs are compared in their place, by its mean over the epoch.

    Writes `best_score`, `best_step` and `early_stop_count` of the state.

    Attributes:
        custom: whether the model overrides `have_metrics_improved`.
        enabled: whether validations or epochs are compared at all.
        is_of_training: whether a metric of the train split is monitored, so that epochs are compared.
        history: the monitored value of every validation, or of every epoch.
        best_metrics: the last value of every metric at the best validation or epoch, by full name.
        is_unknown: whether it is unknown that a validation has what is monitored, because something else was until now.
        has_begun: whether a validation has begun and not ended, because an error has ended it.
        ends_epoch: whether that validation was the one at the end of an epoch.
    """

    def __init__(self, session: Session, state: TrainingState) -> None:
        self._session, self._state = session, state
        self.custom = type(session.model).have_metrics_improved is not Model.have_metrics_improved
        self.enabled = session.options.monitor is not None or self.custom
        self.is_of_training = session.options.monitors_training
        self.history: list[float] = []
        self.best_metrics: dict[str, float] = {}
        self.is_unknown = self.has_begun = self.ends_epoch = False
        self._score: float | None = None  # The last one, and the step of its weights.
        self._step: int | None = None
        self._has_warned = False  # Of a score that is not finite.

    def check(self, values: dict[str, float]) -> tuple[float | None, bool]:
        """Return the monitored value of a validation or an epoch, and whether it is better than the best so far.

        Raises:
            ValueError: a monitored name is not among the metrics.
        """
        options = self._session.options
        if options.monitor is None:
            return None, True
        score = monitored_score(values, options.monitor, "epoch" if self.is_of_training else "validation")
        if not math.isfinite(score) and not self._has_warned:
            self._has_warned = True
            logger.warning("monitor=%r is %s at step %d: no improvement", options.monitor, score, self._state.step)
        return score, has_improved(score, self._state.best_score, options.mode, options.min_delta)

    def begin(self, *, ends_epoch: bool) -> None:
        """Note that a validation begins. A checkpoint that is saved before its end says that it is still due."""
        self.has_begun, self.ends_epoch = True, ends_epoch

    def end(self) -> None:
        """Note that the validation has ended, or that none is wanted any more."""
        self.has_begun = self.ends_epoch = False

    def update(self, values: dict[str, float], *, decided: bool | None = None) -> None:
        """Compare a validation or an epoch with the best so far, and ask the model for its decision.

        Call on every rank.

        Args:
            values: the metrics of the validation or the epoch.
            decided: what an earlier start has decided, None if this is the first time.
        """
        session, state = self._session, self._state
        self._score, improved = self.check(values)
        self._step = state.step
        session.context.set_improved(improved)
        if self._score is not None:
            self.history.append(self._score)
        improved = session.model.have_metrics_improved() if decided is None else decided
        if self.custom and decided is None:
            improved = session.world.broadcast(improved)
        if not improved:
            state.early_stop_count += 1
        elif self.enabled:
            state.early_stop_count = 0
            state.best_score, state.best_step = self._score, state.step
            self.best_metrics = dict(session.context.latest)

    @property
    def is_current(self) -> bool:
        """Whether the present weights have been compared."""
        return self._step == self._state.step

    def current(self) -> tuple[float | None, bool]:
        """Return the score of the present weights, and whether they are the best; (None, False) if not compared."""
        if not self.is_current:
            return None, False
        score = None if self._score is None or not math.isfinite(self._score) else self._score
        return score, self._state.best_step == self._state.step

    def reset(self) -> None:
        """Forget all earlier comparisons, because something else is monitored from now on."""
        self.is_unknown = self._session.options.monitor is not None and not self.is_of_training
        self._state.best_score = self._state.best_step = self._score = self._step = None
        self._state.early_stop_count = 0
        self.best_metrics, self.history = {}, []

    def state_dict(self) -> dict[str, Any]:
        """Return the best metrics, the history, the last score and its step, and whether a validation is still due."""
        state = {"best": self.best_metrics, "history": self.history, "score": self._score, "step": self._step}
        return {**state, "due": self.has_begun, "ends_epoch": self.ends_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best_metrics, self.history = state_dict["best"], state_dict["history"]
        self._score, self._step = state_dict["score"], state_dict["step"]
        self.has_begun, self.ends_epoch = state_dict["due"], state_dict["ends_epoch"]
