"""README: short, its program and its commands are true, and it shows what is on the pages. Versions agree."""

import configparser
import re
from pathlib import Path

import pytest
from helpers.pages import blocks, require_shown, run

import helios_lite

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAX_WORDS = 900


def section(title: str) -> str:
    """Return the text below a title."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_it_is_short() -> None:
    assert len(README.split()) <= MAX_WORDS


def test_its_first_screen_has_one_picture() -> None:
    first, _, rest = README.partition("\n## ")
    assert len(re.findall(r"^!\[.+\]\(.+\)$", first, re.MULTILINE)) == 1
    assert "![" not in rest


def test_its_program_runs_in_an_empty_folder_and_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((program, shown),) = blocks(README, "python")
    assert len([line for line in program.splitlines() if line]) <= 26
    assert set(re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE)) == {"torch", "helios_lite"}
    run(program, tmp_path, monkeypatch)
    assert shown is not None
    require_shown(capsys.readouterr().out, shown)
    assert {path.name for path in tmp_path.iterdir()} == {"program.py", "runs"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sine"]
    assert "`runs/sine`" in README


def test_it_has_one_command_for_an_example_and_one_for_the_tests() -> None:
    commands = [line for line in README.splitlines() if line.startswith("pip ")]
    assert [command for command, _ in blocks(README, "")] == [f"{command}\n" for command in commands]
    example, tests = commands
    assert example.endswith(" && python examples/digits.py")
    assert tests.endswith("'.[test]' && python -m pytest")
    assert all(command.startswith("pip install -c constraints.txt ") for command in commands)
    found = re.search(r"command=\$\(grep -m1 -E '(.+)' README\.md\)", (REPOSITORY / ".ci/run").read_text())
    assert found is not None
    assert [line for line in README.splitlines() if re.search(found[1], line)] == [tests]


def test_the_tests_need_no_heavy_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    needed = setup["options.extras_require"]["test"]
    assert "pytest" in needed
    assert not {"wandb", "mlflow-skinny", "mlflow", "alembic", "sqlalchemy"} & set(re.findall(r"[\w-]+", needed))


def test_the_version_of_pytorch_that_it_names_is_the_one_that_is_installed() -> None:
    named = set(re.findall(r"torch==[\d.]+\d", README))
    assert len(named) == 1
    assert named <= set((REPOSITORY / "constraints.txt").read_text().split())


def test_its_links_lead_on() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if target.startswith("https:"):
            assert target.startswith("https://pytorch.org/")
        else:
            assert (REPOSITORY / target).exists(), target


def test_it_compares_in_ten_rows() -> None:
    lines = [line for line in section("Beside other trainers").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 10
    assert {line.count("|") for line in lines} == {7}


def test_it_shows_what_programs_of_the_pages_have_printed() -> None:
    shown = re.findall(r"^```text\n(.*?)^```$", section("What no other trainer does"), re.MULTILINE | re.DOTALL)
    assert len(shown) == 3
    for page, text in zip(("audit", "replay", "diff"), shown, strict=True):
        programs = blocks((REPOSITORY / f"docs/{page}.md").read_text(encoding="utf-8"), "python")
        printed = [line for _, output in programs if output is not None for line in output.splitlines()]
        assert [line for line in text.splitlines() if line not in printed] == []


def test_the_costs_are_those_of_one_run_in_results_but_for_saves_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks import costs

    results = costs.RESULTS.read_text(encoding="utf-8")
    assert costs.table(results) in costs.PAGE.read_text(encoding="utf-8")
    assert f"\n{costs.row(results)}\n" in README
    sections = {title: text for title, text in costs.sections(results).items() if title != costs.SHARDED}
    assert len(set(re.findall(r"^Measured on .*$", "".join(sections.values()), re.MULTILINE))) == 1
    assert "Not measured" not in results


def test_each_version_in_the_changelog_is_one_screen() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = changelog.split("\n## ")[1:]
    assert versions[0].startswith(helios_lite.__version__)
    assert max(len(version.splitlines()) for version in versions) <= 60


def test_a_citation_has_the_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [helios_lite.__version__]
