"""What a training takes: samples per second, the part of the time that it waits for batches, memory of the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from helios_lite.engine.batches import Batch

_ENDINGS = ("seconds", "/samples_per_second", "/data_wait", "/memory_mib")


def is_measured(name: str) -> bool:
    """Return whether a value is measured with a clock or a meter, by its name in a row: it differs in every run."""
    return name.endswith(_ENDINGS)


def peak_memory_mib(device: torch.device) -> float | None:
    """Return the most memory that PyTorch has had allocated on the device so far, in MiB; None if it does not count it.

    It counts on GPUs, without waiting for them, and not on the CPU.
    """
    count = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    return None if count is None else count(device) / 2**20


class Throughput:
    """Counts what the speed since the last row of metrics needs."""

    def __init__(self) -> None:
        self._waited = 0.0  # Seconds.
        self._samples = 0  # Of all ranks.

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches; count their samples, and the time that each is waited for."""
        clock = time.perf_counter
        started = clock()
        for batch in batches:
            self._waited += clock() - started
            self._samples += batch[2]
            yield batch
            started = clock()

    def take(self, seconds: float, steps: int) -> dict[str, float]:
        """Return the metrics of a row by full name, and begin the next one.

        Args:
            seconds: time since the last row, without validations and saves.
            steps: updates since the last row.
        """
        waited, samples = self._waited, self._samples
        self._waited, self._samples = 0.0, 0
        return {
            "train/step_seconds": seconds / steps,
            "train/compute_seconds": max(0.0, seconds - waited) / steps,
            "train/data_wait": min(1.0, waited / seconds) if seconds > 0 else 0.0,
            "train/samples_per_second": samples / seconds if seconds > 0 else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what has been counted since the last row."""
        return {"wait_seconds": self._waited, "samples": self._samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Files of earlier versions have nothing."""
        self._waited = state_dict.get("wait_seconds", 0.0)
        self._samples = state_dict.get("samples", 0)
