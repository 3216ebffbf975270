"""Metrics that a model and callbacks compute from the reduced ones."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from helpers.compare import same, saved, timeless, weights
from helpers.models import Indices, Tiny, data, quiet
from helpers.rows import read_rows

from helios_lite import Callback, DataModule, Split


class Perplexed(Tiny):
    """Adds "<phase>/perplexity", and records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, float]]] = []

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        self.calls.append((phase, metrics))
        return {f"{phase}/perplexity": math.exp(metrics[f"{phase}/loss"])}


class Returning(Tiny):
    """Adds what it was given, and always at a validation only, so that a wrong value is found there."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value, self.updates = value, 0

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.updates += 1

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> Any:
        return self.value if phase == "valid" else {}


class Kept:
    """A logger that keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []

    def log_config(self, config: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append(metrics)


def test_what_is_added_is_monitored_and_is_wherever_metrics_are(tmp_path: Path) -> None:
    model, kept = Perplexed(), Kept()
    options = {"monitor": "valid/perplexity", "log_every_steps": 2, "loggers": [kept], "root": tmp_path}
    result = quiet(max_epochs=2, **options).fit(model, data(train=20))
    written = read_rows(tmp_path / "tiny")
    assert [row["step"] for row in written] == [2, 4, 5, 5, 6, 8, 10, 10]
    for rows in (written, kept.rows):
        for row in rows:
            phase = "valid" if "valid/loss" in row else "train"
            assert row[f"{phase}/perplexity"] == math.exp(row[f"{phase}/loss"])
    scores = [row["valid/perplexity"] for row in written if "valid/loss" in row]
    assert result.state.best_score == min(scores) == result.best_metrics["valid/perplexity"]
    for phase in ("train", "valid"):
        assert result.metrics[f"{phase}/perplexity"] == math.exp(result.metrics[f"{phase}/loss"])
        assert model.metrics[f"{phase}/perplexity"] == result.metrics[f"{phase}/perplexity"]
    tested = quiet(max_epochs=2, root=tmp_path).test(Perplexed(), data())
    assert tested["test/perplexity"] == math.exp(tested["test/loss"])


def test_a_row_has_its_learning_rate_but_no_time_and_a_validation_all_splits_at_once() -> None:
    class Splits(Perplexed):
        def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
            self.calls.append((phase, metrics))
            return {}

    model = Splits()
    splits = {name: Split(Indices(3), batch_size=2) for name in ("seen", "new")}
    quiet(max_epochs=1).fit(model, DataModule(Split(Indices(8), batch_size=4), splits))
    assert [(phase, sorted(metrics)) for phase, metrics in model.calls] == [
        ("valid", ["valid/new/loss", "valid/seen/loss"]),  # The sanity check.
        ("train", ["train/loss", "train/lr"]),
        ("valid", ["valid/new/loss", "valid/seen/loss"]),
    ]


def test_values_that_no_row_holds_are_completed_in_the_result(tmp_path: Path) -> None:
    model = Perplexed()
    result = quiet(max_steps=1, root=tmp_path).fit(model, data(train=20))
    (row,) = read_rows(tmp_path / "tiny")
    assert row["kind"] == "end"
    assert row["train/perplexity"] == math.exp(row["train/loss"])
    assert result.metrics["train/perplexity"] == math.exp(result.metrics["train/loss"])
    assert [phase for phase, _ in model.calls] == ["valid", "train", "valid"]


def test_callbacks_see_what_was_added_before_and_change_nothing_but_by_what_they_return() -> None:
    seen = []

    class Adding(Callback):
        def __init__(self, number: int) -> None:
            self.number = number

        def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
            seen.append((self.number, dict(metrics)))
            metrics["valid/loss"] = metrics["valid/not returned"] = -1.0
            return {f"valid/{self.number}": self.number, "valid/same": self.number}

    class Unlogged(Tiny):
        def valid_step(self, batch: Any, step: int) -> None:
            self.log("loss", 0.0)

    trainer = quiet(max_epochs=1, callbacks=[Adding(1), Callback(), Adding(2)])
    found = trainer.validate(Unlogged(), data(), checkpoint=None)
    assert found == {"valid/loss": 0.0, "valid/1": 1.0, "valid/2": 2.0, "valid/same": 2.0}
    assert seen == [(1, {"valid/loss": 0.0}), (2, {"valid/loss": 0.0, "valid/1": 1.0, "valid/same": 1.0})]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"Returning.process_metrics returned None: must be a dict of numbers by full name"),
        (3.0, r"returned 3.0: must be a dict"),
        ([("valid/x", 1.0)], r"must be a dict"),
        ({1: 2.0}, r"returned the name 1: must be a str"),
        ({"valid/x": "high"}, r"returned 'valid/x': 'high': must be a number"),
        ({"valid/x": None}, r"returned 'valid/x': None: must be a number"),
        ({"valid/x": torch.ones(2)}, r"returned 'valid/x': tensor.*: must be a number or a tensor of one element"),
        ({"valid/x": 1j}, r"must be a number"),
        ({"valid/x": torch.tensor(1j)}, r"must be a number"),
    ],
)
def test_anything_but_numbers_by_name_is_an_error_before_the_first_step(value: Any, message: str) -> None:
    model = Returning(value)
    with pytest.raises(TypeError, match=message):
        quiet(max_epochs=1).fit(model, data())
    assert model.updates == 0


@pytest.mark.parametrize("value", [2, True, torch.tensor(2), torch.tensor([[2.0]]), numpy.float32(2), numpy.int64(2)])
def test_a_number_of_any_kind_becomes_a_float_that_a_checkpoint_can_hold(tmp_path: Path, value: Any) -> None:
    result = quiet(max_epochs=1, root=tmp_path).fit(Returning({"valid/x": value}), data())
    assert result.metrics["valid/x"] == float(value)
    assert type(saved(tmp_path / "tiny", "metrics")["metrics"]["latest"]["valid/x"]) is float


def test_a_value_that_is_not_finite_does_not_end_the_run(tmp_path: Path) -> None:
    class Overflowing(Tiny):
        def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
            return {f"{phase}/perplexity": math.inf}

    result = quiet(max_epochs=1, root=tmp_path).fit(Overflowing(), data())
    assert result.metrics["train/perplexity"] == math.inf
    rows = read_rows(tmp_path / "tiny")
    assert [row[name] for row in rows for name in row if name.endswith("perplexity")] == [None, None]


@pytest.mark.parametrize("phase", ["train", "valid"])
def test_log_is_an_error_there_and_works_afterwards(phase: str) -> None:
    class Logging(Tiny):
        errors = 0

        def process_metrics(self, now: str, metrics: dict[str, float]) -> dict[str, float]:
            if now == phase:
                with pytest.raises(RuntimeError, match=r"log\('x'\): .* not in process_metrics"):
                    self.log("x", 1.0)
                self.errors += 1
            return {}

    model = Logging()
    result = quiet(max_epochs=2).fit(model, data())
    assert model.errors >= 2
    assert "train/x" not in result.metrics
    assert {"train/loss", "valid/loss"} <= result.metrics.keys()


class Random(Perplexed):
    """Uses random numbers in evaluations."""

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        noise = {} if phase == "train" else {"valid/noise": torch.rand(())}
        return super().process_metrics(phase, metrics) | noise


def test_a_run_in_parts_ends_like_one_that_was_not_stopped(tmp_path: Path) -> None:
    ends = []
    for name, stops in (("whole", (9,)), ("parts", (1, 4, 5, 9))):
        for steps in stops:
            options = {"max_steps": steps, "log_every_steps": 2, "monitor": "valid/perplexity"}
            result = quiet(root=tmp_path / name, **options).fit(Random(), data(train=20))
        content = saved(tmp_path / name / "tiny", "model", "monitor", "metrics", "state", "ranks")
        ends.append((timeless(result.metrics), timeless(read_rows(tmp_path / name / "tiny")), content))
    assert same(ends[0], ends[1])


def test_random_numbers_of_evaluations_do_not_change_the_training() -> None:
    models = Random(), Tiny()
    for model in models:
        quiet(max_epochs=2, valid_every_steps=1).fit(model, data())
    assert same(*map(weights, models))


@pytest.mark.parametrize("name", ["step", "epoch", "seconds", "kind", "checkpoint", "limit"])
def test_a_name_that_every_row_has_is_an_error(name: str) -> None:
    class Named(Tiny):
        def process_metrics(self, phase: str, metrics: Mapping[str, float]) -> dict[str, float]:
            return {name: 7.0}

    with pytest.raises(ValueError, match=f"^Named.process_metrics returned '{name}', which every row has already"):
        quiet(max_epochs=1).fit(Named(), data())


def test_what_the_model_logs_under_the_name_of_something_measured_stays(tmp_path: Path) -> None:
    own = ["lr", "step_seconds", "samples_per_second", "data_wait", "compute_seconds", "epoch_seconds"]

    class Own(Tiny):
        def train_step(self, batch: object, state: object) -> None:
            super().train_step(batch, state)
            for name in own:
                self.log(name, 7.0)

    result = quiet(max_epochs=1, log_every_steps=1, root=tmp_path).fit(Own(), data())
    rows = [row for row in read_rows(tmp_path / "tiny") if "train/loss" in row]
    assert [[row[f"train/{name}"] for name in own] for row in rows] == [[7.0] * len(own)] * 3
    assert [result.metrics[f"train/{name}"] for name in own] == [7.0] * len(own)
