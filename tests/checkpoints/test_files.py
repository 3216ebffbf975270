"""Checkpoint files: their names, what they may hold, their safe writing and reading, and snapshots."""

import collections
import enum
import math
import os
import pathlib
import pickle
import random

import numpy as np
import pytest
import torch
from helpers import scripts
from helpers.compare import listing
from helpers.models import content

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.files import FORMAT_VERSION, CheckpointError
from helios_lite.checkpoints.snapshot import CpuSnapshot

CPU = torch.device("cpu")


def name_of(stem):
    return stem


# File names.


def test_metadata_with_a_slash_gives_one_flat_name():
    name = naming.file_name("net", 3, 120, lambda stem: stem + "_val/acc=0.9")
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
    name = naming.file_name(save_name, 2, 7, lambda stem: stem + metadata)
    newer = naming.file_name(save_name, 2, 8, name_of)
    assert os.path.basename(name) == name
    assert len(name.encode()) <= 255
    for each in (name, newer):
        (tmp_path / each).touch()
    assert naming.find(tmp_path, save_name) == [tmp_path / newer, tmp_path / name]


@pytest.mark.parametrize("returned", ["", "best", "best_net_epoch_1_iter_2", "net_epoch_1_iter_", None])
def test_metadata_that_is_not_appended_is_an_error(returned):
    with pytest.raises(ValueError, match=r"net_epoch_1_iter_2.*append"):
        naming.file_name("net", 1, 2, lambda stem: returned)


def test_the_newest_is_that_of_the_highest_step_then_epoch_as_numbers(tmp_path):
    newest_first = [(1, 100), (10, 20), (9, 20), (2, 10), (1, 10), (10, 9)]
    for epoch, step in random.Random(0).sample(newest_first, len(newest_first)):
        (tmp_path / naming.file_name("net", epoch, step, name_of)).touch()
    names = [path.name for path in naming.find(tmp_path, "net")]
    assert names == [f"net_epoch_{epoch}_iter_{step}.pth" for epoch, step in newest_first]


def test_models_whose_names_begin_alike_have_their_own_files(tmp_path):
    for save_name in ("net", "net_big", "net_epoch_1_iter_2", "my_net"):
        (tmp_path / naming.file_name(save_name, 3, 4, name_of)).touch()
    for save_name in ("net", "net_big", "net_epoch_1_iter_2", "my_net"):
        assert [path.name for path in naming.find(tmp_path, save_name)] == [f"{save_name}_epoch_3_iter_4.pth"]


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
    assert naming.find(tmp_path, "net") == []


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
    files.write_file({"format": FORMAT_VERSION, "value": value}, tmp_path / "file.pth")
    back = files.read_file(tmp_path / "file.pth")["value"]
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
        files.write_file({"format": FORMAT_VERSION, "value": value}, tmp_path / "file.pth")
    except TypeError:
        assert listing(tmp_path) == {}
    else:
        assert files.read_file(tmp_path / "file.pth")["value"] == value


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
        files.to_serializable(value)
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
    files.write_file({"format": FORMAT_VERSION, "states": states}, tmp_path / "file.pth")
    assert repr(files.read_file(tmp_path / "file.pth")["states"]) == repr(states)


def test_a_program_without_helios_lite_reads_the_file(tmp_path):
    files.write_file({**content(7), "plain": PLAIN}, tmp_path / "file.pth")
    program = """
import sys, torch
content = torch.load(sys.argv[1], weights_only=True)
assert not any(name.startswith("helios") for name in sys.modules)
print(content["step"], content["model"]["weight"].tolist(), len(content["plain"]))
"""
    done = scripts.run("-c", program, tmp_path / "file.pth", new_interpreter=True)  # The others have our package.
    assert (done.stdout, done.stderr) == (f"7 [7.0, 7.0, 7.0] {len(PLAIN)}\n", "")


# Reading what should not be read.


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    path = tmp_path / "file.pth"
    files.write_file(content(), path)
    whole = path.read_bytes()
    for length in {*range(30), *range(0, len(whole), len(whole) // 50), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"file\.pth: it is damaged"):
            files.read_file(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    """torch.load alone would give other weights."""
    path = tmp_path / "file.pth"
    files.write_file(content(7), path)
    weights = content(7)["model"]["weight"].numpy().tobytes()
    flipped = bytes([weights[0] ^ 1]) + weights[1:]
    assert path.read_bytes().count(weights) == 1
    path.write_bytes(path.read_bytes().replace(weights, flipped))
    assert torch.load(path, weights_only=True)["step"] == 7
    with pytest.raises(CheckpointError, match=r"file\.pth: it is damaged"):
        files.read_file(path)


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 1000, random.Random(0).randbytes(1000), b"PK\x03\x04" + b"x" * 100, b"{}", pickle.dumps(content)],
)
def test_garbage_is_refused(tmp_path, garbage):
    (tmp_path / "file.pth").write_bytes(garbage)
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        files.read_file(tmp_path / "file.pth")


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
        files.read_file(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)["extra"].close()
    assert victim.exists()


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, {"format": "1"}, [1], torch.ones(1)], ids=str)
def test_another_programs_file_is_refused(tmp_path, foreign):
    torch.save(foreign, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth: is not a helios_lite checkpoint"):
        files.read_file(tmp_path / "file.pth")


def test_a_newer_format_is_refused_with_both_formats_and_the_writer(tmp_path):
    files.write_file({"format": FORMAT_VERSION + 1, "version": "9.8"}, tmp_path / "file.pth")
    message = (
        rf"file\.pth: a newer helios_lite \(9\.8\) .* format {FORMAT_VERSION + 1}, .* {FORMAT_VERSION}; install a newer"
    )
    for read in (files.read_file, files.read_header):
        with pytest.raises(files.OtherFormatError, match=message):
            read(tmp_path / "file.pth")


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read_file(tmp_path / "file.pth")


# Writing that fails.


def test_a_save_of_what_is_not_plain_leaves_everything_as_it_was(tmp_path):
    files.write_file(content(1), tmp_path / "file.pth")
    before = listing(tmp_path)
    with pytest.raises(TypeError, match=r"checkpoint\['extra'\]"):
        files.write_file({**content(2), "extra": Custom()}, tmp_path / "file.pth")
    assert listing(tmp_path) == before


# Snapshots.


def test_the_memory_of_a_snapshot_serves_for_the_next_one_and_holds_its_values():
    snapshots = CpuSnapshot()
    value = {"a": torch.arange(3), "b": [torch.ones(2, 2).t(), torch.zeros(0)]}
    first = snapshots.copy(value)
    place = first["a"].data_ptr()
    value["a"] += 1
    value["b"][0].mul_(5)
    second = snapshots.copy(value)
    assert second["a"].data_ptr() == place
    assert second["a"].tolist() == [1, 2, 3]
    assert second["b"][0].tolist() == [[5, 5], [5, 5]]
    third = snapshots.copy({"a": torch.ones(7), "b": torch.arange(3)})
    assert third["a"].tolist() == [1] * 7
    assert third["b"].tolist() == [0, 1, 2]


def test_a_snapshot_that_is_written_at_once_copies_no_tensor_of_the_cpu():
    value = {"a": torch.arange(3), "b": [torch.ones(2)]}
    twin = CpuSnapshot(of_all=False).copy(value)
    assert twin["a"] is value["a"]
    assert twin["b"][0] is value["b"][0]
