"""The splits of a program and their samples: what an audit needs to know of them, and how a trial changes them."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Subset, SubsetRandomSampler

from helios_lite.data import DataModule, Split
from helios_lite.processes import rng
from helios_lite.tools.audit import patterns
from helios_lite.tools.audit.record import SampleRead, digest, place_not_finite
from helios_lite.tools.audit.trial import Trial

_MOST_AT_AN_END = 1024
"""How many samples at the start and at the end of a split are read. Splits that overlap do so at their ends."""
_MOST_READ_AGAIN = 512
_MOST_KEPT = 512  # Samples, for what they have in common.
_SAMPLER_BATCH_SIZE = 8  # In place of a batch sampler.
MOST_STREAMED = 4096
"""How many samples of a stream are counted at most."""


class SampleReader:
    """Reads the samples of the train, validation and test splits under seeds of their indices."""

    def __init__(self, datamodule: DataModule) -> None:
        self._datasets: dict[str, Any] = {}
        for phase in ("train", "valid", "test"):
            split = getattr(datamodule, phase)
            for name, part in split.items() if isinstance(split, dict) else [("", split)]:
                if isinstance(part, Split) and not isinstance(part.dataset, IterableDataset):
                    self._datasets[f"{phase}/{name}" if name else phase] = part.dataset

    def read(self) -> dict[str, SampleRead]:
        """Return what a first reading of each split shows."""
        known: Counter[int] = Counter()
        trained = [dataset for name, dataset in self._datasets.items() if name.split("/")[0] == "train"]
        most = sum(len(_chosen(len(dataset))) for dataset in trained) // 2
        return {
            name: _read(dataset, name.split("/")[0] == "train", known, most) for name, dataset in self._datasets.items()
        }

    def read_again(self, reads: dict[str, SampleRead]) -> None:
        """Note which samples differ from the first reading."""
        for name, read in reads.items():
            dataset = self._datasets[name]
            for index, before in [*zip(_chosen(len(dataset)), read.digests, strict=True)][:_MOST_READ_AGAIN]:
                if _digest_sample(dataset, index) != before:
                    read.changed.append(index)

    def sample(self, name: str, index: int) -> Any:
        """Return a sample of a split."""
        rng.seed_cpu(index)
        return self._datasets[name][index]


def _chosen(length: int) -> list[int]:
    """Return the indices of the samples that are read."""
    if length <= 2 * _MOST_AT_AN_END:
        return list(range(length))
    return [*range(_MOST_AT_AN_END), *range(length - _MOST_AT_AN_END, length)]


def _read(dataset: Any, is_train: bool, known: Counter[int], most: int) -> SampleRead:
    """Return what a first reading shows.

    Args:
        dataset: the dataset of a split.
        is_train: whether it is that of the training.
        known: in how many train samples each run of values is, to which those of this split are added if it is.
        most: half of the number of train samples.
    """
    digests, not_finite, kept, shared = list[str](), list[tuple[int, str]](), list[Any](), 0
    base, indices = dataset, list(range(len(dataset)))
    while isinstance(base, Subset):
        indices = [int(base.indices[index]) for index in indices]
        base = base.dataset
    chosen = _chosen(len(dataset))
    for position, index in enumerate(chosen):
        rng.seed_cpu(index)
        sample = dataset[index]
        digests.append(digest(sample))
        if (place := place_not_finite(sample)) is not None:
            not_finite.append((index, place))
        if position % (1 + len(chosen) // _MOST_KEPT) == 0:  # Of all parts: samples may be sorted by class.
            kept.append(sample)
        own = patterns.runs(sample)
        if is_train:
            known.update(own)
        else:
            shared += patterns.shares_runs(own, known, most)
    is_random = any(
        _digest_sample(dataset, index, 1_000_003 + index) != before
        for index, before in [*zip(chosen, digests, strict=True)][:8]
    )
    classes = [patterns.target_of(sample) for sample in kept[:1]]
    has_classes = any(y is not None and not y.is_floating_point() and y.numel() == 1 for y in classes)
    is_augmented = is_random and has_classes and all(_has_one_target(dataset, index) for index in chosen[:8])
    return SampleRead(
        digests,
        not_finite,
        is_random=is_random,
        is_augmented=is_augmented,
        is_sorted=patterns.is_sorted_by_class(kept),
        spreads=patterns.spreads(kept),
        scale_of_targets=patterns.scale_of_targets(kept),
        dataset=id(base),
        indices=indices,
        has_target=bool(kept) and patterns.target_of(kept[0]) is not None,
        probability=patterns.probability_if_independent(kept) if is_train else None,
        target_in_input=patterns.target_in_input(kept),
        only_target=patterns.only_target(kept),
        shared_runs=shared,
    )


def _has_one_target(dataset: Any, index: int) -> bool:
    """Return whether a sample has the same target under another seed."""
    found = []
    for seed in (index, 1_000_003 + index):
        rng.seed_cpu(seed)
        found.append(digest(patterns.target_of(dataset[index])))
    return found[0] == found[1]


def _digest_sample(dataset: Any, index: int, seed: int | None = None) -> str:
    rng.seed_cpu(index if seed is None else seed)
    return digest(dataset[index])


def mixes_samples(split: Any) -> bool:
    """Return whether the collate_fn of a split draws random numbers, so that a batch is more than its samples."""
    if not is_map_style(split) or split.collate_fn is None or len(split.dataset) < 4:
        return False
    found = set()
    for seed in (1, 2, 3):
        samples = []
        for index in range(4):
            rng.seed_cpu(index)
            samples.append(split.dataset[index])
        rng.seed_cpu(seed)
        found.add(digest(split.collate_fn(samples)))
    return len(found) > 1


def count_streamed(split: Any, num_workers: int) -> int | None:
    """Return how many samples a stream has with so many workers; None if it has more than are counted."""
    options: dict[str, Any] = {"worker_init_fn": split.worker_init_fn} if num_workers else {}
    loader = DataLoader(split.dataset, batch_size=None, num_workers=num_workers, collate_fn=_nothing, **options)
    number = sum(1 for _ in itertools.islice(loader, MOST_STREAMED + 1))
    return None if number > MOST_STREAMED else number


def _nothing(sample: Any) -> int:
    return 0


def change_train(datamodule: DataModule, trial: Trial) -> None:
    """Change the train split of a data module, which is set up, as a trial asks for."""
    train, indices = datamodule.train, None
    if is_map_style(train) and (trial.holds_out or trial.train_samples is not None):
        every = range(len(train.dataset))
        indices = every[::2] if trial.holds_out else every[: trial.train_samples]
    several = train if isinstance(train, Mapping) else None
    changed = {name: _changed(part, trial.train, indices) for name, part in (several or {"": train}).items()}
    vars(datamodule).update(train=changed[""] if several is None else changed)


def change_valid(datamodule: DataModule, trial: Trial) -> None:
    """Change the validation splits of a data module, which is set up, as a trial asks for."""
    valid = datamodule.valid
    parts = valid if isinstance(valid, dict) else {"": valid}
    changed = {name: _changed(part, trial.valid, _first(part, trial.valid_samples)) for name, part in parts.items()}
    vars(datamodule).update(valid=changed if isinstance(valid, dict) else changed[""])


def _first(split: Any, number: int | None) -> Sequence[int] | None:
    """Return the first indices of a split, None for all or if it has none."""
    return None if number is None or not is_map_style(split) else range(len(split.dataset))[:number]


def _changed(split: Any, values: Mapping[str, Any], indices: Sequence[int] | None) -> Any:
    """Return a changed copy of a Split, of some of its samples if `indices` is not None; anything else as it is."""
    if not isinstance(split, Split):
        return split
    changes = dict(values)
    if "batch_size" in changes:
        changes["global_batch_size"] = None
    if "batch_size" in changes and split.batch_sampler is not None:
        changes["batch_sampler"] = None
    if indices is not None:
        changes |= {"dataset": Subset(split.dataset, indices), "sampler": None}
        if split.batch_sampler is not None:
            changes |= {"batch_sampler": None, "batch_size": values.get("batch_size", _SAMPLER_BATCH_SIZE)}
    if changes.get("num_workers", split.num_workers) == 0:
        changes |= {"prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None, "timeout": 0}
    return dataclasses.replace(split, **changes)


def is_map_style(split: Any) -> bool:
    """Return whether a split is a Split of a dataset with indices."""
    return isinstance(split, Split) and not isinstance(split.dataset, IterableDataset)


def describe_splits(datamodule: DataModule, window: int) -> dict[str, Any]:
    """Return what the relations need to know of the splits, by the names of `Facts`.

    Args:
        datamodule: the data.
        window: batches per accumulation window.
    """
    train, valid = datamodule.train, datamodule.valid
    valid_splits = [] if valid is None else [*valid.values()] if isinstance(valid, dict) else [valid]
    facts: dict[str, Any] = {
        "has_valid": bool(valid_splits),
        "is_valid_map_style": all(map(is_map_style, valid_splits)),
    }
    if isinstance(train, Split):
        facts |= {
            "train_kind": "map" if is_map_style(train) else "iterable",
            "batch_size": _batch_size(train, window),
            "num_workers": train.num_workers,
            "drop_last": train.drop_last,
            "is_in_order": not train.shuffle and train.sampler is None and train.batch_sampler is None,
            "shuffles": train.shuffle or isinstance(train.sampler, RandomSampler | SubsetRandomSampler),
            "mixes_samples": mixes_samples(train),
            "length": len(train.dataset) if is_map_style(train) else None,
        }
    if isinstance(train, Mapping) and all(map(is_map_style, train.values())):
        facts |= {"train_kind": "several", "num_workers": max(split.num_workers for split in train.values())}
    if valid_splits and facts["is_valid_map_style"]:
        facts["valid_batch_size"] = max(_batch_size(split, 1) for split in valid_splits)
        facts["valid_length"] = min(len(split.dataset) for split in valid_splits)
    return facts


def _batch_size(split: Split, window: int) -> int:
    """Return the batch size of one process."""
    total = split.global_batch_size
    return split.batch_size or (_SAMPLER_BATCH_SIZE if total is None else max(1, total // window))
