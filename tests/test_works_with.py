"""What people bring along works, and a run with it that is stopped inside an epoch ends with the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import same, timeless, weights
from helpers.models import Tiny, data, quiet
from helpers.rows import read_rows
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, TensorDataset

from helios_lite import DataModule, Model, Split

DATA = TensorDataset(torch.arange(20), torch.linspace(-1, 1, 60).reshape(20, 3))


def require_exact(tmp_path: Path, make: Any, datamodule: Any = None, **options: Any) -> Any:
    """Train 13 steps at once and in three parts; return the model of the former."""
    if datamodule is None:

        def datamodule() -> DataModule:
            return DataModule(Split(DATA, batch_size=4, shuffle=True), Split(DATA, batch_size=8))

    ends, models = [], []
    for name, stops in (("whole", (13,)), ("parts", (3, 7, 13))):
        for steps in stops:
            model = make()
            result = quiet(max_steps=steps, root=tmp_path / name, log_every_steps=2, **options).fit(model, datamodule())
        ends.append((weights(model), timeless(result.metrics)))
        models.append(model)
    assert same(ends[0], ends[1])
    return models[0]


# Schedulers.

SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "step": lambda o: lr_scheduler.StepLR(o, 3),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=6),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 13),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 13),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=4),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=14),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")  # SequentialLR's own constructor.
@pytest.mark.filterwarnings("ignore:.*epoch parameter.*")
def test_schedulers(tmp_path: Path, name: str) -> None:
    class Scheduled(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
            self.scheduler = SCHEDULERS[name](self.optimizer)

    model = require_exact(tmp_path, Scheduled)
    assert model.scheduler.last_epoch if name != "chained" else True
    assert len({group["lr"] for group in model.optimizer.param_groups}) == 1


def test_reduce_on_plateau_moved_after_every_validation(tmp_path: Path) -> None:
    class Plateau(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.scheduler = None
            self.plateau = lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.5, patience=0, threshold=0.5)

        def have_metrics_improved(self) -> bool:
            self.plateau.step(self.metrics["valid/loss"])
            return super().have_metrics_improved()

    model = require_exact(tmp_path, Plateau, valid_every_epochs=None, valid_every_steps=2)
    assert model.optimizer.param_groups[0]["lr"] < 0.01


# Networks.


def test_an_averaged_model_of_pytorch(tmp_path: Path) -> None:
    class Averaged(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.average = AveragedModel(self.net)

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.average.update_parameters(self.net)

    assert require_exact(tmp_path, Averaged).average.n_averaged == 13


def test_parametrizations(tmp_path: Path) -> None:
    class Parametrized(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            net = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), nn.Linear(3, 1))
            nn.utils.parametrizations.weight_norm(net[1])
            self.net = self.parallelize(net)
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            self.scheduler = None

    weight = require_exact(tmp_path, Parametrized).net[0].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(3))


class Words(Model):
    """Predicts a number from itself."""

    def __init__(self, sparse: bool = False, tied: bool = False) -> None:
        super().__init__("words")
        self.hparams = {"sparse": sparse, "tied": tied}

    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(nn.Embedding(20, 8, sparse=self.hparams["sparse"]), nn.Linear(8, 20, bias=False))
        if self.hparams["tied"]:
            net[1].weight = net[0].weight
        self.net = self.parallelize(net)
        parameters = list(self.net.parameters())
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(parameters, lr=0.5)]
        if self.hparams["sparse"]:
            dense = torch.optim.Adam(parameters[1:], lr=0.01)
            self.optimizers = [torch.optim.SparseAdam(parameters[:1], lr=0.01), dense]

    def train_step(self, batch: Any, state: Any) -> None:
        index, _ = batch
        loss = F.cross_entropy(self.net(index), index)
        self.backward(loss)
        for optimizer in self.optimizers:
            self.optimizer_step(optimizer)
        self.log("loss", loss)

    def valid_step(self, batch: Any, step: int) -> None:
        index, _ = batch
        self.log("loss", F.cross_entropy(self.net(index), index))


def test_tied_weights_stay_tied_and_are_counted_once(tmp_path: Path) -> None:
    model = require_exact(tmp_path, lambda: Words(tied=True))
    assert model.net[0].weight is model.net[1].weight
    assert model.num_parameters() == 160
    path = next((tmp_path / "whole/words/checkpoints").glob("*_13.pth"))
    loaded = Words.load_from_checkpoint(path)
    assert loaded.net[0].weight is loaded.net[1].weight
    assert same(loaded.net.state_dict(), model.net.state_dict())


def test_sparse_embeddings_and_optimizers_in_a_list(tmp_path: Path) -> None:
    model = require_exact(tmp_path, lambda: Words(sparse=True))
    assert list(weights(model)) == ["net", "optimizers.0", "optimizers.1"]


def test_metrics_of_torchmetrics_as_attributes(tmp_path: Path) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Words):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.right = torchmetrics.classification.MulticlassAccuracy(20, average="micro").to(self.device)
            self.losses = torchmetrics.MeanMetric().to(self.device)

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.losses.update(float(state.batch))

        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.log("batches", self.losses.compute())
            self.losses.reset()

        def valid_step(self, batch: Any, step: int) -> None:
            super().valid_step(batch, step)
            index, _ = batch
            self.right.update(self.net(index), index)

        def on_validation_end(self, validation_cycle: int) -> None:
            super().on_validation_end(validation_cycle)
            self.log("accuracy", self.right.compute())
            self.right.reset()

    model = require_exact(tmp_path, Measured, monitor="valid/accuracy", mode="max")
    index, _ = DATA[:]
    rows = read_rows(tmp_path / "whole/words")
    found = [row["valid/accuracy"] for row in rows if "valid/accuracy" in row]
    assert len(found) == 3
    with torch.no_grad():
        now = (model.net(index).argmax(-1) == index).float().mean().item()
    assert 0 <= found[0] <= found[1] <= now <= 1
    means = [row["train/batches"] for row in rows if "train/batches" in row]
    assert means[0] == 2.0  # Of batches 0 to 4.


# Data.


class Samples(Dataset):
    """Dicts of different lengths."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "values": torch.rand(1 + index % 3), "name": f"sample {index}"}


def padded(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "index": torch.tensor([sample["index"] for sample in samples]),
        "values": nn.utils.rnn.pad_sequence([sample["values"] for sample in samples], batch_first=True),
        "names": [sample["name"] for sample in samples],
    }


class Reader(Words):
    """Reads batches of dicts."""

    def train_step(self, batch: Any, state: Any) -> None:
        assert batch["names"] == [f"sample {i}" for i in batch["index"]]
        super().train_step((batch["index"], None), state)
        self.log("drawn", batch["values"].sum(), reduce="sum")

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step((batch["index"], None), step)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_datasets_of_dicts_with_their_own_collate_function(tmp_path: Path, num_workers: int) -> None:
    def datamodule() -> DataModule:
        options: dict[str, Any] = {"batch_size": 4, "collate_fn": padded, "num_workers": num_workers}
        return DataModule(Split(Samples(), shuffle=True, **options), Split(Samples(), **options))

    require_exact(tmp_path, Reader, datamodule)


@pytest.mark.filterwarnings("ignore:.*set_vital.*")
def test_the_stateful_loader_of_torchdata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its own state is restored, and nothing is read twice to reach the position."""
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    require_exact(tmp_path, Words, lambda: DataModule(loaders.StatefulDataLoader(DATA, batch_size=4, shuffle=True)))
    assert "reading and dropping" not in caplog.text


# Optimizers that evaluate other weights than they train.


class Averaging(torch.optim.SGD):
    """Evaluates the mean of all weights so far, by the methods that schedule-free optimizers have."""

    is_training = True

    def step(self, closure: Any = None) -> None:
        assert self.is_training
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["number"] = state.get("number", 0) + 1
            state["mean"] = (
                state.get("mean", torch.zeros_like(p)) + (p - state.get("mean", 0)).detach() / state["number"]
            )

    @torch.no_grad()
    def eval(self) -> None:
        if self.is_training:
            self.is_training = False
            for p in self.param_groups[0]["params"]:
                p.lerp_(self.state[p].get("mean", p), 0.7)

    @torch.no_grad()
    def train(self) -> None:
        if not self.is_training:
            self.is_training = True
            for p in self.param_groups[0]["params"]:
                p.lerp_(self.state[p].get("mean", p), 1 - 1 / 0.3)


class Averaged(Tiny):
    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 1))
        if not fast_init:
            self.optimizer, self.scheduler = Averaging(self.net.parameters(), lr=0.1), None


def test_what_was_validated_with_the_weights_of_an_optimizer_is_tested_and_loaded(tmp_path: Path) -> None:
    datamodule = data(train=16, valid=5)
    model, trainer = Averaged(), quiet(root=tmp_path, max_epochs=3)
    result = trainer.fit(model, datamodule)
    validated = result.metrics["valid/loss"]
    content = torch.load(result.last_checkpoint, weights_only=True)
    assert not same(content["evaluation_weights"]["net"], content["model"]["net"])
    for tested in (model, Averaged(), model):
        assert trainer.test(tested, datamodule)["test/loss"] == validated
        assert same(weights(tested)["net"], content["evaluation_weights"]["net"])
    loaded = Averaged.load_from_checkpoint(result.last_checkpoint)
    assert same(loaded.net.state_dict(), content["evaluation_weights"]["net"])


def test_validations_and_saves_do_not_change_a_training_with_such_an_optimizer(tmp_path: Path) -> None:
    found = []
    for valid_every_steps, save_every_steps in ((None, None), (1, None), (2, 1)):
        options: dict[str, Any] = {"valid_every_steps": valid_every_steps, "save_every_steps": save_every_steps}
        model = Averaged()
        root = tmp_path / str(len(found))
        quiet(root=root, max_steps=9, sanity_batches=0, valid_every_epochs=None, **options).fit(model, data(train=16))
        found.append(weights(model)["net"])
    for steps in (4, 9):
        model = Averaged()
        quiet(root=tmp_path / "cut", max_steps=steps, valid_every_steps=2, valid_every_epochs=None).fit(
            model, data(train=16)
        )
    found.append(weights(model)["net"])
    assert all(same(each, found[0]) for each in found)
