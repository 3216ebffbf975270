"""Trouble of one rank in the methods of the user's: the run ends soon with that rank's error, and nobody stays.

A sample; `python tests/attack.py` does all.
"""

import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import attacked, scripts, troubled
from helpers.attacked import Attack, prepare, verdict
from helpers.processes import DEADLINE, SLOWNESS, deadline, launched, run_python, wait_for
from helpers.troubled import outcome

from helios_lite.processes import rank_watch
from helios_lite.processes.launch import launch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "run"
    prepare(folder)
    return folder


@pytest.mark.parametrize(
    ("place", "trouble", "rank", "num_workers"),
    [
        ("AttackedData.setup", "vanish_as_if_done", 0, 0),
        ("AttackedModel.load_state_dict", "die", 1, 0),
        ("AttackedDataset.__getitem__", "fail", 1, 1),
        ("AttackedModel.train_step", "stop", 1, 0),
        ("AttackedCallback.state_dict", "leave", 1, 0),
        ("AttackedModel.on_validation_end", "vanish", 1, 0),
        ("AttackedModel.on_training_end", "terminate", 0, 0),
        ("AttackedLogger.close", "vanish_as_if_done", 0, 0),
        ("AttackedData.teardown", "fail", 1, 0),
        ("AttackedData.teardown", "abort", 1, 0),
        ("AttackedData.teardown", "terminate", 0, 0),
        ("AttackedModel.test_step", "vanish_as_if_done", 1, 0),
    ],
)
def test_trouble_ends_the_run_within_ten_seconds_with_the_error_of_its_rank(
    tmp_path: Path,
    prepared: Path,
    place: str,
    trouble: str,
    rank: int,
    num_workers: int,
) -> None:
    with deadline(60):
        assert verdict(place, trouble, rank, tmp_path / "run", prepared, num_workers) == ""


def test_the_list_of_places_is_complete(tmp_path: Path) -> None:
    """Each is reached by the training, the test or the prediction that is attacked."""
    met = set()

    class Noting(Attack):
        def meet(self, place: str) -> None:
            met.add(place)

    prepare(tmp_path / "run")
    for place in (".summary", "test", "predict"):
        attacked.run(Noting(place, "", -1, tmp_path / "run"))
    attacked.run(Noting("test", "", -1, tmp_path / "empty"))
    assert met == {*attacked.PLACES}


def test_a_signal_that_ends_one_process_alone_ends_the_others() -> None:
    with deadline(20), pytest.raises(SystemExit, match="143"):
        launch(troubled.be_interrupted_alone, {}, processes=2, max_restarts=0)


def test_nothing_waits_for_processes_that_have_all_exited_with_status_0() -> None:
    with deadline(20), pytest.raises(RuntimeError, match=r"ended without an exception \(exit status 0\)"):
        launch(troubled.vanish_together, {}, processes=2, max_restarts=0)


def test_a_job_that_is_suspended_as_by_ctrl_z_goes_on_afterwards(tmp_path: Path) -> None:
    process = launched(tmp_path, "--devices", 2, "--pace", 0.02)
    wait_for(tmp_path / "batches-1", process)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(rank_watch.MAX_SECONDS_STOPPED + 1)
    process.send_signal(signal.SIGCONT)  # The launching process first: the time that it was stopped does not count.
    time.sleep(1)
    os.killpg(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert outcome(tmp_path)["state"]["step"] == troubled.STEPS


VANISHING = """
import multiprocessing, os, pathlib, sys
if multiprocessing.current_process().name != "MainProcess":
    os._exit(0)
from helpers.models import Tiny, data, quiet
if __name__ == "__main__":
    try:
        quiet(max_steps=1, devices=2, accelerator="cpu").fit(Tiny(), data())
    except RuntimeError as error:
        print(error)
"""


def test_processes_that_end_with_status_0_before_their_task_end_the_run(tmp_path: Path) -> None:
    program = tmp_path / "vanishing.py"
    program.write_text(VANISHING)
    done = scripts.run(program, env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert re.fullmatch(r"rank [01] ended without an exception \(exit status 0\)\n", done.stdout)


BROKEN_PIPE = """
import os, pathlib, subprocess, sys, time
sys.stdout.write("x")  # Is flushed at the end.
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(reader)
os.close(writer)
from helios_lite.processes.peers import exit_with_parent
parent = subprocess.Popen(["sleep", "0.1"])
exit_with_parent(parent.pid, pathlib.Path("/nonexistent"), pathlib.Path("/nonexistent"))
parent.wait()
time.sleep(20)
os._exit(5)
"""


def test_a_process_whose_parent_is_gone_ends_although_its_output_is_a_broken_pipe() -> None:
    assert run_python(BROKEN_PIPE).returncode == 128 + signal.SIGTERM


MANY_FILES = """
import os, resource, sys
from helpers.models import Indices
from helios_lite import Split
from helios_lite.loading.loaders import make_loader

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]  # More than select can watch.
batches = make_loader(Split(Indices(8), batch_size=2, num_workers=1), "train", 0).epoch(0).batches
next(batches)
raise SystemExit("end")
"""


def test_a_worker_ends_with_its_program_however_many_files_are_open() -> None:
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = scripts.run("-c", MANY_FILES, env=path, timeout=15 * SLOWNESS, check=False)
    assert done.stderr == "end\n"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_process_that_was_ended_is_the_cause_and_not_the_exception_of_a_rank_that_has_lost_it(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=troubled.sleep) for _ in order]
    for process in processes:
        process.start()
    watch = rank_watch.RankWatch(tmp_path, 0, processes)
    assert watch.poll()
    assert watch.failure is None
    (tmp_path / f"0-{order[0]}").write_bytes(b"")  # It has left an exception.
    for process in processes:
        process.terminate()
        process.join()
    assert not watch.poll()
    assert watch.failure == rank_watch.RankFailure(order[1], -signal.SIGTERM)
