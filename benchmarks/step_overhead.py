"""What a step of the trainer costs over the same step in a loop written by hand: python -m benchmarks.step_overhead"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, weights
from helios_lite import DataModule, Model, Trainer, TrainingState

EPOCHS, STEPS, VALID_STEPS, BATCH = 40, 250, 25, 32

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
        for x, y in batches(epoch):
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
    marks.append(time.perf_counter())
    return result(marks, net)


def result(marks: list[float], net: nn.Module) -> Result:
    """Return the shortest time of an epoch, since all else on the machine only adds to it, and where training ended."""
    epoch = min(after - before for before, after in itertools.pairwise(marks))
    return {"seconds": epoch, "weights": weights(*net.parameters())}


def ready(count: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches that cost nothing to load."""
    x, y = torch.randn(2, count, BATCH, 8, generator=torch.Generator().manual_seed(0))
    return list(zip(x, y, strict=True))


def same(batches: Batches, epoch: int) -> Batches:
    return batches


def figures(runs: Runs) -> list[Figure]:
    per_step = 1e6 / STEPS
    bare, full = (differences(runs, name, f"{name} by hand", "seconds", per_step) for name in ("bare", "full"))
    return [
        Figure("bare: trainer - by hand", "us/step", bare, target=5),
        Figure("bar, log and validation: trainer - by hand", "us/step", full, target=15),
        Figure("the bare loop by hand", "us/step", each(runs, "bare by hand", "seconds", per_step)),
        Figure("the loop with validation by hand", "us/step", each(runs, "full by hand", "seconds", per_step)),
    ]


SIZES = (8, 8)
QUESTION = Question(
    name="step_overhead",
    title="What does a step cost over a loop written by hand?",
    timed=f"""
    Linear(8, 8), SGD, batch {BATCH}, from a list of ready batches, one thread. A process's figure is the fastest of
    {EPOCHS} epochs of {STEPS} steps, each timed from one on_training_epoch_start to the next (the last to
    on_training_end): all that the loop, the hooks, the log points (every 50 steps) and the end of an epoch cost.
    With everything on, an epoch also has a validation of {VALID_STEPS} batches, a `log` in every step, a row in
    metrics.jsonl per log point, and a bar on a terminal; the loop by hand does the same forward passes in
    evaluation mode, but keeps, shows and writes nothing.
    """,
    remains="""
    The loop around an empty train_step takes 2 us a step. Between the operations of a real one every line runs out of
    cold caches, at three to five times that; the next section counts what each part consists of. An end of an epoch
    with a validation takes about 1 ms beyond the forward passes, 4 us of each of these steps: keeping and restoring the
    generators of torch, random and numpy, switching modes, two bars, and three rows. Tried and kept: one loop in place
    of a function per batch, hooks called only if somebody wrote them, the boundary entered only when something can be
    due, no transfer on the CPU, running totals in plain numbers instead of buffers on the device, optimizers looked up
    once an epoch, learning rates read at log points only. What is left is the interface: a generator, a method and two
    helpers per step; to take these away would make the loop harder to read.
    """,
    rounds=7,
    variants={
        "bare": lambda: by_trainer(ready(STEPS), SIZES),
        "bare by hand": lambda: by_hand(partial(same, ready(STEPS)), SIZES),
        "full": lambda: by_trainer(ready(STEPS), SIZES, ready(VALID_STEPS)),
        "full by hand": lambda: by_hand(partial(same, ready(STEPS)), SIZES, ready(VALID_STEPS)),
    },
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
