"""Objects that compute a metric, given to `log`: over the row, the epoch and the evaluation, on any number of ranks."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from helpers.compare import saved, timeless
from helpers.models import Indices, Plain, data, quiet
from helpers.rows import read_rows
from helpers.scored import KINDS, NoMerge, Scored, With, by_hand, only, seen_by
from torch import nn

from helios_lite import DataModule, Split
from helios_lite.model_internals.attributes import metric_objects, named_networks


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_computed_over_the_row_the_epoch_and_the_evaluation(
    kind: str, shared: bool, tmp_path: Path
) -> None:
    """A row has two updates and an epoch three, so that validations come within rows; both may share an object."""
    model = Scored(kind, shared)
    options: dict[str, Any] = {"valid_every_steps": 1, "log_every_steps": 2, "sanity_batches": 0}
    result = quiet(max_epochs=2, root=tmp_path, **options).fit(model, data(train=30, valid=11, batch_size=10))
    rows = read_rows(tmp_path / "plain")
    train = [only(row, "train/score") for row in rows if "train/loss" in row]
    epochs = [model.seen[:3], model.seen[3:]]
    name, expected = "train/score", []
    for i, epoch in enumerate(epochs):
        # A row after every second update, and after the last of an epoch.
        cuts = [epoch[:2], epoch[2:]] if i == 0 else [epoch[:1], epoch[1:]]
        for j, batches in enumerate(cuts):
            values = by_hand(kind, [*itertools.chain(*batches)], name)
            if j == 1:
                values |= {
                    f"{key}/epoch": value for key, value in by_hand(kind, [*itertools.chain(*epoch)], name).items()
                }
            expected.append(pytest.approx(values, rel=1e-6))
    assert train == expected
    valid = by_hand(kind, list(range(11)), "valid/score")
    assert [only(row, "valid") for row in rows if "valid/score" in str(row)] == [pytest.approx(valid)] * 6
    assert only(result.metrics, "valid") == pytest.approx(valid)


def test_each_split_has_its_own_value_of_an_object_that_they_share() -> None:
    splits = {"low": Split(Indices(6), 4), "high": Split(Indices(11), 4)}
    metrics = quiet(max_epochs=1).validate(Scored(), DataModule(valid=splits), checkpoint=None)
    expected = {
        **by_hand("f1", list(range(6)), "valid/low/score"),
        **by_hand("f1", list(range(11)), "valid/high/score"),
    }
    assert metrics == pytest.approx(expected)


class Rarely(Scored):
    """Updates its object in every step, and logs it in the first of a row of three."""

    def train_step(self, batch: Any, state: Any) -> None:
        Plain.train_step(self, batch, state)
        self.score.update(*seen_by(self.kind, batch[0]))
        if state.step % 3 == 0:
            self.log("score", self.score)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_cut_inside_a_row_has_the_same_rows(kind: str, tmp_path: Path) -> None:
    ends = []
    for name, stops in (("whole", (8,)), ("cut", (2, 3, 5, 8))):
        for max_steps in stops:
            options = {"log_every_steps": 3, "valid_every_steps": 4, "valid_every_epochs": None, "sanity_batches": 0}
            quiet(max_steps=max_steps, root=tmp_path / name, **options).fit(Rarely(kind), data(train=50, batch_size=10))
        rows = [row for row in timeless(read_rows(tmp_path / name / "plain")) if "kind" not in row]
        ends.append((rows, saved(tmp_path / name / "plain", "ranks", "metrics")))
    assert ends[0][0] == ends[1][0]
    assert str(ends[0][1]) == str(ends[1][1])
    assert any("/epoch" in name for row in ends[0][0] for name in row)


def test_what_nobody_logs_is_kept_in_checkpoints_too(tmp_path: Path) -> None:
    class Kept(Plain):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.inside = nn.ModuleDict({"mean": torchmetrics.MeanMetric()})
            self.group = KINDS["group"]()

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.inside["mean"].update(batch[0].float())
            self.group.update(batch[0].float())

    quiet(max_steps=2, root=tmp_path).fit(first := Kept(), data(train=40))
    quiet(max_steps=3, root=tmp_path).fit(second := Kept(), data(train=40))
    expected = torch.tensor([*itertools.chain(*first.seen, *second.seen)]).float()
    assert second.inside["mean"].compute() == pytest.approx(float(expected.mean()))
    assert second.group.compute() == {"once": expected.sum(), "twice": 2 * expected.sum()}
    assert list(metric_objects(second)) == ["inside.mean", "group"]


def test_an_object_that_cannot_be_merged_has_no_value_over_the_epoch(caplog: pytest.LogCaptureFixture) -> None:
    class Trained(With):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.valid_step(batch, 0)

    result = quiet(max_epochs=2, log_every_steps=1).fit(Trained(NoMerge()), data(train=16))
    assert "train/score" in result.metrics
    assert "train/score/epoch" not in result.metrics
    assert "train/loss/epoch" in result.metrics
    (text,) = [record.getMessage() for record in caplog.records if "merge_state" in record.getMessage()]
    assert text.startswith("log('train/score'): a NoMerge has no merge_state")
    assert text.endswith("there is no value over the epoch")


class Wrong(Plain):
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.a, self.b = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()
        self.matrix = torchmetrics.ConfusionMatrix(task="binary")

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        for metric in (self.a, self.b):
            metric.update(1.0)
        self.matrix.update(batch[0] % 2, batch[0] % 2)
        self.call(self)


def log_twice(model: Any, first: Any, second: Any) -> None:
    model.log("m", first)
    model.log("m", second)


def log_unheld(model: Any) -> None:
    unheld = torchmetrics.MeanMetric()
    unheld.update(1.0)
    model.log("m", unheld)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda model: model.log("m", model.a, reduce="max"), r"^log\('train/m'\): reduce='max' is for numbers"),
        (lambda model: log_twice(model, model.a, model.b), r"^log\('train/m'\): was something else before"),
        (lambda model: log_twice(model, 1.0, model.a), r"^log\('train/m'\): was something else before"),
        (lambda model: log_twice(model, model.a, 1.0), r"^log\('train/m'\): a metric object was logged with this name"),
        (
            lambda model: model.log("m", model.matrix),
            r"^log\('train/m'\): compute\(\) of BinaryConfusionMatrix must ret",
        ),
        (log_unheld, r"^log\('train/m'\): the MeanMetric must be an attribute of the model"),
    ],
)
def test_what_cannot_be_logged_is_an_error_that_names_it(call: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        quiet(max_steps=1, root=tmp_path).fit(Wrong(call), data(train=40))


def test_a_value_that_is_not_finite_ends_the_training() -> None:
    class Undefined(Scored):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.score.below = torch.tensor(math.nan if state.step == 2 else 1.0)

    with pytest.raises(FloatingPointError, match=r"^train/score is not finite at step 3"):
        quiet(max_steps=9, log_every_steps=3).fit(Undefined("own"), data(train=40))


def test_metric_objects_are_no_networks() -> None:
    """The default of `predict_step` needs exactly one network, and metrics may have modules of their own."""
    model = Scored("collection")
    quiet(max_epochs=1).fit(model, data())
    model.more = nn.ModuleList([torchmetrics.MeanMetric()])
    assert list(named_networks(model)) == ["net"]
    prediction = DataModule()
    prediction.predict = [torch.ones(2, 3)]
    assert len(list(quiet(max_epochs=1).predict(model, prediction, checkpoint=None))) == 1
    # A network that happens to have such methods is trained, and stays one.
    model.own = nn.Linear(1, 1)
    for name in ("update", "compute", "reset"):
        setattr(model.own, name, lambda: None)
    assert list(named_networks(model)) == ["net", "own"]


def test_a_copy_of_what_was_seen_is_not_changed_by_the_next_update() -> None:
    """Lists are cleared in place by torchmetrics, and totals may be added to in place."""
    from helios_lite.metrics.metric_objects import restore, state_of

    for kind, make in KINDS.items():
        metric = make()
        metric.update(*seen_by(kind, torch.arange(9)))
        expected, state = metric.compute(), state_of(metric)
        metric.reset()
        metric.update(*seen_by(kind, torch.arange(3)))
        other = copy.deepcopy(metric)
        restore(other, state)
        assert other.compute() == expected, kind
