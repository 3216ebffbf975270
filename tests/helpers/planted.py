"""Programs with one planted error each, which people really make, and the relations of the audit that must break.

Each function named in `ERRORS` returns a trainer, a model and its data. What differs from a right program (one of
`right_programs`) is the planted error and nothing else.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, TensorDataset, random_split

from helios_lite import DataModule, Model, Split, Trainer
from helpers.right_programs import Classifier, Gan, Tokens, blobs, sentences, trainer

Program = tuple[Trainer, Model, DataModule]


class SummedLoss(Classifier):
    """The loss is summed over the batch."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, y, reduction="sum")


class ScheduledTwice(Classifier):
    """The scheduler steps per batch and per epoch, and not with the optimizer."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        if not fast_init:
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.scheduler.step()

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.scheduler.step()


class NoZeroGrad(Classifier):
    """The gradients are not cleared."""

    def train_step(self, batch: Any, state: Any) -> None:
        loss = self.loss(self.net(batch[0]), batch[1])
        loss.backward()
        self.optimizer.step()


class HalfOptimized(Classifier):
    """The features are detached, and the optimizer has one layer after them only, of two with one memory."""

    def network(self) -> nn.Module:
        net = Detached(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4))
        net[3].weight.data = net[2].weight.data
        return net

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([*self.net[0].parameters(), *self.net[2:4].parameters()], lr=0.01)


class Detached(nn.Sequential):
    """Features are detached before the head."""

    def forward(self, x: Tensor) -> Tensor:
        return self[4](self[3](self[2](self[1](self[0](x)).detach())))


class WrongAxis(Classifier):
    """The softmax is over the samples."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return functional.nll_loss(outputs.log_softmax(0), y)


class ShuffledApart(DataModule):
    """Inputs and labels are shuffled by two permutations."""

    def setup(self) -> None:
        x, y = blobs(256)
        x, y = x[torch.randperm(len(x))], y[torch.randperm(len(y))]
        self.train = Split(TensorDataset(x[:192], y[:192]), batch_size=16, shuffle=True)
        self.valid = Split(TensorDataset(x[192:], y[192:]), batch_size=32)


class WrongData(DataModule):
    """Sorted by class and not shuffled, normalized in the training only, and tested on what it is trained on."""

    def setup(self) -> None:
        x, y = blobs(1024)
        order = y[:512].argsort()
        x, y = 4 * torch.cat([x[:512][order], x[512:]]) + 3, torch.cat([y[:512][order], y[512:]])
        normalized = (x - x[:512].mean(0)) / x[:512].std(0)
        self.train = Split(TensorDataset(normalized[:512], y[:512]), batch_size=16)
        self.valid = Split(TensorDataset(x[512:], y[512:]), batch_size=32)
        self.test = Split(TensorDataset(normalized[480:544], y[480:544]), batch_size=32)


class SameNoise(Dataset):
    """Augments with a generator of its own, of which every worker has a copy in the same state."""

    def __init__(self) -> None:
        self.x, self.y = blobs(192)
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + 0.1 * torch.randn(8, generator=self.generator), self.y[index]


class InPlace(SameNoise):
    """Augments the data itself, because an index gives a view."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.x[index]
        x += 0.1 * torch.randn(8)
        return x, self.y[index]


class WrongMetrics(Classifier):
    """A mean of the means of batches, of which the last one is smaller, and other values that depend on batches."""

    def on_validation_start(self, validation_cycle: int) -> None:
        self.accuracies: list[float] = []

    def valid_step(self, batch: Any, step: int) -> None:
        outputs, y = self.net(batch[0]), batch[1]
        self.accuracies.append(float((outputs.argmax(1) == y).float().mean()))
        self.log("loss", self.loss(outputs, y), count=1)
        self.log("last_accuracy", self.accuracies[-1], reduce="last")
        found = outputs[:, 0] > 20  # None after some updates, so that the F1 score is 0.
        self.log("f1", 2 * (found & (y == 0)).sum() / (found.sum() + (y == 0).sum()).clamp(min=1))

    def on_validation_end(self, validation_cycle: int) -> None:
        self.log("accuracy", sum(self.accuracies) / len(self.accuracies))


class BatchOfRank0(Classifier):
    """Every rank trains on the batch of rank 0."""

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(self.gather(batch)[0], state)


class Unseeded(Classifier):
    """The initial weights come from a generator without a fixed seed."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            self.net[0].weight.normal_(0, 0.3, generator=generator)


class CounterNotSaved(Classifier):
    """The loss is scaled by a counter that no checkpoint holds."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.count = 0

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return super().loss(outputs, y) * (1 + 0.1 * self.count)

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.count += 1


class UntiedByLoading(Classifier):
    """Two layers share their weight, until a checkpoint is loaded."""

    def network(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        net.append(nn.Linear(32, 4))
        net[4].weight = net[2].weight
        return net

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        super().load_state_dict(state_dict, fast_init)
        self.net[4].weight = nn.Parameter(state_dict["net"]["4.weight"].clone())


class Noise:
    """A generator with a state that checkpoints hold."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def like(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.generator.set_state(state_dict["state"])


class SharedNoise(Classifier):
    """The validation draws from the generator of the training."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.noise = Noise()

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step([batch[0] + 0.1 * self.noise.like(batch[0]), batch[1]], state)

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step([batch[0] + 0.1 * self.noise.like(batch[0]), batch[1]], step)


class ClippedScaled(Classifier):
    """The gradients are clipped while they are multiplied by the scale of fp16."""

    def train_step(self, batch: Any, state: Any) -> None:
        with self.autocast():
            loss = self.loss(self.net(batch[0]), batch[1])
        self.backward(loss)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer_step(self.optimizer)


class WrongWeight(Tokens):
    """The loss is a mean over tokens, and its weight is that of one item."""

    def weight(self, mask: Tensor) -> Any:
        return 1.0


class PaddingSeen(Tokens):
    """The mean over a sentence includes its padding, whose length depends on the other sentences of the batch."""

    def pooled(self, vectors: Tensor, mask: Tensor) -> Tensor:
        return vectors.mean(1, keepdim=True)


class AlwaysDropout(nn.Linear):
    """`functional.dropout` is in training mode by default."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(super().forward(x), 0.3)


class WrongModes(Classifier):
    """A frozen part whose statistics go on, a trained one in evaluation mode, and dropout in validations."""

    def network(self) -> nn.Module:
        backbone = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
        backbone.requires_grad_(False)
        middle = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        return nn.Sequential(backbone, middle, AlwaysDropout(16, 4))

    def train_step(self, batch: Any, state: Any) -> None:
        self.net[1].eval()
        super().train_step(batch, state)


class Careless(Classifier):
    """Probabilities for a cross entropy, the same masks in every step, a history with graphs, a teacher that drops.

    The validation is that of the teacher, and the worst accuracy is taken for the best.
    """

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4), nn.Softmax(1))

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.teacher = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))
        if not fast_init:
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.01, total_steps=100)
        self.history: list[Tensor] = []

    def train_step(self, batch: Any, state: Any) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            self.teacher(batch[0])
        loss = self.loss(self.net(batch[0]), batch[1])
        self.history.append(loss)
        self.backward(loss)
        self.optimizer_step(self.optimizer, self.scheduler)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("accuracy", (self.teacher(batch[0]).argmax(1) == batch[1]).float().mean())


class Wave(Dataset):
    """Windows of one series; the value to predict is the last one of its window."""

    def __init__(self, indices: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.series, self.indices = torch.randn(280, generator=generator).cumsum(0), indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        start = int(self.indices[position])
        return self.series[start : start + 20], self.series[start + 19]


class Forecast(Model):
    """An LSTM that takes time for samples, goes on from unrelated windows, and compares (N, 1) with (N,)."""

    def __init__(self) -> None:
        super().__init__("forecast")

    def setup(self, fast_init: bool = False) -> None:
        self.rnn, self.head = self.parallelize(nn.LSTM(1, 8)), self.parallelize(nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam([*self.rnn.parameters(), *self.head.parameters()], lr=0.01)
        self.hidden: Any = None

    def outputs(self, x: Tensor) -> Tensor:
        states, hidden = self.rnn(x[..., None], self.hidden)
        self.hidden = tuple(part.detach() for part in hidden)
        return self.head(states[:, -1])

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward((self.outputs(batch[0]) - batch[1]).square().mean())
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("loss", (self.outputs(batch[0]) - batch[1]).square().mean())


def forecast() -> Program:
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    data = DataModule(
        train=Split(Wave(order[:192]), batch_size=16, shuffle=True, drop_last=True),
        valid=Split(Wave(order[192:]), batch_size=16, drop_last=True),
    )
    return trainer(), Forecast(), data


class Peeking(Tokens):
    """Attention without a mask, so that the score of a token depends on it."""

    def pooled(self, vectors: Tensor, mask: Tensor) -> Tensor:
        weights = (vectors @ vectors.mT).masked_fill(mask[:, None] == 0, -1e9).softmax(-1)
        return weights @ vectors


class Attached(Gan):
    """The loss of the critic also has gradients for the generator, which are not cleared; a schedule of neither."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        before = torch.optim.Adam(self.generator.parameters(), lr=1e-3)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(before, 0.9)

    def train_step(self, batch: Any, state: Any) -> None:
        real = batch[0]
        fake = self.generator(torch.randn(len(real), 4))
        loss = functional.softplus(-self.critic(real)).mean() + functional.softplus(self.critic(fake)).mean()
        self.backward(loss)
        self.optimizer_step(self.of_critic)
        fake = self.generator(torch.randn(len(real), 4))
        self.backward(functional.softplus(-self.critic(fake)).mean())
        self.optimizer_step(self.of_generator)


class Copies(IterableDataset):
    """Every worker yields everything."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*blobs(64), strict=True)


def copies() -> Program:
    return trainer(), Classifier(), DataModule(train=Split(Copies(), batch_size=16, num_workers=2))


def with_model(model: type[Model], **options: Any) -> Program:
    x, y = blobs(256)
    data = DataModule(
        train=Split(TensorDataset(x[:192], y[:192]), batch_size=16, shuffle=True),
        valid=Split(TensorDataset(x[192:], y[192:]), batch_size=32),
    )
    return trainer(**options), model(), data


def with_tokens(model: type[Tokens]) -> Program:
    return trainer(), model(), sentences()


def with_data(data: type[DataModule]) -> Program:
    return trainer(), Classifier(), data()


def with_dataset(dataset: type[Dataset]) -> Program:
    x, y = blobs(256)
    data = DataModule(
        train=Split(dataset(), batch_size=16, shuffle=True),
        valid=Split(TensorDataset(x[192:], y[192:]), batch_size=32),
    )
    return trainer(), Classifier(), data


def same_noise() -> Program:
    """The validation is a part of the dataset that augments."""
    train, valid = random_split(SameNoise(), [160, 32], torch.Generator().manual_seed(0))
    data = DataModule(train=Split(train, batch_size=16, shuffle=True), valid=Split(valid, batch_size=32))
    return trainer(), Classifier(), data


def one_nan() -> Program:
    """One sample has a NaN."""
    program = with_model(Classifier)
    program[2].train.dataset.tensors[0][37, 2] = torch.nan
    return program


ERRORS: dict[str, tuple[Any, set[str]]] = {
    "summed_loss": (functools.partial(with_model, SummedLoss), {"samples_alone", "accumulation"}),
    "scheduled_twice": (functools.partial(with_model, ScheduledTwice), {"accumulation"}),
    "no_zero_grad": (functools.partial(with_model, NoZeroGrad), {"resume"}),
    "wrong_modes": (functools.partial(with_model, WrongModes), {"modes"}),
    "half_optimized": (functools.partial(with_model, HalfOptimized), {"parameters"}),
    "wrong_axis": (functools.partial(with_model, WrongAxis), {"samples_alone"}),
    "shuffled_apart": (functools.partial(with_data, ShuffledApart), {"pairing"}),
    "wrong_data": (functools.partial(with_data, WrongData), {"overlap", "preparation", "targets"}),
    "same_noise": (same_noise, {"preparation", "constant_data", "workers"}),
    "in_place": (functools.partial(with_dataset, InPlace), {"constant_data"}),
    "wrong_metrics": (functools.partial(with_model, WrongMetrics), {"valid_batch_size"}),
    "batch_of_rank_0": (functools.partial(with_model, BatchOfRank0), {"devices"}),
    "unseeded": (functools.partial(with_model, Unseeded), {"repeat"}),
    "counter_not_saved": (functools.partial(with_model, CounterNotSaved), {"resume"}),
    "untied_by_loading": (functools.partial(with_model, UntiedByLoading), {"resume"}),
    "shared_noise": (functools.partial(with_model, SharedNoise), {"validation"}),
    "clipped_scaled": (functools.partial(with_model, ClippedScaled, precision="fp16"), {"loss_scale"}),
    "wrong_weight": (functools.partial(with_tokens, WrongWeight), {"samples_alone"}),
    "padding_seen": (functools.partial(with_tokens, PaddingSeen), {"samples_alone"}),
    "one_nan": (one_nan, {"finite"}),
    "careless": (
        functools.partial(with_model, Careless, monitor="valid/accuracy"),
        {"scores", "random_state", "growth", "schedule", "modes", "evaluated", "monitor"},
    ),
    "forecast": (forecast, {"overlap", "targets", "shapes", "carried_state"}),
    "peeking": (functools.partial(with_tokens, Peeking), {"targets"}),
    "attached": (functools.partial(with_model, Attached), {"gradients", "schedule"}),
    "copies": (copies, {"workers"}),
}
"""Each planted error, and the relations that name it: all of them must break."""
