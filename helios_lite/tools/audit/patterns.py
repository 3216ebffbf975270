"""What samples have in common: with each other, and a target with its input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from helios_lite.nested import leaves
from helios_lite.tools.audit.record import as_tensor

_TARGETS = {"y", "target", "targets", "label", "labels"}
_MOST_SAMPLES, _MOST_ELEMENTS = 400, 4096  # Of which dependence is computed.
_FEWEST = 16  # Samples that have something in common by more than chance.
_PERMUTATIONS = 199
_RUN, _DISTINCT = 8, 6  # The length of a run of values, and how many of them differ.
_INTEGER_RUN = 16
_MOST_RUNS = 512  # Of a sample that are kept, about.
_MOST_COLUMNS, _MOST_VALUES = 256, 20_000  # Elements of a sample that are taken apart, and values of one that are used.
_OTHER_SCALE, _SAME_FORM = 2.0, 0.2  # A ratio of standard deviations, and a difference of standardized quantiles.
Spread = tuple[tuple[int, ...], Tensor, Tensor, Tensor]
"""Of an input its shape, and of each of its columns the mean, the standard deviation and standardized quantiles."""


def target_of(sample: Any) -> Tensor | None:
    """Return the target of a sample: the last one of a tuple, or the part with such a name; None if there is none."""
    if isinstance(sample, Mapping):
        names = [name for name in sample if name in _TARGETS]
        return _number(sample[names[0]]) if len(names) == 1 and len(sample) > 1 else None
    return _number(sample[-1]) if isinstance(sample, tuple | list) and len(sample) > 1 else None


def inputs_of(sample: Any) -> list[Tensor]:
    """Return the tensors of a sample but its target."""
    if isinstance(sample, Mapping):
        parts: Any = [value for name, value in sample.items() if name not in _TARGETS]
    else:
        parts = list(sample[:-1])
    tensors = [_number(leaf) for _, leaf in leaves(parts)]
    return [tensor for tensor in tensors if tensor is not None and tensor.numel() > 0]


def only_target(samples: Sequence[Any]) -> int | None:
    """Return the integer that all targets are, None if there are others or few samples."""
    targets = [target_of(sample) for sample in samples]
    if len(samples) < _FEWEST or any(y is None or y.is_floating_point() or y.numel() == 0 for y in targets):
        return None
    values = {int(value) for y in targets if y is not None for value in (y.min(), y.max())}
    return values.pop() if len(values) == 1 else None


def is_sorted_by_class(samples: Sequence[Any]) -> bool:
    """Return whether each of several classes is one block of samples, which are in the order in which they are read."""
    targets = [target_of(sample) for sample in samples]
    if len(samples) < 4 * _FEWEST or any(y is None or y.is_floating_point() or y.numel() != 1 for y in targets):
        return False
    values = [int(y) for y in targets if y is not None]
    number = len(set(values))
    changes = sum(a != b for a, b in itertools.pairwise(values))
    return 2 <= number <= len(values) // 8 and changes == number - 1


def spreads(samples: Sequence[Any]) -> list[Spread]:
    """Return how the values of each input are spread: of each element of short ones, and of all elements of others."""
    found = []
    for x in _stacked(samples) if len(samples) >= 2 * _FEWEST else []:
        if x.is_floating_point():
            columns = x if x.shape[1] <= _MOST_COLUMNS else x.flatten()[:, None]
            columns = columns[:: 1 + len(columns) // _MOST_VALUES].double().nan_to_num()
            means, scales = columns.mean(0), columns.std(0)
            levels = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
            shape = ((columns - means) / scales.clamp(min=1e-12)).quantile(levels, 0)
            found.append((tuple(x.shape[1:]), means, scales, shape))
    return found


def scale_of_targets(samples: Sequence[Any]) -> float:
    """Return the standard deviation of targets that are floats, 0 if they are none."""
    targets = [target_of(sample) for sample in samples]
    if len(samples) < 2 or any(y is None or not y.is_floating_point() for y in targets):
        return 0.0
    return float(torch.cat([y.double().flatten() for y in targets if y is not None]).nan_to_num().std())


def rescaled(train: Sequence[Spread], other: Sequence[Spread]) -> str:
    """Return which input of a split is that of the training times one number plus another, "" if none is.

    Data may drift. So it is said only of distributions that have the same form before they are moved and scaled.
    """
    if [each[0] for each in train] != [each[0] for each in other]:
        return ""
    for i, ((_, mean_a, scale_a, form_a), (_, mean_b, scale_b, form_b)) in enumerate(zip(train, other, strict=True)):
        varied = (scale_a > 1e-9) & (scale_b > 1e-9)
        ratio = (scale_b / scale_a.clamp(min=1e-12)).clamp(min=1e-12).log().abs()
        is_other = varied & (ratio > math.log(_OTHER_SCALE))
        is_alike = (form_a - form_b).abs().amax(0) < _SAME_FORM
        if int(varied.sum()) and 2 * int((is_other & is_alike).sum()) > int(varied.sum()):
            k = int((is_other & is_alike).nonzero()[0])
            return (
                f"part {i} has the mean {float(mean_b[k]):.3g} and the standard deviation {float(scale_b[k]):.3g}, and "
                f"{float(mean_a[k]):.3g} and {float(scale_a[k]):.3g} in the training, and is distributed alike"
            )
    return ""


def target_in_input(samples: Sequence[Any]) -> str:
    """Return where each element of a target is among the floats of the input, "" if it is not always there.

    A target that is as large as half of the input is no such thing: an autoencoder has one, or a shifted series.
    """
    targets = [target_of(sample) for sample in samples]
    if len(samples) < _FEWEST or any(y is None for y in targets):
        return ""
    if len({y.shape for y in targets if y is not None}) != 1:
        return ""
    y = torch.stack([y.flatten() for y in targets if y is not None])
    if y.numel() == 0 or len(set(y[:, 0].tolist())) < (_FEWEST // 2 if y.is_floating_point() else 2):
        return ""
    for i, x in enumerate(_stacked(samples)):
        if not x.is_floating_point() or y.shape[1] * 2 > x.shape[1]:
            continue
        places = [(x == y[:, k : k + 1]).all(0).nonzero().flatten().tolist() for k in range(y.shape[1])]
        if all(places):
            return f"the target is element {places[0][0]} of the {x.shape[1]} of part {i}"
    return ""


def probability_if_independent(samples: Sequence[Any]) -> float | None:
    """Return the probability of such a relation of inputs and targets, or of a stronger one, if they were independent.

    It is that of a permutation test of the distance covariance (Szekely, Rizzo, Bakirov: Measuring and testing
    dependence by correlation of distances, 2007) of the input that is most related to the target. None if samples have
    no target, or inputs of several shapes only.
    """
    samples = samples[:_MOST_SAMPLES]
    targets = [target_of(sample) for sample in samples]
    if len(samples) < 2 * _FEWEST or any(y is None or y.numel() == 0 for y in targets):
        return None
    if len({y.shape for y in targets if y is not None}) != 1:
        return None
    y = _centered_distances(torch.stack([y.flatten() for y in targets if y is not None]))
    inputs = [_centered_distances(x) for x in _stacked(samples) if x.shape[1] <= _MOST_ELEMENTS]
    if y is None or not inputs or all(x is None for x in inputs):
        return None
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(y), generator=generator) for _ in range(_PERMUTATIONS)]
    best = 1.0
    for x in inputs:
        if x is not None:
            found = float((x * y).mean())
            larger = sum(float((x * y[order][:, order]).mean()) >= found for order in orders)
            best = min(best, (1 + larger) / (1 + _PERMUTATIONS))
    return min(1.0, best * len(inputs))


def _centered_distances(values: Tensor) -> Tensor | None:
    """Return the doubly centered distances of rows; None if all are the same."""
    if values.is_floating_point():
        values = values.double().nan_to_num()
        values = (values - values.mean(0)) / values.std(0).clamp(min=1e-12)
        distances = torch.cdist(values, values)
    else:  # Categories: how many differ.
        distances = torch.cdist(values.double(), values.double(), p=0)
    if not bool(distances.any()):
        return None
    return distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()


def runs(sample: Any) -> set[int]:
    """Return hashes of runs of values in a sample: of several different values in a row; of a long one some of them."""
    found = set[int]()
    for _, leaf in leaves(sample):
        tensor = _number(leaf)
        if tensor is None or tensor.dtype is torch.bool:
            continue
        values = tensor.flatten().double() if tensor.is_floating_point() else tensor.flatten().long()
        has_levels = not tensor.is_floating_point() or 2 * len(set(values.tolist())) < len(values)
        length = _INTEGER_RUN if has_levels else _RUN  # Of few levels, as in an image, short runs are equal by chance.
        if len(values) < length:
            continue
        rows = values.unfold(0, length, 1)
        ordered = rows.sort(1).values
        is_varied = (ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1 >= _DISTINCT
        factors = 2 * torch.arange(length) + 0x5851F42D4C957F2D
        hashes = (_mixed(values.view(torch.int64)).unfold(0, length, 1) * factors).sum(1)[is_varied]
        found.update(hashes[hashes % (1 + len(values) // _MOST_RUNS) == 0].tolist())
    return found


def _mixed(bits: Tensor) -> Tensor:
    """Return 64-bit integers that depend on all bits of others, as SplitMix64 makes them (Steele, Lea, Flood, 2014).

    Numbers such as 0.25 have zeros in nearly all bits, of which a sum of multiples would depend on a few only.
    """
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits = (bits ^ (bits >> shift)) * factor
    return bits ^ (bits >> 31)


def shares_runs(own: set[int], counts: Mapping[int, int], most: int) -> bool:
    """Return whether half or more of the runs of a sample are in train samples, without those that most of them have.

    Args:
        own: the runs of a sample.
        counts: in how many train samples each run is.
        most: the number of samples from which on a run is what all have, such as a position.
    """
    own = {run for run in own if counts.get(run, 0) <= most}
    return len(own) > 0 and 2 * sum(run in counts for run in own) >= len(own)


def _stacked(samples: Sequence[Any]) -> list[Tensor]:
    """Return each input of all samples as rows; without those whose shapes differ."""
    rows = [inputs_of(sample) for sample in samples]
    if len({len(row) for row in rows}) != 1:
        return []
    columns = [*zip(*rows, strict=True)]
    return [
        torch.stack([each.flatten() for each in column]) for column in columns if len({x.shape for x in column}) == 1
    ]


def _number(value: Any) -> Tensor | None:
    if isinstance(value, bool | int | float):
        return torch.tensor(value)
    tensor = as_tensor(value)
    return None if tensor is None or tensor.is_complex() else tensor.detach()
