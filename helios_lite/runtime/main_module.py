"""The program's main module, which every launched process imports before it can run a task."""

from __future__ import annotations

import multiprocessing
import os
import sys
import zipfile
from pathlib import Path

NO_GUARD_STATUS = 96
"""The exit status of a launched process that came to a call of the trainer while it imported the main module."""

NO_GUARD_TEXT = (
    "the processes import the program, which calls the trainer when it is imported: put this call under "
    'if __name__ == "__main__":'
)


def leave_if_importing() -> None:
    """End this process if it is a launched one that imports the main module, before it launches others itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(NO_GUARD_STATUS)  # The process that has launched this one says why.


def check_main_is_importable(task: Path, processes: int) -> None:
    """Check that launched processes find the classes of the main module, which a notebook does not have in a file.

    Args:
        task: a file written by `torch.save` with what is sent to the processes.
        processes: their number.

    Raises:
        RuntimeError: they would not find them; the message says what to do.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    is_file = path is not None and Path(path).is_file()
    if is_file or (path is None and not _names_main(task)) or getattr(main, "__spec__", None) is not None:
        return
    raise RuntimeError(
        f"{processes} processes cannot be launched from a notebook, an interactive session or standard input: they "
        "would have to import the classes that are defined there. Put the model and its data into a file, import them "
        "from it, and start again; or use devices=1"
    )


def _names_main(task: Path) -> bool:
    with zipfile.ZipFile(task) as archive:
        return any(b"__main__" in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
