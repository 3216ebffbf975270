"""The batches of an epoch from any position on, made from a Split or from a custom loader."""

from __future__ import annotations

import functools
import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from helios_lite.data import Split
from helios_lite.runtime import rng, sample_order, sample_seeding
from helios_lite.runtime.data_worker import WorkerInit
from helios_lite.runtime.distributed import World
from helios_lite.runtime.transfer import batch_size

logger = logging.getLogger("helios_lite")

_SIZED_SAMPLERS = (RandomSampler, SequentialSampler, DistributedSampler, SubsetRandomSampler, WeightedRandomSampler)


class Batch(NamedTuple):
    """A batch and its place in the epoch.

    Attributes:
        data: what the collate function returned.
        size: number of samples in it.
        samples: number of samples of all ranks in this batch together.
        loss_weight: its part of the samples of its accumulation window, times the number of ranks (over which
            gradients are averaged); 1.0 if it is the only batch of one rank.
        completes_update: whether it is the last of its window, after which the optimizer steps.
        is_last: whether it is known to be the last of the epoch.
    """

    data: Any
    size: int
    samples: int
    loss_weight: float
    completes_update: bool
    is_last: bool


_make_batch: Callable[[tuple[Any, int, int, float, bool, bool]], Batch] = functools.partial(tuple.__new__, Batch)
"""`Batch(*values)` without a Python frame per call."""


class EpochBatches(NamedTuple):
    """The remaining batches of an epoch, and their number, None if it is unknown."""

    batches: Iterator[Batch]
    length: int | None


class Loader(Protocol):
    """What the trainer needs of a split."""

    source: Any

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> EpochBatches:
        """Return the rest of an epoch.

        Args:
            epoch: index of the epoch, from 0.
            samples: number of finished samples of all ranks.
            batches: number of finished batches of this rank.
            window: batches per accumulation window.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the part of the position that the run's counters do not hold."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; takes effect at the next `epoch`."""


def make_loader(source: Any, phase: str, seed: int, world: World = World()) -> Loader:  # noqa: B008 (frozen)
    """Return the loader of a split.

    Args:
        source: a Split, a DataLoader or another iterable of batches.
        phase: "train", or another name for messages. In training every global batch is divided among the ranks, so
            that all ranks take the same number of steps; otherwise the samples are divided, each index to one rank.
        seed: the seed from which orders and the seeds of samples are derived.
        world: the ranks.

    Raises:
        TypeError: the source is none of these.
        ValueError: it has length zero, or is a DataLoader that does not divide its samples among several ranks.
    """
    if isinstance(source, Split):
        if isinstance(source.dataset, IterableDataset):
            return IterableLoader(source, _stock_loader(source), phase, seed, world)
        return SplitLoader(source, phase, seed, world)
    if not isinstance(source, Iterable):
        raise TypeError(f"the {phase} split is a {type(source).__name__}: needs a Split, a DataLoader or an iterable")
    if world.size > 1 and _reads_all_samples(source):
        raise ValueError(
            f"the {phase} split is a DataLoader that gives all {world.size} ranks the same batches: "
            "use a Split, or a DistributedSampler"
        )
    if phase == "train" and isinstance(source, DataLoader) and source.persistent_workers:
        _warn_of_hidden_epoch(source.dataset)
    return IterableLoader(source, source, phase, seed, world)


def _warn_of_hidden_epoch(dataset: Any) -> None:
    if sample_seeding.has_set_epoch(dataset):
        logger.warning(
            "the train split is a DataLoader with persistent_workers=True: its workers have copies of %s that do not "
            "see set_epoch (unless it writes to shared memory), so a resume gives other samples; leave it out",
            type(dataset).__name__,
        )


def _reads_all_samples(loader: Any) -> bool:
    """Return whether this is a DataLoader that is known to read all samples on every rank."""
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader if batches is None else batches, "sampler", None)
    return type(batches) in (BatchSampler, type(None)) and type(sampler) in (RandomSampler, SequentialSampler)


def _has_exact_length(loader: Any) -> bool:
    """Return whether this is a DataLoader of a map-style dataset whose samplers are PyTorch's own."""
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return False
    return type(loader.batch_sampler) in (BatchSampler, type(None)) and type(loader.sampler) in _SIZED_SAMPLERS


class SplitLoader:
    """Batches of a map-style Split: the order is a function of (seed, epoch), the position a count of samples."""

    def __init__(self, split: Split, phase: str, seed: int, world: World) -> None:
        self.source = split
        self._world = world
        self._is_training = phase == "train"
        self._num_averaged = world.size if self._is_training else 1
        self._phase = phase
        self._seed = seed
        self._length = len(split.dataset)  # type: ignore[arg-type]
        if self._length == 0:
            raise ValueError(f"the {phase} split is empty")
        # A TensorDataset uses no random numbers, so its samples need no seed.
        may_be_random = (
            type(sample_seeding.base_dataset(split.dataset)) is not TensorDataset or split.collate_fn is not None
        )
        is_seeded = split.seed_samples and may_be_random
        self._sampler = sample_seeding.EpochBatchSampler(with_seed=is_seeded)
        self._tensors = _TensorGather.of(split)
        # A private generator: without it every new iterator would use the training's RNG state.
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            sample_seeding.SeededDataset(split.dataset, split.collate_fn) if is_seeded else split.dataset,
            batch_sampler=self._sampler,
            collate_fn=_identity if is_seeded else split.collate_fn,
            generator=self._generator,
            **_loader_options(split),
        )

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> EpochBatches:
        """Return the rest of an epoch; `batches` is not used, because `samples` is the position."""
        seed = rng.derive_seed(self._seed, epoch)
        order = self._batch_order(epoch, seed, samples)
        if len(order) == 0 and samples == 0 and (self._is_training or self._world.size == 1):
            why = "drop_last leaves nothing" if self.source.drop_last else "there is none for every process"
            raise ValueError(f"the {self._phase} split has no batch: of {self._length} samples {why}")
        self._generator.manual_seed(seed)
        self._sampler.set_epoch_order(order, seed)
        return EpochBatches(self._batches(order, window, samples), len(order))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the run's counters hold the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""

    def _batch_order(self, epoch: int, seed: int, start: int) -> sample_order.BatchOrder:
        split, world = self.source, self._world
        if split.batch_sampler is not None:
            batches = iter(sample_order.sample_all(split.batch_sampler, epoch, seed, self._is_training, self._length))
            while start > 0:
                start -= len(next(batches, range(start)))
            return sample_order.DealtBatches(list(batches), world, for_training=self._is_training)
        order = sample_order.epoch_order(self._length, split.shuffle, split.sampler, epoch, seed, self._is_training)
        assert split.batch_size is not None  # Split requires it without a batch_sampler.
        if self._is_training:
            return sample_order.BatchPlan(order, start, split.batch_size, split.drop_last, world)
        part = sample_order.contiguous_part(order, world)
        return sample_order.BatchPlan(part, start, split.batch_size, split.drop_last, World())

    def _batches(self, order: sample_order.BatchOrder, window: int, start: int) -> Iterator[Batch]:
        length = len(order)
        total = 0
        i = -1
        iterator = iter(self._loader if self._tensors is None else self._tensors.batches(order))
        for i, data in enumerate(iterator):
            size, samples = order.size(i), order.samples(i)
            if window == 1:
                total = samples
            elif i % window == 0:
                total = sum(order.samples(j) for j in range(i, min(i + window, length)))
            is_last = i + 1 == length
            loss_weight = size * self._num_averaged / total
            yield _make_batch((data, size, samples, loss_weight, is_last or (i + 1) % window == 0, is_last))
        if i + 1 < length:
            raise _incomplete(self._phase, iterator, i + 1, length, f" from sample {start} on" if start > 0 else "")


def _incomplete(phase: str, iterator: Iterator[Any], given: int, length: int, start: str) -> RuntimeError:
    """Return the error of an iterator that ended early. Python takes a StopIteration for the end of any iterator."""
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()  # The StopIteration keeps it alive, in a cycle.
    return RuntimeError(
        f"the {phase} split gave {given} of {length} batches{start}: its dataset or collate_fn raised StopIteration"
    )


class IterableLoader:
    """Batches of a custom loader. With accumulation a window is read before it is used, because its size is needed.

    With several ranks the loader must give each rank its own part of the data, and in training the same number of
    batches.
    """

    def __init__(self, source: Any, iterable: Any, phase: str, seed: int, world: World) -> None:
        self.source = source
        self._world = world
        self._iterable = iterable
        self._phase = phase
        self._seed = seed
        self._state_to_load: Any = None
        self._is_exhausted = False  # The source has ended, though its last batches may still be in use.

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> EpochBatches:
        """Return the rest of an epoch: from the restored state, or after reading and dropping `batches`."""
        if batches > 0 and self._state_to_load is not None and self._is_exhausted:
            self._load_state()
            return EpochBatches(iter(()), 0)
        self._is_exhausted = False
        # In the order of a run that was not stopped: a state within an epoch came after the seeds of that epoch.
        is_restored = self._state_to_load is not None
        if batches == 0:
            self._load_state()
        sample_seeding.set_epoch_and_seed(
            self._iterable, epoch, rng.derive_seed(self._seed, epoch), self._phase == "train"
        )
        self._load_state()
        try:
            length = len(self._iterable)
        except TypeError:  # Every DataLoader has a __len__, but its dataset may not.
            length = None
        if length == 0:
            raise ValueError(f"the {self._phase} split is empty")
        iterator = iter(self._iterable)
        if batches > 0 and not is_restored:
            logger.info("reading and dropping %d batches of the %s split to reach the position", batches, self._phase)
            for _ in itertools.islice(iterator, batches):
                pass
        remaining = None if length is None else length - batches
        if remaining is not None and _has_exact_length(self._iterable):
            iterator = self._require_all(iterator, remaining, batches)
        return EpochBatches(self._batches(iterator, min(window, sys.maxsize), is_start=batches == 0), remaining)

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's own state, if it has one."""
        if not hasattr(self._iterable, "state_dict"):
            return {}
        state = self._iterable.state_dict() if self._state_to_load is None else self._state_to_load
        return {"loader": state, "exhausted": self._is_exhausted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loader's own state, if it was saved and can be restored."""
        if "loader" in state_dict and hasattr(self._iterable, "load_state_dict"):
            self._state_to_load = state_dict["loader"]
            self._is_exhausted = state_dict.get("exhausted", False)

    def _load_state(self) -> None:
        if self._state_to_load is not None:
            self._iterable.load_state_dict(self._state_to_load)
            self._state_to_load = None

    def _require_all(self, iterator: Iterator[Any], length: int, start: int) -> Iterator[Any]:
        given = 0
        for data in iterator:
            given += 1
            yield data
        if given < length:
            raise _incomplete(self._phase, iterator, given, length, f" from batch {start} on" if start > 0 else "")

    def _batches(self, iterator: Iterator[Any], window: int, is_start: bool) -> Iterator[Batch]:
        # `is_last` stays False: the length of a custom loader may be wrong, so the epoch ends where the iterator ends.
        num_ranks = self._world.size
        is_empty = is_start
        if window == 1:
            for data in iterator:
                is_empty = False
                size = batch_size(data)
                yield _make_batch((data, size, size * num_ranks, 1.0, True, False))
            self._is_exhausted = True
        # An iterator that has ended is not asked again: some begin anew then.
        while not self._is_exhausted and (batches := list(itertools.islice(iterator, window))):
            is_empty = False
            self._is_exhausted = len(batches) < window
            sizes = [batch_size(data) for data in batches]
            total = sum(sizes)
            for i, (data, size) in enumerate(zip(batches, sizes, strict=True)):
                yield _make_batch((data, size, size * num_ranks, size / total, i + 1 == len(batches), False))
        if is_empty:
            raise ValueError(f"the {self._phase} split gave no batch (an iterator can be used for one epoch only)")


class _TensorGather:
    """A TensorDataset, or a Subset of one: a batch is one indexed gather from each tensor."""

    def __init__(self, tensors: tuple[Tensor, ...], indices: Tensor | None) -> None:
        self._tensors, self._indices = tensors, indices

    @classmethod
    def of(cls, split: Split) -> _TensorGather | None:
        """Return the gather of a split, None if it needs a DataLoader."""
        dataset, indices = split.dataset, None
        while type(dataset) is Subset:
            subset_indices = torch.as_tensor(dataset.indices)
            indices = subset_indices if indices is None else subset_indices[indices]
            dataset = dataset.dataset
        is_in_process = split.num_workers == 0 and split.collate_fn is None and not split.pin_memory
        return cls(dataset.tensors, indices) if is_in_process and type(dataset) is TensorDataset else None

    def batches(self, order: sample_order.BatchOrder) -> Iterator[list[Tensor]]:
        """Yield the batches that a DataLoader with PyTorch's `default_collate` would yield."""
        for index in order.tensors():
            if self._indices is not None:
                index = self._indices[index]
            yield [tensor.index_select(0, index) for tensor in self._tensors]


class _Collate:
    """A collate function whose StopIteration is an error and not the end of an IterableDataset."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return self._collate(samples)
        except StopIteration as error:
            raise RuntimeError("collate_fn raised StopIteration") from error


def _identity(batch: Any) -> Any:
    return batch


def _loader_options(split: Split) -> dict[str, Any]:
    names = "num_workers pin_memory timeout multiprocessing_context prefetch_factor persistent_workers"
    options = {name: getattr(split, name) for name in names.split()}
    return {**options, "worker_init_fn": WorkerInit(split.worker_init_fn)}


def _stock_loader(split: Split) -> DataLoader[Any]:
    options = _loader_options(split)
    if sample_seeding.has_set_epoch(split.dataset):
        options["persistent_workers"] = False  # Workers get the epoch with their copy of the dataset.
    return DataLoader(
        split.dataset,
        batch_size=split.batch_size,
        drop_last=split.drop_last,
        collate_fn=None if split.collate_fn is None else _Collate(split.collate_fn),
        generator=torch.Generator(),
        **options,
    )
