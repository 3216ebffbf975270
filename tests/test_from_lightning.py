"""The tables for users of Lightning: all names on the right are there, and one program uses them as the rows say.

Each name of the right column must be in the text of the program below, so a new row wants a line there.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Indices
from torch.utils.data import ConcatDataset, DataLoader

import helios_lite
from helios_lite import (
    Callback,
    DataModule,
    FitResult,
    Model,
    Split,
    Trainer,
    TrainingState,
    callbacks,
    config,
    loggers,
)
from helios_lite.loggers import TensorBoardLogger
from helios_lite.other_trainers import ELSEWHERE, METHODS_ELSEWHERE

PAGE = (Path(__file__).parents[1] / "docs" / "from_lightning.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| Lightning |"))
]
NO_NAMES = {"torchrun --nnodes", "helios-lite fit run.toml", "on_step", "on_epoch", "logger.experiment"}
# They have tests of their own, some with packages that are not always there.
NOT_IN_THE_PROGRAM = {
    *("MLflowLogger", "WandbLogger", "client", "run", "writer", "fit_from_file", "fit_from_config", "Profile", "config")
}


def spans(cell: str) -> list[str]:
    return [span for span in re.findall(r"`([^`]*)`", cell) if span not in NO_NAMES]


def name_of(span: str) -> str:
    """Return the first name of some code, without the object that has it."""
    return re.split(r"\W", re.sub(r"^(self|trainer|state|result|helios_lite)\.", "", span))[0]


class Log(list[str]):
    """What has been called."""


CALLED = Log()


class Ported(Model):
    """Uses what the right column has of a model."""

    state_attributes = ("pool", "running_reward")

    def __init__(self, width: int = 4) -> None:
        super().__init__("ported")
        self.hparams = {"width": width}
        self.pool, self.running_reward = [0], 0.0

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(torch.nn.Linear(3, self.hparams["width"]))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.optimizer.register_step_pre_hook(lambda *_: CALLED.append("register_step_pre_hook"))
        self.lbfgs = torch.optim.LBFGS(self.net.parameters(), max_iter=1)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer)
        if not fast_init and not self.trainer.fast_dev_run:
            assert self.num_training_steps > 0
        assert (self.global_rank == 0) is (self.rank == 0) is True

    def loss(self, batch: Any) -> torch.Tensor:
        return self.net(batch["a"][1]).square().mean() + self.net(batch["b"][1]).square().mean()

    def train_step(self, batch: Any, state: Any) -> None:
        loss = self.loss(batch)
        self.backward(loss, retain_graph=True)
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        if self.trainer.accumulation_steps == 1:

            def closure() -> torch.Tensor:
                self.lbfgs.zero_grad()
                loss = self.loss(batch)
                self.backward(loss)
                return loss

            self.optimizer_step(self.lbfgs, closure=closure)
        self.log("loss", loss)
        self.pool.append(state.step)
        self.running_reward = float(state.epoch)

    def valid_step(self, batch: Any, step: int) -> None:
        CALLED.append(f"valid_step {self.split_name}")
        self.log("loss", self.net(batch[1]).square().mean())

    def test_step(self, batch: Any, step: int) -> None:
        CALLED.append(f"test_step {self.split_name}")
        self.log("loss", self.net(batch[1]).square().mean())

    def predict_step(self, batch: Any, step: int) -> Any:
        return batch[1].sum(1)

    def batch_to_device(self, batch: Any, phase: str) -> Any:
        CALLED.append(f"batch_to_device {phase}")
        return super().batch_to_device(batch, phase)

    def on_training_start(self) -> None:
        CALLED.append("on_training_start")
        assert self.datamodule.train is not None

    def on_training_end(self) -> None:
        CALLED.append("on_training_end")

    def on_training_epoch_start(self, current_epoch: int) -> None:
        CALLED.append("on_training_epoch_start")

    def on_training_epoch_end(self, current_epoch: int) -> None:
        CALLED.append("on_training_epoch_end")

    def on_training_batch_start(self, state: Any) -> None:
        CALLED.append("on_training_batch_start")

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        CALLED.append("on_training_batch_end")
        if state.step == 5:
            self.request_save()

    def on_validation_start(self, validation_cycle: int) -> None:
        CALLED.append("on_validation_start")

    def on_validation_end(self, validation_cycle: int) -> None:
        CALLED.append("on_validation_end")

    def on_validation_metrics(self, metrics: Any) -> None:
        self.plateau.step(metrics["valid/clean/loss"])
        assert self.metrics["valid/clean/loss"] == metrics["valid/clean/loss"]
        CALLED.append("on_validation_metrics")

    def on_exception(self, error: BaseException) -> None:
        CALLED.append(f"on_exception {error}")

    def should_training_stop(self) -> bool:
        return False


class Notes(Callback):
    def on_training_epoch_end(self, current_epoch: int) -> None:
        assert self.model.run_folder == self.run_folder
        assert self.trainer.loggers
        if current_epoch == 3:
            self.model.request_stop()

    def state_dict(self) -> dict[str, Any]:
        return {"note": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        CALLED.append(f"load_state_dict {state_dict}")


class Data(DataModule):
    def prepare_data(self) -> None:
        CALLED.append("prepare_data")

    def setup(self) -> None:
        CALLED.append("setup")
        dataset = Indices(8)
        both = ConcatDataset([dataset, dataset])
        self.train = {
            "a": Split(dataset, batch_size=2, shuffle=True),
            "b": Split(both, batch_size=2, sampler=range(16)),
        }
        self.epoch_split = "a"
        self.valid = {"clean": Split(dataset, 4), "noisy": DataLoader(dataset, 4)}
        self.test = self.predict = Split(dataset, 4)

    def teardown(self) -> None:
        CALLED.append("teardown")


# Of the options those that the program has not, a training with each.
OPTIONS: list[dict[str, Any]] = [
    {"max_steps": 2, "precision": "bf16", "clip_norm": 1.0},
    {"max_minutes": 1, "max_epochs": 1, "accumulation_steps": 2, "valid_every_epochs": 0.25},
    {"max_steps": 2, "limit_train_batches": 1, "limit_valid_batches": 1, "limit_test_batches": 1},
    {"max_epochs": 1, "overfit_batches": 1, "benchmark": True},
    {"max_epochs": 1, "steps_per_epoch": 2, "deterministic": True},
    {"max_steps": 2, "valid_every_steps": 1000, "sanity_batches": 1},
    {"fast_dev_run": 2},
]


def run_program(root: Path) -> None:
    options: dict[str, Any] = {"progress": False, "print_banner": False, "seed": 0, "log_every_steps": 1}
    options |= {"accelerator": "cpu", "devices": 1, "strategy": "ddp"}
    data, model = Data(), Ported()
    trainer = Trainer(
        root=root, max_epochs=9, monitor="valid/clean/loss", mode="max", patience=9, min_delta=1e-9, keep_best=1,
        keep_last=2, save_every_epochs=1, save_every_steps=100, save_every_minutes=60, resume="auto",
        callbacks=[Notes(), callbacks.EMA(decay=0.9)],
        loggers=[TensorBoardLogger(root / "events")], **options,
    )  # fmt: skip
    result = trainer.fit(model, data)
    assert result.state.epoch == 3  # By `request_stop`.
    assert {"train/loss", "train/lr/optimizer"} <= result.history[-1].keys() | result.history[0].keys()
    assert (result.run_folder / "metrics.jsonl").exists()
    assert {"on_training_end", "prepare_data", "teardown", "register_step_pre_hook"} <= {*CALLED}
    assert {"valid_step valid/clean", "valid_step valid/noisy", "batch_to_device train"} <= {*CALLED}
    assert trainer.test(model, data, checkpoint="best").keys() == {"test/loss"}
    assert "test_step test" in CALLED
    indices, outputs = zip(*trainer.predict(model, data), strict=True)
    assert torch.cat(indices).tolist() == [*range(8)]
    trainer.write_predictions(model, data, root / "predictions.pt")
    assert torch.load(root / "predictions.pt")["indices"].tolist() == [*range(8)]
    assert torch.cat(outputs).shape == (8,)
    path = result.last_checkpoint
    assert isinstance(Ported.load_from_checkpoint(path).net, torch.nn.Linear)
    for more in ({"resume": path}, {"init_from": path}):
        again = Ported()
        Trainer(
            root=None,
            max_epochs=4,
            callbacks=[Notes()],
            loggers=[loggers.JsonlLogger(root / "rows")],
            **more,
            **options,
        ).fit(again, data)
        assert (len(again.pool) > len(model.pool)) is ("resume" in more)
    assert "load_state_dict {'note': 1}" in CALLED
    for each in OPTIONS:
        Trainer(root=None, **{**options, **each}).fit(Ported(), data)
    Trainer(root=None, limit_train_batches=0, **options).validate(Ported(), data)
    failing = Ported()
    failing.loss = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        Trainer(root=None, max_steps=1, **options).fit(failing, data)


def test_one_program_uses_what_the_rows_have(tmp_path: Path) -> None:
    CALLED.clear()
    run_program(tmp_path)
    hooks = {name for _, right in ROWS for span in spans(right) if (name := span.split("(")[0]).startswith("on_")}
    assert len(hooks) >= 10
    assert {name for name in hooks if name not in {call.split()[0] for call in CALLED}} == set()


def test_every_name_on_the_right_is_there_and_in_the_program() -> None:
    program = Path(__file__).read_text(encoding="utf-8").split("class Log(")[1]
    homes = [helios_lite, callbacks, config, loggers, Model, Callback, Trainer, DataModule, Split, TrainingState]
    homes += [FitResult, loggers.TensorBoardLogger, loggers.MLflowLogger, loggers.WandbLogger, torch.optim.Optimizer]
    fields = {field.name for home in (Trainer, Split, FitResult) for field in dataclasses.fields(home)}
    missing = []
    for left, right in ROWS:
        for span in spans(right):
            name = name_of(span)
            is_there = any(hasattr(home, name) for home in [*homes, torch.utils.data, torch.optim.lr_scheduler])
            is_of_program = hasattr(Ported, name) or name in ("plateau", "hparams", "state_attributes")
            if not (is_there or name in fields or is_of_program):
                missing.append((left, span))
            if name not in NOT_IN_THE_PROGRAM and not re.search(rf"\b{name}\b", program):
                missing.append((left, span))
    assert missing == []


def test_what_is_spelled_as_in_lightning_is_answered_as_the_row_says() -> None:
    answers, found = {**ELSEWHERE, **METHODS_ELSEWHERE}, 0
    for left, right in ROWS:
        names = {re.split(r"\W", span)[0] for span in spans(left)}
        for name in names & answers.keys():
            words = {*re.findall(r"\w+", answers[name])}
            assert words & {name_of(span) for span in re.findall(r"`([^`]*)`", right)}, (name, answers[name], right)
            found += 1
    assert found >= 30
