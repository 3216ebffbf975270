"""What a user says of the data: the options of a Split, and the DataModule."""

import itertools
import random

import numpy
import pytest
import torch
from helpers.models import Indices, Stream, Tiny, quiet
from torch.utils.data import (
    DataLoader,
)

from helios_lite import DataModule, Split
from helios_lite.loading.sample_order import BatchPlan
from helios_lite.processes.world import World


@pytest.mark.parametrize(
    ("dataset", "options", "error", "match"),
    [
        (Indices(3), {}, TypeError, "batch_size=None"),
        (Indices(3), {"batch_size": 2.0}, TypeError, "batch_size=2.0"),
        (Indices(3), {"batch_size": True}, TypeError, "batch_size=True"),
        (Indices(3), {"batch_size": 0}, ValueError, "batch_size=0"),
        (Indices(3), {"batch_size": 2, "shuffle": True, "sampler": [0]}, ValueError, "sampler: excludes shuffle"),
        (Indices(3), {"batch_sampler": [[0]], "batch_size": 1}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_sampler": [[0]], "global_batch_size": 1}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_size": 2, "global_batch_size": 2}, ValueError, "global_batch_size: excludes batch_size"),
        (Indices(3), {"global_batch_size": 2.0}, TypeError, "global_batch_size=2.0"),
        (Indices(3), {"global_batch_size": 0}, ValueError, "global_batch_size=0"),
        (Indices(3), {"batch_sampler": [[0]], "shuffle": True}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_sampler": [[0]], "drop_last": True}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_sampler": [[0]], "sampler": [0]}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_size": 2, "num_workers": -1}, ValueError, "num_workers=-1"),
        (Indices(3), {"batch_size": 2, "num_workers": "1"}, TypeError, "num_workers='1'"),
        (Indices(3), {"batch_size": 2, "timeout": 1}, ValueError, "timeout=1: .* num_workers=0"),
        (Indices(3), {"batch_size": 2, "timeout": -1, "num_workers": 1}, ValueError, "timeout=-1"),
        (Indices(3), {"batch_size": 2, "prefetch_factor": 2}, ValueError, "prefetch_factor=2: .* num_workers=0"),
        (Indices(3), {"batch_size": 2, "prefetch_factor": 0, "num_workers": 1}, ValueError, "prefetch_factor=0"),
        (
            Indices(3),
            {"batch_size": 2, "persistent_workers": True},
            ValueError,
            "persistent_workers=True: .* num_workers=0",
        ),
        (
            Indices(3),
            {"batch_size": 2, "multiprocessing_context": "fork"},
            ValueError,
            "multiprocessing_context='fork': .*=0",
        ),
        (
            Indices(3),
            {"batch_size": 2, "multiprocessing_context": "a", "num_workers": 1},
            ValueError,
            "_context='a'.*fork",
        ),
        (Indices(3), {"batch_size": 2, "multiprocessing_context": 3, "num_workers": 1}, TypeError, "_context=3.*fork"),
        (Stream(3), {"batch_size": 2, "shuffle": True}, ValueError, "IterableDataset"),
        (Stream(3), {"batch_size": 2, "sampler": [0]}, ValueError, "IterableDataset"),
        (Stream(3), {"batch_sampler": [[0]]}, ValueError, "IterableDataset"),
        (3, {"batch_size": 2}, TypeError, "dataset: int"),
        (DataLoader(Indices(3)), {"batch_size": 2}, TypeError, "dataset: DataLoader"),
    ],
)
def test_a_bad_option_of_a_split_is_an_error_that_names_it(dataset, options, error, match):
    with pytest.raises(error, match=match):
        Split(dataset, **options)


# DataModule.


class Careless(DataModule):
    def __init__(self):
        self.path = "somewhere"


def test_a_datamodule_need_not_call_super():
    module = Careless()
    assert (module.train, module.valid, module.test) == (None, None, None)


def test_a_datamodule_holds_the_splits_it_is_given():
    module = DataModule(train=[1], valid={"a": [2]}, test=[3])
    assert (module.train, module.valid, module.test) == ([1], {"a": [2]}, [3])


SMALL = Split(Indices(4), batch_size=2)


@pytest.mark.parametrize(
    ("phase", "value", "match"),
    [
        ("train", [SMALL, SMALL], r"train split is a list with a Split: it must be one Split: join .*ConcatDataset"),
        ("train", {"a": {"b": SMALL}}, r"train/a split is a dict: it must be one Split for each name"),
        ("train", Indices(4), r"train split is a dataset \(Indices\): it must be Split\(dataset, batch_size=\.\.\.\)"),
        ("train", "mnist", r"train split is a str: it must be a Split, a DataLoader or another iterable of batches"),
        ("train", Split, r"train split is a Split: it must be"),
        ("valid", [SMALL], r"valid split is a list with a Split: it must be one Split, or a dict of them by name"),
        (
            "valid",
            (None, DataLoader(Indices(4))),
            r"valid split is a tuple with a DataLoader: it must be one Split, or",
        ),
        ("valid", 3, r"valid split is a int: it must be a Split"),
        ("valid", {"a": {"b": SMALL}}, r"valid/a split is a dict: it must be one Split for each name"),
        (
            "test",
            {"a": SMALL, "b": [SMALL]},
            r"test/b split is a list with a Split: it must be one Split for each name",
        ),
        ("test", {"a": None}, r"test/a split is a NoneType: it must be a Split"),
        ("test", Indices(4), r"test split is a dataset \(Indices\): it must be Split"),
    ],
)
@pytest.mark.parametrize("where", ["init", "setup"])
def test_what_is_no_split_is_an_error_that_says_what_it_may_be_before_any_training(phase, value, match, where):
    splits = {"train": SMALL, phase: value}

    class Assigning(DataModule):
        def setup(self):
            self.__dict__.update(splits)

    model = Tiny()
    with pytest.raises(TypeError, match=rf"^the {match}"):
        quiet(max_steps=1).fit(model, DataModule(**splits) if where == "init" else Assigning())
    assert model.seen == []


def test_an_attribute_of_a_datamodule_that_hides_a_method_is_an_error():
    module = DataModule(train=SMALL)
    module.setup = True
    with pytest.raises(AttributeError, match=r"^DataModule\.setup: .* hides the method `setup` of DataModule"):
        quiet(max_steps=1).fit(Tiny(), module)


class Drawing(Indices):
    """Its samples are random numbers of the three generators."""

    def __getitem__(self, index):
        drawn = [torch.rand(()).item(), random.random(), float(numpy.random.random())]
        return index, torch.tensor(drawn, dtype=torch.float64)


class Reading(Tiny):
    def train_step(self, batch, state):
        self.seen += [(state.epoch, index, drawn) for index, drawn in zip(batch[0].tolist(), batch[1], strict=True)]
        super().train_step([batch[0], batch[1].float()], state)
        del self.seen[-len(batch[0]) :]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loop_by_hand_can_read_what_a_run_reads(shuffle):
    split, model = Split(Drawing(10), batch_size=3, shuffle=shuffle), Reading()
    quiet(max_epochs=2, seed=5).fit(model, DataModule(split))
    assert [index for _, index, _ in model.seen] == split.order(5, 0) + split.order(5, 1)
    assert (split.order(5, 0) == split.order(5, 1)) is not shuffle
    for epoch, index, drawn in model.seen:
        seed = split.sample_seed(5, epoch, index)
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed & 0xFFFFFFFF)
        assert torch.equal(Drawing(10)[index][1], drawn)


@pytest.mark.parametrize("is_dealt", [False, True])
def test_the_batches_of_all_ranks_are_consecutive_parts_of_the_order(is_dealt):
    """And as equal as can be, so that each rank has a part of each step; if they are dealt, they are those of one."""
    for length, size, start in itertools.product(range(1, 30), (1, 2, 3), (0, 4)):
        plans = [
            BatchPlan(range(length), start, 3, False, World(rank, size=size), is_dealt=is_dealt) for rank in range(size)
        ]
        batches = [batch for step in itertools.zip_longest(*map(list, plans), fillvalue=[]) for batch in step]
        left = (max(0, length - start) % (3 * size)) if not is_dealt else 0
        read = range(start, length - left if left < size else length)
        assert [index for batch in batches for index in batch] == list(read)
        if is_dealt:
            assert [batch for batch in batches if batch] == [list(read[i : i + 3]) for i in range(0, len(read), 3)]
        else:
            for step in range(0, len(batches), size):
                lengths = [len(batch) for batch in batches[step : step + size]]
                assert max(lengths) - min(lengths) <= 1 <= min(lengths)
        for plan, first in itertools.product(plans, (0, 1)):
            assert [part.tolist() for part in plan.tensors(first)] == list(plan)[first:]
            assert [plan.size(i) for i in range(len(plan))] == [len(batch) for batch in plan]


def test_a_split_with_a_sampler_has_no_order_of_its_own():
    with pytest.raises(ValueError, match=r"^Split\.order: the sampler"):
        Split(Indices(3), batch_size=1, sampler=[0, 1]).order(0, 0)
