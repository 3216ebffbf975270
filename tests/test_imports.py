"""Imports inside the package run one way, by folder; and what the package may import from outside.

Imports for type checking count too. The only exception is the type of `Model.trainer`.
"""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

import helios_lite

FOLDER = Path(helios_lite.__file__).parent
FILES = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in FOLDER.rglob("*.py")}

# Floors of the house, from the bottom to the top. A file imports from its own floor and from those below. A folder is
# one floor; a file of the package's own folder is named.
FLOORS = [
    {"version"},
    {"runtime"},
    {"state", "hooks", "loggers", "schedules"},
    {"model", "data", "samplers"},
    {"callbacks"},
    {"options", "option_rules", "object_tables"},
    {"engine"},
    {"trainer"},
    {"__init__"},
    {"config"},
    {"tools"},
    {"__main__"},
]
EXCEPTION = ("model", "trainer")

# Packages that a file imports when it is used, with a message that says how to install them.
OPTIONAL = {"tools/plot": {"matplotlib"}, "loggers": {"torch", "mlflow", "wandb"}}
STANDARD_LIBRARY_ONLY = {"state", "version", "hooks", "loggers", "option_rules"}
STANDARD_LIBRARY_ONLY |= {"training/due", "training/clock", "processes/signals"}


def imports(source):
    """Return (files of this package, packages from outside) that a source imports, at any depth, types included."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in ("helios_lite" if node.level else "", node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *path = name.split(".")
            if package != "helios_lite":
                outside.add(package)
                continue
            candidates = ["/".join(path[:i]) for i in range(len(path), 0, -1)]
            files = [file for file in candidates for file in (file, f"{file}/__init__") if file in FILES]
            inside.add(files[0] if files else "__init__")
    return inside, outside


IMPORTS = {name: imports(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def floor(name):
    return next((i for i, floor in enumerate(FLOORS) if name in floor or name.split("/")[0] in floor), None)


def test_imports_are_seen_in_every_form():
    source = """
import torch.nn as nn, os.path
from helios_lite.runtime import rng, distributed as d
from helios_lite.data import Split
import helios_lite.display.console
from . import model
from .hooks import Hooks
def late():
    from rich.table import Table
if TYPE_CHECKING:
    import numpy
    from helios_lite.trainer import Trainer
from helios_lite import __version__
"""
    inside = {"processes/rng", "processes/world", "data", "display/console", "model", "hooks", "trainer", "__init__"}
    assert imports(source) == (inside, {"torch", "os", "rich", "numpy"})


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    assert floor(name) is not None
    inside, _ = IMPORTS[name]
    higher = {other for other in inside if floor(other) > floor(name) and (name, other) != EXCEPTION}
    assert higher == set()


def test_there_is_no_circle_of_imports():
    graph = {name: inside - {EXCEPTION[1]} if name == EXCEPTION[0] else inside for name, (inside, _) in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_exception_is_the_type_of_the_trainer_of_a_model():
    source = FILES["model"].read_text(encoding="utf-8")
    assert imports(source)[0] >= {"trainer"}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            assert "trainer" not in imports(ast.unparse(node))[0]


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_imported_but_the_standard_library_and_the_declared_packages(name):
    _, outside = IMPORTS[name]
    packages = set() if name in STANDARD_LIBRARY_ONLY else {"torch", "tqdm", "rich", "numpy"}
    assert outside - sys.stdlib_module_names <= packages | OPTIONAL.get(name, set())
