"""The file of metrics: one row a line, kept at a resume as far as the checkpoint goes."""

import contextlib
import json
import math
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from helpers.models import Tiny, data, quiet
from helpers.rows import read_rows
from helpers.scripts import DEADLINE
from helpers.sequences import make_case, wandb_history, wandb_records, wrong

from helios_lite.loggers import JsonlLogger, Logger, MLflowLogger, TensorBoardLogger, WandbLogger, _mlflow_name
from helios_lite.metrics.measurements import is_measured
from helios_lite.metrics.rows import append_evaluation

RECIPES = Path(__file__).parent.parent / "examples/recipes"
EXTRAS = {"tensorboard", "mlflow", "wandb"}
ROWS = [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(logger, rows):
    for row in rows:
        logger.log_metrics({name: value for name, value in row.items() if name != "step"}, row["step"])


def read(path):
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_a_new_file_is_empty(path):
    logger = JsonlLogger(path, rows=0)
    logger.close()
    assert (read(path), logger.rows) == ([], 0)


def test_a_file_that_a_user_names_is_opened_when_there_is_something_to_write(path):
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    before = path.read_bytes()
    logger = JsonlLogger(str(path))
    logger.close()
    assert path.read_bytes() == before
    logger.rewind(2)  # A training that goes on from step 2.
    logger.log_metrics({"train/loss": 0.5}, 4)
    logger.close()
    assert (read(path), logger.rows) == ([{"step": 1}, {"step": 2}, {"step": 4, "train/loss": 0.5}], 3)
    logger.log_metrics({"test/loss": 0.5}, 4)  # A test after it.
    logger.close()
    assert read(path)[2:] == [{"step": 4, "train/loss": 0.5}, {"step": 4, "test/loss": 0.5}]


def test_a_row_is_one_object_with_its_step_first(path):
    logger = JsonlLogger(path)
    logger.log_metrics({"epoch": 1, "train/loss": 0.5}, 50)
    logger.close()
    assert path.read_text(encoding="utf-8") == '{"step": 50, "epoch": 1, "train/loss": 0.5}\n'


def test_every_row_is_in_the_file_before_the_next_begins(path):
    logger = JsonlLogger(path)
    for count, row in enumerate(ROWS, start=1):
        write(logger, [row])
        assert (len(read(path)), logger.rows) == (count, count)
    logger.close()


def test_any_name_and_float_come_back_as_they_were(path):
    metrics = {'valid/"ä"\n\u2028': 0.1 + 0.2, "tiny": 5e-324, "zero": 0.0}
    logger = JsonlLogger(path)
    logger.log_metrics(metrics, 1)
    logger.close()
    assert read(path) == [{"step": 1, **metrics}]
    JsonlLogger(path, rows=1).close()
    assert read(path) == [{"step": 1, **metrics}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_know_becomes_null(path, value):
    logger = JsonlLogger(path)
    logger.log_metrics({"train/loss": value, "train/other": 1.0}, 1)
    logger.close()
    assert read(path) == [{"step": 1, "train/loss": None, "train/other": 1.0}]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_reopening_keeps_as_many_rows_as_asked_and_cuts_the_rest(path, kept):
    logger = JsonlLogger(path)
    write(logger, ROWS)
    logger.close()
    again = JsonlLogger(path, rows=kept)
    assert (read(path), again.rows) == (ROWS[:kept], kept)
    new = [{"step": 10, "train/loss": 7.0}]
    write(again, new)
    again.close()
    assert (read(path), again.rows) == (ROWS[:kept] + new, kept + 1)


@pytest.mark.parametrize(
    ("damage", "kept", "found"),
    [
        (lambda lines: [lines[0], b"\xff" + lines[1], lines[2]], [0, 2], "2, with 1 lines"),
        (lambda lines: [lines[0], b'{"step": 2, "train\n', lines[2]], [0, 2], "2, with 1 lines"),
        (
            lambda lines: [b"[1]\n", b"1\n", b'{"step": "1"}\n', b"[" * 9999 + b"\n", *lines],
            [0, 1, 2],
            "3, with 4 lines",
        ),
        (lambda lines: [lines[0], lines[2]], [0, 2], "2, with 0 lines"),
        (lambda lines: [lines[0], *lines], [0, 0, 1], "4, with 0 lines"),
        (lambda lines: [*lines, *lines], [0, 1, 2], "6, with 0 lines"),
        (lambda lines: [], [], "0, with 0 lines"),
        (lambda lines: [b"\x00" * 100], [], "0, with 1 lines"),
        (lambda lines: [b"".join(lines).replace(b"\n", b" ")], [], "0, with 1 lines"),
    ],
)
def test_a_damaged_file_is_opened_with_a_warning_that_has_its_name_and_the_rows(path, damage, kept, found, caplog):
    """Ask for three rows up to step 3 of a file with another one of step 4."""
    logger = JsonlLogger(path)
    write(logger, [*ROWS, {"step": 4, "train/loss": 0.0}])
    logger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    before = b"".join([*damage(lines[:3]), lines[3]])
    path.write_bytes(before)
    again = JsonlLogger(path, rows=3, step=3)
    write(again, [{"step": 7, "train/loss": 0.5}])
    again.close()
    assert read(path) == [*(ROWS[i] for i in kept), {"step": 7, "train/loss": 0.5}]
    assert again.rows == len(kept) + 1
    (record,) = caplog.records
    assert f"{path}: expected 3 rows up to step 3 and found {found}" in record.getMessage()
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == before


def test_rows_after_the_checkpoint_and_an_unfinished_one_are_no_damage(path, caplog):
    logger = JsonlLogger(path)
    write(logger, [*ROWS, {"step": 4, "train/loss": 0.0}])
    logger.close()
    with path.open("a") as file:
        file.write('{"step": 5')
    JsonlLogger(path, rows=3, step=3).close()
    assert (read(path), caplog.records) == (ROWS, [])
    assert not path.with_name("metrics.jsonl.damaged").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log", "config.json"])
def test_a_folder_in_the_place_of_a_file_is_an_error_that_names_it_before_the_training(tmp_path, name):
    (tmp_path / "tiny" / name).mkdir(parents=True)
    model = Tiny()
    with pytest.raises(IsADirectoryError, match=name.replace(".", r"\.")):
        quiet(root=tmp_path, max_steps=1).fit(model, data())
    assert model.seen == []


def test_a_resume_says_how_many_rows_it_found_and_goes_on(tmp_path, caplog):
    options = {"root": tmp_path, "log_every_steps": 1}
    quiet(max_steps=3, **options).fit(Tiny(), data())
    path = tmp_path / "tiny/metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\xfe" + lines[1], *lines[2:]]))
    caplog.clear()
    assert quiet(max_steps=4, **options).fit(Tiny(), data()).state.step == 4
    assert f"{path}: expected {len(lines)} rows up to step 3 and found {len(lines) - 1}, with 1 lines" in caplog.text
    assert [row["step"] for row in read(path)] == [1, 3, 3, 4, 4]


def test_a_run_that_goes_on_from_another_folder_has_rows_of_its_own(tmp_path, caplog):
    options = {"root": tmp_path, "log_every_steps": 1}
    first = quiet(max_steps=3, **options).fit(Tiny(), data(train=40)).last_checkpoint
    for max_steps in (4, 6):  # The second start goes on from its own checkpoint.
        quiet(max_steps=max_steps, run_name="second", resume=first, **options).fit(Tiny(), data(train=40))
    rows = read(tmp_path / "second/metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 5, 6]
    assert [row["step"] for row in read(tmp_path / "tiny/metrics.jsonl") if "train/loss" in row] == [1, 2, 3]
    assert "expected" not in caplog.text
    assert not (tmp_path / "second/metrics.jsonl.damaged").exists()


@pytest.mark.parametrize("asked", [1, 2, 3, 100])
def test_a_last_line_that_a_kill_left_unfinished_is_cut(path, asked):
    """A row that was never finished is no row, even if more rows are asked for than the file has."""
    logger = JsonlLogger(path)
    write(logger, ROWS[:2])
    logger.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "train/lo')
    kept = min(asked, 2)
    again = JsonlLogger(path, rows=asked)
    write(again, ROWS[2:])
    again.close()
    assert (read(path), again.rows) == (ROWS[:kept] + ROWS[2:], kept + 1)


def test_rows_of_evaluations_stay_up_to_the_step_and_the_row_of_the_end_goes(path, caplog):
    """The order in the file is that in which they were written: here the first step was tested last."""
    logger = JsonlLogger(path)
    write(logger, ROWS)
    logger.log_end({"train/loss": 7.0}, 3)
    logger.close()
    for step in (3, 1):
        append_evaluation(path, {"test/loss": math.nan}, step, kind="test", checkpoint=f"{step}.pth", limit=None)
    end = {"step": 3, "kind": "end", "train/loss": 7.0}
    tested = [{"step": step, "kind": "test", "checkpoint": f"{step}.pth", "test/loss": None} for step in (3, 1)]
    assert read(path) == [*ROWS, end, *tested]
    again = JsonlLogger(path, rows=3, step=3, keep_end=True)
    again.close()
    assert (read(path), again.rows) == ([*ROWS, end, *tested], 3)
    JsonlLogger(path, rows=3, step=3).close()
    assert read(path) == [*ROWS, *tested]
    again = JsonlLogger(path, rows=2, step=2)
    write(again, ROWS[2:])
    again.close()
    assert (read(path), again.rows) == ([*ROWS[:2], tested[1], ROWS[2]], 3)
    assert caplog.records == []
    assert not path.with_name("metrics.jsonl.damaged").exists()


def test_the_row_of_an_evaluation_is_no_part_of_an_unfinished_line(path):
    path.write_text('{"step": 1}\n{"step": 2, "train/lo')
    append_evaluation(path, {"test/loss": 0.5}, 1, kind="test", checkpoint=None, limit=0.5)
    row = {"step": 1, "kind": "test", "checkpoint": None, "limit": 0.5, "test/loss": 0.5}
    assert read(path) == [{"step": 1}, row]


def test_the_configuration_is_not_a_row(path):
    logger = JsonlLogger(path, rows=0)
    logger.log_config({"seed": 0})
    logger.close()
    assert (read(path), logger.rows) == ([], 0)


def test_the_file_is_a_logger(path):
    logger = JsonlLogger(path)
    logger.close()
    assert isinstance(logger, Logger)


@pytest.mark.parametrize("missing", ["log_config", "log_metrics", "close"])
def test_an_object_that_lacks_a_method_is_no_logger(missing):
    methods = dict.fromkeys({"log_config", "log_metrics", "close"}, lambda self: None)
    assert isinstance(type("Whole", (), methods)(), Logger)
    del methods[missing]
    assert not isinstance(type("Partial", (), methods)(), Logger)


# What loggers are called with.


class Noting:
    """Notes every call, with the two methods that a logger need not have."""

    def __init__(self):
        self.calls = []

    def rewind(self, step):
        self.calls.append(("rewind", step))

    def log_config(self, config):
        self.calls.append(("log_config", config["max_steps"]))

    def log_metrics(self, metrics, step):
        self.calls.append(("log_metrics", step, *(name for name in metrics if "/" in name and not is_measured(name))))

    def log_status(self, status):
        self.calls.append(("log_status", status))

    def close(self):
        self.calls.append(("close",))


class Ending(Tiny):
    """Ends its training at the third step."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def on_training_batch_end(self, state, should_log=False):
        super().on_training_batch_end(state, should_log)
        if state.step == 3 and isinstance(self.how, BaseException):
            raise self.how
        if state.step == 3 and self.how is not None:
            os.kill(os.getpid(), self.how)


@pytest.mark.parametrize(
    ("how", "raised", "status"),
    [
        (KeyError("broken"), KeyError, "failed"),
        (SystemExit(2), SystemExit, "failed"),
        (signal.SIGINT, KeyboardInterrupt, "interrupted"),
        (signal.SIGTERM, SystemExit, "interrupted"),
    ],
)
def test_a_logger_is_told_how_the_training_ended(how, raised, status, tmp_path):
    first, second, third = Noting(), Noting(), Noting()
    options = {"root": tmp_path, "max_steps": 4, "save_every_steps": 2, "log_every_steps": 2}
    with pytest.raises(raised):
        quiet(loggers=[first], **options).fit(Ending(how), data(train=40))
    quiet(loggers=[second], **options).fit(Ending(None), data(train=40))
    start = 3 if status == "interrupted" else 2
    row = ("train/loss", "train/lr")  # Without what is measured.
    assert first.calls[:2] == [("rewind", 0), ("log_config", 4)]
    assert first.calls[-2:] == [("log_status", status), ("close",)]
    assert second.calls == [
        ("rewind", start),
        ("log_config", 4),
        ("log_metrics", 4, *row),
        ("log_metrics", 4, "valid/loss"),
        ("log_status", "finished"),
        ("close",),
    ]
    quiet(loggers=[third], **options).test(Tiny(), data())
    assert third.calls == [("log_metrics", 4, "test/loss"), ("close",)]


class Closing(Tiny):
    """Logs at the end, also a name that it has used, and one that MLflow does not take."""

    def train_step(self, batch, state):
        super().train_step(batch, state)
        self.log("acc@5", 0.5)

    def on_training_end(self):
        self.log("whole", 1.0)
        self.log("loss", 3.0)


def test_a_logger_gets_what_is_logged_at_the_end(tmp_path):
    logger = Noting()
    quiet(max_steps=2, loggers=[logger]).fit(Closing(), data(train=40))
    assert logger.calls[2:] == [
        ("log_metrics", 2, "train/loss", "train/acc@5", "train/whole", "valid/loss"),
        ("log_status", "finished"),
        ("close",),
    ]


# Adapters, each with the real library. Those of MLflow and W&B are tested where these are installed.


@pytest.fixture(scope="module")
def mlflow():
    return pytest.importorskip("mlflow")


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    return pytest.importorskip("wandb")


def run(folder, logger, steps, model=None, **options):
    """Train, log every second step and save every fourth."""
    trainer = quiet(
        max_steps=steps,
        root=folder,
        loggers=[logger],
        log_every_steps=2,
        save_every_steps=4,
        save_every_epochs=None,
        **options,
    )
    return trainer.fit(Tiny() if model is None else model, data(train=40, batch_size=2))


def killed(folder, logger):
    """A run of which the rows after the checkpoint at step 8 are written, but no checkpoint of them."""

    class Killed(Tiny):
        def on_training_batch_end(self, state, should_log=False):
            super().on_training_batch_end(state, should_log)
            if state.step == 11:
                raise KeyError("the end")

    with pytest.raises(KeyError):
        quiet(
            max_steps=16, root=folder, loggers=[logger], log_every_steps=2, save_every_steps=4, save_every_epochs=None
        ).fit(Killed(), data(train=40, batch_size=2))


def rows(folder, name="train/loss"):
    """What metrics.jsonl says."""
    found = read_rows(folder / "tiny")
    return [(row["step"], row[name]) for row in found if name in row]


def test_tensorboard_has_every_row_once_also_after_a_kill(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    loggers = [TensorBoardLogger("events") for _ in range(2)]
    monkeypatch.chdir(tmp_path.parent)
    killed(tmp_path, loggers[0])
    run(tmp_path, loggers[1], 16)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    found = sorted((event.step, event.value) for event in events.Scalars("train/loss"))
    assert found == [(step, pytest.approx(value)) for step, value in rows(tmp_path)]
    assert [step for step, _ in found] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert "max_steps: 16" in events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_row_once_in_one_run_and_the_checkpoint_if_asked_for(tmp_path, monkeypatch, mlflow):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"  # It is not there yet.

    def logger():
        return MLflowLogger("tests", tmp_path / "id", run_name="one", tracking_uri=uri)

    killed(tmp_path, logger())
    again = logger()
    result = run(tmp_path, again, 16)
    again.log_artifact(result.last_checkpoint)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.status, found.info.run_name) == (again.run_id, "FINISHED", "one")
    assert found.data.params["max_steps"] == "16"
    points = sorted((point.step, point.value) for point in client.get_metric_history(again.run_id, "train/loss"))
    assert points == rows(tmp_path)
    assert [file.path for file in client.list_artifacts(again.run_id)] == [result.last_checkpoint.name]


@pytest.fixture(scope="module")
def empty_store(mlflow, tmp_path_factory):
    """A store of MLflow without runs, which takes a second to make: it has every earlier form of its tables first."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store, tmp_path, monkeypatch):
    """The address of a store in the folder of the test, in which it runs."""
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{shutil.copy(empty_store, tmp_path)}"


class Rated(Tiny):
    """Its learning rate is an argument; of its validations the first is the best."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def setup(self, fast_init=False):
        super().setup(fast_init)
        if not fast_init:
            self.optimizer.param_groups[0]["lr"] = self.rate

    def on_validation_start(self, validation_cycle):
        self.score = float(validation_cycle)

    def valid_step(self, batch, step):
        self.log("score", self.score)


def gone_back(folder, make, **options):
    """Train 16 steps, and again from the best at step 8 with another rate, cut and resumed; return the first rows."""
    options = {"monitor": "valid/score", "valid_every_steps": 8, "valid_every_epochs": None, **options}
    assert run(folder, make(), 16, Rated(0.01), **options).state.best_step == 8
    before = rows(folder)
    for steps in (12, 20):
        run(folder, make(), steps, Rated(0.5), resume="best", **options)
    return before


def test_a_logger_is_told_that_a_training_goes_back_or_is_another_if_it_wants_to_know(tmp_path):
    class Branching(Noting):
        def branch(self, step):
            self.calls.append(("branch", step))

    for kind, name in ((Noting, "rewind"), (Branching, "branch")):
        made = []
        gone_back(tmp_path / kind.__name__, lambda kind=kind, made=made: made.append(kind()) or made[-1])
        assert [each.calls[0] for each in made] == [("rewind", 0), (name, 8), ("rewind", 12)]
        logger = kind()  # The best is the newest here, and nothing is taken back.
        run(tmp_path / f"{name} newest", kind(), 8, Rated(0.01), monitor="valid/score", valid_every_steps=8)
        run(tmp_path / f"{name} newest", logger, 9, Rated(0.01), monitor="valid/score", resume="best")
        assert logger.calls[0] == ("rewind", 8)
        for steps in (1, 2):
            logger = kind()
            quiet(root=tmp_path / "new", loggers=[logger], max_steps=steps, resume="new").fit(Tiny(), data())
            assert logger.calls[0] == (name, 0)


def test_a_logger_is_told_that_the_rows_of_a_start_between_were_of_another_configuration(tmp_path):
    class Branching(Noting):
        def branch(self, step):
            self.calls.append(("branch", step))

    class Failing(Rated):
        def train_step(self, batch, state):
            super().train_step(batch, state)
            if state.step == 6:
                raise RuntimeError("fails after the row of step 6, before a checkpoint")

    made = []
    run(tmp_path, Noting(), 4, Rated(0.01))
    config = tmp_path / "tiny" / "config.json"
    for rate in (0.5, 0.01, 0.01):  # The second goes back to the rate of the checkpoint, and not of the rows after it.
        made.append(Branching())
        text = config.read_text()
        config.write_text(text.replace('"processes": 1', '"processes": 2'))  # Their number changes no row.
        assert config.read_text() != text
        with pytest.raises(RuntimeError, match="before a checkpoint"):
            run(tmp_path, made[-1], 8, Failing(rate))
    assert [each.calls[0] for each in made] == [("rewind", 4), ("branch", 4), ("rewind", 4)]


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_curve_that_holds_in_a_child_of_the_run_that_went_further(tmp_path, monkeypatch, caplog, mlflow):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    ids = []

    def logger():
        made = MLflowLogger("tests", tmp_path / "id", run_name="one", tracking_uri=uri)
        ids.append(made.run_id)
        return made

    old = gone_back(tmp_path, logger)
    last = logger().run_id
    _, first, second, _ = ids
    assert first != second == last
    assert f"MLflow keeps what it has: the rows after step 8 are in a new run, {last}, whose parent is {first}" in (
        caplog.text
    )
    client = mlflow.MlflowClient(uri)

    def curve(run_id):
        return sorted((point.step, point.value) for point in client.get_metric_history(run_id, "train/loss"))

    assert curve(first) == old
    assert curve(last) == rows(tmp_path)
    assert [step for step, _ in curve(last)] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert curve(last)[:4] == old[:4]
    assert curve(last)[4:8] != old[4:]
    run_of = {each: client.get_run(each) for each in (first, last)}
    assert run_of[last].data.tags["mlflow.parentRunId"] == first
    assert [run_of[each].info.status for each in (first, last)] == ["FINISHED", "FINISHED"]
    assert run_of[last].info.run_name == "one"
    assert run_of[last].data.params["max_steps"] == "12"


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("how", "status"), [(KeyError("broken"), "FAILED"), (signal.SIGTERM, "KILLED")])
def test_mlflow_says_how_a_training_ended_and_a_test_does_not_change_that(how, status, uri, tmp_path, mlflow):
    client = mlflow.MlflowClient(uri)

    def logger():
        return MLflowLogger("tests", tmp_path / "id", tracking_uri=uri)

    def found():
        return client.get_run(logger().run_id).info.status

    class Looking(Ending):
        def on_training_start(self):
            assert found() == "RUNNING"

    options = {"root": tmp_path, "max_steps": 4, "save_every_steps": 2}
    with pytest.raises(BaseException):  # noqa: B017 (which one is not the subject)
        quiet(loggers=[logger()], **options).fit(Looking(how), data(train=40))
    assert found() == status
    quiet(loggers=[logger()], **options).test(Tiny(), data(train=40))
    assert found() == status
    quiet(loggers=[logger()], **options).fit(Looking(None), data(train=40))
    assert found() == "FINISHED"
    (point,) = client.get_metric_history(logger().run_id, "test/loss")
    assert point.step in (2, 3)


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_mlflow_runs_of_the_user_get_the_parameters_that_they_do_not_have(uri, tmp_path, mlflow):
    client = mlflow.MlflowClient(uri)
    own = client.create_run(client.create_experiment("mine")).info.run_id
    client.log_param(own, "seed", "mine")
    (tmp_path / "id").write_text(own)
    run(tmp_path, MLflowLogger("tests", tmp_path / "id", tracking_uri=uri), 4)
    params = client.get_run(own).data.params
    assert (params["seed"], params["max_steps"]) == ("mine", "4")
    assert client.get_experiment_by_name("tests") is None


class KilledOnRank0(Tiny):
    def train_step(self, batch, state):
        if self.global_rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().train_step(batch, state)


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_mlflow_is_told_that_rank_0_was_killed(uri, tmp_path, mlflow):
    logger = MLflowLogger("tests", tmp_path / "id", tracking_uri=uri)
    with pytest.raises(RuntimeError, match="SIGKILL"):
        run(tmp_path, logger, 4, devices=2, accelerator="cpu", model=KilledOnRank0())
    assert mlflow.MlflowClient(uri).get_run(logger.run_id).info.status == "FAILED"


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_wandb_has_every_row_once_in_one_run(tmp_path, wandb):
    """Offline: the rows are read back from the files that `wandb sync` would send."""

    def logger():
        return WandbLogger("tests", tmp_path / "id", mode="offline", dir=str(tmp_path))

    killed(tmp_path, logger())
    first = logger().run_id
    run(tmp_path, logger(), 16)
    assert logger().run_id == first
    assert wandb.run is None
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2
    assert wandb_curve(tmp_path, first, rows(tmp_path)) == rows(tmp_path)


class KilledAt(Tiny):
    """Is killed after its eleventh step."""

    def on_training_batch_end(self, state, should_log=False):
        super().on_training_batch_end(state, should_log)
        if state.step == 11:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_wandb_has_every_row_in_another_run_if_a_kill_has_lost_some_of_the_first(tmp_path, wandb):
    """W&B writes the rows of some seconds at once."""

    def logger():
        return WandbLogger("tests", tmp_path / "id", mode="offline", dir=str(tmp_path))

    process = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path, logger(), 16, KilledAt()))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL
    first = logger().run_id
    for steps in (14, 16):  # The second start continues the new one.
        run(tmp_path, logger(), steps)
        assert logger().run_id != first
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 3
    assert wandb_curve(tmp_path, logger().run_id, rows(tmp_path)) == rows(tmp_path)
    assert parents(tmp_path, logger().run_id) == {first}


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_two_wandb_loggers_and_a_run_of_the_program_have_what_belongs_to_each(tmp_path, wandb):
    options = {"mode": "offline", "dir": str(tmp_path)}
    own = wandb.init(project="tests", **options)
    loggers = [WandbLogger("tests", tmp_path / name, **options) for name in ("a", "b")]
    quiet(root=tmp_path, max_steps=2, log_every_steps=1, loggers=loggers).fit(Closing(), data(train=40))
    assert wandb.run is own
    own.log({"train/loss": 5.0, "step": 0})
    own.finish()
    assert wandb_curve(tmp_path, own.id, [(0, 5.0)]) == [(0, 5.0)]
    for logger in loggers:
        for name in ("train/loss", "train/whole"):
            assert wandb_curve(tmp_path, logger.run_id, rows(tmp_path, name), name) == rows(tmp_path, name)


def wandb_curve(folder, run_id, expected, name="train/loss"):
    """The values of a metric in the files of a run, as they are expected; W&B may still be writing."""
    limit = time.monotonic() + DEADLINE
    while True:
        files = sorted((folder / "wandb").glob(f"offline-run-*/*{run_id}.wandb"))
        found = [(row["step"], row[name]) for file in files for row in wandb_history(file) if name in row]
        if found == expected or time.monotonic() > limit:
            return found
        time.sleep(0.2)


def parents(folder, run_id):
    """The runs that the configuration of a run of W&B names as its parent."""
    files = sorted((folder / "wandb").glob(f"offline-run-*/*{run_id}.wandb"))
    told = [update for file in files for record in wandb_records(file) for update in record.config.update]
    told += [update for file in files for record in wandb_records(file) for update in record.run.config.update]
    return {json.loads(update.value_json) for update in told if update.key == "parent_run"}


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_wandb_has_the_new_rows_in_a_run_that_names_the_one_that_went_further(tmp_path, caplog, wandb):
    ids = []

    def logger():
        made = WandbLogger("tests", tmp_path / "id", mode="offline", dir=str(tmp_path))
        ids.append(made.run_id)
        return made

    old = gone_back(tmp_path, logger)
    last = logger().run_id
    _, first, second, _ = ids
    assert first != second == last
    assert f"W&B keeps what it has: the rows after step 8 are in a new run, {last}, whose parent is {first}" in (
        caplog.text
    )

    expected = rows(tmp_path)
    assert wandb_curve(tmp_path, last, expected) == expected
    assert [step for step, _ in expected] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert wandb_curve(tmp_path, first, old) == old
    assert parents(tmp_path, last) == {first}


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "code"), [(None, 0), (KeyError("broken"), 1), (signal.SIGTERM, 255)], ids=["ends", "raises", "SIGTERM"]
)
def test_wandb_ends_with_the_exit_code_of_the_training(how, code, tmp_path, wandb):
    logger = WandbLogger("tests", tmp_path / "id", mode="offline", dir=str(tmp_path))
    with contextlib.suppress(KeyError, SystemExit):
        quiet(root=tmp_path, max_steps=4, loggers=[logger]).fit(Ending(how), data(train=40))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")

    def found():
        return [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")]

    limit = time.monotonic() + DEADLINE  # Its own process may still be writing.
    while found() == [] and time.monotonic() < limit:
        time.sleep(0.2)
    assert found() == [code]


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_trackio_has_every_row_once_by_the_logger_of_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", "runs/trackio")
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    logger = runpy.run_path(str(RECIPES / "live_view_with_trackio.py"))["TrackioLogger"]
    killed(tmp_path, logger("tests", "tiny", "seen.json"))
    run(tmp_path, logger("tests", "tiny", "seen.json"), 16)
    found = [(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("tests", "tiny") if "train/loss" in row]
    assert found == rows(tmp_path)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(TensorBoardLogger, ["events"]), (MLflowLogger, ["name", "id"]), (WandbLogger, ["name", "id"])],
)
def test_a_missing_library_is_an_error_with_the_command(kind, arguments, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(
        sys, "modules", {name: m for name, m in sys.modules.items() if name.split(".")[0] not in EXTRAS}
    )
    with pytest.raises(ModuleNotFoundError, match=r"^(\w+) is not installed: pip install \1$"):
        kind(*arguments)


class Painting(Tiny):
    """Shows an image at every validation and test; on the other ranks there is nobody to show it to."""

    def on_validation_end(self, validation_cycle):
        self.show("valid", validation_cycle)

    def on_testing_end(self):
        self.show("test", 0)

    def show(self, name, step):
        writer = self.trainer.loggers[0].writer
        assert (writer is None) == (self.global_rank > 0)
        if writer is not None:
            writer.add_image(name, torch.full((3, 2, 2), 0.5), step)


@pytest.mark.parametrize("devices", [1, 2])
def test_tensorboard_shows_images_and_runs_on_rank_0_only(devices, tmp_path):
    """Those of a validation before the first row, of a resumed run and of a test too; nothing is hidden by a test."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger, options = TensorBoardLogger(tmp_path / "events"), {"devices": devices, "accelerator": "cpu"}
    for steps in (4, 6):
        run(tmp_path, logger, steps, model=Painting(), valid_every_steps=2, **options)
    quiet(root=tmp_path, max_steps=6, loggers=[logger], **options).test(Painting(), data(), checkpoint="last")
    assert len(list((tmp_path / "events").iterdir())) == 3
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert sorted(event.step for event in events.Images("valid")) == [0, 1, 2, 3]
    assert sorted(event.step for event in events.Images("test")) == [0]
    assert sorted(event.step for event in events.Scalars("train/loss")) == [2, 4, 6]
    assert sorted(event.step for event in events.Scalars("test/loss")) == [6]


class Writing(Painting):
    """Uses the writer in `setup` too, without looking whether there is one."""

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.trainer.loggers[0].writer.add_text("note", "set up", 0)

    def on_training_batch_end(self, state, should_log=False):
        super().on_training_batch_end(state, should_log)
        if state.step == self.last:
            raise KeyError("the end")


def test_tensorboard_shows_everything_once_after_cuts_and_nothing_of_a_call_that_is_not_kept(tmp_path):
    """The writer of `setup` is there before it is known where the run goes on, and images have another number."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "events"

    def made(last):
        model = Writing()
        model.last = last
        return model

    def present():
        return {path: path.stat().st_size for path in tmp_path.rglob("*.tfevents.*")}

    logger, noting = TensorBoardLogger(folder), Noting()
    options = {"root": tmp_path, "valid_every_steps": 2, "log_every_steps": 2, "save_every_steps": 4}
    for last in (7, 7, None, None):  # The last start has nothing left to do.
        with contextlib.suppress(KeyError):
            quiet(max_steps=9, loggers=[logger], **options).fit(made(last), data(train=40, batch_size=2))
    before = present()
    for change in ({"fast_dev_run": True}, {"run_name": "other", "fast_dev_run": True}):
        options_of_it = {**options, **change, "max_steps": 9, "loggers": [logger, noting]}
        quiet(**options_of_it).fit(made(None), data(train=40, batch_size=2))
    trainer = quiet(max_steps=9, loggers=[logger, noting], **options)
    trainer.replay(made(None), data(train=40, batch_size=2), step=3)
    trainer.plan(made(None), data(train=40, batch_size=2))
    assert (present(), noting.calls) == (before, [])
    quiet(max_steps=9, loggers=[logger], **options).test(made(None), data(), checkpoint="last")
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    assert sorted(event.step for event in events.Scalars("train/loss")) == [2, 4, 6, 8, 9]
    assert sorted(event.step for event in events.Images("valid")) == [0, 1, 2, 3, 4, 5]
    assert sorted(event.step for event in events.Scalars("test/loss")) == [9]


def test_runs_with_one_folder_of_tensorboard_are_beside_each_other_and_so_is_what_is_taken_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def make():
        return TensorBoardLogger(tmp_path / "events")

    def shown(name):
        events = EventAccumulator(str(tmp_path / "events" / name))
        events.Reload()
        return sorted((event.step, event.value) for event in events.Scalars("train/loss"))

    def in_fp32(values):
        return [(step, torch.tensor(value).item()) for step, value in values]

    old = gone_back(tmp_path, make)
    quiet(root=tmp_path, run_name="other", max_steps=2, log_every_steps=1, loggers=[make()]).fit(Tiny(), data(train=40))
    for _ in range(2):
        quiet(root=None, max_steps=1, loggers=[make()]).fit(Tiny(), data(train=40))
    (tmp_path / "link").symlink_to(tmp_path)
    run(tmp_path / "link", make(), 22, Rated(0.5), monitor="valid/score")
    assert shown("") == in_fp32(rows(tmp_path))
    assert [step for step, _ in shown("")] == [*range(2, 23, 2)]
    assert shown("set_aside_1") == in_fp32(old)
    assert not (tmp_path / "events/set_aside_2").exists()
    assert [[step for step, _ in shown(name)] for name in ("2", "3", "4")] == [[1, 2], [1], [1]]


def test_loggers_in_another_order_at_a_resume_lose_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = ["a", "b"]
    for steps, order in ((4, names), (8, names[::-1])):
        loggers = [TensorBoardLogger(tmp_path / name) for name in order]
        quiet(root=tmp_path, max_steps=steps, log_every_steps=2, loggers=loggers).fit(Tiny(), data(train=40))
    for name in names:
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        assert sorted(event.step for event in events.Scalars("train/loss")) == [2, 4, 6, 8]


def test_a_file_of_rows_that_a_training_begins_anew_is_set_aside(path, tmp_path):
    for name in ("first", "second"):
        quiet(root=tmp_path, run_name=name, max_steps=1, loggers=[JsonlLogger(path)]).fit(Tiny(), data())
    files = (path, path.with_name("metrics.jsonl.set_aside_1"))
    own = [read(tmp_path / name / "metrics.jsonl") for name in ("second", "first")]
    assert [[row["train/loss"] for row in read(file) if "train/loss" in row] for file in files] == [
        [row["train/loss"] for row in rows_of_run if "train/loss" in row] for rows_of_run in own
    ]


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_all_rows_of_each_of_the_runs_with_one_id_file(uri, tmp_path, mlflow):
    """One of them goes on after the other; both log at the end a name that they have used."""
    client, ids = mlflow.MlflowClient(uri), {}
    for name, steps in (("one", 8), ("two", 4), ("one", 12), ("two", 6)):
        logger = MLflowLogger("tests", tmp_path / "id", tracking_uri=uri)
        options = {"root": tmp_path, "run_name": name, "max_steps": steps, "log_every_steps": 2}
        quiet(loggers=[logger], **options).fit(Closing(), data(train=40, batch_size=2))
        assert ids.setdefault(name, logger.run_id) == logger.run_id
    assert ids["one"] != ids["two"]
    for name in ids:
        found = read_rows(tmp_path / name)
        for metric in ("train/loss", "train/acc@5", "train/whole"):
            expected = [(row["step"], row[metric]) for row in found if metric in row]
            if metric in ("train/loss", "train/whole"):
                expected.append(
                    (8 if name == "one" else 4, 3.0 if metric == "train/loss" else 1.0)
                )  # Of the first end.
            points = client.get_metric_history(ids[name], metric.replace("@", "_at_"))
            assert sorted((point.step, point.value) for point in points) == sorted(expected)


@pytest.mark.loggers
def test_different_names_are_different_names_that_mlflow_takes(mlflow):
    from mlflow.utils.validation import _validate_metric_name

    names = [
        "a",
        "a@5",
        "a#5",
        "f1>0.5",
        "f1<0.5",
        "a b:c",
        "train//x",
        "/x",
        "x/",
        "..",
        "a/../b",
        "ä",
        "é" * 300,
        "n" * 251,
    ]
    taken = [_mlflow_name(name) for name in names]
    assert len(set(taken)) == len(names)
    for name in taken:
        _validate_metric_name(name)
    assert (taken[0], taken[1]) == ("a", "a_at_5")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(4))
def test_after_a_random_sequence_of_calls_each_logger_has_every_row_once(number, tmp_path):
    """Some of tests/sequences.py, which repeats one by its number."""
    pytest.importorskip("tensorboard")
    assert wrong(make_case(0, number), tmp_path) is None


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(6))
def test_after_a_random_sequence_of_calls_mlflow_and_wandb_have_every_row_once(number, tmp_path, empty_store, wandb):
    def store(folder):
        return f"sqlite:///{shutil.copy(empty_store, folder)}"

    assert wrong(make_case(1, number), tmp_path, store) is None
