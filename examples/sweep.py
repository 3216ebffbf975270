"""Compare learning rates and widths of the network for the digits.

    python examples/sweep.py

A sweep is a loop. A Trainer is as cheap as a dict, a run without a root writes no file and without banner and bars
says nothing, and `fit` returns its metrics. Eight runs of three epochs, in ten seconds on one core.
"""

import argparse
import itertools

import torch
from digits import Digits, DigitsData
from rich import box
from rich.console import Console
from rich.table import Table

from helios_lite import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="of every run (default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1], metavar="RATE")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 32], metavar="WIDTH", help="multiples of 8")
    parser.add_argument("--seed", type=int, default=0, help="the same for all runs (default: %(default)s)")
    parser.add_argument("--root", help="folder for the runs' files (default: none are written)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # The networks are so small that threads would mostly wait for each other.

    data = DigitsData()
    runs = []
    for rate, width in itertools.product(options.rates, options.widths):
        trainer = Trainer(
            run_name=f"sweep-rate-{rate:g}-width-{width}",
            root=options.root,
            seed=options.seed,
            max_epochs=options.epochs,
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

    # The best of many is partly luck: what it is worth is told by data that did not choose it.
    model, trainer, _ = runs[0]
    metrics = trainer.test(model, data, checkpoint=None)
    rate, width = model.hparams["learning_rate"], model.hparams["width"]
    print(f"best: rate {rate:g}, width {width}; test accuracy {metrics['test/accuracy']:.4f}")


if __name__ == "__main__":
    main()
