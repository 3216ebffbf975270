"""When a score is better, a validation or a checkpoint due, a run over."""

import math

import pytest

from helios_lite import Trainer, TrainingState
from helios_lite.planning.due import has_improved, limit_reached, monitored_score, save_due, validation_due

NAN, INF = math.nan, math.inf


# Scores.


@pytest.mark.parametrize(
    ("score", "best", "mode", "min_delta", "improved"),
    [
        (1.0, 2.0, "min", 0.0, True),
        (2.0, 1.0, "min", 0.0, False),
        (1.0, 2.0, "max", 0.0, False),
        (2.0, 1.0, "max", 0.0, True),
        (1.0, 1.0, "min", 0.0, False),
        (1.0, 1.0, "max", 0.0, False),
        # Exactly zero is a score like any other.
        (0.0, 1.0, "min", 0.0, True),
        (1.0, 0.0, "min", 0.0, False),
        (-1.0, 0.0, "max", 0.0, False),
        (-1.0, 0.0, "min", 0.0, True),
        (0.0, 0.0, "min", 0.0, False),
        # By more than min_delta, not by exactly as much.
        (1.5, 2.0, "min", 0.5, False),
        (1.25, 2.0, "min", 0.5, True),
        (2.5, 2.0, "max", 0.5, False),
        (2.75, 2.0, "max", 0.5, True),
        # Any finite number beats None, NaN and the infinities beat nothing.
        (5.0, None, "min", 1.0, True),
        (0.0, None, "max", 1.0, True),
        (INF, None, "min", 0.0, False),
        (-INF, None, "min", 0.0, False),
        (-INF, 1.0, "min", 0.0, False),
        (INF, 1.0, "max", 0.0, False),
        (1.0, INF, "min", 0.0, True),
        (INF, INF, "min", 0.0, False),
        (NAN, None, "min", 0.0, False),
        (NAN, None, "max", 0.0, False),
        (NAN, 1.0, "min", 0.0, False),
        (NAN, 1.0, "max", 0.0, False),
    ],
)
def test_has_improved(score, best, mode, min_delta, improved):
    assert has_improved(score, best, mode, min_delta) is improved


METRICS = {"valid/a": 0.1, "valid/b": 0.2, "valid/zero": 0.0}


@pytest.mark.parametrize(
    ("monitor", "score"),
    [
        ("valid/a", 0.1),
        ("valid/zero", 0.0),
        (["valid/b"], 0.2),
        (["valid/a", "valid/b"], pytest.approx(0.3)),
        (("valid/a", "valid/b", "valid/zero"), pytest.approx(0.3)),
    ],
)
def test_the_monitored_score_is_a_metric_or_the_sum_of_several(monitor, score):
    assert monitored_score(METRICS, monitor) == score


@pytest.mark.parametrize(
    ("name", "hint"),
    [("valid/c", r"did you mean valid/b\?"), ("accuracy", "there are valid/a, valid/b, valid/zero")],
)
def test_an_unknown_metric_is_an_error_with_the_most_similar_one_or_all(name, hint):
    for monitor in (name, ["valid/a", name]):
        with pytest.raises(ValueError, match=f"^monitor='{name}' is not a metric of the validation; {hint}$"):
            monitored_score(METRICS, monitor)


@pytest.mark.parametrize(
    ("a", "b", "total"), [(NAN, 1.0, NAN), (INF, 1.0, INF), (INF, -INF, NAN), (1.5e308, 1.5e308, INF)]
)
def test_a_diverged_metric_makes_a_score_and_not_an_error(a, b, total):
    assert monitored_score({"a": a, "b": b}, ["a", "b"]) == pytest.approx(total, nan_ok=True)


# Validation.


def validated_at(batches, window, *, every_epochs=None, every_steps=None, epochs=1):
    """Walk the boundaries of some epochs as the trainer does; return (epoch, epoch_batch) of every validation."""
    state, options = TrainingState(), Trainer(valid_every_epochs=every_epochs, valid_every_steps=every_steps)
    found = []
    for state.epoch in range(epochs):
        boundaries = [*range(window, batches, window), batches]
        for start, state.epoch_batch in zip([0, *boundaries], boundaries, strict=False):
            state.step += 1
            # Asked twice, as at an epoch's end: there must be one validation.
            for _ in range(2):
                complete = state.epoch_batch == batches
                if validation_due(state, options, window_start=start, epoch_batches=batches, epoch_complete=complete):
                    state.validated_step = state.step
                    found.append((state.epoch, state.epoch_batch))
    return found


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3, 4, 5]), (1.0, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5])])
@pytest.mark.parametrize("window", [1, 3])
def test_whole_epochs_validate_at_their_end(every, epochs, window):
    assert validated_at(10, window, every_epochs=every, epochs=6) == [(epoch, 10) for epoch in epochs]


@pytest.mark.parametrize(
    ("fraction", "batches", "window", "positions"),
    [
        (0.25, 8, 1, [2, 4, 6, 8]),
        (0.25, 10, 1, [3, 5, 8, 10]),
        (0.25, 2, 1, [1, 2]),
        (0.25, 1, 1, [1]),
        (0.25, 10, 3, [3, 6, 9, 10]),
        (0.25, 10, 4, [4, 8, 10]),
        (0.25, 10, 20, [10]),
        (0.5, 10, 3, [6, 10]),
        (1 / 3, 9, 1, [3, 6, 9]),
        (1 / 3, 10, 1, [4, 7, 10]),
        (1 / 3, 9, 2, [4, 6, 9]),
        (1 / 3, 1000, 7, [336, 672, 1000]),
        (0.3, 10, 1, [3, 6, 9]),
        (0.3, 7, 1, [3, 5, 7]),
        (0.3, 10, 4, [4, 8, 10]),
        (0.75, 8, 1, [6]),
    ],
)
def test_a_fraction_validates_at_the_first_boundary_past_each_multiple(fraction, batches, window, positions):
    expected = [(epoch, position) for epoch in range(3) for position in positions]
    assert validated_at(batches, window, every_epochs=fraction, epochs=3) == expected


@pytest.mark.parametrize("parts", [2, 3, 7, 10, 49, 100])
@pytest.mark.parametrize("batches", [100, 999, 1000, 1001])
def test_a_unit_fraction_validates_that_often_and_at_the_end(parts, batches):
    found = validated_at(batches, 1, every_epochs=1 / parts)
    assert len(found) == parts
    assert found[-1] == (0, batches)


def test_a_tiny_fraction_is_not_rounded_to_nothing():
    state = TrainingState(step=10, epoch_batch=10)
    options = Trainer(valid_every_epochs=1e-5)
    assert validation_due(state, options, window_start=9, epoch_batches=1_000_000, epoch_complete=False)
    assert not validation_due(state, options, window_start=10, epoch_batches=1_000_000, epoch_complete=False)


def test_steps_count_through_epochs():
    assert validated_at(10, 1, every_steps=4, epochs=2) == [(0, 4), (0, 8), (1, 2), (1, 6), (1, 10)]


def test_steps_are_updates_not_batches():
    assert validated_at(10, 3, every_steps=2, epochs=1) == [(0, 6), (0, 10)]


def test_steps_and_epochs_together_validate_once_where_they_meet():
    assert validated_at(4, 1, every_steps=2, every_epochs=1, epochs=1) == [(0, 2), (0, 4)]
    assert validated_at(3, 1, every_steps=2, every_epochs=1, epochs=2) == [(0, 2), (0, 3), (1, 1), (1, 3)]


def test_nothing_asked_for_validates_never():
    assert validated_at(10, 1, epochs=3) == []


@pytest.mark.parametrize("every", [{"steps": 1}, {"epochs": 1}, {"epochs": 0.5}])
def test_no_step_is_validated_twice(every):
    state = TrainingState(step=5, epoch_batch=10)
    options = Trainer(valid_every_epochs=every.get("epochs"), valid_every_steps=every.get("steps"))
    assert validation_due(state, options, window_start=9, epoch_batches=10, epoch_complete=True)
    state.validated_step = 5
    assert not validation_due(state, options, window_start=9, epoch_batches=10, epoch_complete=True)


def test_no_validation_is_due_before_the_first_step():
    options = Trainer(valid_every_epochs=0.5, valid_every_steps=1)
    assert not validation_due(TrainingState(), options, window_start=0, epoch_batches=10, epoch_complete=False)


def test_a_fraction_of_an_unknown_length_is_an_error_that_names_the_option():
    with pytest.raises(ValueError, match=r"^valid_every_epochs=0\.5 .*length"):
        validation_due(
            TrainingState(step=1, epoch_batch=1),
            Trainer(valid_every_epochs=0.5),
            window_start=0,
            epoch_batches=None,
            epoch_complete=False,
        )


@pytest.mark.parametrize("complete", [False, True])
def test_whole_epochs_need_no_length(complete):
    state, options = TrainingState(step=1, epoch_batch=1), Trainer(valid_every_epochs=1)
    due = validation_due(state, options, window_start=0, epoch_batches=None, epoch_complete=complete)
    assert due is complete


# Checkpoints.

INSIDE = {"epoch": 2, "epoch_batch": 5, "step": 12}
AT_END = {"epoch": 2, "epoch_batch": 0, "step": 12}


@pytest.mark.parametrize(
    ("counters", "seconds_since", "options", "due"),
    [
        (AT_END, 1e9, {}, False),
        (AT_END, 0, {"save_every_epochs": 1}, True),
        (AT_END, 0, {"save_every_epochs": 2}, True),
        (AT_END, 0, {"save_every_epochs": 3}, False),
        (INSIDE, 0, {"save_every_epochs": 1}, False),
        (INSIDE, 0, {"save_every_steps": 4}, True),
        (INSIDE, 0, {"save_every_steps": 5}, False),
        (INSIDE, 60, {"save_every_minutes": 1}, True),
        (INSIDE, 59.9, {"save_every_minutes": 1}, False),
        (INSIDE, 30, {"save_every_minutes": 0.5}, True),
        (INSIDE, 0, {"save_every_epochs": 1, "save_every_steps": 5, "save_every_minutes": 1}, False),
        (INSIDE, 0, {"save_every_epochs": 3, "save_every_steps": 4, "save_every_minutes": 1}, True),
        (INSIDE, 60, {"save_every_epochs": 3, "save_every_steps": 5, "save_every_minutes": 1}, True),
        (AT_END, 60, {"save_every_epochs": 2, "save_every_minutes": 1, "keep_last": 0}, False),
    ],
)
def test_save_due(counters, seconds_since, options, due):
    options = {"save_every_epochs": None} | options
    assert save_due(TrainingState(**counters), Trainer(**options), seconds_since) is due


# Limits.


@pytest.mark.parametrize(
    ("limit", "value", "below", "reached"),
    [
        ("max_epochs", 3, {"epoch": 2}, {"epoch": 3}),
        ("max_steps", 100, {"step": 99}, {"step": 100}),
        ("max_minutes", 0.5, {"seconds": 29.9}, {"seconds": 30.0}),
        ("patience", 2, {"early_stop_count": 1}, {"early_stop_count": 2}),
    ],
)
def test_each_limit_ends_the_run_when_the_counter_gets_there_or_beyond(limit, value, below, reached):
    options = Trainer(**{limit: value})
    beyond = {name: count + 1 for name, count in reached.items()}
    assert limit_reached(TrainingState(**below), options, below.get("seconds", 0.0)) is None
    assert limit_reached(TrainingState(**reached), options, reached.get("seconds", 0.0)) == limit
    assert limit_reached(TrainingState(**beyond), options, beyond.get("seconds", 0.0)) == limit


def test_a_run_whose_limit_was_raised_goes_on():
    finished = TrainingState(epoch=3, early_stop_count=2)
    assert limit_reached(finished, Trainer(max_epochs=3, patience=2), 0.0) == "max_epochs"
    assert limit_reached(finished, Trainer(max_epochs=4, patience=2), 0.0) == "patience"
    assert limit_reached(finished, Trainer(max_epochs=4, patience=3), 0.0) is None


def test_without_a_limit_nothing_ends_the_run():
    state = TrainingState(epoch=10**6, step=10**9, seconds=1e9, early_stop_count=10**6)
    assert limit_reached(state, Trainer(), state.seconds) is None
