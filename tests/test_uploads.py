"""The recipe of docs/uploads.md: copies of a run folder at an address, and starts on an empty disk."""

import json
import logging
import runpy
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from helpers.compare import same
from helpers.models import Tiny, data, quiet
from helpers.rows import read_rows

RECIPE = runpy.run_path(str(Path(__file__).parents[1] / "examples/recipes/uploads.py"))
OPTIONS: dict[str, Any] = {"monitor": "valid/loss", "save_every_steps": 2, "log_every_steps": 3}


class Troubled(LocalFileSystem):
    """A file system whose next `failures` copies of files end with an error, half of the file having been written."""

    protocol = "troubled"
    failures = copies = 0

    def put_file(self, lpath: str, rpath: str, *arguments: Any, **options: Any) -> None:
        Troubled.copies += 1
        if Troubled.failures > 0:
            Troubled.failures -= 1
            content = Path(lpath).read_bytes()
            Path(self._strip_protocol(rpath)).write_bytes(content[: len(content) // 2])
            raise TimeoutError("the network is away")
        super().put_file(lpath, rpath, *arguments, **options)


@pytest.fixture
def address(tmp_path: Path) -> str:
    fsspec.register_implementation("troubled", Troubled, clobber=True)
    Troubled.failures = Troubled.copies = 0
    return f"troubled://{tmp_path}/copy"


def train(root: Path, address: str, **options: Any) -> Any:
    uploads = RECIPE["Uploads"](root / "tiny", address, pause=0.0)
    datamodule = data()
    datamodule.prepare_data = uploads.fetch  # type: ignore[method-assign]
    model = Tiny()
    result = quiet(root=root, callbacks=[uploads], **OPTIONS, **options).fit(model, datamodule)
    return model, result


def test_a_run_that_loses_its_disk_goes_on_from_the_copy_with_the_same_bits(tmp_path: Path, address: str) -> None:
    whole = Tiny()
    expected = quiet(root=tmp_path / "whole", max_steps=11, **OPTIONS).fit(whole, data())
    Troubled.failures = 2  # Of three attempts.
    train(tmp_path / "first", address, max_steps=7)
    rows_there = tmp_path / "copy/metrics.jsonl"
    rows_there.write_text(rows_there.read_text() + '{"step": 8, "epo')  # A row was being written.
    shutil.rmtree(tmp_path / "first")
    model, result = train(tmp_path / "second", address, max_steps=11)
    assert same(model.state_dict(), whole.state_dict())
    assert len(model.seen) < len(whole.seen)  # So it has gone on.
    assert model.seen == whole.seen[-len(model.seen) :]
    without = ("samples_per_second", "data_wait", "seconds")
    rows = [
        [{name: row[name] for name in row if not name.endswith(without)} for row in read_rows(tmp_path / name / "tiny")]
        for name in ("whole", "second")
    ]
    assert rows[0] == rows[1]
    assert result.best_checkpoint.name == expected.best_checkpoint.name
    copied, kept = tmp_path / "copy/checkpoints", tmp_path / "second/tiny/checkpoints"
    assert {path.name for path in kept.glob("*.pth")} >= {path.name for path in copied.glob("*.pth")} > set()
    assert result.last_checkpoint.read_bytes() == (copied / result.last_checkpoint.name).read_bytes()


def test_a_copy_that_fails_is_named_once_and_made_up_for_by_the_next_save(
    tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    Troubled.failures = 6  # All attempts of the first two saves; half of their files is there.
    _, result = train(tmp_path, address, max_steps=6, keep_last=-1)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text.split(" (")[0] for text in warnings] == [
        f"tiny_epoch_{epoch}_iter_{step}.pth was not copied to {address}" for epoch, step in ((0, 2), (1, 3))
    ]
    assert Troubled.failures == 0
    for path in (tmp_path / "tiny/checkpoints").glob("*.pth"):
        assert path.read_bytes() == (tmp_path / "copy/checkpoints" / path.name).read_bytes()
    listed = json.loads((tmp_path / "copy/checkpoints/manifest.json").read_bytes())["checkpoints"]
    assert listed[-1]["file"] == result.last_checkpoint.name


def test_only_whole_checkpoints_are_fetched_and_nothing_where_some_are(tmp_path: Path, address: str) -> None:
    here, there, copy = tmp_path / "here", tmp_path / "there", tmp_path / "copy/checkpoints"
    saved = here / "checkpoints"
    (saved / "sharded_epoch_1_iter_5").mkdir(parents=True)
    for name in ("main.pth", "part/__0_0.distcp", "part/empty"):
        (saved / "sharded_epoch_1_iter_5" / name).parent.mkdir(exist_ok=True)
        (saved / "sharded_epoch_1_iter_5" / name).write_text(name * ("empty" not in name))
    manifest = {"checkpoints": [{"file": "sharded_epoch_1_iter_5", "step": 5}]}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    uploads = RECIPE["Uploads"](here, address, pause=0.0)
    uploads.send()
    copies = Troubled.copies
    uploads.send()
    assert Troubled.copies == copies  # What is there is not copied again.
    (copy / "sharded_epoch_2_iter_9").mkdir()  # Was being copied when the machine went away: no manifest names it.
    (copy / "sharded_epoch_2_iter_9/main.pth").write_text("half")
    fetched = RECIPE["Uploads"](there, address)
    fetched.fetch()
    found = {path.relative_to(there) for path in there.rglob("*")}
    assert found == {path.relative_to(here) for path in here.rglob("*")}
    (there / "checkpoints/sharded_epoch_1_iter_5/main.pth").write_text("newer")
    fetched.fetch()
    assert (there / "checkpoints/sharded_epoch_1_iter_5/main.pth").read_text() == "newer"
    (saved / "sharded_epoch_1_iter_5/main.pth").write_text("other.pt")  # Saved again, with as many bytes.
    uploads.on_checkpoint_saved(saved / "sharded_epoch_1_iter_5", False)
    assert (copy / "sharded_epoch_1_iter_5/main.pth").read_text() == "other.pt"
    assert not (copy / "sharded_epoch_2_iter_9").exists()
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").mkdir()
    with pytest.raises(IsADirectoryError):  # It cannot be read, and the run would begin again.
        RECIPE["Uploads"](tmp_path / "elsewhere", address).fetch()
