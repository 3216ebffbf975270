"""The run folder of a `fit` with `resume="new"`: it takes the next free name, and the model remembers it."""

from __future__ import annotations

from collections import Counter
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


def claim_run_folder(options: Options, model: Model, directory: Path) -> None:
    """Claim the run folder of a training, if it needs one of its own. Call on every rank that torchrun has started.

    Rank 0 makes the folder. Processes that the trainer launches get it with the model.

    Args:
        options: the trainer.
        model: the model, which remembers the folder.
        directory: the working directory in which the call has begun.
    """
    named = named_folder(options, model, directory)
    if named is None or options.resume != "new":
        return
    leave_if_importing()
    world = join_world(choose_accelerator(options.accelerator))
    model._remember_folder(named, world.broadcast(_claimed(named) if world.is_main else named))


def _claimed(named: Path) -> Path:
    _claims[named] += 1
    owner = f"{job_name()}, fit {_claims[named]}"
    return run_folders.claim(named, owner, is_restarted=is_restarted())
