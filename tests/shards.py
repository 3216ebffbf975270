"""Compare trainings of sharded networks, cut and resumed with other ranks and strategies, with those of one process.

    python tests/shards.py 200              # two hundred random cells of the series 0
    python tests/shards.py 200 --seed 7     # of another series
    python tests/shards.py --seed 7 --only 42

A cell is a program of helpers/situations.py, an optimizer, fp32 or bf16, and the strategies and the numbers of ranks
before and after a cut. It must end as one process does without a cut, to 1e-6; under bf16 not much further from it than
bf16 is from fp32; or with an error that says what to do. Where ranks do not do what one process does, as batch norm, a
whole run of the same ranks must have the same bits. The exit status is 0 only if all do.
"""

import argparse
import collections
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from helpers.shards import PLACES, PROGRAMS, Cell, by_one, distance, is_in_words, make_cell, run_all

from helios_lite.processes.launch import launch
from helios_lite.processes.world import World, join_world


def worker(cells: dict[int, Cell], part: str, folder: str) -> None:
    """Run in every process."""
    quieten()
    run_all(cells, part, Path(folder), join_world("cpu"))


def quieten() -> None:
    torch.set_num_threads(1)
    logging.getLogger("helios_lite").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def run_part(cells: dict[int, Cell], part: str, folder: Path) -> dict[int, Any]:
    """Run a part of all cells, with one launch for each number of ranks; return what each ends with."""
    for ranks in sorted({place[1] for place in PLACES}):
        chosen = {}
        for number, cell in cells.items():
            place = cell.first if part == "first" else cell.last
            if place is not None and place[1] == ranks:
                chosen[number] = cell
        if ranks == 1:
            run_all(chosen, part, folder, World())
            continue
        while chosen:
            given = {"cells": chosen, "part": part, "folder": str(folder)}
            try:
                launch(worker, given, processes=ranks, max_restarts=0)
            except Exception as error:
                last = [number for number in chosen if (folder / f"{number}-{part}.begun").exists()][-1]
                torch.save({"error": f"DIED: {type(error).__name__}: {error}"}, folder / f"{last}-{part}.pt")
            chosen = {number: cell for number, cell in chosen.items() if not (folder / f"{number}-{part}.pt").exists()}
    paths = {number: folder / f"{number}-{part}.pt" for number in cells}
    return {number: torch.load(path, weights_only=False) for number, path in paths.items() if path.exists()}


def verdict(cell: Cell, end: dict[str, Any], whole: dict[str, Any] | None) -> tuple[str, str]:
    """Return what a cell has shown, and more of it."""
    if "error" in end:
        return ("in words" if is_in_words(cell, end["error"]) else "RAW"), end["error"]
    reference = whole or by_one(cell.situation, cell.optimizer, cell.precision)
    if "error" in reference:
        return "UNLIKE", f"the reference: {reference['error']}"
    limit, found = 0.0 if whole else 1e-6, distance(end, reference)
    if cell.precision == "bf16":
        limit = 2 * distance(reference, by_one(cell.situation, cell.optimizer, "fp32")) + 1e-3
        limit += 0.05 * (cell.optimizer in ("Rprop", "Muon"))  # A rounding may change the sign of a step.
    return ("right" if found <= limit else "DIFFERENT"), f"{found:.1e} (limit {limit:.1e})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the only cell")
    arguments = parser.parse_args()
    quieten()
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    cells = {number: make_cell(arguments.seed, number) for number in numbers}
    with tempfile.TemporaryDirectory(prefix="shards-") as name:
        folder = Path(name)
        cut = run_part({number: cell for number, cell in cells.items() if cell.first is not None}, "first", folder)
        going_on = {number: cell for number, cell in cells.items() if "error" not in cut.get(number, {})}
        ends = {**cut, **run_part(going_on, "last", folder)}
        # As a batch norm, which has the statistics of its rank.
        unlike = {number: cell for number, cell in going_on.items() if not PROGRAMS[cell.situation].like_one}
        (folder / "whole").mkdir()
        whole = run_part(unlike, "last", folder / "whole")
        counts = collections.Counter[str]()
        for number, cell in cells.items():
            kind, text = verdict(cell, ends[number], whole.get(number))
            counts[kind] += 1
            if kind.isupper() or arguments.only is not None:
                print(f"{kind}: python tests/shards.py --seed {arguments.seed} --only {number}\n    {cell}\n    {text}")
    print(f"{len(cells)} cells: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    sys.exit(any(kind.isupper() for kind in counts))


if __name__ == "__main__":
    main()
