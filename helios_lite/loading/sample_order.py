"""The order of samples: which indices a rank reads in each batch of an epoch, from any position on."""

from __future__ import annotations

import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from helios_lite.loading import seeding
from helios_lite.processes import rng
from helios_lite.processes.random_order import RandomOrder, random_order
from helios_lite.processes.world import World
from helios_lite.samplers import BucketBatchSampler

_MOST_ELEMENTS = 1_000_000  # A sampler may always yield so many per epoch, however small its dataset is.


def epoch_order(
    length: int,
    shuffle: bool,
    block: int | None,
    sampler: Iterable[Any] | None,
    epoch: int,
    seed: int,
    for_training: bool,
) -> Sequence[Any] | Tensor | RandomOrder:
    """Return the order of the samples in an epoch: that of the sampler, else a random one, else that of the dataset.

    Args:
        length: the length of the dataset.
        shuffle: whether the order is random; it then depends on the seed alone.
        block: how many neighbours stay near each other in a random order; None for any.
        sampler: a sampler of indices, or of batches of them.
        epoch: index of the epoch, from 0.
        seed: the seed of the epoch.
        for_training: whether to call `set_epoch` of the sampler.

    Returns:
        A range, a list, an int64 tensor of indices, or an order that is computed; of a sampler of batches a list of
        them.
    """
    if sampler is not None:
        return sample_all(sampler, epoch, seed, for_training, length)
    if shuffle:
        return random_order(length, seed, block)
    return range(length)


def sample_all(sampler: Iterable[Any], epoch: int, seed: int, for_training: bool, num_samples: int) -> list[Any]:
    """Return everything that a sampler yields in an epoch, with its random numbers seeded.

    Args:
        sampler: a sampler of indices or of batches.
        epoch: index of the epoch, from 0.
        seed: the seed of the epoch.
        for_training: whether to call `set_epoch`.
        num_samples: the length of the dataset.

    Raises:
        ValueError: the sampler is probably infinite: it yields more than a million elements, more than ten times the
            length of the dataset, and more than its own `__len__`.
    """
    limit = max(_MOST_ELEMENTS, 10 * num_samples, operator.length_hint(sampler))
    with rng.fork_rng(torch.device("cpu")):
        rng.seed_cpu(seed)
        seeding.set_epoch_and_seed(sampler, epoch, seed, for_training)
        batches = map(_packed, sampler) if type(sampler) is BucketBatchSampler else sampler
        drawn = list(itertools.islice(batches, limit + 1))
    if len(drawn) > limit:
        raise ValueError(
            f"sampler {type(sampler).__name__}: must be finite, but yields more than {limit:,} elements in an epoch "
            f"of a dataset with {num_samples:,} samples"
        )
    return drawn


def _packed(batch: list[int]) -> array[int]:
    """Return a batch with a fifth of the memory."""
    return array("q", batch)


def num_samples(order: Any, *, of_batches: bool) -> int:
    """Return the number of samples in an order of indices, or of batches of them."""
    return sum(map(len, order)) if of_batches else len(order)


def first_samples(order: Any, number: int, *, of_batches: bool) -> Any:
    """Return the first samples of an order of indices, or of batches of them, none of which is divided."""
    if not of_batches:
        return order[:number]
    ends = itertools.accumulate(map(len, order))
    return [batch for batch, end in zip(order, ends, strict=True) if end <= number]


def without_gone(order: Any, start: int, length: int, *, of_batches: bool) -> Any:
    """Return an order without the indices, from a position on, that a dataset of some length does not have.

    Args:
        order: a range from 0, a list, a tensor or a computed order of indices, or a list of batches of them.
        start: the position. That of batches is between two of them.
        length: the length of the dataset.
        of_batches: whether the order is one of batches; those of which nothing is left are left out.
    """
    if of_batches:
        ends = itertools.accumulate(map(len, order))
        parts = [
            batch if end <= start else without_gone(list(batch), 0, length, of_batches=False)
            for batch, end in zip(order, ends, strict=True)
        ]
        return [part for part in parts if len(part) > 0]
    if isinstance(order, range):
        return order[: max(start, length)]
    if isinstance(order, RandomOrder):
        return order.without(length, start)
    rest = order[start:]
    if isinstance(order, Tensor):
        return torch.cat([order[:start], rest[rest < length]])
    kept = [index for index, number in zip(rest, seeding.plain(rest), strict=True) if int(number) < length]
    return [*order[:start], *kept]


def contiguous_part(order: Any, world: World) -> Any:
    """Return this rank's part of an order that is divided among the ranks, as an evaluation does."""
    low, high = (len(order) * rank // world.size for rank in (world.rank, world.rank + 1))
    return order[low:high]


class BatchPlan:
    """One rank's index batches of an order, from a position on.

    The order is cut into global batches, and each of them into contiguous parts, one per rank. A last global batch
    that is not full is divided evenly; with fewer samples than ranks it is dropped, because a rank without a sample
    could not take part in the step. If it is dealt, the first ranks get full batches of it, and the last ranks none:
    the batches of all ranks together are then those of a single process.

    Args:
        order: the indices of the epoch.
        start: the position: the number of indices that are finished.
        batch_size: samples per batch and rank.
        drop_last: drop the last batch if it is not full; if it is divided, the last global batch.
        world: the ranks.
        is_dealt: whether the last global batch is dealt, as a prediction does.
    """

    def __init__(
        self,
        order: Sequence[int] | Tensor | RandomOrder,
        start: int,
        batch_size: int,
        drop_last: bool,
        world: World,
        *,
        is_dealt: bool = False,
    ) -> None:
        self._order, self._start, self._batch_size, self._world = order, start, batch_size, world
        self._is_dealt = is_dealt
        self._global_batch_size = batch_size * world.size
        remaining = max(0, len(order) - start)
        tail = remaining % (batch_size if is_dealt else self._global_batch_size)
        is_dropped = drop_last or (tail < world.size and not is_dealt)
        self._remaining = remaining - tail if is_dropped else remaining

    def __len__(self) -> int:
        of_others = self._world.rank * self._batch_size if self._is_dealt else 0  # Before this rank's first batch.
        return max(0, -(-(self._remaining - of_others) // self._global_batch_size))

    def samples(self, i: int) -> int:
        """Return the number of samples of all ranks in batch i together."""
        return min(self._global_batch_size, self._remaining - i * self._global_batch_size)

    def size(self, i: int) -> int:
        """Return the number of samples of this rank in batch i."""
        if self._is_dealt:
            return min(self._batch_size, self.samples(i) - self._world.rank * self._batch_size)
        each, more = divmod(self.samples(i), self._world.size)
        return each + (self._world.rank < more)

    def __iter__(self) -> Iterator[list[int]]:
        for part in self._cut(self._order):
            yield part.tolist() if isinstance(part, Tensor) else list(part)

    def of_all_ranks(self, first: int, last: int) -> Any:
        """Return the indices of the batches of all ranks from one up to another, which is left out, in one order."""
        low, high = (min(i * self._global_batch_size, self._remaining) for i in (first, last))
        return self._order[self._start + low : self._start + high]

    def tensors(self, first: int = 0) -> Iterator[Tensor]:
        """Yield the indices of each batch of this rank as an int64 tensor, from a batch on."""
        order = self._order
        parts = self._cut(torch.as_tensor(seeding.plain(order)) if isinstance(order, list) else order, first)
        return (torch.arange(part.start, part.stop) for part in parts) if isinstance(order, range) else parts

    def _cut(self, order: Any, first: int = 0) -> Iterator[Any]:
        bounds = self._bounds(first)
        if isinstance(order, RandomOrder):
            return order.parts(bounds)
        return (order[low:high] for low, high in bounds)

    def _bounds(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield the places in the order of each batch of this rank, from a batch on."""
        rank, size = self._world.rank, self._batch_size
        full = len(self) if self._is_dealt else self._remaining // self._global_batch_size
        for i in range(first, len(self)):
            low = self._start + i * self._global_batch_size
            if i < full:
                low += rank * size  # The end of the order cuts the last batch that is dealt.
                yield low, low + size
            else:
                each, more = divmod(self.samples(i), self._world.size)
                low += rank * each + min(rank, more)
                yield low, low + each + (rank < more)


class DealtBatches:
    """One rank's index batches of a batch sampler, whose batches are dealt to the ranks in turn.

    For training, remaining batches that are fewer than the ranks are cut until each rank has a part of one of them. If
    they have fewer samples than there are ranks, they are dropped, as in `BatchPlan`.

    Args:
        batches: the batches of all ranks, from the position on.
        world: the ranks.
        for_training: whether all ranks need the same number of batches.
    """

    def __init__(self, batches: list[Sequence[int]], world: World, for_training: bool) -> None:
        self._batches, self._num_ranks = batches, world.size
        complete = len(batches) - len(batches) % world.size if for_training else len(batches)
        self._own = batches[world.rank : complete : world.size]
        self._samples = [sum(map(len, batches[i : i + world.size])) for i in range(0, complete, world.size)]
        num_samples = sum(map(len, batches[complete:]))
        if num_samples >= world.size:
            self._own.append(_halved(batches[complete:], world.size)[world.rank])
            self._samples.append(num_samples)

    def __len__(self) -> int:
        return len(self._own)

    def samples(self, i: int) -> int:
        """Return the number of samples of all ranks in batch i together."""
        return self._samples[i]

    def size(self, i: int) -> int:
        """Return the number of samples of this rank in batch i."""
        return len(self._own[i])

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self._own)

    def of_all_ranks(self, first: int, last: int) -> list[Any]:
        """Return the indices of the batches of all ranks from one up to another, which is left out, in one order."""
        dealt = self._batches[first * self._num_ranks : min(last, len(self)) * self._num_ranks]
        return [*itertools.chain.from_iterable(dealt)]

    def tensors(self, first: int = 0) -> Iterator[Tensor]:
        """Yield the indices of each batch of this rank as an int64 tensor, from a batch on."""
        return (torch.as_tensor(seeding.plain(batch)) for batch in self._own[first:])


def as_tensor(indices: Any) -> Tensor | None:
    """Return a part of an order as an int64 tensor, None if it has something else than integers."""
    if isinstance(indices, Tensor):
        return indices
    if isinstance(indices, RandomOrder):
        return indices.tensor()
    if isinstance(indices, range):
        return torch.arange(indices.start, indices.stop)
    try:
        numbers = array("q", map(operator.index, seeding.plain(indices)))
    except (TypeError, OverflowError):
        return None
    return torch.frombuffer(numbers, dtype=torch.int64) if numbers else torch.empty(0, dtype=torch.int64)


def _halved(batches: list[Sequence[int]], count: int) -> list[list[int]]:
    """Return `count` parts of fewer batches, made by halving the one with the most samples again and again.

    Samples of different batches stay apart, because a batch sampler may have batched them by length.
    """
    parts = [list(batch) for batch in batches if len(batch) > 0]
    while len(parts) < count:
        i = max(range(len(parts)), key=lambda i: len(parts[i]))
        middle = (len(parts[i]) + 1) // 2
        parts[i : i + 1] = [parts[i][:middle], parts[i][middle:]]
    return parts


BatchOrder: TypeAlias = BatchPlan | DealtBatches
"""The index batches of one rank in an epoch."""
