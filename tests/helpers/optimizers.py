"""Optimizers with states of every kind: of one number, of rows and columns, under a name, of other data types."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Own(torch.optim.Optimizer):
    """An optimizer of a program of its own."""

    def __init__(self, parameters: Any, lr: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * self.direction(p, p.grad))

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        """Return what a parameter moves against."""
        raise NotImplementedError

    def averaged(self, p: Any, name: str, value: Any) -> Any:
        """Return the average of a value over steps, which is a state of a parameter."""
        state = self.state[p]
        state[name] = 0.9 * state[name] + 0.1 * value if name in state else value
        return state[name]


class NormPerParameter(Own):
    """Divides by an average of the norm of the gradient, which it changes in place: a state of one number."""

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        norm, state = gradient.norm(), self.state[p]
        state["norm"] = state["norm"].mul_(0.9).add_(norm, alpha=0.1) if "norm" in state else norm
        return gradient / (state["norm"] + 0.1)


class Factored(Own):
    """Divides by averages of the rows and the columns of squares."""

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        if gradient.ndim < 2 or 1 in gradient.shape:  # DTensors do not shard the result of fewer rows than ranks.
            return gradient
        square = gradient.square()
        row, column = self.averaged(p, "row", square.mean(1)), self.averaged(p, "column", square.mean(0))
        return gradient / (row.unsqueeze(1) * column.unsqueeze(0) / row.mean() + 1e-3).sqrt()


class Named(Own):
    """Divides by the norm of all gradients, which it keeps under a name, beside a list and a number."""

    def step(self, closure: Any = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        state = self.state["global"]
        state["count"] = state.get("count", 0) + 1
        state["last"] = [gradients[0].norm(), *state.get("last", [])[:1]]
        self.averaged("global", "norm", norm)
        super().step()

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        state = self.state["global"]
        return gradient / (state["norm"] + sum(state["last"]) / state["count"] + 0.1)


class Counting(Own):
    """Counts steps in a tensor that has nothing to do with shards."""

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        state = self.state[p]
        state.setdefault("step", torch.tensor(0.0)).add_(1)
        return gradient / state["step"].numpy().item()


class Precise(Own):
    """Keeps more of the parameter, and of averages, than the parameter has bits for; beside a counter and a text."""

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        wide, state = torch.float64 if p.dtype == torch.float32 else torch.float32, self.state[p]
        if not state:
            state |= {"weight": p.to(wide), "averages": [torch.zeros_like(p, dtype=wide)] * 2, "kind": "precise"}
            state["count"] = torch.zeros_like(p, dtype=torch.int64)
        weight, averages = state["weight"], state["averages"]
        state["averages"] = [0.9 * averages[0] + gradient.to(wide), averages[0] / 3]
        state["count"] = state["count"] + 1
        state["weight"] = weight - 0.05 * (state["averages"][0] + averages[1] / state["count"])
        return (p - state["weight"].to(p.dtype)) / 0.05


class InPlace(Own):
    """Changes a tensor that has nothing to do with shards by one that has."""

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        norm = self.state[p].setdefault("norm", torch.zeros(()))
        return gradient / (norm.lerp_(gradient.norm(), 0.5) + 0.1)


class Reading(Own):
    """Reads a norm, of which each rank has a part."""

    def direction(self, p: Tensor, gradient: Any) -> Tensor:
        return gradient / (gradient.norm().item() + 0.1)


class Matrices(torch.optim.Muon):
    """Muon, which takes nothing but matrices."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = [*parameters]
        self.others = [p for p in parameters if p.ndim != 2]
        super().__init__([p for p in parameters if p.ndim == 2], lr=0.02)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for p in self.others:
            p.grad = None


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, eps=1e-3),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01, eps=1e-3),
    "ASGD": lambda parameters: torch.optim.ASGD(parameters, lr=0.05),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.02, eps=1e-3),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, eps=1e-3),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.05),
    "Rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
    "Muon": Matrices,
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=2),
    "norm": NormPerParameter,
    "factored": Factored,
    "named": Named,
    "counting": Counting,
    "precise": Precise,
    "in place": InPlace,
    "reading": Reading,
}
