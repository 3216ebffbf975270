"""Learning rate schedules that begin with a warmup, as schedulers for `Model.optimizer_step`.

Each function returns a `torch.optim.lr_scheduler.LambdaLR`. At step n it multiplies the learning rate that every
parameter group of the optimizer was made with, the highest one of the schedule, by a factor f(n). Steps count from 0,
so that the first step uses f(0). Pass the scheduler to `Model.optimizer_step`, which calls it once per step:

    self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-4)
    self.scheduler = schedules.cosine(self.optimizer, warmup_steps=500)

In `Model.setup`, `total_steps` is `Model.num_training_steps` unless it is given.

In the first `warmup_steps` steps f(n) = (n + 1) / warmup_steps (Goyal et al., "Accurate, Large Minibatch SGD",
2017); `warmup_steps=0` leaves the warmup out. The functions describe what follows it. No step before `total_steps`
has the learning rate 0.

A resumed run follows the arguments that it has now, such as a larger `total_steps`, as if it always had them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from helios_lite.arguments import integer, require, require_kind

_planned_steps: ContextVar[Callable[[], int] | None] = ContextVar("planned_steps", default=None)


@contextlib.contextmanager
def planned_steps(count: Callable[[], int]) -> Iterator[None]:
    """A context, that of `Model.setup`, in which `total_steps` is what `count` returns unless it is given."""
    token = _planned_steps.set(count)
    try:
        yield
    finally:
        _planned_steps.reset(token)


def cosine(
    optimizer: Optimizer, warmup_steps: int, total_steps: int | None = None, final_factor: float = 0.0
) -> LambdaLR:
    """Return a scheduler that falls along half a cosine after the warmup.

    With p = (n - warmup_steps) / (total_steps - warmup_steps), limited to the range from 0 to 1:

        f(n) = final_factor + (1 - final_factor) * (1 + cos(pi * p)) / 2

    See Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, here without restarts.

    Args:
        optimizer: the optimizer; the learning rates of its groups are the highest ones.
        warmup_steps: number of steps of the warmup.
        total_steps: number of steps after which the factor stays at `final_factor`; at least `warmup_steps`. If None,
            it is the planned number of steps, which is known in `Model.setup`.
        final_factor: the factor at the end, from 0 to 1.

    Raises:
        TypeError, ValueError: an argument has a wrong value; the message names it.
    """
    total_steps = _checked(warmup_steps, total_steps, warmup_steps, final_factor)
    return _schedule(optimizer, warmup_steps, functools.partial(_cosine, warmup_steps, total_steps, final_factor))


def linear(
    optimizer: Optimizer, warmup_steps: int, total_steps: int | None = None, final_factor: float = 0.0
) -> LambdaLR:
    """Return a scheduler that falls linearly after the warmup.

    With p = (n - warmup_steps) / (total_steps - warmup_steps), limited to the range from 0 to 1:

        f(n) = 1 - (1 - final_factor) * p

    See Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019.

    Args:
        optimizer: the optimizer; the learning rates of its groups are the highest ones.
        warmup_steps: number of steps of the warmup.
        total_steps: number of steps after which the factor stays at `final_factor`; at least `warmup_steps`. If None,
            it is the planned number of steps, which is known in `Model.setup`.
        final_factor: the factor at the end, from 0 to 1.

    Raises:
        TypeError, ValueError: an argument has a wrong value; the message names it.
    """
    total_steps = _checked(warmup_steps, total_steps, warmup_steps, final_factor)
    return _schedule(optimizer, warmup_steps, functools.partial(_linear, warmup_steps, total_steps, final_factor))


def inverse_sqrt(optimizer: Optimizer, warmup_steps: int) -> LambdaLR:
    """Return a scheduler that falls with the inverse square root of the number of steps: the "noam" schedule.

    After the warmup, with s = max(1, warmup_steps):

        f(n) = sqrt(s / (n + 1))

    It needs no number of steps, and never reaches 0. The learning rate of Vaswani et al., "Attention Is All You
    Need", 2017, for a model of width d, is that of an optimizer with `lr=(d * warmup_steps) ** -0.5`.

    Args:
        optimizer: the optimizer; the learning rates of its groups are the highest ones.
        warmup_steps: number of steps of the warmup.

    Raises:
        TypeError, ValueError: an argument has a wrong value; the message names it.
    """
    require("warmup_steps", warmup_steps, integer(least=0))
    return _schedule(optimizer, warmup_steps, functools.partial(_inverse_sqrt, warmup_steps))


def constant(
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: int | None = None,
    cooldown_steps: int = 0,
    shape: Literal["linear", "1-sqrt"] = "linear",
    final_factor: float = 0.0,
) -> LambdaLR:
    """Return a scheduler that is constant after the warmup, and falls in a cooldown at the end.

    With c = total_steps - cooldown_steps, and p = (n - c) / cooldown_steps, limited to the range from 0 to 1:

        f(n) = 1 - (1 - final_factor) * p          for shape "linear"
        f(n) = 1 - (1 - final_factor) * sqrt(p)    for shape "1-sqrt"

    A checkpoint from before the cooldown can be resumed with a larger `total_steps`, as if it had been trained with
    that number from the start. See Zhai et al., "Scaling Vision Transformers", 2022, and Haegele et al., "Scaling Laws
    and Compute-Optimal Training Beyond Fixed Training Durations", 2024, who found "1-sqrt" to be the better shape.

    Args:
        optimizer: the optimizer; the learning rates of its groups are the highest ones.
        warmup_steps: number of steps of the warmup.
        total_steps: number of steps after which the factor stays at `final_factor`; at least the sum of
            `warmup_steps` and `cooldown_steps`. If None, it is the planned number of steps, as for `cosine`.
        cooldown_steps: number of steps of the cooldown; with 0 the factor falls to `final_factor` at once.
        shape: the shape of the cooldown.
        final_factor: the factor at the end, from 0 to 1.

    Raises:
        TypeError, ValueError: an argument has a wrong value; the message names it.
    """
    if shape not in ("linear", "1-sqrt"):
        raise ValueError(f'shape={shape!r}: must be "linear" or "1-sqrt"')
    require("warmup_steps", warmup_steps, integer(least=0))
    require("cooldown_steps", cooldown_steps, integer(least=0))
    total_steps = _checked(warmup_steps, total_steps, warmup_steps + cooldown_steps, final_factor)
    fall = _linear if shape == "linear" else _one_minus_sqrt
    start = total_steps - cooldown_steps
    return _schedule(optimizer, warmup_steps, functools.partial(fall, start, total_steps, final_factor))


def _schedule(optimizer: Optimizer, warmup_steps: int, fall: Callable[[int], float]) -> LambdaLR:
    """Return the scheduler of a warmup and a function of the step that falls after it.

    The partials of functions of this module can be pickled and copied, and a LambdaLR keeps nothing of them in its
    `state_dict` but an empty dict.
    """
    require_kind("optimizer", optimizer, Optimizer, "an optimizer")
    return LambdaLR(optimizer, functools.partial(_warm_up, warmup_steps, fall))


def _warm_up(warmup_steps: int, fall: Callable[[int], float], step: int) -> float:
    return (step + 1) / warmup_steps if step < warmup_steps else fall(step)


def _progress(start: int, end: int, step: int) -> float:
    """Return the position of a step between two others, from 0 to 1."""
    if step >= end:  # Also where both are one step.
        return 1.0
    return max(0, step - start) / max(1, end - start)


# The names of these arguments are said when a run goes on with other ones.


def _cosine(start: int, total_steps: int, final_factor: float, step: int) -> float:
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * _progress(start, total_steps, step))) / 2


def _linear(start: int, total_steps: int, final_factor: float, step: int) -> float:
    return 1 - (1 - final_factor) * _progress(start, total_steps, step)


def _one_minus_sqrt(start: int, total_steps: int, final_factor: float, step: int) -> float:
    return 1 - (1 - final_factor) * math.sqrt(_progress(start, total_steps, step))


def _inverse_sqrt(warmup_steps: int, step: int) -> float:
    return math.sqrt(max(1, warmup_steps) / (step + 1))


def _checked(warmup_steps: int, total_steps: int | None, least_total: int, final_factor: float) -> int:
    """Return the number of steps: that which is given, else the planned one; check all arguments."""
    require("warmup_steps", warmup_steps, integer(least=0))
    if total_steps is None:
        planned = _planned_steps.get()
        if planned is None:
            raise ValueError("total_steps: is needed outside of Model.setup, where no Trainer plans a number of steps")
        total_steps = planned()
    require("total_steps", total_steps, integer(least=1))
    if total_steps < least_total:
        parts = "warmup_steps" if least_total == warmup_steps else "warmup_steps and cooldown_steps together"
        raise ValueError(f"total_steps={total_steps}: must be at least {least_total}, which is {parts}")
    if isinstance(final_factor, bool) or not isinstance(final_factor, int | float):
        raise TypeError(f"final_factor={final_factor!r}: must be a number")
    if not 0 <= final_factor <= 1:
        raise ValueError(f"final_factor={final_factor!r}: must be from 0 to 1")
    return total_steps
