"""The file status.json of a run folder: what a training is doing, for schedulers, sweeps and people."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from helios_lite.checkpoints.files import remove_half_written, write_json
from helios_lite.checkpoints.lock import folder_lock
from helios_lite.processes.peers import is_alive, process_start
from helios_lite.processes.signals import exit_status, signal_of
from helios_lite.version import __version__

logger = logging.getLogger("helios_lite")
STATUS_FILE = "status.json"
_FORMAT = 1
_SECONDS_BETWEEN_WRITES = 0.5
_LONGEST_REASON = 2000
Phase = Literal["starting", "running", "stopping", "finished", "failed"]
"""What a training does, or how its call has ended: "finished" without an exception, "failed" by one."""
_EMPTY = (
    "step", "total_steps", "epoch", "max_epochs", "progress", "seconds", "seconds_left", "metrics", "best_step",
    "best_score", "best_checkpoint", "last_checkpoint",
)  # fmt: skip


class StatusFile:
    """The status of one call of `fit`. Each write replaces the file atomically, and the last one stays.

    Rank 0 writes it, and at the end the process that has called `fit`. A context around the call writes how it ends.
    If the file cannot be written, one warning says so, and the training goes on.

    Args:
        writes_end: whether this process writes how the call ends; the one that has launched it does so otherwise.
    """

    def __init__(self, *, writes_end: bool = True) -> None:
        self._writes_end = writes_end
        self._folder: Path | None = None
        self._content: dict[str, Any] = {}
        self._values: Callable[[], Mapping[str, Any]] | None = None
        self._written = 0.0
        self._has_warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._leave(error)
        except (KeyboardInterrupt, SystemExit) as received:  # A signal that has come meanwhile ends the call.
            self._leave(received)
            raise

    def _leave(self, error: BaseException | None) -> None:
        if self._folder is None:
            return
        # Another run may have begun here meanwhile, or the folder may be gone.
        with contextlib.suppress(OSError, RuntimeError), folder_lock(self._folder / "checkpoints"):
            if self._writes_end:
                self.end(error)
            elif error is not None:
                self._take_values()
                self._write()

    def begin(self, folder: Path) -> None:
        """Write that a training starts. The folder is locked by this process."""
        self._folder, self._values = folder, None
        remove_half_written(folder)
        now = _now()
        self._content = {
            "format": _FORMAT,
            "version": __version__,
            "state": "starting",
            "reason": None,
            "exit_status": None,
            **dict.fromkeys(_EMPTY),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "process_start": process_start(os.getpid()),
            "started": now,
            "updated": now,
        }
        self._write()

    def write(self, state: Phase, values: Callable[[], Mapping[str, Any]], reason: str | None = None) -> None:
        """Write what the training does. A state that the file has already is not written again within half a second.

        Args:
            state: the state.
            values: returns the values that have changed; called only if they are written, and after an exception.
            reason: why the training stops, or None.
        """
        if self._folder is None:
            return
        is_new = (state, reason) != (self._content["state"], self._content["reason"])
        if not is_new and state == "running" and time.monotonic() - self._written < _SECONDS_BETWEEN_WRITES:
            return
        self._values = values
        self._content |= {"state": state, "reason": reason, **values()}
        self._write()

    def end(self, error: BaseException | None, reason: str | None = None) -> None:
        """Write how the call has ended, after what this process knows of the training, or rank 0 has written.

        The folder is locked by this process. Called at the end of the context, or before this process ends at once.

        Args:
            error: the exception that leaves the call, None if it returns.
            reason: why it ends, if the exception does not say so.
        """
        if self._folder is None:
            return
        if self._values is None:
            found = read_status(self._folder) or {}
            self._content |= {name: found[name] for name in (*_EMPTY, "reason", "started") if name in found}
        else:
            self._take_values()
        self._content["exit_status"] = exit_status(error)
        self._content["state"] = "finished" if error is None else "failed"
        if error is None:
            self._content |= {"progress": 1.0, "seconds_left": 0.0}
        else:
            self._content |= {"reason": reason or _reason(error), "seconds_left": None}
        self._write()

    def _take_values(self) -> None:
        """Take what the training is at now, for example after an exception; the user's data may not say it any more."""
        if self._values is not None:
            with contextlib.suppress(Exception):
                self._content |= self._values()

    def _write(self) -> None:
        assert self._folder is not None
        self._written = time.monotonic()
        self._content["updated"] = _now()
        try:
            write_json(_finite(self._content), self._folder / STATUS_FILE, is_durable=False)
        except OSError as error:
            if not self._has_warned:
                path, why = self._folder / STATUS_FILE, error.strerror or error
                logger.warning("%s: cannot be written (%s); the training goes on without it", path, why)
            self._has_warned = True


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return the content of status.json in a run folder; None if there is none, or it cannot be read."""
    try:
        content = json.loads((folder / STATUS_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_status = isinstance(content, dict) and content.get("format") == _FORMAT and isinstance(content.get("state"), str)
    return content if is_status else None


def has_ended(status: Mapping[str, Any]) -> bool:
    """Return whether a status says how the call has ended."""
    return status.get("exit_status") is not None


def is_left_behind(status: Mapping[str, Any]) -> bool | None:
    """Return whether the process that wrote a status is gone, without having said how it has ended.

    None if that cannot be known, because it runs on another machine.
    """
    if has_ended(status):
        return False
    process = status.get("process")
    if status.get("host") != socket.gethostname() or type(process) is not int:
        return None
    # Another process may have got its number since.
    return not is_alive(process) or process_start(process) != status.get("process_start")


def _reason(error: BaseException) -> str:
    """Return what a status says of the exception that has ended a call: the name of a signal, or the error."""
    received = signal_of(error)
    if received is not None:
        return received.name
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _finite(value: Any) -> Any:
    """Return plain data in which numbers that json does not know are None."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
