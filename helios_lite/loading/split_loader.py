"""The batches of a map-style Split, from any position of an epoch on."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from helios_lite.data import ArrayDict, Split, rows_of
from helios_lite.loading import sample_order, seeding
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
from helios_lite.loading.begun_epoch import BegunEpoch, Changes, digest_of
from helios_lite.loading.pinning import Pinning, batches_of
from helios_lite.metrics.digests import SampleDigest
from helios_lite.processes.memory_maps import sent_to_workers
from helios_lite.processes.signals import SIGNALS, held_back
from helios_lite.processes.world import World
from helios_lite.samplers import BucketBatchSampler


class SplitLoader:
    """Batches of a map-style Split: the order is a function of (seed, epoch), the position a count of samples.

    A resumed epoch is finished with the length, the seed and the order with which it has begun.

    Attributes:
        changes: what the split has otherwise than the resumed epoch that `epoch` has returned, None if nothing.
    """

    marks_last = True

    def __init__(
        self,
        split: Split,
        phase: str,
        seed: int,
        world: World,
        limit: int | float | None,
        in_order: bool,
        batch_size: int | None,
        pins: bool = False,
    ) -> None:
        self.source = split
        self._batch_size = 0 if batch_size is None else batch_size  # Not used with a batch sampler.
        self._limit, self._shuffle = limit, split.shuffle and not in_order
        self._shuffle_block = split.shuffle_block if self._shuffle else None
        self._world = world
        self._is_training = is_training(phase)
        self._num_averaged = world.size if self._is_training else 1
        self._phase = phase
        self._seed = seed
        self._order: sample_order.BatchOrder | None = None
        self._num_finished = 0  # Batches before those of the order.
        self._num_digested = 0  # Batches of the order that are in the digest.
        self._digest = SampleDigest()
        self._has_digest = True
        self._begun: BegunEpoch | None = None
        self._is_restored = False  # Whether that is of a checkpoint, and no epoch was read since.
        self.changes: Changes | None = None
        self._open: weakref.ref[Generator[Batch]] | None = None  # Its workers end with the epoch.
        self._length = len(split.dataset)
        if self._length == 0:
            raise ValueError(f"the {phase} split is empty")
        # Tensors and arrays use no random numbers, so their samples need no seed.
        base = seeding.base_dataset(split.dataset)
        may_be_random = type(base) not in (TensorDataset, ArrayDict) or split.collate_fn is not None
        self._is_seeded = is_seeded = split.seed_samples and may_be_random
        self._tells_epochs = self._is_training and seeding.has_set_epoch(split.dataset)
        is_wrapped = is_seeded or self._tells_epochs
        self._sampler = seeding.EpochBatchSampler(with_seed=is_wrapped)
        self._gather = _Gather.of(split)
        collate = _identity if is_wrapped else split.collate_fn
        options = dataloader_options(split)
        self._pins = pins and split.num_workers > 0 and split.pin_memory is None
        if self._pins:
            collate, options["pin_memory"] = Pinning(collate or default_collate), True
        # A private generator: without it every new iterator would use the training's RNG state.
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            seeding.SeededDataset(split.dataset, split.collate_fn, is_seeded, self._tells_epochs)
            if is_wrapped
            else split.dataset,
            batch_sampler=self._sampler,
            collate_fn=collate,
            generator=self._generator,
            **options,
        )

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> EpochBatches:
        """Return the rest of an epoch; `samples` is the position.

        Raises:
            ValueError: the epoch has no batch, or it has begun with an order that is not known any more.
        """
        self._begun, self.changes, drawn = self._resumed(epoch, samples)
        self._is_restored = False  # Not before what may raise.
        epoch, seed = self._begun.epoch, seed_of_epoch(self._begun.seed, self._phase, self._begun.epoch)
        draws_once = type(self.source.batch_sampler) is BucketBatchSampler
        if self._is_seeded and self._begun.has_sampler and not draws_once:
            drawn = self._with_copies(drawn)
        order = self._batch_order(self._begun.order(drawn), samples)
        if len(order) == 0 and samples == 0 and (self._is_training or self._world.size == 1):
            why = "drop_last leaves nothing" if self.source.drop_last else "there is none for every process"
            raise ValueError(f"the {self._phase} split has no batch: of {self._length} samples {why}")
        self._generator.manual_seed(seed)
        self._sampler.set_epoch_order(order, seed, epoch)
        self._order, self._num_finished, self._num_digested = order, batches, 0
        read = self._batches(order, window, samples)
        self._open = weakref.ref(read)
        return EpochBatches(read, len(order))

    def num_batches(self, *, samples: int = 0, batches: int = 0) -> int | None:
        """Return the number of batches from a position on, by arithmetic; None if only a sampler knows it.

        That of a `BucketBatchSampler` is counted in its first epoch. The rest of an epoch that was restored is counted
        as it will be read.
        """
        split, world = self.source, self._world
        if self._begun is not None and self._is_restored and samples > 0:
            goes_on, _, drawn = self._resumed(self._begun.epoch, samples)
            return len(self._batch_order(goes_on.order(drawn), samples))
        sampler = split.sampler if split.batch_sampler is None else split.batch_sampler
        length = len(split.dataset) if sampler is None else _length(sampler)
        if isinstance(sampler, BucketBatchSampler):
            seed = seed_of_epoch(self._seed, self._phase, 0)
            length = len(sample_order.sample_all(sampler, 0, seed, for_training=False, num_samples=self._length))
        if length is None:
            return None
        if split.batch_sampler is not None:
            return max(0, limited(-(-length // world.size), self._limit) - batches)
        order = range(self._num_samples(range(length)))
        return len(sample_order.BatchPlan(order, samples, self._batch_size, split.drop_last, world))

    def indices(self) -> Iterator[Tensor]:
        """Yield the indices of the samples in each batch of the last `epoch`, as int64 tensors."""
        assert self._order is not None
        return self._order.tensors()

    def indices_after(self, batches: int) -> Tensor:
        """Return the indices of the samples in the batch after so many finished ones of the last `epoch`."""
        assert self._order is not None
        return next(self._order.tensors(batches - self._num_finished)).clone()

    def leave_out_digest(self) -> None:
        """Add no samples to the digest from now on, because nobody asks for it."""
        self._has_digest = False

    def add_to_digest(self, batches: int) -> None:
        """Add the samples of all ranks in the batches that are finished to the digest.

        Args:
            batches: how many batches of the last `epoch` are finished.
        """
        first, last = self._num_digested, batches - self._num_finished
        if self._has_digest and self._order is not None and last > first:
            self._digest.add(sample_order.as_tensor(self._order.of_all_ranks(first, last)))
            self._num_digested = last

    def take_digest(self) -> int | None:
        """Return the digest of the samples since the last call, None if there are none or they are no integers."""
        return self._digest.take()

    def takes_state(self) -> bool:
        """Return False: the state is the same on every rank, and any number of ranks can go on with it."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what the present epoch has begun with, and the digest of the samples that no row has.

        The run's counters hold the position.
        """
        if self._begun is None:
            return {}
        return {"begun": dataclasses.asdict(self._begun), "digest": self._digest.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next `epoch` finish what has begun so, unless it starts at the first sample."""
        if "begun" in state_dict:
            self._begun, self._is_restored = BegunEpoch(**state_dict["begun"]), True
        if "digest" in state_dict:
            self._digest.load_state_dict(state_dict["digest"])

    def close(self) -> None:
        """End the epoch that is read, and all workers."""
        close_generator(self._open)
        end_persistent_workers(self._loader)

    def _resumed(self, epoch: int, samples: int) -> tuple[BegunEpoch, Changes | None, Any]:
        """Return an epoch as it goes on from a position, what differs from how it has begun, and its order.

        Raises:
            ValueError: the epoch has begun with an order that is not known any more.
        """
        split = self.source
        restored = self._begun if self._is_restored and samples > 0 else None
        if restored is not None:
            epoch = restored.epoch
        if self._tells_epochs:
            seeding.set_epoch(split.dataset, epoch)
        self._length = len(split.dataset)  # It may have changed since the last epoch, also by a hook.
        sampler, batch_sampler = map(_class_name, (split.sampler, split.batch_sampler))
        now = BegunEpoch(
            epoch, self._seed, self._length, self._shuffle, sampler, batch_sampler, shuffle_block=self._shuffle_block
        )
        begun = now if restored is None else restored
        begun.check_samplers(now)
        drawn = self._drawn(begun, seed_of_epoch(begun.seed, self._phase, epoch))
        now = self._completed(now, begun, drawn)
        goes_on, changes = (now, None) if restored is None else restored.resumed(now, samples, drawn)
        return goes_on, changes, drawn

    def _drawn(self, begun: BegunEpoch, seed: int) -> Any:
        """Return the indices of an epoch in order, or the batches of them that a batch sampler draws."""
        split = self.source
        sampler = split.sampler if split.batch_sampler is None else split.batch_sampler
        return sample_order.epoch_order(
            begun.length,
            begun.is_shuffled,
            begun.shuffle_block,
            sampler if begun.has_sampler else None,
            begun.epoch,
            seed,
            self._is_training,
        )

    def _completed(self, now: BegunEpoch, begun: BegunEpoch, drawn: Any) -> BegunEpoch:
        """Return what an epoch begins with now, with the digest of its order and the number of its samples.

        Args:
            now: what it begins with.
            begun: what the present epoch has begun with.
            drawn: the order of the present epoch.
        """
        if begun.has_sampler != now.has_sampler:
            return now  # Its sampler is not used yet.
        digest = digest_of(drawn, now) if now.has_sampler and self._is_training else None
        num_samples = self._num_samples(drawn if now.has_sampler else range(now.length))
        return dataclasses.replace(now, digest=digest, num_samples=num_samples)

    def _num_samples(self, order: Any) -> int:
        """Return how many samples of a whole order an epoch has; by samples, so that all windows get their weights."""
        world, limit = self._world, self._limit
        if self.source.batch_sampler is not None:
            return sum(map(len, order[: limited(-(-len(order) // world.size), limit) * world.size]))
        if limit is None:
            return len(order)
        global_batch_size = self._batch_size * world.size
        return min(len(order), limited(-(-len(order) // global_batch_size), limit) * global_batch_size)

    def _with_copies(self, drawn: Any) -> Any:
        """Return what a sampler has drawn, indices that came before as a `Copy`, whose random numbers are others."""
        count: dict[int, int] = {}
        if self.source.batch_sampler is None:
            return seeding.with_copies(drawn, count)
        return [seeding.with_copies(batch, count) for batch in drawn]

    def _batch_order(self, order: Any, start: int) -> sample_order.BatchOrder:
        """Return the batches of this rank from a position on, of an order of indices or of batches."""
        split, world = self.source, self._world
        if split.batch_sampler is not None:
            batches = iter(order)
            while start > 0:
                start -= len(next(batches, range(start)))
            return sample_order.DealtBatches(list(batches), world, for_training=self._is_training)
        is_dealt = self._phase == "predict"
        if self._is_training or is_dealt:
            return sample_order.BatchPlan(order, start, self._batch_size, split.drop_last, world, is_dealt=is_dealt)
        part = sample_order.contiguous_part(order, world)
        return sample_order.BatchPlan(part, start, self._batch_size, split.drop_last, World())

    def _batches(self, order: sample_order.BatchOrder, window: int, start: int) -> Generator[Batch]:
        length = len(order)
        total = 0
        i = -1
        with sent_to_workers(), held_back(SIGNALS):  # Until `WorkerInit` handles them in the workers.
            iterator = iter(self._loader if self._gather is None else self._gather.batches(order))
        with ending_workers(self._loader, iterator):
            for i, data in enumerate(batches_of(iterator) if self._pins else iterator):
                size, samples = order.size(i), order.samples(i)
                if window == 1:
                    total = samples
                elif i % window == 0:
                    total = sum(order.samples(j) for j in range(i, min(i + window, length)))
                is_last = i + 1 == length
                loss_weight = size * self._num_averaged / max(total, 1)
                yield data, size, samples, loss_weight, is_last or (i + 1) % window == 0, is_last
            if self._is_training:  # It is the last moment at which the order is known, if another pass follows.
                self.add_to_digest(self._num_finished + i + 1)
            if i + 1 < length:
                raise incomplete_error(self._phase, i + 1, length, f" from sample {start} on" if start > 0 else "")


class _Gather:
    """A TensorDataset or a dict of arrays, or a Subset of one: a batch is one indexed gather from each tensor."""

    def __init__(self, gather: Callable[[Tensor], Any], indices: Tensor | None) -> None:
        self._gather, self._indices = gather, indices

    @classmethod
    def of(cls, split: Split) -> _Gather | None:
        """Return the gather of a split, None if it needs a DataLoader."""
        dataset, indices = split.dataset, None
        while type(dataset) is Subset:
            whole: Any = dataset.dataset
            subset_indices = torch.as_tensor(dataset.indices)
            # Python counts negative indices from the end, and `index_select` does not.
            subset_indices = torch.where(subset_indices < 0, subset_indices + len(whole), subset_indices)
            indices = subset_indices if indices is None else subset_indices[indices]
            dataset = dataset.dataset
        if split.num_workers > 0 or split.collate_fn is not None or split.pin_memory:
            return None
        if type(dataset) is TensorDataset:
            tensors = dataset.tensors
            return cls(lambda index: [rows_of(tensor, index) for tensor in tensors], indices)
        return cls(dataset.gather, indices) if type(dataset) is ArrayDict else None

    def batches(self, order: sample_order.BatchOrder) -> Iterator[Any]:
        """Yield the batches that a DataLoader with PyTorch's `default_collate` would yield."""
        for index in order.tensors():
            yield self._gather(index if self._indices is None else self._indices[index])


def _identity(batch: Any) -> Any:
    return batch


def _length(sampler: Any) -> int | None:
    try:
        return len(sampler)
    except (TypeError, NotImplementedError):
        return None


def _class_name(sampler: Any) -> str | None:
    return None if sampler is None else type(sampler).__name__
