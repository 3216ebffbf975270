"""A table of runs: what they are doing, which was best, and what differs in them, whatever their files hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.models import Tiny, data, quiet

from helios_lite.tools.command import main
from helios_lite.tools.run_table import table_of_runs

STEERING = "\x1b]0;title\x07\x1b[2J"


class Sized(Tiny):
    def __init__(self, size: Any) -> None:
        super().__init__()
        self.hparams = {"size": size, "depth": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three finished runs, one of them in a folder of its own."""
    root = tmp_path_factory.mktemp("runs")
    for name, size, epochs in (("a", 10, 1), ("sweep/b", 9, 3), ("c", 9, 2)):
        quiet(root=root, run_name=name, max_epochs=epochs, monitor="valid/loss").fit(Sized(size), data())
    return root


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def names(folder: Path, sort: str = "best") -> list[str]:
    return [run["name"] for run in table_of_runs(folder, sort)["runs"]]


def test_it_has_each_run_at_any_depth_with_its_best_value_and_what_differs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["runs", str(runs), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["differs"] == ["trainer.max_epochs", "hparams.size"]
    best = found["runs"][0]
    status = json.loads((runs / "sweep/b/status.json").read_text())
    assert best == {
        "run": str(runs / "sweep/b"),
        "name": "sweep/b",
        "state": "finished",
        "is_dead": False,
        "step": status["step"],
        "total_steps": status["step"],
        "monitor": "valid/loss",
        "mode": "min",
        "best_score": status["best_score"],
        "best_step": status["best_step"],
        "options": {"trainer.max_epochs": 3, "hparams.size": 9},
        "error": None,
    }
    main(["runs", str(runs)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["run", "state", "step", "best", "valid/loss", "at", "step", "max_epochs", "size"]
    assert lines[3].split() == ["sweep/b", "finished", "9/9", f"{best['best_score']:.6g}", "9", "3", "9"]


def test_it_is_sorted_by_what_is_asked_for_and_a_metric_that_shall_rise_from_its_highest_value(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs, tmp_path / "copy")
    assert names(folder) == ["sweep/b", "c", "a"]
    assert names(folder, "run") == ["a", "c", "sweep/b"]
    assert names(folder, "step") == ["a", "c", "sweep/b"]
    assert names(folder, "size") == names(folder, "hparams.size") == ["c", "sweep/b", "a"]
    with pytest.raises(SystemExit):
        main(["runs", str(folder), "--sort", "siz"])
    assert capsys.readouterr().err == "helios-lite: --sort siz: unknown; did you mean size?\n"
    for run in ("a", "c", "sweep/b"):
        config = json.loads((folder / run / "config.json").read_text())
        rewrite(folder / run / "config.json", trainer={**config["trainer"], "mode": "max"})
    assert names(folder) == ["a", "c", "sweep/b"]
    rewrite(folder / "a/status.json", best_score=None)
    assert names(folder) == ["c", "sweep/b", "a"]


def test_files_of_others_neither_end_it_nor_reach_a_terminal_raw(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs, tmp_path / "copy")
    (folder / "a/config.json").write_text("[" * 100_000)
    (folder / "c/status.json").unlink()
    rewrite(
        folder / "sweep/b/config.json",
        hparams={STEERING: STEERING, "[red]x": 1, "size": float("inf"), "deep": [[1], {}]},
    )
    wrong = {"step": "many", "best_score": True, "best_step": {}, "total_steps": [], "state": STEERING}
    rewrite(folder / "sweep/b/status.json", **wrong)
    rewrite(folder / "a/status.json", best_score=10**400, total_steps=10**400)
    (folder / f"odd{STEERING}").mkdir()
    (folder / f"odd{STEERING}/metrics.jsonl").write_text('{"step": 7}\n{"step": "8"}\nno row\n')
    with pytest.raises(SystemExit) as caught:
        main(["runs", str(folder)])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert "a/config.json: cannot be read" in err
    assert all(character.isprintable() or character == "\n" for character in out + err)
    assert "[red" in out
    with pytest.raises(SystemExit):
        main(["runs", str(folder), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert "trainer.seed" not in found["differs"]  # A run without config.json differs in nothing.
    by_name = {run["name"]: run for run in found["runs"]}
    assert by_name["sweep/b"]["options"]["hparams.size"] == "inf"
    assert [by_name["sweep/b"][name] for name in ("step", "best_score", "best_step")] == [None, None, None]
    assert by_name["c"]["step"] == 6
    assert by_name[f"odd{STEERING}"]["step"] == 7


def test_a_run_that_has_failed_or_is_dead_is_status_1_and_no_run_is_wrong_use(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs, tmp_path / "copy")
    rewrite(folder / "a/status.json", state="failed", exit_status=1)
    rewrite(folder / "c/status.json", state="running", exit_status=None, process=2**22 + 1)
    with pytest.raises(SystemExit) as caught:
        main(["runs", str(folder)])
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert " failed " in out
    assert " dead while " in out
    (tmp_path / "empty").mkdir()
    for path, text in (
        ("empty", "has no run folder in it"),
        ("none", "there is no such folder"),
        ("file", "is a file"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit) as caught:
            main(["runs", str(tmp_path / path)])
        assert caught.value.code == 2
        assert f"{tmp_path / path}: {text}" in capsys.readouterr().err
