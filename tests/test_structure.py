"""The house: composition, one owner for every attribute, and a training that can be read in one sitting.

Each rule is checked over the syntax tree of every file of the package.
"""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import helios_lite

FOLDER = Path(helios_lite.__file__).parent

# The classes that others may inherit from: hooks, options, what users inherit from as well, errors.
BASES = {
    "Hooks": {"Model", "Callback"},
    "Options": {"Trainer"},
    "Callback": {"EMA", "ActivationStatistics", "DeviceMemory", "Profile", "StepInspector", "Recorder", "LockRecorder"},
    "ConfigError": {"ConfigTypeError"},
    "CheckpointError": {"OtherFormatError"},
}

# Who writes the counters of `TrainingState`, if not the loop.
COUNTERS = {
    "seconds": "training/clock.py",
    "best_score": "training/monitor.py",
    "best_step": "training/monitor.py",
    "early_stop_count": "training/monitor.py",
}

READ_FIRST = ["model.py", "hooks.py", "data.py", "trainer.py", "training/loop.py"]
MAX_LINES_READ_FIRST = 1000


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of every file of the package, by its path."""
    paths = FOLDER.rglob("*.py")
    return {path.relative_to(FOLDER).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@functools.cache
def classes() -> dict[str, ast.ClassDef]:
    """Return the classes of the package by name."""
    nodes = (node for tree in trees().values() for node in ast.walk(tree))
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def targets(node: ast.AST) -> Iterator[ast.Attribute]:
    """The attributes that a statement assigns or deletes, in tuples as well; `setattr` with a literal name too."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store | ast.Del):
            yield child
        if isinstance(child, ast.Call) and ast.unparse(child.func) in ("setattr", "object.__setattr__", "delattr"):
            name = child.args[1]
            if isinstance(name, ast.Constant):
                yield ast.Attribute(value=child.args[0], attr=str(name.value), ctx=ast.Store())


def own_attributes(node: ast.ClassDef, *methods: str) -> set[str]:
    """The attributes of a class: made in its body, or assigned to `self` in the methods (in any, if none is given)."""
    names = set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            names.add(ast.unparse(item.target))
        elif isinstance(item, ast.Assign):
            names |= {ast.unparse(target) for target in item.targets}
        elif isinstance(item, ast.FunctionDef) and (not methods or item.name in methods):
            names |= {target.attr for target in targets(item) if ast.unparse(target.value) == "self"}
    return names


def lines_of_code(tree: ast.Module) -> int:
    """Lines with code: without blank lines, comments and docstrings."""
    numbers: set[int] = set()
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.stmt | ast.expr | ast.arg | ast.keyword | ast.alias | ast.ExceptHandler):
            numbers.add(node.lineno)
            numbers.add(node.end_lineno or node.lineno)
    return len(numbers - docstrings)


def test_a_class_inherits_from_no_other_of_the_package_but_hooks_options_callbacks_and_errors() -> None:
    for name, node in classes().items():
        bases = {ast.unparse(base).split(".")[-1].split("[")[0] for base in node.bases}
        for base in bases & classes().keys():
            assert name in BASES.get(base, set()), f"{name} inherits from {base}"


def test_all_attributes_of_a_class_are_made_in_its_init() -> None:
    for name, node in classes().items():
        inherited = set().union(*(own_attributes(classes().get(ast.unparse(base), node)) for base in node.bases))
        made = own_attributes(node, "__init__", "__new__") | inherited
        assert own_attributes(node) - inherited - made == set(), name


def test_no_attribute_is_assigned_outside_of_its_class() -> None:
    """The counters of `TrainingState` are a record: each is written by the one file that is named."""
    owners = defaultdict(set)
    for name, node in classes().items():
        is_tuple = "NamedTuple" in map(ast.unparse, node.bases)  # Cannot be assigned to at all.
        if name != "TrainingState" and not is_tuple:
            for attribute in own_attributes(node):
                owners[attribute].add(name)
    for file, tree in trees().items():
        for target in targets(tree):
            owner = ast.unparse(target.value)
            if owner in ("self", "cls") or owner.startswith("torch."):
                continue
            if owner.split(".")[-1] in ("state", "_state"):
                assert file == COUNTERS.get(target.attr, "training/loop.py"), f"{file}:{target.lineno}"
                continue
            assert target.attr not in owners, f"{file}:{target.lineno}: {ast.unparse(target)}"


def test_an_assignment_from_outside_is_seen_in_every_form() -> None:
    source = (
        "a.b = 1; (a.c, d[0].e) = 1, 2; a.f += 1\nfor a.g in x: pass\nwith x as a.h: pass\nsetattr(a, 'i', 1); del a.j"
    )
    assert [target.attr for target in targets(ast.parse(source))] != []
    assert {target.attr for target in targets(ast.parse(source))} == set("bcefghij")


def test_what_must_be_read_to_understand_a_training_is_small() -> None:
    assert sum(lines_of_code(trees()[file]) for file in READ_FIRST) < MAX_LINES_READ_FIRST


def effects(node: ast.Assert) -> set[str]:
    """Return what the condition of an assertion calls or assigns, but for what only looks."""
    found = set()
    for child in ast.walk(node.test):
        if isinstance(child, ast.Call) and ast.unparse(child.func) not in ("isinstance", "issubclass", "len"):
            found.add(ast.unparse(child))
        if isinstance(child, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
            found.add(ast.unparse(child))
    return found


def test_no_assertion_does_something_which_an_optimized_python_would_leave_out() -> None:
    (example,) = ast.parse("assert next(predictions, None) is (x := None)").body
    assert isinstance(example, ast.Assert)
    assert effects(example) == {"next(predictions, None)", "(x := None)"}
    for file, tree in trees().items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert) or effects(node) == set(), f"{file}:{node.lineno}"
            assert not isinstance(node, ast.Name) or node.id != "__debug__", file
