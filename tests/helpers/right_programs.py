"""Right programs of many kinds, on which the audit may find nothing; `RIGHT` names them."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, get_worker_info

from helios_lite import Callback, DataModule, Model, Split, Trainer
from helios_lite.callbacks import EMA
from helios_lite.samplers import BucketBatchSampler

Program = tuple[Trainer, Model, DataModule]


def trainer(**options: Any) -> Trainer:
    return Trainer(**{"max_epochs": 3, "print_banner": False, "progress": False, "log_level": "quiet", **options})


def blobs(length: int) -> tuple[Tensor, Tensor]:
    """Return points of shape (length, 8), and the one of four centers that is nearest to each."""
    generator = torch.Generator().manual_seed(3)
    x, centers = torch.randn(length, 8, generator=generator), torch.randn(4, 8, generator=generator)
    return x, torch.cdist(x, centers).argmin(1)


class Classifier(Model):
    def __init__(self) -> None:
        super().__init__("classifier")

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=0.01)

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(self.network())
        if not fast_init:
            self.optimizer = self.make_optimizer()

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, y)

    def train_step(self, batch: Any, state: Any) -> None:
        with self.autocast():
            loss = self.loss(self.net(batch[0]), batch[1])
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)

    def valid_step(self, batch: Any, step: int) -> None:
        outputs = self.net(batch[0])
        self.log("loss", self.loss(outputs, batch[1]))
        self.log("accuracy", (outputs.argmax(1) == batch[1]).float().mean())


class Tokens(Model):
    """Predicts the next token from the mean of those before it, with padding that is masked."""

    def __init__(self) -> None:
        super().__init__("tokens")

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Embedding(12, 16))
        self.head = self.parallelize(nn.Linear(16, 12))
        self.optimizer = torch.optim.Adam([*self.net.parameters(), *self.head.parameters()], lr=0.01)

    def pooled(self, vectors: Tensor, mask: Tensor) -> Tensor:
        return (vectors * mask[..., None]).cumsum(1) / mask.cumsum(1)[..., None]

    def token_loss(self, losses: Tensor, mask: Tensor) -> Tensor:
        return (losses * mask).sum() / mask.sum()

    def weight(self, mask: Tensor) -> Any:
        return mask.sum()

    def loss(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        tokens, targets = batch[:, :-1], batch[:, 1:]
        mask = (targets > 0).float()
        vectors = self.net(tokens)
        outputs = self.head(vectors + self.pooled(vectors, mask))
        losses = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return self.token_loss(losses.view_as(mask), mask), mask

    def train_step(self, batch: Any, state: Any) -> None:
        loss, mask = self.loss(batch)
        self.backward(loss, weight=self.weight(mask))
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        loss, mask = self.loss(batch)
        self.log("loss", loss, count=mask.sum())


class Sentences(Dataset):
    """Counts upwards in rings of eleven tokens, from 3 to 9 of them; 0 is padding."""

    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        number = self.start + index
        return 1 + (number * 7 + torch.arange(3 + number % 7) * (1 + number // 77)) % 11


def padded(samples: list[Tensor]) -> Tensor:
    return pad_sequence(samples, batch_first=True)


def sentences(**options: Any) -> DataModule:
    train = {"batch_size": 16, "shuffle": True, **options}
    return DataModule(
        train=Split(Sentences(0, 154), collate_fn=padded, **train),
        valid=Split(Sentences(154, 40), batch_size=16, collate_fn=padded),
    )


def splits(x: Tensor, y: Tensor, **options: Any) -> DataModule:
    edge = len(x) * 3 // 4
    return DataModule(
        train=Split(TensorDataset(x[:edge], y[:edge]), **{"batch_size": 16, "shuffle": True, **options}),
        valid=Split(TensorDataset(x[edge:], y[edge:]), batch_size=32),
    )


class Normalized(Classifier):
    """Batch normalization and dropout."""

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))


class Gan(Model):
    def __init__(self) -> None:
        super().__init__("gan")

    def setup(self, fast_init: bool = False) -> None:
        self.generator = self.parallelize(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8)))
        self.critic = self.parallelize(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
        self.of_generator = torch.optim.Adam(self.generator.parameters(), lr=1e-3)
        self.of_critic = torch.optim.Adam(self.critic.parameters(), lr=1e-3)

    def train_step(self, batch: Any, state: Any) -> None:
        real = batch[0]
        fake = self.generator(torch.randn(len(real), 4))
        loss = functional.softplus(-self.critic(real)).mean() + functional.softplus(self.critic(fake.detach())).mean()
        self.backward(loss)
        self.optimizer_step(self.of_critic)
        self.critic.requires_grad_(False)
        loss = functional.softplus(-self.critic(fake)).mean()
        self.backward(loss)
        self.optimizer_step(self.of_generator)
        self.critic.requires_grad_(True)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("score", self.critic(batch[0]).mean())


class Carried(Model):
    """A hidden state that goes on in the next batch, and that checkpoints hold."""

    def __init__(self) -> None:
        super().__init__("carried")

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.LSTM(1, 8, batch_first=True))
        self.head = self.parallelize(nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam([*self.net.parameters(), *self.head.parameters()], lr=0.01)
        self.hidden = torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)

    def train_step(self, batch: Any, state: Any) -> None:
        output, hidden = self.net(batch[0], self.hidden)
        self.hidden = tuple(value.detach() for value in hidden)
        self.backward((self.head(output) - batch[1]).square().mean())
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        output, _ = self.net(batch[0])
        self.log("loss", (self.head(output) - batch[1]).square().mean())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "hidden": list(self.hidden)}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        self.hidden = tuple(state_dict["hidden"])
        super().load_state_dict({name: part for name, part in state_dict.items() if name != "hidden"}, fast_init)


class TwoRates(Classifier):
    """Two optimizers, each with a scheduler, for one loss."""

    def setup(self, fast_init: bool = False) -> None:
        net = self.network()
        self.net = self.parallelize(net)
        self.slow = torch.optim.SGD(net[0].parameters(), lr=0.05, momentum=0.9)
        self.fast = torch.optim.Adam(net[2].parameters(), lr=0.01)
        self.schedulers = [torch.optim.lr_scheduler.ExponentialLR(part, 0.99) for part in (self.slow, self.fast)]

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.loss(self.net(batch[0]), batch[1]))
        self.optimizer_step(self.slow, self.schedulers[0])
        self.optimizer_step(self.fast, self.schedulers[1])


class Distilled(Classifier):
    """A frozen teacher in evaluation mode, and outputs that are to vary little over the batch."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.teacher = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
        self.teacher.eval().requires_grad_(False)

    def train_step(self, batch: Any, state: Any) -> None:
        outputs, targets = self.net(batch[0]), self.teacher(batch[0]).softmax(1)
        self.backward(functional.cross_entropy(outputs, targets) + 0.02 * outputs.std(0, correction=0).mean())
        self.optimizer_step(self.optimizer)


class Augmented(Dataset):
    """Augments with the global generators, which the trainer seeds for every sample."""

    def __init__(self) -> None:
        self.x, self.y = blobs(192)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + 0.1 * torch.randn(8), self.y[index]


class Stream(IterableDataset):
    """Samples without indices, which workers share, with the position as its state."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        x, y = blobs(192)
        yield from zip(x[first::step], y[first::step], strict=True)


class Regression(Classifier):
    """A weighted loss, and metrics whose counts are sums of weights."""

    def network(self) -> nn.Module:
        return nn.Linear(8, 1)

    def train_step(self, batch: Any, state: Any) -> None:
        x, weights = batch[0], 1 + batch[1].float()
        errors = (self.net(x)[:, 0] - x.sum(1)).square()
        self.backward((errors * weights).sum() / weights.sum(), weight=weights.sum())
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        x, weights = batch[0], 1 + batch[1].float()
        errors = (self.net(x)[:, 0] - x.sum(1)).square()
        self.log("loss", (errors * weights).sum() / weights.sum(), count=weights.sum())
        self.log("largest", errors.max(), reduce="max")


class Unusual(Normalized):
    """A train split that grows, marks for missing labels, steps that switch modes, a schedule of a fixed length."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        if not fast_init:
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.01, total_steps=28)

    def train_step(self, batch: Any, state: Any) -> None:
        self.net.train()
        x, y, size = batch
        known = ~size.isnan()
        outputs = self.net(x)
        errors = (outputs.logsumexp(1) - size.nan_to_num()).square() * known
        self.backward(self.loss(outputs, y) + errors.mean())
        self.optimizer_step(self.optimizer, self.scheduler)
        self.net.eval()
        with torch.no_grad():
            self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())
        self.net.train()


class Grow(Callback):
    def on_training_epoch_start(self, current_epoch: int) -> None:
        everything = self.datamodule.everything
        chosen = Subset(everything, range(min(192, 64 * current_epoch)))
        self.datamodule.train = Split(chosen, batch_size=16, shuffle=True, drop_last=True)


def unusual() -> Program:
    (x, y), callbacks = blobs(256), [EMA(decay=0.9), Grow()]
    size = x.norm(dim=1).where(torch.arange(256) % 3 > 0, torch.nan)
    data = splits(x, y)
    data.everything = TensorDataset(x[:192], y[:192], size[:192])
    data.train = Split(data.everything, batch_size=16, shuffle=True, drop_last=True)
    return trainer(callbacks=callbacks, monitor="valid/accuracy", mode="max"), Unusual(), data


class Contrastive(Model):
    """Two views of each sample are to be closer than those of others in the batch."""

    def __init__(self) -> None:
        super().__init__("contrastive")

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8)))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

    def loss(self, x: Tensor) -> Tensor:
        views = [functional.normalize(self.net(part), dim=1) for part in (x[:, :4], x[:, 4:])]
        return functional.cross_entropy(views[0] @ views[1].T * 5, torch.arange(len(x)))

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.loss(batch[0]))
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("loss", self.loss(batch[0]))


def simple(model: type[Model], **options: Any) -> Program:
    return trainer(**options), model(), splits(*blobs(256))


def carried() -> Program:
    wave = torch.sin(torch.arange(320.0) / 7).reshape(4, 80, 1)
    x = torch.cat(wave.split(8, dim=1))
    train = Split(TensorDataset(x, x.roll(-1, 1)), batch_size=4)
    late = torch.cat((wave + 1).split(8, dim=1))
    return trainer(), Carried(), DataModule(train, Split(TensorDataset(late, late.roll(-1, 1)), batch_size=4))


def augmented() -> Program:
    data = splits(*blobs(256))
    data.train = Split(Augmented(), global_batch_size=32, shuffle=True, num_workers=2)
    return trainer(accumulation_steps=2), Classifier(), data


def mixed(samples: Any) -> Any:
    x, y = torch.utils.data.default_collate(samples)
    return x + 0.1 * x[torch.randperm(len(x))], y


def two_rates() -> Program:
    return trainer(), TwoRates(), splits(*blobs(256), collate_fn=mixed)


def streamed() -> Program:
    data = splits(*blobs(256))
    data.train = Split(Stream(), batch_size=16)
    return trainer(), Classifier(), data


class Masked(Tokens):
    """Tokens are left out of the loss at random, and the weight is the number of the others."""

    def train_step(self, batch: Any, state: Any) -> None:
        batch = batch.masked_fill(torch.rand(batch.shape) < 0.3, 0)
        batch[:, :2] = batch[:, :2].clamp(min=1)
        super().train_step(batch, state)


def masked() -> Program:
    return trainer(), Masked(), sentences()


def bucketed() -> Program:
    lengths = [3 + number % 7 for number in range(154)]
    return trainer(), Tokens(), sentences(batch_size=None, shuffle=False, batch_sampler=BucketBatchSampler(lengths, 16))


RIGHT: dict[str, Any] = {
    "classifier": functools.partial(simple, Classifier),
    "gan": functools.partial(simple, Gan),
    "carried": carried,
    "two_rates": two_rates,
    "unusual": unusual,
    "contrastive": functools.partial(simple, Contrastive),
    "streamed": streamed,
    "distilled": functools.partial(simple, Distilled),
    "bucketed": bucketed,
    "masked": masked,
    "augmented": augmented,
    "fp16": functools.partial(simple, Classifier, precision="fp16", clip_norm=1.0),
    "regression": functools.partial(simple, Regression),
}
