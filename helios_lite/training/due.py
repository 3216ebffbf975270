"""When a validation or a checkpoint is due, and when a limit is reached.

Pure arithmetic on counters and options; standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from helios_lite.state import TrainingState

if TYPE_CHECKING:
    from helios_lite.options import Options


def monitored_score(metrics: Mapping[str, float], monitor: str | Sequence[str]) -> float:
    """Return the metric that `monitor` names, or the sum of several.

    Raises:
        ValueError: a name is not one of the metrics; the message lists them.
    """
    names = [monitor] if isinstance(monitor, str) else list(monitor)
    for name in names:
        if name not in metrics:
            raise ValueError(f"monitor={name!r} is not a metric of the validation, which has {sorted(metrics)}")
    return sum(metrics[name] for name in names)


def has_improved(score: float, best: float | None, mode: str, min_delta: float) -> bool:
    """Return whether `score` is better than `best` by more than `min_delta`.

    NaN and the infinities are never better; any other number is better than None.
    """
    if not math.isfinite(score):
        return False
    if best is None:
        return True
    return score < best - min_delta if mode == "min" else score > best + min_delta


def validation_due(
    state: TrainingState, options: Options, *, window_start: int, epoch_batches: int | None, epoch_complete: bool
) -> bool:
    """Return whether a validation is due at this boundary; never twice at one step.

    Args:
        state: the counters, which include the last accumulation window.
        options: the trainer.
        window_start: `state.epoch_batch` at the previous boundary.
        epoch_batches: number of micro-batches in the epoch, None if unknown.
        epoch_complete: whether the epoch has no batch left.
    """
    every_epochs, every_steps = options.valid_every_epochs, options.valid_every_steps
    if state.validated_step == state.step:
        return False
    if every_steps is not None and state.step > 0 and state.step % every_steps == 0:
        return True
    if every_epochs is None:
        return False
    if every_epochs >= 1:
        return epoch_complete and (state.epoch + 1) % int(every_epochs) == 0
    part = part_of_epoch(every_epochs, epoch_batches)
    return state.epoch_batch // part > window_start // part


def part_of_epoch(every_epochs: float, epoch_batches: int | None) -> Fraction:
    """Return the number of batches after which `valid_every_epochs`, a part of an epoch, asks for a validation.

    Raises:
        ValueError: the number of batches in the epoch is unknown.
    """
    if epoch_batches is None:
        raise ValueError(f"valid_every_epochs={every_epochs!r} needs a train split whose length is known")
    # Rational arithmetic is exact: 1/3 of an epoch of 10 batches must not drift by rounding.
    # A fraction below a billionth would become 0; it is below a batch, and so due at every boundary, as it is.
    return (Fraction(every_epochs).limit_denominator(10**9) or Fraction(every_epochs)) * epoch_batches


def save_due(state: TrainingState, options: Options, seconds_since: float) -> bool:
    """Return whether a periodic checkpoint is due at this boundary.

    Args:
        state: the counters.
        options: the trainer.
        seconds_since: seconds since the last checkpoint, or since the start.
    """
    every_epochs, every_steps, every_minutes = (
        options.save_every_epochs,
        options.save_every_steps,
        options.save_every_minutes,
    )
    at_epoch_end = state.epoch_batch == 0
    return options.keep_last != 0 and (
        (every_epochs is not None and at_epoch_end and state.epoch % every_epochs == 0)
        or (every_steps is not None and state.step > 0 and state.step % every_steps == 0)
        or (every_minutes is not None and seconds_since >= 60 * every_minutes)
    )


def next_due(step: int, *periods: int | None, limit: int | None) -> float:
    """Return the next update that completes one of the periods or reaches the limit; infinity without any."""
    steps = [step + period - step % period for period in periods if period is not None]
    return min([*steps, *([] if limit is None else [limit])], default=math.inf)


def limit_reached(state: TrainingState, options: Options, seconds: float) -> str | None:
    """Return the option that ends the run at these counters, None if training continues.

    It depends on the counters and the present options only, so that a finished run continues if its limit was raised.

    Args:
        state: the counters.
        options: the trainer.
        seconds: the seconds of training that all ranks agree on.
    """
    if options.fast_dev_run:
        return "fast_dev_run" if state.step > 0 else None
    if options.max_epochs is not None and state.epoch >= options.max_epochs:
        return "max_epochs"
    if options.max_steps is not None and state.step >= options.max_steps:
        return "max_steps"
    if options.max_minutes is not None and seconds >= 60 * options.max_minutes:
        return "max_minutes"
    if options.patience is not None and state.early_stop_count >= options.patience:
        return "patience"
    return None
