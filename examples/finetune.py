"""Teach a network that knows the digits 0 to 4 the digits 5 to 9, from five examples of each.

    python examples/finetune.py

A small convolutional network is trained on all examples of 0 to 4. Its body, everything but the last layer, is then
taken over for 5 to 9, trained further or frozen, and compared with a network that learns all from the same examples.
Half a minute on one core. The body that is trained further is the best; the frozen one is nearly as good as a whole
network from nothing, with two percent of the parameters to train and no backward pass through the body.

What is to be seen here: weights alone taken out of a checkpoint, a part that is frozen (no gradients, not in the
optimizer, never in training mode), and what `fast_init` is for.
"""

import argparse
import csv
import gzip
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer

DATA = Path(__file__).parent / "data" / "optdigits.csv.gz"


class FiveDigits(Model):
    """A classifier of five digits.

    Args:
        pretrained: the checkpoint of another FiveDigits whose body is to be used; None to begin from nothing.
        frozen: leave that body as it is.
    """

    def __init__(self, save_name: str, pretrained: str | None = None, frozen: bool = False) -> None:
        super().__init__(save_name)
        self.hparams = {"pretrained": pretrained, "frozen": frozen}

    def setup(self, fast_init: bool = False) -> None:
        body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
        )
        self.body = self.parallelize(body)
        self.head = self.parallelize(nn.Linear(64 * 2 * 2, 5))
        if fast_init:
            return  # For testing: the whole network comes from a checkpoint of its own, and no optimizer is needed.
        if self.hparams["pretrained"] is not None:
            checkpoint = torch.load(self.hparams["pretrained"], map_location=self.map_loc, weights_only=True)
            self.body.load_state_dict(checkpoint["model"]["body"])  # The head and the optimizer stay behind.
        self.body.requires_grad_(not self.hparams["frozen"])
        trained = [p for part in (self.body, self.head) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=3e-3)

    def train(self) -> None:
        """Switch to training mode, in which a frozen body would still change: batch norm counts what it sees."""
        super().train()
        if self.hparams["frozen"]:
            self.body.eval()

    def train_step(self, batch, state) -> None:
        images, labels = batch
        with self.autocast():
            loss = F.cross_entropy(self.head(self.body(images)), labels)
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)

    def valid_step(self, batch, step) -> None:
        images, labels = batch
        scores = self.head(self.body(images))
        self.log("loss", F.cross_entropy(scores, labels))
        self.log("accuracy", (scores.argmax(-1) == labels).float().mean())


def read(first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of five digits from `first` on, and their labels from 0."""
    with gzip.open(DATA, "rt") as file:
        rows = torch.tensor([[int(value) for value in row] for row in csv.reader(file)])
    rows = rows[(rows[:, 64] >= first) & (rows[:, 64] < first + 5)]
    return rows[:, :64].float().reshape(-1, 1, 8, 8) / 16, rows[:, 64] - first


def many_examples() -> DataModule:
    """0 to 4: all examples, one in five for validation."""
    images, labels = read(0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, valid = (TensorDataset(images[part], labels[part]) for part in (order[180:], order[:180]))
    return DataModule(Split(train, batch_size=64, shuffle=True), Split(valid, batch_size=180))


def few_examples(shots: int, seed: int) -> DataModule:
    """5 to 9: some examples of each to train on, all others to test."""
    images, labels = read(5)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    few = torch.cat([order[labels[order] == digit][:shots] for digit in range(5)])
    others = order[~torch.isin(order, few)]
    train, test = (TensorDataset(images[part], labels[part]) for part in (few, others))
    return DataModule(train=Split(train, batch_size=10, shuffle=True), test=Split(test, batch_size=300))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="of 0 to 4 (default: %(default)s)")
    parser.add_argument("--few-epochs", type=int, default=10, help="of 5 to 9 (default: %(default)s)")
    parser.add_argument("--shots", type=int, default=5, help="examples of each of 5 to 9 (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="of these examples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--root", default="runs", help="folder for the files of 0 to 4 (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # The networks are so small that threads would mostly wait for each other.

    trainer = Trainer(root=options.root, seed=options.seed, max_epochs=options.epochs, monitor="valid/loss")
    best = str(trainer.fit(FiveDigits("digits-0-to-4"), many_examples()).best_checkpoint)

    table = Table(f"5 to 9 from {options.shots} examples of each", "trained parameters", box=box.SIMPLE_HEAD)
    table.add_column("test accuracy", justify="right")
    models = {
        "from nothing": FiveDigits("from-nothing"),
        "body of 0 to 4, trained further": FiveDigits("trained-further", best),
        "body of 0 to 4, frozen": FiveDigits("frozen", best, frozen=True),
    }
    for name, model in models.items():
        accuracies = []
        for draw in range(options.draws):
            data = few_examples(options.shots, options.seed + draw)
            # Nothing is chosen by a validation and no file is written: the final weights are what is tested.
            seed, epochs = options.seed + draw, options.few_epochs
            trainer = Trainer(root=None, seed=seed, max_epochs=epochs, progress=False, print_banner=False)
            trainer.fit(model, data)
            accuracies.append(trainer.test(model, data, checkpoint=None)["test/accuracy"])
        mean, spread = statistics.mean(accuracies), statistics.pstdev(accuracies)
        table.add_row(name, f"{model.num_parameters(trainable_only=True):,}", f"{mean:.1%} ± {spread:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
