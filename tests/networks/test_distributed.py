"""Several real gloo processes: the same program, the same result, no hangs."""

import contextlib
import gc
import itertools
import math
import os
import shutil
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchmetrics
from helpers import hook_table
from helpers.clock import Time
from helpers.collectives import Collectives, first_difference, where_they_part
from helpers.compare import close, same, saved, timeless, weights
from helpers.faulty import Failing
from helpers.fitting import CLOSING, Closing, ClosingAndPlain, Fitting, network
from helpers.fitting import data as fitting_data
from helpers.models import Indices, Judged, Plain, Tiny, data, quiet
from helpers.processes import deadline
from helpers.replayed import Digests, Dropped, digest, digests, trainer
from helpers.replayed import data as replayed_data
from helpers.rows import read_rows
from helpers.scenarios import Results, scenario
from helpers.scored import KINDS, NoMerge, Scored, With, by_hand, only
from torch import nn
from torch.utils.data import IterableDataset

from helios_lite import Callback, DataModule, Split
from helios_lite.callbacks import EMA
from helios_lite.checkpoints.naming import find
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.metrics.measurements import is_measured
from helios_lite.metrics.score_tables import ScoreTables
from helios_lite.processes.launch import launch
from helios_lite.processes.world import World, join_world
from helios_lite.samplers import BucketBatchSampler
from helios_lite.training import clock

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def ended() -> Iterator[None]:
    """Everything here ends by itself; should it not, the alarm ends it instead of a human."""
    with deadline(240):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all scenarios, in which one process has left checkpoints after three steps, four and five."""
    root = tmp_path_factory.mktemp("scenarios")
    quiet(max_steps=4, root=root / "from-one").fit(Plain(), data(22, batch_size=4))
    quiet(max_steps=5, root=root / "two-left").fit(Rarely(), data(22, batch_size=4))
    quiet(max_steps=3, root=root / "buckets").fit(Plain(), bucketed())
    quiet(max_steps=3, root=root / "drawn-by-one").fit(Plain(), DataModule(Drawn(rank=0)))
    return root


@pytest.fixture(scope="module")
def result(root: Path) -> Results:
    return Results(__name__, root)


# The same result as by one process.

CASES = [
    # length of the training data, samples per step, accumulation, weighted
    (16, 4, 1, False),
    (22, 4, 1, False),
    (23, 8, 2, False),
    (23, 12, 3, True),
    (20, 4, 1, True),
    (27, 6, 1, True),
    (24, 12, 2, False),
]


def trained(case: tuple[int, int, int, bool], world_size: int, **options: Any) -> dict[str, Any]:
    length, per_step, accumulation, weighted = case
    batch_size = per_step // accumulation // world_size
    model = Plain(weighted)
    datamodule = DataModule(
        Split(Indices(length), batch_size=batch_size, shuffle=True), Split(Indices(7), batch_size=batch_size)
    )
    options = {"max_epochs": 4, "monitor": "valid/loss", "patience": 2, "min_delta": 0.02, **options}
    result = quiet(accumulation_steps=accumulation, log_every_steps=3, **options).fit(model, datamodule)
    return {
        "weights": weights(model)["net"],
        "metrics": timeless(result.metrics),
        "rates": model.rates,
        "steps": result.state.step,
        "reason": result.stop_reason,
        "samples": sum(map(len, model.seen)),
    }


@scenario(ranks=(2, 3))
def trained_by_several(root: Path, world: World) -> dict[Any, dict[str, Any]]:
    return {case: trained(case, world.size) for case in CASES if case[1] // case[2] % world.size == 0}


def require_like_one(case: Any, several: dict[str, Any]) -> None:
    one = trained(case, 1)
    for name in ("weights", "metrics", "rates", "steps", "reason"):
        assert close(one[name], several[name]), name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does_with_the_double_batch(case: Any, result: Results) -> None:
    require_like_one(case, result(trained_by_several, ranks=2)[case])


def test_three_processes_do_what_one_does_with_the_triple_batch(result: Results) -> None:
    found = result(trained_by_several, ranks=3)
    assert len(found) == 2
    for case, several in found.items():
        require_like_one(case, several)


class OfTwoSplits(Plain):
    """Trains on the batches of two splits."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.seen.append(batch["b"][0].tolist())
        x, z = batch["a"][1], batch["b"][1]
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean() + (self.net(z) - 1).square().mean()
        self.backward(loss)
        self.log("loss", loss)
        self.optimizer_step(self.optimizer, self.scheduler)


def trained_on_two_splits(world_size: int, **options: Any) -> dict[str, Any]:
    model = OfTwoSplits()
    sizes = {"shuffle": True, "drop_last": True, "batch_size": 4 // world_size}
    data = DataModule({"a": Split(Indices(18), **sizes), "b": Split(Indices(30), **sizes)})
    result = quiet(accumulation_steps=2, **options).fit(model, data)
    return {"weights": weights(model)["net"], "metrics": timeless(result.metrics), "seen": model.gather(model.seen)}


@scenario(ranks=2)
def trained_on_two_splits_by_two(root: Path, world: World) -> list[dict[str, Any]]:
    found = [trained_on_two_splits(2, max_epochs=3)]
    for steps in (3, 6):  # A checkpoint within the second epoch and the first pass.
        found.append(trained_on_two_splits(2, max_steps=steps, root=root / "splits"))
    trained_on_two_splits(2, max_steps=3, root=root / "splits-for-one")
    return found


def test_batches_of_two_splits_are_shared_among_the_ranks_and_over_resumes(result: Results, root: Path) -> None:
    whole, first, second = result(trained_on_two_splits_by_two, ranks=2)
    one = trained_on_two_splits(1, max_epochs=3)
    for name in ("weights", "metrics"):
        assert close(whole[name], one[name])
    assert same(second["weights"], whole["weights"])
    seen = [sorted(a + b) for a, b in zip(*whole["seen"], strict=True)]
    assert seen == [sorted(batch) for batch in one["seen"][0]]
    cut = [a + b for part in (first, second) for a, b in zip(*part["seen"], strict=True)]
    assert [sorted(batch) for batch in cut] == seen
    rest = trained_on_two_splits(1, max_steps=6, root=root / "splits-for-one")
    assert [sorted(batch) for batch in rest["seen"][0]] == seen[len(seen) - len(rest["seen"][0]) :]
    assert close(rest["weights"], one["weights"])


def evaluated(length: int, batch_size: int) -> tuple[list[int], dict[str, float]]:
    """The indices that this rank has evaluated, and the metrics over all ranks."""
    model = Plain()
    metrics = quiet(max_epochs=1).test(model, DataModule(test=Split(Indices(length), batch_size=batch_size)))
    return model.validated, metrics


@scenario(ranks=(2, 3))
def evaluated_by_several(root: Path, world: World) -> dict[int, tuple[list[int], dict[str, float]]]:
    """For every length, the indices that all ranks have evaluated, and the metrics."""
    found = {}
    for length in range(1, 18):
        mine, metrics = evaluated(length, batch_size=2)
        found[length] = [index for part in world.gather(mine) for index in part], metrics
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", range(1, 18))
def test_every_index_is_evaluated_once_for_every_length_and_number_of_processes(
    length: int, size: int, result: Results
) -> None:
    if size == 1:
        indices, metrics = evaluated(length, batch_size=2)
    else:
        indices, metrics = result(evaluated_by_several, ranks=size)[length]
    assert sorted(indices) == list(range(length))
    assert metrics["test/index"] == pytest.approx((length - 1) / 2, abs=1e-12)
    assert metrics["test/last"] == length - 1


@scenario(ranks=2)
def replayed_by_two(root: Path, world: World) -> list[Any]:
    """For some steps whether the replay has the bits of the run, and the samples of both ranks."""
    path = root / f"digests-{world.rank}"
    options = {"root": root, "run_name": "replayed", "max_steps": 9, "callbacks": []}
    trainer(**{**options, "callbacks": [Digests(path)]}).fit(Dropped(), replayed_data())
    found = []
    for step in (5, 8):
        model = Dropped()
        replayed = trainer(**options).replay(model, replayed_data(), step)
        indices = [(batch.rank, batch.indices.tolist()) for batch in replayed.batches]
        found.append((world.gather(digest(model) == digests(path)[step]), indices, replayed.started_at))
    return found


def test_ranks_replay_a_step_together_and_show_the_samples_of_all(result: Results) -> None:
    for is_equal, indices, started_at in result(replayed_by_two, ranks=2):
        assert is_equal == [True, True]
        assert [rank for rank, _ in indices] == [0, 0, 1, 1]
        assert len({index for _, part in indices for index in part}) == 16
        assert started_at > 0


class Perplexed(Plain):
    """Computes metrics from others, and one that differs among the ranks."""

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        return {f"{phase}/perplexity": math.exp(metrics[f"{phase}/loss"]), f"{phase}/rank": float(self.global_rank)}


def perplexed(batch_size: int) -> tuple[Any, Any]:
    """The metrics of the result, and those that the model of this rank knows."""
    model = Perplexed()
    options = {"max_epochs": 3, "log_every_steps": 2, "monitor": ["valid/perplexity", "valid/rank"]}
    result = quiet(**options).fit(model, data(train=22, valid=7, batch_size=batch_size))
    return timeless(result.metrics), timeless(model.metrics)


@scenario(ranks=2)
def perplexed_by_two(root: Path, world: World) -> tuple[Any, list[Any]]:
    metrics, own = perplexed(batch_size=2)
    return metrics, world.gather(own)


def test_metrics_that_are_computed_from_others_are_those_of_one_process(result: Results) -> None:
    expected, _ = perplexed(batch_size=4)
    metrics, (own, of_the_other) = result(perplexed_by_two, ranks=2)
    assert close(metrics, expected)
    assert metrics["valid/perplexity"] == math.exp(metrics["valid/loss"])
    assert own == of_the_other
    assert own["train/rank"] == own["valid/rank"] == 0.0


@scenario(ranks=2)
def evaluated_by_a_sharded_network(root: Path, world: World) -> list[tuple[int, float]]:
    found = []
    for length in (1, 3, 8):
        trainer = quiet(max_epochs=1, strategy="fsdp")
        metrics = trainer.test(Plain(), DataModule(test=Split(Indices(length), batch_size=2)))
        found.append((length, metrics["test/index"]))
    return found


def test_a_sharded_network_evaluates_different_numbers_of_batches(result: Results) -> None:
    found = result(evaluated_by_a_sharded_network, ranks=2)
    assert found == [(length, (length - 1) / 2) for length in (1, 3, 8)]


LIMITS: list[dict[str, Any]] = [
    {"limit_train_batches": 3, "limit_valid_batches": 0.5},
    {"overfit_batches": 2},
]


def limited(batch_size: int) -> list[Any]:
    """The seen and validated indices of all ranks, the final weights and the metrics of limited trainings."""
    found = []
    for limits in LIMITS:
        model = Plain()
        trainer = quiet(max_epochs=2, accumulation_steps=2, sanity_batches=0, **limits)
        metrics = trainer.fit(model, data(23, valid=13, batch_size=batch_size)).metrics
        found.append([model.gather((model.seen, model.validated)), weights(model), timeless(metrics)])
    return found


@scenario(ranks=2)
def limited_by_two(root: Path, world: World) -> list[Any]:
    return limited(batch_size=2)


@pytest.mark.parametrize("case", range(len(LIMITS)))
def test_two_processes_have_the_limited_batches_of_one_with_the_double_batch(case: int, result: Results) -> None:
    (parts, *several), ([(seen, validated)], *one) = result(limited_by_two, ranks=2)[case], limited(batch_size=4)[case]
    (first, first_validated), (second, second_validated) = parts
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == seen
    assert sorted(first_validated + second_validated) == sorted(validated)
    assert close(several, one)


class Noisy(Plain):
    """Predicts the output of its network with random numbers, for a batch of two and more."""

    def predict_step(self, batch: Any, step: int) -> Any:
        index, x = batch
        return index, self.net(x) + torch.rand(len(x), 1)


LENGTHS = [1, 2, 9]  # With batches of two: none for rank 1, one for each, one more for rank 0.


def predicted_files(root: Path, strategy: str) -> list[Any]:
    found = []
    for length in LENGTHS:
        path = root / f"predicted-{strategy}-{length}"
        datamodule = DataModule(predict=Split(Indices(length), batch_size=2, shuffle=True))
        quiet(strategy=strategy).write_predictions(Noisy(), datamodule, path)
        found.append(torch.load(path, weights_only=True))
    return found


@scenario(ranks=2)
def predictions_of_two_ranks(root: Path, world: World) -> dict[str, Any]:
    found = {}
    for strategy in ("ddp", "fsdp"):
        predictions = quiet(strategy=strategy).predict(Noisy(), DataModule(predict=Split(Indices(9), 2)))
        first = next(predictions)[0].tolist()
        own = [first, *([] if world.is_main else [indices.tolist() for indices, _ in predictions])]
        predictions.close()  # Rank 0 takes no more, and rank 1 gets all of its own nevertheless.
        found[strategy] = predicted_files(root, strategy), world.gather(own)
    return found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_predictions_of_two_ranks_are_those_of_one(strategy: str, result: Results, tmp_path: Path) -> None:
    files, by_rank = result(predictions_of_two_ranks, ranks=2)[strategy]
    assert by_rank == [[[0, 1]], [[2, 3], [6, 7]]]
    assert same(files, predicted_files(tmp_path, "ddp"))


@scenario(ranks=(2, 3))
def sharded_training_with_one_validation_sample(root: Path, world: World) -> dict[int, list[Any]]:
    """For each accumulation the weights at the end of a training that validates, and of one that does not."""
    found = {}
    for accumulation in (2, 1):  # Without the reset after a validation the first fails, and the second waits for ever.
        options: dict[str, Any] = {"max_epochs": 1, "strategy": "fsdp", "accumulation_steps": accumulation}
        models = [Plain(), Plain()]
        for model, every_steps in zip(models, (1, None), strict=True):
            trainer = quiet(**options, valid_every_epochs=None, valid_every_steps=every_steps)
            trainer.fit(model, data(12, valid=1, batch_size=2))
        found[accumulation] = [sum(world.gather(len(models[0].validated))), *map(weights, models)]
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_sharded_network_trains_on_after_a_validation_without_a_batch_for_some_ranks(
    ranks: int, result: Results
) -> None:
    for samples, validated, unvalidated in result(sharded_training_with_one_validation_sample, ranks=ranks).values():
        assert samples > 1
        assert same(validated, unvalidated)


def norms(batch_size: int = 2, **options: Any) -> dict[str, float]:
    """The norms at the last log point of a short run."""
    both: dict[str, Any] = {"log_grad_norm": "per-parameter", "log_param_norm": "per-parameter"}
    result = quiet(max_steps=3, log_every_steps=3, **both, **options).fit(Plain(), data(16, batch_size=batch_size))
    return {name: value for name, value in result.metrics.items() if "_norm" in name}


@scenario(ranks=2)
def norms_of_two(root: Path, world: World) -> dict[str, dict[str, float]]:
    return {strategy: norms(strategy=strategy) for strategy in ("ddp", "fsdp")}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_norms_are_those_of_one_process_with_the_double_batch(strategy: str, result: Results) -> None:
    one = norms(batch_size=4)
    assert len(one) == 10
    assert result(norms_of_two, ranks=2)[strategy] == pytest.approx(one, rel=1e-5)


def test_one_process_shares_nothing() -> None:
    split = Split(Indices(5), batch_size=2)
    model = Plain()
    quiet(max_epochs=1).fit(model, DataModule(split))
    assert model.seen == [[0, 1], [2, 3], [4]]
    assert not model.is_distributed


@scenario(ranks=2)
def results_of_every_rank(root: Path, world: World) -> list[Any]:
    options: dict[str, Any] = {"max_steps": 6, "log_every_steps": 1, "valid_every_steps": 2, "monitor": "valid/loss"}
    trainer = quiet(root=root / "results", **options)
    model, datamodule = Plain(), data(22)
    return world.gather((trainer.fit(model, datamodule), trainer.test(model, datamodule)))


def test_fit_and_test_return_the_same_on_every_rank(result: Results) -> None:
    (fitted, tested), other = result(results_of_every_rank, ranks=2)
    assert (fitted, tested) == other
    assert fitted.last_checkpoint.exists()
    assert fitted.best_checkpoint.exists()
    assert fitted.best_metrics["train/step_seconds"] > 0
    assert tested["test/last"] == 4


# Which samples.


class Predicting(Plain):
    """Collects what it has predicted, as docs/distributed.md shows, and logs several reductions."""

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self.predictions: list[tuple[int, torch.Tensor]] = []

    def valid_step(self, batch: Any, step: int) -> None:
        index, x = batch
        self.predictions += zip(index.tolist(), self.net(x).squeeze(1), strict=True)
        self.log("index", index.double().mean(), reduce=("mean", "max"))
        for i in index.tolist():
            self.log("each", i, count=1, reduce=["std", "sum", "min"])

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self.parts = self.gather(self.predictions)


def predicted(batch_size: int) -> tuple[dict[str, float], list[list[tuple[int, torch.Tensor]]]]:
    model = Predicting()
    metrics = quiet(max_epochs=1).validate(model, data(valid=5, batch_size=batch_size), checkpoint=None)
    return metrics, model.parts


@scenario(ranks=2)
def predicted_by_two(root: Path, world: World) -> list[Any]:
    return world.gather(predicted(batch_size=2))


def test_what_ranks_gather_is_what_one_process_has_collected(result: Results) -> None:
    (one,) = predicted(batch_size=4)[1]
    (_, parts), (_, parts_of_the_other) = result(predicted_by_two, ranks=2)
    assert same(parts, parts_of_the_other)
    assert [[index for index, _ in part] for part in parts] == [[0, 1], [2, 3, 4]]
    two = dict(parts[0] + parts[1])
    assert len(one) == len(two) == 5
    assert all(close(value, two[index]) for index, value in one)


def test_several_reductions_over_ranks_are_those_of_one_process(result: Results) -> None:
    expected = predicted(batch_size=4)[0]
    assert expected == {
        "valid/index": 2.0,
        "valid/index/max": 4.0,
        "valid/each": pytest.approx(2**0.5),
        "valid/each/sum": 10.0,
        "valid/each/min": 0.0,
    }
    for metrics, _ in result(predicted_by_two, ranks=2):
        assert metrics == {**expected, "valid/index/max": pytest.approx(4.0), "valid/each": pytest.approx(2**0.5)}


class Tabled(Plain):
    """Fills the table of losses, and records the running sums at logging steps and validations."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[tuple[Any, dict[str, float]]] = []
        self.has_ended = False

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self._loss_items["loss"] = loss
        self._loss_items["first"] = index.double().mean().reshape(1)

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        if should_log:
            self.note(state.step)

    def on_validation_end(self, validation_cycle: int) -> None:
        self.note(f"cycle {validation_cycle}")
        super().on_validation_end(validation_cycle)

    def on_training_end(self) -> None:
        self.has_ended = True  # What follows is the validation of the final weights.

    def note(self, when: Any) -> None:
        if not self.has_ended:
            self.sums.append((when, {name: float(value) for name, value in self._running_losses.items()}))


def tabled(batch_size: int, stops: tuple[int, ...] = (13,), root: Path | None = None) -> list[Any]:
    """The running sums of a run that is stopped several times: steps of 4 samples, the last of an epoch of 2."""
    sums: list[Any] = []
    for steps in stops:
        model = Tabled()
        options = {"log_every_steps": 4, "valid_every_steps": 3, "valid_every_epochs": None, "sanity_batches": 0}
        quiet(max_steps=steps, root=root, **options).fit(model, data(22, valid=3, batch_size=batch_size))
        sums += model.sums
    return sums


@scenario(ranks=2)
def tabled_by_two(root: Path, world: World) -> dict[str, Any]:
    whole = tabled(2, root=root / "tabled")
    parts = tabled(2, (1, 2, 5, 7, 13), root=root / "tabled-parts")
    tabled(2, (5,), root=root / "tabled-by-two-then-one")
    folders = root / "tabled", root / "tabled-parts"
    ends = [saved(folder / "plain", "monitor", "metrics", "ranks") for folder in folders if world.is_main]
    return {"whole": world.gather(whole), "parts": parts, "ends": ends}


def test_running_losses_are_those_of_one_process_with_the_double_batch(result: Results) -> None:
    expected = tabled(4)
    assert [when for when, _ in expected] == [
        "cycle 1", 4, 6, "cycle 2", 8, "cycle 3", 12, "cycle 4"
    ]  # fmt: skip
    first, second = result(tabled_by_two, ranks=2)["whole"]
    assert first == second
    assert close(first, expected)


def test_running_losses_of_a_resumed_run_are_those_of_one_that_was_not_stopped(result: Results) -> None:
    found = result(tabled_by_two, ranks=2)
    assert found["parts"] == found["whole"][0]
    assert same(*found["ends"])


def test_running_losses_of_two_processes_go_on_in_one(root: Path, result: Results) -> None:
    result(tabled_by_two, ranks=2)
    expected = tabled(4)
    found = tabled(4, (13,), root=root / "tabled-by-two-then-one")
    assert close(found, expected[-len(found) :])
    assert [when for when, _ in found] == [6, "cycle 2", 8, "cycle 3", 12, "cycle 4"]


@scenario(ranks=2)
def epoch_of_21_samples(root: Path, world: World) -> list[list[list[int]]]:
    model = Plain()
    quiet(max_epochs=1).fit(model, data(21, batch_size=2))
    return world.gather(model.seen)


def test_training_drops_fewer_samples_than_there_are_ranks_and_repeats_none(result: Results) -> None:
    first, second = result(epoch_of_21_samples, ranks=2)
    visited = [index for batch in [*first, *second] for index in batch]
    assert len(visited) == len(set(visited)) == 20
    assert len(first) == len(second)


@scenario(ranks=2)
def first_two_steps_of_an_epoch(root: Path, world: World) -> list[list[list[int]]]:
    model = Plain()
    quiet(max_steps=2, root=root / "elastic").fit(model, data(23, batch_size=2))
    return world.gather(model.seen)


def rest_of_the_epoch(root: Path) -> list[list[list[int]]]:
    """Run by three processes, after one process has gone on where two had stopped; so it needs a launch of its own."""
    world = join_world("cpu")
    model = Plain()
    quiet(max_epochs=1, root=root / "elastic").fit(model, data(23, batch_size=2))
    return world.gather(model.seen)


def test_a_resume_with_other_numbers_of_processes_visits_every_index_of_the_epoch_once(
    root: Path, result: Results
) -> None:
    """Two steps of four samples by two processes, two of two by one, and what is left by three."""
    visited = [index for rank in result(first_two_steps_of_an_epoch, ranks=2) for batch in rank for index in batch]
    assert len(visited) == 8
    model = Plain()
    quiet(max_steps=4, root=root / "elastic").fit(model, data(23, batch_size=2))
    visited += [index for batch in model.seen for index in batch]
    assert len(visited) == 12
    seen = launch(rest_of_the_epoch, {"root": root}, processes=3, max_restarts=0)
    assert len({len(rank) for rank in seen}) == 1
    visited += [index for rank in seen for batch in rank for index in batch]
    assert len(visited) == len(set(visited))
    assert len(visited) > 23 - 3


def bucketed() -> DataModule:
    lengths = [1 + index % 6 for index in range(23)]
    split = Split(Indices(23), batch_sampler=BucketBatchSampler(lengths, batch_size=4, max_tokens=12))
    return DataModule(split)


@scenario(ranks=2)
def batches_of_similar_length(root: Path, world: World) -> dict[str, Any]:
    """A training from its start, and the end of the epoch in which one process has done three steps."""
    whole, rest = Plain(), Plain()
    quiet(max_steps=3, root=root / "buckets-of-two").fit(whole, bucketed())
    path = root / "buckets/plain/checkpoints/plain_epoch_0_iter_3.pth"
    quiet(max_epochs=1, resume=path).fit(rest, bucketed())
    return {"weights": weights(whole), "whole": world.gather(whole.seen), "rest": world.gather(rest.seen)}


def test_two_processes_share_batches_of_similar_length_and_go_on_where_one_was(root: Path, result: Results) -> None:
    """Two do what one does with two accumulation steps; one goes on where two were, and the other way round."""
    found = result(batches_of_similar_length, ranks=2)
    one, alone = Plain(), Plain()
    quiet(max_epochs=1).fit(one, bucketed())
    assert len(one.seen) == 8
    quiet(max_steps=3, accumulation_steps=2).fit(alone, bucketed())
    assert [batch for step in zip(*found["whole"], strict=True) for batch in step] == alone.seen == one.seen[:6]
    assert close(weights(alone), found["weights"])

    went_on = Plain()
    quiet(max_epochs=1, root=root / "buckets-of-two").fit(went_on, bucketed())
    assert went_on.seen == one.seen[6:]
    rest = [index for step in zip(*found["rest"], strict=True) for batch in step for index in batch]
    assert rest == [index for batch in one.seen[3:] for index in batch]


class Rarely(Plain):
    """Logs one name in the fourth step only."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        if state.step == 3:
            self.log("rarely", 2.0)


@scenario(ranks=3)
def fits_after_fewer_ranks_in_the_middle_of_an_epoch(root: Path, world: World) -> list[dict[str, float]]:
    """Two samples are left, so that no rank has a batch before the row at the end of the epoch; then some have."""
    found = []
    for epochs, every_steps in ((1, 50), (2, 8)):
        path = root / "two-left/plain/checkpoints/plain_epoch_0_iter_5.pth"
        trainer = quiet(max_epochs=epochs, log_every_steps=every_steps, resume=path, valid_every_epochs=None)
        found.append(trainer.fit(Rarely(), data(22, batch_size=2)).metrics)
    return found


def test_ranks_that_a_checkpoint_does_not_have_need_not_have_logged_what_it_restores(result: Results) -> None:
    ended, went_on = result(fits_after_fewer_ranks_in_the_middle_of_an_epoch, ranks=3)
    assert ended["train/rarely"] == went_on["train/rarely"] == 2.0
    one = quiet(max_steps=5, log_every_steps=5).fit(Plain(), data(22, batch_size=4))
    assert ended["train/loss"] == pytest.approx(one.metrics["train/loss"], rel=1e-6)


# What only one rank does.


@scenario(ranks=2)
def judged_by_two(root: Path, world: World) -> list[Any]:
    datamodule = DataModule(Split(Indices(10), batch_size=2))
    result = quiet(max_epochs=5, monitor="train/score", patience=2).fit(Judged(), datamodule)
    return world.gather([result.stop_reason, result.state.step, result.state.best_step, result.state.best_score])


def test_ranks_compare_the_same_mean_over_an_epoch(result: Results) -> None:
    assert result(judged_by_two, ranks=2) == [["patience", 12, 6, pytest.approx(3.0)]] * 2


class Requesting(Callback):
    """Rank 1 asks for something after some steps."""

    def __init__(self, asked: dict[int, str]) -> None:
        self.asked = asked

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if self.model.global_rank == 1 and state.step in self.asked:
            getattr(self.model, f"request_{self.asked[state.step]}")()


class Meeting(Requesting):
    """Ranks communicate at every step."""

    def should_training_stop(self) -> bool:
        return False


@scenario(ranks=2)
def requests_of_rank_1(root: Path, world: World) -> list[Any]:
    asked, ends = {2: "validation", 3: "save", 5: "stop"}, []
    for callback, limit in ((Meeting(asked), 8), (Requesting(asked), 100_000)):
        folder = root / type(callback).__name__
        trainer = quiet(root=folder, callbacks=[callback], max_steps=limit, valid_every_epochs=10**6, keep_last=-1)
        result = trainer.fit(Plain(), data(22))
        steps = [int(path.stem.rpartition("_")[2]) for path in find(folder / "plain" / "checkpoints", "plain")]
        ends.append([result.stop_reason, result.state.step, result.state.validation_cycle, steps])
    return world.gather(ends)


def test_what_one_rank_asks_for_all_ranks_do(result: Results) -> None:
    (meeting, seldom), others = result(requests_of_rank_1, ranks=2)
    assert [meeting, seldom] == others
    assert meeting == ["should_training_stop", 5, 2, [5, 3]]
    reason, step, validations, steps = seldom
    assert reason == "should_training_stop"
    assert validations in (1, 2)  # The ranks may communicate between the requests.
    assert 5 <= step < 100_000
    assert step in steps


def message(function: Any) -> str:
    """The message of the exception that a call raises."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


class Naming(Plain):
    """Logs one name more on rank 1."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        if self.global_rank == 1:
            self.log("only_here", 1.0)


@scenario(ranks=2)
def fit_with_a_name_logged_by_one_rank(root: Path, world: World) -> list[str]:
    return world.gather(message(lambda: quiet(max_epochs=1).fit(Naming(), data(22, batch_size=2))))


def test_names_of_metrics_that_differ_are_one_error_on_all_ranks(result: Results) -> None:
    expected = "ValueError: metrics differ among the ranks: rank 0 did not log ['train/only_here']"
    assert result(fit_with_a_name_logged_by_one_rank, ranks=2) == [expected] * 2


class Forgetful(Plain):
    """Trains a part that it did not parallelize."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.head = nn.Linear(1, 1)
        self.optimizer.add_param_group({"params": self.head.parameters()})


@scenario(ranks=2)
def fit_with_a_part_not_parallelized(root: Path, world: World) -> list[str]:
    return world.gather(message(lambda: quiet(max_epochs=1).fit(Forgetful(), data(22, batch_size=2))))


def test_a_trained_part_that_was_not_parallelized_is_an_error_that_names_it(result: Results) -> None:
    found = result(fit_with_a_part_not_parallelized, ranks=2)
    assert len(found) == 2
    assert all(text.startswith("ValueError: head: ") for text in found)


class StopsOnOne(Plain):
    """Rank 1 alone wants to stop after the third step."""

    def should_training_stop(self) -> bool:
        return self.global_rank == 1 and len(self.rates) == 3


@scenario(ranks=2)
def fit_that_one_rank_stops(root: Path, world: World) -> list[int]:
    return world.gather(quiet().fit(StopsOnOne(), data(22, batch_size=2)).state.step)


def test_a_wish_to_stop_on_one_rank_stops_all_at_the_same_step(result: Results) -> None:
    assert result(fit_that_one_rank_stops, ranks=2) == [3, 3]


class Dealt(IterableDataset):
    """Rank r of n gives the samples r, r + n, ... without an end."""

    def __iter__(self) -> Iterator[Any]:
        rank, size = dist.get_rank(), dist.get_world_size()
        return map(Indices(0).__getitem__, itertools.count(rank, size))


@scenario(ranks=2)
def epochs_of_some_steps(root: Path, world: World) -> dict[str, Any]:
    """A dataset in passes of 6 steps and a stream, in epochs of 4; the run is cut after an epoch and inside one."""
    found: dict[str, Any] = {}
    for name, source in (("dataset", Split(Indices(22), 2, shuffle=True)), ("stream", Split(Dealt(), 2))):
        options: dict[str, Any] = {"steps_per_epoch": 4, "seed": 5}
        whole = Plain()
        quiet(max_steps=9, root=None, **options).fit(whole, DataModule(train=source))
        parts = []
        for max_steps in (3, 4, 9):
            part = Plain()
            quiet(max_steps=max_steps, root=root / f"passes-{name}", **options).fit(part, DataModule(train=source))
            parts += part.seen
        found[name] = world.gather((whole.seen, parts, weights(whole), weights(part)))
    return found


def test_epochs_of_some_steps_go_on_on_two_ranks_and_over_resumes(result: Results) -> None:
    found = result(epochs_of_some_steps, ranks=2)
    for ranks in found.values():
        for whole, parts, expected, resumed in ranks:
            assert parts == whole
            assert same(resumed, expected)
    alone = Plain()
    quiet(max_steps=9, steps_per_epoch=4, seed=5).fit(alone, DataModule(train=Split(Indices(22), 4, shuffle=True)))
    (first, *_, of_two), (second, *_) = found["dataset"]
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in alone.seen]
    assert close(of_two, weights(alone))
    (first, *_), (second, *_) = found["stream"]
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [[*range(4 * i, 4 * i + 4)] for i in range(9)]


def test_the_number_of_processes_may_change_inside_a_pass_that_epochs_do_not_end(
    result: Results, root: Path, tmp_path: Path
) -> None:
    result(epochs_of_some_steps, ranks=2)
    shutil.copytree(root / "passes-dataset", tmp_path / "copied")
    options: dict[str, Any] = {"steps_per_epoch": 4, "seed": 5}
    resumed, alone = Plain(), Plain()
    split = Split(Indices(22), 4, shuffle=True)
    quiet(max_steps=15, root=tmp_path / "copied", **options).fit(resumed, DataModule(train=split))
    quiet(max_steps=15, **options).fit(alone, DataModule(train=split))
    assert resumed.seen == alone.seen[9:]


class Steep(Plain):
    """In the third batch of rank 1 the gradients of the last hidden unit are infinite, which FSDP gives to that rank.

    It notes what is left after every batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net[0].register_forward_hook(self.spoil)

    def spoil(self, module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        if len(self.states) == 2 and self.global_rank == 1:
            output.register_hook(lambda grad: grad.index_fill(1, torch.tensor([7]), torch.inf))

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        with self.autocast():
            loss = (self.net(x).float() - x.sum(1, keepdim=True)).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.scheduler)

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.states.append((state.step, state.skipped_steps, weights(self)))


@scenario(ranks=2)
def fit_with_steep_gradients_on_one_rank(root: Path, world: World) -> dict[str, list[Any]]:
    found = {}
    for strategy in ("ddp", "fsdp"):
        model = Steep()
        trainer = quiet(max_epochs=1, precision="fp16", strategy=strategy, valid_every_epochs=None)
        trainer.fit(model, data(16, batch_size=2))
        found[strategy] = world.gather(model.states)
    return found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_leave_out_a_step_if_the_gradients_of_one_are_not_finite(strategy: str, result: Results) -> None:
    first, second = result(fit_with_steep_gradients_on_one_rank, ranks=2)[strategy]
    assert same(first, second)
    (step, skipped, before), (step_after, skipped_after, after) = first[1:3]
    assert (step_after, skipped_after) == (step, skipped + 1)
    assert same(before, after)
    assert first[3][0] == step + 1


# What each method has in hand.


@scenario(ranks=2)
def in_hand(root: Path, world: World) -> str:
    return hook_table.everywhere(root / "in-hand", world)


def test_the_page_says_what_each_method_has_in_hand(result: Results) -> None:
    assert hook_table.of_the_page() == result(in_hand, ranks=2)


# Gradients, buffers and generators.


class Watched(Closing):
    """Notes what a hook before the steps of its optimizer sees.

    In float64: by how much a line search makes more of a rounding depends on the processor.
    """

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(network().double())
        self.optimizer = self.made(self.net.parameters(), **self.options)
        self.noted: list[Any] = []
        if self.made is torch.optim.SGD:
            self.optimizer.register_step_pre_hook(lambda *_: self.noted.append([p.grad.clone() for p in fitted(self)]))

    def train_step(self, batch: Any, state: Any) -> None:
        batch = [tensor.double() for tensor in batch]
        if self.made is torch.optim.SGD:
            Fitting.train_step(self, batch, state)
        else:
            super().train_step(batch, state)


def fitted(model: Watched) -> list[torch.nn.Parameter]:
    return list(model.net.parameters())


WATCHED = {**CLOSING, "sgd": (torch.optim.SGD, {"lr": 0.1})}


def watched(batch_size: int) -> dict[str, Any]:
    ends = {}
    for kind, (made, options) in WATCHED.items():
        model = Watched(made, **options)
        quiet(max_epochs=1, clip_norm=0.05 if kind == "sam" else None).fit(model, fitting_data(batch_size))
        ends[kind] = [model.net.state_dict(), model.noted]
    return ends


@scenario(ranks=2)
def watched_by_two(root: Path, world: World) -> list[Any]:
    return world.gather(watched(2))


def test_closures_and_hooks_of_steps_get_averages_over_the_ranks(result: Results) -> None:
    one, (first, second) = watched(4), result(watched_by_two, ranks=2)
    assert same(first, second)
    assert len(one["sgd"][1]) == 3
    assert close(first, one)


def weighted_after_closing(batch_size: int) -> list[Any]:
    ends = []
    for kind in ("sam", "lbfgs"):
        made, options = CLOSING[kind]
        model = ClosingAndPlain(made, **options)
        quiet(max_epochs=1).fit(model, fitting_data(batch_size))
        ends.append(model.other.state_dict())
    return ends


@scenario(ranks=2)
def weighted_after_closing_by_two(root: Path, world: World) -> list[Any]:
    return weighted_after_closing(2)


def test_losses_of_another_optimizer_than_that_of_a_closure_may_have_weights(result: Results) -> None:
    assert close(result(weighted_after_closing_by_two, ranks=2), weighted_after_closing(4))


@scenario(ranks=2)
def reductions_of_two_windows(root: Path, world: World) -> tuple[int, int, int]:
    with Collectives() as recorded:
        state = quiet(max_epochs=1, accumulation_steps=3).fit(Plain(), data(24, batch_size=2)).state
    return sum("_send" in call and "_end_pass" in call for call in recorded.calls), state.step, state.batch


def test_gradients_are_reduced_once_per_accumulation_window(result: Results) -> None:
    assert result(reductions_of_two_windows, ranks=2) == (2, 2, 6)


class Normed(Tiny):
    """Batch norm, whose buffers are shared at the start of every step; and dropout."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)))
        if not fast_init:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self.buffers = [buffer.clone() for buffer in self.net.buffers()]


def fit_normed(name: str, root: Path, **options: Any) -> Normed:
    model = Normed(name)
    quiet(root=root / "normed", **options).fit(model, data(20, valid=1, batch_size=4))
    return model


@scenario(ranks=2)
def dropout_in_one_run_in_four_and_without_validation(root: Path, world: World) -> tuple[list[Any], list[Any]]:
    """Dropout differs among ranks, and every rank gets back its own at a resume, whatever validation does."""
    whole = fit_normed("whole", root, max_steps=9, valid_every_steps=2)
    for steps in (2, 3, 7, 9):
        parts = fit_normed("parts", root, max_steps=steps, valid_every_steps=2)
    unvalidated = fit_normed("unvalidated", root, max_steps=9, valid_every_epochs=None)
    return [weights(model) for model in (whole, parts, unvalidated)], world.gather(torch.rand(3))


def test_each_rank_gets_its_generators_back_and_validation_is_inert(result: Results) -> None:
    ends, draws = result(dropout_in_one_run_in_four_and_without_validation, ranks=2)
    whole, parts, unvalidated = ends
    assert same(whole, parts)
    assert same(whole, unvalidated)
    first, second = draws
    assert not torch.equal(first, second)


class Probing(Plain):
    """A validation that computes gradients, of which ranks have different numbers of batches."""

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        with torch.enable_grad():
            self.net(batch[1]).square().sum().backward()
        self.net.zero_grad()


@scenario(ranks=2)
def gradients_in_validations(root: Path, world: World) -> list[Any]:
    found = []
    for model in (Plain(), Probing()):
        quiet(max_epochs=2).fit(model, data(train=12, valid=5, batch_size=2))
        found += world.gather((weights(model), len(model.validated)))
    return found


def test_ranks_may_run_other_backward_passes_in_a_validation(result: Results) -> None:
    (plain, many), (_, few), *probed = result(gradients_in_validations, ranks=2)
    assert many != few
    assert all(same(plain, each) for each, _ in probed)


BUFFERED = [("ddp", False), ("fsdp", False), ("ddp", True), ("fsdp", True)]  # Strategy; with averaged weights or not.


@scenario(ranks=2)
def buffers_at_the_end_of_a_validation(root: Path, world: World) -> dict[str, list[Any]]:
    """By case and rank, of a run and of one that was stopped between its last step and its last validation."""
    found = {}
    for case in BUFFERED:
        strategy, is_averaged = case
        name = f"{strategy}-{is_averaged}"
        ends: dict[str, list[Any]] = {}
        for run, max_steps in (("whole", 4), ("stopped", 3), ("stopped", 4)):
            callbacks = [EMA(decay=0.5)] if is_averaged else []
            options = {"strategy": strategy, "callbacks": callbacks, "valid_every_steps": 2, "max_steps": max_steps}
            model = fit_normed(f"{run}-{name}", root, **options)
            ends[run] = world.gather(model.buffers)
        found[case] = ends["whole"] + ends["stopped"]
    return found


@pytest.mark.parametrize("case", BUFFERED)
def test_all_ranks_evaluate_with_the_buffers_of_rank_0(case: tuple[str, bool], result: Results) -> None:
    first, *others = result(buffers_at_the_end_of_a_validation, ranks=2)[case]
    assert all(same(first, other) for other in others)


# Loaders with a state, which differs among the ranks.


class Drawn:
    """Four batches per epoch of numbers that each rank draws for itself, each number from the one before."""

    def __init__(self, rank: int) -> None:
        self.number, self.position = 11 + 5 * rank, 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < 4:
            self.position += 1
            self.number = self.number * 29 % 101
            index, x = Indices(101)[self.number]
            yield torch.tensor([index]), x[None]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number, self.position = state["number"], state["position"]


def drawn(root: Path, rank: int, **options: Any) -> list[list[int]]:
    """The numbers of each step that a training has been given."""
    model = Plain()
    quiet(root=root, **options).fit(model, DataModule(Drawn(rank)))
    return model.seen


@scenario(ranks=2)
def runs_of_loaders_with_a_state(root: Path, world: World) -> dict[Any, list[Any]]:
    """By options, what each rank was given in one run and in one that was stopped inside an epoch and at its end."""
    found: dict[Any, list[Any]] = {}
    for options in ({}, {"accumulation_steps": 3}, {"steps_per_epoch": 3}, {"strategy": "fsdp"}):
        name = "-".join(options) or "plain"
        whole = drawn(root / "drawn" / name / "whole", world.rank, max_steps=6, **options)
        parts: list[list[int]] = []
        for steps in (3, 4, 6):
            parts += drawn(root / "drawn" / name / "parts", world.rank, max_steps=steps, **options)
        found[name] = world.gather((whole, parts))
    return found


@pytest.mark.parametrize("name", ["plain", "accumulation_steps", "steps_per_epoch", "strategy"])
def test_each_rank_gets_the_state_of_its_loader_back(name: str, result: Results) -> None:
    (first, first_in_parts), (second, second_in_parts) = result(runs_of_loaders_with_a_state, ranks=2)[name]
    assert first_in_parts == first
    assert second_in_parts == second
    assert first != second


@scenario(ranks=2)
def resumes_from_the_loader_of_one(root: Path, world: World) -> list[str]:
    try:
        drawn(root / "drawn-by-one", world.rank, max_steps=9)
    except ValueError as error:
        return world.gather(str(error))
    return world.gather("no error")


def test_the_states_of_loaders_are_not_given_to_another_number_of_ranks(root: Path, result: Results) -> None:
    for text in result(resumes_from_the_loader_of_one, ranks=2):
        assert "on 1 rank, which 2 cannot take over" in text
        assert "Resume with 1 process, or" in text
    result(runs_of_loaders_with_a_state, ranks=2)
    copy = shutil.copytree(root / "drawn/plain/parts", root / "drawn/resumed-by-one")
    with pytest.raises(ValueError, match=r"on 2 ranks, which 1 cannot take over: .* Resume with 2 processes"):
        drawn(copy, 0, max_steps=12)
    with pytest.raises(ValueError, match="the train split was a Drawn when the epoch began, and is a Split now"):
        quiet(root=copy, max_steps=12).fit(Plain(), data(22))  # It has no use for the states, nor for the position.
    assert "ranks: 2 before, 1 now" in (copy / "plain/train.log").read_text(encoding="utf-8")


class Evaluated(Plain):
    """Keeps the weights that it was evaluated with last."""

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        self.evaluated = weights(self)["net"]


@scenario(ranks=2)
def fits_with_averaged_weights(root: Path, world: World) -> tuple[Path, Any]:
    model = Evaluated()
    trainer = quiet(root=root / "averaged", max_epochs=1, callbacks=[EMA(decay=0.5)])
    return trainer.fit(model, data(22, batch_size=4)).last_checkpoint, model.evaluated


def test_a_checkpoint_of_two_processes_gives_the_average_that_was_validated(result: Results) -> None:
    path, evaluated = result(fits_with_averaged_weights, ranks=2)
    model = Plain.load_from_checkpoint(path, weighted=False)
    assert same(weights(model)["net"], evaluated)
    assert not same(evaluated, torch.load(path, weights_only=True)["model"]["net"])


# Strategies.


def four_steps(root: Path, source: str) -> Path:
    """The checkpoint that was left after four steps: a folder by several processes under FSDP, a file otherwise."""
    return root / f"from-{source}/plain/checkpoints/plain_epoch_0_iter_4{'' if source == 'fsdp' else '.pth'}"


@scenario(ranks=2)
def resumes_under_every_strategy(root: Path, world: World) -> dict[tuple[str, str], Any]:
    for strategy in ("ddp", "fsdp"):
        quiet(max_steps=4, root=root / f"from-{strategy}", strategy=strategy).fit(Plain(), data(22, batch_size=2))
    found = {}
    for source in ("one", "ddp", "fsdp"):
        for strategy in ("ddp", "fsdp"):
            path = four_steps(root, source)
            model = Plain()
            trainer = quiet(max_steps=9, root=root / f"{source}-to-{strategy}", resume=path, strategy=strategy)
            trainer.fit(model, data(22, batch_size=2))
            found[source, strategy] = weights(model)
    return found


def test_checkpoints_of_every_strategy_go_on_under_every_strategy(root: Path, result: Results) -> None:
    model = Plain()
    quiet(max_steps=9).fit(model, data(22, batch_size=4))
    uninterrupted = weights(model)
    for (source, strategy), found in result(resumes_under_every_strategy, ranks=2).items():
        assert close(found, uninterrupted), (source, strategy)
    for source in ("one", "ddp", "fsdp"):
        path = four_steps(root, source)
        content = read_checkpoint(path)
        assert list(content["model"]["net"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        model = Plain()
        quiet(max_steps=9, root=root / f"{source}-to-one", resume=path).fit(model, data(22, batch_size=4))
        assert close(weights(model), uninterrupted), source
        assert Plain.load_from_checkpoint(path, weighted=True).net[0].weight.shape == (8, 3)


class Starting(Plain):
    """Keeps the weights that its training starts with."""

    def on_training_start(self) -> None:
        self.start = weights(self)


@scenario(ranks=2)
def starts_from_another_training(root: Path, world: World) -> list[dict[str, Any]]:
    """In either strategy; and goes back to the best checkpoint, which one rank arranges."""
    found = []
    for strategy in ("ddp", "fsdp"):
        for parts in (None, "all"):
            model = Starting()
            options = {"init_from": root / "from-one/plain", "init_parts": parts, "strategy": strategy}
            quiet(max_steps=1, **options).fit(model, data(22, batch_size=2))
            found.append(model.start)
    options = {"root": root / "back", "monitor": "valid/last", "valid_every_steps": 2, "save_every_steps": 1}
    for resume in ("auto", "best"):
        result = quiet(max_steps=5, resume=resume, **options).fit(Plain(), data(22, batch_size=2))
    assert result.state.best_step == 2
    return found


def test_a_training_starts_from_another_one_in_either_strategy(root: Path, result: Results) -> None:
    found = result(starts_from_another_training, ranks=2)
    saved = torch.load(root / "from-one/plain/checkpoints/plain_epoch_0_iter_4.pth", weights_only=True)["model"]
    for start in found:
        assert same(start["net"], saved["net"])
    assert [close(start["optimizer"]["state"], saved["optimizer"]["state"]) for start in found] == [False, True] * 2
    assert [path.name for path in (root / "back/plain/set_aside_1/checkpoints").iterdir()] == [
        "plain_epoch_0_iter_5.pth"
    ]


# What only rank 0 does.


class Noting:
    """A logger that notes every call in a file of its process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, call: str) -> None:
        with (self.folder / f"{os.getpid()}").open("a") as file:
            file.write(f"{call}\n")

    def log_config(self, config: Any) -> None:
        self.note("log_config")

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.note("log_metrics")

    def close(self) -> None:
        self.note("close")


@scenario(ranks=2)
def loggers_of_two_ranks(root: Path, world: World) -> list[tuple[int, list[str]]]:
    """The calls of each rank's logger: in a whole run, and in one that fails before it has begun."""
    folder = root / "noted"
    folder.mkdir(exist_ok=True)
    quiet(max_epochs=1, loggers=[Noting(folder)]).fit(Plain(), data())
    with contextlib.suppress(ValueError):
        quiet(max_epochs=1, loggers=[Noting(folder)]).fit(Plain(), DataModule())
    notes = folder / f"{os.getpid()}"
    return world.gather((world.rank, notes.read_text().splitlines() if notes.exists() else []))


def test_loggers_are_called_and_closed_on_rank_0_alone(result: Results) -> None:
    (_, first), (_, second) = result(loggers_of_two_ranks, ranks=2)
    assert first == ["log_config", "log_metrics", "log_metrics", "close", "close"]
    assert second == []


# A signal at an awkward moment.


class Polled(Plain):
    """Lets the ranks communicate at every step."""

    def should_training_stop(self) -> bool:
        return False


@scenario(ranks=2)
def signal_during_an_exchange(root: Path, world: World) -> list[tuple[str, int]]:
    """Rank 0 gets SIGTERM after it has told the others that it has none."""
    model, calls, all_reduce = Polled(), [], dist.all_reduce

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if world.rank == 0 and len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return all_reduce(*arguments, **options)

    dist.all_reduce = interrupted
    try:
        quiet(max_steps=50).fit(model, data())
        end = "finished"
    except SystemExit as error:
        end = f"exit {error.code}"
    finally:
        dist.all_reduce = all_reduce
    return world.gather((end, len(model.rates)))


def test_a_signal_that_comes_during_an_exchange_is_not_lost(result: Results) -> None:
    first, second = result(signal_during_an_exchange, ranks=2)
    assert first == second
    assert first[0] == "exit 143"
    assert first[1] < 10


# Clocks that differ.


class Passing(Plain):
    """Says how much time passes on its rank: in every step, and before every save."""

    def __init__(self, time: Time, in_step: float, before_save: float = 0.0) -> None:
        super().__init__()
        self.time, self.in_step, self.before_save = time, in_step, before_save

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.time.now += self.in_step

    def should_save_checkpoint(self) -> bool:
        self.time.now += self.before_save
        return True


@scenario(ranks=2)
def uneven_clocks(root: Path, world: World) -> tuple[list[int], list[int], int]:
    """Between two exchanges a limit is reached on rank 0 alone; a checkpoint is older on rank 0 than on rank 1."""
    time, clock.time = clock.time, Time()
    try:
        model = Passing(clock.time, in_step=(0.12, 0.1)[world.rank])
        options = {"log_every_steps": 1, "valid_every_epochs": None, "hang_minutes": 0.5}
        limited = quiet(max_minutes=0.92 / 60, max_steps=50, **options).fit(model, data(train=400))
        model = Passing(clock.time, in_step=1.0, before_save=(0.0, 0.3)[world.rank])
        options |= {"max_steps": 4, "save_every_minutes": 1.15 / 60, "save_every_epochs": None, "keep_last": -1}
        saved = quiet(root=root / "uneven-clocks", **options).fit(model, data(train=40))
    finally:
        clock.time = time
    files = list((root / "uneven-clocks" / "plain" / "checkpoints").glob("*.pth"))
    return world.gather(limited.state.step), world.gather(saved.state.step), len(files)


def test_ranks_whose_clocks_differ_stop_and_save_together(result: Results) -> None:
    stopped, ended, num_files = result(uneven_clocks, ranks=2)
    assert stopped == [9, 9]
    assert ended == [4, 4]
    assert num_files == 3  # After steps 2, 3 and 4.


# A forward pass without a backward pass, and splits of different sizes.


class Measured(Plain):
    """Ends every step with a forward pass without gradients. Its network has no blocks, so that it stays gathered."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        with torch.no_grad():
            self.log("after", self.net(batch[1]).mean())


@scenario(ranks=2)
def sharded_network_after_a_forward_pass(root: Path, world: World) -> int:
    trainer = quiet(max_epochs=2, strategy="fsdp", root=root / "measured", save_every_steps=1)
    return trainer.fit(Measured(), data(16, batch_size=4)).state.step


def test_a_sharded_network_is_saved_after_a_forward_pass_without_a_backward_pass(result: Results) -> None:
    assert result(sharded_network_after_a_forward_pass, ranks=2) == 4


@scenario(ranks=2)
def validation_splits_of_eight_and_one(root: Path, world: World) -> dict[str, float]:
    splits = {"large": Split(Indices(8), batch_size=2), "small": Split(Indices(1), batch_size=2)}
    return quiet(max_epochs=1).fit(Plain(), DataModule(Split(Indices(8), batch_size=2), splits)).metrics


def test_a_rank_without_a_batch_of_one_of_several_splits_is_idle(result: Results) -> None:
    metrics = result(validation_splits_of_eight_and_one, ranks=2)
    assert metrics["valid/large/index"] == 3.5
    assert metrics["valid/small/index"] == 0


# Streams.


class Numbers(IterableDataset):
    """A stream of 12 samples, which may be divided among the ranks."""

    def __init__(self, is_divided: bool) -> None:
        self.is_divided = is_divided

    def __iter__(self) -> Iterator[Any]:
        rank, size = (dist.get_rank(), dist.get_world_size()) if self.is_divided else (0, 1)
        return ((i, torch.full((3,), i / 12)) for i in range(rank, 12, size))


@scenario(ranks=2)
def trained_on_streams(root: Path, world: World) -> dict[str, str]:
    """What a training and an evaluation on streams end with."""
    found = {}
    for name in ("divided", "train", "valid"):
        splits = {part: Split(Numbers(name != part), batch_size=2) for part in ("train", "valid")}
        try:
            model = Plain()
            quiet(max_epochs=1, sanity_batches=0).fit(model, DataModule(**splits))
            found[name] = str(sorted(index for part in world.gather(model.validated) for index in part))
        except ValueError as error:
            found[name] = str(error)
    return found


def test_a_stream_that_ranks_do_not_divide_is_an_error(result: Results) -> None:
    found = result(trained_on_streams, ranks=2)
    assert found["divided"] == str([*range(12)])
    for name in ("train", "valid"):
        assert found[name].startswith(f"the {name} split is a stream of which all 2 ranks read the same samples")
        assert "torch.distributed.get_rank()" in found[name]


# What only some ranks do.


class Table(Plain):
    """A table with sparse gradients on rank 0, and dense ones on the others."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Embedding(40, 2, sparse=self.global_rank == 0))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward((self.net(batch[0]) - 1).square().mean())
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("loss", self.net(batch[0]).mean())


@scenario(ranks=2)
def tables(root: Path, world: World) -> list[Any]:
    model = Table()
    quiet(max_steps=3).fit(model, data(16, batch_size=2))
    return world.gather(weights(model)["net"])


def test_a_sparse_and_a_dense_gradient_of_ranks_are_averaged(result: Results) -> None:
    first, second = result(tables, ranks=2)
    one = Table()
    quiet(max_steps=3).fit(one, data(16, batch_size=4))
    assert same(first, second)
    assert close(first, weights(one)["net"])


class Wider(Plain):
    """Becomes fp64 after `parallelize`."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net.double()

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step([batch[0], batch[1].double()], state)

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step([batch[0], batch[1].double()], step)


@scenario(ranks=3)
def widened(root: Path, world: World) -> tuple[Any, Any]:
    whole, cut = Wider(), Wider()
    quiet(max_steps=3).fit(whole, data(30, batch_size=2))
    quiet(max_steps=1, root=root / "widened").fit(Wider(), data(30, batch_size=2))
    quiet(max_steps=3, root=root / "widened").fit(cut, data(30, batch_size=2))
    return weights(whole), weights(cut)


def test_buckets_follow_the_data_type_of_a_network(result: Results) -> None:
    whole, cut = result(widened, ranks=3)
    assert same(whole, cut)


@scenario(ranks=2)
def after_a_fit(root: Path, world: World) -> tuple[int, int]:
    """The number of messages of a backward pass after a fit; and of networks of earlier fits that are still held."""
    model = Plain()
    quiet(max_steps=2).fit(model, data(16, batch_size=2))
    with Collectives() as recorded:
        model.net(torch.ones(2, 3)).sum().backward()
    held = weakref.ref(model.net)
    del model
    gc.collect()
    return len(recorded.calls), int(held() is not None)


def test_a_network_sends_nothing_after_a_fit(result: Results) -> None:
    assert result(after_a_fit, ranks=2) == (0, 0)


class OnOne(Plain):
    """From the second step on only rank 0 has a loss; that of the third step is not finite."""

    def on_training_batch_start(self, state: Any) -> None:
        self.is_on_all, self.factor = state.step == 0, float("nan") if state.step == 2 else 1.0

    def train_step(self, batch: Any, state: Any) -> None:
        if self.is_on_all or self.global_rank == 0:
            self.backward((self.net(batch[1] * self.factor) - 1).square().mean())
        self.optimizer_step(self.optimizer)


@scenario(ranks=2)
def replayed_on_one(root: Path, world: World) -> list[str | None]:
    options = {"root": root / "on-one", "check_finite": False, "max_steps": 3, "valid_every_epochs": None}
    quiet(**options).fit(OnOne(), data(16, batch_size=2))
    return world.gather(quiet(**options).replay(OnOne(), data(16, batch_size=2), step=3).first_not_finite)


def test_a_replay_ends_when_only_one_rank_has_a_loss(result: Results) -> None:
    first, second = result(replayed_on_one, ranks=2)
    assert first == second is not None


@scenario(ranks=2)
def losses_on_one_rank(root: Path, world: World) -> list[str]:
    class OnOne(Plain):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            if self.global_rank == 0:
                self._loss_items["extra"] = torch.ones(())

    try:
        quiet(max_steps=4, log_every_steps=2).fit(OnOne(), data(16))
    except ValueError as error:
        return world.gather(str(error))
    return []


def test_losses_in_the_table_of_one_rank_only_are_an_error_on_all(result: Results) -> None:
    text = (
        "_loss_items differ among the ranks: rank 1 has not filled ['extra']; fill the same names on every rank, with "
        "a loss of 0 where there is none"
    )
    assert result(losses_on_one_rank, ranks=2) == [text] * 2


def test_running_losses_keep_the_digits_of_a_long_sum() -> None:
    tables = ScoreTables()
    for _ in range(100_000):
        tables.loss_items["loss"] = torch.tensor(0.01, dtype=torch.float32)
        tables.add_losses(1.0)
        tables.reduce_losses(World())
    expected = 100_000 * float(torch.tensor(0.01))
    assert float(tables.running_losses["loss"]) == pytest.approx(expected, rel=1e-9)


@scenario(ranks=2)
def last_values_of_two(root: Path, world: World) -> Any:
    return last_values(batch_size=2)


def last_values(batch_size: int) -> Any:
    """The last batch of the training has a sample less on the last rank."""

    class Last(Plain):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.log("index", batch[0].double().mean(), reduce="last")
            self.log("step", float(state.step), reduce="last")
            self.log("both", batch[0].double().mean(), reduce=("last", "mean"))

        def valid_step(self, batch: Any, step: int) -> None:
            self.log("index", batch[0].double().mean(), reduce="last")

    datamodule = DataModule(train=Split(Indices(7), batch_size=batch_size), valid=Split(Indices(1), batch_size=4))
    metrics = quiet(max_epochs=1).fit(Last(), datamodule).metrics
    return {name: value for name, value in metrics.items() if not is_measured(name)}


def test_the_last_value_of_several_ranks_is_that_of_one(result: Results) -> None:
    expected = last_values(batch_size=4)
    assert expected["train/index"] == 5.0
    assert close(result(last_values_of_two, ranks=2), expected)


# The collectives of a run.


@scenario(ranks=(2, 3))
def collectives_of_random_runs(root: Path, world: World) -> list[str]:
    first = 100 * world.size
    return first_difference(0, range(first, first + 8 // world.size), root / f"collectives-{world.size}", world)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_whose_clocks_differ_call_the_same_collectives_in_the_same_order(ranks: int, result: Results) -> None:
    assert result(collectives_of_random_runs, ranks=ranks) == []


def test_a_collective_that_one_rank_calls_otherwise_is_found() -> None:
    calls = [f"all_reduce < place:{i}" for i in range(10)]
    assert where_they_part([calls, calls]) is None
    assert where_they_part([calls, calls[:9]]) == "collective 9: all_reduce < place:9 | nothing"
    assert where_they_part([calls[1:], calls]) == "collective 0: all_reduce < place:1 | all_reduce < place:0"
    assert where_they_part([calls[1:], calls[1:]]) == "only 9 collectives"


# Metric objects.


@scenario(ranks=2)
def scored_by_two(root: Path, world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in KINDS:
        folder = root / f"scored-{kind}"
        options = {"log_every_steps": 2, "sanity_batches": 0, "root": folder}
        for max_steps in (1, 6):
            model = Scored(kind)
            # Of the three samples of a validation, one rank has two and the other one; a batch has one.
            quiet(max_steps=max_steps, **options).fit(model, data(train=24, valid=3, batch_size=4))
        found[kind] = timeless(read_rows(folder / "plain")) if world.is_main else None
    lonely = DataModule(valid=Split(Indices(1), 4))  # The other rank has no sample.
    found["lonely"] = world.gather(quiet(max_epochs=1).validate(Scored(), lonely, checkpoint=None))
    for name, metric in (("unmerged", NoMerge()), ("pearson", torchmetrics.PearsonCorrCoef())):
        try:
            quiet(max_epochs=1).validate(With(metric), data(), checkpoint=None)
        except TypeError as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_compute_what_one_computes_over_the_samples_of_both(
    kind: str, result: Results, tmp_path: Path
) -> None:
    found = result(scored_by_two, ranks=2)[kind]
    options = {"log_every_steps": 2, "sanity_batches": 0, "root": tmp_path}
    for max_steps in (1, 6):
        quiet(max_steps=max_steps, **options).fit(Scored(kind), data(train=24, valid=3, batch_size=8))
    expected = timeless(read_rows(tmp_path / "plain"))
    assert [sorted(row) for row in found] == [sorted(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert only(row, "train/score") == pytest.approx(only(other, "train/score"), rel=1e-6)
        assert only(row, "valid/score") == pytest.approx(only(other, "valid/score"), rel=1e-6)
    assert sum("train/score" in str(row) for row in found) >= 3


def test_a_rank_without_samples_has_the_value_of_the_others(result: Results) -> None:
    assert result(scored_by_two, ranks=2)["lonely"] == [by_hand("f1", [0], "valid/score")] * 2


@pytest.mark.parametrize("name", ["unmerged", "pearson"])
def test_an_object_that_ranks_cannot_merge_is_an_error_with_the_remedy(name: str, result: Results) -> None:
    message = result(scored_by_two, ranks=2)[name]
    assert message.startswith("log('valid/score'): a ")
    assert "call its compute() in a hook at the end" in message


# Steps that are computed twice.


class OneSided(Plain):
    """Rank 1 has no loss in every second step."""

    def backward(self, loss: Any, *arguments: Any) -> None:
        if self.global_rank == 0 or len(self.seen) // 2 % 2:
            super().backward(loss, *arguments)


@scenario(ranks=2)
def verified_steps(root: Path, world: World) -> dict[str, Any]:
    found: dict[str, Any] = {"weights": []}
    for options in ({}, {"verify_every_steps": 2}):
        for model in (Plain(weighted=True), OneSided()):
            quiet(max_steps=5, accumulation_steps=2, sanity_batches=0, **options).fit(model, data(27, batch_size=3))
            found["weights"].append(weights(model))
    for where in ("output", "gradient", "kernel", "parameter"):
        failing = Failing(where, at=2 * world.rank)
        with pytest.raises(RuntimeError, match="verify_every_steps") as error:
            quiet(max_epochs=1, verify_every_steps=1).fit(failing, DataModule(Split(Indices(8), 4)))
        found[where] = world.gather((str(error.value), same(failing.weights(), failing.before)))
    return found


def test_a_verified_step_names_on_every_rank_the_one_that_differs(result: Results) -> None:
    found = result(verified_steps, ranks=2)
    assert same(found["weights"][:2], found["weights"][2:])
    for where, text in (
        ("output", "the first difference is in the output of net.1 (Faulty). The update"),
        ("gradient", "the first difference is in the gradient at the output of net.0 (Linear). The update"),
        ("kernel", "the first difference is in the gradient of net.0.weight. The update"),
        ("parameter", "the gradient, averaged over the ranks, of net.0.weight. Which rank is the cause cannot be told"),
    ):
        (first, is_same), (second, is_same_too) = found[where]
        assert first == second
        assert is_same
        assert is_same_too
        assert "step 1, computed twice, is not the same: on rank 1 (" in first
        assert text in first
