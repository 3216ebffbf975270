"""A state that no checkpoint can hold is found before the first step, wherever it is; what can be held is restored."""

import collections
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from helpers.models import Tiny, data, quiet
from torch.utils.data import IterableDataset

from helios_lite import Callback, DataModule, Split


class Pool:
    """Has a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state_dict: Any) -> None:
        self.state = state_dict


class Notes(Pool, Callback):
    pass


class Numbered(Pool, DataModule):
    """The data of `helpers.models.data`, with a state."""

    def setup(self) -> None:
        vars(self).update(vars(data()))


class Batches(Pool):
    """A loader with a state."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.tensor([i]), torch.zeros(1, 3)) for i in range(4)])


class Numbers(Pool, IterableDataset[Any]):
    """A stream with a state."""

    def __iter__(self) -> Iterator[Any]:
        return ((i, torch.zeros(3)) for i in range(4))


class Rate:
    """A rate as a function with a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __call__(self, step: int) -> float:
        return 1.0


class Held(Tiny):
    """Has attributes that a function makes in `setup`."""

    def __init__(self, build: Callable[[Any], object] = id) -> None:
        super().__init__("held")
        self.build = build

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.build(self)


class Own(Held):
    """Decides itself what a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "lock": threading.Lock()}


def never() -> Iterator[int]:
    yield 1


def circle() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lambda: 1, "function"),
        (threading.Lock, "lock"),
        (never, "generator"),
        (lambda: Path(__file__).open(), "TextIOWrapper"),  # noqa: SIM115
        (lambda: Pool(1), "Pool"),
        (lambda: numpy.ones(2), "ndarray"),
        (lambda: collections.deque([1]), "deque"),
        (torch.Generator, "Generator"),
        (circle, "contains itself"),
    ],
)
def test_a_value_that_no_checkpoint_can_hold_is_named_before_the_first_step(
    make: Any, words: str, tmp_path: Path
) -> None:
    value = make()
    model = Held(lambda model: vars(model).update(pool=Pool({"items": [1, {2}, numpy.float32(3), value]})))
    with pytest.raises(TypeError) as caught:
        quiet(root=tmp_path, max_epochs=1, sanity_batches=0).fit(model, data())
    assert str(caught.value).startswith("pool.state_dict()")
    assert words in str(caught.value)
    assert model.seen == []
    assert not list(tmp_path.rglob("*.pth"))
    if hasattr(value, "close"):
        value.close()


def group(model: Any) -> None:
    model.optimizer.param_groups[0]["note"] = threading.Lock()


def rate(model: Any) -> None:
    model.schedules = {"warmup": torch.optim.lr_scheduler.LambdaLR(model.optimizer, Rate(threading.Lock()))}


def metric(model: Any) -> None:
    model.pair = SimpleNamespace(pool=Pool({1: threading.Lock()}))


STATE = {"a": [threading.Lock()]}


class OfSeveral(Held):
    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch["b"], state)


@pytest.mark.parametrize(
    ("model", "datamodule", "callbacks", "path"),
    [
        (Held(group), data(), [], "optimizer.state_dict()['param_groups'][0]['note']"),
        (Held(rate), data(), [], "schedules.warmup.state_dict()['lr_lambdas'][0]['state']"),
        (Held(metric), data(), [], "pair.pool.state_dict()[1]"),
        (Own(), data(), [], "Own.state_dict()['lock']"),
        (Held(), data(), [Notes({}), Notes(STATE)], "Notes#2.state_dict()['a'][0]"),
        (Held(), Numbered(STATE), [], "Numbered.state_dict()['a'][0]"),
        (Held(), DataModule(train=Batches(STATE)), [], "train.state_dict()['a'][0]"),
        (Held(), DataModule(train=Split(Numbers(STATE), 2)), [], "train.state_dict()['a'][0]"),
        (
            OfSeveral(),
            DataModule(train={"a": data().train, "b": Batches(STATE)}, epoch_split="a"),
            [],
            "train['b'].state_dict()['a'][0]",
        ),
    ],
)
def test_wherever_it_is_it_is_named_before_the_first_step(
    model: Held, datamodule: DataModule, callbacks: list[Any], path: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"callbacks": callbacks, "max_epochs": 1, "sanity_batches": 0}
    with pytest.raises(TypeError) as caught:
        quiet(root=tmp_path, **options).fit(model, datamodule)
    assert str(caught.value).startswith(f"{path} is a _thread.lock")
    assert model.seen == []
    quiet(**options).fit(model, datamodule)  # Nothing is saved, so it is no error.


def test_the_state_of_a_datamodule_and_what_a_file_can_hold_go_on_after_a_resume(tmp_path: Path) -> None:
    state = {"set": {1}, "number": numpy.float64(0.5), "tensors": (torch.ones(2),)}
    for epochs, begun in ((1, state), (2, {})):
        model, datamodule = Held(lambda model, begun=begun: vars(model).update(pool=Pool(begun))), Numbered(begun)
        quiet(root=tmp_path, max_epochs=epochs).fit(model, datamodule)
    assert repr(datamodule.state) == repr(model.pool.state) == repr({**state, "number": 0.5})
    model = Held(lambda model: vars(model).update(pool=Pool({})))
    quiet(root=tmp_path, max_epochs=3).fit(model, data())  # It needs no state any more,
    quiet(root=tmp_path, max_epochs=4).fit(model, Numbered({}))  # or again.
