"""The plan of a run: its number of steps, its schedules, validations and checkpoints, and what a start would do."""

import copy
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same
from helpers.models import Indices, Stream, Tiny, data, quiet
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, RandomSampler

from helios_lite import Callback, DataModule, Split, Trainer, schedules
from helios_lite.checkpoints import naming
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.planning.due import steps_until_save
from helios_lite.samplers import BucketBatchSampler
from helios_lite.state import TrainingState


class Planned(Tiny):
    """Asks for the number of steps in `setup` and at every step, and makes a schedule of it."""

    def __init__(self, save_name: str = "planned", **hparams: Any) -> None:
        super().__init__(save_name)
        self.asked: list[int] = []
        self.used: list[float] = []
        self.made = False
        self.given = hparams

    def make(self) -> Any:
        return schedules.cosine(self.optimizer, 0)

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.hparams = {**self.given, "total": self.num_training_steps}
        self.asked.append(self.num_training_steps)
        if not fast_init:
            self.optimizer = SGD(self.net.parameters(), lr=0.1)
            self.scheduler = self.make()

    def train_step(self, batch: Any, state: Any) -> None:
        self.asked.append(self.num_training_steps)
        self.used.append(self.optimizer.param_groups[0]["lr"])
        self.backward((self.net(batch[1] if isinstance(batch, list) else torch.ones(2, 3)) - 1).square().mean())
        self.optimizer_step(self.optimizer, self.scheduler)


def of(train: Any) -> DataModule:
    return DataModule(train=train)


LENGTHS: dict[str, tuple[Any, dict[str, Any]]] = {
    "batches": (lambda: Split(Indices(22), 4, shuffle=True), {}),
    "without the last": (lambda: Split(Indices(22), 4, drop_last=True), {}),
    "micro-batches": (lambda: Split(Indices(22), 4), {"accumulation_steps": 4}),
    "some batches": (lambda: Split(Indices(22), 4), {"limit_train_batches": 2}),
    "a part of the batches": (lambda: Split(Indices(22), 4), {"limit_train_batches": 0.7, "accumulation_steps": 2}),
    "overfitting": (lambda: Split(Indices(22), 4), {"overfit_batches": 3}),
    "steps per epoch": (lambda: Split(Indices(22), 4), {"steps_per_epoch": 4}),
    "steps per epoch of a stream": (lambda: Split(Stream(9), 4), {"steps_per_epoch": 4}),
    "a sampler": (lambda: Split(Indices(22), 4, sampler=RandomSampler(range(9))), {}),
    "buckets": (lambda: Split(Indices(22), batch_sampler=BucketBatchSampler([*range(1, 23)], 4)), {}),
    "a list": (lambda: [torch.ones(2, 3)] * 3, {}),
    "a loader": (lambda: DataLoader(Indices(22), 4), {}),
    "max_steps before": (lambda: Split(Indices(22), 4), {"max_steps": 5}),
    "max_steps after": (lambda: Split(Indices(22), 4), {"max_steps": 500}),
    "only max_steps": (lambda: Split(Stream(90), 4), {"max_epochs": None, "max_steps": 7}),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_the_number_of_steps_is_known_in_setup_and_is_that_of_the_run(kind: str) -> None:
    make, options = LENGTHS[kind]
    model = Planned()
    result = quiet(**{"max_epochs": 2, **options}).fit(model, of(make()))
    assert {*model.asked} == {result.state.step}
    plan = quiet(**{"max_epochs": 2, **options}).plan(Planned(), of(make()))
    assert plan.steps == result.state.step


UNKNOWN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "stream": (lambda: Split(Stream(9), 4), {"max_epochs": 2}, "the train split has no length; set max_steps or steps"),
    "generator": (lambda: Batches(), {"max_epochs": 2}, "the train split has no length"),
    "minutes": (lambda: Split(Indices(9), 4), {"max_minutes": 1}, "without max_epochs or max_steps; set one of them"),
}


class Batches:
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([torch.ones(2, 3)])


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_number_that_cannot_be_known_is_an_error_that_says_why_and_only_if_it_is_asked_for(kind: str) -> None:
    make, options, text = UNKNOWN[kind]
    with pytest.raises(ValueError, match=f"num_training_steps: is not known.*{text}"):
        quiet(**options).fit(Planned(), of(make()))
    assert quiet(**options).plan(Tiny(), of(make())).steps is None
    with pytest.raises(RuntimeError, match="num_training_steps: no Trainer is running this model"):
        _ = Planned().num_training_steps


def test_the_number_is_known_in_every_call_and_in_the_process_that_launches_others(tmp_path: Path) -> None:
    model, trainer = Planned(), quiet(max_epochs=2, root=tmp_path, devices=2)
    result = trainer.fit(model, data(20, batch_size=4))
    assert (model.asked, result.state.step) == ([6], 6)  # Of 8 samples each; the ranks have asked on their copies.
    other = Planned()
    trainer.test(other, data(20, batch_size=4))
    assert other.asked == [6]


# What a run that goes on makes of another number.


def test_the_number_is_right_when_epochs_change_again_inside_of_one(tmp_path: Path) -> None:
    for sizes in ((8, 4, 2), (2, 4, 8), (4, 2, 4)):
        for number, size in enumerate(sizes):
            model = Cut(2 if number < 2 else None)
            root = tmp_path / str(sizes)
            result = quiet(root=root, max_epochs=3, accumulation_steps=1 + number % 2).fit(
                model, data(40, batch_size=size)
            )
        assert {*model.asked} == {result.state.step}


def test_the_number_is_right_when_batches_and_data_have_doubled(tmp_path: Path) -> None:
    quiet(root=tmp_path, max_epochs=3).fit(Cut(2), data(20, batch_size=4))
    model = Cut()
    result = quiet(root=tmp_path, max_epochs=3).fit(model, data(40, batch_size=8))
    assert {*model.asked} == {result.state.step} == {2 + 2 + 5 + 5}


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # Options and data before, and after.
    "more epochs": ({"max_epochs": 2}, {}, {"max_epochs": 4}, {}),
    "fewer epochs": ({"max_epochs": 4}, {}, {"max_epochs": 3}, {}),
    "larger batches": ({"max_epochs": 3}, {"batch_size": 4}, {"max_epochs": 3}, {"batch_size": 8}),
    "smaller batches": ({"max_epochs": 3}, {"batch_size": 4}, {"max_epochs": 3}, {"batch_size": 2}),
    "micro-batches": ({"max_epochs": 3}, {}, {"max_epochs": 3, "accumulation_steps": 2}, {}),
    "no micro-batches": ({"max_epochs": 3, "accumulation_steps": 2}, {}, {"max_epochs": 3}, {}),
    "other limits": ({"max_steps": 9}, {}, {"max_epochs": 3, "max_steps": None}, {}),
    "shorter epochs of windows, some of them short": (
        {"max_epochs": 3, "steps_per_epoch": 6, "accumulation_steps": 2},
        {"batch_size": 8},
        {"max_epochs": 3, "steps_per_epoch": 2, "accumulation_steps": 2},
        {"batch_size": 8},
    ),
    "passes again": ({"max_epochs": 3, "steps_per_epoch": 4}, {}, {"max_epochs": 3}, {}),
    "grown": ({"max_epochs": 3}, {}, {"max_epochs": 3}, {"train": 30}),
    "shrunk": ({"max_epochs": 3}, {}, {"max_epochs": 3}, {"train": 13}),
    "longer epochs": ({"max_epochs": 3, "steps_per_epoch": 4}, {}, {"max_epochs": 3, "steps_per_epoch": 6}, {}),
}


class Cut(Planned):
    """Stops after a step of its first start."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop = stop

    def should_training_stop(self) -> bool:
        return self.stop is not None and len(self.used) >= self.stop


@pytest.mark.parametrize("stop", [1, 3, 6, 7])
@pytest.mark.parametrize("change", CHANGES)
def test_the_number_is_right_and_the_schedule_follows_when_a_run_goes_on_otherwise(
    change: str, stop: int, tmp_path: Path
) -> None:
    before, split_before, after, split_after = CHANGES[change]
    stop *= before.get("accumulation_steps", 1)
    quiet(root=tmp_path, **before).fit(Cut(stop), data(**{"train": 22, **split_before}))
    model = Cut()
    result = quiet(root=tmp_path, **after).fit(model, data(**{"train": 22, **split_after}))
    assert {*model.asked} == {result.state.step}  # And the hparam that holds it is no error.
    factors = schedules.cosine(SGD([nn.Parameter(torch.ones(1))], lr=0.1), 0, result.state.step)
    used = [*dict.fromkeys(model.used)]  # Once for all micro-batches of a step.
    start = result.state.step - len(used)
    assert used == pytest.approx([0.1 * factors.lr_lambdas[0](step) for step in range(start, result.state.step)])


def test_an_hparam_that_was_chosen_and_not_planned_is_an_error_still(tmp_path: Path) -> None:
    quiet(root=tmp_path, max_epochs=1).fit(Planned(width=6), data(22))
    assert quiet(root=tmp_path, max_epochs=2).fit(Planned(width=6), data(22)).state.step == 12
    with pytest.raises(ValueError, match=r"hparams\['width'\]: 6 in the checkpoint, 18 now\. To train a new model"):
        quiet(root=tmp_path, max_epochs=3).fit(Planned(width=18), data(22))


# What is said.


class Seen(Callback):
    """Counts the times that it is set up."""

    number = 0

    def setup(self, fast_init: bool = False) -> None:
        self.number += 1


class Scheduled(Tiny):
    def __init__(self, make: Any, every: str = "step") -> None:
        super().__init__("scheduled")
        self.make_schedule, self.every = make, every

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        if not fast_init:
            self.optimizer = SGD(self.net.parameters(), lr=0.1)
            self.scheduler = self.make_schedule(self.optimizer)

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward((self.net(batch[1]) - 1).square().mean())
        self.optimizer_step(self.optimizer, self.scheduler if self.every == "step" else None)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        if self.every == "epoch":
            self.scheduler.step()


def warnings_of(make: Any, every: str, caplog: Any) -> list[str]:
    caplog.clear()
    quiet(max_epochs=6).fit(Scheduled(make, every), data(20, batch_size=4))
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def cosine(length: int) -> Any:
    return lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, length)


def test_a_schedule_of_the_package_that_does_not_fit_is_warned_of_before_the_first_step(caplog: Any) -> None:
    def make(optimizer: Any) -> Any:
        return schedules.cosine(optimizer, 0, 15)

    (text,) = warnings_of(make, "step", caplog)
    assert text == (
        "scheduler (cosine) falls to 0 after about 15 of 30 steps, and stays there: make it for "
        "self.num_training_steps (30) steps"
    )
    places = [record.levelname for record in caplog.records]
    assert places[0] == "WARNING"


def test_a_schedule_that_does_not_fit_is_warned_of_once_it_is_seen_how_often_it_is_stepped(caplog: Any) -> None:
    per_step = (
        "is stepped once per step; call step() in on_training_epoch_end for once per epoch, or make it for 30 steps"
    )
    per_epoch = "is stepped once per epoch; pass it to optimizer_step for once per step, or make it for 6 epochs"
    for length, every, text, way in (
        (15, "step", "is at its end after about 15 of 30 steps, and rises again then", per_step),
        (6, "step", "is at its end after about 6 of 30 steps, and rises again then", per_step),
        (60, "step", "would reach its end after about 60 steps, but is stepped 30 times", per_step),
        (30, "epoch", "would reach its end after about 30 steps, but is stepped 6 times", per_epoch),
    ):
        (found,) = warnings_of(cosine(length), every, caplog)
        assert found == f"scheduler (CosineAnnealingLR) {text}: it {way}"
    for length, every in ((30, "step"), (6, "epoch")):
        assert warnings_of(cosine(length), every, caplog) == []


def test_a_schedule_that_is_stepped_otherwise_than_per_step_or_epoch_is_left_in_peace(caplog: Any) -> None:
    class Seldom(Scheduled):
        def train_step(self, batch: Any, state: Any) -> None:
            self.scheduler = self.scheduler
            self.backward((self.net(batch[1]) - 1).square().mean())
            self.optimizer_step(self.optimizer, self.scheduler if state.step % 3 == 0 else None)

    quiet(max_epochs=6).fit(Seldom(cosine(10), "step"), data(20, batch_size=4))
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_function_of_the_user_is_not_called_more_often_than_by_a_loop_by_hand() -> None:
    rate = {"now": 1.0}

    def falling(step: int) -> float:
        rate["now"] *= 0.99
        return rate["now"]

    model = Scheduled(lambda optimizer: lr_scheduler.LambdaLR(optimizer, falling))
    quiet(max_epochs=2).fit(model, data(20, batch_size=4))
    assert rate["now"] == pytest.approx(0.99**11)  # Once when it is made, and after each of ten steps.


PLAN = """\
plan: 6 epochs x 5 steps = 30 steps of 4 samples
      6 validations, 6 saves, lr 0.1 -> 0.000274 (CosineAnnealingLR)"""


def test_a_plan_counts_what_is_to_come_when_epochs_have_another_length(tmp_path: Path) -> None:
    quiet(root=tmp_path, max_epochs=4).fit(Cut(7), data(20, batch_size=4))  # Inside of the second epoch of five steps.
    plan = quiet(root=tmp_path, max_epochs=4).plan(Cut(), data(20, batch_size=2))
    assert plan.steps == 7 + 6 + 10 + 10
    assert plan.validations == plan.saves == [13, 23, 33]
    assert plan.length() == "4 epochs = 33 steps of 2 samples, 10 steps an epoch from epoch 3 on"
    assert plan.start.startswith(f"continuing {tmp_path / 'planned'} at step 7 of 33 (")


def test_the_rates_of_a_schedule_are_shown_if_it_is_known_how_often_it_is_stepped(tmp_path: Path) -> None:
    def shown(make: Any, **options: Any) -> str:
        trainer = quiet(max_epochs=6, root=tmp_path, **options)
        return str(trainer.plan(Scheduled(make, "epoch"), data(20, batch_size=4)).rates["optimizer"])

    def falling(optimizer: Any) -> Any:
        return lr_scheduler.ExponentialLR(optimizer, 0.9)

    assert shown(cosine(30)) == "lr 0.1 -> 0.000274 (CosineAnnealingLR)"
    assert shown(cosine(6)) == "lr 0.1 -> 0.0067 (CosineAnnealingLR, once per epoch)"
    assert shown(falling) == "lr 0.1 (ExponentialLR)"
    quiet(max_epochs=2, root=tmp_path).fit(Scheduled(falling, "epoch"), data(20, batch_size=4))
    assert shown(falling) == "lr 0.1 -> 0.059 (ExponentialLR, once per epoch)"


def test_the_banner_has_the_plan(tmp_path: Path) -> None:
    options = {"root": tmp_path, "max_epochs": 6, "progress": False}
    Trainer(**options).fit(Scheduled(cosine(30)), data(20, batch_size=4))
    text = (tmp_path / "scheduled" / "train.log").read_text()
    for line in PLAN.splitlines():
        assert f"DEBUG {line}\n" in text


def test_the_steps_are_planned_from_the_checkpoint_that_can_be_read(tmp_path: Path, caplog: Any) -> None:
    options: dict[str, Any] = {"root": tmp_path, "keep_last": 2}
    quiet(max_epochs=2, **options).fit(Planned(), of(Split(Indices(12), 4)))
    newest, _ = naming.find(tmp_path / "planned/checkpoints", "planned")
    content, tensor = newest.read_bytes(), read_checkpoint(newest)["model"]["net"]["0.weight"].numpy().tobytes()
    newest.write_bytes(content.replace(tensor, bytes(len(tensor))))
    model = Planned()
    result = quiet(max_epochs=4, **options).fit(model, of(Split(Indices(12), 2)))
    assert result.state.step == 3 + 3 * 6
    assert (model.asked[0], {*model.asked[2:]}) == (6 + 2 * 6, {result.state.step})
    assert "num_training_steps: setup had 18, from the damaged checkpoint, and it is 21; " in caplog.text
    assert read_checkpoint(result.last_checkpoint)["planned"]["total"] == result.state.step


def test_the_plan_says_what_a_start_would_do_and_changes_nothing(tmp_path: Path, caplog: Any) -> None:
    def tree() -> dict[str, bytes]:
        paths = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in paths}

    def plan(model: Any = None, **changes: Any) -> Any:
        given = {"root": tmp_path, "max_epochs": 6, "monitor": "valid/loss", "valid_every_epochs": 0.5, **changes}
        before = tree()
        found = quiet(**given).plan(model or Scheduled(cosine(30)), data(20, batch_size=4))
        assert tree() == before
        return found

    model = Scheduled(cosine(30))
    first = plan(model)
    assert not hasattr(model, "net")
    assert not (tmp_path / "scheduled" / "checkpoints").exists()
    assert first.start == "begins a new run"
    assert (first.steps, first.steps_per_epoch, first.samples_per_step) == (30, 5, 4)
    assert plan(resume="new").start == "begins a new run, in the next free run folder"
    assert first.validations == [step + part for step in range(0, 30, 5) for part in (3, 5)]
    assert first.saves == [5, 10, 15, 20, 25, 30]
    assert first.rates["optimizer"].rates[:2] == pytest.approx(
        [0.1, 0.1 * (1 + torch.pi / 30 * 0) - 0.000274], rel=1e-2
    )
    options = {"root": tmp_path, "monitor": "valid/loss", "valid_every_epochs": 0.5, "keep_last": -1}
    result = quiet(max_epochs=3, **options).fit(model, data(20, batch_size=4))
    assert "has been set up before" not in caplog.text
    size = result.last_checkpoint.stat().st_size
    assert (
        first.checkpoint_bytes < size < first.checkpoint_bytes + 40_000
    )  # RNG states, names and numbers come with it.
    folder = tmp_path / "scheduled"
    goes_on = plan()
    assert (goes_on.validations, goes_on.saves) == ([18, 20, 23, 25, 28, 30], [20, 25, 30])  # Those to come.
    assert goes_on.start == f"continuing {folder} at step 15 of 30 ({result.last_checkpoint.name})"
    assert "max_epochs: 3 before, 6 now" in goes_on.changes
    assert plan(resume="best").start.startswith(f"continuing {folder} at step ")
    assert plan(max_epochs=3).start.startswith(f"{folder} had finished at step 15 (max_epochs=3): nothing to train")
    assert plan(max_epochs=2).start.startswith(f"{folder} is at step 15, in epoch 3, beyond max_epochs=2: nothing to")
    assert "optimizer.step" not in plan(resume="never").start
    assert plan(resume="never").start.startswith('raises FileExistsError: resume="never"')
    weights = copy.deepcopy(model.net.state_dict())
    seen = Seen()
    plan(model, callbacks=[seen], max_epochs=7)
    assert (same(model.net.state_dict(), weights), seen.number) == (True, 0)
    for line in ("length      6 epochs x 5 steps = 30 steps of 4 samples", "optimizer   lr 0.1 -> 0.000274"):
        assert line in str(goes_on)


def test_a_checkpoint_has_the_size_that_the_plan_says_with_the_states_of_optimizers(tmp_path: Path) -> None:
    class Large(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.large = self.parallelize(nn.Linear(400, 400))
            self.optimizer = torch.optim.AdamW([*self.net.parameters(), *self.large.parameters()])

        def train_step(self, batch: Any, state: Any) -> None:
            self.backward(self.net(batch[1]).mean() + self.large(torch.ones(400)).mean())
            self.optimizer_step(self.optimizer)

    trainer = quiet(root=tmp_path, max_steps=1)
    planned = trainer.plan(Large(), data()).checkpoint_bytes
    size = trainer.fit(Large(), data()).last_checkpoint.stat().st_size
    assert planned > 3 * 4 * 400 * 400
    assert planned < size < planned + 40_000


# Checkpoints that are rare.


@pytest.mark.parametrize(
    ("state", "options", "until"),
    [
        (TrainingState(epoch=1, step=7, epoch_batch=2), {}, 3),
        (TrainingState(epoch=1, step=7, epoch_batch=2), {"save_every_epochs": 3}, 8),
        (TrainingState(epoch=1, step=7, epoch_batch=2), {"save_every_epochs": 3, "save_every_steps": 4}, 1),
        (TrainingState(epoch=1, step=7, epoch_batch=2), {"keep_last": 0}, 93),
        (TrainingState(epoch=1, step=7, epoch_batch=4), {"accumulation_steps": 2}, 3),
    ],
)
def test_the_next_checkpoint_is_in_sight(state: TrainingState, options: dict[str, Any], until: int) -> None:
    assert steps_until_save(state, Trainer(max_steps=100, **options), 5, 100) == until


def test_a_kill_that_would_lose_more_than_half_an_hour_is_warned_of_once(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + passed[0])

    class Slow(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            passed[0] += 30
            super().train_step(batch, state)

    def warned(**options: Any) -> list[str]:
        caplog.clear()
        trainer = quiet(max_epochs=1, log_every_steps=5, **{"root": tmp_path, **options})
        trainer.fit(Slow(), data(400, batch_size=4))
        return [record.getMessage() for record in caplog.records if "two checkpoints" in record.getMessage()]

    (text,) = warned(run_name="rare")
    assert "there will be about 50 minutes of training between two checkpoints" in text
    assert warned(run_name="often", save_every_steps=10) == []
    assert warned(run_name="timed", save_every_minutes=10) == []
    assert warned(root=None) == []
