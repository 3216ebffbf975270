"""What a step of the trainer costs over the same step in a loop written by hand: python -m benchmarks.step_overhead"""

import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.rounds import Figure, Question, Result, Runs, each, weights
from helios_lite import DataModule, Model, Trainer, TrainingState
from helios_lite.metrics.measurements import is_measured
from helios_lite.metrics.rows import DIGESTS, HIGHEST_LOSS

EPOCHS, STEPS, VALID_STEPS, BATCH = 40, 250, 25, 32
ROUNDS = 200  # Of epochs that take turns.

Batches = Iterable[tuple[Tensor, Tensor]]


def make(*sizes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a perceptron with these layers and its optimizer, always the same."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    net = layers[0] if len(sizes) == 2 else nn.Sequential(*layers[:-1])
    return net, torch.optim.SGD(net.parameters(), lr=0.01)


class Perceptron(Model):
    """What `by_hand` does, as a Model; it notes the time at the start of every epoch and at the end."""

    def __init__(self, *sizes: int, watched: bool = False) -> None:
        super().__init__("perceptron")
        self.sizes, self.watched = sizes, watched
        self.marks: list[float] = []

    def setup(self, fast_init: bool = False) -> None:
        torch.set_num_threads(1)
        net, self.optimizer = make(*self.sizes)
        self.net = self.parallelize(net)

    def train_step(self, batch: tuple[Tensor, Tensor], state: TrainingState) -> None:
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        if self.watched:
            self.log("loss", loss)

    def valid_step(self, batch: tuple[Tensor, Tensor], step: int) -> None:
        x, y = batch
        self.log("loss", F.mse_loss(self.net(x), y))

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.marks.append(time.perf_counter())

    def on_training_end(self) -> None:
        self.marks.append(time.perf_counter())


def by_trainer(train: Any, sizes: tuple[int, ...], valid: Any = None, **options: Any) -> Result:
    """Train with the trainer; `valid` turns on everything that can be seen: bar, log, validation, rows in a file."""
    watched = valid is not None
    model = Perceptron(*sizes, watched=watched)
    with tempfile.TemporaryDirectory() as root:
        options = {"max_epochs": EPOCHS, "root": root if watched else None, "progress": watched, **options}
        trainer = Trainer(**options, sanity_batches=0, save_every_epochs=None, print_banner=False)
        trainer.fit(model, DataModule(train=train, valid=valid))
    return result(model.marks, model.net)


def by_hand(
    batches: Callable[[int], Batches],
    sizes: tuple[int, ...],
    valid: Batches = (),
    epochs: int = EPOCHS,
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
) -> Result:
    """Train with the plainest loop; `batches` gives those of an epoch, `wrap` what makes a network distributed."""
    torch.set_num_threads(1)
    net, optimizer = make(*sizes)
    net = wrap(net)
    marks = []
    for epoch in range(epochs):
        marks.append(time.perf_counter())
        epoch_by_hand(net, optimizer, batches(epoch), valid)
    marks.append(time.perf_counter())
    return result(marks, net)


def epoch_by_hand(net: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, valid: Batches = ()) -> None:
    for x, y in batches:
        loss = F.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if valid:
        net.eval()
        with torch.no_grad():
            for x, y in valid:
                F.mse_loss(net(x), y)
        net.train()


def result(marks: list[float], net: nn.Module) -> Result:
    """Return the shortest time of an epoch, since all else on the machine only adds to it, and where training ended."""
    epoch = min(after - before for before, after in itertools.pairwise(marks))
    return {"seconds": epoch, "weights": weights(*net.parameters())}


def ready(count: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches that cost nothing to load."""
    x, y = torch.randn(2, count, BATCH, 8, generator=torch.Generator().manual_seed(0))
    return list(zip(x, y, strict=True))


class Trained(NamedTuple):
    """A network after a training, and the rows that it has written, without what is measured."""

    net: nn.Module
    rows: list[dict[str, float]]


class Loops:
    """Other loops, each with a network of its own, timed by epoch. Their networks are no part of the model beside."""

    def __init__(self, hand: Callable[[], None], **others: Callable[[], None]) -> None:
        self._loops = {"hand": hand, **others}
        self._order = random.Random(0)
        self.seconds: dict[str, list[float]] = {name: [] for name in [*self._loops, "trainer"]}

    def run(self) -> None:
        """Run an epoch of each, in random order."""
        for name in self._order.sample(list(self._loops), len(self._loops)):
            start = time.perf_counter()
            self._loops[name]()
            self.seconds[name].append(time.perf_counter() - start)

    def microseconds(self) -> Result:
        """Return the medians over the epochs: of a step by hand, and of what a step of each other loop adds to it."""
        hand = self.seconds["hand"]
        added = {
            name: statistics.median(a - b for a, b in zip(seconds, hand, strict=True)) * 1e6 / STEPS
            for name, seconds in self.seconds.items()
        }
        return {**added, "hand": statistics.median(hand) * 1e6 / STEPS}


class Shown:
    """The loop by hand with what the trainer shows and writes: bars, a line per epoch, and the rows of metrics.jsonl.

    The bar of the run is the trainer's, since both print their lines above it.
    """

    def __init__(self, train: list[tuple[Tensor, Tensor]], valid: list[tuple[Tensor, Tensor]], file: TextIO) -> None:
        self.net, self.optimizer = make(*SIZES)
        self.train, self.valid, self.file = train, valid, file
        self.step = self.epoch = 0
        self.start = self.ended = time.monotonic()  # Of training, and of the part before the last row.
        self.waited = 0.0
        self.steps = self.count = self.epoch_count = 0
        self.total = self.epoch_total = 0.0

    def run(self) -> None:
        """Train for an epoch, and validate."""
        started = self.ended = time.monotonic()
        self.epoch_total, self.epoch_count = 0.0, 0
        clock = time.perf_counter
        asked = clock()
        for x, y in self.bar(self.train, f"epoch {self.epoch + 1}"):
            self.waited += clock() - asked
            loss = F.mse_loss(self.net(x), y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.total += loss.item() * len(x)
            self.count += len(x)
            self.step += 1
            self.steps += 1
            if self.steps == 50 and self.step % STEPS != 0:
                self.write(self.row())
            asked = clock()
        row = self.row()
        train_loss = self.epoch_total / self.epoch_count
        self.write({**row, "train/epoch_seconds": self.ended - started, "train/loss/epoch": train_loss})
        valid_loss = self.validate()
        self.write({"valid/loss": valid_loss})
        self.epoch += 1
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        end = f"0:{minutes:02}:{seconds:02}"
        tqdm.write(
            f"epoch {self.epoch}/{ROUNDS} | train loss {train_loss:.4g} | valid loss {valid_loss:.4g} | {end}",
            file=sys.stderr,
        )

    def validate(self) -> float:
        """Return the mean of the loss over the samples of the validation."""
        total, count = 0.0, 0
        self.net.eval()
        with torch.no_grad():
            for x, y in self.bar(self.valid, "valid"):
                total += F.mse_loss(self.net(x), y).item() * len(x)
                count += len(x)
        self.net.train()
        return total / count

    def bar(self, batches: list[tuple[Tensor, Tensor]], name: str) -> Batches:
        return tqdm(batches, desc=name, position=1, leave=False, dynamic_ncols=True, unit="batch")

    def row(self) -> dict[str, float]:
        """Return the training metrics since the last row, and begin the next."""
        now = time.monotonic()
        seconds, self.ended = now - self.ended, now
        row = {
            "train/loss": self.total / self.count,
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/step_seconds": seconds / self.steps,
            "train/compute_seconds": (seconds - self.waited) / self.steps,
            "train/data_wait": self.waited / seconds,
            "train/samples_per_second": self.count / seconds,
        }
        self.epoch_total += self.total
        self.epoch_count += self.count
        self.total, self.count, self.waited, self.steps = 0.0, 0, 0.0, 0
        return row

    def write(self, row: dict[str, float]) -> None:
        place = {"step": self.step, "epoch": self.epoch, "seconds": time.monotonic() - self.start}
        self.file.write(json.dumps({**place, **row}) + "\n")
        self.file.flush()


class Beside(Perceptron):
    """Runs the other loops before each of its epochs, so that all meet the same machine."""

    def __init__(self, loops: Loops, watched: bool = False) -> None:
        super().__init__(*SIZES, watched=watched)
        self.loops = loops
        self.start: float | None = None

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.note_epoch()
        self.loops.run()
        self.start = time.perf_counter()

    def on_training_end(self) -> None:
        self.note_epoch()

    def note_epoch(self) -> None:
        end = time.perf_counter()
        if self.start is not None:
            self.loops.seconds["trainer"].append(end - self.start)


def beside(loops: Loops, train: Batches, valid: Batches = (), **options: Any) -> Trained:
    """Train as in `by_trainer` beside other loops, and return the network and the rows of metrics.jsonl."""
    model = Beside(loops, watched=bool(valid))
    with tempfile.TemporaryDirectory() as root:
        options = {"root": root if valid else None, "progress": bool(valid), **options}
        trainer = Trainer(max_epochs=ROUNDS, sanity_batches=0, save_every_epochs=None, print_banner=False, **options)
        trainer.fit(model, DataModule(train=train, valid=valid or None))
        rows = Path(root, model.save_name, "metrics.jsonl")
        return Trained(model.net, exact(rows.read_text()) if rows.exists() else [])


def exact(rows: str) -> list[dict[str, float]]:
    """Return the rows of a file without what is measured, which differs from run to run, and what names their cause."""
    left_out = (*DIGESTS, HIGHEST_LOSS)
    return [
        {name: value for name, value in json.loads(row).items() if not is_measured(name) and name not in left_out}
        for row in rows.splitlines()
    ]


def bare() -> Result:
    torch.set_num_threads(1)
    train = ready(STEPS)
    net, optimizer = make(*SIZES)
    loops = Loops(hand=lambda: epoch_by_hand(net, optimizer, train))
    require_same_weights(beside(loops, train).net, net)
    return loops.microseconds()


def full() -> Result:
    torch.set_num_threads(1)
    train, valid = ready(STEPS), ready(VALID_STEPS)
    net, optimizer = make(*SIZES)
    with tempfile.TemporaryFile("w+") as file:
        shown = Shown(train, valid, file)
        loops = Loops(hand=lambda: epoch_by_hand(net, optimizer, train, valid), shown=shown.run)
        trained = beside(loops, train, valid)
        file.seek(0)
        rows = exact(file.read())
    require_same_weights(trained.net, net, shown.net)
    if trained.rows != rows:
        raise RuntimeError("the trainer and the loop by hand have written different rows")
    return loops.microseconds()


def require_same_weights(trained: nn.Module, *by_hand: nn.Module) -> None:
    """Raise a RuntimeError if a loop by hand ends with other weights."""
    if any(weights(*net.parameters()) != weights(*trained.parameters()) for net in by_hand):
        raise RuntimeError("the trainer and a loop by hand end with different weights")


def figures(runs: Runs) -> list[Figure]:
    added = [run["trainer"] - run["shown"] for run in runs["full"]]
    everything = "bar, log and validation: trainer"
    return [
        Figure("bare: trainer - by hand", "us/step", each(runs, "bare", "trainer"), target=5),
        Figure(f"{everything} - by hand, with bars, lines and rows", "us/step", added, target=15),
        Figure(f"{everything} - by hand, with none of them", "us/step", each(runs, "full", "trainer"), target=15),
        Figure("bars, lines and rows by hand", "us/step", each(runs, "full", "shown")),
        Figure("the bare loop by hand", "us/step", each(runs, "bare", "hand")),
        Figure("the loop with validation by hand", "us/step", each(runs, "full", "hand")),
        Figure("the loop with all of it by hand", "us/step", [run["hand"] + run["shown"] for run in runs["full"]]),
    ]


SIZES = (8, 8)
QUESTION = Question(
    name="step_overhead",
    title="What does a step cost over a loop written by hand?",
    timed=f"""
    Linear(8, 8), SGD, batch {BATCH}, from a list of ready batches, one thread. In one process epochs of {STEPS} steps
    take turns: one of each loop by hand, one by the trainer, from the end of its on_training_epoch_start to the begin
    of the next (all that the loop, the hooks, the log points every 50 steps and the end of an epoch cost). A round's
    figure is the median of {ROUNDS} differences. All must end with the same bits. With everything on, an epoch also has
    a validation of {VALID_STEPS} batches, a `log` in every step, a row in metrics.jsonl per log point and validation, a
    line, and bars on a terminal. One loop by hand does all of this too, and its rows must be the same but for what is
    measured and for digests; the other does the same forward passes in evaluation mode, but keeps, shows and writes
    nothing.
    """,
    remains="""
    The next section shows of what it consists. What the trainer does at the end of an epoch, and a loop by hand does
    not, is keeping and restoring the generators of torch, random and numpy, and the modes of the modules. Tried and
    kept: one loop in place of a function per batch, hooks called only if somebody wrote them, the boundary entered only
    when something can be due, no transfer on the CPU, running totals in plain numbers instead of buffers on the device,
    optimizers looked up once an epoch, learning rates read at log points only, batches as plain tuples, bars drawn ten
    times a second at most, a row a second at most in train.log.
    """,
    rounds=5,
    variants={"bare": bare, "full": full},
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
