"""How a run ends: the validation of its final weights, its last row, and what an error leaves behind."""

import contextlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import scripts
from helpers.compare import same, saved, timeless
from helpers.models import Indices, Tiny, data, quiet
from helpers.rows import read_rows
from helpers.scored import Ratio

from helios_lite import Callback, DataModule, FitResult, Split
from helios_lite.callbacks import EMA

OPTIONS: dict[str, Any] = {"monitor": "valid/loss", "valid_every_steps": 4, "sanity_batches": 0, "log_every_steps": 5}


class Validated(Tiny):
    """Steps a plateau scheduler in every validation, so that one too many changes the training."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        if not fast_init:
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0, threshold=1.0)

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        if hasattr(self, "plateau"):
            self.plateau.step(self.metrics.get("train/loss", 1.0))


def plain(result: FitResult) -> Any:
    """What a result says, without times."""
    state = timeless(vars(result.state))
    return (state, timeless(result.metrics), timeless(result.best_metrics), result.best_checkpoint, result.stop_reason)


# The validation of the final weights.


def test_final_weights_are_validated_where_no_validation_was_due(tmp_path: Path) -> None:
    model, trainer = Validated(), quiet(max_steps=11, root=tmp_path, **OPTIONS)
    result = trainer.fit(model, data(train=20))
    assert (result.state.validated_step, result.state.validation_cycle) == (11, 5)  # 4, 5, 8, 10 and the end.
    again = trainer.validate(Validated(), data(), checkpoint="last")
    assert again["valid/loss"] == result.metrics["valid/loss"]
    # The loss falls, so these weights are the best.
    assert (result.state.best_step, result.best_metrics["valid/loss"]) == (11, result.metrics["valid/loss"])
    assert result.best_checkpoint == result.last_checkpoint
    rows = [row for row in read_rows(tmp_path / "tiny") if "valid/loss" in row]
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 11, 11]
    assert [row.get("kind") for row in rows] == [None] * 4 + ["end", "validate"]
    assert rows[-2]["valid/loss"] == result.metrics["valid/loss"]
    assert trainer.test(Validated(), data(), checkpoint="best")["test/loss"] == result.metrics["valid/loss"]


@pytest.mark.parametrize(
    ("options", "cycles"),
    [
        ({"valid_every_epochs": None, "valid_every_steps": None, "monitor": None}, 0),
        ({"max_steps": 8}, 3),  # Just validated.
        ({"fast_dev_run": True}, 1),
    ],
)
def test_nothing_is_validated_twice_or_against_the_options(options: dict[str, Any], cycles: int) -> None:
    result = quiet(**{"max_steps": 11, **OPTIONS, **options}).fit(Validated(), data(train=20))
    assert result.state.validation_cycle == cycles


def test_a_start_that_finds_the_run_finished_has_the_same_result_and_validates_nothing(
    tmp_path: Path, capsys: Any
) -> None:
    trainer = quiet(max_steps=11, root=tmp_path, **OPTIONS, progress=True)
    first = trainer.fit(Validated(), data(train=20))
    rows = (tmp_path / "tiny/metrics.jsonl").read_bytes()
    assert capsys.readouterr().err.count("step 11/11 | valid") == 1
    model = Validated()
    second = trainer.fit(model, data(train=20))
    assert "valid" not in capsys.readouterr().err
    assert plain(second) == plain(first)
    assert (model.validated, model.seen) == ([], [])
    assert (tmp_path / "tiny/metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize("keep_best", [0, 1, 2, -1])
def test_a_run_that_goes_on_has_never_had_that_validation(keep_best: int, tmp_path: Path) -> None:
    ends = {}
    for name, stops in (("whole", (20,)), ("parts", (2, 3, 7, 11, 20))):
        for max_steps in stops:
            options = {**OPTIONS, "keep_best": keep_best, "max_steps": max_steps}
            result = quiet(root=tmp_path / name, **options).fit(Validated(), data(train=20))
        parts = ("state", "model", "monitor", "metrics", "ranks")
        rows = [timeless(row) for row in read_rows(tmp_path / name / "tiny")]
        ends[name] = (saved(tmp_path / name / "tiny", *parts), rows, plain(result)[:3])
    assert same(ends["parts"], ends["whole"])
    # A best checkpoint of before is not deleted for one whose score does not count when the run goes on.
    kept = {name: len([*(tmp_path / name / "tiny/checkpoints").glob("*.pth")]) for name in ends}
    assert kept["parts"] >= kept["whole"] - 1


def test_the_best_checkpoint_is_kept_when_the_final_weights_are_better_and_the_run_goes_on(tmp_path: Path) -> None:
    first = quiet(max_steps=10, root=tmp_path, **OPTIONS).fit(Validated(), data(train=20))
    best = first.best_checkpoint
    ended = quiet(max_steps=11, root=tmp_path, **OPTIONS).fit(Validated(), data(train=20))
    assert ended.best_checkpoint == ended.last_checkpoint != best
    assert best is not None
    assert best.exists()
    manifest = json.loads((tmp_path / "tiny/checkpoints/manifest.json").read_text())["checkpoints"]
    assert [(entry["step"], entry["improved"]) for entry in manifest] == [(10, True), (11, True)]

    class Broken(Validated):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            raise RuntimeError("at once")

    with pytest.raises(RuntimeError, match="at once"):
        quiet(max_steps=20, root=tmp_path, **OPTIONS).fit(Broken(), data(train=20))
    manifest = json.loads((tmp_path / "tiny/checkpoints/manifest.json").read_text())["checkpoints"]
    assert [(entry["step"], entry["score"], entry["improved"]) for entry in manifest][1] == (11, None, False)


def test_resuming_from_the_best_takes_final_weights_that_are_the_best(tmp_path: Path) -> None:
    quiet(max_steps=11, root=tmp_path, **OPTIONS).fit(Validated(), data(train=20))
    result = quiet(max_steps=12, root=tmp_path, resume="best", **OPTIONS).fit(model := Validated(), data(train=20))
    assert (result.state.step, len(model.seen)) == (12, 4)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from helpers.models import data, quiet
sys.path.insert(0, {tests!r})
from training.test_ends import OPTIONS, Validated

class Killed(Validated):
    def on_training_end(self):
        self.log("end", 1.0)
        self.has_ended = True
    def on_validation_start(self, cycle):
        super().on_validation_start(cycle)
        if getattr(self, "has_ended", False) and {where!r} == "validation":
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    if {where!r} == "save":  # When the last checkpoint has its name.
        rename = os.replace
        def replace(source, target, **options):
            rename(source, target, **options)
            if "iter_11" in str(target):
                os.kill(os.getpid(), signal.SIGKILL)
        os.replace, Path.replace = replace, lambda self, target: replace(self, target)
    quiet(max_steps=11, root={root!r}, **OPTIONS).fit(Killed(), data(train=20))
"""


class Ended(Validated):
    """What the killed program trains."""

    def on_training_end(self) -> None:
        self.log("end", 1.0)


@pytest.mark.parametrize("where", ["save", "validation"])
def test_a_kill_after_the_last_checkpoint_loses_no_row_and_no_result(where: str, tmp_path: Path) -> None:
    whole = quiet(max_steps=11, root=tmp_path / "whole", **OPTIONS).fit(Ended(), data(train=20))
    tests = str(Path(__file__).parents[1])
    program = KILLED.format(where=where, root=str(tmp_path / "cut"), tests=tests)
    (tmp_path / "program.py").write_text(program)
    killed = scripts.run(tmp_path / "program.py", check=False, env={"PYTHONPATH": tests})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert all(row.get("kind") != "end" for row in read_rows(tmp_path / "cut/tiny"))
    model = Ended()
    cut = quiet(max_steps=11, root=tmp_path / "cut", **OPTIONS).fit(model, data(train=20))
    assert model.seen == []
    assert plain(cut)[:3] == plain(whole)[:3]
    found = [timeless(read_rows(tmp_path / name / "tiny")) for name in ("whole", "cut")]
    assert found[0] == found[1]
    assert found[0][-1]["train/end"] == 1.0


@pytest.mark.parametrize("limit", [{"max_steps": 10}, {"max_epochs": 2}])
def test_a_signal_at_the_last_step_leaves_nothing_of_the_last_epoch_out(limit: dict[str, int], tmp_path: Path) -> None:
    class Signalled(Validated):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            if self.is_cut and state.step == 9:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.log("ended", float(current_epoch))

    ends = []
    for is_cut in (False, True):
        model = Signalled()
        model.is_cut = is_cut
        with contextlib.suppress(SystemExit):
            quiet(root=tmp_path / str(is_cut), **OPTIONS, **limit).fit(model, data(train=20))
        model = Signalled()
        model.is_cut = False
        result = quiet(root=tmp_path / str(is_cut), **OPTIONS, **limit).fit(model, data(train=20))
        rows = timeless(read_rows(tmp_path / str(is_cut) / "tiny"))
        ends.append((plain(result)[:3], rows, saved(tmp_path / str(is_cut) / "tiny", "state", "model", "ranks")))
    assert same(ends[0], ends[1])
    assert [row["train/ended"] for row in ends[1][1] if "train/ended" in row] == [1.0, 2.0]


# An error.


class Breaking(Indices):
    """Has a sample that cannot be read, until it is mended."""

    broken = -1

    def __getitem__(self, index: int) -> Any:
        if index == self.broken:
            torch.rand(3)
            raise OSError(f"sample {index} cannot be read")
        return super().__getitem__(index)


class Sensitive(Validated):
    """Breaks in a hook or a step, until it is mended."""

    where, at = "", -1

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def count(self, where: str) -> None:
        self.num_calls += where == self.where
        if where == self.where and self.num_calls == self.at:
            raise OSError(f"broken in {where}")

    def train_step(self, batch: Any, state: Any) -> None:
        self.count("train_step")
        super().train_step(batch, state)

    def valid_step(self, batch: Any, step: int) -> None:
        self.count("valid_step")
        super().valid_step(batch, step)

    def on_training_batch_start(self, state: Any) -> None:
        super().on_training_batch_start(state)
        self.count("on_training_batch_start")

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        self.count("on_training_batch_end")

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self.count("on_validation_start")


def with_errors(folder: Path, model: Any, broken: int = -1, **options: Any) -> FitResult:
    train = Breaking(20)
    train.broken = broken
    splits = DataModule(train=Split(train, batch_size=4, shuffle=True), valid=Split(Indices(5), batch_size=4))
    options = {"max_epochs": 3, "root": folder, "save_every_epochs": None, "log_every_steps": 1, **OPTIONS, **options}
    return quiet(**options, callbacks=[EMA(0.9)]).fit(model, splits)


def step_of_newest(folder: Path) -> int | None:
    steps = [int(path.stem.rpartition("_")[2]) for path in (folder / "tiny/checkpoints").glob("*.pth")]
    return max(steps, default=None)


def end(folder: Path, result: FitResult) -> Any:
    rows = [timeless(row) for row in read_rows(folder / "tiny")]
    return (
        saved(folder / "tiny", "state", "model", "callbacks", "monitor", "metrics", "ranks"),
        rows,
        plain(result)[:3],
    )


@pytest.mark.parametrize("broken", [0, 3, 11, 19])
def test_a_sample_that_cannot_be_read_loses_no_step(broken: int, tmp_path: Path, caplog: Any) -> None:
    whole = with_errors(tmp_path / "whole", Sensitive())
    order = (first := Sensitive(), with_errors(tmp_path / "order", first))[0].seen
    num_finished = order.index(broken) // 4
    with pytest.raises(OSError, match="cannot be read"):
        with_errors(tmp_path / "cut", Sensitive(), broken)
    if num_finished > 0:
        assert step_of_newest(tmp_path / "cut") == num_finished
        assert f"OSError after step {num_finished}: saved {tmp_path}" in caplog.text
    assert same(end(tmp_path / "cut", with_errors(tmp_path / "cut", Sensitive())), end(tmp_path / "whole", whole))


@pytest.mark.parametrize("where", ["valid_step", "on_validation_start"])
@pytest.mark.parametrize("at", [2, 3])
def test_an_error_in_a_validation_loses_no_step_and_the_validation_is_done_again(
    where: str, at: int, tmp_path: Path
) -> None:
    """Validations are at the steps 4, 5 (the end of an epoch), 8, 10, 12 and 15."""
    whole = with_errors(tmp_path / "whole", Sensitive())
    model = Sensitive()
    model.where, model.at = where, at
    with pytest.raises(OSError, match=f"broken in {where}"):
        with_errors(tmp_path / "cut", model)
    assert step_of_newest(tmp_path / "cut") == ([4, 5] if where == "valid_step" else [5, 8])[at - 2]
    assert same(end(tmp_path / "cut", with_errors(tmp_path / "cut", Sensitive())), end(tmp_path / "whole", whole))


@pytest.mark.parametrize("where", ["train_step", "on_training_batch_start", "on_training_batch_end"])
def test_what_an_error_inside_of_a_step_leaves_behind_is_not_saved(where: str, tmp_path: Path) -> None:
    model = Sensitive()
    model.where, model.at = where, 3
    with pytest.raises(OSError, match=f"broken in {where}"):
        with_errors(tmp_path, model, valid_every_steps=None)
    assert step_of_newest(tmp_path) is None


def test_the_first_part_of_an_accumulation_window_is_not_saved(tmp_path: Path) -> None:
    order = (first := Sensitive(), with_errors(tmp_path / "order", first, accumulation_steps=2))[0].seen
    for at, step in ((12, None), (8, 1)):  # In the fourth batch, which is the second of a window; and in the third.
        folder = tmp_path / str(at)
        with pytest.raises(OSError, match="cannot be read"):
            with_errors(folder, Sensitive(), order[at], accumulation_steps=2, valid_every_steps=None)
        assert step_of_newest(folder) == step


def test_a_value_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    class Infinite(Sensitive):
        def valid_step(self, batch: Any, step: int) -> None:
            self.net[0].weight.data.fill_(math.nan)
            raise FloatingPointError("not finite")

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.log("bad", math.nan)

    with pytest.raises(FloatingPointError):
        with_errors(tmp_path, Infinite(), log_every_steps=50)
    assert step_of_newest(tmp_path) is None


def test_an_error_while_saving_after_an_error_hides_nothing(tmp_path: Path, caplog: Any) -> None:
    class Unsaved(Sensitive):
        def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
            raise RuntimeError("no name")

    model = Unsaved()
    model.where, model.at = "valid_step", 1
    with pytest.raises(OSError, match="broken in valid_step"):
        with_errors(tmp_path, model)
    assert "the state after step 4 could not be saved: no name" in caplog.text


def test_callbacks_are_told_of_an_error_once(tmp_path: Path) -> None:
    class Told(Callback):
        def on_exception(self, error: BaseException) -> None:
            told.append(error)

    told: list[BaseException] = []
    model = Sensitive()
    model.where, model.at = "valid_step", 1
    with pytest.raises(OSError, match="broken") as caught:
        quiet(max_epochs=1, root=tmp_path, callbacks=[Told()], sanity_batches=0).fit(model, data())
    assert told == [caught.value]


class ScoredOnce(Sensitive):
    """Logs a metric object in validations, after an error would have come."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.score = Ratio()

    def valid_step(self, batch: Any, step: int) -> None:
        self.score.update(batch[0] % 2, batch[0])
        super().valid_step(batch, step)
        self.log("score", self.score)


def test_metric_objects_forget_what_a_validation_had_seen_that_an_error_ended(tmp_path: Path) -> None:
    whole = with_errors(tmp_path / "whole", ScoredOnce())
    for at in (1, 2):
        model = ScoredOnce()
        model.where, model.at = "valid_step", at
        with pytest.raises(OSError, match="broken in valid_step"):
            with_errors(tmp_path / str(at), model)
        result = with_errors(tmp_path / str(at), ScoredOnce())
        assert same(end(tmp_path / str(at), result), end(tmp_path / "whole", whole))


@pytest.mark.parametrize("max_steps", [4, 5])
def test_a_validation_that_an_error_ended_at_the_last_step_is_no_validation_of_the_end(
    max_steps: int, tmp_path: Path
) -> None:
    """It was due, so its row is a regular one, and the checkpoint has its score."""
    whole = with_errors(tmp_path / "whole", Sensitive(), max_steps=max_steps)
    model = Sensitive()
    model.where, model.at = "valid_step", 1 if max_steps == 4 else 3
    with pytest.raises(OSError, match="broken in valid_step"):
        with_errors(tmp_path / "cut", model, max_steps=max_steps)
    result = with_errors(tmp_path / "cut", Sensitive(), max_steps=max_steps)
    assert same(end(tmp_path / "cut", result), end(tmp_path / "whole", whole))
    assert result.state.validation_cycle == max_steps - 3


def test_a_validation_that_is_done_again_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    """At step 4 nothing is due but the checkpoint of the best validation."""
    model = Sensitive()
    model.where, model.at = "valid_step", 1
    with pytest.raises(OSError, match="broken in valid_step"):
        with_errors(tmp_path, model)
    model = Sensitive()
    model.where, model.at = "train_step", 1
    with pytest.raises(OSError, match="broken in train_step"):
        with_errors(tmp_path, model)
    (entry,) = json.loads((tmp_path / "tiny/checkpoints/manifest.json").read_text())["checkpoints"]
    assert (entry["step"], entry["improved"]) == (4, True)


def test_nothing_is_deleted_for_what_is_saved_after_an_error(tmp_path: Path) -> None:
    with_errors(tmp_path, Sensitive(), max_steps=2)
    model = Sensitive()
    model.where, model.at = "valid_step", 1
    with pytest.raises(OSError, match="broken in valid_step"):
        with_errors(tmp_path, model)
    steps = [int(path.stem.rpartition("_")[2]) for path in (tmp_path / "tiny/checkpoints").glob("*.pth")]
    assert sorted(steps) == [2, 4]


def test_weights_that_are_not_finite_are_not_saved_after_an_error(tmp_path: Path, caplog: Any) -> None:
    class Exploded(Sensitive):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            super().on_training_batch_end(state, should_log)
            if state.step == 4:
                self.net[0].weight.data[0, 0] = math.inf

    model = Exploded()
    model.where, model.at = "valid_step", 1
    with pytest.raises(OSError, match="broken in valid_step"):
        with_errors(tmp_path, model)
    assert step_of_newest(tmp_path) is None
    assert "the state after step 4 is not saved: a weight is not finite" in caplog.text


def test_a_start_that_has_trained_nothing_saves_nothing(tmp_path: Path) -> None:
    """The first batch may show a mistake in the data or the model, which is then made anew."""
    train = Breaking(20)
    for folder, steps in (("new", 0), ("resumed", 2)):
        train.broken = -1
        options: dict[str, Any] = {"root": tmp_path / folder, "valid_every_epochs": None}
        if steps:
            quiet(max_steps=steps, **options).fit(Sensitive(), DataModule(Split(train, 4)))
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pth")}
        train.broken = 4 * steps
        with pytest.raises(OSError, match="cannot be read"):
            quiet(max_steps=9, **options).fit(Sensitive(), DataModule(Split(train, 4)))
        assert {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pth")} == before


def test_a_loader_with_a_state_is_not_saved_beyond_what_it_has_given(tmp_path: Path) -> None:
    class Reading:
        def __init__(self, batches: list[Any]) -> None:
            self.batches, self.position = batches, 0

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self) -> Any:
            while self.position < len(self):
                self.position += 1
                if self.position == 4 and broken:
                    raise OSError("cannot be read")
                yield self.batches[self.position - 1]
            self.position = 0

        def state_dict(self) -> dict[str, Any]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.position = state["position"]

    index, x = next(iter(torch.utils.data.DataLoader(Indices(24), 24)))
    seen: list[list[int]] = []
    for broken in (True, False):
        batches = Reading([(index[i : i + 4], x[i : i + 4]) for i in range(0, 24, 4)])
        model = Sensitive()
        trainer = quiet(max_epochs=1, root=tmp_path, save_every_steps=2)
        if broken:
            with pytest.raises(OSError, match="cannot be read"):
                trainer.fit(model, DataModule(batches))
        else:
            trainer.fit(model, DataModule(batches))
        seen.append(model.seen)
    assert seen == [list(range(12)), list(range(8, 24))]


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3])
def test_an_epoch_of_a_loader_with_a_state_is_not_begun_again_after_its_validation_failed(
    accumulation_steps: int, tmp_path: Path
) -> None:
    """Its last window may be as long as the others, so that only one more look shows that it has ended."""

    class Counting:
        def __init__(self) -> None:
            self.position = 0

        def __iter__(self) -> Any:
            while self.position < 3:
                self.position += 1
                yield torch.tensor([self.position]), torch.ones(1, 3) * self.position
            self.position = 0

        def state_dict(self) -> dict[str, Any]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.position = state["position"]

    seen = []
    for where in ("valid_step", ""):
        model = Sensitive()
        model.where, model.at = where, 2
        trainer = quiet(max_epochs=2, root=tmp_path, sanity_batches=0, accumulation_steps=accumulation_steps)
        with pytest.raises(OSError, match="broken") if where else contextlib.nullcontext():
            trainer.fit(model, DataModule(Counting(), Split(Indices(5), 4)))
        seen.append(model.seen)
    assert seen == [[1, 2, 3], [1, 2, 3]]


def test_a_finished_run_is_validated_when_it_is_asked_for_later(tmp_path: Path) -> None:
    off = {"valid_every_epochs": None, "valid_every_steps": None, "monitor": None}
    quiet(max_steps=11, root=tmp_path, **{**OPTIONS, **off}).fit(Ended(), data(train=20))
    model = Ended()
    result = quiet(max_steps=11, root=tmp_path, **OPTIONS).fit(model, data(train=20))
    assert (model.seen, result.state.best_step, result.metrics["train/end"]) == ([], 11, 1.0)
    assert quiet(max_steps=11, root=tmp_path, **OPTIONS).fit(Ended(), data(train=20)).metrics == result.metrics


def test_a_validation_that_fails_can_be_turned_off(tmp_path: Path) -> None:
    model = Sensitive()
    model.where, model.at = "valid_step", 1
    with pytest.raises(OSError, match="broken in valid_step"):
        with_errors(tmp_path, model)
    off = {"valid_every_epochs": None, "valid_every_steps": None, "monitor": None}
    model = Sensitive()
    assert with_errors(tmp_path, model, **off).state.validation_cycle == 0
    assert (model.validated, len(model.seen)) == ([], 11 * 4)


def test_what_a_model_has_decided_of_the_final_weights_is_not_asked_again(tmp_path: Path) -> None:
    class Deciding(Validated):
        def have_metrics_improved(self) -> bool:
            asked.append(1)
            return len(asked) == 1

    asked: list[int] = []
    options = {**OPTIONS, "monitor": None, "max_steps": 11}
    first = quiet(root=tmp_path, **options).fit(Deciding(), data(train=20))
    assert (first.state.best_step, len(asked)) == (4, 5)
    asked.clear()
    assert plain(quiet(root=tmp_path, **options).fit(Deciding(), data(train=20))) == plain(first)


def test_an_error_in_the_validation_of_the_end_says_that_the_training_has_finished(tmp_path: Path) -> None:
    class Released(Validated):
        def on_training_end(self) -> None:
            self.has_ended = True

        def valid_step(self, batch: Any, step: int) -> None:
            if getattr(self, "has_ended", False):
                raise AttributeError("the teacher is gone")
            super().valid_step(batch, step)

    with pytest.raises(AttributeError, match="the teacher is gone") as caught:
        quiet(max_steps=11, root=tmp_path, **OPTIONS).fit(Released(), data(train=20))
    (note,) = [note for note in caught.value.__notes__ if "final weights" in note]
    path = tmp_path / "tiny/checkpoints/tiny_epoch_2_iter_11.pth"
    assert note.endswith(f"the training has finished and is saved in {path}")
