"""The command `env`: the versions and the machine, for a bug report."""

from __future__ import annotations

import argparse
from importlib import metadata

from helios_lite.version import __version__


def env(arguments: argparse.Namespace) -> None:
    """Print what a bug report needs: versions, and what `python -m torch.utils.collect_env` finds."""
    from torch.utils.collect_env import get_pretty_env_info

    print(f"helios_lite version: {__version__}")
    for package in ("tqdm", "rich"):
        print(f"{package} version: {metadata.version(package)}")
    print(get_pretty_env_info())  # type: ignore[no-untyped-call]
