"""The options of a Trainer: what is refused, by which name, and what a checkpoint keeps of them."""

import ast
import contextlib
import copy
import dataclasses
import inspect
import json
import math
import pkgutil
import re
from pathlib import Path
from typing import Any, Literal, get_origin

import numpy as np
import pytest
import torch
from helpers.models import Tiny, data, quiet

import helios_lite
from helios_lite import Callback, Model, Split, Trainer
from helios_lite.callbacks import EMA, ActivationStatistics, DeviceMemory, Profile
from helios_lite.checkpoints.files import FORMAT_VERSION, CheckpointError, to_serializable
from helios_lite.config import ConfigError, ConfigTypeError
from helios_lite.loggers import JsonlLogger, TensorBoardLogger
from helios_lite.options import RULES, Options
from helios_lite.other_trainers import ELSEWHERE

FIELDS = {field.name for field in dataclasses.fields(Trainer)}

FLAGS = [
    "deterministic",
    "allow_changed_hparams",
    "compile",
    "checkpoint_activations",
    "check_finite",
    "async_save",
    "progress",
    "print_banner",
]
INTEGERS = ["seed", "max_restarts", "accumulation_steps", "sanity_batches", "keep_last", "keep_best", "log_every_steps"]
OPTIONAL_INTEGERS = [
    "max_epochs",
    "max_steps",
    "steps_per_epoch",
    "valid_every_steps",
    "patience",
    "save_every_epochs",
    "save_every_steps",
    "verify_every_steps",
]
OPTIONAL_NUMBERS = ["max_minutes", "clip_norm", "valid_every_epochs", "save_every_minutes"]
LIMITS = ["limit_train_batches", "limit_valid_batches", "limit_test_batches", "overfit_batches"]
NORMS = ["log_grad_norm", "log_param_norm"]
CHOICES = ["accelerator", "strategy", "precision", "mode", "log_level", "sigusr1"]


class SomeLogger:
    def log_config(self, config): ...

    def log_metrics(self, metrics, step): ...

    def close(self): ...


WRONG_TYPE = [
    *((name, value) for name in FLAGS for value in (None, 0, 1, "yes")),
    *(("benchmark", value) for value in (0, 1, "yes")),
    *(("fast_dev_run", value) for value in (None, "yes", 1.0)),
    *((name, value) for name in INTEGERS for value in (None, True, "1", 1.0, math.nan, math.inf)),
    *((name, value) for name in OPTIONAL_INTEGERS for value in (True, "1", 1.0, math.inf)),
    *((name, value) for name in OPTIONAL_NUMBERS for value in (True, "1", [1])),
    *(("hang_minutes", value) for value in (True, [1])),
    *(("min_delta", value) for value in (None, False, "0")),
    *((name, value) for name in NORMS for value in (None, 1, 0.5)),
    *((name, value) for name in CHOICES for value in (None, True, 1)),
    *((name, value) for name in LIMITS for value in (True, "1", [1])),
    *(("devices", value) for value in (None, True, 1.0, [True], ["0"])),
    ("run_name", 1),
    ("run_name", Path("run")),
    ("root", 1),
    ("root", True),
    ("root", b"runs"),
    ("resume", None),
    ("resume", True),
    ("init_from", 1),
    ("init_from", b"runs"),
    ("init_parts", 1),
    ("init_parts", ["net", 1]),
    ("init_parts", {"net"}),
    ("monitor", 1),
    ("monitor", {"loss"}),
    ("monitor", ["loss", 1]),
    ("monitor", b"loss"),
    ("loggers", None),
    ("loggers", SomeLogger()),
    ("loggers", "tensorboard"),
    ("loggers", [JsonlLogger]),
    ("loggers", [object()]),
    ("callbacks", None),
    ("callbacks", Callback()),
    ("callbacks", [Callback]),
    ("callbacks", [SomeLogger()]),
]

WRONG_VALUE = [
    *((name, value) for name in OPTIONAL_INTEGERS for value in (-1, 0)),
    *((name, value) for name in OPTIONAL_NUMBERS for value in (-1, -0.5, 0, 0.0, math.nan, math.inf, -math.inf)),
    *(("min_delta", value) for value in (-1, -1e-9, math.nan, math.inf)),
    *((name, value) for name in CHOICES for value in ("", "other", "MIN", "CPU", "FP32")),
    *((name, value) for name in NORMS for value in ("", "per-layer")),
    *((name, 2**63) for name in (*INTEGERS, *OPTIONAL_INTEGERS) if name != "seed"),
    *((name, 10**400) for name in (*OPTIONAL_NUMBERS, "min_delta")),  # No float can hold it.
    *(
        (name, value)
        for name in ("run_name", "root", "resume", "init_from")
        for value in ("a\0b", "\ud800", "x" * 256 + "/x")
    ),
    *((name, value) for name in LIMITS for value in (-1, 2**63, 0.0, 1.5, -0.5, math.nan, math.inf)),
    ("overfit_batches", 0),
    *(("fast_dev_run", value) for value in (-1, 2**63)),
    *(("hang_minutes", value) for value in (-1, 0, 0.001, math.nan, math.inf, "never")),
    ("devices", 2**16),
    ("devices", [2**16]),
    ("run_name", ""),
    ("run_name", "."),
    ("run_name", "../x"),
    ("run_name", "a/../../x"),
    ("run_name", "/x"),
    ("run_name", "a\0b"),
    ("run_name", "a/" + "ä" * 128),
    ("root", ""),
    ("resume", ""),
    ("init_from", ""),
    ("init_parts", ""),
    ("init_parts", "net"),
    ("init_parts", []),
    ("init_parts", ["net", ""]),
    ("init_parts", "all"),  # Of nothing.
    ("seed", -1),
    ("seed", 2**64),  # More than torch.manual_seed takes.
    ("accumulation_steps", -1),
    ("accumulation_steps", 0),
    ("valid_every_epochs", 1.5),
    ("sanity_batches", -1),
    ("monitor", ""),
    ("monitor", []),
    ("monitor", ["loss", ""]),
    *(("devices", value) for value in (0, -1, "all", [], [0, 0], [-1])),
    *(("strategy", value) for value in ("", "dp")),
    ("max_restarts", -1),
    ("keep_last", -2),
    ("keep_best", -2),
    ("log_every_steps", -1),
    ("log_every_steps", 0),
]

EDGES = [
    *((name, value) for name in FLAGS for value in (False, True)),
    *((name, value) for name in OPTIONAL_INTEGERS for value in (None, 1, 10**9)),
    *((name, value) for name in OPTIONAL_NUMBERS for value in (None, 1, 1e-6)),
    *((name, value) for name in LIMITS for value in (None, 1, 10**9, 1e-6, 1.0)),
    *((name, 0) for name in LIMITS if name.startswith("limit_")),
    *(("fast_dev_run", value) for value in (False, True, 0, 1, 10**9)),
    *(("accelerator", value) for value in ("auto", "cpu", "cuda", "mps", "xpu")),
    *(("devices", value) for value in (1, 8, [0], [2, 0], "auto")),
    *(("strategy", value) for value in ("ddp", "fsdp", "hsdp")),
    *(("sigusr1", value) for value in ("save", "stop")),
    *(("hang_minutes", value) for value in (None, "auto", 0.01, 1, 1e6)),
    ("max_restarts", 3),
    *(("precision", value) for value in ("fp32", "bf16", "fp16")),
    *(("log_level", value) for value in ("quiet", "normal", "verbose")),
    *((name, value) for name in NORMS for value in (False, True, "per-parameter")),
    *(("mode", value) for value in ("min", "max")),
    ("run_name", None),
    ("run_name", "a"),
    ("run_name", "sweep/rate=0.1 ä.."),
    ("run_name", "ä" * 127),
    ("root", None),
    ("root", Path("somewhere")),
    ("resume", "never"),
    ("resume", "new"),
    ("resume", "best"),
    ("resume", Path("file.pth")),
    ("init_from", Path("file.pth")),
    ("init_from", "runs/run"),
    ("init_parts", None),
    ("seed", 0),
    ("seed", 2**63),
    *(("benchmark", value) for value in (None, True, False)),
    ("accumulation_steps", 1),
    ("valid_every_epochs", 2.0),
    ("valid_every_epochs", 1 / 3),
    ("sanity_batches", 0),
    ("monitor", None),
    ("monitor", "valid/loss"),
    ("monitor", ("valid/a", "valid/b")),
    ("min_delta", 0),
    ("min_delta", 0.0),
    ("keep_last", -1),
    ("keep_last", 0),
    ("keep_best", -1),
    ("keep_best", 0),
    ("log_every_steps", 1),
    ("loggers", []),
    ("loggers", (SomeLogger(),)),
    ("callbacks", [Callback(), Callback()]),
]


def trainer_with(name, value):
    return Trainer(**{"max_epochs": 1, "max_steps": 1, name: value})


def refusal(name, value):
    """Return the error that a value raises; None if it is accepted."""
    try:
        trainer_with(name, value)
    except (TypeError, ValueError) as error:
        return error
    return None


def test_a_value_of_a_wrong_type_is_a_type_error_that_begins_with_the_option():
    found = [(name, value, refusal(name, value)) for name, value in WRONG_TYPE]
    assert [
        (name, value, error)
        for name, value, error in found
        if not isinstance(error, TypeError) or not str(error).startswith(f"{name}={value!r}: must be ")
    ] == []


def test_a_wrong_value_is_a_value_error_that_begins_with_the_option():
    found = [(name, repr(value), refusal(name, value)) for name, value in WRONG_VALUE]
    assert [
        (name, value, error)
        for name, value, error in found
        if not isinstance(error, ValueError)
        or not re.match(rf"{name}={re.escape(value if len(value) <= 200 else value[:100])}.*: must ", str(error))
    ] == []


def test_a_value_on_the_edge_is_kept_as_it_was_given():
    changed = [(name, value) for name, value in EDGES if getattr(trainer_with(name, value), name) is not value]
    assert changed == []


class BytesPath:
    def __fspath__(self):
        return b"runs"


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


EXTREMES = [
    *(True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 10**400, 10**5000),
    *(1e-320, 1e-10, 0.999999999999, 1.0, 1e15, 1e300, -1e300, math.inf, -math.inf, math.nan),
    *(np.int64(3), np.float32(0.5), np.float64(1e-10), np.float64(2.0), np.bool_(True), np.str_("auto"), np.ones(3)),
    *("", "x", "x" * 200, "x" * 256, "x" * 10**6, "a/" * 2000, "\0", "\ud800", "é" * 200, b"auto", Path("x"), Path()),
    *(Path("x" * 300), BytesPath(), Unprintable(), object(), [], (), {}, set(), [[]], [None], [10**30], ["x" * 10**5]),
]


@pytest.mark.parametrize("name", sorted(FIELDS - {"compile"}))  # Nothing but a bool is accepted, and compiling is slow.
def test_an_extreme_value_is_refused_at_once_or_a_run_works_with_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"root": "runs", "max_epochs": 1, "max_steps": 2, "monitor": "valid/loss", "accelerator": "cpu"}
    for i, value in enumerate(EXTREMES):
        try:
            trainer = Trainer(
                **{**quiet, "run_name": f"run{i}", "progress": False, "print_banner": False, "check_finite": True}
                | {name: value}
            )
        except (TypeError, ValueError) as error:
            message = str(error)
            assert re.match(rf"{name}=.*: must ", message, re.DOTALL), message
            assert len(message) < 1000, message
            continue
        decided_later = {  # By the data, the files or the machine.
            "limit_train_batches": value == 0,
            "limit_valid_batches": value == 0,
            "fast_dev_run": isinstance(value, int) and value > 3,
            "monitor": value != "valid/loss" and value is not None,
            "resume": value != "auto",
            "init_from": value is not None,
            "accelerator": False,
            "devices": value != 1,  # No processes are started here.
            "checkpoint_activations": value is True,  # The network has no blocks.
        }
        if not decided_later.get(name, False):
            result = trainer.fit(Tiny(), data())
            assert 1 <= result.state.step <= 3, value


@pytest.mark.parametrize("value", [1e-320, 1e-10, 1e-9, 0.01])
def test_a_fraction_below_a_step_validates_after_every_step(value):
    result = Trainer(root=None, max_steps=5, valid_every_epochs=value, progress=False, print_banner=False).fit(
        Tiny(), data()
    )
    assert result.state.validation_cycle == 5


def test_every_option_appears_above():
    assert {name for name, _ in WRONG_TYPE} == FIELDS
    assert {name for name, _ in EDGES} == FIELDS
    anything_of_the_type_goes = {*FLAGS, "benchmark", "loggers", "callbacks"}
    assert {name for name, _ in WRONG_VALUE} == FIELDS - anything_of_the_type_goes


def test_a_training_needs_a_limit_before_anything_runs():
    class Untouched(Tiny):
        def setup(self, fast_init=False):
            raise AssertionError("it has begun")

    with pytest.raises(ValueError, match=r"^max_epochs, max_steps, max_minutes: .* overrides should_training_stop$"):
        Trainer(root=None).fit(Untouched(), data())


def test_an_evaluation_needs_no_limit():
    trainer = Trainer(root=None, progress=False, print_banner=False)
    assert trainer.validate(Tiny(), data(), checkpoint=None).keys() == {"valid/loss"}
    assert trainer.test(Tiny(), data(), checkpoint=None).keys() == {"test/loss"}


@pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_steps": 1}, {"max_minutes": 1e-6}, {"fast_dev_run": True}])
def test_one_limit_is_enough(limit):
    trainer = Trainer(root=None, progress=False, print_banner=False, **limit)
    assert trainer.fit(Tiny(), data(4)).state.step >= 1


def test_an_option_without_a_rule_of_its_own_has_that_of_its_annotation():
    types = {field.name: field.type for field in dataclasses.fields(Trainer)}
    follows = {name for name, kind in types.items() if kind is bool or get_origin(kind) is Literal}
    assert RULES.keys() | follows == FIELDS
    assert RULES.keys() & follows == set()


UNKNOWN = {
    "max_epoch": "did you mean max_epochs?",
    "max_grad_norm": "write clip_norm",  # The most similar option would be log_grad_norm.
    "num_nodes": "write torchrun --nnodes, which starts the program on every machine",
    "x": "there are run_name, root, resume, ",
}


class Undecorated(Trainer):
    """Has what a Trainer has.

    With an indented line:
        here.
    """


@pytest.mark.parametrize("cls", [Trainer, Undecorated])
def test_an_unknown_option_is_a_type_error_that_says_what_to_write(cls):
    for name, hint in UNKNOWN.items():
        with pytest.raises(TypeError, match=f"^{name}: is no option of {cls.__name__}; {re.escape(hint)}"):
            cls(max_epochs=1, **{name: 1})
        with pytest.raises(ConfigError, match=f"^{name}: unknown; {re.escape(hint)}"):
            cls.from_config({name: 1})


# The arguments of the Trainer of Lightning 2.6, and the fields of TrainingArguments of transformers 5.
LIGHTNING, TRANSFORMERS = (
    (Path(__file__).parent / "data" / f"{name}_options.txt").read_text().split()
    for name in ("lightning", "transformers")
)
TRANSFORMERS_4 = ["group_by_length", "logging_dir", "overwrite_output_dir", "warmup_ratio"]
OTHER_PLACES = ["early_stopping_patience", "early_stopping_threshold", "global_batch_size"]


def test_every_option_of_other_trainers_is_one_of_ours_or_answered_and_no_other_name_is():
    assert {*LIGHTNING, *TRANSFORMERS} - FIELDS <= ELSEWHERE.keys()
    assert ELSEWHERE.keys() <= {*LIGHTNING, *TRANSFORMERS, *TRANSFORMERS_4, *OTHER_PLACES}


def test_what_other_trainers_call_an_option_is_answered_with_what_there_is():
    assert ELSEWHERE.keys() & FIELDS == set()
    splits = {field.name for field in dataclasses.fields(Split)}
    for answer in ELSEWHERE.values():
        for name in re.findall(r"(\w+) of (?:Split|the Split)", answer) + re.findall(r"(batch_sampler)=", answer):
            assert name in splits
        for name in re.findall(r"([a-z]\w*)=(?!\.)", answer):
            assert name in FIELDS | {"batch_sampler"}, answer
        for name, value in re.findall(r"(\w+)=('\w+'|True|False|None|[0-9.]+)", answer):
            trainer_with(name, ast.literal_eval(value))
        for path in re.findall(r"helios_lite\.[\w.]+", answer):
            assert pkgutil.resolve_name(path) is not None
        first = re.match(r"[a-z_]+", answer)[0]
        others = {"nothing", "torch", "torchrun", "itertools", "should_training_stop", "a", "the"}
        of_the_loss_and_optimizer = {"warmup_steps", "weight_decay", "lr", "betas", "eps", "label_smoothing"}
        assert first in FIELDS | splits | others | of_the_loss_and_optimizer, answer
        for kind in (Trainer, Model):
            for name in re.findall(rf"{kind.__name__}\.(\w+)", answer):
                assert hasattr(kind, name), answer


CALLS = [Trainer.fit, Trainer.validate, Trainer.test]


@pytest.mark.parametrize("call", CALLS)
def test_an_option_that_is_set_later_is_checked_at_the_next_call(call):
    trainer = Trainer(root=None, max_steps=1, progress=False, print_banner=False)
    trainer.max_epochs = "three"
    with pytest.raises(TypeError, match=r"^max_epochs='three': must be an int"):
        call(trainer, Tiny(), data())
    trainer.max_epochs = 3
    call(trainer, Tiny(), data())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("name", "hint"), UNKNOWN.items())
def test_an_attribute_that_is_no_option_is_an_error_with_the_most_similar_option(call, name, hint):
    trainer = Trainer(root=None, max_steps=1, progress=False, print_banner=False)
    setattr(trainer, name, 3)
    with pytest.raises(AttributeError, match=re.escape(f"{name}: is no option of Trainer; {hint}")):
        call(trainer, Tiny(), data())


@dataclasses.dataclass(kw_only=True)
class TaggedTrainer(Trainer):
    """Has tags."""

    tags: list[str] = dataclasses.field(default_factory=list)
    """What the run
    is about."""


class CountingTrainer(Trainer):
    calls = 0

    def fit(self, *arguments):
        self.calls += 1
        return super().fit(*arguments)


@pytest.mark.parametrize("cls", [TaggedTrainer, CountingTrainer])
def test_a_subclass_of_the_trainer_may_declare_attributes(cls):
    cls(root=None, max_steps=1, progress=False, print_banner=False).fit(Tiny(), data())


@pytest.mark.parametrize("cls", [Trainer, Undecorated])
def test_options_have_names_only(cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__}: takes no positional arguments; 'run' needs the name of"):
        cls("run", max_epochs=1)


def test_the_repr_of_a_trainer_makes_it_again():
    assert repr(Trainer()) == "Trainer()"
    assert repr(Trainer(patience=2, seed=0, max_epochs=3, root=None)) == "Trainer(root=None, max_epochs=3, patience=2)"
    assert repr(Undecorated(loggers=[])) == "Undecorated(loggers=[])"

    @dataclasses.dataclass(kw_only=True, repr=False)
    class Named(Trainer):
        name: str
        tags: list[str] = dataclasses.field(default_factory=list)

    assert repr(Named(name="a")) == f"{Named.__name__}(name='a')"
    assert repr(Named(name="a", tags=["b"])) == "Named(name='a', tags=['b'])"


@pytest.mark.parametrize("cls", [Trainer, Undecorated, TaggedTrainer])
def test_the_signature_of_a_trainer_has_types_and_defaults_also_in_a_module_without_their_names(cls):
    parameters = inspect.signature(cls, eval_str=True).parameters
    assert list(parameters) == [field.name for field in dataclasses.fields(cls)]
    assert str(parameters["max_epochs"]) == "max_epochs: int | None = None"
    assert parameters["accelerator"].annotation == Literal["auto", "cpu", "cuda", "xpu", "mps"] | str
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


def test_help_has_every_option_with_its_type_default_and_documentation():
    for cls in (Trainer, Undecorated, TaggedTrainer, Options, Split):
        text = inspect.getdoc(cls)
        for field in dataclasses.fields(cls):
            assert re.search(rf"\n    {field.name}: \S.*\n        [A-Z]\w* ", text), (cls, field.name)
    assert '\n    mode: Literal["min", "max"] = "min"\n        Whether a lower ("min") or ' in Trainer.__doc__
    assert Undecorated.__doc__.startswith("Has what a Trainer has.\n\nWith an indented line:\n    here.\n\nOptions:\n")
    assert TaggedTrainer.__doc__.endswith("(default_factory=list)\n        What the run\n        is about.")


def test_help_without_source_has_the_options_and_without_docstrings_nothing():
    source = """
import dataclasses
from helios_lite import Trainer
@dataclasses.dataclass(kw_only=True)
class Typed(Trainer):
    'Was typed in a console.'
    tags: list = dataclasses.field(default_factory=list)
    'Not to be found.'
"""
    names = {"__name__": "a_console"}
    exec(source, names)
    assert names["Typed"].__doc__.endswith("\n    tags: list = <factory>")
    assert "\n        The number of epochs after which the run ends." in names["Typed"].__doc__
    exec(compile(source, "a_console", "exec", optimize=2), names)  # As `python -OO`.
    assert "Options:" not in names["Typed"].__doc__
    names["Typed"](max_epochs=1, tags=["a"])


def test_config_has_every_option_with_its_default():
    assert Trainer(max_epochs=1).config() == {
        "run_name": None,
        "root": "runs",
        "resume": "auto",
        "allow_changed_hparams": False,
        "init_from": None,
        "init_parts": None,
        "seed": 0,
        "deterministic": False,
        "benchmark": None,
        "fast_dev_run": False,
        "max_epochs": 1,
        "max_steps": None,
        "max_minutes": None,
        "steps_per_epoch": None,
        "limit_train_batches": None,
        "limit_valid_batches": None,
        "limit_test_batches": None,
        "overfit_batches": None,
        "accelerator": "auto",
        "devices": 1,
        "strategy": "ddp",
        "max_restarts": 0,
        "hang_minutes": "auto",
        "precision": "fp32",
        "compile": False,
        "checkpoint_activations": False,
        "accumulation_steps": 1,
        "clip_norm": None,
        "check_finite": True,
        "verify_every_steps": None,
        "valid_every_epochs": 1,
        "valid_every_steps": None,
        "sanity_batches": 1,
        "monitor": None,
        "mode": "min",
        "patience": None,
        "min_delta": 0.0,
        "save_every_epochs": 1,
        "save_every_steps": None,
        "save_every_minutes": None,
        "keep_last": 1,
        "keep_best": 1,
        "async_save": True,
        "sigusr1": "save",
        "log_every_steps": 50,
        "log_grad_norm": False,
        "log_param_norm": False,
        "loggers": [],
        "callbacks": [],
        "log_level": "normal",
        "progress": True,
        "print_banner": True,
    }


def test_config_is_plain_data():
    for name, value in EDGES:
        config = trainer_with(name, value).config()
        assert config.keys() == FIELDS
        assert json.loads(json.dumps(config, allow_nan=False)) == config
        to_serializable(config)


class Configured(Callback):
    """Keeps its arguments as attributes, in every way that can be read."""

    def __init__(self, rate, folder=Path("x"), *, sizes=(1, 2), table=None, **options):
        self.rate, self._folder, self.sizes, self._table, self.options = rate, folder, sizes, table, options


class Renaming(Callback):
    def __init__(self, rate=1):
        self.speed = rate


class Positional(Callback):
    def __init__(self, *rates):
        self.rates = rates


class Slotted:
    __slots__ = ("rate",)

    def __init__(self, rate=1):
        self.rate = rate

    log_config = log_metrics = close = None


def test_config_tells_objects_by_their_class_and_arguments_and_paths_as_text():
    config = Trainer(
        root=Path("a/b"),
        loggers=[SomeLogger()],
        callbacks=(Callback(), Configured(np.float64(0.5), sizes=(1, (2, None)), table={"a": [True]}, more="x")),
    ).config()
    assert config["root"] == str(Path("a/b"))
    assert config["loggers"] == [{"class": "test_options.SomeLogger"}]
    configured = {"rate": 0.5, "folder": "x", "sizes": [1, [2, None]], "table": {"a": [True]}, "more": "x"}
    assert config["callbacks"] == [
        {"class": "helios_lite.callbacks.Callback"},
        {"class": "test_options.Configured", **configured},
    ]
    assert json.loads(json.dumps(config)) == config
    to_serializable(config)


def in_itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "callback",
    [
        Renaming(),
        Positional(1),
        *map(Configured, (object(), in_itself(), b"x", {1: 2}, {"class": "os.system"}, {1}, torch.ones(1), np.ones(1))),
        Configured(1, **{"class": "os.system"}),
        type("Local", (Callback,), {})(),
        type("Configured", (Callback,), {"__module__": __name__})(),  # Another class has its import path.
        type("Lost", (Callback,), {"__module__": "nowhere"})(),
        type("Nameless", (Callback,), {"__module__": None})(),
    ],
)
def test_an_object_whose_arguments_cannot_be_read_is_told_by_its_name_and_must_be_passed(callback):
    name = type(callback).__name__
    config = Trainer(callbacks=[Callback(), callback]).config()
    assert config["callbacks"] == [{"class": "helios_lite.callbacks.Callback"}, name]
    with pytest.raises(TypeError, match=rf"^callbacks=.*: must be a list of Callback objects; '{name}' is only a name"):
        Trainer.from_config(config)
    assert Trainer.from_config(config, callbacks=[callback]).callbacks == [callback]


def test_from_config_and_config_are_inverse():
    for name, value in EDGES:
        config = trainer_with(name, value).config()
        assert Trainer.from_config(config).config() == config
        assert Trainer.from_config(json.loads(json.dumps(config))).config() == config


def test_from_config_makes_our_callbacks_and_loggers_again(tmp_path):
    pytest.importorskip("tensorboard")
    callbacks = [
        EMA(0.9, name="other"),
        ActivationStatistics(("net.0",)),
        DeviceMemory(),
        Profile(tmp_path, 2, 3, with_stack=True),
    ]
    trainer = Trainer(max_steps=1, callbacks=callbacks, loggers=[TensorBoardLogger(tmp_path, flush_secs=3)])
    again = Trainer.from_config(trainer.config())
    assert again.config() == trainer.config()
    for one, other in zip([*trainer.callbacks, *trainer.loggers], [*again.callbacks, *again.loggers], strict=True):
        assert type(one) is type(other)
        assert vars(one) == vars(other)


def test_every_callback_of_ours_can_be_described():
    for kind in Callback.__subclasses__():
        if kind.__module__ == "helios_lite.callbacks":
            arguments = {"paths": ["net"], "folder": "x", "first": 1, "last": 2}
            needed = {name: arguments[name] for name in inspect.signature(kind).parameters if name in arguments}
            (described,) = Trainer(callbacks=[kind(**needed)]).config()["callbacks"]
            assert isinstance(described, dict)
            assert described.items() >= needed.items()


def test_the_string_none_stays_a_string_in_a_dict():
    assert Trainer.from_config({"run_name": "none"}).run_name == "none"


def test_from_config_takes_options_that_replace_those_of_the_dict_and_names_what_is_wrong():
    assert (
        Trainer.from_config({"max_epochs": 3}, max_epochs=4, seed=1).config() == Trainer(max_epochs=4, seed=1).config()
    )
    with pytest.raises(ConfigError, match=r"^max_epoch: unknown; did you mean max_epochs\?"):
        Trainer.from_config({"max_epoch": 3})
    with pytest.raises(ConfigTypeError, match=r"^max_epochs='3': must be an int or None"):
        Trainer.from_config({"max_epochs": "3"})
    with pytest.raises(ConfigError, match=r"^mode='MIN': must be one of"):
        Trainer.from_config({"mode": "MIN"})
    with pytest.raises(ConfigError, match=r"^callbacks\.0\.decay=2: must be at least 0 and below 1"):
        Trainer.from_config({"callbacks": [{"class": "helios_lite.callbacks.EMA", "decay": 2}]})


def test_a_subclass_of_the_trainer_is_made_from_a_config_too():
    assert type(TaggedTrainer.from_config({"max_epochs": 1, "tags": ["a"]})) is TaggedTrainer


class Trap(Callback):
    """Notes that it was made."""

    made: list[int] = []

    def __init__(self):
        self.made.append(1)


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that writes a checkpoint with a config."""
    result = Trainer(root=tmp_path, max_steps=1, progress=False, print_banner=False).fit(Tiny(), data())

    def write(config):
        content = torch.load(result.last_checkpoint, weights_only=True)
        torch.save({**content, "config": config}, tmp_path / "other.pth")
        return tmp_path / "other.pth"

    return write


def test_from_checkpoint_has_the_options_of_the_run(checkpoint):
    trainer = Trainer(max_epochs=3, monitor=["valid/a", "valid/b"], root="x", devices=[0, 1], min_delta=0.5)
    path = checkpoint(trainer.config())
    assert Trainer.from_checkpoint(path).config() == trainer.config()
    assert Trainer.from_checkpoint(str(path), max_epochs=4).max_epochs == 4


@pytest.mark.parametrize("objects", [["Trap"], [{"class": "test_options.Trap"}], [{"call": "test_options.Trap"}]])
@pytest.mark.parametrize("name", ["callbacks", "loggers"])
def test_from_checkpoint_makes_no_object_and_asks_for_it(name, objects, checkpoint):
    Trap.made.clear()
    path = checkpoint({"max_steps": 1, name: objects})
    with pytest.raises(ValueError, match=rf"^{name}: the run of .* no object is made from a file, so pass {name}=\["):
        Trainer.from_checkpoint(path)
    assert Trap.made == []
    assert Trainer.from_checkpoint(path, **{name: []}).config()[name] == []


@pytest.mark.parametrize("table", [{"class": "test_options.Trap"}, {"call": "test_options.Trap"}])
def test_a_table_of_a_checkpoint_in_place_of_an_option_is_refused_and_runs_nothing(table, tmp_path):
    Trap.made.clear()
    for name in FIELDS - {"callbacks", "loggers"}:
        torch.save({"format": FORMAT_VERSION, "config": {name: table}}, tmp_path / "a.pth")
        with pytest.raises(TypeError, match=f"^{name}="):
            Trainer.from_checkpoint(tmp_path / "a.pth")
    assert Trap.made == []


@pytest.mark.parametrize("config", [None, [], "x"])
def test_a_file_without_options_is_named(config, checkpoint):
    path = checkpoint(config)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: holds no options"):
        Trainer.from_checkpoint(path)


def test_a_resume_shows_a_callback_with_other_arguments_and_none_with_the_same(tmp_path, caplog):
    caplog.set_level("INFO", "helios_lite")
    options = {"root": tmp_path, "progress": False, "print_banner": False}
    Trainer(max_steps=1, callbacks=[EMA(), Renaming()], **options).fit(Tiny(), data())
    caplog.clear()
    Trainer(max_steps=2, callbacks=[EMA(), Renaming()], **options).fit(Tiny(), data())
    assert "max_steps: 1 before, 2 now" in caplog.text
    assert "callbacks:" not in caplog.text
    caplog.clear()
    Trainer(max_steps=3, callbacks=[EMA(decay=0.5), Callback()], **options).fit(Tiny(), data())
    assert "callbacks: " in caplog.text


@pytest.mark.parametrize(("name", "value"), [("clip_norm", np.float64(0.5)), ("run_name", np.str_("run"))])
def test_a_subclass_of_a_plain_type_becomes_plain_in_config(name, value):
    """A sweep over `np.logspace` hands over np.float64, which is a float, but no checkpoint may hold it."""
    to_serializable(trainer_with(name, value).config())


def test_the_public_names():
    assert helios_lite.__all__ == [
        "Callback",
        "CheckpointError",
        "DataModule",
        "FitResult",
        "Model",
        "Split",
        "Trainer",
        "TrainingState",
        "__version__",
    ]


@pytest.mark.parametrize("name", helios_lite.__all__)
def test_a_public_name_is_there(name):
    assert hasattr(helios_lite, name)


# Options during a run.


OTHERS = {"max_epochs": 7, "max_steps": 5, "clip_norm": 1.0, "log_every_steps": 3, "patience": 2}
OTHERS |= {"max_minutes": 2.0, "min_delta": 0.5, "valid_every_epochs": 2, "valid_every_steps": 2, "run_name": "other"}


@pytest.mark.parametrize("hook", ["setup", "on_training_start", "train_step", "valid_step", "on_training_end"])
def test_an_option_that_is_set_while_the_trainer_runs_is_an_error_and_has_no_effect(hook: str) -> None:
    tried = []

    class Setting(Tiny):
        pass

    def method(self: Any, *arguments: Any, **options: Any) -> None:
        getattr(Tiny, hook)(self, *arguments, **options)
        for field in dataclasses.fields(Trainer):
            with pytest.raises(AttributeError, match=rf"^{field.name}: cannot be set while Trainer.fit of 'tiny'"):
                setattr(self.trainer, field.name, OTHERS.get(field.name, getattr(self.trainer, field.name)))
            tried.append(field.name)
        with pytest.raises(AttributeError, match=r"^should_stop: cannot be set .* override Model.should_training_stop"):
            self.trainer.should_stop = True

    setattr(Setting, hook, method)
    trainer = quiet(max_epochs=2)
    before = trainer.config()
    assert trainer.fit(Setting(), data()).state.epoch == 2
    assert trainer.config() == before
    assert len({*tried}) == len(dataclasses.fields(Trainer))


@pytest.mark.parametrize("fails", [True, False])
def test_an_option_can_be_set_between_two_calls_and_is_checked_then(fails: bool) -> None:
    class Failing(Tiny):
        def on_training_end(self) -> None:
            if fails:
                raise KeyError("end")

    trainer = quiet(max_epochs=1)
    with pytest.raises(KeyError) if fails else contextlib.nullcontext():
        trainer.fit(Failing(), data())
    trainer.max_epochs = 2
    assert trainer.fit(Tiny(), data()).state.epoch == 2
    trainer.max_epochs = -5
    with pytest.raises(ValueError, match="max_epochs=-5"):
        trainer.fit(Tiny(), data())


def test_a_copy_of_a_trainer_that_runs_can_be_changed() -> None:
    class Copying(Tiny):
        def on_training_start(self) -> None:
            copied.append(copy.deepcopy(self.trainer))

    copied: list[Any] = []
    quiet(max_epochs=1).fit(Copying(), data())
    copied[0].max_epochs = 3
    assert copied[0].max_epochs == 3
