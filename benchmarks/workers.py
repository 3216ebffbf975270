"""What an epoch costs whose samples two loading processes prepare: python -m benchmarks.workers"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.in_memory import order
from benchmarks.rounds import Figure, Question, Result, Runs, each, ratios
from benchmarks.step_overhead import Batches, by_hand, by_trainer
from helios_lite import Split

EPOCHS, SAMPLES, BATCH = 6, 4096, 64
SIZES = (3 * 32 * 32, 8)


class Images(Dataset):
    """Pictures as bytes, each made into numbers when it is asked for."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.targets = torch.randn(SAMPLES, 8, generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index].float().div(255).flip(-1)
        return ((image - image.mean()) / image.std()).flatten(), self.targets[index]


def trainer(seed_samples: bool) -> Result:
    split = Split(Images(), BATCH, shuffle=True, num_workers=2, persistent_workers=True, seed_samples=seed_samples)
    return by_trainer(split, SIZES, max_epochs=EPOCHS)


def hand() -> Result:
    data, generator = Images(), order(0)
    sampler = RandomSampler(data, generator=generator)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=2, persistent_workers=True)

    def batches(epoch: int) -> Batches:
        generator.set_state(order(epoch).get_state())
        return loader

    return by_hand(batches, SIZES, epochs=EPOCHS)


def figures(runs: Runs) -> list[Figure]:
    return [
        Figure("trainer / by hand", "ratio", ratios(runs, "trainer", "hand", "seconds")),
        Figure("trainer with seed_samples=False / by hand", "ratio", ratios(runs, "unseeded", "hand", "seconds")),
        Figure("the epoch by hand", "ms", each(runs, "hand", "seconds", 1e3)),
    ]


QUESTION = Question(
    name="workers",
    title="What does an epoch cost whose samples two loading processes prepare?",
    timed=f"""
    A linear net on {SAMPLES} shuffled pictures of 3 x 32 x 32 bytes, batch {BATCH}, normalised in `__getitem__` by
    num_workers=2 (persistent): the fastest of {EPOCHS} epochs, against a loop over a stock DataLoader. The trainer
    seeds torch, random and numpy around every sample unless seed_samples=False.
    """,
    remains="""
    Seeding torch, random and numpy from (seed, epoch, index) around every sample, in the workers (`python -m
    benchmarks.seeding` has the figures per sample); without it there is nothing but the step's own overhead. On two
    cores the workers and the training share the processors, so that what a worker spends shows in full. Half of it is
    Python's `random.seed`, which computes 624 words. To seed a generator only if the code of a sample draws from it was
    looked at and left: code that draws inside of `torch.random.fork_rng`, or reads `torch.initial_seed()`, leaves no
    trace in the states, so that it cannot be known exactly, and the promise would be broken without an error. A dataset
    that draws nothing can say so by seed_samples=False.
    """,
    rounds=3,
    variants={"trainer": lambda: trainer(True), "hand": hand, "unseeded": lambda: trainer(False)},
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
