"""Everything that only a GPU can show, by one command of at most eight minutes; it writes RESULTS-gpu.md.

    python -m benchmarks.gpu           # all sections
    python -m benchmarks.gpu NAME ...  # these, and no file
    python -m benchmarks.gpu --cpu     # a dry run with tiny sizes, whose figures mean nothing, and no file

Each section is a function in a process of its own, with a limit; what it prints goes below its figures. The sizes are
those of one large GPU of 2024 or later; other accelerators of PyTorch are measured too, but for their waits.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.callbacks import EMA
from helios_lite.processes.devices import choose_accelerator, device_name, pins_memory

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("RESULTS-gpu.md")
SECONDS = 470.0  # Of all sections.
is_dry = False  # A dry run, on the CPU.


def device() -> torch.device:
    """The device that is measured. It is not asked for before a section has its own process."""
    return torch.device("cpu") if is_dry else torch.device(choose_accelerator("auto"), 0)


def synchronize() -> None:
    if not is_dry:
        torch.accelerator.synchronize()


def figure(name: str, value: Any) -> None:
    print(f"FIGURE {json.dumps([name, f'{value:.4g}' if isinstance(value, float) else str(value)])}", flush=True)


def fit(model: Model, data: Any, **options: Any) -> Any:
    """Train without files, validations and rows, unless the options say otherwise; the model is given back."""
    quiet = {"root": None, "progress": False, "print_banner": False, "log_level": "quiet", "accelerator": device().type}
    defaults = {**quiet, "valid_every_epochs": None, "log_every_steps": 10_000}
    Trainer(**{**defaults, **options}).fit(model, data if isinstance(data, DataModule) else DataModule(train=data))
    return model


# Networks beside loops by hand.


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.projection(seen)
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, words: int, context: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(words, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.blocks(self.tokens(numbers) + self.places.weight[: numbers.shape[1]])
        return F.linear(self.norm(x), self.tokens.weight)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet_18(width: int) -> nn.Sequential:
    widths = [width * factor for factor in (1, 1, 2, 4, 8)]
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [
        each
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths))
        for each in (Residual(inputs, outputs, 1 + (i > 0)), Residual(outputs, outputs, 1))
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 100))


class Images(Dataset):
    """Bytes that a worker turns into floats."""

    def __init__(self, size: int) -> None:
        seeded = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (256, 3, size, size), dtype=torch.uint8, generator=seeded)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % 256].float().div(255), index % 100


@dataclasses.dataclass
class Work:
    """What is trained: steps from `warm` on are timed."""

    make: Callable[[], nn.Module]
    data: Any
    batch_size: int
    steps: int
    warm: int
    precision: str = "fp32"
    num_workers: int = 0

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def loss(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x).float().flatten(0, -2), y.flatten())


def work(name: str) -> Work:
    if name == "MLP":
        data = TensorDataset(torch.randn(10_240, 64), torch.randint(10, (10_240,)))
        layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        return Work(lambda: copy.deepcopy(nn.Sequential(*layers)), data, 256, *((12, 4) if is_dry else (1000, 200)))
    if name == "ResNet-18":
        if is_dry:
            return Work(lambda: resnet_18(4), Images(32), 2, 6, 2, "bf16")
        return Work(lambda: resnet_18(64), Images(128), 128, 120, 40, "bf16", num_workers=10)
    if is_dry:
        return Work(lambda: GPT(16, 2, 2, 50, 8), TensorDataset(*2 * [torch.randint(50, (64, 8))]), 4, 6, 2, "bf16")
    tokens = torch.randint(50_304, (2048, 512))
    return Work(lambda: GPT(768, 12, 12, 50_304, 512), TensorDataset(tokens, tokens), 16, 60, 25, "bf16")


class Trained(Model):
    """A work as a Model, with the microseconds of a step: of the device, and until the host was done with it."""

    def __init__(self, work: Work) -> None:
        super().__init__("trained")
        self.work, self.times = work, (0.0, 0.0)

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(self.work.network(), blocks=(Block,))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)

    def train_step(self, batch: Any, state: Any) -> None:
        if state.step == self.work.warm:
            synchronize()
            self.started = time.perf_counter()
        x, y = batch
        with self.autocast():
            loss = self.work.loss(self.net, x, y)
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)
        if state.step == self.work.steps - 1:
            self.times = times_of(self.started, self.work)


def times_of(started: float, work: Work) -> tuple[float, float]:
    host = time.perf_counter() - started
    synchronize()
    return tuple(1e6 * each / (work.steps - work.warm) for each in (time.perf_counter() - started, host))


def by_trainer(work: Work, **options: Any) -> Trained:
    split = Split(work.data, work.batch_size, num_workers=work.num_workers)
    options = {"max_steps": work.steps, "precision": work.precision, "log_every_steps": 50, **options}
    return fit(Trained(work), split, **options)


def by_hand(work: Work) -> tuple[nn.Module, tuple[float, float]]:
    net = work.network().to(device())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    pins = pins_memory(device())
    loader = DataLoader(work.data, work.batch_size, num_workers=work.num_workers, pin_memory=pins)
    dtype, step, losses = {"bf16": torch.bfloat16}.get(work.precision), 0, []
    while True:
        for batch in loader:
            if step == work.warm:
                synchronize()
                started = time.perf_counter()
            x, y = (each.to(device(), non_blocking=pins) for each in batch)
            with torch.autocast(device().type, dtype, enabled=dtype is not None):
                loss = work.loss(net, x, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            step += 1
            if step % 50 == 0:
                torch.stack(losses).tolist()
                losses.clear()
            if step == work.steps:
                return net, times_of(started, work)


def beside_by_hand(name: str) -> None:
    made = work(name)
    hand, ours, is_same = [], [], True
    for _ in range(1 if is_dry else 2):
        net, times = by_hand(made)
        model = by_trainer(made)
        hand.append(times)
        ours.append(model.times)
        is_same &= all(map(torch.equal, net.parameters(), model.net.parameters()))
    for kind, i in (("a step", 0), ("the host for a step", 1)):
        a, b = (min(times[i] for times in all_times) for all_times in (hand, ours))
        figure(f"{name}, us of {kind}: by hand, trainer, ratio", f"{a:.0f}, {b:.0f}, {b / a:.3f}")
    figure(f"{name}: the same bits as by hand", is_same)
    if not is_dry:
        figure(f"{name}, peak MiB", torch.accelerator.max_memory_allocated() / 2**20)


# Waits.


class Small(Model):
    """Counts by place what waits for the device in steps 10 to 29 of a run without rows."""

    def __init__(self, weight: Any = None, has_items: bool = False) -> None:
        super().__init__("small")
        self.weight, self.has_items, self.first, self.found = weight, has_items, -1, None
        self.watching = contextlib.ExitStack()

    def setup(self, fast_init: bool = False) -> None:
        torch.manual_seed(0)
        self.net = self.parallelize(nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 4)))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)

    def train_step(self, batch: Any, state: Any) -> None:
        self.first = state.step if self.first < 0 else self.first
        if state.step - self.first == 10 and self.found is None:
            self.found = self.watching.enter_context(waits())
        if state.step - self.first == 30:
            self.watching.close()
        with self.autocast():
            loss = F.cross_entropy(self.net(batch["x"]).float(), batch["y"])
        self.backward(loss, None if self.weight is None else self.weight(batch["y"]))
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)
        if self.has_items:
            self._loss_items["extra"] = loss


@contextlib.contextmanager
def waits() -> Iterator[Counter[str]]:
    """Yield a counter that has at the end of the context how often each place has waited for the device."""
    found = Counter[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device().type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if device().type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            stops = [each for each in caught if "synchronizing" in str(each.message)]
            found.update(f"{Path(each.filename).name}:{each.lineno}" for each in stops)


ROWS = {"x": torch.linspace(-1, 1, 1280 * 16).reshape(1280, 16), "y": torch.arange(1280) % 4}


def places_of_waits() -> None:
    if device().type not in ("cuda", "cpu"):
        figure("waits", "only CUDA counts them")
        return
    cases: dict[str, tuple[Model, dict[str, Any]]] = {
        "fp32": (Small(), {}),
        "bf16": (Small(), {"precision": "bf16"}),
        "fp16": (Small(), {"precision": "fp16"}),
        "clipping and norms": (Small(), {"clip_norm": 1.0, "log_grad_norm": True}),
        "accumulation, weights as tensors": (Small(lambda y: (y >= 0).sum()), {"accumulation_steps": 2}),
        "accumulation, weights as numbers": (Small(lambda y: 3.0), {"accumulation_steps": 2}),
        "losses of a table": (Small(has_items=True), {}),
        "averaged weights": (Small(), {"callbacks": [EMA()]}),
        "two workers": (Small(), {"data": Split(ROWS, 32, num_workers=2)}),
        "rows on the device": (Small(), {"data": Split({name: each.to(device()) for name, each in ROWS.items()}, 32)}),
    }
    for name, (model, options) in cases.items():
        fit(model, options.pop("data", Split(ROWS, 32)), max_steps=41, **options)
        figure(f"waits a step, {name}", f"{model.found.total() / 20:g} {dict(model.found.most_common(3)) or ''}")
    with tempfile.TemporaryDirectory() as root:
        for steps in (10, 51):
            model = fit(Small(), Split(ROWS, 32), max_steps=steps, root=root)
    figure("waits a step after a resume", f"{model.found.total() / 20:g} {dict(model.found.most_common(3)) or ''}")


# Copies, saves, resumes, ranks.


def overlap() -> None:
    size = (4, 3, 32, 32) if is_dry else (256, 3, 224, 224)
    batches = [(torch.rand(size), torch.randint(100, size[:1])) for _ in range(4)]
    pinned = [tuple(each.pin_memory() for each in batch) for batch in batches] if pins_memory(device()) else batches
    there = [tuple(each.to(device()) for each in batch) for batch in batches]
    made = Work(lambda: resnet_18(4 if is_dry else 64), None, size[0], *((6, 2) if is_dry else (30, 10)), "bf16")

    def step(source: Any) -> float:
        model = fit(Trained(made), source * (made.steps // 4 + 1), max_steps=made.steps, precision="bf16")
        return model.times[0] / 1e3

    for _ in range(2):  # The first warms up.
        synchronize()
        started = time.perf_counter()
        for batch in pinned * 5:
            [each.to(device(), non_blocking=True) for each in batch]
        synchronize()
        copied = (time.perf_counter() - started) / 20 * 1e3
    computed = step(there)
    figure("copy of a batch from pinned memory, ms", copied)
    figure("step on batches that are there, ms", computed)
    for name, source in (("pageable", batches), ("pinned", pinned)):
        took = step(source)
        figure(f"step on {name} batches, ms", took)
        figure(f"hidden part of the copy, {name}", (copied + computed - took) / min(copied, computed))


class Large(Model):
    """1 GB of weights, 3 GB with the states of AdamW; notes how long the training stands still for a save."""

    def __init__(self, root: str) -> None:
        super().__init__("large")
        self.root, self.stalls, self.ended, self.sums = root, [], None, []

    def setup(self, fast_init: bool = False) -> None:
        size = 1000 if is_dry else 2_500_000
        self.net = self.parallelize(nn.ParameterList(torch.full((size,), 0.5) for _ in range(100)))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)

    def on_training_batch_start(self, state: Any) -> None:
        if self.ended is not None:
            synchronize()
            self.stalls.append(1e3 * (time.perf_counter() - self.ended))

    def train_step(self, batch: Any, state: Any) -> None:
        while state.step > 0 and not [*Path(self.root).rglob(f"*_iter_{state.step}*.pth")]:
            time.sleep(0.01)  # As if saves were further apart than a write takes.
        self.backward(sum(p[:8].sum() for p in self.net) * batch.sum())
        self.optimizer_step(self.optimizer)

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.sums = torch.stack([p.detach().double().sum() for p in self.net]).tolist()
        synchronize()
        self.ended = time.perf_counter()


def saves() -> None:
    for in_background in (True, False):
        with tempfile.TemporaryDirectory() as root:
            options = {"root": root, "save_every_steps": 1, "save_every_epochs": None, "async_save": in_background}
            model = fit(Large(root), [torch.ones(8)] * 4, max_steps=4, **options)
            (path,) = Path(root).rglob("*_iter_4*.pth")
            kept = torch.load(path, weights_only=True, mmap=True)["model"]["net"].values()
            stalls = ", ".join(f"{stall:.0f}" for stall in model.stalls)
            figure(f"async_save={in_background}: the training stands still for 3 GB, ms", stalls)
            figure("the file has the weights of its step", [each.double().sum().item() for each in kept] == model.sums)


class Dropped(Small):
    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        layers = [nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Dropout(0.3)]
        self.net = self.parallelize(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4)))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)


def resumes() -> None:
    for precision in ("fp32",) if is_dry else ("fp32", "bf16", "fp16"):
        ends = []
        for stops in ((60,), (17, 45, 60)):
            with tempfile.TemporaryDirectory() as root:
                for steps in stops:
                    options = {"root": root, "precision": precision, "deterministic": True, "callbacks": [EMA(0.9)]}
                    model = fit(Dropped(), Split(ROWS, 32, shuffle=True), max_steps=steps, **options)
                (path,) = Path(root).rglob("*_iter_60*.pth")
                average = torch.load(path, weights_only=True)["callbacks"]["EMA"]["evaluation_weights"]["net"]
                ends.append([*model.net.state_dict().values(), *average.values()])
        figure(f"{precision}: the same bits when stopped twice", all(map(torch.equal, *ends)))


def train_rank(strategy: str, number: int) -> str:
    options = {"clip_norm": 1.0, "accumulation_steps": 2, "strategy": strategy, "log_every_steps": 20, "max_steps": 20}
    model = fit(Small(), Split(ROWS, 64 // number, shuffle=True), **options)
    total = sum(p.full_tensor() if hasattr(p, "full_tensor") else p for p in [p.norm() for p in model.net.parameters()])
    return f"loss {model.metrics['train/loss']:.6g}, sum of norms {float(total):.6g}"


def as_rank(title: str, strategy: str, rank: int, number: int, port: int) -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="" if is_dry else "0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number))
    dist.init_process_group("gloo")  # It allows two ranks on one device, which NCCL does not.
    text = train_rank(strategy, number)
    if rank == 0:
        figure(title, text)
    dist.barrier()


def ranks() -> None:
    fork = multiprocessing.get_context("fork")
    cases = [("one rank", "ddp", 1), ("two ranks on one device", "ddp", 2), ("two ranks, sharded", "fsdp", 2)]
    for title, strategy, number in cases[:2] if is_dry else cases:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [fork.Process(target=as_rank, args=(title, strategy, i, number, port)) for i in range(number)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        if any(child.exitcode != 0 for child in children):
            figure(title, f"failed with {[child.exitcode for child in children]}")


def tests() -> None:
    figure("device", device_name(device()) or "CPU")
    figure("torch", torch.__version__)
    if is_dry:
        return
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-o", "addopts=--strict-markers", "--tb=short"]
    ended = subprocess.run([*command, "-q", "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True)
    print(ended.stdout[-8000:], ended.stderr[-1000:])
    for line in ended.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            figure(*line.split(" ", 1))
    figure("tests/test_gpu.py", ended.stdout.strip().rpartition("\n")[2])


SECTIONS: dict[str, tuple[Callable[[], None], float]] = {
    "tests": (tests, 110),
    "waits": (places_of_waits, 60),
    "mlp": (lambda: beside_by_hand("MLP"), 40),
    "resnet": (lambda: beside_by_hand("ResNet-18"), 70),
    "gpt": (lambda: beside_by_hand("GPT-124M"), 90),
    "overlap": (overlap, 45),
    "saves": (saves, 90),
    "resumes": (resumes, 60),
    "ranks": (ranks, 60),
}
"""Each with its limit in seconds."""


def run_in_child(function: Callable[[], None], path: str) -> None:
    """Run a section in a forked process; all that it prints goes to a file."""
    os.setsid()
    with open(path, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def measure(name: str, seconds: float) -> tuple[str, list[list[str]], str]:
    """Run a section; return how it ended, its figures and what else it printed."""
    function, limit = SECTIONS[name]
    with tempfile.NamedTemporaryFile("r") as output:
        started = time.monotonic()
        child = multiprocessing.get_context("fork").Process(target=run_in_child, args=(function, output.name))
        child.start()
        child.join(10 * limit if is_dry else min(limit, seconds))  # A dry run may share its processors with others.
        end = "its time was up"
        if child.is_alive():
            os.killpg(child.pid, signal.SIGKILL)
            child.join()
        else:
            end = "complete" if child.exitcode == 0 else f"failed with exit status {child.exitcode}"
        lines = output.read().splitlines()
    figures = [json.loads(line.removeprefix("FIGURE ")) for line in lines if line.startswith("FIGURE ")]
    text = "\n".join(line for line in lines if not line.startswith("FIGURE "))
    return f"{end}, {time.monotonic() - started:.0f} s", figures, text


def main() -> int:
    global is_dry
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections: {', '.join(SECTIONS)}")
    parser.add_argument("--cpu", action="store_true", help="a dry run with tiny sizes")
    arguments = parser.parse_args()
    is_dry = arguments.cpu
    if is_dry:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(1)
    started, is_complete = time.monotonic(), True
    parts = ["# Results on a GPU\n\nWritten by `python -m benchmarks.gpu`.\n"]
    for name in arguments.names or SECTIONS:
        end, figures, text = measure(name, max(1.0, SECONDS - (time.monotonic() - started)))
        is_complete &= end.startswith("complete")
        rows = [f"| {what} | {value} |" for what, value in figures]
        parts.append("\n".join([f"## {name}: {end}\n", "| what | value |", "| --- | --- |", *rows]) + "\n")
        print(f"{parts[-1]}\n{text if not end.startswith('complete') else ''}", flush=True)
    if not is_dry and not arguments.names:
        RESULTS.write_text("\n".join(parts))
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
