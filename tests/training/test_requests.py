"""What hooks may ask of a training, and what they are shown: requests, the split at work, the batch on the device."""

import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import HOOKS, Indices, Judged, Tiny, data, quiet

from helios_lite import Callback, DataModule, Split
from helios_lite.checkpoints.naming import find

NOT_IN_A_TRAINING = ("on_testing", "on_predicting", "on_exception", "on_checkpoint_saved")  # The last one needs files.
IN_A_TRAINING = [name for name in HOOKS if not name.startswith(NOT_IN_A_TRAINING)]
ENDS_AT = {"on_training_epoch_end": 3, "on_validation_metrics": 3, "on_training_end": 9}  # All others after step 1.


def asking(base: Any, name: str, what: str, step: int = 0) -> Any:
    """Return an instance of a class like `base`, one of whose hooks asks for something once, from a step on."""

    class Asking(base):  # type: ignore[misc]
        asked = False

    def hook(self: Any, *arguments: Any, **options: Any) -> Any:
        result = getattr(super(Asking, self), name)(*arguments, **options)
        model = self.model if isinstance(self, Callback) else self
        if not self.asked and getattr(arguments[-1] if name == "train_step" else None, "step", step) >= step:
            self.asked = True
            getattr(model, f"request_{what}")()
        return result

    setattr(Asking, name, hook)
    return Asking()


@pytest.mark.parametrize("base", [Tiny, Callback])
def test_every_hook_may_end_the_training_at_the_next_boundary(base: Any) -> None:
    for name in [*IN_A_TRAINING, *(["train_step", "valid_step"] if base is Tiny else [])]:
        asks = asking(base, name, "stop")
        model, callbacks = (asks, []) if base is Tiny else (Tiny(), [asks])
        result = quiet(max_epochs=3, callbacks=callbacks).fit(model, data())
        assert (name, asks.asked, result.state.step) == (name, True, ENDS_AT.get(name, 1))
        assert result.stop_reason == ("max_epochs" if name == "on_training_end" else "should_training_stop")


def test_a_saved_checkpoint_may_end_the_training(tmp_path: Path) -> None:
    callback = asking(Callback, "on_checkpoint_saved", "stop")
    options = {"root": tmp_path, "save_every_steps": 2, "async_save": False}
    result = quiet(max_epochs=3, callbacks=[callback], **options).fit(Tiny(), data())
    assert (result.stop_reason, result.state.step) == ("should_training_stop", 3)


def test_a_validation_that_is_due_answers_a_request_too(tmp_path: Path) -> None:
    class Counting(Callback):
        validated = 0

        def on_validation_metrics(self, metrics: dict[str, float]) -> None:
            self.validated += 1

    for options in ({"valid_every_steps": 2, "valid_every_epochs": None, "save_every_steps": 3}, {}):
        plain, asked = Counting(), Counting()
        quiet(max_epochs=2, root=tmp_path / f"plain {len(options)}", callbacks=[plain], **options).fit(
            Tiny(), data(train=16)
        )
        model = asking(Tiny, "train_step", "validation", step=1 if options else 3)
        quiet(max_epochs=2, root=tmp_path / f"asked {len(options)}", callbacks=[asked], **options).fit(
            model, data(train=16)
        )
        assert model.asked
        assert asked.validated == plain.validated


def test_a_callback_that_stops_needs_no_limit() -> None:
    class Stopping(Callback):
        def should_training_stop(self) -> bool:
            return len(self.model.seen) >= 40

    result = quiet(callbacks=[Stopping()]).fit(Tiny(), data())
    assert (result.stop_reason, result.state.step) == ("should_training_stop", 12)
    with pytest.raises(ValueError, match=r"^max_epochs, .*: at least one is needed, unless the model or a callback"):
        quiet(callbacks=[Callback()]).fit(Tiny(), data())


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_checkpoint_and_a_validation_on_request_come_at_the_end_of_the_step(
    accumulation_steps: int, tmp_path: Path
) -> None:
    options = {"max_epochs": 2, "accumulation_steps": accumulation_steps}
    expected = Tiny()
    quiet(**options).fit(expected, data(train=20))
    model = asking(Tiny, "train_step", "save", step=1)
    quiet(root=tmp_path, keep_last=-1, **options).fit(model, data(train=20))
    steps = [int(path.stem.rpartition("_")[2]) for path in find(tmp_path / "tiny" / "checkpoints", "tiny")]
    assert 2 in steps
    assert same(weights(model), weights(expected))

    class Watching(Tiny):
        def on_validation_metrics(self, metrics: dict[str, float]) -> None:
            validated.append(len(self.seen))

    validated: list[int] = []
    model = asking(Watching, "train_step", "validation", step=1)
    quiet(**options).fit(model, data(train=20))
    assert validated == [8 * accumulation_steps, 20, 40]  # Samples that were seen.
    assert same(weights(model), weights(expected))


def test_a_request_without_what_it_needs_is_an_error() -> None:
    model = Tiny()
    with pytest.raises(RuntimeError, match=r"^request_stop: no training is running this model"):
        model.request_stop()
    with pytest.raises(RuntimeError, match=r"^request_validation: this run does not validate"):
        quiet(max_epochs=1).fit(asking(Tiny, "train_step", "validation"), DataModule(data().train))
    trained = asking(Tiny, "valid_step", "save")
    trained.asked = True
    trainer = quiet(max_epochs=1)
    trainer.fit(trained, data())
    trained.asked = False
    with pytest.raises(RuntimeError, match=r"^request_save: no training is running this model"):
        trainer.validate(trained, data(), checkpoint=None)


def test_steps_and_hooks_know_the_split_at_work() -> None:
    class Named(Tiny):
        def valid_step(self, batch: Any, step: int) -> None:
            super().valid_step(batch, step)
            names.append(("step", self.split_name))

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            names.append(("step", self.split_name))

        def predict_step(self, batch: Any, step: int) -> Any:
            names.append(("step", self.split_name))

    class Naming(Callback):
        def on_validation_batch_end(self, step: int) -> None:
            names.append(("batch", self.model.split_name))

        def on_validation_end(self, validation_cycle: int) -> None:
            names.append(("end", self.model.split_name))

        def on_training_epoch_end(self, current_epoch: int) -> None:
            names.append(("epoch", self.model.split_name))

    names: list[tuple[str, str]] = []
    parts = {"clean": Split(Indices(2), batch_size=2), "noisy": Split(Indices(2), batch_size=2)}
    datamodule = DataModule(Split(Indices(2), batch_size=2), parts, Split(Indices(2), batch_size=2))
    model, trainer = Named(), quiet(max_epochs=1, sanity_batches=0, callbacks=[Naming()])
    with pytest.raises(RuntimeError, match=r"^Named.split_name"):
        _ = model.split_name
    trainer.fit(model, datamodule)
    each = [("step", "valid/clean"), ("batch", "valid/clean"), ("step", "valid/noisy"), ("batch", "valid/noisy")]
    assert names == [("step", "train"), *each, ("end", "valid"), ("epoch", "train")]
    names.clear()
    trainer.test(model, datamodule, checkpoint=None)
    list(trainer.predict(model, datamodule, checkpoint=None))
    datamodule.predict = datamodule.test
    list(trainer.predict(model, datamodule, checkpoint=None))
    assert names == [("step", "test"), ("step", "test"), ("step", "predict")]


class Copied(Tiny):
    """Its batches are copied, as they are to a device."""

    def batch_to_device(self, batch: Any, phase: str) -> Any:
        return [part.clone() for part in batch]


class Moved(Copied):
    """Notes which batches its steps get."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.given.append(batch)

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        self.given.append(batch)


class Seeing(Callback):
    """Notes what batch hooks see, and what other hooks do."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.elsewhere: list[Any] = []

    def see(self, *_: Any) -> None:
        self.seen.append(self.model.batch)

    def look(self, *_: Any) -> None:
        self.elsewhere.append(self.model.batch)

    on_training_batch_start = on_training_batch_end = on_validation_batch_start = on_validation_batch_end = see
    on_testing_batch_start = on_testing_batch_end = see
    on_training_epoch_start = on_validation_start = on_validation_end = on_training_epoch_end = look
    on_training_start = on_training_end = on_testing_start = on_testing_end = look


@pytest.mark.parametrize("model_type", [Tiny, Moved])
def test_batch_hooks_see_the_batch_that_the_step_gets(model_type: Any) -> None:
    callback, model = Seeing(), model_type()
    trainer = quiet(max_epochs=1, sanity_batches=0, callbacks=[callback])
    datamodule = DataModule(data().train, data().valid, data().valid)
    trainer.fit(model, datamodule)
    trainer.test(model, datamodule, checkpoint=None)
    assert len(callback.seen) == 2 * (3 + 2 + 2)
    assert all(start is end for start, end in zip(callback.seen[::2], callback.seen[1::2], strict=True))
    if model_type is Moved:
        assert all(seen is given for seen, given in zip(callback.seen[::2], model.given, strict=True))
    assert set(map(type, callback.elsewhere)) == {type(None)}
    assert model.batch is None


def test_no_batch_on_the_device_is_kept_alive_while_the_next_is_loaded() -> None:
    class Watched(Indices):
        def __getitem__(self, index: int) -> Any:
            alive.append([each() is not None for each in given])
            return super().__getitem__(index)

    class Watching(Callback):
        def note(self, *_: Any) -> None:
            given.append(weakref.ref(self.model.batch[1]))

        on_training_batch_end = on_validation_batch_end = note

    class Failing(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            raise ArithmeticError

    given, alive = [], []
    splits = [Split(Watched(4), batch_size=1) for _ in range(2)]
    quiet(max_epochs=1, sanity_batches=0, callbacks=[Watching()]).fit(Copied(), DataModule(*splits))
    assert len(given) == 8
    assert not any(map(any, alive))
    model = Failing()
    with pytest.raises(ArithmeticError):
        quiet(max_epochs=1, callbacks=[Watching()]).fit(model, data())
    assert model.batch is None


def test_an_error_is_told_to_all_before_teardown_and_comes_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    class Unusual(Exception):
        pass

    class Data(DataModule):
        def teardown(self) -> None:
            told.append("teardown")

    class Telling(Callback):
        def on_exception(self, error: BaseException) -> None:
            told.append(error)

    class Failing(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            raise Unusual

        def on_exception(self, error: BaseException) -> None:
            told.append((error, self.batch is not None))
            raise ArithmeticError("of the hook")

    told: list[Any] = []
    with caplog.at_level(logging.ERROR), pytest.raises(Unusual) as raised:
        quiet(max_epochs=1, callbacks=[Telling()]).fit(Failing(), Data(data().train))
    assert told == [(raised.value, False), raised.value, "teardown"]
    assert "one more error in Failing.on_exception" in caplog.text


def test_a_callback_may_stop_as_a_model_may() -> None:
    class Stopping(Callback):
        asked = 0

        def should_training_stop(self) -> bool:
            self.asked += 1
            return self.asked == 2

    callbacks = [Stopping(), Stopping()]
    result = quiet(max_epochs=3, callbacks=callbacks).fit(Tiny(), data())
    assert (result.stop_reason, result.state.step) == ("should_training_stop", 2)
    assert [callback.asked for callback in callbacks] == [2, 2]


def test_a_checkpoint_is_told_when_it_is_durable(tmp_path: Path) -> None:
    class Told(Callback):
        def __init__(self) -> None:
            self.saved: list[tuple[str, bool]] = []

        def on_checkpoint_saved(self, path: Path, is_best: bool) -> None:
            torch.load(path, weights_only=False)
            self.saved.append((path.name, is_best))

    callback = Told()
    quiet(max_epochs=3, root=tmp_path, callbacks=[callback], monitor="train/score").fit(Judged(), data())
    names = ["tiny_epoch_1_iter_3.pth", "tiny_epoch_2_iter_6.pth", "tiny_epoch_3_iter_9.pth"]
    assert callback.saved == list(zip(names, [True, True, False], strict=True))


def test_an_error_when_a_checkpoint_is_saved_ends_the_run(tmp_path: Path) -> None:
    class Unusual(Exception):
        pass

    class Failing(Callback):
        def on_checkpoint_saved(self, path: Path, is_best: bool) -> None:
            raise Unusual

    for async_save in (True, False):
        options = {"root": tmp_path / str(async_save), "save_every_steps": 1, "async_save": async_save}
        with pytest.raises(Unusual):
            quiet(max_epochs=1, callbacks=[Failing()], **options).fit(Tiny(), data())
        assert find(tmp_path / str(async_save) / "tiny" / "checkpoints", "tiny")
