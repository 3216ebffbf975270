"""Trouble of one rank in the methods of the user's: the run ends soon with that rank's error, and nobody stays.

A sample; `python tests/attack.py` does all.
"""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers import attacked, troubled
from helpers.attacked import Attack, prepare, verdict
from helpers.processes import DEADLINE, deadline, launched, wait_for
from helpers.troubled import outcome

from helios_lite.runtime import rank_watch
from helios_lite.runtime.launch import launch

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
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    trouble: str,
    rank: int,
    num_workers: int,
) -> None:
    monkeypatch.setenv("TEST_MARK", "")  # `verdict` changes it.
    with deadline(60):
        assert verdict(place, trouble, rank, tmp_path / "run", prepared, num_workers) == ""


def test_the_list_of_places_is_complete(tmp_path: Path) -> None:
    """Each is reached by the training or the test that is attacked."""
    met = set()

    class Noting(Attack):
        def meet(self, place: str) -> None:
            met.add(place)

    prepare(tmp_path / "run")
    for place in (".summary", "test"):
        attacked.run(Noting(place, "", -1, tmp_path / "run"))
    attacked.run(Noting("test", "", -1, tmp_path / "empty"))
    assert met == {*attacked.PLACES}


def test_a_signal_that_ends_one_process_alone_ends_the_others() -> None:
    with deadline(20), pytest.raises(SystemExit, match="143"):
        launch(troubled.be_interrupted_alone, {}, processes=2, max_restarts=0)


def test_nothing_waits_for_processes_that_have_all_exited_with_status_0() -> None:
    with deadline(20), pytest.raises(RuntimeError, match=r"ended without an exception \(exit status 0\)"):
        launch(troubled.vanish_together, {}, processes=2, max_restarts=0)
    assert "elastic" not in {thread.name for thread in threading.enumerate()}


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
