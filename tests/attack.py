"""Attack trainings with two ranks: in every method of the user's one rank raises, exits, is killed or stops.

    python tests/attack.py                                     # all: half an hour
    python tests/attack.py -k teardown --troubles abort stop   # places with this word in them, some troubles
    python tests/attack.py --sample 40 --seed 1                # some of all

The run must end within ten seconds with the error of that rank, and leave no process behind. What is called
on rank 0 only is attacked there, the rest on rank 1, or as `--rank` says.
"""

import argparse
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

from helpers.attacked import ON_RANK_0, PLACES, TROUBLES, prepare, verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="word", default="", help="only places with this word in them")
    parser.add_argument("--troubles", nargs="+", choices=TROUBLES, default=[*TROUBLES])
    parser.add_argument("--rank", type=int, choices=(0, 1), default=1)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--sample", type=int, help="only so many, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["TEST_MARK"] = uuid.uuid4().hex
    attacks = [(place, trouble) for place in PLACES if arguments.k in place for trouble in arguments.troubles]
    if arguments.sample is not None:
        attacks = random.Random(arguments.seed).sample(attacks, min(arguments.sample, len(attacks)))
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        prepare(prepared)
        for number, (place, trouble) in enumerate(attacks):
            rank = 0 if place.split(".")[1] in ON_RANK_0 else arguments.rank
            started = time.monotonic()
            wrong = verdict(place, trouble, rank, Path(folder) / str(number), prepared, arguments.num_workers)
            bad += wrong != ""
            seconds = time.monotonic() - started
            print(f"{place}, {trouble}, rank {rank}: {wrong or 'good'} ({seconds:.1f} s in all)", flush=True)
    print(f"{len(attacks)} attacks, {bad} bad")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
