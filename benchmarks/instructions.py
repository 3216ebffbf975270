"""What a step of the trainer consists of, in instructions: python -m benchmarks instructions (needs valgrind)."""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.rounds import Figure, Question, Result, Runs
from benchmarks.step_overhead import SIZES, Perceptron, make, ready
from helios_lite import DataModule, Trainer
from helios_lite.engine.batches import Batch
from helios_lite.engine.loaders import make_loader
from helios_lite.engine.throughput import Throughput

FEW, MANY = 100, 300  # Steps: the difference is free of what happens once.

BARE, FULL = "log points every 50 steps", "a validation with a tenth of the batches"

Steps = Callable[[int], None]


class ByHand(Perceptron):
    """A model whose step is that of the loop by hand."""

    def train_step(self, batch: Any, state: Any) -> None:
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def model_of(kind: type[Perceptron], watched: bool = False) -> Perceptron:
    model = kind(*SIZES, watched=watched)
    model.setup()
    return model


def batches_of(steps: int) -> Iterator[Batch]:
    return make_loader(ready(steps), "train", 0).epoch(0).batches


def by_hand(steps: int) -> None:
    net, optimizer = make(*SIZES)
    for x, y in ready(steps):
        loss = F.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def by_method(steps: int) -> None:
    model = model_of(ByHand)
    for batch in ready(steps):
        model.train_step(batch, None)


def by_generator(steps: int) -> None:
    model = model_of(ByHand)
    for data, _, _, _, _, _ in batches_of(steps):
        model.train_step(data, None)


def by_clock(steps: int) -> None:
    model = model_of(ByHand)
    for data, _, _, _, _, _ in Throughput().timed(batches_of(steps)):
        model.train_step(data, None)


def by_precision(steps: int) -> None:
    model = model_of(Perceptron)
    for data, _, _, _, _, _ in Throughput().timed(batches_of(steps)):
        model.train_step(data, None)  # type: ignore[arg-type]


def by_trainer(*, logs: bool = False, writes: bool = False, validates: bool = False, **options: Any) -> Steps:
    def train(steps: int) -> None:
        data = DataModule(train=ready(steps), valid=ready(steps // 10) if validates else None)
        with tempfile.TemporaryDirectory() as folder:
            root = folder if writes else None
            options.update(progress=False, print_banner=False, sanity_batches=0, save_every_epochs=None)
            trainer = Trainer(max_epochs=1, root=root, log_level="quiet", **options)
            trainer.fit(Perceptron(*SIZES, watched=logs), data)

    return train


RUNGS: dict[str, Steps] = {
    "the loop by hand": by_hand,
    "the step is a method": by_method,
    "batches come from a generator, with their sizes": by_generator,
    "the wait for each batch is timed": by_clock,
    "backward and optimizer_step are the model's": by_precision,
    "the trainer's loop: counters, what the model is told, what is due": by_trainer(log_every_steps=10**9),
    BARE: by_trainer(),
    "a log in every step": by_trainer(logs=True),
    "a row of metrics.jsonl per log point": by_trainer(logs=True, writes=True),
    FULL: by_trainer(logs=True, writes=True, validates=True),
    "the watch for hangs, hang_minutes=30": by_trainer(logs=True, writes=True, validates=True, hang_minutes=30),
}


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
        command = ["valgrind", "-q", *options, sys.executable, "-m", "benchmarks.instructions"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        totals: dict[str, dict[int, int]] = {}
        for line in output.splitlines():
            process, steps, name = line.split(" ", 2)
            total = re.search(r"^(?:totals|summary): (\d+)", Path(folder, process).read_text(), re.MULTILINE)
            assert total is not None
            totals.setdefault(name, {})[int(steps)] = int(total[1])
    return {name: (by_steps[MANY] - by_steps[FEW]) / (MANY - FEW) for name, by_steps in totals.items()}


def figures(runs: Runs) -> list[Figure]:
    (counts,) = runs["counted"]
    names = list(RUNGS)
    lines = [Figure(names[0], "instructions", [counts[names[0]]])]
    for before, name in itertools.pairwise(names):
        lines.append(Figure(f"+ {name}", "instructions", [counts[name] - counts[before]]))
    for name in (BARE, FULL):
        share = 100 * (counts[name] / counts[names[0]] - 1)
        lines.append(Figure(f"all up to: {name}", "% of the loop by hand", [share]))
    return lines


QUESTION = Question(
    name="instructions",
    title="What does a step consist of?",
    timed=f"""
    The training of the section before, counted and not timed: the instructions of a step, as valgrind's callgrind
    counts them (those of {MANY} steps less those of {FEW}, in forks of one process, of which each has its own random
    hashes: two counts differ by up to a thousand). Each line adds one part of the trainer to the line before. The loop
    by hand has no validation, so that its line has the forward passes too.
    """,
    remains="""
    Counts tell what a clock cannot, because they do not depend on the machine's noise. The parts that stay are
    these: a step that is a method of a model, and not lines of the loop; a batch that comes with its number of
    samples, which weights and metrics need; a look at the clock, for the share of waiting; the methods `backward`
    and `optimizer_step`, which ask for precision, windows, weights, clipping and reports; the counters, and asking
    whether anything is due. A step of the loop by hand runs some four instructions in a nanosecond. Those of the
    trainer run at a third to a half of this speed, as the section before shows, because PyTorch's operations have
    displaced their code and data from the fast caches. Until 2026-11-25 a loader whose end is known, such as a
    list, was treated as if it was not, so that the learning rates were read in every step: 8,000 instructions.
    """,
    rounds=1,
    variants={"counted": counted},
    figures=figures,
    timeout=600,
)

if __name__ == "__main__":
    count()
