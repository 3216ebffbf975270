"""Groups of parameters that a training adds to its optimizer after `setup` are made again when it is resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same
from helpers.models import data, quiet
from torch import nn

from helios_lite import Callback, Model

STEPS = 8  # Of four epochs of two steps.


class Growing(Model):
    """Trains a head, and its body from the hook on that is named; `begins` at that call of the hook."""

    def __init__(self, hook: str = "", begins: int = 1) -> None:
        super().__init__("growing")
        self.hook, self.begins, self.calls = hook, begins, 0

    def setup(self, fast_init: bool = False) -> None:
        self.body, self.head = self.parallelize(nn.Linear(3, 4)), self.parallelize(nn.Linear(4, 1))
        self.body.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), 0.05)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def add(self) -> None:
        self.body.requires_grad_(True)
        self.optimizer.add_param_group({"params": self.body.parameters(), "lr": 0.02, "weight_decay": 0.1})

    def train_step(self, batch: Any, state: Any) -> None:
        if self.hook == "train_step" and state.step == 2:
            self.add()
        loss = (self.head(self.body(batch[1])) - 1).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.schedule)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("loss", self.head(self.body(batch[1])).mean())

    def on_training_start(self) -> None:
        if self.hook == "on_training_start":
            self.add()

    def on_training_epoch_start(self, current_epoch: int) -> None:
        if self.hook == "on_training_epoch_start" and current_epoch == 2:
            self.add()

    def on_training_batch_start(self, state: Any) -> None:
        if self.hook == "on_training_batch_start" and state.step == 2:
            self.add()

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if self.hook == "on_training_batch_end" and state.step == 2:
            self.add()

    def on_validation_end(self, validation_cycle: int) -> None:
        if self.hook == "on_validation_end" and validation_cycle == 1:
            self.add()

    def on_training_epoch_end(self, current_epoch: int) -> None:
        if self.hook == "on_training_epoch_end" and current_epoch == 1:
            self.add()


class Adding(Callback[Growing]):
    """Adds the group in its own `setup`."""

    def setup(self, fast_init: bool = False) -> None:
        if self.model.hook == "setup of a callback":
            self.model.add()


def fit(model: Growing, root: Path, name: str, steps: int, **options: Any) -> Any:
    trainer = quiet(root=root, run_name=name, max_steps=steps, callbacks=[Adding()], sanity_batches=0, **options)
    return trainer.fit(model, data(train=8))


@pytest.mark.parametrize(
    "hook",
    [
        "setup of a callback",
        "on_training_start",
        "on_training_epoch_start",
        "on_training_batch_start",
        "train_step",
        "on_training_batch_end",
        "on_validation_end",
        "on_training_epoch_end",
    ],
)
def test_a_group_that_is_added_anywhere_is_there_after_every_cut(hook: str, tmp_path: Path) -> None:
    whole = Growing(hook)
    fit(whole, tmp_path, "whole", STEPS)
    assert len(whole.optimizer.param_groups) == 2
    for steps in (2, 3, 5, STEPS):  # Right after it was added, inside of its epoch, and later.
        cut = Growing(hook)
        fit(cut, tmp_path, "cut", steps)
    assert same(whole.state_dict(), cut.state_dict())
    assert cut.body.weight.requires_grad


def test_a_group_is_left_out_once_if_it_is_there_already(tmp_path: Path) -> None:
    for steps in (2, 3):
        model = Growing("on_training_start")
        fit(model, tmp_path, "twice", steps)
    assert len(model.optimizer.param_groups) == 2
    with pytest.raises(ValueError, match="more than one parameter group"):
        model.add()


def test_a_program_may_make_the_group_in_setup_from_now_on(tmp_path: Path) -> None:
    class InSetup(Growing):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer.add_param_group({"params": self.body.parameters(), "lr": 0.02, "weight_decay": 0.1})

        def on_training_epoch_start(self, current_epoch: int) -> None:
            self.body.requires_grad_(current_epoch >= 2)

    hook = "on_training_epoch_start"
    whole = Growing(hook)
    fit(whole, tmp_path, "whole", STEPS)
    fit(Growing(hook), tmp_path, "cut", 5)
    cut = InSetup()
    fit(cut, tmp_path, "cut", STEPS)
    assert same(whole.body.state_dict(), cut.body.state_dict())


def test_another_rate_counts_with_groups_that_are_made_again(tmp_path: Path, caplog: Any) -> None:
    class Faster(Growing):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer = torch.optim.AdamW(self.head.parameters(), 0.5)
            self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    fit(Growing("train_step"), tmp_path, "run", 3)
    model = Faster("train_step")
    fit(model, tmp_path, "run", 4)
    rates = [group["lr"] for group in model.optimizer.param_groups]
    assert rates == pytest.approx([0.5 * 0.9**4, 0.02 * 0.9**2])
    assert "optimizer: lr 0.05 before, 0.5 now: used from step 4 on" in caplog.text


class Own:
    """Has a tensor as its state."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(3, requires_grad=True)

    def state_dict(self) -> Any:
        return {"tensor": self.tensor.detach()}

    def load_state_dict(self, state_dict: Any) -> None:
        self.tensor.data.copy_(state_dict["tensor"])


def of_no_network(model: Any) -> None:
    model.own = Own()
    model.optimizer.add_param_group({"params": model.own.tensor})


def other_optimizer(model: Any) -> None:
    model.optimizer = torch.optim.AdamW([*model.head.parameters(), *model.body.parameters()], 0.05)


def larger_group(model: Any) -> None:
    model.optimizer.param_groups[0]["params"].append(model.body.bias)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_optimizer, "optimizer: has groups of 4 parameters, and setup has made groups of 2: no start can go on"),
        (of_no_network, "optimizer: has a new group with a tensor that is in no network: no start can go on"),
        (larger_group, "optimizer: has groups of 3 parameters, and setup has made groups of 2: no start can go on"),
    ],
)
def test_what_cannot_be_made_again_is_said_when_it_happens(
    change: Callable[[Any], None], words: str, tmp_path: Path, caplog: Any
) -> None:
    model = Growing("on_training_epoch_start")
    model.add = lambda: change(model)  # type: ignore[method-assign]
    fit(model, tmp_path, "run", STEPS)
    assert caplog.text.count(words) == 1
    assert "Make all groups in setup" in caplog.text
    caplog.clear()
    again = Growing("on_training_epoch_start")
    again.add = lambda: change(again)  # type: ignore[method-assign]
    quiet(root=None, max_steps=4).fit(again, data(train=8))  # Without a checkpoint nothing is said.
    assert words not in caplog.text


def test_a_group_of_a_layer_that_setup_does_not_make_any_more_is_an_error(tmp_path: Path) -> None:
    class Other(Growing):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.body = self.parallelize(nn.Sequential(nn.Linear(3, 4)))

    fit(Growing("train_step"), tmp_path, "run", 3)
    with pytest.raises(ValueError, match="optimizer: groups of 2, 2 parameters in the checkpoint, of 2 now"):
        fit(Other("train_step"), tmp_path, "run", 4)
