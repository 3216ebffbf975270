"""The relations between trials that compute the same sums in another order, or the same expectations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from helios_lite.tools.audit.bits import WATCHED, base
from helios_lite.tools.audit.processes import Trials
from helios_lite.tools.audit.record import Facts, Record
from helios_lite.tools.audit.trial import (
    EPOCH_STEPS,
    WITHOUT_VALIDATION,
    WITHOUT_WORKERS,
    Break,
    NotApplicable,
    Trial,
)

TOLERANCE = 1e-3
"""Relative difference of gradients and losses below which the order of the sums explains it."""
SCALE_TOLERANCE = 0.05  # The same for gradients of fp16, whose small values are rounded away.
MOVED_TOLERANCE = 0.05  # The same for metrics of weights that were moved far.
REPEATS = 24  # How often something random is repeated for its mean.
STANDARD_ERRORS = 5.0  # By how many of them two means must differ.
RANDOM_TOLERANCE = 0.02  # The same for means of what is random: that of a ratio is not the ratio of the means.
PROBE = Trial(steps=2, options=WITHOUT_VALIDATION, is_evaluating=True, repeats=2, changes_targets=True)
"""The same batch twice."""
_SIZES = (13, 11, 7, 5, 3, 2)  # Of a batch whose samples are compared: a number that features hardly have.
_TRAINING_ONLY = {**WITHOUT_VALIDATION, "limit_valid_batches": None, "steps_per_epoch": None}
_COMPARABLE = {**_TRAINING_ONLY, "precision": "fp32", "clip_norm": None}
"""Options of trials whose losses and gradients are compared."""


def probe(trials: Trials) -> Facts:
    """Return what is to know of the program; `NotApplicable` if it does not train, or no loss is a mean of samples."""
    first, watched = base(trials).facts, trials.kept(WATCHED).checked("the training", NotApplicable).facts
    record = trials.kept(PROBE).checked("a training in evaluation mode", NotApplicable)
    facts = dataclasses.replace(
        record.facts,
        num_optimizers=first.num_optimizers,
        draws_in_validation=first.draws_in_validation,
        compares_samples=watched.compares_samples,
        moves_weights=watched.moves_weights,
        moves_averages=watched.moves_averages,
    )
    if facts.num_losses == 0:
        raise NotApplicable("no loss is passed to Model.backward")
    if facts.carries_state:
        raise NotApplicable("the loss of a batch depends on the batches before it (a state or a queue is carried over)")
    return facts


def _of_samples(trials: Trials) -> Facts:
    """Return what `probe` does; `NotApplicable` if the loss is that of a batch by intention, and not of its samples."""
    facts = probe(trials)
    if facts.mixes_samples:
        raise NotApplicable("collate_fn draws random numbers, so that a batch is more than its samples (mixing)")
    if facts.compares_samples:
        raise NotApplicable(
            f"a loss compares all pairs of samples of a batch ({facts.compares_samples}), so that it is none of samples"
        )
    if facts.moves_weights and facts.num_optimizers < 2:
        raise NotApplicable("train_step moves the weights before it computes the loss, as sharpness-aware minimization")
    return facts


def _unless_coupled(trials: Trials, compare: Callable[[Trials, Facts], str]) -> str:
    """Return what a comparison says; `NotApplicable` if it differs, and the form of the loss couples the samples."""
    facts = _of_samples(trials)
    try:
        return compare(trials, facts)
    except Break as difference:
        if coupled := _coupled(trials, facts):
            raise NotApplicable(f"{difference}; the loss is that of a batch by its form ({coupled})") from difference
        raise


def _coupled(trials: Trials, facts: Facts) -> str:
    """Return what couples the samples of a batch, "" if nothing is known to."""
    if facts.train_kind in ("loader", "several") or facts.batch_size < 2:
        return ""
    return trials.kept(_of_losses(trials, facts, _size(facts), 1)).coupled


def check_accumulation(trials: Trials) -> str:
    """Compare the gradients of one large batch with those of a window of micro-batches with the same samples."""
    return _unless_coupled(trials, _compare_accumulation)


def _compare_accumulation(trials: Trials, facts: Facts) -> str:
    if facts.train_kind in ("loader", "several"):
        raise NotApplicable("the train split is a loader of its own, whose batches cannot be halved, or several splits")
    if facts.num_optimizers > 1:
        raise NotApplicable("several optimizers step in turn, so that later losses depend on earlier steps")
    if facts.moves_averages and facts.accumulation_steps == 1:
        raise NotApplicable("train_step moves an average itself, so that a window would move it several times")
    window = max(2, facts.accumulation_steps)
    size = facts.batch_size if facts.accumulation_steps > 1 else max(1, facts.batch_size // 2)
    large = _gradients(trials, facts, f"a batch of {size * window}", size * window, 1)
    small = _gradients(trials, facts, f"{window} micro-batches of {size}", size, window)
    _compare_gradients(large, small, f"with {window} micro-batches of {size} for a batch of {size * window}", facts)
    return f"gradients of {len(large.steps)} steps: one batch of {size * window}, {window} of {size}"


def check_devices(trials: Trials) -> str:
    """Compare the gradients of one process with those of several that share its batches."""
    number = trials.processes
    if number < 2:
        raise NotApplicable("one process was asked for (--devices)")
    return _unless_coupled(trials, _compare_devices)


def _compare_devices(trials: Trials, facts: Facts) -> str:
    number = trials.processes
    if facts.train_kind != "map":
        raise NotApplicable(
            "the train split has no indices, so it decides itself what each process reads, or is several"
        )
    size = max(1, facts.batch_size // number)
    options = {"accelerator": "cpu"} if 0 < torch.accelerator.device_count() < number else {}
    one = _gradients(trials, facts, f"one process, {size * number}", size * number, 1, options)
    several = _gradients(trials, facts, f"{number} processes, {size}", size, 1, options, number)
    _compare_gradients(one, several, f"with {number} processes", facts)
    return f"gradients of {len(one.steps)} steps: batches of {size * number}, or of {size} in {number} processes"


def _gradients(
    trials: Trials, facts: Facts, name: str, size: int, window: int, options: Any = None, processes: int = 1
) -> Record:
    """Return the gradients of steps at the same weights, those after some updates.

    The last window of samples is not full, unless the program drops batches that are not.
    """
    total = size * window * processes
    length = EPOCH_STEPS * total if facts.drop_last else (EPOCH_STEPS - 1) * total + total // 2 + 1
    if facts.draws_in_training:
        limits: dict[str, Any] = {"overfit_batches": window, "limit_train_batches": None}
    else:
        limits = {"limit_train_batches": EPOCH_STEPS * window}
    if facts.train_kind == "iterable":
        length = 0
    trial = Trial(
        steps=REPEATS if facts.draws_in_training else EPOCH_STEPS,
        options={**_COMPARABLE, "accumulation_steps": window, **limits, **(options or {})},
        train={**WITHOUT_WORKERS, "batch_size": size},
        train_samples=length or None,
        is_evaluating=True,
        keeps_weights=True,
        starts_from=base(trials).weights,
        records_gradients=True,
        processes=processes,
    )
    raises = Break if processes > 1 else NotApplicable  # A program may need batches of its size.
    return trials.kept(trial).checked(f"with batches of {size} ({name}) the training", raises)


def _compare_gradients(expected: Record, found: Record, when: str, facts: Facts) -> None:
    if facts.draws_in_training:
        _compare_means(expected, found, when)
        return
    for i, (a, b) in enumerate(zip(expected.steps, found.steps, strict=False)):
        if repr(a.rates) != repr(b.rates):
            raise Break(f"{when} step {i + 1} has the learning rate {b.rates[:1]}, otherwise {a.rates[:1]}")
        if (difference := _largest_difference(a.gradients, b.gradients)) is not None:
            raise Break(f"{when} the gradient of step {i + 1} differs: {difference}")
    if len(expected.steps) != len(found.steps):
        raise Break(f"{when} the epoch has {len(found.steps)} steps, otherwise {len(expected.steps)}")


def _largest_difference(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = TOLERANCE) -> str | None:
    """Return how two gradients differ, None if it is within the tolerance."""
    if a.keys() != b.keys():
        return f"only one has {min(a.keys() ^ b.keys())}"
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in a.values()))
    differences = {name: float((a[name].double() - b[name].double()).norm()) for name in a}
    total = math.sqrt(sum(value**2 for value in differences.values()))
    if total <= tolerance * norm or not math.isfinite(norm):
        return None
    name = max(differences, key=lambda name: differences[name])
    ratio = float(b[name].double().norm() / a[name].double().norm()) if float(a[name].norm()) > 0 else math.inf
    return f"by {total / norm:.2g} of its norm, most in {name} (norms have the ratio {ratio:.3g})"


def _compare_means(expected: Record, found: Record, when: str) -> None:
    """Compare mean gradients over repeated steps, by their standard errors."""
    means, errors, names = [], [], list[set[str]]()
    for record in (expected, found):
        # Some parameters may have gradients in some of the steps only, as of networks that are trained in turn.
        shapes = {name: value for step in record.steps for name, value in step.gradients.items()}
        names.append(set(shapes))
        rows = torch.stack(
            [
                torch.cat([step.gradients.get(name, shapes[name] * 0).double().flatten() for name in sorted(shapes)])
                for step in record.steps
            ]
        )
        means.append(rows.mean(0))
        errors.append(float(rows.var(0).sum()) / len(rows))
    if names[0] != names[1]:
        raise Break(f"{when} other parameters have gradients, such as {min(names[0] ^ names[1])}")
    distance, norm = float((means[0] - means[1]).norm()), float(means[0].norm())
    error = math.sqrt(errors[0] + errors[1])
    if distance > STANDARD_ERRORS * error + RANDOM_TOLERANCE * norm:
        raise Break(
            f"{when} the mean gradient over {len(expected.steps)} repetitions differs by {distance:.3g}, "
            f"its norm is {norm:.3g} and its standard error {error:.3g}"
        )


def check_samples_alone(trials: Trials) -> str:
    """Compare the loss of a batch with the weighted mean of the losses of its samples."""
    return _unless_coupled(trials, _compare_samples)


def _compare_samples(trials: Trials, facts: Facts) -> str:
    if facts.train_kind in ("loader", "several"):
        raise NotApplicable(
            "the train split is a loader of its own, whose batches cannot be divided, or several splits"
        )
    if min(facts.batch_size, facts.length or 2) < 2:
        raise NotApplicable("batches have one sample")
    size = _size(facts)
    together, alone = (
        trials.kept(_of_losses(trials, facts, *sizes)).checked(
            f"with batches of {sizes[0]} the training", NotApplicable
        )
        for sizes in ((size, 1), (1, size))
    )
    for position in range(facts.num_losses):
        totals, weights = _weighted_mean(together, position, facts.num_losses, [size])
        totals_alone, weights_alone = _weighted_mean(alone, position, facts.num_losses, [1] * size)
        (expected, error), (found, error_alone) = (
            _ratio_and_error(totals, weights),
            _ratio_and_error(totals_alone, weights_alone),
        )
        (weight, weight_error), (other, other_error) = map(_mean_and_error, (weights, weights_alone))
        which = "loss" if facts.num_losses == 1 else f"loss {position + 1}"
        if abs(weight - other) > TOLERANCE * abs(weight) + STANDARD_ERRORS * math.hypot(weight_error, other_error):
            raise Break(f"the weight of a batch of {size} is {weight:.6g}, but its samples alone have {other:.6g}")
        if not math.isfinite(found):
            raise NotApplicable("the loss of a sample alone is not finite")
        tolerance = RANDOM_TOLERANCE if facts.draws_in_training else TOLERANCE
        allowed = tolerance * max(abs(expected), abs(found)) + STANDARD_ERRORS * math.hypot(error, error_alone) + 1e-6
        if abs(expected - found) > allowed:
            raise Break(
                f"the {which} of a batch of {size} is {expected:.6g}, the mean of its samples alone {found:.6g}"
            )
    return f"{size} samples together and alone" + (f", {REPEATS} times" if facts.draws_in_training else "")


def _size(facts: Facts) -> int:
    """Return how many samples are compared with a batch of them."""
    most = max(2, min(facts.batch_size, facts.length or max(_SIZES)))
    return next(size for size in _SIZES if size <= most)


def _of_losses(trials: Trials, facts: Facts, size: int, steps: int) -> Trial:
    """Return the trial of the losses of batches of a size."""
    repeats = REPEATS if facts.draws_in_training else 1
    limit = None if facts.train_kind == "map" else steps
    return Trial(
        steps=steps,
        options={**_COMPARABLE, "accumulation_steps": 1, "limit_train_batches": limit},
        train={**WITHOUT_WORKERS, "batch_size": size, "drop_last": False},
        train_samples=size * steps,
        is_evaluating=True,
        keeps_weights=True,
        starts_from=base(trials).weights,
        repeats=repeats,
        looks_for_couplings=steps == 1,
    )


def _weighted_mean(record: Record, position: int, num_losses: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of a loss over all batches, and the sum of the weights, in each repetition."""
    totals, weights = [], []
    for step, size in zip(record.steps, sizes, strict=True):
        losses = step.losses[position::num_losses]
        weight = torch.tensor([size if each is None else each for _, each in losses], dtype=torch.float64)
        value = torch.tensor([value for value, _ in losses], dtype=torch.float64)
        totals.append(torch.where(weight == 0, 0.0, weight * value))
        weights.append(weight)
    return torch.stack(totals).sum(0), torch.stack(weights).sum(0)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of repetitions and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _ratio_and_error(totals: Tensor, weights: Tensor) -> tuple[float, float]:
    """Return the ratio of the means of repetitions and its standard error."""
    if not bool(weights.any()):
        return 0.0, 0.0
    ratio = totals.mean() / weights.mean()
    return float(ratio), _mean_and_error((totals - ratio * weights) / weights.mean())[1]


def check_valid_batch_size(trials: Trials) -> str:
    """Compare the metrics of validations with two batch sizes."""
    facts = base(trials).facts
    if not facts.has_valid:
        raise NotApplicable("there is no validation split")
    if not facts.is_valid_map_style:
        raise NotApplicable("a validation split is a loader of its own, or has no indices")
    if facts.draws_in_validation:
        raise NotApplicable("valid_step draws random numbers (see the relation modes)")
    if trials.kept(PROBE).facts.carries_state:
        raise NotApplicable("a state is carried over batches")
    if pairs := trials.kept(WATCHED).facts.compares_samples:
        raise NotApplicable(f"a loss compares all pairs of samples of a batch ({pairs})")
    size = max(2, facts.valid_batch_size)
    length = min(facts.valid_length, 2 * size + size // 2 + 1)
    smaller = max(1, min(size, length) // 2 - 1)
    records = [_validated(trials, batch_size, length) for batch_size in (size, smaller)]
    if not any(value for record in records for found in record.validations for value in found.values()):
        raise NotApplicable("all metrics are 0")
    larger, small = (record.validations for record in records)
    differences = dict[str, str]()
    for number, (expected, found) in enumerate(zip(larger, small, strict=False)):
        when = " and weights that were moved at random" if number else ""
        before = [*larger[:number], *small[:number]] if number > 1 else []
        for name in _different(expected, found, records[0].reduced, before):
            a, b = expected.get(name, math.nan), found.get(name, math.nan)
            text = f"{name} is {a:.6g} with batches of {size} and {b:.6g} with batches of {smaller}{when}"
            differences.setdefault(name, text)
    of_losses = ("loss", *(f"/{name}" for name in records[0].trained_names))
    losses = [name for name in differences if name.endswith(of_losses)]
    coupled = _coupled(trials, trials.kept(PROBE).facts) if losses else ""
    for name in losses if coupled else ():
        text = differences.pop(name)
        if not differences:
            raise NotApplicable(f"{text}; the loss is that of a batch by its form ({coupled})")
    if differences:
        raise Break("; ".join([*differences.values()][:4]))
    return f"{len(records[0].validations[0])} metrics of {length} samples in batches of {size} and {smaller}"


def _different(
    a: dict[str, float], b: dict[str, float], reduced: dict[str, str], before: Sequence[dict[str, float]]
) -> list[str]:
    """Return the names of metrics that differ.

    Args:
        a, b: the metrics of two batch sizes.
        reduced: how each is reduced.
        before: those of validations with weights that were moved less. After some, where the weights are so large that
            rounding may show, only what was always 0 or 1 is compared, and by more.
    """
    order = {name for name, reduce in reduced.items() if set(reduce.split(",")) - {"mean", "sum", "last"}}
    tolerance, found = MOVED_TOLERANCE if before else TOLERANCE, []
    for name, value in a.items():
        other = b.get(name, math.nan)
        is_of_order = name.split("/", 1)[-1].split("/")[0] in order or any(name.endswith(f"/{each}") for each in order)
        if is_of_order or (before and not math.isfinite(value + other)):
            continue
        if any(each.get(name) not in (0.0, 1.0) for each in before):
            continue
        is_other = abs(value - other) > tolerance * max(abs(value), abs(other)) + 1e-6
        if is_other or math.isnan(value) != math.isnan(other):
            found.append(name)
    return found


def _validated(trials: Trials, size: int, length: int) -> Record:
    """Return the record of validations of the first samples, with trained weights and with others."""
    options = {**WITHOUT_VALIDATION, "sanity_batches": length, "limit_valid_batches": None, "precision": "fp32"}
    trial = Trial(
        steps=3,
        options={**options, "valid_every_steps": 1, "check_finite": False},
        valid={**WITHOUT_WORKERS, "batch_size": size, "drop_last": False},
        valid_samples=length,
        starts_from=base(trials).weights,
        stirs_weights=True,
    )
    record = trials.run(trial)  # With weights that were moved, steps may fail; what was validated before is compared.
    if not record.validations:
        record.checked(f"with validation batches of {size} the training", NotApplicable)
        raise Break(f"with validation batches of {size} there is no validation")
    return record


def check_loss_scale(trials: Trials) -> str:
    """Compare the gradients of fp16 with two scales of the loss."""
    facts = base(trials).facts
    if facts.precision != "fp16":
        raise NotApplicable('precision is not "fp16"')
    scales = (2.0**14, 2.0**7)
    records = []
    for scale in scales:
        trial = Trial(steps=1, loss_scale=scale, records_gradients=True, is_evaluating=True)
        record = trials.run(trial).checked(f"the training with the scale {scale:g}", NotApplicable)
        if not record.steps:
            raise NotApplicable(f"with the scale {scale:g} there is no step")
        records.append(record)
    a, b = (record.steps[0].gradients for record in records)
    if (difference := _largest_difference(a, b, SCALE_TOLERANCE)) is not None:
        raise Break(f"with the scale {scales[1]:g} in place of {scales[0]:g} the gradient differs: {difference}")
    return f"gradients with the scales {scales[0]:g} and {scales[1]:g}"


def check_overfit(trials: Trials) -> str:
    """Train on one batch again and again, until its loss has halved."""
    facts = _probe_learning(trials)
    options = {**_TRAINING_ONLY, "overfit_batches": facts.accumulation_steps, "limit_train_batches": None}
    trial = Trial(150, options, WITHOUT_WORKERS, is_evaluating=True, holds_rate=True, ends_when=has_halved)
    record = trials.run(trial).checked("with one batch the training")
    losses, rates = record.mean_losses(), [rate for step in record.steps for rate in step.rates]
    first, last = losses[0], _last_loss(losses)
    what = f"the loss of one batch went from {first:.4g} to {last:.4g} in {len(losses)} steps"
    if last > first + 0.01 * abs(first) or not math.isfinite(last):
        raise Break(what)
    if len(set(losses)) == 1 and len(losses) > 1 and any(rates):
        raise Break(f"{what}: it does not change")
    if last > first - 0.1 * abs(first):
        raise NotApplicable(f"{what}: too slowly to tell")
    return what


def has_halved(losses: Sequence[float], held_out: Sequence[float]) -> bool:
    """Return whether the loss of one batch has fallen by half, which leaves no doubt that it can be overfitted."""
    return _last_loss(losses) < losses[0] - 0.5 * abs(losses[0])


def _last_loss(losses: Sequence[float]) -> float:
    return sum(losses[-3:]) / len(losses[-3:])


def check_pairing(trials: Trials) -> str:
    """Train on every other sample, until the loss of the samples between them has fallen as well."""
    read = trials.kept(WATCHED).checked("the training", NotApplicable).samples.get("train")
    if read is None:
        raise NotApplicable("the train split has no indices")
    if not read.has_target:
        raise NotApplicable("samples have no input and target apart")
    if read.probability is not None and read.probability <= 0.01:
        return f"inputs and targets depend on each other (a permutation test has p = {read.probability:.3g})"
    facts = _probe_learning(trials)
    if (facts.length or 0) < 64:
        raise NotApplicable("the train split has fewer than 64 samples")
    options = {**_TRAINING_ONLY, "limit_train_batches": None, "max_epochs": None}
    trial = Trial(
        400, options, WITHOUT_WORKERS, is_evaluating=True, holds_rate=True, holds_out=True, ends_when=has_generalized
    )
    record = trials.run(trial).checked("the training", NotApplicable)
    losses, held_out = record.mean_losses(), record.held_out
    first, last = _both_ends(losses)
    before, best = held_out[0], min(held_out)
    what = (
        f"in {len(losses)} steps the loss went from {first:.4g} to {last:.4g}, that of samples that were not trained "
        f"on from {before:.4g} to {best:.4g} at best"
    )
    if first - last < 0.3 * abs(first) or len(held_out) < 4:
        raise NotApplicable(f"{what}: too slowly to tell")
    if before - best < 0.1 * (first - last):
        if read.probability is None or read.probability < 0.1:
            raise NotApplicable(f"{what}: a hard task, or one that is not learned from so few samples")
        raise Break(f"{what}; a permutation test of inputs and targets has p = {read.probability:.3g}")
    return what


def has_generalized(losses: Sequence[float], held_out: Sequence[float]) -> bool:
    """Return whether the loss of samples that are left out has fallen as much as it must if all others are learned."""
    first, last = _both_ends(losses)
    has_learned = first - last >= 0.3 * abs(first) and len(held_out) >= 4
    return has_learned and held_out[0] - min(held_out) >= 0.1 * max(abs(first), first - last)


def _both_ends(losses: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the first losses, and of as many last ones."""
    size = max(1, min(10, len(losses) // 4))
    return sum(losses[:size]) / size, sum(losses[-size:]) / size


def _probe_learning(trials: Trials) -> Facts:
    """Return what is to know of the program; `NotApplicable` if its loss need not fall."""
    facts = probe(trials)
    if facts.num_optimizers > 1:
        raise NotApplicable("several optimizers may have losses that work against each other")
    if facts.draws_in_training:
        raise NotApplicable("train_step draws random numbers, so that a batch is another one each time")
    if facts.train_kind != "map":
        raise NotApplicable("the train split has no indices, or there are several")
    return facts
