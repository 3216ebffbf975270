"""The time that a run has spent training."""

from __future__ import annotations

import time

from helios_lite.state import TrainingState


class Clock:
    """Counts the seconds of a run in `state.seconds`.

    Attributes:
        now: the time of the last `tick`, as `time.monotonic`.
        shared_seconds: the seconds that were shared last. What the ranks decide by the time, they decide by these,
            because every rank counts the time since then by itself.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self.now = time.monotonic()
        self.shared_seconds = state.seconds

    def restart(self) -> None:
        """Count from now on, without the time since the last `tick`. The counters of all ranks are the same."""
        self.now = time.monotonic()
        self.shared_seconds = self._state.seconds

    def share(self, seconds: float) -> None:
        """Set `state.seconds` on all ranks: to the largest of all."""
        self._state.seconds = self.shared_seconds = seconds

    def tick(self) -> None:
        """Add the time since the last call to `state.seconds`."""
        now = time.monotonic()
        self._state.seconds += now - self.now
        self.now = now


class Stopwatch:
    """Counts seconds while it runs. Moments are those of `time.monotonic`.

    Args:
        counted: the seconds before it starts; None for a time that is unknown, and stays so.
        started: when it started; None if it does not run yet.
    """

    def __init__(self, counted: float | None, started: float | None = None) -> None:
        self._counted, self._started = counted, started

    def seconds(self, now: float) -> float | None:
        """Return the seconds until now, None if they are unknown."""
        if self._counted is None or self._started is None:
            return self._counted
        return self._counted + now - self._started

    def start(self, now: float) -> None:
        """Count from now on."""
        self._started = now

    def stop(self, now: float) -> None:
        """Do not count what comes until the next `start`."""
        self._counted, self._started = self.seconds(now), None
