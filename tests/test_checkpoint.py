"""Checkpoint files: their names, their safe writing and reading, and which of them stay."""

import collections
import enum
import json
import logging
import math
import os
import pathlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from helios_lite import checkpoint
from helios_lite.checkpoint import FORMAT, CheckpointError, Checkpoints

CPU = torch.device("cpu")


def name_of(stem):
    return stem


def content(step=0):
    return {"format": FORMAT, "version": "1.2.3", "step": step, "model": {"weight": torch.full((3,), float(step))}}


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run_python(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


# File names.


def test_metadata_with_a_slash_gives_one_flat_name():
    name = checkpoint.file_name("net", 3, 120, lambda stem: stem + "_val/acc=0.9")
    assert name == "net_epoch_3_iter_120_val-acc=0.9.pth"


@pytest.mark.parametrize(
    "save_name", ["net", "a_epoch_b_iter_c", "net_epoch_1_iter_2", "a/b: ü*", "n" * 200, "n" * 236]
)
@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "_val/acc=0.9",
        "_epoch_3_iter_4",
        "_epoch_3_iter_4_epoch_5_iter_6",
        "5",
        "0.93",
        "_é\n/../..",
        ".pth",
        "x" * 999,
    ],
    ids=lambda metadata: repr(metadata[:20]),
)
def test_whatever_its_name_and_metadata_a_file_is_found_by_its_own_counters(tmp_path, save_name, metadata):
    name = checkpoint.file_name(save_name, 2, 7, lambda stem: stem + metadata)
    newer = checkpoint.file_name(save_name, 2, 8, name_of)
    assert os.path.basename(name) == name
    assert len(name.encode()) <= 255
    for each in (name, newer):
        (tmp_path / each).touch()
    assert checkpoint.find(tmp_path, save_name) == [tmp_path / newer, tmp_path / name]


@pytest.mark.parametrize("returned", ["", "best", "best_net_epoch_1_iter_2", "net_epoch_1_iter_", None])
def test_metadata_that_is_not_appended_is_an_error(returned):
    with pytest.raises(ValueError, match=r"net_epoch_1_iter_2.*append"):
        checkpoint.file_name("net", 1, 2, lambda stem: returned)


def test_the_newest_is_that_of_the_highest_step_then_epoch_as_numbers(tmp_path):
    newest_first = [(1, 100), (10, 20), (9, 20), (2, 10), (1, 10), (10, 9)]
    for epoch, step in random.Random(0).sample(newest_first, len(newest_first)):
        (tmp_path / checkpoint.file_name("net", epoch, step, name_of)).touch()
    names = [path.name for path in checkpoint.find(tmp_path, "net")]
    assert names == [f"net_epoch_{epoch}_iter_{step}.pth" for epoch, step in newest_first]


def test_models_whose_names_begin_alike_have_their_own_files(tmp_path):
    for save_name in ("net", "net_big", "net_epoch_1_iter_2", "my_net"):
        (tmp_path / checkpoint.file_name(save_name, 3, 4, name_of)).touch()
    for save_name in ("net", "net_big", "net_epoch_1_iter_2", "my_net"):
        assert [path.name for path in checkpoint.find(tmp_path, save_name)] == [f"{save_name}_epoch_3_iter_4.pth"]


@pytest.mark.parametrize(
    "name",
    [
        "net.pth",
        "best.pth",
        "net_epoch_x_iter_1.pth",
        "net_epoch_1.pth",
        "net_epoch_1_iter_2.pt",
        "net_epoch_1_iter_2.pth.tmp",
        ".net_epoch_1_iter_2.pth",
        "Xnet_epoch_1_iter_2.pth",
    ],
)
def test_foreign_files_are_not_found(tmp_path, name):
    (tmp_path / name).touch()
    assert checkpoint.find(tmp_path, "net") == []


# What a file holds.

PLAIN = [
    None,
    True,
    0,
    -(1 << 70),
    1.5,
    math.inf,
    math.nan,
    1 + 2j,
    "",
    "naïve",
    [1, [2]],
    (),
    (1, 2, 3, 4),
    set(),
    {1, 2},
    {"a": 1, 2: "b", (3,): None},
    collections.OrderedDict(b=1, a=2),
    collections.Counter("aab"),
    torch.arange(3),
    torch.ones(2, dtype=torch.bfloat16),
    torch.nn.Parameter(torch.ones(2)),
    torch.Size([2, 3]),
    torch.float8_e4m3fn,
    torch.device("cuda", 1),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__}-{str(value)[:15]}")
def test_plain_values_and_tensors_come_back_as_they_were(tmp_path, value):
    checkpoint.save({"format": FORMAT, "value": value}, tmp_path / "file.pth")
    back = checkpoint.load(tmp_path / "file.pth")["value"]
    assert type(back) is type(value)
    assert repr(back) == repr(value)


class Custom:
    pass


def with_attribute(value):
    value.extra = Custom()
    return value


@pytest.mark.parametrize(
    "value",
    [
        b"",
        with_attribute(torch.ones(1)),
        with_attribute(torch.nn.Parameter(torch.ones(1))),
        with_attribute(collections.OrderedDict()),
    ],
    ids=["bytes", "tensor with attribute", "parameter with attribute", "OrderedDict with attribute"],
)
def test_what_is_not_refused_when_saving_can_be_loaded(tmp_path, value):
    """Each is of a plain type, yet `torch.save` writes it as something that `weights_only=True` does not read."""
    try:
        checkpoint.save({"format": FORMAT, "value": value}, tmp_path / "file.pth")
    except TypeError:
        assert listing(tmp_path) == {}
    else:
        assert checkpoint.load(tmp_path / "file.pth")["value"] == value


class Level(enum.IntEnum):
    LOW = 0


Point = collections.namedtuple("Point", "x y")


class MyTensor(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "where", "kind"),
    [
        ({"a": Custom()}, "checkpoint['a']", "Custom"),
        ({"a": np.ones(1)}, "checkpoint['a']", "numpy.ndarray"),
        ({"a": lambda: 0}, "checkpoint['a']", "function"),
        ({"a": Level.LOW}, "checkpoint['a']", "Level"),
        ({"a": Point(1, 2)}, "checkpoint['a']", "Point"),
        ({"a": MyTensor([1.0])}, "checkpoint['a']", "MyTensor"),
        ({"a": frozenset()}, "checkpoint['a']", "builtins.frozenset"),
        ({"a": collections.defaultdict(int)}, "checkpoint['a']", "collections.defaultdict"),
        ({"a": [0, {"b": (1, np.ones(2))}]}, "checkpoint['a'][1]['b'][1]", "numpy.ndarray"),
        ({"a": {1: [pathlib.PurePosixPath("x")]}}, "checkpoint['a'][1][0]", "PurePosixPath"),
        ({"a": {Point(1, 2)}}, "checkpoint['a'][0]", "Point"),
    ],
)
def test_what_is_not_plain_is_refused_and_the_message_names_where_it_is(value, where, kind):
    with pytest.raises(TypeError) as caught:
        checkpoint.plain(value)
    assert str(caught.value).startswith(f"{where} is a ")
    assert f"{kind}:" in str(caught.value)


@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    ],
    ids=["MultiStepLR", "OneCycleLR", "ReduceLROnPlateau"],
)
def test_states_of_modules_optimizers_and_schedulers_are_plain(tmp_path, make_scheduler):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = make_scheduler(optimizer)
    net(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    states = [part.state_dict() for part in (net, optimizer, scheduler)]
    checkpoint.save({"format": FORMAT, "states": states}, tmp_path / "file.pth")
    assert repr(checkpoint.load(tmp_path / "file.pth")["states"]) == repr(states)


def test_a_program_without_helios_lite_reads_the_file(tmp_path):
    checkpoint.save({**content(7), "plain": PLAIN}, tmp_path / "file.pth")
    program = """
import sys, torch
content = torch.load(sys.argv[1], weights_only=True)
assert not any(name.startswith("helios") for name in sys.modules)
print(content["step"], content["model"]["weight"].tolist(), len(content["plain"]))
"""
    done = run_python(program, tmp_path / "file.pth")
    assert (done.stdout, done.stderr) == (f"7 [7.0, 7.0, 7.0] {len(PLAIN)}\n", "")


# Reading what should not be read.


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    path = tmp_path / "file.pth"
    checkpoint.save(content(), path)
    whole = path.read_bytes()
    for length in {*range(30), *range(0, len(whole), len(whole) // 50), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"file\.pth: it is damaged"):
            checkpoint.load(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    """torch.load alone would give other weights."""
    path = tmp_path / "file.pth"
    checkpoint.save(content(7), path)
    weights = content(7)["model"]["weight"].numpy().tobytes()
    flipped = bytes([weights[0] ^ 1]) + weights[1:]
    assert path.read_bytes().count(weights) == 1
    path.write_bytes(path.read_bytes().replace(weights, flipped))
    assert torch.load(path, weights_only=True)["step"] == 7
    with pytest.raises(CheckpointError, match=r"file\.pth: it is damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 1000, random.Random(0).randbytes(1000), b"PK\x03\x04" + b"x" * 100, b"{}", pickle.dumps(content)],
)
def test_garbage_is_refused(tmp_path, garbage):
    (tmp_path / "file.pth").write_bytes(garbage)
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        checkpoint.load(tmp_path / "file.pth")


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("default::ResourceWarning")  # The proof that the attack works leaves its file open.
def test_code_in_a_file_is_never_run(tmp_path, zipped):
    victim, path = tmp_path / "victim", tmp_path / "file.pth"
    torch.save({**content(), "extra": Malicious(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        checkpoint.load(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)["extra"].close()
    assert victim.exists()


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, {"format": "1"}, [1], torch.ones(1)], ids=str)
def test_another_programs_file_is_refused(tmp_path, foreign):
    torch.save(foreign, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth: it is no helios_lite checkpoint"):
        checkpoint.load(tmp_path / "file.pth")


def test_a_newer_format_is_refused_with_both_formats_and_the_writer(tmp_path):
    checkpoint.save({"format": FORMAT + 1, "version": "9.8"}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=rf"file\.pth: helios_lite 9\.8 .* {FORMAT + 1}; .* up to {FORMAT}$"):
        checkpoint.load(tmp_path / "file.pth")


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "file.pth")


# Writing that fails.


def test_a_save_of_what_is_not_plain_leaves_everything_as_it_was(tmp_path):
    checkpoint.save(content(1), tmp_path / "file.pth")
    before = listing(tmp_path)
    with pytest.raises(TypeError, match=r"checkpoint\['extra'\]"):
        checkpoint.save({**content(2), "extra": Custom()}, tmp_path / "file.pth")
    assert listing(tmp_path) == before


FULL_DISK = """
import pathlib, resource, signal, sys, torch
from helios_lite import checkpoint

def content(step, size):
    return {"format": checkpoint.FORMAT, "step": step, "model": torch.zeros(size)}

def save(step, size, score):
    checkpoints.save(content(step, size), epoch=0, step=step, append_metadata=str, score=score, improved=False,
        spare=None)
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
checkpoints = checkpoint.Checkpoints(
    folder, "net", mode="min", keep_last=1, keep_best=1, background=sys.argv[2] == "background"
)
save(1, 10, 0.5)
save(2, 10, 0.9)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
fails(checkpoint.save, content(3, 100_000), folder / "net_epoch_0_iter_2.pth")
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


# Which files stay.


def opened(folder, save_name="net", mode="min", keep_last=1, keep_best=1, background=False):
    folder.mkdir(parents=True, exist_ok=True)
    return Checkpoints(folder, save_name, mode=mode, keep_last=keep_last, keep_best=keep_best, background=background)


def save(checkpoints, step, score=None, spare=None, improved=False, **more):
    options = {"append_metadata": name_of, "score": score, "improved": improved, "spare": spare}
    return checkpoints.save(content(step) | more, epoch=step // 10, step=step, **options)


def steps(folder, save_name="net"):
    return sorted(checkpoint.load(path)["step"] for path in checkpoint.find(folder, save_name))


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
        save(checkpoints, step, spare=spare)
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
        save(checkpoints, 3, 0.1, extra=Custom())
    assert checkpoints.best().name == "net_epoch_0_iter_2.pth"
    assert checkpoints.load("best", CPU)[1]["step"] == 2
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
        assert each.load("best", CPU)[1]["step"] == best


def test_without_judged_files_the_best_is_the_newest(tmp_path):
    checkpoints = opened(tmp_path)
    for step in (1, 2):
        save(checkpoints, step)
    assert checkpoints.best() is None
    assert checkpoints.load("best", CPU)[1]["step"] == 2


@pytest.mark.parametrize("choice", ["best", "last"])
def test_an_empty_folder_has_nothing_to_load(tmp_path, choice):
    assert opened(tmp_path / "new" / "folder").load(choice, CPU) is None


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
        path, found = checkpoints.load("best", CPU)
    assert (path, found["step"]) == (last, 2)
    assert best.name in caplog.text
    assert last.name not in caplog.text


def test_damaged_files_are_passed_over_for_the_next_older_one_with_warnings_that_name_them(tmp_path, caplog):
    checkpoints = opened(tmp_path, keep_last=-1)
    paths = [save(checkpoints, step) for step in (8, 9, 10)]
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    paths[1].write_bytes(b"")
    with caplog.at_level(logging.WARNING, "helios_lite"):
        path, found = checkpoints.load("last", CPU)
    assert (path, found["step"]) == (paths[0], 8)
    for record, damaged in zip(caplog.records, paths[:0:-1], strict=True):
        assert record.levelno == logging.WARNING
        assert str(damaged) in record.getMessage()


def test_when_every_file_is_damaged_there_is_nothing_to_load(tmp_path):
    checkpoints = opened(tmp_path)
    save(checkpoints, 1).write_bytes(b"")
    assert checkpoints.load("last", CPU) is None


# Two runs at a time, and what a killed one left.


def test_one_process_at_a_time_has_the_folder(tmp_path):
    program = """
import pathlib, sys
from helios_lite.checkpoint import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), "net", mode="min", keep_last=1, keep_best=1, background=False)
try:
    with checkpoints.opened():
        print("opened")
except RuntimeError as error:
    print(error)
"""
    with opened(tmp_path).opened():
        assert run_python(program, tmp_path).stdout == f"{tmp_path}: process {os.getpid()} is running here\n"
    assert run_python(program, tmp_path).stdout == "opened\n"


def test_opening_clears_away_half_written_files_and_nothing_else(tmp_path):
    save(opened(tmp_path), 1)
    before = listing(tmp_path)
    (tmp_path / ".net_epoch_0_iter_2.pth.123.tmp").write_bytes(b"half")
    with opened(tmp_path).opened():
        assert steps(tmp_path) == [1]
    (tmp_path / ".lock").unlink()
    assert listing(tmp_path) == before


# Writing in the background.


def test_a_snapshot_is_not_reached_by_later_changes(tmp_path):
    net, shared = torch.nn.BatchNorm1d(2), torch.ones(2)
    value = {"net": net.state_dict(), "list": [shared, (shared, {1, 2})], "step": 1}
    before = repr(value)
    twin = checkpoint.Snapshots().take(value)
    with torch.no_grad():
        net.weight.add_(1)
        net.running_mean.add_(1)
        shared.add_(1)
    value["list"].append(3)
    assert repr(twin) == before != repr(value)
    assert twin["list"][0] is twin["list"][1][0]
    assert twin["net"]._metadata == net.state_dict()._metadata
    checkpoint.plain(twin)


def test_the_background_keeps_the_same_files(tmp_path):
    checkpoints = opened(tmp_path, background=True)
    for step, score in enumerate([3.0, 1.0, 2.0, None, 2.5], start=1):
        save(checkpoints, step, score)
    checkpoints.join()
    assert steps(tmp_path) == [2, 5]


def test_the_end_of_a_run_waits_for_the_background(tmp_path):
    checkpoints = opened(tmp_path, background=True)
    with checkpoints.opened():
        path = save(checkpoints, 1, weights=torch.zeros(1_000_000))
    assert checkpoint.load(path)["step"] == 1


def test_the_memory_of_a_snapshot_serves_for_the_next_one_and_holds_its_values():
    snapshots = checkpoint.Snapshots()
    value = {"a": torch.arange(3), "b": [torch.ones(2, 2).t(), torch.zeros(0)]}
    first = snapshots.take(value)
    place = first["a"].data_ptr()
    value["a"] += 1
    value["b"][0].mul_(5)
    second = snapshots.take(value)
    assert second["a"].data_ptr() == place
    assert second["a"].tolist() == [1, 2, 3]
    assert second["b"][0].tolist() == [[5, 5], [5, 5]]
    third = snapshots.take({"a": torch.ones(7), "b": torch.arange(3)})
    assert third["a"].tolist() == [1] * 7
    assert third["b"].tolist() == [0, 1, 2]
