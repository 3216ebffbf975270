"""What a model has in the end, left for the process that has launched this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helios_lite.engine.session import Session
from helios_lite.runtime.checkpoint_files import FORMAT_VERSION, to_serializable, write_file
from helios_lite.runtime.sharding import take_sharded


def write_outcome(outcome: dict[str, Any], session: Session, path: Path) -> None:
    """Leave what a model has in the end where the process reads it that has launched this one. Call on every rank.

    It is a file, or a folder if networks are sharded, so that no rank needs memory for all of it.
    """
    outcome = {"format": FORMAT_VERSION, **outcome}
    if session.context.parallel.sharded_parameter() is None:
        if session.world.is_main:
            write_file(to_serializable(outcome), path)
        return
    from helios_lite.runtime.sharded_files import ShardWriter, write_main

    main, sharded = take_sharded(outcome, {})
    ShardWriter(session.world).write(sharded, path, lambda: write_main(to_serializable(main), path), background=False)
