"""The audit names planted errors as what they are, says nothing against right programs, and ends by itself."""

import dataclasses
import functools
import json
import multiprocessing
import os
import re
import runpy
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted import ERRORS
from helpers.right_programs import RIGHT, Classifier, blobs, splits, trainer
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from helios_lite import DataModule, Split
from helios_lite.config import ConfigError
from helios_lite.tools.audit import RELATIONS, Finding, ProgramError, _accepted_in, _with_causes, audit
from helios_lite.tools.audit.calls import CallWatch, GrowthWatch
from helios_lite.tools.audit.couplings import coupling_of
from helios_lite.tools.audit.looks import _most_by_chance
from helios_lite.tools.audit.patterns import (
    is_sorted_by_class,
    only_target,
    probability_if_independent,
    rescaled,
    runs,
    spreads,
    target_in_input,
)
from helios_lite.tools.audit.program_data import SampleReader, change_train, describe_splits
from helios_lite.tools.audit.record import SampleRead
from helios_lite.tools.audit.sums import has_generalized, has_halved
from helios_lite.tools.audit.trial import Trial
from helios_lite.tools.command import main

NAMES = [relation.name for relation in RELATIONS]
WITHOUT_INDICES = {"overlap", "preparation", "workers", "devices", "overfit", "pairing"}
OF_A_STATE = {"samples_alone", "accumulation", "devices", "valid_batch_size", "overfit"}
OF_PAIRS = {"samples_alone", "accumulation", "devices", "valid_batch_size"}
IN_ORDER = {"carried_state"}
# What is not applicable to each right program, beside those that few programs have.
NOT_APPLICABLE = {
    "gan": {"accumulation", "overfit"},
    "two_rates": {"accumulation", "devices", "samples_alone", "overfit"},
    "carried": OF_A_STATE | IN_ORDER,
    "streamed": WITHOUT_INDICES | IN_ORDER,
    "bucketed": {"pairing"} | IN_ORDER,
    "distilled": {"overfit", "samples_alone", "accumulation", "devices"},  # It learns too slowly.
    "masked": {"pairing", "overfit"},
    "augmented": {"overlap"},
    "contrastive": OF_PAIRS,
}
ONLY_OF = {
    "loss_scale": {"fp16"},
    "modes": {"distilled", "unusual"},
    "gradients": {"gan", "two_rates"},
    "schedule": {"two_rates", "unusual"},
    "monitor": {"unusual"},
}
# What one or few trainings show of every program, and what trainings of their own show of those that are special in it.
SHARED = {"finite", "overlap", "preparation", "constant_data", "targets", "shapes", "scores", "modes", "random_state"}
SHARED |= {"gradients", "carried_state", "growth", "schedule", "parameters", "evaluated", "monitor", "pairing"}
OF_SUMS = {"samples_alone", "accumulation", "devices", "valid_batch_size"}
OWN = {
    "classifier": {*NAMES},
    "gan": {"samples_alone", "devices"},
    "carried": {"resume", "samples_alone"},
    "two_rates": {"samples_alone"},
    "unusual": {*NAMES} - {"repeat", "workers", "devices", "checkpoint"},
    "contrastive": {"samples_alone", "valid_batch_size"},
    "streamed": {"accumulation", "resume"},
    "distilled": {"samples_alone", "overfit"},
    "masked": {"samples_alone"},
    "bucketed": OF_SUMS,
    "augmented": {"workers", "accumulation", "overfit"},
    "fp16": {"loss_scale"},
    "regression": OF_SUMS,
}


@functools.cache
def planted(name: str) -> list[Finding]:
    """Return what an audit says of a planted error."""
    make, expected = ERRORS[name]
    return audit(make, sorted(expected))


@functools.cache
def right(name: str) -> dict[str, Finding]:
    """Return what an audit says of a right program, by relation."""
    tried = {*NAMES} if "EVERY_CELL" in os.environ else SHARED | OWN[name]
    only = [relation for relation in NAMES if relation in tried]
    findings = {finding.relation: finding for finding in audit(RIGHT[name], only)}
    assert list(findings) == only
    return findings


@pytest.mark.parametrize("name", ERRORS)
def test_a_planted_error_breaks_the_relations_that_name_it(name: str) -> None:
    findings, (_, expected) = planted(name), ERRORS[name]
    assert [(finding.relation, finding.result) for finding in findings] == [
        (relation, "breaks") for relation in NAMES if relation in expected
    ]
    for finding in findings:
        assert finding.text
        assert bool(finding.causes) != bool(finding.same_as)


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_breaks_in_a_right_program_and_few_relations_are_left_out(name: str) -> None:
    results = {relation: finding.result for relation, finding in right(name).items()}
    left_out = NOT_APPLICABLE.get(name, set()) | {each for each, programs in ONLY_OF.items() if name not in programs}
    assert {relation for relation, result in results.items() if result == "not applicable"} == left_out & results.keys()
    assert {relation for relation, result in results.items() if result == "breaks"} == set()


def test_nearly_every_relation_has_an_error_that_breaks_it() -> None:
    named = {relation for _, expected in ERRORS.values() for relation in expected}
    assert set(NAMES) - named == {"overfit", "checkpoint"}


class OfTwoSplits(Classifier):
    """A classifier of the batches of two splits."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step([torch.cat(parts) for parts in zip(batch["a"], batch["b"], strict=True)], state)


def two_splits() -> Any:
    x, y = blobs(96)
    parts = [torch.utils.data.TensorDataset(x[i : i + 32], y[i : i + 32]) for i in (0, 32, 48)]
    a, b, valid = (Split(part, batch_size=8, shuffle=i < 2) for i, part in enumerate(parts))
    return trainer(), OfTwoSplits(), DataModule({"a": a, "b": b}, valid)


def test_several_train_splits_are_audited_too() -> None:
    data = two_splits()[2]
    assert describe_splits(data, 1)["train_kind"] == "several"
    change_train(data, Trial(train={"num_workers": 2}))
    assert [split.num_workers for split in data.train.values()] == [2, 2]
    findings = {finding.relation: finding for finding in audit(two_splits, ["overlap"])}
    assert findings["overlap"].result == "breaks"
    assert findings["overlap"].text == "16 of 32 samples of valid are in train/b too"


class Sharpness(Classifier):
    """Takes the gradient where the loss is higher (sharpness-aware minimization)."""

    def train_step(self, batch: Any, state: Any) -> None:
        weights = list(self.net.parameters())
        moves = torch.autograd.grad(self.loss(self.net(batch[0]), batch[1]), weights)
        for sign in (0.1, -0.1):
            if sign < 0:
                self.backward(self.loss(self.net(batch[0]), batch[1]))
            with torch.no_grad():
                for weight, move in zip(weights, moves, strict=True):
                    weight.add_(move, alpha=sign)
        self.optimizer_step(self.optimizer)


def sharpness() -> Any:
    return trainer(), Sharpness(), splits(*blobs(256))


def test_a_loss_that_is_none_of_samples_by_intention_is_not_compared_with_theirs() -> None:
    (sharp,) = audit(sharpness, ["samples_alone"])
    assert sharp.result == "not applicable"
    assert sharp.text.startswith("train_step moves the weights")
    assert right("two_rates")["samples_alone"].text.startswith("collate_fn draws random numbers")
    assert "the loss is that of a batch by its form (std)" in right("distilled")["samples_alone"].text


class ThresholdNotSaved(Classifier):
    """What a validation uses is set while training, in a plain attribute."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.shift = 0.0

    def on_training_start(self) -> None:
        self.shift = 3.0

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step([batch[0] + self.shift, batch[1]], step)


class Rising(Classifier):
    """The loss rises, because its gradient has the wrong sign."""

    def train_step(self, batch: Any, state: Any) -> None:
        loss = self.loss(self.net(batch[0]), batch[1])
        self.backward(loss.detach() * 2 - loss)
        self.optimizer_step(self.optimizer)


def rising() -> Any:
    return trainer(), Rising(), splits(*blobs(256))


def forgetting() -> Any:
    return trainer(), ThresholdNotSaved(), splits(*blobs(256))


@pytest.mark.parametrize(("make", "relation"), [(rising, "overfit"), (forgetting, "checkpoint")])
def test_the_other_relations_break_too(make: Any, relation: str) -> None:
    assert [finding.result for finding in audit(make, [relation])] == ["breaks"]


NAMED = {
    "same_noise": [
        ("workers", "with 2 workers step 1 differs: its batch is another one"),
    ],
    "counter_not_saved": [
        ("resume", "step 4 differs: the loss is "),
    ],
    "scheduled_twice": [
        ("accumulation", "step 1 has the learning rate [0.0099], otherwise [0.01]"),
    ],
    "batch_of_rank_0": [
        ("devices", "with 2 processes the gradient of step 1 differs: by "),
    ],
    "half_optimized": [
        ("parameters", "net.4.weight, net.4.bias are in no optimizer, though they get gradients"),
        ("parameters", "net.0.weight, net.0.bias are without a gradient in all steps"),
        ("parameters", "net.2.weight and net.3.weight are two parameters with one memory"),
    ],
    "wrong_modes": [
        ("modes", "net.0.1 is not trained, but in training mode in train_step"),
        ("modes", "net.1.3 is trained in evaluation mode"),
        ("modes", "functional dropout is in training mode in valid_step"),
        ("modes", "net.1.1 is validated with the statistics that it was made with"),
    ],
    "wrong_metrics": [
        ("valid_batch_size", "valid/accuracy is "),
        ("valid_batch_size", "valid/loss is "),
        ("valid_batch_size", "valid/last_accuracy is "),
        ("valid_batch_size", "and weights that were moved at random"),
    ],
    "wrong_data": [
        ("overlap", "32 of 64 samples of test are in train too"),
        ("preparation", "in valid part 0 has the mean "),
        ("targets", "train is read in order (shuffle=False), and each class is one block of samples"),
    ],
    "careless": [
        ("evaluated", "validations have the same metrics: they use only teacher, which never changes"),
        ("monitor", 'valid/accuracy is monitored with mode="min"'),
        ("scores", "cross_entropy wants scores, but gets probabilities"),
        ("random_state", "the generator of torch has the same state after the steps 1 and 2"),
        ("growth", "4 more tensors with a graph are alive after each 4 steps"),
        ("schedule", "scheduler would reach its end after about "),
        ("modes", "teacher.1 is not trained, but in training mode in train_step"),
    ],
    "attached": [
        ("schedule", "scheduler moves the rates of an optimizer that is none of the model's"),
        ("gradients", "of_generator steps with gradients of two losses"),
    ],
    "one_nan": [
        ("finite", "1 samples of train are not finite (part 0): indices 37"),
    ],
    "forecast": [
        ("overlap", " samples of valid are for one half or more runs of values that samples of train have"),
        ("targets", "in 192 samples of train the target is element 19 of the 20 of part 0"),
        ("shapes", "sub gets (16, 1) and (16,), which makes (16, 16) of them"),
        ("shapes", "rnn has batch_first=False, but gets (16, 20, 1) of a batch of 16"),
        ("carried_state", "rnn begins with the hidden state that the step before has ended with"),
    ],
    "peeking": [
        ("targets", "the own score of "),
    ],
    "copies": [
        ("workers", "the stream has 64 samples with one worker, and 128 with 2"),
    ],
}


@pytest.mark.parametrize("name", NAMED)
def test_what_differs_first_is_named(name: str) -> None:
    texts = {finding.relation: finding.text for finding in planted(name)}
    for relation, text in NAMED[name]:
        assert text in texts[relation]


def seen(call: Any) -> dict[str, list[str]]:
    """Return what a watch has seen of some steps that make a call."""
    watch = CallWatch()
    for _ in range(4):
        with watch.during(16):
            call()
    with torch.no_grad(), watch.during(16):  # As a validation.
        call()
    return watch.findings()


def test_losses_that_get_what_they_do_not_want_are_named_and_others_are_not() -> None:
    x, y = torch.randn(16, 4, requires_grad=True), torch.arange(16) % 4
    soft, binary = x.softmax(1).detach(), (y > 1).float()
    for call, is_wrong in (
        (lambda: functional.cross_entropy(x.softmax(1), y), True),
        (lambda: functional.cross_entropy(x.log_softmax(1), y), False),
        (lambda: functional.nll_loss(x, y), True),
        (lambda: functional.nll_loss(x.softmax(1), y), True),
        (lambda: functional.nll_loss(x.log_softmax(1), y), False),
        (lambda: functional.kl_div(x.softmax(1), soft, reduction="sum"), True),
        (lambda: functional.kl_div(x.log_softmax(1), soft, log_target=True, reduction="sum"), True),
        (lambda: functional.kl_div(x.log_softmax(1), soft.log(), reduction="sum"), True),
        (lambda: functional.kl_div(x.log_softmax(1), soft, reduction="sum"), False),
        (lambda: functional.binary_cross_entropy_with_logits(x.sigmoid()[:, :2].flatten(), binary.repeat(2)), True),
        (lambda: functional.binary_cross_entropy_with_logits(x[:, :2].flatten(), binary.repeat(2)), False),
    ):
        assert bool(seen(call)["scores"]) == is_wrong


def test_only_what_does_not_fit_is_a_wrong_shape() -> None:
    x, y = torch.randn(16, 1), torch.randn(16)
    assert seen(lambda: x - y)["shapes"] != []
    for call in (lambda: x[:, 0] - y, lambda: y[:, None] - y, lambda: x - y[:, None], lambda: x[:8] - y[:8]):
        assert seen(call)["shapes"] == []


def test_a_history_without_an_end_grows_and_a_bounded_one_does_not() -> None:
    for kept, grows in (([], True), (deque(maxlen=64), False)):
        watch = GrowthWatch()
        for _ in range(5):
            watch.count()
            kept.extend(torch.zeros(1) for _ in range(4))
        assert bool(watch.findings(4)) == grows


def test_a_buffer_whose_tensors_are_used_again_may_grow() -> None:
    for is_used in (True, False):
        growth, kept = GrowthWatch(), list[torch.Tensor]()
        watch = CallWatch(growth=growth)
        for _ in range(5):
            growth.count()
            kept += [torch.zeros(1) for _ in range(4)]
            with watch.during(16):
                torch.stack(kept[-8:-4] if is_used and len(kept) > 8 else [torch.zeros(1) for _ in range(12)])
        assert bool(growth.findings(4)) != is_used


def coupled(loss: Any) -> str:
    """Return what couples the samples of a batch of 13 in a loss of scores and targets."""
    net, x, y = torch.nn.Linear(4, 3), torch.randn(13, 4), torch.arange(13) % 3
    watch = CallWatch(looks_for_couplings=True)
    with watch.during(13):
        found = loss(net(x), y)
    return coupling_of(found, 13, has_statistics=watch.couplings.has_statistics) or watch.couplings.found()


def test_a_loss_couples_samples_by_its_form_and_not_by_an_error() -> None:
    def packed(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        lengths = 1 + torch.arange(13) % 5
        sequences = pack_padded_sequence(z[:, None].expand(-1, 5, -1), lengths, batch_first=True, enforce_sorted=False)
        return functional.cross_entropy(torch.nn.GRU(3, 4)(sequences)[1][0], y)

    def each(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(z, y, reduction="none")

    order, mask = torch.randperm(13, generator=torch.Generator().manual_seed(0)), torch.arange(13) % 2 == 0
    weight = torch.nn.Parameter(torch.rand(26, 5))
    for loss, what in (
        (lambda z, y: functional.cross_entropy(z, y), ""),
        (lambda z, y: functional.cross_entropy(z, y, reduction="sum"), ""),
        (lambda z, y: functional.nll_loss(z.log_softmax(0), y), ""),
        (lambda z, y: (each(z, y) * mask).sum() / mask.sum() + 0.1 * z.square().mean(), ""),
        (lambda z, y: functional.cross_entropy(z[mask], y[mask]), ""),
        (lambda z, y: z[torch.arange(13), y].mean(), ""),
        (lambda z, y: each(z, y).mean().sqrt(), "sqrt"),
        (lambda z, y: z.std(0).mean(), "std"),
        (lambda z, y: functional.mse_loss(z.mean(0), torch.zeros(3)), "mseloss"),
        (lambda z, y: (z.softmax(1).mean(0) * torch.arange(3.0)).sum(), ""),
        (lambda z, y: (z.softmax(1).mean(0) * functional.one_hot(y).float().mean(0)).sum(), "mul"),
        (lambda z, y: (z.softmax(1).mean(0) * z.sigmoid().mean(0)).sum(), "mul"),
        (lambda z, y: 1 - 2 * z.sigmoid().sum() / (z.sigmoid().sum() + 13), "div"),
        (lambda z, y: functional.cross_entropy(z[order], y[order]), "an index that takes samples"),
        (lambda z, y: functional.cross_entropy(z[order][order.argsort()], y), ""),
        (packed, ""),
        (lambda z, y: functional.cross_entropy(z[order[:5]], y[order[:5]]), "an index that takes other samples"),
        (lambda z, y: functional.softplus(z[None, :, 0] - z[:, None, 0]).mean(), "sub of all pairs"),
        (lambda z, y: each(z, y).sort().values[:9].mean(), "sort over the samples"),
        (lambda z, y: z.sort(0).values[0].mean(), "sort over the samples"),
        (lambda z, y: z.topk(5, -2).values.mean(), "topk over the samples"),
        (lambda z, y: z.quantile(0.5, dim=0).mean(), "quantile over the samples"),
        (lambda z, y: z.sort(1).values[:, 0].mean() + z.topk(2).values.mean(), ""),
        (lambda z, y: functional.cross_entropy(z, y) + weight.norm(), ""),
        (lambda z, y: (z - z.roll(1, 0)).square().mean(), "roll over the samples"),
        (lambda z, y: (z - z.roll(1, -2)).square().mean(), "roll over the samples"),
        (lambda z, y: (z - z.roll((1, 1), (1, 0))).square().mean(), "roll over the samples"),
        (lambda z, y: (z - torch.roll(z, shifts=1)).square().mean(), "roll over the samples"),
        (lambda z, y: (z - z.flip(1, 0)).square().mean(), "flip over the samples"),
        (lambda z, y: (z - z.flip([-2])).square().mean(), "flip over the samples"),
        (lambda z, y: (z - z.roll((0, 1), (0, 1))).square().mean(), ""),
        (lambda z, y: (z - z.roll(1, dims=1)).square().mean() + (z - z.flip(-1)).square().mean(), ""),
    ):
        assert coupled(loss).startswith(what), what
        assert (coupled(loss) == "") == (what == "")


def test_samples_have_in_common_only_what_is_not_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(200, generator=generator).cumsum(0)
    windows = [(series[i : i + 12], series[i + 11]) for i in range(100)]
    assert target_in_input(windows) == "the target is element 11 of the 12 of part 0"
    assert target_in_input([(x, x) for x, _ in windows]) == ""  # An autoencoder.
    assert target_in_input([(x, y + 1) for x, y in windows]) == ""
    assert (
        target_in_input([(torch.cat([x, x[:1] > 0]), int(x[0] > 0)) for x, _ in windows]) != ""
    )  # A column of labels.
    pieces = [torch.randn(64, generator=generator) for _ in range(2)]
    for levels, is_shared in ((None, True), (8, False)):  # Short runs of few levels are equal by chance.
        a, b = (piece if levels is None else (piece * levels / 4).round() / levels for piece in pieces)
        assert bool(runs((torch.cat([a, b[:12]]), 0)) & runs((b, 1))) == is_shared
    assert only_target([(x, 3) for x, _ in windows]) == 3
    assert only_target([(x, i % 2) for i, (x, _) in enumerate(windows)]) is None
    assert is_sorted_by_class([(x, i // 25) for i, (x, _) in enumerate(windows)])
    assert not is_sorted_by_class([(x, i // 25 % 2) for i, (x, _) in enumerate(windows)])
    sorted_by_class = torch.utils.data.TensorDataset(torch.randn(1200, 3), torch.arange(1200) // 600)
    read = SampleReader(DataModule(train=Split(sorted_by_class, batch_size=8, shuffle=True))).read()["train"]
    assert (read.only_target, read.is_sorted) == (None, True)
    values = torch.randn(400, 3, generator=generator)
    for other, is_rescaled in ((values / 4 + 1, True), (values + 1, False), (values.exp(), False)):
        train, valid = ([(x, 0) for x in part] for part in (values, other))
        assert bool(rescaled(spreads(train), spreads(valid))) == is_rescaled
    noise = torch.randn(100, 3, generator=generator)
    related, apart = (
        [(x, y) for x, y in zip(noise, part, strict=True)] for part in (noise[:, 0] > 0, noise[:, 1].roll(7))
    )
    assert (probability_if_independent(related) or 0) <= 0.01 < (probability_if_independent(apart) or 0)
    samples = SampleRead(digests=[str(i) for i in range(200)])
    assert _most_by_chance(samples, 50) < 10
    assert _most_by_chance(SampleRead(digests=[str(i % 50) for i in range(200)]), 50) >= 50


def number_of_steps(finding: Finding) -> int:
    return int(re.search(r"in (\d+) steps", finding.text)[1])


def test_a_training_that_only_has_to_learn_ends_when_it_has() -> None:
    assert number_of_steps(right("classifier")["overfit"]) < 50
    assert number_of_steps(right("distilled")["overfit"]) == 150
    assert number_of_steps(next(finding for finding in planted("shuffled_apart"))) == 400


def test_a_training_ends_before_its_last_step_only_where_there_is_no_doubt() -> None:
    assert has_halved([2.0, 1.0, 0.8, 0.7], [])
    assert not has_halved([2.0, 1.0, 1.0, 1.0], [])
    assert not has_halved([-2.0, -2.5, -2.5, -2.5], [])
    learned, left_out = [1.0] * 10 + [0.6] * 30, [1.0, 1.0, 0.95, 0.85]
    assert has_generalized(learned, left_out)
    assert not has_generalized([1.0] * 10 + [0.8] * 30, left_out)
    assert not has_generalized(learned, left_out[1:])
    assert not has_generalized(learned, [1.0, 1.0, 0.95, 0.95])


def counted(path: Path) -> Any:
    with path.open("a") as file:
        file.write("made\n")
    return trainer(), Classifier(), splits(*blobs(256))


def test_relations_that_look_at_the_same_training_share_it(tmp_path: Path) -> None:
    audit(functools.partial(counted, tmp_path / "made"), ["finite", "overlap", "constant_data", "modes", "parameters"])
    assert (tmp_path / "made").read_text() == "made\n" * 2


class Ordered(Classifier):
    """The weights depend on the order of a set of strings."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        with torch.no_grad():
            order = [int(name) for name in {str(number) for number in range(32)}]
            self.net[0].weight.copy_(self.net[0].weight[order])


def ordered() -> Any:
    return trainer(), Ordered(), splits(*blobs(256))


def started() -> Any:
    raise RuntimeError(multiprocessing.get_start_method())


def test_hashes_of_strings_and_the_way_in_which_processes_start_are_those_of_a_new_program() -> None:
    assert audit(ordered, ["repeat"])[0].result == "breaks"
    expected = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    with pytest.raises(ProgramError, match=f"RuntimeError: {expected}$"):
        audit(started, ["parameters"])


class Stuck(Classifier):
    def train_step(self, batch: Any, state: Any) -> None:
        time.sleep(20)
        raise RuntimeError("it was not ended")


def stuck() -> Any:
    return trainer(), Stuck(), splits(*blobs(256))


def broken() -> Any:
    raise RuntimeError("no such file")


class StuckAlone(Classifier):
    def train_step(self, batch: Any, state: Any) -> None:
        if len(batch[0]) == 1:
            time.sleep(600)
        super().train_step(batch, state)


def stuck_alone() -> Any:
    return trainer(), StuckAlone(), splits(*blobs(256))


def test_a_training_that_is_too_slow_for_one_relation_breaks_none() -> None:
    (finding,) = audit(stuck_alone, ["samples_alone"], seconds=4)
    assert finding.result == "not applicable"
    assert finding.text.endswith("fails: no result after 4 s")


def test_a_program_that_hangs_or_fails_is_not_judged_and_its_error_is_told_once(capsys: Any) -> None:
    for make, seconds, reason in (
        (stuck, 1, "no result after 1 s"),
        (stuck, 1e-4, "no result after 0.0001 s"),  # Its process has hardly started.
        (broken, 60, "RuntimeError: no such file"),
    ):
        with pytest.raises(ProgramError) as caught:
            audit(make, ["resume"], seconds=seconds)
        assert str(caught.value) == f"the program itself fails: {reason}"
        assert ("in broken" in caught.value.traceback) == (make is broken)


def test_an_error_of_a_relation_leaves_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(trials: Any) -> str:
        raise ZeroDivisionError("division by zero")

    relations = [dataclasses.replace(each, check=failing) if each.name == "modes" else each for each in RELATIONS]
    monkeypatch.setattr("helios_lite.tools.audit.RELATIONS", relations)
    modes, parameters = audit(RIGHT["classifier"], ["modes", "parameters"])
    assert (modes.result, parameters.result) == ("not applicable", "holds")
    assert modes.text == "the audit itself fails: ZeroDivisionError: division by zero"


def test_a_break_is_by_intention_if_it_is_accepted_with_what_follows_from_it() -> None:
    found = [Finding(name, "breaks", "it differs", "causes") for name in ("modes", "samples_alone", "accumulation")]
    assert [each.same_as for each in _with_causes(found, [])] == ["", "", "samples_alone"]
    assert [each.causes for each in _with_causes(found, [])] == ["causes", "causes", ""]
    accepted = [each.result for each in _with_causes(found, ["samples_alone"])]
    assert accepted == ["breaks", "by intention", "by intention"]


def test_what_is_accepted_may_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(FILE + '[audit]\naccept = ["accumulation"]\n')
    assert _accepted_in(file) == ["accumulation"]
    for wrong in ('[audit]\naccept = "accumulation"\n', "[audit]\naccepted = []\n", "audit = 3\n"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=r"^audit: must be a table with a list of names of relations, accept$"):
            audit(file)


def test_the_run_folder_is_not_used_and_a_second_audit_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    only = ["parameters", "overfit"]
    assert audit(RIGHT["classifier"], only) == [right("classifier")[relation] for relation in only]
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^only='resum': there is no such relation; there are finite, "):
        audit(RIGHT["classifier"], ["resum"])
    with pytest.raises(ValueError, match=r"^accept='resum': there is no such relation; there are finite, "):
        audit(RIGHT["classifier"], accept=["resum"])
    with pytest.raises(ValueError, match=r"^devices=0: must be at least 1$"):
        audit(RIGHT["classifier"], devices=0)
    with pytest.raises(FileNotFoundError, match=r"run\.toml: there is no such file$"):
        audit(tmp_path / "run.toml")


FILE = """
[trainer]
max_epochs = 3
[model]
class = "program.Summed"
[data]
class = "program.Blobs"
"""
PROGRAM = """
from helpers.planted import SummedLoss as Summed
from helpers.right_programs import blobs, splits
from helios_lite import DataModule


class Blobs(DataModule):
    def setup(self):
        data = splits(*blobs(256))
        self.train, self.valid = data.train, data.valid
"""


def test_the_command_prints_a_table_or_json_and_says_by_its_status_whether_all_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "run.toml").write_text(FILE)
    (tmp_path / "program.py").write_text(PROGRAM)
    file = str(tmp_path / "run.toml")
    with pytest.raises(SystemExit) as caught:
        main(["audit", file, "--only", "samples_alone,parameters", "--json", "--trainer.seed", "5"])
    assert caught.value.code == 1
    findings = json.loads(capsys.readouterr().out)
    assert all([*each] == ["relation", "result", "text", "causes", "same_as"] for each in findings)
    assert [(each["relation"], each["result"]) for each in findings] == [
        ("samples_alone", "breaks"),
        ("parameters", "holds"),
    ]
    main(["audit", file, "--only", "parameters"])
    assert "4 parameters are in one optimizer and get gradients" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as caught:
        main(["audit", file, "--only", "nothing"])
    assert caught.value.code == 2


SCRIPT = """
from helpers.right_programs import RIGHT

make = RIGHT["classifier"]


def fails():
    raise RuntimeError("no data")


def leaves():
    raise SystemExit(3)
"""


def test_the_command_takes_a_function_of_a_python_file_and_says_if_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "trained.py"
    file.write_text(SCRIPT)
    for program, error in (
        (str(file), "no relation could be checked\n"),
        (f"{file}:fails", "RuntimeError: no data\n"),
        (f"{file}:leaves", "SystemExit: 3\n"),
        (f"{file}:other", f"the program itself fails: ConfigError: {file}: has no function 'other'; there are"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["audit", program, "--only", "modes", "--trainer.seed", "3"])
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert error in told
        assert ("Traceback" in told) == ("Error: no data" in error or "SystemExit" in error)  # Not for a wrong word.
    with pytest.raises(SystemExit):
        main(["audit", str(file), "--model.width", "3"])
    assert "model.width: " in capsys.readouterr().err


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from helios_lite.tools.audit import audit\nfrom helpers.right_programs import RIGHT\n"
        'audit(RIGHT["classifier"], ["parameters"], seconds=30)\n'
    )
    # What a process imports again is the file of this program.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ProgramError, match='if __name__ == "__main__":'):
        runpy.run_path(str(script))
