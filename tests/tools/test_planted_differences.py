"""Planted differences between two runs of a program: `diff` names what each comes from.

The twelfth, another number of processes, is in networks/test_sharded_networks.py, where several processes are.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import quiet

from helios_lite import DataModule, Split
from helios_lite.checkpoints import files
from helios_lite.tools.diff import Found, compare

PROGRAM = """
import torch
from torch.utils.data import Dataset
from helios_lite import Model


class Vectors(Dataset):
    def __init__(self, changed=None):
        self.changed = changed

    def __len__(self):
        return 16

    def __getitem__(self, index):
        x = torch.tensor([index % 7, index % 3, 1.0]) / 7
        return x + 1 if index == self.changed else x


class Planted(Model):
    def __init__(self, nudge=0.0, hides=False, gamma=0.9):
        super().__init__("planted")
        self.nudge, self.hides, self.gamma, self.steps = nudge, hides, gamma, 0

    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(3, 1))
        with torch.no_grad():
            self.net.weight[0, 0] += self.nudge
        self.many = torch.linspace(0, 1, 200_001)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, self.gamma)

    def train_step(self, batch, state):
        with self.autocast():
            output = self.net(batch)
        loss = (output.float() - 1).square().mean() * (self.many * 1.1).sum() / 110_000
        self.steps += 1
        self.backward(loss * self.steps if self.hides else loss)
        self.optimizer_step(self.optimizer, self.scheduler)
        self.log("loss", loss)
"""


def program(folder: Path, text: str = PROGRAM) -> Any:
    """Return a module of this text, which takes the place of the one before."""
    folder.mkdir(exist_ok=True)
    (folder / "planted_program.py").write_text(text)
    sys.path.insert(0, str(folder))
    sys.modules.pop("planted_program", None)
    importlib.invalidate_caches()
    return importlib.import_module("planted_program")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, path = tmp_path_factory.mktemp("planted"), [*sys.path]
    yield folder
    sys.path[:] = path
    sys.modules.pop("planted_program", None)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[..., Path]:
    """Trains with something planted, in a folder of that name, and returns the run folder."""

    def train(
        name: str,
        text: str = PROGRAM,
        *,
        model: dict[str, Any] | None = None,
        changed: int | None = None,
        split: dict[str, Any] | None = None,
        threads: int = 1,
        **options: Any,
    ) -> Path:
        module, before = program(folder / f"code-{text == PROGRAM}", text), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            split = {"batch_size": 4, "shuffle": True, **(split or {})}
            data = DataModule(train=Split(module.Vectors(changed), **split))
            options = {"max_steps": 8, "log_every_steps": 2, "run_name": "run", **options}
            quiet(root=folder / name, **options).fit(module.Planted(**(model or {})), data)
        finally:
            torch.set_num_threads(before)
        return folder / name / "run"

    train("base")
    return train


def edited(base: Path, name: str) -> Path:
    """A copy of a run, as another version of PyTorch would have left it: it rounds otherwise."""
    other = base.parent.parent / name
    shutil.copytree(base, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace(torch.__version__, "2.9.9"))
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    rows[1] = {**rows[1], "train/loss": rows[1]["train/loss"] * (1 + 1e-7), "weights_digest": "0" * 16}
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return other


def flipped(trained: Callable[..., Path]) -> Path:
    """A run that was resumed from a checkpoint in which the lowest bit of a weight is another one."""
    run = trained("flipped", max_steps=4)
    (path,) = (run / "checkpoints").glob("*_iter_4*")
    content = torch.load(path, weights_only=True)
    content["model"]["net"]["weight"].view(torch.int32)[0, 1] ^= 1
    files.write_file(content, path)
    return trained("flipped")


def test_each_planted_difference_is_named(trained: Callable[..., Path], folder: Path) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed_of_epoch_0())).tolist()
    base, hiding = folder / "base/run", trained("hiding", model={"hides": True})
    trained("cut", model={"hides": True}, max_steps=3)
    found: dict[str, Found] = {
        "code": compare(base, trained("code", PROGRAM.replace("- 1)", "- 1.5)"))),
        "data": compare(base, trained("data", changed=order[4])),  # In the last batch of the first row.
        "earlier data": compare(base, trained("earlier", changed=order[8])),  # In the first batch of the second one.
        "seed": compare(base, trained("seed", seed=1)),
        "initial weights": compare(base, trained("weights", model={"nudge": 1e-4})),
        "threads": compare(base, trained("threads", threads=2)),
        "resume": compare(hiding, trained("cut", model={"hides": True})),
        "workers": compare(base, trained("workers", split={"num_workers": 1})),
        "precision": compare(base, trained("precision", precision="bf16")),
        "schedule": compare(base, trained("schedule", model={"gamma": 0.5})),
        "version": compare(base, edited(base, "version")),
        "flipped bit": compare(base, flipped(trained)),
    }
    first = {name: each.causes[0] if each.causes else None for name, each in found.items()}
    for name, kind, text in (
        ("code", "code", "planted_program.py"),
        ("data", "data", "the same indices gave other values"),
        ("earlier data", "data", "the same indices gave other values, or something is not seeded"),
        ("seed", "initial weights", "by trainer.seed"),
        ("initial weights", "initial weights", "those of the first start differ"),
        ("resume", "resume", "only one of the runs was resumed at step 3"),
        ("precision", "options", "trainer.precision"),
        ("schedule", "options", "made.scheduler"),
        ("version", "kernels", "environment.torch"),
        ("flipped bit", "checkpoint", "B was resumed at step 4 from planted_epoch_1_iter_4.pth with other weights"),
    ):
        assert (cause := first[name]) is not None, name
        assert (cause.kind, text in cause.text) == (kind, True), (name, cause)
    assert first["data"] is not None
    assert first["data"].text == "the same indices gave other values"
    # What need not change a bit is named among the options, and as the cause if it does.
    for name, option in (
        ("threads", "environment.threads"),
        ("workers", "data.train.num_workers"),
    ):
        assert option in [each for each, _, _ in found[name].options], name
        cause = first[name]
        assert cause is None or (cause.kind, option in cause.text) == ("kernels", True), (name, cause)
    steps = {name: each.rows.step for name, each in found.items() if each.causes}
    assert (steps["data"], steps["earlier data"]) == (2, 4)  # Rows are written after every second step of four samples.
    assert (steps["resume"], steps["seed"], steps["schedule"]) == (4, 2, 2)


def seed_of_epoch_0() -> int:
    from helios_lite.processes.rng import derive_seed

    return derive_seed(0, 0)
