"""What seeding every sample costs: python -m benchmarks.seeding

Times an epoch of a dataset that does nothing, with and without `seed_samples`, in turn, and prints the medians; then
the parts of which the difference consists, each alone.
"""

import random
import statistics
import sys
import time
import timeit

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset

from helios_lite import Split
from helios_lite.loading.loaders import make_loader
from helios_lite.processes import rng

SAMPLES, ROUNDS = 20_000, 7


class Nothing(Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        return index


def microseconds(seed_samples: bool) -> float:
    """Time of one sample in an epoch of batches of 64, in this process."""
    loader = make_loader(Split(Nothing(), batch_size=64, seed_samples=seed_samples), "train", 0)
    start = time.perf_counter()
    for _ in loader.epoch(0).batches:
        pass
    return (time.perf_counter() - start) / SAMPLES * 1e6


def main() -> None:
    table = Table("microseconds per sample", "seeded", "not seeded", "difference")
    for name in ("without numpy", "with numpy"):
        if name == "with numpy":
            sys.modules["numpy"] = numpy
        else:
            del sys.modules["numpy"]  # Seeding looks for it here.
        rounds = [(microseconds(True), microseconds(False)) for _ in range(ROUNDS)]
        seeded, plain = (statistics.median(values) for values in zip(*rounds, strict=True))
        table.add_row(name, f"{seeded:.2f}", f"{plain:.2f}", f"{seeded - plain:.2f}")
    Console().print(table)
    parts = {
        "the seed of a sample": lambda: rng.derive_seed(SAMPLES, ROUNDS),
        "torch": lambda: torch.default_generator.manual_seed(SAMPLES),
        "random": lambda: random.seed(SAMPLES),
        "numpy": lambda: numpy.random.seed(SAMPLES),
    }
    table = Table("part", "microseconds")
    for name, part in parts.items():
        table.add_row(name, f"{min(timeit.repeat(part, number=SAMPLES, repeat=ROUNDS)) / SAMPLES * 1e6:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
