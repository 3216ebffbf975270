"""Streaming data with a state: a resume reads nothing twice and skips nothing.

    python examples/recipes/streaming.py

docs/streaming.md has more about it.
"""

import torch
from torch import nn

from helios_lite import DataModule, Model, Trainer


class Lines:
    """Batches of numbers from shards, and the position in them."""

    def __init__(self, shards, batch_size):
        self.shards, self.batch_size, self.shard, self.row = shards, batch_size, 0, 0
        self.num_read = 0

    def __iter__(self):
        while self.shard < len(self.shards):
            shard = self.shards[self.shard]
            rows = shard[self.row : self.row + self.batch_size]
            self.num_read += len(rows)
            self.row += self.batch_size
            if self.row >= len(shard):
                self.shard, self.row = self.shard + 1, 0
            yield rows
        self.shard = 0

    def state_dict(self):
        return {"shard": self.shard, "row": self.row}

    def load_state_dict(self, state):
        self.shard, self.row = state["shard"], state["row"]


class Sum(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch, state):
        loss = (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)


shards = torch.rand(4, 20, 3, generator=torch.Generator().manual_seed(0))
for name, limits in (("whole", [30]), ("cut", [17, 30])):
    for steps in limits:
        lines = Lines(shards, batch_size=8)
        trainer = Trainer(run_name=name, max_steps=steps, progress=False, log_level="quiet")
        result = trainer.fit(Sum("sum"), DataModule(train=lines))
        print(f"{name} up to {steps}: read {lines.num_read} rows, loss {result.metrics['train/loss']:.6f}")
