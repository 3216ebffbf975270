"""The command `helios-lite`, also `python -m helios_lite`: runs from TOML files, and a look at what they wrote."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import platform
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from helios_lite import checkpoint, console
from helios_lite.config import ConfigError, load
from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.options import Options
from helios_lite.trainer import Trainer
from helios_lite.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

_OVERRIDES = """
Any value of the file can be replaced or completed: --trainer.max_epochs 3, --model.width=16,
--trainer.callbacks.0.decay 0.9. Values are written as in TOML; what is no TOML value is taken for a string, so only
strings that read as something else need quotes of their own: --trainer.run_name '"7"'.
Where an option may be None, none stands for it. The form of the file: python -m pydoc helios_lite.config
"""
_MOST_CURVES = 24


class UseError(Exception):
    """The command was used wrongly; the message is one line for its user."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Errors of use end with one line on stderr and status 2; those of a training are not caught."""
    rest, overrides = [], {}
    words = iter(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    try:
        for word in words:
            name, equals, value = word.partition("=")
            # By hand, since argparse must know an option to tell its value from an argument.
            if name.startswith("--") and "." in name:
                overrides[name[2:]] = _toml_value(value if equals else _next(words, name))
            else:
                rest.append(word)
        chosen = parser.parse_args(rest)
        if overrides and chosen.command not in (fit, test):
            raise UseError(f"--{next(iter(overrides))}: only fit and test take values of a configuration")
        chosen.overrides = overrides
        chosen.command(chosen)
    except (UseError, ConfigError) as error:
        parser.error(str(error))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="helios-lite", description="Train models from TOML files, and look at what runs have written."
    )
    parser.add_argument("--version", action="version", version=f"helios_lite {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Any, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(
            function.__name__, help=text, description=f"{function.__doc__}", epilog=epilog, formatter_class=form
        )
        command.set_defaults(command=function)
        return command

    for function, text in ((fit, "train"), (test, "test a checkpoint")):
        command = add(function, f"{text}, as a TOML file describes it", _OVERRIDES)
        command.usage = f"%(prog)s [-h]{' [--checkpoint CHECKPOINT]' * (function is test)} FILE [--table.key VALUE ...]"
        command.add_argument("file", metavar="FILE", type=Path, help="the TOML file")
    command.add_argument("--checkpoint", default="best", help='"best" (default), "last" or a path')

    command = add(inspect, "show what a checkpoint holds")
    command.add_argument("file", metavar="CHECKPOINT", type=Path, help="the file")

    command = add(plot, "draw curves of runs")
    command.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run's folder, with its metrics.jsonl")
    command.add_argument("--metric", metavar="NAME", nargs="+", action="extend", help="full names; default: all")
    command.add_argument("--output", metavar="FILE", type=Path, default="curves.png", help="default: %(default)s")

    add(env, "print what a bug report needs")
    return parser


def _next(words: Iterator[str], name: str) -> str:
    try:
        return next(words)
    except StopIteration:
        raise UseError(f"{name}: needs a value") from None


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


# The commands; each docstring is what --help shows.


def fit(arguments: argparse.Namespace) -> None:
    """Train what a TOML file describes, or go on with a training of it that was stopped."""
    trainer, model, data = _loaded(arguments)
    trainer.fit(model, data)


def test(arguments: argparse.Namespace) -> None:
    """Test what a TOML file describes with a checkpoint of its run, and print the metrics."""
    trainer, model, data = _loaded(arguments)
    if arguments.checkpoint not in ("best", "last"):
        _require_file(Path(arguments.checkpoint))
    elif not trainer.fast_dev_run and type(model).load_for_testing is Model.load_for_testing:
        # The trainer would go on with untrained weights.
        folder = None if trainer.root is None else Path(trainer.root) / (trainer.run_name or model.save_name)
        if folder is None or not checkpoint.find(folder / "checkpoints", model.save_name):
            where = "a run without files" if folder is None else folder
            raise UseError(f"{where} has no checkpoint; train first, or name one with --checkpoint PATH")
    try:
        metrics = trainer.test(model, data, checkpoint=arguments.checkpoint)
    except checkpoint.CheckpointError as error:
        raise UseError(str(error)) from error
    if not trainer.print_banner and model.global_rank == 0:
        console.show_metrics("test", metrics)


def inspect(arguments: argparse.Namespace) -> None:
    """Show what a checkpoint holds. Its checksums are verified, and no code in it is run (no unpickling)."""
    path = arguments.file
    content = _read(path)
    state, metrics, config = content["state"], content["metrics"], content["config"]
    print(path)
    best = "" if state["best_step"] is None else f"step {state['best_step']}"
    if state["best_score"] is not None:
        best += f" ({_number(state['best_score'])})"
    facts = {
        "model": content["save_name"],
        "epochs / steps": f"{state['epoch']} / {state['step']}",
        "training time": f"{state['seconds']:.1f} s",
        "best": best,
        "written by": f"helios_lite {content['version']} (format {content['format']})",
        "file size": f"{path.stat().st_size / 1e6:.2f} MB",
    }
    console.show_table(_table(["checkpoint", ""], [[name, text] for name, text in facts.items() if text]))

    rows = []
    for name, value in metrics["latest"].items():
        at_best = metrics["best"].get(name) if name.startswith("valid/") else None
        rows.append([name, _number(value), _number(at_best)])
    if rows:
        console.show_table(_table(["metric", ">last", ">best"], rows))

    rows = [[name, *_sizes(_tensors(part))] for name, part in _parts(content)]
    total = ["total", *_sizes(_tensors(content))]
    console.show_table(_table(["part", ">tensors", ">elements", ">MB"], rows, total))

    rows, everything = [], []
    for name, part in content["model"].items():
        if _is_network(part):
            everything += part.values()
            rows.append([name, *_sizes(part.values())[:2]])
            for child in dict.fromkeys(key.partition(".")[0] for key in part):
                inside = [tensor for key, tensor in part.items() if key.partition(".")[0] == child]
                rows.append([f"  {name}.{child}", *_sizes(inside)[:2]])
    if rows:
        heads = ["network", ">tensors", ">parameters and buffers"]
        console.show_table(_table(heads, rows, ["total", *_sizes(everything)[:2]]))

    if content["hparams"]:
        rows = [[str(name), repr(value)] for name, value in content["hparams"].items()]
        console.show_table(_table(["hparams", ""], rows))
    defaults = {**Options(fast_dev_run=True).config(), "fast_dev_run": False}
    rows = [[name, repr(value)] for name, value in config.items() if value != defaults.get(name)]
    if rows:
        console.show_table(_table(["trainer", "(what differs from the defaults)"], rows))


def plot(arguments: argparse.Namespace) -> None:
    """Draw curves of one or more runs over their steps, a plot for each metric, into a .png or .svg file."""
    output: Path = arguments.output
    if output.suffix not in (".png", ".svg"):
        raise UseError(f"--output {output}: must end with .png or .svg")
    if not output.parent.is_dir():
        raise UseError(f"--output {output}: there is no folder {output.parent}")
    curves = {run: _curves(run) for run in arguments.runs}
    known = list(dict.fromkeys(name for of_run in curves.values() for name in of_run))
    for name in arguments.metric or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
            raise UseError(f"--metric {name}: unknown; {hint}")
    names = list(dict.fromkeys(arguments.metric or known))
    if not names:
        raise UseError("there are no metrics yet")
    if not arguments.metric and len(names) > _MOST_CURVES:
        raise UseError(f"there are {len(names)} metrics: choose some with --metric, such as {names[0]}")
    try:
        # A figure by itself: it is drawn by Agg (or as svg), whatever display and backend there are.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UseError(f"plot needs {error.name}: pip install 'helios_lite[plot]'") from error

    folders = [run.resolve().name for run in curves]
    labels = {run: run.resolve().name if folders.count(run.resolve().name) == 1 else str(run) for run in curves}
    columns = min(len(names), 2 if len(names) <= 4 else 3)
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.6 * lines + 0.5), dpi=110, layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, i + 1)
        for number, (run, of_run) in enumerate(curves.items()):
            points = of_run.get(name, [])
            style = "o-" if len(points) <= 50 else "-"
            x, y = [step for step, _ in points], [value for _, value in points]
            axes.plot(x, y, style, color=f"C{number}", label=labels[run], markersize=3, linewidth=1.4)
        axes.set_title(name, fontsize=12)
        axes.set_xlabel("step", fontsize=11)
        axes.tick_params(labelsize=10)
        axes.grid(alpha=0.3)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=min(len(texts), 2 * columns), fontsize=11)
    figure.savefig(output)
    print(output)


def env(arguments: argparse.Namespace) -> None:
    """Print what a bug report needs: versions, the machine, what PyTorch can use of it."""
    facts = {"helios_lite": __version__, "python": f"{platform.python_version()} ({platform.python_implementation()})"}
    facts["torch"] = torch.__version__
    for package in ("tqdm", "rich", "numpy"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["system"] = platform.platform()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["CPUs"] = f"{os.cpu_count()} ({usable} usable)"
    facts["threads"] = f"{torch.get_num_threads()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts["GPUs"] = ", ".join(gpus) if gpus else "MPS" if torch.backends.mps.is_available() else "none"
    if torch.version.cuda is not None:
        facts["CUDA"] = str(torch.version.cuda)
    backends = ("gloo", "nccl", "mpi") if torch.distributed.is_available() else ()
    facts["distributed"] = ", ".join(filter(torch.distributed.is_backend_available, backends)) or "none"
    for name, value in facts.items():
        print(f"{name + ':':<13}{value}")


def _loaded(arguments: argparse.Namespace) -> tuple[Trainer, Model, DataModule]:
    _require_file(arguments.file)
    return load(arguments.file, arguments.overrides)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UseError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint."""
    _require_file(path)
    try:
        content = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        raise UseError(str(error)) from error
    needed = {"version", "save_name", "state", "model", "metrics", "config", "hparams"}
    if not needed <= content.keys():
        raise UseError(f"{path}: it is no helios_lite checkpoint")
    return content


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a checkpoint holds of tensors, by name; the model's parts and the callbacks one by one."""
    for name, part in content.items():
        inner = part.items() if name in ("model", "callbacks") else [("", part)]
        for key, value in inner:
            if next(_tensors(value), None) is not None:
                yield f"{name}.{key}".rstrip("."), value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in containers of any nesting."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _is_network(part: Any) -> bool:
    """Say whether this is the state of a module: tensors by name and nothing else."""
    return isinstance(part, Mapping) and len(part) > 0 and all(isinstance(item, torch.Tensor) for item in part.values())


def _sizes(tensors: Any) -> list[str]:
    """Return number, elements and megabytes of tensors; those that share their memory count once."""
    distinct = {(tensor.data_ptr() or id(tensor), tensor.shape): tensor for tensor in tensors}.values()
    elements = sum(tensor.numel() for tensor in distinct)
    return [f"{len(distinct):,}", f"{elements:,}", f"{sum(tensor.nbytes for tensor in distinct) / 1e6:.2f}"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] | None = None) -> Table:
    """Return a rich table; heads that begin with > are of columns of numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head.removeprefix(">"), justify="right" if head.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if total is not None:
        table.add_section()
        table.add_row(*total)
    return table


def _curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the points of every metric that a run has written: step and value, NaN where it was not finite."""
    path = run / "metrics.jsonl"
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for line in lines:
            if not line.endswith("\n"):  # A killed run was writing it.
                continue
            row = json.loads(line)
            for name, value in row.items():
                if name not in ("step", "epoch", "seconds"):
                    curves.setdefault(name, []).append((row["step"], math.nan if value is None else value))
    except OSError as error:
        raise UseError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise UseError(f"{path}: it is no file of metrics ({error})") from error
    return curves


if __name__ == "__main__":
    main()
