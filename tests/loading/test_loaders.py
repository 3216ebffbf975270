"""Loaders: order and randomness are functions of (seed, epoch, index), and any position can be jumped to."""

import dataclasses
import gc
import itertools
import math
import multiprocessing
import os
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import named
from helpers.models import Stream
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
    random_split,
)

from helios_lite import Split
from helios_lite.loading import seeding
from helios_lite.loading.loaders import LoaderKeeper, make_loader
from helios_lite.processes.world import World
from helios_lite.samplers import BucketBatchSampler

META = torch.device("meta")


class Indices(Dataset):
    """Its samples are their indices; it notes which were read."""

    def __init__(self, length):
        self.length, self.read = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.read.append(int(index))
        return int(index)


class Noisy(Indices):
    """Its samples are their indices and what torch, random and numpy draw for them."""

    def __getitem__(self, index):
        return int(index), torch.rand(()).item(), random.random(), np.random.rand()


class NoisyBatches(Noisy):
    """Fetches whole batches; it notes which."""

    def __getitems__(self, indices):
        self.read.append(indices)
        return [self[index] for index in indices]


class SizedStream(Stream):
    def __len__(self):
        return self.length


class GlobalSampler:
    """Draws an order from a global generator, in the types that come naturally."""

    def __init__(self, length, source):
        self.length, self.source = length, source

    def __iter__(self):
        if self.source == "torch":
            return iter(torch.randperm(self.length))
        if self.source == "numpy":
            return iter(np.random.permutation(self.length))
        return iter(random.sample(range(self.length), self.length))


class Buckets:
    """Batches of varying size (2, 3, 4, ...), in random order."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        numbers = iter(range(self.length))
        batches = list(itertools.takewhile(len, (list(itertools.islice(numbers, n)) for n in itertools.count(2))))
        random.shuffle(batches)
        return iter(batches)


class Stateful:
    """An iterable of batches that can continue where it was; it notes which batches it made."""

    def __init__(self, length):
        self.length, self.position, self.made = length, 0, []

    def __iter__(self):
        while self.position < self.length:
            self.made.append(self.position)
            self.position += 1
            yield torch.tensor([self.position - 1])
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state_dict):
        self.position = state_dict["position"]


def epoch(source, number=0, *, seed=0, **position):
    return named(make_loader(source, "train", seed).epoch(number, **position).batches)


def plain(batches):
    """What can be compared with == in a list of batches."""
    return [part.tolist() if isinstance(part, torch.Tensor) else [p.tolist() for p in part] for part, *_ in batches]


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def seed_globals(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def order(source, number=0, **kwargs):
    return flat(plain(epoch(source, number, **kwargs)))


def draws(split, **kwargs):
    """What was drawn for each index."""
    return {index: values for batch in plain(epoch(split, **kwargs)) for index, *values in zip(*batch, strict=True)}


# Order.


def test_without_shuffle_the_order_is_the_datasets():
    assert plain(epoch(Split(Indices(7), 3))) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_shuffled_epoch_visits_each_index_once():
    shuffled = order(Split(Indices(23), 4, shuffle=True))
    assert sorted(shuffled) == list(range(23)) != shuffled


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = {tuple(order(Split(Indices(23), 4, shuffle=True), n, seed=seed)) for n in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_the_order_depends_on_nothing_but_seed_and_epoch():
    loader = make_loader(Split(Indices(23), 4, shuffle=True), "train", 3)
    epochs = {n: plain(loader.epoch(n).batches) for n in (2, 0, 1)}
    seed_globals(9)
    for n in range(3):
        assert plain(epoch(Split(Indices(23), 4, shuffle=True), n, seed=3)) == epochs[n]
        assert order(Split(Indices(23), 7, shuffle=True), n, seed=3) == flat(epochs[n])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: Split(Noisy(12), 4, shuffle=True, **options),
        lambda **options: Split(NoisyBatches(12), 4, shuffle=True, **options),
        lambda **options: Split(Indices(12), 4, sampler=GlobalSampler(12, "random"), **options),
        lambda **options: Split(TensorDataset(torch.arange(12)), 4, shuffle=True, **options),
        lambda **options: DataLoader(Indices(12), 4, shuffle=True, **options),
    ],
    ids=["split", "getitems", "sampler", "tensors", "loader"],
)
def test_the_global_generators_of_the_training_are_untouched(make, num_workers):
    def draw():
        return torch.rand(()).item(), random.random(), np.random.rand()

    def seed_and_draw(batches):
        seed_globals(5)
        return [draw() for _ in batches] + [draw()]

    loader = make_loader(make(num_workers=num_workers), "train", 0)
    assert seed_and_draw(loader.epoch(0).batches) == seed_and_draw(range(3))


# Position.


@pytest.mark.parametrize("done", [0, 4, 12, 20, 23])
def test_an_epoch_continued_is_the_tail_of_the_uninterrupted_one(done):
    whole = epoch(Split(Noisy(23), 4, shuffle=True), 2)
    rest = epoch(Split(Noisy(23), 4, shuffle=True), 2, samples=done)
    assert plain(rest) == plain(whole)[math.ceil(done / 4) :]
    assert [batch[1:] for batch in rest] == [batch[1:] for batch in whole[math.ceil(done / 4) :]]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4, "shuffle": True},
        {"batch_size": 4},
        {"batch_sampler": Buckets(23)},
        {"batch_sampler": BucketBatchSampler(range(1, 24), max_tokens=40)},
    ],
)
def test_continuing_never_reads_a_skipped_sample(options):
    whole, rest = Indices(23), Indices(23)
    sizes = [batch.size for batch in epoch(Split(whole, **options))]
    epoch(Split(rest, **options), samples=sum(sizes[:3]))
    assert rest.read == whole.read[sum(sizes[:3]) :]


def test_another_batch_size_continues_at_the_same_sample():
    whole = order(Split(Indices(23), 4, shuffle=True))
    assert order(Split(Indices(23), 3, shuffle=True), samples=8) == whole[8:]


def test_another_number_of_workers_continues_with_the_same_samples():
    whole = epoch(Split(Noisy(23), 4, shuffle=True))
    assert plain(epoch(Split(Noisy(23), 4, shuffle=True, num_workers=1), samples=8)) == plain(whole)[2:]


# Batches and windows.


@pytest.mark.parametrize(
    ("length", "drop_last", "sizes"),
    [(11, False, [4, 4, 3]), (11, True, [4, 4]), (12, True, [4, 4, 4]), (3, False, [3])],
)
def test_the_last_batch_is_what_is_left_or_left_out(length, drop_last, sizes):
    split = Split(Indices(length), 4, shuffle=True, drop_last=drop_last)
    batches = epoch(split)
    assert [len(batch.data) for batch in batches] == [batch.size for batch in batches] == sizes
    assert make_loader(split, "train", 0).epoch(0).length == len(sizes)


def test_with_drop_last_nothing_is_left_after_the_last_full_batch():
    assert epoch(Split(Indices(11), 4, drop_last=True), samples=8) == []


@pytest.mark.parametrize("done", [0, 3])
def test_a_window_knows_its_shares_and_its_end(done):
    """23 samples make 6 batches, the last of 3: a window of three batches, and one of 4 + 4 + 3."""
    loader = make_loader(Split(Indices(23), 4), "train", 0)
    batches, length = loader.epoch(0, samples=4 * done, window=3)
    expected = [
        (4, 4 / 12, False, False),
        (4, 4 / 12, False, False),
        (4, 4 / 12, True, False),
        (4, 4 / 11, False, False),
        (4, 4 / 11, False, False),
        (3, 3 / 11, True, True),
    ][done:]
    assert [(size, *place) for _, size, _, *place in batches] == expected
    assert length == len(expected)


@pytest.mark.parametrize("window", [2, 4, 5, 100])
def test_a_share_is_the_part_of_the_samples_of_the_window(window):
    for source in (
        Split(Indices(23), 4),
        Split(Indices(23), batch_sampler=Buckets(23)),
        [torch.ones(n) for n in (3, 4, 1)],
    ):
        batches = epoch(source, window=window)
        ends = [i for i, batch in enumerate(batches, start=1) if batch.completes_step]
        assert ends == sorted({*range(window, len(batches), window), len(batches)})
        for low, high in itertools.pairwise([0, *ends]):
            total = sum(batch.size for batch in batches[low:high])
            assert [batch.loss_weight for batch in batches[low:high]] == [
                batch.size / total for batch in batches[low:high]
            ]


def test_a_window_of_a_foreign_loader_knows_its_shares_and_its_end():
    batches = epoch([torch.ones(4), torch.ones(4), torch.ones(2)], window=2)
    assert [tuple(batch[1:5]) for batch in batches] == [(4, 4, 0.5, False), (4, 4, 0.5, True), (2, 2, 1.0, True)]


@pytest.mark.parametrize("dataset", [Indices(5), TensorDataset(torch.arange(5))], ids=["indices", "tensors"])
def test_a_collate_fn_gets_the_list_of_samples(dataset):
    def collate(samples):
        assert isinstance(samples, list)
        return torch.tensor([int(sample[0] if isinstance(sample, tuple) else sample) * 10 for sample in samples])

    assert order(Split(dataset, 2, collate_fn=collate)) == [0, 10, 20, 30, 40]


# Randomness of the samples.


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 1},
        {"num_workers": 2},
        {"num_workers": 2, "prefetch_factor": 5},
        {"num_workers": 2, "persistent_workers": True},
    ],
    ids=str,
)
def test_any_number_of_workers_gives_the_same_batches(options):
    alone = make_loader(Split(Noisy(23), 4, shuffle=True), "train", 0)
    helped = make_loader(Split(Noisy(23), 4, shuffle=True, **options), "train", 0)
    for n in range(2):
        assert plain(helped.epoch(n).batches) == plain(alone.epoch(n).batches)


def test_persistent_workers_outlive_an_abandoned_epoch():
    alone = [plain(epoch(Split(Noisy(40), 4, shuffle=True), n)) for n in range(3)]
    loader = make_loader(Split(Noisy(40), 4, shuffle=True, num_workers=2, persistent_workers=True), "train", 0)
    assert plain(loader.epoch(0).batches) == alone[0]
    assert plain(itertools.islice(loader.epoch(1).batches, 3)) == alone[1][:3]
    assert plain(loader.epoch(2).batches) == alone[2]
    assert plain(loader.epoch(1, samples=12).batches) == alone[1][3:]


def test_each_sample_of_each_epoch_and_seed_draws_its_own():
    drawn = [draws(Split(Noisy(23), 4), number=n, seed=seed) for n in range(2) for seed in range(2)]
    for i in range(3):
        assert len({values[i] for epoch in drawn for values in epoch.values()}) == 4 * 23


@pytest.mark.parametrize(
    "make",
    [
        lambda: Noisy(23),
        lambda: Subset(Noisy(40), range(5, 28)),
        lambda: Subset(Subset(Noisy(40), range(1, 39)), range(5, 28)),
    ],
    ids=["dataset", "subset", "subset of subset"],
)
def test_what_a_sample_draws_does_not_depend_on_batch_size_or_order(make):
    assert draws(Split(make(), 3)) == draws(Split(make(), 8)) == draws(Split(make(), 5, shuffle=True))


@pytest.mark.parametrize("convert", [np.int64, torch.tensor], ids=["numpy", "torch"])
def test_what_a_sample_draws_does_not_depend_on_the_type_of_its_index(convert):
    sampler = [convert(i) for i in range(23)]
    for seed in range(4):
        assert draws(Split(Noisy(23), 4, sampler=sampler), seed=seed) == draws(Split(Noisy(23), 4), seed=seed)


def test_a_dataset_that_fetches_batches_is_called_once_per_batch():
    dataset = NoisyBatches(9)
    first = plain(epoch(Split(dataset, 2)))
    assert dataset.read == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert plain(epoch(Split(dataset, 2))) == first
    assert len({batch[1][0] for batch in first}) == 5
    dataset.read.clear()
    epoch(Split(Subset(dataset, [8, 6, 4]), 2))
    assert dataset.read == [[8, 6], [4]]


def test_without_seed_samples_the_dataset_draws_from_the_global_generators():
    torch.manual_seed(1)
    expected = [torch.rand(()).item() for _ in range(6)]
    torch.manual_seed(1)
    batches = epoch(Split(Noisy(6), 3, seed_samples=False))
    assert [value for batch in plain(batches) for value in batch[1]] == expected


# Tensors in memory.


def test_a_tensor_dataset_gives_the_samples_of_any_other_dataset():
    x, y = torch.arange(23), torch.randn(23, 2)
    batches = epoch(Split(TensorDataset(x, y), 4, shuffle=True), 1, samples=8)
    assert [batch.data[0].tolist() for batch in batches] == plain(
        epoch(Split(Indices(23), 4, shuffle=True), 1, samples=8)
    )
    for batch in batches:
        assert torch.equal(batch.data[1], y[batch.data[0]])


def test_the_parts_of_a_random_split_give_their_own_samples():
    parts = random_split(TensorDataset(torch.arange(23)), [15, 8])
    for part in parts:
        seen = [index for batch in plain(epoch(Split(part, 4, shuffle=True))) for index in batch[0]]
        shuffled = order(Split(Indices(len(part)), 4, shuffle=True))
        assert seen == [part.indices[i] for i in shuffled]


def test_tensors_in_memory_are_gathered_as_a_data_loader_would_batch_them():
    """Same samples, order, dtypes and container as by the loading process; and no view of the dataset."""
    tensors = TensorDataset(torch.arange(23), torch.rand(23, 2, dtype=torch.float64), torch.ones(23, dtype=torch.bool))
    dataset = Subset(Subset(tensors, range(22, 0, -1)), [3, 1, 4, 15, 9, 2, 6])
    here, there = (list(epoch(Split(dataset, 3, shuffle=True, num_workers=n))) for n in (0, 1))
    assert len(here) == 3
    for mine, other in zip(here, there, strict=True):
        assert type(mine.data) is type(other.data) is list
        assert [part.dtype for part in mine.data] == [part.dtype for part in other.data]
        assert all(torch.equal(a, b) for a, b in zip(mine.data, other.data, strict=True))
    before = [tensor.clone() for tensor in tensors.tensors]
    for batch in epoch(Split(tensors, 4)):
        batch.data[0].zero_()
    assert all(torch.equal(a, b) for a, b in zip(tensors.tensors, before, strict=True))


class OfDevice(torch.Tensor):
    """A tensor whose rows are chosen by indices on its own device alone, as those of a GPU are."""

    def index_select(self, dim, index):
        if index.device != self.device:
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().index_select(dim, index)


@pytest.mark.parametrize("kind", [TensorDataset, lambda x, y: {"x": x, "y": y}], ids=["tensors", "dict"])
def test_tensors_on_a_device_are_gathered_there(kind):
    there = torch.empty(7, 2, device=META).as_subclass(OfDevice)
    for dataset in (kind(there, torch.arange(7)), Subset(Split(kind(there, torch.arange(7)), 1).dataset, [5, 3, 4])):
        for batch in epoch(Split(dataset, 2, shuffle=True)):
            x, y = batch.data.values() if isinstance(batch.data, dict) else batch.data
            assert (x.device, y.device.type) == (META, "cpu")
            assert len(x) == len(y) == batch.size


def arrays(folder):
    """Return tensors, an array, a memory map that can only be read, and indices, of 23 samples."""
    np.save(folder / "map.npy", np.random.default_rng(0).random((23, 2, 3), dtype=np.float32))
    return {
        "index": torch.arange(23),
        "half": torch.rand(23, 2, dtype=torch.float16),
        "array": np.arange(46.0).reshape(23, 2),
        "flags": np.arange(23) % 2 == 0,
        "map": np.load(folder / "map.npy", mmap_mode="r"),
    }


def test_a_dict_of_arrays_and_memory_maps_is_batched_in_this_process_as_by_workers(tmp_path):
    whole = arrays(tmp_path)
    for dataset in (whole, Subset(Split(whole, 1).dataset, range(22, 0, -1))):
        here, there = (list(epoch(Split(dataset, 4, shuffle=True, num_workers=n))) for n in (0, 1))
        assert [batch.size for batch in here] == [batch.size for batch in there]
        for mine, other in zip(here, there, strict=True):
            assert mine.data.keys() == other.data.keys() == whole.keys()
            for name, rows in mine.data.items():
                index = mine.data["index"]
                array = whole[name]
                expected = (array if isinstance(array, torch.Tensor) else torch.from_numpy(array.copy()))[index]
                assert rows.dtype == expected.dtype
                assert torch.equal(rows, expected)
                assert torch.equal(rows, other.data[name])
    expected_order = order(Split(Indices(23), 4, shuffle=True))
    assert [index for batch in epoch(Split(whole, 4, shuffle=True)) for index in batch.data["index"].tolist()] == (
        expected_order
    )
    for batch in epoch(Split(whole, 4)):
        batch.data["array"].zero_()  # It is no view.
    assert whole["array"].sum() == sum(range(46))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({}, "dataset: is a dict without arrays"),
        ({"x": torch.zeros(3), "y": np.zeros(4)}, "dataset: the arrays have different lengths: {'x': 3, 'y': 4}"),
        ({"x": [1, 2]}, "dataset['x']: is a list; a dict must have tensors or NumPy arrays of numbers"),
        ({"x": np.array(["a"])}, "dataset['x']: is a ndarray; a dict must have tensors or NumPy arrays of numbers"),
        ({"x": torch.tensor(1.0)}, "dataset['x']: is a single number and not one for each sample"),
    ],
)
def test_a_dict_that_is_no_dataset_is_refused_with_the_name_of_the_array(dataset, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        Split(dataset, 1)


# Samplers.

SAMPLERS = {
    "weighted": lambda: {"batch_size": 4, "sampler": WeightedRandomSampler(torch.arange(1.0, 24), 23)},
    "generator": lambda: {"batch_size": 4, "sampler": RandomSampler(range(23), generator=torch.Generator())},
    "distributed": lambda: {"batch_size": 4, "sampler": DistributedSampler(range(23), num_replicas=1, rank=0)},
    "global torch": lambda: {"batch_size": 4, "sampler": GlobalSampler(23, "torch")},
    "global numpy": lambda: {"batch_size": 4, "sampler": GlobalSampler(23, "numpy")},
    "global random": lambda: {"batch_size": 4, "sampler": GlobalSampler(23, "random")},
    "buckets": lambda: {"batch_sampler": Buckets(23)},
    "lengths": lambda: {"batch_sampler": BucketBatchSampler([index % 7 for index in range(23)], batch_size=4)},
    "batches": lambda: {"batch_sampler": torch.utils.data.BatchSampler(RandomSampler(range(23)), 4, drop_last=False)},
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_the_order_of_a_sampler_is_a_function_of_seed_and_epoch(make):
    loader = make_loader(Split(Indices(23), **make()), "train", 0)
    epochs = [plain(loader.epoch(n).batches) for n in range(2)]
    seed_globals(9)
    assert plain(epoch(Split(Indices(23), **make()), 1)) == epochs[1] != epochs[0]
    assert len(flat(epochs[0])) == 23


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_continues_in_the_middle(make):
    whole = epoch(Split(Indices(23), **make()), 1, window=2)
    done = sum(batch.size for batch in whole[:2])
    batches, length = make_loader(Split(Indices(23), **make()), "train", 0).epoch(1, samples=done, window=2)
    rest = list(batches)
    assert plain(rest) == plain(whole)[2:]
    assert [batch[1:] for batch in rest] == [batch[1:] for batch in whole[2:]]
    assert length == len(rest)


def test_a_sampler_may_repeat_or_leave_out_indices():
    assert order(Split(Indices(9), 2, sampler=[8, 8, 1])) == [8, 8, 1]


def test_batches_of_a_batch_sampler_keep_their_sizes():
    batches = epoch(Split(Indices(23), batch_sampler=Buckets(23)))
    assert sorted(batch.size for batch in batches) == [2, 3, 3, 4, 5, 6]
    assert [batch.size for batch in batches] == [len(batch.data) for batch in batches]


@pytest.mark.parametrize("batched", [Split, DataLoader])
def test_set_epoch_is_called_with_the_epoch(batched):
    sampler = DistributedSampler(range(9), num_replicas=1, rank=0)
    epoch(batched(Indices(9), 4, sampler=sampler), 3)
    assert sampler.epoch == 3


# Foreign loaders and iterables.


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_ready_loader_shuffles_by_seed_and_epoch(num_workers):
    def ready():
        return DataLoader(Indices(20), 4, shuffle=True, num_workers=num_workers)

    loader = make_loader(ready(), "train", 0)
    epochs = [plain(loader.epoch(n).batches) for n in range(2)]
    torch.manual_seed(9)
    assert plain(epoch(ready(), 1)) == epochs[1] != epochs[0]
    assert plain(epoch(ready(), 1, seed=1)) != epochs[1]
    assert plain(epoch(ready(), 1, batches=2)) == epochs[1][2:]
    assert make_loader(ready(), "train", 0).epoch(1, batches=2).length == 3


def test_a_list_of_batches_is_read_anew_in_every_epoch():
    loader = make_loader([torch.tensor([0, 1]), torch.tensor([2])], "train", 0)
    for n in range(2):
        assert plain(loader.epoch(n).batches) == [[0, 1], [2]]
    batches, length = loader.epoch(2, batches=1)
    assert (plain(batches), length) == ([[2]], 1)


def test_the_last_batch_is_marked_where_the_length_cannot_be_wrong():
    class Sized:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter(batches)

    batches = [torch.tensor([i]) for i in range(3)]
    expected = {1: [False, False, True], 2: [False, False, True]}
    for source in (batches, tuple(batches), DataLoader(TensorDataset(torch.arange(3)))):
        for window, marks in expected.items():
            loader = make_loader(source, "train", 0)
            assert loader.marks_last
            assert [batch.is_last for batch in named(loader.epoch(0, window=window).batches)] == marks
        limited = make_loader(source, "train", 0, limit=2)
        assert [batch.is_last for batch in named(limited.epoch(0).batches)] == [False, True]
        assert [batch.is_last for batch in named(limited.epoch(1, batches=1).batches)] == [True]
    loader = make_loader(Sized(), "train", 0)
    assert not loader.marks_last
    assert not any(batch.is_last for batch in named(loader.epoch(0).batches))


def test_a_generator_can_be_used_for_one_epoch_only():
    loader = make_loader((torch.tensor([i]) for i in range(3)), "train", 0)
    batches, length = loader.epoch(0)
    assert (plain(batches), length) == ([[0], [1], [2]], None)
    with pytest.raises(ValueError, match=r"train.*one epoch"):
        list(loader.epoch(1).batches)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("dataset", "length"), [(Stream(10), None), (SizedStream(10), 5)], ids=["stream", "sized"])
def test_an_iterable_dataset_is_batched_and_read_up_to_the_position(dataset, length, num_workers):
    split = Split(dataset, 2, num_workers=num_workers)
    batches, known = make_loader(split, "train", 0).epoch(0)
    whole = plain(batches)
    assert sorted(flat(whole)) == list(range(10))
    assert known == length
    assert plain(epoch(split, batches=3)) == whole[3:]


def test_a_ready_loader_need_not_know_its_length():
    batches, length = make_loader(DataLoader(Indices(9), batch_sampler=Buckets(9)), "train", 0).epoch(0)
    assert sorted(flat(plain(batches))) == list(range(9))
    assert length is None


def test_an_object_that_keeps_its_position_is_restored_and_not_read_again():
    first, second = (make_loader(Stateful(5), "train", 0) for _ in range(2))
    list(itertools.islice(first.epoch(0).batches, 2))
    second.load_state_dict(first.state_dict())
    assert plain(second.epoch(0, batches=2).batches) == [[2], [3], [4]]
    assert second.source.made == [2, 3, 4]
    assert plain(second.epoch(1).batches) == [[0], [1], [2], [3], [4]]


class Epochs(Stream):
    """Its samples are the epoch that it knows of."""

    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return (self.epoch for _ in super().__iter__())


class Wrapped(IterableDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset)


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}], ids=str)
@pytest.mark.parametrize("wrap", [lambda dataset: dataset, Wrapped], ids=["dataset", "wrapped"])
def test_an_iterable_dataset_knows_the_epoch_whatever_came_before(wrap, options):
    loader = make_loader(Split(wrap(Epochs(4)), 2, **options), "train", 0)
    for n in (0, 1, 5):
        assert flat(plain(loader.epoch(n).batches)) == [n] * 4


def test_a_loader_whose_workers_do_not_see_the_epoch_is_a_warning_that_names_the_dataset(caplog):
    def warnings(source, phase="train"):
        caplog.clear()
        make_loader(source, phase, 0)
        return [record.getMessage() for record in caplog.records]

    persistent = {"num_workers": 1, "persistent_workers": True}
    for dataset in (Epochs(4), Wrapped(Epochs(4))):
        (message,) = warnings(DataLoader(dataset, 2, **persistent))
        assert "persistent_workers" in message
        assert type(dataset).__name__ in message
        assert warnings(DataLoader(dataset, 2, **persistent), "valid") == []
        assert warnings(DataLoader(dataset, 2, num_workers=1)) == []
    assert warnings(DataLoader(Stream(4), 2, **persistent)) == []
    assert warnings(Split(Epochs(4), 2, **persistent)) == []


class Drawing(Stateful):
    """Draws a number for every batch from its generator, which belongs to its state."""

    def __init__(self, length):
        super().__init__(length)
        self.generator = torch.Generator()

    def __iter__(self):
        return (batch + torch.rand((), generator=self.generator) for batch in super().__iter__())

    def state_dict(self):
        return {"position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.generator.set_state(state_dict["generator"])


def test_the_generator_of_a_restored_object_is_not_seeded_again():
    first, second = (make_loader(Drawing(5), "train", 0) for _ in range(2))
    whole = iter(first.epoch(0).batches)
    list(itertools.islice(whole, 2))
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["loader"]["position"] == 2  # Also before it is loaded.
    assert plain(second.epoch(0, batches=2).batches) == plain(whole)
    assert plain(second.epoch(1).batches) == plain(first.epoch(1).batches)


def test_an_object_that_ended_in_the_last_window_has_no_batch_left_and_starts_anew_in_the_next_epoch():
    first, second = (make_loader(Stateful(5), "train", 0) for _ in range(2))
    batches = first.epoch(0, window=3).batches
    list(itertools.islice(batches, 5))
    assert first.source.position == 0  # It has been read to its end, because a window is read before it is used.
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    batches, length = second.epoch(0, batches=5, window=3)
    assert (list(batches), length) == ([], 0)
    assert plain(second.epoch(1, window=3).batches) == [[0], [1], [2], [3], [4]]
    third = make_loader(Stateful(5), "train", 0)
    third.load_state_dict(first.state_dict())  # As it is saved at the end of the epoch.
    assert plain(third.epoch(1, window=3).batches) == [[0], [1], [2], [3], [4]]


# Errors.


@pytest.mark.parametrize(
    "source",
    [
        lambda: Split(Indices(0), 4),
        lambda: Split(Indices(3), 4, drop_last=True),
        lambda: Split(Indices(3), 4, sampler=[]),
        lambda: Split(Indices(3), batch_sampler=[]),
        lambda: Split(Stream(0), 4),
        lambda: DataLoader(Indices(3), 4, drop_last=True),
        list,
        lambda: iter([]),
    ],
    ids=["dataset", "drop_last", "sampler", "batch_sampler", "iterable-dataset", "loader", "list", "iterator"],
)
def test_a_split_without_batches_is_an_error_that_names_it(source):
    with pytest.raises(ValueError, match="the valid/small split"):
        list(make_loader(source(), "valid/small", 0).epoch(0).batches)


class Both:
    """Two loaders, one after the other."""

    def __init__(self, sampler=None):
        self.loaders = [DataLoader(Indices(6), 2, sampler=sampler) for _ in range(2)]

    def __iter__(self):
        return itertools.chain(*self.loaders)


def test_a_loader_that_gives_all_ranks_the_same_is_an_error_and_one_that_shares_is_not():
    several = World(rank=1, size=2)
    for same in (DataLoader(Indices(6), 2), DataLoader(Indices(6), 2, shuffle=True), DataLoader(Indices(6), None)):
        with pytest.raises(ValueError, match="the train split is a DataLoader that gives all 2 ranks the same"):
            make_loader(same, "train", 0, several)
    for name, both in (("Both", Both()), ("zip", zip(*Both().loaders, strict=True))):
        with pytest.raises(ValueError, match=f"is a {name} of DataLoaders that gives all 2 .* `train` may be a dict"):
            make_loader(both, "train", 0, several)
    shared_by_ranks = Both(DistributedSampler(range(6), 2, 1))
    loader = make_loader(shared_by_ranks, "train", 0, several)
    first, second = (plain(loader.epoch(epoch).batches) for epoch in (0, 2))
    assert first != second
    sampler = DistributedSampler(range(6), 2, 1, shuffle=False)
    for shared in (
        DataLoader(Indices(6), 3, sampler=sampler),
        DataLoader(Indices(6), batch_sampler=BatchSampler(sampler, 3, False)),
    ):
        assert plain(make_loader(shared, "train", 0, several).epoch(0).batches) == [[1, 3, 5]]
    make_loader(DataLoader(Indices(6), batch_sampler=Buckets(6)), "train", 0, several)  # Who knows.


@pytest.mark.parametrize("source", [3, None, object()], ids=["int", "None", "object"])
def test_what_is_no_data_is_an_error_that_names_the_split(source):
    with pytest.raises(TypeError, match=f"the valid split is a {type(source).__name__}"):
        make_loader(source, "valid", 0)


class Ending(Indices):
    """Raises StopIteration for an index, as `next` of an iterator that it keeps would do."""

    def __getitem__(self, index):
        if index == 9:
            raise StopIteration
        return int(index)


def collate_and_end(samples):
    if 9 in samples:
        raise StopIteration
    return torch.tensor(samples)


@pytest.mark.parametrize(("num_workers", "phase"), [(0, "train"), (0, "valid"), (2, "train")])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: Split(Ending(20), 2, **options),
        lambda **options: Split(Ending(20), 2, seed_samples=False, **options),
        lambda **options: Split(Ending(20), batch_sampler=[[2 * i, 2 * i + 1] for i in range(10)], **options),
        lambda **options: Split(Indices(20), 2, collate_fn=collate_and_end, **options),
        lambda **options: DataLoader(Ending(20), 2, **options),
        lambda **options: DataLoader(Indices(20), 2, collate_fn=collate_and_end, **options),
    ],
    ids=["split", "unseeded", "batch_sampler", "collate", "loader", "loader collate"],
)
def test_an_epoch_that_gives_fewer_batches_than_its_plan_is_an_error_that_says_how_many(make, phase, num_workers):
    loader = make_loader(make(num_workers=num_workers), phase, 0)
    with pytest.raises(RuntimeError, match=f"the {phase} split gave 4 of 10 batches: .* StopIteration"):
        list(loader.epoch(0).batches)
    with pytest.raises(RuntimeError, match=r"gave 1 of 7 batches from (sample 6|batch 3) on"):
        list(loader.epoch(0, samples=6, batches=3).batches)


def test_the_window_in_which_an_epoch_ends_too_early_is_not_given():
    loader = make_loader(DataLoader(Ending(20), 2), "train", 0)
    batches = loader.epoch(0, window=3).batches
    assert plain(itertools.islice(batches, 3)) == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(RuntimeError, match="the train split gave 4 of 10 batches"):
        next(batches)


def test_a_collate_fn_does_not_end_an_iterable_dataset():
    with pytest.raises(RuntimeError, match="collate_fn raised StopIteration"):
        epoch(Split(Stream(20), 2, collate_fn=collate_and_end))


class Overstated(Stream):
    def __len__(self):
        return 2 * self.length


class MoreThanItGives(list):
    def __len__(self):
        return 10


def test_the_length_of_a_custom_loader_may_be_wrong():
    assert order(Split(Overstated(6), 2)) == order(DataLoader(Overstated(6), 2)) == list(range(6))
    assert order(DataLoader(Indices(6), 2, sampler=MoreThanItGives([3, 1]))) == [3, 1]
    assert order(MoreThanItGives([torch.tensor([0]), torch.tensor([1])])) == [0, 1]


class Endless:
    """A sampler that says the length of its dataset, and goes on."""

    def __len__(self):
        return 4

    def __iter__(self):
        return itertools.cycle(range(4))


@pytest.mark.parametrize(
    "options",
    [
        lambda: {"batch_size": 2, "sampler": Endless()},
        lambda: {"batch_size": 2, "sampler": itertools.count()},
        lambda: {"batch_sampler": BatchSampler(Endless(), 2, drop_last=False)},
    ],
    ids=["sampler", "iterator", "batch_sampler"],
)
def test_a_sampler_without_an_end_is_an_error_that_says_how_many_were_drawn(options):
    with pytest.raises(ValueError, match=r"sampler (Endless|count|BatchSampler): .* finite, .* 1,000,000 .* 4 samples"):
        make_loader(Split(Indices(4), **options()), "train", 0).epoch(0)


def test_a_sampler_may_be_much_longer_than_its_dataset():
    assert make_loader(Split(Indices(4), 10, sampler=range(1_000_010)), "train", 0).epoch(0).length == 100_001
    assert make_loader(Split(Indices(4), 10, sampler=iter(range(1_000_000))), "train", 0).epoch(0).length == 100_000


@pytest.mark.parametrize("source", [Split(Indices(5), 2), [torch.ones(2), torch.ones(2), torch.ones(1)]])
def test_a_window_may_be_longer_than_any_epoch(source):
    assert [batch.completes_step for batch in epoch(source, window=10**30)] == [False, False, True]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_an_iterator_that_begins_anew_after_its_end_gives_one_epoch(window):
    class Restarting:
        """Its iterator is itself, and starts again after it has ended."""

        def __init__(self):
            self.position = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.position == 3:
                self.position = 0
                raise StopIteration
            self.position += 1
            return torch.tensor([self.position])

    batches = itertools.islice(make_loader(Restarting(), "train", 0).epoch(0, window=window).batches, 10)
    assert flat(plain(batches)) == [1, 2, 3]


# The epoch of a dataset.


class Curriculum(Dataset):
    """Sample i is (the epoch that it was told, i)."""

    def __init__(self, length: int = 4) -> None:
        self.length, self.epoch = length, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([self.epoch, index])


MADE_OF = {
    "itself": Curriculum,
    "subset": lambda: Subset(Curriculum(8), range(4)),
    "several": lambda: ConcatDataset([Curriculum(1), Subset(Curriculum(5), [4, 2, 0])]),
}
WORKERS = [{}, {"num_workers": 1}, {"num_workers": 2, "persistent_workers": True}]


@pytest.mark.parametrize("seed_samples", [True, False])
@pytest.mark.parametrize("options", WORKERS)
@pytest.mark.parametrize("kind", MADE_OF)
def test_a_dataset_of_a_split_is_told_every_epoch(kind: str, options: dict[str, Any], seed_samples: bool) -> None:
    split = Split(MADE_OF[kind](), 2, shuffle=True, seed_samples=seed_samples, **options)
    loader = make_loader(split, "train", 0)
    for epoch in (0, 1, 2):
        assert [batch.data[:, 0].tolist() for batch in named(loader.epoch(epoch).batches)] == [[epoch] * 2] * 2
    resumed = make_loader(Split(MADE_OF[kind](), 2, seed_samples=seed_samples, **options), "train", 0)
    assert [batch.data[:, 0].tolist() for batch in named(resumed.epoch(5, samples=2).batches)] == [[5] * 2]


@pytest.mark.parametrize("kind", MADE_OF)
def test_set_epoch_reaches_the_datasets_of_a_dataloader(kind: str) -> None:
    loader = make_loader(DataLoader(MADE_OF[kind](), 4), "train", 0)
    assert [next(loader.epoch(epoch).batches)[0][:, 0].tolist() for epoch in (0, 3)] == [[0] * 4, [3] * 4]


def test_an_evaluation_does_not_tell_the_dataset_an_epoch() -> None:
    loader = make_loader(Split(Curriculum(), 2), "valid", 0)
    assert [batch.data[0, 0].item() for batch in named(loader.epoch(0).batches)] == [-1, -1]


# The number of samples in a batch.


class Graphs:
    """A batch of graphs, as an object that only its user knows."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 5), 3),
        ([torch.zeros(3, 5), torch.zeros(3)], 3),
        ({"x": torch.zeros(3, 2), "nested": {"y": [torch.zeros(3)]}, "scale": torch.tensor(1.0)}, 3),
        ([torch.zeros(0, 5), torch.zeros(0)], 0),
        (["a", "b"], 2),
        (7, 1),
    ],
)
def test_the_number_of_samples_is_the_first_dimension_that_all_tensors_have(batch: Any, size: int) -> None:
    (found,) = named(make_loader([batch], "train", 0).epoch(0).batches)
    assert found.size == size


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ({"class_weights": torch.ones(5), "x": torch.zeros(2, 2)}, "first dimensions 2, 5"),
        (([torch.zeros(3, 8, 8)], [{"boxes": torch.zeros(2, 4)}]), "first dimensions 2, 3"),
        (Graphs(2), "a batch is a Graphs"),
    ],
)
def test_a_batch_whose_number_of_samples_is_not_known_is_an_error_that_says_what_to_override(
    batch: Any, what: str
) -> None:
    loader = make_loader([batch], "train", 0)
    with pytest.raises(ValueError, match=rf"{what}.*override Model\.count_samples\(batch\), or use a Split"):
        next(loader.epoch(0).batches)
    counted = make_loader([batch], "train", 0, count=lambda batch: 2)
    assert [batch.size for batch in named(counted.epoch(0).batches)] == [2]


def collate_graphs(samples: list[Any]) -> Graphs:
    return Graphs(len(samples))


class Numbers(IterableDataset):
    """A stream of 5 samples."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(range(5), 2, shuffle=True, collate_fn=collate_graphs),
        lambda: Split(Indices(5), 2, collate_fn=collate_graphs),
        lambda: Split(Numbers(), 2, collate_fn=collate_graphs),
        lambda: Split(Numbers(), 2, collate_fn=collate_graphs, num_workers=1),
    ],
)
@pytest.mark.parametrize("window", [1, 2])
def test_a_split_and_a_stock_dataloader_know_the_number_of_samples(make: Any, window: int) -> None:
    batches = [*named(make_loader(make(), "train", 0).epoch(0, window=window).batches)]
    assert [(batch.size, batch.data.number) for batch in batches] == [(2, 2), (2, 2), (1, 1)]


# Streams.


class StatefulStream(Numbers):
    """Goes on from its own state, and counts how many samples it has given in all."""

    given = 0

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        while self.position < 5:
            self.position += 1
            StatefulStream.given += 1
            yield self.position - 1
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


def test_the_state_of_a_stream_in_a_split_is_used_to_go_on() -> None:
    first = make_loader(Split(StatefulStream(), 1), "train", 0)
    batches = first.epoch(0).batches
    assert [next(batches)[0].item() for _ in range(2)] == [0, 1]
    second = make_loader(Split(StatefulStream(), 1), "train", 0)
    second.load_state_dict(first.state_dict())
    StatefulStream.given = 0
    assert [batch[0].item() for batch in second.epoch(0, batches=2).batches] == [2, 3, 4]
    assert StatefulStream.given == 3
    assert [batch[0].item() for batch in second.epoch(1).batches] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("make", "divides"), [(Numbers, False), (lambda: Stream(8), True)])
def test_a_stream_that_its_workers_do_not_divide_gets_one_warning(make: Any, divides: bool, caplog: Any) -> None:
    loader = make_loader(Split(make(), 2, num_workers=2), "train", 0)
    for epoch in (0, 1):
        list(loader.epoch(epoch).batches)
    said = [record.getMessage() for record in caplog.records]
    if divides:
        assert said == []
    else:
        (text,) = said
        assert "so that each comes 2 times" in text
        assert "torch.utils.data.get_worker_info()" in text


# A dataset that changes.


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}])
def test_a_dataset_that_has_grown_is_read_to_its_end_in_the_next_epoch(options: dict[str, Any]) -> None:
    dataset = Indices(3)
    loader = make_loader(Split(dataset, 2, shuffle=True, **options), "train", 0)
    for epoch, length in enumerate((3, 5, 4)):
        dataset.length = length
        read = [index for batch in named(loader.epoch(epoch).batches) for index in batch.data.tolist()]
        assert sorted(read) == [*range(length)]


def test_negative_indices_of_subsets_count_from_the_end() -> None:
    numbers = TensorDataset(torch.arange(10))
    part = Subset(Subset(numbers, [-1, 0, -3, 5]), [-1, 0, 2])
    batches = [batch.data[0].tolist() for batch in named(make_loader(Split(part, 2), "train", 0).epoch(0).batches)]
    assert batches == [[5, 9], [7]]
    assert [part[i][0].item() for i in range(3)] == [5, 9, 7]


class Growing(Curriculum):
    """Has two samples more in every epoch."""

    def __len__(self) -> int:
        return 2 * (self.epoch + 1)


def test_the_length_is_that_of_the_epoch_that_the_dataset_was_told_also_when_it_is_resumed() -> None:
    for samples in (0, 2):
        dataset = Growing()
        dataset.epoch = 0
        loader = make_loader(Split(dataset, 2), "train", 0)
        read = [batch.data[:, 1].tolist() for batch in named(loader.epoch(3, samples=samples).batches)]
        assert read == [[0, 1], [2, 3], [4, 5], [6, 7]][samples // 2 :]


@pytest.mark.parametrize("window", [1, 3])
def test_a_stream_that_has_ended_in_a_partial_batch_is_not_read_again_after_a_resume(window: int) -> None:
    first = make_loader(Split(StatefulStream(), 2), "train", 0)
    batches = first.epoch(0, window=window).batches
    assert [next(batches)[0].tolist() for _ in range(3)] == [[0, 1], [2, 3], [4]]
    second = make_loader(Split(StatefulStream(), 2), "train", 0)
    second.load_state_dict(first.state_dict())
    assert [*second.epoch(0, batches=3, window=window).batches] == []
    assert [batch[0].tolist() for batch in second.epoch(1, window=window).batches] == [[0, 1], [2, 3], [4]]


def test_a_stream_with_a_state_may_be_limited() -> None:
    loader = make_loader(Split(StatefulStream(), 2), "train", 0, limit=1)
    assert [batch[0].tolist() for batch in loader.epoch(0).batches] == [[0, 1]]


class FailsOnce(Indices):
    """Fails at its fourth sample, if there is no file yet that says so."""

    def __getitem__(self, index):
        if index == 3 and not os.path.exists(self.trace):
            open(self.trace, "w").close()
            raise ValueError("once")
        return int(index)


@pytest.mark.parametrize("is_split", [True, False])
def test_a_loader_with_workers_that_persist_is_usable_after_an_error(is_split: bool, tmp_path: Any) -> None:
    dataset = FailsOnce(8)
    dataset.trace = str(tmp_path / "failed")
    options = {"num_workers": 1, "persistent_workers": True}
    source = Split(dataset, 2, **options) if is_split else DataLoader(dataset, 2, **options)
    loader = make_loader(source, "train", 0)
    with pytest.raises(ValueError, match="once"):
        list(loader.epoch(0).batches)
    assert sorted(i for batch in named(loader.epoch(1).batches) for i in batch.data.tolist()) == [*range(8)]


@pytest.mark.parametrize("is_split", [True, False])
def test_workers_end_with_their_epoch(is_split: bool) -> None:
    source = Split(Indices(4), 2, num_workers=1) if is_split else DataLoader(Indices(4), 2, num_workers=1)
    loader = make_loader(source, "train", 0)
    gc.collect()
    others = {*multiprocessing.active_children()}  # Of other tests, some of which may be about to end.
    batches = loader.epoch(0).batches
    next(batches)
    assert len({*multiprocessing.active_children()} - others) == 1
    del batches
    gc.collect()
    assert {*multiprocessing.active_children()} <= others


def test_a_list_of_many_samples_or_indices_is_not_searched_for_datasets() -> None:
    class Counting(list):
        def __iter__(self):
            raise AssertionError("it is read item by item")

    split = Split(Indices(9), 2, sampler=range(9))
    split.dataset.dataset = Counting(range(5))
    assert not seeding.has_set_epoch(split.dataset)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ({"x": np.zeros((8, 3)), "y": np.zeros(8)}, 8),
        ((np.zeros((8, 3)), np.zeros(8)), 8),
        (None, 1),
        (range(4), 4),
        ({"text": "abc", "number": 3}, 1),
    ],
)
def test_the_number_of_samples_of_batches_without_tensors(batch: Any, size: int) -> None:
    (found,) = named(make_loader([batch], "train", 0).epoch(0).batches)
    assert found.size == size


class Copied(Dataset):
    """Samples with a random number each."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, float(torch.rand(1))


class CopiedLists(Copied):
    def __getitems__(self, indices: list[int]) -> list[tuple[int, float]]:
        assert all(type(index) is int for index in indices)
        return [(index, float(torch.rand(1))) for index in indices]


DRAWN = [3, 1, 3, 3, 0, 1, 5, 3]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("way", ["sampler", "batch_sampler"])
def test_copies_of_a_sample_in_an_epoch_have_random_numbers_of_their_own(way: str, num_workers: int) -> None:
    """The first has those of a sample that comes once; where an epoch begins and on how many ranks changes none."""

    def read(drawn: list[int], world: World | None = None, **position: int) -> list[tuple[int, float]]:
        batches = [drawn[i : i + 2] for i in range(0, len(drawn), 2)]
        order: Any = {"sampler": drawn, "batch_size": 2} if way == "sampler" else {"batch_sampler": batches}
        loader = make_loader(Split(Copied(), num_workers=num_workers, **order), "train", 7, world or World())
        found = []
        for batch in named(loader.epoch(0, **position).batches):
            found += zip(batch.data[0].tolist(), batch.data[1].tolist(), strict=True)
        loader.close()
        return found

    found = read(DRAWN)
    assert [index for index, _ in found] == DRAWN
    assert len({value for _, value in found}) == len(DRAWN)
    once = dict(read([0, 1, 2, 3, 4, 5]))
    firsts = dict(reversed(found))
    assert firsts == {index: once[index] for index in firsts}
    assert read(DRAWN, samples=4, batches=2) == found[4:]
    by_two = [read(DRAWN, World(rank=rank, size=2, local_size=2)) for rank in range(2)]
    assert sorted(by_two[0] + by_two[1]) == sorted(found)


def test_a_dataset_that_reads_lists_gets_the_plain_indices_of_copies() -> None:
    loader = make_loader(Split(CopiedLists(), batch_size=2, sampler=DRAWN), "train", 7)
    batches = [batch.data for batch in named(loader.epoch(0).batches)]
    assert [index for batch in batches for index in batch[0].tolist()] == DRAWN
    assert len({value for batch in batches for value in batch[1].tolist()}) == len(DRAWN)
    assert [index.tolist() for index in loader.indices()] == [[3, 1], [3, 3], [0, 1], [5, 3]]


@pytest.mark.parametrize("phase", ["valid", "test", "valid/clean", "train", "predict"])
@pytest.mark.parametrize("limit", [None, 2])
def test_an_evaluation_of_unknown_length_says_how_to_limit_it(
    phase: str, limit: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "helios_lite")
    make_loader(itertools.count(), phase, 0, World(), limit)
    make_loader([torch.zeros(1)], phase, 0, World(), limit)
    kind = phase.split("/")[0]
    text = f"{phase}: has no length; if it never ends, set limit_{kind}_batches"
    is_said = kind in ("valid", "test") and limit is None
    assert [record.getMessage() for record in caplog.records] == ([text] if is_said else [])


def test_batches_of_a_list_are_counted_one_by_one() -> None:
    """Those like the one before are not looked at as a whole, and there may be others in between."""
    ones = [[torch.ones(n, 2), torch.ones(n)] for n in (4, 4, 3, 3, 5)]
    others: list[Any] = [
        [],
        [7],
        (torch.ones(2),),
        {"x": torch.ones(6, 1)},
        [torch.ones(4), [torch.ones(4)]],
        torch.ones(8),
    ]
    batches = [*ones, *itertools.chain(*((other, ones[0]) for other in others))]
    found = [batch.size for batch in named(make_loader(batches, "train", 0).epoch(0).batches)]
    assert found == [4, 4, 3, 3, 5, 1, 4, 1, 4, 2, 4, 6, 4, 4, 4, 8, 4]
    with pytest.raises(ValueError, match="tensors of a batch have the first dimensions 3, 4"):
        named(make_loader([ones[0], [torch.ones(3), torch.ones(4)]], "train", 0).epoch(0).batches)


def test_a_count_of_the_models_own_is_asked_for_every_batch() -> None:
    counts = iter([4, 2, 4])  # The first is the length of the tensors, as it happens.
    batches = [[torch.ones(4), torch.ones(4)] for _ in range(3)]
    loader = make_loader(batches, "train", 0, World(), count=lambda batch: next(counts))
    assert [batch.size for batch in named(loader.epoch(0).batches)] == [4, 2, 4]


# What workers see.


class Shifted(Indices):
    """Its samples are their indices and what `worker_init_fn` has set."""

    shift = 0

    def __getitem__(self, index):
        return index + self.shift, get_worker_info().dataset is self


class ToldShifted(Shifted):
    def set_epoch(self, number):
        pass


def set_shift(worker):
    get_worker_info().dataset.shift = 100


def test_a_worker_init_fn_finds_and_changes_the_dataset_that_the_worker_reads() -> None:
    for dataset, seed_samples in ((Shifted(3), True), (Shifted(3), False), (ToldShifted(3), False)):
        split = Split(dataset, 3, num_workers=1, worker_init_fn=set_shift, seed_samples=seed_samples)
        assert plain(epoch(split)) == [[[100, 101, 102], [True, True, True]]]


# A Split whose options are assigned.


class Read(Indices):
    """Its samples are their indices, and whether a worker has read them."""

    shift = 0

    def __getitem__(self, index):
        return index + self.shift, get_worker_info() is not None


def tens(samples):
    return torch.tensor([10 * index for index, _ in samples])


WORKER = {"num_workers": 1}
ASSIGNED = {
    "dataset": ({}, {"dataset": Read(5)}),
    "batch_size": ({}, {"batch_size": 3}),
    "global_batch_size": ({"batch_size": None, "global_batch_size": 2}, {"global_batch_size": 3}),
    "shuffle": ({}, {"shuffle": True}),
    "shuffle_block": ({"shuffle": True}, {"shuffle_block": 2}),
    "drop_last": ({}, {"drop_last": True}),
    "collate_fn": ({}, {"collate_fn": tens}),
    "sampler": ({}, {"sampler": [5, 4, 3]}),
    "batch_sampler": ({}, {"batch_size": None, "batch_sampler": [[0], [1, 2]]}),
    "num_workers": ({}, WORKER),
    "worker_init_fn": (WORKER, {"worker_init_fn": set_shift}),
}
UNSEEN = {
    "seed_samples": ({}, {"seed_samples": False}),
    "pin_memory": ({}, {"pin_memory": True}),
    "timeout": (WORKER, {"timeout": 9}),
    "multiprocessing_context": (WORKER, {"multiprocessing_context": "spawn"}),
    "prefetch_factor": (WORKER, {"prefetch_factor": 5}),
    "persistent_workers": (WORKER, {"persistent_workers": True}),
}


def keeper_of(split):
    keeper = LoaderKeeper(lambda source: make_loader(source, "train", 3))
    return keeper, keeper.of(split)


def test_every_option_of_a_split_may_be_assigned_between_epochs():
    assert ASSIGNED.keys() | UNSEEN.keys() == {field.name for field in dataclasses.fields(Split)}
    streams = {"of a stream": ({"dataset": Stream(7)}, {"batch_size": 3}), "another kind": ({}, {"dataset": Stream(7)})}
    for name, (before, after) in {**ASSIGNED, **UNSEEN, **streams}.items():
        options = {"dataset": Read(9), "batch_size": 2, **before}
        split = Split(**options)
        keeper, first = keeper_of(split)
        assert keeper.of(split) is first
        for option, value in after.items():
            setattr(split, option, value)
        changed = keeper.of(split)
        assert changed is not first
        assert keeper.of(split) is changed
        assert all(getattr(changed.source, option) == value for option, value in after.items())
        assert not any(getattr(first.source, option) == value for option, value in after.items())
        if name not in UNSEEN:
            found = plain(changed.epoch(1).batches)
            assert found == plain(make_loader(Split(**{**options, **after}), "train", 3).epoch(1).batches)
            assert found != plain(first.epoch(1).batches)


class Half(Split):
    def __post_init__(self):
        super().__post_init__()
        self.dataset = Subset(self.dataset, range(len(self.dataset) // 2))


def test_what_a_split_of_a_class_of_its_own_has_made_is_made_once():
    assert order(Half(Indices(8), 2)) == [0, 1, 2, 3]


def test_a_wrong_value_that_is_assigned_to_a_split_is_the_error_of_split():
    wrong = {
        "batch_size": 0,
        "shuffle": 1,
        "num_workers": -1,
        "collate_fn": 3,
        "sampler": 3,
        "timeout": 2,
        "dataset": 3,
    }
    for name, value in wrong.items():
        with pytest.raises((TypeError, ValueError)) as expected:
            Split(**{"dataset": Indices(4), "batch_size": 2, name: value})
        split = Split(Indices(4), 2)
        keeper, _ = keeper_of(split)
        setattr(split, name, value)
        for _ in range(2):
            with pytest.raises(type(expected.value), match=f"^{re.escape(str(expected.value))}$"):
                keeper.of(split)


def test_the_workers_of_a_split_that_was_assigned_an_option_end():
    others = {*multiprocessing.active_children()}
    split = Split(Read(4), 2, num_workers=1, persistent_workers=True)
    keeper, loader = keeper_of(split)
    assert [sizes.size for sizes in named(loader.epoch(0).batches)] == [2, 2]
    assert len({*multiprocessing.active_children()} - others) == 1
    assert keeper.current() is loader
    split.batch_size = 3
    assert [sizes.size for sizes in named(keeper.current().epoch(0).batches)] == [3, 1]
    assert len({*multiprocessing.active_children()} - others) == 1
    keeper.close()
    assert {*multiprocessing.active_children()} <= others


def test_batches_of_workers_are_pinned_for_a_device_unless_the_split_says_it():
    def pins(**options):
        return make_loader(Split(Indices(4), 2, **options), "train", 0, pins=True)._loader.pin_memory

    assert [pins(), pins(num_workers=1), pins(num_workers=1, pin_memory=False)] == [False, True, False]
    assert [pins(pin_memory=True), make_loader(Split(Indices(4), 2), "train", 0)._loader.pin_memory] == [True, False]


def test_a_list_of_batches_keeps_no_states_of_random_numbers_and_a_loader_does() -> None:
    """It draws none, and its epochs begin without the time that reading the states takes."""
    for source, keeps in (([torch.ones(2)] * 3, False), (DataLoader(Indices(4), 2), True)):
        loader = make_loader(source, "train", 0)
        assert len([*loader.epoch(0).batches]) > 1
        assert ("rng" in loader.state_dict()) == keeps
