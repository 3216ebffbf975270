"""The progress bars of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_REFRESH_SECONDS = 0.1  # The least time between two updates of the bars.


class Bars:
    """A bar for the run and one for the epoch or the evaluation, drawn by tqdm on stderr if it is a terminal.

    Args:
        enabled: False draws nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self._next_refresh = 0.0
        self._run: tqdm[Any] | None = None
        self._status: Callable[[], tuple[int, str]] = lambda: (0, "")
        self._parts: list[tqdm[Any]] = []

    def show_run(self, total: int | None, unit: str, status: Callable[[], tuple[int, str]]) -> None:
        """Draw the bar for the run; `status` returns its position and a short text to show beside it."""
        if self.enabled:
            self._status = status
            self._run = _make_bar(desc="run", total=total, initial=status()[0], unit=unit, position=0)

    def start(self, name: str, total: int | None, done: int = 0) -> None:
        """Draw a bar for an epoch or an evaluation in the lower line, in place of the bar there, until `finish`."""
        if self.enabled:
            if self._parts:
                self._parts[-1].clear()
            self._parts.append(_make_bar(desc=name, total=total, initial=done, unit="batch", position=1))

    def update(self, done: int) -> None:
        """Redraw the bars, at most every `_REFRESH_SECONDS`; a step costs one look at the clock."""
        if not self._parts or time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + _REFRESH_SECONDS
        self._parts[-1].n = done
        self._parts[-1].refresh()
        self._refresh_run()

    def finish(self) -> None:
        """Remove the lower bar; the bar that it replaced is drawn again at the next `update`."""
        if self._parts:
            self._parts.pop().close()
            self._next_refresh = 0.0
            self._refresh_run()

    def close(self) -> None:
        """Remove all bars."""
        while self._parts:
            self.finish()
        if self._run is not None:
            self._run.close()
            self._run = None

    def _refresh_run(self) -> None:
        if self._run is not None:
            self._run.n, text = self._status()
            self._run.set_postfix_str(text)


def _make_bar(**options: Any) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(**options, dynamic_ncols=True, leave=False)
