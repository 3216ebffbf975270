"""A network of blocks that notes what is gathered while it runs."""

from typing import Any

import torch
from torch import Tensor, nn

from helios_lite import Model
from helios_lite.networks.dtensors import full_tensor, is_dtensor
from helpers.models import data, quiet


class Layer(nn.Module):
    """A block with dropout. It notes how many of the blocks around it are gathered while it runs, and in what type."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(dropout)
        self.around: list[Layer] = []
        self.gathered: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.gathered.append(sum(not is_dtensor(layer.linear.weight) for layer in self.around))
        self.dtypes.add(self.linear.weight.dtype)
        return x + self.dropout(torch.tanh(self.linear(x)))


class Stack(nn.Module):
    """Three blocks between an input and an output layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.layers = nn.ModuleList([Layer(dropout) for _ in range(3)])
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.last(x)
        return result


class Deep(Model):
    """Trains a `Stack`, made on the meta device or not."""

    def __init__(self, dropout: float = 0.0, device: str = "cpu") -> None:
        super().__init__("deep")
        self.dropout, self.made_on = dropout, device
        self.validated: list[int] = []

    def make(self) -> Stack:
        return Stack(self.dropout)

    def setup(self, fast_init: bool = False) -> None:
        with torch.device(self.made_on):
            net = self.make()
        self.net = self.parallelize(net, blocks=(Layer,))
        for layer in net.layers:
            layer.around = list(net.layers)
        self.initial = {name: full_tensor(value).clone() for name, value in net.state_dict().items()}
        if not fast_init:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01, eps=1e-3)

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        with self.autocast():
            loss = (self.net(x).float() - x.sum(1, keepdim=True)).square().mean()
        self.backward(loss)
        self.log("loss", loss)
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        index, x = batch
        self.validated += index.tolist()
        self.log("loss", (self.net(x) - 1).square().mean())


def fit(model: Model, length: int = 16, batch_size: int = 2, valid: int = 3, **options: Any) -> dict[str, float]:
    """Train for two epochs; return the metrics."""
    trainer = quiet(**{"max_epochs": 2, "strategy": "fsdp", **options})
    return trainer.fit(model, data(length, valid=valid, batch_size=batch_size)).metrics
