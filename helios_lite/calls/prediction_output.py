"""The outputs of a prediction: on their way from launched processes, and in one file."""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_lite.checkpoints.files import write_file
from helios_lite.file_errors import naming
from helios_lite.nested import items, rebuilt
from helios_lite.processes.worker import WHEN_TEMPORARY_FULL


class OutputWriter:
    """Leaves the outputs of one rank in files.

    Args:
        folder: a folder that is private to this user.
        rank: the rank of this process.
        most_waiting: how many outputs of this rank may wait to be taken before `put` waits as well, None for any
            number. Ranks that wait for each other while they compute need None.
    """

    def __init__(self, folder: Path, rank: int, most_waiting: int | None) -> None:
        self._folder, self._rank, self._most_waiting = folder, rank, most_waiting
        self._num_written = 0

    def put(self, output: Any) -> None:
        """Leave an output, of any type that can be pickled."""
        if self._most_waiting is not None:
            earlier = _file(self._folder, self._rank, self._num_written - self._most_waiting)
            while earlier.exists():
                time.sleep(0.005)
        path = _file(self._folder, self._rank, self._num_written)
        part = path.with_suffix(".part")
        with naming(path, when_full=WHEN_TEMPORARY_FULL), part.open("wb") as file:
            torch.save(output, file)
        part.rename(path)
        self._num_written += 1

    def close(self) -> None:
        """Say that this rank has no further output."""
        _file(self._folder, self._rank, self._num_written).with_suffix(".end").touch()


def take_in_turn(folder: Path, num_ranks: int, processes: Future[Any]) -> Iterator[Any]:
    """Yield the outputs of all ranks: the first of each, by rank, then the second of each, until no rank has any left.

    A file is deleted as soon as it has been read.

    Args:
        folder: where the ranks write.
        num_ranks: the number of ranks.
        processes: the end of all ranks.

    Raises:
        Exception: the ranks have failed; what they had left in turn has been yielded before.
    """
    ranks, number = list(range(num_ranks)), 0
    while ranks:
        for rank in list(ranks):
            path = _file(folder, rank, number)
            if _wait(path, processes):
                output = torch.load(path, weights_only=False)  # Written by a process that this one has started.
                path.unlink()
                yield output
            else:
                ranks.remove(rank)
        number += 1
    processes.result()


def _wait(path: Path, processes: Future[Any]) -> bool:
    """Wait for an output, and return whether there is one; False if its rank has ended before it."""
    while True:
        are_over = processes.done()  # Asked first, since what they wrote last may have appeared just before.
        if path.exists():
            return True
        if path.with_suffix(".end").exists():
            return False
        if are_over:
            processes.result()
            raise RuntimeError(f"the processes have ended without {path.name}")
        time.sleep(0.002)


def _file(folder: Path, rank: int, number: int) -> Path:
    return folder / f"{rank}-{number}.output"


def write_outputs(predictions: Iterable[tuple[Tensor, Any]], path: Path) -> str:
    """Write predictions to a file, and return what it has, for people.

    The file is `{"indices": indices, "outputs": outputs}`, both joined along the first dimension. It appears under its
    name when it is complete and durable. Until then the tensors grow in files beside it.

    Args:
        predictions: for each batch the indices of its samples, int64 of shape (samples,), and the outputs: a tensor of
            shape (samples, ...), or dicts, lists and tuples of such.
        path: the file; its folder is made if it does not exist.

    Raises:
        TypeError: an output is no tensor.
        ValueError: the first dimension of an output is not that of the samples, there is no output, or dtype, shape or
            structure differ between batches.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the path of the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as name:
        folder = Path(name)
        indices = _GrowingTensor(folder / "indices")
        outputs: dict[str, _GrowingTensor] = {}
        first: Any = None
        for batch_indices, output in predictions:
            leaves = dict(_leaves(output, "output"))
            if first is None:
                first = output
                outputs = {where: _GrowingTensor(folder / str(i)) for i, where in enumerate(leaves)}
            if leaves.keys() != outputs.keys():
                raise ValueError(f"predict_step returned {[*leaves]} for a batch, and {[*outputs]} for the first one")
            with naming(path):
                indices.append(batch_indices, "indices", len(batch_indices))
                for where, leaf in leaves.items():
                    outputs[where].append(leaf, where, len(batch_indices))
        if not outputs:
            raise ValueError("predict_step returned no tensor")
        joined = [tensor.joined() for tensor in outputs.values()]
        numbers = indices.joined()
        write_file({"indices": numbers, "outputs": _rebuilt(first, iter(joined))}, path)
        shapes = [f"{where} {_form_text(tensor)}" for where, tensor in zip(outputs, joined, strict=True)]
        return f"{len(numbers):,} samples, {', '.join(shapes)}"


def _form_text(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


class _GrowingTensor:
    """A tensor in a file, to which the rows of others are appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._form: tuple[torch.dtype, torch.Size] | None = None
        self._num_rows = 0

    def append(self, rows: Tensor, where: str, num_samples: int) -> None:
        """Append the rows of a tensor of shape (num_samples, ...); `where` names it in errors."""
        if rows.ndim == 0 or len(rows) != num_samples:
            raise ValueError(
                f"{where} has the shape {tuple(rows.shape)} for a batch of {num_samples} samples: the first dimension "
                "must be that of the samples; to write something else, use what Trainer.predict yields"
            )
        form = (rows.dtype, rows.shape[1:])
        if self._form is None:
            self._form = form
        if form != self._form:
            now, before = (f"{dtype} of shape (samples, {str([*shape])[1:-1]})" for dtype, shape in (form, self._form))
            raise ValueError(
                f"{where} is {now}, and was {before} for the first batch: the outputs of all batches are joined to one "
                "tensor, so pad them to one shape, or write what Trainer.predict yields"
            )
        self._num_rows += num_samples
        rows = rows.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if rows.nbytes > 0:
            with self._path.open("ab") as file:  # Through ctypes, because PyTorch may have no numpy.
                file.write((ctypes.c_char * rows.nbytes).from_address(rows.data_ptr()))

    def joined(self) -> Tensor:
        """Return the whole tensor; its memory is the file."""
        assert self._form is not None
        dtype, shape = self._form
        size = self._num_rows * shape.numel()
        if size == 0:
            return torch.empty(self._num_rows, *shape, dtype=dtype)
        return torch.from_file(str(self._path), shared=False, size=size, dtype=dtype).view(self._num_rows, *shape)


def _leaves(output: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an output by the place where they are."""
    parts = items(output)
    if isinstance(output, Tensor):
        yield where, output
    elif parts is None:
        raise TypeError(
            f"predict_step returned a {type(output).__name__} ({where}): a file takes tensors, and dicts, lists and "
            "tuples of them; to write something else, use what Trainer.predict yields"
        )
    else:
        for key, item in parts:
            yield from _leaves(item, f"{where}[{key!r}]")


def _rebuilt(output: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the output with other tensors; a named tuple as a dict, since a file has plain containers only."""
    parts = items(output)
    if parts is None:
        return next(tensors)
    plain = dict(parts) if hasattr(output, "_fields") else output
    return rebuilt(plain, [_rebuilt(item, tensors) for _, item in parts])
