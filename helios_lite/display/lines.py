"""The lines that a training leaves behind: one for each row, validation and epoch; limits in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from helios_lite.metrics.measurements import is_measured
from helios_lite.options import Options
from helios_lite.state import TrainingState

_MOST_VALUES = 6  # More metrics than these are in metrics.jsonl, but not in a line.


def log_line(state: TrainingState, options: Options, values: Mapping[str, float], done: float | None) -> str:
    """Return the line of a row: the counters, the metrics, the speed, and when the run will end.

    Args:
        state: the counters.
        options: the trainer, with its limits.
        values: the row of metrics by full name.
        done: the finished part of the run, from 0 to 1; None if unknown.
    """
    parts = [f"{_epoch(state, options)} {_step(state, options)}", _phase_text("train", values)]
    if "train/samples_per_second" in values:
        parts.append(f"{values['train/samples_per_second']:.4g} samples/s, data {values['train/data_wait']:.0%}")
    if done is not None and 0 < done < 1:
        parts.append(f"{duration(state.seconds / done * (1 - done))} left")
    return _joined(parts)


def validation_line(state: TrainingState, options: Options, values: Mapping[str, float], is_best: bool) -> str:
    """Return the line of a validation."""
    valid = f"valid {_phase_text('valid', values)}"
    return _joined([f"{_epoch(state, options)} {_step(state, options)}", valid, "best" if is_best else ""])


def epoch_line(
    state: TrainingState, options: Options, means: Mapping[str, float], valid: Mapping[str, float], is_best: bool
) -> str:
    """Return the line of a finished epoch: the means of its training metrics, and its last validation.

    Args:
        state: the counters, in which the epoch is not finished yet.
        options: the trainer.
        means: the training metrics over the epoch by full name.
        valid: the metrics of its last validation by full name, empty without one.
        is_best: whether that was the best so far.
    """
    parts = [_epoch(state, options), f"train {_phase_text('train', means)}" if means else ""]
    if valid:
        parts += [f"valid {_phase_text('valid', valid)}", "best" if is_best else ""]
    return _joined([*parts, duration(state.seconds)])


def finished_part(state: TrainingState, options: Options, epoch_part: float | None) -> float | None:
    """Return the finished part of a run, from 0 to 1, by the limit that is reached first; None if unknown.

    Args:
        state: the counters.
        options: the trainer, with its limits.
        epoch_part: the finished part of the present epoch, None if unknown.
    """
    parts = []
    if options.max_steps is not None:
        parts.append(state.step / options.max_steps)
    if options.max_epochs is not None and epoch_part is not None:
        parts.append((state.epoch + epoch_part) / options.max_epochs)
    if options.max_minutes is not None:
        parts.append(state.seconds / (60 * options.max_minutes))
    return max(parts, default=None)


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: "0:01:22"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def limits_text(options: Options, *phases: str) -> str:
    """Return what is said of limited splits, such as "valid limited to 5 batches"; empty if none is."""
    texts = []
    for phase in phases:
        limit = options.limit_of(phase)
        if limit is not None:
            amount = f"{limit:.3g} of the batches" if isinstance(limit, float) else f"{limit} batch{'es' * (limit > 1)}"
            texts.append(f"{phase} limited to {amount}")
    return ", ".join(texts)


def with_limits(title: str, options: Options, *phases: str) -> str:
    """Return a title that says which splits are limited."""
    text = limits_text(options, *phases)
    return f"{title} ({text})" if text else title


def _phase_text(phase: str, values: Mapping[str, float]) -> str:
    """Return the metrics of a phase with four digits, without its prefix: "loss 0.3112 accuracy 0.91".

    Times and speeds, means over an epoch, and norms of single parameters, are left out.
    """
    names = [name for name in values if name.startswith(f"{phase}/") and not _is_extra(name)]
    return " ".join(f"{name.removeprefix(f'{phase}/')} {values[name]:.4g}" for name in names[:_MOST_VALUES])


def _epoch(state: TrainingState, options: Options) -> str:
    return f"epoch {_count(state.epoch + 1, options.max_epochs)}"


def _step(state: TrainingState, options: Options) -> str:
    return f"step {_count(state.step, options.max_steps)}"


def _count(number: int, limit: int | None) -> str:
    return str(number) if limit is None else f"{number}/{limit}"


def _joined(parts: Iterable[str]) -> str:
    return " | ".join(filter(None, parts))


def _is_extra(name: str) -> bool:
    return is_measured(name) or name.endswith("/epoch") or name.startswith(("train/grad_norm/", "train/param_norm/"))
