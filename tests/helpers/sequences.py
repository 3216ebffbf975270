"""Random sequences of calls on the same runs, each a function of a seed and a number, and what loggers must have.

After every sequence each logger has every row of each run once, those of metrics.jsonl, and what belongs to others is
as it was.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helios_lite import Callback, DataModule, Model, Split
from helios_lite.callbacks import EMA, ActivationStatistics, DeviceMemory, Profile
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.loggers import JsonlLogger, MLflowLogger, TensorBoardLogger, WandbLogger, _mlflow_name
from helios_lite.metrics.measurements import is_measured
from helios_lite.metrics.rows import ROW_COLUMNS
from helpers.models import Indices, quiet
from helpers.rows import read_rows
from helpers.scripts import DEADLINE

HOOKS = [
    "train_step",
    "valid_step",
    "on_training_start",
    "on_training_batch_end",
    "on_training_epoch_end",
    "on_training_end",
    "on_validation_end",
    "log_metrics",
    "log_end",
    "close",
]
EPOCH = 5
Values = Counter[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Action:
    """A call.

    Attributes:
        method: "fit", or another method of the trainer; "quick" is a `fit` with `fast_dev_run`.
        run: the name of the run.
        resume: the option.
        max_steps: the option.
        rate: the learning rate.
        how: how the call ends: "", "raise", SIGTERM ("terminate") or SIGKILL ("kill").
        hook: where it is cut.
        count: in which call of the hook.
        checkpoint: of an evaluation.
    """

    method: str
    run: str
    resume: str = "auto"
    max_steps: int = 4
    rate: float = 0.1
    how: str = ""
    hook: str = ""
    count: int = 1
    checkpoint: str = "last"


@dataclasses.dataclass(frozen=True)
class Case:
    """A sequence.

    Attributes:
        actions: the calls.
        options: those of the trainer that stay the same.
        uses_writer: whether `setup` uses the writer of TensorBoard.
        keeps_loggers: whether the calls have the same loggers, in one process, except those that are killed.
    """

    actions: list[Action]
    options: dict[str, Any]
    uses_writer: bool
    keeps_loggers: bool


def make_case(seed: int, number: int) -> Case:
    """Return a case."""
    draw = random.Random(f"{seed}/{number}")
    actions = []
    methods = ["fit"] * 9 + ["best"] * 2 + ["new", "quick", "quick", "test", "validate", "predict", "replay", "plan"]
    for _ in range(draw.randint(2, 6)):
        method = draw.choice(methods)
        run = draw.choice(["one", "one", "one", "other"])
        if method not in ("fit", "best", "new", "quick"):
            actions.append(Action(method, run, checkpoint=draw.choice(["best", "last"])))
            continue
        how = draw.choice(["", "", "raise", "terminate", "kill"])
        actions.append(
            Action(
                "quick" if method == "quick" else "fit",
                run,
                resume={"best": "best", "new": "new"}.get(method, "auto"),
                max_steps=draw.choice([3, 7, 10, 12, 15]),
                rate=draw.choice([0.1, 0.1, 0.1, 0.2]),
                how=how,
                hook=draw.choice(HOOKS) if how else "",
                count=draw.randint(1, 9),
            )
        )
    options = {
        "log_every_steps": draw.choice([1, 2, 3]),
        "save_every_steps": draw.choice([None, 2, 3]),
        "save_every_epochs": draw.choice([None, 1]),
        "valid_every_steps": draw.choice([None, 2, 3]),
        "valid_every_epochs": draw.choice([None, 1]),
        "keep_last": draw.choice([1, 3]),
        "async_save": draw.choice([False, True]),
    }
    if options["valid_every_steps"] is options["valid_every_epochs"] is None:
        options["valid_every_epochs"] = 1
    return Case(actions, options, draw.random() < 0.3, draw.random() < 0.3)


class CutError(Exception):
    """Ends a call."""


class Cutter(Callback):
    """Ends a call at one of the calls of a hook, or of a method of the logger of the same name that it is too."""

    def __init__(self, action: Action) -> None:
        self.action, self.left = action, action.count

    def cut(self, hook: str) -> None:
        if hook != self.action.hook:
            return
        self.left -= 1
        if self.left == 0 and self.action.how == "raise":
            raise CutError
        if self.left == 0 and self.action.how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.left == 0 and self.action.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_training_start(self) -> None:
        self.cut("on_training_start")

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.cut("on_training_batch_end")

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.cut("on_training_epoch_end")

    def on_training_end(self) -> None:
        self.cut("on_training_end")

    def on_validation_end(self, validation_cycle: int) -> None:
        self.cut("on_validation_end")


class Sent:
    """A logger that writes down what it is given, before the others, and is cut there."""

    def __init__(self, file: Path, cutter: Cutter) -> None:
        self.file, self.cutter = file, cutter

    def begin_call(self, run_folder: str | None, *, trains: bool, keeps: bool) -> None:
        self.run, self.trains = run_folder, trains

    def log_config(self, config: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.write("train" if self.trains else "evaluation", metrics, step)
        self.cutter.cut("log_metrics")

    def log_end(self, metrics: Any, step: int) -> None:
        self.write("end", metrics, step)
        self.cutter.cut("log_end")

    def write(self, kind: str, metrics: Any, step: int) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"run": self.run, "kind": kind, "step": step, "values": dict(metrics)}) + "\n")

    def close(self) -> None:
        self.cutter.cut("close")


class Sequenced(Model):
    """Logs names twice, names that a library does not take, and images by the number of the validation."""

    def __init__(self, rate: float, uses_writer: bool, cutter: Cutter) -> None:
        super().__init__("sequenced")
        self.rate, self.uses_writer, self.cutter = rate, uses_writer, cutter

    @property
    def writer(self) -> Any:
        return next(each for each in self.trainer.loggers if isinstance(each, TensorBoardLogger)).writer

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 1))
        nn.init.constant_(self.net.weight, 0.1)
        if not fast_init:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=self.rate)
        if self.uses_writer:
            self.writer.add_text("note", "set up", 0)

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        loss = (self.net(x) - 1).square().mean() + 0 * index.sum()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)
        self.log("acc@5", loss)
        self.cutter.cut("train_step")

    def on_validation_start(self, validation_cycle: int) -> None:
        self.score = float(validation_cycle * 7 % 5)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("loss", (self.net(batch[1]) - 1).square().mean())
        self.log("score", self.score)
        self.cutter.cut("valid_step")

    def on_testing_start(self) -> None:
        self.score = 0.0

    def on_validation_end(self, validation_cycle: int) -> None:
        if validation_cycle > 0 and self.is_in_training:
            self.writer.add_image("picture", torch.full((3, 2, 2), 0.5), validation_cycle)

    is_in_training = False

    def on_training_start(self) -> None:
        self.is_in_training = True

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.log("loss", 7.0)

    def on_training_end(self) -> None:
        self.log("loss", 3.0)
        self.log("whole", 1.0)

    def predict_step(self, batch: Any, step: int) -> Any:
        self.writer.add_text("predicted", "a batch", step)
        return self.net(batch[1])


class Sequence:
    """The folder of a sequence, and what is in it.

    Args:
        case: the case.
        root: an empty folder.
        store: the address of an MLflow store; None for MLflow and W&B not to be used.
    """

    def __init__(self, case: Case, root: Path, store: str | None) -> None:
        self.case, self.root, self.store = case, root.resolve(), store
        self.cutter = Cutter(Action("", ""))
        self.loggers = self.make_loggers()
        self.makes_runs = any(action.resume == "new" for action in case.actions)  # Whose names are not known.

    def make_loggers(self) -> list[Any]:
        """Return the loggers of a call: all runs have the same folder and the same files of ids."""
        root = self.root
        made: list[Any] = [Sent(root / "sent", self.cutter), TensorBoardLogger(root / "events")]
        if self.store is not None:
            made.append(MLflowLogger("sequences", root / "mlflow-id", tracking_uri=self.store))
            made.append(WandbLogger("sequences", root / "wandb-id", mode="offline", dir=str(root)))
        return made

    def trainer(self, action: Action) -> Any:
        loggers: list[Any] = self.loggers if self.case.keeps_loggers else self.make_loggers()
        loggers[0].cutter = self.cutter
        rows = JsonlLogger(self.root / f"{action.run}.jsonl")
        callbacks = [
            EMA(0.5),
            ActivationStatistics(["net"]),
            DeviceMemory(),
            Profile(self.root / "profile", first=2, last=2),
            self.cutter,
        ]
        return quiet(
            root=self.root / "runs",
            run_name=action.run,
            max_steps=action.max_steps,
            resume=action.resume,
            fast_dev_run=action.method == "quick",
            loggers=[*loggers, *([] if self.makes_runs else [rows])],
            callbacks=callbacks,
            monitor="valid/score",
            accelerator="cpu",
            **self.case.options,
        )

    def call(self, action: Action) -> None:
        """Do a call in this process."""
        self.cutter.action, self.cutter.left = action, action.count
        model = Sequenced(action.rate, self.case.uses_writer, self.cutter)
        split = Split(Indices(EPOCH * 2), batch_size=2, shuffle=True)
        data = DataModule(train=split, valid=Split(Indices(3), 2), test=Split(Indices(3), 2))
        trainer = self.trainer(action)
        with contextlib.suppress(CutError, SystemExit):
            try:
                if action.method in ("fit", "quick", "plan"):
                    getattr(trainer, "plan" if action.method == "plan" else "fit")(model, data)
                elif action.method == "replay":
                    trainer.replay(model, data, step=2)
                elif action.method == "predict":
                    list(trainer.predict(model, data, action.checkpoint))
                else:
                    getattr(trainer, action.method)(model, data, action.checkpoint)
            except (ValueError, FileNotFoundError, CheckpointError) as error:
                if not str(error).startswith(('resume="best"', "step=2", "checkpoint=")):
                    raise

    def call_in_child(self, action: Action) -> None:
        """Do a call in a process of its own, which may be killed."""

        def work() -> None:
            try:
                self.call(action)
            except BaseException:
                (self.root / "failed").write_text(traceback.format_exc())
                raise

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        if (self.root / "failed").exists():
            raise RuntimeError((self.root / "failed").read_text())
        assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGTERM), process.exitcode

    def run(self) -> str | None:
        """Do all calls, and train each run to its end; return what is wrong, None if nothing is."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.root / "events"), filename_suffix=".foreign") as writer:
            for step in range(30):
                writer.add_scalar("foreign", 1.0, step)
        foreign = next((self.root / "events").iterdir())
        before = foreign.read_bytes()
        for action in self.case.actions:
            present = self.present() if action.method in ("quick", "replay", "plan", "predict") else None
            in_process = self.case.keeps_loggers and action.how != "kill" and self.store is None
            (self.call if in_process else self.call_in_child)(action)
            if present is not None and action.method != "predict" and present != self.present():
                return f"{action}: changes what loggers have"
        for path in sorted((self.root / "runs").glob("*")) if (self.root / "runs").exists() else []:
            self.call_in_child(Action("fit", path.name, max_steps=16))
        if foreign.read_bytes() != before:
            return "a file of others has changed"
        return self.wrong()

    def present(self) -> Any:
        """Everything that loggers have, by file; of MLflow the number of runs and of values."""
        folders = [self.root / "events", self.root / "wandb"]
        paths = [path for folder in folders for path in folder.rglob("*.tfevents.*")]
        files = {str(path): path.stat().st_size for path in paths}
        files |= {path.name: path.read_text() for path in self.root.glob("*-id*")}
        return files, sorted(path.name for path in (self.root / "wandb").glob("*run-*"))

    def wrong(self) -> str | None:
        """Return what is wrong with what the loggers have, None if nothing is."""
        sent = [json.loads(line) for line in (self.root / "sent").open()] if (self.root / "sent").exists() else []
        for folder in sorted((self.root / "runs").glob("*")):
            if not (folder / "metrics.jsonl").exists():
                continue
            rows = read_rows(folder)
            # Those of an earlier end and of later evaluations are kept by some libraries, which cannot remove rows.
            extra = [row for row in sent if row["run"] == str(folder) and row["kind"] != "train"]
            needed, allowed = curves(rows), curves([*rows, *({"step": row["step"], **row["values"]} for row in extra)])
            found = {"TensorBoard": self.tensorboard(folder)}
            foreign = found["TensorBoard"].pop("foreign", Counter())
            if self.place(folder) == self.root / "events" and foreign.total() != 30:
                return f"{folder.name}, TensorBoard: hides what another program has written"
            if not self.makes_runs:
                own = [json.loads(line) for line in (self.root / f"{folder.name}.jsonl").open()]
                found["JsonlLogger"] = curves(own)
            if self.store is not None:
                found |= {"MLflow": self.mlflow(folder), "W&B": self.wandb(folder, needed)}
            for name, curves_found in found.items():
                if text := difference(needed, allowed, curves_found, name):
                    return f"{folder.name}, {name}: {text}"
            if text := self.wrong_images(folder, rows):
                return f"{folder.name}, TensorBoard: {text}"
        return None

    def place(self, folder: Path) -> Path:
        logger = TensorBoardLogger(self.root / "events")
        logger.begin_call(str(folder), trains=False, keeps=True)
        return logger._place

    def events(self, folder: Path) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.place(folder)), size_guidance={"images": 0, "scalars": 0})
        events.Reload()
        return events

    def tensorboard(self, folder: Path) -> dict[str, Values]:
        """What TensorBoard shows of a run; fp32."""
        events = self.events(folder)
        return {
            name: Counter((event.step, event.value) for event in events.Scalars(name))
            for name in events.Tags()["scalars"]
        }

    def wrong_images(self, folder: Path, rows: list[dict[str, Any]]) -> str | None:
        events = self.events(folder)
        cycles = [event.step for event in events.Images("picture")] if "picture" in events.Tags()["images"] else []
        count = sum("valid/score" in row and row.get("kind") in (None, "end") for row in rows)
        if sorted(cycles) != list(range(1, count + 1)):
            return f"images {cycles} of {count} validations"
        return None

    def mlflow(self, folder: Path) -> dict[str, Values]:
        import mlflow

        client = mlflow.MlflowClient(self.store)
        experiment = client.get_experiment_by_name("sequences")
        (run,) = client.search_runs(
            [experiment.experiment_id],
            f"tags.`helios_lite.run_folder` = '{folder}'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return {
            name: Counter((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }

    def wandb(self, folder: Path, needed: dict[str, Values]) -> dict[str, Values]:
        """What the files have that `wandb sync` would send; its own process may still be writing."""
        about = json.loads((self.root / "wandb-id").read_text())
        run_id = [each for each, run in about["runs"].items() if run == str(folder)][-1]
        limit = time.monotonic() + DEADLINE
        while True:
            files = sorted((self.root / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
            found = curves([row for file in files for row in wandb_history(file)])
            if all(not needed[name] - found.get(name, Counter()) for name in needed) or time.monotonic() > limit:
                return found
            time.sleep(0.2)


def curves(rows: list[dict[str, Any]]) -> dict[str, Values]:
    """The values of each metric with their steps, without what is measured."""
    found: dict[str, Values] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ROW_COLUMNS and not name.startswith("_") and not is_measured(name):
                found.setdefault(name, Counter())[(row["step"], value)] += 1
    return found


def difference(
    needed: dict[str, Values], allowed: dict[str, Values], found: dict[str, Values], logger: str
) -> str | None:
    """Return the first metric of which a logger has other values than it needs, and may have."""
    for name in sorted({*needed, *found, *allowed}):
        own = _mlflow_name(name) if logger == "MLflow" else name
        if is_measured(name) or name in ROW_COLUMNS or (name not in allowed and name not in needed and own == name):
            if name in found and name not in allowed and not is_measured(name) and name not in ROW_COLUMNS:
                if logger == "MLflow" and any(_mlflow_name(each) == name for each in allowed):
                    continue
                return f"{name}: unexpected"
            continue
        have = rounded(found.get(own, Counter()))
        if missing := rounded(needed.get(name, Counter())) - have:
            return f"{name}: missing {dict(missing)}"
        if more := have - rounded(allowed.get(name, Counter())):
            return f"{name}: too many {dict(more)}"
    return None


def rounded(values: Values) -> Values:
    """In fp32, which TensorBoard has."""
    found: Values = Counter()
    for (step, value), count in values.items():
        found[(step, torch.tensor(value, dtype=torch.float32).item())] += count
    return found


def wandb_history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of an offline run."""
    for record in wandb_records(file):
        if record.HasField("history"):
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: protobuf in LevelDB's log format, after a header of seven bytes."""
    import struct

    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = file.read_bytes(), 7, b""
    while position < len(content):
        if 32768 - position % 32768 < 7:  # What is left of a block holds no record.
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += 7
        parts += content[position : position + length]
        position += length
        if kind in (1, 4):  # Whole, or the last part.
            yield Record.FromString(parts)
            parts = b""


def wrong(case: Case, root: Path, make_store: Callable[[Path], str] | None = None) -> str | None:
    """Do a sequence; return what is wrong then, None if nothing is."""
    return Sequence(case, root, None if make_store is None else make_store(root)).run()
