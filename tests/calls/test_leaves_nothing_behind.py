"""A call leaves nothing behind in the process, whatever it is and however it ends."""

import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from helpers.compare import same
from helpers.models import HOOKS, Indices, Tiny
from helpers.processes import deadline
from rich.console import Console

from helios_lite import Callback, DataModule, Split, Trainer
from helios_lite.callbacks import EMA

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGALRM)


def snapshot() -> dict[str, Any]:
    """Return what a caller finds again after a call."""
    gc.collect()
    name, keys, *rest = numpy.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "random": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "flags": [
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
        ],
        "dtype": str(torch.get_default_dtype()),
        "threads of torch": torch.get_num_threads(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "handlers": [signal.getsignal(number) for number in SIGNALS],
        "wakeup": _wakeup_fd(),
        "logging": [
            (logger.level, [*logger.handlers], logger.propagate, [*logger.filters])
            for logger in (logging.getLogger(), logging.getLogger("helios_lite"), logging.getLogger("py.warnings"))
        ],
        "filters": [*warnings.filters],
        "hooks": [sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stdout, sys.stderr],
        "files": dict(Counter(_open_files())),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": _children(),
        "group": torch.distributed.is_initialized(),
    }


def before_a_call() -> dict[str, Any]:
    """Return a snapshot with random numbers of its own, which no earlier call has left."""
    random.seed()
    numpy.random.seed()
    torch.default_generator.seed()
    return snapshot()


def _wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def _open_files() -> list[str]:
    found = []
    for number in os.listdir("/dev/fd"):
        try:
            path = os.readlink(f"/dev/fd/{number}")
        except OSError:
            continue
        found.append(path if path.startswith("/") else path.partition(":")[0])
    # A batch from a loading process stays as long as the exception whose traceback has it.
    ours = (f"/proc/{os.getpid()}/fd", "/dev/shm/torch_")
    return sorted(path for path in found if not path.startswith(ours))


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return sorted(map(int, text.split()))


class Drawing(Tiny):
    """Draws random numbers everywhere, as users' code does."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        draw()

    def train_step(self, batch: Any, state: Any) -> None:
        draw()
        super().train_step(batch, state)

    def valid_step(self, batch: Any, step: int) -> None:
        draw()
        super().valid_step(batch, step)

    def predict_step(self, batch: Any, step: int) -> Any:
        draw()
        return self.net(batch[1])


def draw() -> None:
    random.random()
    numpy.random.rand()
    torch.rand(())


class Ends(Callback):
    """Does something in one hook, once; a copy of it, which `replay` uses, counts as it."""

    def __init__(self, hook: str, does: Callable[[], None]) -> None:
        self.hook, self.does = hook, does
        self.done: list[str] = []

    def meet(self, hook: str) -> None:
        if hook == self.hook and not self.done:
            self.done.append(hook)
            self.does()


def _meeting(hook: str) -> Callable[..., Any]:
    def method(self: Ends, *arguments: Any, **options: Any) -> Any:
        self.meet(hook)
        return {} if hook == "process_metrics" else None

    return method


for _hook in HOOKS:
    setattr(Ends, _hook, _meeting(_hook))


def fail() -> None:
    raise ValueError("enough of this")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


CALLS: dict[str, Callable[[Trainer, Tiny, DataModule, Path], Any]] = {
    "fit": lambda trainer, model, data, folder: trainer.fit(model, data),
    "validate": lambda trainer, model, data, folder: trainer.validate(model, data),
    "test": lambda trainer, model, data, folder: trainer.test(model, data),
    "predict": lambda trainer, model, data, folder: [*trainer.predict(model, data)],
    "write_predictions": lambda trainer, model, data, folder: trainer.write_predictions(model, data, folder / "out"),
    "replay": lambda trainer, model, data, folder: trainer.replay(model, data, step=2),
}


def make_data() -> DataModule:
    part = Split(Indices(8), batch_size=2, num_workers=1)
    return DataModule(train=part, valid=Split(Indices(4), batch_size=2), test=Split(Indices(4), batch_size=2))


def call(name: str, folder: Path, *callbacks: Callback) -> BaseException | None:
    """Call a method of a trainer that shows everything, and return what it raised."""
    options: dict[str, Any] = {"max_epochs": 2, "deterministic": True, "hang_minutes": 1.0, "precision": "bf16"}
    trainer = Trainer(root=folder, callbacks=[EMA(0.9), *callbacks], **options)
    try:
        CALLS[name](trainer, Drawing(), make_data(), folder)
    except BaseException as error:
        return error
    return None


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """A program that handles SIGTERM, which would end it otherwise; a training handles it itself.

    Tests that a shell has started in the background ignore SIGINT.
    """
    handlers = {signal.SIGTERM: lambda number, frame: sys.exit(128 + number), signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended; everything that is imported once is imported."""
    folder = tmp_path_factory.mktemp("run")
    for name in CALLS:
        assert call(name, folder) is None
    return folder


def require_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    left = Counter(after.pop("files")) - Counter(before.pop("files"))
    assert left == Counter()
    assert {name: (before[name], after[name]) for name in before if not same(before[name], after[name])} == {}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_after_success(name: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path if name == "fit" else run
    with deadline(60):
        before = before_a_call()
        assert call(name, folder) is None
        require_unchanged(before, snapshot())


REACHED: dict[str, list[str]] = {
    "fit": [*HOOKS[: HOOKS.index("on_testing_start")], "process_metrics"],
    "validate": ["setup", *HOOKS[HOOKS.index("on_validation_start") :][:4], "process_metrics"],
    "test": ["setup", *(hook for hook in HOOKS if hook.startswith("on_testing")), "process_metrics"],
    "predict": ["setup", "on_predicting_start", "on_predicting_end"],
    "write_predictions": ["setup", "on_predicting_start", "on_predicting_end"],
    "replay": ["setup", "on_training_start", "on_training_epoch_start", "on_training_batch_start"],
}
"""The hooks that each call reaches."""


def require_nothing_left(name: str, hooks: list[str], does: Callable[[], None], run: Path, tmp_path: Path) -> None:
    for hook in hooks:
        with deadline(60):
            ends = Ends(hook, does)
            before = before_a_call()
            error = call(name, tmp_path / hook if name == "fit" else run, ends)
            require_unchanged(before, snapshot())
        assert ends.done
        assert error is not None


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_after_an_exception_in_any_hook(name: str, run: Path, tmp_path: Path) -> None:
    require_nothing_left(name, REACHED[name], fail, run, tmp_path)


@pytest.mark.parametrize("does", [interrupt, terminate])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_after_a_signal(name: str, does: Callable[[], None], run: Path, tmp_path: Path) -> None:
    require_nothing_left(name, [REACHED[name][0], REACHED[name][-2]], does, run, tmp_path)


def test_trials_of_a_random_search_differ() -> None:
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    drawn = []
    for _ in range(3):
        drawn += [random.random(), numpy.random.rand(), torch.rand(()).item()]
        Trainer(root=None, max_steps=1, progress=False).fit(Drawing(), make_data())
    assert len({*drawn}) == 9


class FailingData(Indices):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            fail()
        return super().__getitem__(index)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize("persistent", [True, False])
def test_no_worker_is_left_after_an_exception_of_the_data(part: str, persistent: bool, run: Path) -> None:
    splits = {"train": make_data().train, "valid": make_data().valid}
    splits[part] = Split(FailingData(8), batch_size=2, num_workers=1, persistent_workers=persistent)
    trainer = Trainer(root=None, max_epochs=1, sanity_batches=0, progress=False, print_banner=False)
    before = _children()
    with pytest.raises(ValueError, match="enough of this") as caught:
        trainer.test(Drawing(), DataModule(**splits), None) if part == "test" else trainer.fit(
            Drawing(), DataModule(**splits)
        )
    assert _children() == before
    assert caught.tb is not None  # It still has the frames.


@pytest.mark.parametrize("shown", [True, False])
def test_what_is_shown_draws_no_random_number(
    shown: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that uses `random` is the same with the banner, the tables and the bars.

    Whether rich draws numbers for its styles depends on its version.
    """
    before = Console.print

    def drawing(self: Console, *arguments: Any, **options: Any) -> None:
        draw()
        before(self, *arguments, **options)

    monkeypatch.setattr(Console, "print", drawing)

    class Noting(Drawing):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[float] = []

        def train_step(self, batch: Any, state: Any) -> None:
            self.drawn.append(random.random())
            super().train_step(batch, state)

    found = []
    for each in (shown, False):
        model = Noting()
        Trainer(root=None, max_epochs=2, print_banner=each, progress=each).fit(model, make_data())
        found.append(model.drawn)
    assert found[0] == found[1]


def test_a_caller_draws_its_own_numbers_between_two_predictions(run: Path) -> None:
    trainer = Trainer(root=run, print_banner=False, progress=False)
    torch.manual_seed(3)
    expected = [torch.rand(()).item() for _ in range(3)]
    torch.manual_seed(3)
    assert [torch.rand(()).item() for _ in trainer.predict(Drawing(), make_data())] == expected[:2]
    assert torch.rand(()).item() == expected[2]
