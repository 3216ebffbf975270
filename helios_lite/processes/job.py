"""The job that this program belongs to: that of torchrun or SLURM, which may start the program again."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("helios_lite")


def warn_if_alone() -> None:
    """Warn if the job has several tasks or machines, of which this program would know nothing."""
    variables = os.environ
    if "RANK" in variables:
        return
    tasks = variables.get("SLURM_NTASKS", "1")
    if tasks != "1" and "SLURM_STEP_NUM_TASKS" not in variables and not os.isatty(0):
        logger.warning(
            "the job has %s tasks (SLURM_NTASKS), but srun has not started this program: start it with srun, or ask "
            "for --ntasks=1 if the trainer shall start the processes (devices)",
            tasks,
        )
    nodes = variables.get("PET_NNODES", "1").rpartition(":")[2]  # "1:4" is from 1 to 4.
    if nodes != "1":
        logger.warning(
            "the job has %s machines (PET_NNODES), but torchrun has not started this program, which trains alone on "
            "each of them: start it with torchrun",
            nodes,
        )


def is_restarted() -> bool:
    """Return whether torchrun or SLURM has started this program before, in the same job."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(os.environ.get(name, "0")) > 0 for name in counts)


def job_name() -> str:
    """Return a name of the job, which is the same when the job is started again, and not that of one beside it."""
    variables = os.environ
    if "SLURM_JOB_ID" in variables:
        return f"slurm {variables['SLURM_JOB_ID']} {variables.get('SLURM_STEP_ID', '')}".rstrip()
    identity = variables.get("TORCHELASTIC_RUN_ID", "none")
    if identity == "none":  # The default of torchrun, whose processes then meet at an address of the user's.
        identity = f"{variables.get('MASTER_ADDR', '')}:{variables.get('MASTER_PORT', '')}"
    return f"torchrun {identity}" if "RANK" in variables else f"process {os.getpid()}"
