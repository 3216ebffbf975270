"""The order of hooks, as literal lists of events, and the counters that each hook sees."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import HOOKS, Indices, Tiny, quiet
from helpers.tracebacks import MOST, functions, functions_of_package

from helios_lite import Callback, DataModule, Split

MODEL_HOOKS = [
    *HOOKS,
    "load_state_dict",
    "load_for_testing",
    "append_to_banner",
    "train",
    "eval",
    "train_step",
    "valid_step",
    "test_step",
    "predict_step",
    "have_metrics_improved",
    "should_save_checkpoint",
    "append_metadata_to_chkpt_name",
]


NEVER_FAIL = ("load_state_dict", "test_step", "on_exception")  # Or are not called here.


def noted(events: list[str], name: str, arguments: tuple[Any, ...]) -> None:
    """Write an event down as `name(number)` or `name(phase)`; batches and states are told by their name alone."""
    shown = [str(value) for value in arguments if type(value) is int or value in ("train", "valid", "test")]
    events.append(f"{name}({', '.join(shown)})" if shown else name)


def recording(cls: type, names: list[str]) -> type:
    """A subclass that notes every call of the named methods in `self.events`."""

    def method(name: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            noted(self.events, self.label + name, args)
            return getattr(super(recorder, self), name)(*args, **kwargs)

        return call

    recorder = type(f"Recording{cls.__name__}", (cls,), {name: method(name) for name in names})
    recorder.label = ""
    return recorder


RecordingModel = recording(Tiny, MODEL_HOOKS)
RecordingData = recording(DataModule, ["prepare_data", "setup", "teardown"])
RecordingData.label = "data."
RecordingCallback = recording(Callback, HOOKS)
RecordingCallback.label = "callback."


def run(events: list[str], *, train: int = 8, valid: int | None = 4, model: Any = None, **options: Any) -> Any:
    model = model or RecordingModel()
    model.events = events
    datamodule = RecordingData(
        train=Split(Indices(train), batch_size=4),
        valid=None if valid is None else Split(Indices(valid), batch_size=4),
        test=Split(Indices(4), batch_size=4),
        predict=[torch.zeros(4, 3)],
    )
    datamodule.events = events
    trainer = quiet(async_save=False, **options)  # So that on_checkpoint_saved is called in this thread.
    return model, datamodule, trainer


TRAIN_BATCH = ["on_training_batch_start", "train_step", "on_training_batch_end", "should_training_stop"]
LOGGED_BATCH = [*TRAIN_BATCH[:-1], "process_metrics(train)", TRAIN_BATCH[-1]]


def validation(cycle: int) -> list[str]:
    return [
        "eval",
        f"on_validation_start({cycle})",
        "on_validation_batch_start(0)",
        "valid_step(0)",
        "on_validation_batch_end(0)",
        f"on_validation_end({cycle})",
        "process_metrics(valid)",
        "train",
    ]


COMPARED = ["have_metrics_improved", "on_validation_metrics"]
VERDICT = [*COMPARED, "should_training_stop"]
SAVE = ["append_metadata_to_chkpt_name", "on_checkpoint_saved"]


def test_an_epoch_run(tmp_path: Path) -> None:
    events: list[str] = []
    model, datamodule, trainer = run(events, max_epochs=2, root=tmp_path, print_banner=True)
    trainer.fit(model, datamodule)
    assert events == [
        "data.prepare_data",
        "data.setup",
        "setup",
        "append_to_banner",
        *validation(0),
        "on_training_start",
        "train",
        "on_training_epoch_start(1)",
        *TRAIN_BATCH,
        *LOGGED_BATCH,
        *validation(1),
        *VERDICT,
        "on_training_epoch_end(1)",
        "should_training_stop",
        "should_save_checkpoint",
        *SAVE,
        "on_training_epoch_start(2)",
        *TRAIN_BATCH,
        *LOGGED_BATCH,
        *validation(2),
        *VERDICT,
        "on_training_epoch_end(2)",
        "should_training_stop",
        "on_training_end",
        *SAVE,
        "data.teardown",
    ]


def test_a_step_run_that_validates_and_saves_inside_the_epoch(tmp_path: Path) -> None:
    events: list[str] = []
    options = {"max_steps": 3, "valid_every_epochs": None, "valid_every_steps": 2, "save_every_steps": 2}
    model, datamodule, trainer = run(events, train=20, sanity_batches=0, root=tmp_path, **options)
    trainer.fit(model, datamodule)
    assert events == [
        "data.prepare_data",
        "data.setup",
        "setup",
        "on_training_start",
        "train",
        "on_training_epoch_start(1)",
        *TRAIN_BATCH,
        *TRAIN_BATCH,
        *validation(1),
        *VERDICT,
        "should_save_checkpoint",
        *SAVE,
        *TRAIN_BATCH,
        "on_training_end",
        *SAVE,
        "process_metrics(train)",  # For what was logged since the last row.
        *validation(2),
        *COMPARED,
        "data.teardown",
    ]


def test_a_step_limit_on_the_last_batch_of_an_epoch_ends_the_epoch() -> None:
    events: list[str] = []
    model, datamodule, trainer = run(events, max_steps=2, sanity_batches=0)
    trainer.fit(model, datamodule)
    assert (
        events[-13:]
        == [
            *validation(1),
            *VERDICT,
            "on_training_epoch_end(1)",
            "should_training_stop",
            "on_training_end",
            "data.teardown",
        ][-13:]
    )


def test_an_early_stop_inside_an_epoch() -> None:
    class NeverBetter(RecordingModel):
        def have_metrics_improved(self) -> bool:
            super().have_metrics_improved()
            return False

    events: list[str] = []
    options = {"valid_every_epochs": 0.5, "patience": 1, "max_epochs": 9}
    model, datamodule, trainer = run(events, train=16, model=NeverBetter(), sanity_batches=0, **options)
    result = trainer.fit(model, datamodule)
    assert result.stop_reason == "patience"
    assert events[3:] == [
        "on_training_start",
        "train",
        "on_training_epoch_start(1)",
        *TRAIN_BATCH,
        *TRAIN_BATCH,
        *validation(1),
        *VERDICT,
        "on_training_end",
        "process_metrics(train)",
        "data.teardown",
    ]


def test_a_resume_inside_an_epoch(tmp_path: Path) -> None:
    model, datamodule, trainer = run([], max_steps=1, root=tmp_path)
    trainer.fit(model, datamodule)
    events: list[str] = []
    model, datamodule, trainer = run(events, max_steps=2, root=tmp_path, print_banner=True)
    trainer.fit(model, datamodule)
    assert events == [
        "data.prepare_data",
        "data.setup",
        "setup",
        "load_state_dict",
        "append_to_banner",
        "on_training_start",
        "train",
        "on_training_epoch_start(1)",
        *LOGGED_BATCH,
        *validation(1),
        *VERDICT,
        "on_training_epoch_end(1)",
        "should_training_stop",
        "on_training_end",
        *SAVE,
        "data.teardown",
    ]


def test_a_finished_run_trains_nothing(tmp_path: Path) -> None:
    model, datamodule, trainer = run([], max_steps=2, root=tmp_path)
    trainer.fit(model, datamodule)
    events: list[str] = []
    model, datamodule, trainer = run(events, max_steps=2, root=tmp_path)
    assert trainer.fit(model, datamodule).stop_reason == "max_steps"
    assert events == ["data.prepare_data", "data.setup", "setup", "load_state_dict", "data.teardown"]


TESTING = [
    "eval",
    "on_testing_start",
    "on_testing_batch_start(0)",
    "test_step(0)",
    "valid_step(0)",  # What test_step is while nobody writes it.
    "on_testing_batch_end(0)",
    "on_testing_end",
    "process_metrics(test)",
    "eval",
]


def test_a_test_with_and_without_a_checkpoint(tmp_path: Path) -> None:
    events: list[str] = []
    model, datamodule, trainer = run(events, max_steps=1, root=tmp_path)
    trainer.test(model, datamodule)
    assert events == ["data.prepare_data", "data.setup", "setup", "load_for_testing", *TESTING, "data.teardown"]

    model, datamodule, trainer = run([], max_steps=1, root=tmp_path)
    trainer.fit(model, datamodule)
    events = []
    model, datamodule, trainer = run(events, max_steps=1, root=tmp_path)
    trainer.test(model, datamodule)
    assert events == ["data.prepare_data", "data.setup", "setup", "load_state_dict", *TESTING, "data.teardown"]


def test_a_prediction() -> None:
    events: list[str] = []
    model, datamodule, trainer = run(events)
    for _ in trainer.predict(model, datamodule):
        events.append("the caller")
    assert events == [
        "data.prepare_data",
        "data.setup",
        "setup",
        "load_for_testing",
        "eval",
        "on_predicting_start",
        "predict_step(0)",
        "the caller",
        "on_predicting_end",
        "eval",
        "data.teardown",
    ]


IN_REVERSE = ("on_validation_end", "on_testing_end", "on_predicting_end", "on_exception")


def test_callbacks_have_the_same_hooks_right_after_the_models(tmp_path: Path) -> None:
    events: list[str] = []
    callbacks = [RecordingCallback(), RecordingCallback()]
    for number, callback in enumerate(callbacks, start=1):
        callback.events, callback.label = events, f"{number}."
    model, datamodule, trainer = run(events, max_epochs=1, callbacks=callbacks, root=tmp_path)
    trainer.fit(model, datamodule)
    trainer.test(model, datamodule)
    list(trainer.predict(model, datamodule))
    datamodule.train = None
    with pytest.raises(ValueError, match="no train split"):
        trainer.fit(model, datamodule)
    for hook in HOOKS:
        positions = [i for i, event in enumerate(events) if event.partition("(")[0] == hook]
        assert positions, hook
        for i in positions:
            numbers = (2, 1) if hook in IN_REVERSE else (1, 2)
            assert events[i + 1 : i + 3] == [f"{number}.{events[i]}" for number in numbers] or hook == "setup"
    assert events.count("1.setup") == 4


def test_counters_count_what_is_finished_at_every_hook() -> None:
    seen: list[tuple[str, int, int, int, int, int, int]] = []

    class Counting(Tiny):
        def note(self, name: str, state: Any) -> None:
            counters = (state.epoch, state.step, state.batch, state.epoch_batch, state.epoch_samples)
            seen.append((name, *counters, state.validation_cycle))

        def on_training_batch_start(self, state: Any) -> None:
            super().on_training_batch_start(state)
            self.state = state
            self.note("start", state)

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.note("step", state)

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.note("log" if should_log else "end", state)

        def on_validation_start(self, validation_cycle: int) -> None:
            self.note(f"valid {validation_cycle}", self.state)

        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.note(f"epoch {current_epoch}", self.state)

    datamodule = DataModule(Split(Indices(5), batch_size=2), Split(Indices(2), batch_size=2))
    trainer = quiet(max_epochs=2, accumulation_steps=2, log_every_steps=1, sanity_batches=0)
    trainer.fit(Counting(), datamodule)
    assert seen == [
        # name, epoch, step, batch, epoch_batch, epoch_samples, validation_cycle
        ("start", 0, 0, 0, 0, 0, 0),
        ("step", 0, 0, 0, 0, 0, 0),
        ("end", 0, 0, 1, 1, 2, 0),
        ("start", 0, 0, 1, 1, 2, 0),
        ("step", 0, 0, 1, 1, 2, 0),
        ("log", 0, 1, 2, 2, 4, 0),
        ("start", 0, 1, 2, 2, 4, 0),
        ("step", 0, 1, 2, 2, 4, 0),
        ("log", 0, 2, 3, 3, 5, 0),
        ("valid 1", 0, 2, 3, 3, 5, 0),
        ("epoch 1", 0, 2, 3, 3, 5, 1),
        ("start", 1, 2, 3, 0, 0, 1),
        ("step", 1, 2, 3, 0, 0, 1),
        ("end", 1, 2, 4, 1, 2, 1),
        ("start", 1, 2, 4, 1, 2, 1),
        ("step", 1, 2, 4, 1, 2, 1),
        ("log", 1, 3, 5, 2, 4, 1),
        ("start", 1, 3, 5, 2, 4, 1),
        ("step", 1, 3, 5, 2, 4, 1),
        ("log", 1, 4, 6, 3, 5, 1),
        ("valid 2", 1, 4, 6, 3, 5, 1),
        ("epoch 2", 1, 4, 6, 3, 5, 2),
    ]


def test_evaluation_runs_in_evaluation_mode_without_gradients_and_training_with() -> None:
    modes: list[tuple[str, bool, bool]] = []

    class Modes(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            modes.append(("train", self.net.training, torch.is_grad_enabled()))
            super().train_step(batch, state)

        def valid_step(self, batch: Any, step: int) -> None:
            modes.append(("valid", self.net.training, torch.is_grad_enabled()))

        def on_validation_end(self, validation_cycle: int) -> None:
            modes.append(("end", self.net.training, torch.is_grad_enabled()))

    datamodule = DataModule(Split(Indices(4), batch_size=4), Split(Indices(4), batch_size=4))
    quiet(max_epochs=2, sanity_batches=0).fit(Modes(), datamodule)
    assert modes == [("train", True, True), ("valid", False, False), ("end", False, False)] * 2


@pytest.mark.parametrize("failing", [name for name in MODEL_HOOKS if name not in NEVER_FAIL])
def test_an_error_in_any_hook_reaches_the_caller_as_itself_after_teardown(failing: str, tmp_path: Path) -> None:
    class Unusual(Exception):
        pass

    error = Unusual("as it is")

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise error

    model_class = type("Failing", (RecordingModel,), {failing: fail})
    events: list[str] = []
    model, datamodule, trainer = run(events, model=model_class(), max_epochs=2, root=tmp_path, print_banner=True)

    def everything() -> None:
        trainer.fit(model, datamodule)
        trainer.test(model, datamodule, checkpoint=None)
        list(trainer.predict(model, datamodule, checkpoint=None))
        quiet(max_epochs=1).test(model, datamodule)  # No checkpoint to be found: load_for_testing.

    with pytest.raises(Unusual) as caught:
        everything()
    assert caught.value is error
    assert events[-1] == "data.teardown"
    assert len(functions_of_package(error)) <= MOST
    assert functions(error)[-1] == "fail"


def test_the_state_a_hook_gets_is_plain_data() -> None:
    model, datamodule, trainer = run([], max_epochs=1)
    state = trainer.fit(model, datamodule).state
    assert {type(value) for value in dataclasses.asdict(state).values()} <= {int, float, type(None)}
