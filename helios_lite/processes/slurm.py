"""The processes that SLURM's `srun` has started without torchrun."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

_FIRST_PORT, _NUM_PORTS, _STEPS_PER_JOB = 15_000, 20_000, 50


def adopt_world_of_srun(devices: int | str | Sequence[int]) -> None:
    """Set the variables of torchrun from those of srun, if it has started this process as one of several.

    The batch script itself, a shell in a terminal (`srun --pty bash`) and processes of torchrun are none of these.

    Args:
        devices: the option of the trainer.

    Raises:
        RuntimeError: a variable is missing, or `devices` asks for another number of processes on this machine.
    """
    if "RANK" in os.environ or os.isatty(0):
        return
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    world = world_of_srun(os.environ)
    wanted = devices if isinstance(devices, int) else 1 if isinstance(devices, str) else len(devices)
    if wanted not in (1, int(world["LOCAL_WORLD_SIZE"])):
        raise RuntimeError(
            f"devices={devices!r}, but srun has started {world['LOCAL_WORLD_SIZE']} tasks of {world['WORLD_SIZE']} on "
            f"this machine: use --ntasks-per-node={wanted}, or start torchrun in one task per machine"
        )
    os.environ.update(world)


def world_of_srun(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torchrun for a task of srun.

    The meeting point is the first machine, at a port that the numbers of the job and of its step determine;
    MASTER_ADDR and MASTER_PORT replace them.

    Args:
        variables: those of srun.

    Raises:
        RuntimeError: a variable is missing.
    """
    try:
        node = int(variables["SLURM_NODEID"])
        # Other numbers for the steps of jobs that run at the same time, which have numbers in a row.
        place = int(variables["SLURM_JOB_ID"]) * _STEPS_PER_JOB + int(variables.get("SLURM_STEP_ID", "0"))
        world = {
            "RANK": variables["SLURM_PROCID"],
            "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": variables["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(tasks_per_node(variables["SLURM_STEP_TASKS_PER_NODE"])[node]),
            "MASTER_ADDR": first_host(variables["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(_FIRST_PORT + place % _NUM_PORTS),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise RuntimeError(
            f"srun has started {variables['SLURM_STEP_NUM_TASKS']} tasks, but its variables do not tell which one this "
            f"is ({type(error).__name__}: {error}): start torchrun in one task per machine instead, or set RANK, "
            "WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        ) from error
    given = {name: variables[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in variables}
    return {**world, **given}


def first_host(nodes: str) -> str:
    """Return the first machine of a list such as "node[01-03,07],gpu5"."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None or not match[0]:
        raise ValueError(f"no list of machines: {nodes!r}")
    return "".join(part or "" for part in match.groups())


def tasks_per_node(counts: str) -> list[int]:
    """Return the number of tasks of each machine, written as "2(x3),1"."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        tasks += [int(count)] * int(times or 1)
    return tasks
