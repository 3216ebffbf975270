"""Train with every kind of stdout and stderr, end in every way, and look whether the end is as it must be.

    python tests/outputs.py 1000                     # a thousand trials of the series 0
    python tests/outputs.py 1000 --seed 7            # of another series
    python tests/outputs.py --seed 7 --only 42       # the trial 42 of that series again, with what it consists of

A trial is a function of the seed and its number. One that ends wrongly is shown with the command that repeats it. The
exit status is 0 only if there is none.
"""

import argparse
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

from helpers.outputs import make_trial, problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first trial")
    parser.add_argument("--only", type=int, help="the number of the only trial")
    arguments = parser.parse_args()
    numbers: Iterable[int] = range(arguments.first, arguments.first + arguments.count)
    if arguments.only is not None:
        numbers = [arguments.only]
        print(make_trial(arguments.seed, arguments.only))
    total = wrong = 0
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="outputs-", ignore_cleanup_errors=True) as folder:
            try:
                found = problem(make_trial(arguments.seed, number), Path(folder))
            except Exception:  # It has not ended, or left no readable checkpoint.
                found = traceback.format_exc()
        total += 1
        wrong += found is not None
        if found is not None:
            print(f"WRONG: python tests/outputs.py --seed {arguments.seed} --only {number}\n    {found}", flush=True)
        elif total % 50 == 0:
            print(f"{total} trials, {wrong} wrong", flush=True)
    print(f"{total} trials, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
