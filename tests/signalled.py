"""A program whose calls are interrupted from outside, which says in a file where it stands.

python tests/signalled.py FOLDER CALL DEVICES
"""

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from helpers.models import Indices, Tiny, quiet

from helios_lite import DataModule, Split

faulthandler.register(signal.SIGUSR2)  # In ranks too, which import this.
STEPS = 15
PACE = 0.03


class Signalled(Tiny):
    """Says on rank 0 when a training begins and ends, and how many steps are finished."""

    def __init__(self, places: Path) -> None:
        super().__init__()
        self.places = places

    def say(self, place: str) -> None:
        if self.global_rank == 0:
            say(self.places, place)

    def on_training_start(self) -> None:
        self.say("training")

    def on_training_end(self) -> None:
        self.say("ending")

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        time.sleep(PACE)
        self.say(f"step {state.step + 1}")

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        time.sleep(PACE)

    def predict_step(self, batch: Any, step: int) -> Any:
        time.sleep(PACE)
        return batch[0]


def say(places: Path, place: str) -> None:
    with places.open("a") as file:
        file.write(f"{place}\n")


if __name__ == "__main__":
    folder, call, devices = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    places = folder / "places"
    say(places, "program")
    split = Split(Indices(12), batch_size=1, num_workers=1)
    data = DataModule(
        train=Split(Indices(STEPS * devices), batch_size=1, num_workers=1), valid=split, test=split, predict=split
    )
    options: dict[str, Any] = {"root": folder, "devices": devices, "accelerator": "cpu", "log_every_steps": 1}
    trainer = quiet(max_epochs=1, sigusr1=os.environ.get("SIGUSR1", "save"), sanity_batches=2, keep_last=-1, **options)
    model = Signalled(places)
    calls: dict[str, Any] = {
        "fit": lambda: trainer.fit(model, data),
        "test": lambda: trainer.test(model, data),
        "predict": lambda: list(trainer.predict(model, data)),
        "replay": lambda: trainer.replay(model, data, step=1),
    }
    say(places, "call")
    calls[call]()
    say(places, "after")
    time.sleep(0.3)
    os.close(1)
