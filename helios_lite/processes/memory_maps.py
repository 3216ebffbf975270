"""Memory maps of NumPy that are sent to other processes: as the place in the file, and not as a copy of the numbers.

A file that is larger than the memory can so be read by several processes. Whatever is no map of a file that is still
there, or has changes of its own (mode "c"), is sent as any other array.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any


class PlacePickler(pickle.Pickler):
    """Sends memory maps as places in files."""

    def reducer_override(self, value: Any) -> Any:
        """Return how a memory map is made again; NotImplemented for anything else."""
        return _reduced(value) if type(value) is _memory_map() else NotImplemented


Pickler = PlacePickler
"""The name in a `pickle_module` that `torch.save` looks for."""


@contextlib.contextmanager
def sent_to_workers() -> Iterator[None]:
    """Context in which the processes that a DataLoader starts get memory maps so."""
    kind, reducers = _memory_map(), ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    is_ours = kind is not None and kind not in reducers
    if is_ours:
        ForkingPickler.register(kind, _reduced)
    try:
        yield
    finally:
        if is_ours:
            del reducers[kind]


def _memory_map() -> Any:
    """Return the class of memory maps, None if the program does not use NumPy."""
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.memmap


def _reduced(array: Any) -> Any:
    """Return a function and its arguments that make a memory map again in another process."""
    place = _place(array)
    return array.__reduce__() if place is None else (_opened, place)


def _place(array: Any) -> tuple[Any, ...] | None:
    """Return the arguments of `_opened` for a memory map, None if it cannot be found again in a file."""
    import numpy

    mapped, path, mode = array._mmap, array.filename, array.mode
    if mapped is None or path is None or mode == "c" or array.size == 0 or not os.path.isfile(path):
        return None
    begin = numpy.frombuffer(mapped, numpy.uint8).ctypes.data  # Of the pages that are mapped.
    first = array.ctypes.data
    # A view may go backwards.
    spans = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    low = first + sum(span for span in spans if span < 0)
    length = sum(map(abs, spans)) + array.itemsize
    offset = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + low - begin
    if low < begin or low + length > begin + len(mapped) or offset + length > os.path.getsize(path):
        return None
    layout = (array.dtype, array.shape, array.strides, first - low)
    return (os.fspath(path), "r" if mode == "r" else "r+", offset, length, *layout, bool(array.flags.writeable))


def _opened(
    path: str, mode: Any, offset: int, length: int, dtype: Any, shape: Any, strides: Any, start: int, writeable: bool
) -> Any:
    """Return an array that is a part of a file.

    Args:
        path: the file.
        mode: "r" or "r+".
        offset, length: the bytes of the file.
        dtype, shape, strides: of the array.
        start: the byte of its first element, counted from the offset.
        writeable: whether it may be assigned to.
    """
    import numpy

    part = numpy.memmap(path, numpy.uint8, mode, offset, (length,))
    array = numpy.ndarray.__new__(numpy.memmap, shape, dtype, part, start, strides)
    array.__array_finalize__(part)  # So that it can be sent on.
    array.flags.writeable = writeable
    return array
