"""Recognise handwritten digits: a small convolutional network on 1,797 real images of 8x8 pixels.

    python examples/digits.py
    python examples/digits.py --devices 2
    torchrun --nproc-per-node 2 examples/digits.py

Trains until the validation accuracy has not risen for some epochs, then tests the best checkpoint. Run it twice: the
second run finds the first one's checkpoints, says that it had finished, and tests again. Two processes with half the
batch size each do what one does (to rounding): there is no batch norm, whose statistics a process computes for itself.
"""

import argparse
import csv
import gzip
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer

DATA = Path(__file__).parent / "data" / "optdigits.csv.gz"


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
        with gzip.open(DATA, "rt") as file:
            rows = torch.tensor([[int(value) for value in row] for row in csv.reader(file)])
        images = rows[:, :64].float().reshape(-1, 1, 8, 8) / 16
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        train, valid, test = (TensorDataset(images[part], rows[part, 64]) for part in order.split([1197, 300, 300]))
        self.train = Split(train, batch_size=self.batch_size, shuffle=True)  # So many in every process.
        self.valid = Split(valid, batch_size=300)
        self.test = Split(test, batch_size=300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="at most so many (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="(default: %(default)s)")
    parser.add_argument(
        "--patience", type=int, default=8, help="validations without a better one (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="processes to start (default: %(default)s)")
    parser.add_argument("--root", default="runs", help="folder for the run's files (default: %(default)s)")
    options = parser.parse_args()

    trainer = Trainer(
        root=options.root,
        seed=options.seed,
        devices=options.devices,
        accelerator="cpu" if options.devices > torch.cuda.device_count() else "auto",
        max_epochs=options.epochs,
        monitor="valid/accuracy",
        mode="max",
        patience=options.patience,
        log_every_steps=20,
    )
    model, data = Digits(learning_rate=options.learning_rate), DigitsData(options.batch_size)
    result = trainer.fit(model, data)
    metrics = trainer.test(model, data, checkpoint="best")
    if model.global_rank == 0:
        print(f"test accuracy {metrics['test/accuracy']:.4f} with {result.best_checkpoint}")


if __name__ == "__main__":
    main()
