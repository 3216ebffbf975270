"""The commands that run what a TOML file describes: `fit`, `plan`, `test`, `predict`, `replay` and `audit`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from helios_lite.checkpoints import files, naming
from helios_lite.config import load, split_function
from helios_lite.data import DataModule
from helios_lite.display import console
from helios_lite.display.console import make_table
from helios_lite.model import Model
from helios_lite.tools import audit as audit_tool
from helios_lite.tools.choosing import chosen_checkpoint
from helios_lite.tools.usage import UsageError, require_file
from helios_lite.trainer import Trainer
from helios_lite.training.session import run_folder

if TYPE_CHECKING:
    from rich.table import Table


def fit(arguments: argparse.Namespace) -> None:
    """Train the model that a TOML file describes, or resume its training if it was stopped."""
    trainer, model, data = _load(arguments)
    trainer.fit(model, data)


def plan(arguments: argparse.Namespace) -> None:
    """Show what `fit` would do, without training."""
    trainer, model, data = _load(arguments)
    found = trainer.plan(model, data)
    if int(os.environ.get("RANK", "0")) == 0:
        print(found)


def test(arguments: argparse.Namespace) -> None:
    """Test the model that a TOML file describes, with a checkpoint of its run, and print the metrics."""
    trainer, model, data = _load(arguments)
    _require_checkpoint(arguments.checkpoint, trainer, model)
    with _usage_errors():
        metrics = trainer.test(model, data, checkpoint=arguments.checkpoint)
    if (not trainer.print_banner or trainer.log_level == "quiet") and model.global_rank == 0:
        console.show_metrics("test", metrics)


def predict(arguments: argparse.Namespace) -> None:
    """Write the outputs of the model that a TOML file describes to a file. A line of the log says what it has."""
    trainer, model, data = _load(arguments)
    _require_checkpoint(arguments.checkpoint, trainer, model)
    with _usage_errors():
        trainer.write_predictions(model, data, arguments.output, checkpoint=arguments.checkpoint)


def replay(arguments: argparse.Namespace) -> None:
    """Compute one step of a run of a TOML file again, and show it."""
    if arguments.samples is not None and arguments.samples < 1:
        raise UsageError(f"--samples {arguments.samples}: must be at least 1")
    trainer, model, data = _load(arguments)
    try:
        with _usage_errors():
            replayed = trainer.replay(model, data, "worst" if arguments.worst else arguments.step)
    except (FileNotFoundError, ValueError) as error:
        if not str(error).startswith("step="):
            raise
        raise UsageError(str(error)) from error
    if model.global_rank == 0:
        print(json.dumps(replayed.as_dict(), indent=2) if arguments.json else replayed.table(arguments.samples))


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Context in which a checkpoint that cannot be read is wrong usage."""
    try:
        yield
    except files.CheckpointError as error:
        raise UsageError(str(error)) from error


def _load(arguments: argparse.Namespace) -> tuple[Trainer, Model, DataModule]:
    require_file(split_function(arguments.file)[0])
    return load(arguments.file, arguments.overrides)


def _require_checkpoint(name: str, trainer: Trainer, model: Model) -> None:
    """Raise a `UsageError` if there is no checkpoint to use. The trainer would use untrained weights."""
    if name not in ("best", "last"):
        chosen_checkpoint(Path(name), model.save_name)
        return
    if trainer.fast_dev_run or type(model).load_for_testing is not Model.load_for_testing:
        return  # The model is used without a checkpoint of the run.
    folder = run_folder(trainer, model, Path.cwd())
    if folder is None or not naming.find(folder / "checkpoints", model.save_name):
        run = "a run without files" if folder is None else folder
        raise UsageError(f"{run} has no checkpoint; train first, or name one with --checkpoint PATH")


def audit(arguments: argparse.Namespace) -> None:
    """Compare many ways to train a program. Exits with status 1 if a relation breaks, 2 if none could be checked."""
    require_file(split_function(arguments.file)[0])
    only, accept = (
        [name for names in given or () for name in names.split(",")] for given in (arguments.only, arguments.accept)
    )
    try:
        findings = audit_tool.audit(
            arguments.file, only or None, arguments.devices, accept=accept, overrides=arguments.overrides
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except audit_tool.ProgramError as error:
        print(error.traceback or str(error), end="" if error.traceback else "\n", file=sys.stderr)
        sys.exit(2)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        console.show_table(findings_table(findings))
    results = {finding.result for finding in findings}
    if "breaks" in results:
        sys.exit(1)
    if results == {"not applicable"}:
        print("no relation could be checked", file=sys.stderr)
        sys.exit(2)


def findings_table(findings: Sequence[audit_tool.Finding]) -> Table:
    """Return a table of what an audit has found."""
    statements = {relation.name: relation.statement for relation in audit_tool.RELATIONS}
    rows = []
    for finding in findings:
        text = f"{statements[finding.relation]}\n{finding.text}" if finding.result == "breaks" else finding.text
        causes = f"\nusual causes: {finding.causes}" if finding.causes else ""
        causes += f"\nmost likely of the same cause as {finding.same_as}" if finding.same_as else ""
        rows.append([finding.relation, finding.result, text + causes])
    return make_table(["relation", "result", "what was compared, or what differs"], rows)
