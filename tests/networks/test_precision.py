"""What happens between a loss and a step, compared with loops by hand: fp16, norms, curves, two optimizers."""

import copy
import itertools
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import same, timeless, weights
from helpers.models import Tiny, data, quiet
from helpers.rows import read_rows
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split

DATA = torch.linspace(-1, 1, 60).reshape(20, 3)


def make(seed: int, *sizes: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2]))


class Regression(Model):
    """Learns the sum of three numbers; the loss of the batches in `bad` is infinitely steep, but finite."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        super().__init__("regression")
        self.bad = bad
        self.rates: list[float] = []
        self.updated: list[bool] = []
        self.states: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(make(1, 3, 8, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def train_step(self, batch: Any, state: Any) -> None:
        (x,) = batch
        with self.autocast():
            loss = F.mse_loss(self.net(x).float(), x.sum(1, keepdim=True))
        if state.batch in self.bad:
            loss = _steep(loss)
        self.backward(loss)
        self.updated.append(self.optimizer_step(self.optimizer, self.scheduler))
        if self.updated[-1]:
            self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.log("loss", loss)

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        self.states.append((state.step, state.batch, weights(self)))


class _Steep(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * math.inf


def _steep(loss: torch.Tensor) -> torch.Tensor:
    return _Steep.apply(loss)  # type: ignore[no-any-return, no-untyped-call]


def split(batch_size: int = 4) -> DataModule:
    return DataModule(Split(TensorDataset(DATA), batch_size=batch_size))


# fp16.


def test_fp16_is_the_loop_by_hand_with_a_grad_scaler() -> None:
    model = Regression()
    result = quiet(max_epochs=3, precision="fp16", clip_norm=0.5).fit(model, split())
    net = make(1, 3, 8, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu")
    skipped = 0
    for x in DATA.split(4) * 3:
        with torch.autocast("cpu", torch.float16):
            loss = F.mse_loss(net(x).float(), x.sum(1, keepdim=True))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() < before:
            skipped += 1
        else:
            scheduler.step()
    assert skipped > 0  # The first scale is too large for this network.
    assert (result.state.step, result.state.skipped_steps) == (15 - skipped, skipped)
    assert same(weights(model)["net"], net.state_dict())
    assert model.rates[-1] == scheduler.get_last_lr()[0]


def test_a_step_whose_gradients_are_not_finite_is_left_out_and_counted() -> None:
    bad = (7, 8)
    model = Regression(bad)
    result = quiet(max_epochs=3, precision="fp16").fit(model, split())
    plain = Regression()
    quiet(max_epochs=3, precision="fp16").fit(plain, split())
    first = plain.updated.count(False)
    assert result.state.skipped_steps == first + len(bad)
    assert result.state.step == 15 - first - len(bad)
    assert result.state.batch == 15
    for i in bad:
        assert not model.updated[i]
        assert same(model.states[i][2], model.states[i - 1][2])  # Weights, optimizer and scheduler.
        assert model.states[i][0] == model.states[i - 1][0]
    assert model.updated[9]
    assert len(model.rates) == result.state.step


def test_limits_and_log_points_count_the_steps_that_took_place(tmp_path: Path) -> None:
    """One of two steps that are left out, with one between them, would have been a log point."""
    model = Regression(bad=(6, 8))
    options = {"valid_every_epochs": None, "save_every_steps": 2, "keep_last": -1, "log_every_steps": 2}
    result = quiet(max_steps=12, precision="fp16", root=tmp_path, **options).fit(model, split(1))
    assert result.state.step == 12
    assert result.state.batch == 12 + result.state.skipped_steps < 20
    rows = read_rows(tmp_path / "regression")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    files = [path.stem.rpartition("_")[2] for path in (tmp_path / "regression/checkpoints").glob("*.pth")]
    assert sorted(files, key=int) == ["2", "4", "6", "8", "10", "12"]


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_parts_of_an_epoch_are_counted_in_batches_also_where_steps_are_left_out(accumulation_steps: int) -> None:
    class Noted(Regression):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.num_batches = state.batch

        def valid_step(self, batch: Any, step: int) -> None:
            validated.append(self.num_batches)

    validated: list[int] = []
    options = {"valid_every_epochs": 0.3, "sanity_batches": 0, "accumulation_steps": accumulation_steps}
    datamodule = split(1)
    datamodule.valid = Split(TensorDataset(DATA), batch_size=len(DATA))
    result = quiet(max_epochs=2, precision="fp16", **options).fit(Noted(bad=(3, 5, 8)), datamodule)
    assert result.state.skipped_steps >= 3
    assert validated == [6, 12, 18, 26, 32, 38, 40]  # The last are those of the end.


def test_gradients_that_are_never_finite_end_the_run() -> None:
    with pytest.raises(FloatingPointError, match="gradients were not finite in 100 steps in a row"):
        quiet(max_steps=3, precision="fp16").fit(Regression(bad=tuple(range(1000))), split())


# Several optimizers.


def test_optimizers_that_are_made_in_a_step_end_with_it() -> None:
    class Inner(Tiny):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            inner = nn.Linear(3, 1).to(self.device)
            optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
            made.append(weakref.ref(optimizer))
            self.backward(inner(batch[1]).mean())
            assert self.optimizer_step(optimizer)
            alive.append(sum(ref() is not None for ref in made))

    made: list[Any] = []
    alive: list[int] = []
    quiet(max_steps=6, valid_every_epochs=None).fit(Inner(), data(train=40))
    assert alive == [1, 2, 2, 2, 2, 2] or alive == [1] * 6  # That of the step before may not be collected yet.


class Adversaries(Model):
    """A generator and a critic, trained in one step with two backwards."""

    def __init__(self) -> None:
        super().__init__("adversaries")

    def setup(self, fast_init: bool = False) -> None:
        self.generator = self.parallelize(make(1, 3, 8, 3))
        self.critic = self.parallelize(make(2, 3, 8, 1))
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=0.01)
        self.optimizer_c = torch.optim.SGD(self.critic.parameters(), lr=0.05, momentum=0.9)

    def train_step(self, batch: Any, state: Any) -> None:
        (x,) = batch
        noise = torch.randn(len(x), 3).to(self.device)
        with self.autocast():
            fake = self.generator(noise)
            loss_c = (self.critic(fake.detach()) - self.critic(x)).float().mean()
        self.backward(loss_c)
        self.optimizer_step(self.optimizer_c)
        self.critic.requires_grad_(False)
        with self.autocast():
            loss_g = -self.critic(fake).float().mean()
        self.backward(loss_g)
        self.critic.requires_grad_(True)
        self.optimizer_step(self.optimizer_g)
        self.log("critic", loss_c)
        self.log("generator", loss_g)


def test_fp16_with_two_optimizers_under_accumulation_is_the_loop_by_hand() -> None:
    """One scaler, updated once per window. Both networks are measured, each under its optimizer's name."""
    model = Adversaries()
    result = quiet(max_epochs=2, precision="fp16", accumulation_steps=2, log_every_steps=1, log_grad_norm=True).fit(
        model, split()
    )
    generator, critic = make(1, 3, 8, 3), make(2, 3, 8, 1)
    draws = [torch.randn(4, 3) for _ in range(10)]  # Goes on from the critic's weights, as in the run.
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.01)
    optimizer_c = torch.optim.SGD(critic.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    updates = skipped = 0
    for i, (x, noise) in enumerate(zip(DATA.split(4) * 2, draws, strict=True)):
        closes = i % 5 in (1, 3, 4)
        share = 1.0 if i % 5 == 4 else 0.5
        with torch.autocast("cpu", torch.float16):
            fake = generator(noise)
            loss_c = (critic(fake.detach()) - critic(x)).float().mean()
        scaler.scale(loss_c * share).backward()
        if closes:
            scaler.step(optimizer_c)
            optimizer_c.zero_grad()
        critic.requires_grad_(False)
        with torch.autocast("cpu", torch.float16):
            loss_g = -critic(fake).float().mean()
        scaler.scale(loss_g * share).backward()
        critic.requires_grad_(True)
        if closes:
            before = scaler.get_scale()
            norm_g = nn.utils.get_total_norm([p.grad for p in generator.parameters()]) / scaler.get_scale()
            scaler.step(optimizer_g)
            optimizer_g.zero_grad()
            scaler.update()
            updates += 1
            skipped += scaler.get_scale() < before
    assert result.state.step == updates == 6  # One of the two optimizers stepped in each.
    assert result.state.skipped_steps == skipped
    for name, net in (("generator", generator), ("critic", critic)):
        assert same(weights(model)[name], net.state_dict())
    assert result.metrics["train/grad_norm/optimizer_g"] == pytest.approx(norm_g.item(), rel=1e-5)
    assert "train/grad_norm/optimizer_c" in result.metrics


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_interrupted_run_with_two_optimizers_ends_with_the_same_bits(tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "accumulation_steps": 2, "log_every_steps": 2}
    ends = []
    for name, stops in (("whole", (9,)), ("parts", (1, 4, 5, 9))):
        for steps in stops:
            result = quiet(max_steps=steps, root=tmp_path / name, **options).fit(Adversaries(), split())
        assert result.last_checkpoint is not None
        content = torch.load(result.last_checkpoint, weights_only=True)
        assert ("scale" in content["precision"]) == (precision == "fp16")
        del content["config"]
        ends.append(timeless(content))
    assert same(ends[0], ends[1])


def test_a_checkpoint_of_fp16_goes_on_in_another_format_and_back(tmp_path: Path) -> None:
    for steps, precision in ((3, "fp16"), (6, "fp32"), (9, "fp16")):
        result = quiet(max_steps=steps, root=tmp_path, precision=precision).fit(Regression(), split())
        assert result.state.step == steps


# Norms.


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_are_those_of_a_loop_by_hand(tmp_path: Path, accumulation: int, precision: str) -> None:
    """At log points only, after unscaling, before clipping; parameters after the step."""
    options: dict[str, Any] = {"log_grad_norm": "per-parameter", "log_param_norm": "per-parameter"}
    options |= {"accumulation_steps": accumulation, "precision": precision, "clip_norm": 0.1, "log_every_steps": 2}
    quiet(max_epochs=2, root=tmp_path, **options).fit(Regression(), split(4 // accumulation))
    rows = read_rows(tmp_path / "regression")
    found: dict[int, Any] = {}
    for row in rows:  # After a step that was left out at the end of an epoch, a second row has the same step.
        if "train/loss" in row:
            found.setdefault(row["step"], row)

    net = make(1, 3, 8, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    step, expected = 0, {}
    for x in DATA.split(4) * 2:
        for part in x.chunk(accumulation):
            with torch.autocast("cpu", torch.float16, enabled=precision == "fp16"):
                loss = F.mse_loss(net(part).float(), part.sum(1, keepdim=True))
            scaler.scale(loss / accumulation).backward()
        scaler.unscale_(optimizer)
        norms = {f"train/grad_norm/net.{name}": p.grad.norm().item() for name, p in net.named_parameters()}
        norms["train/grad_norm"] = math.hypot(*norms.values())
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() < before:
            continue
        scheduler.step()
        step += 1
        values = {f"train/param_norm/net.{name}": p.detach().norm().item() for name, p in net.named_parameters()}
        values["train/param_norm"] = math.hypot(*values.values())
        expected[step] = norms | values
    assert set(found) == {2, 4, 5, 6, 8, 10} or precision == "fp16"
    for at, row in found.items():
        norms = {name: value for name, value in row.items() if "_norm" in name}
        if at % 2 == 1 and precision == "fp16":  # The end of an epoch whose last step was left out: none to measure.
            expected[at] = {name: value for name, value in expected[at].items() if name in norms}
        assert norms == pytest.approx(expected[at], rel=1e-5)
        assert "train/param_norm/net.0.weight" in norms


def test_norms_are_measured_only_if_asked_for() -> None:
    result = quiet(max_epochs=1).fit(Regression(), split())
    assert not any("norm" in name for name in result.metrics)
    result = quiet(max_epochs=1, log_grad_norm=True, log_param_norm=True).fit(Regression(), split())
    assert {name for name in result.metrics if "norm" in name} == {"train/grad_norm", "train/param_norm"}


# Schedules.


def test_the_curve_of_learning_rates_over_steps_is_the_same_for_every_accumulation() -> None:
    curves = []
    for accumulation in (1, 2, 4):
        model = Regression()
        quiet(max_steps=9, accumulation_steps=accumulation).fit(model, split(4 // accumulation))
        curves.append(model.rates)
    assert len(curves[0]) == 9
    assert all(a == b for a, b in itertools.pairwise(curves))


# Without a gradient, and a loss that is not finite.


class Idle(Regression):
    """Its step has no `backward` in odd batches."""

    def train_step(self, batch: Any, state: Any) -> None:
        if state.batch % 2 == 0:
            self.backward(self.net(batch[0]).mean(), weight=len(batch[0]))
        self.updated.append(self.optimizer_step(self.optimizer, self.scheduler))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_a_step_without_a_gradient_changes_nothing_and_returns_false(clip_norm: float | None, precision: str) -> None:
    model = Idle()
    quiet(max_epochs=1, clip_norm=clip_norm, precision=precision).fit(model, split())
    done = model.updated.count(True)
    assert model.updated[1::2] == [False, False]
    assert done == 3 or precision == "fp16"
    assert model.scheduler.last_epoch == done
    assert len(model.optimizer.state) == (4 if done else 0)


def test_a_step_after_a_backward_of_the_models_own_returns_true() -> None:
    class Own(Regression):
        def train_step(self, batch: Any, state: Any) -> None:
            self.net(batch[0]).mean().backward()
            self.updated.append(self.optimizer_step(self.optimizer, self.scheduler))

    model = Own()
    quiet(max_epochs=1).fit(model, split())
    assert model.updated == [True] * 5


def test_an_optimizer_that_needs_no_gradients_steps() -> None:
    class Walk(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                p.add_(1.0)

    class Walking(Regression):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer = Walk(self.net.parameters(), {"lr": 1.0})  # type: ignore[assignment]

        def train_step(self, batch: Any, state: Any) -> None:
            self.updated.append(self.optimizer_step(self.optimizer))

    model = Walking()
    quiet(max_epochs=1).fit(model, split())
    assert model.updated == [True] * 5
    assert torch.equal(model.net[0].bias, make(1, 3, 8, 1)[0].bias + 1 + 1 + 1 + 1 + 1)


class Silent(Regression):
    """Logs nothing."""

    def log(self, *arguments: Any, **options: Any) -> None:
        pass

    def train_step(self, batch: Any, state: Any) -> None:
        factor = math.nan if state.batch in self.bad else 1.0
        self.backward(self.net(batch[0]).float().mean() * factor)
        self.optimizer_step(self.optimizer)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_even_if_it_is_not_logged(
    tmp_path: Path, accumulation_steps: int
) -> None:
    options: dict[str, Any] = {"log_every_steps": 2, "accumulation_steps": accumulation_steps, "root": tmp_path}
    with pytest.raises(FloatingPointError, match=r"^the loss passed to backward is not finite at step 2;"):
        quiet(max_epochs=2, **options).fit(Silent(bad=(1,)), split(4 // accumulation_steps))
    assert not list(tmp_path.rglob("*.pth"))


def test_a_loss_that_is_not_finite_is_not_saved_between_logging_steps(tmp_path: Path) -> None:
    options: dict[str, Any] = {"log_every_steps": 100, "save_every_steps": 1, "root": tmp_path}
    with pytest.raises(FloatingPointError, match=r"^the loss passed to backward is not finite at step 3;"):
        quiet(max_epochs=2, **options).fit(Silent(bad=(2,)), split())
    assert [path.stem for path in tmp_path.rglob("*.pth")] == ["regression_epoch_0_iter_2"]


def test_a_loss_is_not_looked_at_without_check_finite() -> None:
    result = quiet(max_epochs=1, log_every_steps=1, check_finite=False).fit(Silent(bad=(1,)), split())
    assert result.state.step == 5
    assert not any("loss" in name for name in result.metrics)


def test_the_loss_of_a_step_that_fp16_skips_is_not_judged(tmp_path: Path) -> None:
    """The last step of an epoch is skipped, where a row and a checkpoint are written."""
    options: dict[str, Any] = {"log_every_steps": 100, "precision": "fp16", "root": tmp_path}
    result = quiet(max_epochs=3, **options).fit(Silent(bad=(14,)), split())
    first = quiet(max_epochs=3, precision="fp16").fit(Silent(), split()).state.skipped_steps
    assert result.state.skipped_steps == first + 1 < 11


def test_a_model_can_be_copied_in_the_middle_of_a_training() -> None:
    copies: list[Tiny] = []

    class Copied(Tiny):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            super().on_training_batch_end(state, should_log)
            if not copies:
                copies.append(copy.deepcopy(self))

    model = Copied()
    quiet(max_steps=3).fit(model, data())
    assert not same(weights(copies[0]), weights(model))
