"""Whatever a step does with its networks, several processes train what one trains, and go on after a cut.

Two replicas and two shards train all situations; three, and two that are cut and resumed, those in which that may
matter. With EVERY_CELL=1 in the environment all are tried in all ways.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import close, same, timeless, weights
from helpers.models import quiet
from helpers.processes import deadline
from helpers.scenarios import Results, scenario
from helpers.situations import (
    PER_STEP,
    InBatchHook,
    SecondPass,
    Situation,
    samples,
    situations,
    table,
    wrong_situations,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helios_lite.processes.world import World

ALL, WRONG = list(situations()), list(wrong_situations())
SHARDED = [each for each in ALL if not each.only_replicas]


def some(names: str, among: list[Any]) -> list[Any]:
    """Return those with these names, or all."""
    assert {*names.split()} <= {each.__name__ for each in among}
    return [each for each in among if each.__name__ in names.split() or "EVERY_CELL" in os.environ]


# Ranks that do different things, of which two may be alike; and sums, whose bits depend on the order of three.
OF_THREE = """
Plain UnfrozenInStep FrozenWhole Gan OwnState UnusedByRank AccumulatedByRank NetworkByRank SkippedByRank Tokens
MorePasses Large NoItems
"""
REPLICATED_BY = {2: ALL, 3: some(OF_THREE, ALL)}
OF_FOUR = [  # The others need steps that four ranks can divide (so does a mean without the trainer's weights).
    each
    for each in SHARDED
    if PER_STEP % (4 * each.options.get("accumulation_steps", 1)) == 0
    and each.like_one
    and each.__name__ not in ("OwnLoop", "TwoBackwards")
]
HYBRID_BY = {2: some("TypesOfParts Added", SHARDED), 4: OF_FOUR if "EVERY_CELL" in os.environ else []}
SHARDED_BY = {2: SHARDED, 3: some("Plain GanInTurn NormedTwice Tied", SHARDED)}
WRONG_BY = {2: WRONG, 3: some("SecondPass NoStep OtherOrder WeightOfOne", WRONG)}
# A step of replicas depends on more than the weights and what their optimizer has kept: on what steps have done before
# the cut, or on its place in the epoch. What shards save has another form.
RESUMED = """
Plain UnfrozenInStep GanInTurn Alternating Codebook UnusedByRank OwnWindows SkippedByRank TokensSkipped MorePasses Large
WeightThenRaw Half Added OwnState
"""
RESUMED_OF_SHARDS = some("Plain Accumulated NormedTeacher TypesOfParts Tied TiedBlocks Averaged", SHARDED)
ARE_RESUMED = {"ddp": some(RESUMED, ALL), "fsdp": RESUMED_OF_SHARDS, "hsdp": RESUMED_OF_SHARDS}
STEPS, CUT = 4, 2  # An epoch has three.


@pytest.fixture(autouse=True, scope="module")
def ended() -> Iterator[None]:
    with deadline(240):
        yield


@pytest.fixture(scope="module")
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("situations")
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = {each["situation"].__name__ for each in parameters if "situation" in each}
    (root / "chosen").write_text("\n".join(names))
    return Results(__name__, root)


def chosen(situations: list[Any], root: Path) -> list[Any]:
    """Those that this session of pytest asks for."""
    return [each for each in situations if each.__name__ in (root / "chosen").read_text().split()]


def trained(situation: type[Situation], processes: int, **options: Any) -> dict[str, Any]:
    """What a run ends with: everything that a checkpoint holds of the model, and the metrics."""
    model = situation()
    accumulation_steps = situation.options.get("accumulation_steps", 1)
    datamodule = samples(processes, accumulation_steps, validates=situation.validates)
    options = {"max_steps": STEPS, "sanity_batches": 0, "hang_minutes": 0.5, **situation.options, **options}
    result = quiet(**options).fit(model, datamodule)
    return {**weights(model), "metrics": timeless(result.metrics)}


@functools.cache
def by_one(situation: type[Situation]) -> dict[str, Any]:
    """What one process trains, to which the trainings of all numbers of processes and strategies are compared."""
    return trained(situation, 1)


def attempted(situation: type[Situation], processes: int, **options: Any) -> dict[str, Any]:
    """What a run ends with, or the error."""
    try:
        return trained(situation, processes, **options)
    except Exception as error:
        return {"error": "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])}


def outcome(situation: type[Situation], root: Path, world: World, strategy: str) -> dict[str, Any]:
    """A whole run, the same cut and resumed where it matters, and whether the ranks end alike; or the error."""
    options = {"strategy": strategy}
    folder = root / f"{situation.__name__}-{strategy}-{world.size}"
    whole = cut = attempted(situation, world.size, **options)
    if "error" in whole:
        return whole
    if situation in ARE_RESUMED[strategy] and (world.size == 2 or "EVERY_CELL" in os.environ):
        trained(situation, world.size, root=folder, max_steps=CUT, **options)
        cut = trained(situation, world.size, root=folder, **options)
    everywhere = world.gather(whole)
    return {"whole": whole, "cut": cut, "alike": all(same(each, whole) for each in everywhere)}


@scenario(ranks=(2, 3))
def replicated(root: Path, world: World) -> dict[str, dict[str, Any]]:
    return {each.__name__: outcome(each, root, world, "ddp") for each in chosen(REPLICATED_BY[world.size], root)}


@scenario(ranks=(2, 3))
def sharded(root: Path, world: World) -> dict[str, dict[str, Any]]:
    return {each.__name__: outcome(each, root, world, "fsdp") for each in chosen(SHARDED_BY[world.size], root)}


@pytest.mark.parametrize(("situation", "processes"), [(each, n) for n in (2, 3) for each in REPLICATED_BY[n]])
def test_replicas_train_what_one_process_trains(situation: Any, processes: int, result: Results) -> None:
    found = result(replicated, ranks=processes)[situation.__name__]
    assert "error" not in found, found["error"]
    assert found["alike"]
    assert same(found["whole"], found["cut"])
    if situation.like_one:
        assert close(by_one(situation), found["whole"])


@scenario(ranks=(2, 4))
def hybrid(root: Path, world: World) -> dict[str, dict[str, Any]]:
    """By two machines, as the ranks are told."""
    local_size = world.size // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", str(local_size))
        patch.setenv("LOCAL_RANK", str(world.rank % local_size))
        return {each.__name__: outcome(each, root, world, "hsdp") for each in chosen(HYBRID_BY[world.size], root)}


OF_SHARDS = [(each, n, sharded) for n in (2, 3) for each in SHARDED_BY[n]]
OF_SHARDS += [(each, n, hybrid) for n in (2, 4) for each in HYBRID_BY[n]]


@pytest.mark.parametrize(("situation", "processes", "strategy"), OF_SHARDS)
def test_shards_train_what_one_process_trains_or_say_why_not(
    situation: Any, processes: int, strategy: Any, result: Results
) -> None:
    found = result(strategy, ranks=processes)[situation.__name__]
    if "error" in found:
        assert situation.sharded is not None, found["error"]
        assert situation.sharded in found["error"]
        return
    assert situation.sharded is None
    assert found["alike"]
    assert same(found["whole"], found["cut"])
    if situation.like_one:
        assert close(by_one(situation), found["whole"])


def test_the_table_in_the_docs_has_what_is_tested() -> None:
    """Otherwise replace it by what `table` of helpers/situations.py returns."""
    assert table() in (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()


class Noting(Situation):
    """A network of several messages; notes which samples it has seen."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(perceptron())
        self.optimizer = self.sgd(self.net.parameters())
        self.seen: list[Any] = []

    def loss(self, x: Any, index: Any) -> Any:
        self.seen += [x] if self.net.training else []
        return super().loss(x, index)


def perceptron() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 600), nn.Tanh(), nn.Linear(600, 600), nn.Tanh(), nn.Linear(600, 4))


@scenario(ranks=2)
def beside_ddp(root: Path, world: World) -> tuple[list[Any], list[Any]]:
    """The weights of the trainer, and those of a loop around a DistributedDataParallel with the same batches."""
    model = Noting()
    quiet(max_steps=STEPS).fit(model, samples(2))
    net = perceptron()
    replica, optimizer = DistributedDataParallel(net), model.sgd(net.parameters())
    for x in model.seen:
        nn.functional.mse_loss(replica(x), x.cos()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*model.net.parameters()], [*net.parameters()]


def test_two_replicas_have_the_bits_of_distributed_data_parallel(result: Results) -> None:
    ours, theirs = result(beside_ddp, ranks=2)
    assert len(ours) == 6
    assert same(ours, theirs)


@scenario(ranks=(2, 3))
def wrong(root: Path, world: World) -> dict[str, list[dict[str, Any]]]:
    """What the errors of all ranks say, by program."""
    options = {"max_epochs": 2, "log_every_steps": 100}
    programs = chosen(WRONG_BY[world.size], root)
    return {each.__name__: world.gather(attempted(each, world.size, **options)) for each in programs}


@pytest.mark.parametrize(("situation", "processes"), [(each, n) for n in (2, 3) for each in WRONG_BY[n]])
def test_ranks_that_do_not_do_the_same_are_an_error_on_all(situation: Any, processes: int, result: Results) -> None:
    for found in result(wrong, ranks=processes)[situation.__name__]:
        assert situation.says in found["error"]


@pytest.mark.parametrize("situation", [SecondPass, InBatchHook])
def test_ranks_that_do_not_do_the_same_before_a_row_end_with_words(situation: Any) -> None:
    options = {"max_epochs": 1, "log_every_steps": 1, "devices": 2, "accelerator": "cpu", "hang_minutes": 0.5}
    with pytest.raises(RuntimeError, match=r"SIGABRT.*all ranks must call backward, optimizer_step"):
        quiet(**options).fit(situation(), samples(2))
