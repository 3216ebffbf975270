"""One call of the trainer at a time in a process: in threads, in hooks, and in forked processes."""

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import HOOKS, Tiny, data, quiet
from helpers.scripts import DEADLINE

from helios_lite import Callback, DataModule

TASKS = ["fit", "validate", "test"]


class Untouched(DataModule):
    """Fails if a trainer does anything with it."""

    def prepare_data(self) -> None:
        raise AssertionError("prepare_data")

    def setup(self) -> None:
        raise AssertionError("setup")

    def teardown(self) -> None:
        raise AssertionError("teardown")


def start_another(task: str) -> None:
    getattr(quiet(max_steps=1), task)(Tiny("inner"), Untouched())


class Nesting(Callback):
    """Starts another call in one hook, the first time."""

    def __init__(self, hook: str, task: str) -> None:
        self.hook, self.errors = hook, []

        def start(*_: Any, **__: Any) -> dict[str, float]:
            if not self.errors:
                with pytest.raises(RuntimeError) as caught:
                    start_another(task)
                self.errors.append(str(caught.value))
            return {}  # For process_metrics.

        setattr(self, hook, start)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("hook", [name for name in HOOKS if not name.startswith(("on_test", "on_predict", "on_exc"))])
def test_a_call_inside_a_hook_of_fit_is_an_error_that_names_the_first(hook: str, task: str, tmp_path: Path) -> None:
    nesting = Nesting(hook, task)
    model, reference = Tiny(), Tiny()
    quiet(max_steps=3, root=tmp_path, run_name="outer", callbacks=[nesting]).fit(model, data())
    name = f"Trainer.{task} of 'inner' without files: Trainer.fit of 'tiny' in {tmp_path / 'outer'} is running"
    assert [error.startswith(name) for error in nesting.errors] == [True]
    quiet(max_steps=3).fit(reference, data())
    assert same(weights(model), weights(reference))


def test_of_two_threads_one_trains_and_the_other_gets_an_error(tmp_path: Path) -> None:
    inside, finish = threading.Event(), threading.Event()

    class Waiting(Callback):
        def on_training_start(self) -> None:
            inside.set()
            assert finish.wait(DEADLINE)

    model, reference = Tiny(), Tiny()
    trainer = quiet(max_steps=3, callbacks=[Waiting()])
    thread = threading.Thread(target=trainer.fit, args=(model, data()))
    thread.start()
    try:
        assert inside.wait(DEADLINE)
        with pytest.raises(RuntimeError, match=r"^Trainer.fit of 'inner' .*: Trainer.fit of 'tiny' without files is "):
            start_another("fit")
    finally:
        finish.set()
        thread.join()
    quiet(max_steps=3).fit(reference, data())
    assert same(weights(model), weights(reference))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_a_call_that_failed_the_next_one_works(error: type[BaseException]) -> None:
    class Failing(Callback):
        def on_training_start(self) -> None:
            raise error

    with pytest.raises(error):
        quiet(max_steps=1, callbacks=[Failing()]).fit(Tiny(), data())
    assert quiet(max_steps=1).fit(Tiny(), data()).state.step == 1


def fit_in_child(connection: Any) -> None:
    torch.set_num_threads(1)
    connection.send(quiet(max_steps=1).fit(Tiny(), data()).state.step)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_was_forked_in_a_hook_may_train() -> None:
    context = multiprocessing.get_context("fork")
    steps = []

    class Forking(Callback):
        def on_training_end(self) -> None:
            ours, theirs = context.Pipe()
            process = context.Process(target=fit_in_child, args=(theirs,))
            process.start()
            theirs.close()
            steps.append(ours.recv())
            process.join()

    quiet(max_steps=1, callbacks=[Forking()]).fit(Tiny(), data())
    assert steps == [1]


def test_a_call_in_a_hook_of_two_processes_is_an_error_too() -> None:
    with pytest.raises(RuntimeError, match=r"^Trainer.fit of 'inner' .*: Trainer.fit of 'tiny' without files is run"):
        quiet(max_steps=1, devices=2, accelerator="cpu", callbacks=[InLaunched()]).fit(Tiny(), data())


class InLaunched(Callback):
    def on_training_start(self) -> None:
        start_another("fit")
