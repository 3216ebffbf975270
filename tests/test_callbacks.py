"""Callbacks that come with the package, each against the same thing by hand, resumed in the middle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import Tiny, data, quiet
from helpers.rows import read_rows
from torch import nn

from helios_lite import Callback, DataModule
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


@pytest.mark.parametrize("async_save", [False, True])
def test_the_best_checkpoint_gives_the_average_that_was_validated(tmp_path: Path, async_save: bool) -> None:
    model = Noting()
    options: dict[str, Any] = {"root": tmp_path, "monitor": "valid/loss", "mode": "max", **OPTIONS}
    result = quiet(callbacks=[EMA(decay=0.5)], async_save=async_save, **options).fit(model, data(valid=4))
    assert result.state.best_step == 2 < result.state.step
    validated, trained = model.evaluated[0], model.trained[1][1]
    assert not same(validated, trained)
    for path, expected in ((result.best_checkpoint, validated), (result.last_checkpoint, model.evaluated[-1])):
        assert same(weights(Noting.load_from_checkpoint(path))["net"], expected)
    assert same(torch.load(result.best_checkpoint, weights_only=True)["model"]["net"], trained)
    for callbacks in ([], [EMA(decay=0.5)]):
        tested = Noting()
        metrics = quiet(callbacks=callbacks, **options).test(tested, data(valid=4))
        assert same(tested.evaluated[0], validated)
        assert same(weights(tested)["net"], validated)
        assert metrics["test/loss"] == result.best_metrics["valid/loss"]


def test_before_the_first_update_the_weights_are_validated(tmp_path: Path) -> None:
    """Such as those of a checkpoint that has no average; the average itself begins with a copy of what `setup` made."""
    result = quiet(root=tmp_path, max_epochs=1).fit(Tiny(), data())
    model = Noting()
    metrics = quiet(root=tmp_path, max_epochs=1, callbacks=[EMA()]).validate(model, data(), "last")
    assert metrics["valid/loss"] == result.metrics["valid/loss"]
    assert same(model.evaluated[0], torch.load(result.last_checkpoint, weights_only=True)["model"]["net"])


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
    rows = read_rows(tmp_path / "tiny")
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


def test_a_callback_has_the_trainer_of_its_model_and_none_outside_of_a_run() -> None:
    class Reading(Callback):
        def on_training_start(self) -> None:
            seen.append(self.trainer)

    seen: list[Any] = []
    callback = Reading()
    trainer = quiet(max_steps=1, callbacks=[callback])
    trainer.fit(Tiny(), data())
    assert seen == [trainer]
    with pytest.raises(RuntimeError, match=r"Tiny\.trainer"):
        _ = callback.trainer


class Periodic(Callback):
    """Notes the calls of its hooks, each with the number of the update or the epoch."""

    def __init__(self, **periods: int) -> None:
        vars(self).update(periods)
        self.steps: list[tuple[str, int]] = []
        self.epochs: list[tuple[str, int]] = []
        self.epoch = 0

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.epoch = current_epoch

    def on_training_batch_start(self, state: Any) -> None:
        self.steps.append(("start", state.batch))

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.steps.append(("end", state.batch))

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.epochs.append(("epoch end", current_epoch))

    def on_validation_start(self, validation_cycle: int) -> None:
        self.epochs.append(("valid", validation_cycle))

    def on_validation_batch_start(self, step: int) -> None:
        self.epochs.append(("valid batch", step))

    def on_validation_batch_end(self, step: int) -> None:
        self.epochs.append(("valid batch end", step))

    def on_validation_end(self, validation_cycle: int) -> None:
        self.epochs.append(("valid end", validation_cycle))


VALIDATED = [("valid batch", 0), ("valid batch end", 0), ("valid batch", 1), ("valid batch end", 1)]


def test_periods_limit_the_hooks_of_steps_and_epochs_with_the_same_calls_after_a_resume(tmp_path: Path) -> None:
    """An epoch has three batches and two updates, the second of one batch; updates 3, 6 and 9 are asked for."""
    found = []
    for name, stops in (("whole", (10,)), ("parts", (2, 3, 5, 7, 10))):
        steps, epochs, every = [], [], 0
        for max_steps in stops:
            limited, other = Periodic(every_n_steps=3, every_n_epochs=2), Periodic()
            options = {"max_steps": max_steps, "accumulation_steps": 2, "sanity_batches": 0}
            quiet(root=tmp_path / name, callbacks=[limited, other], **options).fit(Tiny(), data())
            steps += limited.steps
            epochs += limited.epochs
            every += len(other.steps)
        found.append((steps, epochs))
        assert every == 2 * 15
    assert found[0] == found[1]
    assert found[0][0] == [(when, batch + (when == "end")) for batch in (3, 4, 8, 12, 13) for when in ("start", "end")]
    assert found[0][1] == [
        call for epoch in (2, 4) for call in [("valid", epoch), *VALIDATED, ("valid end", epoch), ("epoch end", epoch)]
    ]


def test_a_period_does_not_concern_the_model_the_sanity_validation_and_evaluations_of_their_own() -> None:
    callback, model, datamodule = Periodic(every_n_epochs=9), Noting(), data()
    trainer = quiet(max_epochs=2, sanity_batches=9, callbacks=[callback])
    trainer.fit(model, datamodule)
    validation = [("valid", 0), *VALIDATED, ("valid end", 0)]
    assert callback.epochs == validation
    assert len(model.trained) == 6
    assert len(model.evaluated) == 3 * 2
    trainer.validate(model, datamodule, checkpoint=None)
    assert callback.epochs[len(validation) :] == [("valid", 1), *VALIDATED, ("valid end", 1)]


@pytest.mark.parametrize(
    ("periods", "error"),
    [
        ({"every_n_steps": 0}, ValueError),
        ({"every_n_epochs": -1}, ValueError),
        ({"every_n_epochs": 1.5}, TypeError),
        ({"every_n_steps": True}, TypeError),
    ],
)
def test_a_wrong_period_is_an_error_that_names_the_callback(periods: dict[str, Any], error: type[Exception]) -> None:
    ((name, value),) = periods.items()
    with pytest.raises(error, match=f"^Periodic.{name}={value}: must be"):
        quiet(max_epochs=1, callbacks=[Periodic(**periods)]).fit(Tiny(), data())


def test_a_callback_has_the_data_of_the_run_before_its_setup() -> None:
    class Counting(Callback):
        def setup(self, fast_init: bool = False) -> None:
            lengths.append((len(self.datamodule.train.dataset), self.model.save_name))

    class Late(DataModule):
        def setup(self) -> None:
            self.train = data(train=7).train

    lengths: list[tuple[int, str]] = []
    quiet(max_epochs=1, callbacks=[Counting()]).fit(Tiny(), Late())
    assert lengths == [(7, "tiny")]
