"""What a shuffled epoch of tensors in memory costs, against loops by hand: python -m benchmarks.in_memory"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Subset, TensorDataset

from benchmarks.rounds import Figure, Question, Runs, differences, each, ratios
from benchmarks.step_overhead import BATCH, Batches, by_hand, by_trainer
from helios_lite import Split
from helios_lite.processes import rng

EPOCHS, STEPS = 12, 125
SAMPLES = BATCH * STEPS
SIZES = (8, 8)


def dataset() -> TensorDataset:
    return TensorDataset(*torch.randn(2, SAMPLES, 8, generator=torch.Generator().manual_seed(0)))


def half() -> Subset:
    """Return the same samples, as half of a dataset twice as large."""
    twice = TensorDataset(*(torch.cat([tensor, tensor]) for tensor in dataset().tensors))
    return Subset(twice, range(SAMPLES, 2 * SAMPLES))


def order(epoch: int) -> torch.Generator:
    """Return the generator that shuffles as the trainer does with seed 0."""
    return torch.Generator().manual_seed(rng.derive_seed(0, epoch))


def stock_loader(data: TensorDataset, epoch: int) -> Batches:
    return DataLoader(data, batch_size=BATCH, sampler=RandomSampler(data, generator=order(epoch)))


def gathers(data: TensorDataset, epoch: int) -> Iterator[tuple[Tensor, ...]]:
    for indices in torch.randperm(SAMPLES, generator=order(epoch)).split(BATCH):
        yield tuple(tensor[indices] for tensor in data.tensors)


def figures(runs: Runs) -> list[Figure]:
    per_step = 1e6 / STEPS
    return [
        Figure("trainer / loop over a stock DataLoader", "ratio", ratios(runs, "trainer", "loader", "seconds"), 1),
        Figure("trainer with a Subset / the same loop", "ratio", ratios(runs, "subset", "loader", "seconds"), 1),
        Figure("trainer - gathers by hand", "us/step", differences(runs, "trainer", "gathers", "seconds", per_step)),
        Figure("the loop over a stock DataLoader", "us/step", each(runs, "loader", "seconds", per_step)),
        Figure("the loop over gathers by hand", "us/step", each(runs, "gathers", "seconds", per_step)),
    ]


QUESTION = Question(
    name="in_memory",
    title="What does a shuffled epoch of tensors in memory cost?",
    timed=f"""
    The bare loop of the step overhead over a shuffled TensorDataset of {SAMPLES} samples and a Subset with the
    same, batch {BATCH}: the fastest of {EPOCHS} epochs, each with drawing its order. By hand over a DataLoader with
    a RandomSampler, and over `tensor[indices]`, the fastest that can be written; samples and order are the same.
    """,
    remains="""
    The stock DataLoader fetches sample by sample and stacks them, some 120 us a batch; the trainer takes one indexed
    gather from each tensor, as the fastest loop by hand does, and adds the step's own overhead.
    """,
    rounds=4,
    variants={
        "trainer": lambda: by_trainer(Split(dataset(), BATCH, shuffle=True), SIZES, max_epochs=EPOCHS),
        "loader": lambda: by_hand(partial(stock_loader, dataset()), SIZES, epochs=EPOCHS),
        "subset": lambda: by_trainer(Split(half(), BATCH, shuffle=True), SIZES, max_epochs=EPOCHS),
        "gathers": lambda: by_hand(partial(gathers, dataset()), SIZES, epochs=EPOCHS),
    },
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
