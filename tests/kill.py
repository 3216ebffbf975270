"""Kill trainings with SIGKILL at random moments and compare what they end with, bit for bit.

    python tests/kill.py 50 --num-workers 2
    python tests/kill.py 30 --strategy fsdp
    python tests/kill.py 60 --strategy fsdp --optimizer Muon named

Every run is started, killed after a random time, and started again until it ends by itself; every second start is
killed as well. With `--strategy fsdp` two processes share the networks, and one of them or all are killed. Several
optimizers, of helpers/optimizers.py, are taken in turn. Then its checkpoint, rows of metrics and batches must equal
those of a run that nobody killed.
"""

import argparse
import itertools
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.compare import same
from helpers.optimizers import OPTIMIZERS
from helpers.processes import finish, killed_and_finished
from helpers.resumable import outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=["AdamW"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = ["--num-workers", str(arguments.num_workers), "--strategy", arguments.strategy, "--optimizer"]
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    optimizers = dict(zip(seeds, itertools.cycle(arguments.optimizer)))

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        expected = {}
        for name in arguments.optimizer:
            whole = Path(folder) / f"whole {name}"
            whole.mkdir()
            finish(whole, *options, name)
            expected[name] = outcome(whole)
        runs = [
            pool.submit(killed_and_finished, Path(folder) / str(seed), seed, *options, name)
            for seed, name in optimizers.items()
        ]
        different = total = 0
        for seed, run in enumerate(runs, start=arguments.seed):
            end, kills = run.result()
            equal = same(end, expected[optimizers[seed]])
            different += not equal
            total += kills
            print(
                f"run {seed}, {optimizers[seed]}: killed {kills} times, {'equal' if equal else 'DIFFERENT'}", flush=True
            )
    print(f"{arguments.count} runs, {total} kills, {different} different")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
