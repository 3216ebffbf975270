"""A call of `plan`: what a training would do."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

from helios_lite.calls.launching import Call, run
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.display.plan import Plan
from helios_lite.model_internals.attributes import stateful_parts
from helios_lite.planning.training_plan import checkpoint_bytes
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.training.loop import Training
from helios_lite.training.session import Session


def plan(call: Call) -> Plan:
    """Return the plan of a training; see `Trainer.plan`."""
    # Copies: the networks of the model, and what callbacks have seen, stay as they are.
    options = dataclasses.replace(call.options, callbacks=[copy.copy(each) for each in call.options.callbacks])
    return run(dataclasses.replace(call, options=options, model=call.model._as_new()), _plan)


def _plan(session: Session, shutdown: GracefulShutdown) -> Plan:
    """Return what a training would do, without doing it. Call on every rank."""
    training = Training(session, shutdown)
    changes: list[str] = []
    with contextlib.closing(session.train_data):
        try:
            where = ", in the next free run folder" if session.options.resume == "new" else ""
            start, *changes = training.prepare(is_tried=True).said or [f"begins a new run{where}"]
            if not training.monitor.has_begun and (reason := training.stop.limit_reached()) is not None:
                start = training.finished_before(reason)
        except (ValueError, FileExistsError, FileNotFoundError, CheckpointError) as error:
            if training.planning is None:
                raise
            start = f"raises {type(error).__name__}: {error}"
        assert training.planning is not None
        found = training.planning.plan(
            training.state, validates=bool(training.valid_names), start=start, changes=changes
        )
        return dataclasses.replace(found, checkpoint_bytes=checkpoint_bytes(list(stateful_parts(session.model))))
