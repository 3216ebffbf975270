"""Metric objects of several kinds, and models that log them."""

from typing import Any

import torch
import torchmetrics

from helpers.models import Plain


class NoMerge:
    """A metric of our own: no mean of means over batches gives its value."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.above, self.below = torch.tensor(0.0), torch.tensor(0.0)

    def update(self, values: torch.Tensor, truth: torch.Tensor) -> None:
        self.above = self.above + values.sum()
        self.below = self.below + truth.sum()

    def compute(self) -> torch.Tensor:
        return self.above / (self.below + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"above": self.above, "below": self.below}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.above, self.below = state_dict["above"], state_dict["below"]


class Ratio(NoMerge):
    """The same, with the method by which torcheval merges."""

    def merge_state(self, others: Any) -> None:
        for other in others:
            self.above = self.above + other.above
            self.below = self.below + other.below


def collection() -> Any:
    scores = torchmetrics.classification
    return torchmetrics.MetricCollection({"f1": scores.BinaryF1Score(), "recall": scores.BinaryRecall()})


class Adding(torchmetrics.Metric):
    """Adds values up in a new tensor each time, so that of a group of several only one is up to date."""

    full_state_update = False

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, values: torch.Tensor) -> None:
        self.total = self.total + values.sum()

    def compute(self) -> torch.Tensor:
        return self.factor * self.total


KINDS = {
    "group": lambda: torchmetrics.MetricCollection({"once": Adding(1.0), "twice": Adding(2.0)}),
    "own": Ratio,
    "f1": torchmetrics.classification.BinaryF1Score,
    "sum": torchmetrics.SumMetric,
    "averages": lambda: torchmetrics.classification.MulticlassAccuracy(3, average="macro"),
    "lists": torchmetrics.classification.BinaryAUROC,
    "collection": collection,
}


def seen_by(kind: str, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is predicted of samples, and what is true."""
    if kind in ("sum", "group"):
        return (index.float(),)
    if kind == "averages":
        return (index * 7 + 2) % 3, index % 3
    if kind == "lists":
        return (index * 5 % 11) / 11, (index % 3 > 0).int()
    return (index % 2).int(), (index % 3 > 0).int()


def by_hand(kind: str, indices: list[int], name: str) -> dict[str, float]:
    metric = KINDS[kind]()
    metric.update(*seen_by(kind, torch.tensor(indices)))
    value = metric.compute()
    return {f"{name}/{key}": float(v) for key, v in value.items()} if isinstance(value, dict) else {name: float(value)}


class Scored(Plain):
    """Logs metric objects in training and in validation."""

    def __init__(self, kind: str = "f1", shared: bool = False) -> None:
        super().__init__()
        self.kind, self.shared = kind, shared

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.score = KINDS[self.kind]()
        self.parts = {"valid": self.score if self.shared else KINDS[self.kind]()}

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.score.update(*seen_by(self.kind, batch[0]))
        self.log("score", self.score)

    def valid_step(self, batch: Any, step: int) -> None:
        self.parts["valid"].update(*seen_by(self.kind, batch[0]))
        self.log("score", self.parts["valid"])


class With(Plain):
    """Logs one metric object in validations."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.made = metric

    def valid_step(self, batch: Any, step: int) -> None:
        self.made.update(batch[1][:, 0], batch[1][:, 1])
        self.log("score", self.made)


def only(row: dict[str, Any], name: str) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith(name)}
