"""What people see: tables, banner, progress bars and the log, in a terminal, in a pipe and in files."""

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import pty
import re
import struct
import sys
import termios
import threading
from pathlib import Path

import pytest
import torch
from helpers import scripts
from helpers.clock import Time
from helpers.rows import read_rows
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, FitResult, Model, Split, Trainer, TrainingState, __version__
from helios_lite.display import progress
from helios_lite.display.console import result_table, show_result, sparkline
from helios_lite.display.progress import Progress
from helios_lite.display.run_log import RunLog
from helios_lite.training import clock

COLUMNS = 80
logger = logging.getLogger("helios_lite")

# A run with everything on; the first argument says how it ends, the second where its files go.
SCRIPT = """
import logging, sys, time
import torch
from helios_lite import DataModule, Model, Split, Trainer

class Slow(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(2, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def on_training_epoch_start(self, current_epoch):
        logging.getLogger("helios_lite").warning("watch epoch %d", current_epoch)

    def train_step(self, batch, state):
        time.sleep(0.03)  # A bar of less than 0.1 s is not drawn.
        loss = self.net(batch[0]).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("a_loss_with_a_name_that_is_much_longer_than_what_anybody_shows_in_a_bar", loss)
        self.log("x", float(state.step), reduce="last", bar=True)

    def valid_step(self, batch, step):
        if sys.argv[1] == "raises" and step == 5:
            raise RuntimeError("cannot validate")
        time.sleep(0.03)  # A bar of less than 0.1 s is not drawn.
        self.log("loss", self.net(batch[0]).square().mean())
        self.log("y", 123.0, bar=True)

split = Split(torch.utils.data.TensorDataset(torch.randn(16, 2)), batch_size=2)
data = DataModule(train=split, valid=split, test=split)
limit = {"max_steps": 12} if sys.argv[1] == "stops inside an epoch" else {"max_epochs": 2}
trainer = Trainer(root=sys.argv[2], monitor="valid/loss", valid_every_epochs=0.5, sanity_batches=0, **limit)
model = Slow("slow")
trainer.fit(model, data)
trainer.test(model, data)
"""


class Small(Model):
    def __init__(self, save_name="small"):
        super().__init__(save_name)
        self.hparams = {"width": 2}

    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(2, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch, state):
        loss = self.net(batch[0]).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)

    def valid_step(self, batch, step):
        self.log("loss", self.net(batch[0]).square().mean())


def fit(model, root=None, **options):
    split = Split(TensorDataset(torch.ones(4, 2)), batch_size=2)
    options = {"max_epochs": 1, "monitor": "valid/loss", "accelerator": "cpu", **options}
    return Trainer(root=root, **options).fit(model, DataModule(train=split, valid=split))


def rendered(table, columns=COLUMNS):
    file = io.StringIO()
    Console(width=columns, file=file).print(table)
    return file.getvalue()


def result(metrics, best=None):
    return FitResult(
        state=TrainingState(epoch=3, step=120, best_step=80, seconds=12.34),
        metrics=metrics,
        best_metrics=metrics if best is None else best,
        best_checkpoint=Path("/work/runs/first.pth"),
        last_checkpoint=Path("/elsewhere/last.pth"),
        stop_reason="max_epochs",
    )


def lines_too_long(text):
    return [line for line in text.splitlines() if len(line) > COLUMNS]


def screen(output):
    """Return the lines that a terminal shows after this output: a terminal that knows just what tqdm and rich use."""
    cells = {}
    row = column = 0
    for token in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|.", output, re.DOTALL):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
        elif token.endswith("A") and len(token) > 1:
            row -= int(token[2:-1] or 1)
        elif token.startswith("\x1b"):
            assert token.endswith("m"), f"this terminal does not know {token!r}"
        else:
            if column == COLUMNS:
                row, column = row + 1, 0
            cells[row, column] = token
            column += 1
    rows = range(max(row for row, _ in cells) + 1)
    return ["".join(cells.get((row, column), " ") for column in range(COLUMNS)).rstrip() for row in rows]


def run_in_terminal(ending, folder, stdout=None):
    """Run the script in a pseudo-terminal and return all that it wrote there; `stdout` may be a file instead."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    environment = {"TERM": "xterm-256color", "COLUMNS": None, "LINES": None, "NO_COLOR": None}
    streams = {"stdin": theirs, "stdout": stdout or theirs, "stderr": theirs}
    # A new interpreter once, whose streams are those of a terminal from the start.
    options = {"env": environment, "new_interpreter": ending == "ends" and stdout is None}
    process = scripts.start("-c", SCRIPT, ending, folder, **options, **streams)
    os.close(theirs)
    limit = threading.Timer(scripts.DEADLINE, process.kill)
    limit.start()
    written = b""
    with contextlib.suppress(OSError):  # How Linux says that the other side was closed.
        while part := os.read(ours, 65536):
            written += part
    process.wait()
    limit.cancel()
    os.close(ours)
    return written.decode()


@pytest.fixture(scope="module")
def piped(tmp_path_factory):
    return scripts.run("-c", SCRIPT, "ends", tmp_path_factory.mktemp("piped"), env={"COLUMNS": str(COLUMNS)})


@pytest.fixture(scope="module", params=["ends", "stops inside an epoch", "raises"])
def ending(request):
    return request.param


@pytest.fixture(scope="module")
def terminal(ending, tmp_path_factory):
    return run_in_terminal(ending, tmp_path_factory.mktemp("terminal"))


@pytest.fixture
def quiet_program(monkeypatch):
    """Return a function that makes this a program without logging of its own, which pytest's is not."""
    return lambda: monkeypatch.setattr(logging.getLogger(), "handlers", [])


# Tables.


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "▁▂▃▄▅▆▇█"),
        ([3.0, -4.0, 3.0], "█▁█"),
        ([2.0, 2.0], "▁▁"),
        ([5.0], "▁"),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest_value(values, line):
    assert sparkline(values) == line


def test_a_sparkline_is_at_most_as_wide_as_asked_and_shows_means():
    assert sparkline([0.0, 2.0, 8.0, 8.0, 0.0, 0.0, 4.0, 4.0], width=4) == "▂█▁▅"
    assert len(sparkline([float(i) for i in range(1001)])) == 40
    assert sparkline([0.0, 7.0, 14.0], width=2) == "▁█"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sparkline_shows_what_is_finite_beside_what_is_not(value):
    line = sparkline([0.0, value, 7.0])
    assert (line[0], line[2], len(line)) == ("▁", "█", 3)


def test_the_final_table_has_last_and_best_values_and_counters_and_the_curve_is_on_one_line_below(capsys):
    metrics, best = {"train/loss": 0.1, "valid/accuracy": 0.5}, {"valid/accuracy": 0.75}
    history = [0.0, 0.75, 0.5] * 20
    show_result("ended", result(metrics, best), "valid/accuracy", history, Path("/work"))
    text = capsys.readouterr().out
    assert text.endswith("\nbest checkpoint: runs/first.pth\nlast checkpoint: /elsewhere/last.pth\n")
    assert f"\nvalid/accuracy: 0 {sparkline(history)} 0.5\n" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["last", "best"] in rows
    assert ["train/loss", "0.1"] in rows
    assert ["valid/accuracy", "0.5", "0.75"] in rows
    assert ["epochs", "/", "steps", "3", "/", "120", "step", "80"] in rows
    assert ["time", "0:00:12"] in rows


def test_the_final_table_has_means_over_the_last_epoch_and_no_timings_which_have_a_table_on_request(capsys):
    metrics = {"train/loss": 0.1, "train/step_seconds": 0.25, "train/loss/epoch": 0.5}
    for with_timings in (False, True):
        show_result("ended", result(metrics, best={}), None, [], Path(), with_timings=with_timings)
        text = capsys.readouterr().out
        assert "\ntrain/...: means over the last epoch\n" in text
        rows = [line.split() for line in text.splitlines()]
        assert ["train/loss", "0.5"] in rows
        assert (["train/step_seconds", "0.25"] in rows) is with_timings


def test_without_a_judged_validation_the_final_table_has_neither_best_values_nor_a_curve(capsys):
    show_result("ended", result({"train/loss": 0.1}, best={}), None, [], Path())
    text = capsys.readouterr().out
    assert "best" not in text.replace("best checkpoint:", "")
    assert "█" not in text
    assert ["train/loss", "0.1"] in [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("name", ["valid/" + "x" * 200, "valid/" + "many words " * 20])
def test_a_long_name_of_a_metric_is_folded_beside_whole_numbers(name):
    text = rendered(result_table(result({name: 0.123456})))
    assert lines_too_long(text) == []
    assert re.findall(r"0\.\d+", text) == ["0.123456", "0.123456"]
    table = text[text.index("valid/") : text.index("epochs / steps")]
    assert "".join(re.sub(r"0\.123456", "", table).split()) == "".join(name.split())


@pytest.mark.parametrize("name", ["valid/f1[macro]", "valid/f1[/macro]"])
def test_brackets_in_the_name_of_a_metric_are_no_markup(name, capsys):
    show_result("ended", result({name: 0.5}), name, [0.0, 1.0], Path())
    assert capsys.readouterr().out.count(name) == 2  # In its row and beside its curve.


@pytest.mark.parametrize("name", ["run[new]", "run[/new]"])
def test_brackets_in_names_are_no_markup_in_the_table_of_parameters(name):
    model = Small(name)
    model.setup()
    model.parts = {name: nn.Linear(1, 1)}
    text = rendered(model.summary())
    assert f"{name} (Small)" in text
    assert f"parts.{name}" in text


def test_the_table_of_parameters_folds_long_names_beside_whole_numbers():
    model = Small()
    model.parts = {"a_long_name_" * 10: nn.Linear(1000, 1000)}
    text = rendered(model.summary())
    assert lines_too_long(text) == []
    assert text.count("1,001,000") == 4


@pytest.mark.parametrize("addition", ["learning rate 0.1", "[cosine] and [/cosine]", "x" * 200])
def test_the_banner_shows_what_the_model_appends(addition, capsys):
    class Talking(Small):
        def append_to_banner(self, banner):
            return f"{banner}\n{addition}"

    fit(Talking(), progress=False)
    shown = capsys.readouterr().out
    assert addition in "".join(line.strip("│ ") for line in shown.splitlines())
    assert "helios_lite" in shown


# A whole run, in a pipe.


def test_in_a_pipe_there_are_no_escape_codes_and_no_carriage_returns(piped):
    assert re.findall(r"[\x1b\r]", piped.stdout + piped.stderr) == []


def test_in_a_pipe_there_is_no_bar_but_a_line_for_each_epoch(piped):
    lines = [line for line in piped.stderr.splitlines() if not line.startswith(("INFO ", "WARNING "))]
    assert len(lines) == 2
    assert all(re.match(r"epoch \d/2 step \d+ +\| ", line) for line in lines)


def test_in_a_pipe_only_paths_are_longer_than_the_terminal(piped):
    assert [line for line in lines_too_long(piped.stdout) if "checkpoint: /" not in line] == []
    assert "a_loss_with_a_name" in piped.stdout


def test_paths_of_checkpoints_are_whole_lines_that_can_be_copied(piped):
    paths = re.findall(r"^(?:best|last) checkpoint: (.*)$", piped.stdout, re.MULTILINE)
    assert len(paths) == 2
    assert all(os.path.exists(path) for path in paths)


# A whole run, in a terminal.


def test_in_a_terminal_there_are_bars_over_the_run_the_epoch_and_the_evaluation(terminal):
    for name in ("run", "epoch 1", "valid"):
        assert re.search(rf"\r{name}: ", terminal), f"no bar of {name}"


def test_in_a_terminal_the_bar_shows_the_metrics_that_ask_for_it_as_they_are_in_the_last_row(terminal, ending):
    """The steps of the first row are 0 to 7, those of the second 8 to 15. A run that ends at 11 has no bar then."""
    shown = set(re.findall(r"train/x=(\S+) valid/y=123 best valid/loss=", terminal))
    assert shown == {"ends": {"7", "15"}, "stops inside an epoch": {"7"}, "raises": set()}[ending]
    assert ("valid/y=123" in terminal) == (ending != "raises")


def test_in_a_terminal_the_best_epoch_and_warnings_are_painted(terminal, ending):
    assert "\x1b[33mWARNING\x1b[0m watch epoch 1" in terminal
    assert ("| \x1b[32mbest\x1b[0m" in terminal) == (ending != "raises")


def test_in_a_terminal_no_bar_is_left(terminal):
    left = [
        line for line in screen(terminal) if re.search(r"^(run|valid|test|epoch \d+): |(step|epoch|batch)/s|%\|", line)
    ]
    assert left == []


def test_in_a_terminal_what_is_not_a_bar_stays_and_is_not_torn(terminal):
    lines = screen(terminal)
    assert "WARNING watch epoch 1" in lines
    ending = [line for line in lines if line.startswith(("stopped by", "RuntimeError"))]
    assert ending in (["stopped by max_epochs"], ["stopped by max_steps"], ["RuntimeError: cannot validate"])


def test_in_a_terminal_bars_fit_their_line(terminal):
    bars = [re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]", terminal)]
    assert [bar for bar in bars if re.match(r"(run|valid|test|epoch \d+): ", bar) and len(bar) > COLUMNS] == []


def test_in_a_terminal_bars_are_on_stderr_and_tables_on_stdout(tmp_path):
    with (tmp_path / "shown").open("w") as file:
        terminal = run_in_terminal("ends", tmp_path, stdout=file)
    shown = (tmp_path / "shown").read_text()
    assert "stopped by max_epochs" in shown
    assert "stopped by max_epochs" not in terminal
    assert "epoch 1: " not in shown
    assert "\repoch 1: " in terminal


def test_bars_are_drawn_ten_times_a_second_at_most_and_what_is_shorter_has_none(monkeypatch, capsys):
    time = Time()
    monkeypatch.setattr(progress, "time", time)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bars = Progress(True)
    shown = []
    for name, seconds in (("epoch 1", 0.22), ("valid", 0.06), ("epoch 2", 0.06), ("test", 0.0)):
        bars.start(name, 100)
        for done in range(1, 101):
            time.now += seconds / 100
            bars.update(done)
        bars.finish()
        shown.append(re.findall(r"(\w+ ?\d?): .*? (\d+)/100", capsys.readouterr().err))
    bars.close()
    assert shown == [[("epoch 1", "0"), ("epoch 1", "46"), ("epoch 1", "92")], [], [("epoch 2", "38")], []]


# Silence.


@pytest.mark.parametrize("options", [{"log_level": "quiet"}, {"print_banner": False, "progress": False}])
def test_without_banner_and_progress_nothing_is_printed(options, capsys):
    model = Small()
    fit(model, **options)
    split = Split(TensorDataset(torch.ones(4, 2)), batch_size=2)
    Trainer(root=None, max_epochs=1, **options).validate(model, DataModule(valid=split))
    assert capsys.readouterr() == ("", "")


QUIET = f"""
import logging, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.models import Tiny, data
from helios_lite import Trainer

if __name__ == "__main__":
    for max_epochs in (1, 2):
        options = {{"root": sys.argv[1], "devices": int(sys.argv[2]), "accelerator": "cpu", "max_epochs": max_epochs}}
        Trainer(log_level="quiet", **options).fit(Tiny(), data())
        Trainer(log_level="quiet", **options).test(Tiny(), data())
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_a_quiet_run_that_resumes_prints_nothing_at_all(devices, tmp_path):
    (tmp_path / "program.py").write_text(QUIET)
    done = scripts.run(tmp_path / "program.py", tmp_path, devices)
    assert (done.stdout, done.stderr) == ("", "")
    text = (tmp_path / "tiny" / "train.log").read_text()
    assert "INFO continuing " in text
    assert text.count("DEBUG test of tiny_epoch_") == 2


def test_a_monitor_that_is_not_a_number_does_not_break_the_end_of_a_run(capsys):
    class Poisoned(Small):
        def valid_step(self, batch, step):
            self.log("loss", math.nan)

    ended = fit(Poisoned(), progress=False, max_epochs=2)
    assert ended.stop_reason == "max_epochs"
    assert "nan" in capsys.readouterr().out


def test_an_output_that_knows_only_ascii_does_not_break_the_end_of_a_run(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii", write_through=True))
    fit(Small(), progress=False, max_epochs=2)
    assert b"stopped by max_epochs" in output.getvalue()


# The log.


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_a_run_leaves_the_log_as_it_was_also_when_it_raises(level, tmp_path):
    class Failing(Small):
        def train_step(self, batch, state):
            self.seen = list(logger.handlers)
            raise OSError("broken")

    model, before = Failing(), list(logger.handlers)
    logger.setLevel(level)
    try:
        with pytest.raises(OSError, match="broken"):
            fit(model, tmp_path, print_banner=False)
        assert logger.level == level
    finally:
        logger.setLevel(logging.NOTSET)
    assert logger.handlers == before
    assert any(isinstance(handler, logging.FileHandler) for handler in model.seen)


def test_a_run_closes_its_log_file(tmp_path):
    with RunLog(tmp_path / "train.log"):
        (file,) = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    assert file.stream is None


@pytest.mark.parametrize(
    ("log_level", "shown"),
    [("quiet", ["WARNING c"]), ("normal", ["INFO b", "WARNING c"]), ("verbose", ["DEBUG a", "INFO b", "WARNING c"])],
)
def test_the_log_level_decides_what_the_console_shows_and_train_log_has_all(
    log_level, shown, quiet_program, capsys, tmp_path
):
    quiet_program()
    with RunLog(tmp_path / "train.log", log_level):
        logger.debug("a")
        logger.info("b")
        logger.warning("c")
    logger.info("afterwards")
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in shown))
    written = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in written] == ["DEBUG a", "INFO b", "WARNING c"]


@pytest.mark.parametrize(("log_level", "shown"), [("quiet", "c\n"), ("normal", "b\nc\n"), ("verbose", "a\nb\nc\n")])
def test_a_program_with_logging_of_its_own_gets_the_same_lines_once(log_level, shown, quiet_program, capsys, tmp_path):
    quiet_program()
    own = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(own)
    with RunLog(tmp_path / "train.log", log_level):
        logger.debug("a")
        logger.info("b")
        logger.warning("c")
    assert capsys.readouterr() == ("", "")
    assert own.stream.getvalue() == shown
    assert "DEBUG a\n" in (tmp_path / "train.log").read_text()


def test_a_level_that_the_program_has_set_for_our_logger_hides_lines_from_the_console_only(capsys, tmp_path):
    logger.setLevel(logging.ERROR)
    try:
        with RunLog(tmp_path / "train.log"):
            logger.warning("hidden")
    finally:
        logger.setLevel(logging.NOTSET)
    assert capsys.readouterr() == ("", "")
    assert "WARNING hidden" in (tmp_path / "train.log").read_text()


def test_other_ranks_show_and_write_warnings_only(quiet_program, capsys, tmp_path):
    quiet_program()
    for folder in (tmp_path, tmp_path / "missing"):  # On another machine the folder may be missing.
        with RunLog(folder / "train.log", rank=1):
            logger.info("b")
            logger.warning("c")
    assert capsys.readouterr().err == "WARNING c\nWARNING c\n"
    assert re.fullmatch(r"\S+ \S+ WARNING rank 1: c\n", (tmp_path / "train.log").read_text())


def test_train_log_has_every_start_of_the_run_its_rows_and_its_checkpoints(tmp_path):
    """With any `log_level`."""
    first = fit(Small(), tmp_path, log_level="quiet")
    fit(Small(), tmp_path, log_level="quiet", max_epochs=2, seed=7)
    text = (tmp_path / "small" / "train.log").read_text()
    parts = [
        f"DEBUG helios_lite {__version__}   torch {torch.__version__}",
        "DEBUG option seed: 0\n",
        "DEBUG hparams['width']: 2\n",
        "DEBUG parameters: 3, of which 3 are trained\n",
        "DEBUG step 2, epoch 0: train/loss=",
        "DEBUG step 2, epoch 0: valid/loss=",
        "DEBUG stopped by max_epochs at step 2\n",
        f"INFO continuing {first.run_folder} at step 2 of 4 ({first.last_checkpoint.name})\n",
        "INFO seed: 0 before, 7 now\n",
        "DEBUG option seed: 7\n",
    ]
    positions = [text.find(part) for part in parts]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert f"DEBUG saved {first.last_checkpoint}\n" in text
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line) for line in text.splitlines())


def test_train_log_has_a_row_a_second_at_most_and_metrics_jsonl_has_all(tmp_path, monkeypatch):
    time = Time()
    monkeypatch.setattr(clock, "time", time)

    class Steady(Small):
        def train_step(self, batch, state):
            super().train_step(batch, state)
            time.now += 0.4

    split = Split(TensorDataset(torch.ones(8, 2)), batch_size=1)
    trainer = Trainer(max_epochs=1, root=tmp_path, log_every_steps=1, accelerator="cpu", log_level="quiet")
    trainer.fit(Steady(), DataModule(train=split))
    text = (tmp_path / "small" / "train.log").read_text()
    assert re.findall(r"DEBUG step (\d+), epoch 0: train/loss=", text) == ["1", "4", "7"]
    assert [row["step"] for row in read_rows(tmp_path / "small")] == list(range(1, 9))


def test_train_log_has_evaluations(tmp_path):
    model = Small()
    split = Split(TensorDataset(torch.ones(4, 2)), batch_size=2)
    last = fit(model, tmp_path, log_level="quiet").last_checkpoint
    metrics = Trainer(root=tmp_path, max_epochs=1, log_level="quiet").validate(model, DataModule(valid=split))
    line = (tmp_path / "small" / "train.log").read_text().splitlines()[-1]
    assert line.endswith(f"DEBUG valid of {last.name}: valid/loss={metrics['valid/loss']:.6g}")


def test_train_log_has_the_traceback_of_a_failure_which_our_console_does_not_show(tmp_path, quiet_program, capsys):
    class Failing(Small):
        def train_step(self, batch, state):
            raise OSError("broken")

    quiet_program()
    with pytest.raises(OSError, match="broken"):
        fit(Failing(), tmp_path, log_level="quiet")
    text = (tmp_path / "small" / "train.log").read_text()
    assert "ERROR ended by OSError\nTraceback (most recent call last):" in text
    assert "in train_step\n" in text
    assert text.endswith("OSError: broken\n")
    assert capsys.readouterr() == ("", "")


class FailingOnRank1(Small):
    def train_step(self, batch, state):
        if self.global_rank == 1:
            raise OSError("broken")
        super().train_step(batch, state)


def test_train_log_has_the_failure_of_another_rank(tmp_path):
    with pytest.raises(OSError, match="broken"):
        fit(FailingOnRank1(), tmp_path, log_level="quiet", devices=2)
    text = (tmp_path / "small" / "train.log").read_text()
    assert text.count("ERROR ended by ") == 1
    assert "in the process of rank 1" in text
    assert text.endswith("OSError: broken\n")


def test_without_a_root_there_is_no_log_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Small(), None, print_banner=False)
    assert list(tmp_path.iterdir()) == []


def test_config_json_has_the_options_and_the_hparams(tmp_path):
    fit(Small(), tmp_path, print_banner=False, max_epochs=1, seed=7)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["hparams"] == {"width": 2}
    chosen = {"max_epochs": 1, "seed": 7, "root": str(tmp_path), "monitor": "valid/loss", "callbacks": []}
    assert {name: config["trainer"][name] for name in chosen} == chosen
