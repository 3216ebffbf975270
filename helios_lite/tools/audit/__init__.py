"""Runs a program against relations that hold for every right training program, to find silent bugs."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helios_lite.config import ConfigError, split_function
from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.processes.launch import leave_if_importing
from helios_lite.tools.audit.bits import BASE
from helios_lite.tools.audit.processes import Trials
from helios_lite.tools.audit.relations import RELATIONS, Relation
from helios_lite.tools.audit.trial import Break, Finding, NotApplicable, ProgramError, Source
from helios_lite.trainer import Trainer

__all__ = ["RELATIONS", "Finding", "ProgramError", "Relation", "audit"]


def audit(
    program: Callable[[], tuple[Trainer, Model, DataModule]] | str | os.PathLike[str],
    only: Sequence[str] | None = None,
    devices: int = 2,
    *,
    accept: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    seconds: float = 600.0,
) -> list[Finding]:
    """Return a finding for each relation, in their order. The run folder of the program is not used.

    Each relation trains the program for a few steps in a scratch folder, in fresh processes, with small epochs and
    few validation batches. The program is called there, so a script needs `if __name__ == "__main__":` around the call.
    Loggers, `compile` and sharding are left out; callbacks are kept. Numbers of steps and samples decide what is found,
    and not how fast the machine is.

    Args:
        program: the path of a TOML file, or of a Python file with a function `make` or another (`train.py:name`), or a
            function of a module (not a lambda), that returns a trainer, a model and its data anew.
        only: names of relations; None for all.
        devices: the number of processes that are compared with one; 1 leaves the relation out.
        accept: names of relations that the program breaks by intention, with those of the list `accept` in the table
            `[audit]` of a TOML file.
        overrides: values that replace those of a file, see `helios_lite.config.fit_from_file`.
        seconds: the time after which a training is taken for one that hangs, in seconds.

    Raises:
        ValueError: there is no relation of such a name, or `devices` is below 1.
        FileNotFoundError: there is no such file.
        ProgramError: the program itself fails, or hangs, so that nothing can be said of it.
    """
    leave_if_importing()
    origin = program if callable(program) else Path(program)
    if isinstance(origin, Path) and not split_function(origin)[0].is_file():
        raise FileNotFoundError(f"{split_function(origin)[0]}: there is no such file")
    accepted = [*accept, *(_accepted_in(origin) if isinstance(origin, Path) else ())]
    names = [relation.name for relation in RELATIONS]
    for option, given in (("only", only or ()), ("accept", accepted)):
        for name in given:
            if name not in names:
                raise ValueError(f"{option}={name!r}: there is no such relation; there are {', '.join(names)}")
    if devices < 1:
        raise ValueError(f"devices={devices}: must be at least 1")
    chosen = [relation for relation in RELATIONS if only is None or relation.name in only]
    with tempfile.TemporaryDirectory(prefix="helios_lite-") as folder:
        trials = Trials(Source(origin, overrides or {}), Path(folder), seconds, devices)
        if (error := trials.kept(BASE).error) and not (findings := _of_failed(trials, chosen)):
            raise ProgramError(f"the program itself fails: {error}", trials.kept(BASE).traceback)
        if not error:
            with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
                findings = list(pool.map(lambda relation: _find(relation, trials), chosen))
    return _with_causes(findings, accepted)


def _accepted_in(path: Path) -> list[str]:
    """Return the relations that the table `[audit]` of a TOML file accepts."""
    if split_function(path)[1]:
        return []
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("audit", {})
    except ValueError:  # Loading it says what is wrong.
        return []
    accept = table.get("accept", []) if isinstance(table, dict) else None
    if accept is None or set(table) - {"accept"} or not isinstance(accept, list):
        raise ConfigError("audit: must be a table with a list of names of relations, accept")
    return accept


def _find(relation: Relation, trials: Trials) -> Finding:
    try:
        return Finding(relation.name, "holds", relation.check(trials))
    except NotApplicable as reason:
        return Finding(relation.name, "not applicable", str(reason))
    except Break as difference:
        return Finding(relation.name, "breaks", str(difference), relation.causes)
    except Exception as error:  # An error of this tool, which says nothing about the program and other relations.
        return Finding(relation.name, "not applicable", f"the audit itself fails: {type(error).__name__}: {error}")


def _of_failed(trials: Trials, chosen: Sequence[Relation]) -> list[Finding]:
    """Return findings if samples explain why a program fails, else none."""
    found = [_find(relation, trials) for relation in chosen if relation.name == "finite"]
    if not any(each.result == "breaks" for each in found):
        return []
    reason = f"the program fails: {trials.kept(BASE).error}"
    rest = [Finding(each.name, "not applicable", reason) for each in chosen if each.name != "finite"]
    return sorted(found + rest, key=lambda finding: [each.name for each in chosen].index(finding.relation))


def _with_causes(findings: Sequence[Finding], accepted: Sequence[str]) -> list[Finding]:
    """Return findings in which a break is by intention, or names an earlier one of the same cause."""
    explained = {relation.name: relation.explained_by for relation in RELATIONS}
    broken, result = list[str](), list[Finding]()
    for finding in findings:
        if finding.result == "breaks":
            same = [name for name in explained[finding.relation] if name in broken]
            broken.append(finding.relation)
            if finding.relation in accepted or (same and same[0] in accepted):
                finding = dataclasses.replace(finding, result="by intention", causes="")
            elif same:
                finding = dataclasses.replace(finding, causes="", same_as=same[0])
        result.append(finding)
    return result
