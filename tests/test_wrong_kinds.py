"""What passes a public function an argument of a wrong kind is told its name and what it wants."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Indices, Tiny, data, quiet
from torch import nn

from helios_lite import Split, Trainer, schedules
from helios_lite.callbacks import EMA, ActivationStatistics
from helios_lite.config import fit_from_config, fit_from_file
from helios_lite.samplers import BucketBatchSampler

WRONG: list[Any] = [3.5, "x", None, [object()], object(), nn.Linear]


def in_a_step(name: str) -> Callable[..., None]:
    """Return a function that calls a method of a model in `train_step`."""

    def call(**arguments: Any) -> None:
        class Calling(Tiny):
            def train_step(self, batch: Any, state: Any) -> None:
                getattr(self, name)(**arguments)

        quiet(max_steps=1).fit(Calling(), data())

    return call


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)


def call_of(method: str) -> Callable[..., Any]:
    def call(**arguments: Any) -> None:
        for _ in getattr(quiet(max_steps=1), method)(**arguments) or ():
            pass

    return call


# Each function with its right arguments, and those values of WRONG that are right for an argument.
PATHS, NONE, FUNCTION, TEXT, NUMBER = ("x",), (None,), (None, nn.Linear), ("x",), (3.5,)
EVALUATED = {"model": Tiny(), "datamodule": data(), "checkpoint": None}
WALK: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "fit": (call_of("fit"), {"model": Tiny(), "datamodule": data()}, {}),
    **{name: (call_of(name), EVALUATED, {"checkpoint": (None, "x")}) for name in ("validate", "test", "predict")},
    "write_predictions": (
        call_of("write_predictions"),
        {**EVALUATED, "path": "p.pth"},
        {"checkpoint": (None, "x"), "path": PATHS},
    ),
    "replay": (call_of("replay"), {"model": Tiny(), "datamodule": data(), "step": 1}, {}),
    "from_config": (Trainer.from_config, {"config": {}}, {}),
    "from_checkpoint": (Trainer.from_checkpoint, {"path": "x"}, {"path": PATHS}),
    "load_from_checkpoint": (Tiny.load_from_checkpoint, {"path": "x"}, {"path": PATHS}),
    "fit_from_config": (fit_from_config, {"config": {}, "overrides": None}, {"overrides": NONE}),
    "fit_from_file": (fit_from_file, {"path": "x"}, {"path": PATHS}),
    "EMA": (EMA, {"decay": 0.9, "name": "net"}, {"name": TEXT}),
    "ActivationStatistics": (ActivationStatistics, {"paths": ["net"]}, {}),
    "BucketBatchSampler": (
        BucketBatchSampler,
        {"lengths": [1, 2], "batch_size": 2, "max_tokens": None},
        {"max_tokens": NONE},
    ),
    "cosine": (schedules.cosine, {"optimizer": optimizer(), "warmup_steps": 1, "total_steps": 9}, {}),
    "linear": (schedules.linear, {"optimizer": optimizer(), "warmup_steps": 1, "total_steps": 9}, {}),
    "inverse_sqrt": (schedules.inverse_sqrt, {"optimizer": optimizer(), "warmup_steps": 1}, {}),
    "Split": (
        Split,
        {
            "dataset": Indices(4),
            "batch_size": 2,
            **dict.fromkeys(("shuffle", "drop_last", "seed_samples", "pin_memory", "persistent_workers"), False),
            **dict.fromkeys(
                ("collate_fn", "worker_init_fn", "sampler", "prefetch_factor", "global_batch_size", "shuffle_block")
            ),
            "num_workers": 0,
            "timeout": 0,
        },
        {
            "dataset": ("x",),  # It has a length and items.
            "collate_fn": FUNCTION,
            "worker_init_fn": FUNCTION,
            "sampler": (None, "x"),
            "prefetch_factor": NONE,
            "global_batch_size": NONE,
            "shuffle_block": NONE,
            "pin_memory": NONE,
            "timeout": NUMBER,
        },
    ),
    "backward": (in_a_step("backward"), {"loss": torch.zeros(())}, {}),
    "parallelize": (in_a_step("parallelize"), {"net": nn.Linear(1, 1), "blocks": ()}, {}),
    "log": (in_a_step("log"), {"name": "a", "value": 1.0, "reduce": "mean"}, {"value": NUMBER, "name": WRONG}),
}


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name in WALK for argument in WALK[name][1]])
def test_an_argument_of_a_wrong_kind_is_named(
    name: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, arguments, right = WALK[name]
    told = "log(" if name == "log" and argument == "value" else argument
    for wrong in WRONG:
        accepted = right.get(argument, ())
        if any(wrong is value or (isinstance(value, str | float) and wrong == value) for value in accepted):
            continue
        if argument == "dataset" and isinstance(wrong, list):
            continue  # A list is a dataset.
        if argument == "lengths" and isinstance(wrong, list | str):
            continue  # What is wrong is inside.
        if argument == "sampler" and isinstance(wrong, list):
            continue  # A list of indices is a sampler.
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**{**arguments, argument: wrong})
        assert told in str(caught.value), wrong


def test_the_walk_has_all_arguments_of_a_split() -> None:
    assert set(inspect.signature(Split).parameters) - set(WALK["Split"][1]) == {
        "batch_sampler",
        "multiprocessing_context",  # DataLoader checks it.
    }
