"""What a checkpoint of a training holds, when one is due, and how its parts are loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from helios_lite.changes.added_groups import added_groups
from helios_lite.checkpoints.files import FORMAT_VERSION, to_serializable
from helios_lite.checkpoints.sharded_content import state_names, take_sharded
from helios_lite.metrics.metric_objects import (
    copied_metric,
    has_seen,
    is_of_torchmetrics,
    merged,
    restore,
    state_of,
)
from helios_lite.model import Model
from helios_lite.model_internals.attributes import is_stateful, metric_objects, stateful_parts
from helios_lite.model_internals.evaluation_weights import evaluation_state_of
from helios_lite.planning.due import save_due, steps_until_save
from helios_lite.processes import rng
from helios_lite.processes.devices import DeviceMover
from helios_lite.processes.world import World
from helios_lite.state import TrainingState
from helios_lite.training.clock import Clock
from helios_lite.training.monitor import Monitor
from helios_lite.training.session import Session
from helios_lite.training.training_log import TrainingLog
from helios_lite.version import __version__

logger = logging.getLogger("helios_lite")
_LONGEST_SECONDS = 1800  # Between two checkpoints.
_SECONDS_TO_MEASURE = 60  # The first steps are slower.


class Stateful(Protocol):
    """A part of a training whose state is the same on every rank: tensors and plain containers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state. Called on every rank; that of rank 0 is saved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state. Called on every rank."""


class StatefulPerRank(Protocol):
    """A part of a training that has a state of its own on every rank: tensors and plain containers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank. Called on every rank; all are saved."""

    def load_ranks(self, by_rank: list[dict[str, Any]], world: World) -> None:
        """Restore the state of this rank from those of all ranks that have saved, by rank. Called on every rank.

        Another number of ranks may have saved.
        """


class Checkpointer:
    """Saves a training, and loads what was saved.

    A checkpoint holds the state that each of `parts` has on rank 0, and under "ranks" for every rank the state that
    each of `per_rank` has there. They are restored in that order, on every rank.

    Attributes:
        last_checkpoint: the file that was written or resumed from last.
        resumed_from: the file that this run was resumed from.
    """

    def __init__(
        self, session: Session, state: TrainingState, clock: Clock, monitor: Monitor, log: TrainingLog
    ) -> None:
        self._session, self._state, self._clock, self._monitor, self._log = session, state, clock, monitor, log
        self._rng = _RngState(session.device)
        self.parts: dict[str, Stateful] = {
            "state": state,
            "model": session.model,
            "precision": session.context.precision,
            "parallel": session.context.parallel,
            "callbacks": session.hooks,
            "monitor": monitor,
            "metrics": log,
            "planned": session.planned,
        }
        if is_stateful(session.datamodule):
            self.parts["datamodule"] = cast(Stateful, session.datamodule)
        self.per_rank: dict[str, StatefulPerRank] = {
            "rng": self._rng,
            "data": session.train_data,
            "pending": session.metrics,
            "losses": session.model._tables,
            "metric_objects": _MetricObjects(session),
        }
        self.last_checkpoint: Path | None = None
        self.resumed_from: Path | None = None
        self._saved_at: tuple[int, int] | None = None
        self._saved_seconds = 0.0
        self._start = (0, 0.0)  # The step and the seconds at which this call began.
        self._safe_seconds = 0.0  # Of this rank, up to the last checkpoint.
        self._has_warned = False

    def due(self) -> bool:
        """Return whether a checkpoint is due at this boundary, and the model allows it. Call on every rank."""
        session, state = self._session, self._state
        if session.checkpoints is None or self._saved_at == (state.step, state.epoch):
            return False
        due = save_due(state, session.options, self._clock.shared_seconds - self._saved_seconds)
        if self._monitor.is_current:
            kept = session.world.is_main and session.checkpoints.would_be_kept(*self._monitor.current())
            due = session.world.broadcast(due or kept)
        if due and type(session.model).should_save_checkpoint is not Model.should_save_checkpoint:
            due = session.world.broadcast(session.model.should_save_checkpoint())
        return due

    def save(self, *, deletes: bool = True) -> None:
        """Save the current state. Call on every rank.

        Args:
            deletes: whether checkpoints that are not to be kept are deleted.
        """
        session, state = self._session, self._state
        if session.checkpoints is None:
            return
        with self._log.paused():
            session.check_checkpoint_holds_all()
            self._log.compute(with_objects=False)  # Raises if a logged value is not finite: such a state is not saved.
            self._clock.tick()
            content = self._content()
            score, improved = self._monitor.current()
            about: dict[str, Any] = {
                "epoch": state.epoch,
                "step": state.step,
                "append_metadata": session.model.append_metadata_to_chkpt_name,
                "score": score,
                "improved": improved,
                "protect": self.resumed_from,
                "deletes": deletes,
            }
            if session.context.parallel.sharded_parameter() is not None:
                names = state_names(stateful_parts(session.model))
                self.last_checkpoint = session.checkpoints.save_sharded(content, session.world, names, **about)
            elif session.world.is_main:
                self.last_checkpoint = session.checkpoints.save(content, **about)
            if session.compiled is not None:
                session.compiled.save()
            logger.debug("saved %s", self.last_checkpoint)
            self._saved_at, self._saved_seconds = (state.step, state.epoch), self._clock.shared_seconds
            self._safe_seconds = state.seconds

    def check_states(self) -> None:
        """Check before the first step that a checkpoint can hold all states. Call on every rank; no tensor is copied.

        Raises:
            TypeError: it cannot; the message has the path of the value, such as "pool.state_dict()['items'][3]".
        """
        if self._session.checkpoints is None:
            return
        has_shards = self._session.context.parallel.has_shards
        try:
            for where, state in self._states_of_users():
                to_serializable(take_sharded(state, {})[0] if has_shards else state, where)
        except Exception as error:
            error.add_note("found before the first step, from which on a checkpoint may be saved at any time")
            raise

    def _states_of_users(self) -> Iterator[tuple[str, Any]]:
        """Yield the states that classes of the user may have made, each with the expression that it comes from."""
        session = self._session
        model, datamodule = session.model, self.parts.get("datamodule")
        if type(model).state_dict is Model.state_dict:
            yield from ((f"{name}.state_dict()", part.state_dict()) for name, part in stateful_parts(model))
        else:
            yield f"{type(model).__name__}.state_dict()", model.state_dict()
        yield from ((f"{name}.state_dict()", state) for name, state in session.hooks.state_dict().items())
        if datamodule is not None:
            yield f"{type(datamodule).__name__}.state_dict()", datamodule.state_dict()
        data = self.per_rank["data"].state_dict()
        yield "train.state_dict()", data.get("loader")
        yield from (
            (f"train[{name!r}].state_dict()", part.get("loader")) for name, part in data.get("parts", {}).items()
        )
        objects = self.per_rank["metric_objects"].state_dict()["states"]
        yield from ((f"the state of {name}", state) for name, state in objects.items())

    def warn_of_rare_saves(self) -> None:
        """Say once if a kill would lose more than half an hour of training. Called on rank 0 after a row."""
        session, options, state = self._session, self._session.options, self._state
        steps, seconds = state.step - self._start[0], state.seconds - self._start[1]
        if self._has_warned or session.checkpoints is None or seconds < _SECONDS_TO_MEASURE:
            return
        until = steps_until_save(state, options, session.planned.per_epoch(), session.planned.known_total())
        longest = state.seconds - self._safe_seconds + until * seconds / max(1, steps)
        if options.save_every_minutes is not None:
            longest = min(longest, 60 * options.save_every_minutes)
        if longest > _LONGEST_SECONDS:
            self._has_warned = True
            minutes = "an unknown number of" if math.isinf(longest) else f"about {longest / 60:,.0f}"
            logger.warning(
                "there will be %s minutes of training between two checkpoints, which a kill would lose; to save more "
                "often set save_every_minutes, such as 10",
                minutes,
            )

    def record_final_score(self) -> None:
        """Note the score of the last checkpoint, which was validated after it had been written. Rank 0 does it."""
        checkpoints, path = self._session.checkpoints, self.last_checkpoint
        if checkpoints is not None and path is not None and self._session.world.is_main:
            checkpoints.set_final_score(path, *self._monitor.current())

    def decided(self) -> bool | None:
        """Return whether an earlier start has found the final weights to be the best, None if none has compared them.

        Call on every rank.
        """
        session, path = self._session, self.last_checkpoint
        found = None
        if session.world.is_main and session.checkpoints is not None and path is not None:
            found = session.checkpoints.final_decision(path)
        return session.world.broadcast(found)

    def forget_final_score(self) -> None:
        """Forget what an earlier start noted so, when training goes on from there. Rank 0 does it."""
        checkpoints, path = self._session.checkpoints, self.resumed_from
        if checkpoints is None or path is None or self._monitor.is_current:
            return
        if self._session.world.is_main:
            checkpoints.forget_final_score(path)

    def _content(self) -> dict[str, Any]:
        """Return the content of a checkpoint. Call on every rank."""
        session, to_cpu = self._session, DeviceMover(torch.device("cpu"))
        return {
            "format": FORMAT_VERSION,
            "version": __version__,
            "save_name": session.model.save_name,
            **{name: part.state_dict() for name, part in self.parts.items()},
            "evaluation_weights": evaluation_state_of(session.model),
            # From the CPU: a tensor on a device would be sent to that device of rank 0.
            "ranks": session.world.gather(to_cpu({name: part.state_dict() for name, part in self.per_rank.items()})),
            "config": session.options.config(),
            "hparams": session.model.hparams,
            "tables": session.tables,
            "added_groups": added_groups(stateful_parts(session.model), session.tables["made"]),
            "place_of_last_row": self._log.place_of_last_row(),
        }

    def load(self, path: Path, content: dict[str, Any]) -> None:
        """Continue from a checkpoint with that content. Call on every rank."""
        world, ranks = self._session.world, content["ranks"]
        self._session.metrics.reset()  # What `setup` has logged is in the checkpoint.
        for name, part in self.parts.items():
            if name != "datamodule" or name in content:  # It had no state when that was saved.
                part.load_state_dict(content[name])
        self._log.load_place_of_last_row(content.get("place_of_last_row"))
        for name, rank_part in self.per_rank.items():
            rank_part.load_ranks([rank[name] for rank in ranks], world)
        if len(ranks) != world.size:
            logger.info(
                "ranks: %d before, %d now; each takes the RNG states of its number, and a new one begins with its own, "
                "so the bits differ from those of a run that stays with %d",
                len(ranks), world.size, len(ranks),
            )  # fmt: skip
        self._clock.restart()
        self._start, self._safe_seconds = (self._state.step, self._state.seconds), self._state.seconds
        # What an error has ended comes first, and may make a better checkpoint of this one.
        is_whole = not self._monitor.has_begun
        self._saved_at = (self._state.step, self._state.epoch) if is_whole else None
        self._saved_seconds = self._clock.shared_seconds
        self.resumed_from = self.last_checkpoint = path

    def restore_rng(self) -> None:
        """Set the RNG states of this rank to those of the checkpoint; without effect after the first call."""
        self._rng.restore()

    def hold_rng(self) -> None:
        """Let the next `restore_rng` set the present RNG states of this rank."""
        self._rng.hold()


class _RngState:
    """The RNG states of this rank. Those of a checkpoint are set when training goes on, after all that draws numbers.

    Args:
        device: the device of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the present states."""
        return rng.get_state(self._device)

    def load_ranks(self, by_rank: list[dict[str, Any]], world: World) -> None:
        """Keep the states of this rank for `restore`, if the checkpoint has this rank."""
        self._loaded = by_rank[world.rank] if world.rank < len(by_rank) else None

    def hold(self) -> None:
        """Keep the present states for `restore`."""
        self._loaded = self.state_dict()

    def restore(self) -> None:
        """Set the states that were kept, if there are any, and forget them."""
        if self._loaded is not None:
            rng.set_state(self._loaded, self._device)
            self._loaded = None


class _MetricObjects:
    """The metric objects of the model: what each has seen on this rank, and which of them the next row has.

    Args:
        session: the session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def state_dict(self) -> dict[str, Any]:
        """Return what they have seen, by attribute, and the attributes of those in the next row, by full name.

        Objects of torchmetrics are all there, because the model's state does not have what they have seen. Others are
        there if they are logged: that state is of rank 0, and ranks have seen different samples.
        """
        logged = self._session.metrics.objects
        objects = {
            name: metric
            for name, metric in metric_objects(self._session.model).items()
            if is_of_torchmetrics(metric) or any(metric is each for each in logged.values())
        }
        names = {id(metric): name for name, metric in objects.items()}
        return {
            "states": {name: state_of(metric) for name, metric in objects.items()},
            # Without those that others have replaced meanwhile.
            "logged": {name: names[id(metric)] for name, metric in logged.items() if id(metric) in names},
        }

    def load_ranks(self, by_rank: list[dict[str, Any]], world: World) -> None:
        """Restore the states of this rank; of a larger number of ranks it takes its part, merged."""
        objects = metric_objects(self._session.model)
        logged = {full_name: name for rank in by_rank for full_name, name in rank["logged"].items()}
        for name, metric in objects.items():
            states = [rank["states"][name] for rank in by_rank[world.rank :: world.size] if name in rank["states"]]
            if states:
                restore(metric, states[0])
            seen = [state for state in states if name in logged.values() or has_seen(state)]
            if len(seen) > 1:
                self._merge(name, metric, seen)
        for full_name, name in logged.items():
            if name in objects:
                self._session.metrics.update(full_name, objects[name], 1)

    def _merge(self, name: str, metric: Any, states: list[dict[str, Any]]) -> None:
        copies = [copied_metric(metric) for _ in states]
        for copied, state in zip(copies, states, strict=True):
            restore(copied, state)
        try:
            restore(metric, state_of(merged(name, copies)))
        except TypeError as error:
            logger.warning("%s: goes on with what one of %d ranks had seen (%s)", name, len(states), error)
