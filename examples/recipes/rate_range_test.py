"""A learning rate range test: the rate grows in every step until the loss explodes.

    python examples/recipes/rate_range_test.py

docs/rate_range_test.md has more about it.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import Callback, DataModule, Model, Split, Trainer


class Line(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-5)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 10 ** (7 / 99))  # From 1e-5 to 100.

    def train_step(self, batch, state):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.scheduler)
        self.log("loss", loss)

    def should_training_stop(self):
        return self.metrics.get("train/loss", 0.0) > 1e3


class Curve(Callback):
    def __init__(self):
        self.points = []

    def on_training_batch_start(self, state):
        if "train/loss" in self.model.metrics:
            self.points.append((self.model.metrics["train/lr"], self.model.metrics["train/loss"]))


x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
data = DataModule(train=Split(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16, shuffle=True))
curve = Curve()
options = {"root": None, "log_every_steps": 1, "check_finite": False, "progress": False, "log_level": "quiet"}
Trainer(max_steps=100, callbacks=[curve], **options).fit(Line("line"), data)
rate = min(curve.points, key=lambda point: point[1])[0] / 10  # A tenth of the rate with the smallest loss.
print(1e-3 < rate < 1)
