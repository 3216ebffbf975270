"""The direction of imports inside the package, and what it may import from outside."""

import ast
import sys
from pathlib import Path

import pytest

import helios_lite

FOLDER = Path(helios_lite.__file__).parent
FILES = {path.stem: path for path in FOLDER.rglob("*.py")}

STANDARD_LIBRARY_ONLY = {"state", "version", "hooks", "loggers", "stopping", "options", "interrupts"}
FOUNDATION = {"rng", "distributed", "precision"}
PARTS = {"metrics", "transfer", "data", "checkpoint", "console"}

# What each file may import of this package, in layers from the bottom to the top.
ALLOWED = {
    "state": set(),
    "version": set(),
    "loggers": set(),
    "interrupts": set(),
    "hooks": {"state"},
    "stopping": {"state"},
    "options": {"hooks", "loggers"},
    #
    "rng": STANDARD_LIBRARY_ONLY,
    "distributed": STANDARD_LIBRARY_ONLY,
    "precision": STANDARD_LIBRARY_ONLY | {"distributed"},
    "launch": STANDARD_LIBRARY_ONLY | {"distributed"},
    "metrics": STANDARD_LIBRARY_ONLY | FOUNDATION,
    "transfer": set(),
    "data": STANDARD_LIBRARY_ONLY | FOUNDATION | {"transfer"},
    "checkpoint": STANDARD_LIBRARY_ONLY | FOUNDATION,
    "console": STANDARD_LIBRARY_ONLY | FOUNDATION,
    #
    "model": STANDARD_LIBRARY_ONLY | FOUNDATION | PARTS,
    "run": STANDARD_LIBRARY_ONLY | FOUNDATION | PARTS | {"model"},
    "resume": STANDARD_LIBRARY_ONLY | FOUNDATION | PARTS | {"model", "run"},
    "callbacks": STANDARD_LIBRARY_ONLY | FOUNDATION,
    "report": STANDARD_LIBRARY_ONLY | FOUNDATION | PARTS | {"model", "run", "resume"},
    "trainer": STANDARD_LIBRARY_ONLY | FOUNDATION | PARTS | {"launch", "model", "run", "report"},
    "config": {"data", "model", "state", "trainer"},
    "__init__": {"data", "hooks", "model", "state", "trainer", "version"},
    "__main__": {"checkpoint", "config", "console", "data", "model", "options", "trainer", "version"},
}

# What a file imports when it is used, and says how to install if it is missing.
OPTIONAL = {"__main__": {"matplotlib"}, "loggers": {"torch", "mlflow", "wandb"}}


def imports(source):
    """Return (modules of this package, packages from outside) that a source imports when it runs, at any depth."""
    inside, outside = set(), set()

    def visit(node):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            children = node.orelse
        else:
            children = ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in ("helios_lite" if node.level else "", node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            names = []
        for name in names:
            package, _, rest = name.partition(".")
            if package == "helios_lite":
                module = rest.split(".")[0]
                inside.add(module if module in FILES else "__init__")
            else:
                outside.add(package)
        for child in children:
            visit(child)

    visit(ast.parse(source))
    return inside, outside


def test_imports_are_seen_in_every_form():
    source = """
import torch.nn as nn, os.path
from helios_lite import rng, state as s
from helios_lite.data import Split
import helios_lite.console
from . import model
from .run import Run
def late():
    from rich.table import Table
if TYPE_CHECKING:
    import numpy
    from helios_lite.trainer import Trainer
else:
    import tqdm
if True:
    from helios_lite import __version__
"""
    inside = {"rng", "state", "data", "console", "model", "run", "__init__"}
    assert imports(source) == (inside, {"torch", "os", "rich", "tqdm"})


def test_every_file_has_its_place():
    assert FILES.keys() == ALLOWED.keys()


def test_a_file_may_import_only_what_stands_above_it_in_the_list():
    """So there is no cycle, by construction."""
    above = set()
    for name, allowed in ALLOWED.items():
        assert allowed <= above
        above.add(name)


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_go_one_way(name):
    inside, _ = imports(FILES[name].read_text(encoding="utf-8"))
    assert inside <= ALLOWED[name]


@pytest.mark.parametrize("name", ALLOWED)
def test_nothing_is_imported_but_the_standard_library_and_the_declared_packages(name):
    _, outside = imports(FILES[name].read_text(encoding="utf-8"))
    packages = set() if name in STANDARD_LIBRARY_ONLY else {"torch", "tqdm", "rich", "numpy"}
    assert outside - sys.stdlib_module_names <= packages | OPTIONAL.get(name, set())
