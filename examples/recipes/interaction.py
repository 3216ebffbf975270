"""Policy gradient: the batches come from walks with the present policy, and a resume is exact.

    python examples/recipes/interaction.py

docs/interaction.md has more about it.
"""

import torch
from torch import nn

from helios_lite import DataModule, Model, Trainer


class Walks:
    """Sixteen walkers between 0 and 8; the right end is the goal, and a walker that reaches an end starts anew."""

    def __init__(self):
        self.position, self.policy = torch.full((16,), 4), None

    def choose(self):
        with torch.no_grad():
            place = nn.functional.one_hot(self.position, 9).float().to(self.policy.weight.device)
            chances = self.policy(place).softmax(-1).cpu()
        return chances.multinomial(1)[:, 0]

    def __iter__(self):
        while True:
            seen, actions, rewards = [], [], []
            for _ in range(12):
                action = self.choose()
                seen.append(self.position)
                actions.append(action)
                self.position = self.position + 2 * action - 1
                rewards.append((self.position == 8).float() - (self.position == 0).float())
                self.position = torch.where(self.position % 8 == 0, 4, self.position)
            returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)
            yield torch.stack(seen, 1), torch.stack(actions, 1), returns.T

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Agent(Model):
    def __init__(self, walks):
        super().__init__("agent")
        self.walks = walks

    def setup(self, fast_init=False):
        self.net = self.walks.policy = self.parallelize(nn.Linear(9, 2))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)

    def train_step(self, batch, state):
        seen, actions, returns = batch
        chances = self.net(nn.functional.one_hot(seen, 9).float()).log_softmax(-1).gather(2, actions[..., None])[..., 0]
        self.backward(-(chances * (returns - returns.mean())).mean())
        self.optimizer_step(self.optimizer)
        self.log("return", returns[:, 0].mean())


ends = []
for name, limits in (("whole", [60]), ("cut", [23, 60])):
    for steps in limits:
        walks = Walks()
        trainer = Trainer(run_name=name, max_steps=steps, steps_per_epoch=20, progress=False, log_level="quiet")
        result = trainer.fit(Agent(walks), DataModule(train=walks))
    ends.append((result.metrics["train/return/epoch"], walks.position.tolist()))
print(f"mean return above 2.5: {ends[0][0] > 2.5}, equal after a resume: {ends[0] == ends[1]}")
