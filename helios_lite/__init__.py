"""helios_lite: a minimal, hook-based trainer in pure PyTorch.

Write a `Model` and pass it with a `DataModule` to `Trainer.fit`; the trainer does what is the same in every project.
The training loop is in `helios_lite/training/loop.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from helios_lite.version import __version__

if TYPE_CHECKING:
    from helios_lite.callbacks import Callback
    from helios_lite.checkpoints.files import CheckpointError
    from helios_lite.data import DataModule, Split
    from helios_lite.model import Model
    from helios_lite.state import FitResult, TrainingState
    from helios_lite.trainer import Trainer

__all__ = [
    "Callback",
    "CheckpointError",
    "DataModule",
    "FitResult",
    "Model",
    "Split",
    "Trainer",
    "TrainingState",
    "__version__",
]

_NAMES = {
    "callbacks": ["Callback"],
    "checkpoints.files": ["CheckpointError"],
    "data": ["DataModule", "Split"],
    "model": ["Model"],
    "state": ["FitResult", "TrainingState"],
    "trainer": ["Trainer"],
}


def __getattr__(name: str) -> Any:
    """Import everything when the first name is asked for, so that `helios-lite --help` does not wait for PyTorch."""
    if not name.startswith("__"):
        for file, names in _NAMES.items():
            module = importlib.import_module(f"helios_lite.{file}")
            globals().update({each: getattr(module, each) for each in names})
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
