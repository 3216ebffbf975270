"""Trainings whose stdout and stderr cannot be written to, or are unusual: random trials, and what each must end with.

Also the program of a trial: `python outputs.py FOLDER TRIAL` makes its own stdout and stderr what the trial says,
trains, and ends as the trial says.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pty
import random
import re
import signal
import sys
import threading
import time
import tty
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from helios_lite import DataModule, Split, Trainer
from helios_lite.checkpoints import files, naming
from helpers import scripts
from helpers.models import Tiny

WRITABLE = ("file", "terminal", "object")
FILES = ("broken", "breaks", "terminal breaks", "full")
UNWRITABLE = (*FILES, "closed", "none", "taken", "failing object", "closed object")
ENDINGS = {"end": 0, "SIGINT": -signal.SIGINT, "SIGTERM": 143, "error": 1, "hang": 1}
"""The exit status that each way to end has."""
STEPS = 5


@dataclasses.dataclass(frozen=True)
class Trial:
    """A training.

    Attributes:
        stdout, stderr: what they are, one of WRITABLE or UNWRITABLE. "breaks" does so when the training ends; "taken"
            was closed, and another file has got its number.
        shares: whether stderr is the file of stdout, as after `2>&1`.
        progress, banner: the options.
        prints: whether steps print on both, in every process.
        logs: whether the program has configured logging itself.
        workers: the number of processes that load data, and print.
        devices: the number of ranks.
        ending: one of ENDINGS.
        step: in which it ends so.
        new_interpreter: whether Python itself is started.
    """

    stdout: str
    stderr: str
    shares: bool
    progress: bool
    banner: bool
    prints: bool
    logs: bool
    workers: int
    devices: int
    ending: str
    step: int
    new_interpreter: bool = False


def make_trial(seed: int, number: int) -> Trial:
    """Return a trial of a series."""
    chance = random.Random(f"{seed} {number}")
    ending = chance.choice(list(ENDINGS))
    devices = 2 if chance.random() < 0.1 and ending != "hang" else 1
    # Ranks inherit what has the number.
    states = [state for state in WRITABLE + 2 * UNWRITABLE if devices == 1 or state != "taken"]
    stdout = chance.choice(states)
    return Trial(
        stdout=stdout,
        stderr=chance.choice(states),
        shares=chance.random() < 0.3 and stdout in FILES,
        progress=chance.random() < 0.7,
        banner=chance.random() < 0.7,
        prints=chance.random() < 0.6,
        logs=chance.random() < 0.2,
        workers=int(chance.random() < 0.15),
        devices=devices,
        ending=ending,
        step=chance.randrange(2, STEPS),
        new_interpreter=chance.random() < 0.05,
    )


def problem(trial: Trial, folder: Path) -> str | None:
    """Do a trial in an empty folder, and return what is wrong with its end; None if it is as it must be."""
    program = (__file__, folder, json.dumps(dataclasses.asdict(trial)))
    done = scripts.run(*program, check=False, new_interpreter=trial.new_interpreter)
    # Python cannot print the traceback of an error, when the call has ended.
    if done.returncode != ENDINGS[trial.ending] and (trial.ending, done.returncode) != ("error", 120):
        return f"exit status {done.returncode}: {done.stdout} {done.stderr} {_text(folder / 'tiny/train.log')[-800:]}"
    saved = naming.find(folder / "tiny/checkpoints", "tiny")
    expected = {"end": STEPS, "error": None, "hang": None}.get(trial.ending, trial.step)
    found = files.read_file(saved[0])["state"]["step"] if saved else None
    is_later = trial.devices > 1 and None not in (found, expected) and expected <= found  # When the others know of it.
    if found != expected and not is_later:
        return f"the last checkpoint is that of step {found} and not of step {expected}"
    try:
        [json.loads(line) for line in _text(folder / "tiny/metrics.jsonl").splitlines()]
    except ValueError:
        return "metrics.jsonl has other text than rows"
    # Python prints there, when the call has ended, and so do handlers of the program.
    taken = "".join(_text(folder / f"taken {number}") for number in (1, 2))
    if any(text in taken for text in ("finishing the step", "printed", "stopped by", "helios_lite 0")):
        return "the file that has got the number of stdout or stderr has other text"
    log = _text(folder / "tiny/train.log")
    if "printed" in log or "finishing the step" in log:
        return "train.log has what was printed"
    for name, state in (("stdout", trial.stdout), ("stderr", trial.stdout if trial.shares else trial.stderr)):
        count = len(re.findall(rf" {name} cannot be written to \(", log))
        # Ranks inherit files, and no objects. What was closed is nothing for them.
        is_seen = trial.devices == 1 or state in FILES
        is_seen &= trial.workers == 0 or "breaks" not in state  # They have inherited what would have been closed.
        is_least = trial.prints and state in UNWRITABLE and is_seen and trial.ending not in ("hang", "error")
        if count > 1 or count < is_least or (count and state not in UNWRITABLE):
            return f"train.log says {count} times that {name} ({state}) cannot be written to"
    return None


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# The program.


class Printing(Dataset[Any]):
    """Says in a loading process which sample it reads."""

    def __len__(self) -> int:
        return 2 * STEPS

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        if torch.utils.data.get_worker_info() is not None:
            print("printed by a worker", flush=True)
        return index, torch.ones(3)


class Ending(Tiny):
    """Ends as a trial says."""

    def __init__(self, folder: Path, trial: Trial) -> None:
        super().__init__()
        self.folder, self.trial = folder, trial

    def train_step(self, batch: Any, state: Any) -> None:
        if state.step + 1 == self.trial.step:
            (self.folder / f"broken {self.global_rank}").touch()
            while not (self.folder / "is broken").exists():
                time.sleep(0.002)
        if self.trial.prints:
            print("printed by a step", flush=state.step % 2 == 0)
            print("printed by a step", file=sys.stderr)
        super().train_step(batch, state)
        if state.step + 1 == self.trial.step and self.global_rank == self.trial.devices - 1:
            if self.trial.ending == "error":
                raise ValueError("enough of this")
            if self.trial.ending == "hang":
                time.sleep(1000)
            if self.trial.ending != "end":
                os.kill(os.getpid(), signal.Signals[self.trial.ending])


class Object:
    """What people put in place of sys.stdout. One that fails does so from the second text on."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.count = fails, 0

    def write(self, text: str) -> None:
        self.count += 1
        if self.fails and self.count > 1:
            raise RuntimeError("this object is full")

    def flush(self) -> None:
        pass


def become(number: int, state: str, folder: Path) -> list[int]:
    """Make stdout or stderr what a trial says; return the files that are to be closed when it breaks."""
    name = ("", "stdout", "stderr")[number]
    if "object" in state:
        if state == "closed object":
            getattr(sys, name).close()
        else:
            setattr(sys, name, Object(state == "failing object"))
        return []
    if state in ("closed", "none"):
        os.close(number)
        if state == "none":
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
        return []
    if state == "taken":
        with (folder / f"taken {number}").open("w") as file:
            os.dup2(file.fileno(), number, inheritable=False)  # As Python opens files.
        return []
    reader = None
    if state == "file":
        writer = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
    elif state == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    elif "terminal" in state:
        reader, writer = pty.openpty()
        tty.setraw(writer)
    else:
        reader, writer = os.pipe()
    os.dup2(writer, number)
    os.close(writer)
    stream = open(number, "w", buffering=1 if number == 2 else -1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)
    if reader is None:
        return []
    if state == "broken":
        os.close(reader)
        return []
    os.set_blocking(reader, False)
    return [reader]


def read(folder: Path, readers: list[int], breaking: list[int], ranks: int) -> None:
    """Read what is written, and break what breaks when the ranks have come so far."""
    while True:
        for reader in readers:
            with contextlib.suppress(OSError):
                os.read(reader, 100_000)
        if not (folder / "is broken").exists() and all((folder / f"broken {rank}").exists() for rank in range(ranks)):
            for reader in breaking:
                os.close(reader)
                readers.remove(reader)
            (folder / "is broken").touch()
        time.sleep(0.002)


def main() -> None:
    folder, trial = Path(sys.argv[1]), Trial(**json.loads(sys.argv[2]))
    torch.set_num_threads(1)
    states, readers = {1: trial.stdout, 2: trial.stderr}, dict[int, list[int]]()
    # What is closed comes last, so that no other file gets its number.
    for number in sorted(states, key=lambda number: states[number] in ("closed", "none", "taken")):
        readers[number] = [] if trial.shares and number == 2 else become(number, states[number], folder)
    if trial.shares:
        os.dup2(1, 2)
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    breaking = [reader for number in (1, 2) for reader in readers[number] if "breaks" in states[number]]
    arguments = (folder, readers[1] + readers[2], breaking, trial.devices)
    threading.Thread(target=read, args=arguments, daemon=True).start()
    if trial.logs:
        logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    trainer = Trainer(
        root=folder,
        max_steps=STEPS,
        save_every_epochs=None,
        log_every_steps=1,
        progress=trial.progress,
        print_banner=trial.banner,
        devices=trial.devices,
        accelerator="cpu",
        hang_minutes=0.01 if trial.ending == "hang" else None,
    )
    split = Split(Printing(), batch_size=2 // trial.devices, num_workers=trial.workers)
    trainer.fit(Ending(folder, trial), DataModule(train=split))


if __name__ == "__main__":
    main()
