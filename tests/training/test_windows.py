"""Accumulation windows: each begins without gradients, and one in which no optimizer has stepped is no step."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, saved
from helpers.models import quiet
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, FitResult, Model, Split

LR = 1.0


class Linear(Model):
    """w * x, whose gradient is the mean of x; a batch with a number below 0 is bad, and passed over.

    Args:
        way: how a bad batch is passed over: "return", or "backward" (its loss reaches `backward`, and then it returns).
        num_optimizers: 1, or 2 of which the second has a parameter of its own.
    """

    def __init__(self, way: str = "return", num_optimizers: int = 1) -> None:
        super().__init__("linear")
        self.way, self.num_optimizers = way, num_optimizers

    def setup(self, fast_init: bool = False) -> None:
        self.nets = [self.parallelize(nn.Linear(1, 1, bias=False)) for _ in range(self.num_optimizers)]
        for net in self.nets:
            nn.init.zeros_(net.weight)
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=LR) for net in self.nets]

    def train_step(self, batch: Any, state: Any) -> None:
        (x,) = batch
        is_bad = bool((x < 0).any())
        if is_bad and self.way == "return":
            return
        for net, optimizer in zip(self.nets, self.optimizers, strict=True):
            self.backward(net(x).mean())
            if is_bad:
                return
            self.optimizer_step(optimizer)
        self.log("x", x.mean())


def fit(model: Model, values: list[float], window: int, **options: Any) -> FitResult:
    dataset = TensorDataset(torch.tensor(values, dtype=torch.float32)[:, None])
    options = {"max_epochs": 1, "accumulation_steps": window, **options}
    return quiet(**options).fit(model, DataModule(train=Split(dataset, batch_size=1)))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("num_optimizers", [1, 2])
@pytest.mark.parametrize("way", ["return", "backward"])
def test_a_window_whose_last_batch_does_not_step_is_dropped(
    way: str, num_optimizers: int, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Linear(way, num_optimizers)
    result = fit(model, [1, 2, 4, -1, 8, 16, 32, -1, 64, 128], 2, precision=precision)
    expected = -(1.5 + 12 + 96) * LR
    assert [net.weight.item() for net in model.nets] == [expected] * num_optimizers
    assert (result.state.step, result.state.skipped_steps, result.state.batch) == (3, 2, 10)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no optimizer has stepped after batch 4" in record.getMessage()


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("way", ["return", "backward"])
def test_a_first_window_that_does_not_step_leaves_nothing_behind(way: str, window: int) -> None:
    model = Linear(way)
    fit(model, [5, -1, 1, 3] if window == 2 else [-1, 2], window)
    assert model.nets[0].weight.item() == -2.0


def test_a_bad_batch_inside_of_a_window_leaves_the_others() -> None:
    model = Linear()
    result = fit(model, [-1, 2, 4, 8], 2)
    assert model.nets[0].weight.item() == -(1 + 6) * LR
    assert (result.state.step, result.state.skipped_steps) == (2, 0)


@pytest.mark.parametrize("way", ["return", "backward"])
def test_a_run_cut_after_any_window_equals_one_that_was_not(way: str, tmp_path: Path) -> None:
    values, parts = [1.0, 2, 4, -1, 8, 16, -1, -1, 64, 128], ("state", "model", "precision", "metrics", "ranks")
    fit(Linear(way), values, 2, root=tmp_path / "whole", log_every_steps=1)
    for step in (1, 2):
        fit(Linear(way), values, 2, root=tmp_path / str(step), log_every_steps=1, max_steps=step)
        fit(Linear(way), values, 2, root=tmp_path / str(step), log_every_steps=1)
        whole, cut = (saved(tmp_path / name / "linear", *parts) for name in ("whole", str(step)))
        assert same(whole, cut)


def test_optimizers_that_take_turns_do_not_use_what_the_loss_of_the_other_has_left() -> None:
    """The second one's loss passes through the parameters of the first."""

    class Turns(Linear):
        def train_step(self, batch: Any, state: Any) -> None:
            first, second = self.nets
            if state.batch % 2 == 0:
                self.backward(first(batch[0]).mean())
                self.optimizer_step(self.optimizers[0])
            else:
                self.backward((first(batch[0]) + second(batch[0])).mean())
                self.optimizer_step(self.optimizers[1])

    model = Turns(num_optimizers=2)
    fit(model, [1, 2, 4, 8, 16, 32], 1)
    assert [net.weight.item() for net in model.nets] == [-(1 + 4 + 16), -(2 + 8 + 32)]


class ByHand(Linear):
    """Calls the methods of the optimizer itself."""

    def train_step(self, batch: Any, state: Any) -> None:
        loss = self.nets[0](batch[0]).mean()
        if self.way == "own backward":
            loss.backward()
        else:
            self.backward(loss)
        if state.batch % 2 == 1:
            self.optimizers[0].step()
            self.optimizers[0].zero_grad()


def test_a_model_that_steps_by_itself_is_left_alone() -> None:
    model = ByHand("own backward")
    result = fit(model, [1, 2, 4, 8], 1)
    assert model.nets[0].weight.item() == -15.0
    assert (result.state.step, result.state.skipped_steps) == (4, 0)


def test_a_model_that_never_steps_is_an_error_in_the_end() -> None:
    class Forgetful(Linear):
        def train_step(self, batch: Any, state: Any) -> None:
            self.backward(self.nets[0](batch[0]).mean())

    with pytest.raises(RuntimeError, match=r"in 100 accumulation windows: train_step does not call optimizer_step"):
        fit(Forgetful(), [1.0, 2.0], 1, max_epochs=60, max_steps=1)


# Weights.


class Weighted(Linear):
    """Two losses a step, with weights or not."""

    def __init__(self, *weights: float | None) -> None:
        super().__init__()
        self.weights = weights

    def train_step(self, batch: Any, state: Any) -> None:
        for weight in self.weights:
            self.backward(self.nets[0](batch[0]).mean(), weight)
        self.optimizer_step(self.optimizers[0])


@pytest.mark.parametrize("weights", [(2.0, None), (None, 2.0)])
def test_losses_with_a_weight_and_without_are_an_error_in_a_step_of_several_batches(weights: Any) -> None:
    model = Weighted(*weights)
    fit(model, [1, 1], 1)
    assert model.nets[0].weight.item() == -4.0
    with pytest.raises(RuntimeError, match="losses with a weight and losses without one are in the same step"):
        fit(Weighted(*weights), [1, 1], 2)


class Masked(Linear):
    """The mean over the values that are not below 0, which is NaN if there are none."""

    def __init__(self, as_tensor: bool) -> None:
        super().__init__()
        self.as_tensor = as_tensor

    def train_step(self, batch: Any, state: Any) -> None:
        kept = batch[0][batch[0] >= 0][:, None]
        weight = torch.tensor(len(kept)) if self.as_tensor else len(kept)
        loss = self.nets[0](kept).mean()
        self.backward(loss, weight)
        self.optimizer_step(self.optimizers[0])
        self.log("loss", loss, count=weight)


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("window", [1, 2])
def test_a_loss_over_no_items_counts_nothing_and_a_window_of_them_is_no_step(window: int, as_tensor: bool) -> None:
    model = Masked(as_tensor)
    result = fit(model, [-1, -1, 3, -1, 5, 7], window, log_every_steps=1)
    assert model.nets[0].weight.item() == (-15.0 if window == 1 else -9.0)
    assert result.state.skipped_steps == (3 if window == 1 else 1)
    assert result.metrics["train/loss"] == result.metrics["train/loss"]


def test_fp16_takes_two_steps_of_one_optimizer_in_a_window() -> None:
    class Twice(Linear):
        def train_step(self, batch: Any, state: Any) -> None:
            for _ in range(2):
                self.backward(self.nets[0](batch[0]).mean())
                self.optimizer_step(self.optimizers[0])

    found = []
    for precision in ("fp32", "fp16"):
        model = Twice()
        fit(model, [1, 2], 1, precision=precision)
        found.append(model.nets[0].weight.item())
    assert found == [-6.0, -6.0]


def test_an_empty_batch_counts_nothing() -> None:
    class Loader:
        def __iter__(self) -> Any:
            return iter([[torch.ones(2, 1)], [torch.ones(0, 1)], [torch.ones(0, 1)], [torch.ones(0, 1)]])

    class Careful(Linear):
        def train_step(self, batch: Any, state: Any) -> None:
            if len(batch[0]) > 0:
                super().train_step(batch, state)

    for window in (1, 2):
        model = Careful()
        quiet(max_epochs=1, accumulation_steps=window).fit(model, DataModule(train=Loader()))
        assert model.nets[0].weight.item() == (-1.0 if window == 1 else 0.0)


# What counts as a step, and as weighted.


class Own:
    """An optimizer that is none of PyTorch's."""

    def __init__(self, parameters: Any, in_place: bool) -> None:
        self.parameters, self.in_place = [*parameters], in_place

    def step(self) -> None:
        for p in self.parameters:
            if self.in_place:
                with torch.no_grad():
                    p -= p.grad
            else:
                p.data = p.data - p.grad
            p.grad = None


@pytest.mark.parametrize("has_other", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_model_with_an_optimizer_of_its_own_makes_steps(in_place: bool, has_other: bool) -> None:
    class Model(Linear):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.own = Own(self.nets[0].parameters(), in_place)
            if not has_other:
                del self.optimizers

        def train_step(self, batch: Any, state: Any) -> None:
            self.backward(self.nets[0](batch[0]).mean())
            self.own.step()

    model = Model()
    result = fit(model, [1, 2], 1, max_epochs=None, max_steps=3)
    assert (result.state.step, result.state.skipped_steps, model.nets[0].weight.item()) == (3, 0, -4.0)


def test_a_weight_of_0_is_a_weight() -> None:
    for weights in ((0.0, None), (None, 0.0)):
        with pytest.raises(RuntimeError, match="losses with a weight and losses without one"):
            fit(Weighted(*weights), [1, 1], 2)

    class Changing(Linear):
        def train_step(self, batch: Any, state: Any) -> None:
            weight = [3.0, 0.0, None, None][state.batch]
            self.backward(self.nets[0](batch[0]).mean(), weight)
            self.optimizer_step(self.optimizers[0])

    model = Changing()
    fit(model, [1, 2, 4, 8], 2)
    assert model.nets[0].weight.item() == -7.0


@pytest.mark.parametrize("has_hook", [True, False])
def test_what_a_dropped_last_window_has_logged_is_of_its_epoch(has_hook: bool, tmp_path: Path) -> None:
    class Model(Linear):
        def train_step(self, batch: Any, state: Any) -> None:
            self.log("number", float(state.batch + 1))
            super().train_step(batch, state)

    class Hooked(Model):
        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.log("own", 1.0)

    model = Hooked() if has_hook else Model()
    fit(model, [1, -1], 1, max_epochs=2, log_every_steps=1, root=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "linear/metrics.jsonl").read_text().splitlines()]
    assert [row["train/number/epoch"] for row in rows if "train/number/epoch" in row] == [1.5, 3.5]
    assert [row["train/number"] for row in rows if "train/number" in row] == [1.0, 2.0, 3.0, 4.0]
