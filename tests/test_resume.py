"""Resumed equals uninterrupted, bit for bit, wherever a run is cut.

Removed by hand, each alone, to see a test fail (the first that did is named; "any cut" is
test_a_run_cut_after_any_update_...):
- trainer.py, rng.restore(...) in train_epoch: any cut, dropout differs.
- trainer.py, samples=state.epoch_samples: any cut, batches differ.
- trainer.py, self.metrics.load_state_dict(...): any cut between two rows of metrics.
- trainer.py, callbacks[name].load_state_dict(...), self.best_metrics, self.history = ..., latest.update(...): any cut.
- trainer.py, self.kept_rows = metrics["rows"]: a_crash_between_checkpoints, rows are doubled.
- data.py, rng.isolated(...) around _fetch; seed_cpu(...) for a sample; numpy in rng.seed_cpu: the_number_of_workers.
- stopping.py, validated_step: test_trainer.py, validation_..._never_twice_at_a_step.
- run.py, rng.isolated(...), module.training = training, no_grad (to inference_mode): test_trainer.py, P7's tests.
"""

import sys
from pathlib import Path
from typing import Any

import longrun
import pytest
import torch
from toys import same

from helios_lite import Callback

# PyTorch warns that scheduler.step() came first in this process; the optimizer had stepped before the resume.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

STEPS = 9  # 3 epochs of 22 samples, in micro-batches of 4 and windows of 2.


class CutError(Exception):
    pass


class Cut(Callback):
    """Ends the run after an update, by an exception or by asking to stop."""

    def __init__(self, step: int, how: str) -> None:
        self.step, self.how = step, how

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.step == self.step and self.how == "exception":
            raise CutError


class Stopping(longrun.Rich):
    """A model that asks to stop after some update."""

    stop_at = 0
    asked = False

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        self.asked = state.step == self.stop_at

    def should_training_stop(self) -> bool:
        return self.asked


def fit(root: Path, num_workers: int = 0, step: int = 0, how: str = "", **options: Any) -> Any:
    root.mkdir(exist_ok=True)
    model = Stopping(root / "indices")
    model.stop_at = step if how == "stop" else -1
    if how == "limit":
        options["max_steps"] = step
    trainer = longrun.trainer(root, **options)
    trainer.callbacks = [*trainer.callbacks, Cut(step, how)]
    return trainer.fit(model, longrun.data(num_workers))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("uninterrupted")
    result = fit(root)
    assert result.state.step == STEPS
    outcome = longrun.outcome(root)
    assert len(outcome["rows"]) >= 12
    assert len(outcome["batches"]) == 18
    return outcome


def require_same(root: Path, expected: dict[str, Any]) -> None:
    found = longrun.outcome(root)
    for part, value in expected.items():
        assert same(found[part], value), part


@pytest.mark.parametrize("how", ["limit", "stop", "exception"])
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_cut_after_any_update_ends_like_one_that_was_not(
    tmp_path: Path, uninterrupted: dict[str, Any], step: int, how: str
) -> None:
    if how == "exception":
        with pytest.raises(CutError):
            fit(tmp_path, step=step, how=how, save_every_steps=1)
    else:
        assert fit(tmp_path, step=step, how=how).state.step == step
    fit(tmp_path)
    require_same(tmp_path, uninterrupted)


@pytest.mark.parametrize("async_save", [False, True])
def test_a_run_cut_after_every_update_ends_like_one_that_was_not(
    tmp_path: Path, uninterrupted: dict[str, Any], async_save: bool
) -> None:
    for step in range(1, STEPS):
        fit(tmp_path, step=step, how="limit", async_save=async_save)
    fit(tmp_path, async_save=async_save)
    require_same(tmp_path, uninterrupted)


def test_a_crash_between_checkpoints_repeats_what_was_lost(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    for step in (2, 5, 8):
        with pytest.raises(CutError):
            fit(tmp_path, step=step, how="exception")
    fit(tmp_path)
    require_same(tmp_path, uninterrupted)


def test_the_number_of_workers_may_change_at_a_resume(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    fit(tmp_path, num_workers=2, step=2, how="limit")
    fit(tmp_path, num_workers=0, step=5, how="limit")
    fit(tmp_path, num_workers=1)
    require_same(tmp_path, uninterrupted)


def test_with_workers_a_run_cut_anywhere_ends_like_one_that_was_not(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    for step in (1, 3, 4, 8):
        fit(tmp_path, num_workers=2, step=step, how="limit")
    fit(tmp_path, num_workers=2)
    require_same(tmp_path, uninterrupted)


def test_a_resume_that_only_extends_max_epochs(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    for epochs in (1, 2, 3):
        fit(tmp_path, max_epochs=epochs)
    require_same(tmp_path, uninterrupted)


def test_early_stopping_counts_on_over_resumes(tmp_path: Path) -> None:
    """The same run with patience, once whole and once in pieces, stops at the same update."""
    options: dict[str, Any] = {"max_epochs": 30, "patience": 3}
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    reason = fit(tmp_path / "whole", **options).stop_reason
    assert reason == "patience"
    for step in (4, 5, 7, 9, 10):
        fit(tmp_path / "pieces", step=step, how="limit", **options)
    assert fit(tmp_path / "pieces", **options).stop_reason == "patience"
    require_same(tmp_path / "pieces", longrun.outcome(tmp_path / "whole"))


def test_resuming_reads_no_skipped_sample(tmp_path: Path) -> None:
    class Reading(longrun.Augmented):
        read: list[int] = []

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return super().__getitem__(index)

    def part(**options: Any) -> list[int]:
        Reading.read = []
        datamodule = longrun.data()
        datamodule.train.dataset = Reading(22)
        longrun.trainer(tmp_path, **options).fit(longrun.Rich(tmp_path / "indices"), datamodule)
        return Reading.read

    first, rest = part(max_steps=2), part(max_epochs=1)
    assert len(first) == 16
    assert sorted(first + rest) == list(range(22))


def test_a_path_continues_from_that_file_and_leaves_it_alone(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    first = fit(tmp_path / "first", step=4, how="limit").last_checkpoint
    (tmp_path / "second").mkdir()
    (tmp_path / "second/indices").write_text((tmp_path / "first/indices").read_text())
    fit(tmp_path / "second", resume=first)
    expected = {name: value for name, value in uninterrupted.items() if name != "rows"}
    expected["metrics"] = {**expected["metrics"], "rows": len(longrun.outcome(tmp_path / "second")["rows"])}
    require_same(tmp_path / "second", expected)
    assert first.exists()
    with pytest.raises(ValueError, match="choose another run_name"):
        fit(tmp_path / "second", resume=first)


def test_callbacks_and_rows_of_a_killed_run_are_not_doubled(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """Rows after the last checkpoint are cut: the crash comes after two more rows than the checkpoint knows."""
    with pytest.raises(CutError):
        fit(tmp_path, step=5, how="exception")
    assert len((tmp_path / "rich/metrics.jsonl").read_text().splitlines()) > len(
        [row for row in uninterrupted["rows"] if row["step"] <= 3]
    )
    fit(tmp_path)
    require_same(tmp_path, uninterrupted)


def test_generators_are_untouched_by_reading_data_in_the_training_process(tmp_path: Path) -> None:
    """With num_workers=0 the dataset draws in this process, which must not be seen by dropout."""
    before = torch.get_rng_state()
    from helios_lite.data import make_loader

    for _ in make_loader(longrun.data().train, "train", 0).epoch(0).batches:
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert "numpy" in sys.modules
