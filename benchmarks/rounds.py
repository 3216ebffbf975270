"""What every benchmark shares: interleaved rounds in fresh processes, paired figures, tables and files of them."""

import compileall
import dataclasses
import datetime
import hashlib
import importlib
import json
import os
import platform
import pty
import signal
import statistics
import subprocess
import sys
import termios
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent

Result = dict[str, Any]
Runs = dict[str, list[Result]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of a table: a value per round, of which the median counts.

    `target` is the largest median that meets it; None if none was set, and the line is there for comparison.
    """

    what: str
    unit: str
    values: list[float]
    target: float | None = None

    def row(self) -> list[str]:
        low, median, high = (f"{f(self.values):.{2 if abs(f(self.values)) < 100 else 0}f}" for f in _SUMMARY)
        target = "" if self.target is None else f"<= {self.target:g}"
        met = "" if self.target is None else "yes" if statistics.median(self.values) <= self.target else "no"
        return [self.what, self.unit, target, median, f"{low} .. {high}", met]


_SUMMARY = (min, statistics.median, max)
_COLUMNS = ("", "unit", "target", "median", "min .. max", "met")


@dataclasses.dataclass(frozen=True)
class Question:
    """One benchmark.

    Attributes:
        name: of its module, and of its json.
        title: the question.
        timed: what exactly is measured.
        remains: what the remaining cost is.
        rounds: how often each variant runs.
        variants: what runs in a process of its own, by name; returns numbers, and "weights" to be compared with those
            of every other variant (of the same "case", if there are several).
        figures: makes the lines of the table from the results of each variant, one per round.
        tolerance: largest difference of the weights at which variants end; 0 compares them bit by bit.
        timeout: seconds that one variant may take.
    """

    name: str
    title: str
    timed: str
    remains: str
    rounds: int
    variants: dict[str, Callable[[], Result]]
    figures: Callable[[Runs], list[Figure]]
    tolerance: float = 0.0
    timeout: float = 180

    def answer(self) -> list[Figure]:
        """Run all rounds (A B A B ...), check the weights, print the table, write the json.

        The package has its bytecode before, as pip compiles it when a user installs it.
        """
        file = self._file()
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        compileall.compile_dir(FOLDER.parent / "helios_lite", quiet=2)
        runs: Runs = {variant: [] for variant in self.variants}
        for i in range(self.rounds):
            for variant in self.variants:
                print(f"\r{self.name}: round {i + 1} of {self.rounds}, {variant:<20}", end="", file=sys.stderr)
                runs[variant].append(_in_fresh_process(self.name, variant, self.timeout))
        print(f"\r{'':<60}\r", end="", file=sys.stderr)
        self._require_same_weights(runs)
        figures = self.figures(runs)
        table = Table(*_COLUMNS, title=self.title, title_justify="left")
        for figure in figures:
            table.add_row(*figure.row())
        Console().print(table)
        content = {"machine": machine(), "figures": [dataclasses.asdict(figure) for figure in figures], "runs": runs}
        file.write_text(json.dumps(content, indent=1) + "\n")
        return figures

    def section(self, figures: list[Figure] | Exception) -> str:
        """Return what RESULTS.md says of it."""
        if isinstance(figures, Exception):
            reason = str(figures).strip().splitlines()[-1]
            return f"## {self.title}\n\n{_filled(self.timed)}\n\nNot measured: `{reason}`\n"
        rows = [_COLUMNS, ["---"] * len(_COLUMNS), *(figure.row() for figure in figures)]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        place = f"Measured on {json.loads(self._file().read_text())['machine']}."
        return f"## {self.title}\n\n{_filled(self.timed)}\n\n{lines}\n\n{place}\n\n{_filled(self.remains)}\n"

    def _file(self) -> Path:
        return FOLDER / "results" / f"{self.name}.json"

    def _require_same_weights(self, runs: Runs) -> None:
        first: dict[Any, tuple[str, Any]] = {}
        for variant, results in runs.items():
            for run in results:
                if "weights" not in run:
                    continue
                other, expected = first.setdefault(run.get("case"), (variant, run["weights"]))
                same = run["weights"]["digest"] == expected["digest"]
                if not same and self.tolerance > 0:
                    pairs = zip(run["weights"]["sample"], expected["sample"], strict=True)
                    same = all(abs(a - b) <= self.tolerance for a, b in pairs)
                if not same:
                    raise RuntimeError(f"{self.name}: {variant} and {other} end with different weights")


def weights(*tensors: torch.Tensor) -> dict[str, Any]:
    """Return what the end of a variant is compared by: a digest of all values, and the first few for a tolerance."""
    digest = hashlib.blake2b()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy())
    sample = torch.cat([tensor.detach().flatten()[:100] for tensor in tensors])
    return {"digest": digest.hexdigest(), "sample": sample.tolist()}


def differences(runs: Runs, a: str, b: str, key: str, scale: float = 1.0) -> list[float]:
    """Return a - b of every round."""
    return [(x[key] - y[key]) * scale for x, y in zip(runs[a], runs[b], strict=True)]


def ratios(runs: Runs, a: str, b: str, key: str) -> list[float]:
    """Return a / b of every round."""
    return [x[key] / y[key] for x, y in zip(runs[a], runs[b], strict=True)]


def each(runs: Runs, a: str, key: str, scale: float = 1.0) -> list[float]:
    """Return a of every round."""
    return [x[key] * scale for x in runs[a]]


def machine() -> str:
    """Return one line on where and when this runs."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    cpu = models[0].split(":", 1)[1].strip() if models else platform.machine()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{cpu}, {os.cpu_count()} cores, {versions}, {datetime.date.today()}"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _in_fresh_process(name: str, variant: str, timeout: float) -> Result:
    """Run one variant; its stderr is a terminal, so that progress bars are drawn."""
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 100))
    said: list[bytes] = []
    listener = threading.Thread(target=_listen, args=(terminal, said), daemon=True)
    listener.start()
    command = [sys.executable, "-m", "benchmarks.rounds", name, variant]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, cwd=FOLDER.parent, start_new_session=True
    )
    os.close(stderr)
    output, late = b"", ""
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # It may have started others.
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        late = f"it took more than {timeout} s"
    listener.join(timeout=5)
    if process.returncode != 0:
        raise RuntimeError(f"{name} {variant} failed:\n{b''.join(said).decode(errors='replace')}{late}")
    result: Result = json.loads(output.splitlines()[-1])
    return result


def _listen(terminal: int, said: list[bytes]) -> None:
    while True:
        try:
            said.append(os.read(terminal, 65536))
        except OSError:  # Nobody has the other end open any more.
            os.close(terminal)
            return


if __name__ == "__main__":
    module = importlib.import_module(f"benchmarks.{sys.argv[1]}")
    print(json.dumps(module.QUESTION.variants[sys.argv[2]]()))
