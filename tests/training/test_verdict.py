"""What is said at the end of a run: from rows, and once by a run."""

import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Tiny, data, quiet

from helios_lite.schedules import constant
from helios_lite.training import verdict
from helios_lite.training.verdict import Verdict

OTHERWISE: dict[str, Any] = {
    "waits": [(0.0, 100.0)],
    "num_workers": 0,
    "schedules": {},
    "history": (),
    "monitor": "valid/loss",
    "is_higher_better": False,
}


def lines(rows: list[dict[str, float]] | None = None, **about: Any) -> list[str]:
    """What is said of rows, 50 steps each, of one rank."""
    found = Verdict()
    for i, row in enumerate(rows or [], start=1):
        found.add(50 * i, row)
    waits = {} if rows is None else {"waits": [found.waits]}
    return found.lines(**{**OTHERWISE, **waits, **about})


def timed(seconds: float, part: float, number: int = 10) -> list[dict[str, float]]:
    return [{"train/step_seconds": seconds, "train/data_wait": part}] * number


def memory(values: Any) -> list[dict[str, float]]:
    return [{"train/memory_mib": float(value)} for value in values]


def test_waiting_for_batches_is_said_with_its_remedy() -> None:
    text = "40% of the time went to waiting for batches; try "
    assert lines(timed(1.0, 0.4)) == [text + "num_workers=4"]
    assert lines(timed(1.0, 0.4), num_workers=2) == [text + "more num_workers, or faster data"]
    # A small part, or a few seconds: one row of 50 steps does not count.
    assert lines(timed(1.0, 0.19)) == lines(timed(0.15, 0.4)) == lines(timed(10.0, 0.9, number=1)) == []


def test_a_rank_that_waits_for_its_data_more_than_the_others_is_named() -> None:
    (line,) = lines(waits=[(5.0, 100.0), (45.0, 100.0), (0.0, 100.0)])
    assert line == "rank 1: 45% of the time went to waiting for batches (others 5%), and all ranks wait for it"
    assert lines(waits=[(45.0, 100.0), (50.0, 100.0)])[0].startswith("50% of the time went to waiting")
    assert lines(waits=[(0.0, 0.0), (0.0, 0.0)]) == []


def test_memory_that_grows_in_nearly_every_row_is_said() -> None:
    text = "memory grew all the time, from 1,500 to 1,990 MiB; detach what train_step keeps"
    assert lines(memory(range(1000, 2000, 10))) == [text]
    long = Verdict()
    for i in range(3000):
        long.add(i, {"train/memory_mib": 1000.0 + i})
    assert len(long._memory) <= verdict._MOST_VALUES
    assert "from 2,5" in long.lines(**OTHERWISE)[0]
    # A peak is never less than before. The longest sequence so far comes ever more seldom.
    draw, peak, peaks = random.Random(0), 0.0, []
    for _ in range(200):
        peak = max(peak, 1000 + 1000 * draw.random())
        peaks.append(peak)
    rises_early, rises_once = [*range(1000, 2000, 50), *[2000] * 30], [*[1000] * 70, *[1200] * 30]
    assert lines(memory(rises_once)) == []
    assert lines(memory(peaks)) == lines(memory(rises_early)) == lines(memory(range(1000, 2000, 100))) == []
    assert lines(memory(1000 + i / 10 for i in range(100))) == []  # One per cent in all.


def test_a_score_that_ends_below_its_best_by_more_than_its_noise_is_said() -> None:
    overfitted = [2.0, 1.0, 0.6, 0.5, 0.52, 0.55, 0.6, 0.66, 0.7]
    assert lines(history=overfitted) == ["valid/loss was 0.5 at its best and is 0.7; use the best checkpoint"]
    assert len(lines(history=[1 - score for score in overfitted], is_higher_better=True)) == 1
    # It has just not improved, or goes up and down, or is not known.
    few, much_better = [0.5, 0.5, 0.5, 0.7, 0.9], [100.0, *[1.0] * 8, *[2.0] * 3]
    for history in ([2.0, 1.0, 0.6, 0.5, 0.5, 0.51], few, much_better, [*overfitted[:-1], math.nan], [1.0] * 10):
        assert lines(history=history) == []
    draw = random.Random(0)
    noisy = [[math.exp(-i / 5) + draw.gauss(0, 0.1) for i in range(n)] for n in range(6, 40) for _ in range(10)]
    assert sum(bool(lines(history=each)) for each in noisy) <= 0.02 * len(noisy)


def test_a_rate_that_never_moves_is_said_of_a_schedule_only() -> None:
    constant = [{"train/lr": 0.1}] * 3
    text = "train/lr was 0.1 in every row; is scheduler stepped, and short enough?"
    assert lines(constant, schedules={"scheduler": {"train/lr": 0.1}}) == [text]
    groups = [{"train/lr/a/0": 0.1, "train/lr/a/1": 0.2, "train/lr/b": 0.3 / i} for i in range(1, 5)]
    assert len(lines(groups, schedules={"of a": {"train/lr/a/0": 0.1, "train/lr/a/1": 0.2}})) == 1
    # One that moves, one after its warmup, one row, and none at all.
    assert lines(groups, schedules={"of b": {"train/lr/b": 0.3}}) == []
    assert lines(constant, schedules={"scheduler": {"train/lr": 0.001}}) == []
    assert lines(constant[:2], schedules={"scheduler": {"train/lr": 0.1}}) == lines(constant) == []


class Unmoved(Tiny):
    """Its schedule is made for more epochs than it trains."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1000)  # type: ignore[assignment]


class Constant(Tiny):
    """Its schedule has no warmup, and is constant by intention."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.scheduler = constant(self.optimizer, warmup_steps=0)  # type: ignore[assignment]


def test_a_run_says_it_once_on_the_screen_and_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "_LARGE_WAIT", -1.0)  # Of what a clock measures nothing is known.
    monkeypatch.setattr(verdict, "_LONG_WAIT", -1.0)
    options: dict[str, Any] = {"root": tmp_path, "log_every_steps": 1}

    def said() -> list[str]:
        found = [record.message for record in caplog.records if record.message.startswith("verdict: ")]
        assert {record.levelno for record in caplog.records if record.message in found} <= {logging.INFO}
        caplog.clear()
        return found

    with caplog.at_level(logging.INFO, "helios_lite"):
        quiet(**options, max_steps=4).fit(Unmoved(), data())
        waiting, rate = said()
        assert waiting.endswith("of the time went to waiting for batches; try num_workers=4")
        assert rate == "verdict: train/lr was 0.01 in every row; is scheduler stepped, and short enough?"
        log = (tmp_path / "tiny/train.log").read_text()
        assert log.count("verdict: ") == log.count(f"INFO {waiting}") + log.count(f"INFO {rate}") == 2
        quiet(**options, max_steps=8).fit(Unmoved(), data())  # Of the steps before it nothing is known.
        assert not any("train/lr" in text for text in said())
        for model in (Tiny("other"), Constant("constant")):
            quiet(**options, max_steps=4).fit(model, data())
            assert not any("train/lr" in text for text in said())
