"""What saving and resuming cost when four processes share a network: python -m benchmarks.sharded"""

import json
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

from benchmarks.rounds import Figure, Question, Result, Runs, each, ratios, weights
from helios_lite import DataModule, Model, Trainer, TrainingState

PROCESSES, BLOCKS, WIDTH, SAVES, STEPS = 4, 22, 2048, 3, 12
STATE = 3 * 4 * BLOCKS * WIDTH**2  # Bytes: weights and AdamW's two averages, float32; more than 1 GB.
MEASURED = 1  # Not rank 0, which writes more than its part.


def make(blocks: int = BLOCKS, width: int = WIDTH) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(blocks)))


def batch() -> Tensor:
    return torch.ones(1, WIDTH)


class Memory:
    """How much the resident memory of this process grows: from `start` to its highest point before `growth`."""

    def __init__(self) -> None:
        self._before = 0

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # Sets the highest point to the present.
        self._before = self._kilobytes("VmRSS")

    def growth(self) -> int:
        return (self._kilobytes("VmHWM") - self._before) * 1024

    def _kilobytes(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Stack(Model):
    """A stack of equal blocks; it notes time and memory around every save and around the resume, for each rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__("stack")
        self.folder = folder
        self.seconds: list[float] = []
        self.grown: list[int] = []
        self.memory, self.began = Memory(), 0.0
        self.resumed: dict[str, float] = {}

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(make(), blocks=(nn.Linear,))
        if not fast_init:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        self.memory.start()
        self.began = time.perf_counter()

    def on_training_start(self) -> None:
        self.resumed = {"resume_seconds": time.perf_counter() - self.began, "resume_grown": self.memory.growth()}

    def train_step(self, batch: Tensor, state: TrainingState) -> None:
        saved = self.folder / "stack/checkpoints"
        while state.step > 0 and not list(saved.glob(f"stack_*_iter_{state.step}*")):
            time.sleep(0.01)  # The save before is finished.
        self.backward(self.net(batch).square().mean())
        self.optimizer_step(self.optimizer)

    def on_training_batch_start(self, state: TrainingState) -> None:
        if state.batch > 0:
            self.seconds.append(time.perf_counter() - self.began)
            self.grown.append(self.memory.growth())

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        self.memory.start()
        self.began = time.perf_counter()

    def on_training_end(self) -> None:
        noted = {"seconds": self.seconds, "grown": self.grown, **self.resumed}
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(noted))


class Steps(Stack):
    """Notes the memory of all steps."""

    def train_step(self, batch: Tensor, state: TrainingState) -> None:
        self.backward(self.net(batch).square().mean())
        self.optimizer_step(self.optimizer)

    def on_training_batch_start(self, state: TrainingState) -> None:
        pass

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        pass

    def on_training_end(self) -> None:
        self.grown.append(self.memory.growth())
        super().on_training_end()


def environment() -> None:
    """Return freed memory to the system at once in the processes that are started from now on."""
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def noted(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"{rank}.json").read_text())


def trainer(processes: int, **options: Any) -> Result:
    """Train and save, and resume once."""
    environment()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Stack(Path(name))
        options |= {"progress": False, "print_banner": False, "save_every_epochs": None, "save_every_steps": 1}
        options |= {"root": folder, "devices": processes, "accelerator": "cpu", "strategy": "fsdp"}
        data = DataModule(train=[batch()] * processes * (SAVES + 2))
        Trainer(max_steps=SAVES + 1, **options).fit(model, data)
        saves = [noted(folder, rank) for rank in (0, min(MEASURED, processes - 1))]
        end = weights(next(model.net.parameters()))
        Trainer(max_steps=SAVES + 2, **options).fit(Stack(folder), data)
        resume = noted(folder, min(MEASURED, processes - 1))
        return {
            "save_seconds": statistics.median(saves[0]["seconds"]),
            "save_grown": max(saves[1]["grown"]),
            "resume_seconds": resume["resume_seconds"],
            "resume_grown": resume["resume_grown"],
            "weights": end,
        }


def trainer_steps() -> Result:
    environment()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Steps(Path(name))
        options = {"progress": False, "print_banner": False, "root": None, "max_steps": STEPS}
        options |= {"devices": PROCESSES, "accelerator": "cpu", "strategy": "fsdp"}
        Trainer(**options).fit(model, DataModule(train=[batch()] * PROCESSES * STEPS))
        found = {"case": "steps", "grown": noted(folder, MEASURED)["grown"][0]}
        return found | {"weights": weights(next(model.net.parameters()))}


def hand_steps() -> Result:
    environment()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_process_of_steps, (folder,), nprocs=PROCESSES)
        return noted(Path(folder), MEASURED)


def sharded(net: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    from torch.distributed.fsdp import fully_shard

    for block in net:
        fully_shard(block)
    fully_shard(net)
    return net, torch.optim.AdamW(net.parameters(), lr=1e-4)


def join(rank: int, folder: str, processes: int = PROCESSES) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=120), world_size=processes, rank=rank
    )


def one_process_of_steps(rank: int, folder: str) -> None:
    join(rank, folder)
    net, optimizer = sharded(make())
    memory = Memory()
    memory.start()
    for _ in range(STEPS):
        net(batch()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    grown = memory.growth()
    found = {"case": "steps", "grown": grown, "weights": weights(next(net.parameters()).full_tensor())}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def hand(background: bool) -> Result:
    environment()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_process, (folder, background), nprocs=PROCESSES)
        return {
            **json.loads(Path(folder, f"{MEASURED}.json").read_text()),
            "save_seconds": noted(Path(folder), 0)["save_seconds"],
            "weights": noted(Path(folder), 0)["weights"],
        }


def one_process(rank: int, folder: str, background: bool) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    join(rank, folder)
    memory, seconds, grown = Memory(), [], []
    group = distributed.new_group(backend="gloo")

    def update() -> None:
        net(batch()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    net, optimizer = sharded(make())
    update()
    for step in range(SAVES):
        distributed.barrier()
        memory.start()
        start = time.perf_counter()
        parts = dict(zip(("net", "optimizer"), get_state_dict(net, optimizer), strict=True))
        writer = dcp.FileSystemWriter(f"{folder}/{step}")
        saving = (dcp.async_save if background else dcp.save)(parts, storage_writer=writer, process_group=group)
        seconds.append(time.perf_counter() - start)
        if background:
            saving.result()
        grown.append(memory.growth())
        del parts
        update()
    end = weights(next(net.parameters()).full_tensor())
    del net, optimizer
    net, optimizer = sharded(make())
    memory.start()
    start = time.perf_counter()
    parts = dict(zip(("net", "optimizer"), get_state_dict(net, optimizer), strict=True))
    dcp.load(parts, checkpoint_id=f"{folder}/{SAVES - 1}")
    set_state_dict(net, optimizer, model_state_dict=parts["net"], optim_state_dict=parts["optimizer"])
    found = {
        "save_seconds": statistics.median(seconds),
        "save_grown": max(grown),
        "resume_seconds": time.perf_counter() - start,
        "resume_grown": memory.growth(),
        "weights": end,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def figures(runs: Runs) -> list[Figure]:
    part, target = 1 / STATE, 1 / PROCESSES + 0.1
    return [
        Figure("memory of all steps / by hand", "ratio", ratios(runs, "steps", "hand_steps", "grown"), 1.02),
        Figure("growth in a save", "part of the state", each(runs, "trainer", "save_grown", part), target),
        Figure("a save by hand", "part of the state", each(runs, "hand", "save_grown", part)),
        Figure(
            "growth in a save in the background", "part of the state", each(runs, "async", "save_grown", part), target
        ),
        Figure("a save in the background by hand", "part of the state", each(runs, "hand_async", "save_grown", part)),
        Figure("growth in a resume", "part of the state", each(runs, "trainer", "resume_grown", part), target),
        Figure("a resume by hand", "part of the state", each(runs, "hand", "resume_grown", part)),
        Figure(
            "stall of a save in the background / by hand",
            "ratio",
            ratios(runs, "async", "hand_async", "save_seconds"),
            1.1,
        ),
        Figure("stall by hand", "ms", each(runs, "hand_async", "save_seconds", 1e3)),
        Figure("time of a save / by hand", "ratio", ratios(runs, "trainer", "hand", "save_seconds")),
        Figure("time of a save / one file of one process", "ratio", ratios(runs, "trainer", "file", "save_seconds")),
        Figure("time of a resume / by hand", "ratio", ratios(runs, "trainer", "hand", "resume_seconds")),
        Figure(
            "time of a resume / one file of one process", "ratio", ratios(runs, "trainer", "file", "resume_seconds")
        ),
    ]


QUESTION = Question(
    name="sharded",
    title="What do saving and resuming cost when four processes share a network?",
    timed=f"""
    {BLOCKS} linear layers of {WIDTH} x {WIDTH}, with AdamW {STATE / 1e9:.1f} GB of state, sharded by FSDP2 over
    {PROCESSES} processes of one thread each (gloo). Growth is that of the resident memory of rank {MEASURED}, to its
    highest point, of all {STEPS} steps, and of the saves the largest, since buffers
    are used again; a rank's own part is {1 / PROCESSES} of the state. A save is timed on rank 0, from
    on_training_batch_end to the next on_training_batch_start, the median of {SAVES}; a resume from the end of `setup`
    to `on_training_start`. By hand: `torch.distributed.checkpoint` (`save`, `async_save`, `load`) with
    `get_state_dict` and `set_state_dict`.
    """,
    remains="""
    On the CPU a save in the foreground writes the shards from where they are: nothing grows. One in the background
    copies each rank's part first. A resume holds the weights that were read beside those of the network until it has
    loaded them; reading compares checksums, which by hand nothing does.
    """,
    rounds=2,
    variants={
        "steps": trainer_steps,
        "hand_steps": hand_steps,
        "trainer": lambda: trainer(PROCESSES, async_save=False),
        "hand": lambda: hand(background=False),
        "async": lambda: trainer(PROCESSES, async_save=True),
        "hand_async": lambda: hand(background=True),
        "file": lambda: {name: value for name, value in trainer(1, async_save=False).items() if name != "weights"},
    },
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
