"""The batches of the train split, epoch by epoch, from the position that the counters say."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from helios_lite.data import DataModule, Split
from helios_lite.loading.batches import Batch, Loader, batch_size_of
from helios_lite.loading.loaders import LoaderKeeper, in_words, make_loader, split_parts
from helios_lite.loading.passes import Passes
from helios_lite.loading.several_loader import SeveralLoader
from helios_lite.loading.split_loader import SplitLoader
from helios_lite.metrics.digests import as_text, number_of_name
from helios_lite.options import Options
from helios_lite.processes.world import World
from helios_lite.state import TrainingState

logger = logging.getLogger("helios_lite")


class TrainData:
    """Makes the loader of the train split, and keeps it until the datamodule has another train split or has changed it.

    Args:
        datamodule: the data.
        options: the trainer.
        world: the ranks.
        count: returns the number of samples in a batch of a loader that does not know it.
        pins: as in `make_loader`.

    Attributes:
        epoch_batches: number of batches in the present epoch, None if unknown. With `steps_per_epoch` it is the most
            that there can be, as the last window of a pass may be shorter.
        knows_last_batch: whether the last batch of the present epoch is known to be the last.
    """

    def __init__(
        self,
        datamodule: DataModule,
        options: Options,
        world: World,
        count: Callable[[Any], int],
        pins: bool = False,
    ) -> None:
        self._datamodule, self._options, self._world, self._pins = datamodule, options, world, pins
        self._window = options.accumulation_steps
        self._repeats = options.overfit_batches is not None  # Every epoch has the batches of the first, unshuffled.
        self.epoch_batches: int | None = None
        self.knows_last_batch = False
        self._has_digests = True
        self._count = count
        self._keepers: dict[str, LoaderKeeper] = {}  # By "train", or "train/labelled" of several splits.
        self._loader: Loader | None = None
        self._restored: list[dict[str, Any]] = []
        self._passes: PassReader | None = None
        self._state = TrainingState()  # That of the run, when an epoch is read.
        self._ends_passes = False  # Whether the present epoch is the last that is no pass, as the option was removed.
        if options.steps_per_epoch is not None:
            self._passes = PassReader(options.steps_per_epoch, self._window)

    def loader(self) -> Loader:
        """Return the loader of the present train split; not to be called while an epoch is read.

        Raises:
            ValueError: there is no train split, it is empty, or its state was saved by another number of ranks.
        """
        parts = split_parts(self._datamodule, "train")
        if not parts:
            raise ValueError("the datamodule has no train split")
        if self._options.limit_of("train") == 0:
            raise ValueError("limit_train_batches=0: turns the train split off; use Trainer.validate to evaluate only")
        for phase in self._keepers.keys() - parts.keys():
            self._keepers.pop(phase).close()
        loaders = {phase: self._loader_of(phase, part) for phase, part in parts.items()}
        if "train" in loaders:
            loader = loaders["train"]
        else:
            loader = self._together({phase.removeprefix("train/"): part for phase, part in loaders.items()})
        self._loader = loader
        if self._restored and loader.takes_state():
            self._check_number_of_ranks()
        return loader

    def _loader_of(self, phase: str, source: Any) -> Loader:
        options, limit = self._options, self._options.limit_of("train")
        if phase not in self._keepers:
            self._keepers[phase] = LoaderKeeper(
                lambda source: make_loader(
                    source,
                    phase,
                    options.seed,
                    self._world,
                    limit,
                    self._repeats,
                    self._count,
                    self._window,
                    self._pins,
                )
            )
        return self._keepers[phase].of(source)

    def _together(self, loaders: dict[str, Loader]) -> SeveralLoader:
        """Return the loader of several splits: that of before, if none of them has another one."""
        ends, earlier = self._datamodule.epoch_split, self._loader
        if not isinstance(earlier, SeveralLoader):
            return SeveralLoader(loaders, ends, self._repeats)
        return earlier if earlier.is_of(loaders, ends) else SeveralLoader(loaders, ends, self._repeats, earlier)

    def steps_per_epoch(self) -> int | None:
        """Return the number of steps of a whole epoch of the present train split, None if it is unknown."""
        if self._options.steps_per_epoch is not None:
            return self._options.steps_per_epoch
        batches = self.loader().num_batches()
        return None if batches is None else -(-batches // self._window)

    def samples_per_step(self) -> int | None:
        """Return the number of samples of all ranks in a step, None if it is unknown or not always the same."""
        source = self.loader().source
        if not isinstance(source, Split):
            size = getattr(source, "batch_size", None)
        else:
            size = batch_size_of(source, "train", self._world, self._window)
        if not isinstance(size, int):
            return None
        samples = size * self._world.size * self._window
        has_length = isinstance(source, Split) and hasattr(source.dataset, "__len__")
        return min(samples, len(source.dataset)) if has_length else samples

    def length(self) -> int | None:
        """Return the number of samples of the dataset, None if it is unknown."""
        try:
            return len(self.loader().source.dataset)
        except (AttributeError, TypeError, NotImplementedError):
            return None

    def batches_per_epoch(self) -> int | None:
        """Return the number of micro-batches of a whole epoch, by which a part of it is measured; see `position`."""
        return self._options.steps_per_epoch or self.loader().num_batches()

    def steps_left(self, state: Mapping[str, Any], saved: dict[str, Any], finished: int) -> int:
        """Return the number of steps that the rest of an epoch has, whose number of batches is known.

        Args:
            state: counters inside of the epoch, as a checkpoint holds them.
            saved: what `state_dict` had returned there.
            finished: the steps of the epoch that are finished.
        """
        passes = saved.get("passes", {}).get("steps_per_epoch")  # An epoch that has begun so ends so.
        if passes is not None or self._options.steps_per_epoch is not None:
            return max(0, (self._options.steps_per_epoch or passes) - finished)
        loader = self.loader()
        if isinstance(loader, SplitLoader | SeveralLoader):
            loader.load_state_dict(saved)
        batches = loader.num_batches(samples=state["epoch_samples"], batches=state["epoch_batch"])
        return -(-(batches or 0) // self._window)

    def rest_of_epoch(self, state: TrainingState) -> Iterator[Batch]:
        """Return the batches of the present epoch that are not finished.

        Raises:
            ValueError: the epoch has begun with a train split of another kind, or with another sampler.
        """
        if self._ends_passes and self._passes is not None and state.epoch_batch == 0:
            logger.info(
                "steps_per_epoch is not set any more: from epoch %d on an epoch is a pass over the train split, and "
                "what is left of pass %d is left out", state.epoch + 1, self._passes.number() + 1
            )  # fmt: skip
            self._passes.close()
            self._passes, self._ends_passes = None, False
        self._state = state
        earlier, loader = self._loader, self.loader()
        for _, part, _ in () if self._has_digests else self._begun_batches(0):
            part.leave_out_digest()
        is_resumed = len(self._restored) > 0
        if is_resumed:  # Only now, since a hook may have put another split in place, as it has when this was saved.
            mine = self._of_this_rank(self._restored)
            if state.epoch_batch == 0:
                mine = _without_replaced(mine, earlier, loader)
            is_inside = state.epoch_batch > 0 or (self._passes is not None and self._passes.num_begun() > 0)
            _check_kind(loader, mine, is_inside)
            if len(self._restored) != self._world.size:
                mine = _without(mine, "rng")  # They are those of another rank.
            loader.load_state_dict(mine)
            self._restored = []
        if self._passes is not None:
            batches = self._passes.rest_of_epoch(loader, state)
            self.epoch_batches, self.knows_last_batch = self._passes.steps_per_epoch * self._window, True
        else:
            batches, length = loader.epoch(
                0 if self._repeats else state.epoch,
                samples=state.epoch_samples,
                batches=state.epoch_batch,
                window=self._window,
            )
            self.epoch_batches = None if length is None else state.epoch_batch + length
            self.knows_last_batch = loader.marks_last
        if is_resumed:
            self._say_changes(loader, state)
        return batches

    def indices(self, state: TrainingState) -> Tensor | dict[str, Tensor] | None:
        """Return the indices of the samples in the batch that has begun; None, or no item, of a split without indices.

        Of several splits they are a dict by name.
        """
        num_finished = state.epoch_batch if self._passes is None else self._passes.num_begun() - 1
        found = {name: loader.indices_after(num - 1) for name, loader, num in self._begun_batches(num_finished + 1)}
        return found if isinstance(self._loader, SeveralLoader) else found.get("")

    def leave_out_digests(self) -> None:
        """Compute no digests of samples, because no row has them."""
        self._has_digests = False

    def take_digest(self) -> str | None:
        """Return the digest of the samples of all ranks in the batches that are finished and that no row has.

        None if the source has no indices. Every rank returns the same.
        """
        self._add_to_digest()
        taken = [(name, loader.take_digest()) for name, loader, _ in self._begun_batches(0)]
        known = [digest * number_of_name(name) for name, digest in taken if digest is not None]
        return as_text(sum(known)) if known else None

    def _add_to_digest(self) -> None:
        """Add what is finished, between two batches."""
        finished = self._state.epoch_batch if self._passes is None else self._passes.num_begun()
        for _, loader, number in self._begun_batches(finished):
            loader.add_to_digest(number)

    def _begun_batches(self, num_begun: int) -> list[tuple[str, SplitLoader, int]]:
        """Return the splits with indices: the name ("" of the only one), the loader, and how many batches have begun.

        Args:
            num_begun: that number of the split that ends the epoch.
        """
        if isinstance(self._loader, SplitLoader):
            return [("", self._loader, num_begun)]
        if not isinstance(self._loader, SeveralLoader):
            return []
        others = self._loader.others
        return [
            (name, loader, others[name].num_batches if name in others else num_begun)
            for name, loader in self._loader.loaders.items()
            if isinstance(loader, SplitLoader)
        ]

    def position(self, state: TrainingState, window_start: int) -> tuple[TrainingState, int, int | None]:
        """Return counters, the last boundary and the length of the epoch, by which a part of the epoch is measured.

        They are what is given and `epoch_batches`; with `steps_per_epoch` all three count steps in place of batches,
        because the number of batches is not known.

        Args:
            state: the counters at a boundary.
            window_start: `epoch_batch` at the boundary before it.
        """
        if self._passes is None:
            return state, window_start, self.epoch_batches
        steps = self._passes.steps
        return dataclasses.replace(state, epoch_batch=steps), steps - 1, self._passes.steps_per_epoch

    @property
    def batches_per_position(self) -> int:
        """How much of what `position` counts an accumulation window has, at most."""
        return self._window if self._passes is None else 1

    def is_at_boundary(self, state: TrainingState) -> bool:
        """Return whether no accumulation window has begun; called while no batch is in use.

        It is unknown of a loader with a state of its own, which has read what could not be given.
        """
        if self._loader is not None and self._loader.takes_state():
            return False
        finished = state.epoch_batch if self._passes is None else self._passes.num_begun()
        return finished % self._window == 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the loader has on this rank, what the split is, and the position in the passes."""
        own: dict[str, Any] = {}
        if self._loader is not None:
            self._add_to_digest()
            own = {**self._loader.state_dict(), "source": _in_words(self._loader)}
        if self._restored:  # No epoch has begun since.
            own = {name: state for name, state in self._of_this_rank(self._restored).items() if name != "passes"}
        return own if self._passes is None else {**own, "passes": self._passes.state_dict()}

    def load_ranks(self, by_rank: list[dict[str, Any]], world: World) -> None:
        """Restore the position in the passes, and keep the state of the loader for `rest_of_epoch`.

        Args:
            by_rank: the states of all ranks that have saved.
            world: the ranks of now.
        """
        self._restored = by_rank
        mine = self._of_this_rank(by_rank)
        if "passes" in mine and self._passes is None:  # An epoch that has begun is finished with as many steps.
            self._passes = PassReader(mine["passes"]["steps_per_epoch"], self._window)
            self._ends_passes = True
        if self._passes is not None and "passes" in mine:
            self._passes.load_state_dict(mine["passes"])

    def _of_this_rank(self, by_rank: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the state of this rank; if another number of ranks has saved, that of rank 0."""
        if not by_rank:
            return {}
        return by_rank[self._world.rank if len(by_rank) == self._world.size else 0]

    def _check_number_of_ranks(self) -> None:
        saved, now = len(self._restored), self._world.size
        states = [part for state in self._restored for part in (state, *state.get("parts", {}).values())]
        if saved != now and any("loader" in state for state in states):
            raise ValueError(
                f"the checkpoint has the states of the train split's loader on {saved} rank{'s' * (saved > 1)}, which "
                f"{now} cannot take over: no state says what the other ranks have read. Resume with {saved} "
                f"process{'es' * (saved > 1)}, or start a new training from the weights (init_from)"
            )

    def _say_changes(self, loader: Loader, state: TrainingState) -> None:
        """Log what the train split has otherwise than the epoch that is resumed."""
        epoch = ("epoch", state.epoch) if self._passes is None else ("pass", self._passes.number())
        found = [("train", loader, *epoch)]
        if isinstance(loader, SeveralLoader):
            passes = {name: ("pass", passes.number) for name, passes in loader.others.items()}
            found = [(f"train/{name}", part, *passes.get(name, epoch)) for name, part in loader.loaders.items()]
        for name, part, unit, number in found:
            if isinstance(part, SplitLoader) and part.changes is not None:
                logger.info("%s", part.changes.text(name, unit, number + 1))

    def close(self) -> None:
        """End the epoch, or the pass, that is read, and the workers of the splits."""
        if self._loader is not None:
            self._loader.close()
        if self._passes is not None:
            self._passes.close()


class PassReader:
    """Reads a split pass after pass, and gives epochs of `steps_per_epoch` steps.

    The next epoch continues where the last one ended.

    Args:
        steps_per_epoch: steps per epoch; those that fp16 skips count.
        window: batches per accumulation window.

    Attributes:
        steps_per_epoch: as given.
        steps: the steps of the present epoch. At a boundary they are finished, as is all that is counted here.
    """

    def __init__(self, steps_per_epoch: int, window: int) -> None:
        self.steps_per_epoch, self._window = steps_per_epoch, window
        self._passes = Passes(window)
        self.steps = 0
        self._has_begun = False

    def rest_of_epoch(self, loader: Loader, state: TrainingState) -> Iterator[Batch]:
        """Return the batches of the present epoch that are not finished.

        Another loader than that of the last call is read from the present position.
        """
        if not self._has_begun:  # A new run, or one whose epochs were passes until now.
            self._has_begun = True
            self._passes.move_to(state.epoch, state.epoch_batch, state.epoch_samples)
            self.steps = -(-state.epoch_batch // self._window)
        if state.epoch_batch == 0:
            self.steps = 0
        self._passes.open(loader)
        return self._rest_of_epoch()

    def num_begun(self) -> int:
        """Return how many batches of the present pass have begun."""
        return self._passes.num_batches

    def number(self) -> int:
        """Return the index of the present pass."""
        return self._passes.number

    def close(self) -> None:
        """Let go of the pass, so that its workers end."""
        self._passes.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the pass and in the epoch."""
        return {**self._passes.state_dict(), "epoch_updates": self.steps, "steps_per_epoch": self.steps_per_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position."""
        self._passes.load_state_dict(state_dict)
        self.steps, self._has_begun = state_dict["epoch_updates"], True

    def _rest_of_epoch(self) -> Iterator[Batch]:
        while self.steps < self.steps_per_epoch:
            data, size, samples, loss_weight, completes_step, _ = self._passes.read()
            self._passes.count(samples)
            self.steps += completes_step
            yield data, size, samples, loss_weight, completes_step, self.steps == self.steps_per_epoch


def _without(saved: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return what a loader has saved, and those of several splits, without some of it."""
    parts = {name: _without(part, *names) for name, part in saved.get("parts", {}).items()}
    return {name: value for name, value in saved.items() if name not in names} | ({"parts": parts} if parts else {})


def _without_replaced(saved: dict[str, Any], earlier: Loader | None, now: Loader) -> dict[str, Any]:
    """Return what was saved at the end of an epoch without what belongs to splits that a hook has replaced since.

    Those that it puts in place take effect from this epoch on, also within a pass.
    """
    if not isinstance(now, SeveralLoader) or "parts" not in saved:
        return saved if now is earlier else _without(saved, "begun", "source")
    before: Mapping[str, Loader] = earlier.loaders if isinstance(earlier, SeveralLoader) else {}
    parts = {
        name: part if now.loaders.get(name) is before.get(name) else _without(part, "begun", "source")
        for name, part in saved["parts"].items()
    }
    return {**saved, "parts": parts}


def _check_kind(loader: Loader, saved: Mapping[str, Any], is_inside: bool, phase: str = "train") -> None:
    """Raise a ValueError if a position inside of an epoch, or of a pass, was counted otherwise than now.

    Args:
        loader: that of now.
        saved: what `state_dict` has returned.
        is_inside: whether an epoch, or a pass over the split, has begun.
        phase: "train", or "train/labelled" of several splits.
    """
    parts = saved.get("parts", {})
    is_same = isinstance(loader, SplitLoader) == ("begun" in saved)
    if isinstance(loader, SeveralLoader):
        is_same = parts.keys() == loader.loaders.keys()
        for name in parts.keys() & loader.loaders.keys():
            is_inside_pass = parts[name].get("pass_batches", is_inside) > 0
            _check_kind(loader.loaders[name], parts[name], is_inside_pass, f"train/{name}")
    elif parts:
        is_same = False
    if is_inside and "source" in saved and not is_same:
        raise ValueError(
            f"the {phase} split was {saved['source']} when the epoch began, and is {_in_words(loader)} now, which "
            "counts its positions otherwise: samples would be seen twice or missed. Put it back until the epoch has "
            "ended, or start a new run from these weights (init_from)"
        )


def _in_words(loader: Loader) -> str:
    """Return what a loader reads, for errors."""
    return f"a dict of {', '.join(loader.loaders)}" if isinstance(loader, SeveralLoader) else in_words(loader.source)
