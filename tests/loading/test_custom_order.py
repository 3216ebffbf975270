"""The order of a loader of the user's, which draws random numbers while it is read: kept at a resume, or a warning."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from helpers.models import Indices, Tiny, quiet
from torch.utils.data import DataLoader, IterableDataset

from helios_lite import DataModule, Split


class Pairs:
    """Two shuffled loaders, batch by batch; they live as long as this, or are made for each epoch."""

    def __init__(self, length: int = 10, is_new: bool = False) -> None:
        self.length, self.is_new = length, is_new
        self.loaders = self.make()

    def make(self) -> list[Any]:
        return [DataLoader(Indices(self.length), 2, shuffle=True) for _ in range(2)]

    def __iter__(self) -> Iterator[Any]:
        for (index, x), (other, _) in zip(*(self.make() if self.is_new else self.loaders), strict=True):
            yield torch.cat([index, other]), torch.cat([x, x])


class Chain(Pairs):
    """One loader after the other, of which the second draws its order when it begins."""

    def __iter__(self) -> Iterator[Any]:
        for loader in self.make() if self.is_new else self.loaders:
            yield from loader


class Mixed(Pairs):
    """Batches of two loaders by turns, which are in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name = dict(zip("ab", self.make(), strict=True))
        self.loaders = []

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(zip(*self.by_name.values(), strict=True))


class Permuted:
    """An order of numpy, or of `random`."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def __iter__(self) -> Iterator[Any]:
        dataset = Indices(10)
        for pair in self.draw().reshape(5, 2).tolist():
            yield torch.tensor(pair), torch.stack([dataset[i][1] for i in pair])


class Buffered(IterableDataset[Any]):
    """Gives a random one of the next three samples, as streams are shuffled."""

    def __iter__(self) -> Iterator[Any]:
        rest = [Indices(10)[i] for i in range(10)]
        while rest:
            yield rest.pop(int(torch.randint(min(3, len(rest)), ())))


class Noisy(Indices):
    """Its samples draw random numbers, which do not matter here."""

    def __getitem__(self, index: int) -> Any:
        torch.rand(1)
        return super().__getitem__(index)


def of_numpy() -> Any:
    return numpy.random.permutation(10)


def of_random() -> Any:
    return numpy.array(random.sample(range(10), 10))


def seen(source: Any, root: Path, name: str, *limits: int, **options: Any) -> list[int]:
    found: list[int] = []
    for steps in limits:
        model = Tiny(name)  # Its dropout draws random numbers between the batches.
        quiet(root=root, max_steps=steps, **options).fit(model, DataModule(train=source))
        found += model.seen
    return found


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Pairs, {}),
        (Pairs, {"accumulation_steps": 2}),
        (Pairs, {"steps_per_epoch": 3}),
        (lambda: Pairs(is_new=True), {}),
        (Chain, {}),
        (Mixed, {"accumulation_steps": 3}),
        (lambda: Permuted(of_numpy), {}),
        (lambda: Permuted(of_random), {}),
    ],
)
def test_an_order_that_is_drawn_when_an_epoch_begins_is_kept(
    make: Any, options: dict[str, Any], tmp_path: Path, caplog: Any
) -> None:
    whole = seen(make(), tmp_path, "whole", 12, **options)
    cut = seen(make(), tmp_path, "cut", 2, 3, 8, 12, **options)
    assert cut == whole
    assert "draws random numbers" not in caplog.text


@pytest.mark.parametrize(
    ("make", "inside"),
    [(lambda: Chain(10, is_new=True), 8), (lambda: Split(Buffered(), batch_size=2), 2)],
)
def test_an_order_that_is_drawn_between_the_numbers_of_the_training_is_a_warning(
    make: Any, inside: int, tmp_path: Path, caplog: Any
) -> None:
    whole = seen(make(), tmp_path, "whole", 10)
    cut = seen(make(), tmp_path, "cut", inside, 10)
    assert cut != whole
    assert caplog.text.count("the train split draws random numbers while it is read") == 1


def test_before_it_is_drawn_it_can_still_be_the_same(tmp_path: Path, caplog: Any) -> None:
    whole = seen(Chain(is_new=True), tmp_path, "whole", 10)
    assert whole == seen(Chain(is_new=True), tmp_path, "cut", 3, 10)
    assert "draws random numbers" not in caplog.text


def test_samples_that_draw_are_no_warning_where_the_order_is_known(tmp_path: Path, caplog: Any) -> None:
    def loader() -> Any:
        return DataLoader(Noisy(10), 2, shuffle=True)

    assert seen(loader(), tmp_path, "whole", 10) == seen(loader(), tmp_path, "cut", 3, 10)
    assert "draws random numbers" not in caplog.text


def test_loaders_in_a_loader_have_orders_of_their_own_which_are_new_in_every_epoch(tmp_path: Path) -> None:
    found = seen(Pairs(), tmp_path, "pairs", 10)
    first, second = ([index for i in range(e, e + 20, 4) for index in found[i : i + 2]] for e in (0, 20))
    other = [index for i in range(2, 20, 4) for index in found[i : i + 2]]
    assert len({tuple(order) for order in (first, second, other)}) == 3
    assert sorted(first) == sorted(second) == sorted(other) == [*range(10)]
    assert seen(Pairs(), tmp_path, "again", 10) == found
