"""A traceback is short where a line of the user's fails, and whole where the package does."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import HOOKS, Indices, Plain, Stream, Tiny, data, quiet
from helpers.tracebacks import MOST, PACKAGE, functions, functions_of_package
from torch.utils.data import DataLoader

from helios_lite import Callback, DataModule, Split, Trainer
from helios_lite.config import fit_from_config
from helios_lite.tools.command import main


class FailedError(Exception):
    """What a program raises."""


def fail(*arguments: Any, **options: Any) -> Any:
    raise FailedError


def failing(base: type, name: str) -> Any:
    """Return a class in which a method fails."""
    return type("Failing", (base,), {name: fail})


class Failing(Tiny):
    """Fails where it is made."""

    __init__ = fail


class FailingIn(Plain):
    setup = fail


class FailingCallback(Callback):
    __init__ = fail


class Logger:
    def log_config(self, config: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int) -> None: ...

    def rewind(self, step: int) -> None: ...

    def log_status(self, status: str) -> None: ...

    def close(self) -> None: ...


class Metric:
    def update(self, value: Any) -> None: ...

    def compute(self) -> Any:
        fail()

    def reset(self) -> None: ...


class LoggingMetric(Plain):
    def valid_step(self, batch: Any, step: int) -> None:
        self.log("metric", Metric())


class Predicting(Plain):
    def predict_step(self, batch: Any, step: int) -> Any:
        return batch[1]


UNREADABLE = failing(Indices, "__getitem__")(4)
SAMPLER = failing(Indices, "__iter__")(4)


def of_model(name: str, method: str = "fit", **arguments: Any) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        if method == "replay" or name == "load_state_dict":
            quiet(root=folder, max_steps=2).fit(Plain(), data())
        trainer, model = quiet(root=folder, max_steps=3), failing(Plain, name)()
        result = getattr(trainer, method)(model, data(), **arguments)
        return list(result) if method == "predict" else result

    return call


def of_callback(name: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> None:
        if name == "load_state_dict":
            quiet(root=folder, max_steps=1, callbacks=[type("Failing", (Callback,), {})()]).fit(Plain(), data())
        trainer = quiet(root=folder, max_epochs=1, callbacks=[failing(Callback, name)()])
        if "test" not in name and "predict" not in name:
            trainer.fit(Plain(), data())
        trainer.test(Plain(), data(), checkpoint=None)
        list(trainer.predict(Predicting(), data(), checkpoint=None))

    return call


def of_logger(name: str) -> Callable[[Path], Any]:
    return lambda folder: quiet(max_steps=1, loggers=[failing(Logger, name)()]).fit(Plain(), data())


def of_data(name: str) -> Callable[[Path], Any]:
    return lambda folder: quiet(max_steps=1).fit(Plain(), failing(DataModule, name)(Split(Indices(4), 2)))


def of_split(train: Any, valid: Any = None) -> Callable[[Path], Any]:
    return lambda folder: quiet(max_steps=1).fit(Plain(), DataModule(train, valid))


def of_command(folder: Path) -> None:
    file = folder / "run.toml"
    file.write_text(f'''model.class = "{__name__}.FailingIn"
data = {{class = "helios_lite.DataModule"}}
trainer = {{max_steps = 1, root = "{folder}"}}''')
    main(["fit", str(file)])


def of_dict(model: type) -> Callable[[Path], Any]:
    tables = {"model": {"class": f"{__name__}.{model.__name__}"}, "data": {"class": "helios_lite.DataModule"}}
    return lambda folder: fit_from_config({**tables, "trainer": {"max_steps": 1, "root": None}})


LINES: dict[str, Callable[[Path], Any]] = {
    # The hooks and steps of a model in `fit` are those of training/test_hooks.py, and these.
    **{name: of_model(name) for name in ("batch_to_device", "state_dict", "load_state_dict")},
    "setup in a plan": of_model("setup", "plan"),
    "a step in a replay": of_model("train_step", "replay", step=3),
    "a step in validate": of_model("valid_step", "validate", checkpoint=None),
    "a step in test": of_model("test_step", "test", checkpoint=None),
    "a step in predict": of_model("predict_step", "predict", checkpoint=None),
    "a step in write_predictions": of_model("predict_step", "write_predictions", path="unused", checkpoint=None),
    "load_state_dict in test": of_model("load_state_dict", "test"),
    "a metric": lambda folder: quiet(max_steps=1).fit(LoggingMetric(), data()),
    **{
        f"{name} of a callback": of_callback(name)
        for name in (*HOOKS, "state_dict", "load_state_dict")
        if name != "on_exception"
    },
    **{f"{name} of the data": of_data(name) for name in ("prepare_data", "setup", "teardown")},
    **{f"{name} of a logger": of_logger(name) for name in vars(Logger) if not name.startswith("_")},
    "a sample": of_split(Split(UNREADABLE, 2)),
    "a sample in a worker": of_split(Split(UNREADABLE, 2, num_workers=1)),
    "a sample in a loader": of_split(DataLoader(UNREADABLE, 2)),
    "a sample in a validation": of_split(Split(Indices(4), 2), Split(UNREADABLE, 2)),
    "samples at once": of_split(Split(failing(Indices, "__getitems__")(4), 2)),
    "a stream": of_split(Split(failing(Stream, "__iter__")(4), 2)),
    "an iterable": of_split(failing(Stream, "__iter__")(4)),
    "a collate function": of_split(Split(Indices(4), 2, collate_fn=fail)),
    "a sampler": of_split(Split(Indices(4), 2, sampler=SAMPLER)),
    "a sampler of batches": of_split(Split(Indices(4), batch_sampler=SAMPLER)),
    "a sampler in a loader": of_split(DataLoader(Indices(4), 2, sampler=SAMPLER)),
    "set_epoch": of_split(Split(failing(Indices, "set_epoch")(4), 2)),
    "a constructor of a model in a dict": of_dict(Failing),
    "setup of a model in a dict": of_dict(FailingIn),
    "setup of a model in the command": of_command,
    "a constructor of a callback in a dict": lambda folder: Trainer.from_config(
        {"max_steps": 1, "callbacks": [{"class": f"{__name__}.FailingCallback"}]}
    ),
}
"""What fails, and a call in which it does; the call gets a folder of its own."""


@pytest.mark.parametrize("line", LINES)
def test_at_most_three_functions_of_the_package_stand_before_a_line_of_the_users(line: str, tmp_path: Path) -> None:
    with pytest.raises(FailedError) as caught:
        LINES[line](tmp_path)
    assert len(functions_of_package(caught.value)) <= MOST
    assert functions(caught.value)[-1] == ("reraise" if "worker" in line else "fail")


class Mistaken(Plain):
    """Its step calls a method of the package wrongly."""

    def train_step(self, batch: Any, state: Any) -> None:
        try:
            self.log("loss", torch.zeros(3))
        except ValueError as error:
            error.add_note("a note")
            error.__cause__ = KeyError("the cause")
            raise


def test_what_the_users_line_calls_and_the_functions_of_pytorch_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs one number") as caught:
        quiet(root=tmp_path, max_steps=1).fit(Mistaken(), data())
    error = caught.value
    assert functions(error)[:4] == ["fit", "run_batches", "train_step", "log"]
    assert functions(error)[-1] == "_number"
    assert repr(error.__cause__) == "KeyError('the cause')"
    assert error.__notes__ == ["a note"]
    log = (tmp_path / "plain" / "train.log").read_text()
    assert log.count(f'  File "{PACKAGE}') > len(functions_of_package(error))  # It has them all.
    (step,) = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "train_step")
    assert step.f_locals["batch"][0].tolist() != []  # What a debugger shows.
    with pytest.raises(FailedError) as of_sample:
        of_split(Split(Indices(4), 2), Split(UNREADABLE, 2))(tmp_path)
    assert functions(of_sample.value)[:2] == ["fit", "check_validation"]  # Where the training stood.
    assert functions(of_sample.value)[-3:] == ["fetch", "_fetch", "fail"]


def test_nothing_is_left_out_where_no_line_is_the_users_or_all_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="the datamodule has no train split") as of_package:
        quiet(max_steps=1).fit(Plain(), DataModule())
    samples = [torch.ones(1), torch.ones(2)]
    with pytest.raises(RuntimeError, match="stack expects each tensor") as of_pytorch:
        quiet(max_steps=1).fit(Plain(), DataModule(Split(samples, 2)))
    monkeypatch.setenv("HELIOS_LITE_FULL_TRACEBACKS", "1")
    with pytest.raises(FailedError) as of_user:
        of_model("train_step")(tmp_path)
    for caught in (of_package, of_pytorch, of_user):
        assert functions(caught.value)[:4] == ["fit", "run", "train", "run"]
