"""What a step costs with other trainers, beside ours and a loop by hand: python -m benchmarks.peers

Those that are installed take part: pip install lightning accelerate pytorch-ignite torchtnt
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.rounds import Figure, Question, Result, Runs, differences, each, ratios
from benchmarks.step_overhead import BATCH, SIZES, by_hand, by_trainer, make, ready, result, same
from helios_lite import Split

EPOCHS, STEPS, VALID_STEPS = 20, 250, 25
PACKAGES = {"Lightning": "lightning", "Accelerate": "accelerate", "Ignite": "pytorch-ignite", "torchtnt": "torchtnt"}
MODULES = {"pytorch-ignite": "ignite"}

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


PEERS: dict[str, Callable[..., Result]] = {
    "Lightning": by_lightning,
    "Accelerate": by_accelerate,
    "Ignite": by_ignite,
    "torchtnt": by_torchtnt,
}


def installed() -> list[str]:
    """Return the names of the trainers that can be imported."""
    return [name for name in PEERS if importlib.util.find_spec(MODULES.get(PACKAGES[name], PACKAGES[name]))]


def from_loader(steps: int, epoch: int) -> Batches:
    return loader(steps)


def typical_by_hand() -> Result:
    return by_hand(partial(from_loader, STEPS), SIZES, list(ready(VALID_STEPS)), EPOCHS)


def variants() -> dict[str, Callable[[], Result]]:
    bare: dict[str, Callable[[], Result]] = {
        "bare by hand": lambda: by_hand(partial(same, ready(STEPS)), SIZES, epochs=EPOCHS),
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
    return bare | typical


def _typical(name: str) -> Result:
    return PEERS[name](loader(STEPS), loader(VALID_STEPS))


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
    return [
        *found,
        Figure("the bare loop by hand", "us/step", each(runs, "bare by hand", "seconds", per_step)),
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
    logs nothing. All end with the same weights. Each trainer is set up as its documentation says; what is not needed
    (checkpoints, summaries) is off.
    """,
    remains="""
    A ratio below one is possible, because a Split of tensors in memory needs no DataLoader.
    """,
    rounds=5,
    variants=variants(),
    figures=figures,
)

if __name__ == "__main__":
    QUESTION.answer()
