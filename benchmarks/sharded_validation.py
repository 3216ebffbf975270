"""What a validation of a sharded network adds to a rank's memory: python -m benchmarks.sharded_validation"""

import contextlib
import json
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.rounds import Figure, Question, Result, Runs, each, ratios, weights
from benchmarks.validation_memory import memory
from helios_lite import DataModule, Model, Split, Trainer

PROCESSES, BLOCKS, WIDTH, BATCH = 4, 20, 2048, 8
LENGTH = BATCH * (PROCESSES * 2 + 1)  # One rank has a batch more than the others.
PARAMETERS = BLOCKS * (WIDTH + 1) * WIDTH
STATE = 12 * PARAMETERS  # Bytes: weights and both moments of Adam in fp32.
WATCHED = 1  # A rank that is not 0.

os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # Otherwise freed memory counts as held. For the processes started here.


class Block(nn.Linear):
    """A block that notes the largest memory of the process while it runs."""

    peak = 0

    def forward(self, x: Tensor) -> Tensor:
        Block.peak = max(Block.peak, memory())
        return torch.tanh(super().forward(x))


class Samples(torch.utils.data.Dataset[Tensor]):
    """Sample i is a vector made of i."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((WIDTH,), index / LENGTH)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return nn.Sequential(*(Block(WIDTH, WIDTH) for _ in range(BLOCKS)))


class Deep(Model):
    """Validates the blocks, and leaves what the watched rank has noted in a file."""

    def __init__(self, report: Path) -> None:
        super().__init__("deep")
        self.report = report

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(make(), blocks=(Block,))

    def on_validation_start(self, validation_cycle: int) -> None:
        self.before, Block.peak, self.start = memory(), 0, time.perf_counter()

    def valid_step(self, batch: Tensor, step: int) -> None:
        self.log("mean", self.net(batch).mean())

    def on_validation_end(self, validation_cycle: int) -> None:
        if self.global_rank == WATCHED:
            noted = {"grown": Block.peak - self.before, "seconds": time.perf_counter() - self.start}
            self.report.write_text(json.dumps(noted))


def trainer() -> Result:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options: dict[str, Any] = {"root": None, "progress": False, "print_banner": False, "accelerator": "cpu"}
        trainer = Trainer(max_steps=1, devices=PROCESSES, strategy="fsdp", **options)
        data = DataModule(valid=Split(Samples(), batch_size=BATCH))
        mean = trainer.validate(Deep(report), data, checkpoint=None)["valid/mean"]
        return {**json.loads(report.read_text()), "weights": weights(torch.tensor([mean]))}


def padded() -> Result:
    return by_hand(gathers_all=False)


def at_once() -> Result:
    return by_hand(gathers_all=True)


def by_hand(gathers_all: bool) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_process, (folder, gathers_all), nprocs=PROCESSES)
        return json.loads(Path(folder, "report.json").read_text())


def one_process(rank: int, folder: str, gathers_all: bool) -> None:
    """Gather all blocks before the first batch; or one by one, for which ranks repeat their last batch if need be."""
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=60), world_size=PROCESSES, rank=rank
    )
    net, mesh = make(), init_device_mesh("cpu", (PROCESSES,))
    for block in [*net, net]:
        fully_shard(block, mesh=mesh)
    net.eval()
    indices = torch.arange(LENGTH).tensor_split(PROCESSES)[rank].split(BATCH)
    most = -(-LENGTH // (PROCESSES * BATCH))
    total, samples = torch.zeros((), dtype=torch.float64), Samples()
    before, start = memory(), time.perf_counter()
    with torch.no_grad():
        if gathers_all:
            for block in net:
                block.set_reshard_after_forward(False)
                block.unshard()
        for step in range(len(indices) if gathers_all else most):
            batch = torch.stack([samples[int(i)] for i in indices[min(step, len(indices) - 1)]])
            mean = net(batch).mean()
            if step < len(indices):
                total += mean.double() * len(batch)
    distributed.all_reduce(total)
    if rank == WATCHED:
        noted = {"grown": Block.peak - before, "seconds": time.perf_counter() - start}
        report = {**noted, "weights": weights((total / LENGTH).float().reshape(1))}
        Path(folder, "report.json").write_text(json.dumps(report))
    with contextlib.suppress(RuntimeError):  # That another rank has ended.
        distributed.barrier()
    os._exit(0)  # Groups that ranks close at the same time end some of them with SIGABRT now and then.


def figures(runs: Runs) -> list[Figure]:
    return [
        Figure("trainer", "of the state", each(runs, "trainer", "grown", 1 / STATE), target=0.1),
        Figure("by hand, padded", "of the state", each(runs, "padded", "grown", 1 / STATE)),
        Figure("by hand, gathered at once", "of the state", each(runs, "at_once", "grown", 1 / STATE)),
        Figure("trainer / by hand, padded", "ratio", ratios(runs, "trainer", "padded", "seconds")),
        Figure("trainer / by hand, gathered at once", "ratio", ratios(runs, "trainer", "at_once", "seconds")),
    ]


QUESTION = Question(
    name="sharded_validation",
    title="What does a validation of a sharded network add to the memory of a rank?",
    timed=f"""
    {PROCESSES} gloo processes of one thread share {BLOCKS} blocks ({WIDTH} x {WIDTH}), whose state with the moments
    of Adam would be {STATE / 1e9:.1f} GB; one rank has a batch more than the others. The growth of the resident memory
    of rank {WATCHED} from the start of the validation to its peak, as a part of the state. By hand: FSDP2 with batches
    that are repeated where a rank has none, or with all blocks gathered before the first batch. All must end with the
    same mean (1e-6).
    """,
    remains="""
    One block, its buffer of communication and the activations of a batch. Repeating batches needs as little memory and
    no agreement between the ranks, but it calls `valid_step` for batches that do not count. Gathering at once is faster
    on a slow network: it gathers once and not once per batch.
    """,
    rounds=3,
    variants={"trainer": trainer, "padded": padded, "at_once": at_once},
    figures=figures,
    tolerance=1e-6,
)

if __name__ == "__main__":
    QUESTION.answer()
