"""A user's program. It is not run: mypy --strict checks it against the wheel, and each ignored error must be one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from helios_lite import Callback, DataModule, FitResult, Model, Split, Trainer, TrainingState
from helios_lite.callbacks import EMA
from helios_lite.loggers import JsonlLogger, Logger


class Largest:
    def __init__(self) -> None:
        self.largest = 0.0

    def update(self, value: float) -> None:
        self.largest = max(self.largest, value)

    def compute(self) -> float:
        return self.largest

    def reset(self) -> None:
        self.largest = 0.0


class Linear(Model):
    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.metric = Largest()

    def train_step(self, batch: tuple[Tensor, ...], state: TrainingState) -> None:
        (x,) = batch
        with self.autocast():
            loss = self.net(x).square().mean()
        self.backward(loss, weight=len(x))
        updated: bool = self.optimizer_step(self.optimizer)
        self.log("loss", loss, reduce="mean" if updated else "last")
        self.log("loss", loss, reduce="median")  # type: ignore[arg-type]
        self.log("spread", loss, reduce=("std", "max"), bar=True)
        self.log("spread", loss, reduce=("std", "median"))  # type: ignore[arg-type]
        self.log("metric", self.metric)
        self.log("metric", self.net)  # type: ignore[arg-type]


class Silent:
    def log_config(self, config: Any) -> None: ...
    def log_metrics(self, metrics: Any, step: int) -> None: ...
    def close(self) -> None: ...


class Notes(Callback):
    def on_training_epoch_end(self, current_epoch: int) -> None:
        print(self.model.device.type, self.model.metrics["train/loss"])
        print(self.model.metric)  # type: ignore[attr-defined]


class NotesOfLinear(Callback[Linear]):
    def on_training_epoch_end(self, current_epoch: int) -> None:
        largest: float = self.model.metric.largest
        folder: Path | None = self.run_folder
        epochs: int | None = self.trainer.max_epochs
        print(largest, folder, epochs, self.datamodule.train)
        folder = self.datamodule  # type: ignore[assignment]
        epochs = self.trainer.clip_norm  # type: ignore[assignment]
        print(self.model.metrik)  # type: ignore[attr-defined]
        print(self.trainer.max_epoch)  # type: ignore[attr-defined]


class Wrong(Callback[int]):  # type: ignore[type-var]
    pass


logger: Logger = Silent()
data = DataModule(Split(TensorDataset(torch.rand(8, 3)), batch_size=2, shuffle=True))
trainer = Trainer(
    max_epochs=1, monitor=["valid/loss"], loggers=[logger], callbacks=[Notes(), NotesOfLinear(), EMA(decay=0.9)]
)
result: FitResult = trainer.fit(Linear("linear"), data)
metrics: dict[str, float] = trainer.test(Linear("linear"), data, checkpoint="best")
loaded: Linear = Linear.load_from_checkpoint("linear.pth")
path: str = result.last_checkpoint  # type: ignore[assignment]
Trainer(max_epoch=1)  # type: ignore[call-arg]
Trainer(max_epochs="3")  # type: ignore[arg-type]
Trainer("run")  # type: ignore[call-arg]
Split([], batch_sise=2)  # type: ignore[call-arg]
Split([], batch_size="2")  # type: ignore[arg-type]
Trainer(max_epochs=1, mode="median")  # type: ignore[arg-type]
Trainer(max_epochs=1, loggers=[JsonlLogger])  # type: ignore[list-item]
