"""torchrun with one machine or two, of which one comes and goes: the updates are those of one process.

    python tests/elastic.py

Two agents of `torchrun --nnodes 1:2` stand for two machines. The first trains alone, the second joins, is killed with
its rank, and comes once more. With `global_batch_size` the number of updates and the samples of each do not change, and
the weights in the end are those of one process to 1e-6. It takes about two minutes.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from helpers.models import Indices
from torch import nn

from helios_lite import DataModule, Model, Split, Trainer

STEPS = 200
LONGEST = 300.0  # Seconds; a hang.


class Elastic(Model):
    """Notes each start with its number of ranks, and each step with the samples of all ranks."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

    def train_step(self, batch, state) -> None:
        index, x = batch
        self.backward((self.net(x) - 1).square().mean())
        self.optimizer_step(self.optimizer)
        found = sorted(i for part in self.gather(index.tolist()) for i in part)
        if self.global_rank == 0:
            self.note(f"step {state.step + 1} of {self.world_size}: {found}")
        if (self.run_folder / "slow").exists():
            time.sleep(0.5)

    def note(self, line: str) -> None:
        with open(self.run_folder / "notes", "a") as file:
            file.write(line + "\n")


def train(root: Path) -> Model:
    model = Elastic("elastic")
    data = DataModule(train=Split(Indices(44), global_batch_size=8, shuffle=True))
    Trainer(root=root, max_steps=STEPS, save_every_steps=1, accelerator="cpu", progress=False).fit(model, data)
    return model


def notes(root: Path) -> list[str]:
    path = root / "elastic/notes"
    return path.read_text().splitlines() if path.exists() else []


def agent(root: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a machine; the first that comes holds the store of all."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"),
        *("--max-restarts", "9", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"),
        *("--rdzv-conf", "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"),
        *("--monitor-interval", "0.2", __file__, str(root)),
    ]
    # torchrun of PyTorch 2.13 gives an agent that joins later no address, if the agents share the store.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(command, env=environment)


def lose(machine: subprocess.Popen[bytes]) -> None:
    """Kill a machine: the agent, and its rank, which is in a session of its own."""
    if machine.poll() is None:
        ranks = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()
        for process in (machine.pid, *map(int, ranks)):
            os.kill(process, signal.SIGKILL)
        machine.wait()


def wait_for(ranks: int, steps: int, root: Path) -> None:
    """Wait until so many more steps have been done by so many ranks."""
    seen, start = len(notes(root)), time.monotonic()
    while sum(f" of {ranks}:" in line for line in notes(root)[seen:]) < steps:
        if time.monotonic() - start > LONGEST:
            raise TimeoutError(f"no step of {ranks} ranks")
        time.sleep(0.1)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        root, alone = Path(folder, "elastic"), Path(folder, "alone")
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        agents = []
        try:
            (root / "elastic").mkdir(parents=True)
            (root / "elastic/slow").touch()
            agents.append(agent(root, port))
            wait_for(1, 3, root)
            for _ in range(2):
                agents.append(agent(root, port))
                wait_for(2, 3, root)
                lose(agents[-1])
                wait_for(1, 3, root)
            (root / "elastic/slow").unlink()
            assert agents[0].wait(LONGEST) == 0
        finally:
            for each in agents:
                lose(each)
        expected = train(alone)
        found = Elastic.load_from_checkpoint(max((root / "elastic/checkpoints").glob("*.pth"), key=os.path.getmtime))
        steps = {line.split(" of ")[0]: line.split(": ")[1] for line in notes(root)}
        assert steps == {line.split(" of ")[0]: line.split(": ")[1] for line in notes(alone)}
        assert len(steps) == STEPS
        for name, tensor in expected.net.state_dict().items():
            torch.testing.assert_close(found.net.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)
        changes = [int(line.split(" of ")[1].split(":")[0]) for line in notes(root)]
        ranks = [now for before, now in zip([0, *changes], changes, strict=False) if now != before]
        print(f"{STEPS} updates with {ranks} ranks in turn are those of one process")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]))
    else:
        main()
