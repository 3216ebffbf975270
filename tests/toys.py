"""Small models and datasets that the tests share; datasets return their index, so that order is visible."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.hooks import Hooks

HOOKS = [name for name in vars(Hooks) if not name.startswith("_")]


class Indices(Dataset):
    """Sample i is (i, a vector made of i alone)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.tensor([index % 7, index % 3, 1.0]) / 7


class Tiny(Model):
    """A dropout and a linear layer; remembers the indices it was trained and validated on."""

    def __init__(self, save_name: str = "tiny") -> None:
        super().__init__(save_name)
        self.seen: list[int] = []
        self.validated: list[int] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1)))
        if not fast_init:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)

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


def data(train: int = 10, valid: int = 5, batch_size: int = 4, **options: Any) -> DataModule:
    return DataModule(
        train=Split(Indices(train), batch_size=batch_size, shuffle=True, **options),
        valid=Split(Indices(valid), batch_size=batch_size),
        test=Split(Indices(valid), batch_size=batch_size),
    )


def quiet(**options: Any) -> Trainer:
    """A trainer that prints nothing, and writes nothing unless `root` is given."""
    return Trainer(**{"root": None, "progress": False, "print_banner": False, **options})


def weights(model: Model) -> dict[str, Any]:
    """Everything a checkpoint holds of a model, copied."""
    return {name: _copied(part) for name, part in model.state_dict().items()}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def same(a: Any, b: Any) -> bool:
    """Bit for bit: tensors by torch.equal, everything else by ==."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
