"""Whether a validation's memory grows with its number of batches: python -m benchmarks.validation_memory"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, weights
from benchmarks.step_overhead import Perceptron, make, ready
from helios_lite import DataModule, Trainer

EARLY, BATCHES = 1_000, 30_000
SIZES = (8, 8)


class Many:
    """The same batch again and again: what grows is not the data."""

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        (batch,) = ready(1)
        for _ in range(BATCHES):
            yield batch


class Watched(Perceptron):
    """Notes the memory in use early in the validation and at its end."""

    early = grown = 0
    start = seconds = 0.0

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self.start = time.perf_counter()

    def on_validation_batch_start(self, step: int) -> None:
        if step == EARLY:
            self.early = memory()

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self.grown = memory() - self.early
        self.seconds = time.perf_counter() - self.start


def memory() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def trainer() -> Result:
    model = Watched(*SIZES)
    trainer = Trainer(max_steps=1, root=None, progress=False, print_banner=False)
    metrics = trainer.validate(model, DataModule(valid=Many()), checkpoint=None)
    return {"grown": model.grown, "seconds": model.seconds, "weights": weights(torch.tensor([metrics["valid/loss"]]))}


def hand() -> Result:
    torch.set_num_threads(1)
    net, _ = make(*SIZES)
    early, total, start = 0, torch.zeros((), dtype=torch.float64), time.perf_counter()
    net.eval()
    with torch.no_grad():
        for i, (x, y) in enumerate(Many()):
            if i == EARLY:
                early = memory()
            total += F.mse_loss(net(x), y)
    grown, seconds = memory() - early, time.perf_counter() - start
    return {"grown": grown, "seconds": seconds, "weights": weights((total / BATCHES).float().reshape(1))}


def figures(runs: Runs) -> list[Figure]:
    per_batch = 1e6 / BATCHES
    return [
        Figure("trainer - by hand", "MB", differences(runs, "trainer", "hand", "grown", 1e-6), target=1),
        Figure("trainer", "MB", each(runs, "trainer", "grown", 1e-6)),
        Figure("trainer - by hand", "us/batch", differences(runs, "trainer", "hand", "seconds", per_batch)),
    ]


QUESTION = Question(
    name="validation_memory",
    title="Does a validation's memory grow with its number of batches?",
    timed=f"""
    A validation that logs its loss in each of {BATCHES:,} batches: the growth of the process's resident memory from
    batch {EARLY:,} to the end. By hand: the same forward passes and one running sum. Both must end with the same
    mean (1e-6); and the time of both is compared.
    """,
    remains="""
    Values are added to running totals; what remains of the growth is a few pages. Of the time, as timed alone: 2 us
    of `log`, 1 us for a batch of a foreign iterable and its size; in the loop, out of cold caches, it is more.
    """,
    rounds=3,
    variants={"trainer": trainer, "hand": hand},
    figures=figures,
    tolerance=1e-6,
)

if __name__ == "__main__":
    QUESTION.answer()
