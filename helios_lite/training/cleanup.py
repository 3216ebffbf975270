"""Cleaning up after a run, however it ends."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

logger = logging.getLogger("helios_lite")


@contextlib.contextmanager
def cleanup(function: Callable[[], Any]) -> Iterator[None]:
    """Context that calls a function on exit. If both raise, the error of the body is raised."""
    try:
        yield
    except BaseException:
        try:
            function()
        except Exception:
            logger.exception("one more error while cleaning up")
        raise
    function()
