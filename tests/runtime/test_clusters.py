"""Jobs of a scheduler: SIGUSR1, the world of srun, and a run that is stopped and queued again until it is finished."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, saved, timeless
from helpers.models import Tiny, data, quiet
from helpers.processes import deadline

from helios_lite.runtime.slurm import first_host, tasks_per_node, world_of_srun

TESTS = Path(__file__).parents[1]
PARTS = ("state", "model", "rng", "data", "metrics")

TRAIN = """
import os, sys, time
from pathlib import Path
from helpers.models import Tiny, data, quiet

class Slow(Tiny):
    def train_step(self, batch, state):
        super().train_step(batch, state)
        Path(f"pid_{os.environ.get('SLURM_PROCID')}").write_text(f"{os.getpid()} {state.step}")
        time.sleep(float(os.environ["PACE"]))

if __name__ == "__main__":
    options = {"max_epochs": 3, "log_every_steps": 2, "save_every_epochs": None, "accelerator": "cpu"}
    quiet(root="runs", **options, **eval(os.environ.get("OPTIONS", "{}"))).fit(Slow(), data(train=40))
"""

SRUN = """#!/bin/bash
# Starts the tasks of this machine, and ends with the largest of their statuses.
pids=()
for ((task = 0; task < SLURM_STEP_NUM_TASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
    wait "$pid"
    ended=$?
    ((ended > status)) && status=$ended
done
exit $status
"""


class Cluster:
    """Plays the scheduler: a folder with the program and the job, and commands that stand for SLURM's."""

    def __init__(self, folder: Path, tasks: int, **options: Any) -> None:
        self.folder = folder
        (page,) = re.findall(r"```bash\n(.*?)```", (TESTS.parent / "docs/clusters.md").read_text(), re.DOTALL)
        requeue = 'echo "$@" >> requeued\n'
        files = {"job.sh": page, "train.py": TRAIN, "bin/srun": SRUN, "bin/scontrol": f"#!/bin/bash\n{requeue}"}
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "bin/python").symlink_to(sys.executable)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path]),
            "OMP_NUM_THREADS": "1",
            "OPTIONS": repr(options),
            "SLURM_JOB_ID": "4711",
            "SLURM_NODEID": "0",
            "SLURM_STEP_NUM_TASKS": str(tasks),
            "SLURM_STEP_TASKS_PER_NODE": str(tasks),
            "SLURM_STEP_NODELIST": "localhost",
        }

    def start(self, restarts: int = 0, pace: float = 0.0) -> subprocess.Popen[bytes]:
        """Start the job, which has been queued again so many times."""
        for path in self.folder.glob("pid_*"):
            path.unlink()
        environment = {**self.environment, "PACE": str(pace), "SLURM_RESTART_COUNT": str(restarts)}
        return subprocess.Popen(["bash", "job.sh"], cwd=self.folder, env=environment)

    def signal(self, task: int, number: int, step: int) -> None:
        """Send a signal to a task after it has begun an update."""
        while True:
            with_pid = (self.folder / f"pid_{task}").read_text() if (self.folder / f"pid_{task}").exists() else ""
            if len(with_pid.split()) == 2 and int(with_pid.split()[1]) >= step:
                os.kill(int(with_pid.split()[0]), number)
                return
            time.sleep(0.02)

    def requeued(self) -> int:
        path = self.folder / "requeued"
        return len(path.read_text().splitlines()) if path.exists() else 0


def rows(root: Path) -> Any:
    lines = (root / "tiny/metrics.jsonl").read_text().splitlines()
    return timeless([row for row in map(json.loads, lines) if row.get("kind") != "end"])


def test_a_job_that_is_queued_again_three_times_equals_one_that_was_not(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, tasks=1)
    with deadline(120):
        for restarts, step in enumerate([4, 13, 22]):
            job = cluster.start(restarts, pace=0.05)
            cluster.signal(0, signal.SIGTERM, step)
            assert job.wait() == 143
            assert cluster.requeued() == restarts + 1
        assert cluster.start(restarts=3).wait() == 0
    assert cluster.requeued() == 3
    options: dict[str, Any] = {"max_epochs": 3, "log_every_steps": 2, "save_every_epochs": None}
    quiet(root=tmp_path / "whole", **options).fit(Tiny(), data(train=40))
    assert same(saved(tmp_path / "runs/tiny", *PARTS), saved(tmp_path / "whole/tiny", *PARTS))
    assert rows(tmp_path / "runs") == rows(tmp_path / "whole")


def test_two_tasks_of_srun_train_together_and_a_signal_to_one_of_them_saves(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, tasks=2, keep_last=-1)
    with deadline(120):
        job = cluster.start(pace=0.05)
        cluster.signal(1, signal.SIGUSR1, step=2)
        assert job.wait() == 0
    assert cluster.requeued() == 0
    names = sorted(path.name for path in (tmp_path / "runs/tiny/checkpoints").glob("*.pth"))
    assert len(names) == 2  # That of the signal, and the last one.
    assert names[-1] == "tiny_epoch_3_iter_15.pth"
    config = json.loads((tmp_path / "runs/tiny/config.json").read_text())
    assert config["environment"]["processes"] == 2


# SIGUSR1 in one process.


class Signalled(Tiny):
    """Gets a signal in its third update."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


def steps_of_checkpoints(root: Path) -> list[int]:
    paths = (root / "tiny/checkpoints").glob("*.pth")
    return sorted(int(path.stem.rpartition("_")[2]) for path in paths)


def test_sigusr1_saves_after_the_update_and_the_training_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "keep_last": -1, "save_every_epochs": None, "root": tmp_path}
    result = quiet(**options).fit(Signalled(), data(train=40))
    assert result.stop_reason == "max_epochs"
    assert steps_of_checkpoints(tmp_path) == [3, 20]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_sigusr1_saves_and_stops_if_the_option_says_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "keep_last": -1, "save_every_epochs": None, "root": tmp_path}
    with pytest.raises(SystemExit) as end:
        quiet(sigusr1="stop", **options).fit(Signalled(), data(train=40))
    assert end.value.code == 128 + signal.SIGUSR1
    assert steps_of_checkpoints(tmp_path) == [3]


def test_sigusr1_outside_of_the_training_does_nothing(tmp_path: Path) -> None:
    class Early(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            super().setup(fast_init)

    quiet(max_epochs=1, root=tmp_path).fit(Early(), data())
    quiet(max_epochs=1, root=tmp_path).test(Early(), data())


def test_a_launched_training_passes_sigusr1_on(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "PACE": "0.05"}
    environment["OPTIONS"] = repr({"devices": 2, "keep_last": -1})
    with deadline(60):
        run = subprocess.Popen([sys.executable, "train.py"], cwd=tmp_path, env=environment)
        while not (tmp_path / "pid_None").exists():
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGUSR1)
        assert run.wait() == 0
    first, last = steps_of_checkpoints(tmp_path / "runs")
    assert first < last == 15


# The variables of srun.


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu5", "gpu5"),
        ("node[01-03,07],gpu5", "node01"),
        ("a12,a13", "a12"),
        ("rack[2,4]-cpu", "rack2-cpu"),
        ("n-1-[009]", "n-1-009"),
    ],
)
def test_the_first_machine_is_where_the_ranks_meet(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_tasks_of_each_machine_are_counted() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("8") == [8]


VARIABLES = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "node[3-4]",
}


def test_the_world_is_that_of_the_variables_of_srun() -> None:
    world = {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "node3",
        "MASTER_PORT": str(15_000 + 123_458 % 20_000),
    }
    assert world_of_srun(VARIABLES) == world
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert world_of_srun({**VARIABLES, **given}) == {**world, **given}


@pytest.mark.parametrize("missing", sorted(VARIABLES.keys() - {"SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"}))
def test_a_missing_variable_is_an_error_that_says_what_to_do(missing: str) -> None:
    variables = {name: value for name, value in VARIABLES.items() if name != missing}
    with pytest.raises(RuntimeError, match=rf"srun has started 7 tasks.*{missing}.*start torchrun in one task"):
        world_of_srun(variables)


def test_devices_that_contradict_srun_are_an_error(monkeypatch: Any) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"devices=8, but srun has started 3 tasks of 7.*--ntasks-per-node=8"):
        quiet(max_epochs=1, devices=8, accelerator="cpu").fit(Tiny(), data())


@pytest.mark.parametrize("variables", [{"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_and_an_interactive_shell_are_one_process(variables: dict[str, str], monkeypatch: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert quiet(max_epochs=1).fit(Tiny(), data()).state.epoch == 1
    assert not torch.distributed.is_initialized()
