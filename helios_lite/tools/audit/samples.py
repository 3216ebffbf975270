"""Reads the samples of the splits, before and after a training."""

from __future__ import annotations

import time
from typing import Any

from torch.utils.data import IterableDataset, Subset

from helios_lite.data import DataModule, Split
from helios_lite.runtime import rng
from helios_lite.tools.audit.record import SampleRead, digest, place_not_finite

_MAX_SAMPLES, _MAX_SECONDS = 20_000, 4.0
"""How many samples of a split are read at most, and for how long."""


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
