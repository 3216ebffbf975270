"""Recognise handwritten digits: a small convolutional network on 1,797 real images of 8x8 pixels.

    python examples/digits.py
    python examples/digits.py --devices 2
    torchrun --nproc-per-node 2 examples/digits.py

Training stops when the validation accuracy has not improved for eight epochs; then the best checkpoint is tested. Run
the script again: it finds the checkpoints of the first run, reports that the run had finished, and repeats the test.
Two processes with half of the batch size compute the same steps as one, up to rounding. This would not hold with
batch normalization, because each process computes its statistics from its own samples.
"""

import torch
import torch.nn.functional as F
from command_line import run
from optdigits import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer


class Digits(Model):
    def __init__(self, width: int = 32, learning_rate: float = 3e-3) -> None:
        super().__init__("digits")
        self.hparams = {"width": width, "learning_rate": learning_rate}

    def setup(self, fast_init: bool = False) -> None:
        width = self.hparams["width"]
        net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.GroupNorm(8, 2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 4 * 4, 10),
        )
        self.net = self.parallelize(net)
        if not fast_init:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.hparams["learning_rate"])

    def train_step(self, batch, state) -> None:
        images, labels = batch
        with self.autocast():
            loss = F.cross_entropy(self.net(images), labels)
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)

    def valid_step(self, batch, step) -> None:
        images, labels = batch
        scores = self.net(images)
        self.log("loss", F.cross_entropy(scores, labels))
        self.log("accuracy", (scores.argmax(-1) == labels).float().mean())


class DigitsData(DataModule):
    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self) -> None:
        images, labels = load_digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        train, valid, test = (TensorDataset(images[part], labels[part]) for part in order.split([1197, 300, 300]))
        self.train = Split(train, batch_size=self.batch_size, shuffle=True)  # The batch size is per process.
        self.valid = Split(valid, batch_size=300)
        self.test = Split(test, batch_size=300)


def main(epochs: int = 40, batch_size: int = 64, learning_rate: float = 3e-3, **options) -> None:
    """Train the network, then test its best checkpoint.

    Args:
        epochs: maximum number of epochs
        batch_size: number of samples in a batch of each process
        learning_rate: learning rate of AdamW
        options: other options of the Trainer
    """
    trainer = Trainer(
        max_epochs=epochs, monitor="valid/accuracy", mode="max", patience=8, log_every_steps=20, **options
    )
    model, data = Digits(learning_rate=learning_rate), DigitsData(batch_size)
    result = trainer.fit(model, data)
    metrics = trainer.test(model, data, checkpoint="best")
    if model.global_rank == 0:
        print(f"test accuracy {metrics['test/accuracy']:.4f} with {result.best_checkpoint}")


if __name__ == "__main__":
    run(main)
