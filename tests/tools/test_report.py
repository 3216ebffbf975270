"""A report is one file that a browser shows without anything else, whatever the files of the runs hold."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Tiny, data, quiet

from helios_lite.tools.command import main
from helios_lite.tools.report import _Scale, _thinned

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e'
EMPTY = {"meta", "link", "path"}


class Page(HTMLParser):
    """What a page has: its tags with attributes, what is open, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two finished runs, of which one has been resumed."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed, lengths in (("a", 0, (2,)), ("b", 1, (1, 2))):
        for epochs in lengths:
            model = Tiny()
            model.hparams = {"depth": 2 + seed}
            quiet(root=root, run_name=name, seed=seed, max_epochs=epochs, monitor="valid/loss").fit(model, data())
    return root


def written(output: Path, *arguments: object) -> int | str | None:
    """Return the exit status of the command."""
    try:
        main(["report", *map(str, arguments), "--output", str(output)])
    except SystemExit as error:
        return error.code
    return 0


def test_it_is_one_accessible_file_without_scripts_and_requests(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    assert written(output, runs) == 0
    assert capsys.readouterr().out == f"{output}\n"
    page = Page(output)
    assert page.of("html") == [{"lang": "en"}]
    assert "Report of 2 runs" in page.text
    assert {name for name, _ in page.tags}.isdisjoint({"script", "img", "iframe", "object", "form", "a"})
    assert [each["href"] for each in page.of("link")] == ["data:,"]
    assert not re.search(r"url\(|@import|https?:", output.read_text())
    (policy,) = (each["content"] for each in page.of("meta") if "http-equiv" in each)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in page.text
    titles = {each["id"] for each in page.of("title") if "id" in each}
    pictures = [each for each in page.of("svg") if "aria-hidden" not in each]
    assert {each["role"] for each in pictures} == {"img"}
    assert {each["aria-labelledby"] for each in pictures} == titles
    headings = {each["id"] for each in page.of("h2")}
    assert {each["aria-labelledby"] for each in page.of("section")} == headings
    assert headings == {"findings", "runs", "curves", "plan", "configuration", "checkpoints"}
    assert {each["scope"] for each in page.of("th")} == {"row", "col"}
    assert len(page.of("caption")) == len(page.of("table"))
    before = output.read_bytes()
    written(output, runs / "a", runs / "b")
    assert output.read_bytes() == before
    # A run without config.json differs in nothing.
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    written(output, runs / "a", tmp_path / "bare")
    assert "What differs between the runs" not in Page(output).text


def test_it_has_what_the_runs_have_done_and_what_differs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    assert written(output, runs, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"output", "runs"}
    rows = [json.loads(line) for line in (runs / "b/metrics.jsonl").read_text().splitlines()]
    status = json.loads((runs / "b/status.json").read_text())
    names = ["run", "state", "step", "monitor", "best_score", "metrics", "checkpoints", "findings"]
    assert [*found["runs"][1]] == names
    checkpoints = sorted(path.name for path in (runs / "b/checkpoints").glob("*.pth"))
    expected = [str(runs / "b"), "finished", 6, "valid/loss", status["best_score"]]
    assert [found["runs"][1][name] for name in names[:5]] == expected
    assert sorted(found["runs"][1]["checkpoints"]) == checkpoints
    assert found["runs"][1]["metrics"][0] == "valid/loss"
    assert "train/step_seconds" not in found["runs"][1]["metrics"]
    page = Page(output)
    cells = [line.strip() for line in page.text.splitlines()]
    assert {"hparams.depth", "trainer.seed", *checkpoints, f"{status['best_score']:.6g}"} <= {*cells}
    assert "2 epochs x 3 steps = 6 steps of 4 samples" in cells
    resumed = cells[cells.index("What each run has done") :]
    assert resumed[: resumed.index("Curves")].count("3") == 1  # The step at which b was resumed.
    losses = [row["valid/loss"] for row in rows if "valid/loss" in row]
    words = next(line for line in cells if line.startswith("valid/loss over "))
    assert float(words.split()[-1]) >= max(losses) * (1 - 1e-5)


def test_findings_are_status_1_and_nothing_in_a_file_becomes_a_tag(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs / "a", tmp_path / f"run{EVIL.replace('/', '')}")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(
        json.dumps({**status, "state": "failed", "reason": f"{EVIL}\ud800", "epoch": EVIL})
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hparams": {EVIL: EVIL}, "trainer": {"monitor": EVIL}}))
    entry = {"file": EVIL, "epoch": {}, "step": None, "score": "\ud800"}
    (folder / "checkpoints/manifest.json").write_text(json.dumps({"checkpoints": [entry, 3, {"file": 1}]}))
    with (folder / "train.log").open("a") as log:
        log.write(f"2026-01-01 00:00:00,000 WARNING odd {EVIL}\n2026-01-01 00:00:00,000 INFO calm\nWARNING no line\n")
    with (folder / "metrics.jsonl").open("a") as file:
        values: list[Any] = [1e308, None, -1e308, True, "text", 5e-324, float("inf")]
        for step, value in enumerate(values):
            file.write(json.dumps({"step": step, EVIL: value, "alone": None}) + "\n")
        file.write(json.dumps({"step": 10**400, "x": 1}) + "\n" + json.dumps({"step": 9, "x": 10**400}) + "\n")
        file.write("no row\n" + "[" * 100_000)
    output = tmp_path / "report.html"
    assert written(output, folder) == 1
    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out)
    for text in (": failed: ", ": train.log: odd ", ">\\x1b[2J\\u202e is not finite in 2 of 5 rows, first at step 1"):
        assert text in out
    assert "calm" not in out
    page = Page(output)
    assert {name for name, _ in page.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not set(page.text) & set("\x1b\u202e")
    assert "No value is finite." in page.text
    assert not re.search(r"[ML ](nan|inf)", output.read_text())
    written(output, folder, "--json")
    json.loads(capsys.readouterr().out)


def test_curves_keep_their_extremes_and_fit_their_picture() -> None:
    values = torch.rand(50_000, generator=torch.Generator().manual_seed(0)).tolist()
    values[1234], values[40_321], values[777] = 5.0, -5.0, None
    points = [*enumerate(values)]
    thinned = _thinned(points)
    assert len(thinned) <= 400
    assert thinned == sorted(set(thinned), key=lambda point: point[0])
    assert {points[1234], points[40_321], points[777], points[-1]} <= {*thinned}
    for extremes in ((0.0, 1.0), (-1e308, 1e308), (3.0, 3.0), (0.0, 0.0), (0.0, 5e-324), (1e9, 1e9 + 1)):
        scale = _Scale(extremes, 0, 100)
        places = [scale.at(value) for value in (*extremes, *scale.ticks(4))]
        assert min(places) >= -1e-6
        assert max(places) <= 100 + 1e-6
        assert 1 <= len(scale.ticks(4)) <= 16


def test_wrong_use_is_answered_with_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output, folder, text in (
        ("report.pdf", runs, "must end with .html"),
        ("none/report.html", runs, "there is no folder"),
        ("report.html", tmp_path, "is no run folder, which has metrics.jsonl, and has none in it"),
    ):
        assert written(tmp_path / output, folder) == 2
        assert text in capsys.readouterr().err
    (tmp_path / "folder.html").mkdir()
    assert written(tmp_path / "folder.html", runs) == 2
    assert "Is a directory" in capsys.readouterr().err
