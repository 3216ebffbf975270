"""What a step costs when two processes share a network: python -m benchmarks.sharded_steps"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

from benchmarks.rounds import Figure, Question, Result, Runs, each, ratios, weights
from benchmarks.sharded import environment, join, make, noted, sharded
from helios_lite import DataModule, Model, Trainer, TrainingState

PROCESSES, BLOCKS, WIDTH, SAMPLES, STEPS, FIRST = 2, 8, 512, 16, 120, 20


def batch() -> Tensor:
    return torch.ones(SAMPLES, WIDTH)


class Timed(Model):
    """Notes when its steps begin."""

    def __init__(self, folder: Path) -> None:
        super().__init__("timed")
        self.folder = folder
        self.times: list[float] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(make(BLOCKS, WIDTH), blocks=(nn.Linear,))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)

    def train_step(self, batch: Tensor, state: TrainingState) -> None:
        self.times.append(time.perf_counter())
        self.backward(self.net(batch).square().mean())
        self.optimizer_step(self.optimizer)

    def on_training_end(self) -> None:
        note(self.folder, self.global_rank, self.times)


def note(folder: Path, rank: int, times: list[float], **more: Any) -> None:
    """Write the median time of a step; the first ones make the states of the optimizer, and memory for gathering."""
    seconds = [end - start for start, end in zip(times[FIRST:], times[FIRST + 1 :], strict=False)]
    found = {"step_seconds": statistics.median(seconds), **more}
    (folder / f"{rank}.json").write_text(json.dumps(found))


def trainer() -> Result:
    environment()
    with tempfile.TemporaryDirectory() as name:
        model = Timed(Path(name))
        Trainer(
            root=None,
            max_steps=STEPS,
            devices=PROCESSES,
            accelerator="cpu",
            strategy="fsdp",
            progress=False,
            print_banner=False,
        ).fit(model, DataModule(train=[batch()] * PROCESSES * STEPS))
        return noted(Path(name), 1) | {"weights": weights(next(model.net.parameters()))}


def hand() -> Result:
    environment()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_process, (folder,), nprocs=PROCESSES)
        return noted(Path(folder), 1)


def one_process(rank: int, folder: str) -> None:
    join(rank, folder, PROCESSES)
    net, optimizer = sharded(make(BLOCKS, WIDTH))
    times = []
    for _ in range(STEPS):
        times.append(time.perf_counter())
        net(batch()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    end = weights(next(net.parameters()).full_tensor())
    note(Path(folder), rank, times, weights=end)
    distributed.destroy_process_group()


def figures(runs: Runs) -> list[Figure]:
    return [
        Figure("time of a step / by hand", "ratio", ratios(runs, "trainer", "hand", "step_seconds"), 1.02),
        Figure("a step by hand", "ms", each(runs, "hand", "step_seconds", 1e3)),
    ]


QUESTION = Question(
    name="sharded_steps",
    title="What does a step cost when two processes share a network?",
    timed=f"""
    {BLOCKS} linear layers of {WIDTH} x {WIDTH}, with AdamW, sharded by FSDP2 over {PROCESSES} processes of one thread
    each (gloo), {SAMPLES} samples each. Time is the median of {STEPS - FIRST - 1} steps on rank 1, from the beginning
    of one to that of the next.
    """,
    remains="""
    What the trainer does around a step, which does not grow with the network, and the comparison of the
    order in which the ranks have gathered, which goes with the exchange that is there anyway.
    """,
    rounds=9,
    variants={"trainer": trainer, "hand": hand},
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
