"""What two processes cost over a DistributedDataParallel loop by hand: python -m benchmarks.ddp"""

import json
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, ratios
from benchmarks.step_overhead import Batches, Perceptron, by_hand, result
from helios_lite import DataModule, Split, Trainer

EPOCHS, STEPS, BATCH, PROCESSES = 8, 50, 64, 2
SIZES = (64, 512, 512, 8)


def tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    samples = PROCESSES * BATCH * STEPS
    return torch.randn(samples, 64, generator=generator), torch.randn(samples, 8, generator=generator)


class Reporting(Perceptron):
    """Writes down what it noted, since it does so in another process."""

    def __init__(self, report: Path) -> None:
        super().__init__(*SIZES)
        self.report = report

    def on_training_end(self) -> None:
        super().on_training_end()
        if self.global_rank == 0:
            self.report.write_text(json.dumps(result(self.marks, self.net)))


def trainer() -> Result:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = {"root": None, "progress": False, "print_banner": False}
        trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=PROCESSES, **options)
        trainer.fit(Reporting(report), DataModule(train=Split(TensorDataset(*tensors()), BATCH)))
        return json.loads(report.read_text())


def hand() -> Result:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_process, (folder,), nprocs=PROCESSES)
        return json.loads(Path(folder, "report.json").read_text())


def one_process(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=60), world_size=PROCESSES, rank=rank
    )
    x, y = tensors()

    def batches(epoch: int) -> Batches:
        for i in range(rank * BATCH, len(x), PROCESSES * BATCH):
            yield x[i : i + BATCH], y[i : i + BATCH]

    report = by_hand(batches, SIZES, epochs=EPOCHS, wrap=DistributedDataParallel)
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))
    distributed.destroy_process_group()


def figures(runs: Runs) -> list[Figure]:
    per_step = 1e6 / STEPS
    return [
        Figure("trainer / by hand", "ratio", ratios(runs, "trainer", "hand", "seconds"), target=1.02),
        Figure("trainer - by hand", "us/step", differences(runs, "trainer", "hand", "seconds", per_step)),
        Figure("the loop by hand", "us/step", each(runs, "hand", "seconds", per_step)),
    ]


QUESTION = Question(
    name="ddp",
    title="What do two processes cost over a DistributedDataParallel loop by hand?",
    timed=f"""
    A perceptron {SIZES} on {PROCESSES} processes of one thread each (gloo), batch {BATCH} per process, in-memory
    data in order: the fastest of {EPOCHS} epochs of {STEPS} steps on rank 0, against a loop that slices its
    tensors. Both must end with the same weights (1e-5: which samples of a global batch a rank takes is not the
    same).
    """,
    remains="""
    The step's own overhead, and gathering batches where the loop by hand slices its tensors; the gradients are
    averaged by the same DistributedDataParallel. What two processes wait for each other on two cores varies by more.
    """,
    rounds=3,
    variants={"trainer": trainer, "hand": hand},
    figures=figures,
    tolerance=1e-5,
)

if __name__ == "__main__":
    QUESTION.answer()
