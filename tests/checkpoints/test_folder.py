"""The checkpoints of a run's folder: which of them stay, which is read, and who may write."""

import json
import logging
import os
import pathlib
import queue
import sys
import threading

import pytest
import torch
from helpers.compare import listing
from helpers.damage import immutable, replaced_by_folder
from helpers.models import Tiny, content, data, quiet
from helpers.processes import DEADLINE, run_python

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.folder import CheckpointFolder
from helios_lite.checkpoints.snapshot import CpuSnapshot

# Which files stay.


def opened(folder, save_name="net", mode="min", keep_last=1, keep_best=1, background=False):
    folder.mkdir(parents=True, exist_ok=True)
    return CheckpointFolder(
        folder, save_name, mode=mode, keep_last=keep_last, keep_best=keep_best, background=background
    )


def save(checkpoints, step, score=None, protect=None, improved=False, **more):
    options = {"append_metadata": str, "score": score, "improved": improved, "protect": protect}
    return checkpoints.save(content(step) | more, epoch=step // 10, step=step, **options)


def load(checkpoints, choice):
    """The checkpoint to read first, and its content; None if there is none."""
    path = next(checkpoints.candidates(choice), None)
    return path and (path, files.read_file(path))


def steps(folder, save_name="net"):
    return sorted(files.read_file(path)["step"] for path in naming.find(folder, save_name))


@pytest.mark.parametrize(
    ("mode", "keep_last", "keep_best", "kept"),
    [
        ("min", 1, 0, [5]),
        ("min", 2, 0, [4, 5]),
        ("min", 0, 0, [5]),
        ("min", -1, 0, [1, 2, 3, 4, 5]),
        ("min", 1, 1, [2, 5]),
        ("max", 1, 1, [1, 5]),
        ("min", 1, 2, [2, 3, 5]),
        ("max", 0, 2, [1, 5]),
        ("max", 2, 2, [1, 4, 5]),
        ("min", 1, -1, [1, 2, 3, 5]),
        ("min", -1, -1, [1, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, mode, keep_last, keep_best, kept):
    checkpoints = opened(tmp_path, mode=mode, keep_last=keep_last, keep_best=keep_best)
    for step, score in enumerate([3.0, 1.0, 2.0, None, 2.5], start=1):
        save(checkpoints, step, score)
    assert steps(tmp_path) == kept


def test_retention_goes_on_in_the_next_run(tmp_path):
    for step, score in enumerate([3.0, 1.0, 2.0, None], start=1):
        save(opened(tmp_path), step, score)
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equal_scores_the_earlier_stays(tmp_path, mode):
    checkpoints = opened(tmp_path, mode=mode)
    for step, score in enumerate([0.0, 0.0, None], start=1):
        save(checkpoints, step, score)
    assert steps(tmp_path) == [1, 3]


def test_a_step_saved_twice_has_one_file_and_its_last_score(tmp_path):
    checkpoints = opened(tmp_path, keep_last=-1)
    save(checkpoints, 1, 0.5)
    save(checkpoints, 2, 0.1)
    save(checkpoints, 2, 0.9)
    assert steps(tmp_path) == [1, 2]
    assert checkpoints.best().name == "net_epoch_0_iter_1.pth"


def test_only_files_of_the_manifest_are_ever_deleted(tmp_path):
    foreign = [
        "notes.txt",
        "weights.pth",
        "net_epoch_0_iter_0.pth",
        "net_epoch_0_iter_1_mine.pth",
        "nets_epoch_0_iter_1.pth",
    ]
    for name in foreign:
        (tmp_path / name).write_text(name)
    checkpoints = opened(tmp_path, keep_best=0)
    for step in range(1, 4):
        save(checkpoints, step)
    assert set(listing(tmp_path)) == {*foreign, "net_epoch_0_iter_3.pth", "manifest.json"}
    assert all((tmp_path / name).read_text() == name for name in foreign)


def test_files_of_another_model_in_the_folder_are_left_alone(tmp_path):
    save(opened(tmp_path, "other"), 1, score=0.1)
    mine = opened(tmp_path, "net")
    save(mine, 1, score=0.9)
    save(mine, 2)
    assert (steps(tmp_path, "other"), steps(tmp_path, "net")) == ([1], [1, 2])
    assert mine.best().name == "net_epoch_0_iter_1.pth"
    assert opened(tmp_path, "other").best().name == "other_epoch_0_iter_1.pth"


@pytest.mark.parametrize(
    "spelled",
    [
        lambda path: path,
        lambda path: pathlib.Path(os.path.relpath(path)),
        lambda path: path.parent / ".." / "run" / path.name,
    ],
    ids=["same", "relative", "dots"],
)
def test_the_file_resumed_from_stays_however_its_path_is_spelled(tmp_path, spelled):
    checkpoints = opened(tmp_path / "run", keep_best=0)
    spare = spelled(save(checkpoints, 1))
    for step in (2, 3):
        save(checkpoints, step, protect=spare)
    assert steps(tmp_path / "run") == [1, 3]


def test_the_manifest_lists_the_files_with_their_scores(tmp_path):
    checkpoints = opened(tmp_path)
    for step, score in ((8, 0.25), (9, 0.5), (10, None)):
        save(checkpoints, step, score)
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "checkpoints": [
            {"file": "net_epoch_0_iter_8.pth", "epoch": 0, "step": 8, "score": 0.25, "improved": False},
            {"file": "net_epoch_1_iter_10.pth", "epoch": 1, "step": 10, "score": None, "improved": False},
        ]
    }


@pytest.mark.parametrize("damaged", ["", '{"checkpoints": [{"fi', "[]", "{}"])
def test_a_damaged_manifest_costs_no_file(tmp_path, damaged):
    save(opened(tmp_path), 1, 0.5)
    (tmp_path / "manifest.json").write_text(damaged)
    checkpoints = opened(tmp_path)
    assert checkpoints.best() is None
    save(checkpoints, 2)
    assert steps(tmp_path) == [1, 2]


def test_a_refused_save_counts_neither_as_newest_nor_as_best(tmp_path):
    checkpoints = opened(tmp_path, keep_last=2)
    save(checkpoints, 1, 0.9)
    save(checkpoints, 2, 0.5)
    with pytest.raises(TypeError):
        save(checkpoints, 3, 0.1, extra=object())
    assert checkpoints.best().name == "net_epoch_0_iter_2.pth"
    assert load(checkpoints, "best")[1]["step"] == 2
    save(checkpoints, 4, 0.7)
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("keep_best", [0, 2, -1])
def test_would_be_kept_foretells_what_stays_as_one_of_the_best(tmp_path, mode, keep_best):
    checkpoints = opened(tmp_path, mode=mode, keep_best=keep_best)
    foretold, stayed = [], []
    for i, score in enumerate([3.0, 3.0, 0.0, 3.0, 5.0, -1.0]):
        foretold.append(checkpoints.would_be_kept(score, improved=False))
        path = save(checkpoints, 2 * i, score)
        save(checkpoints, 2 * i + 1)
        stayed.append(path.exists())
    assert foretold == stayed


# Which file is read.


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_is_known_to_this_and_to_the_next_run(tmp_path, mode, best):
    checkpoints = opened(tmp_path, mode=mode)
    for step, score in enumerate([1.0, 0.0, 2.0, None], start=1):
        save(checkpoints, step, score)
    for each in (checkpoints, opened(tmp_path, mode=mode)):
        assert each.best().name == f"net_epoch_0_iter_{best}.pth"
        assert load(each, "best")[1]["step"] == best


def test_without_judged_files_the_best_is_the_newest(tmp_path):
    checkpoints = opened(tmp_path)
    for step in (1, 2):
        save(checkpoints, step)
    assert checkpoints.best() is None
    assert load(checkpoints, "best")[1]["step"] == 2


@pytest.mark.parametrize("choice", ["best", "last"])
def test_an_empty_folder_has_nothing_to_load(tmp_path, choice):
    assert load(opened(tmp_path / "new" / "folder"), choice) is None


@pytest.mark.parametrize("removed", [False, True])
def test_a_best_file_that_cannot_be_read_is_passed_over_for_the_newest(tmp_path, caplog, removed):
    checkpoints = opened(tmp_path)
    best = save(checkpoints, 1, 0.1)
    last = save(checkpoints, 2)
    if removed:
        best.unlink()
    else:
        best.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "helios_lite"):
        path, found = load(checkpoints, "best")
    assert (path, found["step"]) == (last, 2)
    assert best.name in caplog.text
    assert last.name not in caplog.text


def test_damaged_files_are_passed_over_for_the_next_older_one_with_warnings_that_name_them(tmp_path, caplog):
    checkpoints = opened(tmp_path, keep_last=-1)
    paths = [save(checkpoints, step) for step in (8, 9, 10)]
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    paths[1].write_bytes(b"")
    with caplog.at_level(logging.WARNING, "helios_lite"):
        path, found = load(checkpoints, "last")
    assert (path, found["step"]) == (paths[0], 8)
    for record, damaged in zip(caplog.records, paths[:0:-1], strict=True):
        assert record.levelno == logging.WARNING
        assert str(damaged) in record.getMessage()


def test_when_every_file_is_damaged_there_is_nothing_to_load(tmp_path):
    checkpoints = opened(tmp_path)
    save(checkpoints, 1).write_bytes(b"")
    assert load(checkpoints, "last") is None


# The manifest is a cache.


class Scored(Tiny):
    """Its validations have the scores of a list."""

    def __init__(self, scores, save_name="scored"):
        super().__init__(save_name)
        self.scores = scores

    def valid_step(self, batch, step):
        self.log("score", self.scores[(self.trained_steps - 1) // 3], count=1)

    def on_training_batch_end(self, state, should_log=False):
        self.trained_steps = state.step

    def on_training_epoch_start(self, current_epoch):
        self.trained_steps = 3 * current_epoch


def train(root, scores, epochs, **options):
    options = {"monitor": "valid/score", "sanity_batches": 0, "keep_last": 2, "async_save": False, **options}
    return quiet(root=root, run_name="run", max_epochs=epochs, **options).fit(Scored(scores), data())


SCORES = [3.0, 1.0, 2.0, 5.0, 4.0]


def name(epoch):
    return f"scored_epoch_{epoch}_iter_{3 * epoch}.pth"


def entry(number, score=None, improved=False, **changes):
    own = {"file": name(number), "epoch": number, "step": 3 * number, "score": score, "improved": improved}
    return own | changes


@pytest.mark.parametrize(("epochs", "best"), [(2, 2), (3, 2), (4, None), (5, None)])
def test_without_kept_best_files_the_best_checkpoint_is_the_best_or_none(tmp_path, epochs, best):
    result = train(tmp_path, SCORES, epochs, keep_best=0)
    assert result.state.best_step == 6
    assert (None if result.best_checkpoint is None else result.best_checkpoint.name) == (best and name(best))
    path, _ = load(opened(tmp_path / "run/checkpoints", "scored", keep_best=0), "best")
    assert path.name == name(best or epochs)


@pytest.mark.parametrize("manifest", ["missing", "damaged", "folder", "of other scores"])
def test_the_best_checkpoint_does_not_depend_on_the_manifest(tmp_path, manifest, caplog):
    train(tmp_path, SCORES, 4)
    path = tmp_path / "run/checkpoints/manifest.json"
    entries = json.loads(path.read_text())["checkpoints"]
    assert [each["file"] for each in entries] == [name(2), name(3), name(4)]
    path.unlink()
    if manifest == "damaged":
        path.write_bytes(b"\xff")
    elif manifest == "folder":
        path.mkdir()
    elif manifest == "of other scores":
        path.write_text(json.dumps({"checkpoints": [{**each, "score": -each["step"]} for each in entries]}))
    folder = CheckpointFolder(path.parent, "scored", mode="min", keep_last=1, keep_best=1, background=False)
    assert load(folder, "best")[0].name == name(2)
    if manifest in ("damaged", "folder"):
        assert [str(path) in record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            True
        ]
    if manifest == "folder":
        with pytest.raises(IsADirectoryError, match=r"manifest\.json"):
            train(tmp_path, SCORES, 5)
        path.rmdir()
    assert train(tmp_path, SCORES, 5).best_checkpoint.name == name(2)


@pytest.mark.parametrize("damage", ["empty", "exchanged"])
def test_a_damaged_file_is_not_named_as_the_best(tmp_path, damage, caplog):
    train(tmp_path, SCORES, 4)
    folder = tmp_path / "run/checkpoints"
    (folder / name(2)).write_bytes(b"" if damage == "empty" else (folder / name(3)).read_bytes())
    assert train(tmp_path, SCORES, 5).best_checkpoint is None
    assert f"not the best checkpoint any more: {folder / name(2)}" in caplog.text


def test_a_file_whose_entry_was_lost_counts_as_the_best_and_is_never_deleted(tmp_path):
    train(tmp_path, SCORES, 4)
    path = tmp_path / "run/checkpoints/manifest.json"
    path.unlink()
    train(tmp_path, [*SCORES, 0.5], 6, keep_last=1)
    assert {each.name for each in path.parent.glob("*.pth")} == {name(2), name(3), name(4), name(6)}
    assert json.loads(path.read_text()) == {
        "checkpoints": [entry(6, 0.5, True)],
        "found": [entry(2, 1.0, True), entry(3, 2.0), entry(4, 5.0)],
    }
    train(tmp_path, [*SCORES, 0.5, 9.0, 8.0], 8, keep_last=1)
    assert {each.name for each in path.parent.glob("*.pth")} == {name(epoch) for epoch in (2, 3, 4, 6, 8)}


@pytest.mark.parametrize("part", ["save_name", "config", "state", "metrics"])
def test_a_file_of_another_program_beside_a_lost_manifest_is_not_in_the_way(tmp_path, part):
    train(tmp_path, SCORES, 4)
    folder = tmp_path / "run/checkpoints"
    content = torch.load(folder / name(2), weights_only=True)
    del content[part]
    torch.save(content, folder / name(2))
    (folder / "manifest.json").unlink()
    train(tmp_path, SCORES, 5)
    assert name(5) in {each.name for each in folder.glob("*.pth")}


@pytest.mark.parametrize(
    "wrong",
    [
        entry(2, score="1.0"),
        entry(2, score=float("nan")),
        entry(2, score=True),
        entry(2, improved=1),
        entry(2, epoch="2"),
        entry(2, step=6.0),
        entry(2, step=7),
        entry(2, file=1),
        entry(2, file=None),
        entry(2, file="../precious.pth"),
        entry(2, file="../scored_epoch_2_iter_6.pth"),
        entry(2, file=""),
        entry(2, file="a\0b"),
        {"file": name(2)},
        [name(2)],
        None,
    ],
    ids=str,
)
def test_a_wrong_entry_is_ignored_with_a_warning_that_names_the_manifest(tmp_path, wrong, caplog):
    train(tmp_path, SCORES, 3)
    (tmp_path / "run" / name(2)).write_text("mine")
    path = tmp_path / "run/checkpoints/manifest.json"
    path.write_text(json.dumps({"checkpoints": [wrong, entry(3, 2.0)]}))
    caplog.clear()
    result = train(tmp_path, SCORES, 4)
    assert result.best_checkpoint.name == name(2)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{path}: ignoring entries that are wrong (1); the checkpoints are read instead"]
    assert (tmp_path / "run" / name(2)).read_text() == "mine"


@pytest.mark.parametrize(
    "manifest", ["[" * 100_000, '{"checkpoints": {}}', '{"checkpoints": [], "found": 1}', "1", "null", "9" * 9999]
)
def test_a_manifest_of_another_shape_is_told_as_damaged(tmp_path, manifest, caplog):
    (tmp_path / "manifest.json").write_text(manifest)
    assert opened(tmp_path).best() is None
    assert f"{tmp_path / 'manifest.json'}: is damaged" in caplog.text


def gone(path, names, rest):
    return f"{path / 'manifest.json'} lists {names} not there any more; {rest}"


@pytest.mark.parametrize("choice", ["best", "last"])
def test_a_checkpoint_that_is_gone_is_named_once_when_one_is_chosen(tmp_path, choice, caplog):
    train(tmp_path, SCORES, 4)
    folder = tmp_path / "run/checkpoints"
    (folder / name(2)).unlink()

    def warnings():
        texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return [text for text in texts if "manifest" in text]

    caplog.clear()
    trainer = quiet(root=tmp_path, run_name="run", monitor="valid/score", max_epochs=4)
    trainer.test(Tiny("scored"), data(), checkpoint=choice)
    assert warnings() == [gone(folder, f"{name(2)}, which is", f"the newest that is there is {name(4)}")]
    (folder / name(4)).unlink()
    Scored.load_from_checkpoint(tmp_path / "run", scores=SCORES)
    rest = f"the newest that is there is {name(3)}"
    assert warnings() == [gone(folder, f"{name(2)}, {name(4)}, which are", rest)]
    assert train(tmp_path, SCORES, 5).state.step == 15
    assert warnings() == [gone(folder, f"{name(2)}, {name(4)}, which are", rest)]
    train(tmp_path, SCORES, 5)
    assert warnings() == []  # The manifest lists what is there now.
    for path in folder.glob("*.pth"):
        path.unlink()
    trainer.test(Tiny("scored"), data(), checkpoint=choice)
    (text,) = warnings()
    assert text.endswith("which are not there any more; there is no other")


KILLED = """
import os, pathlib, signal, sys, torch
from helios_lite.checkpoints.folder import CheckpointFolder
from helios_lite.checkpoints import files

folder = pathlib.Path(sys.argv[1])
checkpoints = CheckpointFolder(folder, "net", mode="min", keep_last=1, keep_best=0, background=True)
for step, size in ((1, 10), (2, 100_000_000)):
    content = {"format": files.FORMAT_VERSION, "step": step, "model": torch.zeros(size)}
    checkpoints.save(content, epoch=0, step=step, append_metadata=str, score=None, improved=False, protect=None)
    if step == 1:
        checkpoints.join()
while "iter_2" not in (folder / "manifest.json").read_text():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_that_a_kill_has_prevented_is_no_loss(tmp_path, caplog):
    run_python(KILLED, tmp_path)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["net_epoch_0_iter_1.pth"]
    entries = json.loads((tmp_path / "manifest.json").read_text())["checkpoints"]
    assert [(each["step"], each.get("unsure")) for each in entries] == [(1, True), (2, True)]
    checkpoints = opened(tmp_path, keep_last=2)
    with checkpoints.locked():
        assert load(checkpoints, "last")[0].name == "net_epoch_0_iter_1.pth"
        assert caplog.text == ""
        save(checkpoints, 3)
    assert steps(tmp_path) == [1, 3]
    assert "unsure" not in (tmp_path / "manifest.json").read_text()


def test_entries_of_files_that_never_came_to_be_are_dropped_and_those_of_other_models_stay(tmp_path):
    save(opened(tmp_path), 1, 0.5)
    path = tmp_path / "manifest.json"
    entries = json.loads(path.read_text())["checkpoints"]
    other = {"file": "other_epoch_0_iter_1.pth", "epoch": 0, "step": 1, "score": None, "improved": False}
    lost = {**entries[0], "file": "net_epoch_0_iter_2.pth", "step": 2}
    path.write_text(json.dumps({"checkpoints": [*entries, other, lost]}))
    before = path.read_bytes()
    load(opened(tmp_path), "last")
    assert path.read_bytes() == before
    checkpoints = opened(tmp_path)
    with checkpoints.locked():
        load(checkpoints, "last")
    assert json.loads(path.read_text()) == {"checkpoints": [other, *entries]}


def test_models_whose_names_give_the_same_file_names_do_not_share_checkpoints(tmp_path):
    quiet(root=tmp_path, run_name="run", max_epochs=1).fit(Tiny("a b"), data())
    before = listing(tmp_path / "run/checkpoints")
    for act in (
        lambda: quiet(root=tmp_path, run_name="run", max_epochs=2).fit(Tiny("a-b"), data()),
        lambda: quiet(root=tmp_path, run_name="run", max_epochs=2).test(Tiny("a-b"), data()),
    ):
        with pytest.raises(ValueError, match=r"a-b_epoch_1_iter_3\.pth: belongs to a model with save_name='a b'"):
            act()
    assert listing(tmp_path / "run/checkpoints") == before


def test_a_renamed_file_is_read_only_if_there_is_no_other(tmp_path, caplog):
    train(tmp_path, SCORES, 2, keep_last=1, keep_best=0)
    folder = tmp_path / "run/checkpoints"
    copy = folder / "scored_epoch_9_iter_99.pth"
    copy.write_bytes((folder / name(2)).read_bytes())
    assert train(tmp_path, SCORES, 3, keep_best=0).state.step == 9
    assert f"passing over a checkpoint: {copy}" in caplog.text
    assert train(tmp_path, SCORES, 3, keep_best=0).last_checkpoint.name == name(3)
    (folder / name(3)).unlink()
    (folder / name(2)).unlink(missing_ok=True)
    assert train(tmp_path, SCORES, 3, keep_best=0).state.step == 9
    assert f"at step 6 of 9 ({copy.name})" in caplog.text


# Two runs at a time, and what a killed one left.


WAY = '; wait until it has ended, or set resume="new" or another run_name'
LOCKED = """
import pathlib, sys
from helios_lite.checkpoints.folder import CheckpointFolder
checkpoints = CheckpointFolder(pathlib.Path(sys.argv[1]), "net", mode="min", keep_last=1, keep_best=1, background=False)
try:
    with checkpoints.locked():
        print("opened")
except RuntimeError as error:
    print(error)
"""


def test_one_process_at_a_time_has_the_folder(tmp_path):
    with opened(tmp_path).locked():
        assert run_python(LOCKED, tmp_path).stdout == f"{tmp_path}: process {os.getpid()} is running here{WAY}\n"
    assert run_python(LOCKED, tmp_path).stdout == "opened\n"


def test_opening_clears_away_half_written_files_and_nothing_else(tmp_path):
    save(opened(tmp_path), 1)
    before = listing(tmp_path)
    (tmp_path / ".net_epoch_0_iter_2.pth.123.tmp").write_bytes(b"half")
    with opened(tmp_path).locked():
        assert steps(tmp_path) == [1]
    (tmp_path / ".lock").unlink()
    assert listing(tmp_path) == before


def test_threads_that_race_for_a_new_folder_get_it_or_are_told_that_another_run_is_there(tmp_path):
    for attempt in range(20):
        begin, release, results = threading.Barrier(8), threading.Event(), queue.SimpleQueue()

        def race(folder=tmp_path / str(attempt), begin=begin, release=release, results=results):
            begin.wait()
            try:
                with CheckpointFolder(folder, "net", mode="min", keep_last=1, keep_best=1, background=False).locked():
                    results.put("opened")
                    release.wait()
            except Exception as error:
                results.put(str(error).replace(str(folder), ""))

        (tmp_path / str(attempt)).mkdir()
        (tmp_path / str(attempt) / ".net_epoch_0_iter_1.pth.1.tmp").touch()
        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        found = sorted(results.get(timeout=DEADLINE) for _ in threads)
        release.set()
        for thread in threads:
            thread.join()
        assert found == [": another run of this process is running here"] * 7 + ["opened"]


def test_a_lock_that_is_a_link_is_refused_and_its_target_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RuntimeError, match=r"run/\.lock: is a symbolic link"), opened(tmp_path / "run").locked():
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_damaged_lock_is_still_a_lock(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\xfe\x00")
    assert run_python(LOCKED, tmp_path).stdout == "opened\n"
    with opened(tmp_path).locked():
        # In another process: a lockf lock ends when its process closes any descriptor of the file.
        run_python("import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(b'\\xff1')", tmp_path / ".lock")
        assert run_python(LOCKED, tmp_path).stdout == f"{tmp_path}: process \ufffd1 is running here{WAY}\n"


def test_hidden_files_of_others_are_not_taken_for_half_written_ones(tmp_path):
    (tmp_path / ".notes.tmp").write_text("mine")
    (tmp_path / ".net.pth.1.tmp").mkdir()
    with opened(tmp_path).locked():
        assert {".notes.tmp", ".net.pth.1.tmp"} <= {path.name for path in tmp_path.iterdir()}


# Writing in the background.


def test_a_snapshot_is_not_reached_by_later_changes(tmp_path):
    net, shared = torch.nn.BatchNorm1d(2), torch.ones(2)
    value = {"net": net.state_dict(), "list": [shared, (shared, {1, 2})], "step": 1}
    before = repr(value)
    twin = CpuSnapshot().copy(value)
    with torch.no_grad():
        net.weight.add_(1)
        net.running_mean.add_(1)
        shared.add_(1)
    value["list"].append(3)
    assert repr(twin) == before != repr(value)
    assert twin["list"][0] is twin["list"][1][0]
    assert twin["net"]._metadata == net.state_dict()._metadata
    files.to_serializable(twin)


def test_the_background_keeps_the_same_files(tmp_path):
    checkpoints = opened(tmp_path, background=True)
    for step, score in enumerate([3.0, 1.0, 2.0, None, 2.5], start=1):
        save(checkpoints, step, score)
    checkpoints.join()
    assert steps(tmp_path) == [2, 5]


@pytest.mark.parametrize("undeletable", [immutable, replaced_by_folder])
def test_a_file_that_cannot_be_deleted_is_named_once_and_deleted_by_a_later_save(tmp_path, undeletable, caplog):
    checkpoints = opened(tmp_path, keep_best=0, background=True)
    file = save(checkpoints, 1)
    checkpoints.join()
    with undeletable(file):
        for step in (2, 3):
            save(checkpoints, step)
        checkpoints.join()
        assert file.exists()
        (message,) = caplog.messages
        assert message.startswith(f"{file}: cannot be deleted (")
    assert steps(tmp_path) == [1, 3]
    save(checkpoints, 4)
    checkpoints.join()
    assert steps(tmp_path) == [4]


def test_the_run_after_deletes_what_could_not_be_deleted(tmp_path, caplog):
    checkpoints = opened(tmp_path, keep_best=0)
    file = save(checkpoints, 1)
    half_written = tmp_path / ".net_epoch_0_iter_2.pth.123.tmp"
    half_written.touch()
    with immutable(file), immutable(half_written):
        save(checkpoints, 2)
        with opened(tmp_path, keep_best=0).locked():
            assert steps(tmp_path) == [1, 2]
        assert [message.partition(" ")[0] for message in caplog.messages] == [f"{file}:", f"{half_written}:"]
    with opened(tmp_path, keep_best=0).locked():
        save(opened(tmp_path, keep_best=0), 3)
    assert set(listing(tmp_path)) == {".lock", "manifest.json", "net_epoch_0_iter_3.pth"}


def test_what_is_left_of_a_sharded_one_that_cannot_be_deleted_is_deleted_by_another_call(tmp_path):
    sharded, other_name = tmp_path / "net_epoch_0_iter_1", tmp_path / "main.pth"
    sharded.mkdir()
    other_name.touch()
    (sharded / "main.pth").hardlink_to(other_name)
    with immutable(other_name):
        for _ in range(2):
            with pytest.raises(PermissionError):
                files.remove(sharded)
            assert naming.find(tmp_path, "net") == []
    files.remove(sharded)
    assert list(tmp_path.iterdir()) == [other_name]


def test_the_end_of_a_run_waits_for_the_background(tmp_path):
    checkpoints = opened(tmp_path, background=True)
    with checkpoints.locked():
        path = save(checkpoints, 1, weights=torch.zeros(1_000_000))
    assert files.read_file(path)["step"] == 1


# Writing that fails.


FULL_DISK = """
import pathlib, resource, signal, sys, torch
from helios_lite.checkpoints.folder import CheckpointFolder
from helios_lite.checkpoints import files
from helios_lite.checkpoints.snapshot import CpuSnapshot

def content(step, size):
    return {"format": files.FORMAT_VERSION, "step": step, "model": torch.zeros(size)}

def save(step, size, score):
    checkpoints.save(content(step, size), epoch=0, step=step, append_metadata=str, score=score, improved=False,
        protect=None)
    checkpoints.join()

def listing():
    return {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}

def fails(write, *arguments):
    before = listing()
    try:
        write(*arguments)
    except Exception as error:
        print(isinstance(error, OSError), listing() == before)

folder = pathlib.Path(sys.argv[1])
checkpoints = CheckpointFolder(
    folder, "net", mode="min", keep_last=1, keep_best=1, background=sys.argv[2] == "background"
)
save(1, 10, 0.5)
save(2, 10, 0.9)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
fails(files.write_file, content(3, 100_000), folder / "net_epoch_0_iter_2.pth")
fails(save, 3, 100_000, 0.1)
print(checkpoints.best().name)
save(4, 10, 0.7)
print(*sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.parametrize("mode", ["foreground", "background"])
def test_a_full_disk_is_an_oserror_and_leaves_the_earlier_files_as_they_were(tmp_path, mode):
    """What failed counts neither as the best nor as a newest, and what was to be replaced by it is not forgotten."""
    done = run_python(FULL_DISK, tmp_path, mode)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "True True",
        "True True",
        "net_epoch_0_iter_1.pth",
        "manifest.json net_epoch_0_iter_1.pth net_epoch_0_iter_4.pth",
    ]


def test_an_entry_of_the_manifest_is_encoded_once_however_many_there_are(tmp_path, monkeypatch):
    encoded, encode = [], json.dumps
    monkeypatch.setattr(json, "dumps", lambda entry, **options: encoded.append(entry) or encode(entry, **options))
    checkpoints = opened(tmp_path, keep_last=-1)
    with checkpoints.locked():
        for step in range(1, 9):
            save(checkpoints, step)
            assert [entry["step"] for entry in encoded] == [step, step]  # While its file is written, and afterwards.
            encoded.clear()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["step"] for entry in manifest["checkpoints"]] == [*range(1, 9)]


def test_a_save_makes_a_few_calls_more_for_each_checkpoint_however_many_there_are(tmp_path):
    """Also where it is compared with the best of them."""

    def num_calls(num_checkpoints):
        folder, calls = tmp_path / str(num_checkpoints), 0
        checkpoints = opened(folder, keep_last=-1)
        names = [f"net_epoch_0_iter_{step}.pth" for step in range(num_checkpoints)]
        entries = [
            {"file": name, "epoch": 0, "step": step, "score": 1.0, "improved": True} for step, name in enumerate(names)
        ]
        (folder / "manifest.json").write_text(json.dumps({"checkpoints": entries}))
        for name in names:
            (folder / name).touch()
        save(checkpoints, num_checkpoints, 1.0)  # It has read the manifest.

        def count(*event):
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        checkpoints.would_be_kept(2.0, improved=False)
        save(checkpoints, num_checkpoints + 1, 2.0)
        sys.setprofile(None)
        return calls

    assert num_calls(330) - num_calls(30) < 300 * 60
