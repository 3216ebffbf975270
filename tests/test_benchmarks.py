"""The benchmarks run, and end with the weights that they compare, when they are made small."""

import shutil
from pathlib import Path

import pytest
from helpers import scripts

pytestmark = pytest.mark.ecosystem  # Not for its libraries, but because it takes a minute.

ROOT = Path(__file__).parents[1]
SMALLER = {  # A line of a benchmark, and what it becomes.
    "checkpoint_stall": {"NUMBERS, SAVES = 25_000_000, 3": "NUMBERS, SAVES = 25_000, 1"},
    "ddp": {},
    "digests": {"PAIRS = 100": "PAIRS = 3"},
    "in_memory": {"EPOCHS, STEPS = 12, 125": "EPOCHS, STEPS = 2, 5"},
    "large_orders": {
        '"1e8": 10**8, "1e10": 10**10': '"1e8": 10**5, "1e10": 2**24',
        "ROWS, ROW, PART = 2**21, 1024, 8": "ROWS, ROW, PART = 2**14, 16, 8",
        "SAMPLES, WIDTH, SORTED_BLOCK = 10, 2**19, 16, 64": "SAMPLES, WIDTH, SORTED_BLOCK = 10, 2**12, 16, 64",
    },
    "resume_position": {"NEAR, FAR, BATCH, AFTER = 10, 1_000_000, 8, 3": "NEAR, FAR, BATCH, AFTER = 2, 50, 8, 3"},
    "sharded": {"SAVES, STEPS = 4, 22, 2048, 3, 12": "SAVES, STEPS = 2, 2, 64, 1, 4"},
    "sharded_steps": {"= 2, 8, 1024, 64, 16, 8": "= 2, 2, 16, 64, 4, 2"},
    "sharded_validation": {
        "PROCESSES, BLOCKS, WIDTH, BATCH = 4, 20, 2048, 8": "PROCESSES, BLOCKS, WIDTH, BATCH = 2, 2, 64, 8"
    },
    "step_overhead": {
        "EPOCHS, STEPS, VALID_STEPS, BATCH = 40, 250, 25, 32": "EPOCHS, STEPS, VALID_STEPS, BATCH = 3, 100, 2, 4",
        "ROUNDS = 200": "ROUNDS = 4",
    },
    "validation_memory": {"EARLY, BATCHES = 1_000, 30_000": "EARLY, BATCHES = 5, 30"},
    "workers": {"EPOCHS, SAMPLES, BATCH = 6, 4096, 64": "EPOCHS, SAMPLES, BATCH = 2, 128, 64"},
}
"""Left out are those of other trainers, which need them, of instructions, which needs valgrind, and of starts."""

PROGRAM = """
import importlib, sys
if __name__ == "__main__":
    question = importlib.import_module(f"benchmarks.{sys.argv[1]}").QUESTION
    runs = {name: [variant()] for name, variant in question.variants.items()}
    question._require_same_weights(runs)
    assert all(figure.row() for figure in question.figures(runs))
"""


@pytest.fixture(scope="module")
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all benchmarks, made small."""
    if "ecosystem" not in request.config.option.markexpr:
        pytest.skip("runs with python -m pytest -m ecosystem tests/test_benchmarks.py")
    root = tmp_path_factory.mktemp("small")
    shutil.copytree(ROOT / "benchmarks", root / "benchmarks", ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name, lines in SMALLER.items():
        path = root / f"benchmarks/{name}.py"
        text = path.read_text()
        for line, smaller in lines.items():
            assert text.count(line) == 1, (name, line)
            text = text.replace(line, smaller)
        path.write_text(text)
    (root / "program.py").write_text(PROGRAM)
    return root


@pytest.mark.parametrize("name", SMALLER)
def test_a_benchmark_runs_when_it_is_made_small(name: str, small: Path) -> None:
    scripts.run(small / "program.py", name, cwd=small, env={"PYTHONPATH": f"{small}:{ROOT}"})
