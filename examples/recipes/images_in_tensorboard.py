"""Reconstructed images in TensorBoard.

    python examples/recipes/images_in_tensorboard.py

docs/images_in_tensorboard.md has more about it.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.loggers import TensorBoardLogger


class Autoencoder(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 64)))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

    def train_step(self, batch, state):
        self.backward((self.net(batch[0]) - batch[0].flatten(1)).square().mean())
        self.optimizer_step(self.optimizer)

    def on_validation_start(self, validation_cycle):
        self.pictures = []

    def valid_step(self, batch, step):
        output = self.net(batch[0])
        self.log("loss", (output - batch[0].flatten(1)).square().mean())
        if step == 0:
            self.pictures = output[:4].view(-1, 1, 8, 8).clamp(0, 1)

    def on_validation_end(self, validation_cycle):
        writer = self.trainer.loggers[0].writer
        if writer is not None and validation_cycle > 0:  # Cycle 0 is the sanity check.
            writer.add_images("reconstructions", self.pictures, validation_cycle)


images = TensorDataset(torch.rand(64, 8, 8, generator=torch.Generator().manual_seed(0)))
data = DataModule(Split(images, batch_size=16, shuffle=True), Split(images, batch_size=32))
logger = TensorBoardLogger("runs/tensorboard")
Trainer(max_epochs=3, loggers=[logger], progress=False, log_level="quiet").fit(Autoencoder("autoencoder"), data)
