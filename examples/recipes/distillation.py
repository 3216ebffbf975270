"""Distillation: a student learns from a frozen teacher.

    python examples/recipes/distillation.py

docs/distillation.md has more about it.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer


class Distilled(Model):
    def setup(self, fast_init=False):
        torch.manual_seed(1)
        teacher = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
        self.teacher = teacher.to(self.device).requires_grad_(False).eval()  # Stays in evaluation mode.
        self.student = self.parallelize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=0.01)

    def loss(self, x):
        wanted = F.log_softmax(self.teacher(x) / 2, -1)
        return F.kl_div(F.log_softmax(self.student(x) / 2, -1), wanted, log_target=True, reduction="batchmean")

    def train_step(self, batch, state):
        loss = self.loss(batch[0])
        self.backward(loss)
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch, step):
        agree = self.student(batch[0]).argmax(-1) == self.teacher(batch[0]).argmax(-1)
        self.log("agreement", agree.float().mean())


x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
split = Split(TensorDataset(x), batch_size=32, shuffle=True)
trainer = Trainer(max_epochs=10, root=None, progress=False, log_level="quiet")
print(trainer.fit(Distilled("distilled"), DataModule(split, split)).metrics["valid/agreement"] > 0.9)
