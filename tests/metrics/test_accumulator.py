"""Logged values: reduced as the standard library does it, whatever they are and wherever a run was interrupted."""

import gc
import math
import pickle
import random
import statistics

import numpy as np
import pytest
import torch

from helios_lite.checkpoints.files import to_serializable
from helios_lite.metrics.accumulator import MetricAccumulator, Reduce

REDUCES = ["mean", "sum", "min", "max", "last", "std"]
SIZES = [1, 2, 100, 3000]


def some(n):
    """Return n values far from zero, and their counts."""
    draw = random.Random(n)
    return [draw.gauss(100, 1) for _ in range(n)], [draw.randint(1, 9) for _ in range(n)]


def logged(values, counts, reduce="mean", metrics=None, start=0):
    metrics = MetricAccumulator(torch.device("cpu")) if metrics is None else metrics
    for step, (value, count) in enumerate(zip(values, counts, strict=True), start=start):
        metrics.update("m", value, count, reduce, step)
    return metrics


def reference(reduce, values, counts):
    repeated = [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
    return {
        "mean": lambda: statistics.fmean(values, counts),
        "std": lambda: statistics.pstdev(repeated),
        "sum": lambda: math.fsum(values),
        "min": lambda: min(values),
        "max": lambda: max(values),
        "last": lambda: values[-1],
    }[reduce]()


@pytest.mark.parametrize("as_count", [int, float, torch.tensor], ids=["int", "float", "tensor"])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("reduce", REDUCES)
def test_every_reduction_agrees_with_the_standard_library(reduce, n, as_count):
    values, counts = some(n)
    metrics = logged(values, map(as_count, counts), reduce)
    assert metrics.compute().values == {"m": pytest.approx(reference(reduce, values, counts), rel=1e-12, abs=1e-12)}


def test_counts_may_be_numbers_and_tensors_in_one_metric():
    values, counts = some(100)
    mixed = [torch.tensor(count) if i % 3 else count for i, count in enumerate(counts)]
    assert logged(values, mixed).compute().values == logged(values, counts).compute().values


def test_the_mean_is_exact_over_batches_of_any_size():
    """Batches of 3, 3 and 1 of the numbers 0..6: their mean is 3, not the mean of the batches' means."""
    assert logged([1.0, 4.0, 6.0], [3, 3, 1]).compute().values == {"m": 3.0}


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float64, 0.1),
        (torch.float32, 1.5),
        (torch.float16, 1.5),
        (torch.bfloat16, 1.5),
        (torch.int64, -(2**53)),
        (torch.int32, 7),
        (torch.uint8, 255),
        (torch.bool, True),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_of_any_dtype_is_taken_exactly(dtype, value, shape):
    assert logged([torch.full(shape, value, dtype=dtype)], [1]).compute().values == {"m": float(value)}


def test_low_precision_values_are_summed_in_high_precision():
    """In bfloat16 256 + 1 is 256."""
    assert logged([torch.tensor(1.0, dtype=torch.bfloat16)] * 1000, [1] * 1000, "sum").compute().values == {"m": 1000.0}


@pytest.mark.parametrize("n", [1, 10])
def test_no_graph_is_kept(n):
    weight = torch.ones((), requires_grad=True)
    losses = [weight * i for i in range(n)]
    state = logged(losses, [weight * 2 for _ in losses]).state_dict()["m"]
    assert all(type(number) is float for number in state["totals"])
    sum(losses).backward()  # And what was logged can still be trained on.
    assert weight.grad == sum(range(n))


def test_what_happens_to_a_tensor_after_it_was_logged_does_not_matter():
    metrics = MetricAccumulator(torch.device("cpu"))
    value, count = torch.tensor(1.0), torch.tensor(1)
    metrics.update("m", value, count)
    value.add_(100)
    count.add_(100)
    metrics.update("m", 4.0, 2)
    assert metrics.compute().values == {"m": 3.0}


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0)], ids=["int", "float", "tensor"])
@pytest.mark.parametrize(("reduce", "expected"), [("mean", 2.0), ("std", 1.0)])
@pytest.mark.parametrize("n", SIZES)
def test_a_mean_over_nothing_does_not_poison_the_others(n, reduce, expected, zero):
    values, counts = [math.nan, 1.0, 3.0] * n, [zero, 2, 2] * n
    metrics = logged(values, counts, reduce)
    assert metrics.compute().values == {"m": pytest.approx(expected)}
    assert metrics.compute().first_not_finite is None


@pytest.mark.parametrize("reduce", ["mean", "std"])
@pytest.mark.parametrize("n", SIZES)
def test_a_mean_over_nothing_at_all_is_nan(n, reduce):
    metrics = logged([math.nan] * n, [0] * n, reduce)
    assert math.isnan(metrics.compute().values["m"])
    assert metrics.compute().first_not_finite is None


@pytest.mark.parametrize("reduce", ["sum", "min", "max", "last"])
def test_a_nan_that_shows_is_reported_whatever_its_count(reduce):
    """These reductions do not weigh by count, so a count of zero does not keep a NaN out of the result."""
    metrics = logged([1.0, math.nan], [1, 0], reduce)
    reported = metrics.compute().first_not_finite is not None
    assert reported == math.isnan(metrics.compute().values["m"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_value", [float, torch.tensor], ids=["float", "tensor"])
@pytest.mark.parametrize("place", [0, 1, 99])
def test_the_first_value_that_is_not_finite_is_found_with_its_step(place, as_value, bad):
    values = [1.0] * 200
    values[place] = values[150] = bad
    metrics = logged(map(as_value, values), [1] * 200, start=1)
    metrics.update("fine", 1.0, 1)
    assert metrics.compute().first_not_finite == ("m", place + 1)


def test_of_several_metrics_the_one_that_was_not_finite_first_is_named():
    metrics = MetricAccumulator(torch.device("cpu"))
    for step in range(1, 10):
        metrics.update("late", math.nan if step == 7 else 1.0, 1, step=step)
        metrics.update("early", math.inf if step == 5 else 1.0, 1, step=step)
    assert metrics.compute().first_not_finite == ("early", 5)


def test_finite_values_are_not_reported():
    assert logged([0.0, -1e300, 1e300], [1, 1, 1]).compute().first_not_finite is None


def test_without_values_there_is_nothing():
    metrics = MetricAccumulator(torch.device("cpu"))
    assert metrics.compute().values == {}
    assert metrics.compute().first_not_finite is None
    assert metrics.state_dict() == {}


def test_clear_forgets_values_and_reductions():
    metrics = logged([math.nan], [1], "sum")
    metrics.reset()
    assert metrics.compute().first_not_finite is None
    assert logged([1.0, 3.0], [1, 1], "mean", metrics).compute().values == {"m": 2.0}


def test_computing_changes_nothing():
    values, counts = some(100)
    metrics = logged(values[:70], counts[:70])
    metrics.compute()
    assert logged(values[70:], counts[70:], metrics=metrics).compute().values == logged(values, counts).compute().values


@pytest.mark.parametrize("as_count", [int, torch.tensor], ids=["int", "tensor"])
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("cut", [1, 2, 100, 149])
def test_an_interrupted_metric_is_bitwise_the_uninterrupted_one(cut, reduce, as_count, tmp_path):
    values, counts = some(150)
    counts = [as_count(count) for count in counts]
    first = logged(values[:cut], counts[:cut], reduce)
    to_serializable(first.state_dict())
    torch.save(first.state_dict(), tmp_path / "metrics")
    second = MetricAccumulator(torch.device("cpu"))
    second.load_state_dict(torch.load(tmp_path / "metrics", weights_only=True))
    assert second.compute().values == first.compute().values
    whole = logged(values, counts, reduce).compute().values
    assert logged(values[cut:], counts[cut:], reduce, second).compute().values == whole


def test_a_value_that_is_not_finite_is_still_known_after_an_interruption():
    before = logged([math.nan, 1.0], [1, 1], start=41)
    after = MetricAccumulator(torch.device("cpu"))
    after.load_state_dict(before.state_dict())
    assert after.compute().first_not_finite == ("m", 41)


@pytest.mark.parametrize("n", [1, 10, 70])
def test_a_state_dict_does_not_follow_the_metrics_it_came_from_or_went_to(n):
    values, counts = some(n)
    metrics = logged(values, counts)
    state, expected = metrics.state_dict(), metrics.compute().values
    logged([0.0] * 100, [torch.tensor(1)] * 100, metrics=metrics)
    for _ in range(2):
        other = MetricAccumulator(torch.device("cpu"))
        other.load_state_dict(state)
        assert other.compute().values == expected
        logged([0.0] * 100, [1] * 100, metrics=other)


def test_a_numpy_count_does_not_keep_a_checkpoint_from_being_written():
    """np.float64 is a float, and the sum of a numpy mask is an np.int64."""
    state = logged([1.0, 2.0], [np.float64(1), np.int64(2)]).state_dict()
    to_serializable(state)


def test_memory_does_not_grow_with_the_number_of_batches():
    def size():
        gc.collect()
        return len(gc.get_objects()) + len(pickle.dumps(metrics.state_dict()))

    def log(n):
        for _ in range(n):
            metrics.update("m", torch.ones(()), torch.ones(()))

    metrics = MetricAccumulator(torch.device("cpu"))
    log(100)
    before = size()
    log(5000)
    assert size() - before < 100


@pytest.mark.parametrize("reduce", ["median", "", None])
def test_an_unknown_reduction_is_an_error_that_names_the_metric_and_the_choices(reduce):
    with pytest.raises(ValueError, match=rf"'m'.*reduce={reduce!r}") as caught:
        logged([1.0], [1], reduce)
    assert all(choice in str(caught.value) for choice in REDUCES)


def test_a_reduction_that_changes_is_an_error_that_names_both():
    metrics = logged([1.0], [1], "mean")
    with pytest.raises(ValueError, match=r"'m'.*'sum'.*'mean'"):
        metrics.update("m", 1.0, 1, "sum")


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
def test_a_value_of_several_numbers_is_an_error_and_leaves_nothing(shape):
    metrics = MetricAccumulator(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"'m'.*shape \(\d"):
        metrics.update("m", torch.ones(shape), 1)
    assert metrics.compute().values == {}


@pytest.mark.parametrize(("value", "count"), [(None, 1), (1.0, None), ([1.0], 1)])
def test_what_is_no_number_is_an_error_that_names_the_metric(value, count):
    with pytest.raises(TypeError, match=r"^log\('valid/m'\): .*not '(NoneType|list)'"):
        MetricAccumulator(torch.device("cpu")).update("valid/m", value, count)


def test_a_count_of_several_numbers_is_an_error_where_it_is_logged():
    """A mask in place of its sum must not fail some steps later, at the log point, without the metric's name."""
    with pytest.raises(ValueError, match="'m'"):
        MetricAccumulator(torch.device("cpu")).update("m", 1.0, torch.ones(2))


@pytest.mark.parametrize("reduce", ["min", "max"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("cut", [None, 1, 2])
def test_a_nan_stays_in_an_extreme_wherever_it_comes(reduce: Reduce, place: int, cut: int | None) -> None:
    values = [3.0, 5.0]
    values.insert(place, math.nan)
    metrics = MetricAccumulator(torch.device("cpu"))
    for i, value in enumerate(values):
        if i == cut:
            state, metrics = metrics.state_dict(), MetricAccumulator(torch.device("cpu"))
            metrics.load_state_dict(state)
        metrics.update("x", value, 1, reduce)
    assert math.isnan(metrics.compute().values["x"])
