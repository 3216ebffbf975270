"""Decides when a run stops: by limits, signals and `should_training_stop`; shares what hooks and signals ask for."""

from __future__ import annotations

import functools
from collections import deque
from signal import Signals

from helios_lite.planning.due import limit_reached, next_due
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.state import TrainingState
from helios_lite.training.clock import Clock
from helios_lite.training.session import Session

_SECONDS_BETWEEN_EXCHANGES = 0.5
_REQUESTS = ("save", "validation", "stop")


class StopCoordinator:
    """Makes one stop decision that all ranks share.

    A signal, a request to stop and the elapsed time are known to single ranks; `sync` shares them. Limits are computed
    from counters that are equal on all ranks.

    Attributes:
        reason: "should_training_stop" or "interrupted", shared by all ranks at the last `sync`, or None.
    """

    def __init__(self, session: Session, state: TrainingState, clock: Clock, shutdown: GracefulShutdown) -> None:
        self._session, self._state, self._clock, self._shutdown = session, state, clock, shutdown
        self.reason: str | None = None
        # By a hook on any rank, or a signal.
        self._save_requested = self._validation_requested = self._stop_requested = False
        options = session.options
        self._uses_time = options.max_minutes is not None or options.save_every_minutes is not None
        self._requests = deque[str]()  # Of hooks on this rank, in the thread that writes checkpoints too.
        session.context.take_requests(self._request)
        self._start = 0
        self._synced_step, self._synced_seconds, self._next_sync_step = 0, 0.0, 0

    def begin(self) -> None:
        """Note where training begins, after a checkpoint has been loaded."""
        self._start = self._state.step

    @functools.cached_property
    def polls_hooks(self) -> bool:
        """Whether the model or a callback has `should_training_stop`, so that ranks communicate at every step.

        It is read after `setup`, in which callbacks may change.
        """
        return self._session.hooks.is_overridden("should_training_stop")

    def poll_hooks(self) -> None:
        """Ask the model and the callbacks on this rank whether to stop, if one has `should_training_stop`."""
        if self.polls_hooks and self._session.hooks.should_training_stop():
            self._requests.append("stop")

    def _request(self, what: str) -> None:
        """Note what a hook asks for: "stop", "save" or "validation". The next boundary looks at it."""
        self._requests.append(what)
        self._shutdown.wake()

    def _take_requests(self) -> list[bool]:
        """Return which of `_REQUESTS` hooks of this rank have made, SIGUSR1 included; none is lost or given twice."""
        asked = {"save"} if self._shutdown.take_save_request() else set[str]()
        while self._requests:
            asked.add(self._requests.popleft())
        return [what in asked for what in _REQUESTS]

    def sync(self, now: bool = False) -> None:
        """Share what only some ranks know: received signals, requests of hooks, the elapsed time. Call on every rank.

        Ranks communicate about twice a second, which costs nothing; at every step if the model or a callback has
        `should_training_stop`. Each rank computes the step of the next exchange from the same values, so that all
        agree on it without asking.

        Args:
            now: communicate in any case.
        """
        state, world, shutdown = self._state, self._session.world, self._shutdown
        if world.size == 1:
            signal = shutdown.received
            save, validation, stop = self._take_requests()
            if self._uses_time:
                self._clock.tick()
                self._clock.share(state.seconds)
        else:
            if not now and not self.polls_hooks and state.step < self._next_sync_step:
                return
            self._clock.tick()
            own = [shutdown.received or 0, state.seconds, *self._take_requests()]
            number, seconds, *shared = world.all_reduce_max(own)
            self._clock.share(seconds)
            signal = Signals(int(number)) if number else None
            save, validation, stop = map(bool, shared)
            seconds_per_step = (state.seconds - self._synced_seconds) / max(1, state.step - self._synced_step)
            self._synced_step, self._synced_seconds = state.step, state.seconds
            self._next_sync_step = state.step + max(1, int(_SECONDS_BETWEEN_EXCHANGES / max(seconds_per_step, 1e-6)))
        self._save_requested |= save
        self._validation_requested |= validation
        self._stop_requested |= stop
        if signal is not None:  # Otherwise a signal that has just come here would be lost.
            shutdown.receive(signal)
        self.reason = "should_training_stop" if self._stop_requested else "interrupted" if signal is not None else None

    def take_save_request(self) -> bool:
        """Return whether a rank was asked to save, once per `sync` that found it. Call on every rank."""
        requested, self._save_requested = self._save_requested, False
        return requested

    def take_validation_request(self) -> bool:
        """Return whether a hook has asked for a validation, once per `sync` that found it. Call on every rank."""
        requested, self._validation_requested = self._validation_requested, False
        return requested

    def limit_reached(self) -> str | None:
        """Return the option that ends the run at the present counters, None if training continues."""
        return limit_reached(self._state, self._session.options, self._clock.shared_seconds, self._start)

    def stop_reason(self) -> str | None:
        """Return why the run stops at this boundary, None if training continues.

        `should_training_stop` takes precedence over limits, and limits over signals.
        """
        if self.reason == "should_training_stop":
            return self.reason
        return self.limit_reached() or self.reason

    def next_check(self) -> float:
        """Return the next step at which something may be due: an exchange, a validation, a checkpoint, the end."""
        options, step = self._session.options, self._state.step
        if self._uses_time or options.fast_dev_run or self.polls_hooks:
            return step + 1
        due = next_due(step, options.valid_every_steps, options.save_every_steps, limit=options.max_steps)
        return due if self._session.world.size == 1 else min(due, self._next_sync_step)
