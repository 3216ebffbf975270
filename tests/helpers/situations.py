"""What a step may do with its networks: each class is a program, which several processes must train as one does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from helios_lite import DataModule, Model, Split
from helios_lite.callbacks import EMA
from helpers.models import scripted

PER_STEP, LENGTH = 12, 30  # The last batch of an epoch has half the samples.


class Samples(Dataset):
    """Sample i is (i, four numbers made of i)."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.randn(4, generator=torch.Generator().manual_seed(index))


class Net(nn.Module):
    """An encoder, a decoder, and a part that is used at times."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.body, self.head, self.spare = nn.Linear(4, width), nn.Linear(width, 4), nn.Linear(4, 1)
        self.scale = 1.0

    def encode(self, x: Tensor) -> Tensor:
        return self.body(x).tanh() * self.scale

    def decode(self, h: Tensor) -> Tensor:
        return self.head(h)

    def forward(self, x: Tensor, spare: Tensor | None = None) -> Tensor:
        y = self.decode(self.encode(x))
        if spare is not None:  # Only some samples use it.
            y = y + torch.zeros_like(y).masked_scatter(spare, self.spare(x[spare[:, 0]]).expand(-1, 4))
        return y


class Situation(Model):
    """A program: one network, one loss, one optimizer, unless a subclass does something else.

    Attributes:
        like_one: whether one process trains the same; otherwise the ranks do.
        sharded: words of the error under "fsdp" and "hsdp"; None if it trains the same.
        only_replicas: whether FSDP2 waits for ever or ends the process, as when ranks run different passes.
        validates: whether there is a validation.
        options: of the trainer.
    """

    like_one = True
    sharded: str | None = None
    only_replicas = False
    validates = False
    options: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__(type(self).__name__)

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Net())
        self.optimizer = self.sgd(self.net.parameters())

    def sgd(self, parameters: Any, lr: float = 0.05) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        loss = self.loss(x, index)
        self.backward(loss)
        self.log("loss", loss)
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        index, x = batch
        self.log("loss", self.loss(x, index).detach())

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net(x), x.cos())


class Plain(Situation):
    """One network, one loss, one optimizer."""

    validates = True


class Methods(Situation):
    """Calls methods of a network."""

    sharded = "register_fsdp_forward_method(self.net, 'encode')"

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net.decode(self.net.encode(x)), x)


class Parts(Situation):
    """Calls a part of a network."""

    sharded = "call it in a method, and in setup, after parallelize, write register_fsdp_forward_method"

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return self.net.body(x).square().mean()


class ForwardAndMethod(Situation):
    """Calls a network, and then a method of it."""

    validates = True
    sharded = "register_fsdp_forward_method(self.net, 'decode')"

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net(x) + self.net.decode(x.new_ones(len(x), 5)), x)


class Indexed(Situation):
    """Calls the layers of a sequence one by one."""

    sharded = "call it in a method, and in setup, after parallelize, write register_fsdp_forward_method"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4)))
        self.optimizer = self.sgd(self.net[0].parameters())

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return sum((module(x[:, : module.in_features]).square().mean() for module in self.net[::2]), x.new_zeros(()))


class Attribute(Situation):
    """Sets an attribute of a network between epochs."""

    def on_training_epoch_start(self, epoch: int) -> None:
        self.net.scale = 1.0 / epoch


class ByName(Situation):
    """Groups of parameters by their names."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Net())
        body = [p for name, p in self.net.named_parameters() if name.startswith("body")]
        rest = [p for name, p in self.net.named_parameters() if not name.startswith("body")]
        self.optimizer = torch.optim.SGD([{"params": body, "lr": 0.1}, {"params": rest}], lr=0.01)


class Frozen(Situation):
    """Frozen before `parallelize`."""

    def setup(self, fast_init: bool = False) -> None:
        net = Net()
        net.body.requires_grad_(False)
        self.net = self.parallelize(net)
        self.optimizer = self.sgd(self.net.parameters())


class FrozenBefore(Frozen):
    """Frozen before `parallelize`, trained in the second epoch."""

    def on_training_epoch_start(self, epoch: int) -> None:
        self.net.body.requires_grad_(epoch >= 2)


class FrozenAfter(FrozenBefore):
    """Frozen in part before `parallelize`, in part after it."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net.body.requires_grad_(True)
        self.net.head.requires_grad_(False)

    def on_training_epoch_start(self, epoch: int) -> None:
        self.net.head.requires_grad_(epoch >= 2)


class FrozenWhole(Situation):
    """Frozen as a whole in the first epoch, beside one that is trained; their gradients are clipped together."""

    options = {"clip_norm": 0.1, "log_grad_norm": "per-parameter", "log_param_norm": "per-parameter"}

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Net())
        self.teacher = self.parallelize(Net().requires_grad_(False))
        self.optimizer = self.sgd([*self.net.parameters(), *self.teacher.parameters()])

    def on_training_epoch_start(self, epoch: int) -> None:
        self.teacher.requires_grad_(epoch >= 2)

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net(x), self.teacher(x))


class UnfrozenInStep(FrozenBefore):
    """Trained from the second step on, and from there on every other."""

    def on_training_epoch_start(self, epoch: int) -> None:
        pass

    def train_step(self, batch: Any, state: Any) -> None:
        self.net.body.requires_grad_(state.step % 2 == 1)
        super().train_step(batch, state)


class TurnedOff(Situation):
    """Trained in the first epoch only."""

    def on_training_epoch_start(self, epoch: int) -> None:
        self.net.body.requires_grad_(epoch < 2)


class Gan(Situation):
    """Two optimizers; the generator's loss passes through the critic, whose gradients are dropped."""

    toggles = False

    def setup(self, fast_init: bool = False) -> None:
        self.critic = self.parallelize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)))
        self.generator = self.parallelize(Net())
        self.steps = [self.sgd(net.parameters(), 0.02) for net in (self.critic, self.generator)]

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return self.critic(self.generator(x)).square().mean()

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        if self.toggles:
            self.critic.requires_grad_(True)
        fake = self.generator(x)
        self.backward(self.critic(fake.detach()).square().mean() + (self.critic(x.cos()) - 1).square().mean())
        self.optimizer_step(self.steps[0])
        if self.toggles:
            self.critic.requires_grad_(False)
        self.backward((self.critic(fake) - 1).square().mean())
        self.optimizer_step(self.steps[1])


class GanToggled(Gan):
    """Two optimizers; the critic is frozen while the generator learns."""

    toggles = True


class GanInTurn(Gan):
    """The critic in every step, the generator in every other; with gradients over two micro-batches."""

    options = {"accumulation_steps": 2}
    toggles = True

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        self.critic.requires_grad_(True)
        self.backward((self.critic(self.generator(x).detach()) + self.critic(x.cos()) - 1).square().mean())
        self.optimizer_step(self.steps[0])
        if state.step % 2 == 0:
            self.critic.requires_grad_(False)
            self.backward((self.critic(self.generator(x)) - 1).square().mean())
            self.optimizer_step(self.steps[1])


class Alternating(Gan):
    """One network in every other step, the other one in between."""

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        which = state.step % 2
        self.backward((self.critic, self.generator)[which](x).square().mean())
        self.optimizer_step(self.steps[which])


class TwoOptimizers(Situation):
    """One loss; the parts of a network have optimizers of their own."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Net())
        self.steps = [self.sgd(part.parameters(), lr) for part, lr in ((self.net.body, 0.1), (self.net.head, 0.01))]

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.loss(batch[1], batch[0]))
        for optimizer in self.steps:
            self.optimizer_step(optimizer)


class Maml(Situation):
    """A step in an inner loop, through which the outer gradient passes."""

    validates = True
    sharded = "torch.autograd.grad does not reach the parameters of a sharded network"

    @torch.enable_grad()
    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        weights = dict(self.net.named_parameters())
        used = {name: p for name, p in weights.items() if not name.startswith("spare")}
        # The inner loss is that of fixed samples: a mean over the batch would not be that of its parts.
        inner = F.mse_loss(functional_call(self.net, weights, (torch.eye(4).to(x),)), x.new_ones(4, 4))
        gradients = torch.autograd.grad(inner, list(used.values()), create_graph=True)
        moved = {name: p - 0.1 * g for (name, p), g in zip(used.items(), gradients, strict=True)}
        return F.mse_loss(functional_call(self.net, {**weights, **moved}, (x,)), x)


class GradientPenalty(Situation):
    """A gradient of a gradient, by `torch.autograd.grad` with `create_graph`."""

    sharded = "self.net.set_reshard_after_backward(False)"

    def penalty(self, x: Tensor) -> Tensor:
        x = x.requires_grad_(True)
        y = self.net(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return F.mse_loss(y, x.detach()) + (slope.norm(dim=1) - 1).square().mean()

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return self.penalty(x)


class GradientPenaltyKept(GradientPenalty):
    """The same between `set_reshard_after_backward(False)` and `set_reshard_after_backward(True)`."""

    sharded = None

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        keep = getattr(self.net, "set_reshard_after_backward", bool)  # Only sharded networks have it.
        keep(False)
        loss = self.penalty(x)
        keep(True)
        return loss


class SharedEncoder(Situation):
    """An encoder with two heads, each a network."""

    def setup(self, fast_init: bool = False) -> None:
        self.encoder = self.parallelize(Net())
        self.heads = nn.ModuleList([self.parallelize(nn.Linear(4, 2)), self.parallelize(nn.Linear(4, 3))])
        self.optimizer = self.sgd([*self.encoder.parameters(), *self.heads.parameters()])

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.heads[1](h).square().mean() + self.heads[0](h).cos().mean()


class Backwards(Situation):
    """Networks are used in another order than that of definition."""

    def setup(self, fast_init: bool = False) -> None:
        self.last, self.first = self.parallelize(Net()), self.parallelize(Net())
        self.optimizer = self.sgd([*self.last.parameters(), *self.first.parameters()])

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.last(self.first(x)), x.cos())


class UnusedByRank(Situation):
    """A part that some samples use: not in every batch, nor on every rank."""

    only_replicas = True

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        rare = (index % 11 == 3)[:, None].expand(-1, 4)
        return F.mse_loss(self.net(x, rare if rare.any() else None), x.cos())


class NetworkByRank(Situation):
    """A network that some samples use."""

    only_replicas = True

    def setup(self, fast_init: bool = False) -> None:
        self.net, self.other = self.parallelize(Net()), self.parallelize(Net(3))
        self.optimizer = self.sgd([*self.net.parameters(), *self.other.parameters()])

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        loss = self.net(x).square().mean()
        rare = index % 11 == 3
        return loss + self.other(x[rare]).square().sum() / len(x) if rare.any() else loss


class SkippedByRank(Situation):
    """No loss at all on some ranks; the optimizer steps on all."""

    only_replicas = True

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        counts = index % 5 != 0 if state.step == 0 else index % 11 == 3
        if counts.any():
            self.backward((self.net(x).square().mean(1) * counts).mean())
        self.optimizer_step(self.optimizer)


class EmaTeacher(Situation):
    """Learns from the average of its own weights, which the step updates."""

    validates = True
    sharded = "p.full_tensor() returns the whole of one"

    def setup(self, fast_init: bool = False) -> None:
        net = Net()
        self.teacher = self.parallelize(copy.deepcopy(net).requires_grad_(False))
        self.net = self.parallelize(net)
        self.optimizer = self.sgd(self.net.parameters())

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        with torch.no_grad():
            for mean, p in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(p, 0.3)

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        return F.mse_loss(self.net(x), target + 1)


class CopiedTeacher(EmaTeacher):
    """The teacher is a copy of what `parallelize` has returned."""

    sharded = "copy it before parallelize"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Net())
        self.teacher = self.parallelize(copy.deepcopy(self.net).requires_grad_(False))
        self.optimizer = self.sgd(self.net.parameters())


class NormedTeacher(Situation):
    """Batch norm in a frozen network that remains in training mode."""

    validates = True
    like_one = False

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(Net(), nn.BatchNorm1d(4)))
        self.teacher = self.parallelize(nn.Sequential(Net(), nn.BatchNorm1d(4)).requires_grad_(False))
        self.optimizer = self.sgd(self.net.parameters())

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net(x), self.teacher(x).cos())


class NormedTwice(Situation):
    """Batch norm, called twice in a step."""

    validates = True
    like_one = False

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(Net(), nn.BatchNorm1d(4)))
        self.optimizer = self.sgd(self.net.parameters())

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net(x), self.net(x.flip(1)).cos())


class Codebook(Situation):
    """A buffer that the step uses and updates, on every rank with its own samples."""

    validates = True
    like_one = False

    def setup(self, fast_init: bool = False) -> None:
        net = Net()
        net.register_buffer("center", torch.zeros(4))
        self.net = self.parallelize(net)
        self.optimizer = self.sgd(self.net.parameters())

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        y = self.net(x) - self.net.center
        if self.net.training:
            self.net.center = 0.5 * self.net.center + 0.5 * x.mean(0)
        return y.square().mean()

    def on_training_end(self) -> None:
        first, *others = self.gather(self.net.center)
        assert all(torch.equal(first, other) for other in others)


class TwoBackwards(Situation):
    """Two losses on one graph."""

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        y = self.net(x)
        y.square().mean().backward(retain_graph=True)
        self.backward((y - x).abs().mean())
        self.optimizer_step(self.optimizer)


class TwoLosses(Situation):
    """Two passes, one after the other."""

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        self.backward(F.mse_loss(self.net(x), x))
        self.backward(self.net(x.flip(1)).square().mean())
        self.optimizer_step(self.optimizer)


class SeveralUpdates(Situation):
    """Three updates of each batch, as in reinforcement learning; they count as one step."""

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        for scale in (1.0, 0.5, 2.0):
            loss = self.loss(x * scale, index)
            self.backward(loss)
            self.optimizer_step(self.optimizer)
        self.log("loss", loss)


class Accumulated(Situation):
    """Windows of two micro-batches; the last of one."""

    options = {"accumulation_steps": 2}


class AccumulatedInTurn(Situation):
    """One network in the first micro-batch of a window, the other in the second; what a first loss adds is cleared."""

    options = {"accumulation_steps": 2}

    def setup(self, fast_init: bool = False) -> None:
        self.nets = nn.ModuleList([self.parallelize(Net()), self.parallelize(Net(3))])
        self.optimizer = self.sgd(self.nets.parameters())

    def train_step(self, batch: Any, state: Any) -> None:
        net = self.nets[state.batch % 2]
        self.backward(net(batch[1]).sum())
        net.zero_grad()
        self.backward(net(batch[1]).square().mean())
        self.optimizer_step(self.optimizer)


class AccumulatedByRank(UnusedByRank):
    """Some micro-batches use a part that others do not."""

    options = {"accumulation_steps": 2}


class Tokens(Situation):
    """A mean over items, of which ranks have different numbers; some have none."""

    options = {"accumulation_steps": 2, "clip_norm": 0.1}

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        counts = (index % 4) * (index % 11 < 9)
        total = counts.sum()
        loss = ((self.net(x) - x).square().mean(1) * counts).sum() / total.clamp(min=1)
        self.backward(loss, weight=total)
        self.optimizer_step(self.optimizer)


class TokensSkipped(Situation):
    """Weighted losses, none on ranks whose batch has no items."""

    only_replicas = True

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        chosen = index % 11 == 3 if state.step else index >= 0
        if chosen.any():
            self.backward((self.net(x)[chosen] - 1).square().mean(), weight=int(chosen.sum()))
        self.optimizer_step(self.optimizer)


class WeightedInTurn(Situation):
    """Losses with a weight in every other step, losses without one in between."""

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        chosen = index % 3 > 0
        if state.step % 2 == 0:
            loss = ((self.net(x) - 1).square().mean(1) * chosen).sum() / chosen.sum().clamp(min=1)
            self.backward(loss, weight=chosen.sum())
        else:
            self.backward(self.loss(x, index))
        self.optimizer_step(self.optimizer)


class MorePasses(Situation):
    """The number of passes changes: at first all ranks run two, later the second one is that of some samples."""

    only_replicas = True

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        self.backward(self.loss(x, index))
        rare = index % 11 == 3 if state.step else index >= 0
        if rare.any():
            self.backward(self.net(x[rare]).square().sum() / len(x))
        self.optimizer_step(self.optimizer)


class Cleared(Situation):
    """Drops what the first micro-batch of a window has computed; a part that only this one uses is not trained."""

    options = {"accumulation_steps": 2}

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Net())
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01, weight_decay=0.5, eps=1e-2)

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        every = x.new_ones(len(x), 4, dtype=torch.bool)
        self.backward(F.mse_loss(self.net(x, every if state.batch % 2 == 0 else None), x))
        if state.batch % 2 == 0:
            self.optimizer.zero_grad()
        self.optimizer_step(self.optimizer)


class Large(Situation):
    """A network of several messages; ranks use other parts of it, so that some are sent in vain and some again."""

    only_replicas = True

    def setup(self, fast_init: bool = False) -> None:
        sizes = [(4, 500), (500, 600), (600, 500), (600, 500), (500, 4), (4, 4)]
        self.net = self.parallelize(nn.ModuleList(nn.Linear(*size) for size in sizes))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        first, second, third, other, last, early = self.net
        rare, rarer = (index % 11 == 3)[:, None], (index % 13 == 4)[:, None]
        if rarer.any():
            x = x + early(x) * rarer  # Its gradient is the last one; its message is that of the network's end.
        h = second(first(x).tanh()).tanh()
        y = third(h)
        if rare.any():
            y = y + other(h) * rare
        return last(y.tanh()).square().mean()


class ByHand(Situation):
    """Gradients that no backward pass has put in place."""

    sharded = "use self.backward"

    def train_step(self, batch: Any, state: Any) -> None:
        used = [*self.net.body.parameters(), *self.net.head.parameters()]
        for p, g in zip(used, torch.autograd.grad(self.loss(batch[1], batch[0]), used), strict=True):
            p.grad = 0.5 * g
        self.optimizer_step(self.optimizer)


class OwnLoop(Situation):
    """Uses nothing of the trainer."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.loss(batch[1], batch[0]).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 0.2)
        self.optimizer.step()
        self.optimizer.zero_grad()


class OwnWindows(OwnLoop):
    """Uses nothing of the trainer, which is told to accumulate."""

    options = {"accumulation_steps": 2}
    like_one = False


class SecondByHand(Situation):
    """Gradients by hand in place of those of a backward pass."""

    sharded = "use self.backward"

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.net(batch[1]).square().mean())
        self.optimizer.zero_grad()
        used = [*self.net.body.parameters(), *self.net.head.parameters()]
        for p, g in zip(used, torch.autograd.grad(self.loss(batch[1], batch[0]), used), strict=True):
            p.grad = g
        self.optimizer_step(self.optimizer)


class ScaledInHook(Situation):
    """A hook on the parameters changes their gradients, while some are on their way."""

    def setup(self, fast_init: bool = False) -> None:
        sizes = [(4, 600), (600, 600), (600, 4)]
        self.net = self.parallelize(nn.Sequential(*(nn.Linear(*size) for size in sizes)))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.001)
        for p in self.net.parameters():
            p.register_post_accumulate_grad_hook(_scale)


def _scale(p: Tensor) -> None:
    p.grad.mul_(20)


class NoItems(Situation):
    """The mean over no items, which is not finite, has the weight 0."""

    options = {"check_finite": False}
    only_replicas = True

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        counts = (index % 5 == 2).float()
        loss = (self.net(x).square().mean(1) * counts).sum() / counts.sum()
        self.backward(loss, weight=counts.sum())
        self.optimizer_step(self.optimizer)


class WeightThenRaw(TokensSkipped):
    """A weighted loss that some ranks lack, and a backward pass without the trainer."""

    def train_step(self, batch: Any, state: Any) -> None:
        index, x = batch
        chosen = index % 11 == 3 if state.step else index >= 0
        if chosen.any():
            self.backward((self.net(x)[chosen] - 1).square().mean(), weight=int(chosen.sum()))
        (self.net(x).sum() * 0).backward()
        self.optimizer_step(self.optimizer)


class Half(SkippedByRank):
    """A loss scale that a rank without a loss does not have yet."""

    options = {"precision": "fp16"}
    like_one = False  # The format is not exact.


class ClippedByValue(Situation):
    """Uses the gradients between the backward pass and the step."""

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.loss(batch[1], batch[0]))
        nn.utils.clip_grad_value_(self.net.parameters(), 0.01)
        self.optimizer_step(self.optimizer)


class Clipped(Situation):
    """Gradients are clipped by their norm."""

    options = {"clip_norm": 0.05}


class Sparse(Situation):
    """An embedding with sparse gradients, beside a dense part."""

    sharded = "with sparse=True, whose gradients cannot be sharded"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Embedding(LENGTH, 4, sparse=True), nn.Linear(4, 1)))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return (self.net(index) - 1).square().mean()


class Scripted(Situation):
    """A network of TorchScript, whose modules take no hooks."""

    sharded = "is scripted, and cannot be sharded"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(scripted(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))))
        self.optimizer = self.sgd(self.net.parameters())


class ScriptedTeacher(Situation):
    """A frozen network of TorchScript beside one that is trained."""

    def setup(self, fast_init: bool = False) -> None:
        self.teacher = self.parallelize(scripted(nn.Linear(4, 4).requires_grad_(False)))
        super().setup()

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net(x), self.teacher(x))


class Types(Situation):
    """Parameters of several data types in one module, one of them complex."""

    sharded = "give those of each dtype a submodule"

    def setup(self, fast_init: bool = False) -> None:
        net = Net()
        net.phase = nn.Parameter(torch.tensor([1.0 + 1j, 2.0, 0.5j, 1.0]))
        net.wide = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.net = self.parallelize(net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05)

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return ((self.net(x) * self.net.phase).abs() * self.net.wide.float() - 1).square().mean()


class Scaled(nn.Module):
    """A block whose normalization is in float64, with a parameter that has no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4, dtype=torch.float64)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x.double()).float()).tanh() * self.scale


class TypesOfParts(Situation):
    """Parameters of several data types in blocks with several modules; parameters without a dimension."""

    validates = True
    options = {"clip_norm": 0.1, "accumulation_steps": 2}

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(Scaled(), Scaled()), blocks=(Scaled,))
        self.optimizer = self.sgd(self.net.parameters())


class Tied(Situation):
    """A weight with two names in one network."""

    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        net[2].weight = net[0].weight
        self.net = self.parallelize(net)
        self.optimizer = self.sgd(self.net.parameters())


class TiedBlocks(Situation):
    """A weight that two blocks share; another one that is not contiguous."""

    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))
        net[2].weight = net[0].weight
        net[3].weight = nn.Parameter(net[3].weight.detach().t())
        self.net = self.parallelize(net, blocks=(nn.Linear,))
        self.optimizer = self.sgd(self.net.parameters())


class Attention(Situation):
    """`nn.MultiheadAttention` with `blocks=(nn.Linear,)`."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), blocks=(nn.Linear,))
        self.optimizer = self.sgd(self.net.parameters())

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.net(x[None]), x[None].cos())


class Borrowing(nn.Sequential):
    """Uses the parameters of its layer without calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self[0].weight, self[0].bias)


class PartOfBlock(Situation):
    """A network uses the parameters of a block without calling the block."""

    sharded = "leave those out of blocks"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Borrowing(nn.Linear(4, 4)), blocks=(nn.Linear,))
        self.optimizer = self.sgd(self.net.parameters())


class SharedByTwo(Situation):
    """A layer that belongs to two networks."""

    sharded = "pass one module that contains both networks"

    def setup(self, fast_init: bool = False) -> None:
        layer = nn.Linear(4, 4)
        self.one = self.parallelize(nn.Sequential(layer, nn.Tanh()))
        self.two = self.parallelize(nn.Sequential(layer, nn.Linear(4, 4)))
        self.optimizer = self.sgd([*dict.fromkeys([*self.one.parameters(), *self.two.parameters()])])

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.two(self.one(x)), x)


class Recomputed(Situation):
    """Activations are recomputed, as PyTorch did it first: a backward pass inside of the backward pass."""

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(checkpoint(self.net, x.requires_grad_(True), use_reentrant=True), x.detach().cos())


class Recomputing(Situation):
    """Activations of blocks are recomputed, by `checkpoint_activations=True`."""

    options = {"checkpoint_activations": True}

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), blocks=(nn.Linear,))
        self.optimizer = self.sgd(self.net.parameters())


class Added(Situation):
    """Gets a layer in the second epoch."""

    sharded = "was added to a network after parallelize"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(Net()))
        self.optimizer = self.sgd(self.net.parameters())

    def on_training_epoch_start(self, epoch: int) -> None:
        if epoch == 2 and len(self.net) == 1:
            torch.manual_seed(3)
            self.net.append(nn.Linear(4, 4))
            self.optimizer.add_param_group({"params": self.net[1].parameters(), "lr": 0.2})


class OwnState(Added):
    """Adds a layer in the first epoch, which unfreezes another; and decides itself what checkpoints hold."""

    def setup(self, fast_init: bool = False) -> None:
        net = nn.Sequential(Net())
        net[0].body.requires_grad_(False)
        self.net = self.parallelize(net)
        self.optimizer = self.sgd(self.net.parameters())

    def on_training_epoch_start(self, epoch: int) -> None:
        self.net[0].body.requires_grad_(True)
        super().on_training_epoch_start(2)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        if "1.weight" in state_dict["net"] and len(self.net) == 1:
            super().on_training_epoch_start(2)
        self.net.load_state_dict(state_dict["net"])
        self.optimizer.load_state_dict(state_dict["optimizer"])


class Nested(Situation):
    """Networks in containers."""

    def setup(self, fast_init: bool = False) -> None:
        self.parts = {"first": [self.parallelize(Net())], "second": self.parallelize(nn.Linear(4, 4))}
        self.optimizer = self.sgd([*self.parts["first"][0].parameters(), *self.parts["second"].parameters()])

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.parts["second"](self.parts["first"][0](x)), x)


class Averaged(Situation):
    """An average of the weights, which the validations use."""

    validates = True
    options = {"callbacks": [EMA(0.7)]}


class InHook(Situation):
    """Rank 0 alone calls the network in a hook, with batch norm and gradients of its own."""

    like_one = False
    only_replicas = True
    setup = NormedTwice.setup

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if self.global_rank == 0:
            picture = torch.zeros(2, 4, device=self.device, requires_grad=True)
            torch.autograd.grad(self.net(picture).sum(), picture)


class Retried(Situation):
    """A backward pass that fails at its end, and is run again."""

    sharded = "a backward pass through a sharded network has failed before"

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        x.requires_grad_(True)
        broken = x * 1
        broken.register_hook(_fail)
        try:
            F.mse_loss(self.net(broken), x.detach()).backward()
        except ArithmeticError:
            self.optimizer.zero_grad()
        self.backward(F.mse_loss(self.net(x), x.detach()))
        self.optimizer_step(self.optimizer)


def _fail(gradient: Tensor) -> None:
    raise ArithmeticError


class Wrong(Situation):
    """Ranks that do not do the same, or what replicas cannot do.

    Attributes:
        says: what the error says.
    """

    says = "multiply its loss by 0"

    def train_step(self, batch: Any, state: Any) -> None:
        if state.batch == 1:
            self.differ(batch[1])
        else:
            super().train_step(batch, state)
        if state.batch > 1:
            raise AssertionError("one step more was made")

    def differ(self, x: Tensor) -> None:
        """Do something else in the second step."""
        raise NotImplementedError

    def is_first(self) -> bool:
        return self.global_rank == 0


class SecondPass(Wrong):
    def differ(self, x: Tensor) -> None:
        self.backward(F.mse_loss(self.net(x), x))
        if self.is_first():
            self.backward(self.net(x).square().mean())
        self.optimizer_step(self.optimizer)


class NoStep(Wrong):
    def differ(self, x: Tensor) -> None:
        self.backward(F.mse_loss(self.net(x), x))
        if self.is_first():
            self.optimizer_step(self.optimizer)


class Nothing(Wrong):
    def differ(self, x: Tensor) -> None:
        if self.is_first():
            self.backward(F.mse_loss(self.net(x), x))
            self.optimizer_step(self.optimizer)


class OtherOrder(Wrong):
    """The same optimizers, in another order."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.other = self.parallelize(nn.Linear(4, 4))
        self.steps = [self.optimizer, self.sgd(self.other.parameters())]

    def loss(self, x: Tensor, index: Tensor) -> Tensor:
        return F.mse_loss(self.other(self.net(x)), x)

    def differ(self, x: Tensor) -> None:
        self.backward(self.loss(x, x))
        for optimizer in self.steps[:: -1 if self.is_first() else 1]:
            self.optimizer_step(optimizer)


class InBatchHook(Wrong):
    """One rank runs a backward pass in a hook."""

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.batch == 2 and self.is_first():
            self.net(torch.ones(2, 4, device=self.device)).sum().backward()

    def differ(self, x: Tensor) -> None:
        self.backward(F.mse_loss(self.net(x), x))
        self.optimizer_step(self.optimizer)


class OtherOptimizer(Wrong):
    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.other = self.parallelize(nn.Linear(4, 4))
        self.steps = [self.optimizer, self.sgd(self.other.parameters())]

    def differ(self, x: Tensor) -> None:
        self.backward((self.net, self.other)[self.is_first()](x).square().mean())
        for optimizer in self.steps[: 1 + self.is_first()]:
            self.optimizer_step(optimizer)


class WeightOfOne(Wrong):
    says = "a weight and losses without one"

    def differ(self, x: Tensor) -> None:
        self.backward(F.mse_loss(self.net(x), x), weight=len(x) if self.is_first() else None)
        self.optimizer_step(self.optimizer)


class NewParameter(Wrong):
    says = "add parameters in setup or on_training_epoch_start"

    def differ(self, x: Tensor) -> None:
        self.net.head = nn.Linear(5, 4)
        self.optimizer.add_param_group({"params": self.net.head.parameters()})
        self.backward(F.mse_loss(self.net(x), x))
        self.optimizer_step(self.optimizer)


class StepInHook(Wrong):
    """Updates each parameter as soon as its gradient is there, as it saves memory in one process."""

    says = "a hook has used or cleared a gradient"

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        for p in self.net.parameters():
            p.register_post_accumulate_grad_hook(self.update)

    def update(self, p: Tensor) -> None:
        with torch.no_grad():
            p -= 0.1 * p.grad
        p.grad = None

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.loss(batch[1], batch[0]))


class WithoutShape(Wrong):
    says = "0.weight has no shape yet"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.LazyLinear(4)))


class OtherNetwork(Wrong):
    says = "made different networks"

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Net(5 + self.is_first()))


def situations() -> Iterator[type[Situation]]:
    """Every program."""
    yield from _below(Situation)


def wrong_situations() -> Iterator[type[Wrong]]:
    """Every program in which ranks do not do the same."""
    yield from _below(Wrong)


def _below(base: type[Situation]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        if cls is not Wrong:
            yield cls
            yield from _below(cls)


def table() -> str:
    """Return the table of docs/distributed.md: what each program does, and whether several processes train the same."""
    rows = ["| what | ddp | fsdp | hsdp |", "| --- | --- | --- | --- |"]
    for each in situations():
        if each.__module__ == __name__ and not issubclass(each, Wrong):
            shards = "yes" if each.sharded is None else f"error: `{each.sharded}`"
            shards = "if all ranks do the same" if each.only_replicas else shards
            assert each.__doc__ is not None, each
            again = "error" if each.sharded else shards
            rows.append(f"| {' '.join(each.__doc__.split()).removesuffix('.')} | yes | {shards} | {again} |")
    return "\n".join(dict.fromkeys(rows))


def samples(processes: int, accumulation_steps: int = 1, *, validates: bool = True) -> DataModule:
    split = Split(Samples(), PER_STEP // processes // accumulation_steps, shuffle=True)
    return DataModule(split, Split(Samples(), 6 // processes) if validates else None)
