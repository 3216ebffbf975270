"""A program that changes its working directory during a call: relative paths belong to the one where it began."""

import functools
import os
import shutil
from pathlib import Path

import torch
from helpers.compare import same, weights
from helpers.models import HOOKS, Indices, Tiny, data, quiet

from helios_lite import DataModule, Split


def moving(method):
    @functools.wraps(method)
    def moved(*arguments, **options):
        folder = Path.cwd() / "d"
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        return method(*arguments, **options)

    return moved


class Moving(Tiny):
    """Goes one folder deeper in each of its hooks."""

    load_for_testing = moving(Tiny.load_for_testing)
    have_metrics_improved = moving(Tiny.have_metrics_improved)
    train_step = moving(Tiny.train_step)
    predict_step = moving(lambda self, batch, step: self.net(batch[1]))


for name in [name for name in HOOKS if name.startswith("on_") or name == "setup"]:
    setattr(Moving, name, moving(getattr(Tiny, name)))


class MovingData(DataModule):
    prepare_data = moving(DataModule.prepare_data)
    setup = moving(DataModule.setup)
    teardown = moving(DataModule.teardown)


def moving_data():
    splits = data()
    return MovingData(splits.train, splits.valid, splits.test, Split(Indices(5), batch_size=4))


def test_all_files_of_a_call_are_where_it_began_wherever_its_hooks_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"max_epochs": 2, "monitor": "valid/loss", "hang_minutes": None}
    still = Tiny()
    quiet(**options).fit(still, data())
    model = Moving()
    trainer = quiet(**options, root="runs")
    result = trainer.fit(model, moving_data())
    assert Path.cwd() != tmp_path
    assert same(weights(model), weights(still))
    assert result.last_checkpoint.is_file()
    assert result.run_folder == tmp_path / "runs/tiny"

    monkeypatch.chdir(tmp_path)
    expected = trainer.test(Tiny(), data())
    assert trainer.test(model, moving_data()) == expected
    monkeypatch.chdir(tmp_path)
    file = result.last_checkpoint.relative_to(tmp_path)
    trainer.write_predictions(Moving(), moving_data(), "outputs.pth", checkpoint=file)
    monkeypatch.chdir(tmp_path)
    assert trainer.replay(Moving(), moving_data(), 2).step == 2
    for options in ({"resume": "runs/tiny"}, {"resume": str(file)}, {"init_from": "runs/tiny"}):
        monkeypatch.chdir(tmp_path)
        again = quiet(root="runs", run_name="again", max_epochs=3, **options)
        assert again.fit(Moving(), moving_data()).state.epoch == 3
        shutil.rmtree(tmp_path / "runs/again")
    assert {path.name for path in tmp_path.iterdir()} == {"d", "outputs.pth", "runs"}
    assert [path for path in (tmp_path / "d").rglob("*") if path.is_file()] == []
    assert torch.load(tmp_path / "outputs.pth", weights_only=True)["outputs"].shape == (5, 1)
