"""Replay random steps of a training that was killed again and again, and compare them bit for bit.

    python tests/replays.py 100

The training has shuffled and augmented data, dropout, accumulation and averaged weights; every process of it is killed
at a random moment and started again. Afterwards random steps are replayed, and the run folder must be as it was. Then
half as many trainings have one sample that is NaN, and the replay must name it.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from helpers.replayed import Digests, Dropped, data, digest, digests, files, trainer


def train(root: Path) -> None:
    options = {"max_epochs": 40, "callbacks": [*trainer(root).callbacks, Digests(root / "digests", pace=0.02)]}
    trainer(root, **options).fit(Dropped(), data())


def killed_training(root: Path, generator: random.Random) -> int:
    """Train in processes that are killed after random times, and return the number of kills."""
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, __file__, "--train", str(root)])
        try:
            process.wait(generator.uniform(2.5, 4.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        return kills


def replay_all(count: int, seed: int) -> int:
    """Return how many replays were different."""
    generator, wrong = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        kills = killed_training(root, generator)
        expected, before = digests(root / "digests"), files(root)
        for step in generator.sample(sorted(expected), count):
            model = Dropped()
            trainer(root, max_epochs=40).replay(model, data(num_workers=step % 2), step)
            wrong += digest(model) != expected[step]
        print(f"{count} of {len(expected)} steps replayed, killed {kills} times: {wrong} different", flush=True)
        wrong += files(root) != before
        for i in range(count // 2):
            poisoned, options = generator.randrange(44), {"run_name": f"poisoned_{i}", "seed": i, "log_every_steps": 3}
            with contextlib.suppress(FloatingPointError):
                trainer(root, **options).fit(Dropped(), data(poisoned))
            replayed = trainer(root, **options).replay(Dropped(), data(poisoned), 6)
            wrong += [i for batch in replayed.batches for i in batch.not_finite_indices()] != [poisoned]
    print(f"{wrong} different, with {count // 2} poisoned samples")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train is not None:
        train(arguments.train)
    else:
        sys.exit(replay_all(arguments.count, arguments.seed) > 0)


if __name__ == "__main__":
    main()
