"""Compares a checkpoint with what the program has made: hparams, parts, options. What cannot go on is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helios_lite.changes.made import other_parts
from helios_lite.changes.misfits import differences, first, is_equal, misfits
from helios_lite.metrics.metric_objects import is_network

_NOT_OF_THE_TRAINING = {
    "root", "run_name", "resume", "allow_changed_hparams", "verify_every_steps", "progress", "print_banner",
    "log_level",
}  # fmt: skip
"""Options whose change says nothing of what is trained."""

OF_THE_END = {
    "max_epochs", "max_steps", "max_minutes", "patience", "min_delta", "monitor", "mode", "max_restarts",
    "hang_minutes", "save_every_epochs", "save_every_steps", "save_every_minutes", "async_save", "keep_last",
    "keep_best", "loggers", "sigusr1", "limit_test_batches",
}  # fmt: skip
"""Options whose change moves the end, or what is kept, and no row before it."""


def compare_hparams(
    path: Path, content: Mapping[str, Any], hparams: Mapping[str, Any], total: int | None, *, allows: bool, fits: bool
) -> list[str]:
    """Return a sentence for each of the hparams that differs from the checkpoint's.

    Args:
        path: the checkpoint.
        content: what it holds.
        hparams: those of the model.
        total: the planned number of steps, None if it is unknown. hparams that are this number now, and were that of
            the checkpoint's then, follow from the options, which may change.
        allows: whether other hparams may differ.
        fits: whether the model has the parts of the checkpoint, so that it could go on with its own hparams.

    Raises:
        ValueError: other hparams differ, and they may not.
    """
    saved = content["hparams"]
    plans = (content["planned"]["total"], total)
    numbers = [name for name in saved if type(saved[name]) is type(hparams.get(name)) is int]
    derived = [name for name in numbers if plans == (saved[name], hparams[name])]
    found = differences(
        {name: value for name, value in saved.items() if name not in derived},
        {name: value for name, value in hparams.items() if name not in derived},
    )
    if found and not allows:
        way = "; to go on with the hparams of now, set allow_changed_hparams=True" if fits else ""
        raise ValueError(
            f"{path}: is of a model with other hparams: {'; '.join(found)}. To train a new model, choose another "
            f'run_name or resume="new"{way}'
        )
    return [*found, *differences({name: saved[name] for name in derived}, {name: hparams[name] for name in derived})]


def compare_parts(path: Path, content: Mapping[str, Any], parts: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Raise a ValueError if the model is made of other parts than the one in the checkpoint, before it is changed.

    Args:
        path: the checkpoint.
        content: what it holds.
        parts: the stateful parts of the model by name.
        made: what `setup` has made of them, by `made.describe`.
    """
    found = [*other_parts(content["tables"]["made"], made), *misfits(parts, content["model"])]
    if found:
        nets = [name for name, part in parts.items() if is_network(part) and name in content["model"]]
        fitting = [name for name in nets if not any(text.startswith((f"{name}.", f"{name}:")) for text in found)]
        taken = f"; there init_from={str(path)!r} takes {', '.join(fitting)}, which fits" if fitting else ""
        raise ValueError(
            f"{path}: is of a model that is made otherwise: {first(found)}. To train a new model, choose another "
            f'run_name or resume="new"{taken}. To train from the beginning under this name, delete '
            f"{path.parent.parent}"
        )


def changed_options(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return a sentence for each option of the training that differs between two configurations, as plain data."""
    return {
        name: f"{name}: {saved.get(name)!r} before, {value!r} now"
        for name, value in now.items()
        if name not in _NOT_OF_THE_TRAINING and not is_equal(saved.get(name), value)
    }
