"""What the compiler has made of the networks of a run, kept in the run folder for its next start.

The compiler reads these files by unpickling them, so a file of somebody else could run code. Each is therefore signed
with a key that only this user has, and another file is not read.
"""

from __future__ import annotations

import hmac
import logging
import os
import platform
import secrets
from pathlib import Path

import torch

from helios_lite.checkpoints import files
from helios_lite.processes.devices import device_name
from helios_lite.processes.world import World

logger = logging.getLogger("helios_lite")
_SIGNATURE = 32  # Bytes before the artifacts.


class CompiledNetworks:
    """The file `compiled/<device>` of a run folder.

    Ranks with the same device, on several machines or on one CPU, run the same code: the first of them writes.

    Args:
        run_folder: the run folder.
        device: the device of this process.
        world: the rank of this process.
    """

    def __init__(self, run_folder: Path, device: torch.device, world: World) -> None:
        self.path = run_folder / "compiled" / str(device).replace(":", "_")
        self._writes = world.is_main or (world.rank == world.local_rank and device.index is not None)
        name = device_name(device) or platform.machine()
        self._made_by = f"{torch.__version__} {platform.python_version()} {name}".encode()
        self._length = 0  # Of what was loaded or saved last; it only grows.

    def load(self) -> None:
        """Give the compiler what an earlier start has kept, if it is of this user, these versions and this device."""
        try:
            if not self.path.exists():
                return
            content = self.path.read_bytes()
            artifacts, key = content[_SIGNATURE:], _key()
            is_own = key is not None and hmac.compare_digest(content[:_SIGNATURE], self._signature(key, artifacts))
            reason = None if is_own else "it is damaged, or not of this user, these versions and this device"
            if is_own and torch.compiler.load_cache_artifacts(artifacts) is not None:
                self._length = len(artifacts)
        except OSError as error:
            reason = error.strerror or str(error)
        if reason is not None:
            logger.warning("%s: is not used (%s); networks are compiled again", self.path, reason)

    def save(self) -> None:
        """Keep what the compiler has made, if it is more than at the last call. Call on every rank."""
        found = torch.compiler.save_cache_artifacts() if self._writes else None
        if found is None or len(found[0]) == self._length or (key := _key()) is None:
            return
        artifacts = found[0]
        self._length = len(artifacts)
        try:
            self.path.parent.mkdir(exist_ok=True)
            files.write_bytes(self._signature(key, artifacts) + artifacts, self.path, is_durable=False)
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self.path, error.strerror or error)

    def _signature(self, key: bytes, artifacts: bytes) -> bytes:
        return hmac.digest(key, self._made_by + artifacts, "sha256")


def _key() -> bytes | None:
    """Return the key of this user, which is made if missing; None if there is no folder for it."""
    try:
        path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "helios_lite" / "key"
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # For this user only.
            files.write_bytes(secrets.token_bytes(32), path)
        return path.read_bytes()
    except (OSError, RuntimeError):  # The latter if the user has no home.
        return None
