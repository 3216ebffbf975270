"""Notices that a run makes no progress, says where every rank stands, and ends the run as a failure."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Self

import torch

from helios_lite.file_errors import follow_no_link
from helios_lite.processes.output import write_stacks, write_stderr
from helios_lite.processes.peers import SECONDS_FOR_FILES, exit_now, process_state, within
from helios_lite.processes.world import World, is_launched, limit_waiting

SECONDS_FOR_STACKS = 0.5
"""In which loading processes write theirs, which the report of the hang would otherwise come in between."""

_PACKAGE = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_LIBRARIES = ("<frozen", *{_PACKAGE, *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))})
_COMPUTING = tuple(
    os.path.join(_PACKAGE, *name.split("/"))
    for name in (
        "networks",
        "model_internals",
        "metrics/accumulator.py",
        "metrics/measurements.py",
        "metrics/metric_objects.py",
        "metrics/score_tables.py",
        "processes/devices.py",
        "processes/rng.py",
        "checkpoints/snapshot.py",
    )
)
"""What this package computes with tensors. It takes no time: who stands there waits for a device."""


class Stand(NamedTuple):
    """Where the training of a rank stands.

    Attributes:
        rank, host, pid: of the process.
        waits: whether it probably waits for other ranks: in a collective, at the end of a backward pass, or for a
            device, which may wait for them.
        place: the innermost line of the user's code, of this package if there is none, with what it waits for, and with
            the thread if it is not the main one.
    """

    rank: int
    host: str
    pid: int
    waits: bool
    place: str


def hang_seconds(minutes: float | str | None) -> float | None:
    """Return the seconds of the option `hang_minutes`: "auto" is 30 minutes for one of several processes."""
    if minutes == "auto":
        return 30 * 60.0 if is_launched() else None
    return None if minutes is None else 60.0 * float(minutes)


class HangWatch:
    """A context in which a thread of each rank watches whether the run goes on, once `start` was called.

    When nothing has moved for too long, each rank writes the stacks of all its threads, also of its loading processes,
    and where its training stands. The first rank that can names those that the others wait for on stderr. Then all
    exit with status 1, whatever their threads do.

    While it watches, the ranks wait for each other without the limits of PyTorch's process groups. These would end the
    run before it has said where the ranks stand, and count time in which a job is stopped.

    Args:
        seconds: the longest time without progress; None watches nothing.
        fail: called with the error by the rank that names them; tells the process that has launched this one.
    """

    def __init__(self, seconds: float | None, fail: Callable[[Exception, str], object] = lambda *_: None) -> None:
        self._seconds, self._fail = seconds, fail
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._world = World()
        self._folder: Path | None = None
        self._progress: Callable[[], float] = lambda: 0
        self._message: Callable[[], str | None] = lambda: None
        self._peers: list[tuple[str, int]] = []
        self._watched = threading.get_ident()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if self._seconds is not None:
            limit_waiting(True)

    def start(
        self,
        world: World,
        folder: Path | None,
        progress: Callable[[], float],
        message: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Watch this thread from now on. Call on every rank.

        Args:
            world: the ranks.
            folder: the folder for the stacks, made if there is something to write; None writes them to stderr.
            progress: returns a number that changes as long as the run goes on.
            message: returns what this rank has sent or awaited last, as far as it is known.
        """
        if self._seconds is None:
            return
        self._world, self._folder, self._progress = world, folder, progress
        self._message = message
        self._watched = threading.get_ident()
        limit_waiting(False)
        self._peers = world.gather((socket.gethostname(), os.getpid()))
        self._thread = threading.Thread(target=self._watch, args=(self._seconds,), name="hang_watch", daemon=True)
        self._thread.start()

    def _watch(self, seconds: float) -> None:
        pause = min(1.0, seconds / 10)
        idle, polled, seen = 0.0, time.monotonic(), self._progress()
        while not self._done.wait(pause):
            limit_waiting(False)  # In groups that were made meanwhile, too.
            now, progress = time.monotonic(), self._progress()
            # Time in which this process was stopped too, as by Ctrl-Z, does not count.
            idle, polled = idle + min(now - polled, 2 * pause), now
            if progress != seen:
                idle, seen = 0.0, progress
            elif idle > seconds:
                self._speak(seconds)

    def _speak(self, seconds: float) -> None:
        own = stand_of(self._world.rank, self._watched)
        if (message := self._message()) is not None:
            own = own._replace(place=f"{own.place}; last it {message}")
        stands = self._exchange(own)
        reporter = min(stand.rank for stand in stands)
        if own.rank != reporter:
            time.sleep(SECONDS_FOR_FILES)  # The rank that reports ends first.
            exit_now(1)
        where = "above" if self._folder is None else f"in {self._folder}"
        text = f"no progress for {seconds:g} seconds (hang_minutes); the stacks of all threads are {where}"
        text = "\n  ".join([text, *self._sentences(stands)])
        write_stderr(f"{text}\n")
        stack = "".join(traceback.format_stack(_frame_of(self._watched)))
        within(SECONDS_FOR_FILES, self._fail, TimeoutError(text), stack)
        exit_now(1)

    def _exchange(self, own: Stand) -> list[Stand]:
        """Write the stacks and the stand of this rank; return the stands of all ranks that can do so in time."""
        children = active_children()
        for child in children:  # Loading processes write their stacks to stderr.
            with contextlib.suppress(OSError):
                os.kill(child.pid or 0, signal.SIGUSR2)
        if children:
            time.sleep(SECONDS_FOR_STACKS)
        if self._folder is None:
            write_stacks()
            return [own]
        if not within(SECONDS_FOR_FILES, self._write, self._folder, own):
            write_stacks()
            return [own]
        limit = time.monotonic() + SECONDS_FOR_FILES  # For the files of the others.
        while len(stands := list(_read(self._folder, self._peers))) < self._world.size and time.monotonic() < limit:
            time.sleep(0.1)
        return stands or [own]

    def _write(self, folder: Path, own: Stand) -> None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"rank_{own.rank}.txt", "w", opener=follow_no_link) as file:
                file.write(f"rank {own.rank}, process {own.pid} on {own.host}, {time.ctime()}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            part = folder / f".rank_{own.rank}.part"
            part.write_text(json.dumps(own))
            part.rename(folder / f"rank_{own.rank}.json")

    def _sentences(self, stands: list[Stand]) -> Iterator[str]:
        """Yield what is said of each rank: those that the others wait for first."""
        answered = {stand.rank for stand in stands}
        for rank, (host, pid) in enumerate(self._peers):
            if rank not in answered:
                state = process_state(pid) if host == socket.gethostname() else "?"
                reason = {"T": "it was stopped (SIGSTOP)", None: "it has ended"}.get(state, "it does not answer")
                yield f"rank {rank} (process {pid} on {host}): {reason}"
        is_any_elsewhere = len(answered) < len(self._peers) or not all(stand.waits for stand in stands)
        for stand in sorted(stands, key=lambda stand: stand.waits):
            verb = "waits" if stand.waits and is_any_elsewhere else "stands"
            yield f"rank {stand.rank} (process {stand.pid} on {stand.host}) {verb} in {stand.place}"


def stand_of(rank: int, thread: int) -> Stand:
    """Return where the thread with this identifier stands, that of the training."""
    frames = []
    frame: FrameType | None = _frame_of(thread)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    ours = [frame for frame in frames if _is_in(frame, _PACKAGE)]
    if ours:  # What has called this package does not count, such as multiprocessing.
        frames = frames[: frames.index(ours[-1]) + 1]
    # For the gradients of the others a rank waits at the end of a backward pass: those of a device in another thread.
    waits = any(_is_in(frame, os.path.join(_TORCH, "distributed")) for frame in frames)
    waits |= _is_in(frames[0], os.path.join(_TORCH, "autograd"))
    waits |= _is_in(next((frame for frame in frames if not _is_in(frame, _TORCH)), frames[0]), *_COMPUTING)
    loads = any(_is_in(frame, os.path.join(_TORCH, "utils", "data")) for frame in frames)
    users = [frame for frame in frames if not _is_in(frame, *_LIBRARIES)]
    is_inside = bool(users) and (not ours or frames.index(users[0]) < frames.index(ours[0]))
    shown = users[0] if is_inside else (ours or frames)[0]
    place = _line_of(shown)
    if users and not is_inside:
        place += f", called in {_line_of(users[0])}"
    if loads and not is_inside:
        place = f"the loader of a split, whose processes have written their stacks to stderr; {place}"
    if thread != threading.main_thread().ident:
        place += f", in the thread {next((each.name for each in threading.enumerate() if each.ident == thread), '?')}"
    return Stand(rank, socket.gethostname(), os.getpid(), waits, place)


def _line_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _frame_of(thread: int) -> FrameType:
    frames = sys._current_frames()  # An iterator of `predict` may be in another thread than the one that has begun it.
    return frames.get(thread) or frames[threading.main_thread().ident or 0]


def _is_in(frame: FrameType, *folders: str) -> bool:
    return frame.f_code.co_filename.startswith(folders)


def _read(folder: Path, peers: list[tuple[str, int]]) -> Iterator[Stand]:
    """Yield the stands that the processes of this run have left."""
    for rank, (host, pid) in enumerate(peers):
        with contextlib.suppress(OSError, ValueError, TypeError):
            stand = Stand(*json.loads((folder / f"rank_{rank}.json").read_text()))
            if (stand.host, stand.pid) == (host, pid):
                yield stand
