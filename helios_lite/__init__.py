"""helios_lite: a minimal, hook-based trainer in pure PyTorch.

Write a `Model` and pass it with a `DataModule` to `Trainer.fit`; the trainer does what is the same in every project.
The training loop is in `helios_lite/training/loop.py`.
"""

from helios_lite.callbacks import Callback
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.data import DataModule, Split
from helios_lite.model import Model
from helios_lite.state import FitResult, TrainingState
from helios_lite.trainer import Trainer
from helios_lite.version import __version__

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
