"""Cross-validation with five folds, each a run of its own.

    python examples/recipes/k_fold.py

docs/k_fold.md has more about it.
"""

import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from helios_lite import DataModule, Model, Split, Trainer


class Line(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch, state):
        x, y = batch
        self.backward((self.net(x) - y).square().mean())
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch, step):
        x, y = batch
        self.log("loss", (self.net(x) - y).square().mean())


x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
dataset = TensorDataset(x, x.sum(1, keepdim=True))
folds = torch.randperm(50, generator=torch.Generator().manual_seed(0)).chunk(5)
losses = []
for i, fold in enumerate(folds):
    rest = torch.cat([other for other in folds if other is not fold])
    train = Split(Subset(dataset, rest.tolist()), batch_size=8, shuffle=True)
    valid = Split(Subset(dataset, fold.tolist()), batch_size=8)
    trainer = Trainer(run_name=f"fold_{i}", max_epochs=20, monitor="valid/loss", progress=False, log_level="quiet")
    losses.append(trainer.fit(Line("line"), DataModule(train, valid)).best_metrics["valid/loss"])
print(f"{len(losses)} folds, the mean is below 0.01: {sum(losses) / len(losses) < 0.01}")
