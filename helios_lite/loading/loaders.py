"""Makes the loader of a split, and checks what the split is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from helios_lite.arguments import require_kind
from helios_lite.data import DataModule, Split
from helios_lite.loading import seeding
from helios_lite.loading.batches import Loader, batch_size_of, is_training
from helios_lite.loading.iterable_loader import IterableLoader, stock_loader
from helios_lite.loading.split_loader import SplitLoader
from helios_lite.nested import count_samples
from helios_lite.processes.world import World

logger = logging.getLogger("helios_lite")


def make_loader(
    source: Any,
    phase: str,
    seed: int,
    world: World = World(),  # noqa: B008 (frozen)
    limit: int | float | None = None,
    in_order: bool = False,
    count: Callable[[Any], int] = count_samples,
    window: int = 1,
    pins: bool = False,
) -> Loader:
    """Return the loader of a split. Of a Split it has a copy, which later assignments do not change.

    Args:
        source: a Split, a DataLoader or another iterable of batches.
        phase: "train", "train/labelled" of several, "predict", or another name for messages. In training every global
            batch is divided among the ranks, so that all ranks take the same number of steps. For a prediction whole
            batches are dealt to the ranks in turn. Otherwise the samples are divided, each index to one rank.
        seed: the seed from which orders and the seeds of samples are derived.
        world: the ranks.
        limit: the number of batches of all ranks per epoch, or the part of them (a float), from the start of its order.
        in_order: leave the samples of a Split unshuffled.
        count: returns the number of samples in a batch of a loader that does not know it.
        window: batches per accumulation window, by which a `global_batch_size` is divided in training.
        pins: whether batches of workers are put into pinned memory, if the Split does not say it.

    Raises:
        TypeError: the source is none of these, or an option of a Split has a value of a wrong kind.
        ValueError: an option of a Split has a wrong value, or the source has length zero, is a DataLoader that does not
            divide its samples among several ranks, or has a `global_batch_size` that cannot be divided.
    """
    check_split(source, phase)
    if isinstance(source, Split):
        source = copy.copy(source)
        Split.__post_init__(source)  # Its options may have been assigned; a subclass makes them once only.
        batch_size = batch_size_of(source, phase, world, window)
        if isinstance(source.dataset, IterableDataset):
            return IterableLoader(source, stock_loader(source, batch_size), phase, seed, world, limit, count)
        return SplitLoader(source, phase, seed, world, limit, in_order, batch_size, pins)
    loaders = [source] if isinstance(source, DataLoader) else seeding.inner_loaders(source)
    if world.size > 1 and any(map(_reads_all_samples, [source, *loaders, *_zipped(source)])):
        kind = "is a DataLoader" if isinstance(source, DataLoader) else f"is a {type(source).__name__} of DataLoaders"
        several = ""
        if is_training(phase) and kind != "is a DataLoader":
            several = "; `train` may be a dict of several Splits, whose batches come together"
        raise ValueError(
            f"the {phase} split {kind} that gives all {world.size} ranks the same batches: use a Split, or a "
            f"DistributedSampler{several}"
        )
    for loader in loaders if is_training(phase) else ():
        if loader.persistent_workers:
            _warn_of_hidden_epoch(loader.dataset)
    return IterableLoader(source, source, phase, seed, world, limit, count)


class LoaderKeeper:
    """Keeps the loader of a split as long as the split is what it was when the loader was made.

    Args:
        make: returns the loader of a split.
    """

    def __init__(self, make: Callable[[Any], Loader]) -> None:
        self._make = make
        self._source: Any = None
        self._attributes: dict[str, Any] = {}
        self._loader: Loader | None = None

    def of(self, source: Any) -> Loader:
        """Return the loader of a split, made anew if the split is another one or has been assigned an option.

        The epoch that the one before has read, and its workers, end.
        """
        now = dict(vars(source)) if isinstance(source, Split) else {}
        is_same = source is self._source and all(now[name] is self._attributes.get(name) for name in now)
        if self._loader is None or not is_same:
            earlier, self._loader = self._loader, self._make(source)
            self._source, self._attributes = source, now
            if earlier is not None:
                earlier.close()
        return self._loader

    def current(self) -> Loader:
        """Return the loader of the split of the last `of`, as the split is now."""
        return self.of(self._source)

    def close(self) -> None:
        """End the epoch that is read, and all workers."""
        if self._loader is not None:
            self._loader.close()


def check_splits(datamodule: DataModule) -> None:
    """Check what the splits of a datamodule are, also those that the present call does not use.

    Raises:
        TypeError: see `check_split`.
    """
    for phase in ("train", "valid", "test", "predict"):
        for name, source in split_parts(datamodule, phase).items():
            check_split(source, name)


def split_parts(datamodule: DataModule, phase: str) -> dict[str, Any]:
    """Return the parts of a split by the prefix of their metrics: itself, or the items of a dict; none without it.

    Raises:
        TypeError, ValueError: several train splits are an empty dict, or one with a key that is no name.
    """
    source = getattr(datamodule, phase)
    if source is None:
        return {}
    if isinstance(source, Mapping) and phase != "predict":
        if phase == "train" and not source:
            raise ValueError("the train split is an empty dict: it must have a split for each name")
        for name in source if phase == "train" else ():
            require_kind("the name of a train split", name, str, "a str")
        return {f"{phase}/{name}": part for name, part in source.items()}
    return {phase: source}


def in_words(source: Any) -> str:
    """Return what a train split is, for errors."""
    if isinstance(source, Mapping):
        return f"a dict of {', '.join(source)}"
    is_stream = isinstance(source, Split) and isinstance(source.dataset, IterableDataset)
    return f"a {type(source).__name__}" + (" of an IterableDataset" if is_stream else "")


def check_split(source: Any, phase: str) -> None:
    """Check that a split is a Split, or an iterable that may give batches.

    Args:
        source: the split.
        phase: "train", or another name for messages.

    Raises:
        TypeError: it is neither; the message says what it may be.
    """
    several = "one Split: join datasets by torch.utils.data.ConcatDataset"
    if phase == "train":
        several += ", or give a dict of Splits by name, whose batches come together: {'labelled': Split(...), ...}"
    elif phase in ("valid", "test"):
        several = "one Split, or a dict of them by name: {'small': Split(...), 'large': Split(...)}"
    elif phase != "predict":
        several = "one Split for each name"
    kind = type(source).__name__
    if isinstance(source, Mapping):
        raise TypeError(f"the {phase} split is a {kind}: it must be {several}")
    for item in source if isinstance(source, list | tuple) else ():
        if isinstance(item, Split | Dataset | DataLoader):
            raise TypeError(f"the {phase} split is a {kind} with a {type(item).__name__}: it must be {several}")
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        raise TypeError(f"the {phase} split is a dataset ({kind}): it must be Split(dataset, batch_size=...)")
    if isinstance(source, str | bytes | type) or not isinstance(source, Split | Iterable):
        shown = source.__name__ if isinstance(source, type) else kind
        raise TypeError(
            f"the {phase} split is a {shown}: it must be a Split, a DataLoader or another iterable of batches, or None"
        )


def _warn_of_hidden_epoch(dataset: Any) -> None:
    if seeding.has_set_epoch(dataset):
        logger.warning(
            "the train split is a DataLoader with persistent_workers=True: its workers have copies of %s that do not "
            "see set_epoch (unless it writes to shared memory), so a resume gives other samples; leave it out",
            type(dataset).__name__,
        )


def _zipped(source: Any) -> tuple[Any, ...]:
    """Return the iterators that a `zip` has."""
    return source.__reduce__()[1] if type(source) is zip else ()  # type: ignore[return-value]


def _reads_all_samples(loader: Any) -> bool:
    """Return whether this is a DataLoader that is known to read all samples on every rank, or an iterator of one."""
    is_iterator = isinstance(loader, _BaseDataLoaderIter)
    batches = loader._index_sampler if is_iterator else getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None) if batches is None else batches
    if type(batches) is BatchSampler:
        sampler = batches.sampler
    return type(sampler) in (RandomSampler, SequentialSampler)
