"""How long a program takes from its start to its first step: python -m benchmarks.start"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.rounds import FOLDER, Figure, Question, Result, Runs, differences, each, ratios

NETWORK = """
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

torch.manual_seed(0)
X, Y = torch.randn(640, 8), torch.randn(640, 8)


def begin_step(rank):
    if rank == 0 and not Path(sys.argv[1]).exists():
        Path(sys.argv[1]).write_text(str(time.monotonic()))
"""

TRAINER = (
    NETWORK
    + """
from helios_lite import DataModule, Model, Split, Trainer


class Linear(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(8, 8))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)

    def train_step(self, batch, state):
        begin_step(self.global_rank)
        x, y = batch
        self.backward(F.mse_loss(self.net(x), y))
        self.optimizer_step(self.optimizer)


if __name__ == "__main__":
    data = DataModule(train=Split(torch.utils.data.TensorDataset(X, Y), batch_size=32, shuffle=True))
    trainer = Trainer(max_epochs=1, root=None, accelerator="cpu", devices=int(sys.argv[2]), print_banner=False)
    trainer.fit(Linear("linear"), data)
"""
)

BY_HAND = (
    NETWORK
    + """
import os
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

net, data, rank = torch.nn.Linear(8, 8), TensorDataset(X, Y), 0
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    net = DistributedDataParallel(net)
    loader = DataLoader(data, batch_size=32, sampler=DistributedSampler(data))
else:
    loader = DataLoader(data, batch_size=32, shuffle=True)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for x, y in loader:
    begin_step(rank)
    F.mse_loss(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
    time.sleep(0.2)  # Otherwise a thread of gloo may abort the process while it exits.
"""
)


def started(script: str, processes: int, launcher: tuple[str, ...] = ()) -> Result:
    """Run a script; return the seconds from the start of the command to its first step, and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        program, report = Path(folder, "train.py"), Path(folder, "first")
        program.write_text(script)
        command = [sys.executable, *launcher, str(program), str(report), str(processes)]
        environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr, stderr=sys.stderr)
        end = time.monotonic()
        return {"first": float(report.read_text()) - start, "end": end - start}


def by_torchrun(processes: int) -> Result:
    """As `started`, with the loop by hand in so many processes."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone")
    return started(BY_HAND, processes, torchrun)


def figures(runs: Runs) -> list[Figure]:
    one = "one process"
    found = [
        Figure(f"{one}: trainer / by hand", "ratio", ratios(runs, one, f"{one} by hand", "first")),
        Figure(f"{one}: trainer - by hand", "ms", differences(runs, one, f"{one} by hand", "first", 1e3)),
        Figure(f"{one}, by hand", "s", each(runs, f"{one} by hand", "first")),
    ]
    for several, number in (("two processes", 2), ("eight processes", 8)):
        by_hand, compared = f"{several} by hand", f"trainer(devices={number}) / torchrun"
        found += [
            Figure(f"{several}: {compared}", "ratio", ratios(runs, several, by_hand, "first"), target=1),
            Figure(f"{several}, by hand with torchrun", "s", each(runs, by_hand, "first")),
            Figure(f"{several}, to the end: {compared}", "ratio", ratios(runs, several, by_hand, "end")),
        ]
    return found


QUESTION = Question(
    name="start",
    title="How long does a program take to its first step?",
    timed="""
    From the start of the command to the first training step of rank 0, and to the end of the command, of a script that
    trains Linear(8, 8) on tensors in memory: `python script.py` with the trainer, which shows what it always shows, and
    with a loop by hand; and with two and eight processes, `python script.py` with devices=2 or 8 and torchrun with a
    loop by hand.
    """,
    remains="""
    One process: importing the package, and setting up a run. Several processes: the program that starts the others
    imports PyTorch and the package, and then their fork server does, once for all of them, whereas each process of
    torchrun does; torchrun --standalone waits for a random time of up to 0.3 s, as if others could join. At the end the
    program gets the trained networks: its call of `setup` makes an optimizer, for the first of which PyTorch imports
    torch._dynamo, in 0.9 s.
    """,
    rounds=5,
    variants={
        "one process": partial(started, TRAINER, 1),
        "one process by hand": partial(started, BY_HAND, 1),
        "two processes": partial(started, TRAINER, 2),
        "two processes by hand": partial(by_torchrun, 2),
        "eight processes": partial(started, TRAINER, 8),
        "eight processes by hand": partial(by_torchrun, 8),
    },
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
