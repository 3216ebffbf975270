"""The run folder of a `fit` with `resume="new"`: it takes the next free name, and the model remembers it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from helios_lite.checkpoints import run_folders
from helios_lite.model import Model
from helios_lite.options import Options
from helios_lite.processes.devices import choose_accelerator
from helios_lite.processes.job import is_restarted, job_name
from helios_lite.processes.launch import leave_if_importing
from helios_lite.processes.world import join_world
from helios_lite.training.session import named_folder

_claims: Counter[Path] = Counter()
"""How many folders of each name this program has claimed. When it is started again, each `fit` finds its own."""


@contextlib.contextmanager
def own_run_folder(options: Options, model: Model, directory: Path) -> Iterator[None]:
    """Context of a training in a run folder of its own, if it needs one. Call on every rank that torchrun has started.

    Rank 0 makes the folder. After an error that comes before the run has begun there, it removes the folder again.
    Processes that the trainer launches get it with the model.

    Args:
        options: the trainer.
        model: the model, which remembers the folder.
        directory: the working directory in which the call has begun.
    """
    named = named_folder(options, model, directory)
    if named is None or options.resume != "new":
        yield
        return
    leave_if_importing()
    world = join_world(choose_accelerator(options.accelerator))
    folder = world.broadcast(_claimed(named) if world.is_main else named)
    model._folders[named] = folder
    try:
        yield
    except BaseException:
        if world.is_main and run_folders.give_back(folder):
            del model._folders[named]
        raise


def _claimed(named: Path) -> Path:
    _claims[named] += 1
    owner = f"{job_name()}, fit {_claims[named]}"
    return run_folders.claim(named, owner, is_restarted=is_restarted())
