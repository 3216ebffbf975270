"""What the processes of test_distributed.py do: many trainings and evaluations within one launch of several ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from toys import Indices, Tiny, quiet, weights

from helios_lite import DataModule, Model, Split
from helios_lite.distributed import join_world, unwrapped


class Plain(Model):
    """Nothing random, so that the number of processes must not matter; `weighted` by index, as by tokens."""

    def __init__(self, weighted: bool = False) -> None:
        super().__init__("plain")
        self.weighted = weighted
        self.seen: list[list[int]] = []
        self.validated: list[int] = []
        self.rates: list[float] = []

    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.net = self.parallelize(net, blocks=(nn.Linear,))
        if not fast_init:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01, eps=1e-3)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        self.seen.append(index.tolist())
        losses = (self.net(x) - x.sum(1, keepdim=True)).square()
        if self.weighted:
            tokens = 1.0 + index % 5
            loss, weight = (losses[:, 0] * tokens).sum() / tokens.sum(), tokens.sum()
            self.backward(loss, weight)
            self.log("loss", loss, count=weight)
        else:
            loss = losses.mean()
            self.backward(loss)
            self.log("loss", loss)
        if self.optimizer_step(self.optimizer, self.scheduler, clip_norm=0.5):
            self.rates.append(self.optimizer.param_groups[0]["lr"])

    def valid_step(self, batch: Any, step: int) -> None:
        index, x = batch
        self.validated += index.tolist()
        self.log("index", index.double().mean())
        self.log("loss", (self.net(x) - 1).square().mean())
        self.log("last", index.max(), reduce="max")


CASES = [
    # length of the training data, samples per update, accumulation, weighted
    (16, 4, 1, False),
    (22, 4, 1, False),
    (23, 8, 2, False),
    (23, 12, 3, True),
    (20, 4, 1, True),
    (27, 6, 1, True),
    (24, 12, 2, False),
]


def trained(case: tuple[int, int, int, bool], world_size: int, **options: Any) -> dict[str, Any]:
    length, per_update, accumulation, weighted = case
    batch_size = per_update // accumulation // world_size
    model = Plain(weighted)
    datamodule = DataModule(
        Split(Indices(length), batch_size=batch_size, shuffle=True), Split(Indices(7), batch_size=batch_size)
    )
    options = {"max_epochs": 4, "monitor": "valid/loss", "patience": 2, "min_delta": 0.02, **options}
    result = quiet(accumulation_steps=accumulation, log_every_steps=3, **options).fit(model, datamodule)
    metrics = {name: value for name, value in result.metrics.items() if name != "train/step_seconds"}
    return {
        "weights": weights(model)["net"],
        "metrics": metrics,
        "rates": model.rates,
        "steps": result.state.step,
        "reason": result.stop_reason,
        "samples": sum(map(len, model.seen)),
    }


def evaluated(length: int, batch_size: int) -> tuple[list[int], dict[str, float]]:
    """The indices that this rank has evaluated, and the metrics over all ranks."""
    model = Plain()
    metrics = quiet(max_epochs=1).test(model, DataModule(test=Split(Indices(length), batch_size=batch_size)))
    return model.validated, metrics


class Normed(Tiny):
    """Batch norm, whose buffers DDP would send around in the forward pass; and dropout."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)))
        if not fast_init:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self.buffers = [buffer.clone() for buffer in self.net.buffers()]


class Naming(Plain):
    """Logs one name more on rank 1."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        if self.global_rank == 1:
            self.log("only_here", 1.0)


class Forgetful(Plain):
    """Trains a part that it did not parallelize."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.head = nn.Linear(1, 1)
        self.optimizer.add_param_group({"params": self.head.parameters()})


class StopsOnOne(Plain):
    """Rank 1 alone wants to stop after the third update."""

    def should_training_stop(self) -> bool:
        return self.global_rank == 1 and len(self.rates) == 3


class Steep(Plain):
    """In the third batch of rank 1 the gradients of the last hidden unit are infinite, which FSDP gives to that rank.

    It notes what is left after every batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        unwrapped(self.net)[0].register_forward_hook(self.spoil)

    def spoil(self, module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        if len(self.states) == 2 and self.global_rank == 1:
            output.register_hook(lambda grad: grad.index_fill(1, torch.tensor([7]), torch.inf))

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        with self.autocast():
            loss = (self.net(x).float() - x.sum(1, keepdim=True)).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.scheduler)

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.states.append((state.step, state.skipped_steps, weights(self)))


class Counting(Plain):
    """Counts how often gradients are reduced."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.reduced: list[int] = []
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self.reduced.append(1)
            return allreduce_hook(None, bucket)

        self.net.register_comm_hook(None, hook)


def data(length: int = 22, batch_size: int = 2, valid: int = 5) -> DataModule:
    return DataModule(
        Split(Indices(length), batch_size=batch_size, shuffle=True), Split(Indices(valid), batch_size=batch_size)
    )


def norms(batch_size: int = 2, **options: Any) -> dict[str, float]:
    """The norms at the last log point of a short run."""
    both: dict[str, Any] = {"log_grad_norm": "per-parameter", "log_param_norm": "per-parameter"}
    result = quiet(max_steps=3, log_every_steps=3, **both, **options).fit(
        Plain(), data(length=16, batch_size=batch_size)
    )
    return {name: value for name, value in result.metrics.items() if "_norm" in name}


def message(function: Any) -> str:
    """The message of the exception that a call raises."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def everything(root: Path, size: int) -> dict[str, Any]:
    """Run on every rank; what is compared among ranks is gathered."""
    torch.set_num_threads(1)
    world = join_world("cpu")
    found: dict[str, Any] = {"size": world.size}
    found["trained"] = {case: trained(case, size) for case in CASES if case[1] // case[2] % size == 0}
    found["evaluated"] = {}
    for length in range(1, 18):
        mine, metrics = evaluated(length, batch_size=2)
        found["evaluated"][length] = ([index for part in world.gather(mine) for index in part], metrics)
    if size == 2:
        found.update(two(root, world))
    return found


def two(root: Path, world: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = Plain()
    quiet(max_epochs=1).fit(model, data(length=21))
    found["seen of 21"] = world.gather(model.seen)

    found["naming"] = world.gather(message(lambda: quiet(max_epochs=1).fit(Naming(), data())))
    found["forgetful"] = world.gather(message(lambda: quiet(max_epochs=1).fit(Forgetful(), data())))
    found["stops"] = world.gather(quiet(max_epochs=3).fit(StopsOnOne(), data()).state.step)

    found["steep"], found["norms"] = {}, {}
    for strategy in ("ddp", "fsdp"):
        steep = Steep()
        quiet(max_epochs=1, precision="fp16", strategy=strategy, valid_every_epochs=None).fit(steep, data(length=16))
        found["steep"][strategy] = world.gather(steep.states)
        found["norms"][strategy] = norms(strategy=strategy)

    model = Counting()
    result = quiet(max_epochs=1, accumulation_steps=3).fit(model, data(length=24))
    found["reduced"] = (len(model.reduced), result.state.step, result.state.batch)

    # Dropout differs among ranks, and every rank gets back its own at a resume, whatever validation does.
    ends, buffers = [], []
    for name, parts in (("whole", [9]), ("parts", [2, 3, 7, 9]), ("unvalidated", [9])):
        for steps in parts:
            model = Normed(name)
            options = {"valid_every_epochs": None} if name == "unvalidated" else {"valid_every_steps": 2}
            datamodule = data(length=20, batch_size=4, valid=1)
            quiet(max_steps=steps, root=root / "normed", **options).fit(model, datamodule)
            if name == "whole":
                buffers = world.gather(model.buffers)
        ends.append(weights(model))
    found["normed"], found["buffers"] = ends, buffers
    found["draws"] = world.gather(torch.rand(3))

    # Checkpoints of every strategy go on under every strategy; those of one process lie there already.
    found["matrix"] = {}
    for strategy in ("ddp", "fsdp"):
        quiet(max_steps=4, root=root / f"from-{strategy}", strategy=strategy).fit(Plain(), data())
    for source in ("one", "ddp", "fsdp"):
        for strategy in ("ddp", "fsdp"):
            path = root / f"from-{source}/plain/checkpoints/plain_epoch_0_iter_4.pth"
            model = Plain()
            run = quiet(max_steps=9, root=root / f"{source}-to-{strategy}", resume=path, strategy=strategy)
            run.fit(model, data())
            found["matrix"][source, strategy] = weights(model)
    found["fsdp evaluated"] = []
    for length in (1, 3, 8):
        model = Plain()
        test = quiet(max_epochs=1, strategy="fsdp")
        metrics = test.test(model, DataModule(test=Split(Indices(length), batch_size=2)))
        found["fsdp evaluated"].append((length, metrics["test/index"]))

    # The first two updates of an epoch, to be gone on with by other numbers of processes.
    model = Plain()
    quiet(max_steps=2, root=root / "elastic").fit(model, data(length=23))
    found["first part"] = world.gather(model.seen)
    return found


def rest(root: Path) -> list[list[list[int]]]:
    """The rest of that epoch."""
    torch.set_num_threads(1)
    model = Plain()
    quiet(max_epochs=1, root=root / "elastic").fit(model, data(length=23))
    return join_world("cpu").gather(model.seen)
