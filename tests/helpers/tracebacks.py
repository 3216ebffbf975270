"""Which functions stand in the traceback of an error."""

import traceback
from pathlib import Path

import helios_lite

PACKAGE = Path(helios_lite.__file__).parent
MOST = 3
"""So many functions of the package stand between a program's call of it and the program's line that fails."""


def functions(error: BaseException) -> list[str]:
    """Return the names of all functions from the first one of the package on."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next(i for i, frame in enumerate(frames) if PACKAGE in Path(frame.filename).parents)
    return [frame.name for frame in frames[first:]]


def functions_of_package(error: BaseException) -> list[str]:
    """Return the names of those functions that the package has."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.name for frame in frames if PACKAGE in Path(frame.filename).parents]
