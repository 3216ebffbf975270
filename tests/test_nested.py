"""Nested containers are taken apart by name, and put together again."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from helios_lite.nested import items, leaves, rebuilt


class Pair(NamedTuple):
    first: Any
    second: Any


VALUE = {"a": [1, (2, Pair(3, {"b": 4}))], "none": {}, 5: "text", "empty": ([],)}


def test_leaves_have_dotted_names_and_empty_containers_are_leaves() -> None:
    expected = {"a.0": 1, "a.1.0": 2, "a.1.1.first": 3, "a.1.1.second.b": 4, "none": {}, "5": "text", "empty.0": []}
    assert list(leaves(VALUE)) == list(expected.items())
    assert list(leaves(VALUE["a"], "x")) == [(name.replace("a", "x", 1), expected[name]) for name in [*expected][:4]]
    assert list(leaves(7)) == [("", 7)]


def test_only_the_containers_of_some_types_are_entered() -> None:
    assert list(leaves({"a": {"b": [1], "c": {"d": 2}}}, entered=Mapping)) == [("a.b", [1]), ("a.c.d", 2)]


def copied(value: Any) -> Any:
    parts = items(value)
    return value if parts is None else rebuilt(value, [copied(part) for _, part in parts])


def test_containers_are_put_together_as_they_were() -> None:
    assert repr(copied(VALUE)) == repr(VALUE)
    assert copied(VALUE) is not VALUE
    assert repr(copied(OrderedDict(a=[1]))) == "{'a': [1]}"
