"""A hidden state that goes on in the next batch, and in a resumed run.

    python examples/recipes/hidden_state.py

docs/hidden_state.md has more about it.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer


class Carried(Model):
    state_attributes = ("hidden",)  # Checkpoints hold it.

    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.GRU(1, 8, batch_first=True))
        self.head = self.parallelize(nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam([*self.net.parameters(), *self.head.parameters()], lr=0.01)
        self.hidden = torch.zeros(1, 4, 8, device=self.device)

    def train_step(self, batch, state):
        x, y = batch
        output, hidden = self.net(x, self.hidden)
        self.hidden = hidden.detach()  # The next batch goes on here, and no gradient goes back.
        loss = (self.head(output) - y).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)


wave = torch.sin(torch.arange(160.0) / 7).reshape(4, 40, 1)  # Four sequences, in five parts of eight steps.
x = torch.cat(wave.split(8, dim=1))
data = DataModule(train=Split(TensorDataset(x, x.roll(-1, 1)), batch_size=4))  # In order, not shuffled.

ends = []
for name, limits in (("whole", [12]), ("cut", [7, 12])):
    for steps in limits:
        model = Carried("carried")
        Trainer(run_name=name, max_steps=steps, progress=False, log_level="quiet").fit(model, data)
    ends.append(model.hidden)
print(torch.equal(*ends))
