"""What an optimizer trains and no checkpoint holds is an error that names it, before the first step."""

import dataclasses
import time
from collections import UserDict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.models import quiet
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split
from helios_lite.model_internals.attributes import stateful_parts

DATA = DataModule(Split(TensorDataset(torch.linspace(-1, 1, 12).reshape(4, 3)), batch_size=2))


@dataclasses.dataclass
class Pair:
    net: Any
    optimizer: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    net: Any
    missing: Any = dataclasses.field(init=False)


class Thing:
    """An object of no class that checkpoints enter."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Stateful(Thing):
    """Has a tensor, and gives and takes it as its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": [self.tensor.detach()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tensor.data.copy_(state_dict["tensors"][0])


class Built(Model):
    """Its attributes are made by a function in `setup`; it counts its steps."""

    def __init__(self, build: Callable[[Any], None]) -> None:
        super().__init__("built")
        self.build = build
        self.steps = 0

    def setup(self, fast_init: bool = False) -> None:
        self.net = nn.Linear(3, 1)
        self.build(self)

    def train_step(self, batch: Any, state: Any) -> None:
        self.steps += 1
        self.backward(self.net(batch[0]).mean())
        if hasattr(self, "optimizer"):
            self.optimizer_step(self.optimizer)


def sgd(*tensors: torch.Tensor) -> torch.optim.SGD:
    return torch.optim.SGD(tensors, lr=0.1)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def bare_parameter(model: Any) -> None:
    model.temperature = parameter(2, 5)
    model.optimizer = sgd(*model.net.parameters(), model.temperature)


def bare_tensor_in_a_list(model: Any) -> None:
    model.levels = [1, torch.zeros(4, requires_grad=True)]
    model.optimizer = sgd(model.levels[1])


def tensor_of_nobody(model: Any) -> None:
    model.optimizer = sgd(*model.net.parameters())
    model.optimizer.add_param_group({"params": [parameter(7)]})


def network_in_an_object(model: Any) -> None:
    model.thing = Thing(net=nn.Linear(6, 1))
    model.optimizer = sgd(*model.thing.net.parameters())


def layer_in_a_list_of_a_module(model: Any) -> None:
    model.net.layers = [nn.Linear(6, 1)]
    model.optimizer = sgd(model.net.layers[0].bias)


def buffer_not_persistent(model: Any) -> None:
    model.net.register_buffer("cache", torch.zeros(3, requires_grad=True), persistent=False)
    model.optimizer = sgd(model.net.cache)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (bare_parameter, r"^temperature: is trained \(optimizer optimizer, group 0, shape \(2, 5\)\)"),
        (bare_tensor_in_a_list, r"^levels\.1: .*shape \(4,\)"),
        (tensor_of_nobody, r"^a tensor: is trained \(optimizer optimizer, group 1, shape \(7,\)\)"),
        (network_in_an_object, r"thing\.net\.weight: .*\(1, 6\)"),
        (layer_in_a_list_of_a_module, r"net\.layers\.0\.bias: .*\(1,\)"),
        (buffer_not_persistent, r"net\.cache: .*\(3,\)"),
    ],
)
def test_a_trained_tensor_that_no_checkpoint_holds_is_named_before_the_first_step(build: Any, words: str) -> None:
    model = Built(build)
    with pytest.raises(ValueError, match=words):
        quiet(max_epochs=1).fit(model, DATA)
    assert model.steps == 0


def optimizer_in_a_set(model: Any) -> None:
    model.things = {sgd(*model.net.parameters())}


def network_in_a_set(model: Any) -> None:
    model.things = [{nn.Linear(1, 1)}]


def optimizer_in_an_object(model: Any) -> None:
    model.things = {"a": Thing(inner=Thing(optimizer=sgd(*model.net.parameters())))}


def scheduler_in_an_object(model: Any) -> None:
    model.optimizer = sgd(*model.net.parameters())
    model.things = Thing(schedule=torch.optim.lr_scheduler.StepLR(model.optimizer, 1))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (optimizer_in_a_set, "things: is a SGD in a set.*use a list or a dict"),
        (network_in_a_set, r"things\.0: is a Linear in a set.*use a list or a dict"),
        (optimizer_in_an_object, r"things\.a\.inner\.optimizer: is a SGD that no checkpoint holds"),
        (scheduler_in_an_object, r"things\.schedule: is a StepLR that no checkpoint holds"),
    ],
)
def test_a_part_where_checkpoints_do_not_look_is_named_before_the_first_step(build: Any, words: str) -> None:
    model = Built(build)
    with pytest.raises(ValueError, match=words):
        quiet(max_epochs=1).fit(model, DATA)
    assert model.steps == 0


def keys(model: Any) -> None:
    model.nets = {1: nn.Linear(1, 1), "1": nn.Linear(1, 1)}


def attribute(model: Any) -> None:
    model.nets = [nn.Linear(1, 1)]
    setattr(model, "nets.0", nn.Linear(1, 1))


@pytest.mark.parametrize(("build", "name"), [(keys, "nets.1"), (attribute, "nets.0")])
def test_two_parts_of_one_name_are_an_error(build: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: is the name of two"):
        quiet(max_epochs=1).fit(Built(build), DATA)


def everything(model: Any) -> None:
    """All of this is held, or trained by nobody."""
    model.again = model.net
    model.net.register_buffer("offset", torch.zeros(3, requires_grad=True))
    model.own = Stateful(tensor=parameter(3))
    model.frozen = torch.zeros(2)
    model.optimizer = sgd(*model.net.parameters(), model.net.offset, model.own.tensor, model.frozen)
    model.views = {model.net, model.optimizer}
    model.thing = Thing(model=model, optimizer=model.optimizer, data=DATA, other=Built(optimizer_in_a_set))
    model.thing.other.setup()


def test_what_is_held_twice_or_by_its_own_state_is_no_error() -> None:
    model = Built(everything)
    quiet(max_epochs=1).fit(model, DATA)
    assert model.steps == 2
    assert list(model.state_dict()) == ["net", "again", "own", "optimizer"]


def test_a_model_that_overrides_state_dict_is_not_checked() -> None:
    class Own(Built):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "temperature": self.temperature.detach()}

    model = Own(bare_parameter)
    quiet(max_epochs=1).fit(model, DATA)
    assert model.steps == 2


@pytest.mark.parametrize("hook", ["on_training_start", "on_training_epoch_start"])
def test_a_group_that_a_hook_adds_is_checked_before_its_first_step(hook: str) -> None:
    model = Built(lambda model: setattr(model, "optimizer", sgd(*model.net.parameters())))
    add = lambda *_: model.optimizer.add_param_group({"params": [parameter(8)]})  # noqa: E731
    setattr(Built, hook, add)
    try:
        with pytest.raises(ValueError, match=r"shape \(8,\)"):
            quiet(max_epochs=1).fit(model, DATA)
    finally:
        delattr(Built, hook)
    assert model.steps == 0


def test_a_group_that_a_step_adds_is_found_at_the_next_save(tmp_path: Path) -> None:
    class Late(Built):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.optimizer.add_param_group({"params": [parameter(8)]})

    model = Late(lambda model: setattr(model, "optimizer", sgd(*model.net.parameters())))
    with pytest.raises(ValueError, match=r"shape \(8,\)"):
        quiet(max_epochs=1, root=tmp_path).fit(model, DATA)
    assert not list(tmp_path.rglob("*.pth"))


# What is entered.


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda net: deque([net]), "x.0"),
        (lambda net: SimpleNamespace(a=[net]), "x.a.0"),
        (lambda net: Pair(net), "x.net"),
        (lambda net: Slotted(net), "x.net"),
        (lambda net: UserDict(a=net), "x.a"),
        (lambda net: {3: (net,)}, "x.3.0"),
        (lambda net: [1, [[2, [[net]]]]], "x.1.0.1.0.0"),
    ],
)
def test_containers_and_dataclasses_are_entered(make: Any, name: str) -> None:
    net = nn.Linear(1, 1)
    assert [*stateful_parts(Thing(x=make(net)))] == [(name, net)]


def test_a_training_in_a_dataclass_resumes(tmp_path: Path) -> None:
    def build(model: Any) -> None:
        model.pair = Pair(model.net, torch.optim.Adam(model.net.parameters()))
        model.optimizer = model.pair.optimizer

    for epochs in (1, 2):
        result = quiet(max_epochs=epochs, root=tmp_path).fit(Built(build), DATA)
    content = torch.load(result.last_checkpoint or "", weights_only=True)
    assert list(content["model"]) == ["net", "pair.net", "pair.optimizer", "optimizer"]
    assert content["model"]["pair.optimizer"]["state"][0]["step"] == 4


def test_a_container_that_contains_itself_or_is_very_deep_is_walked() -> None:
    net = nn.Linear(1, 1)
    cycle: list[Any] = [net]
    cycle.append(cycle)
    deep: Any = [net]
    for _ in range(5000):
        deep = [deep]
    names = [name for name, _ in stateful_parts(Thing(cycle=cycle, deep=deep))]
    assert names == ["cycle.0", "deep" + ".0" * 5001]
    cycle.append(parameter(2))
    model = Built(lambda model: vars(model).update(deep=deep, cycle=cycle, optimizer=sgd(cycle[2])))
    with pytest.raises(ValueError, match=r"^cycle\.2: "):
        quiet(max_epochs=1).fit(model, DATA)


def test_an_object_that_many_lists_share_is_looked_at_once() -> None:
    shared: Any = ["a", object()]
    for _ in range(60):  # By way of every path these would be 2^60 objects.
        shared = [shared, shared]
    assert [*stateful_parts(Thing(shared=shared))] == []


def by_recursion(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from by_recursion(f"{name}.{i}", item)


def test_a_list_of_many_pairs_costs_less_than_a_step_of_python_for_each() -> None:
    pairs = [(str(i), i) for i in range(200_000)]

    def walk() -> float:
        start = time.process_time()
        assert [*stateful_parts(Thing(pairs=pairs))] == []
        return time.process_time() - start

    def visit() -> float:
        start = time.process_time()
        assert [*by_recursion("pairs", pairs)] == []
        return time.process_time() - start

    assert min(walk() for _ in range(5)) < min(visit() for _ in range(5)) / 3
