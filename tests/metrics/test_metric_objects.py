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
    """A row has two steps and an epoch three, so that validations come within rows; both may share an object."""
    model = Scored(kind, shared)
    options: dict[str, Any] = {"valid_every_steps": 1, "log_every_steps": 2, "sanity_batches": 0}
    result = quiet(max_epochs=2, root=tmp_path, **options).fit(model, data(train=30, valid=11, batch_size=10))
    rows = read_rows(tmp_path / "plain")
    train = [only(row, "train/score") for row in rows if "train/loss" in row]
    epochs = [model.seen[:3], model.seen[3:]]
    name, expected = "train/score", []
    for i, epoch in enumerate(epochs):
        # A row after every second step, and after the last of an epoch.
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


class NoState(NoMerge):
    state_dict = None  # type: ignore[assignment]


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
        (lambda model: model.log("m", NoState()), r"^log\('train/m'\): the NoState must be an attribute"),
        (log_unheld, r"^log\('train/m'\): the MeanMetric must be an attribute of the model"),
    ],
)
def test_what_cannot_be_logged_is_an_error_that_names_it(call: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        quiet(max_steps=1, root=tmp_path).fit(Wrong(call), data(train=40))


class Few(Scored):
    """Has objects that need more than the samples of some rows."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.r2 = torchmetrics.R2Score()

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.score.below = torch.tensor(math.nan if state.step == 2 else 1.0)
        self.r2.update(batch[1][:, 0], batch[1][:, 1])
        self.log("r2", self.r2)


def test_what_too_few_samples_do_not_give_is_missing_or_null_and_ends_nothing(tmp_path: Path, caplog: Any) -> None:
    """A row has three steps of one sample each, the last has one; a save comes inside of rows."""
    options = {"max_steps": 10, "log_every_steps": 3, "valid_every_epochs": None, "save_every_steps": 1}
    result = quiet(root=tmp_path, **options).fit(Few("own"), data(train=40, batch_size=1))
    rows = read_rows(tmp_path / "plain")
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert ["train/r2" in row for row in rows] == [True, True, True, False]
    assert [row["train/score"] is None for row in rows] == [True, False, False, False]
    assert "train/loss" in result.metrics
    texts = [record.getMessage() for record in caplog.records if "r2" in record.getMessage()]
    assert len(texts) == 1
    assert texts[0].startswith("log('train/r2'): no value in this row, because compute() raised: Needs at least two")


def test_an_object_is_computed_for_rows_and_not_for_checkpoints(tmp_path: Path) -> None:
    class Counting(Scored):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.score.compute = lambda: computed.append(1) or 0.5

    computed: list[int] = []
    options = {"max_steps": 6, "log_every_steps": 3, "valid_every_epochs": None, "save_every_steps": 1}
    quiet(root=tmp_path, **options).fit(Counting("own"), data(train=40))
    assert len(computed) == 2


def test_an_evaluation_whose_object_cannot_be_computed_is_an_error() -> None:
    with pytest.raises(ValueError, match="Needs at least two samples") as caught:
        quiet(max_epochs=1).validate(With(torchmetrics.R2Score()), data(valid=1), checkpoint=None)
    assert caught.value.__notes__ == ["raised by compute() of what was logged as 'valid/score'"]


def test_what_a_step_has_computed_with_a_graph_can_be_seen_by_an_object() -> None:
    class Attached(Scored):
        def train_step(self, batch: Any, state: Any) -> None:
            Plain.train_step(self, batch, state)
            self.score.update(self.net(batch[1])[:, 0].sigmoid(), batch[0].int() % 2)
            self.log("score", self.score)

    result = quiet(max_epochs=2, log_every_steps=2).fit(Attached("lists"), data(train=40, batch_size=10))
    assert 0.0 <= result.metrics["train/score/epoch"] <= 1.0


class Holder(nn.Module):
    """A module of our own with metrics of torchmetrics inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torchmetrics.SumMetric()

    def update(self, values: torch.Tensor) -> None:
        self.inner.update(values)

    def compute(self) -> dict[str, Any]:
        return {"sum": self.inner.compute()}

    def reset(self) -> None:
        self.inner.reset()


class Held(Plain):
    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.score = Holder()
        self.classes = torchmetrics.ClasswiseWrapper(torchmetrics.classification.MulticlassAccuracy(2, average=None))
        self.tracked = torchmetrics.MetricTracker(torchmetrics.SumMetric(), maximize=True)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.score.update(batch[0].float())
        self.log("score", self.score)
        self.classes.update(batch[0] % 3 % 2, batch[0] % 2)
        self.log("classes", self.classes)

    def valid_step(self, batch: Any, step: int) -> None:
        self.score.update(batch[0].float())
        self.log("score", self.score)


def test_modules_and_wrappers_with_metrics_inside_are_seen_through(tmp_path: Path) -> None:
    options = {"log_every_steps": 4, "valid_every_steps": 2, "sanity_batches": 0}
    ends = []
    for name, stops in (("whole", (8,)), ("cut", (1, 3, 8))):
        for max_steps in stops:
            model = Held()
            quiet(max_steps=max_steps, root=tmp_path / name, **options).fit(model, data(train=32))
        rows = [row for row in timeless(read_rows(tmp_path / name / "plain")) if "kind" not in row]
        ends.append([only(row, "train/") for row in rows])
    assert ends[0] == ends[1]
    sums = [row["train/score/sum"] for row in ends[0] if "train/score/sum" in row]
    assert sum(sums) == sum(range(32))
    assert [name for name in ends[0][-2] if "classes" in name] == [
        f"train/classes/multiclassaccuracy_{i}{ending}" for ending in ("", "/epoch") for i in range(2)
    ]


def test_what_an_error_leaves_in_an_object_is_not_counted_later() -> None:
    class Failing(Scored):
        def __init__(self) -> None:
            super().__init__("sum")
            self.made, self.fails = KINDS["sum"](), True

        def setup(self, fast_init: bool = False) -> None:
            Plain.setup(self, fast_init)
            self.score, self.parts = self.made, {"valid": self.made}

        def fail(self) -> None:
            if self.fails:
                raise OSError("once")

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.fail()

        def valid_step(self, batch: Any, step: int) -> None:
            super().valid_step(batch, step)
            self.fail()

    model = Failing()
    for call in (
        lambda: quiet(max_epochs=1, sanity_batches=0).fit(model, data(valid=9)),
        lambda: quiet(max_epochs=1).validate(model, data(valid=9), checkpoint=None),
    ):
        model.fails = True
        with pytest.raises(OSError, match="once"):
            call()
        model.fails = False
        metrics = quiet(max_epochs=1).validate(model, data(valid=9), checkpoint=None)
        assert metrics == {"valid/score": 36.0}


def test_a_module_with_a_state_is_loaded_as_a_network_whatever_its_methods(tmp_path: Path) -> None:
    class Normalizer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def update(self, values: torch.Tensor) -> None:
            self.mean.copy_(values.mean())

        def compute(self) -> torch.Tensor:
            return self.mean

        def reset(self) -> None:
            self.mean.zero_()

    class Normalized(Plain):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.norm = Normalizer()

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.norm.update(batch[0].float())

    result = quiet(max_epochs=1, root=tmp_path).fit(model := Normalized(), data())
    assert model.norm.mean > 0
    assert Normalized.load_from_checkpoint(result.last_checkpoint).norm.mean == model.norm.mean


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
    model.kept = torchmetrics.MeanMetric()
    model.kept.persistent(True)
    assert list(named_networks(model)) == ["net", "own"]
    assert list(metric_objects(model)) == ["score", "parts.valid", "more.0", "kept"]


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
        other.compute()  # Those of torchmetrics keep the result.
        restore(other, state)
        assert other.compute() == expected, kind
