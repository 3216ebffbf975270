"""A call of `plan`: what a training would do."""

from __future__ import annotations

import contextlib
import dataclasses

from helios_lite.calls.launching import Call, run
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.display.plan import Plan
from helios_lite.model_internals.attributes import stateful_parts
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.training.loop import Training
from helios_lite.training.planning import checkpoint_bytes
from helios_lite.training.session import Session


def plan(call: Call) -> Plan:
    """Return the plan of a training; see `Trainer.plan`."""
    earlier = call.model._context
    found = run(call, _plan)
    call.model._attach(earlier)  # It was set up to be looked at: `fit` does it anew, without a warning.
    return found


def _plan(session: Session, shutdown: GracefulShutdown) -> Plan:
    """Return what a training would do, without doing it. Call on every rank."""
    training = Training(session, shutdown)
    changes: list[str] = []
    with contextlib.closing(session.train_data):
        try:
            start, *changes = training.prepare(is_tried=True).said or ["begins a new run"]
            if not training.monitor.has_begun and (reason := training.stop.limit_reached()) is not None:
                start = training.finished_before(reason)
        except (ValueError, FileExistsError, FileNotFoundError, CheckpointError) as error:
            if training.planning is None:
                raise
            start = f"raises {type(error).__name__}: {error}"
        assert training.planning is not None
        found = training.planning.plan(validates=bool(training.valid_loaders), start=start, changes=changes)
        return dataclasses.replace(found, checkpoint_bytes=checkpoint_bytes(list(stateful_parts(session.model))))
