"""When is a score better, a validation or a checkpoint due, a run over?

Pure arithmetic on counters; standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from helios_lite.state import TrainingState


def monitored_score(metrics: Mapping[str, float], monitor: str | Sequence[str]) -> float:
    """Return the metric that `monitor` names, or the sum of several.

    Raises:
        ValueError: a name is not among the metrics; the message lists those that are.
    """
    names = [monitor] if isinstance(monitor, str) else list(monitor)
    for name in names:
        if name not in metrics:
            raise ValueError(f"monitor={name!r} is not a metric of the validation, which has {sorted(metrics)}")
    return sum(metrics[name] for name in names)


def has_improved(score: float, best: float | None, mode: str, min_delta: float) -> bool:
    """Say whether `score` beats `best` by more than `min_delta`. NaN never does; any number beats None."""
    if math.isnan(score):
        return False
    if best is None:
        return True
    return score < best - min_delta if mode == "min" else score > best + min_delta


def validation_due(
    state: TrainingState,
    *,
    window_start: int,
    epoch_batches: int | None,
    epoch_complete: bool,
    every_epochs: float | None,
    every_steps: int | None,
) -> bool:
    """Say whether a validation belongs at this boundary; never twice at one step.

    Args:
        state: the counters, of which the last window has just been counted.
        window_start: `state.epoch_batch` at the boundary before this one.
        epoch_batches: micro-batches in the whole epoch, None if nobody knows.
        epoch_complete: whether the epoch has no batch left.
        every_epochs: a whole number of epochs, or a fraction of one (0.25 = four times an epoch).
        every_steps: updates between two validations.
    """
    if state.validated_step == state.step:
        return False
    if every_steps is not None and state.step > 0 and state.step % every_steps == 0:
        return True
    if every_epochs is None:
        return False
    if every_epochs >= 1:
        return epoch_complete and (state.epoch + 1) % int(every_epochs) == 0
    if epoch_batches is None:
        raise ValueError(f"valid_every_epochs={every_epochs!r} needs a train split whose length is known")
    # Exact rational arithmetic: 1/3 of an epoch of 10 batches must not drift with floating point.
    part = Fraction(every_epochs).limit_denominator(10**9) * epoch_batches
    return state.epoch_batch // part > window_start // part


def save_due(
    state: TrainingState,
    *,
    seconds_since: float,
    every_epochs: int | None,
    every_steps: int | None,
    every_minutes: float | None,
) -> bool:
    """Say whether a periodic checkpoint belongs at this boundary.

    Args:
        state: the counters.
        seconds_since: time since the last checkpoint, or the start.
        every_epochs: epochs between two checkpoints.
        every_steps: updates between two checkpoints.
        every_minutes: minutes between two checkpoints.
    """
    at_epoch_end = state.epoch_batch == 0
    return (
        (every_epochs is not None and at_epoch_end and state.epoch % every_epochs == 0)
        or (every_steps is not None and state.step > 0 and state.step % every_steps == 0)
        or (every_minutes is not None and seconds_since >= 60 * every_minutes)
    )


def next_due(step: int, *periods: int | None, limit: int | None) -> float:
    """Return the first update after `step` that completes one of the periods or reaches the limit; inf without any."""
    steps = [step + period - step % period for period in periods if period is not None]
    return min([*steps, *([] if limit is None else [limit])], default=math.inf)


def limit_reached(
    state: TrainingState,
    *,
    max_epochs: int | None,
    max_steps: int | None,
    max_minutes: float | None,
    patience: int | None,
) -> str | None:
    """Return the name of the limit that the counters have reached, or None: the run goes on.

    A function of the counters and today's options only, so a finished run whose limit was raised goes on.
    """
    if max_epochs is not None and state.epoch >= max_epochs:
        return "max_epochs"
    if max_steps is not None and state.step >= max_steps:
        return "max_steps"
    if max_minutes is not None and state.seconds >= 60 * max_minutes:
        return "max_minutes"
    if patience is not None and state.early_stop_count >= patience:
        return "patience"
    return None
