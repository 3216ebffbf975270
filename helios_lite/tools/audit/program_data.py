"""The splits of a program and their samples: what an audit needs to know of them, and how a trial changes them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset, Subset

from helios_lite.data import DataModule, Split
from helios_lite.processes import rng
from helios_lite.tools.audit.record import SampleRead, digest, place_not_finite
from helios_lite.tools.audit.trial import Trial

_MAX_SAMPLES, _MAX_SECONDS = 20_000, 4.0
"""How many samples of a split are read at most, and for how long."""
_SAMPLER_BATCH_SIZE = 8  # In place of a batch sampler.


class SampleReader:
    """Reads the samples of the train and validation splits under seeds of their indices."""

    def __init__(self, datamodule: DataModule) -> None:
        self._datasets: dict[str, Any] = {}
        for phase in ("train", "valid"):
            split = getattr(datamodule, phase)
            for name, part in split.items() if isinstance(split, dict) else [("", split)]:
                if isinstance(part, Split) and not isinstance(part.dataset, IterableDataset):
                    self._datasets[f"{phase}/{name}" if name else phase] = part.dataset

    def read(self) -> dict[str, SampleRead]:
        """Return what a first reading of each split shows."""
        return {name: _read(dataset) for name, dataset in self._datasets.items()}

    def read_again(self, reads: dict[str, SampleRead]) -> None:
        """Note which samples differ from the first reading."""
        for name, read in reads.items():
            begun = time.monotonic()
            for index, before in enumerate(read.digests):
                if _digest_sample(self._datasets[name], index) != before:
                    read.changed.append(index)
                if time.monotonic() - begun > _MAX_SECONDS:
                    break


def _read(dataset: Any) -> SampleRead:
    digests, not_finite, begun = list[str](), list[tuple[int, str]](), time.monotonic()
    base, indices = dataset, list(range(len(dataset)))
    while isinstance(base, Subset):
        indices = [int(base.indices[index]) for index in indices]
        base = base.dataset
    for index in range(min(len(dataset), _MAX_SAMPLES)):
        rng.seed_cpu(index)
        sample = dataset[index]
        digests.append(digest(sample))
        if (place := place_not_finite(sample)) is not None:
            not_finite.append((index, place))
        if time.monotonic() - begun > _MAX_SECONDS:
            break
    is_random = any(
        _digest_sample(dataset, index, 1_000_003 + index) != digests[index] for index in range(min(8, len(digests)))
    )
    return SampleRead(digests, not_finite, [], is_random, id(base), indices)


def _digest_sample(dataset: Any, index: int, seed: int | None = None) -> str:
    rng.seed_cpu(index if seed is None else seed)
    return digest(dataset[index])


def change_splits(datamodule: DataModule, trial: Trial) -> None:
    """Change the splits of a data module, which is set up, as a trial asks for."""
    train, valid = datamodule.train, datamodule.valid
    indices: Sequence[int] | None = None
    if is_map_style(train) and (trial.holds_out or trial.train_samples is not None):
        every = range(len(train.dataset))
        indices = every[::2] if trial.holds_out else every[: trial.train_samples]
    several = train if isinstance(train, Mapping) else None
    changed = {name: _changed(part, trial.train, indices) for name, part in (several or {"": train}).items()}
    vars(datamodule).update(train=changed[""] if several is None else changed)
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
