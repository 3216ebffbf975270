"""Batches of similar length: what is in them, how little is padded, and that their order is one of (seed, epoch)."""

import itertools
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import named
from helpers.compare import same, weights
from helpers.models import Indices, Tiny, quiet
from helpers.processes import TESTS, run_python
from torch.utils.data import DataLoader

from helios_lite import DataModule, Split
from helios_lite.loading.loaders import make_loader
from helios_lite.processes.world import World
from helios_lite.samplers import BucketBatchSampler

LENGTHS = [1 + index * 37 % 50 for index in range(230)]
LIMITS: list[dict[str, Any]] = [{"batch_size": 4}, {"max_tokens": 100}, {"batch_size": 8, "max_tokens": 100}]


def sampler(lengths: Sequence[int] = LENGTHS, **options: Any) -> BucketBatchSampler:
    return BucketBatchSampler(lengths, **options)


def epoch(
    number: int, seed: int = 0, *, rank: int = 0, ranks: int = 1, samples: int = 0, **options: Any
) -> list[list[int]]:
    """The batches of an epoch that one of the ranks gets."""
    world = World(rank, rank, ranks)
    split = Split(Indices(len(LENGTHS)), batch_sampler=sampler(**options))
    return [
        batch.data[0].tolist()
        for batch in named(make_loader(split, "train", seed, world).epoch(number, samples=samples).batches)
    ]


def padded(batches: list[list[int]], lengths: Sequence[int] = LENGTHS) -> list[int]:
    """The size of each batch with its padding."""
    return [len(batch) * max(lengths[index] for index in batch) for batch in batches]


def indices(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_every_sample_is_in_one_batch_and_no_batch_exceeds_its_limits(limits: dict[str, Any], shuffle: bool) -> None:
    batches = list(sampler(shuffle=shuffle, **limits))
    assert sorted(indices(batches)) == list(range(230))
    assert max(map(len, batches)) <= limits.get("batch_size", 230)
    assert max(padded(batches)) <= limits.get("max_tokens", 10**9)
    in_order = [LENGTHS[index] for index in indices(batches)]
    assert (in_order == sorted(in_order)) != shuffle
    if "batch_size" in limits and "max_tokens" not in limits:
        assert sorted(map(len, batches))[:2] == [2, 4]  # The last two samples of 230.


def test_a_batch_is_full_before_the_next_one_begins() -> None:
    batches = list(sampler([5, 1, 4, 1, 3, 2], max_tokens=6, shuffle=False))
    assert batches == [[1, 3, 5], [4], [2], [0]]
    assert list(sampler([5, 1, 4, 1, 3, 2], batch_size=2, max_tokens=6, shuffle=False)) == [[1, 3], [5, 4], [2], [0]]
    assert list(sampler([0, 0, 0], max_tokens=1, shuffle=False)) == [[0, 1, 2]]


def test_little_is_padded_and_batches_have_other_samples_in_every_epoch() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randperm(
        10_000, generator=generator
    ).tolist()  # No two alike, so that sorting alone would fix them.

    def waste(batches: list[list[int]]) -> float:
        return 1 - sum(lengths) / sum(padded(batches, lengths))

    shuffled = [part.tolist() for part in torch.randperm(10_000, generator=generator).split(32)]
    assert waste(shuffled) > 0.4
    for limits in ({"batch_size": 32}, {"max_tokens": 200_000}):
        batches = sampler(lengths, **limits)
        first, second = list(batches), list(batches)
        assert waste(first) < 0.05
        assert waste(second) < 0.05
        assert len({frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}) < len(first) / 10
        longest = [max(lengths[index] for index in batch) for batch in first]
        assert sum(a < b for a, b in itertools.pairwise(longest)) < 0.6 * len(longest)  # Not sorted.


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_order_is_a_function_of_seed_and_epoch_alone(limits: dict[str, Any]) -> None:
    orders = [epoch(number, seed, **limits) for number in range(2) for seed in range(2)]
    torch.manual_seed(9)
    assert [epoch(number, seed, **limits) for number in range(2) for seed in range(2)] == orders
    assert len({tuple(indices(order)) for order in orders}) == 4


def test_in_a_loader_of_ones_own_the_order_is_a_function_of_seed_and_epoch_too() -> None:
    def batches(number: int) -> list[list[int]]:
        loader = DataLoader(Indices(230), batch_sampler=sampler(batch_size=4))
        return [batch.data[0].tolist() for batch in named(make_loader(loader, "train", 0).epoch(number).batches)]

    orders = [batches(number) for number in range(2)]
    torch.manual_seed(9)
    assert [batches(number) for number in range(2)] == orders
    assert orders[0] != orders[1]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_any_number_of_ranks_goes_on_from_any_position_with_every_index_once(limits: dict[str, Any]) -> None:
    """At the end fewer samples than ranks may be left out; batches of different lengths are not mixed."""
    whole = epoch(1, **limits)
    for done in (0, 1, len(whole) // 2, len(whole) - 1):
        position = sum(map(len, whole[:done]))
        assert epoch(1, samples=position, **limits) == whole[done:]
        for size in (2, 3, 4):
            ranks = [epoch(1, rank=rank, ranks=size, samples=position, **limits) for rank in range(size)]
            assert len({len(batches) for batches in ranks}) == 1
            visited = [index for batches in ranks for index in indices(batches)]
            assert len(visited) == len(set(visited)) > 230 - position - size
            assert set(visited) <= set(indices(whole[done:]))
            steps = [batch for step in zip(*ranks, strict=True) for batch in step]
            assert all(any(set(batch) <= set(other) for other in whole) for batch in steps)


def data() -> DataModule:
    return DataModule(Split(Indices(230), batch_sampler=sampler(max_tokens=500)), Split(Indices(5), batch_size=4))


def test_a_run_that_is_killed_in_the_middle_of_an_epoch_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """The kill comes in the fifth step, whose predecessor has been saved; then another stop, and the end."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from test_samplers import Tiny, data, quiet

class Killed(Tiny):
    def train_step(self, batch, state):
        super().train_step(batch, state)
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
quiet(root=root, max_epochs=2, save_every_steps=1, async_save=False).fit(Killed(), data())
"""
    whole = Tiny()
    end = quiet(root=tmp_path / "whole", max_epochs=2).fit(whole, data())
    assert run_python(program, tmp_path / "parts").returncode == -signal.SIGKILL
    seen = []
    for stop in (end.state.step - 2, end.state.step):
        model = Tiny()
        result = quiet(root=tmp_path / "parts", max_steps=stop).fit(model, data())
        seen += model.seen
    assert end.state.epoch == 2
    assert end.state.step > 8
    assert seen == whole.seen[-len(seen) :]
    assert len(seen) == 460 - sum(map(len, epoch(0, max_tokens=500)[:4]))
    assert same(weights(model), weights(whole))
    assert result.metrics["valid/loss"] == end.metrics["valid/loss"]


@pytest.mark.parametrize("lengths", [np.array([3, 1, 2]), torch.tensor([3, 1, 2], dtype=torch.uint8), range(1, 4)])
def test_lengths_may_be_of_numpy_or_torch(lengths: Any) -> None:
    assert sorted(indices(list(sampler(lengths, max_tokens=4)))) == [0, 1, 2]


def test_a_change_of_the_list_of_lengths_changes_no_batch() -> None:
    lengths = torch.tensor([1, 1, 2])
    batches = sampler(lengths, max_tokens=2, shuffle=False)  # type: ignore[arg-type]
    lengths.fill_(9)
    assert list(batches) == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ValueError, "^batch_size, max_tokens: at least one"),
        ({"batch_size": 0}, ValueError, "^batch_size=0"),
        ({"batch_size": 2.0}, TypeError, "^batch_size=2.0"),
        ({"max_tokens": True}, TypeError, "^max_tokens=True"),
        ({"max_tokens": -1}, ValueError, "^max_tokens=-1"),
        ({"max_tokens": 4}, ValueError, "^max_tokens=4: sample 2 alone has the length 5"),
        ({"batch_size": 1, "lengths": [1.0]}, TypeError, "^lengths: .* torch.float32"),
        ({"batch_size": 1, "lengths": [[1]]}, TypeError, r"^lengths: .* \(1, 1\)"),
        ({"batch_size": 1, "lengths": ["a"]}, TypeError, "^lengths: "),
        ({"batch_size": 1, "lengths": []}, ValueError, "^lengths: is empty"),
        ({"batch_size": 1, "lengths": [1, -2]}, ValueError, "^lengths: sample 1 has the length -2"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_an_error_that_names_it(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        BucketBatchSampler(**{"lengths": [1, 2, 5], **arguments})


def test_lengths_of_another_dataset_are_an_error_that_says_how_many() -> None:
    with pytest.raises(ValueError, match=r"^batch_sampler: has 230 lengths for a dataset of 7 samples$"):
        Split(Indices(7), batch_sampler=sampler(batch_size=4))
