"""The examples and the smallest program, run as a user runs them."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import scripts
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder, *arguments, **options):
    return scripts.run(EXAMPLES / "digits.py", *arguments, cwd=folder, **options)


def accuracy_and_checkpoint(output):
    """Return the accuracy and the checkpoint that the last line tells."""
    accuracy, checkpoint = re.fullmatch(r"test accuracy (\S+) with (\S+)", output.splitlines()[-1]).groups()
    return float(accuracy), checkpoint


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return the folder in which the example has run, and what it wrote."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, run(folder, new_interpreter=True)  # One example, as a user starts it.


def test_digits_explains_its_options(tmp_path):
    shown = run(tmp_path, "--help").stdout
    assert "Recognise handwritten digits" in shown
    assert "--learning-rate" in shown
    assert list(tmp_path.iterdir()) == []


def test_digits_learns_and_names_its_best_checkpoint(digits):
    folder, first = digits
    accuracy, checkpoint = accuracy_and_checkpoint(first.stdout)
    assert accuracy >= 0.97
    assert (folder / checkpoint).is_file()
    assert f"best checkpoint: {Path(checkpoint).relative_to(folder)}\n" in first.stdout


def test_digits_writes_below_runs_and_nowhere_else(digits):
    folder, _ = digits
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["digits"]


def test_digits_run_again_says_that_it_had_finished_and_tests_the_same(digits):
    folder, first = digits
    second = run(folder)
    assert "runs/digits had finished at step " in second.stderr
    assert accuracy_and_checkpoint(second.stdout) == accuracy_and_checkpoint(first.stdout)


def test_the_smallest_program_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    everything = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
    train_set, valid_set = torch.utils.data.random_split(everything, [384, 128], torch.Generator().manual_seed(0))

    def Net():
        return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))

    class Digits(Model):
        def setup(self, fast_init=False):
            self.net = self.parallelize(Net())
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)

        def train_step(self, batch, state):
            x, y = batch
            with self.autocast():
                loss = F.cross_entropy(self.net(x), y)
            self.backward(loss)
            self.optimizer_step(self.optimizer)
            self.log("loss", loss)

        def valid_step(self, batch, step):
            x, y = batch
            self.log("accuracy", (self.net(x).argmax(-1) == y).float().mean())

    data = DataModule(train=Split(train_set, batch_size=64, shuffle=True), valid=Split(valid_set, batch_size=256))
    result = Trainer(max_epochs=20, monitor="valid/accuracy", mode="max", patience=3).fit(Digits("digits"), data)

    assert result.metrics["train/loss"] < 0.69  # What guessing costs: log(2).
    assert result.best_metrics["valid/accuracy"] == result.state.best_score
    assert result.best_checkpoint.parent == tmp_path / "runs/digits/checkpoints"
    assert result.best_checkpoint.is_file()
