"""What a user says about data: a Split is a dataset and how to batch it, a DataModule has the splits of a run."""

from __future__ import annotations

import dataclasses
import inspect
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.context import BaseContext
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

from helios_lite.arguments import choice, integer, number, optional, require, require_kind, shown
from helios_lite.option_class import documented
from helios_lite.processes import rng
from helios_lite.processes.random_order import random_order
from helios_lite.samplers import BucketBatchSampler


@documented
@dataclasses.dataclass(repr=False)
class Split:
    """A dataset and how to batch it; the trainer makes the loader.

    For a map-style dataset (`__len__` and `__getitem__`) the order of samples depends on (seed, epoch) alone, and the
    random numbers inside `__getitem__` on (seed, epoch, index) alone. A position in an epoch is therefore one number,
    the count of finished samples: a resume continues there without reading the samples before it, for any
    `num_workers`. An IterableDataset is batched by a DataLoader, with the weaker guarantees that `DataModule` states
    for custom loaders.

    The options may be assigned between epochs, for example in `on_training_epoch_start`. They are checked again, and
    take effect when the next epoch, or the next evaluation of the split, begins.

    Raises:
        ValueError, TypeError: an option has a wrong value, or two options exclude each other.
    """

    dataset: Any
    """Any PyTorch dataset, or a dict of tensors and NumPy arrays (also memory maps) of the same length, whose batches
    are dicts of tensors."""
    batch_size: int | None = None
    """Samples per batch and process. Must be left out with `global_batch_size`, and with `batch_sampler`, whose batches
    are dealt to the processes in turn."""
    shuffle: bool = False
    """Use a new random order in every epoch. From 2**24 samples on it is computed where it is read, and needs neither
    time at the start nor memory."""
    drop_last: bool = False
    """Drop the last batch of an epoch if it is not full."""
    num_workers: int = 0
    """Number of DataLoader workers; the batches do not depend on it."""
    collate_fn: Callable[[list[Any]], Any] | None = None
    """Makes a batch from a list of samples; PyTorch's `default_collate` if None."""
    sampler: Sampler[int] | Iterable[int] | None = None
    """Any finite sampler of indices, read once per epoch (at most a million of them, ten times the length of the
    dataset, or what its `__len__` says). Its random numbers (from its `generator`, or from the global RNG states of
    torch, random and numpy) are seeded from (seed, epoch), and its `set_epoch` is called if it exists."""
    batch_sampler: Sampler[list[int]] | Iterable[Sequence[int]] | None = None
    """The same for a sampler of lists of indices, for batches of varying size, such as
    `helios_lite.samplers.BucketBatchSampler`."""
    seed_samples: bool = True
    """Seed torch, random and numpy (if imported) from (seed, epoch, index) around each `__getitem__`. A dataset with
    `__getitems__`, and `collate_fn`, are seeded once per batch, from its first index. Seeding takes 10 to 20
    microseconds per sample; turn it off for fast datasets without random numbers. Random numbers used nevertheless are
    then not exact."""
    pin_memory: bool | None = None
    """As in `torch.utils.data.DataLoader`. If None, batches of workers are pinned where a GPU computes,
    but those of an IterableDataset when they are moved."""
    timeout: float = 0
    """As in `torch.utils.data.DataLoader`."""
    worker_init_fn: Callable[[int], None] | None = None
    """As in `torch.utils.data.DataLoader`."""
    multiprocessing_context: Any = None
    """As in `torch.utils.data.DataLoader`."""
    prefetch_factor: int | None = None
    """As in `torch.utils.data.DataLoader`."""
    persistent_workers: bool = False
    """As in `torch.utils.data.DataLoader`. Workers do not outlive an epoch if the dataset is an IterableDataset with
    `set_epoch`: they learn the epoch from the copy of the dataset with which they start."""
    global_batch_size: int | None = None
    """In place of `batch_size`: samples per step, over all processes and micro-batches. In training the batch size of
    a process is this number divided by the number of processes and `accumulation_steps`, without a rest (otherwise
    starting is a ValueError). Another number of processes, also at a resume, then changes neither the number of steps
    nor what they compute; only at the end of an epoch samples that are fewer than the processes are left out. For the
    other splits it is divided by the number of processes and rounded up."""
    shuffle_block: int | None = None
    """Shuffle so that samples which are read one after another are near each other in the dataset: `shuffle` permutes
    blocks of so many neighbours, and then the samples of about 1,024 blocks. For datasets in files that are larger than
    the memory; 256 is a good number. None shuffles all samples."""

    def __post_init__(self) -> None:
        if isinstance(self.dataset, Mapping):
            self.dataset = ArrayDict(self.dataset)
        for name in ("shuffle", "drop_last", "seed_samples", "persistent_workers"):
            require_kind(name, getattr(self, name), bool, "True or False")
        require_kind("pin_memory", self.pin_memory, (bool, NoneType), "True, False or None")
        for name in ("collate_fn", "worker_init_fn"):
            if (function := getattr(self, name)) is not None and not callable(function):
                raise TypeError(f"{name}={function!r}: must be a function or None")
        for name in ("sampler", "batch_sampler"):
            if getattr(self, name) is not None:
                require_kind(name, getattr(self, name), Iterable, "a sampler or None")
        require("timeout", self.timeout, number(allow_zero=True))
        require("prefetch_factor", self.prefetch_factor, optional(integer(least=1)))
        has_size = self.batch_size is not None or self.global_batch_size is not None
        if self.batch_sampler is not None:
            if has_size or self.shuffle or self.drop_last or self.sampler is not None:
                raise ValueError(
                    "batch_sampler: excludes batch_size, global_batch_size, shuffle, drop_last and sampler"
                )
        elif self.global_batch_size is None:
            require("batch_size", self.batch_size, integer(least=1))
        elif self.batch_size is not None:
            raise ValueError("global_batch_size: excludes batch_size")
        else:
            require("global_batch_size", self.global_batch_size, integer(least=1))
        if self.sampler is not None and self.shuffle:
            raise ValueError("sampler: excludes shuffle")
        require("shuffle_block", self.shuffle_block, optional(integer(least=1)))
        if self.shuffle_block is not None and not self.shuffle:
            raise ValueError("shuffle_block: is of a random order; set shuffle=True")
        if isinstance(self.dataset, IterableDataset):
            if self.shuffle or self.sampler is not None or self.batch_sampler is not None:
                raise ValueError("dataset: an IterableDataset has no order to shuffle or sample")
        elif not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__"):
            raise TypeError(f"dataset: {type(self.dataset).__name__} has no __len__ and __getitem__")
        elif isinstance(self.batch_sampler, BucketBatchSampler) and len(self.batch_sampler.lengths) != len(
            self.dataset
        ):
            num_lengths = len(self.batch_sampler.lengths)
            raise ValueError(f"batch_sampler: has {num_lengths} lengths for a dataset of {len(self.dataset)} samples")
        require("num_workers", self.num_workers, integer(least=0))
        if (context := self.multiprocessing_context) is not None and not isinstance(context, BaseContext):
            require("multiprocessing_context", context, choice(*multiprocessing.get_all_start_methods()))
        for name in ("timeout", "prefetch_factor", "persistent_workers", "multiprocessing_context"):
            if self.num_workers == 0 and (value := getattr(self, name)):
                raise ValueError(
                    f"{name}={shown(value)}: is an option of workers, and num_workers=0 has none; leave it out, or set "
                    "num_workers to 1 or more"
                )

    def order(self, seed: int, epoch: int, name: str = "") -> list[int]:
        """Return the indices of the samples in the order of an epoch, for a loop by hand that reads what a run reads.

        Several processes share this order out: each takes every n-th index of it.

        Args:
            seed: that of the `Trainer`.
            epoch: its number, from 0, which is `state.epoch` while it runs.
            name: that of one of several train splits, whose epochs are the passes over it.

        Raises:
            TypeError: the dataset has no length.
            ValueError: a sampler or a batch sampler draws the order.
        """
        if self.sampler is not None or self.batch_sampler is not None:
            raise ValueError("Split.order: the sampler of this split draws its order")
        length = len(self.dataset)
        if not self.shuffle:
            return list(range(length))
        order = random_order(length, epoch_seed(seed, epoch, name), self.shuffle_block)
        return order.tolist() if isinstance(order, Tensor) else list(order)

    def sample_seed(self, seed: int, epoch: int, index: int, name: str = "") -> int:
        """Return the number with which `random` and PyTorch are seeded before a sample is read, below 2**63.

        NumPy is seeded with its lower 32 bits (`number & 0xFFFFFFFF`), if the program has imported it. In a dataset
        that reads whole batches (`__getitems__`) that of the first sample counts for all.

        Args:
            seed, epoch, name: as for `order`.
            index: the index of the sample in the dataset.
        """
        return rng.derive_seed(epoch_seed(seed, epoch, name), index)

    def __repr__(self) -> str:
        """Return one line: the dataset, its number of samples, and the options that differ from their defaults."""
        parts = [_description(self.dataset, "samples")]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if type(value) is not type(field.default) or value != field.default:
                parts.append(f"{field.name}={_option_text(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


class DataModule:
    """The data of a run: the splits, given here or assigned in `setup` of a subclass.

    Each is a Split or None: `train`, `valid`, `test`, and `predict`, in place of which `test` is used if it is None.
    `valid` and `test` may also be a dict of splits by name, whose metrics are named `valid/<name>/...`. If `train` is
    a dict, a batch is a dict with a batch of each split; an epoch ends with the split that `epoch_split` names, or else
    with the shortest, and the others go on in the next epoch, and begin again when they end. The trainer reads `train`
    again at every epoch, so it may change between epochs; the others are read when a call begins.

    A ready DataLoader, or any iterable of batches that can be iterated again in every epoch, is accepted too, with
    weaker guarantees: before each epoch `set_epoch` is called wherever it exists, and the `torch.Generator`s of the
    loader and its samplers are seeded from (seed, epoch). A resume restores the object's `state_dict` if it has one;
    otherwise it reads and drops the finished batches of the epoch, with the random numbers that the epoch has begun
    with, so that what is shuffled then is the same. Random numbers inside its dataset are not seeded per
    sample.

    A subclass with `state_dict` and `load_state_dict` has a state in the checkpoints of a training, that of rank 0. It
    is loaded on every rank, after `setup`.
    """

    train: Any = None
    valid: Any = None
    test: Any = None
    predict: Any = None
    epoch_split: str | None = None
    """Of several train splits the name of the one whose end is that of an epoch, and whose samples are counted; the
    shortest if None."""

    def __init__(
        self,
        train: Any = None,
        valid: Any = None,
        test: Any = None,
        predict: Any = None,
        *,
        epoch_split: str | None = None,
    ) -> None:
        """Take the splits, in place of a `setup` that assigns them.

        Args:
            train: the Split, or a loader, to train with, or a dict of several by name.
            valid: the Split of validations, or a dict of several by name.
            test: the Split of `Trainer.test`, or a dict of several by name.
            predict: the Split of `Trainer.predict`; `test` if None.
            epoch_split: the name of the train split that ends an epoch, if there are several.
        """
        self.train, self.valid, self.test, self.predict = train, valid, test, predict
        self.epoch_split = epoch_split

    def prepare_data(self) -> None:
        """Download or convert the data that all processes will read. Runs once, before processes are started."""

    def setup(self) -> None:
        """Assign `train`, `valid`, `test` and `predict`. Runs in every process; all are seeded alike.

        With `devices=2` or more it runs in the calling process too, after the training, before `Model.setup`.
        """

    def teardown(self) -> None:
        """Release what was acquired. Always runs at the end, also after errors, in every process."""

    def __repr__(self) -> str:
        """Return one line: the splits that are assigned."""
        # Not by getattr: a property may read files.
        found = {name: inspect.getattr_static(self, name) for name in ("train", "valid", "test", "predict")}
        parts = [f"{name}={_split_text(source)}" for name, source in found.items() if source is not None]
        return f"{type(self).__name__}({', '.join(parts)})"


def epoch_seed(seed: int, epoch: int, name: str = "") -> int:
    """Return the seed of an epoch, or of a pass over one of several train splits, that of the name."""
    return rng.derive_seed(seed, *name.encode(), epoch)


def rows_of(tensor: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of a tensor with these indices (int64, on the CPU), on the device of the tensor."""
    return tensor.index_select(0, indices if tensor.is_cpu else indices.to(tensor.device, non_blocking=True))


class ArrayDict(Dataset[dict[str, Tensor]]):
    """A dict of tensors and NumPy arrays, also memory maps, as a dataset: sample i is a dict of the rows i.

    Args:
        arrays: tensors or arrays by name, with the same length. They are not copied; a batch is a copy of rows.

    Raises:
        TypeError, ValueError: a value is no tensor or array of numbers, or the lengths differ; the message names it.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        if not arrays:
            raise ValueError("dataset: is a dict without arrays")
        for name, array in arrays.items():
            if not isinstance(array, Tensor) and not _is_numeric(array):
                kind = type(array).__name__
                raise TypeError(f"dataset[{name!r}]: is a {kind}; a dict must have tensors or NumPy arrays of numbers")
            if array.ndim == 0:
                raise ValueError(f"dataset[{name!r}]: is a single number and not one for each sample")
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"dataset: the arrays have different lengths: {lengths}")
        self.arrays = dict(arrays)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self.gather(torch.tensor([index])).items()}

    def gather(self, indices: Tensor) -> dict[str, Tensor]:
        """Return a batch: of each array the rows with these indices (int64, of shape (batch_size,)), as a tensor."""
        return {
            name: rows_of(array, indices) if isinstance(array, Tensor) else torch.from_numpy(array[indices.numpy()])
            for name, array in self.arrays.items()
        }


def _split_text(source: Any) -> str:
    if isinstance(source, Mapping):
        return f"{{{', '.join(f'{name!r}: {_split_text(part)}' for name, part in source.items())}}}"
    return repr(source) if isinstance(source, Split) else _description(source, "batches")


def _description(source: Any, unit: str) -> str:
    """Return the class of a dataset or a loader, and its length if it has one: "TensorDataset of 1,437 samples"."""
    kind = "dict" if isinstance(source, ArrayDict) else type(source).__name__
    try:
        return f"{kind} of {len(source):,} {unit}"
    except Exception:  # Many streams have no length, and say so in ways of their own.
        return kind


def _option_text(value: Any) -> str:
    """Return a number as it is, and of a function or an object its name."""
    if isinstance(value, int | float | str):
        return repr(value)
    return str(getattr(value, "__name__", type(value).__name__))


def _is_numeric(value: Any) -> bool:
    """Return whether a value is a NumPy array that a tensor can hold."""
    if not hasattr(value, "__array__") or not hasattr(value, "dtype") or not hasattr(value, "ndim"):
        return False
    try:
        torch.from_numpy(value[:0].copy())  # A memory map may be read-only.
    except (TypeError, IndexError):
        return False
    return True
