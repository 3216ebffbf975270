"""How long training stands still for a checkpoint: python -m benchmarks.checkpoint_stall"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import Figure, Question, Result, Runs, each, ratios, weights
from helios_lite import DataModule, Model, Trainer, TrainingState

NUMBERS, SAVES = 25_000_000, 3  # Weights and AdamW's two averages: 300 MB of float32.


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = nn.ParameterList([torch.linspace(-1, 1, NUMBERS)])
    return net, torch.optim.AdamW(net.parameters(), lr=0.01)


def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
    return (net[0][: len(batch)] * batch).sum()


class Large(Model):
    """Large state, little work; it notes how long the loop takes from one batch to the next."""

    def __init__(self, folder: Path) -> None:
        super().__init__("large")
        self.folder = folder
        self.stalls: list[float] = []
        self.ended: float | None = None

    def setup(self, fast_init: bool = False) -> None:
        net, self.optimizer = make()
        self.net = self.parallelize(net)

    def train_step(self, batch: Tensor, state: TrainingState) -> None:
        while state.step > 0 and not list(self.folder.rglob(f"*_iter_{state.step}*.pth")):
            time.sleep(0.01)
        self.backward(loss_of(self.net, batch))
        self.optimizer_step(self.optimizer)

    def on_training_batch_start(self, state: TrainingState) -> None:
        if self.ended is not None:
            self.stalls.append(time.perf_counter() - self.ended)

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        self.ended = time.perf_counter()


def trainer(**options: Any) -> Result:
    with tempfile.TemporaryDirectory() as root:
        model = Large(Path(root))
        quiet = {"progress": False, "print_banner": False, "save_every_epochs": None}
        trainer = Trainer(max_steps=SAVES + 1, save_every_steps=1, root=root, **quiet, **options)
        trainer.fit(model, DataModule(train=[torch.ones(8)] * (SAVES + 1)))
        return {"seconds": statistics.median(model.stalls), "weights": weights(*model.net.parameters())}


def hand(durable: bool) -> Result:
    net, optimizer = make()
    stalls = []
    with tempfile.TemporaryDirectory() as folder:
        for step in range(SAVES + 1):
            loss_of(net, torch.ones(8)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == SAVES:
                break
            start = time.perf_counter()
            with Path(folder, f"{step}.pt").open("wb") as file:
                torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
                stalls.append(time.perf_counter() - start)
                file.flush()
                os.fsync(file.fileno())  # Every save finds the disk at rest.
            Path(folder, f"{step}.pt").unlink()
    return {"seconds": statistics.median(stalls), "weights": weights(*net.parameters())}


def figures(runs: Runs) -> list[Figure]:
    return [
        Figure("async_save=True / torch.save", "ratio", ratios(runs, "async", "plain", "seconds"), target=0.25),
        Figure("async_save=False / torch.save", "ratio", ratios(runs, "sync", "plain", "seconds")),
        Figure("async_save=False / torch.save and fsync", "ratio", ratios(runs, "sync", "durable", "seconds")),
        Figure("torch.save", "ms", each(runs, "plain", "seconds", 1e3)),
        Figure("torch.save and fsync", "ms", each(runs, "durable", "seconds", 1e3)),
    ]


QUESTION = Question(
    name="checkpoint_stall",
    title="How long does training stand still for a checkpoint?",
    timed=f"""
    300 MB of state: {NUMBERS:,} weights and AdamW's averages, saved after every step; the median of {SAVES} saves.
    Trainer: from on_training_batch_end to the next on_training_batch_start, each after the file of the save before
    is there (as if saves were further apart than a write takes). By hand: `torch.save` to an open file, which
    leaves the data in the system's cache, and the same with fsync, which the trainer always does.
    """,
    remains="""
    In the background, a copy of the state in memory: 156 ms into new memory, most of which is the system handing
    out pages, where copying into pages that are in use takes 25 ms. In the foreground, writing the file and waiting
    until it is on the disk, which torch.save alone does not.
    """,
    rounds=3,
    variants={
        "plain": lambda: hand(durable=False),
        "async": lambda: trainer(async_save=True),
        "sync": lambda: trainer(async_save=False),
        "durable": lambda: hand(durable=True),
    },
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
