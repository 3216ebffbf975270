"""A confusion matrix over all processes, and recalls per class.

    python examples/recipes/confusion_matrix.py

docs/confusion_matrix.md has more about it.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer


class Classifier(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(2, 3))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)

    def train_step(self, batch, state):
        x, y = batch
        self.backward(F.cross_entropy(self.net(x), y))
        self.optimizer_step(self.optimizer)

    def on_validation_start(self, validation_cycle):
        super().on_validation_start(validation_cycle)
        self.confusion = torch.zeros(3, 3, dtype=torch.int64, device=self.device)

    def valid_step(self, batch, step):
        x, y = batch
        pairs = 3 * y + self.net(x).argmax(-1)
        self.confusion += torch.bincount(pairs, minlength=9).reshape(3, 3)

    def on_validation_end(self, validation_cycle):
        super().on_validation_end(validation_cycle)
        self.confusion = sum(self.gather(self.confusion))  # Of all ranks.
        for label, row in enumerate(self.confusion.tolist()):
            self.log(f"recall/{label}", row[label] / max(1, sum(row)), reduce="last")


x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
y = torch.atan2(x[:, 1], x[:, 0]).add(torch.pi).mul(3 / (2 * torch.pi)).long().clamp(max=2)
split = Split(TensorDataset(x, y), batch_size=32)
model = Classifier("classifier")
result = Trainer(max_epochs=5, root=None, progress=False, log_level="quiet").fit(model, DataModule(split, split))
print(model.confusion.sum().item(), sorted(name for name in result.metrics if "recall" in name))
