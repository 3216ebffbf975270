"""Several real gloo processes: the same program, the same result, no hangs.

Changed by hand, each alone, to see a test fail:
- precision.py, the weight not divided by the ranks; data.py, shares without the ranks: two_processes_do_what_one_does.
- trainer.py, no sync_gradients: gradients_are_reduced_once_per_accumulation_window.
- run.py, generators alike on all ranks; resume.py, rank 0's generators for all: each_rank_gets_its_generators_back.
- distributed.py, buffers not sent before an evaluation: all_ranks_evaluate_with_the_buffers_of_rank_0.
"""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from ranks import CASES, Plain, data, everything, trained
from toys import Indices, quiet, same, weights

from helios_lite import DataModule, Split
from helios_lite.launch import launch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def deadline() -> Any:
    """Everything here ends by itself; should it not, the alarm ends it instead of a human."""

    def give_up(number: int, frame: Any) -> None:
        raise TimeoutError("a process waits for ever")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def close(a: Any, b: Any) -> bool:
    """Equal structure, tensors and floats equal to 1e-6."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6)
    if isinstance(a, dict):
        return list(a) == list(b) and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)
    return bool(a == b)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process has left a checkpoint after four updates."""
    root = tmp_path_factory.mktemp("ranks")
    quiet(max_steps=4, root=root / "from-one").fit(Plain(), data(batch_size=4))
    return root


@pytest.fixture(scope="module")
def of_two(root: Path) -> dict[str, Any]:
    return launch(everything, {"root": root, "size": 2}, processes=2, max_restarts=0)


@pytest.fixture(scope="module")
def of_three(root: Path) -> dict[str, Any]:
    return launch(everything, {"root": root, "size": 3}, processes=3, max_restarts=0)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does_with_the_double_batch(case: Any, of_two: dict[str, Any]) -> None:
    require_like_one(case, of_two)


def require_like_one(case: Any, found: dict[str, Any]) -> None:
    one, several = trained(case, 1), found["trained"][case]
    for name in ("weights", "metrics", "rates", "steps", "reason"):
        assert close(one[name], several[name]), name


def test_three_processes_do_what_one_does_with_the_triple_batch(of_three: dict[str, Any]) -> None:
    assert len(of_three["trained"]) == 2
    for case in of_three["trained"]:
        require_like_one(case, of_three)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", range(1, 18))
def test_every_index_is_evaluated_once_for_every_length_and_number_of_processes(
    length: int, size: int, request: pytest.FixtureRequest
) -> None:
    if size == 1:
        indices, metrics = ranks.evaluated(length, batch_size=2)
    else:
        indices, metrics = request.getfixturevalue({2: "of_two", 3: "of_three"}[size])["evaluated"][length]
    assert sorted(indices) == list(range(length))
    assert metrics["test/index"] == pytest.approx((length - 1) / 2, abs=1e-12)
    assert metrics["test/last"] == length - 1


def test_training_drops_fewer_samples_than_there_are_ranks_and_repeats_none(of_two: dict[str, Any]) -> None:
    first, second = of_two["seen of 21"]
    visited = [index for batch in [*first, *second] for index in batch]
    assert len(visited) == len(set(visited)) == 20
    assert len(first) == len(second)


def test_a_resume_with_other_numbers_of_processes_visits_every_index_of_the_epoch_once(
    root: Path, of_two: dict[str, Any]
) -> None:
    """Two updates of four samples by two processes, two of two by one, and what is left by three."""
    visited = [index for rank in of_two["first part"] for batch in rank for index in batch]
    assert len(visited) == 8
    model = Plain()
    quiet(max_steps=4, root=root / "elastic").fit(model, data(length=23))
    visited += [index for batch in model.seen for index in batch]
    assert len(visited) == 12
    seen = launch(ranks.rest, {"root": root}, processes=3, max_restarts=0)
    assert len({len(rank) for rank in seen}) == 1
    visited += [index for rank in seen for batch in rank for index in batch]
    assert len(visited) == len(set(visited))
    assert len(visited) > 23 - 3


def test_names_of_metrics_that_differ_are_one_error_on_all_ranks(of_two: dict[str, Any]) -> None:
    expected = "ValueError: metrics differ among the ranks: rank 0 did not log ['train/only_here']"
    assert of_two["naming"] == [expected] * 2


def test_a_trained_part_that_was_not_parallelized_is_an_error_that_names_it(of_two: dict[str, Any]) -> None:
    assert len(of_two["forgetful"]) == 2
    assert all(text.startswith("ValueError: head: ") for text in of_two["forgetful"])


def test_a_wish_to_stop_on_one_rank_stops_all_at_the_same_update(of_two: dict[str, Any]) -> None:
    assert of_two["stops"] == [3, 3]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_leave_out_an_update_if_the_gradients_of_one_are_not_finite(
    strategy: str, of_two: dict[str, Any]
) -> None:
    first, second = of_two["steep"][strategy]
    assert same(first, second)
    (step, skipped, before), (step_after, skipped_after, after) = first[1:3]
    assert (step_after, skipped_after) == (step, skipped + 1)
    assert same(before, after)
    assert first[3][0] == step + 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_norms_are_those_of_one_process_with_the_double_batch(strategy: str, of_two: dict[str, Any]) -> None:
    one = ranks.norms(batch_size=4)
    assert len(one) == 10
    assert of_two["norms"][strategy] == pytest.approx(one, rel=1e-5)


def test_gradients_are_reduced_once_per_accumulation_window(of_two: dict[str, Any]) -> None:
    assert of_two["reduced"] == (2, 2, 6)


def test_each_rank_gets_its_generators_back_and_validation_is_inert(of_two: dict[str, Any]) -> None:
    whole, parts, unvalidated = of_two["normed"]
    assert same(whole, parts)
    assert same(whole, unvalidated)
    first, second = of_two["draws"]
    assert not torch.equal(first, second)


def test_all_ranks_evaluate_with_the_buffers_of_rank_0(of_two: dict[str, Any]) -> None:
    first, second = of_two["buffers"]
    assert same(first, second)


def test_checkpoints_of_every_strategy_go_on_under_every_strategy(root: Path, of_two: dict[str, Any]) -> None:
    model = Plain()
    quiet(max_steps=9).fit(model, data(batch_size=4))
    uninterrupted = weights(model)
    for (source, strategy), found in of_two["matrix"].items():
        assert close(found, uninterrupted), (source, strategy)
    for source in ("one", "ddp", "fsdp"):
        path = root / f"from-{source}/plain/checkpoints/plain_epoch_0_iter_4.pth"
        content = torch.load(path, weights_only=True)
        assert list(content["model"]["net"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        model = Plain()
        quiet(max_steps=9, root=root / f"{source}-to-one", resume=path).fit(model, data(batch_size=4))
        assert close(weights(model), uninterrupted), source
        assert Plain.load_from_checkpoint(path, weighted=True).net[0].weight.shape == (8, 3)


def test_a_sharded_network_evaluates_different_numbers_of_batches(of_two: dict[str, Any]) -> None:
    assert of_two["fsdp evaluated"] == [(length, (length - 1) / 2) for length in (1, 3, 8)]


def test_one_process_shares_nothing() -> None:
    split = Split(Indices(5), batch_size=2)
    model = Plain()
    quiet(max_epochs=1).fit(model, DataModule(split))
    assert model.seen == [[0, 1], [2, 3], [4]]
    assert not model.is_distributed
