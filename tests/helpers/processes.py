"""Trainings in processes of their own: started, watched, killed and finished."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helios_lite.processes.peers import is_alive
from helpers import resumable, scripts
from helpers.scripts import DEADLINE, SLOWNESS

TESTS = Path(__file__).parents[1]
BALLAST = 4_000_000  # 16 MB, so that a good part of the time is spent in saving.


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError if a block takes longer: processes that wait for each other for ever wait for a human.

    Args:
        seconds: the limit on a quick machine.
    """

    def give_up(number: int, frame: Any) -> None:
        raise TimeoutError("a process waits for ever")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(seconds * SLOWNESS))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def alive() -> dict[int, str]:
    """The command lines of the processes with our TEST_MARK, which tests have started, by process.

    Those that stay as long as pytest are not among them: its fork server and resource tracker.
    """

    def is_marked(file: Path) -> bool:
        return file.is_symlink() and os.environ["TEST_MARK"] in os.readlink(file)

    mark, found = f"TEST_MARK={os.environ['TEST_MARK']}".encode(), {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (path / "cmdline").read_text().replace("\0", " ")
            is_ours = mark in (path / "environ").read_bytes() or is_marked(path / f"fd/{scripts.MARK}")
            is_server = "forkserver" in command and parent_of(int(path.name)) == os.getpid()
            if is_ours and not is_server and "resource_tracker" not in command:
                found[int(path.name)] = command
    return {pid: command for pid, command in found.items() if command}


def parent_of(process: int) -> int:
    """Return the parent of a process, 0 if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def kill_group(group: int) -> None:
    """Kill all processes of a group, and wait until they have ended: until then they hold their locks."""
    members = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _group_of(pid) == group]
    os.killpg(group, signal.SIGKILL)
    while any(map(is_alive, members)):
        time.sleep(0.01)


def _group_of(process: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(process)
    return None


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program that is given as text."""
    return scripts.run("-c", program, *arguments, check=False)


def start(
    root: Path, *options: str, pace: float = 0.05, ballast: int = BALLAST, new_interpreter: bool = False
) -> subprocess.Popen[str]:
    """Start a training in a process (and a session) of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = (TESTS / "longrun.py", root, *options, "--pace", pace, "--ballast", ballast)
    return scripts.start(*program, **pipes, start_new_session=True, new_interpreter=new_interpreter)


def launched(*arguments: object, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start launched.py in a process group of its own."""
    program = (*by, TESTS / "launched.py", *arguments)
    options = {"stderr": subprocess.PIPE, "start_new_session": True}
    return scripts.start(*program, **options)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file exists that a process makes."""
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.05)


def wait_for_step(process: subprocess.Popen[str], step: int = 1) -> None:
    """Read the process's output until it has done so many steps."""
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


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a training has launched, none if it trains in its own."""
    started = alive()
    servers = [pid for pid in started if parent_of(pid) == process.pid]
    return [pid for pid in started if parent_of(pid) in servers]


def kill_one_or_all(process: subprocess.Popen[str], chance: random.Random) -> bool:
    """Kill one rank of a training, if it has several, or all of it; return whether that has ended it."""
    launched = ranks(process)
    if launched and chance.random() < 0.5:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(launched), signal.SIGKILL)
        process.communicate(timeout=DEADLINE)
        return process.returncode != 0
    return end(process, signal.SIGKILL)[0] == -signal.SIGKILL


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
        kills += kill_one_or_all(process, chance)
    finish(root, *options)
    return resumable.outcome(root), kills
