"""The picture of the house: a file imports its own room and the rows below, imports for type checking included.

CONTRIBUTING.md explains it. Also: what the package may import from outside.
"""

import ast
import functools
import graphlib
import sys
from collections import Counter
from pathlib import Path

from helpers import scripts

import helios_lite

FOLDER = Path(helios_lite.__file__).parent
FILES = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in FOLDER.rglob("*.py")}

# From the bottom to the top. A room is a folder; a file of the package's own folder is a room by itself.
ROWS = [
    {"version", "arguments", "other_trainers", "html_table", "file_errors"},
    {"state", "option_class", "nested", "samplers", "processes"},
    {"hooks", "data", "schedules", "networks"},
    {"metrics", "checkpoints"},
    {"loggers"},
    {"object_tables"},
    {"options"},
    {"loading", "display"},
    {"model_internals"},
    {"planning", "changes"},
    {"model"},
    {"callbacks"},
    {"training"},
    {"calls"},
    {"trainer"},
    {"__init__"},
    {"config"},
    {"tools/audit"},
    {"tools"},
    {"__main__"},
]
LARGEST_ROOM = 0.15  # Of the lines of the package.

# Packages that a file imports when it is used, with a message that says how to install them.
OPTIONAL = {"tools/plot": {"matplotlib"}, "loggers": {"torch", "mlflow", "wandb"}}
# For type checkers only.
OPTIONAL["callbacks"] = {"typing_extensions"}
STANDARD_LIBRARY_ONLY = {"version", "state", "arguments", "hooks", "loggers", "planning/due", "training/clock"}
STANDARD_LIBRARY_ONLY |= {"processes/signals", "processes/output", "html_table", "file_errors"}


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


@functools.cache
def all_imports():
    """Return what each file imports; not at the import of this file, which every process of pytest does."""
    return {name: imports(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def room(file):
    """Return the room of a file: the most specific one of `ROWS`."""
    rooms = set().union(*ROWS)
    return next((name for name in (file, *map(str, Path(file).parents)) if name in rooms), None)


def row(file):
    return next(i for i, rooms in enumerate(ROWS) if room(file) in rooms)


def test_imports_are_seen_in_every_form():
    source = """
import torch.nn as nn, os.path
from helios_lite.processes import rng, world as w
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


def test_every_file_is_in_a_room():
    assert [file for file in FILES if room(file) is None] == []


def test_a_file_imports_its_own_room_and_lower_rows_only():
    wrong = [
        f"{file} imports {other}"
        for file, (inside, _) in all_imports().items()
        for other in inside
        if room(other) != room(file) and row(other) >= row(file)
    ]
    assert wrong == []


def test_there_is_no_circle_of_imports():
    graphlib.TopologicalSorter({file: inside for file, (inside, _) in all_imports().items()}).prepare()


def test_no_room_is_a_hall():
    lines = Counter({file: len(path.read_text(encoding="utf-8").splitlines()) for file, path in FILES.items()})
    rooms = Counter()
    for file, number in lines.items():
        rooms[room(file)] += number
    assert {name: number for name, number in rooms.items() if number > LARGEST_ROOM * lines.total()} == {}


def test_nothing_is_imported_but_the_standard_library_and_the_declared_packages():
    for file, (_, outside) in all_imports().items():
        packages = set() if file in STANDARD_LIBRARY_ONLY else {"torch", "tqdm", "rich", "numpy"}
        assert outside - sys.stdlib_module_names <= packages | OPTIONAL.get(file, set()), file


@functools.cache
def printed_by_a_new_interpreter():
    """Return what is printed when names are asked for, and the names of all modules after that."""
    program = """
import sys, helios_lite
assert "torch" not in sys.modules
assert set(helios_lite.__all__) <= set(dir(helios_lite))
try:
    helios_lite.nothing
except AttributeError as error:
    print(error)
print(helios_lite.callbacks.EMA.__name__, helios_lite.Split.__name__)
assert all(vars(helios_lite)[name] for name in helios_lite.__all__)
print(*sys.modules)
"""
    *printed, imported = scripts.run("-c", program, new_interpreter=True).stdout.splitlines()
    return printed, imported.split()


def test_the_package_imports_its_names_when_the_first_one_is_asked_for():
    printed, _ = printed_by_a_new_interpreter()
    assert printed == ["module 'helios_lite' has no attribute 'nothing'", "EMA Split"]


def test_importing_the_package_does_not_import_what_only_some_programs_need():
    _, imported = printed_by_a_new_interpreter()
    assert "helios_lite.trainer" in imported
    assert {"tomllib", "matplotlib", "helios_lite.config", "helios_lite.schedules"} & set(imported) == set()
