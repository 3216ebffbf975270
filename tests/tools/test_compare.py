"""Two programs are compared over several seeds: the statistics are right, and what cannot be compared is named."""

import json
import math
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.processes import deadline
from helpers.rows import read_status

from helios_lite.tools.command import main
from helios_lite.tools.paired import paired, sign_flip_p_value, t_half_width, t_quantile

PROGRAM = """
import torch
from helios_lite import DataModule, Model, Split

class Line(Model):
    def __init__(self, rate):
        super().__init__("line")
        self.hparams = {"rate": rate}

    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=self.hparams["rate"])

    def train_step(self, batch, state):
        if self.hparams["rate"] == 0.5 and self.trainer.seed > 0:
            raise ValueError("the rate\\x1b[2J is wrong")
        self.backward((self.net(batch) - batch).square().mean())
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch, step):
        self.log("loss", (self.net(batch) - batch).square().mean())

class Numbers(DataModule):
    def setup(self):
        numbers = torch.linspace(-1, 1, 8)[:, None]
        self.train, self.valid = Split(numbers, batch_size=4, shuffle=True), Split(numbers, batch_size=8)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "compared_lines.py").write_text(PROGRAM)
    for name, rate in (("a", 0.1), ("b", 0.001), ("bad", 0.5)):
        (folder / f"{name}.toml").write_text(
            '[trainer]\nmax_epochs = 1\nmonitor = "valid/loss"\nlog_level = "quiet"\n'
            f'[model]\nclass = "compared_lines.Line"\nrate = {rate}\n[data]\nclass = "compared_lines.Numbers"\n'
        )
    return folder


def compared(folder: Path, *arguments: str) -> int | str | None:
    """Return the exit status of the command."""
    try:
        main(["compare", *arguments])
    except SystemExit as error:
        return error.code
    return 0


def test_two_programs_are_compared_by_trainings_that_are_kept_and_not_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert compared(folder, "a.toml", "b.toml", "--seeds", "6", "--jobs", "3") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "B is worse than A"
    assert [line.split(":")[0] for line in err.splitlines()] == [f"{i} of 12" for i in range(1, 13)]
    runs = sorted(path for path in (folder / "runs/a-or-b").glob("*/*") if path.is_dir())
    assert [f"{run.parent.name}/{run.name}" for run in runs] == [f"{a}/seed-{i}" for a in "ab" for i in range(6)]
    assert compared(folder, "b.toml", "a.toml", "--json", "--seeds", "6", "--folder", "runs/a-or-b") == 2
    assert "the runs there are of other files or values" in capsys.readouterr().err
    written = {run: (run / "status.json").stat().st_mtime_ns for run in runs}
    assert compared(folder, "a.toml", "b.toml", "--json", "--seeds", "6") == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert {run: (run / "status.json").stat().st_mtime_ns for run in runs} == written
    found = json.loads(out)
    names = {"a", "b", "folder", "metric", "mode", "seeds", "mean", "interval", "p_value", "verdict", "seeds_needed"}
    assert found.keys() == names
    assert (found["metric"], found["mode"], found["verdict"]) == ("valid/loss", "min", "worse")
    assert (found["p_value"], found["folder"]) == (2 / 2**6, "runs/a-or-b")
    for i, each in enumerate(found["seeds"]):
        scores = [
            json.loads((folder / f"runs/a-or-b/{a}/seed-{i}/status.json").read_text())["best_score"] for a in "ab"
        ]
        assert each == {"seed": i, "a": scores[0], "b": scores[1], "difference": scores[1] - scores[0]}
    assert len({each["a"] for each in found["seeds"]}) == 6
    differences = [each["difference"] for each in found["seeds"]]
    assert found["mean"] == pytest.approx(sum(differences) / 6)
    assert found["interval"] == pytest.approx([found["mean"] + sign * t_half_width(differences) for sign in (-1, 1)])


def test_what_cannot_be_compared_is_named_and_nothing_is_trained_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    # A failure ends it; what has finished is kept.
    assert compared(folder, "bad.toml", "a.toml", "--seeds", "3") == 2
    err = capsys.readouterr().err
    assert [line.partition(" of ")[0] for line in err.splitlines()[:2]] == ["1", "2"]
    assert r"seed 1 of A has failed: ValueError: the rate\x1b[2J is wrong" in err
    assert "runs/bad-or-a/a/seed-1.txt" in err.splitlines()[-1]
    assert sorted(path.name for path in (folder / "runs/bad-or-a").glob("*/*") if path.is_dir()) == ["seed-0"] * 2 + [
        "seed-1"
    ]
    # Code that has changed since, and runs that are not of one program.
    kept = shutil.copytree(folder / "runs/bad-or-a", folder / "kept")
    shutil.rmtree(kept / "a/seed-1")
    for side in ("a", "b"):
        shutil.copytree(kept / side / "seed-0", kept / side / "seed-1")
    command = ("bad.toml", "a.toml", "--seeds", "2", "--folder", "kept")
    assert compared(folder, *command) == 0
    more = ("bad.toml", "a.toml", "--seeds", "3", "--folder", "kept")
    for file, change, text in (
        (
            folder / "compared_lines.py",
            lambda text: text + "# Changed.\n",
            "compared_lines.py: has changed since seed 0 of A",
        ),
        (
            kept / "b/seed-1/config.json",
            lambda text: text.replace('"rate": 0.1', '"rate": 1'),
            "B: hparams.rate: differs",
        ),
        (kept / "b/seed-1/config.json", lambda text: text[1:], "b/seed-1/config.json: cannot be read"),
        (
            kept / "b/seed-1/status.json",
            lambda text: text.replace('"best_score": ', '"best_score": null, "x": '),
            "no best",
        ),
    ):
        before = file.read_text()
        edit: Callable[[str], str] = change
        file.write_text(edit(before))
        assert compared(folder, *(command if text == "no best" else more)) == 2
        assert text in capsys.readouterr().err
        file.write_text(before)
    assert not [*kept.glob("*/seed-2*")]
    (kept / "b/seed-1/config.json").unlink()
    assert compared(folder, *command) == 2
    assert "b/seed-1: has no config.json" in capsys.readouterr().err
    for arguments, text in (
        (("--seeds", "1"), "--seeds 1: must be 2 to 40"),
        (("--jobs", "0"), "--jobs 0: must be 1 or more"),
        (("--trainer.seed", "3"), "--trainer.seed: compare chooses it itself"),
        (("--folder", "runs"), "runs: has files, and no compare.json"),
        (("--folder", "new", "--trainer.monitor", "none"), "trainer.monitor: name the metric to compare"),
    ):
        assert compared(folder, "a.toml", "b.toml", *arguments) == 2
        assert text in capsys.readouterr().err


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_trainings_with_a_checkpoint_before_the_command(
    number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    runs = folder / "stopped" / number.name
    command = (
        "a.toml",
        "b.toml",
        "--seeds",
        "2",
        "--folder",
        str(runs),
        "--jobs",
        "2",
        "--trainer.max_epochs",
        "1000000",
    )

    has_ended = threading.Event()

    def is_training(side: str) -> bool:
        file = runs / f"{side}/seed-0/status.json"
        return file.exists() and read_status(file.parent)["state"] == "running"

    def stop() -> None:
        while not has_ended.wait(0.05):
            if is_training("a") and is_training("b"):
                os.kill(os.getpid(), number)
                return

    sender = threading.Thread(target=stop)
    sender.start()
    try:
        with deadline(60), pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
            main(["compare", *command])
    finally:
        has_ended.set()
        sender.join()
    assert str(caught.value) in ("143", f"stopped; the same command goes on with what is in {runs}")
    for side in "ab":
        status = read_status(runs / f"{side}/seed-0")
        assert (status["state"], status["reason"]) == ("failed", "SIGTERM")
        assert Path(status["last_checkpoint"]).exists()
    assert sorted(path.name for path in runs.glob("*/*") if path.is_dir()) == ["seed-0", "seed-0"]


def test_programs_without_a_difference_are_told_apart_in_at_most_five_of_a_hundred_cases() -> None:
    generator = random.Random(0)
    draws: list[Callable[[], float]] = [
        lambda: generator.gauss(0, 1),
        lambda: generator.choice((-1, 1)) * generator.expovariate(1),
        lambda: generator.gauss(0, 1) / generator.gauss(0, 1),  # Without a mean or a variance.
        lambda: generator.choice((-1.0, 0.0, 1.0)) / 300,  # Of accuracies, which are often equal.
    ]
    for draw in draws:
        told = sum(paired([draw() for _ in range(8)]).is_told for _ in range(200))
        assert told <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)
    # The number that is said to tell them does so in about 80 of 100 cases.
    spread = [1.2 + each * math.sqrt(7 / 8) for each in (1, -1) * 4]
    assert paired(spread).needed == 8
    told = sum(paired([1.2 + generator.gauss(0, 1) for _ in range(8)]).is_told for _ in range(200))
    assert 200 * 0.7 <= told <= 200 * 0.9


def test_the_sign_flip_test_counts_what_is_as_far_from_zero() -> None:
    values = [0.3, -0.1, 0.25, 0.4, -0.05]
    sums = [math.fsum(value if i >> k & 1 else -value for k, value in enumerate(values)) for i in range(2**5)]
    far = abs(math.fsum(values)) - 1e-12
    assert sign_flip_p_value(values) == sum(abs(each) >= far for each in sums) / 2**5
    assert sign_flip_p_value([0.0] * 4) == 1.0
    assert sign_flip_p_value([1.0] * 40) == 2 / 2**40
    # Sums that are equal but for rounding count as equal.
    assert sign_flip_p_value([0.1 + 1e-8, 0.1, -0.1], rounding=1e-7) == 1.0
    for wrong in ([], [1.0] * 41):
        with pytest.raises(ValueError, match="differences"):
            sign_flip_p_value(wrong)


def test_the_intervals_and_the_numbers_of_seeds_are_those_of_tables() -> None:
    """Source of the quantiles: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, critical values of t."""
    for freedom, value in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (8, 2.306), (30, 2.042)):
        assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)
    found = paired([1.0, 2.0, 3.0])
    assert (found.mean, found.high - found.mean) == pytest.approx((2.0, 4.303 / math.sqrt(3)), abs=1e-3)
    assert found.p_value == 2 / 2**3
    assert not found.is_told  # The interval has 0 in it.
    assert not paired([1.0, 1.1, 0.9, 1.0, 1.0]).is_told  # Five signs are equal by chance too often.
    assert paired([1.0, 1.1, 0.9, 1.0, 1.0]).needed == 6
    assert paired([1.0, 1.1, 0.9, 1.0, 1.0, 1.0]).is_told
    assert paired([0.0, 0.0]).needed is None
    # For an effect of half a standard deviation tables of power have 34 pairs: (1.96 + 0.84)^2 / 0.25, and two for t.
    size = [0.5 + 1.0, 0.5 - 1.0]
    scale = math.sqrt(2)  # The standard deviation of two numbers.
    assert paired([0.5 + (each - 0.5) / scale for each in size]).needed == 34


@pytest.mark.ecosystem
def test_the_statistics_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = random.Random(1)
    for count in (2, 3, 6, 9):
        values = [generator.gauss(0.5, 1) for _ in range(count)]
        interval = stats.ttest_1samp(values, 0).confidence_interval()
        found = paired(values)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
        test = stats.permutation_test(
            (values,), lambda x: sum(x) / len(x), permutation_type="samples", n_resamples=2**20
        )
        assert found.p_value == pytest.approx(test.pvalue, rel=1e-9)
        for probability in (0.6, 0.8, 0.975, 0.999):
            assert t_quantile(probability, count) == pytest.approx(stats.t.ppf(probability, count), rel=1e-9)
