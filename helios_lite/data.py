"""Splits of data, and the batches of an epoch from any position on.

The order of a Split's samples is a function of (seed, epoch), and what a sample's own code draws at random is a
function of (seed, epoch, index). So a position is one number, the count of samples finished in the epoch: resuming
jumps there without reading what was skipped, whatever `num_workers` was or is.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from helios_lite import rng
from helios_lite.distributed import World
from helios_lite.interrupts import spare_loading_process
from helios_lite.transfer import batch_size

logger = logging.getLogger("helios_lite")


@dataclasses.dataclass
class Split:
    """A dataset and how to batch it; the trainer makes the loader.

    Order and randomness are as the module's docstring says for every map-style dataset (`__len__` and
    `__getitem__`). An IterableDataset is batched by a DataLoader and treated like a foreign loader, as
    `DataModule` says.

    Args:
        dataset: any PyTorch dataset.
        batch_size: samples per batch and process; left out with `batch_sampler`, whose batches are dealt to the
            processes in turn.
        shuffle: a new random order in every epoch.
        drop_last: leave out an epoch's last batch if it is not full.
        num_workers: loading processes; any number gives the same batches.
        collate_fn: makes a batch of a list of samples; PyTorch's default_collate if None.
        sampler: any finite sampler of indices, drawn once per epoch; its randomness (its `generator` or torch's,
            random's and numpy's global ones) is seeded from (seed, epoch), and `set_epoch` is called if it has one.
        batch_sampler: the same for a sampler of lists of indices, for batches of varying size.
        seed_samples: seed torch, random and numpy (if imported) from (seed, epoch, index) around each
            `__getitem__`. A dataset with `__getitems__`, and `collate_fn`, are seeded once per batch, from its first
            index. Turn it off for datasets that draw nothing and are so fast that 10 to 20 microseconds per sample
            count; what is drawn nevertheless is not exact.
        pin_memory, timeout, worker_init_fn, multiprocessing_context, prefetch_factor, persistent_workers: as in
            `torch.utils.data.DataLoader`.

    Raises:
        ValueError, TypeError: options that exclude each other or have a wrong value.
    """

    dataset: Dataset[Any]
    batch_size: int | None = None
    shuffle: bool = False
    drop_last: bool = False
    num_workers: int = 0
    collate_fn: Callable[[list[Any]], Any] | None = None
    sampler: Sampler[int] | Iterable[int] | None = None
    batch_sampler: Sampler[list[int]] | Iterable[Sequence[int]] | None = None
    seed_samples: bool = True
    pin_memory: bool = False
    timeout: float = 0
    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: Any = None
    prefetch_factor: int | None = None
    persistent_workers: bool = False

    def __post_init__(self) -> None:
        if self.batch_sampler is None:
            if not isinstance(self.batch_size, int) or isinstance(self.batch_size, bool):
                raise TypeError(f"batch_size={self.batch_size!r}: must be an int")
            if self.batch_size < 1:
                raise ValueError(f"batch_size={self.batch_size}: must be at least 1")
        elif self.batch_size is not None or self.shuffle or self.drop_last or self.sampler is not None:
            raise ValueError("batch_sampler: excludes batch_size, shuffle, drop_last and sampler")
        if self.sampler is not None and self.shuffle:
            raise ValueError("sampler: excludes shuffle")
        if isinstance(self.dataset, IterableDataset):
            if self.shuffle or self.sampler is not None or self.batch_sampler is not None:
                raise ValueError("dataset: an IterableDataset has no order to shuffle or sample")
        elif not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__"):
            raise TypeError(f"dataset: {type(self.dataset).__name__} has no __len__ and __getitem__")
        if not isinstance(self.num_workers, int) or isinstance(self.num_workers, bool):
            raise TypeError(f"num_workers={self.num_workers!r}: must be an int")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: must not be negative")


class DataModule:
    """The data of a run: `train`, `valid` and `test`, given here or assigned by `setup` of a subclass.

    Each is a Split or None; `valid` and `test` may also be a dict of them by name, whose metrics are then called
    `valid/<name>/...`. `train` is asked for again at every epoch, so it may change between epochs.

    A ready DataLoader, or any iterable of batches that can be iterated anew in every epoch, is accepted too, with
    what can be kept of exactness: before each epoch `set_epoch` is called wherever it exists, and generators of the
    loader and its samplers are seeded from (seed, epoch). A resume restores the object's `state_dict` if it has
    one, and reads and drops the finished batches of the epoch otherwise, which takes its time. Random draws inside
    its dataset are not seeded per sample.
    """

    train: Any = None
    valid: Any = None
    test: Any = None

    def __init__(self, train: Any = None, valid: Any = None, test: Any = None) -> None:
        self.train, self.valid, self.test = train, valid, test

    def prepare_data(self) -> None:
        """Download or convert what all processes will read. Runs once, before processes start."""

    def setup(self) -> None:
        """Assign `train`, `valid` and `test`. Runs in every process, seeded alike in each."""

    def teardown(self) -> None:
        """Release what was acquired. Always runs, also after errors; in every process."""


class Batch(NamedTuple):
    """A batch and its place in the epoch.

    Attributes:
        data: what the collate function made.
        size: samples in it.
        samples: samples of all ranks in this batch together.
        share: its part of the samples of its accumulation window, times the number of ranks, whose gradients are
            averaged; 1.0 if it is the only one.
        closes: whether it is the last of its window: the optimizer steps.
        last: whether it is known to be the last of the epoch.
    """

    data: Any
    size: int
    samples: int
    share: float
    closes: bool
    last: bool


_batch: Callable[[tuple[Any, int, int, float, bool, bool]], Batch] = functools.partial(tuple.__new__, Batch)
"""As `Batch(*values)`, without a Python frame for each."""


class Loader(Protocol):
    """What the trainer asks of a split."""

    source: Any

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> Epoch:
        """Return the rest of an epoch after so many samples and batches, in accumulation windows."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the position in the data is beyond the run's counters."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; takes effect at the next `epoch`."""


class Epoch(NamedTuple):
    """What is left of an epoch: its batches, and their number if anybody knows it."""

    batches: Iterator[Batch]
    length: int | None


def make_loader(source: Any, phase: str, seed: int, world: World = World()) -> Loader:  # noqa: B008 (frozen)
    """Return the loader of a split.

    Args:
        source: a Split, a DataLoader or another iterable of batches.
        phase: "train", or another name in messages: for training the ranks share every batch, so that all take
            the same number of steps; otherwise they share the samples, each index going to exactly one.
        seed: what orders and draws are derived from.
        world: the ranks.

    Raises:
        TypeError: the source is no such thing.
        ValueError: it has length zero, or is a DataLoader that does not share its samples among several ranks.
    """
    if isinstance(source, Split):
        if isinstance(source.dataset, IterableDataset):
            return IterableLoader(source, _stock_loader(source), phase, seed, world)
        return SplitLoader(source, phase, seed, world)
    if not isinstance(source, Iterable):
        raise TypeError(f"the {phase} split is a {type(source).__name__}: needs a Split, a DataLoader or an iterable")
    if world.size > 1 and _is_whole(source):
        raise ValueError(
            f"the {phase} split is a DataLoader that gives all {world.size} ranks the same batches: "
            "use a Split, or a DistributedSampler"
        )
    return IterableLoader(source, source, phase, seed, world)


def _is_whole(loader: Any) -> bool:
    """Say whether this is a DataLoader that is known to go through all samples, whatever the rank."""
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader if batches is None else batches, "sampler", None)
    return type(batches) in (BatchSampler, type(None)) and type(sampler) in (RandomSampler, SequentialSampler)


class SplitLoader:
    """Batches of a map-style Split, exact as the module's docstring says."""

    def __init__(self, split: Split, phase: str, seed: int, world: World) -> None:
        self.source = split
        self._world = world
        self._ranks = world.size if phase == "train" else 1
        self._phase = phase
        self._seed = seed
        self._length = len(split.dataset)  # type: ignore[arg-type]
        if self._length == 0:
            raise ValueError(f"the {phase} split is empty")
        # A TensorDataset draws nothing: no need to seed around it.
        draws = type(_unwrapped(split.dataset)) is not TensorDataset or split.collate_fn is not None
        seeded = split.seed_samples and draws
        self._indices = _Indices(seeded)
        self._tensors = _Tensors.of(split)
        # A private generator: otherwise every new iterator would draw from the training's own.
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            _SeededDataset(split.dataset, split.collate_fn) if seeded else split.dataset,
            batch_sampler=self._indices,
            collate_fn=_as_it_is if seeded else split.collate_fn,
            generator=self._generator,
            **_loader_options(split),
        )

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> Epoch:
        """Return the rest of an epoch; `batches` does not matter, for the position is `samples`."""
        seed = rng.derive(self._seed, epoch)
        plan = self._plan(epoch, seed, samples)
        if len(plan) == 0 and samples == 0 and (self._phase == "train" or self._world.size == 1):
            why = "drop_last leaves nothing" if self.source.drop_last else "there is none for every process"
            raise ValueError(f"the {self._phase} split has no batch: of {self._length} samples {why}")
        self._generator.manual_seed(seed)
        self._indices.plan = plan
        self._indices.seed = seed
        return Epoch(self._windows(plan, window), len(plan))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the counters hold the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""

    def _plan(self, epoch: int, seed: int, start: int) -> _Plan | _Batches:
        split, world = self.source, self._world
        if split.batch_sampler is not None:
            batches = iter(_draw(split.batch_sampler, epoch, seed, self._phase == "train"))
            while start > 0:
                start -= len(next(batches, range(start)))
            return _Batches(list(batches), world, training=self._phase == "train")
        order: Sequence[int] | Tensor
        if split.sampler is not None:
            order = _draw(split.sampler, epoch, seed, self._phase == "train")
        elif split.shuffle:
            order = torch.randperm(self._length, generator=torch.Generator().manual_seed(seed))
        else:
            order = range(self._length)
        assert split.batch_size is not None  # Split requires it without a batch_sampler.
        if self._phase == "train":
            return _Plan(order, start, split.batch_size, split.drop_last, world)
        low, high = (len(order) * number // world.size for number in (world.rank, world.rank + 1))
        return _Plan(order[low:high], start, split.batch_size, split.drop_last, World())

    def _windows(self, plan: _Plan | _Batches, window: int) -> Iterator[Batch]:
        length = len(plan)
        total = 0
        for i, data in enumerate(self._loader if self._tensors is None else self._tensors.batches(plan)):
            size, samples = plan.size(i), plan.samples(i)
            if window == 1:
                total = samples
            elif i % window == 0:
                total = sum(plan.samples(j) for j in range(i, min(i + window, length)))
            last = i + 1 == length
            share = size * self._ranks / total
            yield _batch((data, size, samples, share, last or (i + 1) % window == 0, last))


class IterableLoader:
    """Batches of somebody else's loader. With accumulation a window is read before it is used, to know its size.

    Among several ranks it must give each its own part, and all the same number of batches in training.
    """

    def __init__(self, source: Any, iterable: Any, phase: str, seed: int, world: World) -> None:
        self.source = source
        self._world = world
        self._iterable = iterable
        self._phase = phase
        self._seed = seed
        self._restored = False

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> Epoch:
        """Return the rest of an epoch, after its restored state or else after dropping `batches`."""
        _reseed(self._iterable, epoch, rng.derive(self._seed, epoch), self._phase == "train")
        try:
            length = len(self._iterable)
        except TypeError:  # Every DataLoader has a __len__, but not of everything.
            length = None
        if length == 0:
            raise ValueError(f"the {self._phase} split is empty")
        iterator = iter(self._iterable)
        if batches > 0 and not self._restored:
            logger.info("reading and dropping %d batches of the %s split to reach the position", batches, self._phase)
            for _ in itertools.islice(iterator, batches):
                pass
        self._restored = False
        return Epoch(self._windows(iterator, window, fresh=batches == 0), None if length is None else length - batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the iterable's own state, if it keeps one."""
        return {"loader": self._iterable.state_dict()} if hasattr(self._iterable, "state_dict") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the iterable's own state, if it was saved and can be restored."""
        if "loader" in state_dict and hasattr(self._iterable, "load_state_dict"):
            self._iterable.load_state_dict(state_dict["loader"])
            self._restored = True

    def _windows(self, iterator: Iterator[Any], window: int, fresh: bool) -> Iterator[Batch]:
        # `last` stays False: nobody's length is trusted, the end is where the iterator ends.
        ranks = self._world.size
        if window == 1:
            for data in iterator:
                fresh = False
                size = batch_size(data)
                yield _batch((data, size, size * ranks, 1.0, True, False))
        while batches := list(itertools.islice(iterator, window)):
            fresh = False
            sizes = [batch_size(data) for data in batches]
            total = sum(sizes)
            for i, (data, size) in enumerate(zip(batches, sizes, strict=True)):
                yield _batch((data, size, size * ranks, size / total, i + 1 == len(batches), False))
        if fresh:
            raise ValueError(f"the {self._phase} split gave no batch (an iterator can be used for one epoch only)")


class _Tensors:
    """A TensorDataset, or a Subset of one: a batch is one indexed gather from each tensor."""

    def __init__(self, tensors: tuple[Tensor, ...], indices: Tensor | None) -> None:
        self._tensors, self._indices = tensors, indices

    @classmethod
    def of(cls, split: Split) -> _Tensors | None:
        """Return the tensors of a split that is batched in this process and in no way of its own; None of others."""
        dataset, indices = split.dataset, None
        while type(dataset) is Subset:
            these = torch.as_tensor(dataset.indices)
            indices = these if indices is None else these[indices]
            dataset = dataset.dataset
        plain = split.num_workers == 0 and split.collate_fn is None and not split.pin_memory
        return cls(dataset.tensors, indices) if plain and type(dataset) is TensorDataset else None

    def batches(self, plan: _Plan | _Batches) -> Iterator[list[Tensor]]:
        """Yield what a DataLoader with PyTorch's default_collate would."""
        for index in plan.parts() if isinstance(plan, _Plan) else map(torch.as_tensor, plan):
            if self._indices is not None:
                index = self._indices[index]
            yield [tensor.index_select(0, index) for tensor in self._tensors]


class _Plan:
    """One rank's index batches of an order from a position on.

    The order is cut into batches for all ranks together, and each of these into contiguous parts, one for each rank.
    A last batch with fewer samples than ranks is left out: a rank without a sample could not take part in the step.
    """

    def __init__(self, order: Sequence[int] | Tensor, start: int, size: int, drop_last: bool, world: World) -> None:
        self._order, self._start, self._world = order, start, world
        self._step = size * world.size
        left = max(0, len(order) - start)
        tail = left % self._step
        self._left = left - tail if drop_last or tail < world.size else left

    def __len__(self) -> int:
        return -(-self._left // self._step)

    def samples(self, i: int) -> int:
        return min(self._step, self._left - i * self._step)

    def size(self, i: int) -> int:
        each, more = divmod(self.samples(i), self._world.size)
        return each + (self._world.rank < more)

    def __iter__(self) -> Iterator[list[int]]:
        for part in self._cut(self._order):
            yield part.tolist() if isinstance(part, Tensor) else list(part)

    def parts(self) -> Iterator[Tensor]:
        """Yield the batches as tensors."""
        order = self._order
        whole = torch.arange(order.start, order.stop) if isinstance(order, range) else torch.as_tensor(order)
        return self._cut(whole)

    def _cut(self, order: Any) -> Iterator[Any]:
        for i in range(len(self)):
            each, more = divmod(self.samples(i), self._world.size)
            low = self._start + i * self._step + self._world.rank * each + min(self._world.rank, more)
            yield order[low : low + each + (self._world.rank < more)]


class _Batches:
    """One rank's index batches of a batch sampler, whose batches are dealt to the ranks in turn.

    What is left at the end, fewer batches than ranks, is cut into even parts for training, as in `_Plan`.
    """

    def __init__(self, batches: list[Sequence[int]], world: World, training: bool) -> None:
        whole = len(batches) - len(batches) % world.size if training else len(batches)
        self._mine = [list(batch) for batch in batches[world.rank : whole : world.size]]
        self._samples = [sum(len(batch) for batch in batches[i : i + world.size]) for i in range(0, whole, world.size)]
        rest = [index for batch in batches[whole:] for index in batch]
        if len(rest) >= world.size:
            self._mine += list(_Plan(rest, 0, -(-len(rest) // world.size), False, world))
            self._samples.append(len(rest))

    def __len__(self) -> int:
        return len(self._mine)

    def samples(self, i: int) -> int:
        return self._samples[i]

    def size(self, i: int) -> int:
        return len(self._mine[i])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._mine)


class _Indices:
    """The batch sampler of a SplitLoader's DataLoader: it lives as long as the workers, the plan for one epoch."""

    plan: _Plan | _Batches
    seed: int

    def __init__(self, seeded: bool) -> None:
        self._seeded = seeded

    def __iter__(self) -> Iterator[Any]:
        # The seed travels with the indices, so that workers that outlive an epoch know which one they work for.
        return ((self.seed, indices) for indices in self.plan) if self._seeded else iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


def _as_it_is(batch: Any) -> Any:
    return batch


class _SeededDataset(Dataset[Any]):
    """Fetches a batch, each sample with generators seeded from its index, and collates it, seeded from the first."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] | None) -> None:
        self._dataset = dataset
        self._collate = collate
        self._whole_batch = callable(getattr(_unwrapped(dataset), "__getitems__", None))

    def __getitems__(self, seed_and_indices: tuple[int, list[int]]) -> Any:
        seed, indices = seed_and_indices
        if get_worker_info() is not None:
            return self._fetch(seed, indices)
        # In the training process the generators belong to the training; once per batch is enough.
        with rng.isolated(torch.device("cpu")):
            return self._fetch(seed, indices)

    def _fetch(self, seed: int, indices: list[int]) -> Any:
        if self._whole_batch:
            rng.seed_cpu(rng.derive(seed, int(indices[0])))
            samples = self._dataset.__getitems__(indices)  # type: ignore[attr-defined]
        else:
            samples = []
            for index in indices:
                rng.seed_cpu(rng.derive(seed, int(index)))
                samples.append(self._dataset[index])
        if self._collate is None:
            return default_collate(samples)
        rng.seed_cpu(rng.derive(seed, int(indices[0]), 1))
        return self._collate(samples)


def _unwrapped(dataset: Dataset[Any]) -> Dataset[Any]:
    """Return what a Subset (of a Subset ...) is a subset of: its own `__getitems__` only passes on."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


def _loader_options(split: Split) -> dict[str, Any]:
    names = "num_workers pin_memory timeout multiprocessing_context prefetch_factor persistent_workers"
    options = {name: getattr(split, name) for name in names.split()}
    return {**options, "worker_init_fn": _WorkerInit(split)}


class _WorkerInit:
    """What a loading process does first: see to signals, and to whether it is needed at all."""

    def __init__(self, split: Split) -> None:
        self._then = split.worker_init_fn
        context = split.multiprocessing_context or multiprocessing.get_start_method()
        method = context if isinstance(context, str) else context.get_start_method()
        self._parent = None if method == "forkserver" else os.getpid()

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, spare_loading_process)
        if self._then is not None:
            self._then(worker)
        # PyTorch's own watch starts after this and takes whoever is the parent then for the right one.
        if self._parent is not None and os.getppid() != self._parent:
            os._exit(1)


def _stock_loader(split: Split) -> DataLoader[Any]:
    return DataLoader(
        split.dataset,
        batch_size=split.batch_size,
        drop_last=split.drop_last,
        collate_fn=split.collate_fn,
        generator=torch.Generator(),
        **_loader_options(split),
    )


def _draw(sampler: Iterable[Any], epoch: int, seed: int, training: bool) -> list[Any]:
    """Return everything that a sampler yields in an epoch, with its randomness seeded."""
    with rng.isolated(torch.device("cpu")):
        rng.seed_cpu(seed)
        _reseed(sampler, epoch, seed, training)
        return list(sampler)


def _reseed(source: Any, epoch: int, seed: int, training: bool) -> None:
    """Tell a loader or sampler, and what it is made of, the epoch; and seed the generators found in them.

    An evaluation has no epoch, and its dataset may be the training's: there only generators are seeded.
    """
    pending, seen = [source], list[Any]()
    while pending:
        part = pending.pop()
        if part is None or any(part is other for other in seen):
            continue
        seen.append(part)
        if training and callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)
        if isinstance(getattr(part, "generator", 0), torch.Generator | None):
            part.generator = torch.Generator().manual_seed(seed)
        names = ("sampler", "batch_sampler", "dataset") if training else ("sampler", "batch_sampler")
        pending += [getattr(part, name, None) for name in names]
