"""What two processes cost over a DistributedDataParallel loop by hand: python -m benchmarks.ddp"""

import functools
import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, ratios
from benchmarks.step_overhead import Batches, Perceptron, by_hand, result
from helios_lite import DataModule, Split, Trainer

BATCH, PROCESSES = 64, 2


class Case(NamedTuple):
    """A perceptron, and how long it is trained."""

    sizes: tuple[int, ...]
    epochs: int
    steps: int


CASES = {
    "0.3 M parameters": Case((64, 512, 512, 8), epochs=8, steps=50),
    "8 M parameters": Case((1024,) * 9 + (8,), epochs=4, steps=15),
}


def tensors(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    samples = PROCESSES * BATCH * case.steps
    return (
        torch.randn(samples, case.sizes[0], generator=generator),
        torch.randn(samples, case.sizes[-1], generator=generator),
    )


class Reporting(Perceptron):
    """Writes down what it noted, since it does so in another process."""

    def __init__(self, report: Path, case: Case) -> None:
        super().__init__(*case.sizes)
        self.report = report

    def on_training_end(self) -> None:
        super().on_training_end()
        if self.global_rank == 0:
            self.report.write_text(json.dumps(result(self.marks, self.net)))


def trainer(case: Case) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = {"root": None, "progress": False, "print_banner": False}
        trainer = Trainer(max_epochs=case.epochs, accelerator="cpu", devices=PROCESSES, **options)
        trainer.fit(Reporting(report, case), DataModule(train=Split(TensorDataset(*tensors(case)), BATCH)))
        return {**json.loads(report.read_text()), "case": str(case.sizes)}


def hand(case: Case) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_process, (folder, case), nprocs=PROCESSES)
        return {**json.loads(Path(folder, "report.json").read_text()), "case": str(case.sizes)}


def one_process(rank: int, folder: str, case: Case) -> None:
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=60), world_size=PROCESSES, rank=rank
    )
    x, y = tensors(case)

    def batches(epoch: int) -> Batches:
        for i in range(rank * BATCH, len(x), PROCESSES * BATCH):
            yield x[i : i + BATCH], y[i : i + BATCH]

    report = by_hand(batches, case.sizes, epochs=case.epochs, wrap=DistributedDataParallel)
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))
    distributed.destroy_process_group()


def figures(runs: Runs) -> list[Figure]:
    found = []
    for name, case in CASES.items():
        ours, theirs, per_step = f"{name}, trainer", f"{name}, by hand", 1e6 / case.steps
        found += [
            Figure(f"{name}: trainer / by hand", "ratio", ratios(runs, ours, theirs, "seconds"), target=1.02),
            Figure(f"{name}: trainer - by hand", "us/step", differences(runs, ours, theirs, "seconds", per_step)),
            Figure(f"{name}: the loop by hand", "us/step", each(runs, theirs, "seconds", per_step)),
        ]
    return found


QUESTION = Question(
    name="ddp",
    title="What do two processes cost over a DistributedDataParallel loop by hand?",
    timed=f"""
    Perceptrons ({"; ".join(f"{name}: {case.sizes}" for name, case in CASES.items())}) on {PROCESSES} processes of one
    thread each (gloo), batch {BATCH} per process, in-memory data in order: the fastest of several epochs on rank 0
    ({", ".join(f"{case.epochs} of {case.steps} steps" for case in CASES.values())}), against a loop that slices its
    tensors. Both must end with the same weights (1e-5: which samples of a global batch a rank takes is not the
    same).
    """,
    remains="""
    The step's own overhead, gathering batches where the loop by hand slices its tensors, and a report of what each
    rank's backward pass has touched, in Python where DistributedDataParallel has C++. What two processes wait for each
    other on two cores varies by more.
    """,
    rounds=3,
    variants={
        f"{name}, {kind}": functools.partial(function, case)
        for name, case in CASES.items()
        for kind, function in (("trainer", trainer), ("by hand", hand))
    },
    figures=figures,
    tolerance=1e-5,
)

if __name__ == "__main__":
    QUESTION.answer()
