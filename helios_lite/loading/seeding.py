"""The random numbers of samples: torch, random and numpy are seeded from (seed, epoch, index) around each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate, get_worker_info

from helios_lite.processes import rng


class SizedBatches(Protocol):
    """Batches of indices, whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class Copy(NamedTuple):
    """An index that a sampler has drawn before in this epoch, and how often."""

    index: Any
    number: int


def with_copies(drawn: Iterable[Any], count: dict[int, int]) -> list[Any]:
    """Return indices, those that were drawn before as a `Copy`, whose random numbers are others.

    Args:
        drawn: what a sampler yields.
        count: how often each index was drawn before; it is brought up to date.
    """
    indices: list[Any] = []
    for index in drawn:
        number = count[int(index)] = count.get(int(index), -1) + 1
        indices.append(Copy(index, number) if number > 0 else index)
    return indices


def plain(indices: Iterable[Any]) -> list[Any]:
    """Return indices as a sampler has drawn them."""
    return [index.index if isinstance(index, Copy) else index for index in indices]


class EpochBatchSampler:
    """The batch sampler of a DataLoader that lives for many epochs, as its workers may do.

    Args:
        with_seed: yield (seed, epoch, indices) for a `SeededDataset`. They are sent with the indices, so that a worker
            that outlives an epoch knows the epoch of each batch.
    """

    def __init__(self, with_seed: bool) -> None:
        self._with_seed = with_seed
        self._order: SizedBatches | None = None
        self._seed = self._epoch = 0

    def set_epoch_order(self, order: SizedBatches, seed: int, epoch: int) -> None:
        """Set the batches of the next epoch, the seed of its samples, and its number."""
        self._order, self._seed, self._epoch = order, seed, epoch

    def __iter__(self) -> Iterator[Any]:
        assert self._order is not None
        if not self._with_seed:
            return iter(self._order)
        return ((self._seed, self._epoch, indices) for indices in self._order)

    def __len__(self) -> int:
        return 0 if self._order is None else len(self._order)


class SeededDataset(Dataset[Any]):
    """Returns collated batches of a dataset.

    Each sample is read with RNG states seeded from its index; the batch is collated with RNG states seeded from the
    first index. A worker tells the dataset the epoch of the batches that it reads.

    Args:
        dataset: a map-style dataset.
        collate: makes a batch from a list of samples; PyTorch's `default_collate` if None.
        seeds: whether RNG states are seeded at all.
        tells_epochs: whether the dataset is told the epoch; in the training process the loader has told it.

    Attributes:
        dataset: as given.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any] | None,
        seeds: bool = True,
        tells_epochs: bool = False,
    ) -> None:
        self.dataset = dataset
        self._collate = collate
        self._seeds, self._tells_epochs = seeds, tells_epochs
        self._epoch: int | None = None  # That a worker has told the dataset last.
        self._reads_batches = callable(getattr(base_dataset(dataset), "__getitems__", None))

    def __getitems__(self, position: tuple[int, int, list[int]]) -> Any:
        seed, epoch, indices = position
        if get_worker_info() is not None:
            if self._tells_epochs and epoch != self._epoch:
                set_epoch(self.dataset, epoch)
                self._epoch = epoch
            return self._fetch(seed, indices)
        if not self._seeds:
            return self._fetch(seed, indices)
        # In the training process the RNG states belong to the training. Restoring them once per batch is enough.
        with rng.fork_rng(torch.device("cpu")):
            return self._fetch(seed, indices)

    def _fetch(self, seed: int, indices: list[int]) -> Any:
        if not self._seeds:
            reads = getattr(self.dataset, "__getitems__", None) if self._reads_batches else None
            samples = [self.dataset[index] for index in indices] if reads is None else reads(indices)
            return (self._collate or default_collate)(samples)
        if self._reads_batches:
            rng.seed_cpu(_seed_of_sample(seed, indices[0]))
            samples = self.dataset.__getitems__(plain(indices))  # type: ignore[attr-defined]
        else:
            samples = []
            for index in indices:
                rng.seed_cpu(_seed_of_sample(seed, index))
                samples.append(self.dataset[index.index if isinstance(index, Copy) else index])
        if self._collate is None:
            return default_collate(samples)
        rng.seed_cpu(rng.derive_seed(seed, int(plain(indices[:1])[0]), 1))
        return self._collate(samples)


def _seed_of_sample(seed: int, index: Any) -> int:
    if isinstance(index, Copy):
        return rng.derive_seed(seed, int(index.index), 2, index.number)
    return rng.derive_seed(seed, int(index))


def base_dataset(dataset: Dataset[Any]) -> Dataset[Any]:
    """Return the dataset of which a Subset (of a Subset ...) is a part. A Subset's `__getitems__` only calls it."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


def set_epoch_and_seed(source: Any, epoch: int, seed: int, for_training: bool) -> None:
    """Call `set_epoch` of a loader or sampler and of the objects in it, and seed the `torch.Generator`s found there.

    An evaluation has no epoch, and its dataset may be the training's, so only generators are seeded then. DataLoaders
    in the attributes of a loader of another class have seeds of their own.
    """
    _set_epoch_and_seed(source, epoch, seed, for_training)
    for i, loader in enumerate(inner_loaders(source), 1):
        _set_epoch_and_seed(loader, epoch, rng.derive_seed(seed, i), for_training)


def inner_loaders(source: Any) -> list[DataLoader[Any]]:
    """Return the DataLoaders that an object of another class has as attributes, also in lists, tuples and dicts."""
    if isinstance(source, DataLoader):
        return []
    found = []
    for value in vars(source).values() if hasattr(source, "__dict__") else ():
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [item for item in items if isinstance(item, DataLoader)]
    return found


def _set_epoch_and_seed(source: Any, epoch: int, seed: int, for_training: bool) -> None:
    for part in _parts(source, "sampler", "batch_sampler", *(["dataset", "datasets"] if for_training else [])):
        if for_training and callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)
        if isinstance(getattr(part, "generator", 0), torch.Generator | None):
            part.generator = torch.Generator().manual_seed(seed)


def has_set_epoch(dataset: Any) -> bool:
    """Return whether a dataset, or one that it is made of, has a `set_epoch`."""
    return any(callable(getattr(part, "set_epoch", None)) for part in _parts(dataset, "dataset", "datasets"))


def set_epoch(dataset: Any, epoch: int) -> None:
    """Call `set_epoch` of a dataset and of those that it is made of, where they have one."""
    for part in _parts(dataset, "dataset", "datasets"):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def _parts(source: Any, *names: str) -> Iterator[Any]:
    """Yield an object and, recursively, the values of its attributes of these names, each object once.

    Only that of "datasets" may be a list or a tuple of objects.
    """
    pending, seen = [source], set[int]()
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        for name in names:
            value = getattr(part, name, None)
            pending += value if name == "datasets" and isinstance(value, list | tuple) else [value]
