"""What a replay of one step shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from helios_lite.html_table import html_table

_MOST_SHOWN, _MOST_LOSSES = 16, 3


@dataclasses.dataclass(frozen=True)
class ReplayedBatch:
    """A micro-batch of a replayed step."""

    rank: int
    """The rank that has computed it."""
    batch: Any
    """The batch as `train_step` got it, with its tensors on the CPU."""
    indices: Tensor | dict[str, Tensor] | None
    """The indices of its samples in the dataset, int64 of shape (batch_size,); None for a custom loader. Of several
    train splits a dict of them by name."""
    losses: tuple[float, ...]
    """The losses that were passed to `Model.backward`, in order."""
    weight: float | None
    """The weight that was passed to it, None if there was none."""
    sample_losses: Tensor | None
    """The loss of each sample alone, in evaluation mode and with the weights before the step, of shape (batch_size,);
    None if `why_no_sample_losses` says why not.
    """
    why_no_sample_losses: str
    """Why there are none; empty if there are."""
    not_finite: tuple[int, ...]
    """The positions of the samples whose data or loss alone is NaN or infinite."""

    def as_dict(self) -> dict[str, Any]:
        """Return all but the batch itself as plain values, for JSON."""
        indices: Any = self.indices
        if isinstance(indices, Tensor):
            indices = indices.tolist()
        elif isinstance(indices, dict):
            indices = {name: found.tolist() for name, found in indices.items()}
        return {
            "rank": self.rank,
            "indices": indices,
            "losses": [*self.losses],
            "weight": self.weight,
            "sample_losses": None if self.sample_losses is None else self.sample_losses.tolist(),
            "not_finite": [*self.not_finite],
        }

    def not_finite_indices(self) -> list[int]:
        """Return the indices of the samples of `not_finite`, or their positions if the indices are not known."""
        if not isinstance(self.indices, Tensor):
            return [*self.not_finite]
        return [int(self.indices[position]) for position in self.not_finite]


@dataclasses.dataclass(frozen=True, repr=False)
class Replay:
    """What `Trainer.replay` returns: one step, computed again. It is the same on every rank."""

    step: int
    """The number of the step. It is smaller than the one that was asked for if a loss before that was not finite (with
    `check_finite`): then it is the first such step.
    """
    epoch: int
    """The number of its epoch, from 1."""
    started_at: int
    """The step after which the replay began, that of a checkpoint or 0."""
    batches: tuple[ReplayedBatch, ...]
    """The micro-batches of all ranks."""
    learning_rates: dict[str, float]
    """The learning rates that the step used, by optimizer and group."""
    gradient_norms: dict[str, float]
    """The 2-norm of the gradient of each parameter, before clipping."""
    logged: dict[str, float]
    """The values that `log` got, the last of each name, on rank 0."""
    first_not_finite: str | None
    """The first module with an output, or else with a gradient, that is NaN or infinite; None if all were finite."""

    compared_until: int | None = None
    """The last step up to this one whose row in metrics.jsonl was compared with what the replay has computed: samples,
    weights and metrics, bit for bit. None if there is none since `started_at`.
    """
    differs_from_row: str | None = None
    """What differs first from a row of the run, such as "weights_digest was ... at step 50, and is ..."; None if all is
    as recorded.
    """

    def __repr__(self) -> str:
        """Return one line: the step, where the replay began, and the loss of each micro-batch."""
        losses = ", ".join(f"{loss:.6g}" for batch in self.batches for loss in batch.losses)
        found = "" if self.first_not_finite is None else f", first not finite: {self.first_not_finite}"
        return f"Replay(step {self.step} from step {self.started_at} on, loss {losses or 'none'}{found})"

    def __str__(self) -> str:
        """Return a short table."""
        return self.table()

    def table(self, samples: int | None = None) -> str:
        """Return a table with so many samples of each batch: their indices, and those with the largest losses.

        Args:
            samples: the number; None for 16 indices and the three largest losses.
        """
        return "\n".join([self._title(), *(f"{name} {text}" for name, text in self._facts(samples))])

    def as_dict(self) -> dict[str, Any]:
        """Return all but the batches themselves as plain values, for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "batches"}
        return {**plain, "batches": [batch.as_dict() for batch in self.batches]}

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the same table."""
        return html_table(self._title(), ["", ""], [(name.strip().rstrip(":"), text) for name, text in self._facts()])

    def _title(self) -> str:
        return f"step {self.step} in epoch {self.epoch}, replayed from step {self.started_at} on"

    def _facts(self, samples: int | None = None) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of each line."""
        most = _MOST_SHOWN if samples is None else samples
        for batch in self.batches:
            where = f"rank {batch.rank}: " if len({each.rank for each in self.batches}) > 1 else ""
            weight = "" if batch.weight is None else f" (weight {batch.weight:g})"
            yield f"{where}loss", f"{', '.join(f'{loss:.6g}' for loss in batch.losses) or 'none'}{weight}"
            by_name = batch.indices if isinstance(batch.indices, dict) else {"": batch.indices}
            for name, found in by_name.items():
                yield f"  samples {name}".rstrip(), _shown([] if found is None else found.tolist(), most)
            yield from _about_samples(batch, most, _MOST_LOSSES if samples is None else samples)
        for name, rate in self.learning_rates.items():
            yield f"learning rate {name}:", f"{rate:.6g}"
        total = sum(norm**2 for norm in self.gradient_norms.values()) ** 0.5
        largest = sorted(self.gradient_norms, key=lambda name: -self.gradient_norms[name])[:3]
        shown = ", ".join(f"{name} {self.gradient_norms[name]:.4g}" for name in largest)
        yield "gradient norm", f"{total:.6g}" + (f" (largest: {shown})" if shown else "")
        if self.first_not_finite is not None:
            yield "first not finite:", self.first_not_finite
        if self.differs_from_row is not None:
            yield "not as recorded:", self.differs_from_row
        elif self.compared_until is not None:
            of_step = (
                "" if self.compared_until == self.step else f", as far as the row of step {self.compared_until} tells"
            )
            yield "as recorded", f"in metrics.jsonl, bit for bit{of_step}"


def _finite(value: Any) -> Any:
    """Return plain values with None in place of numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _about_samples(batch: ReplayedBatch, most: int, most_losses: int) -> Iterator[tuple[str, str]]:
    if batch.not_finite:
        yield "  not finite alone:", f"samples {_shown(batch.not_finite_indices(), most)}"
    elif batch.sample_losses is not None:
        order = torch.argsort(batch.sample_losses, descending=True)[:most_losses].tolist()
        indices = batch.indices[order].tolist() if isinstance(batch.indices, Tensor) else order
        worst = ", ".join(f"{i} ({float(batch.sample_losses[at]):.4g})" for i, at in zip(indices, order, strict=True))
        yield "  largest losses alone:", f"samples {worst}"
    if batch.why_no_sample_losses:
        yield "  no losses of samples:", batch.why_no_sample_losses


def _shown(indices: list[int], most: int) -> str:
    text = ", ".join(map(str, indices[:most])) + (", ..." if len(indices) > most else "")
    return text or "without indices (a custom loader)"
