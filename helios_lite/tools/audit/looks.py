"""The relations that one trial shows alone: what optimizers train, modes, samples, and the checkpoint."""

from __future__ import annotations

import itertools

from helios_lite.tools.audit.bits import BASE, base
from helios_lite.tools.audit.processes import Trials
from helios_lite.tools.audit.trial import EPOCH_STEPS, WITHOUT_WORKERS, Break, NotApplicable, Trial

_TOLERANCE = 1e-5  # Relative difference of metrics that were computed again in another process.
_WATCHED = Trial(EPOCH_STEPS, train=WITHOUT_WORKERS, valid=WITHOUT_WORKERS, reads_samples=True, watches_modes=True)
"""One epoch that is watched closely."""


def check_parameters(trials: Trials) -> str:
    """Look in which optimizers the parameters are, and which of them get gradients."""
    parameters = base(trials).parameters
    trained = {name: values for name, values in parameters.items() if values[3]}
    if not any(count for count, *_ in trained.values()):
        raise NotApplicable("no optimizer that the model holds has a parameter of its networks")
    groups = {
        "in no optimizer, though they get gradients": [
            name for name, (n, has, *_) in trained.items() if n == 0 and has
        ],
        "in no optimizer": [name for name, (n, has, *_) in trained.items() if n == 0 and not has],
        "in more than one place of the optimizers": [name for name, (n, *_) in trained.items() if n > 1],
        "without a gradient in all steps": [name for name, (n, has, *_) in trained.items() if n and not has],
        "with gradients that are all zero": [
            name for name, (n, has, nonzero, _) in trained.items() if n and has and not nonzero
        ],
    }
    found = [f"{_names(names)} {'is' if len(names) == 1 else 'are'} {text}" for text, names in groups.items() if names]
    if found:
        raise Break("; ".join(found))
    return f"{len(trained)} parameters are in one optimizer and get gradients"


def check_modes(trials: Trials) -> str:
    """Look in which modes dropout and batch normalization run, and whether frozen parts move."""
    record = trials.kept(_WATCHED).checked("the training", NotApplicable)
    found = []
    for name, modes in record.modes.items():
        if "training" in modes["valid"]:
            found.append(f"{name} is in training mode in valid_step")
        elif "training" in modes["train"] and modes["is_frozen"]:
            found.append(f"{name} is frozen, but in training mode in train_step")
        elif modes["train"] == {"evaluation"} and not modes["is_frozen"]:
            found.append(f"{name} is trained in evaluation mode")
    if record.moved:
        found.append(f"{_names(record.moved)} of a frozen part changed in the training")
    if found:
        raise Break("; ".join(found[:4]))
    used = [name for name, modes in record.modes.items() if modes["train"] or modes["valid"]]
    if not used:
        raise NotApplicable("no module has modes (dropout, batch normalization)")
    return f"{len(used)} modules with modes, in train_step and valid_step"


def check_finite(trials: Trials) -> str:
    """Read all samples."""
    record = trials.kept(_WATCHED)
    for phase, read in record.samples.items():
        if read.not_finite:
            indices = [index for index, _ in read.not_finite]
            place = read.not_finite[0][1]
            shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
            raise Break(f"{len(indices)} samples of {phase} are not finite ({place}): indices {shown}")
    if batch := trials.kept(BASE).not_finite_batch:
        raise Break(f"{batch} is not finite")
    if not record.samples:
        record.checked("the training", NotApplicable)
    number = sum(len(read.digests) for read in record.samples.values())
    return f"{number} samples" if number else "the batches of the training (the splits have no indices)"


def check_constant_data(trials: Trials) -> str:
    """Read all samples again after the training, under the same seeds."""
    record = trials.kept(_WATCHED).checked("the training", NotApplicable)
    if not record.samples:
        raise NotApplicable("the splits have no indices")
    for phase, read in record.samples.items():
        if read.changed:
            shown = ", ".join(map(str, read.changed[:8])) + (", ..." if len(read.changed) > 8 else "")
            raise Break(f"{len(read.changed)} samples of {phase} changed while it was trained: indices {shown}")
    return f"{sum(len(read.digests) for read in record.samples.values())} samples before and after an epoch"


def check_overlap(trials: Trials) -> str:
    """Compare the samples of the train and the validation splits."""
    reads = trials.kept(_WATCHED).samples
    trained = {name: read for name, read in reads.items() if name.split("/")[0] == "train"}
    if not trained or len(reads) == len(trained):
        raise NotApplicable("there are no two splits with indices")
    shown, compared = [], dict[str, int]()
    for (name, train), (phase, read) in itertools.product(trained.items(), reads.items()):
        if phase in trained:
            continue
        if read.dataset == train.dataset:
            common = set(read.indices) & set(train.indices)
            if common:
                raise Break(f"{len(common)} of {len(read.indices)} indices of {phase} are in {name} too")
        elif train.is_random or read.is_random:
            shown.append(f"{phase}: samples are augmented, so only indices could be compared")
            continue
        known = set(train.digests)
        twice = 1 - len(known) / len(train.digests)
        common_digests = [digest for digest in read.digests if digest in known]
        compared[name], compared[phase] = len(train.digests), len(read.digests)
        if read.dataset != train.dataset and len(common_digests) > 3 * twice * len(read.digests):
            raise Break(f"{len(common_digests)} of {len(read.digests)} samples of {phase} are in {name} too")
    if not compared:
        raise NotApplicable("; ".join(shown))
    num_trained = sum(number for name, number in compared.items() if name in trained)
    return f"{num_trained} samples of train, {sum(compared.values()) - num_trained} of validation"


def check_checkpoint(trials: Trials) -> str:
    """Load the last checkpoint in a new process, and validate it."""
    if not base(trials).facts.has_valid:
        raise NotApplicable("there is no validation split")
    saving = {"valid_every_steps": 1, "save_every_steps": 1}
    saved = trials.run(Trial(EPOCH_STEPS, options=saving), folder="loaded").checked("an epoch", NotApplicable)
    if not saved.validations:
        raise NotApplicable("an epoch has no validation")
    loaded = trials.run(Trial(loads_checkpoint=True), folder="loaded")
    if loaded.error.startswith("TypeError") and "argument" in loaded.error:
        raise NotApplicable(f"load_from_checkpoint cannot build the model ({loaded.error}); keep them in hparams")
    loaded.checked("load_from_checkpoint or the validation after it")
    expected, found = saved.validations[-1], loaded.validations[-1]
    for name, value in expected.items():
        other = found.get(name)
        if other is None or abs(value - other) > _TOLERANCE * max(abs(value), 1e-3):
            raise Break(
                f"{name} was {value:.6g} in the run, and is {other if other is None else f'{other:.6g}'} after loading"
            )
    return f"{len(expected)} metrics of a validation"


def _names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
