"""Runs a program against relations that hold for every right training program, to find silent bugs."""

from __future__ import annotations

import concurrent.futures
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.processes.launch import leave_if_importing
from helios_lite.tools.audit.processes import Trials
from helios_lite.tools.audit.relations import RELATIONS, Relation
from helios_lite.tools.audit.trial import Break, Finding, NotApplicable, Source
from helios_lite.trainer import Trainer

__all__ = ["RELATIONS", "Finding", "Relation", "audit"]


def audit(
    program: Callable[[], tuple[Trainer, Model, DataModule]] | str | os.PathLike[str],
    only: Sequence[str] | None = None,
    devices: int = 2,
    *,
    overrides: Mapping[str, Any] | None = None,
    seconds: float = 60.0,
) -> list[Finding]:
    """Return a finding for each relation, in their order. The run folder of the program is not used.

    Each relation trains the program for a few steps in a scratch folder, in fresh processes, with small epochs and
    few validation batches. The program is called there, so a script needs `if __name__ == "__main__":` around the call.
    Loggers, `compile` and sharding are left out; callbacks are kept.

    Args:
        program: the path of a TOML file, or a function of a module (not a lambda) that returns a trainer, a model
            and its data anew.
        only: names of relations; None for all.
        devices: the number of processes that are compared with one; 1 leaves the relation out.
        overrides: values that replace those of a TOML file, see `helios_lite.config.fit_from_file`.
        seconds: the deadline of each training, in seconds.

    Raises:
        ValueError: there is no relation of such a name, or `devices` is below 1.
        FileNotFoundError: there is no such file.
    """
    leave_if_importing()
    names = [relation.name for relation in RELATIONS]
    for name in only or ():
        if name not in names:
            raise ValueError(f"only={name!r}: there is no such relation; there are {', '.join(names)}")
    if devices < 1:
        raise ValueError(f"devices={devices}: must be at least 1")
    origin = program if callable(program) else Path(program)
    if isinstance(origin, Path) and not origin.is_file():
        raise FileNotFoundError(f"{origin}: there is no such file")
    chosen = [relation for relation in RELATIONS if only is None or relation.name in only]
    with tempfile.TemporaryDirectory(prefix="helios_lite-") as folder:
        trials = Trials(Source(origin, overrides or {}), Path(folder), seconds, devices)
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            return list(pool.map(lambda relation: _find(relation, trials), chosen))


def _find(relation: Relation, trials: Trials) -> Finding:
    try:
        return Finding(relation.name, "holds", relation.check(trials))
    except NotApplicable as reason:
        return Finding(relation.name, "not applicable", str(reason))
    except Break as difference:
        return Finding(relation.name, "breaks", str(difference), relation.causes)
