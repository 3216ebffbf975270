"""Teach a network that knows the digits 0 to 4 the digits 5 to 9, from five examples of each.

    python examples/finetune.py

A small convolutional network is trained on all examples of 0 to 4. Its body, which is every layer but the last, is then
used for 5 to 9. It is either trained further or frozen, and both are compared with a network that is trained from
scratch on the same few examples. The script takes half a minute on one core. The body that is trained further gives the
best accuracy. The frozen body is nearly as good as a network from scratch, although only two percent of the parameters
are trained and no backward pass through the body is needed.

The example shows how to start from some parts of a checkpoint (`init_from`, `init_parts`), how to freeze a part of a
model (no gradients, no optimizer, no training mode), and what `fast_init` is for.
"""

import statistics

import torch
import torch.nn.functional as F
from command_line import run
from optdigits import load_digits
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer


class FiveDigits(Model):
    """A classifier of five digits.

    Args:
        save_name: name of the run folder and of the checkpoints.
        frozen: if True, the body is not trained.
    """

    def __init__(self, save_name: str, frozen: bool = False) -> None:
        super().__init__(save_name)
        self.hparams = {"frozen": frozen}

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
            return  # Only for inference: all weights are loaded from a checkpoint, and no optimizer is needed.
        self.body.requires_grad_(not self.hparams["frozen"])
        trained = [p for part in (self.body, self.head) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=3e-3)

    def train(self) -> None:
        """Switch to training mode, except for a frozen body: batch normalization would update its statistics."""
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


def load_five_digits(first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of the five digits from `first` on, and their labels, which count from 0."""
    images, labels = load_digits()
    chosen = (labels >= first) & (labels < first + 5)
    return images[chosen], labels[chosen] - first


def many_examples() -> DataModule:
    """Return all examples of 0 to 4, about one fifth of them for validation."""
    images, labels = load_five_digits(0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, valid = (TensorDataset(images[part], labels[part]) for part in (order[180:], order[:180]))
    return DataModule(Split(train, batch_size=64, shuffle=True), Split(valid, batch_size=180))


def few_examples(shots: int, seed: int) -> DataModule:
    """Return `shots` examples of each digit from 5 to 9 for training, and all others for testing."""
    images, labels = load_five_digits(5)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    few = torch.cat([order[labels[order] == digit][:shots] for digit in range(5)])
    others = order[~torch.isin(order, few)]
    train, test = (TensorDataset(images[part], labels[part]) for part in (few, others))
    return DataModule(train=Split(train, batch_size=10, shuffle=True), test=Split(test, batch_size=300))


def main(
    epochs: int = 10, few_epochs: int = 10, shots: int = 5, draws: int = 5, seed: int = 0, root: str = "runs"
) -> None:
    """Train on 0 to 4, then compare three ways to learn 5 to 9.

    Args:
        epochs: number of epochs on 0 to 4
        few_epochs: number of epochs on 5 to 9
        shots: number of training examples of each digit from 5 to 9
        draws: number of random choices of these examples; the table shows mean and standard deviation over them
        seed: seed of all random numbers
        root: folder for the files of the training on 0 to 4
    """
    torch.set_num_threads(1)  # More threads would not make networks of this size faster.

    trainer = Trainer(root=root, seed=seed, max_epochs=epochs, monitor="valid/loss")
    best = trainer.fit(FiveDigits("digits-0-to-4"), many_examples()).best_checkpoint
    body_of_best = {"init_from": best, "init_parts": ["body"]}  # Without the head and the optimizer.

    table = Table(f"5 to 9 from {shots} examples of each", "trained parameters", box=box.SIMPLE_HEAD)
    table.add_column("test accuracy", justify="right")
    ways = {
        "from scratch": (FiveDigits("from-scratch"), {}),
        "body of 0 to 4, trained further": (FiveDigits("trained-further"), body_of_best),
        "body of 0 to 4, frozen": (FiveDigits("frozen", frozen=True), body_of_best),
    }
    for name, (model, start) in ways.items():
        accuracies = []
        for draw in range(draws):
            data = few_examples(shots, seed + draw)
            # There is no validation and no file is written: the final weights are tested.
            quiet = {"progress": False, "print_banner": False}
            trainer = Trainer(root=None, seed=seed + draw, max_epochs=few_epochs, **start, **quiet)
            trainer.fit(model, data)
            accuracies.append(trainer.test(model, data, checkpoint=None)["test/accuracy"])
        mean, spread = statistics.mean(accuracies), statistics.pstdev(accuracies)
        table.add_row(name, f"{model.num_parameters(trainable_only=True):,}", f"{mean:.1%} ± {spread:.1%}")
    Console().print(table)


if __name__ == "__main__":
    run(main)
