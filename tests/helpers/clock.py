"""A clock that stands still until the test moves it on."""

from __future__ import annotations


class Time:
    """Stands in for the module `time` in a module that only looks at the clock.

    Attributes:
        now: the time in seconds.
    """

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def perf_counter(self) -> float:
        """Return the time."""
        return self.now
