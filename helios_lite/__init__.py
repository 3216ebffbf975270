"""helios_lite: a minimal, hook-based trainer in pure PyTorch.

Write a `Model` and pass it with a `DataModule` to `Trainer.fit`; the trainer does what is the same in every project.
The training loop is in `helios_lite/training/loop.py`.
"""

from helios_lite.callbacks import Callback
from helios_lite.data import DataModule, Split
from helios_lite.model import Model
from helios_lite.state import FitResult, TrainingState
from helios_lite.trainer import Trainer

__all__ = ["Callback", "DataModule", "FitResult", "Model", "Split", "Trainer", "TrainingState", "__version__"]
