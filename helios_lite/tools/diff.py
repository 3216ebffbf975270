"""The command `diff`: where two runs diverged. It reads files of their run folders, and executes nothing in them."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_lite.changes.run_description import read_starts
from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.display import console
from helios_lite.display.console import make_table, printable
from helios_lite.loading import sample_order
from helios_lite.metrics.measurements import is_measured
from helios_lite.metrics.rows import DIGESTS, HIGHEST_LOSS, read_rows
from helios_lite.nested import leaves
from helios_lite.processes import rng
from helios_lite.processes.output import harmless
from helios_lite.tools.run_files import WHERE_ONLY
from helios_lite.tools.usage import UsageError

_LIMITS = ("steps_per_epoch", "limit_train_batches", "overfit_batches")
_MOST_OPTIONS = 40  # Of values of config.json, such as the tensors of networks.
_MOST_BY_ROUNDING = 1e-5  # A relative difference of a mean loss, between two rows.
_MOST_NAMED = 6  # Options and files that are named as a cause.
_MOST_SHOWN = 16  # How many sample indices are shown.
_MOST_SORTED = 10**8  # The length of a dataset whose order is worked out.
_OF_ORDER: tuple[str, ...] = (
    "data.train",
    "trainer.seed",
    "trainer.accumulation_steps",
    "environment.processes",
    "trainer.devices",
)
_OF_ORDER += tuple(f"trainer.{name}" for name in _LIMITS)
"""What the order of samples depends on, or their division into batches."""
_OF_KERNELS = tuple(
    f"environment.{name}"
    for name in ("torch", "python", "helios_lite", "device", "threads", "float32_matmul_precision")
)
_OF_KERNELS += ("trainer.deterministic", "trainer.benchmark", "trainer.compile", "trainer.accelerator")
_OF_SUMS = ("environment.processes", "trainer.devices", "trainer.accumulation_steps", "data.train.batch_size")
_OF_WEIGHTS = ("trainer.seed", "trainer.init_from", "hparams", "made", "environment.default_dtype")
_WITHOUT_EFFECT = tuple(
    f"trainer.{name}" for name in ("max_", "log_", "save_", "keep_", "valid_", "sanity_", "monitor")
)
_WITHOUT_EFFECT += ("trainer.callbacks", "trainer.loggers", "data.valid", "data.test")
"""What says how long a run is and what it shows, and not what a step computes."""
_UNREADABLE = (files.CheckpointError, OSError)
Row = dict[str, Any]
Start = dict[str, Any]
Difference = tuple[str, str, str]
"""A name, and what each of two runs has."""


def diff(arguments: argparse.Namespace) -> None:
    """Tell where two runs diverged. Exits with status 1 if they do, and 2 if nothing could be compared."""
    found = compare(arguments.run_a, arguments.run_b)
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found)
    if found.status != "equal":
        sys.exit(1 if found.status == "differ" else 2)


@dataclasses.dataclass(frozen=True)
class Cause:
    """What the difference of two runs may come from, as far as their files tell.

    Attributes:
        kind: "initial weights", "checkpoint", "data", "code", "options", "kernels", "resume" or "unknown".
        text: the same in words.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the rows, or the checkpoints, of two runs compare.

    Attributes:
        text: in words.
        differs: whether they differ.
        number: how many were compared.
        equal_until: the last step up to which all that both have is equal.
        step: that of the first difference, None without one.
        what: the names of what differs there; of a row in the order of cause and effect.
        relative: the relative difference of the first value in a row that differs, None if no value does.
        unread: why checkpoints of a step that both have could not be compared.
    """

    text: str
    differs: bool = False
    number: int = 0
    equal_until: int = 0
    step: int | None = None
    what: tuple[str, ...] = ()
    relative: float | None = None
    unread: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Found:
    """What `compare` has found.

    Attributes:
        runs: the two folders.
        options: the values of config.json that differ.
        starts: the starts of each run; see `read_starts`.
        rows, checkpoints: how they compare.
        causes: why they differ, the most likely first; none if they do not.
    """

    runs: tuple[Path, Path]
    options: list[Difference]
    starts: tuple[list[Start], list[Start]]
    rows: Comparison
    checkpoints: Comparison
    causes: list[Cause]

    @property
    def status(self) -> str:
        """Return "differ", "equal", or "not compared"."""
        if self.causes:
            return "differ"
        is_compared = self.rows.number + self.checkpoints.number > 0 and not self.checkpoints.unread
        return "equal" if is_compared else "not compared"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        starts = [[{name: start.get(name) for name in ("step", "checkpoint")} for start in run] for run in self.starts]
        return {
            "runs": [str(run) for run in self.runs],
            "status": self.status,
            "options": [{"name": name, "a": a, "b": b} for name, a, b in self.options],
            "starts": {"a": starts[0], "b": starts[1]},
            "rows": dataclasses.asdict(self.rows),
            "checkpoints": dataclasses.asdict(self.checkpoints),
            "causes": [dataclasses.asdict(cause) for cause in self.causes],
        }


def compare(run_a: Path, run_b: Path) -> Found:
    """Return how two runs compare, by the files of their folders.

    Raises:
        UsageError: one of them is no run folder, or has a file that cannot be read.
    """
    folders = (run_a, run_b)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: {'is a file' if folder.exists() else 'there is no such folder'}")
        if not any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints")):
            raise UsageError(f"{folder}: is no run folder: it has no config.json, metrics.jsonl or checkpoints")
    configs = [_read_config(folder) for folder in folders]
    options = [found for found in _differences(*configs) if found[0] not in WHERE_ONLY]
    rows = [_read_rows(folder) for folder in folders]
    starts = (read_starts(run_a / "config.json"), read_starts(run_b / "config.json"))
    of_rows = _compare_rows(rows[0], rows[1], functools.partial(_samples, configs[0], folders[0]))
    of_checkpoints = _compare_checkpoints(*folders)
    causes = [*_changed_weights("A", starts[0], rows[0]), *_changed_weights("B", starts[1], rows[1])]
    first = of_rows if of_rows.differs else of_checkpoints
    if first.step is not None:
        causes += _causes([name for name, _, _ in options], starts, first)
    return Found(folders, options, starts, of_rows, of_checkpoints, causes)


def _show(found: Found) -> None:
    if found.options:
        shown = [list(map(printable, row)) for row in found.options[:_MOST_OPTIONS]]
        more = [[f"and {len(found.options) - len(shown)} more", "", ""]] if len(found.options) > len(shown) else []
        console.show_table(make_table(["", "A", "B"], [*shown, *more]))
    for name, starts in zip("AB", found.starts, strict=True):
        resumed = [str(start["step"]) for start in starts if start["step"] > 0]
        if resumed:
            print(f"{name} was resumed at step {_listed(resumed)}")
    print(harmless(found.rows.text))
    print(harmless(found.checkpoints.text))
    for why in found.checkpoints.unread:
        print(harmless(f"not compared: {why}"))
    for i, cause in enumerate(found.causes):
        print(harmless(f"{'most likely' if i == 0 else 'or'} {cause.kind}: {cause.text}"))
    if found.status == "not compared" and found.rows.number + found.checkpoints.number > 0:
        print("the runs are equal bit for bit in the rest that both have")
    elif found.status == "not compared":
        print(
            "nothing could be compared: the runs have no metrics of the same steps, and no checkpoints of the same step"
        )
    elif found.status == "equal":
        print("the runs are equal bit for bit in all that both have")


# Why they differ.


def _causes(options: Sequence[str], starts: Sequence[Sequence[Start]], first: Comparison) -> list[Cause]:
    """Return what a difference may come from, the most likely first.

    Args:
        options: the names of the values of config.json that differ.
        starts: the starts of each run.
        first: the comparison with the first difference.
    """
    step = first.step or 0
    in_force = [max((start for start in run if start["step"] < step), key=_step_of, default={}) for run in starts]
    code = _code_that_differs(*in_force)
    environments = [start.get("environment") for start in in_force]
    if isinstance(environments[0], dict) and isinstance(environments[1], dict):  # At a later start it may have changed.
        changed = [f"environment.{name}" for name, _, _ in _differences(environments[0], environments[1])]
        options = [*(name for name in options if not name.startswith("environment.")), *changed]
    of_order = [name for name in options if name.startswith(_OF_ORDER)]
    kernels = [name for name in options if name.startswith(_OF_KERNELS)]
    others = [name for name in options if not name.startswith((*_OF_ORDER, *_OF_KERNELS, *_WITHOUT_EFFECT))]
    found: list[Cause] = []
    weights = [run[0].get("weights_digest") if run and run[0]["step"] == 0 else None for run in starts]
    if None not in weights and weights[0] != weights[1]:
        of_weights = [name for name in options if name.startswith(_OF_WEIGHTS)]
        found.append(Cause("initial weights", f"those of the first start differ{_too([*of_weights, *code])}"))
    if "samples_digest" in first.what:
        found.append(Cause("data", f"other samples were read, or in another order{_too(of_order or code)}"))
    elif "batch_digest" in first.what and "environment.processes" not in options:
        of_content = [name for name in of_order if name.startswith("data.")]
        found.append(Cause("data", f"the same indices gave other values{_too([*of_content, *code])}"))
    else:  # They do not show in the samples, but in random numbers, or in sums in another order.
        sums = [name for name in of_order if name.startswith(_OF_SUMS)]
        kernels, others = [*kernels, *sums], [*others, *(name for name in of_order if name not in sums)]
    if code:
        found.append(Cause("code", f"the source files differ: {_listed(code)}"))
    if others:
        found.append(Cause("options", f"{_listed(others)}"))
    resumed = [{start["step"] for start in run if 0 < start["step"] < step} for run in starts]
    if resumed[0] != resumed[1]:
        steps = _listed([str(each) for each in sorted(resumed[0] ^ resumed[1])])
        text = f"only one of the runs was resumed at step {steps}, and something that no checkpoint holds made the rest"
        found.append(Cause("resume", text))
    if kernels:
        found.append(Cause("kernels", f"other kernels may have computed the same: {_listed(kernels)}"))
    if not found:
        kind, text = "data", "the same indices gave other values, or something is not seeded"
        if first.relative is None:
            kind, text = "unknown", "something is not seeded, or a kernel is not deterministic"
        elif first.relative < _MOST_BY_ROUNDING:
            kind, text = "kernels", "the difference is one of rounding, as a kernel that is not deterministic makes"
        found.append(Cause(kind, f"nothing else differs of what is known; so {text}"))
    return found


def _changed_weights(name: str, starts: Sequence[Start], rows: Sequence[Row]) -> Iterator[Cause]:
    """Yield where a run went on with other weights than it had at that step."""
    digests = {row["step"]: row.get("weights_digest") for row in rows}
    for start in starts:
        before, now = digests.get(start["step"]), start.get("weights_digest")
        if start["step"] > 0 and None not in (before, now) and before != now:
            yield Cause(
                "checkpoint",
                f"{name} was resumed at step {start['step']} from {start.get('checkpoint')} with other weights than "
                "the row of that step has: the file was changed, or a hook changes weights after the row",
            )


def _code_that_differs(a: Start, b: Start) -> list[str]:
    """Return the names of the source files that differ between two starts, followed by the commits if these do."""
    sources = [start.get("sources") for start in (a, b)]
    if not isinstance(sources[0], dict) or not isinstance(sources[1], dict):
        return []
    found = [name for name, _, _ in _differences(sources[0], sources[1])]
    commits = [str(start.get("commit"))[:12] for start in (a, b)]
    return [*found, f"commits {commits[0]} and {commits[1]}"] if found and commits[0] != commits[1] else found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(printable, names[:_MOST_NAMED])) + more


def _too(names: Sequence[str]) -> str:
    """Return what else differs, as the reason."""
    return f", by {_listed(names)}" if names else ""


def _step_of(start: Start) -> int:
    return int(start["step"])


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the values of config.json by dotted name, without the starts; none without the file."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_bytes()) if path.exists() else {}
        content = {name: value for name, value in content.items() if name != "starts"}
    except (ValueError, OSError, RecursionError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    return dict(leaves(content))


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the names whose values differ or that only one of two mappings has."""
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b or a[name] != b[name] or type(a[name]) is not type(b[name]):
            texts = (repr(values[name]) if name in values else "" for values in (a, b))
            yield name, next(texts), next(texts)


# The rows of metrics.jsonl.


def _read_rows(folder: Path) -> list[Row]:
    """Return the rows of a training without what was measured, or depends on the number of processes by intention."""
    rows = read_rows(folder / "metrics.jsonl")
    return [
        {name: value for name, value in row.items() if not is_measured(name) and name != HIGHEST_LOSS} for row in rows
    ]


def _compare_rows(a: Sequence[Row], b: Sequence[Row], samples: Callable[..., str]) -> Comparison:
    """Compare the rows of two runs at the steps that both have.

    A value of a training is the mean since the row before, so it is compared only where that is of the same step too.
    The weights are compared wherever both have a row.

    Args:
        a, b: the rows.
        samples: returns which samples of A the steps after one up to another have read, given A's rows; see `_samples`.
    """
    if not a or not b:
        return Comparison(f"metrics.jsonl: {'neither run has' if not a and not b else 'only one run has'} rows")
    by_step = [_by_step(rows) for rows in (a, b)]
    common = sorted(by_step[0].keys() & by_step[1].keys())
    equal_until, compared = 0, list[int]()
    for step in common:
        starts = [_start_of_row(rows, step) for rows in by_step]
        rows = [rows[step] for rows in by_step]
        has_both = starts[0] == starts[1] or any(name.startswith("valid/") for name in rows[0])
        if starts[0] != starts[1]:
            rows = [{name: value for name, value in row.items() if _is_of_step(name)} for row in rows]
        # A run of an earlier version has no digests.
        missing = {name for name in DIGESTS if not all(name in row for row in rows)}
        rows = [{name: value for name, value in row.items() if name not in missing} for row in rows]
        found = sorted(_differences(*rows), key=lambda each: _ORDER_OF_EFFECTS.get(each[0], 2))
        if found:
            text = f"metrics.jsonl: equal up to step {equal_until}; at step {step} {_describe_row(found)}"
            if step > equal_until and (shown := samples(a, equal_until, step)):
                text += f"\n  {shown}"
            what = tuple(name for name, _, _ in found)
            relative = next((_relative(a, b) for name, a, b in found if name not in DIGESTS), None)
            return Comparison(text, True, len(compared) + 1, equal_until, step, what, relative)
        if has_both or "weights_digest" in rows[0]:
            compared.append(step)
            equal_until = step
    if not compared:
        return Comparison("metrics.jsonl: the runs have no values of the same steps")
    last = [max(rows) for rows in by_step]
    if by_step[0].keys() == by_step[1].keys():
        text = f"{len(a)} rows are equal, up to step {equal_until}"
    elif equal_until in last and [step for step in by_step[0] if step <= equal_until] == [
        step for step in by_step[1] if step <= equal_until
    ]:
        longer = "A" if last[0] > last[1] else "B"
        text = f"equal up to step {equal_until}, where {'BA'[longer == 'B']} ends; {longer} goes on"
    else:
        text = f"equal at {len(compared)} steps that both have, up to step {equal_until}; the others are not compared"
    return Comparison(f"metrics.jsonl: {text}", False, len(compared), equal_until)


_ORDER_OF_EFFECTS = {"samples_digest": 0, "batch_digest": 1, "weights_digest": 3}  # Between them are values.
_DIGESTS_IN_WORDS = {
    "samples_digest": "the samples",
    "batch_digest": "the values of the last batch",
    "weights_digest": "the weights",
}


def _relative(a: str, b: str) -> float | None:
    """Return the relative difference of two numbers, None if one of them is no finite number."""
    try:
        size = abs(float(a) - float(b)) / max(abs(float(a)), abs(float(b)))
    except (ValueError, ZeroDivisionError):
        return None
    return size if math.isfinite(size) else None


def _describe_row(found: Sequence[Difference]) -> str:
    """Return in words what differs in a row, in the order of cause and effect."""
    digests = [_DIGESTS_IN_WORDS[name] for name, _, _ in found if name in DIGESTS]
    values = [each for each in found if each[0] not in DIGESTS]
    if not values:
        return f"no value differs, but {' and '.join(digests)}"
    text = _describe_values(*values[0])
    return f"{text}\n  what differs besides: {', '.join(digests)}" if digests else text


def _by_step(rows: Sequence[Row]) -> dict[int, Row]:
    """Return what the rows of each step have, in ascending order."""
    found: dict[int, Row] = {}
    for row in rows:
        found.setdefault(row["step"], {}).update(row)
    return dict(sorted(found.items()))


def _start_of_row(rows: Mapping[int, Row], step: int) -> int:
    """Return the step after which the training values of a row begin: that of the row before that has some."""
    earlier = [each for each, row in rows.items() if each < step and any(not _is_of_step(name) for name in row)]
    return max(earlier, default=0)


def _is_of_step(name: str) -> bool:
    """Return whether a value in a row is that of the step, and no mean since the row before."""
    if name == "samples_digest":
        return False
    return "/" not in name or name.startswith(("valid/", "train/lr")) or name.endswith("/epoch")


def _describe_values(name: str, a: str, b: str) -> str:
    if not a or not b:
        return f"{printable(name)} is only in {'A' if a else 'B'} ({a or b})"
    try:
        numbers = float(a), float(b)
    except ValueError:
        return f"{printable(name)} is {a} in A and {b} in B"
    size = abs(numbers[0] - numbers[1])
    return f"{printable(name)} is {numbers[0]:.9g} in A and {numbers[1]:.9g} in B (difference {size:.3g})"


def _samples(config: Mapping[str, Any], folder: Path, rows: Sequence[Row], start: int, end: int) -> str:
    """Return which samples the steps after `start` up to `end` have read, "" if it is not known.

    It is known for a Split in the order of its dataset or in random order, if nothing limits the batches of an epoch,
    the rows are those of epochs with so many steps (a program may assign another split), and no window was skipped.
    """
    names = ("data.train.samples", "data.train.batch_size", "environment.processes", "trainer.accumulation_steps")
    numbers = [config.get(name) for name in (*names, "trainer.seed")]
    length, batch_size, processes, window, seed = (number if type(number) is int else 0 for number in numbers)
    if type(total := config.get("data.train.global_batch_size")) is int:
        batch_size = total // max(1, processes * window)
    has_order = config.get("data.train.sampler") is None and config.get("data.train.batch_sampler") is None
    if not has_order or any(config.get(f"trainer.{name}") is not None for name in _LIMITS):
        return ""
    if min(length, batch_size, processes, window) < 1 or length > _MOST_SORTED or not 0 <= seed < 2**63:
        return ""
    batch = batch_size * processes
    num_batches = length // batch + (length % batch >= processes and not config.get("data.train.drop_last"))
    if num_batches == 0:
        return ""
    epoch_steps, indices = math.ceil(num_batches / window), list[int]()
    if any(row.get("epoch") not in (row["step"] // epoch_steps, (row["step"] - 1) // epoch_steps) for row in rows):
        return ""
    if not _skips_nothing(folder, end, config.get("trainer.precision") == "fp16"):
        return ""
    for step in range(start, min(end, start + _MOST_SHOWN + 1)):
        epoch, window_index = divmod(step, epoch_steps)
        is_random, block = bool(config.get("data.train.shuffle")), config.get("data.train.shuffle_block")
        order = sample_order.epoch_order(length, is_random, block, None, epoch, rng.derive_seed(seed, epoch), True)
        part = order[window_index * window * batch : min((window_index + 1) * window, num_batches) * batch]
        indices += [int(index) for index in part]
    shown = ", ".join(map(str, indices[:_MOST_SHOWN])) + (", ..." if len(indices) > _MOST_SHOWN else "")
    which = f"step {end}" if end == start + 1 else f"steps {start + 1} to {end}"
    return f"{which} of A read the samples {shown} of its train split"


def _skips_nothing(folder: Path, end: int, must_be_seen: bool) -> bool:
    """Return whether no window of a run was skipped up to a step, as far as its checkpoints tell.

    Args:
        folder: the run folder.
        end: the step.
        must_be_seen: whether a checkpoint of this step or a later one has to show it.
    """
    skipped = {}
    for step, path in _checkpoints(folder).items():
        try:
            skipped[step] = read_checkpoint(path)["state"].get("skipped_steps", 0)
        except _UNREADABLE:
            must_be_seen = True
    if any(step >= end and number == 0 for step, number in skipped.items()):
        return True
    return not must_be_seen and not any(skipped.values())


# The checkpoints.


def _compare_checkpoints(a: Path, b: Path) -> Comparison:
    """Compare the checkpoints that two runs have at the same steps."""
    files_a, files_b = _checkpoints(a), _checkpoints(b)
    compared, unread = list[int](), list[str]()
    for step in sorted(files_a.keys() & files_b.keys()):
        try:
            content_a, content_b = (read_checkpoint(paths[step]) for paths in (files_a, files_b))
        except _UNREADABLE as error:
            unread.append(str(error))
            continue
        found = next(_content_differences(content_a, content_b), None)
        if found is not None:
            before = f"equal at step {compared[-1]}; " if compared else ""
            name, description = found
            return Comparison(
                f"checkpoints: {before}at step {step} {printable(name)} {description}",
                differs=True,
                number=len(compared) + 1,
                equal_until=compared[-1] if compared else 0,
                step=step,
                what=(name,),
                unread=tuple(unread),
            )
        compared.append(step)
    if not compared:
        none = "cannot be compared" if unread else "the runs have none at the same step"
        return Comparison(f"checkpoints: {none}", unread=tuple(unread))
    text = f"checkpoints: equal at step {', '.join(map(str, compared))}"
    return Comparison(text, number=len(compared), equal_until=compared[-1], unread=tuple(unread))


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a run folder by their step, the last one of each."""
    folder = folder / "checkpoints"
    found: dict[int, Path] = {}
    for name in naming.save_names(folder) if folder.is_dir() else ():
        for path in naming.find(folder, name):
            counters = naming.counters(path.name, name)
            if counters is not None:
                found.setdefault(counters[0], path)
    return found


def _content_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of the states that differ, and how: of the model first, of the counters last."""
    for part in ("model", "precision", "callbacks", "ranks", "state"):
        left, right = (leaves(_compared(content, part), part) for content in (a, b))
        for (name, value), (other_name, other) in itertools.zip_longest(left, right, fillvalue=("", None)):
            if name != other_name:
                yield (
                    name or other_name,
                    f"is only in {'A' if name else 'B'}"
                    if "" in (name, other_name)
                    else (f"of A is at the place of {other_name} of B"),
                )
                return
            is_clock = name == "state.seconds"
            if not is_clock and (description := _difference(value, other)) is not None:
                yield name, description


def _compared(content: Mapping[str, Any], part: str) -> Any:
    """Return what is compared of a part of a checkpoint: of a rank its RNG and loader, and not the logged values."""
    if part != "ranks":
        return content.get(part)
    return [{name: rank.get(name) for name in ("rng", "data")} for rank in content.get(part, [])]


def _difference(a: Any, b: Any) -> str | None:
    """Return how two values differ, None if they are equal bit for bit."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        is_equal = type(a) is type(b) and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))
        return None if is_equal else f"is {a!r} in A and {b!r} in B"
    for what in ("dtype", "shape"):
        left, right = getattr(a, what), getattr(b, what)
        if left != right:
            return f"has {what} {_text(left)} in A and {_text(right)} in B"
    if a.is_quantized:  # Its bytes cannot be read.
        return None if torch.equal(a, b) else "differs in its quantized elements, or in their scale"
    if a.layout is not torch.strided or b.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.numel() == 0 or torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    ):
        return None
    differ = (a != b) & ~((a != a) & (b != b))
    wide = torch.complex128 if a.is_complex() else torch.float64
    largest = (a.to(wide) - b.to(wide)).abs().nan_to_num(math.inf)[differ]
    size = f", by at most {float(largest.max()):.3g}" if len(largest) else ", in the sign of zeros or in NaNs"
    return f"differs in {int(differ.sum()):,} of {a.numel():,} elements{size}"


def _text(value: Any) -> str:
    return str(tuple(value) if isinstance(value, torch.Size) else value).removeprefix("torch.")
