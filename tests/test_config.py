"""Runs from TOML files: what they become, and what is refused."""

import json
import sys

import pytest
import torch
from helpers.compare import same, weights
from helpers.tracebacks import functions

from helios_lite import DataModule, Trainer
from helios_lite.callbacks import EMA
from helios_lite.config import ConfigError, ConfigTypeError, fit_from_config, fit_from_file, load

PROJECT = """
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from helpers.models import Indices, Tiny, data

from helios_lite import DataModule

if TYPE_CHECKING:
    from nowhere import Nothing


class Named(Tiny):
    def __init__(self, name: str, rate: float = 0.1, width: int | None = 8, flag: bool = False, folder: Path = Path()):
        super().__init__(name)
        self.hparams = {"name": name, "rate": rate, "width": width, "flag": flag, "folder": str(folder)}


class Free(Tiny):
    def __init__(self, **options):
        super().__init__()
        self.options = options


class Unresolved(Tiny):
    def __init__(self, width: int = 8, nothing: Nothing | None = None):
        super().__init__()


class Broken(Tiny):
    def __init__(self):
        raise ValueError("a mistake in the project")


class Data(DataModule):
    def __init__(self, train: int = 10):
        splits = data(train)
        super().__init__(splits.train, splits.valid, splits.test)


class Transform:
    def __init__(self, scale: float = 1.0):
        self.scale = scale


class Annotated(Tiny):
    def __init__(self, transform: Transform | None = None, more: list[Transform] = ()):
        super().__init__()
        self.options = {"transform": transform, "more": more}


CALLS = []


def record(**arguments: int):
    CALLS.append(arguments)
    return sorted(arguments)


class Silent:
    def log_config(self, config): ...
    def log_metrics(self, metrics, step): ...
    def close(self): ...
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a configuration beside a module called project, and returns its path."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "project", raising=False)
    (tmp_path / "project.py").write_text(PROJECT)

    def write(model='class = "project.Named"\nname = "m"', trainer="max_steps = 5", data='class = "project.Data"'):
        path = tmp_path / "run.toml"
        quiet = f"progress = false\nprint_banner = false\nroot = '{tmp_path / 'runs'}'"
        path.write_text(f"[model]\n{model}\n[data]\n{data}\n[trainer]\n{quiet}\n{trainer}\n")
        return path

    yield write
    sys.modules.pop("project", None)


def test_a_file_becomes_a_trainer_a_model_and_its_data(write):
    trainer, model, data = load(
        write('class = "project.Named"\nname = "m"\nrate = 1\nfolder = "here"', "max_steps = 7")
    )
    assert type(trainer) is Trainer
    assert trainer.max_steps == 7
    assert model.hparams == {"name": "m", "rate": 1, "width": 8, "flag": False, "folder": "here"}
    assert isinstance(data, DataModule)


def test_training_from_a_file_is_the_same_as_by_a_program(write, tmp_path):
    path = write()
    result = fit_from_file(path)
    assert result.stop_reason == "max_steps"
    trainer, model, data = load(path, {"trainer.root": tmp_path / "other"})
    from_file = torch.load(result.last_checkpoint, weights_only=True)["model"]
    trainer.fit(model, data)
    assert same(weights(model), from_file)


def test_training_from_a_dict_is_the_same_as_from_a_file(write, tmp_path):
    result = fit_from_file(write(trainer='max_steps = 5\n[[trainer.callbacks]]\nclass = "helios_lite.callbacks.EMA"'))
    recorded = json.loads((tmp_path / "runs/m/config.json").read_text())
    config = {
        "trainer": recorded["trainer"],
        "model": {"class": "project.Named", "name": "m", "width": None},
        "data": {"class": "project.Data"},
    }
    again = fit_from_config(config, {"trainer.root": str(tmp_path / "other")})
    one, other = (torch.load(each.last_checkpoint, weights_only=True) for each in (result, again))
    assert same(one["model"], other["model"])
    assert same(one["callbacks"], other["callbacks"])
    assert other["hparams"]["width"] is None
    assert config["trainer"]["root"] == str(tmp_path / "runs")


def test_a_wrong_dict_is_an_error_with_the_full_key():
    with pytest.raises(ConfigError, match=r"^trainers: unknown; did you mean trainer\?"):
        fit_from_config({"trainers": {}})
    with pytest.raises(ConfigError, match=r"^trainer\.max_epoch: unknown; did you mean trainer\.max_epochs\?"):
        fit_from_config({"trainer": {"max_epoch": 1}})
    with pytest.raises(ConfigError, match=r"^model\.class: missing"):
        fit_from_config({"trainer": {"max_epochs": 1}})


def test_overrides_replace_and_complete_what_the_file_says(write):
    path = write(trainer='max_steps = 5\n[[trainer.callbacks]]\nclass = "helios_lite.callbacks.EMA"')
    overrides = {"trainer.max_steps": 3, "model.rate": 0.5, "trainer.callbacks.0.decay": 0.9, "data.train": 20}
    trainer, model, data = load(path, overrides)
    assert (trainer.max_steps, model.hparams["rate"], trainer.callbacks[0].decay) == (3, 0.5, 0.9)
    assert len(data.train.dataset) == 20


def test_an_override_may_be_an_object_or_none(write):
    callback = EMA()
    trainer, _, _ = load(write(), {"trainer.callbacks": [callback], "trainer.root": None})
    assert trainer.callbacks == [callback]
    assert trainer.root is None


def test_overrides_stay_as_they_were_given(write):
    overrides = {"model": {"class": "project.Named", "name": "a"}, "model.name": "b"}
    _, model, _ = load(write(), overrides)
    assert model.hparams["name"] == "b"
    assert overrides["model"] == {"class": "project.Named", "name": "a"}


def test_nested_tables_with_a_class_become_objects_and_others_stay_dicts(write):
    data = """
class = "helios_lite.DataModule"
[data.train]
class = "helios_lite.Split"
batch_size = 4
[data.train.dataset]
class = "helpers.models.Indices"
length = 12
"""
    _, model, data = load(write('class = "project.Free"\nsizes = {a = 1, b = [2, {c = 3}]}', data=data))
    assert len(data.train.dataset) == 12
    assert model.options == {"sizes": {"a": 1, "b": [2, {"c": 3}]}}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"model": {"class": "os.system", "command": "touch called"}}, "model.class"),
        ({"data": {"class": "os.system", "command": "touch called"}}, "data.class"),
        ({"model": {"class": "project.record"}}, "model.class"),
        ({"data": {"class": "project.Named", "name": "m"}}, "data.class"),
        ({"model": {"class": "project.Free", "a": {"class": "os.system", "command": "touch called"}}}, "model.a.class"),
        ({"model": {"class": "project.Free", "a": [{"b": {"class": "project.record"}}]}}, "model.a.0.b.class"),
        ({"model": {"class": "project.Free", "a": {"class": "project.Transform"}}}, "model.a.class"),
        ({"model": {"class": "project.Free", "a": {"class": "pathlib.Path"}}}, "model.a.class"),
        ({"trainer.callbacks": [{"class": "project.record"}]}, "trainer.callbacks.0.class"),
        ({"trainer.run_name": {"class": "project.record"}}, "trainer.run_name.class"),
        ({"model": {"class": "project.Annotated", "transform": {"class": "project.record"}}}, "model.transform.class"),
    ],
)
def test_what_a_key_does_not_stand_for_is_an_error_and_is_not_called(write, overrides, key, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigTypeError, match=rf"^{key}='[\w.]+': must be a subclass of "):
        load(write(), overrides)
    assert not (tmp_path / "called").exists()
    assert sys.modules["project"].CALLS == [] if "project" in sys.modules else True


@pytest.mark.parametrize("name", ["model", "data"])
def test_the_key_call_makes_no_model_and_no_data(write, name):
    with pytest.raises(ConfigError, match=rf"^{name}\.class: missing"):
        load(write(), {name: {"call": "project.record"}})


@pytest.mark.parametrize(
    "name",
    [
        "helios_lite.callbacks.DeviceMemory",
        "helios_lite.DataModule",
        "project.Silent",
        "project.Tiny",
        "torch.nn.ReLU",
    ],
)
def test_a_class_that_a_training_is_made_of_may_be_anywhere(write, name):
    _, model, _ = load(write(), {"model": {"class": "project.Free", "part": {"class": name}}})
    assert type(model.options["part"]).__name__ == name.split(".")[-1]


def test_a_class_in_an_annotation_is_accepted(write):
    table = {"class": "project.Transform", "scale": 2}
    _, model, _ = load(write(), {"model": {"class": "project.Annotated", "transform": table, "more": [table]}})
    assert model.options["transform"].scale == model.options["more"][0].scale == 2


def test_any_function_or_class_is_called_under_the_key_call(write):
    model = """
class = "project.Free"
names = {call = "project.record", a = 1, b = 2}
transform = {call = "project.Transform", scale = 3}
"""
    _, model, _ = load(write(model))
    assert model.options["names"] == ["a", "b"]
    assert model.options["transform"].scale == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("builtins.min", "model.part: no signature found"),
        ("project.nothing", "model.part.call='project.nothing': unknown"),
        (3, 'model.part.call=3: must be an import path, "package.module.Class"'),
    ],
)
def test_what_cannot_be_called_is_named_by_its_full_key(write, call, message):
    with pytest.raises(ConfigError) as caught:
        load(write(), {"model": {"class": "project.Free", "part": {"call": call}}})
    assert str(caught.value).startswith(message)


def test_none_stands_for_none_where_it_is_allowed(write):
    trainer, model, _ = load(
        write('class = "project.Named"\nname = "none"\nwidth = "none"', 'max_steps = 5\nsave_every_epochs = "none"')
    )
    assert trainer.save_every_epochs is None
    assert model.hparams["width"] is None
    assert model.hparams["name"] == "none"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.max_step": 3}, "trainer.max_step: unknown; did you mean trainer.max_steps?"),
        ({"trainer.seed": -1}, "trainer.seed=-1: must be at least 0"),
        ({"trainer.class": "helios_lite.Trainer"}, "trainer.class: unknown"),
        ({"trainr.seed": 1}, "trainr: unknown; did you mean trainer?"),
        ({"seed": 1}, "seed: unknown; there are trainer, model, data"),
        ({"model.with": 1}, "model.with: unknown; did you mean model.width?"),
        ({"model.lr": 1}, "model.lr: unknown; there are name, rate, width, flag, folder"),
        ({"model": {"class": "project.Named"}}, "model.name: missing"),
        ({"model": {"name": "m"}}, "model.class: missing"),
        ({"model.class": "project.Name"}, "model.class='project.Name': unknown; did you mean project.Named?"),
        ({"model.class": "projekt.Named"}, "model.class='projekt.Named': there is no module 'projekt'"),
        ({"trainer.callbacks.0.decay": 2.0}, "trainer.callbacks.0.decay=2.0: must be at least 0 and below 1"),
        (
            {"trainer.callbacks.0.decai": 0.9},
            "trainer.callbacks.0.decai: unknown; did you mean trainer.callbacks.0.dec",
        ),
        ({"trainer.callbacks.1.decay": 0.9}, "trainer.callbacks.1.decay: '1' is none of the numbers of a list of 1"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_full_key(write, overrides, message):
    path = write(trainer='max_steps = 5\n[[trainer.callbacks]]\nclass = "helios_lite.callbacks.EMA"')
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert str(caught.value).startswith(message)
    assert not isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.max_steps": "3"}, "trainer.max_steps='3': must be an int or None"),
        ({"trainer.devices": 1.5}, "trainer.devices=1.5: must be an int"),
        ({"trainer.callbacks": 3}, "trainer.callbacks=3: must be a list of Callback objects"),
        ({"trainer.max_steps.x": 3}, "trainer.max_steps.x: 5 is no table, it has no 'x'"),
        ({"trainer": 3}, "trainer=3: must be a table"),
        ({"model.name": 3}, "model.name=3: must be a str"),
        ({"model.rate": True}, "model.rate=True: must be a number"),
        ({"model.width": 8.0}, "model.width=8.0: must be an int or None"),
        ({"model.flag": "True"}, "model.flag='True': must be true or false"),
        ({"model.class": 3}, 'model.class=3: must be an import path, "package.module.Class"'),
        ({"model.class": ".a.B"}, "model.class='.a.B': must be an import path, \"package.module.Class\""),
        (
            {"data.class": "helpers.models.Indices", "data": {"class": "helpers.models.Indices", "length": 3}},
            "data.class='helpers.models.Indices':",
        ),
    ],
)
def test_a_wrong_type_is_named_by_its_full_key(write, overrides, message):
    with pytest.raises(TypeError) as caught:
        load(write(), overrides)
    assert str(caught.value).startswith(message)


def test_any_argument_is_accepted_by_a_constructor_that_takes_any(write):
    _, model, _ = load(write('class = "project.Free"\nanything = [1, "two"]'))
    assert model.options == {"anything": [1, "two"]}


def test_annotations_that_cannot_be_resolved_are_not_judged_and_the_others_are(write):
    _, model, _ = load(write('class = "project.Unresolved"\nwidth = 9\nnothing = "anything"'))
    assert type(model).__name__ == "Unresolved"
    with pytest.raises(ConfigError, match=r"^model\.width='wide': must be an int"):
        load(write('class = "project.Unresolved"\nwidth = "wide"'))


def test_an_error_of_a_constructor_stays_what_it_is_with_a_note(write):
    with pytest.raises(ValueError, match="a mistake in the project") as caught:
        load(write('class = "project.Broken"'))
    assert not isinstance(caught.value, ConfigError)
    assert caught.value.__notes__ == ["(while making the object of [model])"]
    assert functions(caught.value) == ["load", "build", "__init__"]


@pytest.mark.parametrize(
    ("function", "message"),
    [("mak", "has no function 'mak'; did you mean make?"), ("answer", "has no function 'answer'; there are make")],
)
def test_a_function_that_a_file_does_not_have_is_named(function, message, tmp_path):
    path = tmp_path / f"with_{function}.py"
    path.write_text("answer = 42\ndef make(): ...\n")
    with pytest.raises(ConfigError) as caught:
        load(f"{path}:{function}")
    assert str(caught.value) == f"{path}: {message}"


def test_a_class_that_is_a_number_is_told_from_one_that_is_missing(write, tmp_path):
    (tmp_path / "numbered.py").write_text("Answer = 42")
    with pytest.raises(
        ConfigError, match=r"^model\.class='numbered\.Answer': must be a class or a function, but is 42"
    ):
        load(write('class = "numbered.Answer"'))


def test_a_module_that_misses_another_one_is_not_called_missing_itself(write, tmp_path):
    (tmp_path / "needy.py").write_text("import not_there_at_all")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        load(write('class = "needy.Model"'))


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.toml"):
        load(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("[trainer\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: .*line 1"):
        load(tmp_path / "bad.toml")


def test_a_module_beside_the_file_is_never_mistaken_for_one_of_the_same_name(write, tmp_path):
    load(write())
    other = tmp_path / "other"
    other.mkdir()
    (other / "project.py").write_text(PROJECT)
    (other / "run.toml").write_text((tmp_path / "run.toml").read_text())
    with pytest.raises(ConfigError, match=r"model\.class='project\.Named': means .*other/project\.py, but another"):
        load(other / "run.toml")


def test_two_processes_import_the_module_beside_the_file(write):
    result = fit_from_file(write(), {"trainer.devices": 2, "trainer.accelerator": "cpu", "trainer.max_steps": 1})
    assert result.state.step == 1
