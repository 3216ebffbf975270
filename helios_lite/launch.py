"""Starting the processes of a run by torch elastic, and bringing back what comes of them."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from multiprocessing import active_children
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

import torch

from helios_lite.distributed import PARENT, World
from helios_lite.interrupts import Interrupts

Result = TypeVar("Result")
_INTERRUPTED = "interrupted"


def launch(function: Callable[..., Result], arguments: dict[str, Any], *, processes: int, max_restarts: int) -> Result:
    """Run a function in several new processes of this machine and return what rank 0 returns.

    Args:
        function: of the top level of a module; called with the arguments in every process.
        arguments: by name; all are sent to the processes.
        processes: how many.
        max_restarts: how often all are started again after one failed.

    Raises:
        TypeError: an argument cannot be sent; the message names the attribute.
        Exception: the first one that a process raised, with that process's traceback as its cause.
        RuntimeError: a process died without an exception.
        KeyboardInterrupt, SystemExit: after a signal, which the processes finish their update and save for.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name, value in arguments.items():
        require_picklable(value, name)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # A port that the operating system chooses.
        local_addr="localhost",
        max_restarts=max_restarts,
        monitor_interval=0.1,
    )
    with tempfile.TemporaryDirectory(prefix="helios_lite-") as folder, Interrupts() as interrupts:
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                threads = max(1, torch.get_num_threads() // processes)
                outcome["values"] = elastic_launch(config, _work)(function, arguments, folder, os.getpid(), threads)
            except BaseException as error:
                outcome["error"] = error

        # In a thread: elastic installs no signal handlers there, and so it is us who decide what a signal means.
        # What it and the spawner say of a failure is said better by the exception that we raise.
        noisy = [logging.getLogger(f"torch.{name}") for name in ("distributed.elastic", "multiprocessing.spawn")]
        levels = [noise.level for noise in noisy]
        for noise in noisy:
            noise.setLevel(logging.CRITICAL)
        thread = threading.Thread(target=run, name="elastic", daemon=True)
        thread.start()
        told = False
        try:
            while thread.is_alive():
                thread.join(0.1)
                if interrupts.received is not None and not told:
                    told = True
                    for child in active_children():
                        child.terminate()  # They finish their update and save; Ctrl-C may have reached them already.
        except BaseException:  # A second Ctrl-C.
            for child in active_children():
                child.kill()
            raise
        finally:
            for noise, level in zip(noisy, levels, strict=True):
                noise.setLevel(level)
        error = outcome.get("error")
        if isinstance(error, ChildFailedError):
            first, cause = _first_error(Path(folder), error)
            raise first from cause
        if error is not None:
            raise error
        result = outcome["values"][0]
        if isinstance(result, tuple) and result[:1] == (_INTERRUPTED,):
            interrupts.received = interrupts.received or signal.Signals(result[1])
        return result  # type: ignore[no-any-return]


class Interrupted(BaseException):
    """A run was interrupted by a signal and has saved its state; told to the process that launched it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class RemoteTraceback(Exception):
    """The traceback of an exception in another process, as text."""

    def __str__(self) -> str:
        """Return the text on lines of its own."""
        return f"\n{self.args[0]}"


def require_picklable(value: Any, name: str) -> None:
    """Raise a TypeError that names the attribute, if a value cannot be sent to another process."""
    try:
        ForkingPickler.dumps(value)
    except Exception as error:
        for part, item in getattr(value, "__dict__", {}).items():
            require_picklable(item, f"{name}.{part}")
        if isinstance(value, dict):
            for key, item in value.items():
                require_picklable(item, f"{name}[{key!r}]")
        if isinstance(value, list | tuple):
            for i, item in enumerate(value):
                require_picklable(item, f"{name}[{i}]")
        raise TypeError(f"{name} cannot be sent to another process: {error}") from error


def watch(world: World, interrupts: Interrupts) -> None:
    """Start a thread that ends this process if it is left alone.

    A process that was told to end (SIGTERM) finishes its update first. If that was because another one failed, its
    update may wait for the dead; and if the process that launched it is gone, nobody is there to tell it anything.
    Call on every rank.

    Args:
        world: the ranks.
        interrupts: what signals have come.
    """
    host, parent = socket.gethostname(), os.environ.get(PARENT)
    everybody = world.gather((host, os.getpid()))
    here = [pid for other, pid in everybody if other == host and pid != os.getpid()]

    def look() -> None:
        while True:
            time.sleep(0.5)
            told = interrupts.received is signal.SIGTERM
            if (told and not all(map(_is_alive, here))) or (parent is not None and os.getppid() != int(parent)):
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=look, name="watch", daemon=True).start()


def _work(function: Callable[..., Any], arguments: dict[str, Any], folder: str, parent: int, threads: int) -> Any:
    """Run in every process that elastic starts."""
    torch.set_num_threads(threads)
    os.environ[PARENT] = str(parent)
    rank = int(os.environ["RANK"])
    for path in Path(folder).glob(f"{rank}-*"):  # Of the attempt before a restart.
        path.unlink()
    try:
        return function(**arguments)
    except Interrupted as interrupted:
        return (_INTERRUPTED, interrupted.number)
    except BaseException as error:
        text = traceback.format_exc()
        try:
            content = pickle.dumps((error, text))
            pickle.loads(content)
        except Exception:
            content = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), text))
        path = Path(folder) / f"{rank}-{time.time_ns()}"
        path.with_suffix(".part").write_bytes(content)
        path.with_suffix(".part").rename(path)
        time.sleep(0.5)  # A process that was killed is to be noticed before those that miss it and fail for that.
        raise


def _first_error(folder: Path, failed: Any) -> tuple[BaseException, BaseException | None]:
    """Return what went wrong first, and its cause: ranks that lose a peer raise errors of their own right after."""
    rank, failure = failed.get_first_failure()
    files = sorted((path for path in folder.glob("*-*") if path.suffix == ""), key=lambda path: path.name.split("-")[1])
    if failure.exitcode < 0 or not files:
        how = f"killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else "gone"
        return RuntimeError(f"rank {rank} was {how} (exit status {failure.exitcode})"), None
    # The folder is private to this user and made by this call: what lies there was written by our own processes.
    error, text = pickle.loads(files[0].read_bytes())
    number = files[0].name.split("-")[0]
    return error, RemoteTraceback(f"in the process of rank {number}:\n{text}")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
