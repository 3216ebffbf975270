"""The pages in docs: every program runs and prints what the page says, every fragment is Python, every link leads on.

A block fenced as "python" is a whole program; a "text" block right after it is what it prints. "py" is a fragment. The
page of a recipe has a part of a program in examples/recipes, and what it prints.
"""

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import pages, scripts
from helpers.compare import same
from helpers.models import HOOKS
from helpers.pages import require_shown, run

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.hooks import Hooks

REPOSITORY = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").glob("*.md"))}


def blocks(page: str, language: str) -> list[tuple[str, str | None]]:
    """Return the blocks of a language on a page, each with the text that it is said to print, if any."""
    return pages.blocks(PAGES[page], language)


PROGRAMS = {f"{page}-{i}": block for page in PAGES for i, block in enumerate(blocks(page, "python"), start=1)}

# What a recipe needs that is not installed with the project.
PACKAGES = {
    "hugging_face": "transformers",
    "optuna": "optuna",
    "images_in_tensorboard": "tensorboard",
    "live_view": "trackio",
}

ECOSYSTEM = ("hugging_face", "optuna")

RECIPE = re.compile(r"\]\(\.\./(examples/recipes/\w+\.py)\)")
RECIPES = {page: REPOSITORY / found[0] for page, text in PAGES.items() if len(found := RECIPE.findall(text)) == 1}

# Tables and lists, and what is typed into a shell.
NO_PROGRAM = {"seeds", "comparison", "promises", "clusters", "command_line", "glossary", "troubleshooting", "index"}
NO_PROGRAM |= {"hooks", "sharded", "failures", "interruptions", "engines"}  # Tables, and programs for several machines.


def test_the_pages_are_there() -> None:
    names = "checkpoints data distributed from_a_loop from_helios_ml from_lightning hooks precision seeds"
    assert set(names.split()) <= PAGES.keys()


@pytest.mark.parametrize("page", sorted(PAGES.keys() - NO_PROGRAM))
def test_a_page_has_a_program(page: str) -> None:
    assert len(blocks(page, "python")) > 0 or page in RECIPES


@pytest.mark.parametrize("name", [name for name in PROGRAMS if not name.startswith(("from_a_loop", "tutorial"))])
def test_a_program_runs_and_prints_what_the_page_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, printed = PROGRAMS[name]
    if name.startswith("audit"):  # It starts processes, which import it.
        (tmp_path / "program.py").write_text(program, encoding="utf-8")
        output = scripts.run("program.py", cwd=tmp_path, env={"PYTHONDONTWRITEBYTECODE": "1"}).stdout
    else:
        run(program, tmp_path, monkeypatch)
        output = capsys.readouterr().out
    if printed is not None:
        require_shown(output.replace(str(tmp_path), "/home/me"), printed)
    assert printed is not None or len(output.splitlines()) < 10
    assert {path.name for path in tmp_path.iterdir()} <= {"program.py", "runs"}


STEPS = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$|^python (\w+\.py)\n```\n\n```text\n(.*?)^```$", re.M | re.S)


def test_the_tutorial_can_be_followed_from_its_first_line_to_its_last(tmp_path: Path) -> None:
    steps = STEPS.findall(PAGES["tutorial"])
    for name, program, started, printed in steps:
        if name:
            (tmp_path / name).write_text(program, encoding="utf-8")
        else:  # Banner and tables are printed before, and left out on the page.
            output = scripts.run(started, cwd=tmp_path, env={"PYTHONDONTWRITEBYTECODE": "1"}).stdout
            require_shown("".join(output.splitlines(keepends=True)[-printed.count("\n") :]), printed)
    assert [started for _, _, started, _ in steps if started] == [
        *("points.py", "train.py", "train.py", "train.py", "evaluate.py", "use.py")
    ]


@pytest.mark.filterwarnings("ignore:The reported value is ignored:UserWarning")  # Of Optuna, which a replay reports to.
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.ecosystem) if page in ECOSYSTEM else page for page in RECIPES]
)
def test_a_recipe_runs_and_prints_what_its_page_says_and_its_last_step_can_be_replayed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", "runs/trackio")
    if page in PACKAGES:
        pytest.importorskip(PACKAGES[page])
    fit, calls = Trainer.fit, []

    def noted(trainer: Trainer, model: Model, datamodule: DataModule) -> Any:
        calls.append((trainer, model, datamodule, fit(trainer, model, datamodule)))
        return calls[-1][-1]

    monkeypatch.setattr(Trainer, "fit", noted)
    run(RECIPES[page].read_text(encoding="utf-8"), tmp_path, monkeypatch)
    if page != "live_view":  # Trackio prints lines of its own.
        require_shown(capsys.readouterr().out, "".join(text for text, _ in blocks(page, "text")))
    trainer, model, datamodule, result = calls[-1]
    if result.run_folder is not None:
        assert trainer.replay(model, datamodule, result.state.step).step == result.state.step
    assert {path.name for path in tmp_path.iterdir()} <= {"program.py", "runs"}


@pytest.mark.parametrize(("page", "package"), PACKAGES.items())
def test_a_recipe_says_in_one_line_which_package_is_missing(
    page: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises((SystemExit, ModuleNotFoundError)) as caught:
        run(RECIPES[page].read_text(encoding="utf-8"), tmp_path, monkeypatch)
    assert re.fullmatch(
        rf"(this recipe needs {package}|{package} is not installed): pip install {package}", str(caught.value)
    )


@pytest.mark.parametrize("page", RECIPES)
def test_the_page_of_a_recipe_is_short_and_shows_lines_of_its_program(page: str) -> None:
    assert len(PAGES[page].splitlines()) <= 40
    program = map(str.strip, RECIPES[page].read_text(encoding="utf-8").splitlines())
    shown, _ = blocks(page, "py")[0]
    assert [line for line in map(str.strip, shown.splitlines()) if line and line not in program] == []


def test_every_recipe_has_a_page() -> None:
    assert sorted(RECIPES.values()) == sorted((REPOSITORY / "examples/recipes").glob("*.py"))


def test_the_loop_by_hand_and_the_trainer_end_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand, by_trainer = (program for program, _ in blocks("from_a_loop", "python"))
    before = run(by_hand, tmp_path, monkeypatch)
    printed_before = capsys.readouterr().out
    after = run(by_trainer, tmp_path, monkeypatch)
    assert same(before["net"].state_dict(), after["model"].net.state_dict())
    assert same(before["optimizer"].state_dict(), after["model"].optimizer.state_dict())
    assert before["accuracy"] == after["result"].metrics["valid/accuracy"] > 0.5  # So both have learnt.
    assert capsys.readouterr().out == printed_before


@pytest.mark.parametrize("page", PAGES)
def test_fragments_are_python(page: str) -> None:
    for fragment, _ in blocks(page, "py"):
        ast.parse(fragment)


@pytest.mark.parametrize("page", PAGES)
def test_no_name_in_angle_brackets_is_hidden_as_a_tag_of_html(page: str) -> None:
    text = re.sub(r"`[^`]*`", "", pages.BLOCK.sub("", PAGES[page]))
    assert re.findall(r"<[a-zA-Z_]+>", text) == []


@pytest.mark.parametrize("page", PAGES)
def test_options_that_a_page_gives_to_a_trainer_or_a_split_exist(page: str) -> None:
    known = {kind.__name__: {field.name for field in dataclasses.fields(kind)} for kind in (Trainer, Split)}
    for code, _ in blocks(page, "python") + blocks(page, "py"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
                assert {keyword.arg for keyword in node.keywords} - {None} <= known[node.func.id]


@pytest.mark.parametrize("page", PAGES)
def test_options_that_a_sentence_names_exist(page: str) -> None:
    known = {field.name for kind in (Trainer, Split) for field in dataclasses.fields(kind)}
    methods = [vars(kind)[name] for kind in (Hooks, Model, Trainer) for name in vars(kind) if not name.startswith("_")]
    known |= {name for method in methods if inspect.isfunction(method) for name in inspect.signature(method).parameters}
    known |= {"train", "valid", "test", "predict"}  # Of DataModule.
    known |= {"weights_only", "persistent", "workers", "ckpt_path"}  # Of PyTorch and Lightning.
    spans = re.findall(r"`[^`\n]+`", pages.BLOCK.sub("", PAGES[page]))
    assert {name for span in spans for name in re.findall(r"[`(,] ?([a-z]\w*)=", span)} <= known


def test_hooks_md_has_every_name_that_a_user_can_write_or_use() -> None:
    public = [name for name in vars(Model) if not name.startswith("_")]
    shown = {name for span in re.findall(r"`([^`\n]+)`", PAGES["hooks"]) for name in re.findall(r"\w+", span)}
    assert [name for name in [*HOOKS, *public] if name not in shown] == []


def test_hooks_md_has_no_other_hook() -> None:
    assert set(re.findall(r"`(on_\w+)", PAGES["hooks"])) <= set(HOOKS)


@pytest.mark.parametrize(
    "page",
    [
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "examples/README.md",
        "docs/maintainers/history.md",
        *(f"docs/{page}.md" for page in PAGES),
    ],
)
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert ((REPOSITORY / page).parent / target).exists(), target
