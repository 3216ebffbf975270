"""Random orders that are computed: every number once, without a pattern, and what a Split makes of them."""

import itertools
import shutil

import pytest
import torch
from helpers.models import Indices

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.loading.loaders import make_loader
from helios_lite.processes.random_order import RandomOrder, random_order
from helios_lite.processes.world import World

SORTED = 4096  # Up to this length a permutation is sorted, and longer ones go through a network.


def test_every_number_comes_once() -> None:
    for length in range(1, 5001):
        order = RandomOrder(length, seed=length).tensor()
        assert torch.equal(order.sort().values, torch.arange(length)), length
    for length in (*range(1, 40), 255, 256, 257, 1000, 99_991, 300_000):
        for block in (1, 2, 7, 256, length, length + 1):
            order = RandomOrder(length, seed=3, block=block).tensor()
            assert torch.equal(order.sort().values, torch.arange(length)), (length, block)


@pytest.mark.parametrize("block", [None, 256])
def test_no_number_comes_twice_in_what_is_read_of_a_long_order(block: int | None) -> None:
    for length in (2**24, 2**24 + 1, 10**8 + 7, 2**32 - 5, 10**10):
        order = RandomOrder(length, seed=length, block=block)
        read = torch.cat([order[start : start + 50_000].tensor() for start in (0, length // 3, length - 50_000)])
        assert len(read.unique()) == 150_000
        assert read.min() >= 0
        assert read.max() < length


def test_slices_parts_and_iteration_agree_with_the_whole() -> None:
    for length, block in ((9999, None), (9999, 4), (300_000, 64)):
        order = RandomOrder(length, 5, block)
        whole = order.tensor()
        assert len(order) == length
        assert list(order[17:9000]) == whole[17:9000].tolist()
        assert torch.equal(order[100:][50:70].tensor(), whole[150:170])
        bounds = [(low, low + 10) for low in range(0, length, 1000)] + [(length - 3, length + 7), (length, length)]
        assert [part.tolist() for part in order.parts(bounds)] == [whole[low:high].tolist() for low, high in bounds]
        assert order[3:3].tensor().tolist() == []


def test_numbers_that_are_gone_are_left_out_of_the_rest_of_an_order_alone() -> None:
    for length, block in ((1000, None), (9999, None), (9999, 4), (9999, 20_000), (300_000, 64)):
        order = RandomOrder(length, 5, block)[: length - 7]
        left = order.tensor().tolist()
        for least, start in ((length - 30, 0), (length // 2, length // 3), (length - 20, 10), (length, 5)):  # Again.
            order = order.without(least, start)
            left = [*left[:start], *(number for number in left[start:] if number < least)]
            assert len(order) == len(left)
            assert order.tensor().tolist() == left
        bounds = [(low, low + 10) for low in range(0, len(left), 1000)]
        assert [part.tolist() for part in order.parts(bounds)] == [left[low:high] for low, high in bounds]


def test_an_order_is_the_same_with_every_version() -> None:
    # Numbers of before: an epoch that has begun must go on with its order after an update of PyTorch or of the package.
    assert RandomOrder(10, 0).tensor().tolist() == [2, 3, 0, 8, 4, 9, 6, 1, 5, 7]
    assert RandomOrder(2**24, 1)[:4].tensor().tolist() == [6042473, 8314326, 8088177, 4885032]
    assert RandomOrder(10**10, 1, 256)[:4].tensor().tolist() == [1102052546, 3992953079, 9227755430, 1897373061]
    a, b = (RandomOrder(2**24, seed)[:1000].tensor() for seed in (0, 1))
    assert int((a == b).sum()) < 3


@pytest.mark.parametrize("length", [12, 50, SORTED + 4])
def test_over_a_thousand_seeds_no_place_prefers_a_number_and_no_number_a_neighbour(length: int) -> None:
    orders = torch.stack([RandomOrder(length, seed).tensor() for seed in range(1000)])
    assert_even(orders, length)
    # The difference of neighbours, modulo the length, is never 0, and otherwise any number.
    assert_even((orders[:, 1:] - orders[:, :-1]) % length - 1, length - 1)


def assert_even(rows: torch.Tensor, length: int) -> None:
    """Assert that all numbers are about equally frequent at all places: chi-square within five standard deviations."""
    bins = min(50, length)
    widths = torch.bincount(torch.arange(length) * bins // length).double()
    places = torch.arange(rows.shape[1]) * bins // rows.shape[1]
    counts = torch.bincount((places * bins + rows * bins // length).flatten(), minlength=bins * bins).reshape(
        bins, bins
    )
    expected = len(rows) * torch.bincount(places)[:, None] * widths / length
    chi_square, freedom = float(((counts - expected) ** 2 / expected).sum()), bins * (bins - 1)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_samples_that_are_read_near_each_other_are_in_few_blocks() -> None:
    length, block = 3 * 1024 * 16 * 5, 16
    order = RandomOrder(length, 7, block)
    for start in range(0, length, 1024 * block):
        touched = (order[start : start + 1024 * block].tensor() // block).unique()
        assert len(touched) < 5 * 1024  # Of 15,360, of which a full shuffle touches 10,000: a window and its neighbour.
    begins = []
    for seed in range(9):
        window = RandomOrder(length, seed, block)[: 1024 * block].tensor().sort().values
        runs = window[1:][window.diff() > 1] % block  # Where runs of neighbours begin in their blocks.
        begins.append(int(runs[0]))
        assert (runs == begins[-1]).all()
    assert len(set(begins)) > 3  # They are other blocks in each order.


# A Split with such an order.


class Many(Indices):
    """A dataset of any length, which needs no memory."""

    def __getitem__(self, index):
        return index, float(index)


def batches(split, epoch=0, samples=0, world=None, phase="train", finished=0):
    loader = make_loader(split, phase, 3, world or World())
    return loader, (batch[0][0].tolist() for batch in loader.epoch(epoch, samples=samples, batches=finished).batches)


def firsts(split, count=4, **where):
    _, read = batches(split, **where)
    return [next(read) for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"shuffle_block": 256}])
def test_ten_billion_samples_are_shuffled_resumed_and_shared_without_memory_for_their_order(options) -> None:
    split = Split(Many(10**10), 8, shuffle=True, **options)
    whole = firsts(split, 6)
    assert whole[0] != firsts(split, 1, epoch=1)[0]
    assert firsts(split, 4, samples=16) == whole[2:]
    assert firsts(Split(Many(10**10), 8, shuffle=True, num_workers=2, **options), 6) == whole
    ranks = [
        firsts(Split(Many(10**10), 4, shuffle=True, **options), 6, world=World(rank=rank, size=2)) for rank in (0, 1)
    ]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    far = 8 * 10**9
    loader, read = batches(split, samples=far, finished=far // 8)
    assert [next(read) for _ in range(3)][2] == loader.indices_after(far // 8 + 2).tolist()
    shorter = make_loader(Split(Many(10**10 - 10**5), 8, shuffle=True, **options), "train", 3, World())
    shorter.load_state_dict(loader.state_dict())
    begun = shorter.epoch(0, samples=far, batches=far // 8)
    assert next(begun.batches)[0][0].tolist() == loader.indices_after(far // 8).tolist()
    assert 0 < (num_gone := shorter.changes.num_gone) < 10**5
    assert begun.length == -(-(2 * 10**9 - num_gone) // 8)
    assert len(firsts(split, 2, phase="predict", world=World(rank=1, size=3))[1]) == 8


def test_below_two_to_the_24_the_order_without_blocks_is_that_of_randperm() -> None:
    assert random_order(1000, 5).tolist() == torch.randperm(1000, generator=torch.Generator().manual_seed(5)).tolist()
    assert isinstance(random_order(2**24 - 1, 5), torch.Tensor)
    assert isinstance(random_order(2**24, 5), RandomOrder)


def test_split_order_is_what_is_read_in_blocks_too() -> None:
    split = Split(Many(5000), 100, shuffle=True, shuffle_block=4)
    _, read = batches(split, epoch=2)
    assert list(itertools.chain(*read)) == split.order(3, 2)
    assert sorted(split.order(3, 2)) == list(range(5000))


def test_shuffle_block_without_shuffle_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shuffle_block: .* set shuffle=True"):
        Split(Many(10), 2, shuffle_block=4)
    with pytest.raises(ValueError, match="shuffle_block"):
        Split(Many(10), 2, shuffle=True, shuffle_block=0)


class Reader(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.0)
        self.read = []

    def train_step(self, batch, state):
        self.read += batch[0].tolist()
        self.backward(self.net(batch[1][:, None].float()).mean())
        self.optimizer_step(self.optimizer)


def read_by_fit(root, **options):
    split = {"dataset": Many(400), "batch_size": 10, "shuffle": True, **options.pop("split", {})}
    model = Reader("reader")
    quiet = {"progress": False, "print_banner": False, "accelerator": "cpu", "seed": 3}
    Trainer(root=root, **quiet, **options).fit(model, DataModule(train=Split(**split)))
    return model.read


def test_a_resumed_epoch_goes_on_with_the_blocks_and_the_length_it_began_with(tmp_path, caplog) -> None:
    whole = read_by_fit(None, max_epochs=1, split={"shuffle_block": 4})
    assert whole == Split(Many(400), 10, shuffle=True, shuffle_block=4).order(3, 0)
    before = read_by_fit(tmp_path / "begun", max_steps=7, split={"shuffle_block": 4})
    for i, (now, text) in enumerate(
        [
            ({"shuffle_block": 16}, "shuffled in blocks of 4 when epoch 1 began, shuffled in blocks of 16 now"),
            ({}, "shuffled in blocks of 4 when epoch 1 began, shuffled now"),
            ({"shuffle_block": 4, "dataset": Many(500)}, "400 samples when epoch 1 began, 500 now"),
            ({"shuffle_block": 4, "dataset": Many(300)}, "of its rest are gone and left out"),
        ]
    ):
        shutil.copytree(tmp_path / "begun", tmp_path / str(i))
        caplog.clear()
        after = read_by_fit(tmp_path / str(i), max_epochs=1, split=now)
        length = len(now.get("dataset", range(400)))
        assert before + after == whole[:70] + [index for index in whole[70:] if index < length]
        assert text in caplog.text
