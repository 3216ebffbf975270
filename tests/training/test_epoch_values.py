"""Values that are logged outside of the steps: they belong to their own epoch, once, also over a resume."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.models import Tiny, data, quiet

from helios_lite import Callback


class AtEnd(Tiny):
    """Logs the number of the epoch when it ends, and keeps what `metrics` has then."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[float | None] = []

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.known.append(self.metrics.get("train/number"))
        self.log("number", float(current_epoch))


class CallbackAtEnd(Callback):
    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.model.log("number", float(current_epoch))


class WithoutRow(Tiny):
    """As `AtEnd`; its steps log nothing."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.net(batch[1]).mean())
        self.optimizer_step(self.optimizer)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.log("number", float(current_epoch))


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "tiny/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("log_every_steps", [1, 2, 100])
@pytest.mark.parametrize("kind", ["model", "callback", "without rows"])
def test_a_value_of_the_end_of_an_epoch_is_in_a_row_of_that_epoch(
    kind: str, log_every_steps: int, tmp_path: Path
) -> None:
    model = {"model": AtEnd, "callback": Tiny, "without rows": WithoutRow}[kind]()
    callbacks = [CallbackAtEnd()] if kind == "callback" else []
    options: dict[str, Any] = {"log_every_steps": log_every_steps, "callbacks": callbacks, "root": tmp_path}
    for epochs in (1, 3):  # The second start goes on.
        result = quiet(max_epochs=epochs, **options).fit(model, data(train=12))
    found = [(row["step"], row["epoch"], row["train/number"]) for row in rows(tmp_path) if "train/number" in row]
    assert found == [(3, 0, 1.0), (6, 1, 2.0), (9, 2, 3.0)]
    assert result.metrics["train/number"] == 3.0
    if kind == "model":
        assert model.known == [None, 1.0, 2.0]
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(steps)


class Everywhere(Tiny):
    """Logs a sum in every hook that a run calls before its steps."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.log("setup", 1.0, reduce="sum")

    def on_training_start(self) -> None:
        self.log("start", 1.0, reduce="sum")

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.log("epoch_start", 1.0, reduce="sum")


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_values_of_the_start_count_once_over_a_resume(cut: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"log_every_steps": 100, "valid_every_epochs": None}
    quiet(max_steps=6, root=tmp_path / "whole", **options).fit(Everywhere(), data(train=12))
    for steps in (cut, 6):
        quiet(max_steps=steps, root=tmp_path / "cut", **options).fit(Everywhere(), data(train=12))
    names = ("train/setup", "train/start", "train/epoch_start")
    found = [
        [{name: row[name] for name in names if name in row} for row in rows(tmp_path / root) if "kind" not in row]
        for root in ("whole", "cut")
    ]
    assert found[0] == [dict.fromkeys(names, 1.0), {"train/epoch_start": 1.0}]
    assert found[0] == found[1]


@pytest.mark.parametrize("valid_every_epochs", [1, None])
def test_the_weight_of_a_value_of_the_end_of_an_epoch_does_not_depend_on_validations(
    valid_every_epochs: int | None, tmp_path: Path
) -> None:
    class Weighing(Tiny):
        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.log("number", 1.0)
            self.log("number", 4.0, count=2)

    options: dict[str, Any] = {"valid_every_epochs": valid_every_epochs, "root": tmp_path}
    result = quiet(max_epochs=1, **options).fit(Weighing(), data(train=12, valid=7))
    assert result.metrics["train/number"] == 3.0
