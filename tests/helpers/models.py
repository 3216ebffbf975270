"""Small models, their data and a silent trainer; datasets return their index, so that order is visible."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.checkpoints.files import FORMAT_VERSION
from helios_lite.hooks import Hooks

HOOKS = [name for name in vars(Hooks) if not name.startswith("_")]


def scripted(net: nn.Module) -> nn.Module:
    """Return a network as TorchScript, which newer versions of PyTorch advise against."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(net)


class Indices(Dataset):
    """Sample i is (i, a vector made of i alone)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.tensor([index % 7, index % 3, 1.0]) / 7


class Stream(IterableDataset):
    """Counts to `length`, divided among the workers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        return iter(range(self.length) if worker is None else range(worker.id, self.length, worker.num_workers))


class Tiny(Model):
    """A dropout and a linear layer; remembers the indices it was trained and validated on."""

    def __init__(self, save_name: str = "tiny") -> None:
        super().__init__(save_name)
        self.seen: list[int] = []
        self.validated: list[int] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(self.network())
        if not fast_init:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        self.seen += index.tolist()
        loss = (self.net(x) - 1).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.scheduler)
        self.log("loss", loss)

    def valid_step(self, batch: Any, step: int) -> None:
        index, x = batch
        self.validated += index.tolist()
        self.log("loss", (self.net(x) - 1).square().mean())


class Scripted(Tiny):
    """Its network is of TorchScript."""

    def network(self) -> nn.Module:
        return scripted(super().network())


class Judged(Tiny):
    """Logs values whose mean over the 10 samples of an epoch is that of `SCORES`."""

    SCORES = (5.0, 3.0, 4.0, 3.5, 1.0)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.log("score", self.SCORES[state.epoch] + (batch[0].double() - 4.5).mean())


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


def data(train: int = 10, valid: int = 5, batch_size: int = 4, **options: Any) -> DataModule:
    return DataModule(
        train=Split(Indices(train), batch_size=batch_size, shuffle=True, **options),
        valid=Split(Indices(valid), batch_size=batch_size),
        test=Split(Indices(valid), batch_size=batch_size),
    )


def quiet(**options: Any) -> Trainer:
    """A trainer that prints nothing, and writes nothing unless `root` is given."""
    return Trainer(**{"root": None, "progress": False, "print_banner": False, **options})


def content(step: int = 0) -> dict[str, Any]:
    """The content of a small checkpoint file."""
    return {
        "format": FORMAT_VERSION,
        "version": "1.2.3",
        "step": step,
        "model": {"weight": torch.full((3,), float(step))},
    }
