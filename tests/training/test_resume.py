"""Resumed equals uninterrupted, bit for bit, wherever a run is cut."""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from helpers import resumable
from helpers.compare import same, saved
from helpers.models import Indices, Stream, Tiny, data, quiet
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import Callback, DataModule, Split
from helios_lite.callbacks import EMA
from helios_lite.changes import misfits
from helios_lite.changes.misfits import load_parts
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.processes.devices import DeviceMover
from helios_lite.training import resuming

# PyTorch warns that scheduler.step() came first in this process; the optimizer had stepped before the resume.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

STEPS = 9  # 3 epochs of 22 samples, in micro-batches of 4 and windows of 2.


class CutError(Exception):
    pass


class Cut(Callback):
    """Ends the run after a step, by an exception or by asking to stop."""

    def __init__(self, step: int, how: str) -> None:
        self.step, self.how = step, how

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.step == self.step and self.how == "exception":
            raise CutError


class Stopping(resumable.Rich):
    """A model that asks to stop after some step."""

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
    trainer = resumable.trainer(root, **options)
    trainer.callbacks = [*trainer.callbacks, Cut(step, how)]
    return trainer.fit(model, resumable.data(num_workers))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("uninterrupted")
    result = fit(root)
    assert result.state.step == STEPS
    outcome = resumable.outcome(root)
    assert len(outcome["rows"]) >= 12
    assert len(outcome["batches"]) == 18
    return outcome


def require_same(root: Path, expected: dict[str, Any]) -> None:
    found = resumable.outcome(root)
    for part, value in expected.items():
        assert same(found[part], value), part


@pytest.mark.parametrize("how", ["limit", "stop", "exception"])
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_cut_after_any_step_ends_like_one_that_was_not(
    tmp_path: Path, uninterrupted: dict[str, Any], step: int, how: str
) -> None:
    if how == "exception":
        with pytest.raises(CutError):
            fit(tmp_path, step=step, how=how, save_every_steps=1)
    else:
        assert fit(tmp_path, step=step, how=how).state.step == step
    fit(tmp_path)
    require_same(tmp_path, uninterrupted)


class Numbered(Tiny):
    """The score of a validation is its number."""

    def on_validation_start(self, validation_cycle: int) -> None:
        self.cycle = validation_cycle

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("score", self.cycle)


class OfStream(Numbered):
    """Takes batches of numbers."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step((batch, batch[:, None].expand(-1, 3).float()), state)


def test_a_checkpoint_has_its_score_where_a_resume_ends_the_epoch_that_was_validated(tmp_path: Path) -> None:
    """The epochs of a stream have three steps, which it is not known to have before it ends."""
    options: dict[str, Any] = {"monitor": "valid/score", "valid_every_steps": 3, "valid_every_epochs": None}
    found = []
    for name, cuts in (("whole", [7]), ("cut", [3, 7])):
        for step in cuts:
            stream = DataModule(Split(Stream(6), 2), Split(Indices(5), 4))
            quiet(root=tmp_path / name, max_steps=step, keep_last=-1, **options).fit(OfStream(), stream)
        found.append(json.loads((tmp_path / name / "tiny/checkpoints/manifest.json").read_text())["checkpoints"])
    assert [(each["epoch"], each["step"], each["score"]) for each in found[0]][:2] == [(0, 3, 1), (1, 3, 1)]
    assert found[0] == found[1]


@pytest.mark.parametrize(("mode", "best"), [("min", 1.0), ("max", 3.0)])
def test_the_metrics_of_the_best_validation_survive_a_resume(mode: str, best: float, tmp_path: Path) -> None:
    options: dict[str, Any] = {"root": tmp_path, "monitor": "valid/score", "mode": mode}
    quiet(max_epochs=1, **options).fit(Numbered(), data())
    result = quiet(max_epochs=3, **options).fit(Numbered(), data())
    assert result.best_metrics["valid/score"] == result.state.best_score == best


@pytest.mark.parametrize("async_save", [False, True])
def test_a_run_cut_after_every_step_ends_like_one_that_was_not(
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
    """The same run with patience, once whole and once in pieces, stops at the same step."""
    options: dict[str, Any] = {"max_epochs": 30, "patience": 3}
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    reason = fit(tmp_path / "whole", **options).stop_reason
    assert reason == "patience"
    for step in (4, 5, 7, 9, 10):
        fit(tmp_path / "pieces", step=step, how="limit", **options)
    assert fit(tmp_path / "pieces", **options).stop_reason == "patience"
    require_same(tmp_path / "pieces", resumable.outcome(tmp_path / "whole"))


def test_resuming_reads_no_skipped_sample(tmp_path: Path) -> None:
    class Reading(resumable.Augmented):
        read: list[int] = []

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return super().__getitem__(index)

    def part(**options: Any) -> list[int]:
        Reading.read = []
        datamodule = resumable.data()
        datamodule.train.dataset = Reading(22)
        resumable.trainer(tmp_path, **options).fit(resumable.Rich(tmp_path / "indices"), datamodule)
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
    expected["metrics"] = {**expected["metrics"], "rows": len(resumable.outcome(tmp_path / "second")["rows"])}
    require_same(tmp_path / "second", expected)
    assert first.exists()
    other = shutil.copyfile(first, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"iter_9.*\.pth; choose another run_name, or resume=\"auto\" to continue"):
        fit(tmp_path / "second", resume=other)


@pytest.mark.parametrize("source", ["file", "run folder"])
def test_a_run_that_a_path_has_begun_goes_on_when_it_is_started_again(
    tmp_path: Path, uninterrupted: dict[str, Any], source: str
) -> None:
    first = fit(tmp_path / "first", step=4, how="limit").last_checkpoint
    resume = first if source == "file" else tmp_path / "first/rich"
    (tmp_path / "second").mkdir()
    (tmp_path / "second/indices").write_text((tmp_path / "first/indices").read_text())
    for step in (4, 5, 7):
        with pytest.raises(CutError):
            fit(tmp_path / "second", step=step + 1, how="exception", save_every_steps=1, resume=resume)
        if step > 4:  # The first time nothing was saved.
            assert saved(tmp_path / "second/rich", "state")["state"]["step"] == step
    first.unlink()  # It is not needed any more.
    fit(tmp_path / "second", resume=resume)
    parts = ("state", "model", "callbacks", "ranks")
    require_same(tmp_path / "second", {part: uninterrupted[part] for part in parts})


SCORES = [3.0, 1.0, 2.0, 5.0, 0.5, 4.0]


class Scored(Tiny):
    """Its validations have the scores of a list, by epoch."""

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("score", SCORES[self.cycle - 1])

    def on_validation_start(self, validation_cycle: int) -> None:
        self.cycle = validation_cycle


def fit_scored(root: Path, epochs: int, **options: Any) -> Any:
    options = {"monitor": "valid/score", "keep_last": 2, "sanity_batches": 0, **options}
    return quiet(root=root, max_epochs=epochs, **options).fit(Scored(), data())


def test_going_back_to_the_best_sets_the_newer_checkpoints_and_their_rows_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit_scored(tmp_path / "whole", 4)
    ended = fit_scored(tmp_path, 4).last_checkpoint
    run = tmp_path / "tiny"
    rows = (run / "metrics.jsonl").read_bytes()
    newer = {path.name: path.read_bytes() for path in (ended.with_name("tiny_epoch_3_iter_9.pth"), ended)}
    result = fit_scored(tmp_path, 4, resume="best")
    assert f"continuing {run} at step 6 of 12 (" in caplog.text
    assert f"the checkpoints after step 6 (2) are in {run / 'set_aside_1'} now" in caplog.text
    assert {path.name: path.read_bytes() for path in (run / "set_aside_1/checkpoints").iterdir()} == newer
    assert (run / "set_aside_1/metrics.jsonl").read_bytes() == rows
    assert result.best_checkpoint == run / "checkpoints/tiny_epoch_2_iter_6.pth"
    parts = ("state", "model", "monitor", "metrics", "ranks")
    assert same(saved(run, *parts), saved(whole.last_checkpoint.parents[1], *parts))
    again = quiet(root=tmp_path, run_name="again", max_epochs=4, resume=run / "set_aside_1").fit(Scored(), data())
    assert again.last_checkpoint.name == ended.name  # What was set aside is a run folder.


def test_a_run_that_went_back_to_the_best_goes_on_when_it_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit_scored(tmp_path, 4)
    with pytest.raises(CutError):
        fit_scored(tmp_path, 3, resume="best", callbacks=[Cut(7, "exception")])
    assert (tmp_path / "tiny/set_aside_1").exists()
    for epochs in (3, 5, 6):
        assert fit_scored(tmp_path, epochs, resume="best").state.epoch == epochs
    checkpoints = sorted(path.name for path in (tmp_path / "tiny/checkpoints").glob("*.pth"))
    assert checkpoints == [f"tiny_epoch_{epoch}_iter_{3 * epoch}.pth" for epoch in (5, 6)]
    assert "not there any more" not in caplog.text
    assert not (tmp_path / "tiny/set_aside_2").exists()


def test_the_best_that_is_the_newest_moves_nothing(tmp_path: Path) -> None:
    fit_scored(tmp_path, 2)
    assert fit_scored(tmp_path, 3, resume="best").state.step == 9
    assert not (tmp_path / "tiny/set_aside_1").exists()


def test_a_best_checkpoint_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'resume="best": .*tiny has no checkpoint; use "auto"'):
        fit_scored(tmp_path, 1, resume="best")
    with pytest.raises(FileNotFoundError, match=r'resume="best": a run without files \(root=None\) has no checkpoint'):
        quiet(max_steps=1, resume="best").fit(Tiny(), data())
    fit_scored(tmp_path, 4, keep_best=0)
    before = sorted((tmp_path / "tiny/checkpoints").iterdir())
    with pytest.raises(ValueError, match=r'resume="best": .*checkpoints has no best checkpoint. Either'):
        fit_scored(tmp_path, 5, resume="best")
    assert sorted((tmp_path / "tiny/checkpoints").iterdir()) == before


def test_a_run_folder_without_checkpoints_or_of_several_models_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="empty: this run folder has no checkpoint that can be read"):
        quiet(max_steps=1, resume=tmp_path / "empty").fit(Tiny(), data())
    for option in ("resume", "init_from"):
        with pytest.raises(CheckpointError, match=r"is a folder, and no sharded checkpoint; .* contains checkpoints/$"):
            quiet(max_steps=1, **{option: tmp_path}).fit(Tiny(), data())
    for name in ("a b", "c", "tiny"):
        quiet(root=tmp_path, run_name="several", max_steps=1).fit(Tiny(name), data())
    with pytest.raises(ValueError, match=r"several: has checkpoints of several models \(a-b, c, tiny\); give the path"):
        quiet(max_steps=2, resume=tmp_path / "several").fit(Tiny("d"), data())
    for name in ("a b", "c", "tiny"):
        assert quiet(max_steps=2, resume=tmp_path / "several").fit(Tiny(name), data()).state.step == 2


class Counting(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}


def test_only_a_lost_state_of_a_callback_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callbacks = [Callback(), Counting()]
    quiet(root=tmp_path, max_steps=1, callbacks=callbacks).fit(Tiny(), data())
    quiet(root=tmp_path, max_steps=2).fit(Tiny(), data())
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["the checkpoint has the state of a callback that this run does not have: Counting"]


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
    from helios_lite.loading.loaders import make_loader

    for _ in make_loader(resumable.data().train, "train", 0).epoch(0).batches:
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert "numpy" in sys.modules


class DrawingHooks(resumable.Rich):
    """Draws in the hooks that come before the first batch; the epoch's is drawn once per epoch, and not again."""

    def on_training_start(self) -> None:
        torch.rand(3)

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.shift = torch.rand(()) if current_epoch % 2 else torch.zeros(())

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step([batch[0], batch[1] + self.shift], state)


def test_draws_of_hooks_are_the_same_after_a_resume_between_epochs(tmp_path: Path) -> None:
    outcomes = []
    for name, epochs in (("whole", [3]), ("cut", [1, 2, 3])):
        root = tmp_path / name
        root.mkdir()
        for max_epochs in epochs:
            resumable.trainer(root, max_epochs=max_epochs).fit(DrawingHooks(root / "indices"), resumable.data())
        outcomes.append(resumable.outcome(root))
    assert same(*outcomes)


def mixed(samples: list[Any]) -> list[torch.Tensor]:
    """A collate function that draws, as MixUp does."""
    index, x = torch.utils.data.default_collate(samples)
    return [index, x + torch.rand(()) + random.random()]


@pytest.mark.parametrize("in_memory", [False, True])
def test_draws_of_a_collate_function_are_exact_too(tmp_path: Path, in_memory: bool) -> None:
    dataset = TensorDataset(torch.arange(22), torch.rand(22, 3)) if in_memory else resumable.Augmented(22)
    outcomes = []
    for name, parts in (("whole", [(9, 0)]), ("cut", [(3, 2), (5, 0), (9, 1)])):
        root = tmp_path / name
        root.mkdir()
        for max_steps, num_workers in parts:
            split = Split(dataset, batch_size=4, shuffle=True, num_workers=num_workers, collate_fn=mixed)
            datamodule = DataModule(split, resumable.data().valid)
            resumable.trainer(root, max_steps=max_steps).fit(resumable.Rich(root / "indices"), datamodule)
        outcomes.append(resumable.outcome(root))
    assert same(*outcomes)


def test_another_monitor_at_a_resume_starts_its_verdicts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, max_epochs=1)
    cycles: list[int] = []

    class Cycles(Callback):
        def on_validation_start(self, validation_cycle: int) -> None:
            cycles.append(validation_cycle)

    with pytest.raises(ValueError, match=r"monitor='valid/lost' is not a metric .* did you mean valid/loss\?"):
        fit(tmp_path, max_epochs=2, monitor="valid/lost", callbacks=[Cycles()])
    assert cycles == [0]  # Before the first step.
    result = fit(tmp_path, max_epochs=2, monitor="valid/loss", mode="max")
    assert " is monitored now: what was best so far is forgotten" in caplog.text
    assert result.state.best_step > 3
    assert result.best_checkpoint.name.startswith(f"rich_epoch_{result.state.best_step // 3}")


def test_the_best_metrics_belong_to_the_best_checkpoint_with_min_delta(tmp_path: Path) -> None:
    result = fit(tmp_path, max_epochs=3, min_delta=0.05, keep_last=-1)
    content = torch.load(result.best_checkpoint, weights_only=True)
    assert content["state"]["step"] == result.state.best_step
    assert content["metrics"]["latest"]["valid/loss"] == result.best_metrics["valid/loss"]


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path: Path) -> None:
    class Numpy(resumable.Rich):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.hparams["cosine"] = numpy.float64(0.5)
            self.per_epoch = torch.optim.lr_scheduler.LambdaLR(self.optimizers[1], lambda n: numpy.cos(n / 9))

    result = resumable.trainer(tmp_path, max_epochs=1).fit(Numpy(tmp_path / "indices"), resumable.data())
    content = torch.load(result.last_checkpoint, weights_only=True)
    assert type(content["hparams"]["cosine"]) is float


def test_hparams_that_no_checkpoint_can_hold_are_an_error_before_any_training(tmp_path: Path) -> None:
    model = resumable.Rich(tmp_path / "indices")
    model.hparams["odd"] = object()
    with pytest.raises(TypeError, match=r"hparams\['odd'\] is a builtins.object"):
        resumable.trainer(tmp_path).fit(model, resumable.data())
    assert not (tmp_path / "indices").exists()


class Named(Tiny):
    """Has hparams."""

    def __init__(self, **hparams: Any) -> None:
        super().__init__()
        self.hparams = hparams


def test_a_model_with_other_hparams_does_not_become_the_one_in_the_run_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = quiet(root=tmp_path, max_steps=1).fit(Named(width=8, kind="a", old=1), data()).last_checkpoint
    content = path.read_bytes()
    other = {"width": 16, "kind": "a", "new": [2]}
    with pytest.raises(
        ValueError, match=r'choose another run_name or resume="new"; .* set allow_changed_hparams=True'
    ) as error:
        quiet(root=tmp_path, max_steps=2).fit(Named(**other), data())
    assert str(error.value).startswith(f"{path}: is of a model with other hparams: ")
    differences = [
        "hparams['width']: 8 in the checkpoint, 16 now",
        "hparams['old']: 1 in the checkpoint, missing now",
        "hparams['new']: missing in the checkpoint, [2] now",
    ]
    assert "; ".join(differences) in str(error.value)
    assert path.read_bytes() == content
    assert quiet(root=tmp_path, run_name="given", max_steps=2, resume=path).fit(Named(**other), data()).state.step == 2
    result = quiet(root=tmp_path, max_steps=2, allow_changed_hparams=True).fit(Named(**other), data())
    assert result.state.step == 2
    messages = [record.getMessage() for record in caplog.records]
    assert [messages.count(text) for text in differences] == [2, 2, 2]
    assert quiet(root=tmp_path, max_steps=3).fit(Named(**other), data()).state.step == 3  # They are those of the file.


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (numpy.float32(0.1), numpy.float32(0.1)),
        (numpy.int64(3), 3),
        (1, 1.0),
        (float("nan"), float("nan")),
        ([1, (2, float("nan"))], (1, [2, float("nan")])),
        ({"a": [1], "b": {2}}, {"b": {2}, "a": (1,)}),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])),
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2)),
        (torch.float16, torch.float16),
        (None, None),
    ],
    ids=str,
)
def test_hparams_that_are_equal_stay_equal_when_they_are_saved_and_loaded(tmp_path: Path, saved: Any, now: Any) -> None:
    quiet(root=tmp_path, max_steps=1).fit(Named(value=saved), data())
    for value in (saved, now):
        assert quiet(root=tmp_path, max_steps=2).fit(Named(value=value), data()).state.step == 2


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (1, 1.5),
        (1, "1"),
        (None, 0),
        ([1], [1, 2]),
        ([1, 2], [1, 3]),
        ({"a": 1}, {"a": 1, "b": None}),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2).int()),
        (torch.ones(2), torch.tensor([1.0, 2.0])),
        (torch.ones(1), 1.0),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_hparams_of_another_value_differ(saved: Any, now: Any) -> None:
    assert len(misfits.differences({"value": saved}, {"value": now})) == 1
    assert len(misfits.differences({"value": now}, {"value": saved})) == 1


class Stateful(list[Any]):
    """A list of batches that remembers how far it was read."""

    position = num_loaded = 0

    def __iter__(self) -> Any:
        while self.position < len(self):
            self.position += 1
            yield self[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.num_loaded += 1


@pytest.mark.parametrize("first_stop", [2, 5])  # In the first epoch, and in the second, whose split a hook assigns.
def test_a_loader_is_restored_once_and_it_is_the_one_that_was_saved(first_stop: int, tmp_path: Path) -> None:
    class Changing(DataModule):
        def setup(self) -> None:
            batches = list(torch.utils.data.DataLoader(resumable.Augmented(12), batch_size=4))
            self.splits = [Stateful(batches) for _ in range(3)]
            self.train = self.splits[0]

    class Next(Callback):
        def on_training_epoch_start(self, current_epoch: int) -> None:
            datamodule.train = datamodule.splits[current_epoch - 1]

    for max_steps in (first_stop, 9):
        datamodule = Changing()
        options = {"valid_every_epochs": None, "monitor": None, "patience": None, "accumulation_steps": 1}
        trainer = resumable.trainer(tmp_path, max_steps=max_steps, **options)
        trainer.callbacks = [Next()]
        trainer.fit(resumable.Rich(tmp_path / "indices"), datamodule)
    batches = resumable.read_batches(tmp_path)
    assert [batches[i] for i in range(9)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 3
    assert [split.num_loaded for split in datamodule.splits] == {2: [1, 0, 0], 5: [0, 1, 0]}[first_stop]


# On a device.


def test_optimizers_count_on_the_cpu_after_a_resume_on_a_device_and_other_tensors_are_there(tmp_path: Path) -> None:
    result = quiet(root=tmp_path, max_steps=2, callbacks=[EMA(0.9)]).fit(Tiny(), data())
    content = read_checkpoint(result.last_checkpoint)
    content["model"]["hidden"] = {"value": torch.ones(3)}
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1)).to("meta")
    optimizer = torch.optim.Adam(net.parameters())
    mover = DeviceMover(torch.device("meta"))
    found = resuming.placed(content, {"net": net, "optimizer": optimizer}, mover)
    optimizer.load_state_dict(found["model"]["optimizer"])
    assert [state["step"].device.type for state in optimizer.state.values()] == ["cpu"] * 4
    assert [state["exp_avg"].device.type for state in optimizer.state.values()] == ["meta"] * 4
    assert all(value.is_cpu for value in found["model"]["net"].values())
    assert found["model"]["hidden"]["value"].is_meta
    assert found["callbacks"]["EMA"]["evaluation_weights"]["net"]["0.weight"].is_meta
    assert found["ranks"][0]["rng"]["torch"].is_cpu
    assert {name: found[name] for name in ("state", "config")} == {name: content[name] for name in ("state", "config")}


# A model that is made otherwise.


class Changed(Tiny):
    """Made otherwise the second time."""

    def __init__(self, change: str = "") -> None:
        super().__init__("changed")
        self.change = change

    def setup(self, fast_init: bool = False) -> None:
        width = 16 if self.change == "shape" else 8
        layers = [nn.Linear(3, width), nn.Linear(width, 1)]
        if self.change == "added":
            layers += [nn.Linear(1, 1) for _ in range(4)]
        self.net = self.parallelize(nn.Sequential(*layers[1:] if self.change == "removed" else layers))
        if self.change == "another":
            self.other = nn.Linear(1, 1)
        groups = [{"params": layer.parameters()} for layer in self.net]
        self.optimizer = torch.optim.Adam(self.net.parameters() if self.change == "groups" else groups)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)
        self.initial = [p.detach().clone() for p in self.net.parameters()]


CHANGES = {
    "shape": r"net.0.weight: \(8, 3\) in the checkpoint, \(16, 3\) now; net.0.bias: \(8,\) in",
    "added": "net.2.weight: only in the model, of shape .1, 1.;.*; and 4 more",
    "removed": r"net.0.weight: \(8, 3\) in the checkpoint, \(1, 8\) now;.*net.1.bias: only in the checkpoint",
    "another": "is of a model that is made otherwise: other: only in the model. To train",
    "groups": "optimizer: groups of 2, 2 parameters in the checkpoint, of 4 now",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_made_otherwise_does_not_resume_and_keeps_its_weights(change: str, tmp_path: Path) -> None:
    path = quiet(root=tmp_path, max_steps=2).fit(Changed(), data()).last_checkpoint
    assert path is not None
    model = Changed(change)
    with pytest.raises(ValueError, match=CHANGES[change]) as raised:
        quiet(root=tmp_path, max_steps=4).fit(model, data())
    text = str(raised.value)
    assert text.startswith(f"{path}: is of a model that is made otherwise: ")
    for way in ('another run_name or resume="new"', f"delete {tmp_path / 'changed'}"):
        assert way in text
    assert (f"init_from={str(path)!r} takes net, which fits" in text) is (change in ("another", "groups"))
    assert same([*model.net.parameters()], model.initial)


class Renaming(nn.Linear):
    """Takes states with other names, as networks do that have changed."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        for name in ("weight", "bias"):
            state_dict[prefix + name] = state_dict.pop(f"{prefix}old_{name}", state_dict.get(prefix + name))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def test_a_network_that_takes_other_names_may_resume() -> None:
    net = Renaming(1, 1)
    state = {"net": {"old_weight": torch.ones(1, 1), "old_bias": torch.ones(1)}}
    load_parts("Model", {"net": net}, state, networks_only=False)
    assert net.weight.item() == 1
