"""A replay computes a step of a run again, bit for bit, shows what it consists of, and touches nothing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import quiet, scripted
from helpers.replayed import Digests, Dropped, data, digest, digests, files, trainer
from helpers.rows import read_rows
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from helios_lite import DataModule, Model, Split
from helios_lite.callbacks import EMA
from helios_lite.tools.command import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped twice and resumed, with a digest of every step, and all its checkpoints."""
    root = tmp_path_factory.mktemp("run")
    for steps in (10, 25, None):
        callbacks = [*trainer(root).callbacks, Digests(root / "digests")]
        trainer(root, callbacks=callbacks, max_steps=steps).fit(Dropped(), data())
    return root


@pytest.mark.parametrize("step", [1, 6, 7, 8, 11, 26, 48])
def test_a_step_of_a_resumed_run_is_computed_again_bit_for_bit_and_no_file_changes(step: int, run: Path) -> None:
    before = files(run)
    model = Dropped()
    replayed = trainer(run).replay(model, data(num_workers=step % 2 * 2), step)
    assert digest(model) == digests(run / "digests")[step]
    assert files(run) == before
    assert (replayed.step, replayed.epoch) == (step, (step - 1) // 6 + 1)
    saved = [int(path.stem.rsplit("_iter_", 1)[1]) for path in (run / "dropped" / "checkpoints").glob("*.pth")]
    assert replayed.started_at == max((n for n in saved if n < step), default=0)
    for batch in replayed.batches:
        assert batch.indices is not None
        assert same(batch.indices, batch.batch[0])


def test_the_model_can_be_replayed_again_and_trained_afterwards(run: Path, tmp_path: Path) -> None:
    model, expected = Dropped(), digests(run / "digests")
    for step in (9, 3):
        trainer(run).replay(model, data(), step)
        assert digest(model) == expected[step]
    trainer(tmp_path).fit(model, data())
    assert digest(model) == expected[48]


def test_norms_rates_and_values_are_those_that_the_run_logs(tmp_path: Path) -> None:
    options = {"log_every_steps": 1, "log_grad_norm": "per-parameter", "max_steps": 5}
    result = trainer(tmp_path, **options).fit(Dropped(), data())
    replayed = trainer(tmp_path, max_steps=5).replay(Dropped(), data(), 5)
    logged = {name: value for name, value in result.metrics.items() if name.startswith("train/grad_norm/")}
    assert len(logged) == 6
    for name, norm in replayed.gradient_norms.items():
        assert norm == pytest.approx(logged[f"train/grad_norm/{name}"], rel=1e-6)
    assert math.hypot(*replayed.gradient_norms.values()) > 0.5  # Before they are clipped.
    assert replayed.learning_rates == {"optimizer": result.metrics["train/lr"]}
    weights = [len(batch.batch[0]) for batch in replayed.batches]
    losses = [batch.losses[0] for batch in replayed.batches]
    mean = sum(map(math.prod, zip(weights, losses, strict=True))) / sum(weights)
    assert mean == pytest.approx(result.metrics["train/loss"], rel=1e-6)
    assert replayed.logged == {"loss": losses[-1]}
    # The replay began at a checkpoint or at the start, and its samples, weights and metrics are those of the rows.
    assert (replayed.compared_until, replayed.differs_from_row) == (5, None)
    assert "as recorded in metrics.jsonl, bit for bit" in str(replayed)


def test_what_differs_from_a_row_of_the_run_is_named(tmp_path: Path) -> None:
    options = {"log_every_steps": 2, "max_steps": 6, "save_every_steps": 3, "keep_last": -1}
    trainer(tmp_path, **options).fit(Dropped(), data())
    rows = tmp_path / "dropped/metrics.jsonl"
    for step, until in (
        (1, None),
        (3, 2),
        (4, 4),
        (5, 4),
    ):  # Behind the checkpoint of step 3 there is no row of step 2.
        replayed = trainer(tmp_path, **options).replay(Dropped(), data(), step)
        assert (replayed.compared_until, replayed.differs_from_row) == (until, None)
    before = rows.read_text()
    for name, found in (("weights_digest", "weights_digest was"), ("train/loss", "train/loss was 9.0 at step 4")):
        lines = [json.loads(line) for line in before.splitlines()]
        lines[1][name] = "0" * 16 if name == "weights_digest" else 9.0
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        replayed = trainer(tmp_path, **options).replay(Dropped(), data(), 5)
        assert replayed.differs_from_row is not None
        assert replayed.differs_from_row.startswith(found)
        assert "not as recorded: " in str(replayed)


def test_the_worst_step_is_that_with_the_highest_loss_of_all(tmp_path: Path, run: Path) -> None:
    options = {"log_every_steps": 5, "max_epochs": 2, "callbacks": [], "accumulation_steps": 2, "keep_last": -1}
    options["save_every_steps"] = 1  # Also between the worst step and the row that has its loss.
    every = trainer(tmp_path / "every", **{**options, "log_every_steps": 1}).fit(Dropped(), data()).history
    losses = {row["step"]: row["highest_loss"] for row in every if "highest_loss" in row}
    trainer(tmp_path, **options).fit(Dropped(), data())
    rows = [row for row in read_rows(tmp_path / "dropped") if "train/lr" in row]
    starts = [0, *(row["step"] for row in rows[:-1])]
    for start, row in zip(starts, rows, strict=True):
        assert row["highest_loss"] == max(losses[step] for step in range(start + 1, row["step"] + 1))
        assert row["highest_loss"] >= row["train/loss"]
    found = trainer(tmp_path, **options).replay(Dropped(), data(), "worst")
    assert losses[found.step] == max(losses.values()) == max(batch.losses[0] for batch in found.batches)
    assert found.differs_from_row is None
    assert found.step not in {row["step"] for row in rows}
    (tmp_path / "dropped/metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r'^step="worst": no row of the run has a highest loss'):
        trainer(tmp_path, **options).replay(Dropped(), data(), "worst")


@pytest.mark.parametrize("poisoned", [0, 13, 43])
def test_a_poisoned_sample_is_named_also_by_a_replay_of_a_later_step(poisoned: int, tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError,
        match=r"finite at step \d; Trainer.replay\(model, datamodule, step=\d\), or helios-lite replay",
    ):
        trainer(tmp_path, log_every_steps=3).fit(Dropped(), data(poisoned))
    replayed = trainer(tmp_path).replay(Dropped(), data(poisoned), 6)
    assert [i for batch in replayed.batches for i in batch.not_finite_indices()] == [poisoned]
    assert replayed.first_not_finite == "the batch itself"
    bad = [batch for batch in replayed.batches if batch.not_finite]
    assert len(bad) == 1
    assert math.isnan(bad[0].losses[0])
    assert f"not finite alone: samples {poisoned}" in str(replayed)
    if replayed.step > 1:
        assert math.isfinite(
            trainer(tmp_path).replay(Dropped(), data(poisoned), replayed.step - 1).batches[0].losses[0]
        )


def test_launched_processes_replay_a_step_or_its_cause_and_their_weights_come_back(tmp_path: Path) -> None:
    trained, replaying = Dropped(), Dropped()
    run = trainer(tmp_path, devices=2, max_steps=3)
    run.fit(trained, data())
    replayed = run.replay(replaying, data(), 3)
    assert (replayed.step, {batch.rank for batch in replayed.batches}) == (3, {0, 1})
    assert (replayed.compared_until, replayed.differs_from_row) == (3, None)
    assert same(weights(replaying), weights(trained))
    read = {int(i) for batch in replayed.batches for i in batch.batch[0]}
    poisoned = min(set(range(44)) - read)  # In the first or second step.
    cause = run.replay(replaying, data(poisoned), 3)
    assert cause.step < 3
    assert [i for batch in cause.batches for i in batch.not_finite_indices()] == [poisoned]


class Inverse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / x


class Root(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.abs().sqrt()


class Fragile(Model):
    """One sample makes the output, or only the gradient, of a module infinite."""

    def __init__(self, module: nn.Module, reduction: str = "mean") -> None:
        super().__init__("fragile")
        self.modules, self.reduction = {module}, reduction  # A set, so that it is no network of the model's own.

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(1, 1, bias=False), *self.modules, nn.Identity()))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(nn.functional.mse_loss(self.net(batch[0]), batch[0], reduction=self.reduction))
        self.optimizer_step(self.optimizer)


def fragile_data() -> DataModule:
    x = torch.arange(1.0, 9.0)[:, None]
    x[5] = 0.0
    return DataModule(Split(TensorDataset(x), batch_size=2))


PLACES = {  # A module of TorchScript takes no hook, but the next one does.
    "output": (Inverse(), "the output of net.1"),
    "gradient": (Root(), "the gradient at net.0"),
    "scripted": (scripted(Inverse()), "the output of net.2, whose input is not finite"),
}


@pytest.mark.parametrize(("module", "where"), PLACES.values(), ids=PLACES)
def test_the_first_module_with_an_output_or_gradient_that_is_not_finite_is_named(
    module: nn.Module, where: str, tmp_path: Path
) -> None:
    options = {"root": tmp_path, "max_epochs": 1, "check_finite": False}
    quiet(**options).fit(Fragile(module), fragile_data())
    found = [quiet(**options).replay(Fragile(module), fragile_data(), step) for step in (2, 3)]
    assert [replayed.first_not_finite for replayed in found] == [None, where]


def test_losses_of_samples_are_shown_only_where_the_loss_is_their_mean(tmp_path: Path) -> None:
    for reduction in ("mean", "sum"):
        options = {"root": tmp_path, "run_name": reduction, "max_steps": 1}
        quiet(**options).fit(Fragile(nn.Identity(), reduction), fragile_data())
        batch = quiet(**options).replay(Fragile(nn.Identity(), reduction), fragile_data(), 1).batches[0]
        if reduction == "mean":
            assert batch.sample_losses is not None
            assert float(batch.sample_losses.mean()) == pytest.approx(batch.losses[0])
        else:
            assert batch.sample_losses is None
            assert "their mean is" in batch.why_no_sample_losses


class InTurns(Dropped):
    """Every second step has another loss, which is NaN; it changes its batch, and writes into its run folder."""

    def train_step(self, batch: Any, state: Any) -> None:
        assert batch[1].min() >= 0
        assert self.trainer.root is not None
        assert self.run_folder is not None
        with (self.run_folder / "notes.txt").open("a") as file:
            file.write(f"{state.step}\n")
        x = batch[1].sub_(10)
        loss = self.net(x).square().mean() if state.step % 2 == 0 else (self.net(x) * torch.nan).mean() * 3
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.scheduler)


def test_a_step_is_looked_at_with_the_state_and_the_batch_that_it_had(tmp_path: Path) -> None:
    average = EMA(0.9)
    options = {"callbacks": [average], "max_steps": 3, "check_finite": False, "accumulation_steps": 1}
    trainer(tmp_path, **options).fit(InTurns(), data())
    before, kept = files(tmp_path), repr(average.state_dict())
    first, second = (trainer(tmp_path, **options).replay(InTurns(), data(), step) for step in (1, 2))
    assert first.batches[0].sample_losses is not None
    assert first.first_not_finite is None
    assert first.batches[0].batch[1].min() >= 0
    assert second.batches[0].not_finite == (0, 1, 2, 3)
    assert files(tmp_path) == before
    assert repr(average.state_dict()) == kept


class Overflowing(Dropped):
    """The gradients of the first windows are too large for the scale that fp16 begins with."""

    def train_step(self, batch: Any, state: Any) -> None:
        with self.autocast():
            loss = self.net(batch[1]).square().mean() * 1e3
        self.backward(loss)
        self.optimizer_step(self.optimizer)


def test_windows_that_fp16_has_skipped_are_no_part_of_the_step_after_them(tmp_path: Path) -> None:
    options = {"precision": "fp16", "max_steps": 1, "callbacks": [], "accumulation_steps": 2}
    state = trainer(tmp_path, **options).fit(Overflowing(), data()).state
    assert state.skipped_steps > 0
    replayed = trainer(tmp_path, **options).replay(Overflowing(), data(), 1)
    assert len(replayed.batches) == 2
    assert math.isfinite(math.hypot(*replayed.gradient_norms.values()))


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter((i, torch.tensor([i % 7, 1.0, 0.0])) for i in range(40))


def test_a_stream_and_epochs_of_some_steps_are_replayed_too(tmp_path: Path) -> None:
    for name, split in (
        ("stream", lambda: DataModule(Split(Endless(), batch_size=4))),
        ("passes", lambda: DataModule(data().train)),
    ):
        options = {"run_name": name, "steps_per_epoch": 4, "max_epochs": 4}
        callbacks = [Digests(tmp_path / f"{name}.txt")]
        trainer(tmp_path, **options, callbacks=callbacks).fit(Dropped(), split())
        for step in (6, 13):
            model = Dropped()
            replayed = trainer(tmp_path, **options, callbacks=[]).replay(model, split(), step)
            assert digest(model) == digests(tmp_path / f"{name}.txt")[step]
            for batch in replayed.batches:
                assert (batch.indices is None) == (name == "stream")
                assert batch.indices is None or same(batch.indices, batch.batch[0])


def test_what_cannot_be_replayed_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^step=49: the run ends after step 48$"):
        trainer(run).replay(Dropped(), data(), 49)
    with pytest.raises(FileNotFoundError, match=r"^step=1: there is no run to replay in .*dropped$"):
        trainer(tmp_path).replay(Dropped(), data(), 1)
    for step, error in ((0, ValueError), ("3", TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^step="):
            trainer(run).replay(Dropped(), data(), step)  # type: ignore[arg-type]


def test_the_command_shows_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(
        '[trainer]\nmax_steps = 4\nlog_level = "quiet"\n'
        '[model]\nclass = "helpers.replayed.Dropped"\n[data]\nclass = "helpers.replayed.NoisyData"\n'
    )
    main(["fit", "run.toml"])
    capsys.readouterr()
    main(["replay", "run.toml", "--step", "3"])
    shown = capsys.readouterr().out
    assert shown.startswith("step 3 in epoch ")
    assert "learning rate optimizer: 0.0098" in shown
    assert shown.partition("samples ")[2].partition("\n")[0].count(",") == 3
    main(["replay", "run.toml", "--step", "3", "--samples", "2"])
    fewer = capsys.readouterr().out
    assert [fewer.count(f"samples {what}") for what in ("", "without")] == [2, 0]
    assert all(line.count(",") <= 2 for line in fewer.splitlines() if "samples " in line)
    main(["replay", "run.toml", "--worst", "--json"])
    output = capsys.readouterr()
    assert output.err == ""
    found = json.loads(output.out)
    assert found.keys() == {
        *("step", "epoch", "started_at", "batches", "learning_rates", "gradient_norms", "logged"),
        *("first_not_finite", "compared_until", "differs_from_row"),
    }
    assert [*found["batches"][0]] == ["rank", "indices", "losses", "weight", "sample_losses", "not_finite"]
    (loss,) = found["batches"][0]["losses"]
    assert loss == json.loads((tmp_path / "runs/dropped/metrics.jsonl").read_text().splitlines()[0])["highest_loss"]
    with pytest.raises(SystemExit):
        main(["replay", "run.toml", "--step", "3", "--samples", "0"])
    assert capsys.readouterr().err == "helios-lite: --samples 0: must be at least 1\n"
    with pytest.raises(SystemExit):
        main(["replay", "run.toml", "--step", "9"])
    assert "step=9: the run ends after step 4" in capsys.readouterr().err


def test_a_model_may_override_backward_with_the_arguments_that_it_uses(tmp_path: Path) -> None:
    class Doubling(Dropped):
        def backward(self, loss: Any, weight: Any = None) -> None:  # type: ignore[override]
            super().backward(2 * loss, weight)

    model, replayed = Doubling(), Doubling()
    trainer(tmp_path, max_steps=2).fit(model, data())
    trainer(tmp_path).replay(replayed, data(), 2)
    assert same(weights(replayed), weights(model))
