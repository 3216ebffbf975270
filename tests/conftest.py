import gc
import importlib.util
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests compare bits of the CPU, and compute there also where a GPU is: its own tests are run apart from all others.
if os.environ.setdefault("TEST_ON_GPU", str(any("test_gpu.py" in argument for argument in sys.argv))) == "False":
    os.environ.setdefault("TEST_VISIBLE_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Of all processes that tests start; before the first of them, since those of a fork server show what it began with.
os.environ["TEST_MARK"] = uuid.uuid4().hex

pytest.register_assert_rewrite("helpers")  # Their assertions hold under `python -O` too.

started = time.monotonic()
import torch  # noqa: E402

from helios_lite.processes import forkserver  # noqa: E402

if "EMULATED" in os.environ:
    from helpers.emulated import emulate

    emulate()

# Limits, which are for hangs only, are longer where everything is. Measured once: processes of pytest-xdist inherit it.
os.environ.setdefault("TEST_IMPORT_SECONDS", str(time.monotonic() - started))

# Networks this small only wait for their threads, here and in the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

forkserver.PRELOADED += ["pytest", "torchmetrics"]  # Launched processes import modules of tests.

HAS_LOGGERS = all(importlib.util.find_spec(name) is not None for name in ("mlflow", "wandb"))

# The files that take longest, which start first, so that no process of pytest is left with one while others have ended.
# One that mostly computes is beside those that mostly wait.
LONGEST = [
    "networks/test_situations",
    "processes/test_launch",
    "tools/test_audit",
    "processes/test_hangs",
    "networks/test_distributed",
    "processes/test_failures",
    "processes/test_forkserver",
    "processes/test_clusters",
    "test_emulated_device",
    "training/test_interrupts",
    "test_examples_generative",
    "training/test_resume",
    "test_loggers",
    "loading/test_loaders",
    "training/test_changed_numbers",
    "training/test_ends",
    "checkpoints/test_sharded",
    "networks/test_sharded_networks",
    "loading/test_passes",
    "calls/test_leaves_nothing_behind",
    "tools/test_command",
    "test_examples",
    "test_examples_lessons",
    "test_docs",
    "display/test_console",
    "test_options",
    "training/test_fuzz",
    "test_works_with",
    "calls/test_predict",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let no garbage collection look through all that was imported, nor copy it in the processes that are forked."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each test the same random numbers, whichever ran before it in the process.

    And skip here what lacks something, and not by marks, so that the summary has one line for all of one kind.
    """
    torch.manual_seed(0)
    random.seed(0)
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and is run apart: python -m pytest tests/test_gpu.py")
    if item.get_closest_marker("loggers") is not None and not HAS_LOGGERS:
        pytest.skip("needs MLflow and W&B: pip install -c constraints.txt -e '.[test-loggers]'")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle SIGINT, which is ignored in what a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
