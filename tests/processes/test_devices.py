"""Batches of any kind: their size, and their way to the device."""

import dataclasses
from collections import Counter, OrderedDict, defaultdict, namedtuple

import pytest
import torch
from helpers.models import Tiny, data, quiet

from helios_lite.nested import count_samples
from helios_lite.processes.devices import DeviceMover, matmul_precision

META = torch.device("meta")


Pair = namedtuple("Pair", "x y")
Edge = namedtuple("Edge", "source to")


@dataclasses.dataclass
class Record:
    x: object
    name: str = "name"


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    x: object


class Movable:
    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Movable(self.x.to(device))


class Output(dict):
    """A dict like those that models of transformers return."""

    def update(self, *arguments, **options):
        raise NotImplementedError


FIVE = torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (FIVE, 5),
        (torch.tensor(1.0), 1),
        ((FIVE, torch.zeros(5, 3)), 5),
        ({"a": {"b": [FIVE]}}, 5),
        (Pair(FIVE, 1), 5),
        (Record(FIVE), 5),
        (FrozenRecord({"x": FIVE}), 5),
        ({"record": Record(FIVE)}, 5),
        ({"task": "abc", "x": FIVE}, 5),
        ({"id": b"abc", "x": FIVE}, 5),
        ({"extra": [], "x": FIVE}, 5),
        ({"names": ["a", "b"], "x": FIVE}, 5),
        (["a", "b", "c"], 3),
        ({"names": ["a", "b", "c"]}, 3),
        ("abc", 1),
        (7, 1),
    ],
    ids=lambda value: str(value)[:30].partition("\n")[0],
)
def test_the_number_of_samples_is_that_of_all_tensors_or_else_the_first_length(batch, size):
    assert count_samples(batch) == size


@pytest.mark.parametrize(
    ("wrap", "inner"),
    [
        (lambda x: x, lambda batch: batch),
        (lambda x: {"a": [{"b": x}]}, lambda batch: batch["a"][0]["b"]),
        (lambda x: OrderedDict(a=x), lambda batch: batch["a"]),
        (lambda x: defaultdict(list, a=x), lambda batch: batch["a"]),
        (lambda x: Output(a=x), lambda batch: batch["a"]),
        (lambda x: [1, x], lambda batch: batch[1]),
        (lambda x: (x, "a"), lambda batch: batch[0]),
        (lambda x: Pair(x, None), lambda batch: batch.x),
        (lambda x: Edge(None, x), lambda batch: batch.to),
        (Record, lambda batch: batch.x),
        (FrozenRecord, lambda batch: batch.x),
        (Movable, lambda batch: batch.x),
        (lambda x: [Record({"a": (x,)})], lambda batch: batch[0].x["a"][0]),
    ],
    ids=[
        "tensor",
        "nested",
        "OrderedDict",
        "defaultdict",
        "dict-without-update",
        "list",
        "tuple",
        "namedtuple",
        "field-called-to",
        "dataclass",
        "frozen",
        "movable",
        "mixed",
    ],
)
def test_tensors_in_any_container_are_moved_and_the_container_keeps_its_type(wrap, inner):
    batch = wrap(FIVE)
    moved = DeviceMover(META)(batch)
    assert type(moved) is type(batch)
    assert inner(moved).device == META
    assert inner(batch) is FIVE


def test_moving_leaves_everything_else_as_it_is():
    other = object()
    counts = Counter("aab")
    moved = DeviceMover(META)(
        {"x": FIVE, "other": other, "name": "a", "n": 1, "record": Record(None, name="b"), "counts": counts}
    )
    assert moved["other"] is other
    assert moved["counts"] == counts
    assert (moved["name"], moved["n"], moved["record"]) == ("a", 1, Record(None, name="b"))


def test_a_program_may_name_the_precision_of_products_by_the_newer_name_of_pytorch():
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert matmul_precision() == "tf32"
        quiet(max_steps=1).fit(Tiny(), data())
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert matmul_precision() == "highest"
