"""What a step of the trainer consists of, and why it stays: python -m benchmarks.step_parts (needs valgrind)."""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.rounds import Figure, Question, Result, Runs, each
from benchmarks.step_overhead import SIZES, STEPS, Loops, Perceptron, beside, epoch_by_hand, make, ready
from helios_lite import DataModule, Trainer
from helios_lite.loading.loaders import make_loader
from helios_lite.metrics.measurements import Throughput

FEW, MANY = 100, 300  # Steps: the difference is free of what happens once.
NEVER = 10**9

BARE, FULL = "log points every 50 steps", "a validation with a tenth of the batches"


class ByHand(Perceptron):
    """A model whose step is that of the loop by hand."""

    def train_step(self, batch: Any, state: Any) -> None:
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Stages:
    """Loops of which each has one part of the trainer more than the one before."""

    def __init__(self, steps: int) -> None:
        self.ready = ready(steps)
        self.net, self.optimizer = make(*SIZES)
        self.model, self.whole_model = ByHand(*SIZES), Perceptron(*SIZES)
        self.model.setup()
        self.whole_model.setup()
        self.loader = make_loader(self.ready, "train", 0)

    def by_hand(self) -> None:
        epoch_by_hand(self.net, self.optimizer, self.ready)

    def by_method(self) -> None:
        model = self.model
        for batch in self.ready:
            model.train_step(batch, None)

    def by_generator(self) -> None:
        model = self.model
        for data, _, _, _, _, _ in self.loader.epoch(0).batches:
            model.train_step(data, None)

    def by_clock(self) -> None:
        model = self.model
        for data, _, _, _, _, _ in Throughput().timed(self.loader.epoch(0).batches):
            model.train_step(data, None)

    def by_precision(self) -> None:
        model = self.whole_model
        for data, _, _, _, _, _ in Throughput().timed(self.loader.epoch(0).batches):
            model.train_step(data, None)  # type: ignore[arg-type]


def by_trainer(
    *, logs: bool = False, writes: bool = False, validates: bool = False, **options: Any
) -> Callable[[int], None]:
    def train(steps: int) -> None:
        data = DataModule(train=ready(steps), valid=ready(steps // 10) if validates else None)
        with tempfile.TemporaryDirectory() as folder:
            off = {"progress": False, "print_banner": False, "sanity_batches": 0, "save_every_epochs": None}
            trainer = Trainer(max_epochs=1, root=folder if writes else None, log_level="quiet", **off, **options)
            trainer.fit(Perceptron(*SIZES, watched=logs), data)

    return train


def stage(name: str) -> Callable[[int], None]:
    return lambda steps: getattr(Stages(steps), name)()


HAND, LOOP = "the loop by hand", "the trainer's loop: counters, what the model is told, what is due"
TIMED = {
    "the step is a method": "by_method",
    "batches come from a generator, with their sizes": "by_generator",
    "the wait for each batch is timed": "by_clock",
    "backward and optimizer_step are the model's": "by_precision",
}

RUNGS: dict[str, Callable[[int], None]] = {
    HAND: stage("by_hand"),
    **{what: stage(name) for what, name in TIMED.items()},
    LOOP: by_trainer(log_every_steps=NEVER),
    BARE: by_trainer(),
    "a log in every step": by_trainer(logs=True),
    "a row of metrics.jsonl per log point": by_trainer(logs=True, writes=True),
    FULL: by_trainer(logs=True, writes=True, validates=True),
    "the watch for hangs, hang_minutes=30": by_trainer(logs=True, writes=True, validates=True, hang_minutes=30),
}


def timed(log_every_steps: int) -> Result:
    """Return the microseconds that each stage and the trainer add to a step by hand."""
    torch.set_num_threads(1)
    stages = Stages(STEPS)
    loops = Loops(hand=stages.by_hand, **{name: getattr(stages, name) for name in TIMED.values()})
    beside(loops, stages.ready, log_every_steps=log_every_steps)
    return loops.microseconds()


def count() -> None:
    """Run every rung in a fork of this process, which is running under valgrind and has imported everything."""
    torch.set_num_threads(1)
    for rung in RUNGS.values():
        rung(10)
    for name, rung in RUNGS.items():
        for steps in (FEW, MANY):
            process = os.fork()
            if process == 0:
                rung(steps)
                os._exit(0)
            os.waitpid(process, 0)
            print(process, steps, name, flush=True)


def counted() -> Result:
    """Return the instructions of a step in every rung."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--tool=callgrind", f"--callgrind-out-file={folder}/%p"]
        command = ["valgrind", "-q", *options, sys.executable, "-m", "benchmarks.step_parts", "count"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        totals: dict[str, dict[int, int]] = {}
        for line in output.splitlines():
            process, steps, name = line.split(" ", 2)
            total = re.search(r"^(?:totals|summary): (\d+)", Path(folder, process).read_text(), re.MULTILINE)
            assert total is not None
            totals.setdefault(name, {})[int(steps)] = int(total[1])
    return {name: (by_steps[MANY] - by_steps[FEW]) / (MANY - FEW) for name, by_steps in totals.items()}


def figures(runs: Runs) -> list[Figure]:
    counts = runs["counted"][0]
    names = list(RUNGS)
    lines = [
        Figure(HAND, "us/step", each(runs, "timed", "hand")),
        Figure(f"+ {next(iter(TIMED))}", "us/step", each(runs, "timed", "by_method")),
    ]
    for (_, before), (what, name) in itertools.pairwise(TIMED.items()):
        lines.append(Figure(f"+ {what}", "us/step", [run[name] - run[before] for run in runs["timed"]]))
    lines.append(Figure(f"+ {LOOP}", "us/step", [run["trainer"] - run["by_precision"] for run in runs["timed"]]))
    pairs = zip(runs["with log points"], runs["timed"], strict=True)
    lines.append(Figure(f"+ {BARE}", "us/step", [a["trainer"] - b["trainer"] for a, b in pairs]))
    lines.append(Figure(f"{HAND}, counted", "instructions", [counts[HAND]]))
    for before, name in itertools.pairwise(names):
        lines.append(Figure(f"+ {name}", "instructions", [counts[name] - counts[before]]))
    for name in (BARE, FULL):
        share = 100 * (counts[name] / counts[HAND] - 1)
        lines.append(Figure(f"all up to: {name}", "% of the loop by hand", [share]))
    return lines


QUESTION = Question(
    name="step_parts",
    title="What does a step consist of?",
    timed=f"""
    The training of the section before, to which one part of the trainer after the other is added. Each line is what
    its part adds to the line before. First in microseconds: epochs of all lines take turns in one process, in random
    order. Then in instructions, as valgrind's callgrind counts them (those of {MANY} steps less those of {FEW}, in
    forks of one process, of which each has its own random hashes: two counts differ by up to a thousand). The loop by
    hand has no validation, so that its line has the forward passes too.
    """,
    remains="""
    All of it, because each part is what makes the trainer one: a step that is a method of a model, and not lines of
    the loop; a batch that comes with its number of samples, which weights and metrics need; a look at the clock, for
    the share of waiting; the methods `backward` and `optimizer_step`, which ask for precision, windows, weights,
    clipping and reports; the counters, and asking whether anything is due. A step of the loop by hand runs some six
    instructions in a nanosecond, and those of the trainer run at a third of this speed, because PyTorch's operations
    have displaced their code and data from the fast caches. So a part costs what it touches, and not what it
    computes: a loop in which `backward` and `optimizer_step` ask for nothing would save 2 us, and a size that is not
    asked for 1.5 us. That would be two special cases for 3 us, and the target of 5 us still missed.
    """,
    rounds=1,
    variants={"timed": lambda: timed(NEVER), "with log points": lambda: timed(50), "counted": counted},
    figures=figures,
    timeout=600,
)

if __name__ == "__main__":
    count() if sys.argv[1:] == ["count"] else QUESTION.answer()
