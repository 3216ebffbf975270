"""What a trial of an audit has recorded, which its process leaves in a file."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import pickle
from typing import Any

import torch
from torch import Tensor

from helios_lite.model_internals.step_tap import Loss
from helios_lite.nested import leaves
from helios_lite.tools.audit.trial import Break, NotApplicable


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the relations need to know of a program.

    Attributes:
        train_kind: "map" for a Split of a map-style dataset, "iterable" for one of an IterableDataset, "several" for a
            dict of Splits of map-style datasets, else "loader".
        batch_size, num_workers, length: of the train Split.
        has_valid: whether there is a validation split.
        is_valid_map_style: whether all validation splits are Splits of map-style datasets.
        valid_batch_size, valid_length: the largest batch size and the shortest length of these.
        num_losses: the losses that one `train_step` passes to `Model.backward`.
        carries_state: whether a second call of `train_step` with the same batch, weights and random numbers has another
            loss.
        compares_samples: the operation that computes a matrix of all pairs of samples of a batch, in `train_step` or
            `valid_step`; "" if there is none.
        moves_weights: whether `train_step` changes trained weights before it computes the loss, without a step of an
            optimizer, as sharpness-aware minimization does.
        moves_averages: whether `train_step` changes parameters that no optimizer has, such as a moving average.
        mixes_samples: whether the collate_fn draws random numbers, so that a batch is more than its samples.
        drop_last, shuffles: of the train Split.
        is_in_order: whether the train split is read from its first sample to its last.
        assigns_splits: whether the program assigns the train split of an epoch, and so its number of steps.
        draws_in_training, draws_in_validation: whether the steps use random numbers, in evaluation mode.
        num_optimizers: the optimizers that have stepped.
        precision, accumulation_steps: the options.
        monitored, mode: the names of the monitored metrics, and "min" or "max", which is better of them.
    """

    has_valid: bool = False
    is_valid_map_style: bool = False
    train_kind: str = "loader"
    batch_size: int = 0
    num_workers: int = 0
    length: int | None = None
    valid_batch_size: int = 0
    valid_length: int = 0
    num_losses: int = 0
    carries_state: bool = False
    compares_samples: str = ""
    moves_weights: bool = False
    moves_averages: bool = False
    mixes_samples: bool = False
    drop_last: bool = False
    shuffles: bool = False
    is_in_order: bool = False
    assigns_splits: bool = False
    draws_in_training: bool = False
    draws_in_validation: bool = False
    num_optimizers: int = 0
    precision: str = "fp32"
    accumulation_steps: int = 1
    monitored: list[str] = dataclasses.field(default_factory=list)
    mode: str = "min"


@dataclasses.dataclass(frozen=True)
class Step:
    """What happened in one step.

    Attributes:
        batches: a digest of each micro-batch, if the trial records bits.
        losses: the value and the weight of each loss that was passed to `backward`.
        state: digests of the leaves of `Model.state_dict` after the step, by name, if the trial records bits.
        rates: the learning rates of all parameter groups that stepped.
        gradients: the gradients that the optimizers used, by parameter, if the trial records them.
    """

    batches: list[str] = dataclasses.field(default_factory=list)
    losses: list[Loss] = dataclasses.field(default_factory=list)
    state: dict[str, str] = dataclasses.field(default_factory=dict)
    rates: list[float] = dataclasses.field(default_factory=list)
    gradients: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def mean_loss(self) -> float:
        """Return the mean of the losses, 0 if there is none."""
        return sum(value for value, _ in self.losses) / max(1, len(self.losses))


@dataclasses.dataclass(frozen=True)
class SampleRead:
    """What reading the samples of one split has shown.

    Attributes:
        digests: of each sample at the start of the training, under a seed of its index.
        not_finite: indices of samples with a value that is not finite, and the place of it.
        is_handled: whether the loss and its gradient are finite all the same for these: a mark, as of a missing label.
        changed: indices of samples that were not the same at the end, under the same seeds.
        is_random: whether a sample differs under another seed.
        is_augmented: whether only its input does, and its target is a class.
        is_sorted: whether each class is one block of samples.
        spreads, scale_of_targets: how the values of the inputs are spread, and those of targets that are floats.
        dataset: a name of the object that the indices of its Subsets belong to, and these indices.
        has_target: whether samples have inputs and a target apart.
        probability: that of such a relation of inputs and targets, or a stronger one, if they were independent; None if
            it is not known.
        target_in_input: where the target is in the input, "" if it is not.
        only_target: the integer that all targets are, None if they differ.
        shared_runs: of a validation: how many samples consist of runs of values that train samples have too.
    """

    digests: list[str] = dataclasses.field(default_factory=list)
    not_finite: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    is_handled: bool = False
    changed: list[int] = dataclasses.field(default_factory=list)
    is_random: bool = False
    is_augmented: bool = False
    is_sorted: bool = False
    spreads: list[Any] = dataclasses.field(default_factory=list)
    scale_of_targets: float = 0.0
    dataset: int = 0
    indices: list[int] = dataclasses.field(default_factory=list)
    has_target: bool = False
    probability: float | None = None
    target_in_input: str = ""
    only_target: int | None = None
    shared_runs: int = 0


@dataclasses.dataclass(frozen=True)
class Record:
    """What one trial has recorded on rank 0.

    Attributes:
        facts: what is to know of the program.
        steps: the steps, from the one on with which the process began.
        first_step: the number of the first of them, from 1.
        validations: the metrics of each validation, in order, with that of the sanity check.
        reduced: how each metric of `log` is reduced.
        samples: what reading the samples has shown, by split.
        parameters: of each trainable parameter: in how many optimizers it is, whether it had a gradient, whether the
            gradient was ever not zero, and whether its network is trained at all.
        modes: what is to say about modules that are in the wrong mode.
        num_modules: how many modules have modes, and are used.
        moved: buffers of frozen parts that have changed.
        validated: the networks that validations use, if training changes none of them, though it changes others.
        shared: parameters that are two and have one memory.
        strayed: schedulers of optimizers that the model does not have.
        calls: what was seen in calls, by the name of the relation.
        schedulers: how often each scheduler was stepped.
        misfits: what is wrong with each if it is stepped as often as the planned training has steps, and epochs.
        coupled: what couples the samples of a batch by intention, "" if nothing does.
        trained_names: the names of what train steps log.
        leaks: of the integers of a batch that were changed: how many are targets, and of how many the score changed.
        streamed: how many samples a stream has with so many workers, None for more than are counted.
        weights: the file with the weights after the last step, if the trial saves them.
        not_finite_batch: the step and place of a value in a batch that is not finite, "" if there is none, or if the
            trial does not record bits.
        error: the exception that has ended the trial, "" if there is none.
        traceback: the traceback of it as text.
        is_late: whether the trial was ended at its deadline, which says nothing about the program.
        held_out: the loss of samples that are not trained on, before the first step and then after every eighth.
    """

    facts: Facts = dataclasses.field(default_factory=Facts)
    steps: list[Step] = dataclasses.field(default_factory=list)
    first_step: int = 1
    validations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    reduced: dict[str, str] = dataclasses.field(default_factory=dict)
    samples: dict[str, SampleRead] = dataclasses.field(default_factory=dict)
    parameters: dict[str, tuple[int, bool, bool, bool]] = dataclasses.field(default_factory=dict)
    modes: list[str] = dataclasses.field(default_factory=list)
    num_modules: int = 0
    moved: list[str] = dataclasses.field(default_factory=list)
    validated: list[str] = dataclasses.field(default_factory=list)
    shared: list[str] = dataclasses.field(default_factory=list)
    strayed: list[str] = dataclasses.field(default_factory=list)
    calls: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    schedulers: dict[str, int] = dataclasses.field(default_factory=dict)
    misfits: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    coupled: str = ""
    trained_names: list[str] = dataclasses.field(default_factory=list)
    leaks: tuple[int, int] = (0, 0)
    streamed: dict[int, int | None] = dataclasses.field(default_factory=dict)
    weights: str = ""
    not_finite_batch: str = ""
    error: str = ""
    traceback: str = ""
    is_late: bool = False
    held_out: list[float] = dataclasses.field(default_factory=list)

    def mean_losses(self) -> list[float]:
        """Return the mean loss of each step."""
        return [step.mean_loss() for step in self.steps]

    def checked(self, what: str, raises: type[Exception] = Break) -> Record:
        """Return this record of a trial that has succeeded.

        Args:
            what: what has failed otherwise, for the message.
            raises: the error to raise then, unless the trial was only too slow.
        """
        if self.error:
            raise (NotApplicable if self.is_late else raises)(f"{what} fails: {self.error}")
        return self


def digest(value: Any) -> str:
    """Return a digest of all bits of a value: tensors and arrays in containers, and whatever can be pickled."""
    hashed = hashlib.blake2b(digest_size=12)
    for name, leaf in leaves(value):
        tensor = as_tensor(leaf)
        if tensor is None:
            try:
                hashed.update(f"{name}={pickle.dumps(leaf)!r}".encode())
            except Exception:  # Whatever a class raises that cannot be pickled.
                hashed.update(f"{name}={type(leaf)}".encode())
        else:
            data = tensor.detach().cpu().contiguous()
            content = ctypes.string_at(data.data_ptr(), data.numel() * data.element_size())
            hashed.update(f"{name}={tensor.dtype} {tuple(tensor.shape)}".encode() + content)
    return hashed.hexdigest()


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or that of a NumPy array of numbers; None for anything else."""
    if isinstance(value, Tensor):
        return value if value.layout is torch.strided else value.to_dense()
    if type(value).__module__ == "numpy" and hasattr(value, "__array__"):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError):
            return None
    return None


def place_not_finite(value: Any) -> str | None:
    """Return the name of the first part of a value that has a NaN or an infinity; None if there is none."""
    for name, leaf in leaves(value):
        tensor = as_tensor(leaf)
        if tensor is None and isinstance(leaf, float):
            tensor = torch.tensor(leaf)
        if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()) and not tensor.isfinite().all():
            return f"part {name}" if name else "its value"
    return None
