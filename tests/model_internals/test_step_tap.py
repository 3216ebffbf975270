"""A tap sees what a training calls and changes no bit of it, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import torch
from helpers.compare import same, weights
from helpers.replayed import Dropped, data, trainer

from helios_lite import Callback
from helios_lite.metrics.measurements import learning_rates
from helios_lite.model_internals.step_tap import StepTap


class Logging(Dropped):
    """Logs in several ways, and has a step among its own attributes."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.train_step = self.own_step = self.step_that_logs  # type: ignore[method-assign]

    def step_that_logs(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.log("largest", batch[1].max(), None, "max")
        self.log("rows", len(batch[1]), reduce=["sum", "min"])


class Tapping(Callback):
    """Notes all that a tap sees. It may call the step of the model for its losses first, without dropout."""

    def __init__(self, probes: bool = False) -> None:
        self.probes = probes
        self.batches, self.losses, self.logged, self.steps = [], [], [], []
        self.probed: list[Any] = []

    def on_training_start(self) -> None:
        self.tap = StepTap(
            train_step=self.train_step,
            on_loss=self.losses.append,
            on_log=lambda name, value, reduce: self.logged.append(
                (name, float(torch.as_tensor(value).detach()), reduce)
            ),
            before_step=lambda name, optimizer: self.steps.append((name, learning_rates(optimizer))),
        )
        self.tap.attach(self.model)
        self.tap.watch_optimizers()

    def train_step(self, batch: Any, state: Any) -> None:
        self.batches.append(batch)
        if self.probes:
            self.probe(batch, state)
        self.tap.train_step(batch, state)

    def probe(self, batch: Any, state: Any) -> None:
        before, seen = weights(self.model), (len(self.losses), len(self.logged), len(self.steps))
        self.model.net.eval()
        for runs_backward in (False, True):
            self.model.net.zero_grad()
            with self.tap.probing(runs_backward=runs_backward) as losses:
                self.tap.train_step(batch, state)
                assert not self.model.optimizer_step(self.model.optimizer)
            has_gradients = [parameter.grad is not None for parameter in self.model.net.parameters()]
            assert has_gradients == [runs_backward] * 6
            self.probed.append(losses)
        assert same(weights(self.model), before)
        assert (len(self.losses), len(self.logged), len(self.steps)) == seen
        self.model.net.train()

    def on_training_end(self) -> None:
        self.tap.remove()


def fitted(root: Path, *callbacks: Callback) -> Logging:
    model = Logging()
    trainer(root, callbacks=list(callbacks), max_steps=8, valid_every_epochs=None).fit(model, data())
    return model


def test_a_tapped_training_has_the_bits_of_another_and_all_its_calls_are_seen(tmp_path: Path) -> None:
    seen = Tapping()
    assert same(weights(fitted(tmp_path / "tapped", seen)), weights(fitted(tmp_path / "plain")))
    logged = zip(seen.logged[::3], seen.logged[1::3], seen.logged[2::3], strict=True)
    for batch, (loss, weight), values in zip(seen.batches, seen.losses, logged, strict=True):
        expected = [("loss", loss, "mean"), ("largest", float(batch[1].max()), "max"), ("rows", 4.0, ["sum", "min"])]
        assert [*values] == expected
        assert weight is None
    assert [name for name, _ in seen.steps] == ["optimizer"] * 8
    assert [rates for _, rates in seen.steps[:2]] == [[0.01], [0.01 * 0.99]]


def test_a_probe_gives_losses_and_gradients_and_steps_and_logs_nothing(tmp_path: Path) -> None:
    seen = Tapping(probes=True)
    fitted(tmp_path, seen)
    assert len(seen.losses) == len(seen.batches) == 15  # Eleven in the first epoch.
    assert [len(losses) for losses in seen.probed] == [1] * 30
    assert seen.probed[::2] == seen.probed[1::2]


def test_a_tap_leaves_nothing_behind(tmp_path: Path) -> None:
    seen = Tapping()
    model = fitted(tmp_path, seen)
    assert vars(model)["train_step"] is model.own_step
    assert {"backward", "optimizer_step", "log"}.isdisjoint(vars(model))
    number = len(seen.steps)
    model.optimizer.step()
    assert len(seen.steps) == number
