"""Optimizers that networks and other optimizers have: they are in checkpoints, or are named before they are lost."""

import gc
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same
from helpers.models import Indices, quiet
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from helios_lite import Callback, DataModule, Model, Split

STEPS = 6


def data() -> DataModule:
    return DataModule(train=Split(Indices(10), batch_size=4, shuffle=True))


class Policy(nn.Module):
    """Has its optimizer, or several of them, as programs of reinforcement learning do."""

    def __init__(self, *, schedules: bool = False, in_a_list: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(3, 1)
        optimizer = Adam(self.parameters(), 0.05)
        self.body.optimizer = [optimizer] if in_a_list else optimizer  # type: ignore[assignment]
        self.schedule = ExponentialLR(optimizer, 0.7) if schedules else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Wrapped(Optimizer):
    """Steps with another optimizer, which has its groups, as SAM does."""

    def __init__(self, params: Any, base: Callable[..., Optimizer] = SGD, **numbers: Any) -> None:
        super().__init__(params, dict(numbers))
        self.base = base(self.param_groups, **numbers)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["steps"] = self.state[p].get("steps", 0) + 1
        self.base.step()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base.param_groups = self.param_groups


class Forgetful(Wrapped):
    """Leaves its base to others when it is loaded."""

    load_state_dict = Optimizer.load_state_dict


class Slow(Optimizer):
    """Goes half the way, every second step, as Lookahead does."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.inner, self.param_groups = [base], base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner[0].step()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["number"] = state.get("number", 0) + 1
                slow = state.setdefault("slow", p.clone())
                if state["number"] % 2 == 0:
                    p.copy_(slow.lerp_(p, 0.5))


class Delegating(Slow):
    """Has the state of what it wraps, in which its own is too; does not call `Optimizer.__init__`."""

    def __init__(self, base: Optimizer) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.inner, self.defaults, self.param_groups, self.state = [base], base.defaults, base.param_groups, base.state

    def state_dict(self) -> Any:
        return self.inner[0].state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self.inner[0].load_state_dict(state_dict)
        self.param_groups = self.inner[0].param_groups


class Apart(Optimizer):
    """Has groups of its own, and a dict of optimizers with others."""

    def __init__(self, net: nn.Linear) -> None:
        super().__init__(net.parameters(), {})
        self.parts = {"weight": Adam([net.weight], 0.1), "bias": SGD([net.bias], 0.1, momentum=0.9)}

    def step(self, closure: Any = None) -> None:
        for part in self.parts.values():
            part.step()


class Nested(Model):
    """Trains a network with the optimizer that a function makes; a schedule moves its rates, if it has one."""

    def __init__(self, make: Callable[[Any], Optimizer], schedules: bool = True) -> None:
        super().__init__("nested")
        self.make, self.schedules = make, schedules
        self.net: Any = None
        self.schedule: Any = None

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 1))
        self.optimizer = self.make(self.net)
        if self.schedules:
            self.schedule = ExponentialLR(self.optimizer, 0.7)

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward((self.net(batch[1]) - 1).square().mean())
        self.optimizer_step(self.optimizer, self.schedule)


class Acting(Model):
    """Trains a network that has its optimizer."""

    def __init__(self, **options: bool) -> None:
        super().__init__("acting")
        self.options = options

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Policy(**self.options))

    def train_step(self, batch: Any, state: Any) -> None:
        found = self.net.body.optimizer
        self.backward((self.net(batch[1]) - 1).square().mean())
        self.optimizer_step(found[0] if isinstance(found, list) else found, self.net.schedule)


def sgd(net: Any) -> Wrapped:
    return Wrapped(net.parameters(), lr=0.1, momentum=0.9)


MADE = {
    "in a network": (lambda: Acting(), ["net.body.optimizer"]),
    "in a list of a network": (lambda: Acting(in_a_list=True), ["net.body.optimizer.0"]),
    "with a schedule in a network": (
        lambda: Acting(schedules=True),
        ["net.schedule", "net.body.optimizer"],
    ),
    "wrapped": (lambda: Nested(sgd), ["optimizer.base"]),
    "wrapped by one that forgets it": (
        lambda: Nested(lambda net: Forgetful(net.parameters(), lr=0.1, momentum=0.9)),
        ["optimizer.base"],
    ),
    "wrapped by one in a list": (
        lambda: Nested(lambda net: Slow(Adam(net.parameters(), 0.1)), schedules=False),
        ["optimizer.inner.0"],
    ),
    "wrapped by one with its state": (
        lambda: Nested(lambda net: Delegating(Adam(net.parameters(), 0.1)), schedules=False),
        ["optimizer.inner.0"],
    ),
    "wrapped twice": (
        lambda: Nested(lambda net: Slow(sgd(net)), schedules=False),
        ["optimizer.inner.0", "optimizer.inner.0.base"],
    ),
    "apart": (
        lambda: Nested(Apart, schedules=False),
        ["optimizer.parts.weight", "optimizer.parts.bias"],
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_an_optimizer_in_a_network_or_in_another_one_goes_on_after_a_resume(name: str, tmp_path: Path) -> None:
    make, parts = MADE[name]
    whole, cut = make(), make()
    quiet(root=tmp_path, run_name="whole", max_steps=STEPS).fit(whole, data())
    for steps in (3, 4, STEPS):
        cut = make()
        quiet(root=tmp_path, run_name="cut", max_steps=steps).fit(cut, data())
    assert same(whole.state_dict(), cut.state_dict())
    assert [*cut.state_dict()][-len(parts) :] == parts
    for model in (whole, cut):
        if isinstance(getattr(model, "optimizer", None), Wrapped):
            assert model.optimizer.param_groups is model.optimizer.base.param_groups


def test_what_is_wrapped_is_no_second_optimizer_for_rows_and_changes(tmp_path: Path, caplog: Any) -> None:
    for epochs, rate in ((1, 0.1), (2, 0.05)):
        model = Nested(lambda net, rate=rate: Wrapped(net.parameters(), lr=rate), schedules=False)
        quiet(root=tmp_path, max_epochs=epochs).fit(model, data())
    row = json.loads((tmp_path / "nested" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [name for name in row if "/lr" in name] == ["train/lr"]
    assert [text for text in caplog.messages if " lr " in text] == [
        "optimizer: lr 0.1 before, 0.05 now: used from step 4 on"
    ]
    assert (
        model.optimizer.base.param_groups[0]["lr"] == model.optimizer.param_groups[0]["lr"] == row["train/lr"] == 0.05
    )


def test_parts_of_another_run_are_taken_with_what_they_wrap(tmp_path: Path) -> None:
    source = quiet(root=tmp_path, max_epochs=1).fit(Nested(sgd), data()).last_checkpoint
    model = Nested(sgd)
    quiet(root=tmp_path, run_name="next", max_steps=1, init_from=source, init_parts="all").fit(model, data())
    assert model.optimizer.state[model.net.weight]["steps"] == 4
    assert model.optimizer.param_groups is model.optimizer.base.param_groups


# What no checkpoint holds.


class Holder:
    def __init__(self, optimizer: Any = None) -> None:
        self.optimizer = optimizer


class Saver(Holder):
    """Has a state."""

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self.optimizer.load_state_dict(state_dict)


class Held(Callback):
    optimizer: Any = None


GLOBAL = Holder()


class Lost(Model):
    """Trains with an optimizer that a function puts somewhere, and that it finds there; counts its steps."""

    def __init__(self, put: Callable[[Any, Optimizer], Any], late: bool = False) -> None:
        super().__init__("lost")
        self.put, self.late, self.steps = put, late, 0

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 1))
        if not self.late:
            self.find = self.put(self, SGD(self.net.parameters(), 0.1))

    def on_training_start(self) -> None:
        if self.late:
            self.find = self.put(self, SGD(self.net.parameters(), 0.1))

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.net(batch[1]).mean())
        self.optimizer_step(self.find())
        self.steps += 1


def in_an_object_of_the_network(model: Any, optimizer: Optimizer) -> Any:
    model.net.agent = Holder(Holder(optimizer))
    return lambda: model.net.agent.optimizer.optimizer


def in_a_set_of_an_optimizer(model: Any, optimizer: Optimizer) -> Any:
    model.optimizer = SGD(model.net.parameters(), 0.1)
    model.optimizer.others = {optimizer}
    return lambda: next(iter(model.optimizer.others))


def in_the_program(model: Any, optimizer: Optimizer) -> Any:
    GLOBAL.optimizer = optimizer
    return lambda: GLOBAL.optimizer


def in_a_state_of_an_object(model: Any, optimizer: Optimizer) -> Any:
    model.saver = Saver(optimizer)
    return lambda: model.saver.optimizer


def in_a_callback(model: Any, optimizer: Optimizer) -> Any:
    model.trainer.callbacks[0].optimizer = optimizer
    return lambda: model.trainer.callbacks[0].optimizer


def new_in_each_step(model: Any, optimizer: Optimizer) -> Any:
    return lambda: SGD(model.net.parameters(), 0.1)


@pytest.mark.parametrize(
    ("put", "late", "steps", "words"),
    [
        (in_an_object_of_the_network, False, 0, "net.agent.optimizer.optimizer: is a SGD that no checkpoint holds"),
        (in_an_object_of_the_network, True, 1, "net.agent.optimizer.optimizer: steps with a SGD that no checkpoint"),
        (in_a_set_of_an_optimizer, False, 0, "optimizer.others: is a SGD in a set, which no checkpoint holds"),
        (in_the_program, False, 1, "optimizer_step: steps with a SGD that no checkpoint holds"),
    ],
)
def test_an_optimizer_that_no_checkpoint_holds_is_named(
    put: Any, late: bool, steps: int, words: str, tmp_path: Path
) -> None:
    model = Lost(put, late)
    with pytest.raises(ValueError) as caught:
        quiet(root=tmp_path, max_epochs=1, accumulation_steps=1).fit(model, data())
    assert str(caught.value).startswith(words)
    assert model.steps == steps


@pytest.mark.parametrize("put", [in_a_state_of_an_object, in_a_callback, new_in_each_step])
def test_an_optimizer_that_is_held_otherwise_or_ends_with_its_step_is_no_error(put: Any, tmp_path: Path) -> None:
    model = Lost(put)
    quiet(root=tmp_path, max_epochs=3, callbacks=[Held()]).fit(model, data())
    gc.collect()
    assert model.steps == 9
    assert len(model._context.precision._noted()) == (put is not new_in_each_step)  # In each step all are looked at.


def test_without_checkpoints_nothing_is_lost() -> None:
    model = Lost(in_the_program)
    quiet(max_epochs=1).fit(model, data())
    assert model.steps == 3
