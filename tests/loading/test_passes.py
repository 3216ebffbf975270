"""Epochs of `steps_per_epoch` steps: the split goes on in the next epoch, over resumes as well."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, saved
from helpers.models import Indices, Tiny, quiet
from torch.utils.data import DataLoader, IterableDataset

from helios_lite import DataModule, Split

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")


class Endless(IterableDataset):
    """The samples of `Indices` without an end; notes how often it was begun."""

    def __init__(self, length: int | None = None) -> None:
        self.length, self.begun = length, 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        numbers = itertools.count() if self.length is None else range(self.length)
        return map(Indices(0).__getitem__, numbers)


class Stateful:
    """Batches of `Indices` that continue from a state; notes what it has read."""

    def __init__(self, length: int, size: int) -> None:
        self.batches = list(DataLoader(Indices(length), size))
        self.position, self.read = 0, 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < len(self.batches):
            self.position += 1
            self.read += 1
            yield self.batches[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Drawing:
    """Batches of `Indices`; it draws a random number whenever it is begun, and for every batch."""

    def __iter__(self) -> Iterator[Any]:
        torch.rand(())
        for batch in DataLoader(Indices(22), 4, generator=torch.Generator()):
            torch.rand(())
            yield batch


class Noting(Tiny):
    """Notes what it has seen when an epoch ends and when it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []
        self.validations: list[tuple[int, int]] = []

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.ends.append(len(self.seen))

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self.validations.append((validation_cycle, len(self.seen)))


SOURCES: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: Split(Indices(22), batch_size=4, shuffle=True),
    "workers": lambda: Split(Indices(22), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True),
    "endless": lambda: Split(Endless(), batch_size=4),
    "worker": lambda: Split(Endless(), batch_size=4, num_workers=1),
    "stream": lambda: Split(Endless(22), batch_size=4),
    "stateful": lambda: Stateful(22, 4),
    "drawing": Drawing,
    "list": lambda: list(DataLoader(Indices(22), 4)),
}


def fit(source: Any, root: Path | None = None, **options: Any) -> tuple[Noting, Any]:
    model = Noting()
    valid = Split(Indices(3), batch_size=3)
    options = {"valid_every_epochs": None, "sanity_batches": 0, **options}
    return model, quiet(root=root, **options).fit(model, DataModule(train=source, valid=valid))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_goes_on_in_the_next_epoch_and_is_begun_once(num_workers: int) -> None:
    split = Split(Endless(), batch_size=2, num_workers=num_workers)
    model, result = fit(split, steps_per_epoch=3, max_epochs=4)
    assert model.seen == list(range(24))
    assert model.ends == [6, 12, 18, 24]
    assert (result.state.epoch, result.state.step, result.stop_reason) == (4, 12, "max_epochs")
    assert num_workers == 1 or split.dataset.begun == 1
    assert multiprocessing.active_children() == []


class StopError(Exception):
    pass


def test_workers_of_a_pass_that_goes_on_end_with_the_training() -> None:
    class Failing(Noting):
        def train_step(self, batch: Any, state: Any) -> None:
            if state.step == 2:
                raise StopError

    for model in (Noting(), Failing()):
        error = None
        data = DataModule(train=Split(Endless(), batch_size=2, num_workers=1))
        try:
            quiet(steps_per_epoch=3, max_steps=4).fit(model, data)
        except StopError as caught:
            error = caught  # Its traceback holds the frames of the training.
        assert (error is None) == (type(model) is Noting)
        assert multiprocessing.active_children() == []


def test_an_iterator_that_can_be_used_once_serves_many_epochs() -> None:
    model, _ = fit(iter(DataLoader(Endless(), 2)), steps_per_epoch=3, max_epochs=2)
    assert model.seen == list(range(12))


@pytest.mark.parametrize("name", ["stream", "stateful", "list"])
@pytest.mark.parametrize("window", [1, 4])
def test_after_its_end_a_stream_begins_again_within_the_epoch_and_nothing_is_lost(name: str, window: int) -> None:
    model, result = fit(SOURCES[name](), steps_per_epoch=5, max_epochs=2, accumulation_steps=window)
    passes = [*range(22)] * 9
    assert model.seen == passes[: len(model.seen)]
    assert result.state.step == 10
    assert model.ends == ([20, 38] if window == 1 else [60, 110])  # A pass has 6 steps, or 2 of 16 and 6 samples.


def test_a_dataset_is_read_once_in_each_pass_in_another_order_whatever_the_epochs_are() -> None:
    orders = [fit(SOURCES["shuffled"](), steps_per_epoch=steps, max_steps=18)[0].seen for steps in (4, 7, 1, 100)]
    orders.append(fit(SOURCES["shuffled"](), max_steps=18)[0].seen)
    assert all(order == orders[0] for order in orders)
    assert [sorted(orders[0][i : i + 22]) for i in (0, 22, 44)] == [[*range(22)]] * 3


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("workers", "worker")])
def test_a_run_cut_after_any_step_ends_like_one_that_was_not(name: str, tmp_path: Path) -> None:
    parts = ("state", "model", "monitor", "metrics", "ranks")
    for window in (1, 2):
        options = {"steps_per_epoch": 4, "accumulation_steps": window, "valid_every_epochs": 0.5, "keep_last": 1}
        whole, _ = fit(SOURCES[name](), tmp_path / f"{window}", max_steps=10, **options)
        for step in (1, 2, 3, 4, 5, 7, 8, 9) if window == 1 else (1, 4):
            root = tmp_path / f"{window}-{step}"
            first, _ = fit(SOURCES[name](), root, max_steps=step, **options)
            second, _ = fit(SOURCES[name](), root, max_steps=10, **options)
            assert first.seen + second.seen == whole.seen, (window, step)
            assert same(saved(root / "tiny", *parts), saved(tmp_path / f"{window}/tiny", *parts)), (window, step)


@pytest.mark.parametrize("name", ["workers", "worker"])
def test_with_workers_a_run_cut_inside_an_epoch_and_at_its_end_ends_like_one_that_was_not(
    name: str, tmp_path: Path
) -> None:
    whole, _ = fit(SOURCES[name](), tmp_path / "whole", max_steps=9, steps_per_epoch=4)
    for step in (3, 4):
        root = tmp_path / str(step)
        first, _ = fit(SOURCES[name](), root, max_steps=step, steps_per_epoch=4)
        second, _ = fit(SOURCES[name](), root, max_steps=9, steps_per_epoch=4)
        assert first.seen + second.seen == whole.seen
        assert same(saved(root / "tiny", "model", "ranks"), saved(tmp_path / "whole/tiny", "model", "ranks"))
        assert multiprocessing.active_children() == []


def test_a_stream_with_a_state_reads_no_batch_again_at_a_resume(tmp_path: Path) -> None:
    fit(Stateful(400, 4), tmp_path, max_steps=90, steps_per_epoch=30)
    source = Stateful(400, 4)
    fit(source, tmp_path, max_steps=95, steps_per_epoch=30)
    assert source.read == 5


@pytest.mark.parametrize(("window", "positions"), [(1, [2, 4, 6, 8]), (4, [4, 6, 10, 12])])
def test_a_fraction_of_such_an_epoch_is_one_of_its_steps(window: int, positions: list[int]) -> None:
    """In windows of four, a pass over 22 samples has two steps, of 16 samples and of 6."""
    model, result = fit(
        SOURCES["shuffled"](), steps_per_epoch=4, max_epochs=2, accumulation_steps=window, valid_every_epochs=0.5
    )
    per_step = [4, 8, 12, 16, 20, 22, 26, 30] if window == 1 else [16, 22, 38, 44, 60, 66, 82, 88]
    assert model.validations == [(i, per_step[2 * i - 1]) for i in (1, 2, 3, 4)]
    assert result.state.validated_step == 8


def test_the_option_may_be_set_and_changed_at_a_resume(tmp_path: Path) -> None:
    """Epochs were passes until then; the pass that was begun is finished, and none is read twice."""
    seen: list[int] = []
    ends = []
    for max_steps, steps in ((8, None), (11, 4), (15, 3), (18, 100)):
        model, _ = fit(SOURCES["shuffled"](), tmp_path, max_steps=max_steps, steps_per_epoch=steps)
        seen += model.seen
        ends.append(model.ends)
    assert ends == [[22], [8], [6], []]  # The second epoch, with two steps of six done, was given four.
    assert seen == fit(SOURCES["shuffled"](), max_steps=18)[0].seen


def test_a_split_that_is_replaced_is_read_from_the_position_of_the_other_over_resumes_too(tmp_path: Path) -> None:
    class Growing(DataModule):
        def setup(self) -> None:
            self.grow(1)

        def grow(self, epoch: int) -> None:
            self.train = Split(Indices(20 + 2 * epoch), batch_size=4, shuffle=True)

    class Replacing(Noting):
        def on_training_epoch_start(self, current_epoch: int) -> None:
            datamodule.grow(current_epoch)

    def seen(root: Path, max_steps: int) -> list[int]:
        model = Replacing()
        quiet(root=root, max_steps=max_steps, steps_per_epoch=4).fit(model, datamodule)
        return model.seen

    datamodule = Growing()
    whole = seen(tmp_path / "whole", 13)
    for step in (3, 4, 5, 8):
        assert seen(tmp_path / str(step), step) + seen(tmp_path / str(step), 13) == whole


def test_an_empty_stream_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(ValueError, match="the train split gave no batch"):
        fit(Split(Endless(0), batch_size=4), steps_per_epoch=4, max_epochs=1)
    with pytest.raises(ValueError, match="an iterator can be used for one epoch only"):
        fit(iter(DataLoader(Indices(4), 2)), steps_per_epoch=4, max_epochs=1)
