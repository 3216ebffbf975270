"""A metric of the train split is monitored: its mean over each epoch decides, with and without validations."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import Judged, Tiny, data, quiet

from helios_lite import DataModule
from helios_lite.checkpoints.naming import find


def splits(valid: bool) -> DataModule:
    given = data(train=10, batch_size=4)
    return DataModule(given.train, given.valid if valid else None)


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("name", ["train/score", "train/score/epoch"])
def test_the_mean_over_an_epoch_decides_best_and_patience(name: str, validates: bool, tmp_path: Path) -> None:
    trainer = quiet(root=tmp_path, max_epochs=5, monitor=name, patience=2, log_every_steps=1, valid_every_epochs=3)
    result = trainer.fit(Judged(), splits(validates))
    assert (result.stop_reason, result.state.step, result.state.early_stop_count) == ("patience", 12, 2)
    assert (result.state.best_score, result.state.best_step) == (pytest.approx(3.0), 6)
    assert result.best_checkpoint is not None
    assert "_iter_6" in result.best_checkpoint.name
    assert result.best_metrics["train/score/epoch"] == pytest.approx(3.0)
    assert result.state.validation_cycle == (2 if validates else 0)
    kept = [path.name for path in find(tmp_path / "tiny" / "checkpoints", "tiny")]
    assert kept == ["tiny_epoch_4_iter_12.pth", "tiny_epoch_2_iter_6.pth"]


@pytest.mark.parametrize("cut", [1, 6, 11])
def test_a_cut_changes_no_decision(cut: int, tmp_path: Path) -> None:
    options = {
        "root": tmp_path,
        "monitor": "train/score",
        "patience": 2,
        "valid_every_epochs": 2,
        "save_every_steps": 1,
    }
    quiet(max_steps=cut, **options).fit(Judged(), splits(True))
    result = quiet(max_epochs=5, **options).fit(Judged(), splits(True))
    assert (result.stop_reason, result.state.step, result.state.best_step) == ("patience", 12, 6)
    assert result.best_checkpoint is not None
    assert "_iter_6" in result.best_checkpoint.name


def test_a_validation_that_fails_after_the_decision_changes_nothing(tmp_path: Path) -> None:
    class Failing(Judged):
        def valid_step(self, batch: Any, step: int) -> None:
            if self.trainer.max_epochs == 2 and len(self.seen) == 20:
                raise ArithmeticError
            super().valid_step(batch, step)

    options = {"root": tmp_path, "monitor": "train/score", "patience": 2}
    with pytest.raises(ArithmeticError):
        quiet(max_epochs=2, **options).fit(Failing(), splits(True))
    shutil.copytree(tmp_path / "tiny", tmp_path / "lost" / "tiny")
    (tmp_path / "lost" / "tiny" / "checkpoints" / "manifest.json").unlink()  # It is made again from the files.
    for root in (tmp_path, tmp_path / "lost"):
        quiet(max_epochs=3, **options | {"root": root}).fit(Failing(), splits(True))
        lists = json.loads((root / "tiny" / "checkpoints" / "manifest.json").read_text())
        scores = {each["step"]: each["score"] for each in [*lists["checkpoints"], *lists.get("found", [])]}
        assert (scores[6], scores[9]) == (pytest.approx(3.0), pytest.approx(4.0))
    result = quiet(max_epochs=5, **options).fit(Failing(), splits(True))
    assert (result.stop_reason, result.state.step, result.state.best_step) == ("patience", 12, 6)
    assert result.best_checkpoint is not None
    assert "_iter_6" in result.best_checkpoint.name


@pytest.mark.parametrize("monitor", ["train/score", "valid/loss", None])
def test_a_finished_run_has_no_validation_again(monitor: str | None, tmp_path: Path) -> None:
    class Noting(Judged):
        def on_training_end(self) -> None:
            self.log("last", 1.0)

        def on_validation_metrics(self, metrics: dict[str, float]) -> None:
            noted.append(sorted(metrics))

    noted: list[list[str]] = []
    options = {"root": tmp_path, "monitor": monitor, "valid_every_epochs": 3}
    for _ in range(2):
        quiet(max_epochs=2, **options).fit(Noting(), splits(True))
    assert noted == [["valid/loss"]]  # The one of the final weights.


def test_what_cannot_be_monitored_is_an_error_that_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"^monitor=.*of the train split or of the validation, not of both"):
        quiet(max_epochs=1, monitor=["train/score", "valid/loss"])
    with pytest.raises(
        ValueError, match=r"^monitor='train/acc' is not a metric of the epoch; did you mean train/score"
    ):
        quiet(max_epochs=1, monitor="train/acc").fit(Judged(), splits(False))


@pytest.mark.parametrize("options", [{"valid_every_epochs": 2}, {"valid_every_steps": 2}])
def test_a_plateau_sees_each_validation_once_whatever_their_interval(options: dict[str, int], tmp_path: Path) -> None:
    class Plateau(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0, threshold=0.9)

        def on_validation_metrics(self, metrics: dict[str, float]) -> None:
            self.plateau.step(metrics["valid/loss"])

    whole, cut = Plateau(), Plateau()
    quiet(max_epochs=4, **options).fit(whole, data())
    quiet(max_steps=5, root=tmp_path, **options).fit(Plateau(), data())
    result = quiet(max_epochs=4, root=tmp_path, **options).fit(cut, data())
    assert whole.plateau.last_epoch == result.state.validation_cycle >= 2
    assert cut.plateau.state_dict() == whole.plateau.state_dict()
    assert same(weights(cut), weights(whole))
