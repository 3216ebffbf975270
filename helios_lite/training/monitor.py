"""Tracks the best validation, and counts those without an improvement."""

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

    Writes `best_score`, `best_step` and `early_stop_count` of the state.

    Attributes:
        custom: whether the model overrides `have_metrics_improved`.
        enabled: whether validations are compared at all.
        history: the monitored value of every validation.
        best_metrics: the last value of every metric at the best validation, by full name.
        has_begun: whether a validation has begun and not ended, because an error has ended it.
        ends_epoch: whether that validation was the one at the end of an epoch.
    """

    def __init__(self, session: Session, state: TrainingState) -> None:
        self._session, self._state = session, state
        self.custom = type(session.model).have_metrics_improved is not Model.have_metrics_improved
        self.enabled = session.options.monitor is not None or self.custom
        self.history: list[float] = []
        self.best_metrics: dict[str, float] = {}
        self.has_begun = self.ends_epoch = False
        self._score: float | None = None  # Of the last validation.
        self._has_warned = False  # Of a score that is not finite.

    def check(self, values: dict[str, float]) -> tuple[float | None, bool]:
        """Return the monitored value of a validation, and whether it is better than the best so far.

        Raises:
            ValueError: a monitored name is not among the metrics.
        """
        options = self._session.options
        if options.monitor is None:
            return None, True
        score = monitored_score(values, options.monitor)
        if not math.isfinite(score) and not self._has_warned:
            self._has_warned = True
            logger.warning("monitor=%r is %s at step %d: no improvement", options.monitor, score, self._state.step)
        return score, has_improved(score, self._state.best_score, options.mode, options.min_delta)

    def begin(self, *, ends_epoch: bool) -> None:
        """Note that a validation begins. A checkpoint that is saved before its end says that it is still due."""
        self.has_begun, self.ends_epoch = True, ends_epoch

    def drop(self) -> None:
        """Forget that a validation has begun, because none is wanted any more."""
        self.has_begun = self.ends_epoch = False

    def update(self, values: dict[str, float], *, decided: bool | None = None) -> None:
        """Compare a validation with the best so far, and ask the model for its decision. Call on every rank.

        Args:
            values: the metrics of the validation.
            decided: what an earlier start has decided, None if this is the first time.
        """
        session, state = self._session, self._state
        self.has_begun = self.ends_epoch = False
        self._score, improved = self.check(values)
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

    def current(self) -> tuple[float | None, bool]:
        """Return the score of the present weights, and whether they are the best; (None, False) if not validated."""
        if self._state.validated_step != self._state.step:
            return None, False
        score = None if self._score is None or not math.isfinite(self._score) else self._score
        return score, self._state.best_step == self._state.step

    def reset(self) -> None:
        """Forget all earlier validations."""
        self._state.best_score = self._state.best_step = self._score = None
        self._state.early_stop_count = 0
        self.best_metrics, self.history = {}, []

    def state_dict(self) -> dict[str, Any]:
        """Return the best metrics, the history, the last score, and whether a validation is still due."""
        state = {"best": self.best_metrics, "history": self.history, "score": self._score}
        return {**state, "due": self.has_begun, "ends_epoch": self.ends_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best_metrics, self.history = state_dict["best"], state_dict["history"]
        self._score = state_dict["score"]
        self.has_begun, self.ends_epoch = state_dict["due"], state_dict["ends_epoch"]
