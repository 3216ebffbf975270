"""Kill trainings with SIGKILL at random moments and compare what they end with, bit for bit.

    python tests/kill.py 50 --num-workers 2
    python tests/kill.py 30 --strategy fsdp

Every run is started, killed after a random time, and started again until it ends by itself; every second start is
killed as well. With `--strategy fsdp` two processes share the networks, and one of them or all are killed. Then its
checkpoint, rows of metrics and batches must equal those of a run that nobody killed.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.compare import same
from helpers.processes import finish, killed_and_finished
from helpers.resumable import outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = ["--num-workers", str(arguments.num_workers), "--strategy", arguments.strategy]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        whole = Path(folder) / "whole"
        whole.mkdir()
        finish(whole, *options)
        expected = outcome(whole)
        runs = [
            pool.submit(killed_and_finished, Path(folder) / str(seed), seed, *options)
            for seed in range(arguments.seed, arguments.seed + arguments.count)
        ]
        different = total = 0
        for seed, run in enumerate(runs, start=arguments.seed):
            end, kills = run.result()
            equal = same(end, expected)
            different += not equal
            total += kills
            print(f"run {seed}: killed {kills} times, {'equal' if equal else 'DIFFERENT'}", flush=True)
    print(f"{arguments.count} runs, {total} kills, {different} different")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
