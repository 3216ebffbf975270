"""What has changed x where the run was cut x how many processes, and what shares the network: the rule, or an error.

What each start must do is computed here, by PyTorch alone: which samples each step has, and at which learning rate.
"""

import itertools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import Indices, quiet
from helpers.processes import deadline
from helpers.scenarios import Results, scenario
from torch import nn

from helios_lite import DataModule, Model, Split, schedules
from helios_lite.processes import rng
from helios_lite.processes.world import World

# By what shares the network. An epoch has three steps at first.
CUTS = {"one process": [2, 3, 4], "ddp": [2, 3], "fsdp": [2]}
OF_SHARDS = ("nothing", "rate", "decay", "micro-batches", "all at once", "frozen", "an hparam", "width", "optimizer")
"""The changes of what is sharded, or depends on how many ranks there are."""
FIRST: dict[str, Any] = {
    "rate": 0.1, "decay": 0.1, "epochs": 3, "global_batch": 8, "window": 1, "length": 22, "seed": 0, "shuffle": True,
    "sampler": None, "width": 4, "optimizer": "SGD", "hparam": 1, "allow": False, "frozen": False,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rate": {"rate": 0.03},
    "decay": {"decay": 0.4},
    "more epochs": {"epochs": 4},
    "fewer epochs": {"epochs": 1},
    "smaller batches": {"global_batch": 4},
    "micro-batches": {"global_batch": 4, "window": 2},
    "grown": {"length": 31},
    "shrunk": {"length": 13},
    "seed": {"seed": 5},
    "in order": {"shuffle": False},
    "all at once": {"rate": 0.02, "epochs": 4, "global_batch": 4, "length": 27, "seed": 1, "shuffle": False},
    "an allowed hparam": {"hparam": 2, "allow": True},
    "frozen": {"frozen": True},
    "a new sampler": {"shuffle": False, "sampler": 7},
    "an hparam": {"hparam": 2},
    "width": {"width": 6},
    "optimizer": {"optimizer": "Adam"},
}
ERRORS = {
    "an hparam": "hparams['chosen']: 1 in the checkpoint, 2 now",
    "width": "net.0.weight: (4, 3) in the checkpoint, (6, 3) now",
    "optimizer": "optimizer: torch.optim.sgd.SGD in the checkpoint, torch.optim.adam.Adam now",
}


class Reversed:
    """A sampler, which draws its own order of the indices."""

    def __init__(self, length: int, shift: int) -> None:
        self.length, self.shift = length, shift

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter([(i + self.shift) % self.length for i in range(self.length)][::-1])


class Started(Model):
    """Notes the samples and the learning rate of every step."""

    def __init__(self, given: dict[str, Any], stop: int | None) -> None:
        super().__init__("started")
        self.given, self.stop = given, stop
        self.hparams = {"chosen": given["hparam"]}
        self.seen: list[list[int]] = []
        self.rates: list[float] = []
        self.is_complete = True

    def setup(self, fast_init: bool = False) -> None:
        given = self.given
        net = nn.Sequential(nn.Linear(3, given["width"]), nn.Linear(given["width"], 1))
        net[0].requires_grad_(not given["frozen"])
        self.net = self.parallelize(net, blocks=(nn.Linear,))
        kind, options = getattr(torch.optim, given["optimizer"]), {"weight_decay": given["decay"]}
        self.optimizer = kind(self.net.parameters(), lr=given["rate"], **options)
        self.scheduler = schedules.cosine(self.optimizer, 0)

    def should_training_stop(self) -> bool:
        return len(self.seen) == self.stop

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        indices = sorted(itertools.chain(*self.gather(index.tolist())))
        if self.is_complete:
            self.seen.append(indices)
            self.rates.append(self.optimizer.param_groups[0]["lr"])
        else:
            self.seen[-1] = sorted(self.seen[-1] + indices)
        self.backward((self.net(x) - 1).square().mean())
        self.is_complete = self.optimizer_step(self.optimizer, self.scheduler)


def start(given: dict[str, Any], root: Path, world: World, strategy: str, stop: int | None = None) -> dict[str, Any]:
    """What a start does: the samples and rates of its steps and the weights at its end, or its error."""
    model = Started(given, stop)
    split = Split(
        Indices(given["length"]),
        given["global_batch"] // world.size,
        shuffle=given["shuffle"],
        sampler=None if given["sampler"] is None else Reversed(given["length"], given["sampler"]),
    )
    options = {"max_epochs": given["epochs"], "seed": given["seed"], "strategy": strategy}
    trainer = quiet(
        root=root, accumulation_steps=given["window"], allow_changed_hparams=given["allow"], keep_last=-1, **options
    )
    try:
        result = trainer.fit(model, DataModule(train=split))
    except (ValueError, RuntimeError) as error:
        return {"error": str(error)}
    return {"seen": model.seen, "rates": model.rates, "step": result.state.step, "weights": weights(model)}


def is_tried(name: str, cut: int, kind: str) -> bool:
    return cut in CUTS[kind] and (kind != "fsdp" or name in OF_SHARDS or "EVERY_CELL" in os.environ)


def attempts(root: Path, world: World, strategy: str) -> dict[str, Any]:
    """Cut a run after each number of steps, and start copies of it with each change, and with what it had at first."""
    found = {}
    for cut in CUTS[strategy if world.size > 1 else "one process"]:
        begun = root / f"{strategy}-{world.size}-{cut}"
        first = start(FIRST, begun, world, strategy, stop=cut)
        for name, changes in CHANGES.items():
            if not is_tried(name, cut, strategy if world.size > 1 else "one process"):
                continue
            folder = begun.with_name(f"{begun.name}-{name}")
            if world.is_main:
                shutil.copytree(begun, folder)
            world.barrier()
            again = start({**FIRST, **changes}, folder, world, strategy)
            after = start(FIRST, folder, world, strategy) if "error" in again and cut == 2 else {}
            found[f"{cut} {name}"] = {"first": first, "again": again, "after": after}
    whole = start(FIRST, root / f"{strategy}-{world.size}-whole", world, strategy)
    return {**found, "whole": whole}


@scenario(ranks=2)
def replicated(root: Path, world: World) -> dict[str, Any]:
    return attempts(root, world, "ddp")


@scenario(ranks=2)
def sharded(root: Path, world: World) -> dict[str, Any]:
    return attempts(root, world, "fsdp")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with deadline(240):
        yield Results(__name__, tmp_path_factory.mktemp("starts"))


@pytest.fixture(scope="module", params=["one process", "ddp", "fsdp"])
def found(request: pytest.FixtureRequest, result: Results, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if request.param == "one process":
        return {"kind": request.param, "processes": 1, **attempts(tmp_path_factory.mktemp("one"), World(), "ddp")}
    return {"kind": request.param, "processes": 2, **result(replicated if request.param == "ddp" else sharded, ranks=2)}


def epoch(given: dict[str, Any], number: int) -> list[int]:
    """The order of an epoch that begins with these settings."""
    length = given["length"]
    if given["sampler"] is not None:
        return [*Reversed(length, given["sampler"])]
    generator = torch.Generator().manual_seed(rng.derive_seed(given["seed"], number))
    return torch.randperm(length, generator=generator).tolist() if given["shuffle"] else [*range(length)]


def steps_of(order: list[int], given: dict[str, Any], processes: int) -> list[list[int]]:
    """The samples of each step; fewer than the processes are no batch."""
    size = given["global_batch"]
    batches = [batch for i in range(0, len(order), size) if len(batch := order[i : i + size]) >= processes]
    windows = [batches[i : i + given["window"]] for i in range(0, len(batches), given["window"])]
    return [sorted(itertools.chain(*window)) for window in windows]


def planned(given: dict[str, Any], cut: int, processes: int) -> list[list[int]]:
    """The steps of a run that was cut, from its start on: of the epoch that had begun, and of those after it."""
    steps, number = [], 0
    while len(steps) < cut:
        steps += steps_of(epoch(FIRST, number), FIRST, processes)
        number += 1
    inside, number = cut % 3, cut // 3
    del steps[cut:]
    if inside > 0:  # Finished as it has begun, without what is gone.
        rest = [index for index in epoch(FIRST, number)[8 * inside :] if index < given["length"]]
        steps += steps_of(rest, given, processes)
        number += 1
    for later in range(number, given["epochs"]):
        steps += steps_of(epoch(given, later), given, processes)
    return steps


@pytest.mark.parametrize("cut", CUTS["one process"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_start_follows_the_rule_or_is_an_error_that_leaves_the_run_as_it_is(
    name: str, cut: int, found: dict[str, Any]
) -> None:
    given, processes = {**FIRST, **CHANGES[name]}, found["processes"]
    if not is_tried(name, cut, found["kind"]):
        pytest.skip("not tried with so many processes")
    case = found[f"{cut} {name}"]
    again, whole = case["again"], found["whole"]
    error = ERRORS.get(name, "")
    if error:
        assert error in again["error"]
        assert 'run_name or resume="new"' in again["error"]
        if cut == 2:
            assert same(case["after"]["weights"], whole["weights"])  # Nothing was half loaded, or written.
            assert case["after"]["seen"] == whole["seen"][cut:]
        return
    expected = planned(given, cut, processes)
    if given["epochs"] * 3 <= cut:
        assert again["seen"] == []
        assert same(again["weights"]["net"], case["first"]["weights"]["net"])
        return
    assert again["seen"] == expected[cut:]
    assert again["step"] == len(expected)
    factor = [(1 + math.cos(math.pi * step / len(expected))) / 2 for step in range(cut, len(expected))]
    assert again["rates"] == pytest.approx([given["rate"] * each for each in factor], rel=1e-9)
    if name == "nothing":
        assert same(again["weights"], whole["weights"])
    if name == "frozen":
        assert torch.equal(again["weights"]["net"]["0.weight"], case["first"]["weights"]["net"]["0.weight"])
    if name == "decay":
        assert again["weights"]["optimizer"]["param_groups"][0]["weight_decay"] == 0.4
