"""The command, run as a user runs it, or called with its arguments where a process would only be slow."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import scripts
from helpers.compare import same, timeless
from helpers.models import Tiny, data, quiet

from helios_lite import __version__
from helios_lite.__main__ import main
from helios_lite.checkpoints.files import FORMAT_VERSION
from helios_lite.tools.plot import _read_curves

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = str(EXAMPLES / "digits.toml")


def run(*command, folder, **options):
    return scripts.run(*command, cwd=folder, env={"CUDA_VISIBLE_DEVICES": ""}, **options)


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """Let every test find on `sys.path` what was there before."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def refused(capsys, *arguments):
    """Return the one line that a wrong use is answered with."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.rstrip("\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder in which the example ran from its file for two epochs, and what it wrote."""
    folder = tmp_path_factory.mktemp("main")
    command = ("-m", "helios_lite", "fit", DIGITS, "--trainer.max_epochs", "2", f"--trainer.root={folder / 'runs'}")
    return folder, run(*command, folder=folder)


@pytest.fixture
def toy_run(tmp_path):
    """Return the folder of a small run."""
    quiet(root=tmp_path, max_epochs=3, log_every_steps=1).fit(Tiny(), data())
    return tmp_path / "tiny"


def final(folder):
    return folder / "digits" / "checkpoints" / "digits_epoch_2_iter_38.pth"


def test_fit_trains_the_same_bits_as_the_script(trained):
    folder, _ = trained
    run(str(EXAMPLES / "digits.py"), "--epochs", "2", "--root", str(folder / "script"), folder=folder)
    ours, theirs = (torch.load(final(folder / name), weights_only=True) for name in ("runs", "script"))
    for part in ("model", "hparams", "precision", "monitor", "metrics", "ranks"):
        assert same(timeless(ours[part]), timeless(theirs[part]))


def test_fit_shows_what_the_trainer_shows_and_nothing_else(trained):
    _, result = trained
    assert all(line.startswith("epoch ") for line in result.stderr.splitlines())  # A line per row of metrics.
    assert f"helios_lite {__version__}" in result.stdout.splitlines()[1]
    assert result.stdout.splitlines()[-1].startswith("last checkpoint: ")


def test_fit_that_is_told_to_be_quiet_prints_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--trainer.fast_dev_run", "true", "--trainer.print_banner=false", "--trainer.progress=false", DIGITS])
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_test_prints_the_metrics_once(trained, capsys):
    runs = trained[0] / "runs"
    command = ["test", DIGITS, "--trainer.root", str(runs)]
    main(command)
    title, table = capsys.readouterr().out.split("\n", 1)
    assert title == "test of digits_epoch_2_iter_38.pth"
    assert table.split()[::2] == ["test/loss", "test/accuracy"]
    main([*command, "--checkpoint", str(final(runs)), "--trainer.print_banner", "false"])
    assert capsys.readouterr().out == f"test\n{table}"


def test_predict_writes_what_the_network_says_of_every_sample(trained, tmp_path, capsys, caplog):
    output = tmp_path / "predictions.pth"
    main(["predict", DIGITS, "--trainer.root", str(trained[0] / "runs"), "--output", str(output)])
    content = torch.load(output, weights_only=True)
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == [f"wrote {output}: 300 samples, output float32 of shape (300, 10)"]
    assert content["indices"].tolist() == list(range(len(content["outputs"])))
    assert content["outputs"].shape[1:] == (10,)


def test_an_error_of_the_training_is_not_caught():
    with pytest.raises(ValueError, match="valid/nothing"):
        main(["fit", DIGITS, "--trainer.monitor", "valid/nothing", "--trainer.root", "none"])


def test_wrong_use_is_answered_with_one_line_and_status_2(tmp_path, capsys):
    missing = tmp_path / "no.toml"
    assert refused(capsys, "fit", str(missing)) == f"helios-lite: {missing}: there is no such file"
    assert refused(capsys, "fit") == "helios-lite fit: the following arguments are required: FILE"
    assert refused(capsys, "fit", DIGITS, "--trainer.max_epoch", "3").endswith("did you mean trainer.max_epochs?")
    assert refused(capsys, "fit", DIGITS, "--trainer.max_epochs", "three").endswith("must be an int or None")
    assert refused(capsys, "fit", DIGITS, "--trainer.max_epochs") == "helios-lite: --trainer.max_epochs: needs a value"
    assert "unrecognized arguments: --epochs" in refused(capsys, "fit", DIGITS, "--epochs")
    assert "only fit, plan, test, predict, replay, audit, lock, check and compare" in refused(
        capsys, "env", "--trainer.seed", "3"
    )
    assert "has no checkpoint; train first" in refused(capsys, "test", DIGITS, f"--trainer.root={tmp_path}")
    assert "a run without files has no checkpoint" in refused(capsys, "test", DIGITS, "--trainer.root=none")
    for command in ("test", "predict"):
        assert "there is no such file" in refused(capsys, command, DIGITS, "--checkpoint", str(missing))
        line = (
            f"helios-lite: {tmp_path}: is a folder, but no sharded checkpoint and no run folder, which has checkpoints/"
        )
        assert refused(capsys, command, DIGITS, "--checkpoint", str(tmp_path)) == line
        (tmp_path / "run/checkpoints").mkdir(parents=True, exist_ok=True)
        line = f"helios-lite: {tmp_path / 'run'}: this run folder has no checkpoint that can be read"
        assert refused(capsys, command, DIGITS, "--checkpoint", str(tmp_path / "run")) == line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3.5", "3.5"),
        ("-3.5", "-3.5"),
        ("[1, 2]", "[1, 2]"),
        ('"7"', "'7'"),
        ("a/b", "'a/b'"),
        ("3\nx = 4", r"'3\nx = 4'"),
    ],
)
def test_values_are_toml_and_else_strings(text, value, capsys):
    line = refused(capsys, "fit", DIGITS, "--trainer.patience", text)
    assert line == f"helios-lite: trainer.patience={value}: must be an int or None"


def test_inspect_shows_what_a_checkpoint_holds_within_80_columns(trained, capsys, monkeypatch):
    path = final(trained[0] / "runs")
    monkeypatch.setenv("COLUMNS", "80")
    main(["inspect", str(path)])
    name, shown = capsys.readouterr().out.split("\n", 1)
    assert name == str(path)
    assert max(map(len, shown.splitlines())) <= 80
    for row in (
        r"epochs / steps +2 / 38",
        r"best +step \d+ \(0\.\d+\)",
        rf"written by +helios_lite {re.escape(__version__)} \(format {FORMAT_VERSION}\)",
        r"valid/accuracy +0\.\d+ +0\.\d+",
        r"model\.net +8 +29,162 +0\.12",
        r"model\.optimizer +24 +58,332 +0\.23",
        r"  net\.3 +1 +18,432",
        r"learning_rate +0\.003",
        r"max_epochs +2",
    ):
        assert re.search(row, shown), row
    assert "accumulation_steps" not in shown


def test_inspect_of_a_run_folder_says_which_file_it_shows(tmp_path, capsys):
    class Worse(Tiny):
        def valid_step(self, batch, step):
            self.log("score", self.trainer.max_epochs)

    run = tmp_path / "tiny"
    for epochs, monitor in ((2, None), (3, "valid/score"), (4, "valid/score")):
        quiet(root=tmp_path, max_epochs=epochs, monitor=monitor).fit(Worse(), data())
        main(["inspect", str(run)])
        output = capsys.readouterr().out
        shown = min(epochs, 3)
        kind = (
            f"the newest checkpoint of {run}, which has no best one"
            if monitor is None
            else f"the best checkpoint of {run}"
        )
        assert output.startswith(f"{run}/checkpoints/tiny_epoch_{shown}_iter_{3 * shown}.pth: {kind}\n")
        assert f"{shown} / {3 * shown}" in output
        assert Worse.load_from_checkpoint(run).num_parameters() == 41
    quiet(root=tmp_path, run_name="tiny", max_epochs=1).fit(Tiny("other"), data())
    assert "has checkpoints of several models (other, tiny); give the path" in refused(capsys, "inspect", str(run))


def test_inspect_leaves_out_parts_without_tensors(toy_run, capsys):
    [path] = (toy_run / "checkpoints").glob("*.pth")
    main(["inspect", str(path)])
    shown = capsys.readouterr().out
    assert "model.optimizer" in shown
    assert "model.scheduler" not in shown


def test_inspect_refuses_what_is_no_checkpoint(tmp_path, capsys):
    foreign = tmp_path / "foreign.pth"
    assert "there is no such file" in refused(capsys, "inspect", str(foreign))
    assert "is a folder, but no sharded checkpoint and no run" in refused(capsys, "inspect", str(tmp_path))
    torch.save({"weight": torch.zeros(3)}, foreign)
    assert refused(capsys, "inspect", str(foreign)) == f"helios-lite: {foreign}: is not a helios_lite checkpoint"
    torch.save({"format": FORMAT_VERSION}, foreign)
    assert "is not a helios_lite checkpoint" in refused(capsys, "inspect", str(foreign))
    torch.save(Tiny(), foreign)
    assert "holds more than tensors and plain containers" in refused(capsys, "inspect", str(foreign))


def test_plot_draws_runs_with_gaps_into_one_file(toy_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    other = tmp_path / "other"
    other.mkdir()
    rows = [{"step": i, "epoch": 0, "seconds": 0.1, "train/loss": None if i == 3 else 1 / i} for i in range(1, 6)]
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "trai')
    output = tmp_path / "all.png"
    main(["plot", str(toy_run), str(other), "--output", str(output)])
    assert capsys.readouterr().out == f"{output}\n"
    assert output.read_bytes().startswith(b"\x89PNG")
    output = tmp_path / "loss.svg"
    main(["plot", str(toy_run), str(other), "--metric", "train/loss", "valid/loss", "--output", str(output)])
    text = output.read_text()
    for label in ("tiny", "other", "train/loss", "valid/loss"):
        assert f"<!-- {label} -->" in text
    assert "train/lr" not in text


def test_plot_draws_every_run_of_a_folder(toy_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("b-run", "deeper/c-run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    (tmp_path / "notes").mkdir()
    output = tmp_path / "loss.svg"
    main(["plot", str(tmp_path), str(toy_run), "--metric", "train/loss", "--output", str(output)])
    assert re.findall(r"<!-- (tiny|[a-z]-run|deeper|notes) -->", output.read_text()) == ["b-run", "tiny"]


def test_plot_leaves_times_and_texts_out_unless_they_are_asked_for(toy_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    with (toy_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "note": "a text", "train/loss": "a text too"}\n')
    output = tmp_path / "all.svg"
    main(["plot", str(toy_run), "--output", str(output)])
    drawn = set(re.findall(r"<!-- (\w+/\w+|note) -->", output.read_text()))
    assert {"train/loss", "valid/loss"} <= drawn
    assert drawn & {"train/step_seconds", "train/data_wait", "train/samples_per_second", "note"} == set()
    main(["plot", str(toy_run), "--metric", "train/data_wait", "--output", str(output)])
    assert re.findall(r"<!-- (\w+/\w+) -->", output.read_text()) == ["train/data_wait"]
    assert all(type(value) is float for points in _read_curves(toy_run).values() for _, value in points)
    capsys.readouterr()
    assert "--metric note: unknown" in refused(capsys, "plot", str(toy_run), "--metric", "note")


def test_plot_takes_no_run_for_a_metric(toy_run, capsys):
    run = str(toy_run)
    line = f"helios-lite: --metric {run}: is a folder and no metric; name it before --metric"
    assert refused(capsys, "plot", run, "--metric", "train/loss", run) == line
    assert refused(capsys, "plot", "--metric", "train/loss", run).startswith(
        "helios-lite: plot: name a run folder, bef"
    )
    assert refused(capsys, "plot") == refused(capsys, "plot", "--metric", "train/loss")


def test_plot_draws_evaluations_at_their_step(toy_run):
    first = min((toy_run / "checkpoints").glob("*.pth"))
    for checkpoint in (first, "last"):
        quiet(root=toy_run.parent, max_epochs=3).test(Tiny(), data(), checkpoint=checkpoint)
    with (toy_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "kind": "test", "checkpoint": null, "limit": 2, "test/loss": 0.5}\n')
        # One bad line does not end it, nor one of the right kind with what no run writes.
        file.write('no json\n[1]\n{"step": "2", "a/b": 1}\n{"step": 3, "a/b": true, "note": "a text"}\n{"step": 9')
    curves = _read_curves(toy_run)
    assert all("/" in name for name in curves)
    assert [step for step, _ in curves["test/loss"]] == [1, 9, 9]


def test_plot_refuses_what_it_cannot_draw(toy_run, tmp_path, capsys):
    run, png = str(toy_run), str(tmp_path / "curves.png")
    assert refused(capsys, "plot", run, "--metric", "valid/los").endswith("did you mean valid/loss?")
    assert "must end with .png or .svg" in refused(capsys, "plot", run, "--output", "curves.doc")
    assert "there is no folder" in refused(capsys, "plot", run, "--output", str(tmp_path / "no" / "curves.png"))
    for path, text in (
        (toy_run / "checkpoints", "is no run folder, which has metrics.jsonl, and has none in it"),
        (toy_run / "metrics.jsonl", "is a file; name a run folder"),
        (tmp_path / "no", "there is no such folder; name a run folder"),
    ):
        assert refused(capsys, "plot", str(path), "--output", png) == f"helios-lite: {path}: {text}"
    (toy_run / "metrics.jsonl").write_text("no json\n")
    assert "there are no metrics yet" in refused(capsys, "plot", run, "--output", png)
    (toy_run / "metrics.jsonl").write_text(json.dumps({"step": 1, **{f"train/{i}": 1.0 for i in range(99)}}) + "\n")
    assert "there are 99 metrics: choose some with --metric" in refused(capsys, "plot", run, "--output", png)


def test_plot_says_how_to_install_what_is_missing(toy_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = refused(capsys, "plot", str(toy_run), "--output", str(tmp_path / "curves.png"))
    assert line == "helios-lite: plot needs matplotlib: pip install matplotlib"


def test_env_prints_what_a_bug_report_needs(capsys):
    main(["env"])
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ":" in line)
    assert lines["helios_lite version"].strip() == __version__
    assert lines["PyTorch version"].strip() == torch.__version__
    assert {"tqdm version", "rich version", "Python version", "OS", "Is CUDA available", "CPU"} <= lines.keys()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["env"], ["plot", "--help"], ["inspect", "FILE"]])
def test_a_command_whose_output_nobody_reads_ends_without_a_traceback(command, unbuffered, trained):
    command = [str(final(trained[0] / "runs")) if part == "FILE" else part for part in command]
    reader, writer = os.pipe()
    os.close(reader)
    # What Python does with its output at the end is the question, so it is a new one once.
    options = {"new_interpreter": command == ["env"] and unbuffered == "", "env": {"PYTHONUNBUFFERED": unbuffered}}
    done = scripts.run("-m", "helios_lite", *command, stdout=writer, check=False, **options)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # argparse ignores the error.


def test_a_broken_pipe_that_is_not_the_output_is_raised(monkeypatch):
    """Of a training, for example."""

    def broken(*arguments):
        raise BrokenPipeError("not the output")

    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", broken)
    with pytest.raises(BrokenPipeError, match="not the output"):
        main(["env"])


def explained(capsys, *command):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: helios-lite")
    return out


def test_every_command_explains_itself(capsys):
    commands = re.findall(r"^ {4}(\w+)", explained(capsys), re.MULTILINE)
    assert {"fit", "test", "predict", "replay", "audit", "inspect", "consolidate", "diff", "plot", "env"} <= set(
        commands
    )
    for command in commands:
        _, description, *_ = explained(capsys, command).split("\n\n")
        assert not description.startswith(" ")
        assert "\n " not in description


def test_alone_the_command_shows_its_help(capsys):
    shown = explained(capsys)
    main([])
    assert capsys.readouterr() == (shown, "")


@pytest.mark.parametrize("command", [[], ["--help"], ["--version"], ["fit", "--help"], ["plot", "--help"], ["fit"]])
def test_help_does_not_wait_for_pytorch(command):
    """Called as the installed command does it; wrong usage does not wait either."""
    program = f"""
import sys
from helios_lite.tools.command import main
try:
    main({command})
except SystemExit:
    pass
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "rich", "tqdm", "numpy", "matplotlib"}}))
"""
    assert scripts.run("-c", program, new_interpreter=True).stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("command", ["inspect", "consolidate", "test", "predict"])
def test_every_command_that_takes_a_checkpoint_takes_a_run_folder(command, capsys):
    assert "run folder" in explained(capsys, command)
