"""Compare learning rates and widths of the network for the digits.

    python examples/sweep.py

A sweep is a loop: a Trainer is cheap to create, a run without a root writes no files, a run without banner and progress
bars prints nothing, and `fit` returns the metrics. Eight runs of three epochs take ten seconds on one core.
"""

import itertools

import torch
from command_line import run
from digits import Digits, DigitsData
from rich import box
from rich.console import Console
from rich.table import Table

from helios_lite import Trainer


def main(
    epochs: int = 3,
    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1),
    widths: tuple[int, ...] = (8, 32),
    seed: int = 0,
    root: str | None = None,
) -> None:
    """Train every combination of a learning rate and a width, then test the best.

    Args:
        epochs: number of epochs of each run
        rates: learning rates
        widths: numbers of channels of the first layer, multiples of 8
        seed: seed of all random numbers, the same for all runs
        root: folder for the files of all runs; by default, no files are written
    """
    torch.set_num_threads(1)  # More threads would not make networks of this size faster.

    data = DigitsData()
    runs = []
    for rate, width in itertools.product(rates, widths):
        trainer = Trainer(
            run_name=f"sweep-rate-{rate:g}-width-{width}",
            root=root,
            seed=seed,
            max_epochs=epochs,
            progress=False,
            print_banner=False,
        )
        model = Digits(width, rate)
        runs.append((model, trainer, trainer.fit(model, data)))
    runs.sort(key=lambda run: run[2].metrics["valid/accuracy"], reverse=True)

    table = Table("rate", "width", "train loss", "valid loss", "valid accuracy", "seconds", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.justify = "right"
    for model, _, result in runs:
        table.add_row(
            f"{model.hparams['learning_rate']:g}",
            f"{model.hparams['width']}",
            *(f"{result.metrics[name]:.4f}" for name in ("train/loss", "valid/loss", "valid/accuracy")),
            f"{result.state.seconds:.1f}",
        )
    Console().print(table)

    # The best validation accuracy of many runs is partly luck, so the best model is judged by other data.
    model, trainer, _ = runs[0]
    metrics = trainer.test(model, data, checkpoint=None)
    rate, width = model.hparams["learning_rate"], model.hparams["width"]
    print(f"best: rate {rate:g}, width {width}; test accuracy {metrics['test/accuracy']:.4f}")


if __name__ == "__main__":
    run(main)
