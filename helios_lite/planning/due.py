"""When a validation or a checkpoint is due, and when a limit is reached.

Pure arithmetic on counters and options; standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from helios_lite.arguments import did_you_mean
from helios_lite.state import TrainingState

if TYPE_CHECKING:
    from helios_lite.options import Options


_MOST_STEPS = 100_000  # Of a plan: more are not counted.


def monitored_score(metrics: Mapping[str, float], monitor: str | Sequence[str], source: str = "validation") -> float:
    """Return the metric that `monitor` names, or the sum of several.

    Args:
        metrics: the metrics by full name; means over an epoch are also found as "<name>/epoch", as rows have them.
        monitor: the option.
        source: what the metrics are of, for the message.

    Raises:
        ValueError: a name is not one of the metrics; the message has the most similar one, or lists them.
    """
    names = [monitor] if isinstance(monitor, str) else list(monitor)
    found = [metrics.get(name, metrics.get(name.removesuffix("/epoch"))) for name in names]
    for name, value in zip(names, found, strict=True):
        if value is None:
            hint = did_you_mean(name, sorted(metrics))
            raise ValueError(f"monitor={name!r} is not a metric of the {source}; {hint}")
    return sum(value for value in found if value is not None)


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


def validation_steps(
    options: Options, per_epoch: int | None, total: int, epochs: tuple[int, int], done: int, batches: int | None
) -> list[int]:
    """Return the steps after which a validation is planned, with that of the final weights.

    Args:
        options: the trainer.
        per_epoch: the number of steps of an epoch, None if unknown.
        total: the planned number of steps.
        epochs: the index of an epoch, and the number of steps before it.
        done: the number of steps that are finished.
        batches: the number of what an epoch is measured by: micro-batches, or steps with `steps_per_epoch`.
    """
    every_epochs = options.valid_every_epochs
    steps = _of_epochs(every_epochs, per_epoch, total, epochs) | _multiples(options.valid_every_steps, total)
    if every_epochs is not None and every_epochs < 1 and per_epoch is not None and batches is not None:
        part, window = part_of_epoch(every_epochs, batches), options.accumulation_steps
        each = 1 if options.steps_per_epoch is not None else window  # Of what is counted, in a step.
        # At a boundary that has passed a multiple of the part.
        ends = [
            step for step in range(1, per_epoch + 1) if min(step * each, batches) // part > (step - 1) * each // part
        ]
        planned = (start + end for start in range(epochs[1], total, per_epoch) for end in ends if start + end <= total)
        steps |= set(itertools.islice(planned, _MOST_STEPS))
    has_any = every_epochs is not None or options.valid_every_steps is not None
    return sorted(step for step in steps | ({total} if has_any else set()) if step > done)


def save_steps(options: Options, per_epoch: int | None, total: int, epochs: tuple[int, int], done: int) -> list[int]:
    """Return the steps after which a checkpoint is planned, but for those by time; see `validation_steps`."""
    steps = {total}
    if options.keep_last != 0:
        steps |= _of_epochs(options.save_every_epochs, per_epoch, total, epochs)
        steps |= _multiples(options.save_every_steps, total)
    return sorted(step for step in steps if step > done)


def steps_until_save(state: TrainingState, options: Options, per_epoch: int | None, total: int | None) -> float:
    """Return the number of steps until the next checkpoint, but for those by time; infinity if none is in sight.

    Args:
        state: the counters at a boundary.
        options: the trainer.
        per_epoch: the number of steps of an epoch, None if unknown.
        total: the planned number of steps, None if unknown.
    """
    until = [] if total is None else [total - state.step]
    if options.keep_last != 0 and options.save_every_steps is not None:
        until.append(options.save_every_steps - state.step % options.save_every_steps)
    if options.keep_last != 0 and options.save_every_epochs is not None and per_epoch is not None:
        epochs = options.save_every_epochs - state.epoch % options.save_every_epochs
        until.append(epochs * per_epoch - -(-state.epoch_batch // options.accumulation_steps))
    return min(until, default=math.inf)


def _of_epochs(every: float | None, per_epoch: int | None, total: int, epochs: tuple[int, int]) -> set[int]:
    """Return the ends of every so many epochs."""
    if every is None or every < 1 or per_epoch is None:
        return set()
    epoch, before = epochs
    ends = range(before, min(total, before + _MOST_STEPS * per_epoch) + 1, per_epoch)
    return {step for number, step in enumerate(ends, epoch) if number % int(every) == 0}


def _multiples(period: int | None, total: int) -> set[int]:
    return set() if period is None else set(range(period, min(total, _MOST_STEPS * period) + 1, period))


def next_due(step: int, *periods: int | None, limit: int | None) -> float:
    """Return the next step that completes one of the periods or reaches the limit; infinity without any."""
    steps = [step + period - step % period for period in periods if period is not None]
    return min([*steps, *([] if limit is None else [limit])], default=math.inf)


def limit_reached(state: TrainingState, options: Options, seconds: float, start: int = 0) -> str | None:
    """Return the option that ends the run at these counters, None if training continues.

    It depends on the counters and the present options only, so that a finished run continues if its limit was raised.

    Args:
        state: the counters.
        options: the trainer.
        seconds: the seconds of training that all ranks agree on.
        start: the step at which this call began, after which `fast_dev_run` does its steps.
    """
    if options.fast_dev_run:
        return "fast_dev_run" if state.step >= start + options.fast_dev_run else None
    if options.max_epochs is not None and state.epoch >= options.max_epochs:
        return "max_epochs"
    if options.max_steps is not None and state.step >= options.max_steps:
        return "max_steps"
    if options.max_minutes is not None and seconds >= 60 * options.max_minutes:
        return "max_minutes"
    if options.patience is not None and state.early_stop_count >= options.patience:
        return "patience"
    return None
