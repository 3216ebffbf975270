"""Random trainings that are cut at random places and resumed; each is a function of a seed and a number."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
import torchmetrics
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from helios_lite import Callback, DataModule, Model, Split
from helios_lite.callbacks import EMA
from helpers.compare import same, saved, timeless
from helpers.models import quiet
from helpers.rows import read_rows
from helpers.scored import Ratio
from helpers.scripts import SLOWNESS

TRAINING_HOOKS = [
    "on_training_start",
    "on_training_epoch_start",
    "on_training_batch_start",
    "on_training_batch_end",
    "on_training_epoch_end",
    "on_training_end",
]
VALIDATION_HOOKS = [
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_end",
]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How one start of a run ends.

    Attributes:
        how: "limit" (`max_steps`), "raise", "read" (a sample that cannot be read), "terminate" (SIGTERM) or "kill"
            (SIGKILL, of a process of its own).
        hook: where an exception is raised or the signal is sent.
        count: in which call of the hook; the step of a limit; the number of samples that a worker can read.
        seconds: when the process is killed, from its first step on.
        num_workers: of this start.
    """

    how: str
    hook: str = ""
    count: int = 0
    seconds: float = 0.0
    num_workers: int = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """A training, and what happens to it.

    Attributes:
        options: the options of the trainer.
        data: see `make_data`.
        model: see `Fuzzed`.
        ema: whether a callback averages the weights.
        cuts: how its starts end, before the last one, which nothing cuts.
    """

    options: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    ema: bool
    cuts: tuple[Cut, ...]


def make_case(seed: int, number: int, kills: bool = True, workers: bool = True) -> Case:
    """Return a case, always the same for the same arguments.

    Args:
        seed: the seed of a series of cases.
        number: the number of the case in it.
        kills: whether runs may be killed, which takes processes.
        workers: whether loaders may have workers, which takes more processes.
    """
    chance = random.Random(f"{seed}/{number}")
    choice = chance.choice
    kind = choice(["shuffle"] * 4 + ["plain", "sampler", "weighted", "batch_sampler", "iterable", "stateful", "loader"])
    max_workers = choice([0, 0, 0, 1, 2])
    data = {
        "kind": kind,
        "length": chance.randint(5, 23),
        "batch_size": chance.randint(1, 5),
        "drop_last": kind in ("shuffle", "plain") and chance.random() < 0.2,
        "valid": choice(["none", "one", "one", "dict"]),
        "persistent": chance.random() < 0.3,
    }
    fractions = [] if kind == "iterable" else [0.5, 0.25, 1 / 3, 0.7, 1e-10]
    options: dict[str, Any] = {
        "seed": chance.randrange(2**64),
        "max_epochs": choice([1, 2, 3, 3]),
        "max_steps": choice([None, None, None, chance.randint(1, 12)]),
        "accumulation_steps": choice([1, 1, 2, 3]),
        "precision": choice(["fp32", "fp32", "fp32", "bf16"]),
        "clip_norm": choice([None, 0.1, 1]),
        "valid_every_epochs": choice([1, 1, 2, None, *fractions]),
        "valid_every_steps": choice([None, None, 1, 2, 3]),
        "sanity_batches": choice([0, 1, 5]),
        "save_every_epochs": choice([None, 1, 2]),
        "save_every_steps": choice([None, 1, 1, 2, 3]),
        "save_every_minutes": choice([None, None, 1e-9]),
        "keep_last": choice([-1, 0, 1, 1, 2]),
        "keep_best": choice([-1, 0, 1, 1, 2]),
        "async_save": choice([True, False]),
        "log_every_steps": choice([1, 2, 3, 50]),
        "log_grad_norm": choice([False, False, True, "per-parameter"]),
        "log_param_norm": choice([False, False, True, "per-parameter"]),
    }
    validates = data["valid"] != "none" and (options["valid_every_epochs"] or options["valid_every_steps"])
    if validates and chance.random() < 0.6:
        names = ["valid/loss"] if data["valid"] == "one" else ["valid/a/loss", "valid/b/loss"]
        options["monitor"] = names if chance.random() < 0.3 else choice(names)
        options["mode"] = choice(["min", "max"])
        options["patience"] = choice([None, 1, 2, 4])
        options["min_delta"] = choice([0.0, 0.01])
    model = {
        "dropout": choice([0.0, 0.3]),
        "batch_norm": choice([True, False]),
        "optimizer": choice(["Adam", "SGD"]),
        "per_step": choice([None, "one cycle", "exponential"]),
        "per_epoch": choice([None, "step", "plateau"]),
        "second": choice([True, False]),
        "weighted": choice([True, False]),
        "score": choice([None, None, "own", "torchmetrics", "collection"]),
    }
    hows = ["limit", "limit", "raise", "raise", "raise", "read", "terminate"] + ["kill"] * kills
    cuts = []
    for _ in range(chance.randint(1, 4)):
        how = choice(hows)
        hooks = TRAINING_HOOKS + VALIDATION_HOOKS + ["train_step", "valid_step"] + ["setup"] * (how == "raise")
        count = chance.randint(1, 6 if how == "limit" else 12)
        cuts.append(Cut(how, choice(hooks), count, chance.uniform(0, 0.15), choice([0, max_workers]) * workers))
    return Case(options, data, model, choice([True, False]), tuple(cuts))


class CutError(Exception):
    """Ends a start of a run."""


class Noisy(Dataset):
    """Sample i is (i, a vector that depends on i and, if wanted, on draws from torch, random and numpy)."""

    left: int | None = None  # The number of samples that can be read until there is an error.

    def __init__(self, length: int, is_random: bool = True) -> None:
        self.length, self.is_random = length, is_random

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise CutError(f"sample {index}")
        x = torch.tensor([index % 5, index % 3, 1.0]) / 3
        if self.is_random:
            x += torch.rand(3) + torch.tensor([random.random(), numpy.random.rand(), 0.0]).float()
        return index, x


class Stream(IterableDataset):
    """The samples in order, another part of them in every epoch."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        samples = Noisy(1000, is_random=False)
        return (samples[self.epoch * self.length + i] for i in range(self.length))


class StatefulLoader:
    """Batches in a random order, which a private generator draws; its state is the position and the generator's."""

    def __init__(self, length: int, batch_size: int) -> None:
        self.samples, self.batch_size = Noisy(length, is_random=False), batch_size
        self.generator = torch.Generator().manual_seed(3)
        self.order: list[int] = []

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if not self.order:
            self.order = [*torch.randperm(len(self.samples), generator=self.generator).tolist(), -1]
        while self.order[0] >= 0:
            indices = [index for index in self.order[: self.batch_size] if index >= 0]
            self.order = self.order[len(indices) :]
            noise = torch.rand((), generator=self.generator)
            index, x = torch.utils.data.default_collate([self.samples[index] for index in indices])
            yield index, x + noise
        self.order = []

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.order = list(state_dict["order"])
        self.generator.set_state(state_dict["generator"].cpu())


def make_data(
    kind: str,
    length: int,
    batch_size: int,
    drop_last: bool,
    valid: str,
    persistent: bool,
    num_workers: int,
    left: int | None,
) -> DataModule:
    """Return the data of a case.

    Args:
        kind: how the train split is given.
        length: its number of samples.
        batch_size: as in a Split.
        drop_last: as in a Split, where something is left then.
        valid: "none", "one" or "dict": the validation splits.
        persistent: whether workers live for the whole run.
        num_workers: of the train split.
        left: the number of samples that can be read in training.
    """
    samples = Noisy(length)
    samples.left = left
    workers = {"num_workers": num_workers, "persistent_workers": persistent and num_workers > 0}
    train: Any
    if kind == "iterable":
        train = Split(Stream(length), batch_size, num_workers=min(num_workers, 1))
    elif kind == "stateful":
        train = StatefulLoader(length, batch_size)
    elif kind == "loader":
        train = DataLoader(Noisy(length, is_random=False), batch_size, shuffle=True, generator=torch.Generator())
    elif kind == "batch_sampler":
        train = Split(samples, batch_sampler=BatchSampler(RandomSampler(samples), batch_size, False), **workers)
    elif kind in ("sampler", "weighted"):
        weighted = WeightedRandomSampler([1.0 + i % 3 for i in range(length)], length)
        train = Split(
            samples, batch_size, sampler=weighted if kind == "weighted" else RandomSampler(samples), **workers
        )
    else:
        drop_last = drop_last and length >= batch_size
        train = Split(samples, batch_size, shuffle=kind == "shuffle", drop_last=drop_last, **workers)
    one = Split(Noisy(5), 2)
    return DataModule(train, {"none": None, "one": one, "dict": {"a": one, "b": Split(Noisy(3), 3)}}[valid])


SCORES: dict[str, Any] = {
    "own": Ratio,
    "torchmetrics": torchmetrics.classification.BinaryAUROC,
    "collection": lambda: torchmetrics.MetricCollection(
        {"mean": torchmetrics.classification.BinaryAccuracy(), "f1": torchmetrics.classification.BinaryF1Score()}
    ),
}


class Fuzzed(Model):
    """A network with what the case asks for; it writes the indices of every batch to a file."""

    def __init__(
        self,
        indices: Path,
        total_steps: int,
        *,
        dropout: float,
        batch_norm: bool,
        optimizer: str,
        per_step: str | None,
        per_epoch: str | None,
        second: bool,
        weighted: bool,
        score: str | None,
    ) -> None:
        super().__init__("fuzzed")
        self.indices, self.total_steps, self.cutter = indices, total_steps, Cutter(None)
        self.choices = dict(vars())
        del self.choices["self"]

    def setup(self, fast_init: bool = False) -> None:
        choices = self.choices
        # Three numbers per channel, so that batch norm accepts a batch of one sample.
        norm = [nn.Unflatten(1, (1, 3)), nn.BatchNorm1d(1), nn.Flatten()] if choices["batch_norm"] else []
        layers = [*norm, nn.Linear(3, 4), nn.Dropout(choices["dropout"]), nn.Tanh(), nn.Linear(4, 1)]
        self.net = self.parallelize(nn.Sequential(*layers))
        self.other = self.parallelize(nn.Linear(3, 1)) if choices["second"] else None
        name = choices["score"]
        self.scores = [] if name is None else [SCORES[name](), SCORES[name]()]
        if fast_init:
            return
        make = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD}[choices["optimizer"]]
        self.optimizers = [make(net.parameters(), lr=0.01) for net in (self.net, self.other) if net is not None]
        schedulers = torch.optim.lr_scheduler
        self.per_step = {
            None: lambda: None,
            "one cycle": lambda: schedulers.OneCycleLR(self.optimizers[0], 0.1, total_steps=self.total_steps),
            "exponential": lambda: schedulers.ExponentialLR(self.optimizers[0], 0.9),
        }[choices["per_step"]]()
        self.per_epoch = {
            None: lambda: None,
            "step": lambda: schedulers.StepLR(self.optimizers[-1], 1, 0.7),
            "plateau": lambda: schedulers.ReduceLROnPlateau(self.optimizers[-1], factor=0.5, patience=0),
        }[choices["per_epoch"]]()

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        with self.indices.open("a") as file:
            file.write(json.dumps([state.batch, index.tolist(), x.double().sum().item()]) + "\n")
        with self.autocast():
            losses = (self.net(x) - 1).square().mean(1)
        tokens = 1.0 + index % 4
        weight = tokens.sum() if self.choices["weighted"] else None
        loss = losses.mean() if weight is None else (losses * tokens).sum() / weight
        self.backward(loss, weight)
        self.optimizer_step(self.optimizers[0], self.per_step)
        self.cutter.cut("train_step")  # Half of the step is done.
        if self.other is not None:
            with self.autocast():
                difference = (self.other(x) - self.net(x).detach()).square().mean()
            self.backward(difference)
            self.optimizer_step(self.optimizers[1], clip_norm=0.5)
            self.log("difference", difference, reduce="std")
        if self.scores:
            self.scores[0].update(index.int() % 2, index.int() % 3 % 2)
            self.log("score", self.scores[0])
        self.log("loss", loss, count=weight)
        self.log("noise", torch.rand(()) + random.random() + numpy.random.rand(), reduce="sum")

    def valid_step(self, batch: Any, step: int) -> None:
        self.cutter.cut("valid_step")
        self.log("loss", (self.net(batch[1]) - 1).square().mean() + torch.rand(()))
        for score in self.scores[-1 - step % 2 :][:1]:  # Once the own one, once that of the training.
            score.update(batch[0].int() % 2, batch[0].int() % 3 % 2)
            self.log(f"score{step % 2}", score)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        if self.choices["per_epoch"] == "step":
            self.per_epoch.step()
        elif self.choices["per_epoch"] == "plateau":
            self.per_epoch.step(self.metrics["train/loss"])


class Cutter(Callback):
    """Ends this start of the run in one call of one hook."""

    def __init__(self, cut: Cut | None, started: Any = None) -> None:
        self.how, self.hook, self.left = ("", "", 0) if cut is None else (cut.how, cut.hook, cut.count)
        self.started = started

    def cut(self, hook: str, is_training: bool = True) -> None:
        if hook == "train_step" and self.started is not None:
            self.started.set()
        if hook == self.hook and self.how in ("raise", "terminate"):
            self.left -= 1
            if self.left == 0 and self.how == "raise":
                raise CutError(hook)
            # Before the training starts, a SIGTERM ends the process at once.
            if self.left <= 0 and self.how == "terminate" and self.model.in_training:
                self.how = ""
                os.kill(os.getpid(), signal.SIGTERM)


def _add_hooks() -> None:
    def make(name: str) -> Any:
        def hook(self: Cutter, *arguments: Any, **options: Any) -> None:
            if name == "on_training_start":
                self.model.in_training = True
            self.cut(name)

        return hook

    for name in ["setup", *TRAINING_HOOKS, *VALIDATION_HOOKS]:
        setattr(Cutter, name, make(name))


_add_hooks()


class Counter(Callback):
    """Counts steps, and uses random numbers."""

    def __init__(self) -> None:
        self.seen = torch.zeros(2)

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.seen = self.seen + torch.stack([torch.ones(()), torch.rand(())])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


def start(case: Case, root: Path, cut: Cut | None = None, started: Any = None) -> str:
    """Start the run of a case, or resume it; return why it stopped."""
    root.mkdir(exist_ok=True)
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
    warnings.filterwarnings("ignore", "No (positive|negative) samples in targets", UserWarning)
    options = dict(case.options)
    if cut is not None and cut.how == "limit":
        options["max_steps"] = min(cut.count, options["max_steps"] or cut.count)
    model = Fuzzed(root / "indices", total_steps=500, **case.model)
    model.cutter, model.in_training = Cutter(cut, started), False
    callbacks = [*([EMA(0.8)] if case.ema else []), Counter(), model.cutter]
    left = cut.count if cut is not None and cut.how == "read" else None
    data = make_data(**case.data, num_workers=0 if cut is None else cut.num_workers, left=left)
    return quiet(root=root, callbacks=callbacks, accelerator="cpu", **options).fit(model, data).stop_reason


def start_and_cut(case: Case, root: Path, cut: Cut) -> None:
    """Start the run of a case and let the cut end it; it may end before."""
    if cut.how == "kill":
        _start_and_kill(case, root, cut)
    elif cut.how == "terminate":
        with contextlib.suppress(SystemExit):
            start(case, root, cut)
    else:
        with contextlib.suppress(CutError):
            start(case, root, cut)


def _start_and_kill(case: Case, root: Path, cut: Cut) -> None:
    """Start the run in a forked process, and kill that some time after its first step."""
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=start, args=(case, root, cut, started))
    process.start()
    limit = time.monotonic() + 60 * SLOWNESS
    while process.is_alive() and not started.wait(0.01):
        assert time.monotonic() < limit, "the run does not start"
    time.sleep(cut.seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "the run failed by itself"


def outcome(root: Path) -> dict[str, Any]:
    """Everything that the run has left behind that must not depend on its cuts."""
    rows = read_rows(root / "fuzzed")
    batches = {batch: seen for batch, *seen in map(json.loads, (root / "indices").read_text().splitlines())}
    parts = ("state", "model", "precision", "callbacks", "monitor", "metrics", "ranks")
    return {"rows": timeless(rows), "batches": batches, **saved(root / "fuzzed", *parts)}


def difference(case: Case, root: Path) -> str | None:
    """Run a case whole and cut; return where their ends differ first, None if they are equal bit for bit."""
    before = torch.get_rng_state()
    reasons = [start(case, root / "whole")]
    for cut in case.cuts:
        start_and_cut(case, root / "cut", cut)
    reasons.append(start(case, root / "cut"))
    torch.set_rng_state(before)
    found = {"cut": outcome(root / "cut"), "whole": outcome(root / "whole")}
    if reasons[0] != reasons[1]:
        return f"stop_reason: {reasons[0]} whole, {reasons[1]} cut"
    return first_difference(found["whole"], found["cut"])


def first_difference(whole: Any, cut: Any, name: str = "") -> str | None:
    """Return the path of the first value that differs, and both values; None if all are equal."""
    if same(whole, cut):
        return None
    keys: list[Any] = []
    if isinstance(whole, dict) and isinstance(cut, dict) and list(whole) == list(cut):
        keys = list(whole)
    elif isinstance(whole, list | tuple) and isinstance(cut, list | tuple) and len(whole) == len(cut):
        keys = list(range(len(whole)))
    for key in keys:
        deeper = first_difference(whole[key], cut[key], f"{name}[{key!r}]")
        if deeper is not None:
            return deeper
    return f"{name}: {str(whole)[:300]} whole, {str(cut)[:300]} cut"
