"""A model that gets into trouble on rank 1 when it is told to, and what its training leaves behind."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helios_lite import DataModule, Trainer
from helios_lite.processes.worker import WorkerInterrupted
from helios_lite.processes.world import PARENT, join_world
from helpers import models
from helpers.compare import saved
from helpers.models import Plain, Tiny, quiet

STEPS = 60


class Troubled(Tiny):
    """Notes every batch in a file of each rank; at one place rank 1 meets trouble while others may be asleep.

    Args:
        notes: an existing folder.
        trouble: what rank 1 does.
        place: "setup", "train_step" (the third) or "valid_step" (the last sanity batch).
        asleep: whether the other ranks sleep then.
        pace: seconds that a step takes at least.
    """

    def __init__(
        self,
        notes: Path,
        trouble: Callable[[], None] | None = None,
        place: str = "train_step",
        asleep: bool = False,
        pace: float = 0.0,
    ) -> None:
        super().__init__()
        self.notes, self.trouble, self.place, self.asleep, self.pace = notes, trouble, place, asleep, pace

    def setup(self, fast_init: bool = False) -> None:
        self.meet("setup")
        super().setup(fast_init)

    def train_step(self, batch: Any, state: Any) -> None:
        if state.step == 2:
            self.meet("train_step")
        super().train_step(batch, state)
        with (self.notes / f"batches-{self.global_rank}").open("a") as file:
            file.write(f"{state.batch} {batch[0].tolist()}\n")
        time.sleep(self.pace)

    def valid_step(self, batch: Any, step: int) -> None:
        self.meet("valid_step")
        super().valid_step(batch, step)

    def meet(self, place: str) -> None:
        if place != self.place or self.trouble is None:
            return
        if self.global_rank == 1:
            (self.notes / "trouble").touch()
            self.trouble()
        elif self.asleep:
            sleep()


class Early(Plain):
    """Has its network from the beginning, as a pretrained one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.early = nn.Linear(3, 1)

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(self.early)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.scheduler = None


def fail() -> None:
    raise ValueError("enough of this")


def fail_oddly() -> None:
    class Odd(Exception):  # Cannot be pickled: it has no name that another process could import.
        pass

    raise Odd("enough of this")


def leave() -> None:
    sys.exit(0)


def vanish() -> None:
    os._exit(3)


def vanish_as_if_done(*arguments: object) -> None:
    os._exit(0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_beside_a_thread() -> None:
    threading.Thread(target=sleep).start()
    fail()


# While a process is traced, only the one that traces it is told of its end.
TRACE = """
import ctypes, sys, time
assert ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), None, None) == 0  # PTRACE_SEIZE
print(flush=True)
time.sleep(0.3)
"""


def die_slowly() -> None:
    """Others see the end of the connections first, as while a driver still frees the memory of a device."""
    ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER
    process = subprocess.Popen([sys.executable, "-c", TRACE, str(os.getpid())], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)
    die()


def die_once() -> None:
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_parent() -> None:
    os.kill(int(os.environ[PARENT]), signal.SIGTERM)


def kill_server() -> None:
    """A process of a fork server has it for its parent."""
    os.kill(os.getppid(), signal.SIGKILL)


def kill_server_and_terminate_parent() -> None:
    kill_server()
    terminate_parent()


def be_interrupted_alone() -> None:
    """Rank 0 has ended after a signal of which the others know nothing."""
    world = join_world("cpu")
    world.barrier()
    if world.is_main:
        raise WorkerInterrupted(signal.SIGTERM)
    sleep()


def vanish_together() -> None:
    join_world("cpu").barrier()
    vanish_as_if_done()


def sleep(*arguments: object) -> None:
    time.sleep(1000)


def data(batch_size: int = 2, **options: Any) -> DataModule:
    return models.data(train=23, valid=5, batch_size=batch_size, **options)


def trainer(root: Path | None, **options: Any) -> Trainer:
    return quiet(**{"root": root, "accelerator": "cpu", "max_steps": STEPS, "save_every_steps": 2, **options})


def outcome(root: Path) -> dict[str, Any]:
    """What a run has left behind that must not depend on who started or stopped it."""
    return saved(root / "tiny", "state", "model", "ranks")
