"""The options of a Trainer, each with its type, default, rule and documentation in one place."""

# Annotations are not deferred: the signature of a subclass in another module shows them without names of this one.

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch

from helios_lite.arguments import (
    Rule,
    all_of,
    batch_limit,
    check_folder_name,
    choice,
    device_selection,
    flag,
    flag_or_count,
    integer,
    list_of,
    metric_names,
    minutes_or_auto,
    norm_selection,
    number,
    optional,
    part_names,
    path,
    require,
    shown,
    whole_or_fraction,
)
from helios_lite.hooks import CallbackLike
from helios_lite.loggers import Logger
from helios_lite.object_tables import to_plain_data
from helios_lite.option_class import documented, option_hint

# What the value of an option must be, if its annotation does not say so: bool and Literal do.
RULES: dict[str, Rule] = {
    "run_name": optional(all_of(path("a str or None", types=str), check_folder_name)),
    "root": optional(path("a path or None")),
    "resume": path('"auto", "never", "new", "best" or a path'),
    "init_from": optional(path("a path or None")),
    "init_parts": part_names,
    "seed": integer(least=0, below=2**64),
    "fast_dev_run": flag_or_count,
    "max_epochs": optional(integer(least=1)),
    "max_steps": optional(integer(least=1)),
    "max_minutes": optional(number()),
    "steps_per_epoch": optional(integer(least=1)),
    "limit_train_batches": optional(batch_limit(least=0)),
    "limit_valid_batches": optional(batch_limit(least=0)),
    "limit_test_batches": optional(batch_limit(least=0)),
    "overfit_batches": optional(batch_limit(least=1)),
    "benchmark": optional(flag),
    "accelerator": path('"auto", "cpu" or a type of device', types=str),
    "devices": device_selection,
    "max_restarts": integer(least=0),
    "hang_minutes": minutes_or_auto,
    "accumulation_steps": integer(least=1),
    "clip_norm": optional(number()),
    "valid_every_epochs": optional(whole_or_fraction),
    "valid_every_steps": optional(integer(least=1)),
    "sanity_batches": integer(least=0),
    "monitor": optional(metric_names),
    "patience": optional(integer(least=1)),
    "min_delta": number(allow_zero=True),
    "save_every_epochs": optional(integer(least=1)),
    "save_every_steps": optional(integer(least=1)),
    "save_every_minutes": optional(number()),
    "keep_last": integer(least=-1),
    "keep_best": integer(least=-1),
    "verify_every_steps": optional(integer(least=1)),
    "log_every_steps": integer(least=1),
    "log_grad_norm": norm_selection,
    "log_param_norm": norm_selection,
    "loggers": list_of(Logger, "Logger"),
    "callbacks": list_of(CallbackLike, "Callback"),
}

# What says how long an epoch or a validation is, by what says so too.
_EXCLUDED = {
    "limit_train_batches": ["steps_per_epoch"],
    "overfit_batches": ["steps_per_epoch", "limit_train_batches", "limit_valid_batches"],
}


@documented
@dataclasses.dataclass(kw_only=True, repr=False)
class Options:
    """The options of a run, which are checked when they are given.

    A step is one update of the weights, which takes one batch, or `accumulation_steps` micro-batches.

    Raises:
        TypeError, ValueError: an option has a wrong type or value. The message begins with the name of the option.
    """

    # Run
    run_name: str | None = None
    """The name of the run folder, a path inside of `root`. If None, it is the `save_name` of the model."""
    root: str | os.PathLike[str] | None = "runs"
    """The folder of all runs. If None, the run writes no files, which suits sweeps and tests. A relative path, here and
    in the other options and arguments of a call, belongs to the working directory in which the call begins."""
    resume: Literal["auto", "never", "new", "best"] | os.PathLike[str] | str = "auto"
    """Which checkpoint to resume from. "auto" resumes from the newest valid checkpoint in the run folder, or starts a
    new training if there is none. "never" starts a new training, and raises an error if the run folder has a
    checkpoint. "new" starts a new training in a run folder of its own, the next free one of "digits", "digits-2",
    "digits-3", ...; later calls with the same model use that folder, and with another model the newest of them. "best"
    goes back to the best checkpoint of the run folder, and moves the newer ones into a folder of their own. A path
    resumes from that file, or from the newest checkpoint of that run folder. A run that began with "best" or a path,
    and is started again with it, goes on from its own newest checkpoint."""
    allow_changed_hparams: bool = False
    """Whether a run may resume from the newest checkpoint of its run folder if the `hparams` of the model have changed
    since. If False, this is an error, because the checkpoint may be that of another model."""
    init_from: str | os.PathLike[str] | None = None
    """A checkpoint, or a run folder (its best checkpoint, or the newest if there is no best one), from which a new
    training takes its initial weights. Nothing else is taken: the training starts at step 0. If the run resumes, this
    is ignored."""
    init_parts: Literal["all"] | Sequence[str] | None = None
    """What to take from `init_from`. None takes every network that the model and the checkpoint have, "all" takes
    optimizers and other parts too, and a list takes the parts with these names, as in `Model.state_dict`."""
    seed: int = 0
    """The seed of all random numbers: initial weights, order of the data, augmentation and dropout."""
    deterministic: bool = False
    """Whether PyTorch may use deterministic algorithms only. They are slower on a GPU, and an operation that has no
    deterministic algorithm raises an error."""
    benchmark: bool | None = None
    """Whether cuDNN measures its algorithms and chooses the fastest. This is faster if the shapes of the inputs do not
    change, but the results are not reproducible. Validations and tests never do this. None leaves it as the program
    has set `torch.backends.cudnn.benchmark`."""
    fast_dev_run: bool | int = False
    """Whether to run only one step, one validation batch and one test batch, without files, as a quick check; a number
    runs so many steps, and so many batches of each evaluation and prediction. With `resume=PATH` they are the next
    steps of that checkpoint. There is no validation before the last of them, whatever `sanity_batches` says."""

    # Length
    max_epochs: int | None = None
    """The number of epochs after which the run ends. `fit` needs at least one of `max_epochs`, `max_steps` and
    `max_minutes`, and the first limit that is reached ends the run. If the model or a callback overrides
    `should_training_stop`, none is needed: without a limit the run ends when that method returns True."""
    max_steps: int | None = None
    """The number of steps after which the run ends."""
    max_minutes: float | None = None
    """The minutes of training after which the run ends. A resumed run includes the time before it was stopped."""
    steps_per_epoch: int | None = None
    """The number of steps per epoch. If None, an epoch is one pass over the train split. Set it for a stream that has
    no end, or for a very large dataset: the next epoch continues the split where the last one ended, and the split is
    read again from its start after its end. Order and random numbers of the data then depend on the pass in place of
    the epoch."""

    # Limits for trying
    limit_train_batches: int | float | None = None
    """The number of batches of an epoch, from the start of its order (an int), or the part of them (a float up to 1.0,
    at least one batch). With several processes a batch is that of all processes together. It excludes
    `steps_per_epoch`, which ends an epoch too, but lets the next one go on where it ended. 0 turns the split off, as if
    the datamodule had none: `fit` is then a ValueError, and the other methods work."""
    limit_valid_batches: int | float | None = None
    """The same for each validation split. Tables and log lines say that a split was limited. `sanity_batches` and
    `fast_dev_run` use their own numbers. 0 turns validations off."""
    limit_test_batches: int | float | None = None
    """The same for each test split; with 0 `test` is a ValueError. Predictions are not limited."""
    overfit_batches: int | float | None = None
    """The number or part of the first batches of the train split that every epoch repeats, without shuffling and with
    the random numbers of the first epoch: a correct model learns them by heart. The validation is limited alike, to the
    first batches of its own split, as in Lightning. It excludes the limits of both, and `steps_per_epoch`."""

    # Placement
    accelerator: Literal["auto", "cpu", "cuda", "xpu", "mps"] | str = "auto"
    """The type of the devices: "cpu", or that of the accelerator that the installed PyTorch has, also of one that a
    package adds, such as "npu". "auto" uses the accelerator if it is available, else the CPU."""
    devices: int | list[int] | Literal["auto"] = 1
    """The number of devices, a list of their indices, or "auto" for all of them. The trainer starts one process for
    each device on this machine. A process that was started by torchrun joins the processes of torchrun instead, on any
    number of machines."""
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """How networks are distributed: "ddp" copies them to every rank, "fsdp" shards them over all ranks, and "hsdp"
    shards them over the ranks of each machine and replicates the shards over the machines."""
    max_restarts: int = 0
    """How many times all processes are restarted, from the newest checkpoint, after one of them has failed."""
    hang_minutes: float | Literal["auto"] | None = "auto"
    """After how many minutes without a new batch the run is ended as hanging: each rank writes the stacks of its
    threads to the folder "hangs" of the run, the ranks that the others wait for are named on stderr, and the processes
    exit with status 1, so that `max_restarts` helps. It must be longer than the longest `setup`, save and compilation.
    "auto" is 30 for several processes, and None for one, which watches nothing."""

    # Numerics
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The data type of autocast. The weights stay in fp32. With "bf16" and a sharded network the gathered weights are
    bf16, and gradients are reduced in fp32. With "fp16" the loss is scaled, and a step whose gradients are not finite
    is skipped: the weights, the scheduler and `state.step` do not change."""
    compile: bool = False
    """Whether to compile the networks that are passed to `Model.parallelize`: their `blocks` one by one, if given."""
    checkpoint_activations: bool = False
    """Whether the `blocks` of `Model.parallelize` keep only their inputs for the backward pass, which runs their
    forward pass again. This needs less memory and about a third more time. The results do not change."""
    accumulation_steps: int = 1
    """The number of micro-batches per step, whose gradients are averaged. The last step of an epoch may have fewer, and
    is averaged over those it has. `accumulation_steps` and `clip_norm` take effect in `Model.backward` and
    `Model.optimizer_step`. A model that calls `loss.backward()` itself gets neither."""
    clip_norm: float | None = None
    """The maximum 2-norm of the gradients of each optimizer. If None, gradients are not clipped."""
    check_finite: bool = True
    """Whether a logged training value, or a loss passed to `Model.backward`, that is NaN or infinite ends the run with
    a FloatingPointError. It names the value and its step, and is raised before the damaged state is saved."""

    verify_every_steps: int | None = None
    """The number of steps after which one is computed twice, from the same state, and compared bit by bit on every rank
    before the weights change: the first step of a start, and every n-th. A difference is a RuntimeError that names rank
    and module: hardware is faulty, or a kernel is not deterministic. The trained weights have the same bits as without
    it. What such a step cannot take back is in docs/verified_steps.md."""

    # Validation
    valid_every_epochs: float | None = 1
    """The number of epochs between validations: a whole number, or a fraction of one epoch. For example, 0.25 validates
    four times per epoch, and a fraction below one step validates after every step. If None, only `valid_every_steps`
    decides when to validate."""
    valid_every_steps: int | None = None
    """The number of steps between validations. These are in addition to those of `valid_every_epochs`."""
    sanity_batches: int = 1
    """The number of validation batches to run before a new training starts, so that errors in them show early."""

    # Monitoring and early stopping
    monitor: str | Sequence[str] | None = None
    """The metric that decides which checkpoint is the best, or several metrics whose sum decides: metrics of the
    validation, compared after each validation, or of the train split ("train/loss"), whose means over the epoch are
    compared at the end of each epoch, also without a validation."""
    mode: Literal["min", "max"] = "min"
    """Whether a lower ("min") or a higher ("max") value of the monitored metric is better."""
    patience: int | None = None
    """The number of validations in a row without an improvement after which the run ends; of epochs if `monitor` is a
    metric of the train split. None disables this."""
    min_delta: float = 0.0
    """The change that an improvement of the score must exceed."""

    # Checkpoints
    save_every_epochs: int | None = 1
    """The number of epochs between checkpoints. It can be combined with `save_every_steps` and `save_every_minutes`.
    The final state is always saved."""
    save_every_steps: int | None = None
    """The number of steps between checkpoints."""
    save_every_minutes: float | None = None
    """The minutes between checkpoints."""
    keep_last: int = 1
    """The number of newest checkpoints to keep. -1 keeps all of them. 0 saves no periodic checkpoints, but only the
    best ones and the final one."""
    keep_best: int = 1
    """The number of best checkpoints to keep, according to `monitor`. -1 keeps every checkpoint that was validated. 0
    keeps none."""
    async_save: bool = True
    """Whether a thread writes checkpoints in the background, from a copy of the state in CPU memory. An error in this
    thread is raised at the next save, or at the end of the run."""
    sigusr1: Literal["save", "stop"] = "save"
    """What SIGUSR1 does, which schedulers of clusters send before the time of a job is over. After the step it saves
    a checkpoint; then the training goes on, or with "stop" it ends as after SIGTERM, with status 138. Outside of a
    training it does nothing, or with "stop" ends the call at once, so that it is never lost."""

    # Logging and display
    log_every_steps: int = 50
    """The number of steps between two rows of training metrics. A step that writes a row is called a logging step. The
    last step of an epoch is always one."""
    log_grad_norm: bool | Literal["per-parameter"] = False
    """Whether to log the 2-norm of the gradients of each optimizer at logging steps, before clipping. "per-parameter"
    also logs the norm of each parameter's gradient. `Model.optimizer_step` computes the norms."""
    log_param_norm: bool | Literal["per-parameter"] = False
    """Whether to log the 2-norm of all trainable parameters at logging steps, after the step. "per-parameter" also logs
    the norm of each parameter."""
    loggers: list[Logger] | tuple[Logger, ...] = ()
    """Objects that receive the metrics. Each implements the protocol `helios_lite.loggers.Logger`."""
    callbacks: list[CallbackLike] | tuple[CallbackLike, ...] = ()
    """Objects of the class `helios_lite.Callback`. Their hooks are called after those of the model, in this order."""
    log_level: Literal["quiet", "normal", "verbose"] = "normal"
    """What the console shows. "quiet" shows warnings only, and turns `progress` and `print_banner` off. "normal" also
    shows from where a run resumes. "verbose" also shows what is otherwise in `train.log` only: options, rows of
    metrics, saved checkpoints."""
    progress: bool = True
    """Whether to show progress: bars on a terminal or in a notebook, otherwise a line per row of metrics."""
    print_banner: bool = True
    """Whether to print the banner, the table of parameters and the final table."""

    _used_by: ClassVar[str | None] = None  # The running call; an instance has its own meanwhile.

    def __post_init__(self) -> None:
        self.check()

    def __setattr__(self, name: str, value: object) -> None:
        """Set an option, which takes effect in the next call.

        Raises:
            AttributeError: a call of the trainer is running. It has begun with its options, and would use some of the
                new values and not others.
        """
        if self._used_by is not None:
            raise AttributeError(
                f"{name}: cannot be set while {self._used_by} is running; set it before. To end a training from a "
                "hook, override Model.should_training_stop; optimizer_step has an own clip_norm"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running call, which is not that of a copy."""
        return {name: value for name, value in vars(self).items() if name != "_used_by"}

    def begin_use(self, call: str) -> None:
        """Refuse to set options until `end_use`.

        Args:
            call: what is running, for the error.
        """
        vars(self)["_used_by"] = call

    def end_use(self) -> None:
        """Let options be set again."""
        vars(self).pop("_used_by", None)

    def __repr__(self) -> str:
        """Return the call that makes such a trainer: the options that differ from their defaults."""
        changed = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if repr(value) != repr(default):
                changed.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(changed)})"

    def check(self) -> None:
        """Check every option. A trainer does so when it is made, and again at the start of every call.

        Raises:
            TypeError, ValueError: an option has a wrong type or value.
            AttributeError: an attribute was assigned that is no option; the message has the most similar one.
        """
        options = [field.name for field in dataclasses.fields(self)]
        for name in vars(self):
            if name not in options and not hasattr(type(self), name):  # A class may declare more attributes.
                raise AttributeError(f"{name}: is no option of {type(self).__name__}; {option_hint(name, options)}")
        for name, rule in _RULES.items():
            require(name, getattr(self, name), rule)
        if self.init_parts is not None and self.init_from is None:
            raise ValueError(f"init_parts={shown(self.init_parts)}: must be None without init_from")
        if self.deterministic and self.benchmark:
            raise ValueError("deterministic: excludes benchmark, which chooses other algorithms in every run")
        self._check_accelerator()
        indices = self.devices if isinstance(self.devices, list | tuple) else ()
        if self.accelerator == "cpu" and [*indices] != [*range(len(indices))]:
            raise ValueError(
                f"devices={shown(self.devices)}: CPUs have no numbers; write devices={len(indices)} for so many "
                "processes, or another accelerator"
            )
        if self.monitors_training and not all(name.startswith("train/") for name in self._monitored()):
            raise ValueError(
                f"monitor={shown(self.monitor)}: must be metrics of the train split or of the validation, not of both"
            )
        for name, others in _EXCLUDED.items():
            for other in others:
                if getattr(self, name) is not None and getattr(self, other) is not None:
                    raise ValueError(f"{name}: excludes {other}; set one of them to None")

    def _check_accelerator(self) -> None:
        """Raise a ValueError for a type of device that PyTorch does not know."""
        try:
            is_known = self.accelerator == "auto" or torch.device(self.accelerator).index is None
        except RuntimeError:
            is_known = False
        if not is_known:
            raise ValueError(
                f'accelerator={shown(self.accelerator)}: must be "auto", "cpu" or a type of device that PyTorch '
                'knows, such as "cuda", "xpu" or "mps"; import the package that adds another one before'
            )

    @property
    def monitors_training(self) -> bool:
        """Whether `monitor` is a metric of the train split, or the sum of several."""
        return any(name.startswith("train/") for name in self._monitored())

    def _monitored(self) -> list[str]:
        return [self.monitor] if isinstance(self.monitor, str) else [*(self.monitor or ())]

    def limit_of(self, phase: str) -> int | float | None:
        """Return the limit of a split: a number of batches (0 turns it off), a part of them (a float), None for all.

        Of training `fast_dev_run` limits the steps, which may take several batches.

        Args:
            phase: "train", "valid" or "test".
        """
        limits = {"train": self.limit_train_batches, "valid": self.limit_valid_batches}
        limit = limits.get(phase, self.limit_test_batches)
        if self.fast_dev_run and phase != "train" and limit != 0:
            return int(self.fast_dev_run)
        return self.overfit_batches if self.overfit_batches is not None and phase != "test" else limit

    def config(self) -> dict[str, Any]:
        """Return every option as plain data: numbers, strings, lists and dicts. `Trainer.from_config` takes it.

        An object, such as a callback, becomes a dict with its class and the arguments of its constructor, `{"class":
        "helios_lite.callbacks.EMA", "decay": 0.999, "name": "net"}`. The arguments are read from its attributes with
        the names of the parameters, or these names after an underscore, and must be plain data. If they are not, the
        object becomes the name of its class.
        """
        return {field.name: to_plain_data(getattr(self, field.name)) for field in dataclasses.fields(Options)}


def _rule(field: dataclasses.Field[Any]) -> Rule:
    if field.name in RULES:
        return RULES[field.name]
    return flag if field.type is bool else choice(*get_args(field.type))


_RULES = {field.name: _rule(field) for field in dataclasses.fields(Options)}
