"""What the first steps of a program compute is kept in a file, and what differs later is named."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Indices, quiet
from torch import nn

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.tools.command import main
from helios_lite.tools.lock import Checked, compared, recorded


class Line(Model):
    """A line with dropout, and a validation that a lock leaves out."""

    def __init__(self, nudge: float = 0.0, scale: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__("line")
        self.nudge, self.scale, self.dropout, self.steps = nudge, scale, dropout, 0

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 4), nn.Dropout(self.dropout), nn.Linear(4, 1)))
        with torch.no_grad():
            self.net[0].weight[0, 0] += self.nudge
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch: Any, state: Any) -> None:
        self.steps += 1
        self.backward((self.net(batch[1]) - 1).square().mean() * self.scale)
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        raise RuntimeError


class Changed(Indices):
    def __getitem__(self, index: int) -> Any:
        number, x = super().__getitem__(index)
        return (number, x + 1) if index == 7 else (number, x)


def make(dataset: Any = None, split: dict[str, Any] | None = None, model: Any = None, **options: Any) -> Any:
    data = DataModule(
        train=Split(dataset or Indices(16), **{"batch_size": 4, "shuffle": True, **(split or {})}),
        valid=Split(Indices(3), batch_size=1),
    )
    options = {"max_epochs": 3, "monitor": "valid/loss", "patience": 1, **options}
    return lambda: (quiet(**options), model or Line(), data)


def test_what_differs_first_from_a_lock_is_named_with_what_has_changed() -> None:
    model = Line()
    locked = json.loads(json.dumps(recorded(make(model=model), 6)))
    assert model.steps == 6  # It ends then, though its schedules are those of the whole run.
    assert [step["step"] for step in locked["steps"]] == [1, 2, 3, 4, 5, 6]
    assert [*locked["steps"][0]] == [
        "step",
        "samples_digest",
        "batch_digest",
        "loss",
        "gradient norm",
        "weights_digest",
    ]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed_of_epoch_0())).tolist()
    found = {
        "again": compared(locked, recorded(make(), 6)),
        "seed": compared(locked, recorded(make(seed=1), 6)),
        "weights": compared(locked, recorded(make(model=Line(nudge=1e-6)), 6)),
        "data": compared(locked, recorded(make(Changed(16)), 6)),
        "order": compared(locked, recorded(make(split={"shuffle": False}), 6)),
        "loss": compared(locked, recorded(make(model=Line(scale=1 + 1e-6)), 6)),
        "clip": compared(locked, recorded(make(clip_norm=1e-3), 6)),
        "length": compared(locked, recorded(make(max_epochs=None, max_steps=4), 6)),
    }
    assert found.pop("again") == Checked(6, True, None, None, None, None, [])
    where = {name: (each.step, each.what, [change[0] for change in each.changes]) for name, each in found.items()}
    assert where == {
        "seed": (0, "weights", ["trainer.seed"]),
        "weights": (0, "weights", []),
        "data": (order.index(7) // 4 + 1, "values of the last batch", ["data.train.dataset"]),
        "order": (1, "samples", ["data.train.shuffle"]),
        "loss": (1, "loss", []),
        "clip": (1, "weights", ["trainer.clip_norm"]),
        "length": (5, "number of steps", ["trainer.max_epochs", "trainer.max_steps"]),
    }


def test_where_versions_differ_rounding_is_no_difference() -> None:
    locked = recorded(make(), 3)
    other = copy.deepcopy(locked)
    other["environment"]["torch"] = "2.9.9"
    for step in other["steps"]:
        step.update({"weights_digest": "0" * 16, "loss": step["loss"] * (1 + 1e-6)})
    found = compared(locked, other)
    assert (found.is_exact, found.what) == (False, None)
    assert [change[0] for change in found.changes] == ["environment.torch"]
    other["steps"][1]["loss"] *= 1.01
    assert (compared(locked, other).step, compared(locked, other).what) == (2, "loss")
    other["environment"]["processes"], other["steps"][1]["batch_digest"] = 2, "0" * 16
    assert compared(locked, other).what == "loss"
    other["steps"][0]["loss"] = "a text"
    assert (compared(locked, other).step, compared(locked, other).what) == (1, "loss")


def program() -> tuple[Trainer, Model, DataModule]:
    trainer, model, data = make()()
    return trainer, model, data


def test_the_commands_write_a_lock_and_exit_with_what_they_have_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locked_program.py").write_text(
        "import test_lock\n\n\ndef make():\n    return test_lock.program()\n\n\n"
        "def fails():\n    return test_lock.make(model=object())()\n\n\n"
        "class Failing(test_lock.Line):\n    def train_step(self, batch, state):\n        raise KeyError('mine')\n\n\n"
        "def raises():\n    return test_lock.make(model=Failing())()\n"
    )
    monkeypatch.syspath_prepend(Path(__file__).parent)
    main(["lock", "locked_program.py", "--steps", "3"])
    assert capsys.readouterr().out == "locked_program.lock.json\n"
    assert {path.name for path in tmp_path.iterdir()} <= {
        "locked_program.py",
        "locked_program.lock.json",
        "__pycache__",
    }
    assert (tmp_path / "locked_program.lock.json").stat().st_size < 8000
    main(["check", "locked_program.py"])
    assert capsys.readouterr().out == "3 steps are as locked, bit for bit\n"
    with pytest.raises(SystemExit) as ended:
        main(["check", "locked_program.py", "--json", "--trainer.seed", "1"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert found.keys() == {"steps", "is_exact", "step", "what", "locked", "now", "changes"}
    assert (found["steps"], found["is_exact"], found["step"], found["what"]) == (3, True, 0, "weights")
    assert found["changes"] == [{"name": "trainer.seed", "locked": "0", "now": "1"}]
    content = json.loads(Path("locked_program.lock.json").read_text())
    damaged = ({"format": 99}, {"environment": None}, {"sources": 3}, {"steps": []}, {"steps": [1]}, {"steps": None})
    for change in (*damaged, {"options": [1]}):  # By hand.
        Path("damaged.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(SystemExit) as exit:
            main(["check", "locked_program.py", "--output", "damaged.json"])
        assert exit.value.code == 2
        assert capsys.readouterr().err == "helios-lite: damaged.json: is no lock of this version\n"
    for arguments, text in (
        (["check", "locked_program.py:raises", "--output", "locked_program.lock.json"], "KeyError: 'mine'"),
        (["check", "locked_program.py", "--output", "none.json"], "none.json: there is no such file"),
        (["check", "locked_program.py", "--output", "locked_program.py"], "is no lock of this version"),
        (["lock", "locked_program.py", "--steps", "0"], "--steps 0: must be at least 1"),
        (["lock", "locked_program.py", "--output", "no/x.json"], "--output no/x.json: there is no folder no"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert (ended.value.code, text in capsys.readouterr().err) == (2, True), arguments


def seed_of_epoch_0() -> int:
    from helios_lite.processes.rng import derive_seed

    return derive_seed(0, 0)
