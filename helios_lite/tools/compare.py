"""The command `compare`: trains two programs with the same seeds, and tells which is better, or that nothing tells."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import torch

from helios_lite.changes.run_description import read_starts
from helios_lite.checkpoints.files import write_json
from helios_lite.config import ConfigError, split_function
from helios_lite.display import console
from helios_lite.display.console import format_number
from helios_lite.processes.forkserver import fresh_process
from helios_lite.processes.output import harmless
from helios_lite.tools.audit.trial import Source
from helios_lite.tools.paired import Paired, paired
from helios_lite.tools.run_files import CONFIG_FILE, RunFiles, differing
from helios_lite.tools.usage import UsageError, require_file

_SIDES = ("a", "b")
_MOST_SEEDS = 40  # The exact test counts up to 2^40 choices of signs.
_FILE = "compare.json"
_OF_A_RUN = ("trainer.seed", "environment.")
"""Values of config.json that may differ between the trainings of one program."""


class NotCompared(Exception):
    """A training has failed, or its result cannot be compared. The message says which, and why."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """How the monitored metric of two programs differs.

    Attributes:
        metric: its name.
        is_higher_better: whether it is to rise.
        seeds: the best value of each program for each seed.
        paired: what the differences, B - A, tell.
    """

    metric: str
    is_higher_better: bool
    seeds: dict[int, tuple[float, float]]
    paired: Paired

    @property
    def verdict(self) -> str:
        """Return whether B is "better" than A, "worse", or "not told apart" from it."""
        if not self.paired.is_told:
            return "not told apart"
        return "better" if (self.paired.mean > 0) == self.is_higher_better else "worse"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return {
            "metric": self.metric,
            "mode": "max" if self.is_higher_better else "min",
            "seeds": [{"seed": seed, "a": a, "b": b, "difference": b - a} for seed, (a, b) in self.seeds.items()],
            "mean": self.paired.mean,
            "interval": [self.paired.low, self.paired.high],
            "p_value": self.paired.p_value,
            "verdict": self.verdict,
            "seeds_needed": self.paired.needed,
        }

    def __str__(self) -> str:
        """Return what was found in lines."""
        found, name = self.paired, self.metric
        mean, low, high = (f"{value:+.4g}" for value in (found.mean, found.low, found.high))
        test = f"exact sign-flip test: p = {found.p_value:.2g}"
        lines = [f"{name}, B - A: mean {mean}, 95 % interval {low} to {high}; {test}"]
        if self.verdict != "not told apart":
            return "\n".join([*lines, f"B is {self.verdict} than A"])
        needed = "no number of seeds would tell them" if found.needed is None else f"about {found.needed} seeds would"
        return "\n".join([*lines, f"not told apart by {len(self.seeds)} seeds; if the mean stays, {needed}"])


def compare(arguments: argparse.Namespace) -> None:
    """Compare two programs. Exits with status 1 if B is worse, and 2 if a training fails or gives no result."""
    if not 2 <= arguments.seeds <= _MOST_SEEDS:
        raise UsageError(f"--seeds {arguments.seeds}: must be 2 to {_MOST_SEEDS}")
    if arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs}: must be 1 or more")
    for name in ("seed", "root", "run_name", "resume"):
        if f"trainer.{name}" in arguments.overrides:
            raise UsageError(f"--trainer.{name}: compare chooses it itself; see --seeds and --folder")
    files = (arguments.file_a, arguments.file_b)
    names = [_name(file) for file in files]
    folder = arguments.folder or Path("runs") / f"{names[0]}-or-{names[1]}"
    try:
        _claim(folder, files, arguments.overrides)
        sources = [Source(file, arguments.overrides) for file in files]
        found = compared(sources[0], sources[1], folder, arguments.seeds, arguments.jobs)
    except NotCompared as error:
        print(harmless(str(error)), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on with what is in {folder}") from None
    if arguments.json:
        print(json.dumps({"a": str(files[0]), "b": str(files[1]), "folder": str(folder), **found.as_dict()}, indent=2))
    else:
        _show(found, files)
    if found.verdict == "worse":
        sys.exit(1)


def compared(a: Source, b: Source, folder: Path, seeds: int, jobs: int = 1) -> Compared:
    """Train two programs with the seeds 0, 1, ..., and return how their monitored metrics differ.

    The runs are in `folder`, as a/seed-0, b/seed-0, ... Those that have finished are not trained again, others go on.

    Args:
        a, b: the programs.
        folder: where their runs are.
        seeds: the number of seeds, 2 to 40.
        jobs: how many trainings run at once, each in a process of its own.

    Raises:
        NotCompared: a training has failed, or its result cannot be compared with the others.
    """
    sources = dict(zip(_SIDES, (a, b), strict=True))
    names = [(side, seed) for seed in range(seeds) for side in _SIDES]
    _read_runs(sources, folder, names)  # What is there must be of these programs before hours go into more of it.
    _train_all(sources, folder, names, jobs)
    runs = _read_runs(sources, folder, names)
    for name in names:
        if name not in runs:
            raise NotCompared(f"{_run_folder(folder, *name)}: has no {CONFIG_FILE}; remove it, to train it again")
    kinds = {(run.monitor, run.is_higher_better) for run in runs.values()}
    if len(kinds) > 1:
        raise NotCompared("trainer.monitor: A and B do not monitor the same metric in the same mode")
    scores = {name: _score(run) for name, run in runs.items()}
    values = {seed: (scores["a", seed], scores["b", seed]) for seed in range(seeds)}
    # Metrics are often computed in float32: two differences that are equal there are equal.
    rounding = 2.0**-23 * max(abs(score) for score in scores.values())
    (metric, is_higher_better) = kinds.pop()
    return Compared(metric, is_higher_better, values, paired([b - a for a, b in values.values()], rounding))


def _name(file: Path) -> str:
    path, function = split_function(file)
    return f"{path.stem}-{function}" if function not in ("", "make") else path.stem


def _show(found: Compared, files: tuple[Path, Path]) -> None:
    rows = [[f"{seed}", *map(format_number, (a, b, b - a))] for seed, (a, b) in found.seeds.items()]
    console.show_table(console.make_table([">seed", f">A {files[0]}", f">B {files[1]}", ">B - A"], rows))
    print(harmless(str(found)))


# The trainings.


def _claim(folder: Path, files: tuple[Path, Path], overrides: Mapping[str, Any]) -> None:
    """Write which programs a folder is of, or require that it is of these."""
    content = {side: _content(file, overrides) for side, file in zip(_SIDES, files, strict=True)}
    path = folder / _FILE
    if path.exists():
        try:
            if json.loads(path.read_bytes()) == content:
                return
        except (OSError, ValueError, RecursionError):
            pass
        raise UsageError(f"{path}: the runs there are of other files or values; choose another --folder, or remove it")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: has files, and no {_FILE}; choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(content, path)


def _content(file: Path, overrides: Mapping[str, Any]) -> Any:
    """Return what a program is of as plain values; the code itself is compared by the digests of its files."""
    path, function = split_function(file)
    require_file(path)
    try:
        tables = {} if function else tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    content = {"file": str(file), "tables": tables, "values": dict(overrides)}
    return json.loads(json.dumps(content, default=str))  # Dates, which TOML has and JSON has not, as texts.


def _run_folder(folder: Path, side: str, seed: int) -> Path:
    return folder / side / f"seed-{seed}"


def _has_finished(run: Path) -> bool:
    status = RunFiles.read(run).status
    return status.get("state") == "finished" and status.get("exit_status") == 0


def _train_all(sources: Mapping[str, Source], folder: Path, names: list[tuple[str, int]], jobs: int) -> None:
    """Train what has not finished. Each training is a process; nothing of one is left to another.

    After a failure no other is started. However this ends, the processes save and end before it returns.
    """
    waiting = [name for name in names if not _has_finished(_run_folder(folder, *name))]
    running: dict[Any, tuple[BaseProcess, str, int]] = {}
    failed: list[str] = []
    number, total = len(names) - len(waiting), len(names)
    with _ended_by_sigterm():
        try:
            while running or (waiting and not failed):
                while waiting and len(running) < jobs and not failed:
                    side, seed = waiting.pop(0)
                    child = _started(sources[side], folder, side, seed, jobs)
                    running[child.sentinel] = (child, side, seed)
                for sentinel in multiprocessing.connection.wait([*running]):
                    child, side, seed = running.pop(sentinel)
                    child.join()
                    run = _run_folder(folder, side, seed)
                    if not _has_finished(run):
                        failed.append(f"seed {seed} of {side.upper()} has failed: {_last_line(run, child)}")
                        continue
                    number += 1
                    found = RunFiles.read(run)
                    text = f"{found.monitor}={format_number(found.best_score)}"
                    print(harmless(f"{number} of {total}: seed {seed} of {side.upper()}: {text}"), file=sys.stderr)
        finally:
            for child, _, _ in running.values():
                child.terminate()
            for child, _, _ in running.values():
                child.join()
    if failed:
        raise NotCompared("\n".join(failed))


def _started(source: Source, folder: Path, side: str, seed: int, jobs: int) -> BaseProcess:
    options = {
        "root": str(folder / side),
        "run_name": f"seed-{seed}",
        "seed": seed,
        "resume": "auto",
        "progress": False,
    }
    (folder / side).mkdir(parents=True, exist_ok=True)
    # A started process would start its own (those of loaders) in the way in which it was started.
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    output = _run_folder(folder, side, seed).with_suffix(".txt")
    child = fresh_process(_train, source, options, output, max(1, torch.get_num_threads() // jobs), method, name="seed")
    child.start()
    return child


def _train(source: Source, options: Mapping[str, Any], output: Path, threads: int, start_method: str) -> None:
    """Train a program in this process, which prints to a file."""
    os.setsid()  # A Ctrl-C in the terminal is for the command, which ends this process.
    opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(threads)
    trainer, model, data = source.make()
    if trainer.monitor is None:
        raise ValueError("trainer.monitor: name the metric to compare")
    dataclasses.replace(trainer, **options).fit(model, data)


def _end_with_parent() -> None:
    """Stop this training, with a checkpoint, when the command that has started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Context in the main thread that SIGTERM leaves with an exception, so that what was started is ended."""

    def end(*_: object) -> NoReturn:
        sys.exit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(run: Path, child: BaseProcess) -> str:
    """Return the last line that a training has printed, and where the others are."""
    path = run.with_suffix(".txt")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), f"it ended with status {child.exitcode}")
    return f"{last}\n  all that it has printed is in {path}"


# What may be compared.


def _read_runs(
    sources: Mapping[str, Source], folder: Path, names: list[tuple[str, int]]
) -> dict[tuple[str, int], RunFiles]:
    """Return the runs that have begun, by side and seed.

    Raises:
        NotCompared: those of a side are not all of one program, or it has changed since.
    """
    found = {name: RunFiles.read(run) for name in names if (run := _run_folder(folder, *name)).is_dir()}
    runs = {name: run for name, run in found.items() if run.config or run.error is not None}
    for side, source in sources.items():
        _require_one_program({seed: run for (each, seed), run in runs.items() if each == side}, side, source)
    return runs


def _require_one_program(runs: Mapping[int, RunFiles], side: str, source: Source) -> None:
    """Raise `NotCompared` if the runs of a side are not all of one program, or it has changed since."""
    for run in runs.values():
        if run.error is not None:
            raise NotCompared(run.error)
    names = [name for name in differing([run.config for run in runs.values()]) if not name.startswith(_OF_A_RUN)]
    if names:
        raise NotCompared(f"{side.upper()}: {', '.join(names)}: differs between its seeds; remove those runs")
    if not isinstance(source.origin, Path):
        return
    place = split_function(source.origin)[0].resolve().parent
    for seed, run in runs.items():
        for start in read_starts(run.folder / CONFIG_FILE):
            digests = start.get("sources")
            for name, digest in digests.items() if isinstance(digests, dict) else ():
                path = place / str(name)
                if path.is_file() and blake2b(path.read_bytes(), digest_size=8).hexdigest() != digest:
                    text = f"{path}: has changed since seed {seed} of {side.upper()} was trained"
                    raise NotCompared(f"{text}; choose another --folder, or remove {run.folder}")


def _score(run: RunFiles) -> float:
    if run.best_score is None:
        raise NotCompared(f"{run.folder}: has no best value of a monitored metric that is finite")
    return run.best_score
