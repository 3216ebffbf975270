"""The job that this program belongs to: that of torchrun or SLURM, which may start the program again."""

from __future__ import annotations

import os


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
