"""Kill trainings with SIGKILL at random moments and compare what they end with, bit for bit.

    python tests/kill.py 50 --num-workers 2

Every run is started, killed after a random time, and started again until it ends by itself; every second start is
killed as well. Then its checkpoint, rows of metrics and batches must equal those of a run that nobody killed.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import longrun
from toys import same

DEADLINE = 120.0
BALLAST = 4_000_000  # 16 MB, so that a good part of the time is spent in saving.


def start(root: Path, *options: str, pace: float = 0.05, ballast: int = BALLAST) -> subprocess.Popen[str]:
    """Start a training in a process (and a session) of its own."""
    command = [sys.executable, longrun.__file__, str(root), "--pace", str(pace), "--ballast", str(ballast), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_step(process: subprocess.Popen[str], step: int = 1) -> None:
    """Read the process's output until it has done so many updates."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return
    raise AssertionError("the training ended first")


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Send a signal, wait, and return the exit status and what was printed on stderr."""
    process.send_signal(number)
    process.wait(DEADLINE)
    with contextlib.suppress(ProcessLookupError):  # Loading processes hold on to the pipes for some seconds.
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, errors


def finish(root: Path, *options: str) -> str:
    """Run a training to its end and return what it printed on stderr."""
    process = start(root, *options, pace=0.0)
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert "finished" in output
    return errors


def killed_and_finished(root: Path, seed: int, *options: str) -> tuple[dict[str, Any], int]:
    """Kill a training once or twice, finish it, and return its outcome and the number of kills that hit it."""
    chance = random.Random(seed)
    root.mkdir()
    kills = 0
    for _ in range(chance.choice((1, 2))):
        process = start(root, *options)
        try:
            wait_for_step(process)
            time.sleep(chance.uniform(0.0, 1.5))
        except AssertionError:
            pass  # It had little left to do; that is an outcome too.
        kills += end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    finish(root, *options)
    return longrun.outcome(root), kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = ["--num-workers", str(arguments.num_workers)]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        whole = Path(folder) / "whole"
        whole.mkdir()
        finish(whole, *options)
        expected = longrun.outcome(whole)
        runs = [
            pool.submit(killed_and_finished, Path(folder) / str(seed), seed, *options)
            for seed in range(arguments.seed, arguments.seed + arguments.count)
        ]
        different = total = 0
        for seed, run in enumerate(runs, start=arguments.seed):
            outcome, kills = run.result()
            equal = same(outcome, expected)
            different += not equal
            total += kills
            print(f"run {seed}: killed {kills} times, {'equal' if equal else 'DIFFERENT'}", flush=True)
    print(f"{arguments.count} runs, {total} kills, {different} different")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
