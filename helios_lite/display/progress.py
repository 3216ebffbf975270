"""What is seen of a run while it lasts: progress bars on a terminal or in a notebook, lines elsewhere.

While bars are drawn, everything else that goes to the screen goes through `write`, which prints above them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_OF_RUN = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}{postfix}]"  # Leaves room for the text.
_REFRESH_SECONDS = 0.1  # The least time between two drawings of the bars: what is shorter is not drawn.


@dataclasses.dataclass
class _Stage:
    """An epoch or an evaluation, with the bar that is made when it is drawn first: a short one has none."""

    name: str
    total: int | None
    bar: tqdm[Any] | None = None

    def draw(self, done: int, make_bar: Callable[..., tqdm[Any]]) -> None:
        """Draw the bar as far as it is done."""
        if self.bar is None:
            self.bar = make_bar(desc=self.name, total=self.total, initial=done, unit="batch")
        else:
            self.bar.n = done
            self.bar.refresh()


class Progress:
    """A bar for the run and one for the epoch or the evaluation, drawn by tqdm, and lines that stay.

    On a terminal bars and lines go to stderr, in a notebook to the output of the cell. Otherwise there are no bars, and
    lines go to stderr.

    Args:
        enabled: False shows nothing.

    Attributes:
        enabled: whether anything is shown.
        has_bars: whether bars are drawn.
    """

    def __init__(self, enabled: bool) -> None:
        self._make_bar = _bar_class() if enabled else None
        self.enabled, self.has_bars = enabled, self._make_bar is not None
        self._next_refresh = 0.0
        self._run: tqdm[Any] | None = None
        self._status: Callable[[], tuple[int, str]] = lambda: (0, "")
        self._stages: list[_Stage] = []

    def show_run(self, total: int | None, unit: str, status: Callable[[], tuple[int, str]]) -> None:
        """Draw the bar for the run; `status` returns its position and a short text to show beside it."""
        if self.has_bars:
            self._status = status
            self._run = self._bar(
                desc="run", total=total, initial=status()[0], unit=unit, bar_format=None if total is None else _OF_RUN
            )

    def start(self, name: str, total: int | None, done: int = 0) -> None:
        """Begin an epoch or an evaluation: its bar takes the place of the one in the lower line until `finish`."""
        if self.has_bars:
            self._stages.append(_Stage(name, total))
            self.update(done)

    def update(self, done: int) -> None:
        """Draw the bars as they are now, at most every `_REFRESH_SECONDS`; a step costs one look at the clock."""
        now = time.monotonic()
        if now < self._next_refresh or not self._stages:
            return
        self._next_refresh = now + _REFRESH_SECONDS
        stage = self._stages[-1]
        if stage.bar is None:
            for earlier in self._stages:
                if earlier.bar is not None:
                    earlier.bar.clear()
        stage.draw(done, self._bar)
        self._refresh_run()

    def write(self, line: str) -> None:
        """Print a line, above the bars if there are any."""
        if self.enabled:
            write_above_bars(line)

    def finish(self) -> None:
        """Remove the lower bar; the one that it replaced is drawn again at the next `update`."""
        if self._stages and (bar := self._stages.pop().bar) is not None:
            bar.close()

    def close(self) -> None:
        """Remove all bars."""
        while self._stages:
            self.finish()
        if self._run is not None:
            self._run.close()
            self._run = None

    def _bar(self, **options: Any) -> tqdm[Any]:
        """Draw a bar below that of the run, or in the first line: only there tqdm puts the cursor back to the start."""
        assert self._make_bar is not None
        position = 0 if self._run is None else 1
        return self._make_bar(**options, position=position, dynamic_ncols=True, leave=False)

    def _refresh_run(self) -> None:
        if self._run is not None:
            self._run.n, text = self._status()
            self._run.set_postfix_str(text)


def write_above_bars(line: str) -> None:
    """Print a line on stderr, in a notebook in the output of the cell, above the bars if there are any."""
    file = sys.stdout if _is_notebook() else sys.stderr
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=file)
    else:
        print(line, file=file, flush=True)


def _bar_class() -> type[tqdm[Any]] | None:
    """Return the class of the bars for what stderr is; None where bars cannot be drawn."""
    if _is_notebook():
        if importlib.util.find_spec("ipywidgets") is None:
            return None  # tqdm would warn, and draw every state of a bar below the earlier ones.
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm


def _is_notebook() -> bool:
    """Return whether the program runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
