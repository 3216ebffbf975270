"""What a restart of a compiled training takes to its first step: python -m benchmarks.compiled_restart"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.rounds import FOLDER, Figure, Question, Result, Runs, each

PROGRAM = """
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from helios_lite import DataModule, Model, Split, Trainer


class Layers(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)

    def train_step(self, batch, state):
        (x,) = batch
        self.backward(F.mse_loss(self.net(x), x))
        self.optimizer_step(self.optimizer)

    def on_training_batch_end(self, state, should_log=False):
        if not Path("first").exists():
            Path("first").write_text(str(time.monotonic()))


torch.manual_seed(0)
data = DataModule(train=Split(torch.utils.data.TensorDataset(torch.randn(64, 16, 32)), batch_size=8))
Trainer(max_steps=int(sys.argv[1]), compile=True, accelerator="cpu", progress=False, log_level="quiet").fit(
    Layers("layers"), data
)
"""


def restarted(loses_cache: bool) -> Result:
    """Train one step, and then one more; return the seconds from the start of each command to the end of its step.

    Args:
        loses_cache: whether PyTorch's own cache is gone between the two, as on another machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        program, first = Path(folder, "train.py"), Path(folder, "first")
        cache = Path(folder, "cache")
        program.write_text(PROGRAM)
        environment = {
            **os.environ,
            "PYTHONPATH": str(FOLDER.parent),
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            "XDG_CONFIG_HOME": folder,
        }
        seconds = []
        for max_steps in (1, 2):
            start = time.monotonic()
            command = [sys.executable, str(program), str(max_steps)]
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=sys.stderr, stderr=sys.stderr)
            seconds.append(float(first.read_text()) - start)
            first.unlink()
            if loses_cache:
                shutil.rmtree(cache)
        return {"first": seconds[0], "again": seconds[1]}


def figures(runs: Runs) -> list[Figure]:
    found = [Figure("the first start", "s", each(runs, "the same machine", "first"))]
    for variant in runs:
        quotients = [run["again"] / run["first"] for run in runs[variant]]
        target = 1 / 3 if variant == "the same machine" else None
        found.append(Figure(f"a restart on {variant} / the first start", "ratio", quotients, target=target))
    return found


QUESTION = Question(
    name="compiled_restart",
    title="What does a restart of a compiled training take to its first step?",
    timed="""
    From the start of the command to the end of its first step, of a script that trains a transformer layer
    with compile=True on the CPU; the first start finds no cache, and the second one goes on from its checkpoint: on the
    same machine, and on another one that has the run folder only.
    """,
    remains="""
    Importing PyTorch and its compiler, tracing the networks, and on another machine building the C++ of the kernels,
    which `torch.compiler.save_cache_artifacts` leaves out for the CPU. It holds the kernels of a GPU.
    """,
    rounds=3,
    variants={"the same machine": partial(restarted, False), "another machine": partial(restarted, True)},
    figures=figures,
    timeout=600,
)

if __name__ == "__main__":
    QUESTION.answer()
