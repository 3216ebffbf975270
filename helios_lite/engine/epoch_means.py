"""The training metrics over a whole epoch, from the totals of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helios_lite.runtime.metrics import ReducedTotals, Totals, merge_totals, reduced


class EpochMeans:
    """Merges the totals of the rows of an epoch, so that its metrics are as exact as those of a row."""

    def __init__(self) -> None:
        self._totals: dict[str, ReducedTotals] | None = {}  # None if rows of the epoch are unknown.

    def begin(self) -> None:
        """Begin an epoch."""
        self._totals = {}

    def add(self, totals: Mapping[str, ReducedTotals]) -> None:
        """Add the totals of a row, over all ranks. A value that is reduced by "last" is that of a row alone."""
        if self._totals is None:
            return
        for name, (reduce, one) in totals.items():
            if reduce != "last":
                earlier = self._totals.get(name)
                self._totals[name] = (reduce, one if earlier is None else merge_totals(earlier[1], one))

    def take(self) -> dict[str, float]:
        """Return the metrics of the epoch by the full names of those of its rows, and end it."""
        totals, self._totals = self._totals or {}, {}
        return {name: reduced(reduce, one) for name, (reduce, one) in totals.items()}

    def state_dict(self) -> dict[str, Any] | None:
        """Return the totals as plain numbers, None if rows of the epoch are unknown."""
        if self._totals is None:
            return None
        return {name: {"reduce": reduce, "totals": tuple(one)} for name, (reduce, one) in self._totals.items()}

    def load_state_dict(self, state_dict: dict[str, Any] | None) -> None:
        """Restore what `state_dict` returned. With None (earlier versions) the epoch has none."""
        self._totals = None
        if state_dict is not None:
            self._totals = {name: (one["reduce"], Totals(*one["totals"])) for name, one in state_dict.items()}
