"""Send signals to the processes of a call at random moments, and compare how it ends with docs/interruptions.md.

    python tests/signals.py 100            # a hundred trials, four at a time, since they mostly wait
    python tests/signals.py 20 --seed 7    # others

A trial starts a program (signalled.py) and sends one signal to one of (the caller, a rank, a loading process, the whole
group, the resource tracker) at a moment between its first line and its end. The exit status must be that of the table
for the place at which it was, and afterwards no process, no temporary folder, and no traceback is left; a training that
has saved goes on. Of one that hangs the stacks of all its processes are shown.

The exit status of this program is 0 if every trial ended so.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from pathlib import Path

from helpers import scripts
from helpers.processes import DEADLINE, alive, parent_of

from helios_lite.checkpoints import naming

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TARGETS = ("caller", "rank", "worker", "group", "tracker")
CALLS = ("fit", "test", "predict", "replay")
PROGRAM = Path(__file__).parent / "signalled.py"


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is sent to which process of which call, and when: after so much of the time that the call takes."""

    call: str
    devices: int
    target: str
    number: signal.Signals
    moment: float
    sigusr1: str = "save"

    @classmethod
    def random(cls, seed: int) -> "Trial":
        chance = random.Random(seed)
        devices = chance.choice((1, 2))
        targets = [each for each in TARGETS if devices == 2 or each not in ("rank", "tracker")]
        call = chance.choice(("fit", "fit", "fit", *CALLS))
        sigusr1 = chance.choice(("save", "save", "stop"))
        return cls(call, devices, chance.choice(targets), chance.choice(SIGNALS), chance.random(), sigusr1)


def expected(trial: Trial, place: str) -> set[int]:
    """The exit statuses that the table allows at a place."""
    number = trial.number
    ended = {-signal.SIGINT, 130} if number == signal.SIGINT else {128 + number}
    stops = number != signal.SIGUSR1 or trial.sigusr1 == "stop"
    if trial.target == "tracker":
        return {0}
    if trial.target == "worker":  # Whether it still needs the loading process is not known.
        return {0, 1} if number == signal.SIGTERM else {0}
    if trial.target == "rank":
        is_last = place in ("ending", "after") or trial.call != "fit"  # In which it may have done its part already.
        return ended | ({0} if is_last else set()) if stops else {0}
    if place in ("program", "after"):
        return {-number, *({0} if place == "after" else set())}
    return ended if stops else {0}


def run(trial: Trial, folder: Path, seconds: float) -> tuple[str, str]:
    """Do a trial; return where the program was, and what was wrong, empty if nothing was."""
    environment = {"SIGUSR1": trial.sigusr1, "TMPDIR": str(folder / "tmp"), "CUDA_VISIBLE_DEVICES": ""}
    if not (folder / "tmp").exists():
        (folder / "tmp").mkdir()
    program = (PROGRAM, folder, trial.call, trial.devices)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, "env": environment}
    process = scripts.start(*program, **output)
    wait_for(folder / "places", process)
    limit = time.monotonic() + trial.moment * seconds
    while time.monotonic() < limit and process.poll() is None:
        time.sleep(0.005)
    before = place_of(folder)
    if before != "after" and not handles(process.pid, signal.SIGUSR1):
        before = "program"  # The call has said so, and not begun, or ended, and not said so.
    sent = send(trial, process)
    after = place_of(folder)
    try:
        _, errors = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        found = f"it hangs in {place_of(folder)}, status {process.poll()}, processes {alive()} beside {process.pid}"
        return before, f"{found}: {stacks_and_end(process)}"
    where = f"{before}..{after}" if before != after else before
    if not sent:
        return where, "" if process.returncode == 0 else f"status {process.returncode} without a signal: {errors}"
    allowed = expected(trial, before) | expected(trial, after)
    if process.returncode not in allowed:
        return where, f"status {process.returncode} and not one of {sorted(allowed)}: {errors[-1500:]}"
    return where, wrong(trial, folder, process, errors, before)


def stacks_and_end(process: "subprocess.Popen[str]") -> str:
    """Kill a program that hangs, and return where the threads of its processes stood."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(ProcessLookupError):
            if group_of(pid) == process.pid and handles(pid, signal.SIGUSR2):  # It shows its stacks.
                os.kill(pid, signal.SIGUSR2)
                time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    return "\n".join(process.communicate())


def wrong(trial: Trial, folder: Path, process: "subprocess.Popen[str]", errors: str, place: str) -> str:
    """Return what a trial has left that it should not, empty if nothing."""
    limit = time.monotonic() + 10 * scripts.SLOWNESS
    while alive() and time.monotonic() < limit:
        time.sleep(0.05)
    if left := alive():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"processes are left: {left}"
    if place not in ("program", "after") and any((folder / "tmp").glob("helios_lite-*")):
        return "a temporary folder is left"
    if place not in ("program", "after") and process.returncode != 1 and "Traceback" in errors:
        lines = [line for line in errors.splitlines() if "helios_lite/helios_lite" in line or "multiprocessing" in line]
        if lines or trial.number != signal.SIGINT:
            return f"a traceback is printed: {errors[-1500:]}"
    if place != "after" and ("died unexpectedly" in errors or "Exception ignored" in errors):
        return f"it warns: {errors[-1500:]}"
    status = folder / "tiny/status.json"
    if trial.call == "fit" and status.exists() and place not in ("program", "after"):
        found = json.loads(status.read_text())["exit_status"]
        if found != (130 if process.returncode == -signal.SIGINT else process.returncode):
            return f"status.json has {found}, and the status is {process.returncode}"
    if trial.call == "fit" and process.returncode not in (0, 1) and place.startswith("step"):
        steps = int((folder / "places").read_text().split("step ")[-1].split()[0])
        newest = next(iter(naming.find(folder / "tiny/checkpoints", "tiny")), None)
        at = None if newest is None else naming.counters(newest.name, "tiny")
        if at is None or at[0] != steps:
            return f"{newest} is not that of step {steps}"
    return ""


def send(trial: Trial, process: "subprocess.Popen[str]") -> bool:
    """Send the signal; return whether there was such a process."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
        if process.poll() is not None:
            return False
        if trial.target == "group":
            os.killpg(process.pid, trial.number)
            return True
        found = chosen(trial, process.pid)
        if found is not None:
            os.kill(found, trial.number)
            return True
    return False


def chosen(trial: Trial, caller: int) -> int | None:
    """Return the process that the signal is sent to, None if there is none at this moment."""
    if trial.target == "caller":
        return caller
    children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != caller]
    of_group = [pid for pid in children if group_of(pid) == caller]
    parents = {pid: parent_of(pid) for pid in of_group}
    commands = {pid: command_of(pid) for pid in of_group}
    if trial.target == "tracker":
        return next((pid for pid in of_group if "resource_tracker" in commands[pid]), None)
    # The server of ranks is the only other child that has children. It is a copy of that of the programs of tests.
    servers = [pid for pid in of_group if parents[pid] == caller and "tracker" not in commands[pid]]
    ranks = [pid for pid in of_group if parents[pid] in servers] if trial.devices > 1 else [caller]
    if trial.target == "rank":
        return max(ranks, default=None)
    return max((pid for pid in of_group if parents[pid] in ranks and "tracker" not in commands[pid]), default=None)


def group_of(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


def command_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def place_of(folder: Path) -> str:
    """Return where the program is, as it has said last."""
    return (folder / "places").read_text().splitlines()[-1]


def handles(process: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        found = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
        return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)
    return False


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists() or not path.read_text().endswith("\n"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def seconds_of(run_folder: Path, kind: tuple[str, int]) -> float:
    """Return how long a call takes that nobody interrupts; others than `fit` need a run."""
    call, devices = kind
    with tempfile.TemporaryDirectory() as name:
        if call != "fit":
            shutil.copytree(run_folder, name, dirs_exist_ok=True)
        start = time.monotonic()
        scripts.run(PROGRAM, name, call, devices)
        return time.monotonic() - start


def tried(run_folder: Path, times: dict[tuple[str, int], float], until: float, seed: int) -> tuple[int, str | None]:
    """Do the trial of a seed; return the seed, and what was wrong, empty if nothing was; None if it is too late."""
    if time.monotonic() > until:
        return seed, None
    trial = Trial.random(seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if trial.call != "fit":
            shutil.copytree(run_folder, name, dirs_exist_ok=True)
        try:
            where, found = run(trial, Path(name), 1.2 * times[trial.call, trial.devices])
        except Exception:
            where, found = "", traceback.format_exc()
    return seed, found and f"{trial}\n    at {where!r}: {found}"


def begin() -> None:
    """Begin a process of this program: its trials have a mark of their own, by which it knows what they have left."""
    os.environ["TEST_MARK"] = uuid.uuid4().hex
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell lets what it starts with "&" ignore it.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin none after so many seconds")
    parser.add_argument("--at-once", type=int, default=4, help="how many are done at a time")
    arguments = parser.parse_args()
    until, wrong_ones, done = time.monotonic() + arguments.seconds, list[int](), 0
    kinds = [(call, devices) for call in CALLS for devices in (1, 2)]
    seeds = range(arguments.seed, arguments.seed + arguments.trials)
    begin()
    with tempfile.TemporaryDirectory() as name:
        scripts.run(PROGRAM, name, "fit", 1)  # By a server that is that of all processes of the pool.
        (Path(name) / "places").unlink()
        with multiprocessing.get_context("fork").Pool(arguments.at_once, begin) as pool:
            times = dict(zip(kinds, pool.map(functools.partial(seconds_of, Path(name)), kinds, 1), strict=True))
            for seed, found in pool.imap_unordered(functools.partial(tried, Path(name), times, until), seeds):
                done += found is not None
                if found:
                    wrong_ones.append(seed)
                    print(f"{seed}: {found}", flush=True)
    print(f"{len(wrong_ones)} of {done} trials ended wrongly {wrong_ones or ''}", flush=True)
    sys.exit(len(wrong_ones) > 0)


if __name__ == "__main__":
    main()
