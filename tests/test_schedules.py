"""Schedules: the learning rate of every step against the formula, written out here once more; resumes; errors."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import Tiny, data, quiet
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from helios_lite import schedules

WARMUP, TOTAL, COOLDOWN, FINAL = 4, 20, 5, 0.1


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates], lr=0.0)


def used(make: Callable[[torch.optim.Optimizer], LambdaLR], updates: int, *rates: float) -> list[list[float]]:
    """The learning rates that each step uses, for every parameter group."""
    sgd = optimizer(*rates)
    scheduler = make(sgd)
    found = []
    for _ in range(updates):
        found.append([group["lr"] for group in sgd.param_groups])
        sgd.step()
        scheduler.step()
    return found


def cosine(n: int, warmup: int) -> float:
    if n < warmup:
        return (n + 1) / warmup
    if n > TOTAL:
        return FINAL
    return (1 + FINAL) / 2 + (1 - FINAL) / 2 * math.cos(math.pi * (n - warmup) / (TOTAL - warmup))


def linear(n: int, warmup: int) -> float:
    if n < warmup:
        return (n + 1) / warmup
    left = max(0, TOTAL - n) / (TOTAL - warmup)
    return FINAL + (1 - FINAL) * left


def inverse_sqrt(n: int, warmup: int) -> float:
    """The formula of the paper, divided by its largest value."""
    step = n + 1
    if warmup == 0:
        return float(step**-0.5)
    return float(min(step**-0.5, step * warmup**-1.5) / warmup**-0.5)


def cooled(shape: Callable[[float], float]) -> Callable[[int, int], float]:
    def factor(n: int, warmup: int) -> float:
        if n < warmup:
            return (n + 1) / warmup
        if n <= TOTAL - COOLDOWN:
            return 1.0
        return FINAL + (1 - FINAL) * shape(min(1.0, (n - (TOTAL - COOLDOWN)) / COOLDOWN))

    return factor


SCHEDULES: dict[str, tuple[Callable[..., LambdaLR], Callable[[int, int], float]]] = {
    "cosine": (lambda o, w: schedules.cosine(o, w, TOTAL, FINAL), cosine),
    "linear": (lambda o, w: schedules.linear(o, w, TOTAL, FINAL), linear),
    "inverse_sqrt": (schedules.inverse_sqrt, inverse_sqrt),
    "constant": (lambda o, w: schedules.constant(o, w, TOTAL, COOLDOWN, "linear", FINAL), cooled(lambda p: 1 - p)),
    "1-sqrt": (lambda o, w: schedules.constant(o, w, TOTAL, COOLDOWN, "1-sqrt", FINAL), cooled(lambda p: 1 - p**0.5)),
}


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_has_the_learning_rate_of_the_formula_in_every_group(name: str, warmup: int) -> None:
    make, formula = SCHEDULES[name]
    found = used(lambda o: make(o, warmup), TOTAL + 5, 1.0, 0.25)
    expected = [[formula(n, warmup), 0.25 * formula(n, warmup)] for n in range(TOTAL + 5)]
    assert found == [pytest.approx(rates, rel=1e-12) for rates in expected]


def test_ends_are_exact_and_no_step_is_lost_to_a_rate_of_zero() -> None:
    falling: list[Callable[..., LambdaLR]] = [
        lambda o: schedules.cosine(o, WARMUP, TOTAL),
        lambda o: schedules.linear(o, WARMUP, TOTAL),
        lambda o: schedules.constant(o, WARMUP, TOTAL, COOLDOWN),
        lambda o: schedules.constant(o, WARMUP, TOTAL, COOLDOWN, "1-sqrt"),
    ]
    for make in falling:
        rates = [rate for (rate,) in used(make, TOTAL + 3, 1.0)]
        assert rates[WARMUP - 1] == rates[WARMUP] == 1.0
        assert min(rates[:TOTAL]) > 0
        assert rates[TOTAL:] == [0.0] * 3


def test_cosine_without_a_warmup_is_the_scheduler_of_pytorch() -> None:
    sgd = optimizer(0.5)
    scheduler = CosineAnnealingLR(sgd, TOTAL, eta_min=0.05)
    expected = []
    for _ in range(TOTAL):
        expected.append([sgd.param_groups[0]["lr"]])
        sgd.step()
        scheduler.step()
    assert used(lambda o: schedules.cosine(o, 0, TOTAL, 0.1), TOTAL, 0.5) == [pytest.approx(r) for r in expected]


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (lambda o: schedules.cosine(o, 3, 3, 0.5), [1 / 3, 2 / 3, 1, 0.5]),
        (lambda o: schedules.linear(o, 0, 1), [1, 0]),
        (lambda o: schedules.constant(o, 1, 3, 2), [1, 1, 0.5, 0]),
        (lambda o: schedules.constant(o, 0, 2, 0, "1-sqrt"), [1, 1, 0]),
        (lambda o: schedules.constant(o, 2, 2, 0, final_factor=1.0), [0.5, 1, 1, 1]),
    ],
    ids=["warmup only", "one step", "no plateau", "no cooldown", "no fall"],
)
def test_parts_may_be_empty(make: Callable[..., LambdaLR], rates: list[float]) -> None:
    assert used(make, len(rates), 1.0) == [[pytest.approx(rate)] for rate in rates]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step:UserWarning")  # A copy has not wrapped it again.
def test_a_scheduler_holds_plain_data_and_can_be_copied_and_sent(name: str) -> None:
    make, formula = SCHEDULES[name]
    scheduler = make(optimizer(1.0), WARMUP)
    assert scheduler.state_dict()["lr_lambdas"] == [{}]
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        other.optimizer.step()
        other.step()
        assert other.get_last_lr() == [formula(1, WARMUP)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_has_the_learning_rates_of_one_that_was_not_stopped(name: str, tmp_path: Path) -> None:
    make, formula = SCHEDULES[name]

    class Scheduled(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.scheduler = make(self.optimizer, WARMUP)
            self.rates: list[float] = []

        def train_step(self, batch: Any, state: Any) -> None:
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            super().train_step(batch, state)

    ends = []
    for folder, stops in (("whole", (TOTAL + 2,)), ("parts", (2, WARMUP, 17, TOTAL + 2))):
        rates: list[float] = []
        for steps in stops:
            model = Scheduled()
            quiet(root=tmp_path / folder, max_steps=steps).fit(model, data())
            rates += model.rates
        ends.append((rates, weights(model)))
    assert same(ends[0], ends[1])
    assert ends[0][0] == [pytest.approx(0.01 * formula(n, WARMUP)) for n in range(TOTAL + 2)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda o: schedules.cosine(o, -1, 9), ValueError, "warmup_steps=-1"),
        (lambda o: schedules.cosine(o, 0.1, 9), TypeError, "warmup_steps=0.1"),
        (lambda o: schedules.cosine(o, True, 9), TypeError, "warmup_steps=True"),
        (lambda o: schedules.linear(o, 0), ValueError, "total_steps: is needed outside of Model.setup"),
        (lambda o: schedules.linear(o, 0, 0), ValueError, "total_steps=0"),
        (lambda o: schedules.linear(o, 10, 9), ValueError, "total_steps=9.* 10, .*warmup_steps$"),
        (lambda o: schedules.linear(o, 0, 9, 1.5), ValueError, "final_factor=1.5"),
        (lambda o: schedules.linear(o, 0, 9, math.nan), ValueError, "final_factor=nan"),
        (lambda o: schedules.cosine(o, 0, 9, "0"), TypeError, "final_factor='0'"),
        (lambda o: schedules.inverse_sqrt(o, -1), ValueError, "warmup_steps=-1"),
        (lambda o: schedules.constant(o, 0, 9, -1), ValueError, "cooldown_steps=-1"),
        (lambda o: schedules.constant(o, 0, 9, 2.5), TypeError, "cooldown_steps=2.5"),
        (lambda o: schedules.constant(o, 5, 9, 5), ValueError, "total_steps=9.* 10.*cooldown_steps together"),
        (lambda o: schedules.constant(o, 0, 9, 5, "sqrt"), ValueError, "shape='sqrt'"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(optimizer(1.0))
