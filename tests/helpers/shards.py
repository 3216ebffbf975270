"""Random trainings of sharded networks: programs, optimizers and formats, cut and resumed by other ranks."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten
from torch.utils.data import Subset

from helios_lite import DataModule, Model, Split
from helios_lite.processes.world import World
from helpers.compare import timeless, weights
from helpers.models import quiet
from helpers.optimizers import OPTIMIZERS
from helpers.situations import Samples, Situation, situations

STEPS, PER_STEP = 4, 24  # An epoch has two, the second of fewer samples.
PLACES = [("ddp", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 3), ("hsdp", 4)]
"""Strategies with a number of ranks: hsdp with two machines of two processes each."""
SHARDED = PLACES[2:]
EVEN = {"TwoBackwards", "OwnLoop", "ByHand", "SecondByHand"}
"""Programs with backward passes of their own, which do not count the samples of a rank."""
PROGRAMS = {each.__name__: each for each in situations() if not each.only_replicas}
WORDS = (
    "LBFGS makes one vector of all parameters",
    ".step computes with the parameters of a sharded network",
    "read the part of one rank; let every rank call value.full_tensor()",
    "is of a model that is made otherwise: net.1.weight",  # What replicas have added cannot be added to shards.
)
"""What errors say of what cannot be sharded."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A training.

    Attributes:
        situation: the name of the program.
        optimizer: the name of the optimizer, in place of that of the program if this lets it be chosen.
        precision: the format.
        first: strategy and ranks until the cut; None if it is not cut.
        last: strategy and ranks from there on.
        cut: the step after which it is cut.
    """

    situation: str
    optimizer: str
    precision: str
    first: tuple[str, int] | None
    last: tuple[str, int]
    cut: int


def make_cell(seed: int, number: int) -> Cell:
    """Return a cell, always the same for the same arguments; at least one part of it is sharded."""
    chance = random.Random(f"{seed}/{number}")
    program = PROGRAMS[chance.choice([*PROGRAMS])]
    simple = program.train_step is Situation.train_step
    precision = chance.choice(["fp32", "fp32", "bf16"]) if simple and program.like_one else "fp32"
    optimizer = chance.choice([*OPTIMIZERS])
    first, last = chance.choice([*PLACES, None]), chance.choice(PLACES)
    if first is None or first not in SHARDED or optimizer == "LBFGS":
        last = chance.choice(SHARDED)
    if optimizer == "LBFGS":  # One process needs a closure, which is another program.
        first = None
    if not program.like_one:  # A whole run of the same ranks is the reference.
        first = last
    return Cell(program.__name__, optimizer, precision, first, last, chance.randint(1, STEPS - 1))


def make_model(cell: Cell) -> Model:
    """Return the program of a cell."""
    base: Any = PROGRAMS[cell.situation]

    def sgd(self: Any, parameters: Any, lr: float = 0.05) -> torch.optim.Optimizer:
        return OPTIMIZERS[cell.optimizer](parameters)

    def loss(self: Any, *arguments: Any) -> Any:
        with self.autocast():
            return base.loss(self, *arguments).float()

    return type(base.__name__, (base,), {"sgd": sgd, "loss": loss})()


def run(cell: Cell, place: tuple[str, int], **options: Any) -> dict[str, Any]:
    """Train in this process and the others of the place; return what the run ends with, or the error."""
    if place[0] == "hsdp":
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    elif "WORLD_SIZE" in os.environ:
        os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]
    base, model = PROGRAMS[cell.situation], make_model(cell)
    valid = Split(Samples(), 6) if base.validates else None
    length = 36 if base.__name__ in EVEN or not base.like_one else 30
    dataset = Subset(Samples(), [index % 30 for index in range(length)])
    data = DataModule(Split(dataset, global_batch_size=PER_STEP, shuffle=True), valid)
    chosen = {"max_steps": STEPS, "sanity_batches": 0, "hang_minutes": 0.5, **base.options}
    chosen |= {"strategy": place[0], "save_every_epochs": None, **options}
    if chosen.get("precision", "fp32") == "fp32":
        chosen["precision"] = cell.precision
    try:
        result = quiet(**chosen).fit(model, data)
        return {**weights(model), "metrics": timeless(result.metrics)}
    except Exception as error:
        return {"error": "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])}


def distance(a: Any, b: Any) -> float:
    """Return the largest difference between the numbers of two results, infinite if they are made otherwise."""
    (mine, my_form), (others, form) = tree_flatten(a), tree_flatten(b)
    if my_form != form:
        return float("inf")
    largest = 0.0
    for x, y in zip(mine, others, strict=True):
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            if x.shape != y.shape or x.dtype != y.dtype:
                return float("inf")
            x, y = (torch.view_as_real(v) if v.is_complex() else v for v in (x, y))
            difference = (x.double() - y.double()).abs() / (1 + 10 * y.double().abs())
            largest = max([largest, *difference.nan_to_num(float("inf")).flatten().tolist()])
        elif isinstance(x, float) and isinstance(y, float):
            largest = max(largest, abs(x - y) / (1 + 10 * abs(y)))
        elif x != y:
            return float("inf")
    return largest


def is_in_words(cell: Cell, error: str) -> bool:
    """Return whether an error is that of a program or an optimizer that cannot be sharded, and says what to do."""
    expected = PROGRAMS[cell.situation].sharded
    return (expected is not None and expected in error) or any(text in error for text in WORDS)


def run_all(cells: dict[int, Cell], part: str, folder: Path, world: World) -> None:
    """Run a part of cells, their first or their last, on this rank; leave what each ends with."""
    for number, cell in cells.items():
        place = cell.first if part == "first" else cell.last
        assert place is not None
        options: dict[str, Any] = {"root": folder / str(number)}
        if part == "first":
            options["max_steps"] = cell.cut
        (folder / f"{number}-{part}.begun").touch()
        found = run(cell, place, **options)
        everywhere = world.gather(found.get("error"))
        if world.is_main:
            if len(set(everywhere)) > 1:
                found = {"error": f"the ranks differ: {everywhere}"}
            torch.save(found, folder / f"{number}-{part}.part")
            (folder / f"{number}-{part}.part").rename(folder / f"{number}-{part}.pt")


@functools.cache
def by_one(situation: str, optimizer: str, precision: str) -> dict[str, Any]:
    """Return what one process ends with, without a cut."""
    return run(Cell(situation, optimizer, precision, None, ("ddp", 1), 0), ("ddp", 1))
