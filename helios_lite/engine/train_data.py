"""The batches of the train split, from the position that the counters say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from helios_lite.data import DataModule
from helios_lite.engine.batches import Batch, Loader
from helios_lite.engine.loaders import make_loader
from helios_lite.engine.split_loader import SplitLoader
from helios_lite.runtime.distributed import World
from helios_lite.state import TrainingState


class TrainData:
    """Makes the loader of the train split, and keeps it until the datamodule has another train split.

    Args:
        datamodule: the data.
        seed: the seed from which the order is derived.
        window: batches per accumulation window.
        world: the ranks.

    Attributes:
        epoch_batches: number of batches in the present epoch, None if unknown.
        knows_last_batch: whether the last batch of the present epoch is known to be the last; not of a custom loader.
    """

    def __init__(self, datamodule: DataModule, seed: int, window: int, world: World) -> None:
        self._datamodule, self._seed, self._window, self._world = datamodule, seed, window, world
        self.epoch_batches: int | None = None
        self.knows_last_batch = False
        self._loader: Loader | None = None
        self._restored_state: dict[str, Any] = {}

    def loader(self) -> Loader:
        """Return the loader of the present train split.

        Raises:
            ValueError: there is no train split, or it is empty.
        """
        source = self._datamodule.train
        if source is None:
            raise ValueError("the datamodule has no train split")
        if self._loader is None or self._loader.source is not source:
            self._loader = make_loader(source, "train", self._seed, self._world)
            self._loader.load_state_dict(self._restored_state)
            self._restored_state = {}
        return self._loader

    def rest_of_epoch(self, state: TrainingState) -> Iterator[Batch]:
        """Return the batches of the present epoch that are not finished."""
        batches, length = self.loader().epoch(
            state.epoch, samples=state.epoch_samples, batches=state.epoch_batch, window=self._window
        )
        self.epoch_batches = None if length is None else state.epoch_batch + length
        self.knows_last_batch = isinstance(self._loader, SplitLoader)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a custom loader, if it has one."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a custom loader; `loader` restores it when it makes the loader."""
        self._restored_state = state_dict
