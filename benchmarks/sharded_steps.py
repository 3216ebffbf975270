"""What a step costs when two processes share a network: python -m benchmarks.sharded_steps"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.rounds import Figure, Question, Result, Runs, each
from benchmarks.sharded import environment, make, noted, sharded
from helios_lite import DataModule, Model, Trainer, TrainingState

PROCESSES, BLOCKS, WIDTH, SAMPLES, TURNS, STEPS = 2, 8, 1024, 64, 16, 8


def batch() -> Tensor:
    return torch.ones(SAMPLES, WIDTH)


class Turns(Model):
    """Trains `STEPS` steps by hand, and then as many by the trainer, in turns, of two networks that are alike.

    So the same processes, connections and state of the machine measure both; a step by gloo varies by a quarter from
    one start to the next.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("turns")
        self.folder = folder
        self.by_hand: list[float] = []  # Seconds of a step, of each turn.
        self.by_trainer: list[float] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(make(BLOCKS, WIDTH), blocks=(nn.Linear,))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)

    def on_training_start(self) -> None:
        self.other = sharded(make(BLOCKS, WIDTH))  # After the check that all networks were passed to parallelize.

    def train_step(self, batch: Tensor, state: TrainingState) -> None:
        if state.step % STEPS == 0:
            if state.step > 0:
                self.by_trainer.append((time.perf_counter() - self.began) / STEPS)
            self.turn_by_hand()
            self.began = time.perf_counter()
        self.backward(self.net(batch).square().mean())
        self.optimizer_step(self.optimizer)

    def turn_by_hand(self) -> None:
        net, optimizer = self.other
        began = time.perf_counter()
        for _ in range(STEPS):
            net(batch()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        self.by_hand.append((time.perf_counter() - began) / STEPS)

    def on_training_end(self) -> None:
        pairs = zip(self.net.parameters(), self.other[0].parameters(), strict=True)
        if not all(torch.equal(p.to_local(), other.to_local()) for p, other in pairs):
            raise RuntimeError("the trainer and the loop by hand end with different weights")
        turns = list(zip(self.by_trainer, self.by_hand, strict=False))[1:]  # The first makes states and memory.
        found = {
            "ratio": statistics.median(a / b for a, b in turns),
            "added_seconds": statistics.median(a - b for a, b in turns),
            "hand_seconds": statistics.median(b for _, b in turns),
        }
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(found))


def turns() -> Result:
    environment()
    with tempfile.TemporaryDirectory() as name:
        Trainer(
            root=None,
            max_steps=TURNS * STEPS,
            devices=PROCESSES,
            accelerator="cpu",
            strategy="fsdp",
            progress=False,
            print_banner=False,
        ).fit(Turns(Path(name)), DataModule(train=[batch()] * PROCESSES * TURNS * STEPS))
        return noted(Path(name), 1)


def figures(runs: Runs) -> list[Figure]:
    return [
        Figure("time of a step / by hand", "ratio", each(runs, "turns", "ratio"), 1.02),
        Figure("added to a step", "ms", each(runs, "turns", "added_seconds", 1e3)),
        Figure("a step by hand", "ms", each(runs, "turns", "hand_seconds", 1e3)),
    ]


QUESTION = Question(
    name="sharded_steps",
    title="What does a step cost when two processes share a network?",
    timed=f"""
    {BLOCKS} linear layers of {WIDTH} x {WIDTH}, with AdamW, sharded by FSDP2 over {PROCESSES} processes of one thread
    each (gloo), {SAMPLES} samples each. The same processes train two such networks: {STEPS} steps by hand and {STEPS}
    by the trainer, {TURNS - 2} times in turn; the median of these pairs, on rank 1. Both end with the same bits.
    """,
    remains="""
    What the trainer does around a step, which does not grow with the network: most of it is one all-reduce of two
    integers before the update, by which the ranks compare what they have gathered, in what order.
    """,
    rounds=5,
    variants={"turns": turns},
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
