"""Damage the files of a run folder at random, resume the run, and see that the end is right or the file is named.

    python tests/fuzz_files.py 300              # the cases 0 to 299
    python tests/fuzz_files.py 1 --seed 217     # case 217 alone, as it was

A run is stopped in its middle. In every case some of its files (checkpoints, manifest.json, metrics.jsonl, config.json,
train.log, .lock, half-written ones) are flipped, cut, zeroed, appended to, removed, copied, exchanged, or replaced by a
folder or a link; then the run is resumed. It must continue from the newest checkpoint that is intact and end bit for
bit like a run that was never stopped, with a warning that names each file passed over; or, where a folder or a link is
in the place of a file, raise an error that names it. No file of others may be changed.
"""

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from helpers.damage import Case, Original


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger().addHandler(logging.NullHandler())  # The warnings of the runs are not shown.
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        original = Original(Path(folder))
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            case = Case(original, Path(folder) / str(seed), seed)
            problems = case.problems()
            bad += len(problems) > 0
            for problem in problems:
                print(f"case {seed}: {case.story}: {problem}", flush=True)
            shutil.rmtree(case.root)
    print(f"{arguments.count} cases, {bad} with problems")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
