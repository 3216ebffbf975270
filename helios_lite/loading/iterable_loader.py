"""The batches of a custom loader, or of a Split of an IterableDataset."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from helios_lite.data import Split
from helios_lite.loading import seeding
from helios_lite.loading.batches import Batch, EpochBatches, dataloader_options, incomplete_error, limited
from helios_lite.processes import rng
from helios_lite.processes.world import World

logger = logging.getLogger("helios_lite")
_SIZED_SAMPLERS = (RandomSampler, SequentialSampler, DistributedSampler, SubsetRandomSampler, WeightedRandomSampler)


class IterableLoader:
    """Batches of a custom loader. With accumulation a window is read before it is used, because its size is needed.

    With several ranks the loader must give each rank its own part of the data, and in training the same number of
    batches.
    """

    def __init__(
        self, source: Any, iterable: Any, phase: str, seed: int, world: World, limit: int | float | None
    ) -> None:
        self.source = source
        self._world = world
        self._iterable = iterable
        self._phase = phase
        self._seed = seed
        self._state_to_load: Any = None
        self._limit = limit
        if limit is not None and phase == "train" and self.takes_state():
            raise ValueError(
                "the train split is a loader with a load_state_dict, which says where it was and not where an epoch "
                "begins: use steps_per_epoch in place of limit_train_batches or overfit_batches"
            )
        self.marks_last = _has_exact_length(iterable)
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
        seeding.set_epoch_and_seed(self._iterable, epoch, rng.derive_seed(self._seed, epoch), self._phase == "train")
        self._load_state()
        try:
            length = len(self._iterable)
        except TypeError:  # Every DataLoader has a __len__, but its dataset may not.
            length = None
        if length is None and isinstance(self._limit, float):
            raise ValueError(f"the {self._phase} split has no length: limit it to a number of batches, not to a part")
        if length == 0:
            raise ValueError(f"the {self._phase} split is empty")
        iterator = iter(self._iterable)
        if batches > 0 and not is_restored:
            logger.info("reading and dropping %d batches of the %s split to reach the position", batches, self._phase)
            for _ in itertools.islice(iterator, batches):
                pass
        remaining = None if length is None else max(0, limited(length, self._limit) - batches)
        return EpochBatches(self._batches(iterator, batches, remaining, min(window, sys.maxsize)), remaining)

    def takes_state(self) -> bool:
        """Return whether the loader has a `load_state_dict`."""
        return hasattr(self._iterable, "load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's own state, if it has one."""
        if not hasattr(self._iterable, "state_dict"):
            return {}
        state = self._iterable.state_dict() if self._state_to_load is None else self._state_to_load
        return {"loader": state, "exhausted": self._is_exhausted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loader's own state, if it was saved and can be restored."""
        if "loader" in state_dict and self.takes_state():
            self._state_to_load = state_dict["loader"]
            self._is_exhausted = state_dict.get("exhausted", False)

    def _load_state(self) -> None:
        if self._state_to_load is not None:
            self._iterable.load_state_dict(self._state_to_load)
            self._state_to_load = None

    def _batches(self, iterator: Iterator[Any], start: int, remaining: int | None, window: int) -> Iterator[Batch]:
        source = iterator
        if self._limit is not None:
            most = max(0, int(self._limit) - start) if remaining is None else remaining
            source = itertools.islice(iterator, min(most, sys.maxsize))
        # Otherwise the length may be wrong: no batch has `is_last`, and the epoch ends where the iterator ends.
        last = remaining if self.marks_last else None
        num_ranks = self._world.size
        number = 0
        if window == 1:
            for number, data in enumerate(source, 1):
                size = batch_size(data)
                yield data, size, size * num_ranks, 1.0, True, number == last
            self._is_exhausted = True
        # An iterator that has ended is not asked again: some begin anew then.
        while not self._is_exhausted and (batches := list(itertools.islice(source, window))):
            self._is_exhausted = len(batches) < window
            if self._is_exhausted:  # Before the window is used.
                self._require_all(iterator, number + len(batches), last, start)
            sizes = [batch_size(data) for data in batches]
            total = sum(sizes)
            for i, (data, size) in enumerate(zip(batches, sizes, strict=True), 1):
                number += 1
                yield data, size, size * num_ranks, size / total, i == len(batches), number == last
        self._require_all(iterator, number, last, start)
        if start == number == 0:
            raise ValueError(f"the {self._phase} split gave no batch (an iterator can be used for one epoch only)")

    def _require_all(self, iterator: Iterator[Any], given: int, length: int | None, start: int) -> None:
        """Raise a RuntimeError if an epoch of a known length has ended early."""
        if length is not None and given < length:
            where = f" from batch {start} on" if start > 0 else ""
            raise incomplete_error(self._phase, iterator, given, length, where)


def _has_exact_length(loader: Any) -> bool:
    """Return whether this is a list of batches, or a DataLoader of a map-style dataset with PyTorch's own samplers."""
    if type(loader) in (list, tuple):
        return True
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return False
    return type(loader.batch_sampler) in (BatchSampler, type(None)) and type(loader.sampler) in _SIZED_SAMPLERS


def stock_loader(split: Split) -> DataLoader[Any]:
    """Return the DataLoader of a Split of an IterableDataset."""
    options = dataloader_options(split)
    if seeding.has_set_epoch(split.dataset):
        options["persistent_workers"] = False  # Workers get the epoch with their copy of the dataset.
    return DataLoader(
        split.dataset,
        batch_size=split.batch_size,
        drop_last=split.drop_last,
        collate_fn=None if split.collate_fn is None else _Collate(split.collate_fn),
        generator=torch.Generator(),
        **options,
    )


class _Collate:
    """A collate function whose StopIteration is an error and not the end of an IterableDataset."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return self._collate(samples)
        except StopIteration as error:
            raise RuntimeError("collate_fn raised StopIteration") from error


def batch_size(batch: Any) -> int:
    """Return the number of samples in a nested batch.

    This is the leading dimension of the first tensor, else the length of the first list without tensors, else 1.
    """
    if type(batch) in (list, tuple) and batch and type(batch[0]) is Tensor and batch[0].ndim > 0:
        return batch[0].shape[0]  # What most loaders yield; `len` is a function in Python.
    leaves = list(_leaves(batch))
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            return leaf.shape[0] if leaf.ndim > 0 else 1
    return max(1, next((len(leaf) for leaf in leaves if isinstance(leaf, list | tuple)), 1))


def _leaves(batch: Any) -> Iterator[Any]:
    """Yield the tensors of a nested batch, and the lists that hold neither tensors nor containers."""
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = list(batch)
    elif dataclasses.is_dataclass(batch):
        parts = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    else:
        yield batch
        return
    nested = [
        part for part in parts if isinstance(part, Tensor | Mapping | list | tuple) or dataclasses.is_dataclass(part)
    ]
    if not nested and parts:
        yield tuple(parts)
    for part in nested:
        yield from _leaves(part)
