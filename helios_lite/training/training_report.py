"""What a training shows of itself: its banner, its lines and the text of its bars."""

from __future__ import annotations

_SECONDS_BETWEEN_ROWS = 1.0  # The least time between two rows of a phase in train.log, which is read by people.
