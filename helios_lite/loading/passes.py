"""A split that is read pass after pass, without an end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from helios_lite.loading.batches import Batch, Loader
from helios_lite.processes import rng


class Passes:
    """The batches of a split, pass after pass, and the position there.

    A pass is what an epoch is otherwise: seeds, orders and `set_epoch` depend on its index, and its last accumulation
    window may be shorter.

    Args:
        window: batches per accumulation window.
        number: the index of the pass to begin with.
        repeats: whether all passes are the first one.

    Attributes:
        number: the index of the present pass.
        num_batches: how many of its batches have begun.
        num_samples: the samples of all ranks in these.
    """

    def __init__(self, window: int = 1, number: int = 0, repeats: bool = False) -> None:
        self._window, self._repeats = window, repeats
        self._loader: Loader | None = None
        self._batches: Iterator[Batch] = iter(())
        self.number, self.num_batches, self.num_samples = number, 0, 0

    def move_to(self, number: int, num_batches: int, num_samples: int) -> None:
        """Set the position, before the first `open`."""
        self.number, self.num_batches, self.num_samples = number, num_batches, num_samples

    def open(self, loader: Loader) -> None:
        """Read from this loader. Another one than that of the last call is read from the present position."""
        if self._loader is not loader:
            self._loader = loader
            # A run that is not interrupted would not read here, so its random numbers must not depend on it.
            is_inside = self.num_batches > 0
            with rng.fork_rng(torch.device("cpu")) if is_inside else contextlib.nullcontext():
                self._batches = self._rest()

    def read(self) -> Batch:
        """Return the next batch, which has begun when `count` gets it."""
        while True:
            batch = next(self._batches, None)
            if batch is not None:
                return batch
            # A new pass has a batch, or its loader raises an error.
            self.number, self.num_batches, self.num_samples = self.number + (not self._repeats), 0, 0
            self._batches = self._rest()

    def count(self, samples: int) -> None:
        """Count the batch that was read last, which has so many samples on all ranks together."""
        self.num_batches += 1
        self.num_samples += samples

    def close(self) -> None:
        """Let go of the pass, so that its workers end."""
        self._batches = iter(())

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"pass": self.number, "pass_batches": self.num_batches, "pass_samples": self.num_samples}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Restore the position, before the first `open`."""
        self.move_to(state_dict["pass"], state_dict["pass_batches"], state_dict["pass_samples"])

    def _rest(self) -> Iterator[Batch]:
        assert self._loader is not None
        position = {"samples": self.num_samples, "batches": self.num_batches}
        return self._loader.epoch(self.number, **position, window=self._window).batches
