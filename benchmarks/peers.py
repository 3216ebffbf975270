"""What a step costs with other trainers, beside ours and a loop by hand: python -m benchmarks.peers

Those that are installed take part: pip install lightning accelerate pytorch-ignite torchtnt torchdata helios-ml
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.resume_position import AFTER, Numbers, Resumed
from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, ratios, weights
from benchmarks.step_overhead import BATCH, SIZES, by_hand, by_trainer, make, ready, result
from helios_lite import DataModule, Split, Trainer

EPOCHS, STEPS, VALID_STEPS, POSITION = 20, 250, 25, 5000
SAMPLES = 2 * POSITION * BATCH  # Of the epoch that is resumed in its middle.
PACKAGES = {
    "Lightning": "lightning",
    "Accelerate": "accelerate",
    "Ignite": "pytorch-ignite",
    "torchtnt": "torchtnt",
    "helios-ml": "helios-ml",
}
MODULES = {"pytorch-ignite": "ignite", "helios-ml": "helios"}

Batches = Iterable[tuple[Tensor, Tensor]]


class Ready:
    """Batches that cost nothing to load, in no list, which Lightning would take for several loaders."""

    def __init__(self, steps: int) -> None:
        self._batches = ready(steps)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def dataset(steps: int) -> TensorDataset:
    x, y = (torch.cat(part) for part in zip(*ready(steps), strict=True))
    return TensorDataset(x, y)


def loader(steps: int) -> DataLoader:
    """Return what users of the other trainers write for tensors in memory."""
    return DataLoader(dataset(steps), batch_size=BATCH)


def by_lightning(train: Any, valid: Any = None) -> Result:
    """Its `barebones` mode is made for such comparisons; with a validation all is on but checkpoints."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.set_num_threads(1)
            self.net, _ = make(*SIZES)
            self.marks: list[float] = []

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), lr=0.01)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = F.mse_loss(self.net(batch[0]), batch[1])
            if valid is not None:
                self.log("loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("valid_loss", F.mse_loss(self.net(batch[0]), batch[1]))

        def on_train_epoch_start(self) -> None:
            self.marks.append(time.perf_counter())

        def on_train_end(self) -> None:
            self.marks.append(time.perf_counter())

    options: dict[str, Any] = {"barebones": True}
    if valid is not None:
        options = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    module = Module()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", enable_model_summary=False, **options)
        trainer.fit(module, train, valid)
    return result(module.marks, module.net)


def by_accelerate(train: Any, valid: Any = None) -> Result:
    """A loop of one's own, in which it prepares the objects and runs the backward pass."""
    from accelerate import Accelerator
    from tqdm import tqdm

    torch.set_num_threads(1)
    accelerator, marks = Accelerator(cpu=True), []
    net, optimizer = accelerator.prepare(*make(*SIZES))
    if valid is not None:
        train, valid = accelerator.prepare(train, valid)
    for _ in range(EPOCHS):
        marks.append(time.perf_counter())
        for x, y in train if valid is None else tqdm(train):
            loss = F.mse_loss(net(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if valid is not None:
            net.eval()
            with torch.no_grad():
                losses = [accelerator.gather_for_metrics(F.mse_loss(net(x), y)) for x, y in valid]
            torch.stack(losses).mean().item()
            net.train()
    marks.append(time.perf_counter())
    return result(marks, accelerator.unwrap_model(net))


def by_ignite(train: Any, valid: Any = None) -> Result:
    """Engines made of step functions; with a validation a bar, the loss as a metric, and an evaluator."""
    from ignite.engine import Engine, Events, create_supervised_evaluator
    from ignite.handlers import ProgressBar
    from ignite.metrics import Loss, RunningAverage

    torch.set_num_threads(1)
    net, optimizer = make(*SIZES)
    marks = []

    def step(engine: Any, batch: Any) -> float | None:
        net.train()
        optimizer.zero_grad()
        loss = F.mse_loss(net(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return None if valid is None else loss.item()

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: marks.append(time.perf_counter()))
    if valid is not None:
        RunningAverage(output_transform=lambda loss: loss).attach(engine, "loss")
        ProgressBar().attach(engine, ["loss"])
        evaluator = create_supervised_evaluator(net, {"loss": Loss(F.mse_loss)})
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(valid))
    engine.run(train, max_epochs=EPOCHS)
    marks.append(time.perf_counter())
    return result(marks, net)


def by_torchtnt(train: Any, valid: Any = None) -> Result:
    """An AutoUnit, which has the optimizer and the backward pass."""
    from torchtnt.framework.auto_unit import AutoUnit
    from torchtnt.framework.callbacks import TQDMProgressBar
    from torchtnt.framework.fit import fit
    from torchtnt.framework.train import train as train_alone

    marks: list[float] = []

    class Unit(AutoUnit[Any]):
        def configure_optimizers_and_lr_scheduler(self, module: nn.Module) -> Any:
            return torch.optim.SGD(module.parameters(), lr=0.01), None

        def compute_loss(self, state: Any, data: Any) -> Any:
            outputs = self.module(data[0])
            return F.mse_loss(outputs, data[1]), outputs

        def on_train_epoch_start(self, state: Any) -> None:
            super().on_train_epoch_start(state)
            marks.append(time.perf_counter())

    torch.set_num_threads(1)
    net, _ = make(*SIZES)
    unit = Unit(module=net, device=torch.device("cpu"))
    if valid is None:
        train_alone(unit, train, max_epochs=EPOCHS)
    else:
        bars: Any = [TQDMProgressBar()]
        fit(unit, train_dataloader=train, eval_dataloader=valid, max_epochs=EPOCHS, callbacks=bars)
    marks.append(time.perf_counter())
    return result(marks, net)


def by_helios_ml(train: Any, valid: Any = None) -> Result:
    """With a validation also its bars, and the loss in the table of losses that it shows."""
    module = helios_model(watched=valid is not None)
    options: dict[str, Any] = {}
    if valid is not None:
        options = {"enable_progress_bar": True, "print_frequency": 50, "valid_frequency": 1}
    run_helios_ml(module, helios_data(train, valid), train_unit="epoch", total_steps=EPOCHS, **options)
    return result(module.marks, module.net)


def helios_model(watched: bool = False) -> Any:
    import helios.model

    class Module(helios.model.Model):
        def __init__(self) -> None:
            super().__init__("linear")
            self.marks: list[float] = []
            self.first: float | None = None

        def setup(self, for_inference: bool = False) -> None:
            torch.set_num_threads(1)
            self.net, self.optimizer = make(*SIZES)

        def train_step(self, batch: Any, state: Any) -> None:
            self.first = self.first or time.perf_counter()
            loss = F.mse_loss(self.net(batch[0]), batch[1])
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if watched:
                self._loss_items["loss"] = loss

        def valid_step(self, batch: Any, step: int) -> None:
            F.mse_loss(self.net(batch[0]), batch[1])

        def on_training_epoch_start(self, current_epoch: int) -> None:
            self.marks.append(time.perf_counter())

        def on_training_end(self) -> None:
            self.marks.append(time.perf_counter())

        def train(self) -> None:
            self.net.train()

        def eval(self) -> None:
            self.net.eval()

        def state_dict(self) -> dict[str, Any]:
            return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

        def load_state_dict(self, state_dict: dict[str, Any], for_inference: bool = False, **_: Any) -> None:
            self.net.load_state_dict(state_dict["net"])
            self.optimizer.load_state_dict(state_dict["optimizer"])

    return Module()


def helios_data(train: Any, valid: Any) -> Any:
    """Return a datamodule of datasets, or one that passes ready batches on."""
    import helios.data
    from helios.data.samplers import ResumableSequentialSampler

    class Data(helios.data.DataModule):
        def setup(self) -> None:
            if not isinstance(train, Ready):
                self._add_train_phase(train, helios.data.DataLoaderParams(batch_size=BATCH))
            if valid is not None:
                self._add_valid_dataset(valid, helios.data.DataLoaderParams(batch_size=BATCH))

        def train_dataloader(self) -> Any:
            if isinstance(train, Ready):
                return train, ResumableSequentialSampler(range(len(train)), batch_size=1)
            return super().train_dataloader()

    return Data()


def run_helios_ml(module: Any, data: Any, **options: Any) -> None:
    from helios.trainer import Trainer

    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(run_name="peers", use_cpu=True, print_banner=False, **options).fit(module, data)


def resumed_by_helios_ml() -> Result:
    """Its checkpoints hold the position, and its own samplers go on there."""
    options = {"train_unit": "iteration", "chkpt_frequency": POSITION}
    with tempfile.TemporaryDirectory() as folder:
        options["chkpt_root"] = Path(folder)
        run_helios_ml(helios_model(), helios_data(Numbers(SAMPLES), None), total_steps=POSITION, **options)
        module, start = helios_model(), time.perf_counter()
        run_helios_ml(module, helios_data(Numbers(SAMPLES), None), total_steps=POSITION + AFTER, **options)
    return first_batch(module.first, start, module.net)


def resumed_ours() -> Result:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"root": folder, "progress": False, "print_banner": False}
        data = DataModule(train=Split(Numbers(SAMPLES), BATCH))
        Trainer(max_steps=POSITION, **options).fit(Resumed(*SIZES), data)
        model, start = Resumed(*SIZES), time.perf_counter()
        Trainer(max_steps=POSITION + AFTER, **options).fit(model, data)
    return first_batch(model.first, start, model.net)


def resumed_by_hand() -> Result:
    torch.set_num_threads(1)
    net, optimizer = make(*SIZES)
    train_on(net, optimizer, itertools.islice(numbers(), POSITION))
    with tempfile.NamedTemporaryFile() as file:
        torch.save([net.state_dict(), optimizer.state_dict()], file.name)
        net, optimizer = make(*SIZES)
        start = time.perf_counter()
        for part, state in zip((net, optimizer), torch.load(file.name), strict=True):
            part.load_state_dict(state)
    left = DataLoader(Numbers(SAMPLES), batch_size=BATCH, sampler=range(POSITION * BATCH, SAMPLES))
    first = train_on(net, optimizer, itertools.islice(left, AFTER))
    return first_batch(first, start, net)


def resumed_by_accelerate() -> Result:
    """As its page on checkpoints says: `save_state`, `load_state` and `skip_first_batches`."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    net, optimizer, loader = accelerator.prepare(*make(*SIZES), numbers())
    with tempfile.TemporaryDirectory() as folder:
        train_on(net, optimizer, itertools.islice(loader, POSITION), accelerator.backward)
        accelerator.save_state(folder)
        accelerator.free_memory(net, optimizer, loader)
        net, optimizer, loader = accelerator.prepare(*make(*SIZES), numbers())
        start = time.perf_counter()
        accelerator.load_state(folder)
    left = accelerator.skip_first_batches(loader, POSITION)
    first = train_on(net, optimizer, itertools.islice(left, AFTER), accelerator.backward)
    return first_batch(first, start, accelerator.unwrap_model(net))


def resumed_by_ignite() -> Result:
    """Its DeterministicEngine, which goes on at the iteration of the state that it loads."""
    from ignite.engine import Events
    from ignite.engine.deterministic import DeterministicEngine

    torch.set_num_threads(1)

    def run(state: dict[str, Any] | None, steps: int) -> tuple[nn.Module, Any, float, dict[str, Any]]:
        net, optimizer = make(*SIZES)
        seen: list[float] = []

        def step(engine: Any, batch: Any) -> None:
            seen.append(train_on(net, optimizer, [batch]))

        engine = DeterministicEngine(step)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=steps), lambda: engine.terminate())
        if state is not None:
            for part, name in ((net, "net"), (optimizer, "optimizer"), (engine, "engine")):
                part.load_state_dict(state[name])
        engine.run(numbers(), max_epochs=1)
        states = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "engine": engine.state_dict()}
        return net, optimizer, seen[0], states

    with tempfile.NamedTemporaryFile() as file:
        torch.save(run(None, POSITION)[-1], file.name)
        start = time.perf_counter()
        net, _, first, _ = run(torch.load(file.name, weights_only=False), POSITION + AFTER)
    return first_batch(first, start, net)


def resumed_by_lightning() -> Result:
    """With torchdata's StatefulDataLoader, whose state its checkpoints hold."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torchdata.stateful_dataloader import StatefulDataLoader

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.set_num_threads(1)
            self.net, _ = make(*SIZES)
            self.first: float | None = None

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), lr=0.01)

        def training_step(self, batch: Any, index: int) -> Tensor:
            self.first = self.first or time.perf_counter()
            return F.mse_loss(self.net(batch[0]), batch[1])

    def run(steps: int, path: Path | None, callbacks: list[Any]) -> Module:
        off = ("enable_model_summary", "enable_progress_bar", "logger")
        options: dict[str, Any] = {**dict.fromkeys(off, False), "enable_checkpointing": bool(callbacks)}
        trainer = lightning.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=callbacks, **options)
        module = Module()
        trainer.fit(module, StatefulDataLoader(Numbers(SAMPLES), batch_size=BATCH), ckpt_path=path)
        return module

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(POSITION, None, [ModelCheckpoint(folder, "saved", every_n_train_steps=POSITION)])
        start = time.perf_counter()
        module = run(POSITION + AFTER, Path(folder, "saved.ckpt"), [])
    return first_batch(module.first, start, module.net)


def numbers() -> DataLoader:
    return DataLoader(Numbers(SAMPLES), batch_size=BATCH)


def train_on(net: nn.Module, optimizer: Any, batches: Iterable[Any], backward: Any = torch.Tensor.backward) -> float:
    """Train, and return when the first batch was there."""
    first: float | None = None
    for x, y in batches:
        first = first or time.perf_counter()
        backward(F.mse_loss(net(x), y))
        optimizer.step()
        optimizer.zero_grad()
    assert first is not None
    return first


def first_batch(first: float | None, start: float, net: nn.Module) -> Result:
    assert first is not None
    return {"case": "resume", "seconds": first - start, "weights": weights(*net.parameters())}


PEERS: dict[str, Callable[..., Result]] = {
    "Lightning": by_lightning,
    "Accelerate": by_accelerate,
    "Ignite": by_ignite,
    "torchtnt": by_torchtnt,
    "helios-ml": by_helios_ml,
}


RESUMED: dict[str, Callable[[], Result]] = {
    "helios_lite": resumed_ours,
    "Lightning": resumed_by_lightning,
    "Accelerate": resumed_by_accelerate,
    "Ignite": resumed_by_ignite,
    "helios-ml": resumed_by_helios_ml,
}


def installed() -> list[str]:
    """Return the names of the trainers that can be imported."""
    return [name for name in PEERS if importlib.util.find_spec(MODULES.get(PACKAGES[name], PACKAGES[name]))]


def in_every_epoch(batches: Batches, epoch: int) -> Batches:
    return batches


def from_loader(steps: int, epoch: int) -> Batches:
    return loader(steps)


def typical_by_hand() -> Result:
    return by_hand(partial(from_loader, STEPS), SIZES, list(ready(VALID_STEPS)), EPOCHS)


def variants() -> dict[str, Callable[[], Result]]:
    bare: dict[str, Callable[[], Result]] = {
        "bare by hand": lambda: by_hand(partial(in_every_epoch, ready(STEPS)), SIZES, epochs=EPOCHS),
        "bare helios_lite": lambda: by_trainer(Ready(STEPS), SIZES, max_epochs=EPOCHS),
    }
    typical: dict[str, Callable[[], Result]] = {
        "typical by hand": typical_by_hand,
        "typical helios_lite": lambda: by_trainer(
            Split(dataset(STEPS), BATCH), SIZES, Split(dataset(VALID_STEPS), BATCH), max_epochs=EPOCHS
        ),
    }
    for name in installed():
        bare[f"bare {name}"] = partial(PEERS[name], Ready(STEPS))
        typical[f"typical {name}"] = partial(_typical, name)
    resumed = {f"resumed {name}": run for name, run in RESUMED.items() if name in ("helios_lite", *installed())}
    return bare | typical | {"resumed by hand": resumed_by_hand} | resumed


def _typical(name: str) -> Result:
    made = dataset if name == "helios-ml" else loader  # It makes the loaders itself.
    return PEERS[name](made(STEPS), made(VALID_STEPS))


def version(name: str) -> str:
    return f"{name} {importlib.metadata.version(PACKAGES.get(name, name))}"


def figures(runs: Runs) -> list[Figure]:
    per_step = 1e6 / STEPS
    names = ["helios_lite", *(name for name in PEERS if f"bare {name}" in runs)]
    found = [
        Figure(
            f"bare: {version(name)} - by hand",
            "us/step",
            differences(runs, f"bare {name}", "bare by hand", "seconds", per_step),
        )
        for name in names
    ]
    found += [
        Figure(
            f"typical: {version(name)} / by hand",
            "ratio",
            ratios(runs, f"typical {name}", "typical by hand", "seconds"),
        )
        for name in names
    ]
    found += [
        Figure(
            f"resumed: {version(name)} - by hand",
            "ms",
            differences(runs, f"resumed {name}", "resumed by hand", "seconds", 1e3),
        )
        for name in RESUMED
        if f"resumed {name}" in runs
    ]
    return [
        *found,
        Figure("the bare loop by hand", "us/step", each(runs, "bare by hand", "seconds", per_step)),
        Figure("the first batch of a loop resumed by hand", "ms", each(runs, "resumed by hand", "seconds", 1e3)),
        Figure("the loop over a DataLoader by hand", "us/step", each(runs, "typical by hand", "seconds", per_step)),
    ]


QUESTION = Question(
    name="peers",
    title="What does a step cost with other trainers?",
    timed=f"""
    The network and data of the step overhead, the fastest of {EPOCHS} epochs of {STEPS} steps. Bare: ready batches, and
    nothing is shown, logged or validated. Typical: a progress bar, the loss logged in every step, and a validation of
    {VALID_STEPS} batches after each epoch, over a TensorDataset in the way in which users of each trainer pass it: a
    DataLoader, and for helios_lite a Split. By hand: a loop over the DataLoader with the validation, which shows and
    logs nothing. Resumed: from a checkpoint after {POSITION:,} of {2 * POSITION:,} batches of a dataset that is read
    one by one in order, to the first batch after it, with what the documentation of each has for this (torchtnt is
    left out: it only knows a loader of the user's own); {AFTER} more steps show that all are at the same sample. All
    end with the same weights. Each trainer is set up as its documentation says; what is not needed (checkpoints,
    summaries) is off.
    """,
    remains="""
    A ratio below one is possible, because a Split of tensors in memory needs no DataLoader. A resume of ours also finds
    and reads its checkpoint with checksums, locks the run folder and opens its files; by hand a path is known.
    """,
    rounds=5,
    variants=variants(),
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
