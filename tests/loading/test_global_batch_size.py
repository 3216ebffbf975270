"""`global_batch_size`: the samples of a step, however many processes and micro-batches share them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.compare import close, weights
from helpers.models import Indices, Plain, Stream, quiet
from helpers.processes import deadline
from helpers.scenarios import Results, scenario
from torch import distributed as dist
from torch.utils.data import IterableDataset

from helios_lite import DataModule, Split
from helios_lite.loading.loaders import make_loader
from helios_lite.processes.world import World


def sizes(split: Split, phase: str = "train", size: int = 1, window: int = 1) -> list[list[int]]:
    """The sizes of the batches of each rank."""
    loaders = [make_loader(split, phase, 0, World(rank=rank, size=size), window=window) for rank in range(size)]
    return [[batch[1] for batch in loader.epoch(0, window=window).batches] for loader in loaders]


@pytest.mark.parametrize(("size", "window"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 3), (12, 1)])
def test_a_step_has_as_many_samples_whatever_shares_them(size: int, window: int) -> None:
    found = sizes(Split(Indices(24), global_batch_size=12), "train", size, window)
    assert found == [[12 // (size * window)] * (2 * window)] * size


IMPOSSIBLE = [
    (
        64,
        2,
        3,
        "64 cannot be divided by 2 processes x accumulation_steps=3: accumulation_steps=4 fits, with batches of 8",
    ),
    (
        6,
        2,
        4,
        "6 cannot be divided by 2 processes x accumulation_steps=4: accumulation_steps=3 fits, with batches of 1",
    ),
    (7, 1, 2, "7 cannot be divided by 1 process x accumulation_steps=2: accumulation_steps=7 fits, with batches of 1"),
    (9, 2, 3, "9 cannot be divided by 2 processes x accumulation_steps=3, nor by 2 processes at all; 12 can be"),
]


@pytest.mark.parametrize("dataset", [Indices(99), Stream(99)])
@pytest.mark.parametrize(("number", "size", "window", "text"), IMPOSSIBLE)
def test_what_cannot_be_divided_is_an_error_that_says_what_fits(
    number: int, size: int, window: int, text: str, dataset: Any
) -> None:
    with pytest.raises(ValueError) as caught:
        make_loader(Split(dataset, global_batch_size=number), "train", 0, World(size=size), window=window)
    assert str(caught.value) == f"the train split: global_batch_size={text}"


def test_it_is_an_error_before_anything_is_trained(tmp_path: Path) -> None:
    class Unstarted(Plain):
        def on_training_start(self) -> None:
            raise AssertionError

    with pytest.raises(ValueError, match="accumulation_steps=3: accumulation_steps=4 fits"):
        quiet(root=tmp_path, max_epochs=1, accumulation_steps=3).fit(
            Unstarted(), DataModule(Split(Indices(9), global_batch_size=8))
        )


@pytest.mark.parametrize("phase", ["valid", "valid/small", "test", "predict"])
@pytest.mark.parametrize(("size", "batch_size"), [(1, 8), (2, 4), (3, 3), (5, 2), (9, 1)])
def test_evaluations_take_the_quotient_rounded_up_and_read_every_sample_once(
    phase: str, size: int, batch_size: int
) -> None:
    read = []
    for rank in range(size):
        split = Split(Indices(23), global_batch_size=8)
        loader = make_loader(split, phase, 0, World(rank=rank, size=size), window=3)
        batches = [batch[0][0].tolist() for batch in loader.epoch(0).batches]
        assert max(map(len, batches)) == batch_size
        read += [index for batch in batches for index in batch]
    assert sorted(read) == [*range(23)]


def test_a_limit_counts_batches_of_all_processes(tmp_path: Path) -> None:
    found = [
        make_loader(Split(Indices(40), global_batch_size=8), "train", 0, World(size=2), limit=3, window=window)
        for window in (1, 2)
    ]
    assert [[batch[2] for batch in loader.epoch(0).batches] for loader in found] == [[8, 8, 8], [4, 4, 4]]


def test_the_split_of_the_user_stays_as_it_is() -> None:
    split = Split(Indices(24), global_batch_size=12)
    before = dict(vars(split))
    sizes(split, "train", 2, 3)
    assert vars(split) == before
    assert split.batch_size is None


class Shared(IterableDataset):
    """The samples of `Indices`, of which each rank has its part."""

    def __iter__(self) -> Iterator[Any]:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return map(Indices(0).__getitem__, range(rank, 22, size))


@scenario(ranks=2)
def a_stream_by_two(root: Path, world: World) -> Any:
    split = Split(Shared(), global_batch_size=8)
    phases = {"train": make_loader(split, "train", 0, world, window=2)}
    split = Split(Shared(), global_batch_size=7)
    phases["valid"] = make_loader(split, "valid", 0, world, window=2)
    return world.gather({name: [batch[1] for batch in loader.epoch(0).batches] for name, loader in phases.items()})


def test_a_stream_gives_each_process_its_part_of_a_step(result: Results) -> None:
    found = result(a_stream_by_two, ranks=2)
    assert found == [{"train": [2, 2, 2, 2, 2, 1], "valid": [4, 4, 3]}] * 2
    assert sizes(Split(Shared(), global_batch_size=8), window=2) == [[4, 4, 4, 4, 4, 2]]


class Resuming(Shared):
    """Continues where it was; it says so after its last sample too."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < 11:
            self.position += 1
            yield Indices(0)[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def test_a_stream_with_a_state_that_ends_in_a_part_of_a_batch_has_ended() -> None:
    first, second = (make_loader(Split(Resuming(), global_batch_size=4), "train", 0) for _ in range(2))
    sizes = [batch[1] for batch, _ in zip(first.epoch(0).batches, range(3), strict=False)]
    assert sizes == [4, 4, 3]
    second.load_state_dict(first.state_dict())
    assert list(second.epoch(0, batches=3).batches) == []


# The same training by one process and by two.

LENGTH, EPOCHS = 46, 3  # Five steps of eight samples in an epoch, and one of six.


def fit(window: int, root: Path | None = None, **options: Any) -> Plain:
    model = Plain()
    data = DataModule(Split(Indices(LENGTH), global_batch_size=8, shuffle=True), Split(Indices(7), global_batch_size=3))
    options = {"max_epochs": EPOCHS, "accumulation_steps": window, "sanity_batches": 0, **options}
    model.result = quiet(root=root, **options).fit(model, data)
    return model


def summary(model: Plain) -> dict[str, Any]:
    result = model.result
    return {
        "weights": weights(model)["net"],
        "steps": result.state.step,
        "rates": model.rates[-1],
        "valid": result.metrics["valid/loss"],
    }


@scenario(ranks=2)
def by_two(root: Path, world: World) -> dict[str, Any]:
    found = {f"whole {window}": summary(fit(window)) for window in (1, 2, 4)}
    for step, window in ((7, 1), (9, 4)):  # Where one process was stopped in the second epoch.
        found[f"on {step}"] = summary(fit(window, root / f"one-{step}"))
        fit(window, root / f"two-{step}", max_steps=step, max_epochs=None)
    return found


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("scenarios")
    for step, window in ((7, 2), (9, 1)):
        fit(window, root / f"one-{step}", max_steps=step, max_epochs=None)
    return Results(__name__, root)


def test_another_number_of_processes_changes_neither_the_steps_nor_what_they_compute(result: Results) -> None:
    with deadline(240):
        found = result(by_two, ranks=2)
    one = summary(fit(1))
    assert one["steps"] == 6 * EPOCHS
    assert close(one, summary(fit(4)))
    for name, two in found.items():
        assert close(one, two), name
    for step, window in ((7, 2), (9, 1)):
        assert close(one, summary(fit(window, result.root / f"two-{step}"))), step
