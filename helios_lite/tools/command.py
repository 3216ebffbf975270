"""The command `helios-lite`: its arguments, and `main`, which runs what they ask for.

What a command needs is imported when it runs, so that `--help` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import textwrap
import tomllib
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from helios_lite.processes.output import harmless
from helios_lite.processes.tracebacks import ShortTraceback
from helios_lite.tools.usage import UsageError
from helios_lite.version import __version__

_OVERRIDES = """
Options of the form --table.key replace a value of the file, or add one: --trainer.max_epochs 3, --model.width=16,
--trainer.callbacks.0.decay 0.9. Values are written as in TOML. A value that is not valid TOML is used as a string, so
a string needs quotes of its own only if it could be read as something else: --trainer.run_name '"7"'.
For an option that may be None, write none. The format of the file: python -m pydoc helios_lite.config
"""

_FILES = {
    "fit": "runs",
    "plan": "runs",
    "test": "runs",
    "predict": "runs",
    "replay": "runs",
    "audit": "runs",
    "inspect": "checkpoints",
    "consolidate": "checkpoints",
    "diff": "diff",
    "lock": "lock",
    "check": "lock",
    "plot": "plot",
    "status": "status",
    "runs": "run_table",
    "report": "report",
    "compare": "compare",
    "env": "command",
}
"""The file of this folder that has the function of each command, which takes the parsed arguments."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the program.

    Wrong usage prints one line to stderr and exits with status 2. Errors of a training are raised as they are. If
    nobody reads the output any more, as after `| head`, the command ends with status 1.
    """
    try:
        try:
            with ShortTraceback():
                _run(arguments)
        finally:
            sys.stdout.flush()  # Here and not when Python ends, which would print an error of its own.
    except KeyboardInterrupt:
        sys.excepthook = _show_only_text  # Python ends the process as Ctrl-C does, with status 130.
        raise
    except BrokenPipeError:
        if not _is_output_closed():
            raise  # Another pipe, such as one of the training.
        sys.exit(1)


def _show_only_text(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print what a KeyboardInterrupt says, without the traceback."""
    print(str(error) or kind.__name__, file=sys.stderr)


def _run(arguments: Sequence[str] | None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    if not given:
        parser.print_help()
        return
    try:
        rest, overrides = _split_overrides(given)
        parsed = parser.parse_args(rest)
        file = _FILES[parsed.command]
        if overrides and file not in ("runs", "lock", "compare"):
            names = "fit, plan, test, predict, replay, audit, lock, check and compare"
            raise UsageError(f"--{next(iter(overrides))}: only {names} take values of a configuration")
        vars(parsed).update(overrides=overrides)
        command = getattr(import_module(f"helios_lite.tools.{file}"), parsed.command)
        from helios_lite.config import ConfigError

        try:
            command(parsed)
        except ConfigError as error:
            raise UsageError(str(error)) from error
    except UsageError as error:
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
        self.exit(2, f"{self.prog}: {harmless(' '.join(message.split()))}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="helios-lite", description="Train models from TOML files, and show what runs have written.")
    parser.add_argument("--version", action="version", version=f"helios_lite {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(name: str, summary: str, description: str, usage: str = "") -> argparse.ArgumentParser:
        """Add a command; `usage` is that of one that takes values of a configuration."""
        command: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            description="\n".join(textwrap.wrap(description, 100)),
            epilog=_OVERRIDES if usage else None,
            usage=f"%(prog)s [-h] {usage} [--table.key VALUE ...]" if usage else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if usage:
            command.add_argument("file", metavar="FILE", type=Path, help="a TOML file, or train.py:make")
        return command

    def add_checkpoint(command: argparse.ArgumentParser) -> None:
        text = '"best" (default), "last", or the path of a checkpoint or a run folder'
        command.add_argument("--checkpoint", default="best", help=text)

    add(
        "fit",
        "train the model of a TOML file",
        "Train the model that a TOML file describes, or resume its training if it was stopped.",
        "FILE",
    )

    add(
        "plan",
        "show what fit would do, without training",
        "Show what `fit` would do, without training: the length of the run, learning rates, validations, checkpoints, "
        "and whether it would begin, go on or find the run finished. Nothing is written.",
        "FILE",
    )

    command = add(
        "test",
        "test a checkpoint of the model of a TOML file",
        "Test the model that a TOML file describes, with a checkpoint of its run, and print the metrics.",
        "[--checkpoint CHECKPOINT] FILE",
    )
    add_checkpoint(command)

    command = add(
        "predict",
        "write the outputs of the model of a TOML file to a file",
        "Write the outputs of the model that a TOML file describes, with a checkpoint of its run, to a file of "
        "tensors, and say what it has. The file is that of `Trainer.write_predictions`: torch.load(FILE, "
        'weights_only=True) has "indices" and "outputs".',
        "[--checkpoint CHECKPOINT] [--output OUTPUT] FILE",
    )
    add_checkpoint(command)
    command.add_argument("--output", type=Path, default="predictions.pth", help="default: %(default)s")

    command = add(
        "replay",
        "compute one step of a run again, and show it",
        "Compute one step of a run of a TOML file again, from the newest checkpoint before it, and show its samples, "
        "losses, learning rates, gradient norms, and the first module that is not finite. The run folder is only read.",
        "(--step STEP | --worst) [--samples N] [--json] FILE",
    )
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=int, help="the number of the step, from 1")
    which.add_argument("--worst", action="store_true", help='the step with the highest value of "train/loss"')
    command.add_argument("--samples", metavar="N", type=int, help="show so many samples, and so many of their losses")
    command.add_argument("--json", action="store_true", help="print what was found as JSON")

    command = add(
        "audit",
        "look for silent bugs in the program of a TOML file",
        "Train the program that a TOML file describes for a few steps in many ways, and compare them: a right program "
        "resumes bit for bit, has the gradient of a large batch with micro-batches, and so on. The exit status is 1 if "
        "a relation breaks, and 2 if none could be checked. The run folder is not used.",
        "[--only NAME[,NAME]] [--accept NAME[,NAME]] [--devices N] [--json] FILE",
    )
    command.add_argument("--only", metavar="NAME[,NAME]", action="append", help="names of relations; default: all")
    text = "relations that are broken by intention; also accept = [...] in the table [audit] of the file"
    command.add_argument("--accept", metavar="NAME[,NAME]", action="append", help=text)
    command.add_argument("--devices", type=int, default=2, help="processes to compare with one; 1 leaves it out")
    command.add_argument("--json", action="store_true", help="print the findings as JSON")

    command = add(
        "lock",
        "keep what the first steps of the program of a TOML file compute",
        "Train the program that a TOML file describes for a few steps in a scratch folder, and write what each step "
        "read and computed to a file, run.lock.json for run.toml: digests of samples and weights, the loss, the norm "
        "of the gradients, versions and device. Commit it, and let a test run `helios-lite check`.",
        "[--steps N] [--output OUTPUT] FILE",
    )
    command.add_argument("--steps", type=int, default=10, help="the number of steps; default: %(default)s")
    command.add_argument("--output", type=Path, help="default: the name of FILE with .lock.json")

    command = add(
        "check",
        "compute the steps of a lock again",
        "Compute again what `lock` has written, and name the first step that differs and in what. Bits are compared "
        "where versions, device, threads and processes are those of the lock, and otherwise losses and gradient norms "
        "but for rounding. The exit status is 1 if something differs, and 2 if the program fails.",
        "[--output OUTPUT] [--json] FILE",
    )
    command.add_argument("--output", type=Path, help="the lock; default: the name of FILE with .lock.json")
    command.add_argument("--json", action="store_true", help="print what was found as JSON")

    command = add(
        "compare",
        "tell which of two programs is better over several seeds",
        "Train two programs with the same seeds, each training in a process of its own, and tell how the best value of "
        "their monitored metric differs: the mean with a 95 % interval, an exact test, and how many seeds would tell. "
        "What has finished is not trained again. The exit status is 1 if B is worse than A, and 2 if a training fails.",
    )
    command.usage = "%(prog)s [-h] [--seeds N] [--jobs N] [--folder FOLDER] [--json] A B [--table.key VALUE ...]"
    command.epilog = _OVERRIDES
    command.add_argument("file_a", metavar="A", type=Path, help="a TOML file, or train.py:make")
    command.add_argument("file_b", metavar="B", type=Path, help="another one")
    command.add_argument("--seeds", type=int, default=8, help="how many, 2 to 40; default: %(default)s")
    command.add_argument("--jobs", type=int, default=1, help="how many trainings run at once; default: %(default)s")
    command.add_argument("--folder", type=Path, help="where the runs are; default: runs/A-or-B")
    command.add_argument("--json", action="store_true", help="print what was found as JSON")

    command = add(
        "inspect",
        "show what a checkpoint holds",
        "Show what a checkpoint holds: of a run folder the best one, or the newest if there is no best one. Its "
        "checksums are verified, and no code in it is executed (no unpickling).",
    )
    command.add_argument("file", metavar="CHECKPOINT", type=Path, help="a file, a folder, or a run folder (its best)")

    command = add(
        "consolidate",
        "make one file of a sharded checkpoint",
        "Write a sharded checkpoint as one file, as a training in one process does. This process needs memory for all "
        "of its tensors. Any program can read the file with torch.load(path, weights_only=True). Of a run folder it is "
        "the best checkpoint, or the newest if there is no best one.",
    )
    command.add_argument("folder", metavar="FOLDER", type=Path, help="that of the checkpoint, or a run folder")
    command.add_argument("file", metavar="FILE", type=Path, nargs="?", help="default: the folder's name and .pth")

    command = add(
        "diff",
        "tell where two runs diverged",
        "Tell where two runs diverged: the options that differ, the first row of metrics that does, and the first "
        "tensor of the first checkpoint that does. What was measured with a clock is not compared. The files are only "
        "read, and no code in them is executed. The exit status is 1 if the runs differ.",
    )
    command.add_argument("run_a", metavar="RUN_A", type=Path, help="a run folder")
    command.add_argument("run_b", metavar="RUN_B", type=Path, help="another one")
    command.add_argument("--json", action="store_true", help="print what was found as JSON")

    command = add(
        "plot",
        "draw the curves of runs",
        "Draw the curves of one or more runs over their steps, one plot per metric, into a .png or .svg file. Of a "
        "folder of runs, every run folder directly in it is drawn. Times and speeds are drawn only if --metric names "
        "them.",
    )
    command.usage = "%(prog)s [-h] RUN [RUN ...] [--metric NAME [NAME ...]] [--output FILE]"
    command.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="a run folder, or a folder of them")
    command.add_argument(
        "--metric",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="full names; default: all but times and speeds",
    )
    command.add_argument("--output", metavar="FILE", type=Path, default="curves.png", help="default: %(default)s")

    command = add(
        "report",
        "write one HTML file about runs",
        "Write one HTML file with what the files of runs tell: findings, states, curves, plans, configurations and "
        "checkpoints. A browser shows it without a server, a network or a script, in light and dark. Of a folder of "
        "runs, it is every run folder directly in it. The exit status is 1 if there are findings.",
    )
    command.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run folder, or a folder of them")
    command.add_argument("--output", metavar="FILE", type=Path, default="report.html", help="default: %(default)s")
    command.add_argument("--json", action="store_true", help="print what was found as JSON")

    command = add(
        "status",
        "tell what runs are doing",
        "Tell what runs are doing, or how they have ended, as their status.json says. Of a folder of runs, it is every "
        "run folder directly in it. A run whose process is gone without a word, as after a SIGKILL, is said to be "
        "dead. The exit status is 1 if a run has failed or is dead.",
    )
    command.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run folder, or a folder of them")
    command.add_argument("--json", action="store_true", help="print a list of what the files hold, as JSON")

    command = add(
        "runs",
        "list runs with what differs in their options",
        "List the runs in a folder, at any depth: what they are doing, their best value of the monitored metric, and "
        "what differs in their options, hparams and splits. The best run comes first. The exit status is 1 if a run "
        "has failed or is dead, and 2 if a file cannot be read.",
    )
    command.add_argument("folder", metavar="FOLDER", type=Path, help="a folder of runs")
    text = "run, step, best, or an option that differs; default: %(default)s"
    command.add_argument("--sort", metavar="COLUMN", default="best", help=text)
    command.add_argument("--json", action="store_true", help="print what was found as JSON")

    add("env", "print what a bug report needs", f"{env.__doc__}")
    return parser


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
