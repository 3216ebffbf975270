"""The time that a run has spent training."""

from __future__ import annotations

import time

from helios_lite.state import TrainingState


class Clock:
    """Counts the seconds of a run in `state.seconds`.

    Attributes:
        now: the time of the last `tick`, as `time.monotonic`.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self.now = time.monotonic()

    def restart(self) -> None:
        """Count from now on, without the time since the last `tick`."""
        self.now = time.monotonic()

    def set(self, seconds: float) -> None:
        """Set `state.seconds`: to the largest of all ranks."""
        self._state.seconds = seconds

    def tick(self) -> None:
        """Add the time since the last call to `state.seconds`."""
        now = time.monotonic()
        self._state.seconds += now - self.now
        self.now = now
