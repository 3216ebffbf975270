"""The batches of a custom loader, or of a Split of an IterableDataset."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import pickle
import signal
import sys
import weakref
from collections.abc import Callable, Generator, Iterator
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
    default_collate,
)

from helios_lite.data import Split
from helios_lite.loading import seeding
from helios_lite.loading.batches import (
    Batch,
    EpochBatches,
    close_generator,
    dataloader_options,
    end_persistent_workers,
    ending_workers,
    incomplete_error,
    is_training,
    limited,
    seed_of_epoch,
)
from helios_lite.nested import count_samples, leaves
from helios_lite.processes import rng
from helios_lite.processes.memory_maps import sent_to_workers
from helios_lite.processes.signals import held_back
from helios_lite.processes.world import World

logger = logging.getLogger("helios_lite")
_IGNORED_BY_WORKERS = (signal.SIGINT, signal.SIGUSR1)
"""What never reaches the workers of a loader that the user has made: a step that is finished needs their batches."""
_SIZED_SAMPLERS = (RandomSampler, SequentialSampler, DistributedSampler, SubsetRandomSampler, WeightedRandomSampler)


class IterableLoader:
    """Batches of a custom loader. With accumulation a window is read before it is used, because its size is needed.

    With several ranks the loader must give each rank its own part of the data, and in training the same number of
    batches.
    """

    def __init__(
        self,
        source: Any,
        iterable: Any,
        phase: str,
        seed: int,
        world: World,
        limit: int | float | None,
        count: Callable[[Any], int],
    ) -> None:
        self.source = source
        self._world = world
        self._iterable = iterable
        self._count = count
        self._is_split = isinstance(source, Split)
        self._knows_sizes = self._is_split or _size_by_sampler(iterable, 0) is not None
        # What has the position: the loader, or the dataset of a Split that is read in this process.
        # A limit says where an epoch begins, which a state does not.
        has_state = self._is_split and source.num_workers == 0 and hasattr(source.dataset, "load_state_dict")
        self._is_read_here = has_state and (limit is None or not is_training(phase))
        self._stateful = source.dataset if self._is_read_here else iterable
        self._is_compared = False  # Whether ranks and workers were found to read different samples.
        self._phase = phase
        self._seed = seed
        self._state_to_load: Any = None
        self._rng_at_start: dict[str, Any] | None = None  # Of an epoch of a loader without a state, which may draw.
        self._limit = limit
        if limit is not None and is_training(phase) and self.takes_state():
            raise ValueError(
                "the train split is a loader with a load_state_dict, which says where it was and not where an epoch "
                "begins: use steps_per_epoch in place of limit_train_batches or overfit_batches"
            )
        self.marks_last = _has_exact_length(iterable)
        self._open: weakref.ref[Generator[Batch]] | None = None  # Its workers end with the epoch.
        self._is_exhausted = False  # The source has ended, though its last batches may still be in use.
        kind = phase.split("/")[0]
        if kind in ("valid", "test") and limit is None and _length(iterable) is None:
            logger.info("%s: has no length; if it never ends, set limit_%s_batches", phase, kind)

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
        for_training, draws = is_training(self._phase), not _is_list(self._iterable)
        if draws:
            seed = seed_of_epoch(self._seed, self._phase, epoch)
            seeding.set_epoch_and_seed(self._iterable, epoch, seed, for_training=for_training)
        self._load_state()
        length = _length(self._iterable)
        if length is None and isinstance(self._limit, float):
            raise ValueError(f"the {self._phase} split has no length: limit it to a number of batches, not to a part")
        if length == 0:
            raise ValueError(f"the {self._phase} split is empty")
        if batches > 0 and not is_restored:
            logger.info("reading and dropping %d batches of the %s split to reach the position", batches, self._phase)
            iterator = self._read_to(batches, window)
        else:
            if for_training and draws and not self.takes_state():
                self._rng_at_start = rng.get_state(torch.device("cpu"))
            with sent_to_workers(), held_back(_IGNORED_BY_WORKERS):
                iterator = iter(self._iterable)
        remaining = None if length is None else max(0, limited(length, self._limit) - batches)
        read = self._batches(iterator, batches, remaining, min(window, sys.maxsize))
        self._open = weakref.ref(read)
        return EpochBatches(read, remaining)

    def _read_to(self, batches: int, window: int) -> Iterator[Any]:
        """Return an iterator over what comes after so many batches, which are read with the RNG states of the start.

        What the loader draws until the first step it draws again, as an order that it shuffles. Later the training has
        drawn in between, so that other numbers come.
        """
        cpu = torch.device("cpu")
        with rng.fork_rng(cpu):
            state = rng.get_state(cpu)
            if self._rng_at_start is not None:
                rng.set_state(self._rng_at_start, cpu)
            with sent_to_workers(), held_back(_IGNORED_BY_WORKERS):
                iterator: Iterator[Any] = iter(self._iterable)
            for _ in itertools.islice(iterator, min(batches, window)):
                pass
            if self._rng_at_start is not None:
                state = rng.get_state(cpu)
            for _ in itertools.islice(iterator, max(0, batches - window)):
                pass
            if rng.has_drawn(state) and not _has_known_order(self._iterable):
                logger.warning(
                    "the %s split draws random numbers while it is read, between those of the training, so that the "
                    "rest of this epoch may have other samples than if it had not been stopped, some of them for the "
                    "second time: use a Split, or give the loader state_dict and load_state_dict", self._phase,
                )  # fmt: skip
        return iterator

    def num_batches(self, *, samples: int = 0, batches: int = 0) -> int | None:
        """Return what the length of the loader and a limit say; None if it has no length."""
        length = _length(self._iterable)
        if length is None:
            return max(0, self._limit - batches) if isinstance(self._limit, int) else None
        return max(0, limited(length, self._limit) - batches)

    def takes_state(self) -> bool:
        """Return whether the loader has a `load_state_dict`."""
        return hasattr(self._stateful, "load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's own state, or else the RNG states with which it has begun the epoch."""
        if not hasattr(self._stateful, "state_dict"):
            return {} if self._rng_at_start is None else {"rng": self._rng_at_start}
        state = self._stateful.state_dict() if self._state_to_load is None else self._state_to_load
        return {"loader": state, "exhausted": self._is_exhausted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loader's own state, if it was saved and can be restored."""
        if "loader" in state_dict and self.takes_state():
            self._state_to_load = state_dict["loader"]
            self._is_exhausted = state_dict.get("exhausted", False)
        self._rng_at_start = state_dict.get("rng")

    def close(self) -> None:
        """End the epoch that is read, and the workers of a Split; a loader of the user keeps those that persist."""
        close_generator(self._open)
        if self._is_split:
            end_persistent_workers(self._iterable)

    def _load_state(self) -> None:
        if self._state_to_load is not None:
            self._stateful.load_state_dict(self._state_to_load)
            self._state_to_load = None

    def _batches(self, iterator: Iterator[Any], start: int, remaining: int | None, window: int) -> Generator[Batch]:
        with ending_workers(self._iterable, iterator):
            is_compared = self._is_compared or not self._is_split or start > 0
            source = iterator if is_compared else self._compared(iterator)
            if self._limit is not None:
                most = max(0, int(self._limit) - start) if remaining is None else remaining
                source = itertools.islice(source, min(most, sys.maxsize))
            # Otherwise the length may be wrong: no batch has `is_last`, and the epoch ends where the iterator ends.
            last = remaining if self.marks_last else None
            num_ranks = self._world.size
            number = 0
            if window == 1 and not self._knows_sizes:
                kind: type | None = None
                size = -1
                for number, data in enumerate(source, 1):
                    # What most loaders yield is looked at as a whole only if its first tensor has another length.
                    try:
                        is_alike = type(data) is kind and data[0].shape[0] == size  # type: ignore[index]
                    except (AttributeError, IndexError):
                        is_alike = False
                    if not is_alike:
                        size, kind = self._count(data), _kind_to_count(data, self._count)
                    yield data, size, size * num_ranks, 1.0, True, number == last
                self._is_exhausted = True
            elif window == 1:
                for number, data in enumerate(source, 1):
                    size, data = self._counted(data, start + number - 1)
                    self._is_exhausted = self._is_last_of_stream(size)
                    yield data, size, size * num_ranks, 1.0, True, number == last
                self._is_exhausted = True
            # An iterator that has ended is not asked again: some begin anew then.
            while not self._is_exhausted and (batches := list(itertools.islice(source, window))):
                self._is_exhausted = len(batches) < window
                if self._is_exhausted:  # Before the window is used.
                    self._require_all(number + len(batches), last, start)
                counted = [self._counted(data, start + number + i) for i, data in enumerate(batches)]
                self._is_exhausted |= self._is_last_of_stream(counted[-1][0])
                total = sum(size for size, _ in counted)
                for i, (size, data) in enumerate(counted, 1):
                    number += 1
                    yield data, size, size * num_ranks, size / max(total, 1), i == len(batches), number == last
            self._is_exhausted = True
            self._require_all(number, last, start)
            if start == number == 0:
                raise ValueError(f"the {self._phase} split gave no batch (an iterator can be used for one epoch only)")

    def _is_last_of_stream(self, size: int) -> bool:
        """Return whether a dataset has come to its end while it made a batch of that size; its state says so not."""
        return self._is_read_here and size < self._iterable.batch_size

    def _compared(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches of a stream, after a look at the first ones. Call on every rank.

        Raises:
            ValueError: all ranks read the same samples.
        """
        num_workers = self.source.num_workers
        first = list(itertools.islice(iterator, max(1, num_workers)))
        digests = [_digest(batch) for batch in first]
        self._is_compared = True
        if num_workers > 1 and len(first) == num_workers and None not in digests and len({*digests}) == 1:
            logger.warning(
                "the %s split is a stream of which all %d workers read the same samples, so that each comes %d times: "
                "divide them in __iter__ of %s, as in itertools.islice(samples, info.id, None, info.num_workers) with "
                "info = torch.utils.data.get_worker_info(); or use num_workers=1",
                self._phase, num_workers, num_workers, type(self.source.dataset).__name__,
            )  # fmt: skip
        if self._world.size > 1:
            of_ranks = self._world.gather(digests[0] if digests else None)
            if None not in of_ranks and len({*of_ranks}) == 1:
                raise ValueError(
                    f"the {self._phase} split is a stream of which all {self._world.size} ranks read the same samples: "
                    f"divide them in __iter__ of {type(self.source.dataset).__name__}, as in itertools.islice(samples, "
                    "rank, None, num_ranks) with rank = torch.distributed.get_rank() and num_ranks = "
                    "torch.distributed.get_world_size(); a DataLoader in place of the Split is not compared"
                )
        yield from first
        yield from iterator

    def _counted(self, batch: Any, number: int) -> tuple[int, Any]:
        """Return the number of samples in a batch, and the batch; `number` is its place in the epoch, from 0."""
        if self._is_split:
            size, batch = batch
            return size, batch
        known = _size_by_sampler(self._iterable, number)
        return self._count(batch) if known is None else known, batch

    def _require_all(self, given: int, length: int | None, start: int) -> None:
        """Raise a RuntimeError if an epoch of a known length has ended early."""
        if length is not None and given < length:
            where = f" from batch {start} on" if start > 0 else ""
            raise incomplete_error(self._phase, given, length, where)


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except TypeError:  # Every DataLoader has a __len__, but its dataset may not.
        return None


def _has_known_order(loader: Any) -> bool:
    """Return whether the order of samples does not depend on the random numbers of the training."""
    is_stock = type(loader) is DataLoader and type(loader.batch_sampler) in (BatchSampler, type(None))
    return _is_list(loader) or (is_stock and isinstance(loader.sampler, _SIZED_SAMPLERS))


def _is_list(loader: Any) -> bool:
    """Return whether batches are read from a list, which draws no random numbers."""
    return type(loader) in (list, tuple)


def _has_exact_length(loader: Any) -> bool:
    """Return whether this is a list of batches, or a DataLoader of a map-style dataset with PyTorch's own samplers."""
    if _is_list(loader):
        return True
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return False
    return type(loader.batch_sampler) in (BatchSampler, type(None)) and type(loader.sampler) in _SIZED_SAMPLERS


def _digest(batch: Any) -> bytes | None:
    """Return what tells a batch from others, None if it cannot be told."""
    file = io.BytesIO()
    try:
        pickle.Pickler(file).dump([leaf.numpy() if isinstance(leaf, Tensor) else leaf for _, leaf in leaves(batch)])
    except Exception:  # Objects may not be pickled, or in no way that is the same again.
        return None
    return hashlib.blake2b(file.getvalue()).digest()


def _kind_to_count(batch: Any, count: Callable[[Any], int]) -> type | None:
    """Return the type of a batch whose number of samples the length of its first tensor tells; otherwise None."""
    is_flat = type(batch) in (list, tuple) and all(type(part) is Tensor and part.ndim > 0 for part in batch)
    return type(batch) if is_flat and batch and count is count_samples else None


def _size_by_sampler(loader: Any, number: int) -> int | None:
    """Return the number of samples in a batch of a DataLoader whose sampler and batch sampler are PyTorch's own."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if type(loader.batch_sampler) is not BatchSampler or type(loader.sampler) not in _SIZED_SAMPLERS:
        return None
    size: int = loader.batch_sampler.batch_size
    sampler: Any = loader.sampler
    left = len(sampler) - number * size
    return min(size, left) if left > 0 else None


def stock_loader(split: Split, batch_size: int | None) -> DataLoader[Any]:
    """Return the DataLoader of a Split of an IterableDataset, with batches of that size."""
    options = dataloader_options(split)
    if seeding.has_set_epoch(split.dataset):
        options["persistent_workers"] = False  # Workers get the epoch with their copy of the dataset.
    return DataLoader(
        split.dataset,
        batch_size=batch_size,
        drop_last=split.drop_last,
        collate_fn=_Collate(default_collate if split.collate_fn is None else split.collate_fn),
        generator=torch.Generator(),
        **options,
    )


class _Collate:
    """Returns the number of samples, and what a collate function makes of them.

    A StopIteration of that function is an error, and not the end of an IterableDataset.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return len(samples), self._collate(samples)
        except StopIteration as error:
            raise RuntimeError("collate_fn raised StopIteration") from error
