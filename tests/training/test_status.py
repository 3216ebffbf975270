"""status.json: what a run is doing, and how it has ended, for programs that look at it from outside."""

import contextlib
import http.server
import json
import os
import re
import runpy
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Tiny, data, quiet
from helpers.processes import deadline, end, start, wait_for_step
from helpers.rows import read_rows, read_status

from helios_lite import Callback
from helios_lite.__main__ import main
from helios_lite.checkpoints.files import write_json
from helios_lite.training import status_file

RECIPE = Path(__file__).parents[2] / "examples/recipes/trainjob_status.py"


class Seen(Callback):
    """Notes what the file has while the training runs."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.found: dict[str, dict[str, Any]] = {}

    def note(self, place: str) -> None:
        self.found[place] = read_status(self.run)

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.note("step")

    def on_training_end(self) -> None:
        self.note("end")


def test_it_says_what_the_run_is_doing_and_how_it_has_ended(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    seen, datamodule = Seen(run), data()
    datamodule.prepare_data = lambda: seen.note("prepare_data")  # type: ignore[method-assign]
    options: dict[str, Any] = {"root": tmp_path, "monitor": "valid/loss", "log_every_steps": 1}
    quiet(max_epochs=2, callbacks=[seen], **options).fit(Tiny(), datamodule)
    assert [seen.found[place]["state"] for place in ("prepare_data", "step", "end")] == [
        *("starting", "running", "stopping")
    ]
    assert seen.found["prepare_data"]["step"] is None
    assert (seen.found["end"]["reason"], seen.found["end"]["exit_status"]) == ("max_epochs", None)
    status = read_status(run)
    rows, checkpoints = read_rows(run), run / "checkpoints"
    assert (status["state"], status["reason"], status["exit_status"]) == ("finished", "max_epochs", 0)
    assert (status["step"], status["epoch"], status["max_epochs"]) == (rows[-1]["step"], 2, 2)
    assert status["total_steps"] == status["step"]
    assert (status["progress"], status["seconds_left"]) == (1.0, 0.0)
    assert status["metrics"]["valid/loss"] == rows[-1]["valid/loss"]
    assert Path(status["last_checkpoint"]) == max(checkpoints.glob("*.pth"), key=os.path.getmtime)
    best = torch.load(status["best_checkpoint"], weights_only=True)["state"]
    assert best["step"] == best["best_step"] == status["best_step"]
    assert status["process"] == os.getpid()
    # A start that finds it finished says the same once more.
    quiet(max_epochs=2, **options).fit(Tiny(), data())
    again = read_status(run)
    names = ("state", "reason", "exit_status", "step", "metrics", "best_step", "best_checkpoint", "last_checkpoint")
    assert [again[name] for name in names] == [status[name] for name in names]
    assert again["started"] > status["started"]


class Ends(Tiny):
    """Ends in its third step."""

    def __init__(self, how: BaseException | int) -> None:
        super().__init__()
        self.how = how

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        if state.step == 2 and isinstance(self.how, int):
            os.kill(os.getpid(), self.how)
        elif state.step == 2:
            raise self.how


@pytest.mark.parametrize(
    ("how", "options", "reason", "exit_status", "step"),
    [
        (ValueError("one line,\nand another"), {}, "ValueError: one line, and another", 1, 2),
        (SystemExit(3), {}, "SystemExit: 3", 3, 2),
        (signal.SIGTERM, {}, "SIGTERM", 143, 3),
        (signal.SIGINT, {}, "SIGINT", 130, 3),
        (signal.SIGUSR1, {"sigusr1": "stop"}, "SIGUSR1", 138, 3),
    ],
)
def test_it_says_why_a_run_was_ended(
    tmp_path: Path, how: BaseException | int, options: dict[str, Any], reason: str, exit_status: int, step: int
) -> None:
    with pytest.raises((ValueError, SystemExit, KeyboardInterrupt)):
        quiet(max_epochs=2, root=tmp_path, **options).fit(Ends(how), data())
    status = read_status(tmp_path / "tiny")
    assert (status["state"], status["reason"], status["exit_status"]) == ("failed", reason, exit_status)
    assert (status["step"], status["seconds_left"]) == (step, None)
    with pytest.raises(SystemExit) as caught:
        main(["status", str(tmp_path)])
    assert caught.value.code == 1


def test_a_signal_that_comes_while_the_end_is_written_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(content: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if content["state"] == "finished":
            os.kill(os.getpid(), signal.SIGTERM)
        write_json(content, *arguments, **options)

    monkeypatch.setattr(status_file, "write_json", write)
    with pytest.raises(SystemExit):
        quiet(max_steps=1, root=tmp_path).fit(Tiny(), data())
    status = read_status(tmp_path / "tiny")
    assert (status["state"], status["reason"], status["exit_status"]) == ("failed", "SIGTERM", 143)


def test_an_error_of_the_teardown_and_one_before_the_training_are_there_too(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("no space")

    for method, state in (("teardown", "max_steps"), ("prepare_data", None)):
        datamodule = data()
        setattr(datamodule, method, fail)
        with pytest.raises(OSError, match="no space"):
            quiet(max_steps=1, root=tmp_path).fit(Tiny(), datamodule)
        status = read_status(tmp_path / "tiny")
        assert (status["state"], status["reason"], status["exit_status"]) == ("failed", "OSError: no space", 1)
        assert status["step"] == (None if state is None else 1)


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tiny/status.json/inner").mkdir(parents=True)
    quiet(max_steps=2, root=tmp_path, log_every_steps=1).fit(Tiny(), data())
    assert caplog.text.count("status.json: cannot be written") == 1
    assert read_rows(tmp_path / "tiny")[-1]["step"] == 2


def test_other_calls_and_runs_without_files_write_none(tmp_path: Path) -> None:
    model = Tiny()
    quiet(max_steps=1, root=None).fit(model, data())
    quiet(root=tmp_path).validate(model, data(), checkpoint=None)
    assert list(tmp_path.rglob("status.json")) == []


def test_a_killed_run_is_said_to_be_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    process = start(tmp_path)
    wait_for_step(process, 2)
    main(["status", str(tmp_path), "--json"])
    (running,) = json.loads(capsys.readouterr().out)
    assert (running["state"], running["is_dead"], running["process"]) == ("running", False, process.pid)
    page = (Path(__file__).parents[2] / "docs/run_folder.md").read_text(encoding="utf-8")
    table = page.partition("| key | what it is |")[2].partition("\n\n")[0]
    names = {name for line in table.splitlines() for name in re.findall("`([a-z_]+)`", line.split(" | ")[0])}
    assert running.keys() == names | {"run", "is_dead"}
    end(process, signal.SIGKILL)
    left = read_status(tmp_path / "rich")
    assert (left["state"], left["exit_status"]) == ("running", None)
    with pytest.raises(SystemExit) as caught:
        main(["status", str(tmp_path / "rich")])
    assert caught.value.code == 1
    assert "dead while running" in capsys.readouterr().out
    # Another process has got its number since, or it was one of another machine.
    for changes, is_dead in (({"process": os.getpid()}, True), ({"host": "elsewhere"}, None)):
        (tmp_path / "rich/status.json").write_text(json.dumps(left | changes))
        with pytest.raises(SystemExit) if is_dead else contextlib.nullcontext():
            main(["status", str(tmp_path), "--json"])
        assert json.loads(capsys.readouterr().out)[0]["is_dead"] is is_dead


def test_the_recipe_reads_the_token_anew_and_outlives_a_server_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    got: list[tuple[str | None, dict[str, Any]]] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.headers["Authorization"], body["trainerStatus"]))
            token.write_text("second\n")
            self.send_response(500 if len(got) == 1 else 200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    token, file = tmp_path / "token", tmp_path / "status.json"
    content = {
        "progress": 0.5,
        "seconds_left": None,
        "metrics": {"train/loss": 0.25, "x": None},
        "updated": "now",
    }
    monkeypatch.chdir(tmp_path)
    recipe = runpy.run_path(str(RECIPE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(token))
        with deadline(30), recipe["StatusPoster"](tmp_path, seconds=0.05):
            file.write_text("{")  # It is read again.
            token.write_text("first")
            file.write_text(json.dumps(content))
            while len(got) < 2:
                time.sleep(0.01)
            file.write_text(json.dumps(content | {"progress": 1.0, "seconds_left": 0.0}))
        server.shutdown()
    assert [authorization for authorization, _ in got] == ["Bearer first", "Bearer second", "Bearer second"]
    metrics = [{"name": "train/loss", "value": "0.25"}]
    assert got[0][1] == got[1][1] == {"progressPercentage": 50, "metrics": metrics, "lastUpdatedTime": "now"}
    assert (got[2][1]["progressPercentage"], got[2][1]["estimatedRemainingSeconds"]) == (100, 0)
