"""What a user says of the data: the options of a Split, and the DataModule."""

import pytest
from helpers.models import Indices, Stream
from torch.utils.data import (
    DataLoader,
)

from helios_lite import DataModule, Split


@pytest.mark.parametrize(
    ("dataset", "options", "error", "match"),
    [
        (Indices(3), {}, TypeError, "batch_size=None"),
        (Indices(3), {"batch_size": 2.0}, TypeError, "batch_size=2.0"),
        (Indices(3), {"batch_size": True}, TypeError, "batch_size=True"),
        (Indices(3), {"batch_size": 0}, ValueError, "batch_size=0"),
        (Indices(3), {"batch_size": 2, "shuffle": True, "sampler": [0]}, ValueError, "sampler: excludes shuffle"),
        (Indices(3), {"batch_sampler": [[0]], "batch_size": 1}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_sampler": [[0]], "shuffle": True}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_sampler": [[0]], "drop_last": True}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_sampler": [[0]], "sampler": [0]}, ValueError, "batch_sampler: excludes"),
        (Indices(3), {"batch_size": 2, "num_workers": -1}, ValueError, "num_workers=-1"),
        (Indices(3), {"batch_size": 2, "num_workers": "1"}, TypeError, "num_workers='1'"),
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
