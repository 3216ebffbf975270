"""A call of `plan`: what a training would do."""

from helios_lite.calls.launching import Call, run
from helios_lite.display.plan import Plan
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.training.loop import Training
from helios_lite.training.session import Session


def plan(call: Call) -> Plan:
    """Return the plan of a training; see `Trainer.plan`."""
    earlier = call.model._context
    found = run(call, _plan)
    call.model._attach(earlier)  # It was set up to be looked at: `fit` does it anew, without a warning.
    return found


def _plan(session: Session, shutdown: GracefulShutdown) -> Plan:
    """Return the plan. Call on every rank."""
    return Training(session, shutdown).plan()
