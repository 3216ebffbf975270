"""The command `audit`: a program against the relations that hold for every right one, as a table or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from helios_lite.engine import console
from helios_lite.tools import audit as tool
from helios_lite.tools.errors import UsageError, require_file
from helios_lite.tools.tables import make_table

if TYPE_CHECKING:
    from rich.table import Table


def audit(arguments: argparse.Namespace) -> None:
    """Train the program that a TOML file describes for a few updates in many ways, and compare them: a right program
    resumes bit for bit, has the gradient of a large batch with micro-batches, and so on. The exit status is 1 if a
    relation breaks. The run folder is not used.
    """
    require_file(arguments.file)
    only = [name for names in arguments.only or () for name in names.split(",")] or None
    try:
        findings = tool.audit(arguments.file, only, arguments.devices, overrides=arguments.overrides)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        console.show_table(findings_table(findings))
    if any(finding.result == "breaks" for finding in findings):
        sys.exit(1)


def findings_table(findings: Sequence[tool.Finding]) -> Table:
    """Return a table of what an audit has found."""
    statements = {relation.name: relation.statement for relation in tool.RELATIONS}
    rows = []
    for finding in findings:
        text = f"{statements[finding.relation]}\n{finding.text}" if finding.result == "breaks" else finding.text
        causes = f"\nusual causes: {finding.causes}" if finding.causes else ""
        rows.append([finding.relation, finding.result, text + causes])
    return make_table(["relation", "result", "what was compared, or what differs"], rows)
