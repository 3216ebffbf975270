"""What a schedule will do, read from a copy of it."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.all_schedules import SCHEDULES
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from helios_lite import schedules
from helios_lite.planning.schedule_reading import Schedule, schedules_of

STEPS = 380


def optimizer() -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.3}]
    return SGD(groups, 0.1, momentum=0.9)


def stepped(scheduler: Any, steps: int) -> list[float]:
    """The highest rate that each step would use, of the scheduler itself."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            rates.append(max(group["lr"] for group in scheduler.optimizer.param_groups))
            scheduler.step()
    return rates


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind != "none"])
def test_the_rates_that_are_read_are_those_that_steps_set(kind: str) -> None:
    scheduler = SCHEDULES[kind](optimizer(), 40)
    before = copy.deepcopy(scheduler.state_dict())
    schedule = Schedule("scheduler", scheduler)
    read = schedule.rates(range(41))
    some = schedule.rates([0, 7, 30, 40])
    first_highest_last = schedule.first_highest_last(41)
    assert {**scheduler.state_dict(), "lr_lambdas": None} == {**before, "lr_lambdas": None}  # It is not touched.
    wanted = stepped(scheduler, 41)
    assert read == pytest.approx(wanted, rel=1e-9, abs=1e-15)
    assert some == pytest.approx([wanted[0], wanted[7], wanted[30], wanted[40]], rel=1e-9, abs=1e-15)
    assert first_highest_last == pytest.approx((wanted[0], max(wanted), wanted[-1]), rel=1e-9, abs=1e-15)


def test_the_highest_rate_of_a_long_schedule_is_found_and_reading_takes_nothing_per_step() -> None:
    warmup = 123_456
    schedule = Schedule("scheduler", schedules.cosine(optimizer(), warmup, 10**9))
    assert schedule.first_highest_last(10**9)[1] == pytest.approx(0.3, rel=1e-12)
    assert schedule.misfit(10**9) is None
    assert Schedule("scheduler", sequence(10**5, 10**7)(optimizer())).misfit(10**6) is not None


def sequence(warmup: int, rest: int) -> Callable[[Optimizer], Any]:
    return lambda o: SequentialLR(o, [LinearLR(o, total_iters=warmup), CosineAnnealingLR(o, rest)], [warmup])


RIGHT: dict[str, Callable[[Optimizer], Any]] = {
    "cosine": lambda o: CosineAnnealingLR(o, STEPS),
    "one cycle": lambda o: OneCycleLR(o, 0.1, STEPS),
    "one cycle, one more": lambda o: OneCycleLR(o, 0.1, STEPS + 1),
    "stages": lambda o: MultiStepLR(o, [100, 200, 300]),
    "stages beyond the end": lambda o: MultiStepLR(o, [100, 200, 800]),
    "step": lambda o: StepLR(o, 100),
    "exponential": lambda o: ExponentialLR(o, 0.99),
    "exponential with a floor": lambda o: LambdaLR(o, lambda step: max(0.01, 0.997**step)),
    "warmup": lambda o: LinearLR(o, total_iters=5),
    "linear": lambda o: LinearLR(o, 1.0, 0.0, STEPS),
    "polynomial": lambda o: PolynomialLR(o, STEPS),
    "constant": lambda o: ConstantLR(o),
    "always the same": lambda o: LambdaLR(o, lambda step: 1.0),
    "restarts": lambda o: CosineAnnealingWarmRestarts(o, 50),
    "restarts that become longer": lambda o: CosineAnnealingWarmRestarts(o, 20, 2),
    "cyclic": lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=40),
    "sequence": sequence(20, STEPS - 20),
    "chain": lambda o: ChainedScheduler([LinearLR(o, total_iters=20), ExponentialLR(o, 0.999)]),
    "our cosine": lambda o: schedules.cosine(o, 10, STEPS),
    "our cosine, then its lowest rate": lambda o: schedules.cosine(o, 10, 300, 0.1),
    "our linear": lambda o: schedules.linear(o, 10, STEPS),
    "our inverse root": lambda o: schedules.inverse_sqrt(o, 50),
    "our constant": lambda o: schedules.constant(o, 10, STEPS, 50),
}
WRONG: dict[str, tuple[Callable[[Optimizer], Any], str]] = {
    "short cosine": (lambda o: CosineAnnealingLR(o, 100), "is at its end after about 100 of 380 steps, and rises"),
    "cosine of an epoch": (lambda o: CosineAnnealingLR(o, 19), "is at its end after about 19 of 380 steps, and rises"),
    "short sequence": (sequence(20, 100), "is at its end after about 120 of 380 steps, and rises"),
    "short one cycle": (lambda o: OneCycleLR(o, 0.1, 100), "ends after 100 of 380 steps, and raises an error"),
    "short linear": (lambda o: LinearLR(o, 1.0, 0.0, 200), "falls to 0 after about 200 of 380 steps, and stays there"),
    "short polynomial": (lambda o: PolynomialLR(o), "falls to 0 after about 5 of 380 steps"),
    "our short cosine": (lambda o: schedules.cosine(o, 10, 200), "falls to 0 after about 200 of 380 steps"),
    "long cosine": (lambda o: CosineAnnealingLR(o, 1000), "would reach its end after about 1,000 steps"),
    "very long cosine": (lambda o: CosineAnnealingLR(o, 7000), "would reach its end after about [67],\\d{3} steps"),
    "one cycle of a day": (lambda o: OneCycleLR(o, 0.1, 10**5), "rises until step|would reach its end after about"),
    "long one cycle": (lambda o: OneCycleLR(o, 0.1, 1000), "would reach its end after about 1,000 steps"),
    "long linear": (lambda o: LinearLR(o, 1.0, 0.0, 700), "would reach its end after about 70\\d steps"),
    "long polynomial": (lambda o: PolynomialLR(o, 1000), "would reach its end after about 1,000 steps"),
    "our long cosine": (lambda o: schedules.cosine(o, 10, 600), "after about 600 steps, but is stepped 380 times"),
    "long warmup": (lambda o: LinearLR(o, total_iters=1000), "rises until step 1,000 or so, but is stepped 380"),
    "our long warmup": (lambda o: schedules.inverse_sqrt(o, 600), "rises until step 600 or so"),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_schedule_that_fits_is_left_in_peace(kind: str) -> None:
    assert Schedule("scheduler", RIGHT[kind](optimizer())).misfit(STEPS) is None


@pytest.mark.parametrize("kind", WRONG)
def test_a_schedule_that_does_not_fit_is_described(kind: str) -> None:
    make, text = WRONG[kind]
    found = Schedule("scheduler", make(optimizer())).misfit(STEPS)
    assert found is not None
    with pytest.raises(ValueError, match=text):
        raise ValueError(found)


def power(step: int, base: float) -> float:
    return base**step


class Own(LambdaLR):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


def test_schedules_belong_to_their_optimizers_and_what_cannot_be_read_is_left_out() -> None:
    first, second = optimizer(), optimizer()
    whole = sequence(20, 360)(first)
    parts = [
        ("warmup", whole._schedulers[0]),  # The user has kept it as well.
        ("first", first),
        ("scheduler", whole),
        ("second", second),
        ("own", Own(second, lambda step: 1.0)),
    ]
    calls: list[int] = []

    class Owner:
        def factor(self, step: int) -> float:
            calls.append(step)
            return 1.0

    def counting(step: int) -> float:
        calls.append(step)
        return 1.0

    third = optimizer()
    parts += [("third", third), ("effects", LambdaLR(third, counting)), ("method", LambdaLR(third, Owner().factor))]
    parts += [("pure", LambdaLR(third, lambda step: min(1.0, (step + 1) / 5)))]
    parts += [("keywords", LambdaLR(third, functools.partial(power, base=0.9)))]
    calls.clear()
    found = schedules_of(parts)
    assert {name: [each.name for each in schedules] for name, schedules in found.items()} == {
        "first": ["scheduler"],
        "second": [],
        "third": ["pure", "keywords"],  # No function that may have effects is called, or copied with what it holds.
    }
    assert found["third"][1].rates([0, 2]) == pytest.approx([0.3, 0.243])
    assert calls == []
    assert found["first"][0].kind == "SequentialLR"
    assert Schedule("a", schedules.constant(first, 1, 100, 5, "1-sqrt")).kind == "constant, 1-sqrt"
    assert Schedule("a", schedules.cosine(first, 1, 100)).kind == "cosine"
