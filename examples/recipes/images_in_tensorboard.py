"""Reconstructed images in TensorBoard, and a table of runs with their hyperparameters.

    python examples/recipes/images_in_tensorboard.py

docs/images_in_tensorboard.md has more about it.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.loggers import TensorBoardLogger


class Autoencoder(Model):
    def __init__(self, width, rate):
        super().__init__("autoencoder")
        self.hparams = {"width": width, "rate": rate}

    def setup(self, fast_init=False):
        width = self.hparams["width"]
        layers = [nn.Flatten(), nn.Linear(256, width), nn.Tanh(), nn.Linear(width, 256)]
        self.net = self.parallelize(nn.Sequential(*layers))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hparams["rate"])

    def train_step(self, batch, state):
        loss = (self.net(batch[0]) - batch[0].flatten(1)).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)

    def on_validation_start(self, validation_cycle):
        self.pictures = []

    def valid_step(self, batch, step):
        output = self.net(batch[0])
        self.log("loss", (output - batch[0].flatten(1)).square().mean())
        if step == 0:
            self.pictures = output[:4].view(-1, 1, 16, 16).clamp(0, 1)

    def on_validation_end(self, validation_cycle):
        writer = self.trainer.loggers[0].writer
        if writer is not None and validation_cycle > 0:  # Cycle 0 is the sanity check.
            writer.add_images("reconstructions", self.pictures, validation_cycle)

    def on_training_end(self):
        writer = self.trainer.loggers[0].writer
        if writer is not None:
            writer.add_hparams(self.hparams, {"final/loss": self.metrics["valid/loss"]}, run_name=".")


# Pictures of a spot that is somewhere.
places = torch.rand(512, 2, 1, 1, generator=torch.Generator().manual_seed(0)) * 12 + 2
rows, columns = torch.arange(16.0)[:, None], torch.arange(16.0)
distances = (rows - places[:, 0]).square() + (columns - places[:, 1]).square()
images = TensorDataset(torch.exp(-distances / 6))

for width, rate in ((2, 0.01), (32, 0.001), (32, 0.01)):
    name = f"{width}-{rate}"
    data = DataModule(Split(images, batch_size=64, shuffle=True), Split(images, batch_size=128))
    logger = TensorBoardLogger(f"runs/tensorboard/{name}")
    options = {"max_epochs": 10, "log_every_steps": 4, "progress": False, "log_level": "quiet"}
    Trainer(run_name=name, loggers=[logger], **options).fit(Autoencoder(width, rate), data)
