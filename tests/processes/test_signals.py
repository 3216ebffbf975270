"""What signals do from the first line of a call to its last, as the tables in docs/interruptions.md say."""

import contextlib
import os
import sched
import signal
from collections.abc import Callable
from multiprocessing import current_process, resource_sharer
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest
import signals
from helpers import scripts
from helpers.models import Indices, Tiny, data, quiet
from helpers.processes import wait_for
from helpers.rows import read_status

from helios_lite import DataModule, Split

pytestmark = pytest.mark.usefixtures("interruptible")

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGUSR1: SystemExit}


class Signalled(Tiny):
    """Gets a signal at one place."""

    def __init__(self, place: str, number: int, drops: bool = False) -> None:
        super().__init__()
        self.place, self.number, self.drops = place, number, drops

    def at(self, place: str) -> None:
        if place == self.place:
            library = sched.scheduler()  # In which the signal comes, as while it waits for data.
            library.enter(0, 0, os.kill, (os.getpid(), self.number))
            with contextlib.suppress(BaseException) if self.drops else contextlib.nullcontext():
                library.run()

    def setup(self, fast_init: bool = False) -> None:
        self.at("setup")
        super().setup(fast_init)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.at("train_step")

    def valid_step(self, batch: Any, step: int) -> None:
        self.at("valid_step")
        super().valid_step(batch, step)

    def predict_step(self, batch: Any, step: int) -> Any:
        self.at("predict_step")
        return batch[0]


def calls(root: Path, **options: Any) -> dict[str, Callable[[Signalled], Any]]:
    """The calls, by a place at which a signal ends them at once."""

    def in_data(method: str) -> Callable[[Signalled], Any]:
        def fit(model: Signalled) -> None:
            datamodule = data()
            setattr(datamodule, method, lambda: model.at(method))
            quiet(max_steps=1, root=root, **options).fit(model, datamodule)

        return fit

    def predict(model: Signalled) -> None:
        for _ in quiet(root=root, **options).predict(model, data(), checkpoint=None):
            model.at("the caller")

    return {
        "prepare_data": in_data("prepare_data"),
        "teardown": in_data("teardown"),
        "setup": lambda model: quiet(max_steps=1, root=root, **options).plan(model, data()),
        "valid_step": lambda model: quiet(root=root, **options).validate(model, data(), checkpoint=None),
        "predict_step": predict,
        "the caller": predict,
        "train_step": lambda model: quiet(max_steps=1, root=root, **options).replay(model, data(), step=1),
    }


@pytest.mark.parametrize("number", HANDLED)
def test_outside_of_a_training_a_signal_ends_any_call_at_once_and_sigusr1_only_if_it_stops(
    tmp_path: Path, number: signal.Signals
) -> None:
    quiet(max_steps=1, root=tmp_path).fit(Tiny(), data())
    before = [signal.getsignal(each) for each in HANDLED]
    for place, call in calls(tmp_path, sigusr1="stop").items():
        with pytest.raises(ENDS[number]) as caught:
            call(Signalled(place, number))
        assert getattr(caught.value, "code", 128 + number) == 128 + number, place
        assert [signal.getsignal(each) for each in HANDLED] == before, place
        if number == signal.SIGINT:  # Only the lines of the user's, whom nothing stands between who loops over results.
            assert {entry.path for entry in caught.traceback} == {Path(__file__)} or place == "the caller", place
    assert read_status(tmp_path / "tiny")["exit_status"] == 128 + number
    if number == signal.SIGUSR1:
        for place, call in calls(tmp_path).items():
            call(Signalled(place, number))


def test_a_ctrl_c_in_the_first_moment_of_any_call_leaves_it_with_the_users_lines_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, model = quiet(max_steps=1), Tiny()
    for call in (
        lambda: trainer.fit(model, data()),
        lambda: trainer.plan(model, data()),
        lambda: trainer.validate(model, data()),
        lambda: trainer.test(model, data()),
        lambda: trainer.predict(model, data()),
        lambda: trainer.write_predictions(model, data(), "predictions.pth"),
        lambda: trainer.replay(model, data(), step=1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "cwd", lambda: os.kill(os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt) as caught:
                call()
        assert {entry.path for entry in caught.traceback} == {Path(__file__)}


def test_a_program_that_drops_the_exception_is_ended_nevertheless(tmp_path: Path) -> None:
    """At the end of the call, or of the next step of a training."""
    for place in ("setup", "valid_step", "teardown", "prepare_data"):
        model = Signalled(place, signal.SIGTERM, drops=True)
        with pytest.raises(SystemExit) as caught:
            calls(tmp_path / place)[place](model)
        assert caught.value.code == 143, place


def test_a_signal_in_a_place_whose_exceptions_python_drops_waits_until_it_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dropped:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(1)

    class Dropping(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            thing = Dropped()
            del thing
            while True:
                pass

    done: list[int] = []
    with pytest.raises(SystemExit) as caught:
        quiet(max_steps=1).fit(Dropping(), data())
    assert (caught.value.code, done) == (143, [1])
    assert capsys.readouterr().err == ""


def test_a_batch_that_a_signal_keeps_from_being_taken_is_no_error_of_the_process_that_has_loaded_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(place: Any) -> Any:
        for _ in range(2):  # The second one is accepted when the worker is finished with the first.
            Client(place[0], authkey=current_process().authkey).close()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(resource_sharer._resource_sharer, "get_connection", interrupted)
    with pytest.raises(SystemExit):
        quiet().validate(Tiny(), DataModule(valid=Split(Indices(4), batch_size=2, num_workers=1)), checkpoint=None)
    assert capfd.readouterr().err == ""


WAITING = """
import datetime, sys, time
import torch.distributed.distributed_c10d as c10d
from pathlib import Path
from helpers.models import Tiny, data, quiet

class Waiting(Tiny):
    def setup(self, fast_init=False):
        Path(f"rank {self.global_rank}").touch()
        if self.global_rank == 0 and sys.argv[1] == "waits":
            c10d._get_default_store().wait(["what the other does not say"], datetime.timedelta(hours=1))
        try:
            time.sleep(1000)
        finally:
            if self.global_rank == 0:
                time.sleep(8)
                Path("closed").touch()

if __name__ == "__main__":
    list(quiet(devices=2, accelerator="cpu").predict(Waiting(), data()))
"""


@pytest.mark.parametrize("what_it_does", ["waits", "closes"])
def test_a_rank_that_waits_for_one_that_a_signal_has_ended_ends_too(tmp_path: Path, what_it_does: str) -> None:
    """It waits in PyTorch, where Python handles no signal. One that takes its time to close files is let do that."""
    (tmp_path / "predict.py").write_text(WAITING)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    program = scripts.start("predict.py", what_it_does, cwd=tmp_path, env={"PYTHONPATH": path})
    for rank in range(2):
        wait_for(tmp_path / f"rank {rank}", program)
    program.send_signal(signal.SIGTERM)
    assert program.wait(scripts.DEADLINE) == 143
    assert (tmp_path / "closed").exists() == (what_it_does == "closes")


SAMPLE = [
    signals.Trial("fit", 1, "group", signal.SIGTERM, 0.6),
    signals.Trial("fit", 2, "group", signal.SIGUSR1, 0.15),
    signals.Trial("predict", 2, "caller", signal.SIGTERM, 0.7),
]


@pytest.mark.parametrize("trial", SAMPLE, ids=str)
def test_a_call_that_is_interrupted_from_outside_ends_as_the_table_says(
    trial: signals.Trial, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A sample; `python tests/signals.py 100` does as many as you like."""
    folder = tmp_path_factory.mktemp("s")  # Sockets in it have at most 107 characters.
    _, found = signals.run(trial, folder, 3.0 * scripts.SLOWNESS / scripts.LEEWAY)
    assert found == ""
