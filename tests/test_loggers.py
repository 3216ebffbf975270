"""The file of metrics: one row a line, kept at a resume as far as the checkpoint goes."""

import json
import math

import pytest

from helios_lite.loggers import JsonlLogger, Logger

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
    logger = JsonlLogger(path)
    logger.close()
    assert (read(path), logger.rows) == ([], 0)


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


def test_the_configuration_is_not_a_row(path):
    logger = JsonlLogger(path)
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
