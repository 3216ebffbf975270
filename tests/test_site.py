"""The site of the pages: what its reference, its error messages and its diagram show is what the package has."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.models import HOOKS, Indices

from helios_lite import Callback, DataModule, Model, Split, Trainer
from helios_lite.options import Options

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PUBLIC = ["", ".callbacks", ".config", ".hooks", ".loggers", ".samplers", ".schedules", ".tools.audit"]
# Callback has its page under the name that users import; a variable of types; what a Trainer opens around `setup`.
INTERNAL = {"callbacks.Callback", "callbacks.ModelT", "schedules.planned_steps"}


def directives(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the kind and the full name of every object that a page of the reference describes."""
    module, owner = "", ""
    for indent, kind, name in re.findall(r"^( *)\.\. ([\w:]+?):: ([\w.]+)", page.read_text("utf-8"), re.MULTILINE):
        if kind in ("currentmodule", "automodule"):
            module = name
            continue
        full = name if name.startswith("helios_lite.") else f"{owner if indent else module}.{name}"
        owner = owner if indent else full
        yield kind, full


REFERENCE = [each for page in sorted((DOCS / "reference").glob("*.md")) for each in directives(page)]


def public_names(module: ModuleType) -> list[str]:
    """Return the names that a module exports, or else those that it defines, without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    defined = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return [name for name, value in defined.items() if getattr(value, "__module__", None) == module.__name__]


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_on_a_page_of_the_reference(module: str) -> None:
    shown = {name for _, name in REFERENCE}
    names = {f"helios_lite{module}.{name}" for name in public_names(importlib.import_module(f"helios_lite{module}"))}
    assert len(names) > 0
    assert names - shown - {f"helios_lite.{name}" for name in INTERNAL} == set()


def test_every_name_of_the_reference_exists_once() -> None:
    names = [name for _, name in REFERENCE]
    assert len(set(names)) == len(names)
    for name in names:
        owner, _, last = name.rpartition(".")
        holder = pkgutil.resolve_name(owner)
        fields = [field.name for field in dataclasses.fields(holder)] if dataclasses.is_dataclass(holder) else []
        assert last in fields or hasattr(holder, last), name


def test_the_options_are_grouped_as_in_the_source() -> None:
    (node,) = ast.parse(inspect.getsource(Options)).body
    assert isinstance(node, ast.ClassDef)
    fields = {
        item.lineno: ast.unparse(item.target)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.annotation).startswith("ClassVar")
    }
    expected: list[str] = []
    for number, line in enumerate(inspect.getsource(Options).splitlines(), start=1):
        if line.startswith("    # "):
            expected.append(line.removeprefix("    # "))
        elif number in fields:
            expected.append(fields[number])
    page = (DOCS / "reference/options.md").read_text("utf-8")
    assert re.findall(r"^(?:## |\.\. autoattribute:: Trainer\.)(.*)$", page, re.MULTILINE) == expected


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every text in a program. What an f-string computes is a NUL."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


MESSAGES = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def texts_of_the_package() -> list[str]:
    files = (REPOSITORY / "helios_lite").rglob("*.py")
    return [text for file in files for text in texts(ast.parse(file.read_text("utf-8")))]


@pytest.mark.parametrize("message", MESSAGES)
def test_an_error_message_is_one_of_the_package(message: str, texts_of_the_package: list[str]) -> None:
    pattern = re.compile(".*".join(map(re.escape, message.replace("Trainer", "...").split("..."))), re.DOTALL)
    assert any(pattern.search(text) for text in texts_of_the_package)


def test_there_are_error_messages() -> None:
    assert len(MESSAGES) >= 20


def test_every_page_is_in_the_index_once() -> None:
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    index = (DOCS / "index.md").read_text("utf-8")
    entries = [
        line
        for tree in re.findall(r"^:::{toctree}\n(.*?)^:::$", index, re.MULTILINE | re.DOTALL)
        for line in tree.splitlines()
        if line and not line.startswith(":")
    ]
    assert sorted(entries) == sorted(pages)


PAGE_OF_THE_ORDER = (DOCS / "order_of_hooks.md").read_text("utf-8")
DIAGRAM, OF_A_VALIDATION = re.findall(r"^```\n(.*?)^```$", PAGE_OF_THE_ORDER, re.MULTILINE | re.DOTALL)[:2]


def pattern_of(diagram: str) -> str:
    """Return a regular expression for the names of hooks, each before a space, in the order of a diagram."""
    pattern, depth = "", 0
    for line in diagram.splitlines():
        bars, name, note = re.fullmatch(r"((?:│  )*)([\w.]+).*?(?:  +(.*))?", line).groups()
        pattern += ")*" * (depth - len(bars) // 3)
        depth = len(bars) // 3
        if name == "for":
            pattern, depth = pattern + "(?:", depth + 1
            continue
        part = pattern_of(OF_A_VALIDATION) if name == "validation" else re.escape(name) + " "
        pattern += f"(?:{part})" + "?" * ((note or "").startswith("if"))
    return pattern + ")*" * depth


OF_A_DATAMODULE = ["prepare_data", "setup", "teardown"]
OF_A_MODEL = [
    *(hook for hook in HOOKS if "testing" not in hook and "predicting" not in hook),
    *("train", "eval", "train_step", "valid_step", "have_metrics_improved", "should_training_stop", "load_state_dict"),
    *("should_save_checkpoint", "append_metadata_to_chkpt_name", "append_to_banner"),
]


def traced(kind: type, names: list[str], prefix: str, events: list[str]) -> type:
    """Return a subclass whose methods note their names when they are called."""

    def method(name: str):
        def call(self, *arguments, **options):
            events.append(prefix + name)
            return getattr(super(cls, self), name)(*arguments, **options)

        return call

    cls = type(kind.__name__, (kind,), {name: method(name) for name in names})
    return cls


class Line(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch, state):
        loss = self.net(batch[1]).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)

    def valid_step(self, batch, step):
        self.log("loss", self.net(batch[1]).square().mean())


class Failing(Callback):
    def on_training_end(self):
        raise ArithmeticError


RUNS = {
    "epochs": [{"max_epochs": 2, "print_banner": True}],
    "steps": [{"max_steps": 7, "valid_every_epochs": None, "valid_every_steps": 2, "save_every_steps": 2}],
    "resumed": [{"max_steps": 4, "log_every_steps": 3}, {"max_epochs": 3, "log_every_steps": 3}],
    "without a validation": [{"max_epochs": 2, "valid_every_epochs": None, "sanity_batches": 0}],
    "without files": [{"max_epochs": 1, "root": None}],
    "a quick check": [{"fast_dev_run": True}],
    "an error": [{"max_epochs": 1, "callbacks": [Failing()]}],
}


def trace(run: str, folder: Path) -> list[list[str]]:
    """Return the names of the hooks in every start of a run."""
    starts = []
    for options in RUNS[run]:
        events: list[str] = []
        model = traced(Line, OF_A_MODEL, "", events)("line")
        train, valid = Split(Indices(12), batch_size=4), Split(Indices(4), batch_size=2)
        data = traced(DataModule, OF_A_DATAMODULE, "DataModule.", events)(train, valid)
        about = {"root": folder / run, "progress": False, "print_banner": False, "async_save": False}
        with contextlib.suppress(ArithmeticError):
            Trainer(**about | options).fit(model, data)
        starts.append(events)
    return starts


def test_the_diagram_of_hooks_is_the_order_of_real_runs(tmp_path: Path) -> None:
    pattern = re.compile(pattern_of(DIAGRAM))
    seen: set[str] = set()
    for run in RUNS:
        for events in trace(run, tmp_path):
            assert pattern.fullmatch("".join(f"{event} " for event in events)), events
            seen |= set(events)
    assert seen == {*OF_A_MODEL, *(f"DataModule.{name}" for name in OF_A_DATAMODULE)}
    backwards = reversed(trace("epochs", tmp_path / "again")[0])
    assert not pattern.fullmatch("".join(f"{event} " for event in backwards))
