"""What editors show of options and arguments: a call's signature, and the documentation of a name under the cursor."""

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.editor import FOLDER, Editor

from helios_lite import Split, Trainer
from helios_lite.callbacks import EMA
from helios_lite.loggers import TensorBoardLogger

jedi = pytest.importorskip("jedi", reason="needs jedi: pip install -e '.[editor]'")
pytest.importorskip("basedpyright", reason="needs basedpyright: pip install -e '.[editor]'")

IMPORTS = "from helios_lite import Callback, DataModule, FitResult, Model, Split, Trainer\n"
IMPORTS += "from helios_lite.callbacks import EMA\n"
IMPORTS += "from helios_lite.loggers import TensorBoardLogger\n"
CLASSES = [Trainer, Split, EMA, TensorBoardLogger]
DOCUMENTED = {
    "Trainer(max_ep|ochs=3)": ("max_epochs: int | None", "The number of epochs after which the run ends."),
    "trainer = Trainer()\ntrainer.pat|ience": ("patience: int | None", "The number of validations in a row without an"),
    "Split([], batch_si|ze=3)": ("batch_size: int | None", "Samples per batch and process."),
    "split = Split([], 3)\nsplit.shuf|fle": ("shuffle: bool", "Use a new random order in every epoch."),
    "def f(result: FitResult): result.best_check|point": ("best_checkpoint: Path | None", "The file with the best"),
    "def f(result: FitResult): result.state.st|ep": ("step: int", "Steps finished, the clock of everything public"),
    "DataModule(val|id=None)": ("valid: Any", "the Split of validations, or a dict of several by name."),
    "class A(Model):\n  def f(self): self.hpar|ams": (
        "hparams: dict[str, Any]",
        "A plain dict that the subclass",
    ),
    "class A(Model):\n  def on_training_ep|och_end(self, n): ...": (
        "on_training_epoch_end(",
        "Called at the end",
    ),
    "class A(Callback):\n  def f(self): self.every_n_st|eps": (
        "every_n_steps: int",
        "Call `on_training_batch_start`",
    ),
    "class A(Callback):\n  def f(self): self.run_fol|der": ("(property) run_folder: Path | None", "The run folder"),
    "class A(Callback):\n  def f(self): self.datamod|ule": ("(property) datamodule: DataModule", "The data, whose own"),
    "EMA(dec|ay=0.9)": ("decay: float", "the factor of the average at a step"),
    "ema = EMA()\nema.aver|aged": ("averaged: Any", "The `AveragedModel` of the network"),
    "TensorBoardLogger(fol|der='x')": (
        "folder: str | PathLike[str]",
        "the folder of the event files, one for each run.",
    ),
    "board = TensorBoardLogger('x')\nboard.wri|ter": (
        "(property) writer",
        "The `SummaryWriter`, made when it is first used",
    ),
}


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    with Editor(tmp_path_factory.mktemp("program")) as opened:
        yield opened


def arguments(cls: type) -> dict[str, Any]:
    """Return the arguments of a class by name, with their defaults; an ellipsis for those that have none."""
    parameters = inspect.signature(cls).parameters.values()
    return {each.name: ... if each.default is each.empty else each.default for each in parameters}


def read(parameters: list[str]) -> dict[str, Any]:
    """Return the same from what an editor shows, `["max_epochs: int | None = None"]`; each must have a type."""
    found = [re.fullmatch(r"\*{0,2}(\w+): (.+?)(?: ?= ?(.+))?", parameter, re.DOTALL) for parameter in parameters]
    return {each[1]: ast.literal_eval(each[3] or "...") for each in found if each is not None}


@pytest.mark.parametrize("cls", CLASSES)
def test_pyright_shows_the_types_and_defaults_of_all_arguments_in_a_call(cls: type, editor: Editor) -> None:
    signature = editor.signature(f"{IMPORTS}{cls.__name__}(|)")
    assert read([parameter["label"] for parameter in signature["parameters"]]) == arguments(cls)
    assert signature["documentation"]["value"] != ""


@pytest.mark.parametrize("program", DOCUMENTED)
def test_pyright_shows_the_documentation_of_a_keyword_and_of_an_attribute(program: str, editor: Editor) -> None:
    declaration, documentation = DOCUMENTED[program]
    shown = editor.hover(IMPORTS + program)
    assert declaration in shown.split("\n")[0]
    assert documentation in shown


@pytest.mark.parametrize("cls", CLASSES)
def test_jedi_shows_the_types_and_defaults_of_all_arguments_in_a_call(cls: type) -> None:
    (signature,) = script(f"{IMPORTS}{cls.__name__}(|)", "get_signatures")
    assert read([parameter.description.removeprefix("param ") for parameter in signature.params]) == arguments(cls)


def test_jedi_completes_the_name_of_an_option() -> None:
    completions = script(f"{IMPORTS}Trainer(max_ep|)", "complete")
    assert "max_epochs=" in [completion.name_with_symbols for completion in completions]


def script(program: str, method: str) -> list[Any]:
    """Return what a method of `jedi.Script` finds at the cursor."""
    before, after = program.split("|")
    lines = before.split("\n")
    project = jedi.Project(str(FOLDER))
    return list(getattr(jedi.Script(before + after, project=project), method)(len(lines), len(lines[-1])))
