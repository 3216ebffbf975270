"""What a checkpoint of a training holds, when one is due, and how its parts are loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch

from helios_lite.checkpoints.files import FORMAT_VERSION
from helios_lite.checkpoints.sharded_content import state_names
from helios_lite.loading.train_data import TrainData, join_ranks, split_ranks
from helios_lite.metrics.score_tables import ScoreTables
from helios_lite.model import Model
from helios_lite.model_internals.attributes import stateful_parts
from helios_lite.model_internals.run_context import RunContext
from helios_lite.processes import rng
from helios_lite.state import TrainingState
from helios_lite.training.clock import Clock
from helios_lite.training.due import save_due
from helios_lite.training.monitor import Monitor
from helios_lite.training.session import Session
from helios_lite.training.training_log import TrainingLog
from helios_lite.version import __version__

logger = logging.getLogger("helios_lite")


class Stateful(Protocol):
    """A part of a training with a state that a checkpoint holds: tensors and plain containers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state. Called on every rank; that of rank 0 is saved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state. Called on every rank."""


class Checkpointer:
    """Saves a training, and loads what was saved.

    A checkpoint holds the state that each of `parts` has on rank 0; they are restored in that order, on every rank. For
    each of `per_rank` it holds the states of all ranks, as a list, and for the data what `join_ranks` makes of it.

    Attributes:
        last_checkpoint: the file that was written or resumed from last.
        resumed_from: the file that this run was resumed from.
    """

    def __init__(
        self, session: Session, state: TrainingState, clock: Clock, monitor: Monitor, log: TrainingLog, data: TrainData
    ) -> None:
        self._session, self._state, self._clock, self._monitor, self._log = session, state, clock, monitor, log
        self.parts: dict[str, Stateful] = {
            "state": state,
            "model": session.model,
            "precision": session.context.precision,
            "callbacks": session.hooks,
            "metrics": _MetricsState(monitor, log, session.context, session.model._tables),
        }
        self._data = data
        self.per_rank: dict[str, Stateful] = {
            "rng": _RngState(session.device),
            "pending": session.metrics,
            "pending_losses": _PendingLosses(session.model._tables),
        }
        self._rng_to_restore: dict[str, Any] | None = None
        self.last_checkpoint: Path | None = None
        self.resumed_from: Path | None = None
        self._saved_at: tuple[int, int] | None = None
        self._saved_seconds = 0.0

    def due(self) -> bool:
        """Return whether a checkpoint is due at this boundary, and the model allows it. Call on every rank."""
        session, state = self._session, self._state
        if session.checkpoints is None or self._saved_at == (state.step, state.epoch):
            return False
        due = save_due(state, session.options, state.seconds - self._saved_seconds)
        if state.validated_step == state.step:
            kept = session.world.is_main and session.checkpoints.would_be_kept(*self._monitor.current())
            due = session.world.broadcast(due or kept)
        if due and type(session.model).should_save_checkpoint is not Model.should_save_checkpoint:
            due = session.world.broadcast(session.model.should_save_checkpoint())
        return due

    def save(self) -> None:
        """Save the current state. Call on every rank."""
        session, state = self._session, self._state
        if session.checkpoints is None:
            return
        with self._log.paused():
            session.check_checkpoint_holds_all()
            self._log.compute()  # Raises if a logged value is not finite: such a state is not saved.
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
            }
            if session.context.parallel.sharded_parameter() is not None:
                names = state_names(stateful_parts(session.model))
                self.last_checkpoint = session.checkpoints.save_sharded(content, session.world, names, **about)
            elif session.world.is_main:
                self.last_checkpoint = session.checkpoints.save(content, **about)
            logger.debug("saved %s", self.last_checkpoint)
            self._saved_at, self._saved_seconds = (state.step, state.epoch), state.seconds

    def _content(self) -> dict[str, Any]:
        """Return the content of a checkpoint. Call on every rank."""
        session = self._session
        own = {name: part.state_dict() for name, part in self.per_rank.items()}
        by_rank = session.world.gather({**own, "data": self._data.state_dict()})
        content: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "version": __version__,
            "save_name": session.model.save_name,
            **{name: part.state_dict() for name, part in self.parts.items()},
            "data": join_ranks([states["data"] for states in by_rank]),
            **{name: [states[name] for states in by_rank] for name in self.per_rank},
            "config": session.options.config(),
            "hparams": session.model.hparams,
        }
        for name in ("pending", "pending_losses"):
            content["metrics"][name] = content.pop(name)
        return content

    def load(self, path: Path, content: dict[str, Any]) -> None:
        """Continue from a checkpoint with that content. Call on every rank."""
        world = self._session.world
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
        num_saved = len(content["rng"])
        self._data.load_state_dicts(split_ranks(content["data"], num_saved))
        for name in ("pending", "pending_losses"):
            for pending in content["metrics"].get(name, [])[world.rank :: world.size]:
                self.per_rank[name].load_state_dict(pending)
        if num_saved != world.size:
            logger.info(
                "ranks: %d in the checkpoint, %d now; each takes the RNG states of its number, and one that the "
                "checkpoint does not have keeps those of a new run, so the bits differ from those of %d",
                num_saved, world.size, num_saved,
            )  # fmt: skip
        if world.rank < num_saved:
            self._rng_to_restore = content["rng"][world.rank]
        self._saved_at, self._saved_seconds = (self._state.step, self._state.epoch), self._state.seconds
        self.resumed_from = self.last_checkpoint = path

    def restore_rng(self) -> None:
        """Set the RNG states of this rank to those of the checkpoint; without effect after the first call."""
        if self._rng_to_restore is not None:
            self.per_rank["rng"].load_state_dict(self._rng_to_restore)
            self._rng_to_restore = None


class _RngState:
    """The RNG states of this rank."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        return rng.get_state(self._device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rng.set_state(state_dict, self._device)


class _PendingLosses:
    """The losses of this rank that the running losses do not have yet."""

    def __init__(self, tables: ScoreTables) -> None:
        self._tables = tables

    def state_dict(self) -> dict[str, Any]:
        return dict(self._tables.pending_losses)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tables.restore_pending_losses(state_dict)


class _MetricsState:
    """Combines the states of monitor, log, context and tables under the key "metrics" of a checkpoint."""

    def __init__(self, monitor: Monitor, log: TrainingLog, context: RunContext, tables: ScoreTables) -> None:
        self._owners: list[Stateful] = [monitor, log]
        self._context, self._tables = context, tables

    def state_dict(self) -> dict[str, Any]:
        state = {"latest": self._context.latest, "running_losses": self._tables.running_losses}
        for owner in self._owners:
            state |= owner.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._context.record(state_dict["latest"])
        # Files of earlier versions have no pending losses.
        self._tables.restore_running_losses(state_dict["running_losses"], state_dict.get("pending_losses", []))
        for owner in self._owners:
            owner.load_state_dict(state_dict)
