"""Gradients of unusual programs: several losses of a graph, optimizers with a closure, hooks of steps, sparse ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import close, same
from helpers.fitting import (
    BATCHES,
    CLOSING,
    SMALL,
    Closing,
    ClosingAndPlain,
    Fitting,
    X,
    Y,
    closing_by_hand,
    data,
    network,
)
from helpers.models import quiet
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split

# Several losses of one graph.


class Pair(nn.Module):
    """A trunk and two heads, each of the heads with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = network(), nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        for parameter in self.heads.parameters():
            nn.init.constant_(parameter, 0.5)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = self.trunk(x)
        return [head(features) for head in self.heads]


def optimizers_of(pair: Any) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(part.parameters(), lr=0.1 / SMALL) for part in (pair.trunk, pair.heads)]


class TwoLosses(Model):
    def setup(self, fast_init: bool = False) -> None:
        self.pair = self.parallelize(Pair())
        self.first, self.second = optimizers_of(self.pair)

    def train_step(self, batch: Any, state: Any) -> None:
        with self.autocast():
            one, other = self.pair(batch[0])
            losses = [SMALL * (one - batch[1]).square().mean(), SMALL * (other + batch[1]).square().mean()]
        self.backward(losses[0], retain_graph=True)
        self.backward(losses[1])
        self.optimizer_step(self.first)
        self.optimizer_step(self.second)


def two_losses_by_hand(batches: Any) -> Pair:
    pair = Pair()
    optimizers = optimizers_of(pair)
    for x, y in batches:
        one, other = pair(x)
        (SMALL * (one - y).square().mean()).backward(retain_graph=True)
        (SMALL * (other + y).square().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return pair


@pytest.mark.parametrize(("precision", "accumulation_steps"), [("fp32", 1), ("fp32", 2), ("fp16", 1), ("fp16", 2)])
def test_several_losses_of_one_graph_with_several_optimizers(precision: str, accumulation_steps: int) -> None:
    model = TwoLosses("two")
    options = {"max_epochs": 1, "precision": precision, "accumulation_steps": accumulation_steps}
    result = quiet(**options).fit(model, data(4 // accumulation_steps))
    assert (result.state.step, result.state.skipped_steps) == (3, 0)
    expected, found = two_losses_by_hand(BATCHES).state_dict(), model.pair.state_dict()
    if precision == "fp32":
        assert (same if accumulation_steps == 1 else close)(found, expected)
    else:
        assert all(torch.allclose(found[name], expected[name], atol=2e-3) for name in expected)


# Optimizers with a closure.


@pytest.mark.parametrize(("kind", "clip_norm"), [*((kind, None) for kind in CLOSING), ("sam", 0.05)])
def test_an_optimizer_with_a_closure_does_what_it_does_by_hand(
    kind: str, clip_norm: float | None, tmp_path: Path
) -> None:
    made, options = CLOSING[kind]
    model, about = Closing(made, **options), {"root": tmp_path, "clip_norm": clip_norm, "log_grad_norm": True}
    quiet(max_steps=4, **about).fit(Closing(made, **options), data())
    result = quiet(max_epochs=2, **about).fit(model, data())
    assert result.state.step == 6
    assert same(model.net.state_dict(), closing_by_hand(made, options, clip_norm, 2).state_dict())


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"accumulation_steps": 2}])
def test_what_a_closure_cannot_have_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^optimizer_step\(closure=\.\.\.\): "):
        quiet(max_epochs=1, **options).fit(Closing(torch.optim.LBFGS), data())


@pytest.mark.parametrize("kind", CLOSING)
def test_the_norm_of_gradients_is_that_of_the_weights_as_they_are_for_each_optimizer(kind: str, tmp_path: Path) -> None:
    made, options = CLOSING[kind]
    about = {"max_steps": 1, "log_every_steps": 1, "log_grad_norm": True, "root": tmp_path}
    quiet(**about).fit(ClosingAndPlain(made, **options), data(12))
    net = network()
    nn.functional.mse_loss(net(X), Y).backward()
    norm = nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]).item()
    (row, *_) = map(json.loads, (tmp_path / "fitting" / "metrics.jsonl").read_text().splitlines())
    assert row["train/grad_norm/optimizer"] == pytest.approx(norm)
    assert row["train/grad_norm/plain"] == pytest.approx(norm)


# Hooks of steps, and sparse gradients.


class Hooked(Fitting):
    """Changes the gradients in a hook: clips them by value, as PyTorch's function does."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.noted: list[list[torch.Tensor]] = []
        self.optimizer.register_step_pre_hook(self.clip)

    def loss(self, batch: Any) -> torch.Tensor:
        return SMALL * super().loss(batch)

    def clip(self, *_: Any) -> None:
        self.noted.append([p.grad.clone() for p in self.net.parameters()])
        nn.utils.clip_grad_value_(self.net.parameters(), 0.01 * SMALL)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_hooks_before_a_step_see_averaged_and_unscaled_gradients_and_may_change_them(precision: str) -> None:
    tolerance = 1e-6 if precision == "fp32" else 2e-3
    for accumulation_steps in (1, 2):
        model = Hooked(lr=0.1 / SMALL)
        options = {"max_epochs": 2, "precision": precision, "accumulation_steps": accumulation_steps}
        state = quiet(**options).fit(model, data(4 // accumulation_steps)).state
        assert (len(model.noted), state.skipped_steps) == (6, 0)
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1 / SMALL)
        for noted, (x, y) in zip(model.noted, BATCHES * 2, strict=True):
            (SMALL * nn.functional.mse_loss(net(x), y)).backward()
            for found, p in zip(noted, net.parameters(), strict=True):
                assert torch.allclose(found, p.grad, atol=tolerance * SMALL)
            nn.utils.clip_grad_value_(net.parameters(), 0.01 * SMALL)
            optimizer.step()
            optimizer.zero_grad()
        assert torch.allclose(model.net[0].weight, net[0].weight, atol=tolerance)


class Words(Model):
    def __init__(self, sparse: bool) -> None:
        super().__init__("words")
        self.sparse = sparse

    def setup(self, fast_init: bool = False) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Embedding(9, 2, sparse=self.sparse), nn.Linear(2, 1))
        self.net = self.parallelize(net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)

    def train_step(self, batch: Any, state: Any) -> None:
        words, count = batch
        self.backward(self.net(words).square().mean(), weight=count.sum())
        self.optimizer_step(self.optimizer)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_sparse_gradients_are_weighted_measured_and_clipped_as_dense_ones(
    precision: str, accumulation_steps: int
) -> None:
    words = torch.tensor([[1, 1, 3], [3, 4, 5], [1, 5, 5], [7, 8, 8]] * 2)
    options = {"precision": precision, "accumulation_steps": accumulation_steps, "log_grad_norm": "per-parameter"}
    ends = []
    for sparse in (True, False):
        model, split = Words(sparse), Split(TensorDataset(words, torch.ones(8)), 2)
        result = quiet(max_epochs=1, clip_norm=0.02, log_every_steps=1, **options).fit(model, DataModule(split))
        norms = {name: value for name, value in result.metrics.items() if "grad_norm" in name}
        ends.append((norms, model.net.state_dict()))
    assert len(ends[0][0]) > 3
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*[end[1].values() for end in ends], strict=True))


def test_a_lazy_module_without_shapes_is_an_error_that_says_what_to_do() -> None:
    class Lazy(Fitting):
        def setup(self, fast_init: bool = False) -> None:
            net = nn.LazyLinear(1)
            if self.options:
                net(X[:1])
            self.net = self.parallelize(net)
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    with pytest.raises(ValueError, match=r"^parallelize: weight has no shape yet .* call the network with a batch"):
        quiet(max_epochs=1).fit(Lazy(), data())
    assert quiet(max_epochs=1).fit(Lazy(lr=1), data()).state.step == 3
