"""Some of the random cuts and resumes of tests/fuzz.py; a difference names the case, which that program repeats."""

from pathlib import Path

import pytest
from helpers.fuzzing import difference, first_difference, make_case

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SEED, NUMBERS = 0, (*range(8), 10, 14, 15, 19, 24)  # Among them are those that notice what others do not.


@pytest.mark.parametrize("number", NUMBERS)
def test_a_random_training_cut_at_random_places_ends_like_one_that_was_not(number: int, tmp_path: Path) -> None:
    assert difference(make_case(SEED, number), tmp_path) is None


def test_a_case_is_a_function_of_the_seed_and_the_number() -> None:
    assert make_case(3, 5) == make_case(3, 5)
    assert len({str(make_case(seed, number)) for seed in range(3) for number in range(3)}) == 9


def test_a_difference_is_found_wherever_it_is() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) is None
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "['a'][1]['b']: 2 whole, 3 cut"
    assert first_difference({"a": 1}, {"b": 1}) == ": {'a': 1} whole, {'b': 1} cut"
