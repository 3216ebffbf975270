"""What rows of metrics.jsonl and config.json have to tell runs apart: digests of samples, batches, weights and code."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import timeless
from helpers.models import Indices, Stream, Tiny, data, quiet
from helpers.rows import read_rows
from torch import nn

from helios_lite import DataModule, Split
from helios_lite.changes import sources
from helios_lite.metrics.digests import (
    _BLOCK,
    _ODD,
    _OTHER_ODD,
    Digests,
    SampleDigest,
    _tensors_of,
    as_text,
    digest_of_batch,
    digest_of_weights,
)
from helios_lite.metrics.rows import DIGESTS
from helios_lite.processes.world import World

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def digest(flat: torch.Tensor, start: int = 0) -> int:
    return sum(map(int, Digests().parts(flat, start))) % 2**64


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_tells_what_differs_in_a_bit_in_two_signs_or_in_the_order(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (9,), generator=generator)
    values = values.to(dtype) if dtype == torch.bool else (torch.randn(9, generator=generator) * 9).to(dtype)
    bits = values.view(torch.uint8)
    found = {digest(values)}
    for place, bit in itertools.product(range(len(bits)), [0] if dtype == torch.bool else range(8)):
        changed = bits.clone()
        changed[place] ^= 1 << bit
        found.add(digest(changed.view(dtype)))
    assert len(found) == 1 + len(bits) * (1 if dtype == torch.bool else 8)
    assert dtype == torch.bool or digest((~bits).view(dtype)) not in found  # 0 becomes -1.
    if dtype.is_floating_point:
        zeros = torch.zeros(8, dtype=dtype)
        signs = [torch.tensor([-0.0 if i in pair else 0.0 for i in range(8)], dtype=dtype) for pair in [(0, 1), (2, 7)]]
        assert len({digest(each) for each in (zeros, *signs)}) == 3
    if dtype != torch.bool:
        different = torch.arange(9).to(dtype)
        assert digest(different) != digest(different.flip(0))


class Other(torch.Tensor):
    """A tensor of another class, whose elements cannot be read."""

    def reshape(self, *shape: int) -> Any:
        raise NotImplementedError


def by_definition(values: torch.Tensor, start: int = 0) -> int:
    """Return the digest of integers as `Digests` defines it, in Python's own arithmetic."""
    mask, total = 2**64 - 1, 0
    for i, value in enumerate(values.tolist(), start):
        mixed = (i % _BLOCK + 1) * _ODD & mask
        signed = mixed - 2**64 if mixed >= 2**63 else mixed
        odd = (signed ^ (signed >> 29)) * _OTHER_ODD | 1
        number = (value >> 32) + value if values.dtype == torch.int64 else value
        total += number * odd * (i // _BLOCK * _OTHER_ODD | 1)
    return total & mask


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_a_digest_is_what_its_definition_says_in_blocks_and_in_parts_of_them(dtype: torch.dtype) -> None:
    info, generator = torch.iinfo(dtype), torch.Generator().manual_seed(0)
    values = torch.randint(info.min, info.max, (2 * _BLOCK + 9000,), generator=generator, dtype=dtype)
    for start, length in [(0, 9), (7, 5000), (_BLOCK - 3, 6), (0, 2 * _BLOCK), (_BLOCK, _BLOCK), (40, len(values))]:
        assert digest(values[:length], start) == by_definition(values[:length], start)


def test_a_digest_is_the_same_whatever_mode_and_device_are_the_default() -> None:
    values, digests = torch.randn(9000), Digests()
    with torch.inference_mode(), torch.device("meta"):
        found = [digests.parts(values)]
    found.append(digests.parts(values))
    with torch.inference_mode():
        found.append(digests.parts(values))
    assert [int(total) % 2**64 for (total,) in found] == [digest(values)] * 3


def test_parts_of_a_digest_add_up_wherever_they_are_cut() -> None:
    values = torch.arange(100_000) % 1009  # More than two of the blocks in which it is computed.
    whole = digest(values)
    for cut in (1, _BLOCK - 1, _BLOCK, _BLOCK + 1, 99_999):
        assert (digest(values[:cut]) + digest(values[cut:], cut)) % 2**64 == whole
    swapped = values.clone()
    swapped[[0, _BLOCK]] = values[[_BLOCK, 0]]  # At the same place of their blocks.
    assert digest(swapped) != whole
    nets = [nn.Linear(700, 500), nn.BatchNorm1d(500), nn.Linear(4, 2).double()]
    before = digest_of_weights(Digests(), nets, World(), has_shards=False)
    with torch.no_grad():
        nets[0].weight[499, 699] += 1e-6
    assert before != digest_of_weights(Digests(), nets, World(), has_shards=False)
    nets[0].weight.data = nets[0].weight.data.t().contiguous().t()  # As in memory does not matter.
    nets.append(nn.LazyLinear(3))  # Has no weights yet.
    nets[-1].register_buffer("masked", torch.zeros(2).as_subclass(Other))  # Not known what it has in memory.
    assert len({digest_of_weights(Digests(), each, World(), has_shards=False) for each in (nets, nets[:3])}) == 1
    assert digest_of_weights(Digests(), nets, World(1, 1, 2, 2), has_shards=False) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_digest_of_a_batch_reads_what_its_tensors_have_and_passes_over_the_rest() -> None:
    batch = {"x": torch.rand(70_000, 2), "y": [torch.arange(3), "text", 2.5], "z": torch.eye(2).to_sparse()}
    parts = digest_of_batch(Digests(), batch)
    batch["x"][0, 0] += 1
    changed = digest_of_batch(Digests(), batch)
    assert sum(map(int, parts)) != sum(map(int, changed))
    assert digest_of_batch(Digests(), ["text", None, torch.nested.nested_tensor([torch.ones(2)])]) == []
    negated = torch.rand(3, dtype=torch.complex64).conj().imag  # PyTorch notes the sign, and does not apply it.
    assert digest_of_batch(Digests(), [negated]) == digest_of_batch(Digests(), [negated.clone()])
    # Tensors in a list are found otherwise than in other containers, and are the same.
    x, y = torch.rand(6, 2, requires_grad=True), torch.arange(6)
    found = [sum(map(int, digest_of_batch(Digests(), each))) for each in ([x, y], (x, y), {"x": x, "y": y}, [x, [y]])]
    assert len({*found}) == 1


def test_the_digest_of_a_network_is_that_of_its_parameters_and_buffers_each_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3)))
    net[2][0].weight = net[0].weight
    assert [*map(id, _tensors_of(net))] == [*map(id, (*net.parameters(), *net.buffers()))]
    digests = Digests()
    several = [digest_of_weights(digests, [net], World(), has_shards=False) for _ in range(3)]
    for length in range(1, 200):  # More than are kept.
        assert sum(map(int, digests.parts(torch.ones(length)))) % 2**64 == digest(torch.ones(length))
    assert {*several} == {digest_of_weights(digests, [net], World(), has_shards=False)}


class Noting:
    """A logger that notes the names that it gets."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def log_config(self, config: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.names |= metrics.keys()

    def close(self) -> None:
        pass


def digest_of_indices(indices: list[int]) -> str:
    digest = SampleDigest()
    digest.add(torch.tensor(indices))
    taken = digest.take()
    assert taken is not None
    return as_text(taken)


def test_a_row_has_the_digests_of_its_samples_its_last_batch_and_its_weights(tmp_path: Path) -> None:
    model, logger = Tiny(), Noting()
    options = {"max_epochs": 2, "log_every_steps": 2, "loggers": [logger]}
    result = quiet(root=tmp_path, **options).fit(model, data(train=22))
    rows = [row for row in result.history if "train/lr" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row, seen in zip(rows, [(0, 8), (8, 16), (16, 22), (22, 30), (30, 38), (38, 44)], strict=True):
        assert row["samples_digest"] == digest_of_indices(model.seen[slice(*seen)])
    assert len({row["batch_digest"] for row in rows}) == 6
    weights = digest_of_weights(Digests(), [model.net], World(), has_shards=False)
    validations = [row for row in result.history if any(name.startswith("valid/") for name in row)]
    assert {rows[-1]["weights_digest"], validations[-1]["weights_digest"]} == {weights}
    assert "samples_digest" not in validations[-1]
    assert logger.names & {*DIGESTS} == set()
    without_files = quiet(**options).fit(Tiny(), data(train=22)).history
    plain = [{name: value for name, value in row.items() if name not in DIGESTS} for row in result.history]
    assert timeless(without_files) == timeless(plain)


@pytest.mark.parametrize("has_folder", [True, False])
def test_nobody_makes_digests_of_samples_that_no_row_has(
    has_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the end of a pass that is no epoch; its order may be too long for the memory."""
    added = []
    add = SampleDigest.add
    monkeypatch.setattr(SampleDigest, "add", lambda self, indices: (added.append(len(indices)), add(self, indices)))
    quiet(max_steps=20, steps_per_epoch=4, root=tmp_path if has_folder else None).fit(Tiny(), data(train=22))
    assert sum(added) == (20 * 4 - 6 if has_folder else 0)  # The last batch of a pass has two.


class Drawn:
    """A sampler, whose order nothing else can make."""

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Any:
        return iter([3, 1, 1, *range(11, 2, -1)])


SPLITS = {
    "passes": lambda: Split(Indices(10), batch_size=4, shuffle=True),
    "sampler": lambda: Split(Indices(12), batch_size=4, sampler=Drawn()),
    "batches": lambda: Split(Indices(12), batch_sampler=[[0, 1], [2, 3, 4], [5], [6, 7, 8, 9]]),
    "several": lambda: {
        name: Split(Indices(length), batch_size=2, shuffle=True) for name, length in (("a", 6), ("b", 14))
    },
    "stream": lambda: Split(Stream(12), batch_size=4),
}


class Named(Tiny):
    def train_step(self, batch: Any, state: Any) -> None:
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch
        index = batch[0] if isinstance(batch, list) else batch
        super().train_step((index, torch.stack([index % 7, index % 3, index], 1) / 7), state)


@pytest.mark.parametrize("kind", SPLITS)
def test_a_run_that_was_cut_between_two_rows_has_the_same_rows(kind: str, tmp_path: Path) -> None:
    found = []
    for name, cuts in (("whole", []), ("cut", [2, 7])):
        for steps in (*cuts, 13):
            options = {"steps_per_epoch": 5} if kind == "passes" else {}
            trainer = quiet(root=tmp_path / name, max_steps=steps, log_every_steps=4, **options)
            trainer.fit(Named(), DataModule(train=SPLITS[kind]()))
        found.append(timeless(read_rows(tmp_path / name / "tiny")))
    assert found[0] == found[1]
    rows = [row for row in found[0] if "train/lr" in row]
    assert all(("samples_digest" in row) == (kind != "stream") for row in rows)
    starts = [json.loads((tmp_path / name / "tiny/config.json").read_text())["starts"] for name in ("whole", "cut")]
    assert [[start["step"] for start in each] for each in starts] == [[0], [0, 2, 7]]
    assert starts[1][0]["weights_digest"] == starts[0][0]["weights_digest"] != starts[1][1]["weights_digest"]
    assert starts[1][1]["checkpoint"].endswith("_iter_2.pth")


def test_config_json_names_the_code_of_a_program_and_of_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "digested").mkdir()
    (tmp_path / "digested/__init__.py").write_text("")
    (tmp_path / "digested/parts.py").write_text("def loss(x):\n    return x.mean()\n")
    (tmp_path / "digested/net.py").write_text(
        "from torch.distributed import reduce_op  # Warns when it is asked for anything.\n"
        "from digested.parts import loss\nfrom helios_lite import Model\nclass Net(Model):\n    pass\n"
    )
    import digested.net as net  # type: ignore[import-not-found]

    def found() -> Any:
        return sources.describe_code([net.Net, dict], [nn.Linear])

    before = found()
    assert before["sources"].keys() == {"digested/net.py", "digested/parts.py"}
    (tmp_path / "digested/parts.py").write_text("def loss(x):\n    return x.sum()\n")
    after = found()
    assert [name for name in before["sources"] if before["sources"][name] != after["sources"][name]] == [
        "digested/parts.py"
    ]
    commit, git = "0123456789" * 4, tmp_path / "main/.git"
    (git / "refs/heads").mkdir(parents=True)
    (tmp_path / ".git").write_text(f"gitdir: {git}\n")  # As in a worktree.
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert found()["commit"] is None
    (git / "packed-refs").write_text(f"# pack-refs\n{commit[::-1]} refs/heads/other\n{commit} refs/heads/main\n")
    assert found()["commit"] == commit
    (git / "refs/heads/main").write_text(f"{commit[::-1]}\n")
    assert found()["commit"] == commit[::-1]
    (git / "HEAD").write_text(f"{commit}\n")
    assert found()["commit"] == commit
