"""Cut random trainings at random places, resume them, and compare their ends with uninterrupted ones, bit for bit.

    python tests/fuzz.py 300                      # three hundred cases of the series 0
    python tests/fuzz.py 300 --seed 7             # of another series
    python tests/fuzz.py --seed 7 --only 42       # the case 42 of that series again, with what it consists of

A case is a function of the seed and its number: options, data, model, and how its starts end (a limit, an exception or
SIGTERM in a hook, SIGKILL). Only the moment of a SIGKILL is not repeated exactly. A case that differs is shown with the
command that repeats it and the first value that differs. The exit status is 0 only if there is none.
"""

import argparse
import dataclasses
import logging
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
from helpers.fuzzing import difference, make_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int, help="the number of the only case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("helios_lite").setLevel(logging.CRITICAL)
    numbers: Iterable[int] = range(arguments.first, arguments.first + arguments.count)
    if arguments.only is not None:
        numbers = [arguments.only]
        for name, value in dataclasses.asdict(make_case(arguments.seed, arguments.only)).items():
            print(f"{name}: {value}")
    total = different = 0
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            try:
                found = difference(make_case(arguments.seed, number), Path(folder))
            except Exception:
                found = traceback.format_exc()
        total += 1
        different += found is not None
        if found is not None:
            print(f"DIFFERENT: python tests/fuzz.py --seed {arguments.seed} --only {number}\n    {found}", flush=True)
        elif total % 50 == 0:
            print(f"{total} cases, {different} different", flush=True)
    print(f"{total} cases, {different} different")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
