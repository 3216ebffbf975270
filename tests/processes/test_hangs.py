"""A run that makes no progress says where every rank stands, and ends as a failure."""

import contextlib
import datetime
import gc
import logging
import multiprocessing
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch._dynamo
import torch.distributed
from helpers import scripts
from helpers.models import Indices, Tiny, data, quiet
from helpers.processes import deadline
from helpers.rows import read_status

from helios_lite import DataModule, Split
from helios_lite.processes import world
from helios_lite.processes.devices import DeviceMover
from helios_lite.processes.hang_watch import HangWatch, hang_seconds, stand_of
from helios_lite.processes.world import World

TESTS = Path(__file__).parents[1]
MINUTES = 0.05


class Sleeper(Tiny):
    """Sleeps for ever at one place, in the process of rank 0, or of rank 1 if there is one."""

    def __init__(self, place: str, fifo: Path | None = None) -> None:
        super().__init__()
        self.place, self.fifo = place, fifo

    def sleep_at(self, place: str) -> None:
        if place == self.place and self.global_rank == self.world_size - 1:
            time.sleep(1000)

    def train_step(self, batch: Any, state: Any) -> None:
        if state.step == 2:
            self.sleep_at("train_step")
        super().train_step(batch, state)

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        if self.place == "slow validation":
            time.sleep(20 * MINUTES)  # Of 60: far below the limit in each batch, and far above it in all.

    def predict_step(self, batch: Any, step: int) -> Any:
        self.sleep_at("predict_step")
        return batch[0]

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        if self.fifo is not None:
            self.fifo.open("wb")  # A file system that does not answer.
        return chkpt_name


class SleepingData(Indices):
    def __init__(self, length: int, index: int) -> None:
        super().__init__(length)
        self.index = index

    def __getitem__(self, index: int) -> Any:
        if index == self.index:
            time.sleep(1000)
        return super().__getitem__(index)


class SleepingTeardown(DataModule):
    def teardown(self) -> None:
        time.sleep(1000)


def in_step(root: Path) -> None:
    quiet(max_epochs=1, root=root, hang_minutes=MINUTES).fit(Sleeper("train_step"), data(train=40))


def in_thread(root: Path) -> None:
    thread = threading.Thread(target=in_step, args=(root,), name="trains")
    thread.start()
    thread.join()


def in_getitem(root: Path) -> None:
    datamodule = DataModule(train=Split(SleepingData(40, 9), batch_size=4))
    quiet(max_epochs=1, root=root, hang_minutes=MINUTES).fit(Tiny(), datamodule)


def in_loading_process(root: Path) -> None:
    datamodule = DataModule(train=Split(SleepingData(40, 9), batch_size=4, num_workers=1))
    quiet(max_epochs=1, root=root, hang_minutes=MINUTES).fit(Tiny(), datamodule)


def in_teardown(root: Path) -> None:
    datamodule = SleepingTeardown(train=Split(Indices(40), batch_size=4))
    quiet(max_epochs=1, root=root, hang_minutes=MINUTES).fit(Tiny(), datamodule)


def in_save(root: Path) -> None:
    root.mkdir()
    os.mkfifo(root / "fifo")
    quiet(max_epochs=1, root=root, hang_minutes=MINUTES).fit(Sleeper("", root / "fifo"), data(train=40))


def in_validation_that_goes_on(root: Path) -> None:
    quiet(max_epochs=1, root=root, hang_minutes=MINUTES).fit(Sleeper("slow validation"), data(valid=20))


def predicted(place: str, root: Path) -> Any:
    trainer = quiet(max_epochs=1, root=root, hang_minutes=MINUTES)
    return trainer.predict(Sleeper(place), DataModule(test=Split(Indices(4), batch_size=4)), checkpoint=None)


def in_predict(root: Path) -> None:
    list(predicted("predict_step", root))


def in_the_caller_of_predict(root: Path) -> None:
    for _ in predicted("", root):
        time.sleep(100 * MINUTES)  # Of 60, so longer than the limit.


PLACES: dict[Callable[[Path], None], str | None] = {
    in_step: r"sleep_at \(.*test_hangs.py:\d+\)",
    in_thread: r"sleep_at \(.*test_hangs.py:\d+\), in the thread trains",
    in_getitem: r"__getitem__ \(.*test_hangs.py:\d+\)",
    in_loading_process: r"the loader of a split, whose processes have written their stacks to stderr",
    in_teardown: r"teardown \(.*test_hangs.py:\d+\)",
    in_save: r"append_metadata_to_chkpt_name \(.*test_hangs.py:\d+\)",
    in_predict: r"sleep_at \(.*test_hangs.py:\d+\)",
    in_validation_that_goes_on: None,
    in_the_caller_of_predict: None,
}


def run_into(function: Callable[[Path], None], root: Path) -> None:
    """Run a function in a forked process whose stderr is a file."""
    gc.disable()  # What other tests have left behind, such as process groups, must not end in this process.
    stderr = os.open(f"{root}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(stderr, 2)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)  # type: ignore[misc]
    function(root)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: Any) -> dict[Callable[[Path], None], tuple[int | None, str, Path]]:
    """Return the exit status, stderr and root of a run for each place, which wait at the same time."""
    folder = tmp_path_factory.mktemp("hangs")
    quiet(max_steps=1).fit(Tiny(), data())  # So that the forked processes have imported all that a step needs.
    context = multiprocessing.get_context("fork")
    runs = {
        function: context.Process(target=run_into, args=(function, folder / function.__name__)) for function in PLACES
    }
    with deadline(60):
        for process in runs.values():
            process.start()
        for process in runs.values():
            process.join()
    return {
        function: (process.exitcode, Path(f"{folder / function.__name__}.txt").read_text(), folder / function.__name__)
        for function, process in runs.items()
    }


@pytest.mark.parametrize("function", [function for function, place in PLACES.items() if place is not None])
def test_the_line_that_hangs_is_named_and_the_run_fails(function: Any, ended: Any) -> None:
    status, said, root = ended[function]
    assert status == 1, said
    assert re.search(rf"^no progress for 3 seconds \(hang_minutes\); .*{root}/tiny/hangs\n", said, re.MULTILINE), said
    assert re.search(rf"^  rank 0 \(process \d+ on .*\) stands in {PLACES[function]}", said, re.MULTILINE), said
    stacks = (root / "tiny/hangs/rank_0.txt").read_text()
    assert stacks.startswith("rank 0, process ")
    if function is not in_predict:
        left = read_status(root / "tiny")
        assert (left["state"], left["exit_status"]) == ("failed", 1)
        assert left["reason"].startswith("TimeoutError: no progress for 3 seconds (hang_minutes)")
    assert "most recent call first" in stacks


def test_a_loading_process_writes_its_stack(ended: Any) -> None:
    _, said, _ = ended[in_loading_process]
    assert re.search(r'File ".*test_hangs.py", line \d+ in __getitem__', said)


@pytest.mark.parametrize("function", [function for function, place in PLACES.items() if place is None])
def test_a_slow_validation_is_no_hang_and_a_slow_caller_of_predict_is_none(function: Any, ended: Any) -> None:
    status, said, root = ended[function]
    assert (status, said) == (0, "")
    assert not (root / "tiny/hangs").exists()


def work_after_a_stop(has_begun: Any) -> None:
    """Go on for a while after this process was stopped, without progress that the watch could see."""
    with HangWatch(2.0) as watch:
        watch.start(World(), None, lambda: 0)
        has_begun.set()
        for _ in range(5):
            time.sleep(0.02)


def test_time_in_which_a_process_is_stopped_is_no_hang() -> None:
    """As by Ctrl-Z, or when SLURM suspends a job."""
    context = multiprocessing.get_context("fork")
    has_begun = context.Event()
    process = context.Process(target=work_after_a_stop, args=(has_begun,))
    with deadline(30):
        process.start()
        has_begun.wait()
        os.kill(process.pid or 0, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(process.pid or 0, signal.SIGCONT)
        process.join()
    assert process.exitcode == 0


# Several ranks.


class HangsTwice(Sleeper):
    """Rank 1 sleeps in the first attempt; in the second rank 0 enters a collective that rank 1 does not."""

    def __init__(self, folder: Path) -> None:
        super().__init__("train_step")
        self.folder, self.attempt = folder, 0

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.groups = []
        if self.world_size == 2:  # Not in the process that has launched them.
            self.groups = [torch.distributed.new_group([0, 1])]
            self.attempt = len(list(self.folder.glob(f"{self.global_rank}_*"))) + 1
            (self.folder / f"{self.global_rank}_{self.attempt}").touch()

    def sleep_at(self, place: str) -> None:
        if self.attempt == 1:
            super().sleep_at(place)
        elif self.attempt == 2 and self.global_rank == 0:
            torch.distributed.barrier(self.groups[0])


def test_the_rank_that_the_others_wait_for_is_named_and_a_restart_helps(
    tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("helios_lite"), "propagate", True)
    options: dict[str, Any] = {"devices": 2, "accelerator": "cpu", "root": tmp_path, "hang_minutes": 2 * MINUTES}
    with deadline(60):
        result = quiet(max_epochs=1, max_restarts=2, **options).fit(HangsTwice(tmp_path), data(train=40, batch_size=2))
    assert result.state.step == 10
    said = [record.getMessage() for record in caplog.records if "all processes start again" in record.getMessage()]
    text, text_of_collective = said
    first, *ranks = text.splitlines()
    assert first.startswith("TimeoutError: no progress for 6 seconds (hang_minutes)")
    assert re.match(r"  rank 1 \(process \d+ on .*\) stands in sleep_at \(.*test_hangs.py:\d+\)", ranks[0])
    assert re.match(r"  rank 0 \(process \d+ on .*\) waits in ", ranks[1])
    # Both wait, each for the other.
    assert re.search(r"rank 0 \(process \d+ on .*\) stands in sleep_at \(.*test_hangs.py:\d+\)", text_of_collective)
    assert re.search(
        r"rank 1 \(process \d+ on .*\) stands in _meet_other_ranks .*, called in train_step \(.*models.py:\d+\)",
        text_of_collective,
    )
    assert {path.name for path in (tmp_path / "tiny/hangs").glob("*.txt")} == {"rank_0.txt", "rank_1.txt"}


STOPPED = """
import os, signal, sys
import torch._dynamo
from helpers.models import Tiny, data, quiet

class Stopped(Tiny):
    def train_step(self, batch, state):
        if state.step == 2 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)  # Before it takes part in what the other rank gathers.
        super().train_step(batch, state)

options = {"accelerator": "cpu", "hang_minutes": 0.1, "strategy": "fsdp"}
quiet(max_epochs=1, root="runs", **options).fit(Stopped(), data(train=40, batch_size=2))
"""


def test_a_rank_that_was_stopped_is_named_under_torchrun(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(STOPPED)
    path = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    with deadline(100):
        run = scripts.start(*command, cwd=tmp_path, env=path, stderr=subprocess.PIPE)
        assert run.stderr is not None
        said = ""
        for line in run.stderr:
            said += line
            if match := re.search(r"rank 1 \(process (\d+) on .*\): it was stopped \(SIGSTOP\)", line):
                threading.Timer(1.0, os.kill, (int(match[1]), signal.SIGKILL)).start()  # torchrun waits 30 s for it.
        run.stderr.close()
        assert run.wait() == 1
    assert "it was stopped (SIGSTOP)" in said
    assert re.search(r"rank 0 \(process \d+ on .*\) waits in .*; last it gathers a Sequential", said)


ELASTIC = """
import sys, time
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from helpers.models import Tiny, data, quiet

class Sleeping(Tiny):
    def train_step(self, batch, state):
        super().train_step(batch, state)
        if state.step == 2 and self.global_rank == 1:
            time.sleep(1000)

def train():
    quiet(max_epochs=1, root="runs", accelerator="cpu", hang_minutes=0.05).fit(Sleeping(), data(train=40, batch_size=2))

config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork")
elastic_launch(config, train)()
"""


def test_ranks_that_a_program_starts_with_torch_elastic_are_told_apart(tmp_path: Path) -> None:
    """All of them stand in a function of torch.distributed, which has called theirs."""
    (tmp_path / "train.py").write_text(ELASTIC)
    path = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    said = scripts.run("train.py", cwd=tmp_path, env=path, check=False).stderr
    assert re.search(r"rank 1 \(process \d+ on .*\) stands in train_step \(", said)
    assert re.search(r"rank 0 \(process \d+ on .*\) waits in ", said)


def test_a_rank_that_waits_for_a_device_is_not_the_one_that_the_others_wait_for() -> None:
    """Here a queue stands for it: Python code of this package calls it, and it answers when it is ready."""
    device: Any = queue.SimpleQueue()
    move = DeviceMover(torch.device("cpu"))
    thread = threading.Thread(target=lambda: move(SimpleNamespace(to=device.get)), name="trains")
    thread.start()
    try:
        with deadline(10):
            while not (stand := stand_of(0, thread.ident or 0)).waits:
                time.sleep(0.01)
    finally:
        device.put(None)
        thread.join()
    assert "devices.py" in stand.place
    assert stand.place.endswith(", in the thread trains")


def test_while_it_is_watched_ranks_wait_without_the_limit_of_pytorch_and_with_one_of_their_own() -> None:
    own = datetime.timedelta(seconds=7)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

    def limits() -> list[datetime.timedelta]:
        return [group._get_backend(torch.device("cpu")).options._timeout for group in groups]

    try:
        groups = [torch.distributed.new_group([0], timeout=each) for each in (None, own)]
        before = limits()
        with HangWatch(0.1 * 60) as watch:
            watch.start(World(), None, time.monotonic)
            assert limits()[0] > datetime.timedelta(days=100)
            assert limits()[1] == own
            groups.append(torch.distributed.new_group([0]))  # Of the user, in a step.
            with deadline(10):
                while limits()[2] != limits()[0]:
                    time.sleep(0.05)
        assert limits() == [*before, before[0]]
    finally:
        torch.distributed.destroy_process_group()


class Fails(Tiny):
    def train_step(self, batch: Any, state: Any) -> None:
        raise ZeroDivisionError


def end_slowly(model: Tiny) -> None:
    """Train as a rank, and end as if destroying the process group waited for what other ranks have not sent."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with contextlib.suppress(ZeroDivisionError):
        quiet(max_steps=1).fit(model, data())
    world._destroy_process_group()
    time.sleep(1000 if isinstance(model, Fails) else 1.0)


def test_a_rank_that_has_failed_is_not_held_by_the_destruction_of_process_groups(monkeypatch: Any) -> None:
    monkeypatch.setattr(world, "_SECONDS_TO_END", 0.2)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=end_slowly, args=(model,)) for model in (Fails(), Tiny())]
    try:
        with deadline(30):
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()
    finally:
        ranks[0].kill()
    assert [process.exitcode for process in ranks] == [1, 0]


def test_auto_watches_several_processes_only(monkeypatch: Any) -> None:
    assert hang_seconds("auto") is None
    assert hang_seconds(None) is None
    assert hang_seconds(0.5) == 30.0
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert hang_seconds("auto") == 1800.0
    monkeypatch.setenv("HELIOS_LITE_PARENT", "1")  # A process that the trainer has launched.
    assert hang_seconds("auto") == 1800.0
