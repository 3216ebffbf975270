"""The relations between trials that must be equal bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

from helios_lite.tools.audit.processes import Trials
from helios_lite.tools.audit.program_data import MOST_STREAMED
from helios_lite.tools.audit.record import Record, Step
from helios_lite.tools.audit.trial import (
    EPOCH_STEPS,
    WITHOUT_VALIDATION,
    WITHOUT_WORKERS,
    Break,
    NotApplicable,
    Trial,
)

BASE = Trial(records_bits=True, saves_weights=True)
"""The program as it is, with small epochs."""
WATCHED = Trial(5 * EPOCH_STEPS, train=WITHOUT_WORKERS, valid=WITHOUT_WORKERS, reads_samples=True, watches=True)
"""Some epochs that are watched closely."""


def base(trials: Trials) -> Record:
    """Return the record of the program as it is; `NotApplicable` if it does not train."""
    record = trials.kept(BASE).checked("the training itself", NotApplicable)
    if not record.steps:
        raise NotApplicable("the training makes no step")
    return record


def check_repeat(trials: Trials) -> str:
    """Train again; if that is equal, once more in a new interpreter, whose start takes longer than the training."""
    expected = base(trials)
    _compare(expected, trials.run(_base_with()), "in the second process")
    _compare(expected, trials.run(_base_with(changes_hash_seed=True)), "with other hashes of strings")
    return f"{len(expected.steps)} steps in several processes, one of them with other hashes of strings"


def check_resume(trials: Trials) -> str:
    """End the training twice as a crash would, once inside and once at the end of an epoch, and go on."""
    expected = base(trials)
    saving = {"save_every_steps": 1, "keep_last": 1}
    total = len(expected.steps)
    cuts = [cut for cut in (3, 8) if cut < total]
    if not cuts:
        raise NotApplicable(f"the training ends after {total} steps")
    parts = []
    for i, end in enumerate([*cuts, None]):
        part = trials.run(_base_with(options=saving, ends_after=end), folder="cut")
        parts.append(part.checked(f"{'the resume after' if i else 'the training before'} the crash"))
    for cut, part in zip(cuts, parts[1:], strict=True):
        if part.steps and part.first_step != cut + 1:
            raise Break(f"the resume after step {cut} went on with step {part.first_step}")
    joined = Record(steps=[step for part in parts for step in part.steps])
    _compare(expected, joined, f"after a resume (crashes after the steps {' and '.join(map(str, cuts))})")
    return f"crashes after the steps {' and '.join(map(str, cuts))} of {total}, then a resume"


def check_workers(trials: Trials) -> str:
    """Train with another number of loading processes."""
    expected = base(trials)
    facts = expected.facts
    if facts.train_kind == "loader":
        raise NotApplicable("the train split is a loader of its own")
    if facts.train_kind == "iterable":
        return _check_stream(trials)
    other = 2 if facts.num_workers == 0 else 0
    workers = {"num_workers": other}
    _compare(expected, trials.run(_base_with(train=workers, valid=workers)), f"with {other} workers")
    return f"num_workers={facts.num_workers} and {other}"


def _check_stream(trials: Trials) -> str:
    """Count the samples of a stream with one worker and with as many as the program has."""
    streamed = trials.kept(WATCHED).checked("the training", NotApplicable).streamed
    if not streamed:
        raise NotApplicable("one process reads the stream")
    if None in streamed.values():
        raise NotApplicable(f"the stream has more than {MOST_STREAMED} samples")
    (_, alone), (workers, together) = streamed.items()
    if alone != together:
        raise Break(f"the stream has {alone} samples with one worker, and {together} with {workers}")
    return f"{alone} samples with one worker and with {workers}"


def check_validation(trials: Trials) -> str:
    """Train with a validation after every step, and without any."""
    if not base(trials).facts.has_valid:
        raise NotApplicable("there is no validation split")
    never, often = (
        trials.run(_base_with(options=options)).checked("a training of this kind", NotApplicable)
        for options in (WITHOUT_VALIDATION, {**WITHOUT_VALIDATION, "valid_every_steps": 1})
    )
    for i, (a, b) in enumerate(zip(often.steps, never.steps, strict=False)):
        if repr(a.rates) != repr(b.rates) and (i == 0 or often.steps[i - 1].losses == never.steps[i - 1].losses):
            raise NotApplicable("the learning rate depends on the validations")
    _compare(never, often, "with a validation after every step")
    return f"{len(never.steps)} steps with {len(often.validations)} validations, and without any"


def _base_with(**changes: Any) -> Trial:
    """Return `BASE` with changes."""
    return dataclasses.replace(BASE, saves_weights=False, **changes)


def _compare(expected: Record, found: Record, when: str) -> None:
    """Raise `Break` with the first difference between two trials.

    Args:
        expected: the record to compare with.
        found: the other record.
        when: how the other trial differs, for the message.
    """
    found.checked(f"{when} the training")
    for i, (a, b) in enumerate(zip(expected.steps, found.steps, strict=False)):
        if (difference := _difference(a, b)) is not None:
            raise Break(f"{when} step {i + 1} differs: {difference}")
    if len(expected.steps) != len(found.steps):
        raise Break(f"{when} there are {len(found.steps)} steps, otherwise {len(expected.steps)}")
    for i, (before, after) in enumerate(zip(expected.validations, found.validations, strict=False)):
        if len(expected.validations) == len(found.validations) and _measured(before) != _measured(after):
            names = [name for name in before if before[name] != after.get(name)]
            raise Break(f"{when} validation {i + 1} differs in {names[0] if names else 'its metrics'}")


def _measured(metrics: dict[str, float]) -> dict[str, str]:
    """Return metrics so that NaN is equal to NaN."""
    return {name: repr(value) for name, value in metrics.items()}


def _difference(a: Step, b: Step) -> str | None:
    """Return what differs first, in the order in which a step computes it."""
    if a.batches != b.batches:
        return "its batch is another one"
    if repr(a.rates) != repr(b.rates):
        return f"the learning rate is {_shown(a.rates)} and {_shown(b.rates)}"
    if repr(a.losses) != repr(b.losses):
        return f"the loss is {_shown([loss for loss, _ in a.losses])} and {_shown([loss for loss, _ in b.losses])}"
    for name in dict.fromkeys([*a.state, *b.state]):
        if a.state.get(name) != b.state.get(name):
            return f"{name} is another one after it"
    return None


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.9g}" for value in values) or "none"
