"""Run folders with damaged files: a resume ends as if nothing had happened, or names the file."""

from pathlib import Path

import pytest
from helpers.damage import DAMAGES, Case, Original


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("original"))


@pytest.mark.parametrize("seed", range(20))
def test_a_run_with_damaged_files_ends_like_one_without_or_names_the_file(
    original: Original, tmp_path: Path, seed: int
) -> None:
    case = Case(original, tmp_path / "case", seed)
    assert (case.story, case.problems()) == (case.story, [])


def test_the_cases_have_every_kind_of_damage(original: Original, tmp_path: Path) -> None:
    stories = [Case(original, tmp_path / str(seed), seed).story for seed in range(20)]
    assert {damage for story in stories for damage, _ in story} == {damage.__name__ for damage in DAMAGES}
