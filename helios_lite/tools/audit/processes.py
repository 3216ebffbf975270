"""Runs trials in fresh processes with a deadline, and keeps their records."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from helios_lite.callbacks import Profile
from helios_lite.checkpoints.naming import find
from helios_lite.config import ConfigError
from helios_lite.processes.forkserver import fresh_process
from helios_lite.processes.launch import NO_GUARD_STATUS, NO_GUARD_TEXT
from helios_lite.tools.audit.record import Record
from helios_lite.tools.audit.recorder import Enough, Recorder
from helios_lite.tools.audit.trial import EPOCH_STEPS, Source, Trial
from helios_lite.trainer import Trainer

_RUN = "run"  # The name of the run folder of a trial.
_LOCK = threading.Lock()  # Around changes of this process's environment, which a new interpreter inherits.


class Trials:
    """Runs the trials of one audit. Methods may be called by several threads.

    A trial begins in a copy of a process that has imported PyTorch and nothing of the user's program, so that it is as
    fresh as a new interpreter, but starts in a fraction of its time.

    Args:
        source: the program.
        folder: the folder of all files of the audit.
        seconds: the deadline of each trial, in seconds.
        processes: how many processes the relation between one and several uses.

    Attributes:
        processes: this number.
    """

    def __init__(self, source: Source, folder: Path, seconds: float, processes: int) -> None:
        self.processes = processes
        self._source, self._folder, self._seconds = source, folder, seconds
        self._kept: dict[str, Record] = {}
        self._locks: dict[str, threading.Lock] = {}  # Of the trials to keep.
        self._count = 0

    def run(self, trial: Trial, folder: str | None = None) -> Record:
        """Run a trial, and return its record. A trial that fails or takes too long has an `error`.

        Args:
            trial: what to do.
            folder: the name of its folder, in which an earlier trial may have left a run to resume; None for a new one.
        """
        with _LOCK:
            self._count += 1
            folder = folder or f"trial_{self._count}"
            result = self._folder / f"result_{self._count}"
        run_folder = self._folder / folder
        run_folder.mkdir(parents=True, exist_ok=True)
        children = self._start(trial, run_folder, result)
        end = time.monotonic() + self._seconds
        for child in children:
            child.join(max(0.0, end - time.monotonic()))
        is_late = any(child.is_alive() for child in children)
        for child in children:
            _end(child)
        if result.exists():
            record: Record = pickle.loads(result.read_bytes())
            return record
        if any(child.exitcode == NO_GUARD_STATUS for child in children):
            return Record(error=NO_GUARD_TEXT)
        if is_late:
            return Record(error=f"no result after {self._seconds:g} s", is_late=True)
        return Record(error=_last_words(result))

    def kept(self, trial: Trial) -> Record:
        """Return the record of a trial that several relations compare with; it runs once."""
        key = repr(trial)
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._kept:
                self._kept[key] = self.run(trial)
            return self._kept[key]

    def _start(self, trial: Trial, run_folder: Path, result: Path) -> list[Any]:
        # A started process would start its own (those of loaders) in the way in which it was started.
        method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
        port = _free_port() if trial.processes > 1 else 0
        children: list[Any] = []
        with _LOCK, _hash_seed("271828" if trial.changes_hash_seed else None):
            for rank in range(trial.processes):
                arguments = (self._source, trial, run_folder, result, rank, port, method)
                child = fresh_process(_run, *arguments, name="trial", by_copy=not trial.changes_hash_seed)
                child.start()
                children.append(child)
        return children


def _run(source: Source, trial: Trial, folder: Path, result: Path, rank: int, port: int, start_method: str) -> None:
    """Run a trial in this process, and leave its record in a file."""
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(1)  # Trials run side by side, and threads that wait for a core make them slow.
    os.setsid()  # So that its loading processes can be ended with it.
    output = os.open(f"{result}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if trial.processes > 1:
        size = str(trial.processes)
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ.update(ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        record = run_trial(source, trial, folder)
    except (Exception, SystemExit) as error:
        shown = "" if isinstance(error, ConfigError) else traceback.format_exc()
        record = Record(error=f"{type(error).__name__}: {error}", traceback=shown)
    if rank == 0:
        partial = result.with_suffix(".part")
        partial.write_bytes(pickle.dumps(record))
        partial.rename(result)


def _end(child: Any) -> None:
    """End a process and the processes that it has started."""
    if child.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()  # It may have had no group yet.
    child.join()


def _last_words(result: Path) -> str:
    """Return the last line that a process has printed which has left no result."""
    lines = [
        line for path in sorted(result.parent.glob(f"{result.name}.*.txt")) for line in path.read_text().split("\n")
    ]
    return next((line for line in reversed(lines) if line.strip()), "the process ended without a result")


@contextlib.contextmanager
def _hash_seed(seed: str | None) -> Any:
    """Context in which new interpreters have other hashes of strings, if a seed is given."""
    before = os.environ.get("PYTHONHASHSEED")
    if seed is not None:
        os.environ["PYTHONHASHSEED"] = seed
    try:
        yield
    finally:
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before
        elif seed is not None:
            del os.environ["PYTHONHASHSEED"]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_trial(source: Source, trial: Trial, folder: Path) -> Record:
    """Run a trial in this process and return its record. Call on every rank.

    Args:
        source: the program.
        trial: what to change.
        folder: where the run folder is; a trial in the same folder resumes.
    """
    trainer, model, datamodule = source.make()
    recorder = Recorder(trial, trainer, folder / f"weights_{os.getpid()}.pt")
    callbacks = [*(each for each in trainer.callbacks if not isinstance(each, Profile)), recorder]
    trainer = dataclasses.replace(trainer, **_options(trainer, trial, folder), callbacks=callbacks)
    if trial.loads_checkpoint:
        model = type(model).load_from_checkpoint(find(folder / _RUN / "checkpoints", model.save_name)[0])
        trainer.validate(model, datamodule, checkpoint=None)
        return recorder.record()
    try:
        trainer.fit(model, datamodule)
    except Enough:
        pass
    except Exception as error:  # What was recorded before it may explain it.
        text = traceback.format_exc()
        return dataclasses.replace(recorder.record(), error=f"{type(error).__name__}: {error}", traceback=text)
    return recorder.record()


def _options(trainer: Trainer, trial: Trial, folder: Path) -> dict[str, Any]:
    """Return the options of a trial: small epochs with a validation each, and nothing that is shown or not kept."""
    is_endless = trainer.steps_per_epoch is not None
    options: dict[str, Any] = {
        "root": folder,
        "run_name": _RUN,
        "resume": "auto",
        "fast_dev_run": False,
        "max_epochs": None if trainer.max_epochs is None else max(trainer.max_epochs, trial.steps),
        "max_steps": trial.steps,
        "max_minutes": None,
        "steps_per_epoch": EPOCH_STEPS if is_endless else None,
        "limit_train_batches": None if is_endless else EPOCH_STEPS * trainer.accumulation_steps,
        "limit_valid_batches": 2,
        "overfit_batches": None,
        "valid_every_epochs": 1,
        "valid_every_steps": None,
        "patience": None,
        "verify_every_steps": None,
        "save_every_epochs": None,
        "save_every_steps": None,
        "save_every_minutes": None,
        "keep_last": 0,
        "keep_best": 0,
        "async_save": False,
        "devices": 1,
        "strategy": "ddp",
        "max_restarts": 0,
        "hang_minutes": None,
        "compile": False,
        "loggers": [],
        "log_level": "quiet",
        "progress": False,
        "print_banner": False,
    }
    if trial.keeps_length:
        names = ("max_epochs", "max_steps", "steps_per_epoch", "limit_train_batches")
        options |= {name: getattr(trainer, name) for name in names}
    return {**options, **trial.options}
