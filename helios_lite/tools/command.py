"""The command `helios-lite`: its arguments, and `main`, which runs what they ask for."""

from __future__ import annotations

import argparse
import os
import select
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import metadata
from inspect import getdoc
from pathlib import Path
from typing import Any, NoReturn

from helios_lite.config import ConfigError
from helios_lite.tools.checkpoints import consolidate, inspect
from helios_lite.tools.diff import diff
from helios_lite.tools.plot import plot
from helios_lite.tools.runs import audit, fit, plan, predict, replay, test
from helios_lite.tools.usage import UsageError
from helios_lite.version import __version__

_OVERRIDES = """
Options of the form --table.key replace a value of the file, or add one: --trainer.max_epochs 3, --model.width=16,
--trainer.callbacks.0.decay 0.9. Values are written as in TOML. A value that is not valid TOML is used as a string, so
a string needs quotes of its own only if it could be read as something else: --trainer.run_name '"7"'.
For an option that may be None, write none. The format of the file: python -m pydoc helios_lite.config
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the program.

    Wrong usage prints one line to stderr and exits with status 2. Errors of a training are raised as they are. If
    nobody reads the output any more, as after `| head`, the command ends with status 1.
    """
    try:
        try:
            _run(arguments)
        finally:
            sys.stdout.flush()  # Here and not when Python ends, which would print an error of its own.
    except BrokenPipeError:
        if not _is_output_closed():
            raise  # Another pipe, such as one of the training.
        sys.exit(1)


def _run(arguments: Sequence[str] | None) -> None:
    parser = _parser()
    try:
        rest, overrides = _split_overrides(sys.argv[1:] if arguments is None else arguments)
        parsed = parser.parse_args(rest)
        if overrides and parsed.command not in (fit, plan, test, predict, replay, audit):
            names = "fit, plan, test, predict, replay and audit"
            raise UsageError(f"--{next(iter(overrides))}: only {names} take values of a configuration")
        vars(parsed).update(overrides=overrides)
        parsed.command(parsed)
    except (UsageError, ConfigError) as error:
        parser.error(str(error))


def _is_output_closed() -> bool:
    """Return whether nobody reads stdout any more; what is still to be written to it is dropped then."""
    try:
        number = sys.stdout.fileno()
    except OSError:  # It is no file of the system, as in a notebook.
        return False
    output = select.poll()
    output.register(number, 0)
    is_closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return is_closed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="helios-lite", description="Train models from TOML files, and show what runs have written.")
    parser.add_argument("--version", action="version", version=f"helios_lite {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Callable[..., None], text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(
            function.__name__,
            help=text,
            description=getdoc(function),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        return command

    _add_commands_of_files(add)

    command = add(inspect, "show what a checkpoint holds")
    command.add_argument("file", metavar="CHECKPOINT", type=Path, help="a file, a folder, or a run folder (its best)")

    command = add(consolidate, "make one file of a sharded checkpoint")
    command.add_argument("folder", metavar="FOLDER", type=Path, help="that of the checkpoint, or a run folder")
    command.add_argument("file", metavar="FILE", type=Path, nargs="?", help="default: the folder's name and .pth")

    command = add(diff, "tell where two runs parted")
    command.add_argument("run_a", metavar="RUN_A", type=Path, help="a run folder")
    command.add_argument("run_b", metavar="RUN_B", type=Path, help="another one")

    command = add(plot, "draw the curves of runs")
    command.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run folder, or a folder of them")
    command.add_argument("--metric", metavar="NAME", nargs="+", action="extend", help="full names; default: all")
    command.add_argument("--output", metavar="FILE", type=Path, default="curves.png", help="default: %(default)s")

    add(env, "print what a bug report needs")
    return parser


def _add_commands_of_files(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that run what a TOML file describes."""
    checkpoint_help = '"best" (default), "last", or the path of a checkpoint or a run folder'
    command = add(fit, "train the model of a TOML file", _OVERRIDES)
    command.usage = "%(prog)s [-h] FILE [--table.key VALUE ...]"
    command.add_argument("file", metavar="FILE", type=Path, help="the TOML file")

    command = add(plan, "show what fit would do, without training", _OVERRIDES)
    command.usage = "%(prog)s [-h] FILE [--table.key VALUE ...]"
    command.add_argument("file", metavar="FILE", type=Path, help="the TOML file")

    command = add(test, "test a checkpoint of the model of a TOML file", _OVERRIDES)
    command.usage = "%(prog)s [-h] [--checkpoint CHECKPOINT] FILE [--table.key VALUE ...]"
    command.add_argument("file", metavar="FILE", type=Path, help="the TOML file")
    command.add_argument("--checkpoint", default="best", help=checkpoint_help)

    command = add(predict, "write the outputs of the model of a TOML file to a file", _OVERRIDES)
    command.usage = "%(prog)s [-h] [--checkpoint CHECKPOINT] [--output OUTPUT] FILE [--table.key VALUE ...]"
    command.add_argument("file", metavar="FILE", type=Path, help="the TOML file")
    command.add_argument("--checkpoint", default="best", help=checkpoint_help)
    command.add_argument("--output", type=Path, default="predictions.pth", help="default: %(default)s")

    command = add(replay, "compute one step of a run again, and show it", _OVERRIDES)
    command.usage = "%(prog)s [-h] --step STEP FILE [--table.key VALUE ...]"
    command.add_argument("file", metavar="FILE", type=Path, help="the TOML file")
    command.add_argument("--step", type=int, required=True, help="the number of the step, from 1")

    command = add(audit, "look for errors of the program of a TOML file that raise none", _OVERRIDES)
    command.usage = "%(prog)s [-h] [--only NAME[,NAME]] [--devices N] [--json] FILE [--table.key VALUE ...]"
    command.add_argument("file", metavar="FILE", type=Path, help="the TOML file")
    command.add_argument("--only", metavar="NAME[,NAME]", action="append", help="names of relations; default: all")
    command.add_argument("--devices", type=int, default=2, help="processes to compare with one; 1 leaves it out")
    command.add_argument("--json", action="store_true", help="print the findings as JSON")


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments for argparse, and the values of `--table.key VALUE` and `--table.key=VALUE`.

    argparse must know an option to tell its value from a positional argument, and these options are not known.
    """
    rest, overrides = [], {}
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or "." not in name:
            rest.append(argument)
            continue
        text = value if equals else next(remaining, None)
        if text is None:
            raise UsageError(f"{name}: needs a value")
        overrides[name[2:]] = _toml_value(text)
    return rest, overrides


def _toml_value(text: str) -> Any:
    """Return the value of a TOML expression, or the text itself if it is not a single one."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def env(arguments: argparse.Namespace) -> None:
    """Print what a bug report needs: versions, and what `python -m torch.utils.collect_env` finds."""
    from torch.utils.collect_env import get_pretty_env_info

    print(f"helios_lite version: {__version__}")
    for package in ("tqdm", "rich"):
        print(f"{package} version: {metadata.version(package)}")
    print(get_pretty_env_info())  # type: ignore[no-untyped-call]
