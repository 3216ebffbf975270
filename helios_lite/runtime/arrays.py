"""Tensors and arrays as a dataset, from which a batch is gathered at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ArrayDict(Dataset[dict[str, Tensor]]):
    """A dict of tensors and NumPy arrays, also memory maps, as a dataset: sample i is a dict of the rows i.

    Args:
        arrays: tensors or arrays by name, with the same length. They are not copied; a batch is a copy of rows.

    Raises:
        TypeError, ValueError: a value is no tensor or array of numbers, or the lengths differ; the message names it.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        if not arrays:
            raise ValueError("dataset: is a dict without arrays")
        for name, array in arrays.items():
            if not isinstance(array, Tensor) and not _is_numeric(array):
                kind = type(array).__name__
                raise TypeError(f"dataset[{name!r}]: is a {kind}; a dict must have tensors or NumPy arrays of numbers")
            if array.ndim == 0:
                raise ValueError(f"dataset[{name!r}]: is a single number and not one for each sample")
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"dataset: the arrays have different lengths: {lengths}")
        self.arrays = dict(arrays)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self.gather(torch.tensor([index])).items()}

    def gather(self, indices: Tensor) -> dict[str, Tensor]:
        """Return a batch: of each array the rows with these indices (int64, of shape (batch_size,)), as a tensor."""
        return {
            name: array.index_select(0, indices)
            if isinstance(array, Tensor)
            else torch.from_numpy(array[indices.numpy()])
            for name, array in self.arrays.items()
        }


def _is_numeric(value: Any) -> bool:
    """Return whether a value is a NumPy array that a tensor can hold."""
    if not hasattr(value, "__array__") or not hasattr(value, "dtype") or not hasattr(value, "ndim"):
        return False
    try:
        torch.from_numpy(value[:0].copy())  # A memory map may be read-only.
    except (TypeError, IndexError):
        return False
    return True
