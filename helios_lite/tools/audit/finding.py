"""What an audit says of one relation."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """Whether a relation holds for a program.

    Attributes:
        relation: the name of the relation.
        result: "holds", "breaks" or "not applicable".
        text: what was compared; for a break what differs first; why the relation is not applicable.
        causes: what usually causes a break; empty if there is none.
    """

    relation: str
    result: Literal["holds", "breaks", "not applicable"]
    text: str
    causes: str = ""


class Break(Exception):
    """A relation does not hold; the message says what differs first."""


class NotApplicable(Exception):
    """A relation cannot be judged for a program; the message says why."""
