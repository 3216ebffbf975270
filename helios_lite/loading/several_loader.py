"""The batches of several train splits, which come together as a dict."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from helios_lite.loading.batches import Batch, EpochBatches, Loader
from helios_lite.loading.loaders import in_words
from helios_lite.loading.passes import Passes


class SeveralLoader:
    """Batches of several train splits: each is a dict with a batch of every split, by name.

    One split ends the epoch with its last batch: that of `ends`, else the shortest, of several the first. Its samples
    are those that are counted. The others are read pass after pass: in the next epoch they go on where they are, and
    at their end they begin again, with the order of another pass. So the position is that of the epoch in one split,
    and in each of the others that of its pass.

    Args:
        loaders: the loader of each split by name.
        ends: the name of the split that ends an epoch, None for the shortest.
        repeats: whether every epoch is the first one.
        earlier: what was read until now, whose positions are those of the splits that have the same names.

    Attributes:
        loaders: as given.
        others: the passes over the splits that do not end the epoch, by name.

    Raises:
        ValueError: `ends` is no name of a split, or it is None and a split has no length.
    """

    def __init__(
        self, loaders: Mapping[str, Loader], ends: str | None, repeats: bool, earlier: SeveralLoader | None = None
    ) -> None:
        self.loaders, self._ends, self._repeats = dict(loaders), ends, repeats
        self.others: dict[str, Passes] = {}
        self._main = self._find_main()
        if earlier is not None:
            self._main = earlier._main if earlier._main in loaders else self._main
            self.others.update((name, passes) for name, passes in earlier.others.items() if name in loaders)

    @property
    def main(self) -> str:
        """The name of the split that ends the epoch; it may be another one in the next epoch."""
        return self._main

    @property
    def source(self) -> Any:
        """The split that ends the epoch."""
        return self.loaders[self._main].source

    @property
    def marks_last(self) -> bool:
        """Whether the number of batches cannot be wrong."""
        return self.loaders[self._main].marks_last

    def is_of(self, loaders: Mapping[str, Loader], ends: str | None) -> bool:
        """Return whether these are the loaders, in this order, and what ends an epoch."""
        return ends == self._ends and [*loaders.items()] == [*self.loaders.items()]

    def epoch(self, epoch: int, *, samples: int = 0, batches: int = 0, window: int = 1) -> EpochBatches:
        """Return the rest of an epoch; the position is that of the split that ends it."""
        if batches == 0:
            self._begin_epoch(epoch)
        for name, passes in self.others.items():
            passes.open(self.loaders[name])
        own, length = self.loaders[self._main].epoch(epoch, samples=samples, batches=batches, window=window)
        return EpochBatches(self._batches(own), length)

    def num_batches(self, *, samples: int = 0, batches: int = 0) -> int | None:
        """Return the number of batches of a whole epoch, or of its rest."""
        main = self._find_main() if batches == 0 else self._main
        return self.loaders[main].num_batches(samples=samples, batches=batches)

    def takes_state(self) -> bool:
        """Return whether the loader of a split has a `load_state_dict`."""
        return any(loader.takes_state() for loader in self.loaders.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all loaders, the positions in the passes, and which split ends the epoch."""
        parts = {
            name: {**loader.state_dict(), "source": in_words(loader.source)} for name, loader in self.loaders.items()
        }
        for name, passes in self.others.items():
            parts[name] |= passes.state_dict()
        return {"parts": parts, "main": self._main}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them, if several splits have saved; a split of a new name begins with its first pass."""
        parts = {name: part for name, part in state_dict.get("parts", {}).items() if name in self.loaders}
        self._main = state_dict["main"] if state_dict.get("main") in self.loaders else self._main
        for name, part in parts.items():
            self.loaders[name].load_state_dict(part)
            if "pass" in part:
                self.others[name] = Passes(repeats=self._repeats)
                self.others[name].load_state_dict(part)

    def close(self) -> None:
        """End the epoch and the passes that are read, and the workers of all splits."""
        for loader in self.loaders.values():
            loader.close()
        for passes in self.others.values():
            passes.close()

    def _find_main(self) -> str:
        if self._ends is not None:
            if self._ends not in self.loaders:
                raise ValueError(f"epoch_split={self._ends!r}: must be a name in `train`: {', '.join(self.loaders)}")
            return self._ends
        lengths = {name: loader.num_batches() for name, loader in self.loaders.items()}
        known = {name: length for name, length in lengths.items() if length is not None}
        if len(known) < len(lengths):
            name = next(name for name in lengths if name not in known)
            raise ValueError(
                f"epoch_split: name the train split that ends an epoch, because {name!r} has no length and may be the "
                "shortest"
            )
        return min(known, key=lambda name: known[name])

    def _begin_epoch(self, epoch: int) -> None:
        earlier, self._main = self._main, self._find_main()
        self.others.pop(self._main, None)
        for name in self.loaders:
            if name != self._main and (name not in self.others or self._repeats):
                # One that has ended the epochs until now has had a pass in each of them.
                number = epoch if name == earlier else 0
                self.others[name] = Passes(number=number, repeats=self._repeats)

    def _batches(self, own: Iterator[Batch]) -> Generator[Batch]:
        for data, size, samples, loss_weight, completes_step, is_last in own:
            read = {name: passes.read() for name, passes in self.others.items()}
            for name, batch in read.items():  # When all are there: what fails to load is read again.
                self.others[name].count(batch[2])
            together = {name: data if name == self._main else read[name][0] for name in self.loaders}
            yield together, size, samples, loss_weight, completes_step, is_last
