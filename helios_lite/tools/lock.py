"""The commands `lock` and `check`: what the first steps of a program compute, kept in a file and computed again."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from helios_lite.callbacks import Callback, Profile
from helios_lite.changes.run_description import read_starts
from helios_lite.checkpoints.files import write_json
from helios_lite.config import ConfigError, split_function
from helios_lite.display.console import printable
from helios_lite.metrics.rows import DIGESTS
from helios_lite.nested import leaves
from helios_lite.processes.output import harmless
from helios_lite.state import TrainingState
from helios_lite.tools.audit.trial import Program, Source
from helios_lite.tools.run_files import number
from helios_lite.tools.usage import UsageError, require_file

FORMAT = 1
_LOSS = "loss of the step"
_SIZES = {"loss": 1e-4, "gradient norm": 1e-3}
"""How much a number may differ, relatively, where another kernel may have computed it."""
_TABLES = {"options": "", "environment": "environment.", "sources": "source file "}
"""The tables of a lock, and what stands before the names of their values."""
_MOST_NAMED = 8
_IN_WORDS = {"samples_digest": "samples", "batch_digest": "values of the last batch", "weights_digest": "weights"}


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check` has found.

    Attributes:
        steps: how many steps were compared.
        is_exact: whether bits were compared; otherwise versions, device, or numbers of threads or processes differ, and
            losses and gradient norms may differ by rounding, and weights are not compared.
        step: the first step that differs, 0 for the weights before the first one, None if all is as locked.
        what: what differs first there: "weights", "samples", "values of the last batch", "loss", "gradient norm ...",
            or "number of steps"; None if all is as locked.
        locked, now: what it was, and what it is.
        changes: the names of options, versions and source files that differ, with what they were and are.
    """

    steps: int
    is_exact: bool
    step: int | None
    what: str | None
    locked: str | None
    now: str | None
    changes: list[tuple[str, str, str]]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        changes = [{"name": name, "locked": before, "now": now} for name, before, now in self.changes]
        return {**dataclasses.asdict(self), "changes": changes}

    def __str__(self) -> str:
        """Return what was found in lines."""
        how = "bit for bit" if self.is_exact else "but for rounding, as versions or devices differ"
        lines = [f"{self.steps} steps are as locked, {how}"]
        if self.what is not None:
            where = "before the first step" if self.step == 0 else f"at step {self.step}"
            lines = [f"not as locked: {where} the {self.what} was {self.locked}, and is {self.now}"]
        lines += [f"  {name}: {before} when locked, {now} now" for name, before, now in self.changes[:_MOST_NAMED]]
        if len(self.changes) > _MOST_NAMED:
            lines.append(f"  and {len(self.changes) - _MOST_NAMED} more changes")
        return "\n".join(lines)


def lock(arguments: argparse.Namespace) -> None:
    """Write what the first steps of a program compute to a file."""
    path = _lock_file(arguments)
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.parent}")
    content = _recorded(arguments, arguments.steps)
    write_json(content, path)
    print(path)


def check(arguments: argparse.Namespace) -> None:
    """Compute the steps of a lock again. Exits with status 1 if something differs, 2 if the program fails."""
    path = _lock_file(arguments)
    require_file(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no lock of this version") from error
    if not _is_lock(content):
        raise UsageError(f"{path}: is no lock of this version")
    found = compared(content, _recorded(arguments, len(content["steps"])))
    print(json.dumps(found.as_dict(), indent=2) if arguments.json else harmless(str(found)))
    if found.what is not None:
        sys.exit(1)


def _is_lock(content: Any) -> bool:
    """Return whether the content of a file is what `lock` writes; somebody may have changed it by hand."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or "weights_digest" not in content:
        return False
    steps = content.get("steps")
    if not isinstance(steps, list) or not all(isinstance(content.get(name), dict) for name in _TABLES):
        return False
    return len(steps) > 0 and all(isinstance(step, dict) and type(step.get("step")) is int for step in steps)


def _lock_file(arguments: argparse.Namespace) -> Path:
    file, _ = split_function(arguments.file)
    require_file(file)
    output: Path | None = arguments.output
    return file.with_suffix(".lock.json") if output is None else output


def _recorded(arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    if steps < 1:
        raise UsageError(f"--steps {steps}: must be at least 1")
    try:
        return recorded(arguments.file, steps, arguments.overrides)
    except ConfigError:
        raise
    except Exception:
        traceback.print_exc()
        sys.exit(2)


def recorded(
    origin: Path | Callable[[], Program], steps: int = 10, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train a program for some steps in a scratch folder, and return what `lock` writes: plain values.

    Args:
        origin: the path of a TOML file, a Python file and a function in it, as "train.py:make", or a function that
            returns (Trainer, Model, DataModule) anew.
        steps: the number of steps; fewer if the training ends before.
        overrides: values that replace those of the file.

    Raises:
        Exception: any exception of the program.
    """
    trainer, model, data = Source(origin, overrides or {}).make()
    starts_elsewhere = trainer.resume not in ("auto", "never", "new", "best")
    with tempfile.TemporaryDirectory(prefix="helios_lite-") as folder:
        trainer = dataclasses.replace(
            trainer,
            root=folder,
            run_name="lock",
            resume=trainer.resume if starts_elsewhere else "never",
            loggers=(),
            callbacks=[
                *(copy.copy(each) for each in trainer.callbacks if not isinstance(each, Profile)),
                LockRecorder(steps),
            ],
            verify_every_steps=None,
            log_every_steps=1,
            log_grad_norm=True,
            log_level="quiet",
            progress=False,
            print_banner=False,
            valid_every_epochs=None,
            valid_every_steps=None,
            sanity_batches=0,
            monitor=None,
            patience=None,
            save_every_epochs=None,
            save_every_steps=None,
            save_every_minutes=None,
            keep_best=0,
            max_restarts=0,
        )
        result = trainer.fit(model, data)
        run = Path(folder) / "lock"
        config, start = json.loads((run / "config.json").read_bytes()), read_starts(run / "config.json")[0]
        rows = result.history
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    options = {name: config[name] for name in ("hparams", "data")}
    options["trainer"] = {name: value for name, value in config["trainer"].items() if name not in _replaced(trainer)}
    options["made"] = {name: made for name, made in config["made"].items() if "groups" in made or "numbers" in made}
    return {
        "format": FORMAT,
        "environment": start["environment"],
        "sources": start["sources"],
        "commit": start["commit"],
        "options": dict(leaves(options)),
        "weights_digest": start["weights_digest"],
        "steps": [_numbers(by_step[step]) for step in sorted(by_step) if 0 < step <= steps],
    }


def _replaced(trainer: Any) -> set[str]:
    """Return the options of a trainer that a lock replaces, and those that change nothing in a step."""
    names = {name for name in trainer.config() if name.startswith(("valid_", "save_", "keep_", "log_", "sanity_"))}
    return {*names, "root", "run_name", "resume", "loggers", "callbacks", "progress", "print_banner"} | {
        *("monitor", "mode", "patience", "min_delta", "max_restarts", "hang_minutes", "async_save"),
        "verify_every_steps",
    }


class LockRecorder(Callback):
    """Logs the loss of each step, and stops the training after some."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Log the last loss that was passed to `backward`."""
        loss = self.model._context.precision.last_loss
        if loss is not None:
            self.model.log(_LOSS, loss.detach(), reduce="last")
        if state.step >= self.steps:
            self.model.request_stop()


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a lock has of a step."""
    names = {"samples_digest": "samples_digest", "batch_digest": "batch_digest", f"train/{_LOSS}": "loss"}
    names["train/grad_norm"] = "gradient norm"
    for name in row:
        if name.startswith("train/grad_norm/") and not name.endswith("/epoch"):
            names[name] = f"gradient norm of {name.removeprefix('train/grad_norm/')}"
    names["weights_digest"] = "weights_digest"
    return {"step": row["step"], **{shown: row[name] for name, shown in names.items() if name in row}}


def compared(locked: Mapping[str, Any], now: Mapping[str, Any]) -> Checked:
    """Return how what `recorded` has returned twice compares: the lock, and what is computed now."""
    changes = [
        (f"{prefix}{name}", before, after)
        for part, prefix in _TABLES.items()
        for name, before, after in _changes(locked.get(part, {}), now[part])
    ]
    is_exact = locked["environment"] == now["environment"]
    steps = min(len(locked["steps"]), len(now["steps"]))
    for step, what, before, after in _differences(locked, now, is_exact):
        return Checked(steps, is_exact, step, what, str(before), str(after), changes)
    return Checked(steps, is_exact, None, None, None, None, changes)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys([*before, *now]):
        values = [repr(each[name]) if name in each else "not there" for each in (before, now)]
        if values[0] != values[1]:
            yield printable(name), values[0], values[1]


def _differences(
    locked: Mapping[str, Any], now: Mapping[str, Any], is_exact: bool
) -> Iterator[tuple[int, str, Any, Any]]:
    """Yield what differs: the step, what, and both values; in the order in which it comes to be."""
    # Of a batch it is the part of rank 0.
    is_divided = locked["environment"].get("processes") != now["environment"].get("processes")
    left_out = () if is_exact else ("weights_digest", "batch_digest") if is_divided else ("weights_digest",)
    if is_exact and locked["weights_digest"] != now["weights_digest"]:
        yield 0, "weights", locked["weights_digest"], now["weights_digest"]
    for before, after in zip(locked["steps"], now["steps"], strict=False):
        for name in (name for name in before if name != "step" and name not in left_out):
            if not _is_alike(name, before.get(name), after.get(name), is_exact):
                yield before["step"], _IN_WORDS.get(name, name), before.get(name), after.get(name)
    if len(locked["steps"]) != len(now["steps"]):
        numbers = len(locked["steps"]), len(now["steps"])
        yield min(numbers) + 1, "number of steps", *numbers


def _is_alike(name: str, before: Any, after: Any, is_exact: bool) -> bool:
    size = next((size for start, size in _SIZES.items() if name.startswith(start)), 0.0)
    if is_exact or name in DIGESTS or number(before) is None or number(after) is None:
        return bool(before == after)
    return math.isclose(before, after, rel_tol=size, abs_tol=1e-7)
