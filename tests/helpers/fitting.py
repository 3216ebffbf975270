"""Models that fit a line, by optimizers of any kind, and what they are compared with."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split

X, Y = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12.0).unsqueeze(1) / 12
SMALL = 0.01  # So that fp16 skips no step.
BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 12, 4)]


def data(batch_size: int = 4) -> DataModule:
    return DataModule(Split(TensorDataset(X, Y), batch_size))


def network() -> nn.Module:
    """The same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


class Fitting(Model):
    """Fits a line by an optimizer of `made`."""

    def __init__(self, made: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__("fitting")
        self.made, self.options = made, options

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(network())
        self.optimizer = self.made(self.net.parameters(), **self.options)

    def loss(self, batch: Any) -> torch.Tensor:
        with self.autocast():
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.loss(batch))
        self.optimizer_step(self.optimizer)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization: it steps by the gradients at weights that are moved along the gradients."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "rho": 0.05})

    @torch.no_grad()
    def step(self, closure: Any) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        moves = [p.grad * 0.05 / norm for p in parameters]
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move)
        closure()
        for p, move in zip(parameters, moves, strict=True):
            p.sub_(move).sub_(p.grad, alpha=self.param_groups[0]["lr"])


class Closing(Fitting):
    """Passes a closure; SAM finds the gradients of the weights as they are."""

    def train_step(self, batch: Any, state: Any) -> None:
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = self.loss(batch)
            self.backward(loss)
            return loss

        if self.made is SAM:
            closure()
        assert self.optimizer_step(self.optimizer, closure=closure)


class ClosingAndPlain(Closing):
    """A second network, whose losses have weights, is trained after the one of the closure."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.other = self.parallelize(network())
        self.plain = torch.optim.SGD(self.other.parameters(), lr=0.1)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.backward(nn.functional.mse_loss(self.other(batch[0]), batch[1]), weight=len(batch[0]))
        assert self.optimizer_step(self.plain)


def closing_by_hand(made: Any, options: dict[str, Any], clip_norm: float | None, epochs: int) -> nn.Module:
    net = network()
    optimizer = made(net.parameters(), **options)
    for x, y in BATCHES * epochs:

        @torch.enable_grad()
        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(x), y)
            loss.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
            return loss

        if made is SAM:
            closure()
        optimizer.step(closure)
    return net


CLOSING = {"lbfgs": (torch.optim.LBFGS, {"lr": 0.5, "max_iter": 4}), "sam": (SAM, {"lr": 0.1})}
CLOSING["line search"] = (torch.optim.LBFGS, {"max_iter": 4, "line_search_fn": "strong_wolfe"})
