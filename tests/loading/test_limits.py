"""Limits for trying: which batches a limited epoch or evaluation has, over resumes too, and what says that it is so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.batches import named
from helpers.compare import same, saved, weights
from helpers.models import Indices, Plain, Stream, Tiny, quiet
from torch.utils.data import DataLoader

from helios_lite import DataModule, Split
from helios_lite.loading.loaders import make_loader
from helios_lite.samplers import BucketBatchSampler

LENGTHS = [i % 5 + 1 for i in range(10)]


def sources() -> dict[str, Any]:
    """Ten samples in batches of two; five batches."""
    return {
        "in order": Split(Indices(10), 2),
        "shuffled": Split(Indices(10), 2, shuffle=True),
        "sampled": Split(Indices(10), 2, sampler=[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]),
        "bucketed": Split(Indices(10), batch_sampler=BucketBatchSampler(LENGTHS, batch_size=2)),
        "loader": DataLoader(Indices(10), 2),
        "workers": Split(Indices(10), 2, shuffle=True, num_workers=1),
    }


def plain(source: Any, limit: Any, phase: str = "train", window: int = 1, **position: int) -> list[tuple[Any, ...]]:
    batches = make_loader(source, phase, 0, limit=limit).epoch(1, window=window, **position).batches
    return [(batch.data[0].tolist(), *batch[1:5]) for batch in named(batches)]


@pytest.mark.parametrize("name", sources())
@pytest.mark.parametrize("phase", ["train", "valid"])
def test_a_limited_epoch_has_the_first_batches(name: str, phase: str) -> None:
    whole = plain(sources()[name], None, phase)
    limits = {3: 3} if name == "workers" else {3: 3, 9: 5, 0.6: 3, 0.99: 4, 1.0: 5, 1e-9: 1}
    for limit, number in limits.items():
        assert make_loader(sources()[name], phase, 0, limit=limit).epoch(1).length == number
        assert plain(sources()[name], limit, phase) == whole[:number]
        assert plain(sources()[name], limit, phase, samples=2, batches=1) == whole[1:number]


@pytest.mark.parametrize("name", sources())
def test_the_last_window_of_a_limited_epoch_is_complete(name: str) -> None:
    found = plain(sources()[name], 3, window=2)
    assert [values[-2:] for values in found] == [(0.5, False), (0.5, True), (1.0, True)]


def test_a_part_is_exact() -> None:
    assert make_loader(Split(Indices(100), 1), "train", 0, limit=0.29).epoch(0).length == 29


@pytest.mark.parametrize("phase", ["train", "valid"])
def test_a_stream_takes_a_number_of_batches_and_no_part(phase: str) -> None:
    source = Split(Stream(10), 2)
    batches = make_loader(source, phase, 0, limit=2).epoch(0).batches
    assert [batch.data.tolist() for batch in named(batches)] == [[0, 1], [2, 3]]
    rest = make_loader(source, phase, 0, limit=2).epoch(0, batches=1).batches
    assert [batch.data.tolist() for batch in named(rest)] == [[2, 3]]
    with pytest.raises(ValueError, match=f"the {phase} split has no length: limit it to a number"):
        make_loader(source, phase, 0, limit=0.5).epoch(0)


class Positioned(DataLoader):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def test_a_loader_that_knows_its_position_is_told_what_to_use() -> None:
    with pytest.raises(ValueError, match="use steps_per_epoch in place of limit_train_batches"):
        quiet(max_epochs=1, limit_train_batches=1).fit(Plain(), DataModule(Positioned(Indices(4), 2)))
    assert len(plain(Positioned(Indices(4), 2), 1, "valid")) == 1


class Noisy(Indices):
    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, super().__getitem__(index)[1] + torch.rand(3)


class Seeing(Tiny):
    """Notes what it was trained on, with the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def train_step(self, batch: Any, state: Any) -> None:
        self.batches.append(batch)
        super().train_step(batch, state)


def limited_data(**options: Any) -> DataModule:
    return DataModule(
        train=Split(Noisy(11), **{"batch_size": 2, "shuffle": True, **options}),
        valid={"a": Split(Indices(9), 2), "b": Split(Indices(3), 2)},
        test=Split(Indices(9), 2),
    )


LIMITS: list[dict[str, Any]] = [{"limit_train_batches": 3, "limit_valid_batches": 1}, {"overfit_batches": 0.5}]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("window", [1, 2])
def test_a_limited_run_that_is_cut_after_any_step_ends_like_one_that_was_not(
    tmp_path: Path, limits: dict[str, Any], window: int
) -> None:
    options = {"max_epochs": 2, "accumulation_steps": window, **limits}
    whole = Seeing()
    steps = quiet(root=tmp_path / "whole", **options).fit(whole, limited_data()).state.step
    assert steps == {1: 6, 2: 4}[window]
    expected = saved(tmp_path / "whole" / "tiny", "model", "monitor", "metrics", "ranks")
    for cut in range(1, steps):
        batches = []
        for max_steps in (cut, None):
            model = Seeing()
            quiet(root=tmp_path / str(cut), max_steps=max_steps, **options).fit(model, limited_data())
            batches += model.batches
        assert same(batches, whole.batches)
        assert same(weights(model), weights(whole))
        assert same(saved(tmp_path / str(cut) / "tiny", "model", "monitor", "metrics", "ranks"), expected)


def test_a_limited_epoch_of_a_shuffled_split_has_other_samples_each_time_and_validates_at_its_end() -> None:
    model = Seeing()
    options = {"limit_train_batches": 3, "limit_valid_batches": 1, "valid_every_epochs": 0.5, "sanity_batches": 0}
    result = quiet(max_epochs=2, **options).fit(model, limited_data())
    assert result.state.validation_cycle == 4
    assert model.validated == [0, 1, 0, 1] * 4
    assert model.seen[:6] != model.seen[6:]


def test_overfitting_repeats_the_first_batches_bit_for_bit_and_validates_as_many() -> None:
    model = Seeing()
    quiet(max_epochs=3, overfit_batches=2, sanity_batches=0).fit(model, limited_data())
    assert model.seen == [0, 1, 2, 3] * 3
    assert same(model.batches[:2], model.batches[2:4])
    assert same(model.batches[:2], model.batches[4:])
    assert model.validated == [0, 1, 2, 3, 0, 1, 2] * 3
    bucketed = Seeing()
    batches = BucketBatchSampler([*LENGTHS, 1], batch_size=2)
    source = limited_data(batch_size=None, shuffle=False, batch_sampler=batches)
    quiet(max_epochs=2, overfit_batches=2).fit(bucketed, source)
    assert bucketed.seen[:4] == bucketed.seen[4:]


def test_a_test_is_limited_and_tables_and_logs_say_what_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = {"limit_train_batches": 0.5, "limit_valid_batches": 1, "limit_test_batches": 2, "print_banner": True}
    trainer, model = quiet(root=tmp_path, max_epochs=1, **options), Tiny()
    trainer.fit(model, limited_data())
    limited = "train limited to 0.5 of the batches, valid limited to 1 batch"
    assert f"stopped by max_epochs ({limited})" in capsys.readouterr().out
    assert f"INFO {limited}\n" in (tmp_path / "tiny" / "train.log").read_text()
    model.validated.clear()
    trainer.test(model, limited_data())
    assert model.validated == [0, 1, 2, 3]
    assert "tiny_epoch_1_iter_3.pth (test limited to 2 batches)\n" in capsys.readouterr().out
    assert "(test limited to 2 batches): test/loss" in (tmp_path / "tiny" / "train.log").read_text()
    trainer.validate(model, limited_data(), checkpoint=None)
    assert capsys.readouterr().out.startswith("valid (valid limited to 1 batch)\n")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limit_train_batches": 2, "steps_per_epoch": 3}, "^limit_train_batches: excludes steps_per_epoch"),
        ({"overfit_batches": 2, "steps_per_epoch": 3}, "^overfit_batches: excludes steps_per_epoch"),
        ({"overfit_batches": 2, "limit_train_batches": 3}, "^overfit_batches: excludes limit_train_batches"),
        ({"overfit_batches": 2, "limit_valid_batches": 3}, "^overfit_batches: excludes limit_valid_batches"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        quiet(max_epochs=1, **options)


def test_a_sanity_validation_and_a_dev_run_use_fewer_batches_than_the_limit() -> None:
    model = Tiny()
    quiet(max_steps=1, limit_valid_batches=2, sanity_batches=1, valid_every_epochs=None, valid_every_steps=9).fit(
        model, limited_data()
    )
    assert model.validated[:4] == [0, 1, 0, 1]
    assert len(model.validated) == 4 + 7  # The final weights, with two batches of each part.
    model = Tiny()
    assert (
        quiet(fast_dev_run=True, limit_train_batches=3, limit_valid_batches=2).fit(model, limited_data()).state.step
        == 1
    )
    assert model.validated == [0, 1, 0, 1]


def test_a_limit_of_zero_turns_a_split_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = Tiny(), limited_data()
    off = {"limit_train_batches": 0, "limit_valid_batches": 0, "limit_test_batches": 0}
    trainer = quiet(max_steps=2, root=tmp_path, limit_valid_batches=0, limit_test_batches=0)
    trainer.print_banner = True
    assert "valid/a/loss" not in trainer.fit(model, data).metrics
    assert "valid limited to 0 batches" in capsys.readouterr().out
    assert model.validated == []
    for run, name in ((trainer.validate, "valid"), (trainer.test, "test"), (quiet(max_steps=2, **off).fit, "train")):
        with pytest.raises(ValueError, match=f"^limit_{name}_batches=0: turns the {name} split off"):
            run(model, data)
    assert "valid/a/loss" in quiet(limit_train_batches=0).validate(model, data, checkpoint=None)
    with pytest.raises(ValueError, match=r"^monitor='valid/a/loss' needs limit_valid_batches other than 0"):
        quiet(max_steps=2, monitor="valid/a/loss", **off).fit(model, data)
    assert quiet(fast_dev_run=2, limit_valid_batches=0).fit(Tiny(), data).metrics.keys().isdisjoint({"valid/a/loss"})
