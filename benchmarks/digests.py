"""What the digests in rows cost: python -m benchmarks.digests"""

import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils.data import TensorDataset

from benchmarks.rounds import Figure, Question, Result, Runs, each, weights
from benchmarks.step_overhead import BATCH, STEPS, Perceptron
from helios_lite import DataModule, Split, Trainer
from helios_lite.metrics.rows import DIGESTS, read_rows

PAIRS = 100  # Of epochs, one with digests and one without, in random order.
NETWORKS = {"Linear(8, 8)": (8, 8), "a perceptron of 0.6 million parameters": (8, 768, 768, 8)}
_SKIPPED = {
    "helios_lite.training.training_log.digest_of_batch": [],
    "helios_lite.training.training_log.digest_of_weights": None,
    "helios_lite.training.training_log.added": None,
    "helios_lite.loading.train_data.TrainData.take_digest": None,
}
"""The functions of the package that compute digests, and what they return where there is none."""


class Switched(Perceptron):
    """Logs its loss; has digests in every second epoch, or in every first one of two, by chance."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, watched=True)
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.order = random.Random(0)
        self.has_digests = self.is_second = False
        self.patches: list[Any] = []
        self.start: float | None = None

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.note_epoch()
        self.is_second = not self.is_second
        self.has_digests = not self.has_digests if not self.is_second else self.order.random() < 0.5
        if not self.has_digests:
            self.patches = [mock.patch(name, return_value=value) for name, value in _SKIPPED.items()]
            for patch in self.patches:
                patch.start()
        self.start = time.perf_counter()

    def on_training_end(self) -> None:
        self.note_epoch()

    def note_epoch(self) -> None:
        end = time.perf_counter()
        if self.start is not None:
            self.seconds[self.has_digests].append(end - self.start)
        while self.patches:
            self.patches.pop().stop()


def rows_without(model: Switched, rows: list[dict[str, Any]]) -> Iterator[bool]:
    """Yield of each row of an epoch with 250 steps whether it has no digests."""
    for row in rows:
        if row["step"] <= STEPS * len(model.seconds[True] + model.seconds[False]):
            yield not any(name in row for name in DIGESTS)


def measured(sizes: tuple[int, ...]) -> Result:
    torch.set_num_threads(1)
    model = Switched(*sizes)
    x, y = torch.randn(2, BATCH * STEPS, 8, generator=torch.Generator().manual_seed(0))
    data = DataModule(Split(TensorDataset(x, y), BATCH, shuffle=True))
    with tempfile.TemporaryDirectory() as root:
        options: dict[str, Any] = {"root": root, "save_every_epochs": None, "keep_last": 0, "log_level": "quiet"}
        result = Trainer(max_epochs=2 * PAIRS, progress=False, print_banner=False, **options).fit(model, data)
        rows = read_rows(result.run_folder / "metrics.jsonl")  # type: ignore[operator]
    without = [*rows_without(model, rows)]
    if not 0.4 < sum(without) / len(without) < 0.6:
        raise RuntimeError(f"{sum(without)} of {len(without)} rows have no digests")
    ratios = [a / b for a, b in zip(model.seconds[True], model.seconds[False], strict=True)]
    step = statistics.median(model.seconds[False]) * 1e6 / STEPS
    return {
        "ratio": statistics.median(ratios),
        "step": step,
        "weights": weights(*model.net.parameters()),
        "case": str(sizes),
    }


def figures(runs: Runs) -> list[Figure]:
    found = []
    for name in NETWORKS:
        found += [
            Figure(f"{name}: with digests / without", "ratio", each(runs, name, "ratio"), target=1.01),
            Figure(f"{name}: a step without", "us/step", each(runs, name, "step")),
        ]
    return found


QUESTION = Question(
    name="digests",
    title="What do the digests in rows cost?",
    timed=f"""
    A perceptron and SGD, batch {BATCH}, a shuffled Split of tensors in memory, a `log` in every step, one thread, a row
    in metrics.jsonl every 50 steps. In one training of {2 * PAIRS} epochs of {STEPS} steps one epoch of two, by chance
    the first or the second one, has rows with digests of samples, batch and weights; in the other one the functions
    that compute them are replaced by one that returns nothing. A round's figure is the median of the ratios of the
    pairs.
    """,
    remains="""
    A row reads the batch and the weights once. For a small network it is the number of PyTorch's operations that
    counts, and for a large one the time to read its weights, of which a step reads and writes a multiple.
    """,
    rounds=3,
    variants={name: (lambda sizes=sizes: measured(sizes)) for name, sizes in NETWORKS.items()},  # type: ignore[misc]
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
