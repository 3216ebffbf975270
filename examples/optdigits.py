"""The handwritten digits that several examples learn from; data/README.md says where they come from."""

import csv
import gzip
from pathlib import Path

import torch
from torch import Tensor


def load_digits() -> tuple[Tensor, Tensor]:
    """Return all images and their labels.

    Returns:
        images: float32 of shape (1797, 1, 8, 8), from 0 (white) to 1 (black).
        labels: int64 of shape (1797,), from 0 to 9.
    """
    with gzip.open(Path(__file__).parent / "data" / "optdigits.csv.gz", "rt") as file:
        rows = torch.tensor([[int(value) for value in row] for row in csv.reader(file)])
    return rows[:, :64].float().reshape(-1, 1, 8, 8) / 16, rows[:, 64]
