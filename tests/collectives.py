"""Compare the collectives of the ranks of random runs, whose clocks differ by seconds.

    python tests/collectives.py 300              # three hundred runs, of two and of three ranks
    python tests/collectives.py 50 --seed 7      # of another series

Each run is ended by a limit or by a signal to one of its ranks, and goes on to its end. The ranks must call the same
collectives at the same places in the same order. The exit status is 0 only if all do.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import torch
from helpers.collectives import first_difference

from helios_lite.processes.launch import launch
from helios_lite.processes.world import join_world


def compare(seed: int, first: int, last: int, folder: str) -> list[str]:
    """Run in every process."""
    torch.set_num_threads(1)
    logging.getLogger("helios_lite").setLevel(logging.CRITICAL)
    return first_difference(seed, range(first, last), Path(folder), join_world("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = []
    for first in range(0, arguments.count, 20):
        last = min(first + 20, arguments.count)
        ranks = 2 + first // 20 % 2
        with tempfile.TemporaryDirectory(prefix="collectives-") as folder:
            given = {"seed": arguments.seed, "first": first, "last": last, "folder": folder}
            differences = launch(compare, given, processes=ranks, max_restarts=0)
        for text in differences:
            print(f"DIFFERENT with {ranks} ranks: {text}", flush=True)
        found += differences
        print(f"{last} runs, {len(found)} different", flush=True)
    sys.exit(len(found) > 0)


if __name__ == "__main__":
    main()
