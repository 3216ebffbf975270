"""The relations that one trial shows alone: what optimizers train, modes, samples, and the checkpoint."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping

from helios_lite.tools.audit import patterns
from helios_lite.tools.audit.bits import BASE, WATCHED, base
from helios_lite.tools.audit.processes import Trials
from helios_lite.tools.audit.record import Record, SampleRead
from helios_lite.tools.audit.sums import PROBE
from helios_lite.tools.audit.trial import EPOCH_STEPS, WITHOUT_VALIDATION, Break, NotApplicable, Trial

_TOLERANCE = 1e-5  # Relative difference of metrics that were computed again in another process.
_PLANNED = Trial(3, options=WITHOUT_VALIDATION, keeps_length=True, ends_after=3)
"""The first steps of a training of the length that the program has planned."""
_MORE = {"accuracy", "acc", "f1", "auc", "auroc", "auprc", "precision", "recall", "iou", "miou", "dice", "bleu"}
_MORE |= {"rouge", "r2", "psnr", "ssim", "map", "ndcg", "mrr", "kappa", "reward"}
_LESS = {"loss", "error", "mse", "rmse", "mae", "nll", "perplexity", "ppl", "wer", "cer", "fid"}
_OTHER_SIGN = {"neg", "negative", "minus", "inverse", "inv", "1"}
"""Words in names of metrics of which more or less is better, or that turn it around."""
_FEWEST_CHANGED = 3  # Targets that were changed, before something is said of their scores.


def watched(trials: Trials) -> Record:
    """Return the record of some epochs that are watched; `NotApplicable` if they fail."""
    return trials.kept(WATCHED).checked("the training", NotApplicable)


def check_calls(trials: Trials, name: str, what: str) -> str:
    """Look at what calls have shown under a name."""
    record = watched(trials)
    if not record.steps:
        raise NotApplicable("the training makes no step")
    if found := record.calls[name]:
        raise Break("; ".join(found[:3]))
    return f"{len(record.steps)} steps: {what}"


def check_scores(trials: Trials) -> str:
    """Look at what losses get."""
    return check_calls(trials, "scores", "losses get what they want")


def check_shapes(trials: Trials) -> str:
    """Look for shapes that PyTorch accepts, though they do not fit."""
    return check_calls(trials, "shapes", "shapes fit")


def check_random_state(trials: Trials) -> str:
    """Look whether the random numbers go on."""
    return check_calls(trials, "random", "no two end in the same random state")


def check_growth(trials: Trials) -> str:
    """Count the tensors that are alive at the start of epochs."""
    return check_calls(trials, "growth", "no more tensors are alive from epoch to epoch")


def check_gradients(trials: Trials) -> str:
    """Look whether gradients are left from a loss whose step has ended."""
    record = watched(trials)
    if record.facts.accumulation_steps > 1:
        raise NotApplicable("gradients are accumulated")
    if record.facts.num_optimizers < 2:
        raise NotApplicable("one optimizer steps")
    return check_calls(trials, "gradients", "no optimizer uses gradients of a step before")


def check_carried_state(trials: Trials) -> str:
    """Look whether hidden states of recurrent modules are those of the batch before."""
    record = watched(trials)
    if not record.facts.shuffles:
        raise NotApplicable("the train split is not shuffled")
    return check_calls(trials, "carried", "no recurrent module begins with a state of the step before")


def check_targets(trials: Trials) -> str:
    """Look at the targets of samples, and change targets in a batch to see whether the scores change with them."""
    facts, reads = watched(trials).facts, watched(trials).samples
    train = reads.get("train")
    shown = []
    for phase, read in _without_test(reads).items():
        if read.target_in_input:
            raise Break(f"in {len(read.digests)} samples of {phase} {read.target_in_input}")
        if read.only_target is not None:
            raise Break(f"all targets of {phase} are {read.only_target}")
    if train is not None and train.is_sorted and facts.is_in_order:
        raise Break("train is read in order (shuffle=False), and each class is one block of samples")
    if train is not None and train.has_target:
        shown.append(f"{len(train.digests)} samples")
    probed = trials.kept(PROBE)
    number, changed = probed.leaks
    if not probed.error and number >= _FEWEST_CHANGED:
        if 2 * changed > number:
            raise Break(
                f"of {number} targets that were changed in a batch, the own score of {changed} changed with them"
            )
        shown.append(f"the scores of {number} targets that were changed")
    if not shown:
        raise NotApplicable(
            "no target is known: samples are no tuples, and no loss of classes gets integers of the batch"
        )
    return ", ".join(shown)


def check_schedule(trials: Trials) -> str:
    """Compare how often schedulers are stepped with the end for which they are made."""
    record = watched(trials)
    steps, epochs = len(record.steps), -(-len(record.steps) // EPOCH_STEPS)
    if not record.schedulers:
        raise NotApplicable("the model holds no scheduler of PyTorch")
    if record.strayed:
        raise Break(f"{_names(record.strayed)} moves the rates of an optimizer that is none of the model's")
    planned = trials.kept(_PLANNED).checked("the training with its own length", NotApplicable)
    window = record.facts.accumulation_steps
    for name, count in record.schedulers.items():
        per_step, per_epoch = planned.misfits.get(name, ("", ""))
        if count == 0:
            raise Break(f"{name} is not stepped in {epochs} epochs")
        if window > 1 and count == window * steps:
            raise Break(f"{name} is stepped once per micro-batch, {count} times in {steps} steps")
        if count == steps + epochs:
            raise Break(f"{name} is stepped once per step and once per epoch")
        text = per_step if count == steps else per_epoch if count == epochs else ""
        if text and not record.facts.assigns_splits:
            raise Break(f"{name} {text}")
    return ", ".join(f"{name} is stepped {count} times in {steps} steps" for name, count in record.schedulers.items())


def check_parameters(trials: Trials) -> str:
    """Look in which optimizers the parameters are, and which of them get gradients."""
    parameters = base(trials).parameters
    trained = {name: values for name, values in parameters.items() if values[3]}
    if not any(count for count, *_ in trained.values()):
        raise NotApplicable("no optimizer that the model holds has a parameter of its networks")
    moving = {name.rpartition(".")[0] for name, (_, _, nonzero, _) in trained.items() if nonzero}
    groups = {
        "in no optimizer, though they get gradients": [
            name for name, (n, has, *_) in trained.items() if n == 0 and has
        ],
        "in no optimizer": [name for name, (n, has, *_) in trained.items() if n == 0 and not has],
        "in more than one place of the optimizers": [name for name, (n, *_) in trained.items() if n > 1],
        "without a gradient in all steps": [name for name, (n, has, *_) in trained.items() if n and not has],
        # One parameter of a module may have no gradient by its nature, as the last bias of a critic.
        "with gradients that are all zero": [
            name
            for name, (n, has, nonzero, _) in trained.items()
            if n and has and not nonzero and name.rpartition(".")[0] not in moving
        ],
    }
    found = [f"{_names(names)} {'is' if len(names) == 1 else 'are'} {text}" for text, names in groups.items() if names]
    found += [f"{pair} are two parameters with one memory, which is not sharing" for pair in base(trials).shared[:3]]
    if found:
        raise Break("; ".join(found))
    return f"{len(trained)} parameters are in one optimizer and get gradients"


def check_evaluated(trials: Trials) -> str:
    """Look whether training changes what validations use."""
    record = watched(trials)
    if not record.facts.has_valid:
        raise NotApplicable("there is no validation split")
    validations = record.validations[1:]  # The first is of fewer batches.
    if record.validated and len(validations) > 1 and all(repr(each) == repr(validations[0]) for each in validations):
        networks = _names(record.validated)
        raise Break(
            f"{len(validations)} validations have the same metrics: they use only {networks}, which never changes"
        )
    return f"{len(validations)} validations"


def check_monitor(trials: Trials) -> str:
    """Compare the names of monitored metrics with the direction in which they are to go."""
    facts = base(trials).facts
    if not facts.monitored:
        raise NotApplicable("no metric is monitored")
    for name in facts.monitored:
        words = re.split(r"[^a-z0-9]+", name.split("/")[-1].lower())
        for mode, better in (("min", _MORE), ("max", _LESS)):
            if facts.mode == mode and words[-1] in better and not _OTHER_SIGN & set(words):
                raise Break(f'{name} is monitored with mode="{mode}"')
    return f'{", ".join(facts.monitored)} with mode="{facts.mode}"'


def check_preparation(trials: Trials) -> str:
    """Compare how the inputs of the splits are spread, and look for an augmented validation."""
    reads = _without_test(watched(trials).samples)
    train = reads.pop("train", None)
    if train is None or not reads:
        raise NotApplicable("there are no two splits with indices")
    for phase, read in reads.items():
        if train.is_augmented and read.is_augmented and read.dataset == train.dataset:
            raise Break(f"samples of {phase} are augmented as those of train: both are parts of one dataset")
        scales = sorted((train.scale_of_targets, read.scale_of_targets))
        drifts = scales[1] > 1.5 * scales[0]
        if not drifts and (text := patterns.rescaled(train.spreads, read.spreads)):
            raise Break(f"in {phase} {text}")
    return f"{len(train.digests)} samples of train, {sum(len(read.digests) for read in reads.values())} of validation"


def check_modes(trials: Trials) -> str:
    """Look in which modes dropout and batch normalization run, and whether frozen parts move."""
    record = watched(trials)
    found = [*record.modes]
    if record.moved:
        found.append(f"{_names(record.moved)} of a part that is not trained changed in the training")
    if found:
        raise Break("; ".join(found[:4]))
    if record.num_modules == 0:
        raise NotApplicable("no module has modes (dropout, batch normalization)")
    return f"{record.num_modules} modules with modes, in train_step and valid_step"


def check_finite(trials: Trials) -> str:
    """Read all samples."""
    record, marks = trials.kept(WATCHED), list[str]()
    for phase, read in _without_test(record.samples).items():
        if read.not_finite:
            indices = [index for index, _ in read.not_finite]
            place = read.not_finite[0][1]
            shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
            what = f"{len(indices)} samples of {phase} are not finite ({place})"
            if not read.is_handled:
                raise Break(f"{what}: indices {shown}")
            marks.append(f"{what}, which the loss leaves out")
    first = trials.kept(BASE)
    if first.not_finite_batch and not record.samples:
        losses = [value for step in first.steps for value, _ in step.losses]
        if first.error or not all(map(math.isfinite, losses)):
            raise Break(f"{first.not_finite_batch} is not finite")
        marks.append(f"{first.not_finite_batch} is not finite, but all losses are")
    if not record.samples:
        record.checked("the training", NotApplicable)
    number = sum(len(read.digests) for read in record.samples.values())
    what = f"{number} samples" if number else "the batches of the training (the splits have no indices)"
    return "; ".join([what, *marks])


def check_constant_data(trials: Trials) -> str:
    """Read all samples again after the training, under the same seeds."""
    record = trials.kept(WATCHED).checked("the training", NotApplicable)
    if not record.samples:
        raise NotApplicable("the splits have no indices")
    for phase, read in record.samples.items():
        if read.changed:
            shown = ", ".join(map(str, read.changed[:8])) + (", ..." if len(read.changed) > 8 else "")
            raise Break(f"{len(read.changed)} samples of {phase} changed while it was trained: indices {shown}")
    return f"{sum(len(read.digests) for read in record.samples.values())} samples before and after an epoch"


def check_overlap(trials: Trials) -> str:
    """Compare the samples of the train split with those of the validation and the test."""
    reads = trials.kept(WATCHED).samples
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
        known, number = set(train.digests), len(read.digests)
        common_digests = sum(digest in known for digest in read.digests)
        compared[name], compared[phase] = len(train.digests), number
        if read.dataset != train.dataset and common_digests > _most_by_chance(train, number):
            raise Break(f"{common_digests} of {number} samples of {phase} are in {name} too")
    for phase, read in reads.items():
        if phase in compared and read.shared_runs > max(4, len(read.digests) // 4):
            raise Break(
                f"{read.shared_runs} of {len(read.digests)} samples of {phase} are for one half or more runs of values "
                "that samples of train have too"
            )
    if not compared:
        raise NotApplicable("; ".join(shown))
    num_trained = sum(number for name, number in compared.items() if name in trained)
    return f"{num_trained} samples of train, {sum(compared.values()) - num_trained} of validation and test"


def _most_by_chance(train: SampleRead, number: int) -> float:
    """Return how many samples of a validation may be equal to train samples, as train samples are to each other.

    If no two of n train samples are equal, the probability that two are is below 3 / (n * n / 2), in 95 % of cases.
    """
    counts = Counter(train.digests)
    size = len(train.digests)
    twins = sum(count for count in counts.values() if count > 1) / size
    expected = number * (2 * twins + 6 / size)
    return expected + 3 * math.sqrt(expected) + 1


def check_checkpoint(trials: Trials) -> str:
    """Load the last checkpoint in a new process, and validate it."""
    if not base(trials).facts.has_valid:
        raise NotApplicable("there is no validation split")
    saving = {"valid_every_steps": 1, "save_every_steps": 1, "keep_last": 1}
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


def _without_test(reads: Mapping[str, SampleRead]) -> dict[str, SampleRead]:
    """Return what reading the splits of the training has shown; samples of a test may have no targets."""
    return {phase: read for phase, read in reads.items() if phase.split("/")[0] != "test"}


def _names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
