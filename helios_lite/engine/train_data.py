"""The batches of the train split, from the position that the counters say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from helios_lite.data import DataModule
from helios_lite.engine.batches import Batch, Loader
from helios_lite.engine.loaders import make_loader
from helios_lite.engine.passes import PassReader
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
        steps_per_epoch: updates per epoch, None if an epoch is one pass over the split.

    Attributes:
        epoch_batches: number of batches in the present epoch, None if unknown. With `steps_per_epoch` it is the most
            that there can be, as the last window of a pass may be shorter.
        knows_last_batch: whether the last batch of the present epoch is known to be the last; not of a custom loader.
        passes: reads the split with `steps_per_epoch`, otherwise None.
    """

    def __init__(
        self, datamodule: DataModule, seed: int, window: int, world: World, steps_per_epoch: int | None
    ) -> None:
        self._datamodule, self._seed, self._window, self._world = datamodule, seed, window, world
        self.epoch_batches: int | None = None
        self.knows_last_batch = False
        self._loader: Loader | None = None
        self._restored_state: dict[str, Any] = {}
        self.passes: PassReader | None = None
        if steps_per_epoch is not None:
            self.passes = PassReader(steps_per_epoch, window)
            self.epoch_batches, self.knows_last_batch = steps_per_epoch * window, True

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
        if self.passes is not None:
            return self.passes.rest_of_epoch(self.loader(), state)
        batches, length = self.loader().epoch(
            state.epoch, samples=state.epoch_samples, batches=state.epoch_batch, window=self._window
        )
        self.epoch_batches = None if length is None else state.epoch_batch + length
        self.knows_last_batch = isinstance(self._loader, SplitLoader)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a custom loader, if it has one, and the position in the passes."""
        own = {} if self._loader is None else self._loader.state_dict()
        return own if self.passes is None else {**own, "passes": self.passes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position in the passes, and keep the state of a custom loader for `loader`, which makes it."""
        self._restored_state = state_dict
        if self.passes is not None and "passes" in state_dict:
            self.passes.load_state_dict(state_dict["passes"])

    def close(self) -> None:
        """End the workers of a pass that goes on in the next epoch."""
        if self.passes is not None:
            self.passes.close()
