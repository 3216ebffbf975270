"""The splits of a program: what an audit needs to know of them, and how a trial changes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset, Subset

from helios_lite.data import DataModule, Split
from helios_lite.tools.audit.trial import Trial

SAMPLER_BATCH_SIZE = 8
"""The batch size in place of a batch sampler."""


def change_splits(datamodule: DataModule, trial: Trial) -> None:
    """Change the splits of a data module, which is set up, as a trial asks for."""
    train, valid = datamodule.train, datamodule.valid
    indices: Sequence[int] | None = None
    if is_map_style(train) and (trial.holds_out or trial.train_samples is not None):
        every = range(len(train.dataset))
        indices = every[::2] if trial.holds_out else every[: trial.train_samples]
    vars(datamodule).update(train=_changed(train, trial.train, indices))
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
    if "batch_size" in changes and split.batch_sampler is not None:
        changes["batch_sampler"] = None
    if indices is not None:
        changes |= {"dataset": Subset(split.dataset, indices), "sampler": None}
        if split.batch_sampler is not None:
            changes |= {"batch_sampler": None, "batch_size": values.get("batch_size", SAMPLER_BATCH_SIZE)}
    if changes.get("num_workers", split.num_workers) == 0:
        changes |= {"prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None, "timeout": 0}
    return dataclasses.replace(split, **changes)


def is_map_style(split: Any) -> bool:
    """Return whether a split is a Split of a dataset with indices."""
    return isinstance(split, Split) and not isinstance(split.dataset, IterableDataset)


def describe_splits(datamodule: DataModule) -> dict[str, Any]:
    """Return what the relations need to know of the splits, by the names of `Facts`."""
    train, valid = datamodule.train, datamodule.valid
    valid_splits = [] if valid is None else [*valid.values()] if isinstance(valid, dict) else [valid]
    facts: dict[str, Any] = {
        "has_valid": bool(valid_splits),
        "is_valid_map_style": all(map(is_map_style, valid_splits)),
    }
    if isinstance(train, Split):
        facts |= {
            "train_kind": "map" if is_map_style(train) else "iterable",
            "batch_size": train.batch_size or SAMPLER_BATCH_SIZE,
            "num_workers": train.num_workers,
            "length": len(train.dataset) if is_map_style(train) else None,
        }
    if valid_splits and facts["is_valid_map_style"]:
        facts["valid_batch_size"] = max(split.batch_size or SAMPLER_BATCH_SIZE for split in valid_splits)
        facts["valid_length"] = min(len(split.dataset) for split in valid_splits)
    return facts
