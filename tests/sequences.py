"""Do random sequences of calls on the same runs, and look whether each logger has every row once.

    python tests/sequences.py 300                    # three hundred sequences of the series 0
    python tests/sequences.py 300 --seed 7           # of another series
    python tests/sequences.py --seed 7 --only 42     # the sequence 42 of that series again, with what it consists of
    python tests/sequences.py 300 --without-libraries  # without MLflow and W&B, which take most of the time

A sequence consists of trainings that are cut (by an exception, SIGTERM or SIGKILL, also between two loggers), resumed,
taken back to the best checkpoint or changed, of tests, validations, predictions, replays, plans and quick checks, of
two runs whose loggers have the same folder and files of ids. Afterwards each logger must have the rows of metrics.jsonl
of each run, and what belongs to others must be as it was. The exit status is 0 only if nothing is wrong.
"""

import argparse
import dataclasses
import logging
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from helpers.sequences import make_case, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first sequence")
    parser.add_argument("--only", type=int, help="the number of the only sequence")
    parser.add_argument("--without-libraries", action="store_true", help="without MLflow and W&B")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"WANDB_SILENT": "true", "KINETO_LOG_LEVEL": "99"}
    logging.getLogger("helios_lite").setLevel(logging.CRITICAL)
    numbers: Iterable[int] = range(arguments.first, arguments.first + arguments.count)
    if arguments.only is not None:
        numbers = [arguments.only]
        for name, value in dataclasses.asdict(make_case(arguments.seed, arguments.only)).items():
            for text in value if isinstance(value, list) else [value]:
                print(f"{name}: {text}")
    total = bad = 0
    with tempfile.TemporaryDirectory(prefix="sequences-") as name:
        make_store = None if arguments.without_libraries else empty_store(Path(name))
        if make_store is not None:
            preload()
        for number in numbers:
            with tempfile.TemporaryDirectory(prefix="sequence-") as folder:
                try:
                    found = wrong(make_case(arguments.seed, number), Path(folder), make_store)
                except Exception:
                    found = traceback.format_exc()
            total += 1
            bad += found is not None
            if found is not None:
                print(
                    f"WRONG: python tests/sequences.py --seed {arguments.seed} --only {number}\n    {found}", flush=True
                )
            elif total % 20 == 0:
                print(f"{total} sequences, {bad} wrong", flush=True)
    print(f"{total} sequences, {bad} wrong")
    sys.exit(bad > 0)


def empty_store(folder: Path) -> Callable[[Path], str]:
    """Make a store of MLflow without runs, which takes seconds, in a process of its own; return what copies it."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=make_store, args=(folder,))
    process.start()
    process.join()

    def copy(root: Path) -> str:
        shutil.copy(folder / "mlflow.db", root)
        return f"sqlite:///{root}/mlflow.db"

    return copy


def preload() -> None:
    """Import what each call would import, which takes longer than the call, in the process that is forked for it."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import wandb.sdk.launch  # noqa: F401
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    torch.optim.SGD([torch.zeros(1)])  # It imports half of PyTorch.


def make_store(folder: Path) -> None:
    warnings.simplefilter("ignore")
    import mlflow

    mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()


if __name__ == "__main__":
    main()
