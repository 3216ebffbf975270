"""docs/seeds.md: every public name of the modules that this package began with has one row, and what it names exists.

data/seed_names.txt has the names, in the order of the modules' documentation.
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import helios_lite

PAGE = (Path(__file__).parent.parent / "docs" / "seeds.md").read_text(encoding="utf-8")
NAMES = (Path(__file__).parent / "data" / "seed_names.txt").read_text(encoding="utf-8").split()


def rows() -> list[tuple[str, str]]:
    """Return the full name and the text of every row."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        module, _, table = section.partition("\n")
        found += [(f"{module}.{name}", text) for name, text in re.findall(r"^\| `(\S+)` \| (.+) \|$", table, re.M)]
    return found


ROWS = dict(rows())


def find(path: str) -> Any:
    """Return the module of a path, or the attribute that a path names; an AttributeError says that there is none."""
    owner, _, name = path.rpartition(".")
    if owner == "":
        return getattr(helios_lite, name) if name in helios_lite.__all__ else importlib.import_module(name)
    parent = find(owner)
    if inspect.ismodule(parent):
        return getattr(parent, name) if hasattr(parent, name) else importlib.import_module(path)
    if any(name in vars(kind) for kind in parent.__mro__):
        found = inspect.getattr_static(parent, name)  # A descriptor itself, not what it returns for a class.
        return found.__func__ if isinstance(found, classmethod) else found
    annotated = any(name in vars(kind).get("__annotations__", {}) for kind in parent.__mro__)
    if annotated or re.search(rf"\bself\.{name}\b.* = ", inspect.getsource(parent)):
        return None  # An attribute of its objects only.
    raise AttributeError(path)


def exists(name: str) -> bool:
    """Return whether "Class.attribute", "package.module.name" or one of them with "(argument)" exists."""
    path, _, argument = name.rstrip(")").partition("(")
    try:
        found = find(path)
    except (AttributeError, ModuleNotFoundError):
        return False
    return argument == "" or argument in inspect.signature(found).parameters


def test_every_name_of_the_seeds_has_exactly_one_row_in_their_order() -> None:
    assert [name for name, _ in rows()] == NAMES
    assert len(set(NAMES)) == len(NAMES) > 200


def test_a_row_is_a_table_row() -> None:
    assert len(rows()) == sum(line.startswith("| `") for line in PAGE.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_a_row_names_what_exists_here_or_gives_a_reason(name: str) -> None:
    here = re.findall(r"`([^`]+)`", ROWS[name])
    assert [each for each in here if not exists(each)] == []
    assert len(here) > 0 or re.match(r"left out: \w+", ROWS[name])


def test_a_name_that_does_not_exist_is_noticed() -> None:
    missing = [
        "Model.nothing",
        "Trainer.seeds",
        "Model.log(nothing)",
        "helios_lite.nothing",
        "Nothing",
        "FitResult.path",
    ]
    assert [name for name in missing if exists(name)] == []
    known = ["Model.hparams", "Model._val_scores", "Trainer.seed", "Split.dataset", "FitResult.state", "torch.autocast"]
    assert [name for name in known if not exists(name)] == []
