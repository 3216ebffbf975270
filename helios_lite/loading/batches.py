"""What a batch is, what the trainer needs of a loader, and what all loaders share."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from helios_lite.data import Split, epoch_seed
from helios_lite.loading.workers import WorkerInit
from helios_lite.processes.world import World

Batch = tuple[Any, int, int, float, bool, bool]
"""A batch and its place in the epoch, in this order; a plain tuple, because every step has one.

- data: what the collate function returned.
- size: number of samples in it.
- samples: number of samples of all ranks in this batch together.
- loss_weight: its part of the samples of its accumulation window, times the number of ranks (over which gradients are
  averaged); 1.0 if it is the only batch of one rank.
- completes_step: whether it is the last of its window, after which the optimizer steps.
- is_last: whether it is known to be the last of the epoch.
"""


class EpochBatches(NamedTuple):
    """The remaining batches of an epoch, and their number, None if it is unknown."""

    batches: Iterator[Batch]
    length: int | None


class Loader(Protocol):
    """What the trainer needs of a split."""

    @property
    def source(self) -> Any:
        """The split, as the datamodule has it."""

    @property
    def marks_last(self) -> bool:
        """Whether the number of batches cannot be wrong, so that the last one has `is_last`."""

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> EpochBatches:
        """Return the rest of an epoch.

        Args:
            epoch: index of the epoch, from 0; with `steps_per_epoch` that of the pass over the split.
            samples: number of finished samples of all ranks.
            batches: number of finished batches of this rank.
            window: batches per accumulation window.
        """

    def num_batches(self, *, samples: int = 0, batches: int = 0) -> int | None:
        """Return the number of batches of a whole epoch, or of its rest, without reading any; None if it is unknown.

        Args:
            samples, batches: the position, as in `epoch`.
        """

    def takes_state(self) -> bool:
        """Return whether `load_state_dict` restores what the source has saved, which depends on the rank."""

    def state_dict(self) -> dict[str, Any]:
        """Return the part of the position of this rank that the run's counters do not hold."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; takes effect at the next `epoch`."""

    def close(self) -> None:
        """End the epoch that is read, and the workers of a Split."""


def is_training(phase: str) -> bool:
    """Return whether a phase is "train", or one of several train splits, such as "train/labelled"."""
    return phase.split("/")[0] == "train"


def seed_of_epoch(seed: int, phase: str, epoch: int) -> int:
    """Return the seed of an epoch of a split, or of a pass; several train splits have other orders."""
    return epoch_seed(seed, epoch, phase.removeprefix("train/") if phase.startswith("train/") else "")


def limited(num_batches: int, limit: int | float | None) -> int:
    """Return how many of so many batches a limit leaves: a number, a part (a float; at least one batch), or all."""
    if limit is None:
        return num_batches
    if isinstance(limit, float):  # Rational arithmetic is exact: 0.29 of 100 batches are 29.
        return max(1, int(Fraction(limit).limit_denominator(10**9) * num_batches))
    return min(limit, num_batches)


@contextlib.contextmanager
def ending_workers(loader: Any, iterator: Iterator[Any]) -> Iterator[None]:
    """Context in which an iterator of a loader is read: an exception ends its workers.

    Otherwise they would live as long as the traceback, which keeps the iterator.
    """
    try:
        yield
    except GeneratorExit:
        raise  # Workers that persist are used in the next epoch.
    except BaseException:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
            if loader._iterator is iterator:
                loader._iterator = None  # The next epoch starts others.
        raise


def end_persistent_workers(loader: DataLoader[Any]) -> None:
    """End the workers of a DataLoader that it keeps for its next epoch."""
    if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()
        loader._iterator = None


def close_generator(reference: weakref.ref[Generator[Batch]] | None) -> None:
    """Close a generator of batches, if it still exists."""
    generator = None if reference is None else reference()
    if generator is not None:
        generator.close()


def incomplete_error(phase: str, given: int, length: int, start: str) -> RuntimeError:
    """Return the error of an iterator that ended early. Python takes a StopIteration for the end of any iterator."""
    return RuntimeError(
        f"the {phase} split gave {given} of {length} batches{start}: its dataset or collate_fn raised StopIteration"
    )


def batch_size_of(split: Split, phase: str, world: World, window: int) -> int | None:
    """Return the number of samples per batch and process of a Split, None if its batch sampler decides.

    Args:
        split: the split.
        phase: "train", "train/labelled" of several, or another name, of an evaluation.
        world: the ranks.
        window: batches per accumulation window; it counts in training only.

    Raises:
        ValueError: the samples of a step cannot be divided into batches of the same size.
    """
    total = split.global_batch_size
    if total is None:
        return split.batch_size
    if not is_training(phase):
        return -(-total // world.size)
    if total % (world.size * window) == 0:
        return total // (world.size * window)
    ranks = f"{world.size} process{'es' * (world.size > 1)}"
    text = f"the {phase} split: global_batch_size={total} cannot be divided by {ranks} x accumulation_steps={window}"
    if total % world.size > 0:
        least = -(-total // (world.size * window)) * world.size * window
        raise ValueError(f"{text}, nor by {ranks} at all; {least} can be")
    share = total // world.size
    fits = [steps for steps in range(1, share + 1) if share % steps == 0]
    nearest = min(fits, key=lambda steps: (steps < window, abs(steps - window)))
    raise ValueError(f"{text}: accumulation_steps={nearest} fits, with batches of {share // nearest}")


def dataloader_options(split: Split) -> dict[str, Any]:
    """Return the options of a DataLoader that a Split passes on."""
    names = "num_workers timeout multiprocessing_context prefetch_factor persistent_workers"
    options = {name: getattr(split, name) for name in names.split()}
    options["pin_memory"] = split.pin_memory is True
    return {**options, "worker_init_fn": WorkerInit(split.worker_init_fn)}
