"""Calls the loggers of the trainer, on rank 0 only."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from helios_lite.loggers import Logger, RunStatus
from helios_lite.training.cleanup import cleanup

logger = logging.getLogger("helios_lite")


class RunLoggers:
    """The loggers during one call of the trainer. As a context it closes them, however the call ends.

    Args:
        loggers: those of the trainer; none on other ranks than 0, which call no logger.
        run_folder: the run folder, None if the run writes no files.
        method: the method of the trainer. A `fit` has a status; a `fit`, `validate` or `test` has rows.
        keeps: whether what is logged is kept. If not, only `begin_call` and `close` are called, of loggers that have
            both.
    """

    def __init__(self, loggers: Iterable[Logger], *, run_folder: Path | None, method: str, keeps: bool) -> None:
        self._all = list(loggers)
        self._run_folder = None if run_folder is None else str(run_folder.resolve())
        self._trains, self._keeps = method == "fit", keeps
        self._loggers = self._all if keeps and method in ("fit", "validate", "test") else []
        self._status: RunStatus = "finished"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for logger in self._all:
                if self._loggers or hasattr(logger, "begin_call"):
                    stack.enter_context(cleanup(lambda logger=logger: self._close(logger)))  # type: ignore[misc]
                if hasattr(logger, "begin_call"):
                    logger.begin_call(self._run_folder, trains=self._trains, keeps=self._keeps)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._status = _status(error)
        return self._stack.__exit__(kind, error, traceback)

    def go_on(self, step: int, state: Mapping[str, Any] | None, *, differs: bool) -> None:
        """Begin a training that starts or resumes after a step.

        Args:
            step: the step.
            state: what `state_dict` returned at the checkpoint from which the run goes on; None without one.
            differs: whether the rows after the step that an earlier start has written do not hold any more.
        """
        states = {name: list(found) for name, found in (state or {}).items()}
        for logger in self._loggers:
            if hasattr(logger, "load_state_dict") and (found := states.get(type(logger).__name__)):
                logger.load_state_dict(found.pop(0))
            _call_if_defined(logger, "branch" if differs and hasattr(logger, "branch") else "rewind", step)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Send the options and the hparams to every logger."""
        for logger in self._loggers:
            logger.log_config(config)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a row to every logger."""
        for logger in self._loggers:
            logger.log_metrics(metrics, step)

    def log_end(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the last row of a training to every logger."""
        for logger in self._loggers:
            getattr(logger, "log_end", logger.log_metrics)(metrics, step)

    def state_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the states of the loggers that have one, by the name of the class, in the order of the loggers."""
        states: dict[str, list[dict[str, Any]]] = {}
        for logger in self._loggers:
            if hasattr(logger, "state_dict"):
                states.setdefault(type(logger).__name__, []).append(logger.state_dict())
        return states

    def _close(self, logger: Logger) -> None:
        try:
            if self._trains and self._loggers:
                _call_if_defined(logger, "log_status", self._status)
        finally:
            logger.close()


def report_failure(loggers: Iterable[Logger], run_folder: Path | None) -> None:
    """Tell loggers in the launching process that the training has failed; rank 0 may have been ended before it could.

    Loggers without `log_status` are not called.
    """
    told = [logger for logger in loggers if hasattr(logger, "log_status")]
    with contextlib.suppress(_Failed), RunLoggers(told, run_folder=run_folder, method="fit", keeps=True):
        raise _Failed


class _Failed(Exception):
    """Ends a training that has failed elsewhere."""


def _status(error: BaseException | None) -> RunStatus:
    if error is None:
        return "finished"
    is_signal = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return "interrupted" if is_signal or isinstance(error, KeyboardInterrupt) else "failed"


def _call_if_defined(logger: Logger, method: str, argument: Any) -> None:
    """Call one of the methods that a logger need not have."""
    function = getattr(logger, method, None)
    if function is not None:
        function(argument)
