"""A training whose every step leaves a digest, so that a replay can be compared with it."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from helios_lite import Callback, DataModule, Model, Split, Trainer
from helios_lite.callbacks import EMA
from helpers.models import quiet


class Noisy(Dataset):
    """Sample i is (i, a vector of i and random numbers); one of them may be NaN."""

    def __init__(self, length: int = 44, poisoned: int | None = None) -> None:
        self.length, self.poisoned = length, poisoned

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        x = torch.rand(3) + index % 5
        return index, torch.full_like(x, torch.nan) if index == self.poisoned else x


class NoisyData(DataModule):
    def setup(self) -> None:
        self.train = Split(Noisy(), batch_size=4, shuffle=True)


class Dropped(Model):
    """Dropout, batch normalization, a scheduler, and a clipped loss."""

    def __init__(self) -> None:
        super().__init__("dropped")

    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 1))
        self.net = self.parallelize(net)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)

    def train_step(self, batch: Any, state: Any) -> None:
        loss = (self.net(batch[1]) - 1).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.scheduler, clip_norm=0.5)
        self.log("loss", loss)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("loss", (self.net(batch[1]) - 1).square().mean())


class Digests(Callback):
    """Writes a digest of the state after every step into a file, and takes some seconds for it."""

    def __init__(self, path: Path, pace: float = 0.0) -> None:
        self.path, self.pace, self.step = path, pace, 0

    def on_training_batch_start(self, state: Any) -> None:
        self.step = state.step

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.step == self.step:
            return
        with self.path.open("a") as file:
            file.write(json.dumps([state.step, digest(self.model)]) + "\n")
        time.sleep(self.pace)


def digest(model: Model) -> str:
    """Return a digest of all bits of the state of a model."""
    hashed = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            hashed.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict | list | tuple):
            for part in value.items() if isinstance(value, dict) else value:
                add(part)
        else:
            hashed.update(repr(value).encode())

    add(model.state_dict())
    return hashed.hexdigest()


def digests(path: Path) -> dict[int, str]:
    """Return the digest after each step, the last one that was written."""
    return dict(json.loads(line) for line in path.read_text().splitlines())


def files(root: Path) -> dict[str, Any]:
    """Return the content and the time of every file under a folder."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def trainer(root: Path, **options: Any) -> Trainer:
    defaults = {"root": root, "max_epochs": 8, "save_every_steps": 7, "keep_last": -1, "accumulation_steps": 2}
    return quiet(**{**defaults, "callbacks": [EMA(0.9)], **options})


def data(poisoned: int | None = None, num_workers: int = 0) -> DataModule:
    return DataModule(
        Split(Noisy(poisoned=poisoned), batch_size=4, shuffle=True, num_workers=num_workers),
        Split(Noisy(9), batch_size=4),
    )
