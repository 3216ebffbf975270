"""The command `diff`: where two runs diverged. It reads files of their run folders, and executes nothing in them."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.display import console
from helios_lite.display.console import make_table, printable
from helios_lite.loading import sample_order
from helios_lite.metrics.measurements import is_measured
from helios_lite.metrics.rows import DIGESTS
from helios_lite.nested import leaves
from helios_lite.processes import rng
from helios_lite.processes.output import harmless
from helios_lite.tools.usage import UsageError

_WHERE_ONLY = {
    "run_folder",
    "trainer.root",
    "trainer.run_name",
    "trainer.progress",
    "trainer.print_banner",
    "trainer.log_level",
}
"""Options that say where a run writes and what is seen of it."""
_LIMITS = ("steps_per_epoch", "limit_train_batches", "overfit_batches")
_MOST_OPTIONS = 40  # Of values of config.json, such as the tensors of networks.
_MOST_SHOWN = 16  # How many sample indices are shown.
_MOST_SORTED = 10**8  # The length of a dataset whose order is worked out.
Row = dict[str, Any]
Difference = tuple[str, str, str]
"""A name, and what each of two runs has."""


def diff(arguments: argparse.Namespace) -> None:
    """Tell where two runs diverged. Exits with status 1 if they do."""
    folders = (arguments.run_a, arguments.run_b)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: {'is a file' if folder.exists() else 'there is no such folder'}")
        if not any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints")):
            raise UsageError(f"{folder}: is no run folder: it has no config.json, metrics.jsonl or checkpoints")
    configs = [_read_config(folder) for folder in folders]
    options = [found for found in _differences(*configs) if found[0] not in _WHERE_ONLY]
    if options:
        shown = [list(map(printable, row)) for row in options[:_MOST_OPTIONS]]
        more = [[f"and {len(options) - len(shown)} more", "", ""]] if len(options) > len(shown) else []
        console.show_table(make_table(["", "A", "B"], [*shown, *more]))
    rows = [_read_rows(folder) for folder in folders]
    samples = functools.partial(_samples, configs[0], folders[0])
    found = [_compare_rows(rows[0], rows[1], samples), _compare_checkpoints(*folders)]
    for comparison in found:
        print(harmless(comparison.text))
    has_diverged = any(comparison.differs for comparison in found)
    if has_diverged and not options:
        print("config.json of both is equal: the code, the data or what it read differ, or something is not seeded")
    if has_diverged:
        sys.exit(1)
    if not any(comparison.number for comparison in found):
        print(
            "nothing could be compared: the runs have no metrics of the same steps, and no checkpoints of the same step"
        )
        sys.exit(2)
    print("the runs are equal bit for bit in all that both have")


class _Comparison(NamedTuple):
    """What is to say about rows or checkpoints, whether they differ, and how many were compared."""

    text: str
    differs: bool
    number: int


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the values of config.json by dotted name; none without the file."""
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
    """Return the rows of a training. Lines that are none, and those of calls of `validate` and `test`, are left out."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and row.get("kind", "end") == "end":
            rows.append({name: value for name, value in row.items() if not is_measured(name) and name not in DIGESTS})
    return rows


def _compare_rows(a: Sequence[Row], b: Sequence[Row], samples: Callable[..., str]) -> _Comparison:
    """Compare the rows of two runs at the steps that both have.

    A value of a training is the mean since the row before, so it is compared only where that is of the same step too.

    Args:
        a, b: the rows.
        samples: returns which samples of A the steps after one up to another have read, given A's rows; see `_samples`.
    """
    if not a or not b:
        return _Comparison(
            f"metrics.jsonl: {'neither run has' if not a and not b else 'only one run has'} rows", False, 0
        )
    by_step = [_by_step(rows) for rows in (a, b)]
    common = sorted(by_step[0].keys() & by_step[1].keys())
    equal_until, compared = 0, list[int]()
    for step in common:
        starts = [_start_of_row(rows, step) for rows in by_step]
        rows = [rows[step] for rows in by_step]
        if starts[0] != starts[1]:
            rows = [{name: value for name, value in row.items() if _is_of_step(name)} for row in rows]
        found = next(_differences(*rows), None)
        if found is not None:
            text = f"metrics.jsonl: equal up to step {equal_until}; at step {step} {_describe_values(*found)}"
            if step > equal_until and (shown := samples(a, equal_until, step)):
                text += f"\n  {shown}"
            return _Comparison(text, True, len(compared) + 1)
        if starts[0] == starts[1] or any(name.startswith("valid/") for name in rows[0]):
            compared.append(step)
            equal_until = step
    if not compared:
        return _Comparison("metrics.jsonl: the runs have no values of the same steps", False, 0)
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
    return _Comparison(f"metrics.jsonl: {text}", False, len(compared))


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
    skipped = {step: _read(path)["state"].get("skipped_steps", 0) for step, path in _checkpoints(folder).items()}
    if any(step >= end and number == 0 for step, number in skipped.items()):
        return True
    return not must_be_seen and not any(skipped.values())


# The checkpoints.


def _compare_checkpoints(a: Path, b: Path) -> _Comparison:
    """Compare the checkpoints that two runs have at the same steps."""
    files_a, files_b = _checkpoints(a), _checkpoints(b)
    common = sorted(files_a.keys() & files_b.keys())
    for i, step in enumerate(common):
        found = next(_content_differences(_read(files_a[step]), _read(files_b[step])), None)
        if found is not None:
            before = "" if i == 0 else f"equal at step {common[i - 1]}; "
            name, description = found
            return _Comparison(f"checkpoints: {before}at step {step} {printable(name)} {description}", True, i + 1)
    if not common:
        return _Comparison("checkpoints: the runs have none at the same step", False, 0)
    return _Comparison(f"checkpoints: equal at step {', '.join(map(str, common))}", False, len(common))


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


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_checkpoint(path)
    except (files.CheckpointError, OSError) as error:
        raise UsageError(str(error)) from error


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
