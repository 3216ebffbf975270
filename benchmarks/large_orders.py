"""What a shuffled order costs that is too long to keep, and what blocks of it do: python -m benchmarks.large_orders"""

import functools
import mmap
import os
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.in_memory import order
from benchmarks.resume_position import Numbers, Resumed
from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, ratios
from helios_lite import DataModule, Model, Split, Trainer, TrainingState

SIZES = {"1e4": 10**4, "1e8": 10**8, "1e10": 10**10}
BATCH, BLOCK = 8, 256
QUIET = {"root": None, "progress": False, "print_banner": False, "accelerator": "cpu"}
ROWS, ROW, PART = 2**21, 1024, 8  # Of the file: samples, bytes a sample, and which part of the epoch is read.
CLASSES, SAMPLES, WIDTH, SORTED_BLOCK = 10, 2**19, 16, 64  # Of the data sorted by class.


# The first batch.


def peak() -> float:
    """Return the largest memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def first_batch(length: int, is_resumed: bool = False) -> Result:
    small = DataModule(train=Split(Numbers(100), BATCH, shuffle=True))
    Trainer(max_steps=3, **QUIET).fit(Resumed(8, 8), small)  # What a first call imports is another question.
    with tempfile.TemporaryDirectory() as folder:
        path: str | Path = "never"
        if is_resumed:
            data = DataModule(train=Split(Numbers(length), BATCH, shuffle=True))
            options = {**QUIET, "root": folder}
            written = Trainer(max_steps=3, **options).fit(Resumed(8, 8), data).last_checkpoint
            content = torch.load(written, weights_only=True)
            batch = length // BATCH - 100
            content["state"].update(epoch_batch=batch, epoch_samples=batch * BATCH, batch=batch, step=batch)
            path = Path(folder, "resumed.pth")
            torch.save(content, path)
        model, steps = Resumed(8, 8), batch + 3 if is_resumed else 3
        data = DataModule(train=Split(Numbers(length), BATCH, shuffle=True))
        before, start = peak(), time.perf_counter()
        Trainer(max_steps=steps, resume=path, **QUIET).fit(model, data)
    assert model.first is not None
    return {"seconds": model.first - start, "memory": peak() - before}


def first_batch_by_hand(length: int) -> Result:
    before, start = peak(), time.perf_counter()
    next(
        iter(DataLoader(Numbers(length), batch_size=BATCH, sampler=torch.randperm(length, generator=order(0)).numpy()))
    )
    return {"seconds": time.perf_counter() - start, "memory": peak() - before}


# What is read of a file.


class Touched(Model):
    """Reads its batches and computes nothing."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.0)

    def train_step(self, batch: dict[str, Tensor], state: TrainingState) -> None:
        self.backward(self.net(batch["row"][:1, :1].float()).mean())
        self.optimizer_step(self.optimizer)


def read_from_disk() -> int:
    """Return the bytes that this process has read from a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def part_of_a_file(block: int | None) -> Result:
    """Read a part of a shuffled epoch of a file that is not in memory; return bytes read for each byte used."""
    import numpy

    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as folder:
        path = Path(folder, "rows.bin")
        with path.open("wb") as file:
            for _ in range(ROWS // 2**14):
                file.write(os.urandom(ROW) * 2**14)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        rows = numpy.memmap(path, numpy.uint8, "r", shape=(ROWS, ROW))
        rows._mmap.madvise(mmap.MADV_RANDOM)  # Page by page: how far a system reads ahead is another question.
        split = Split({"row": rows}, batch_size=256, shuffle=True, shuffle_block=block)
        before, start = read_from_disk(), time.perf_counter()
        Trainer(max_steps=ROWS // PART // 256, **QUIET).fit(Touched("touched"), DataModule(train=split))
        seconds = time.perf_counter() - start
    return {"read": (read_from_disk() - before) / (ROWS // PART * ROW), "seconds": seconds}


# What is learned of data that are sorted by class.


class Classifier(Model):
    """Two layers."""

    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        self.net = self.parallelize(net)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-3)

    def train_step(self, batch: list[Tensor], state: TrainingState) -> None:
        self.backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: list[Tensor], step: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


def sorted_by_class(**options: object) -> Result:
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31)
    centers = torch.randn(CLASSES, WIDTH, generator=order(1))
    y = torch.arange(SAMPLES) * CLASSES // SAMPLES
    x = centers[y] + 2 * torch.randn(SAMPLES, WIDTH, generator=generator)
    valid_y = torch.arange(20_000) % CLASSES
    valid = TensorDataset(centers[valid_y] + 2 * torch.randn(20_000, WIDTH, generator=order(2)), valid_y)
    data = DataModule(Split(TensorDataset(x, y), 256, **options), Split(valid, 2000))  # type: ignore[arg-type]
    seed = int.from_bytes(os.urandom(4))
    result = Trainer(max_epochs=1, seed=seed, **QUIET).fit(Classifier("classifier"), data)
    return {"accuracy": 100 * result.metrics["valid/accuracy"]}


def figures(runs: Runs) -> list[Figure]:
    found = [
        figure
        for name in ("1e8", "1e10", "1e10 near its end")
        for figure in (
            Figure(
                f"first batch: {name} - 1e4 samples", "ms", differences(runs, name, "1e4", "seconds", 1e3), target=50
            ),
            Figure(f"memory: {name} - 1e4 samples", "MB", differences(runs, name, "1e4", "memory"), target=50),
        )
    ]
    found += [
        Figure("first batch of 1e8 samples by hand, randperm", "ms", each(runs, "1e8 by hand", "seconds", 1e3)),
        Figure("memory of that", "MB", each(runs, "1e8 by hand", "memory")),
        Figure("bytes read for a byte used: shuffle", "ratio", each(runs, "file", "read")),
        Figure(f"bytes read for a byte used: shuffle_block={BLOCK}", "ratio", each(runs, "file in blocks", "read")),
        Figure(f"time: shuffle_block={BLOCK} / shuffle", "ratio", ratios(runs, "file in blocks", "file", "seconds")),
        Figure("sorted by class: shuffle", "% right", each(runs, "sorted", "accuracy")),
        Figure(f"sorted by class: shuffle_block={SORTED_BLOCK}", "% right", each(runs, "sorted in blocks", "accuracy")),
        Figure("sorted by class: in the order of the dataset", "% right", each(runs, "sorted as it is", "accuracy")),
    ]
    return found


QUESTION = Question(
    name="large_orders",
    title="What does it cost to shuffle more samples than fit into the memory?",
    timed=f"""
    From the call of `fit` to the first batch of a shuffled split of so many samples, which are computed from their
    index, batch {BATCH}, and by how much the largest memory of the process grows until the end of three steps, over
    those of 10,000 samples. By hand: `randperm` and a DataLoader. Then the first {PART}th of a shuffled epoch of a
    memory map of 2 GB, {ROW} bytes a sample, of which nothing is in memory before, read page by page (MADV_RANDOM).
    Then a network of two layers that is trained for one epoch of {SAMPLES:,} samples in {CLASSES} classes, which the
    dataset has one after the other, and its accuracy on other samples; each round has its own seed.
    """,
    remains="""
    Tables of the square root of the number of samples. With blocks the samples of 1,024 of them are mixed: the classes
    of such a window differ from those of the dataset less than the classes of a batch do.
    """,
    rounds=5,
    variants={
        **{name: functools.partial(first_batch, length) for name, length in SIZES.items()},
        "1e10 near its end": functools.partial(first_batch, SIZES["1e10"], is_resumed=True),
        "1e8 by hand": functools.partial(first_batch_by_hand, SIZES["1e8"]),
        "file": functools.partial(part_of_a_file, None),
        "file in blocks": functools.partial(part_of_a_file, BLOCK),
        "sorted": functools.partial(sorted_by_class, shuffle=True),
        "sorted in blocks": functools.partial(sorted_by_class, shuffle=True, shuffle_block=SORTED_BLOCK),
        "sorted as it is": functools.partial(sorted_by_class),
    },
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
