"""Send signals to the processes of a call at random moments, and compare how it ends with docs/interruptions.md.

    python tests/signals.py 100            # a hundred trials
    python tests/signals.py 20 --seed 7    # others

A trial starts a program (signalled.py) and sends one signal to one of (the caller, a rank, a loading process, the whole
group, the resource tracker) at a moment between its first line and its end. The exit status must be that of the table
for the place at which it was, and afterwards no process, no temporary folder, and no traceback is left; a training that
has saved goes on. The exit status of this program is 0 if every trial ended so.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
    sent = send(trial, process)
    after = place_of(folder)
    try:
        _, errors = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        found = f"it hangs in {place_of(folder)}, status {process.poll()}, processes {alive()} beside {process.pid}"
        os.killpg(process.pid, signal.SIGKILL)
        return before, found
    where = f"{before}..{after}" if before != after else before
    if not sent:
        return where, "" if process.returncode == 0 else f"status {process.returncode} without a signal: {errors}"
    allowed = expected(trial, before) | expected(trial, after)
    if process.returncode not in allowed:
        return where, f"status {process.returncode} and not one of {sorted(allowed)}: {errors[-1500:]}"
    return where, wrong(trial, folder, process, errors, before)


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


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists() or not path.read_text().endswith("\n"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def prepared(call: str, folder: Path) -> None:
    """What other calls than `fit` need: a run."""
    if call != "fit":
        scripts.run(PROGRAM, folder, "fit", 1)
        (folder / "places").unlink()


def seconds_of(call: str, devices: int) -> float:
    """Return how long a call takes that nobody interrupts."""
    with tempfile.TemporaryDirectory() as name:
        prepared(call, Path(name))
        start = time.monotonic()
        scripts.run(PROGRAM, name, call, devices)
        return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many seconds")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell lets what it starts with "&" ignore it.
    started, times, results, done = time.monotonic(), dict[tuple[str, int], float](), Counter[str](), 0
    for seed in range(arguments.seed, arguments.seed + arguments.trials):
        if time.monotonic() - started > arguments.seconds:
            break
        trial = Trial.random(seed)
        if (trial.call, trial.devices) not in times:
            times[trial.call, trial.devices] = seconds_of(trial.call, trial.devices)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            prepared(trial.call, Path(name))
            where, found = run(trial, Path(name), 1.2 * times[trial.call, trial.devices])
        done += 1
        results[found[:40]] += 1
        if found:
            print(f"{seed}: {trial}\n    at {where!r}: {found}", flush=True)
    wrong_ones = sum(count for found, count in results.items() if found)
    print(f"{wrong_ones} of {done} trials ended wrongly", flush=True)
    sys.exit(wrong_ones > 0)


if __name__ == "__main__":
    main()
