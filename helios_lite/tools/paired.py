"""The statistics of paired differences, from their definitions: a t interval, an exact sign-flip test, and how many
pairs would tell.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEVEL = 0.95
_POWER = 0.8
_MOST_PAIRS = 40  # Of the exact test: it sorts 2^20 sums then.
_FEWEST_TOLD = 6  # 2 / 2^5 is more than 5 %, so no five differences pass the exact test.
_MOST_NEEDED = 10_000


@dataclasses.dataclass(frozen=True)
class Paired:
    """What paired differences tell.

    Attributes:
        mean: the mean of the differences.
        low, high: its 95 % interval.
        p_value: that of the exact sign-flip test.
        is_told: whether the mean is told from 0: the interval leaves it out, and the test rejects it at 5 %. Both are
            required, as differences need not be normal, so at most 5 % of pairs without a difference are told apart.
        needed: how many pairs would tell a mean of this size with a probability of 0.8, as far as its standard
            deviation is known; None if no number up to 10,000 would.
    """

    mean: float
    low: float
    high: float
    p_value: float
    is_told: bool
    needed: int | None


def paired(differences: Sequence[float], rounding: float = 0.0) -> Paired:
    """Return what at least two and at most 40 paired differences tell.

    Args:
        differences: one for each pair.
        rounding: by how much each of them may be off because numbers were rounded.
    """
    mean, half = statistics.fmean(differences), t_half_width(differences)
    p_value = sign_flip_p_value(differences, rounding)
    is_told = not mean - half <= 0.0 <= mean + half and p_value <= 1 - LEVEL
    return Paired(mean, mean - half, mean + half, p_value, is_told, _needed(mean, statistics.stdev(differences)))


def t_half_width(differences: Sequence[float]) -> float:
    """Return half of the width of the 95 % interval of the mean: t times the standard error, t of Student."""
    count = len(differences)
    return t_quantile(0.5 + LEVEL / 2, count - 1) * statistics.stdev(differences) / math.sqrt(count)


def sign_flip_p_value(differences: Sequence[float], rounding: float = 0.0) -> float:
    """Return the part of the 2^n choices of the n signs for which the sum is at least as far from 0 as it is.

    If a pair is as likely to be the other way round, all choices are equally likely, whatever the distribution is. The
    sums of two halves are sorted, so that 2^(n/2) of them are looked at. Of at most 40 differences.

    Args:
        differences: one for each pair.
        rounding: by how much each may be off: sums that are as far from 0 but for that count.
    """
    sizes = torch.tensor([abs(each) for each in differences], dtype=torch.float64)
    if not 1 <= len(sizes) <= _MOST_PAIRS:
        raise ValueError(f"differences: must be 1 to {_MOST_PAIRS}, not {len(sizes)}")
    # The order of adding rounds too.
    slack = len(sizes) * (rounding + 1e-14 * float(sizes.max()))
    far = abs(math.fsum(differences)) - slack
    if far <= 0.0:
        return 1.0
    left, right = _sums(sizes[: len(sizes) // 2]), _sums(sizes[len(sizes) // 2 :])
    right = right.sort().values
    # For each sum of the left half: how many of the right one bring it to `far` or more; as many to -far or less.
    above = len(right) - torch.searchsorted(right, far - left)
    return float(2 * int(above.sum()) / 2 ** len(sizes))


def _sums(sizes: Tensor) -> Tensor:
    """Return the sums of numbers with all choices of signs."""
    sums = torch.zeros(1, dtype=torch.float64)
    for size in sizes:
        sums = torch.cat((sums + size, sums - size))
    return sums


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return the value that a t-distributed number is below with a probability of at least one half."""
    return _inverse(lambda t: 0.5 + 0.5 * _inside(t, freedom), probability)


def _inside(t: float, freedom: int) -> float:
    """Return the probability that a t-distributed number is between -t and t.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom == 1:
        return 2 * angle / math.pi
    is_odd = freedom % 2
    term = total = cosine if is_odd else 1.0
    for i in range(2 if is_odd else 1, freedom - 1, 2):
        term *= cosine * cosine * i / (i + 1)
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def _inverse(function: Callable[[float], float], value: float) -> float:
    """Return where a growing function has a value, which is at 0 or above, by bisection."""
    low, high = 0.0, 1.0
    while function(high) < value:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return high


def _needed(mean: float, deviation: float) -> int | None:
    """Return how many pairs tell a mean with a probability of 0.8, which then is the sum of two t standard errors."""
    if mean == 0.0:
        return None
    normal = statistics.NormalDist()
    ratio = deviation / abs(mean)
    count = (normal.inv_cdf(0.5 + LEVEL / 2) + normal.inv_cdf(_POWER)) ** 2 * ratio**2
    if count > _MOST_NEEDED:
        return None
    needed = max(_FEWEST_TOLD, math.ceil(count))
    if needed > 100:  # The distributions are the same.
        return needed
    while (t_quantile(0.5 + LEVEL / 2, needed - 1) + t_quantile(_POWER, needed - 1)) * ratio > math.sqrt(needed):
        needed += 1
    return needed
