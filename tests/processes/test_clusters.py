"""Jobs of a scheduler: SIGUSR1, the world of srun, and a run that is stopped and queued again until it is finished."""

import json
import multiprocessing
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import scripts
from helpers.compare import same, saved, timeless
from helpers.models import Tiny, data, quiet
from helpers.processes import deadline
from helpers.rows import read_status

from helios_lite.processes.slurm import first_host, tasks_per_node, world_of_srun

TESTS = Path(__file__).parents[1]
PARTS = ("state", "model", "monitor", "metrics", "ranks")

BLOCKS = re.findall(r"```bash\n(.*?)```", (TESTS.parent / "docs/clusters.md").read_text(), re.DOTALL)
"""The job of the page, and the lines with torchrun that may replace its srun."""

TRAIN = """
import os, sys, time
from pathlib import Path
from helpers.models import Tiny, data, quiet

class Slow(Tiny):
    def train_step(self, batch, state):
        super().train_step(batch, state)
        Path(f"pid_{os.environ.get('RANK', 0)}").write_text(f"{os.getpid()} {state.step}")
        time.sleep(float(os.environ["PACE"]))

if __name__ == "__main__":
    options = {"max_epochs": 3, "log_every_steps": 2, "save_every_epochs": None, "accelerator": "cpu"}
    quiet(root="runs", **options, **eval(os.environ.get("OPTIONS", "{}"))).fit(Slow(), data(train=40))
"""

SRUN = """#!/bin/bash
# Starts the tasks of this machine, passes SIGUSR1 on, and ends with the largest of their statuses.
while [[ $1 == --* ]]; do shift; done
pids=()
trap 'kill -USR1 "${pids[@]}"' USR1
export SLURM_STEP_NUM_TASKS=$TASKS SLURM_STEP_TASKS_PER_NODE=$TASKS SLURM_STEP_NODELIST=localhost
for ((task = 0; task < TASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" < /dev/null &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
    while wait "$pid"; ended=$?; kill -0 "$pid" 2> /dev/null; do :; done
    ((ended > status)) && status=$ended
done
exit $status
"""

SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi
"""


class Cluster:
    """Plays the scheduler: a folder with the program and the job, and commands that stand for SLURM's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script, self.torchrun = BLOCKS
        files = {"train.py": TRAIN, "bin/srun": SRUN, "bin/scontrol": SCONTROL}
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        scripts.write_python(folder / "bin/python")
        server = scripts.write_python(folder / "bin/torchrun", "-m", "torch.distributed.run")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            **server,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path]),
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_NODEID": "0",
            "SLURM_NNODES": "1",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_CPUS_PER_TASK": "1",
        }

    def start(
        self, restarts: int = 0, pace: float = 0.0, tasks: int = 1, torchrun: bool = False, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start the job, which has been queued again so many times."""
        for path in self.folder.glob("pid_*"):
            path.unlink()
        script = self.script
        if torchrun:
            script = re.sub("^srun .*$", lambda _: self.torchrun.strip(), script, flags=re.MULTILINE)
            script = script.replace("--nproc-per-node 8", "--nproc-per-node 2")
        (self.folder / "job.sh").write_text(script)
        changes = {"PACE": str(pace), "TASKS": str(tasks), "OPTIONS": repr(options)}
        environment = {**self.environment, **changes, "SLURM_RESTART_COUNT": str(restarts)}
        self.job = subprocess.Popen(["bash", "job.sh"], cwd=self.folder, env=environment)
        return self.job

    def wait_for(self, step: int, task: int = 0) -> int:
        """Wait until a task has begun a step, and return its process."""
        path = self.folder / f"pid_{task}"
        while True:
            words = path.read_text().split() if path.exists() else []
            if len(words) == 2 and int(words[1]) >= step:
                return int(words[0])
            assert self.job.poll() is None, "the job has ended"
            time.sleep(0.02)

    def requeued(self) -> int:
        path = self.folder / "requeued"
        return len(path.read_text().splitlines()) if path.exists() else 0


def rows(root: Path) -> Any:
    lines = (root / "tiny/metrics.jsonl").read_text().splitlines()
    return timeless([row for row in map(json.loads, lines) if row.get("kind") != "end"])


def test_a_job_that_is_queued_again_three_times_equals_one_that_was_not(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    ways: list[dict[str, Any]] = [{"tasks": 2}, {"torchrun": True}, {"devices": 2}]
    with deadline(180):
        for restarts, (step, way) in enumerate(zip([2, 6, 10], ways, strict=True)):
            job = cluster.start(restarts, pace=0.1, sigusr1="stop", **way)
            cluster.wait_for(step)
            job.send_signal(signal.SIGUSR1)
            assert job.wait() == 128 + signal.SIGUSR1
            assert cluster.requeued() == restarts + 1
        assert cluster.start(restarts=3, tasks=2).wait() == 0
        assert cluster.requeued() == 3
        (tmp_path / "runs").rename(tmp_path / "parts")
        whole = {"PYTHONPATH": cluster.environment["PYTHONPATH"], "PACE": "0", "OPTIONS": repr({"devices": 2})}
        scripts.run("train.py", cwd=tmp_path, env=whole)
    assert same(saved(tmp_path / "parts/tiny", *PARTS), saved(tmp_path / "runs/tiny", *PARTS))
    assert rows(tmp_path / "parts") == rows(tmp_path / "runs")


def test_a_signal_to_one_task_of_srun_saves_and_another_ends_all_of_them(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with deadline(120):
        job = cluster.start(pace=0.05, tasks=2, keep_last=-1)
        os.kill(cluster.wait_for(2, task=1), signal.SIGUSR1)
        os.kill(cluster.wait_for(5, task=1), signal.SIGTERM)
        assert job.wait() == 143
    assert cluster.requeued() == 0  # Its owner has ended it.
    names = sorted(path.name for path in (tmp_path / "runs/tiny/checkpoints").glob("*.pth"))
    assert len(names) == 2  # That of the first signal, and the last one.
    config = json.loads((tmp_path / "runs/tiny/config.json").read_text())
    assert config["environment"]["processes"] == 2


# SIGUSR1 in one process.


class Signalled(Tiny):
    """Gets a signal in its third step."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


def steps_of_checkpoints(root: Path) -> list[int]:
    paths = (root / "tiny/checkpoints").glob("*.pth")
    return sorted(int(path.stem.rpartition("_")[2]) for path in paths)


def test_sigusr1_saves_after_the_step_and_the_training_goes_on(tmp_path: Path) -> None:
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


def test_a_handler_that_was_there_before_is_called_when_the_training_has_done_its_part(tmp_path: Path) -> None:
    """As that of submitit, which queues the job again and exits."""
    called: list[tuple[list[int], int | None]] = []

    def handle(number: int, frame: Any) -> None:
        called.append((steps_of_checkpoints(root), read_status(root / "tiny")["exit_status"]))
        if root.name == "exits":
            sys.exit(3)

    options: dict[str, Any] = {"max_epochs": 2, "keep_last": -1, "save_every_epochs": None, "async_save": False}
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        root = tmp_path / "saves"
        quiet(root=root, **options).fit(Signalled(), data(train=40))
        assert called == [([3], None)]
        for name, status in (("stops", 138), ("exits", 3)):
            root = tmp_path / name
            called.clear()
            with pytest.raises(SystemExit) as end:
                quiet(root=root, sigusr1="stop", **options).fit(Signalled(), data(train=40))
            assert (end.value.code, called) == (status, [([3], 138)])
        assert signal.getsignal(signal.SIGUSR1) is handle
    finally:
        signal.signal(signal.SIGUSR1, before)


# Sends itself SIGUSR1 in every call of a trainer, where no step is computed, and in the code of the caller.
EVERY_CALL = """
import os, signal, sys
from helpers.models import Tiny, data, quiet

class Signalled(Tiny):
    def setup(self, fast_init=False):
        signalled()
        super().setup(fast_init)

    def predict_step(self, batch, step):
        return batch

def signalled():
    if os.getpid() == program:
        os.kill(program, signal.SIGUSR1)

if __name__ == "__main__":
    program = os.getpid()
    trainer = quiet(max_epochs=1, root="runs", devices=int(sys.argv[1]))
    calls = {
        "fit": lambda: trainer.fit(Signalled(), data()),
        "validate": lambda: trainer.validate(Signalled(), data()),
        "test": lambda: trainer.test(Signalled(), data()),
        "predict": lambda: [signalled() for _ in trainer.predict(Signalled(), data())],
        "write_predictions": lambda: trainer.write_predictions(Signalled(), data(), "predictions.pt"),
        "replay": lambda: trainer.replay(Signalled(), data(), step=1),
    }
    for name, call in calls.items():
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        call()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL, name
        # The handler of a program stays, and hears what is sent outside of the loop of a training.
        heard = []
        signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
        call()
        assert len(heard) > 0, name
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        print(name)
else:
    program = None
"""


@pytest.mark.parametrize(
    ("devices", "calls"),
    [("1", ["fit", "validate", "test", "predict", "write_predictions", "replay"]), ("2", ["predict"])],
)
def test_sigusr1_outside_of_the_training_does_nothing_in_any_call(
    devices: str, calls: list[str], tmp_path: Path
) -> None:
    (tmp_path / "calls.py").write_text(EVERY_CALL)
    path = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = scripts.run("calls.py", devices, *calls, cwd=tmp_path, env=path)
    assert done.stdout.split() == calls


def test_a_launched_training_passes_sigusr1_on(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "PACE": "0.05"}
    environment["OPTIONS"] = repr({"devices": 2, "keep_last": -1})
    with deadline(60):
        run = scripts.start("train.py", cwd=tmp_path, env=environment)
        while not (tmp_path / "pid_0").exists():
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
        "MASTER_PORT": str(15_000 + (123_456 * 50 + 2) % 20_000),
    }
    assert world_of_srun(VARIABLES) == world
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert world_of_srun({**VARIABLES, **given}) == {**world, **given}


def test_steps_of_jobs_that_run_at_the_same_time_have_ports_of_their_own() -> None:
    steps = [(job, step) for job in range(123_456, 123_656) for step in range(50)]
    variables = [{**VARIABLES, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job, step in steps]
    assert len({world_of_srun(each)["MASTER_PORT"] for each in variables}) == len(steps)


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


def test_a_job_of_several_tasks_or_machines_in_which_a_program_trains_alone_gets_a_warning(
    monkeypatch: Any, caplog: Any
) -> None:
    for name, value, text in (
        ("SLURM_NTASKS", "4", "the job has 4 tasks (SLURM_NTASKS), but srun has not started this program"),
        ("PET_NNODES", "2", "the job has 2 machines (PET_NNODES), but torchrun has not started this program"),
        ("PET_NNODES", "1:3", "the job has 3 machines (PET_NNODES), but torchrun has not started this program"),
        ("PET_NNODES", "1", None),
        ("PET_NNODES", "1:1", None),
    ):
        with monkeypatch.context() as variables:
            variables.setenv(name, value)
            caplog.clear()
            quiet(max_steps=1).plan(Tiny(), data())
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [text is not None and said[0].startswith(text) for _ in said] == [True] * (text is not None)


def train_in_a_terminal() -> None:
    os.environ.update(VARIABLES)
    _, stdin = pty.openpty()
    os.dup2(stdin, 0)
    assert quiet(max_epochs=1).fit(Tiny(), data()).state.epoch == 1
    assert not torch.distributed.is_initialized()


def test_a_shell_of_several_tasks_in_a_terminal_is_one_process() -> None:
    """As a task it would wait for the others for ever, in C++."""
    process = multiprocessing.get_context("fork").Process(target=train_in_a_terminal)
    process.start()
    process.join(30 * scripts.SLOWNESS)
    process.kill()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("variables", [{"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_and_an_interactive_shell_are_one_process(variables: dict[str, str], monkeypatch: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert quiet(max_epochs=1).fit(Tiny(), data()).state.epoch == 1
    assert not torch.distributed.is_initialized()
