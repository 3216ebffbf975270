"""The command line of the examples, kept apart so that an example holds only its lesson.

A program of your own does not need this file: call `main()`, or use any library for command lines.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

# Options of the Trainer that an example offers if its `main` passes `**options` on to the Trainer.
TRAINER_OPTIONS = {
    "root": ("runs", "folder for the files of all runs"),
    "seed": (0, "seed of all random numbers"),
    "devices": (1, "number of processes to start; they use the CPU if there are fewer GPUs"),
}


def run(main: Callable[..., None]) -> None:
    """Call `main` with the options of the command line.

    A parameter `batch_size: int = 64` becomes the option `--batch-size`. Its values have the type of the default, or
    str if the default is None; a tuple as the default allows several values. `--help` shows the docstring of the
    script, and for every option its line in the docstring of `main`.
    """
    offered: dict[str, tuple[Any, str]] = {}
    explanations = dict(re.findall(r"^ +(\w+): (.+)", main.__doc__ or "", re.MULTILINE))
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            offered |= TRAINER_OPTIONS
        else:
            offered[name] = parameter.default, explanations[name]

    description = sys.modules[main.__module__].__doc__
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, explanation) in offered.items():
        several = isinstance(default, tuple)
        value = default[0] if several else default
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=str if value is None else type(value),
            nargs="+" if several else None,
            default=default,
            help=f"{explanation} (default: %(default)r)",
        )
    options = vars(parser.parse_args())
    if "devices" in options:  # More processes than GPUs share the CPU, so that a command works on any machine.
        options["accelerator"] = "cpu" if options["devices"] > torch.accelerator.device_count() else "auto"
    main(**options)
