"""Files that somebody else has made: no link leads out of a run folder, and nothing in them steers a terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Tiny, data, quiet

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.tools.command import main

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m"


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log", "checkpoints/.lock"])
def test_a_link_in_the_place_of_a_file_is_refused_and_its_target_stays_as_it_was(tmp_path: Path, name: str) -> None:
    target, path = tmp_path / "target", tmp_path / "tiny" / name
    target.write_text("of somebody else\n")
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    with pytest.raises((OSError, RuntimeError), match=rf"{name}.*is a symbolic link|is a symbolic link.*{name}"):
        quiet(max_epochs=1, root=tmp_path).fit(Tiny(), data())
    assert target.read_text() == "of somebody else\n"
    quiet(max_epochs=1, root=tmp_path).validate(Tiny(), data())
    assert target.read_text() == "of somebody else\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint."""
    quiet(max_epochs=1, root=tmp_path).fit(Tiny(), data())
    return tmp_path / "tiny"


def change(run: Path, **parts: Any) -> Path:
    """Replace parts of the checkpoint of a run; None removes one."""
    (path,) = naming.find(run / "checkpoints", "tiny")
    content = {**files.read_file(path), **parts}
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


def test_escape_sequences_in_the_files_of_others_never_reach_a_terminal(
    tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (path,) = naming.find(run / "checkpoints", "tiny")
    content = files.read_file(path)
    latest = {**content["metrics"]["latest"], f"valid/{EVIL}": 1.0}
    model = {**content["model"], EVIL: {EVIL: torch.ones(1)}}
    path = change(run, hparams={EVIL: EVIL}, model=model, metrics={**content["metrics"], "latest": latest})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, EVIL: EVIL}))
    quiet(max_epochs=1, root=tmp_path / "other").fit(Tiny(), data())
    other = tmp_path / "other/tiny"
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(json.dumps({**json.loads(row), EVIL: 1}) for row in rows) + "\n")
    main(["inspect", str(path)])
    with pytest.raises(SystemExit):
        main(["diff", str(run), str(other)])
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / EVIL)])
    messages = []
    for call in (
        lambda: quiet(max_epochs=2, root=tmp_path, log_level="normal").fit(Tiny(), data()),
        lambda: quiet(max_epochs=2, root=tmp_path).test(Tiny(), data()),
        lambda: Tiny.load_from_checkpoint(path),
    ):
        try:
            call()
        except Exception as error:
            messages.append(str(error))
    assert any("owned" in message for message in messages)
    torch.save({"format": files.FORMAT_VERSION + 1, "version": EVIL}, path)
    with pytest.raises(CheckpointError) as other_format:
        quiet(max_epochs=2, root=tmp_path).fit(Tiny(), data())
    captured = capfd.readouterr()
    shown = [captured.out, captured.err, (run / "train.log").read_text(), *messages, str(other_format.value)]
    for text in shown:
        assert not {"\x1b", "\x07", "\x9b"} & set(text), ascii(text)
    assert sum(text.count(r"\x1b]0;owned\x07\x1b[2J\x9b31m") for text in shown) > 6


@pytest.mark.parametrize("part", ["state", "ranks", "callbacks", "tables"])
def test_a_checkpoint_that_is_not_complete_is_an_error_that_names_what_is_missing(
    run: Path, part: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = change(run, **{part: None})
    with pytest.raises(CheckpointError, match=rf"\.pth: is not complete: it has no '{part}'"):
        quiet(max_epochs=2, root=run.parent / "other", resume=path).fit(Tiny(), data())
    quiet(max_epochs=1, root=run.parent).fit(Tiny(), data())
    assert f"{path}: is not complete" in caplog.text
    path = change(run, **{part: None} if part in ("state", "tables") else {"state": {}})
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(path)])
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"helios-lite: {path}: is ")
