"""Curves in a browser while a run goes on, with Trackio, without an account.

    pip install trackio
    python examples/recipes/live_view_with_trackio.py

docs/live_view.md has more about it.
"""

import json
import os
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer

os.environ.setdefault("TRACKIO_DIR", "runs/trackio")  # Trackio reads it when it is imported.
try:
    import trackio
except ImportError:
    raise SystemExit("this recipe needs trackio: pip install trackio") from None


class TrackioLogger:
    """Sends every row of a training to Trackio once, also if the run is killed and resumed."""

    def __init__(self, project, name, seen):
        self.project, self.name, self.seen = project, name, Path(seen)  # `seen` has the last step of every metric.
        self.is_training, self.last = False, {}

    def log_config(self, config):
        self.last = json.loads(self.seen.read_text()) if self.seen.exists() else {}
        trackio.init(self.project, self.name, config=dict(config), resume="allow", embed=False)
        self.is_training = True

    def log_metrics(self, metrics, step):
        new = {name: value for name, value in metrics.items() if step > self.last.get(name, -1)}
        if self.is_training and new:
            trackio.log(new, step=step)
            self.last |= dict.fromkeys(new, step)
            self.seen.write_text(json.dumps(self.last))

    def close(self):
        if self.is_training:
            trackio.finish()
        self.is_training = False


class Line(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.02)

    def train_step(self, batch, state):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)

    def valid_step(self, batch, step):
        x, y = batch
        self.log("error", (self.net(x) - y).abs().mean())


x = torch.linspace(-1, 1, 200)[:, None]
line = TensorDataset(x, 3 * x + 1)
data = DataModule(train=Split(line, batch_size=10, shuffle=True), valid=Split(line, batch_size=100))
for epochs in (2, 4):  # The second start goes on where the first one has ended, in the same curves.
    logger = TrackioLogger("lines", "sgd", "runs/line/trackio.json")
    options = {"log_every_steps": 5, "progress": False, "log_level": "quiet"}
    Trainer(max_epochs=epochs, loggers=[logger], **options).fit(Line("line"), data)
