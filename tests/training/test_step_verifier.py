"""`verify_every_steps`: a step is computed twice, and compared before the weights change."""

import contextlib
import copy
import functools
import pickle
import random
import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy
import pytest
import torch
import torchmetrics
from helpers.compare import same, saved, timeless, weights
from helpers.faulty import Failing
from helpers.fitting import CLOSING, Closing, Fitting, network
from helpers.fitting import data as fitting_data
from helpers.models import Indices, Tiny, data, quiet, scripted
from helpers.rows import read_rows
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from helios_lite import DataModule, Model, Split
from helios_lite.callbacks import EMA
from helios_lite.model_internals.attributes import networks
from helios_lite.tools.audit.processes import run_trial
from helios_lite.tools.audit.trial import Source, Trial
from helios_lite.tools.lock import recorded


class Slotted:
    """An object without a dict."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0.0


class Kept:
    """An object of a program, with whatever attributes."""

    def __init__(self) -> None:
        self.number, self.inner, self.slotted = 0, SimpleNamespace(values=[1.0]), Slotted()


class Counted(dict):  # type: ignore[type-arg]
    """A container with an attribute."""

    number = 0


class Normalized(nn.Module):
    """Replaces one buffer, and changes those of batch norm in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.largest = torch.maximum(self.largest, x.detach().max())
        return self.layers(x + self.largest / 10)


class Busy(Model):
    """Changes everything that a step can change, before its update and after it; all of it has a part in the loss.

    Args:
        several: whether a second network is updated by the same batch, from what the first one computes.
    """

    def __init__(self, several: bool) -> None:
        super().__init__("busy")
        self.several = several
        self.number, self.names, self.seen = 0.0, ["a"], deque([0.0], maxlen=3)
        self.table: dict[str, Any] = {"values": [0.0], "inner": {"set": {1}}}
        self.recent = OrderedDict.fromkeys("abc", 0.0)
        self.array, self.object = numpy.zeros(2), Kept()
        self.counted, self.bytes, self.numbers = Counted(), bytearray(1), array("d", [0.0])
        self.drawn = {"torch": torch.Generator().manual_seed(1), "random": random.Random(2)}
        self.drawn |= {"numpy": numpy.random.default_rng(3), "old numpy": numpy.random.RandomState(4)}
        self.mean, self.moved, self.expanded = torch.zeros(3), torch.zeros(3), torch.zeros(1).expand(3)
        self.metric = torchmetrics.MeanMetric()
        self.log_file, self.function = self.drawn, lambda: None

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Normalized())
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)
        self.target = Normalized().requires_grad_(False)
        if self.several:
            self.other = self.parallelize(Normalized())
            self.other_optimizer = torch.optim.SGD(self.other.parameters(), lr=0.01, momentum=0.9)

    def change(self, x: Tensor) -> float:
        """Change what there is, and return a number that depends on all of it."""
        self.number += float(x.mean())
        self.names.append(f"{len(self.names)}")
        self.seen.append(self.number)
        self.table["values"][0] += 1 / len(self.table["inner"]["set"])
        self.table["inner"]["set"].add(len(self.names))
        self.table[f"{len(self.names)}"] = len(self.table)
        self.recent.move_to_end(next(iter(self.recent)))
        self.array += random.random()
        self.counted.number += 1
        self.bytes[0] += 1
        self.numbers[0] += 0.5
        self.object.number += 1
        self.object.slotted.number += 1
        self.object.inner.values.append(self.object.number + numpy.random.rand())
        drawn = [self.drawn["random"].random(), self.drawn["numpy"].random(), self.drawn["old numpy"].rand()]
        self.mean.mul_(0.9).add_(torch.rand(3, generator=self.drawn["torch"]))
        self.moved.data = self.moved + self.mean
        self.metric.update(float(self.mean.sum()))
        numbers = [self.number, len(self.names), *self.seen, self.table["values"][0], len(self.table), *self.array]
        numbers += [
            ord(next(iter(self.recent))),
            *(self.object.number, self.counted.number, *self.bytes, *self.numbers),
            self.object.slotted.number,
            *self.object.inner.values,
            *drawn,
        ]
        return sum(map(float, numbers)) + float(self.mean.sum() + self.moved.sum())

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch["index"], batch.pop("x")  # Not there a second time, unless it is put back.
        index.unsqueeze_(1)
        x += torch.rand_like(x)
        noise = torch.sin(torch.tensor(self.change(x)))
        self.net.layers[0].requires_grad_(False).requires_grad_(True)
        self.net.eval()
        self.net.train()
        self.net.layers[2].p = 0.2 + 0.1 * (self.number % 1)
        self.optimizer.param_groups[0]["weight_decay"] += 1e-4
        with self.autocast():
            out = self.net(x + noise)
            loss = (out - index / 10 - self.target(x)).square().mean() * 0.01  # So that fp16 skips none.
        self.log("loss", loss)
        self.log("metric", self.metric)
        self.net.layers[3].bias.requires_grad_(False)  # Until the update.
        is_weighted = self.trainer.clip_norm is not None
        self.backward(loss, weight=1.0 + index.sum() if is_weighted else None)
        if self.optimizer_step(self.optimizer, self.scheduler):
            with torch.no_grad():
                for mine, theirs in zip(self.target.parameters(), self.net.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)
        self.net.layers[3].bias.requires_grad_(True)
        if self.several:
            loss = (self.other(x) - self.net(x).detach() - self.change(x) % 1).square().mean()
            self.backward(loss)
            self.optimizer_step(self.other_optimizer, clip_norm=1.0)
            self.log("other", loss)

    def fingerprint(self) -> list[Any]:
        """What no checkpoint has."""
        states = [self.drawn["random"].getstate(), self.drawn["numpy"].bit_generator.state]
        return [
            *(self.number, self.names, [*self.seen], self.table, [*self.recent], self.array.tolist()),
            *(vars(self.object.inner), self.object.number, self.mean, self.moved, states),
            *(self.counted.number, self.bytes, self.numbers),
            *(self.drawn["torch"].get_state(), self.drawn["old numpy"].get_state()[1].tolist()),
        ]


class Named(Indices):
    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        return dict(zip(("index", "x"), super().__getitem__(index), strict=True))


PROGRAMS: dict[str, dict[str, Any]] = {
    "one update": {},
    "several updates": {},
    "accumulated": {"accumulation_steps": 3, "clip_norm": 0.1, "log_grad_norm": "per-parameter"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "accumulation_steps": 2},
}


def trained(root: Path, name: str, steps: int = 7, **options: Any) -> Any:
    """What a training has left behind."""
    model = Busy(several=name == "several updates")
    options = {**PROGRAMS[name], "log_every_steps": 2, "callbacks": [EMA(0.5)], **options}
    data = DataModule(Split(Named(22), 4, shuffle=True), Split(Named(4), 4), Split(Named(4), 4))
    result = quiet(root=root, max_steps=steps, valid_every_epochs=None, sanity_batches=0, **options).fit(model, data)
    content = saved(root / "busy", "state", "model", "precision", "callbacks", "metrics", "ranks")
    return content, timeless(read_rows(root / "busy")), model.fingerprint(), result.state.step


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_training_has_the_same_bits_whichever_steps_are_verified(tmp_path: Path, name: str) -> None:
    plain = trained(tmp_path / "plain", name)
    assert plain[-1] == 7
    assert same(trained(tmp_path / "each", name, verify_every_steps=1), plain)
    assert same(trained(tmp_path / "some", name, verify_every_steps=3), plain)


class Counting(Tiny):
    """Notes how often each step was computed."""

    calls: ClassVar[list[int]] = []

    def train_step(self, batch: Any, state: Any) -> None:
        self.calls.append(state.step + 1)
        super().train_step(batch, state)


def test_the_first_step_of_a_start_and_every_nth_are_computed_twice(tmp_path: Path) -> None:
    Counting.calls.clear()
    for steps in (4, 8):
        quiet(root=tmp_path, max_steps=steps, verify_every_steps=3).fit(Counting(), data())
    assert Counting.calls == [1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8]

    def calls_of_replay(**options: Any) -> list[int]:
        Counting.calls.clear()
        quiet(root=tmp_path, max_steps=8, **options).replay(Counting(), data(), step=6)
        return [*Counting.calls]

    assert calls_of_replay(verify_every_steps=1) == calls_of_replay()  # It looks at steps itself.

    def make(**options: Any) -> Any:
        return quiet(max_steps=3, **options), Counting(), data()

    found = []
    for i, program in enumerate((make, functools.partial(make, verify_every_steps=1))):
        Counting.calls.clear()
        lock = recorded(program, 3)
        run_trial(Source(program, {}), Trial(steps=3), tmp_path / f"{i}")
        found.append((lock, [*Counting.calls]))
    assert found[0] == found[1]


# What a fault is called.


FAULTS = {
    ("output", 2): "the first difference is in the output of net.1 (Faulty)",
    ("output", 5): "the first difference is in the output of net.1 (Faulty)",
    ("gradient", 2): "the first difference is in the gradient at the output of net.0 (Linear)",
    ("loss", 1): "the first difference is in the loss",
    ("parameter", 2): "the first difference is in the gradient in the update of net.0.weight",
    ("calls", 2): "there is more often the output of net.0 (Linear)",
    ("calls", 1): "there is less often the output of net.0 (Linear)",
    ("second", 2): "the first difference is in the loss",
}


@pytest.mark.parametrize(("where", "at"), FAULTS)
def test_a_difference_names_rank_and_module_before_the_weights_change(where: str, at: int) -> None:
    model = Failing(where, at)
    options: dict[str, Any] = {"max_steps": 4, "verify_every_steps": 1, "sanity_batches": 0, "valid_every_epochs": None}
    with pytest.raises(RuntimeError, match="verify_every_steps") as error:
        quiet(**options).fit(model, data())
    step = (at + 1) // 2
    assert f"step {step}, computed twice, is not the same: on rank 0 (" in str(error.value)
    assert f", cpu) {FAULTS[where, at]}. The update was not made" in str(error.value)
    assert same(model.weights(), model.before)


@pytest.mark.parametrize(("where", "what"), [("output", r"the output of net.1 \(Faulty\)"), ("second", "the loss")])
def test_a_fault_in_a_micro_batch_is_seen_before_the_update_of_its_window(where: str, what: str) -> None:
    model = Failing(where, 4)
    with pytest.raises(RuntimeError, match=f"step 1, computed twice, .* {what}"):
        quiet(max_steps=2, verify_every_steps=1, accumulation_steps=3).fit(model, DataModule(Split(Indices(12), 4)))
    assert not {"train_step", "backward", "optimizer_step", "log"} & vars(model).keys()


class Catching(Failing):
    """Goes on after any error."""

    def train_step(self, batch: Any, state: Any) -> None:
        with contextlib.suppress(RuntimeError):
            super().train_step(batch, state)


def test_a_step_that_catches_errors_does_not_hide_a_difference() -> None:
    with pytest.raises(RuntimeError, match="step 1, computed twice, is not the same"):
        quiet(max_steps=2, verify_every_steps=1).fit(Catching("output", 2), DataModule(Split(Indices(8), 4)))


# Right programs.


class Averaging(Fitting):
    """Averages its weights after each call of `optimizer_step`, whatever it returns."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.average = AveragedModel(self.net)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.average.update_parameters(self.net)


class Shift(nn.Module):
    """Returns its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.value


class Leaves(Fitting):
    """Has a parameter, and a batch that wants a gradient, among the outputs of modules."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.others = self.parallelize(nn.Sequential(nn.Identity(), Shift()))
        self.optimizer.add_param_group({"params": [*self.others.parameters()]})

    def loss(self, batch: Any) -> Tensor:
        x = batch[0].requires_grad_(True)
        out = self.net(self.others[0](x)) + self.others[1](x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return (out - batch[1]).square().mean() + slope.square().mean()


class Copying(Fitting):
    """Takes a step ahead with a copy of its network, and keeps it."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.ahead = copy.deepcopy(self.net)
        assert len(pickle.dumps(self.net)) > 0
        nn.functional.mse_loss(self.ahead(batch[0]), batch[1]).backward()
        torch.optim.SGD(self.ahead.parameters(), lr=0.1).step()
        self.backward(self.loss(batch) + (self.net(batch[0]) - self.ahead(batch[0]).detach()).square().mean())
        self.optimizer_step(self.optimizer)


class Nested(Fitting):
    """A module of it gets sequences of several lengths."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.embedding = nn.Linear(3, 3).requires_grad_(False)

    def loss(self, batch: Any) -> Tensor:
        self.sequences = torch.nested.nested_tensor([x.expand(1 + i, 3) for i, x in enumerate(batch[0])])
        return nn.functional.mse_loss(self.net(self.embedding(self.sequences).to_padded_tensor(0.0).sum(1)), batch[1])


class Scripted(Fitting):
    """Has a teacher of TorchScript, which takes no hooks."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.teacher = scripted(nn.Linear(3, 1).requires_grad_(False))

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), self.teacher(batch[0]))


class Looking(Fitting):
    """Looks rows up whose gradients are sparse."""

    def setup(self, fast_init: bool = False) -> None:
        self.rows = self.parallelize(nn.Embedding(12, 3, sparse=True))
        super().setup()
        self.optimizer.add_param_group({"params": [*self.rows.parameters()]})

    def loss(self, batch: Any) -> Tensor:
        rows = self.rows((12 * batch[1]).round().long()[:, 0])
        return nn.functional.mse_loss(self.net(batch[0] + rows), batch[1])


class Reading(Fitting):
    """Has a table in a file to read, which cannot be written, and random numbers without a state."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.table = torch.from_numpy(numpy.memmap(__file__, numpy.uint8, "r"))
        self.secret = random.SystemRandom()

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) * self.table[0]


class MovedKeys(Fitting):
    """Moves a copy of its network towards it before each step, as momentum contrast does; one way has no versions."""

    way = "copy_"

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.keys = self.parallelize(network().requires_grad_(False))

    @torch.no_grad()
    def move(self) -> None:
        for key, p in zip(self.keys.parameters(), self.net.parameters(), strict=True):
            if self.way == "copy_":
                key.mul_(0.5).add_(p, alpha=0.5)
            else:
                key.data = 0.5 * key + 0.5 * p

    def loss(self, batch: Any) -> Tensor:
        self.move()
        return super().loss(batch) + nn.functional.mse_loss(self.net(batch[0]), self.keys(batch[0]))


class ReplacedKeys(MovedKeys):
    """Gives the copy new memory."""

    way = "data"


class LateKeys(MovedKeys):
    """Moves the copy, of which it has two names, in some steps only, not in the first; its optimizer has it too."""

    def setup(self, fast_init: bool = False) -> None:
        self.both = self.parallelize(nn.ModuleList([network(), network().requires_grad_(False)]))
        self.net, self.keys = self.both
        self.optimizer = self.made(self.both.parameters(), **self.options)
        self.number = 0

    def move(self) -> None:
        self.number += 1
        if self.number % 2 == 0:
            super().move()


class Locked(nn.Sequential):
    """Has what cannot be copied."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.lock = threading.Lock()


class LockedKeys(MovedKeys):
    """The copy and the network have a lock."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.net = self.parallelize(Locked(*self.net, nn.BatchNorm1d(1)))
        self.keys = self.parallelize(Locked(*self.keys))
        self.optimizer = self.made(self.net.parameters(), **self.options)

    def move(self) -> None:
        with torch.no_grad():
            self.keys[0].weight.mul_(0.5)


class ScriptedStudent(Fitting):
    """Its network is of TorchScript, with statistics, and so is a copy that it moves."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(scripted(nn.Sequential(*network(), nn.BatchNorm1d(1))))
        self.keys = self.parallelize(scripted(nn.Sequential(*network()).requires_grad_(False)))
        self.optimizer = self.made(self.net.parameters(), **self.options)

    def loss(self, batch: Any) -> Tensor:
        with torch.no_grad():
            for p in self.keys.parameters():
                p.mul_(0.5)
        return super().loss(batch) + nn.functional.mse_loss(self.net(batch[0]), self.keys(batch[0]))


class Queueing(Fitting):
    """Has a tensor of inference mode, which it changes there."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        with torch.inference_mode():
            self.queue = torch.zeros(3)

    def loss(self, batch: Any) -> Tensor:
        with torch.inference_mode():
            self.queue.mul_(0.5).add_(batch[0].mean(0))
        return super().loss(batch) * float(self.queue.sum())


class LargeAveraging(Averaging):
    """Has frozen parts that are larger than what it trains, so that none is copied."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.large = nn.Linear(3, 20).requires_grad_(False)


class Toggling(Fitting):
    """Freezes a part and unfreezes it in turn, and counts in a tensor whose elements are one in memory."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.count = torch.zeros(1).expand(3)

    def loss(self, batch: Any) -> Tensor:
        self.net[0].weight.requires_grad_(not self.net[0].weight.requires_grad)
        self.count[:1].add_(1)
        return super().loss(batch) * float(self.count[2])


class Moving(Fitting):
    """Gives its parameters new memory in each step, with the same values."""

    def loss(self, batch: Any) -> Tensor:
        for p in self.net.parameters():
            p.data = p.data.clone()
        return super().loss(batch)


class LargeKeys(Fitting):
    """Moves what has more parameters than what it trains, which would take too much memory to copy."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.keys = nn.ModuleList([network(), nn.Linear(3, 10)]).requires_grad_(False)

    def loss(self, batch: Any) -> Tensor:
        with torch.no_grad():
            self.keys[1].weight.mul_(0.5)
        return super().loss(batch)


class OwnBackward(Fitting):
    """Its `backward` has no more arguments than it uses."""

    def backward(self, loss: Tensor) -> None:  # type: ignore[override]
        super().backward(2 * loss)


RIGHT: dict[str, tuple[type[Fitting], dict[str, Any]]] = {
    "average, skipped": (Averaging, {"precision": "fp16"}),
    "average, accumulated": (Averaging, {"accumulation_steps": 2}),
    "leaves": (Leaves, {}),
    "copy": (Copying, {}),
    "nested": (Nested, {}),
    "scripted": (Scripted, {}),
    "sparse": (Looking, {"accumulation_steps": 2}),
    "file": (Reading, {}),
    "moved keys": (MovedKeys, {"accumulation_steps": 2}),
    "replaced keys": (ReplacedKeys, {}),
    "late keys": (LateKeys, {}),
    "locked keys": (LockedKeys, {}),
    "scripted student": (ScriptedStudent, {}),
    "inference": (Queueing, {}),
    "new memory": (Moving, {}),
    "large average, accumulated": (LargeAveraging, {"accumulation_steps": 2}),
    "toggling": (Toggling, {}),
    "backward": (OwnBackward, {}),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:The given NumPy array")
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_is_verified_and_has_the_same_bits(name: str) -> None:
    made, options = RIGHT[name]

    def trained(**others: Any) -> tuple[Any, int]:
        model = made(lr=0.1)
        with torch.jit.optimized_execution(False):  # Code that is optimized after some calls rounds otherwise.
            state = quiet(max_steps=4, **options, **others).fit(model, fitting_data()).state
        assert not any(each._forward_hooks for net in networks(model) for each in net.modules())  # Nor has a copy any.
        return weights(model), state.skipped_steps

    plain = trained()
    assert (plain[1] > 0) == ("fp16" in options.values())
    assert same(trained(verify_every_steps=1), plain)
    assert same(trained(verify_every_steps=3), plain)


class Switching(Fitting):
    """Trains by another method after its first step."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.train_step = self.train_less  # type: ignore[method-assign]

    def train_less(self, batch: Any, state: Any) -> None:
        self.backward(0.1 * self.loss(batch))
        self.optimizer_step(self.optimizer)


def test_a_step_that_a_verified_step_has_assigned_stays() -> None:
    models = [Switching(lr=0.1), Switching(lr=0.1)]
    quiet(max_steps=3).fit(models[0], fitting_data())
    quiet(max_steps=3, verify_every_steps=1000).fit(models[1], fitting_data())
    assert same(*map(weights, models))


# What cannot be verified.


class Drawing(Fitting):
    """Takes its data from an iterator of its own."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.sources: list[Iterator[Any]] = [iter(range(100))]


class Decaying(Fitting):
    """Changes its weights before the update."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.net[0].weight.data.mul_(0.9)
        super().train_step(batch, state)


class ByHand(Fitting):
    """Changes its weights without an optimizer of PyTorch."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.loss(batch))
        with torch.no_grad():
            self.net[0].weight.sub_(self.net[0].weight.grad)
        self.optimizer.zero_grad()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Drawing(), "sources.0 is an iterator (range_iterator), whose position"),
        (Decaying(), "train_step has changed net.0.weight before the step of an optimizer, or otherwise"),
        (LargeKeys(), "train_step has changed keys.1.weight before the step of an optimizer, or otherwise"),
        (ByHand(), "train_step has changed net.0.weight before the step of an optimizer, or otherwise"),
        (Closing(*CLOSING["lbfgs"][:1], **CLOSING["lbfgs"][1]), "LBFGS computes the loss inside of its step"),
        (Closing(*CLOSING["sam"][:1], **CLOSING["sam"][1]), "SAM computes the loss inside of its step"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_taken_back_is_an_error_in_the_first_step(model: Model, text: str) -> None:
    with pytest.raises((ValueError, RuntimeError)) as error:
        quiet(max_steps=2, verify_every_steps=1000).fit(model, fitting_data())
    assert str(error.value).startswith("verify_every_steps: ")
    assert text in str(error.value)


class DecayingLater(Fitting):
    """Changes its weights before the second update."""

    def train_step(self, batch: Any, state: Any) -> None:
        if state.step == 1:
            with torch.no_grad():
                self.net[0].weight.mul_(0.9)
        super().train_step(batch, state)


def test_weights_that_change_before_a_later_update_are_an_error_too() -> None:
    with pytest.raises(RuntimeError, match=r"train_step has changed net\.0\.weight before the step"):
        quiet(max_steps=3, verify_every_steps=1).fit(DecayingLater(lr=0.1), fitting_data())


class Repeating(Fitting):
    """Updates its weights twice with each batch."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        super().train_step(batch, state)


def test_several_updates_by_one_optimizer_are_verified_from_the_second_time_on(caplog: Any) -> None:
    models = [Repeating(lr=0.1), Repeating(lr=0.1)]
    quiet(max_steps=4).fit(models[0], fitting_data())
    quiet(max_steps=4, verify_every_steps=2).fit(models[1], fitting_data())
    assert same(dict(models[1].net.state_dict()), dict(models[0].net.state_dict()))
    said = [record.message for record in caplog.records if "verify_every_steps" in record.message]
    assert len(said) == 1
    assert "in step 1 only the first one was verified, in later steps all" in said[0]
