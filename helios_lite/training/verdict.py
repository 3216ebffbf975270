"""What somebody should look at when a run has ended, from the numbers that its rows have."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

_LONG_WAIT, _LARGE_WAIT = 30.0, 0.2  # Seconds, and part of the time.
_MOST_VALUES = 1024  # Of memory, which is thinned out when there are more.
_FEWEST_VALUES = 20  # Rows from which the growth of memory is seen.
_GROWTH, _OFTEN = 0.05, 0.8  # Of the memory since the middle of the run; parts.
_FEWEST_SCORES = 6
_FEWEST_RATES = 3
_MOST_LINES = 2


class Verdict:
    """Collects what the rows of a start say.

    A finding needs numbers that are beyond chance: a wait of half a minute, a memory that grows in nearly every row.
    """

    def __init__(self) -> None:
        self._step: int | None = None  # Of the last row.
        self._seconds = self._waited = 0.0
        self._memory: list[float] = []
        self._every, self._num_memory = 1, 0  # Every how manieth value of the memory is kept; how many there were.
        self._rates: dict[str, tuple[float, float, int]] = {}  # The lowest and the highest one, and how many.

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row of training metrics of this rank. The times of the first one, in which all begins, do not count."""
        steps, self._step = 0 if self._step is None else step - self._step, step
        seconds = values.get("train/step_seconds", 0.0) * steps
        self._seconds += seconds
        self._waited += seconds * values.get("train/data_wait", 0.0)
        for name, value in values.items():
            if name == "train/lr" or name.startswith("train/lr/"):
                low, high, number = self._rates.get(name, (value, value, 0))
                self._rates[name] = min(low, value), max(high, value), number + 1
        if "train/memory_mib" in values:
            if self._num_memory % self._every == 0:
                self._memory.append(values["train/memory_mib"])
            self._num_memory += 1
            if len(self._memory) > _MOST_VALUES:
                self._memory, self._every = self._memory[::2], 2 * self._every

    @property
    def waits(self) -> tuple[float, float]:
        """The seconds for which this rank has waited for batches, and those of all steps."""
        return self._waited, self._seconds

    def lines(
        self,
        waits: Sequence[tuple[float, float]],
        *,
        num_workers: int | None,
        schedules: Mapping[str, Mapping[str, float]],
        history: Sequence[float],
        monitor: str,
        is_higher_better: bool,
    ) -> list[str]:
        """Return what somebody should look at, in at most two lines; none if nothing is wrong.

        Args:
            waits: `waits` of all ranks.
            num_workers: that of the train split, None if it is not known.
            schedules: for each scheduler by name the rates that it sets, by their names in a row, as they were before
                the first step. One that waits for something is none of them.
            history: the monitored value of every validation, or of every epoch.
            monitor: its name.
            is_higher_better: whether it is to rise.
        """
        found = [
            *_memory(self._memory),
            *_waiting(waits, num_workers),
            *_score(history, monitor, is_higher_better=is_higher_better),
            *self._constant_rates(schedules),
        ]
        return found[:_MOST_LINES]

    def _constant_rates(self, schedules: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
        """Yield which scheduler has never moved a rate, if all rows of a training say so."""
        for scheduler, before in schedules.items():
            seen = [(self._rates.get(name, (0.0, 1.0, 0)), rate) for name, rate in before.items()]
            if seen and all(low == high == rate and number >= _FEWEST_RATES for (low, high, number), rate in seen):
                name, rate = next(iter(before.items()))
                yield f"{name} was {rate:.4g} in every row; is {scheduler} stepped, and short enough?"
                return


def _memory(values: Sequence[float]) -> Iterator[str]:
    """Yield what is wrong with the peak of the memory, in MiB, row by row."""
    half = values[len(values) // 2 :]
    if len(values) < _FEWEST_VALUES or half[-1] - half[0] < _GROWTH * half[0]:
        return
    rises = sum(after > before for before, after in itertools.pairwise(half))
    if rises >= _OFTEN * (len(half) - 1):  # The longest sequence so far, or a larger cache, comes ever more seldom.
        yield f"memory grew all the time, from {half[0]:,.0f} to {half[-1]:,.0f} MiB; detach what train_step keeps"


def _waiting(waits: Sequence[tuple[float, float]], num_workers: int | None) -> Iterator[str]:
    """Yield what is wrong with the times for which ranks have waited for batches."""
    parts = [waited / seconds if seconds > 0 and waited >= _LONG_WAIT else 0.0 for waited, seconds in waits]
    rank = max(range(len(parts)), key=lambda rank: parts[rank])
    if parts[rank] < _LARGE_WAIT:
        return
    others = [waited / seconds for i, (waited, seconds) in enumerate(waits) if i != rank and seconds > 0]
    text = f"{parts[rank]:.0%} of the time went to waiting for batches"
    if others and parts[rank] - max(others) >= _LARGE_WAIT:
        yield f"rank {rank}: {text} (others {max(others):.0%}), and all ranks wait for it"
    else:
        yield f"{text}; {'try num_workers=4' if num_workers == 0 else 'try more num_workers, or faster data'}"


def _score(history: Sequence[float], monitor: str, *, is_higher_better: bool) -> Iterator[str]:
    """Yield that a score has become worse since its best time, if that is more than its ups and downs."""
    scores = [score if is_higher_better else -score for score in history]
    if len(scores) < _FEWEST_SCORES or not all(map(math.isfinite, scores)):
        return
    size = len(scores) // 4
    means = [statistics.fmean(scores[i : i + size]) for i in range(len(scores) - size + 1)]
    noise = statistics.median(abs(b - a) for a, b in itertools.pairwise(scores))
    lost, gained = max(means) - means[-1], max(means) - means[0]
    if lost > 3 * noise and lost > gained / 10:
        best = history[max(range(len(scores)), key=lambda i: scores[i])]
        yield f"{monitor} was {best:.4g} at its best and is {history[-1]:.4g}; use the best checkpoint"
