"""The metric "train/lr": the rate with which the step of a row was made, whoever sets it and whenever."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Indices, Tiny, data, quiet
from helpers.rows import read_rows
from torch.utils.data import DataLoader

from helios_lite import DataModule


class Recorded(Tiny):
    """Records the rate with which every batch is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[float] = []

    def train_step(self, batch: Any, state: Any) -> None:
        self.used.append(self.optimizer.param_groups[0]["lr"])
        super().train_step(batch, state)


class ByHand(Recorded):
    """Sets the rate just before it steps, without `optimizer_step`; afterwards it is 0."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.used.append(1 / (state.step + 1))
        self.optimizer.zero_grad()
        (self.net(batch[1]) - 1).square().mean().backward()
        self.optimizer.param_groups[0]["lr"] = self.used[-1]
        self.optimizer.step()
        self.optimizer.param_groups[0]["lr"] = 0.0


class Replaced(Recorded):
    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1 * current_epoch)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)


def rates(folder: Path) -> dict[int, Any]:
    """The rates in the rows, by step."""
    rows = read_rows(folder / "tiny")
    return {row["step"]: row["train/lr"] for row in rows if "train/lr" in row}


@pytest.mark.parametrize("log_every_steps", [1, 2, 5])
@pytest.mark.parametrize("model_class", [Recorded, ByHand, Replaced])
def test_a_row_has_the_rate_that_its_step_used(tmp_path: Path, model_class: Any, log_every_steps: int) -> None:
    model = model_class()
    quiet(max_epochs=2, log_every_steps=log_every_steps, root=tmp_path).fit(model, data(train=12))
    found = rates(tmp_path)
    assert list(found) == [step for step in range(1, 7) if step % log_every_steps == 0 or step in (3, 6)]
    assert found == {step: model.used[step - 1] for step in found}


def test_with_accumulation_it_is_the_rate_of_the_window(tmp_path: Path) -> None:
    model = Recorded()
    quiet(max_epochs=1, accumulation_steps=2, log_every_steps=1, root=tmp_path).fit(model, data(train=20))
    assert rates(tmp_path) == dict(enumerate(model.used[1::2] + model.used[4:], start=1))


def test_several_optimizers_and_groups_have_rates_of_their_own(tmp_path: Path) -> None:
    class Several(Tiny):
        """The second optimizer has two groups and steps every second time."""

        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            groups = [{"params": [p], "lr": lr} for p, lr in zip(self.net[0].parameters(), (0.5, 0.25), strict=True)]
            self.other = torch.optim.SGD(groups)

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            if state.step % 2:
                self.other.step()
                self.other.param_groups[0]["lr"] /= 2

    quiet(max_epochs=1, log_every_steps=1, root=tmp_path).fit(Several(), data(train=16))
    rows = read_rows(tmp_path / "tiny")
    names = ["train/lr/optimizer", "train/lr/other/0", "train/lr/other/1"]
    found = [[row[name] for name in names] for row in rows if names[0] in row]
    assert found == [[pytest.approx(0.01 * 0.97**i), 0.5 / 2 ** (i // 2), 0.25] for i in range(4)]


def test_the_rate_is_read_in_steps_of_logging_steps_only() -> None:
    hooks = []

    class Counting(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            hooks.append(len(self.optimizer._optimizer_step_pre_hooks))
            super().train_step(batch, state)

    model = Counting()
    quiet(max_epochs=1, log_every_steps=3).fit(model, data(train=32))
    assert hooks == [0, 0, 1, 0, 0, 1, 0, 1]
    assert len(model.optimizer._optimizer_step_pre_hooks) == 0


def test_no_hook_is_left_after_an_error() -> None:
    class Failing(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            raise ValueError("enough")

    model = Failing()
    with pytest.raises(ValueError, match="enough"):
        quiet(max_epochs=1, log_every_steps=1).fit(model, data())
    assert len(model.optimizer._optimizer_step_pre_hooks) == 0


def test_an_optimizer_without_hooks_shows_its_present_rate(tmp_path: Path) -> None:
    class Bare(torch.optim.Optimizer):
        """Wraps another without `Optimizer.__init__`, as some libraries do."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
            self.state = inner.state

        def step(self, closure: Any = None) -> None:
            self.inner.step()

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.inner.zero_grad(set_to_none)

        def state_dict(self) -> dict[str, Any]:
            return self.inner.state_dict()

    class Wrapped(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer, self.scheduler = Bare(torch.optim.SGD(self.net.parameters(), lr=0.125)), None

    quiet(max_epochs=1, log_every_steps=1, root=tmp_path).fit(Wrapped(), data(train=8))
    assert rates(tmp_path) == {1: 0.125, 2: 0.125}


class Unsized:
    """Batches whose number is not known."""

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(Indices(12), batch_size=4))


@pytest.mark.parametrize("loader", [Unsized(), DataLoader(Indices(12), batch_size=4)], ids=["unknown", "known"])
@pytest.mark.parametrize("log_every_steps", [1, 2, 3, 50])
def test_a_custom_loader_whose_end_is_not_known_has_the_same_rows(
    tmp_path: Path, log_every_steps: int, loader: Any
) -> None:
    """Also if the run stops before the row of the epoch's last step, and is resumed."""
    for name, stops in (("whole", ()), ("parts", (2, 3, 4))):
        for limit in [*({"max_steps": step} for step in stops), {"max_epochs": 2}]:
            quiet(log_every_steps=log_every_steps, root=tmp_path / name, **limit).fit(Recorded(), DataModule(loader))
        rows = read_rows(tmp_path / name / "tiny")
        found = {row["step"]: row["train/lr"] for row in rows if "train/lr" in row}
        assert list(found) == [step for step in range(1, 7) if step % log_every_steps == 0 or step in (3, 6)]
        assert found == {step: pytest.approx(0.01 * 0.97 ** (step - 1), rel=1e-12) for step in found}
        assert [row["step"] for row in rows if "train/epoch_seconds" in row] == [3, 6]


class Choosing(torch.optim.SGD):
    """Chooses its rates itself, as Adafactor does."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["lr"] = None

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter -= 0.1 * parameter.grad


def test_an_optimizer_that_chooses_its_rate_has_none_to_log(tmp_path: Path) -> None:
    class Model(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer, self.scheduler = Choosing(self.net.parameters()), None

    result = quiet(root=tmp_path, max_epochs=1, log_every_steps=1).fit(Model(), data())
    assert math.isnan(result.metrics["train/lr"])
    assert result.state.step == 3
