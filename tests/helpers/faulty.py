"""A model with a fault: one bit differs, once, as on faulty hardware, and the fault does not come again."""

from typing import Any

import torch
from torch import Tensor, nn

from helios_lite import Model
from helios_lite.networks.dtensors import is_dtensor


class Faulty(nn.Module):
    """Changes one bit of its output, or of the gradient there, when it is called for the n-th time."""

    count = 0  # Outside of the model, where nothing is put back.
    at = 0
    where = ""

    def forward(self, x: Tensor) -> Tensor:
        out = x.clone()
        Faulty.count += 1
        if Faulty.count == Faulty.at and Faulty.where == "output":
            flip(out)
        elif Faulty.count == Faulty.at and Faulty.where == "gradient" and out.requires_grad:
            out.register_hook(lambda gradient: flip(gradient.clone()))  # type: ignore[no-untyped-call]
        return out * 1


def flip(tensor: Any) -> Any:
    """Change one bit of a tensor, or of the shard that this rank has of it, and return it."""
    own = tensor.to_local() if is_dtensor(tensor) else tensor
    own.data.view(torch.int32).view(-1)[-1] ^= 1
    return tensor


def _flip_once(gradient: Tensor) -> Tensor | None:
    return flip(gradient.clone()) if Faulty.count == Faulty.at else None


class Failing(Model):
    """A faulty module between two layers, and on request a faulty loss, gradient of a parameter, or second update.

    The gradient is faulty when the kernel has made it ("kernel"), or when `backward` has ended ("parameter").
    """

    def __init__(self, where: str = "", at: int = 0) -> None:
        super().__init__("failing")
        Faulty.where, Faulty.at, Faulty.count = where, at, 0

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 4), Faulty(), nn.Linear(4, 1)))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        if Faulty.where == "kernel":
            self.net[0].weight.register_hook(_flip_once)
        if Faulty.where == "second":
            self.other = self.parallelize(nn.Linear(3, 1))
            self.second = torch.optim.SGD(self.other.parameters(), lr=0.1)

    def weights(self) -> dict[str, Any]:
        net = self.other if Faulty.where == "second" else self.net
        return {name: value.clone() for name, value in net.state_dict().items()}

    def on_training_batch_start(self, state: Any) -> None:
        super().on_training_batch_start(state)
        self.before = self.weights()

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        loss = (self.net(x) - index.unsqueeze(1)).square().mean()
        is_faulty = Faulty.count == Faulty.at
        if is_faulty and Faulty.where == "calls":
            self.net[0](x)
        if is_faulty and Faulty.where == "loss":
            loss = loss * (1 + 1e-6)
        self.backward(loss)
        weight = self.net[0].weight
        if is_faulty and Faulty.where == "parameter" and weight.grad is not None:
            flip(weight.grad)
        self.optimizer_step(self.optimizer)
        if Faulty.where == "second":
            loss = (self.other(x) - 1).square().mean()
            self.backward(loss * (1 + 1e-6) if is_faulty else loss)
            self.optimizer_step(self.second)
