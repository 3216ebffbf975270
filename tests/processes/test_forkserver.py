"""Launched processes begin as copies of a process that has imported PyTorch, and differ in nothing from new ones."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from helpers import scripts
from helpers.processes import DEADLINE, deadline

from helios_lite.processes.forkserver import fresh_process
from helios_lite.processes.signals import GracefulShutdown

PROGRAM = """
import sys
torch_was_there = "torch._dynamo" in sys.modules
import atexit, json, multiprocessing, os, pathlib, signal
import numpy, random, torch
DRAWN = [random.random(), numpy.random.rand(), torch.rand(()).item()]
START = {name: os.environ.get(name) for name in ("KEPT", "CHANGED", "GONE", "LATE", "PYTHONPATH", "PYTHONSAFEPATH")}
from helios_lite.processes.launch import launch

def look(number):
    import helios_lite
    sys.modules["__main__"].left_open = open(f"open_{number}", "w")
    sys.modules["__main__"].left_open.write("all of it")
    atexit.register(pathlib.Path(f"exit_{number}").touch)
    os.write(2, b"printed\\n")
    pathlib.Path(f"new_{number}").touch()
    return {
        "package": helios_lite.__file__,
        "start": START,
        "drawn": DRAWN,
        "torch_was_there": torch_was_there,
        "folder": os.getcwd(),
        "threads": torch.get_num_threads(),
        "start_method": multiprocessing.get_start_method(),
        "arguments": sys.argv[1:],
        "rank": os.environ["RANK"],
        "mode": pathlib.Path(f"new_{number}").stat().st_mode & 0o777,
        "parent": os.getppid() == multiprocessing.parent_process().pid,
    }

if __name__ == "__main__":
    os.umask(0o022)
    found = [launch(look, {"number": 0}, processes=1, max_restarts=0)]
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    os.environ["CHANGED"] = "2"
    del os.environ["GONE"]
    os.mkdir("other")
    os.chdir("other")
    os.environ["LATE"] = "1"
    found.append(launch(look, {"number": 1}, processes=1, max_restarts=0))
    del os.environ["LATE"]  # The server still has it.
    again = launch(look, {"number": 1}, processes=1, max_restarts=0)
    found[-1]["drawn"] += again["drawn"]
    found[-1]["start again"] = again["start"]
    os.umask(0o077)
    found.append(launch(look, {"number": 2}, processes=1, max_restarts=0))
    with multiprocessing.get_context("forkserver").Pool(1) as pool:  # Of the program itself.
        paths = [os.getenv("PYTHONPATH"), *pool.map(os.getenv, ["PYTHONPATH", "PYTHONSAFEPATH"])]
    print(json.dumps([found, paths, multiprocessing.get_start_method()]))
"""


def test_launched_processes_are_as_new_interpreters_but_import_nothing_anew(tmp_path: Path) -> None:
    """Also after the process was killed that they begin as copies of."""
    # Beside the program are the packages; where it is started others have their names.
    (tmp_path / "program").mkdir()
    (tmp_path / "program/program.py").write_text(PROGRAM)
    package = Path(sys.modules["helios_lite"].__file__ or "").parent
    (tmp_path / "program/helios_lite").symlink_to(package)
    for name in ("helios_lite", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    variables = {**os.environ, "KEPT": "1", "CHANGED": "1", "GONE": "1"}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "program/program.py", "a", "b"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "printed\n" * 4
    (first, second, third), paths, method = json.loads(done.stdout)
    drawn = [number for one in (first, second, third) for number in one.pop("drawn")]
    assert len({*drawn}) == 4 * 3
    unset = {"PYTHONPATH": None, "PYTHONSAFEPATH": None}
    assert paths == [None, None, None]
    assert first == {
        "package": str(tmp_path / "program/helios_lite/__init__.py"),
        "start": {"KEPT": "1", "CHANGED": "1", "GONE": "1", "LATE": None, **unset},
        "torch_was_there": True,
        "folder": str(tmp_path),
        "threads": 1,
        "start_method": method,
        "arguments": ["a", "b"],
        "rank": "0",
        "mode": 0o644,
        "parent": False,
    }
    folder = str(tmp_path / "other")
    start = {"KEPT": "1", "CHANGED": "2", "GONE": None, "LATE": None, **unset}
    assert second.pop("start again") == start
    assert second == {**first, "start": {**start, "LATE": "1"}, "folder": folder}
    # Those that begin with other rights of files are no copies.
    assert third == {**second, "start": start, "torch_was_there": False, "mode": 0o600, "parent": True}
    for number, place in enumerate(["", "other", "other"]):
        assert (tmp_path / place / f"open_{number}").read_text() == "all of it"
        assert (tmp_path / place / f"exit_{number}").exists()


OWN = """
import multiprocessing, os, sys

def look():
    return "json.tool" in sys.modules, os.getppid() == multiprocessing.parent_process().pid

if __name__ == "__main__":
    from helios_lite.processes.launch import launch
    context = multiprocessing.get_context("forkserver")
    if sys.argv[1] == "prepared":
        context.set_forkserver_preload(["json.tool"])
    else:
        context.Pool(1)
    print(launch(look, {}, processes=1, max_restarts=0))
    with context.Pool(1) as pool:
        print(pool.apply(look))
"""


@pytest.mark.parametrize("server", ["prepared", "started"])
def test_a_fork_server_of_the_program_is_left_alone(tmp_path: Path, server: str) -> None:
    (tmp_path / "program.py").write_text(OWN)
    done = scripts.run("program.py", server, cwd=tmp_path)
    assert done.stdout == f"(False, True)\n({server == 'prepared'}, False)\n"


def leave(status: int) -> None:
    raise SystemExit(status)


def launch_from_here(status: int) -> None:
    process = fresh_process(leave, status, name="inner")
    process.start()
    process.join()
    raise SystemExit(process.exitcode)


def test_a_process_that_was_forked_launches_as_its_parent_does() -> None:
    outer = multiprocessing.get_context("fork").Process(target=launch_from_here, args=(7,))
    with deadline(60):
        for process in (fresh_process(leave, 7, name="first"), outer):
            process.start()
            process.join()
            assert process.exitcode == 7


def do_a_call() -> None:
    with GracefulShutdown(is_worker=True, stops_on_usr1=True).at_once():
        time.sleep(100)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -2), (signal.SIGTERM, -15), (signal.SIGUSR1, 138)])
def test_a_signal_in_the_first_moment_of_a_process_ends_it(
    monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("SIGINT is ignored here, as in the background, and so by a copy of the server at first")
    real: Any = forkserver.read_signed

    def signalled(fd: int) -> Any:
        pid = real(fd)
        os.kill(pid, number)  # It waits to be told what it is.
        return pid

    process = fresh_process(do_a_call, name="signalled")
    with monkeypatch.context() as patch, deadline(60):
        patch.setattr(forkserver, "read_signed", signalled)
        process.start()
        patch.undo()
        process.join()
    assert process.exitcode == status


class Blocked:
    """Where it is sent, it is the set of the signals that are held back there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return signal.pthread_sigmask, (signal.SIG_BLOCK, ())


def check_empty(blocked: Any) -> None:
    assert blocked == set()


def test_a_process_holds_no_signal_back_when_it_imports_the_program() -> None:
    """What is started then would do so for ever."""
    process = fresh_process(check_empty, Blocked(), name="importing")
    with deadline(60):
        process.start()
        process.join()
    assert process.exitcode == 0
