"""How long a resumed run takes to its first batch, near and far: python -m benchmarks.resume_position"""

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.in_memory import order
from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, ratios, weights
from benchmarks.step_overhead import Perceptron, make
from helios_lite import DataModule, Split, Trainer, TrainingState

NEAR, FAR, BATCH, AFTER = 10, 1_000_000, 8, 3
SAMPLES = (FAR + 100) * BATCH
SIZES = (8, 8)


class Numbers(Dataset):
    """Samples made of their index, so that any number of them needs no memory."""

    def __init__(self, length: int = SAMPLES) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.full((SIZES[0],), int(index) / self.length)
        return x, 1 - x


class Resumed(Perceptron):
    """Notes when its first batch is there."""

    first: float | None = None

    def on_training_batch_start(self, state: TrainingState) -> None:
        self.first = self.first or time.perf_counter()


def checkpoint(folder: str, batch: int) -> Path:
    """Return a checkpoint after so many batches of the epoch: counters are all that tells one from another."""
    data = DataModule(train=Split(Numbers(), BATCH, shuffle=True))
    trainer = Trainer(max_steps=NEAR, root=folder, progress=False, print_banner=False)
    written = trainer.fit(Perceptron(*SIZES), data).last_checkpoint
    content = torch.load(written, weights_only=True)
    content["state"].update(epoch_batch=batch, epoch_samples=batch * BATCH, batch=batch, step=batch)
    path = Path(folder, "resumed.pth")
    torch.save(content, path)
    return path


def trainer(batch: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(folder, batch)
        model = Resumed(*SIZES)
        data = DataModule(train=Split(Numbers(), BATCH, shuffle=True))
        start = time.perf_counter()
        options = {"root": None, "progress": False, "print_banner": False}
        Trainer(max_steps=batch + AFTER, resume=path, **options).fit(model, data)
    assert model.first is not None
    return {"case": batch, "seconds": model.first - start, "weights": weights(*model.net.parameters())}


def hand(batch: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(folder, batch)
        start = time.perf_counter()
        content = torch.load(path, weights_only=True)
    net, optimizer = make(*SIZES)
    net.load_state_dict(content["model"]["net"])
    optimizer.load_state_dict(content["model"]["optimizer"])
    left = torch.randperm(SAMPLES, generator=order(0))[batch * BATCH :]
    batches = iter(DataLoader(Numbers(), batch_size=BATCH, sampler=left.numpy()))
    x, y = next(batches)
    seconds = time.perf_counter() - start
    for _ in range(AFTER):
        torch.nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        x, y = next(batches)
    return {"case": batch, "seconds": seconds, "weights": weights(*net.parameters())}


def figures(runs: Runs) -> list[Figure]:
    return [
        Figure(f"trainer: batch {FAR:,} / batch {NEAR}", "ratio", ratios(runs, "far", "near", "seconds"), target=1.1),
        Figure(f"batch {NEAR}: trainer - by hand", "ms", differences(runs, "near", "near by hand", "seconds", 1e3)),
        Figure(f"batch {FAR:,}: trainer - by hand", "ms", differences(runs, "far", "far by hand", "seconds", 1e3)),
        Figure(f"trainer, batch {NEAR}", "ms", each(runs, "near", "seconds", 1e3)),
        Figure(f"trainer, batch {FAR:,}", "ms", each(runs, "far", "seconds", 1e3)),
    ]


QUESTION = Question(
    name="resume_position",
    title="What does it cost to resume far into an epoch?",
    timed=f"""
    From the call of `fit` to the first on_training_batch_start, of a checkpoint at batch {NEAR} and one at batch
    {FAR:,} of a shuffled epoch of {SAMPLES:,} samples, batch {BATCH}. By hand: torch.load, `randperm`, and a
    DataLoader over what is left of it. {AFTER} more steps then show that both are at the same sample.
    """,
    remains="""
    Drawing the order of the whole epoch, wherever it goes on; and reading the checkpoint twice, once for the
    checksums that torch.load does not compare.
    """,
    rounds=3,
    variants={
        "near": lambda: trainer(NEAR),
        "far": lambda: trainer(FAR),
        "near by hand": lambda: hand(NEAR),
        "far by hand": lambda: hand(FAR),
    },
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
