"""The lines that a training leaves behind: one for each epoch, more of long ones; limits in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from helios_lite.options import Options
from helios_lite.state import TrainingState, is_extra

_MOST_VALUES = 6  # More metrics than these are in metrics.jsonl, but not in a line.


def row_line(state: TrainingState, options: Options, values: Mapping[str, float], done: float | None) -> str:
    """Return the line of a row inside of a long epoch: the counters, the metrics, the speed, and when the run will end.

    Args:
        state: the counters.
        options: the trainer, with its limits.
        values: the row of metrics by full name.
        done: the finished part of the run, from 0 to 1; None if unknown.
    """
    metrics = " ".join(_values("train", values).values())
    return _joined([_counters(state, options), metrics, *_speed(state, values, done)])


def validation_line(state: TrainingState, options: Options, values: Mapping[str, float], is_best: bool) -> str:
    """Return the line of a validation inside of a long epoch."""
    metrics = " ".join(["valid", *_values("valid", values).values()])
    return _joined([_counters(state, options), metrics, "best" if is_best else ""])


def epoch_line(
    state: TrainingState,
    options: Options,
    means: Mapping[str, float],
    valid: Mapping[str, float],
    is_best: bool,
    *,
    row: Mapping[str, float] | None = None,
    done: float | None = None,
    width: int | None = None,
) -> str:
    """Return the line of a finished epoch, whose columns are below those of the epoch before.

    It has the means of its training metrics, its last validation, and the time of the run; with a row also the speed
    and when the run will end.

    Args:
        state: the counters, in which the epoch is not finished yet.
        options: the trainer.
        means: the training metrics over the epoch by full name.
        valid: the metrics of its last validation by full name, empty without one.
        is_best: whether that was the best so far.
        row: the last row of metrics, to show the speed.
        done: the finished part of the run, from 0 to 1; None if unknown.
        width: the number of columns that there are: of the counters only those with a limit are shown; the time is left
            out if the line does not fit, then metrics, the last ones first and the monitored one never. A line that
            does not say "best" leaves room for it, so that all lines of a run show the same.
    """
    parts = [_values("train", means), _values("valid", valid)]
    counters = _counters(state, options) if width is None else _limited_counters(state, options)
    speed = [] if row is None else _speed(state, row, done)
    monitored = [options.monitor] if isinstance(options.monitor, str) else [*(options.monitor or ())]
    time = duration(state.seconds)
    while True:
        train, validation = (list(part.values()) for part in parts)
        valid_text = " ".join(["valid", *validation]) if validation else ""
        texts = [counters, " ".join(train), valid_text, *speed, time]
        left_out = max((part for part in parts if part.keys() - monitored), key=len, default=None)
        if width is None or len(_joined([*texts, "best"])) < width or not (time or left_out):
            return _joined([*texts, "best" if is_best else ""])
        if time:
            time = ""
        elif left_out is not None:
            del left_out[[name for name in left_out if name not in monitored][-1]]


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


def seconds_left(state: TrainingState, done: float | None) -> float | None:
    """Return the seconds until a run will end, of which that part is finished; None if unknown."""
    return None if not done else max(0.0, state.seconds / done * (1 - done))


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
            amount = (
                f"{limit:.3g} of the batches" if isinstance(limit, float) else f"{limit} batch{'es' * (limit != 1)}"
            )
            texts.append(f"{phase} limited to {amount}")
    return ", ".join(texts)


def with_limits(title: str, options: Options, *phases: str) -> str:
    """Return a title that says which splits are limited."""
    text = limits_text(options, *phases)
    return f"{title} ({text})" if text else title


def _values(phase: str, values: Mapping[str, float]) -> dict[str, str]:
    """Return the metrics of a phase by name as "loss 0.3112  ", without its prefix; all have the same width."""
    names = [name for name in values if name.startswith(f"{phase}/") and not is_extra(name)]
    return {name: f"{name.removeprefix(f'{phase}/')} {_number(values[name]):<8}" for name in names[:_MOST_VALUES]}


def _number(value: float) -> str:
    """Return a number with four digits; one that would need more than eight characters has an exponent and three."""
    text = f"{value:#.4g}"
    return text if len(text.removeprefix("-")) <= 8 else f"{value:.2e}"


def _speed(state: TrainingState, values: Mapping[str, float], done: float | None) -> list[str]:
    """Return the samples per second with the part of the time that was spent waiting for them, and the time left."""
    texts = []
    if "train/samples_per_second" in values:
        speed = values["train/samples_per_second"]
        number = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        texts.append(f"{number:>7} samples/s, data {values['train/data_wait']:>3.0%}")
    left = seconds_left(state, done)
    if left is not None:
        texts.append(f"{duration(left)} left")
    return texts


def _counters(state: TrainingState, options: Options) -> str:
    return f"epoch {_count(state.epoch + 1, options.max_epochs)} step {_count(state.step, options.max_steps)}"


def _limited_counters(state: TrainingState, options: Options) -> str:
    """Return the counters that have a limit; the number of the epoch if none has."""
    step = "" if options.max_steps is None else f"step {_count(state.step, options.max_steps)}"
    has_epoch = options.max_epochs is not None or not step
    return " ".join(filter(None, [f"epoch {_count(state.epoch + 1, options.max_epochs)}" if has_epoch else "", step]))


def _count(number: int, limit: int | None) -> str:
    return f"{number:<4}" if limit is None else f"{number:>{len(str(limit))}}/{limit}"


def _joined(parts: Iterable[str]) -> str:
    return " | ".join(filter(None, (part.rstrip() if part == "" else part for part in parts))).rstrip()
