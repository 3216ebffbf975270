"""What a training leaves behind: lines, means over an epoch, its speed, and the result as text."""

import itertools
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.clock import Time
from helpers.compare import timeless
from helpers.models import Indices, Tiny, data, quiet
from helpers.rows import read_rows

from helios_lite import DataModule, Split, TrainingState
from helios_lite.callbacks import DeviceMemory
from helios_lite.display import lines as display_lines
from helios_lite.loading.batches import Batch
from helios_lite.metrics import measurements
from helios_lite.options import Options

LIMITED = Options(max_epochs=3, max_steps=40)
FREE = Options(max_minutes=1)


def state(**counters: Any) -> TrainingState:
    return TrainingState(epoch=1, step=20, **counters)


# Lines.


def test_the_line_of_a_row_has_counters_metrics_speed_and_when_it_ends() -> None:
    values = {
        "train/loss": 0.31124,
        "train/lr": 0.001,
        "train/grad_norm/net.0.weight": 1.0,
        "train/step_seconds": 0.1,
        "train/data_wait": 0.031,
        "train/samples_per_second": 5210.04,
        "train/loss/epoch": 0.4,
    }
    line = display_lines.row_line(state(seconds=41.0), LIMITED, values, 0.5)
    assert line == ("epoch 2/3 step 20/40 | loss 0.3112   lr 0.001000 |   5,210 samples/s, data  3% | 0:00:41 left")
    assert display_lines.row_line(state(), FREE, {"train/loss": math.nan}, None) == "epoch 2    step 20   | loss nan"


def test_the_lines_of_a_validation_and_of_an_epoch_mark_the_best() -> None:
    valid = {"valid/loss": 0.5, "valid/accuracy": 0.75}
    assert display_lines.validation_line(state(), LIMITED, valid, True) == (
        "epoch 2/3 step 20/40 | valid loss 0.5000   accuracy 0.7500   | best"
    )
    line = display_lines.epoch_line(state(seconds=3723.0), LIMITED, {"train/loss": 0.25}, valid, False)
    assert line == "epoch 2/3 step 20/40 | loss 0.2500   | valid loss 0.5000   accuracy 0.7500   | 1:02:03"
    assert display_lines.epoch_line(state(), FREE, {}, {}, False) == "epoch 2    step 20   | 0:00:00"


def test_the_lines_of_epochs_have_their_columns_below_each_other() -> None:
    options = Options(max_epochs=10, monitor="valid/accuracy")
    values = (12.5, 0.06775, 1234.5, 0.0009539, 9.539e-7, 3.2e9, -1.5, math.nan, 0.0, 5e-4)
    speeds = (4546.0, 0.512, 123456.7, 99.96, 100.4, 12.3, 1e-2, 1.0, 1e4, 1e3)
    for width in (None, 80):
        places = set()
        for epoch, (value, speed) in enumerate(zip(values, speeds, strict=True)):
            counters = TrainingState(epoch=epoch, step=19 * epoch, seconds=30.0 * epoch)
            means, valid = {"train/loss": value}, {"valid/loss": value, "valid/accuracy": 1.0}
            row = {"train/samples_per_second": speed, "train/data_wait": 0.05 * epoch}
            about = {"row": row, "done": (epoch + 1) / 10} if width is None else {"width": width}
            line = display_lines.epoch_line(counters, options, means, valid, epoch == 8, **about)
            assert line.endswith(" | best") is (epoch == 8)
            parts = re.finditer(r"\||loss|accuracy|valid|samples|left", line.removesuffix(" | best"))
            places.add(tuple(part.start() for part in parts))
        assert len(places) == 1


def test_a_line_that_is_too_long_loses_its_last_metrics_but_not_the_monitored_one() -> None:
    means = {f"train/{name}": 0.5 for name in ("loss", "first", "second", "third")}
    valid = {f"valid/{name}": 0.5 for name in ("loss", "perplexity", "accuracy", "recall")}
    options = Options(max_epochs=10, monitor="valid/accuracy")
    for width in range(77, 200):
        line = display_lines.epoch_line(TrainingState(step=7), options, means, valid, True, width=width)
        assert len(line) < width
        assert "accuracy 0.5000" in line
        assert re.search(r"\| loss 0.5000 .*\| valid loss 0.5000", line)
        assert line.endswith("| best")
        ordinary = display_lines.epoch_line(TrainingState(step=7), options, means, valid, False, width=width)
        assert ordinary == line.removesuffix("| best").rstrip()
    assert "recall" in line
    assert "step" not in line  # The limit is one of epochs, and beside bars there is little room.
    narrow = display_lines.epoch_line(TrainingState(), options, {}, {"valid/accuracy": 0.5}, True, width=20)
    assert re.search(r"\| valid accuracy 0.5000 +\| best$", narrow)
    stepped = Options(max_steps=9)
    assert display_lines.epoch_line(TrainingState(step=7), stepped, means, {}, False, width=80).startswith("step 7/9 |")


@pytest.mark.parametrize(
    ("options", "epoch_part", "part"),
    [
        ({"max_steps": 40}, None, 0.5),
        ({"max_epochs": 4}, 0.5, 0.375),
        ({"max_epochs": 4}, None, None),
        ({"max_epochs": 4, "max_steps": 25}, 0.5, 0.8),
        ({"max_minutes": 2}, None, 0.25),
    ],
)
def test_the_finished_part_is_that_of_the_limit_that_comes_first(
    options: dict[str, Any], epoch_part: float | None, part: float | None
) -> None:
    assert display_lines.finished_part(state(seconds=30.0), Options(**options), epoch_part) == part


def test_without_a_terminal_a_run_writes_a_line_per_epoch(capsys: Any) -> None:
    options = {"max_epochs": 2, "log_every_steps": 2, "sanity_batches": 0, "monitor": "valid/loss"}
    quiet(progress=True, **options).fit(Tiny(), data(train=20, valid=4))
    lines = [re.sub(r"[\d.,]*\d(e-\d+)?", "#", line) for line in capsys.readouterr().err.splitlines()]
    line = "epoch #/# step # | loss # | valid loss # | # samples/s, data #% |"
    lines = [re.sub(" +", " ", line).removesuffix(" | best") for line in lines]
    assert lines == [f"{line} #:#:# left | #:#:#"] * 2


def test_without_a_terminal_long_epochs_have_a_line_every_half_a_minute(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + passed[0])

    class Slow(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            passed[0] += 10
            super().train_step(batch, state)

    options = {"max_epochs": 1, "log_every_steps": 1, "sanity_batches": 0, "valid_every_steps": 3}
    quiet(progress=True, **options).fit(Slow(), data(train=36, valid=4))
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"step (\d+)", line)[1] for line in lines] == ["3", "6", "9"]  # One of the end.
    assert "samples/s, data" in lines[0]
    assert "valid" in lines[2]


@pytest.mark.parametrize("options", [{"progress": False}, {"log_level": "quiet"}])
def test_a_run_that_shows_no_progress_writes_no_line(options: dict[str, Any], capsys: Any) -> None:
    quiet(max_epochs=1, **{"progress": True, **options}).fit(Tiny(), data())
    assert capsys.readouterr().err == ""


# Means over an epoch.


class Reductions(Tiny):
    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        value = batch[0].double()
        self.log("index", value.mean())
        self.log("wide", value.mean(), reduce=("std", "min", "max", "sum"))


def test_the_last_row_of_an_epoch_has_its_exact_means(tmp_path: Path) -> None:
    model = Reductions()
    quiet(max_epochs=2, log_every_steps=2, root=tmp_path).fit(model, data(train=18))
    found = [row for row in read_rows(tmp_path / "tiny") if "train/index/epoch" in row]
    assert [row["step"] for row in found] == [5, 10]
    for epoch, row in enumerate(found):
        indices = torch.tensor(model.seen[18 * epoch : 18 * (epoch + 1)]).double()
        means = torch.stack([part.mean() for part in indices.split(4)])
        sizes = torch.tensor([4.0, 4.0, 4.0, 4.0, 2.0])
        deviation = ((means - 8.5).square() * sizes).sum().div(18).sqrt()
        assert row["train/index/epoch"] == pytest.approx(8.5, rel=1e-12)
        assert row["train/wide/epoch"] == pytest.approx(deviation.item(), rel=1e-12)
        for name, value in (("min", means.min()), ("max", means.max()), ("sum", means.sum())):
            assert row[f"train/wide/{name}/epoch"] == pytest.approx(value.item())


def test_a_resume_inside_an_epoch_gives_the_same_means(tmp_path: Path) -> None:
    for name, limits in (("whole", [10]), ("cut", [1, 3, 4, 8, 10])):
        for steps in limits:
            options = {"max_steps": steps, "log_every_steps": 2, "valid_every_epochs": None}
            quiet(root=tmp_path / name, **options).fit(Reductions(), data(train=18))
    whole, cut = (
        [row for row in timeless(read_rows(tmp_path / name / "tiny")) if row.get("kind") != "end"]
        for name in ("whole", "cut")
    )
    assert whole == cut
    assert sum("train/loss/epoch" in row for row in whole) == 2


# The speed.


def test_the_wait_for_data_and_the_samples_per_second_are_those_since_the_last_row(monkeypatch: Any) -> None:
    time = Time()
    monkeypatch.setattr(measurements, "time", time)

    def batches() -> Iterator[Batch]:
        for _ in range(4):
            time.now += 3.0
            yield None, 2, 4, 1.0, True, False

    speed = measurements.Throughput()
    timed = speed.timed(batches())
    for _ in itertools.islice(timed, 2):
        time.now += 1.0
    first = speed.take(8.0, steps=2)
    assert first == {
        "train/step_seconds": 4.0,
        "train/compute_seconds": 1.0,
        "train/data_wait": 0.75,
        "train/samples_per_second": 1.0,
    }
    next(timed)  # The loop's own time is over when it asks for the next batch.
    time.now += 5.0
    restored = measurements.Throughput()
    restored.load_state_dict(speed.state_dict())
    assert restored.take(8.0, steps=1) == {
        "train/step_seconds": 8.0,
        "train/compute_seconds": 5.0,
        "train/data_wait": 0.375,
        "train/samples_per_second": 0.5,
    }


def test_every_row_of_a_training_has_its_speed(tmp_path: Path) -> None:
    quiet(max_epochs=1, log_every_steps=2, root=tmp_path).fit(Tiny(), data(train=20))
    found = [row for row in read_rows(tmp_path / "tiny") if "train/lr" in row]
    assert [row["step"] for row in found] == [2, 4, 5]
    for row in found:
        assert 0 <= row["train/data_wait"] <= 1
        assert row["train/samples_per_second"] * row["train/step_seconds"] == pytest.approx(4)


def test_rows_have_the_peak_memory_of_a_device_that_counts_it(tmp_path: Path, monkeypatch: Any) -> None:
    quiet(max_epochs=1, root=tmp_path / "cpu").fit(Tiny(), data())
    assert not any("train/memory_mib" in row for row in read_rows(tmp_path / "cpu" / "tiny"))
    monkeypatch.setattr(torch.cpu, "max_memory_allocated", lambda device: 3 * 2**19, raising=False)
    quiet(max_epochs=1, root=tmp_path / "counts").fit(Tiny(), data())
    assert all(row["train/memory_mib"] == 1.5 for row in read_rows(tmp_path / "counts" / "tiny") if "train/lr" in row)
    monkeypatch.undo()  # On the CPU, which does not count, the callback has the memory of the process.
    quiet(max_epochs=1, root=tmp_path / "more", callbacks=[DeviceMemory()]).fit(Tiny(), data())
    assert all(row["train/memory_mib"] > 50 for row in read_rows(tmp_path / "more" / "tiny") if "train/lr" in row)


def test_the_speed_of_a_dataset_that_is_slow_is_seen(tmp_path: Path) -> None:
    class Slow(Indices):
        def __getitem__(self, index: int) -> Any:
            torch.randn(200, 200).svd()
            return super().__getitem__(index)

    split = Split(Slow(8), batch_size=4)
    quiet(max_epochs=1, log_every_steps=1, root=tmp_path).fit(Tiny(), DataModule(train=split))
    assert all(row["train/data_wait"] > 0 for row in read_rows(tmp_path / "tiny") if "train/lr" in row)
