"""The loop: limits, validation, verdicts, errors, and bitwise equality with a loop written by hand."""

import math
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers.compare import same, saved, timeless, weights
from helpers.models import Indices, Tiny, data, quiet
from helpers.processes import run_python
from helpers.rows import read_rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helios_lite import Callback, DataModule, Model, Split, Trainer
from helios_lite.processes import rng


class Scripted(Tiny):
    """Logs the values it was given, one per validation cycle, as "valid/score"."""

    def __init__(self, *scores: float) -> None:
        super().__init__("scripted")
        self.scores = scores
        self.cycles: list[int] = []

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self.cycle = validation_cycle
        self.cycles.append(validation_cycle)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("score", self.scores[max(0, self.cycle - 1) % len(self.scores)])


# Equality with a loop written by hand.


def hand_written(epochs: int, batches_of: Any) -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    net.train()
    for epoch in range(epochs):
        for _, x in batches_of(epoch):
            loss = (net(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return net


def test_weights_equal_those_of_a_loop_written_by_hand_bit_for_bit() -> None:
    model = Tiny()
    quiet(max_epochs=3, seed=3).fit(
        model, DataModule(Split(Indices(10), batch_size=4), Split(Indices(5), batch_size=4))
    )
    # Without a generator of its own a DataLoader draws from the one that dropout uses.
    net = hand_written(3, lambda epoch: DataLoader(Indices(10), batch_size=4, generator=torch.Generator()))
    assert same(model.net.state_dict(), net.state_dict())


def test_shuffled_weights_equal_those_of_a_loop_written_by_hand_bit_for_bit() -> None:
    def shuffled(epoch: int) -> Any:
        order = torch.randperm(10, generator=torch.Generator().manual_seed(rng.derive_seed(3, epoch))).tolist()
        return DataLoader(Indices(10), batch_sampler=[order[:4], order[4:8], order[8:]], generator=torch.Generator())

    model = Tiny()
    quiet(max_epochs=3, seed=3).fit(model, data())
    assert same(model.net.state_dict(), hand_written(3, shuffled).state_dict())


# P7: validation is inert.


class Disturbing(Tiny):
    """A validation that draws from every generator, leaves modes changed and has batch norm and dropout."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net.append(nn.BatchNorm1d(1).to(self.device))
        self.net[1].eval()

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.net[1].train(current_epoch % 2 == 0)  # Dropout in every other epoch only.

    def valid_step(self, batch: Any, step: int) -> None:
        import random

        import numpy

        self.train()
        torch.rand(random.randrange(1, 9))
        numpy.random.rand(3)
        torch.manual_seed(0)
        self.log("loss", self.net.eval()(batch[1]).mean())


def test_validation_does_not_change_one_bit_of_the_training(tmp_path: Path) -> None:
    def trained(**options: Any) -> tuple[dict[str, Any], list[int]]:
        model = Disturbing()
        quiet(max_epochs=4, **options).fit(model, data(valid=9))
        return weights(model), model.seen

    off = trained(valid_every_epochs=None)
    assert same(off, trained())
    assert same(off, trained(valid_every_steps=1, valid_every_epochs=None, sanity_batches=3))
    assert same(off, trained(valid_every_epochs=0.3))


def test_a_buffer_first_made_in_validation_serves_training() -> None:
    class Caching(Tiny):
        cache: torch.Tensor | None = None

        def valid_step(self, batch: Any, step: int) -> None:
            self.cache = torch.ones(3, device=self.device)

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step((batch[0], batch[1].requires_grad_() * self.cache), state)  # Which saves the cache.

    quiet(max_epochs=1).fit(Caching(), data())


# Limits.


@pytest.mark.parametrize(
    ("options", "reason", "epochs", "steps"),
    [
        ({"max_epochs": 2}, "max_epochs", 2, 6),
        ({"max_steps": 4}, "max_steps", 1, 4),
        ({"max_steps": 6}, "max_steps", 2, 6),
        ({"max_steps": 7, "max_epochs": 2}, "max_epochs", 2, 6),
        ({"max_steps": 2, "accumulation_steps": 2}, "max_steps", 1, 2),
        ({"max_minutes": 1e-9, "max_epochs": 9}, "max_minutes", 0, 1),
        ({"fast_dev_run": True}, "fast_dev_run", 0, 1),
    ],
)
def test_the_first_limit_ends_the_run(options: dict[str, Any], reason: str, epochs: int, steps: int) -> None:
    result = quiet(**options).fit(Tiny(), data())
    assert (result.stop_reason, result.state.epoch, result.state.step) == (reason, epochs, steps)


def test_a_raised_limit_lets_a_finished_run_go_on(tmp_path: Path) -> None:
    for max_epochs, steps in ((1, 3), (1, 3), (2, 6)):
        model = Tiny()
        result = quiet(max_epochs=max_epochs, root=tmp_path).fit(model, data())
        assert result.state.step == steps
    assert len(model.seen) == 10


def test_without_a_limit_a_training_goes_on_until_the_model_wants_to_stop(tmp_path: Path) -> None:
    class Stopping(Tiny):
        def should_training_stop(self) -> bool:
            return self.stop_at <= self.trainer_step

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.trainer_step = state.step

    for stop_at in (5, 17):
        model = Stopping()
        model.stop_at = stop_at
        result = quiet(root=tmp_path).fit(model, data())
        assert (result.stop_reason, result.state.step) == ("should_training_stop", stop_at)
    assert result.state.epoch == 5


def test_a_stop_the_model_asked_for_is_no_limit_at_the_next_start(tmp_path: Path) -> None:
    class Stopping(Tiny):
        def should_training_stop(self) -> bool:
            return len(self.seen) >= 8

    for steps in (2, 4, 6):
        result = quiet(max_epochs=9, root=tmp_path).fit(Stopping(), data())
        assert result.stop_reason == "should_training_stop"
        assert result.state.step >= steps


class Predicting(Tiny):
    def predict_step(self, batch: Any, step: int) -> Any:
        return batch[0]


@pytest.mark.parametrize(("number", "trained", "evaluated"), [(True, 4, 4), (4, 14, 5)])
def test_fast_dev_run_uses_so_many_batches_of_everything_and_writes_nothing(
    tmp_path: Path, number: int, trained: int, evaluated: int
) -> None:
    model, datamodule, trainer = Predicting(), data(), quiet(fast_dev_run=number, root=tmp_path)
    result = trainer.fit(model, datamodule)
    assert (result.state.step, result.stop_reason) == (number, "fast_dev_run")
    assert len(model.seen) == trained
    assert len(model.validated) == evaluated  # No sanity validation: it would only do the same before.
    assert "valid/loss" in result.metrics
    model.validated.clear()
    assert "test/loss" in trainer.test(model, datamodule)
    assert len(model.validated) == evaluated
    assert sum(len(indices) for indices, _ in trainer.predict(model, datamodule)) == evaluated
    assert list(tmp_path.iterdir()) == []


class ToldOfTheEnd(Tiny):
    """Has a schedule that cannot be stepped beyond the planned end."""

    validated_before_the_end: list[int]

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        total_steps = self.num_training_steps
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.01, total_steps=total_steps)

    def on_training_end(self) -> None:
        self.validated_before_the_end = self.validated.copy()


def test_fast_dev_run_does_the_next_steps_of_any_checkpoint(tmp_path: Path) -> None:
    whole = ToldOfTheEnd()
    options = {"max_epochs": 2, "save_every_steps": 1, "keep_last": -1, "valid_every_steps": 2}
    quiet(root=tmp_path, **options).fit(whole, data())
    before = sorted(tmp_path.rglob("*"))
    for step, number, samples in (
        (1, 1, whole.seen[4:8]),
        (2, True, whole.seen[8:10]),
        (3, True, whole.seen[10:14]),
        (2, 3, whole.seen[8:18]),
        (6, 2, None),
    ):
        (path,) = tmp_path.glob(f"tiny/checkpoints/*_iter_{step}.pth")
        model = ToldOfTheEnd()
        result = quiet(root=tmp_path, fast_dev_run=number, resume=path, **options).fit(model, data())
        assert (result.state.step, result.stop_reason) == (step + number, "fast_dev_run")
        assert len(model.seen) == (8 if samples is None else len(samples))
        assert model.seen == samples or samples is None
        assert model.validated == model.validated_before_the_end == [0, 1, 2, 3, 4][: 4 if number == 1 else 5]
    assert sorted(tmp_path.rglob("*")) == before


def test_root_none_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, datamodule = Tiny(), data()
    result = quiet(max_epochs=1).fit(model, datamodule)
    assert result.best_checkpoint is None
    assert result.last_checkpoint is None
    trained = weights(model)["net"]
    assert quiet(max_epochs=1).test(model, datamodule)["test/loss"] > 0
    assert same(weights(model)["net"], trained)
    assert list(tmp_path.iterdir()) == []


# Validation: when.


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [5, 10]),
        ({"valid_every_epochs": 2}, [10]),
        ({"valid_every_epochs": 0.4}, [2, 4, 7, 9, 10]),  # The final weights are validated too.
        ({"valid_every_epochs": 0.2}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"valid_every_epochs": None, "valid_every_steps": 4}, [4, 8, 10]),
        ({"valid_every_epochs": 1, "valid_every_steps": 5}, [5, 10]),
        ({"valid_every_epochs": 1, "valid_every_steps": 3}, [3, 5, 6, 9, 10]),
        ({"valid_every_epochs": 0.5, "accumulation_steps": 2}, [2, 3, 5, 6]),
        ({"valid_every_epochs": None}, []),
    ],
)
def test_validation_comes_when_it_is_due_and_never_twice_at_a_step(options: dict[str, Any], steps: list[int]) -> None:
    class Noting(Callback):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.state = state

        def on_validation_start(self, validation_cycle: int) -> None:
            noted.append(self.state.step)

    noted: list[int] = []
    quiet(max_epochs=2, sanity_batches=0, callbacks=[Noting()], **options).fit(Tiny(), data(train=20))
    assert noted == steps


def test_a_fraction_of_an_epoch_needs_a_known_length() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter([next(iter(DataLoader(Indices(4), batch_size=4)))])

    with pytest.raises(ValueError, match=r"valid_every_epochs=0\.5"):
        quiet(max_epochs=1, valid_every_epochs=0.5).fit(Tiny(), DataModule(Endless(), Split(Indices(4), batch_size=4)))


def test_validation_evaluates_every_index_once_and_several_splits_by_name() -> None:
    model = Tiny()
    splits = {"near": Split(Indices(5), batch_size=4), "far": Split(Indices(3), batch_size=4)}
    result = quiet(max_epochs=1, sanity_batches=0).fit(model, DataModule(Split(Indices(4), batch_size=4), valid=splits))
    assert model.validated == [0, 1, 2, 3, 4, 0, 1, 2]
    assert {"valid/near/loss", "valid/far/loss"} <= result.metrics.keys()


# Verdicts.


@pytest.mark.parametrize(
    ("scores", "options", "best_step", "steps"),
    [
        ([3.0, 2.0, 2.0, 2.5, 1.0], {"mode": "min", "patience": 2}, 2, 4),
        ([3.0, 2.0, 2.0, 1.0, 1.0], {"mode": "min", "patience": 2}, 4, 5),
        ([0.0, 1.0, 1.05, 1.04, 9.0], {"mode": "max", "patience": 2, "min_delta": 0.1}, 2, 4),
        ([0.0, -0.0, 0.0], {"mode": "max", "patience": 2}, 1, 3),
        ([math.nan, 1.0, math.nan, 2.0], {"mode": "min", "patience": 2}, 2, 4),
    ],
)
def test_patience_counts_validations_without_improvement(
    scores: list[float], options: dict[str, Any], best_step: int, steps: int
) -> None:
    trainer = quiet(max_epochs=5, monitor="valid/score", **options)
    result = trainer.fit(Scripted(*scores), DataModule(*[Split(Indices(4), batch_size=4)] * 2))
    assert (result.state.best_step, result.state.step) == (best_step, steps)
    assert result.best_metrics["valid/score"] == result.state.best_score == scores[best_step - 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_score_that_is_not_finite_is_no_improvement_and_is_warned_of_once(
    bad: float, mode: Literal["min", "max"], caplog: pytest.LogCaptureFixture
) -> None:
    scores = [bad, 1.0, bad, bad]
    trainer = quiet(max_epochs=4, monitor="valid/score", mode=mode)
    result = trainer.fit(Scripted(*scores), DataModule(*[Split(Indices(4), batch_size=4)] * 2))
    assert (result.state.best_step, result.state.best_score, result.state.early_stop_count) == (2, 1.0, 2)
    said = [record.getMessage() for record in caplog.records if "no improvement" in record.getMessage()]
    assert said == [f"monitor='valid/score' is {bad} at step {said[0].split()[-3][:-1]}: no improvement"]


def test_several_monitors_are_summed() -> None:
    class Two(Scripted):
        def valid_step(self, batch: Any, step: int) -> None:
            super().valid_step(batch, step)
            self.log("other", 10.0)

    trainer = quiet(max_epochs=2, monitor=["valid/score", "valid/other"])
    assert trainer.fit(Two(2.0, 1.0), data()).state.best_score == 11.0


def test_an_unknown_monitor_names_the_known_ones_before_any_training() -> None:
    model = Tiny()
    with pytest.raises(ValueError, match=r"monitor='valid/acuracy'.*valid/loss"):
        quiet(max_epochs=1, monitor="valid/acuracy").fit(model, data())
    assert model.seen == []
    with pytest.raises(ValueError, match=r"monitor='valid/acuracy'.*valid/loss"):
        quiet(max_epochs=1, monitor="valid/acuracy", sanity_batches=0).fit(model, data())


@pytest.mark.parametrize(
    ("options", "valid", "message"),
    [
        ({"monitor": "valid/loss"}, None, "monitor='valid/loss' needs a valid split"),
        ({"monitor": "valid/loss", "valid_every_epochs": None}, 4, "monitor='valid/loss' needs valid_every"),
        ({"patience": 2}, 4, "patience=2 needs"),
        ({"patience": 2, "monitor": "valid/loss"}, None, "monitor"),
    ],
)
def test_no_verdict_without_a_validation(options: dict[str, Any], valid: int | None, message: str) -> None:
    split = None if valid is None else Split(Indices(valid), batch_size=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        quiet(max_epochs=1, **options).fit(Tiny(), DataModule(Split(Indices(4), batch_size=4), split))


def test_the_users_verdict_stands_in_for_a_monitor(tmp_path: Path) -> None:
    class Own(Tiny):
        def have_metrics_improved(self) -> bool:
            return "valid/loss" in self.metrics and self.verdicts.pop(0)

    model = Own()
    model.verdicts = [True, True, False, False]
    result = quiet(max_epochs=9, patience=2, root=tmp_path).fit(model, data())
    assert (result.stop_reason, result.state.epoch, result.state.best_step) == ("patience", 4, 6)
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == "tiny_epoch_2_iter_6.pth"


def test_without_a_verdict_no_checkpoint_is_best(tmp_path: Path) -> None:
    result = quiet(max_epochs=2, root=tmp_path).fit(Tiny(), data())
    assert result.best_checkpoint is None
    assert result.best_metrics == {}
    assert result.last_checkpoint is not None


# Checkpoints: when, and which are used.


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"keep_last": -1}, ["1_iter_3", "1_iter_5"]),
        ({"keep_last": -1, "save_every_epochs": None, "save_every_steps": 2}, ["0_iter_2", "1_iter_4", "1_iter_5"]),
        ({"keep_last": -1, "save_every_minutes": 1e-9}, ["0_iter_1", "0_iter_2", "1_iter_3", "1_iter_4", "1_iter_5"]),
        ({"keep_last": 2, "save_every_steps": 1}, ["1_iter_4", "1_iter_5"]),
        ({}, ["1_iter_5"]),
        ({"keep_last": 0, "save_every_steps": 1}, ["1_iter_5"]),
    ],
)
def test_checkpoints_are_saved_when_due_and_kept_as_asked(
    tmp_path: Path, options: dict[str, Any], names: list[str]
) -> None:
    quiet(max_steps=5, root=tmp_path, **options).fit(Tiny(), data())
    found = sorted(path.stem.removeprefix("tiny_epoch_") for path in (tmp_path / "tiny/checkpoints").glob("*.pth"))
    assert found == names


def test_best_and_last_are_kept_and_chosen(tmp_path: Path) -> None:
    model = Scripted(0.5, 0.9, 0.7, 0.6)
    trainer = quiet(max_epochs=4, monitor="valid/score", mode="max", root=tmp_path)
    result = trainer.fit(model, data())
    assert result.best_checkpoint is not None
    assert result.last_checkpoint is not None
    assert result.best_checkpoint.name == "scripted_epoch_2_iter_6.pth"
    assert result.last_checkpoint.name == "scripted_epoch_4_iter_12.pth"
    assert sorted(path.name for path in result.best_checkpoint.parent.glob("*.pth")) == [
        "scripted_epoch_2_iter_6.pth",
        "scripted_epoch_4_iter_12.pth",
    ]
    for choice, path in (
        ("best", result.best_checkpoint),
        ("last", result.last_checkpoint),
        (result.best_checkpoint,) * 2,
    ):
        trainer.test(model, data(), checkpoint=choice)
        stored = torch.load(path, weights_only=True)["model"]["net"]
        assert same(weights(model)["net"], stored), choice


def test_a_veto_holds_back_all_but_the_last_checkpoint(tmp_path: Path) -> None:
    class Vetoing(Tiny):
        def should_save_checkpoint(self) -> bool:
            return False

    quiet(max_epochs=3, keep_last=-1, root=tmp_path).fit(Vetoing(), data())
    assert [path.name for path in (tmp_path / "tiny/checkpoints").glob("*.pth")] == ["tiny_epoch_3_iter_9.pth"]


def test_resume_never_refuses_a_folder_with_checkpoints(tmp_path: Path) -> None:
    quiet(max_epochs=1, root=tmp_path, resume="never").fit(Tiny(), data())
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "tiny/checkpoints").glob("[!.]*"))
    with pytest.raises(FileExistsError, match="never"):
        quiet(max_epochs=2, root=tmp_path, resume="never").fit(Tiny(), data())
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "tiny/checkpoints").glob("[!.]*")) == before


def test_validate_and_test_from_a_path_in_a_fresh_process_like_model(tmp_path: Path) -> None:
    result = quiet(max_epochs=1, root=tmp_path).fit(Tiny(), data())
    model = Tiny()
    metrics = quiet(max_epochs=1).validate(model, data(), checkpoint=result.last_checkpoint)
    assert metrics["valid/loss"] == result.metrics["valid/loss"]
    assert not hasattr(model, "optimizer")
    assert not model.net.training


def test_a_missing_path_or_split_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "none.pth"
    says = f"={str(missing)!r}: there is no such checkpoint or run folder"
    with pytest.raises(FileNotFoundError, match=f"^checkpoint{says}$"):
        quiet(max_epochs=1).test(Tiny(), data(), checkpoint=missing)
    for option in ("resume", "init_from"):
        with pytest.raises(FileNotFoundError, match=f"^{option}{says}"):
            quiet(max_epochs=1, **{option: missing}).fit(Tiny(), data())
    with pytest.raises(ValueError, match="no test split"):
        quiet(max_epochs=1).test(Tiny(), DataModule())
    with pytest.raises(ValueError, match="no train split"):
        quiet(max_epochs=1).fit(Tiny(), DataModule())


# Metrics.


def test_rows_are_written_at_log_points_validations_and_epoch_ends(tmp_path: Path) -> None:
    quiet(max_epochs=2, log_every_steps=2, root=tmp_path).fit(Tiny(), data(train=20))
    rows = read_rows(tmp_path / "tiny")
    assert [(row["step"], row["epoch"], "train/loss" in row, "valid/loss" in row) for row in rows] == [
        (2, 0, True, False),
        (4, 0, True, False),
        (5, 0, True, False),
        (5, 0, False, True),
        (6, 1, True, False),
        (8, 1, True, False),
        (10, 1, True, False),
        (10, 1, False, True),
    ]
    assert {"train/lr", "train/step_seconds", "seconds"} <= rows[0].keys()
    assert rows[0]["train/lr"] == pytest.approx(0.01 * 0.97)
    assert [row["step"] for row in rows if "train/epoch_seconds" in row] == [5, 10]


class Paced(Tiny):
    """Its first three steps, its validations and its saves take some time."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        time.sleep(0.1 if state.step < 3 else 0.0)

    def valid_step(self, batch: Any, step: int) -> None:
        time.sleep(0.1)

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        time.sleep(0.1)
        return chkpt_name


def test_the_time_of_an_epoch_leaves_out_validations_and_saves(tmp_path: Path) -> None:
    options = {"valid_every_steps": 2, "save_every_steps": 2, "sanity_batches": 0, "log_every_steps": 1}
    quiet(max_epochs=1, root=tmp_path, **options).fit(Paced(), data(train=20, valid=4))
    rows = [row for row in read_rows(tmp_path / "tiny") if "train/loss" in row]
    assert rows[-1]["train/epoch_seconds"] >= 0.3
    assert rows[-1]["seconds"] >= rows[-1]["train/epoch_seconds"] + 0.4
    assert rows[-1]["train/epoch_seconds"] <= sum(row["train/step_seconds"] for row in rows)


def test_the_times_of_a_resumed_row_and_epoch_have_what_was_done_before(tmp_path: Path) -> None:
    for steps in (3, 5):
        quiet(max_steps=steps, root=tmp_path).fit(Paced(), data(train=20))
    (row,) = [row for row in read_rows(tmp_path / "tiny") if "train/loss" in row]
    assert row["train/epoch_seconds"] >= 0.3
    assert 5 * row["train/step_seconds"] >= 0.3


def test_the_mean_of_uneven_batches_is_the_mean_over_samples() -> None:
    class Mean(Tiny):
        def valid_step(self, batch: Any, step: int) -> None:
            self.log("index", batch[0].double().mean())
            self.log("largest", batch[0].max(), reduce="max")

    result = quiet(max_epochs=1).fit(Mean(), data(valid=9))
    assert result.metrics["valid/index"] == 4.0
    assert result.metrics["valid/largest"] == 8.0


class Spread(Tiny):
    """Logs several reductions of one value, at once or one by one."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self.at_once = at_once

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        largest = batch[0].max().float()
        if self.at_once:
            self.log("largest", largest, reduce=("mean", "std", "max"))
        else:
            self.log("largest", largest)
            self.log("largest/std", largest, reduce="std")
            self.log("largest/max", largest, reduce="max")


def test_several_reductions_of_one_value_are_metrics_of_their_own_also_after_a_resume(tmp_path: Path) -> None:
    ends = []
    for name, at_once, stops in (("each", False, (7,)), ("at once", True, (7,)), ("parts", True, (1, 4, 7))):
        for steps in stops:
            trainer = quiet(max_steps=steps, log_every_steps=3, root=tmp_path / name)
            result = trainer.fit(Spread(at_once=at_once), data(train=20))
        ends.append((timeless(result.metrics), timeless(read_rows(tmp_path / name / "tiny"))))
    assert {"train/largest", "train/largest/std", "train/largest/max"} <= ends[0][0].keys()
    assert same(ends[1], ends[0])
    assert same(ends[2], ends[0])


@pytest.mark.parametrize("reduce", [(), ["mean", "mean"], None, 3])
def test_no_reduction_or_one_twice_is_an_error_that_names_the_metric(reduce: Any) -> None:
    class Wrong(Tiny):
        def valid_step(self, batch: Any, step: int) -> None:
            self.log("loss", 1.0, reduce=reduce)

    with pytest.raises(
        ValueError, match=r"log\('valid/loss'\): reduce=.* must be one of mean, std, .*last, or several"
    ):
        quiet(max_epochs=1).fit(Wrong(), data())


def test_an_unknown_one_of_several_reductions_is_an_error_that_names_it() -> None:
    class Wrong(Tiny):
        def valid_step(self, batch: Any, step: int) -> None:
            self.log("loss", 1.0, reduce=("mean", "median"))

    with pytest.raises(ValueError, match=r"log\('valid/loss/median'\): reduce='median' must be one of mean"):
        quiet(max_epochs=1).fit(Wrong(), data())


class Exploding(Tiny):
    """Its loss is NaN at the fourth step."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.log("regret", math.nan if state.step + 1 == 4 else 1.0)


@pytest.mark.parametrize("save_every_steps", [None, 1])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path: Path, save_every_steps: int | None
) -> None:
    trainer = quiet(max_epochs=3, root=tmp_path, save_every_steps=save_every_steps)
    with pytest.raises(FloatingPointError, match="train/regret is not finite at step 4"):
        trainer.fit(Exploding(), data(train=24))
    steps = [int(path.stem.rpartition("_")[2]) for path in (tmp_path / "tiny/checkpoints").glob("*.pth")]
    assert steps == ([] if save_every_steps is None else [3])


def test_check_finite_can_be_turned_off(tmp_path: Path) -> None:
    result = quiet(max_epochs=1, check_finite=False, root=tmp_path).fit(Exploding(), data(train=24))
    assert math.isnan(result.metrics["train/regret"])


def test_metrics_at_a_stop_between_log_points_are_in_the_result_and_in_a_row_of_their_own(tmp_path: Path) -> None:
    result = quiet(max_steps=1, root=tmp_path).fit(Tiny(), data(train=20))
    (row,) = read_rows(tmp_path / "tiny")
    assert row["valid/loss"] == result.metrics["valid/loss"]
    assert (row["step"], row["kind"], row["train/loss"]) == (1, "end", result.metrics["train/loss"])


class Closing(Tiny):
    """Logs at the end of every epoch, and of the training."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.log("epochs", current_epoch, reduce="last")

    def on_training_end(self) -> None:
        self.log("whole", len(self.seen))


def test_what_is_logged_at_the_end_of_a_training_reaches_the_rows_and_the_result(tmp_path: Path) -> None:
    result = quiet(max_epochs=2, log_every_steps=2, root=tmp_path).fit(Closing(), data(train=20))
    rows = read_rows(tmp_path / "tiny")
    assert [row["train/epochs"] for row in rows if "train/epochs" in row] == [1, 2]
    assert rows[-1].pop("seconds") == result.state.seconds
    assert rows[-1].pop("weights_digest") == rows[-2]["weights_digest"]
    assert rows[-1] == {"step": 10, "kind": "end", "epoch": 2, "train/whole": 40}
    assert (result.metrics["train/epochs"], result.metrics["train/whole"]) == (2, 40)


def test_a_training_that_goes_on_after_its_end_is_like_one_that_never_ended(tmp_path: Path) -> None:
    """What was logged at the first end is in the next row, if a run that had not ended would have it there."""
    results = {}
    for name, limits in {"whole": [{}], "cut": [{"max_epochs": 1}, {"max_steps": 8}, {}]}.items():
        model = Closing()
        for limit in limits:
            options = {"max_epochs": 2, "log_every_steps": 3, **limit}
            results[name] = quiet(root=tmp_path / name, **options).fit(model, data(train=20))
            model.seen = model.seen[-40:]
    whole, cut = (timeless(read_rows(tmp_path / name / "tiny")) for name in results)
    assert [row.get("kind") for row in whole] == [None] * 9 + ["end"]
    assert ["train/whole" in row for row in cut] == [False] * 9 + [True]
    for row in (whole[-1], cut[-1]):
        del row["train/whole"]  # How much this process has seen.
    assert cut == whole
    parts = ("state", "model", "precision", "ranks")
    assert same(*(saved(tmp_path / name / "tiny", *parts) for name in results))


def test_a_finished_run_that_is_started_again_keeps_its_last_row_and_its_result(tmp_path: Path) -> None:
    first = quiet(max_epochs=1, root=tmp_path).fit(Closing(), data(train=20))
    rows = (tmp_path / "tiny/metrics.jsonl").read_bytes()
    again = quiet(max_epochs=1, root=tmp_path).fit(Closing(), data(train=20))
    assert (tmp_path / "tiny/metrics.jsonl").read_bytes() == rows
    assert again.metrics == first.metrics


def test_a_value_of_the_end_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    class Broken(Tiny):
        def on_training_end(self) -> None:
            self.log("whole", math.nan)

    with pytest.raises(FloatingPointError, match="train/whole is not finite"):
        quiet(max_epochs=1, root=tmp_path, save_every_epochs=None).fit(Broken(), data())
    assert list((tmp_path / "tiny/checkpoints").glob("*.pth")) == []


# Rows of evaluations.


def test_evaluations_append_rows_with_the_step_of_their_checkpoint(tmp_path: Path) -> None:
    trainer = quiet(max_epochs=2, keep_last=-1, root=tmp_path, monitor="valid/loss")
    model = Tiny()
    before = quiet(max_epochs=1, root=tmp_path).test(Tiny(), data())
    result = trainer.fit(model, data())
    assert result.last_checkpoint is not None
    first = next((tmp_path / "tiny/checkpoints").glob("*epoch_1*"))
    found = [trainer.test(model, data(), checkpoint=first), trainer.validate(model, data(), checkpoint="last")]
    trainer.test(model, data(), checkpoint=None)
    rows = [row for row in read_rows(tmp_path / "tiny") if "kind" in row]
    assert [(row["step"], row["epoch"], row["kind"], row["checkpoint"]) for row in rows] == [
        (0, 0, "test", None),
        (3, 1, "test", first.name),
        (6, 2, "validate", result.last_checkpoint.name),
        (0, 0, "test", None),
    ]
    for row, metrics in zip(rows, [before, *found], strict=False):
        assert {name: value for name, value in row.items() if "/" in name} == metrics


def test_a_resume_keeps_the_rows_of_evaluations_up_to_its_step(tmp_path: Path) -> None:
    quiet(max_epochs=3, root=tmp_path / "whole").fit(Tiny(), data())
    trainer = quiet(max_epochs=2, keep_last=-1, root=tmp_path)
    trainer.fit(Tiny(), data())
    first, second = sorted((tmp_path / "tiny/checkpoints").glob("*.pth"))
    for path in (second, first):
        trainer.test(Tiny(), data(), checkpoint=path)
    second.unlink()
    quiet(max_epochs=3, root=tmp_path).fit(Tiny(), data())
    rows = read_rows(tmp_path / "tiny")
    assert [row["checkpoint"] for row in rows if "kind" in row] == [first.name]
    trained = [row for row in rows if "kind" not in row]
    assert timeless(trained) == timeless(read_rows(tmp_path / "whole" / "tiny"))
    assert not (tmp_path / "tiny/metrics.jsonl.damaged").exists()


def test_an_evaluation_beside_a_running_training_writes_no_row_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Evaluating(Tiny):
        """Lets another process evaluate the checkpoint of the first step."""

        def on_training_epoch_end(self, current_epoch: int) -> None:
            if current_epoch == 2:
                rows = (tmp_path / "tiny/metrics.jsonl").read_bytes()
                self.other = run_python(EVALUATION, tmp_path)
                assert (tmp_path / "tiny/metrics.jsonl").read_bytes() == rows

    model = Evaluating()
    quiet(max_epochs=3, root=tmp_path).fit(model, data())
    assert model.other.returncode == 0, model.other.stderr
    assert "valid/loss" in model.other.stdout
    warning = "WARNING no row of this validate is written to metrics.jsonl and the loggers: "
    assert model.other.stderr.startswith(f"{warning}{tmp_path / 'tiny/checkpoints'}: process {os.getpid()} is running")
    assert all("kind" not in row for row in read_rows(tmp_path / "tiny"))


EVALUATION = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.models import Tiny, data, quiet
print(quiet(max_epochs=1, root=sys.argv[1]).validate(Tiny(), data()))
"""


def test_an_evaluation_in_a_folder_that_cannot_be_written_to_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tiny").write_text("no folder")
    assert "test/loss" in quiet(max_epochs=1, root=tmp_path).test(Tiny(), data())
    assert "no row of this test is written" in caplog.text


# Data.


def test_the_train_split_may_change_between_epochs() -> None:
    class Growing(DataModule):
        def setup(self) -> None:
            self.train = Split(Indices(2), batch_size=2)

    class Changer(Callback):
        def on_training_epoch_start(self, current_epoch: int) -> None:
            if current_epoch == 2:
                datamodule.train = Split(Indices(4), batch_size=2)

    model, datamodule = Tiny(), Growing()
    quiet(max_epochs=3, callbacks=[Changer()]).fit(model, datamodule)
    assert model.seen == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "source", [[], Split(Indices(0), batch_size=2), Split(Indices(3), batch_size=4, drop_last=True)]
)
def test_an_empty_train_split_is_an_error_that_names_it(source: Any) -> None:
    with pytest.raises(ValueError, match="train split"):
        quiet(max_epochs=2).fit(Tiny(), DataModule(source))


def test_ready_loaders_and_lists_of_batches_train() -> None:
    model = Tiny()
    batches = list(DataLoader(Indices(6), batch_size=4))
    result = quiet(max_epochs=2).fit(model, DataModule(batches, DataLoader(Indices(5), batch_size=2)))
    assert model.seen == [0, 1, 2, 3, 4, 5] * 2
    assert result.state.batch == 4


# Around the run.


def test_global_flags_are_as_they_were() -> None:
    class Looking(Tiny):
        def on_training_start(self) -> None:
            flags.append(torch.are_deterministic_algorithms_enabled())
            flags.append(torch.is_deterministic_algorithms_warn_only_enabled())

    flags: list[bool] = []
    quiet(max_epochs=1, deterministic=True).fit(Looking(), data())
    assert flags == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(NotImplementedError, match="has no train_step"):
        quiet(max_epochs=1, deterministic=True).fit(OnlySetup("only"), data())
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_deterministic_algorithms_that_only_warn_do_so_after_a_run() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for deterministic in (True, False):
            quiet(max_epochs=1, deterministic=deterministic).fit(Tiny(), data())
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_cudnn_measures_in_training_and_not_in_evaluations() -> None:
    """Its flag is that of the option in training, off in evaluations, and afterwards what it was before."""

    class Looking(Tiny):
        def __init__(self, fails_after: int | None = None) -> None:
            super().__init__()
            self.flags: list[tuple[str, bool]] = []
            self.fails_after = fails_after

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.flags.append(("train", torch.backends.cudnn.benchmark))

        def valid_step(self, batch: Any, step: int) -> None:
            super().valid_step(batch, step)
            self.flags.append(("valid", torch.backends.cudnn.benchmark))
            if len(self.flags) == self.fails_after:
                raise ZeroDivisionError

    model = Looking(fails_after=7)
    options: dict[str, Any] = {"max_epochs": 1, "sanity_batches": 0, "valid_every_steps": 2}
    trainer = quiet(benchmark=True, **options)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model, data(train=12))
    steps = [("train", True), ("train", True), ("valid", False), ("valid", False), ("train", True), ("valid", False)]
    assert model.flags == [*steps, ("valid", False)]
    assert not torch.backends.cudnn.benchmark

    torch.backends.cudnn.benchmark = True
    try:
        for changes, flag in (({}, True), ({"deterministic": True}, False)):
            model = Looking()
            quiet(**changes, **options).fit(model, data(train=4))
            assert model.flags == [("train", flag), ("valid", False), ("valid", False)]
        model = Looking()
        quiet(benchmark=False, **options).fit(model, data(train=4))
        assert model.flags == [("train", False), ("valid", False), ("valid", False)]
        trainer.test(model, data(), checkpoint=None)
        assert model.flags[3:] == [("valid", False)] * 2
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False


def test_a_validation_may_use_the_memory_of_the_last_loss_before_a_save(tmp_path: Path) -> None:
    """As the CUDA graphs of a compiled network do."""

    class Reusing(Tiny):
        def backward(self, loss: Any, *arguments: Any) -> None:
            self.memory = loss.detach()
            super().backward(loss, *arguments)

        def valid_step(self, batch: Any, step: int) -> None:
            self.memory.fill_(math.nan)

    options = {"valid_every_steps": 1, "save_every_steps": 1, "log_every_steps": 100, "sanity_batches": 0}
    result = quiet(max_steps=2, root=tmp_path, **options).fit(Reusing(), data())
    assert result.state.step == 2


class OnlySetup(Model):
    def setup(self, fast_init: bool = False) -> None:
        pass

    def valid_step(self, batch: Any, step: int) -> None:
        pass


def test_an_accelerator_that_is_not_there_is_an_error() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="accelerator='cuda'"):
            quiet(max_epochs=1, accelerator="cuda").fit(Tiny(), data())


def test_callbacks_keep_their_state_and_their_model(tmp_path: Path) -> None:
    class Counter(Callback):
        count = 0

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.count += 1
            assert self.model.trainer.max_epochs is not None

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.count = state_dict["count"]

    quiet(max_epochs=1, root=tmp_path, callbacks=[Counter(), Counter()]).fit(Tiny(), data())
    callbacks = [Counter(), Counter()]
    quiet(max_epochs=2, root=tmp_path, callbacks=callbacks).fit(Tiny(), data())
    assert [callback.count for callback in callbacks] == [6, 6]


def test_differences_of_options_are_told_at_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet(max_epochs=1, root=tmp_path).fit(Tiny(), data())
    with caplog.at_level("INFO", logger="helios_lite"):
        quiet(max_epochs=2, root=tmp_path, clip_norm=1.0).fit(Tiny(), data())
    assert "max_epochs: 1 before, 2 now" in caplog.text
    assert "clip_norm: None before, 1.0 now" in caplog.text
    assert "seed:" not in caplog.text


def test_the_trainer_holds_no_state_of_a_run(tmp_path: Path) -> None:
    trainer = quiet(max_epochs=1, root=tmp_path)
    before = dict(vars(trainer))
    trainer.fit(Tiny("one"), data())
    trainer.fit(Tiny("two"), data())
    assert vars(trainer) == before


def test_a_model_with_buffers_of_a_tensor_dataset_trains_in_bf16() -> None:
    class Half(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            with self.autocast():
                out = self.net(batch[0])
            assert out.dtype == torch.bfloat16
            self.backward(out.float().square().mean())
            self.optimizer_step(self.optimizer)

    model = Half()
    Trainer(max_epochs=1, root=None, precision="bf16", progress=False, print_banner=False).fit(
        model, DataModule(Split(TensorDataset(torch.rand(8, 3)), batch_size=4))
    )
    assert model.net[0].weight.dtype == torch.float32


def test_two_frames_stand_between_the_launcher_and_a_step() -> None:
    """What a debugger shows in a user's step is short: what starts the task, `run`, and the loop over the batches."""
    names: list[str] = []

    class Looking(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            names[:] = [frame.name for frame in traceback.extract_stack()]
            super().train_step(batch, state)

    quiet(max_steps=1).fit(Looking(), data())
    launcher = ["fit", "run", "train"]
    assert names[names.index("fit") :] == [*launcher, "run", "run_batches", "train_step"]


def test_sanity_batches_and_accumulation_steps_may_exceed_all_that_there_is() -> None:
    for train in (Split(Indices(10), batch_size=4), DataLoader(Indices(10), 4)):
        model = Tiny()
        trainer = quiet(max_epochs=2, sanity_batches=2**63 - 1, accumulation_steps=2**63 - 1, valid_every_epochs=2)
        assert trainer.fit(model, DataModule(train, Split(Indices(5), batch_size=4))).state.step == 2
        assert len(model.validated) == 2 * 5
