"""Callbacks that come with the package, each against the same thing by hand, resumed in the middle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import Tiny, data, quiet
from torch import nn

from helios_lite import Callback
from helios_lite.callbacks import EMA, ActivationStatistics, DeviceMemory, Profile


class Noting(Tiny):
    """Notes the weights after every update, and those it is evaluated with."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[Any] = []
        self.evaluated: list[Any] = []

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        if state.step > (self.trained[-1][0] if self.trained else 0):
            self.trained.append((state.step, weights(self)["net"]))

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        self.evaluated.append(weights(self)["net"])


def average(trained: list[Any], decay: float) -> list[dict[str, torch.Tensor]]:
    """The average after each of some updates; PyTorch's begins with a copy of the weights after the first."""
    averages = [trained[0]]
    for new in trained[1:]:
        averages.append({name: averages[-1][name] * decay + new[name] * (1 - decay) for name in new})
    return averages


OPTIONS: dict[str, Any] = {"max_epochs": 4, "accumulation_steps": 2, "sanity_batches": 0}


def test_validations_and_tests_use_the_average_and_training_does_not_notice(tmp_path: Path) -> None:
    model, ema = Noting(), EMA(decay=0.5)
    trainer = quiet(root=tmp_path, callbacks=[ema], valid_every_epochs=1, **OPTIONS)
    result = trainer.fit(model, data(valid=4))
    plain = Noting()
    quiet(**OPTIONS).fit(plain, data(valid=4))
    assert [step for step, _ in model.trained] == list(range(1, 9))
    assert same(model.trained, plain.trained)
    expected = average([net for _, net in plain.trained], 0.5)
    for epoch, found in enumerate(model.evaluated):
        for name, value in found.items():
            torch.testing.assert_close(value, expected[2 * epoch + 1][name])
    assert same(weights(model)["net"], plain.trained[-1][1])

    tested = Noting()
    metrics = quiet(root=tmp_path, callbacks=[EMA(decay=0.5)], max_epochs=4).test(tested, data(valid=4), "last")
    assert same(tested.evaluated[0], model.evaluated[-1])
    assert metrics["test/loss"] == pytest.approx(result.metrics["valid/loss"])
    again = Noting()  # And in the process that has trained, without any checkpoint.
    run = quiet(callbacks=[ema], **OPTIONS)
    run.fit(again, data(valid=4))
    run.test(again, data(valid=4), checkpoint=None)
    assert same(again.evaluated[-1], model.evaluated[-1])


def test_an_average_resumes_with_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for name, stops in (("whole", (8,)), ("parts", (1, 3, 8))):
        for steps in stops:
            ema = EMA(decay=0.9)
            quiet(root=tmp_path / name, callbacks=[ema], **{**OPTIONS, "max_epochs": None, "max_steps": steps}).fit(
                Tiny(), data()
            )
        ends.append(ema.state_dict())
    assert same(ends[0], ends[1])


def test_an_average_of_a_sharded_network_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^EMA: does not work with strategy='fsdp'"):
        quiet(max_epochs=1, devices=2, accelerator="cpu", strategy="fsdp", callbacks=[EMA()]).fit(Tiny(), data())


@pytest.mark.parametrize("decay", [-0.1, 1, 2])
def test_a_wrong_decay_is_an_error(decay: float) -> None:
    with pytest.raises(ValueError, match=f"^decay={decay}"):
        EMA(decay=decay)


class Halves(Tiny):
    """Its activations are known: 0 and 2 in turn."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.probe = nn.ReLU()

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.probe(torch.tensor([-1.0, 2.0, 2.0, -1.0]))


def test_activations_are_measured_at_log_points_only(tmp_path: Path) -> None:
    model = Halves()
    quiet(max_steps=6, root=tmp_path, log_every_steps=3, callbacks=[ActivationStatistics(["probe", "net.0"])]).fit(
        model, data(train=40)
    )
    rows = [json.loads(line) for line in (tmp_path / "tiny/metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row for row in rows if "train/loss" in row}
    assert set(found) == {3, 6}
    for row in found.values():
        assert row["train/activation/probe/mean"] == 1.0
        assert row["train/activation/probe/std"] == pytest.approx((4 / 3) ** 0.5)
        assert row["train/activation/probe/zeros"] == 0.5
        assert row["train/activation/net.0/std"] > 0
    assert not model.probe._forward_hooks


def test_activations_of_a_module_that_is_not_there_are_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="7"):
        quiet(max_epochs=1, callbacks=[ActivationStatistics(["net.7"])]).fit(Tiny(), data())


def test_memory_is_that_of_the_process() -> None:
    result = quiet(max_epochs=1, accelerator="cpu", callbacks=[DeviceMemory()]).fit(Tiny(), data())
    assert 50 < result.metrics["train/memory_mib"] < 100_000


@pytest.mark.filterwarnings("ignore")
def test_a_profile_has_the_updates_asked_for(tmp_path: Path) -> None:
    counts = []
    for last in (2, 4):
        folder = tmp_path / str(last)
        quiet(max_steps=6, callbacks=[Profile(folder, first=2, last=last)]).fit(Tiny(), data())
        events = json.loads((folder / "trace_0.json").read_text())["traceEvents"]
        counts.append(sum(event.get("name", "").startswith("Optimizer.step#Adam") for event in events))
    assert counts == [1, 3]


def test_a_profile_that_ends_before_it_begins_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first=3, last=2"):
        Profile(tmp_path, first=3, last=2)


def test_a_callback_that_setup_of_the_model_adds_is_called() -> None:
    class Noted(Callback):
        steps = 0

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.steps += 1

    class Adding(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.trainer.callbacks.append(noted)

    noted = Noted()
    quiet(max_steps=3, callbacks=[]).fit(Adding(), data())
    assert noted.steps == 3
