"""A call of `fit`."""

from helios_lite.processes.signals import GracefulShutdown
from helios_lite.state import FitResult
from helios_lite.training.loop import Training
from helios_lite.training.session import Session


def train(session: Session, shutdown: GracefulShutdown) -> FitResult:
    """Train, or resume a training, and return its result. Call on every rank."""
    return Training(session, shutdown).run()
