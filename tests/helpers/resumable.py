"""A training with everything that a resume must restore, and what it leaves behind."""

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from helios_lite import Callback, DataModule, Model, Split, Trainer
from helpers.compare import saved, timeless
from helpers.models import quiet
from helpers.optimizers import OPTIMIZERS
from helpers.rows import read_rows


class Augmented(Dataset):
    """Sample i is (i, a vector that depends on i and on draws from torch, random and numpy)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        noise = torch.tensor([random.random(), numpy.random.rand(), 0.0])
        return index, torch.rand(3) + index % 5 + noise.float()


class Rich(Model):
    """Dropout, two optimizers, a scheduler per step and one per epoch, averaged weights, several metrics.

    Args:
        log: where the indices of every step go, one line each; truncated by no one, so a test reads the truth.
        ballast: numbers in a buffer that makes saving take its time.
        pace: seconds that a step takes at least.
        sharded: what several processes can shard, so that all of it is the same on every rank: no statistics of
            batches, no copy of a network, and the ballast is a frozen parameter.
        optimizer: trains the first network.
    """

    def __init__(
        self, log: Path, ballast: int = 0, pace: float = 0.0, sharded: bool = False, optimizer: str = "AdamW"
    ) -> None:
        super().__init__("rich")
        self.path, self.ballast, self.pace, self.sharded, self.kind = log, ballast, pace, sharded, optimizer

    def setup(self, fast_init: bool = False) -> None:
        norm = nn.LayerNorm(6) if self.sharded else nn.BatchNorm1d(6)
        small, ballast = nn.Linear(3, 1), torch.rand(self.ballast)
        if self.sharded:
            small.ballast = nn.Parameter(ballast, requires_grad=False)
        else:
            small.register_buffer("ballast", ballast)
        self.nets = [
            self.parallelize(nn.Sequential(nn.Linear(3, 6), norm, nn.Dropout(0.3), nn.Linear(6, 1))),
            self.parallelize(small),
        ]
        if not self.sharded:
            self.average = AveragedModel(self.nets[0], multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        if not fast_init:
            self.optimizers = [
                OPTIMIZERS[self.kind](self.nets[0].parameters()),
                torch.optim.SGD(self.nets[1].parameters(), lr=0.01, momentum=0.9),
            ]
            self.per_step = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizers[0], 0.02, total_steps=1000, cycle_momentum=self.kind == "AdamW"
            )
            self.per_epoch = torch.optim.lr_scheduler.StepLR(self.optimizers[1], 1, 0.8)

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        loss = (self.nets[0](x) - 1).square().mean()
        self.backward(loss)
        if self.optimizer_step(self.optimizers[0], self.per_step, clip_norm=1.0) and not self.sharded:
            self.average.update_parameters(self.nets[0])
        other = (self.nets[1](x) - self.nets[0](x).detach()).square().mean()
        self.backward(other)
        self.optimizer_step(self.optimizers[1])
        self.log("loss", loss)
        self.log("spread", other, reduce="std")
        with self.path.open("a") as file:
            file.write(json.dumps([state.batch * self.world_size + self.global_rank, index.tolist()]) + "\n")
        time.sleep(self.pace)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.per_epoch.step()

    def valid_step(self, batch: Any, step: int) -> None:
        net = self.nets[0] if self.sharded else self.average
        self.log("loss", (net(batch[1]) - 1).square().mean() + torch.rand(()))

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        return f"{chkpt_name}_loss={self.metrics.get('valid/loss', 0):.3f}"


class Counter(Callback):
    """Counts batches over all resumes, and tells of every step on rank 0."""

    def __init__(self, talk: bool = False) -> None:
        self.batches, self.talk = 0, talk

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.batches += 1
        if self.talk and self.model.global_rank == 0:  # Lines of two processes can mix.
            print(f"step {state.step}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


def data(num_workers: int = 0, length: int = 22) -> DataModule:
    return DataModule(
        Split(Augmented(length), batch_size=4, shuffle=True, num_workers=num_workers),
        Split(Augmented(9), batch_size=4, num_workers=num_workers),
    )


def trainer(root: Path, talk: bool = False, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accumulation_steps": 2,
        "valid_every_epochs": 0.5,
        "monitor": "valid/loss",
        "patience": 50,
        "log_every_steps": 2,
        "callbacks": [Counter(talk)],
    }
    return quiet(root=root, **{**defaults, **options})


def outcome(root: Path) -> dict[str, Any]:
    """Everything a finished run has left behind that must not depend on its interruptions, or on evaluations of it."""
    rows = read_rows(root / "rich")
    rows = [row for row in rows if row.get("kind") not in ("validate", "test")]
    content = saved(root / "rich", "state", "model", "callbacks", "monitor", "metrics", "ranks")
    return {"rows": timeless(rows), "batches": read_batches(root), **content}


def read_batches(root: Path) -> dict[int, list[int]]:
    """The indices of every batch; what was done again after a kill overwrites what had been done before it."""
    return dict(sorted(json.loads(line) for line in (root / "indices").read_text().splitlines()))
