"""Outputs that launched processes leave in files, and that the process which has launched them takes in turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch


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
        torch.save(output, part)
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
