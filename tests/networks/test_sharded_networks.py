"""Networks sharded by two real gloo processes: what a rank holds, and that it computes what one process does."""

import copy
import dataclasses
import functools
import pickle
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import scripts
from helpers.compare import close, same, weights
from helpers.faulty import Failing
from helpers.models import Indices, data, quiet
from helpers.optimizers import OPTIMIZERS
from helpers.processes import deadline
from helpers.rows import read_rows
from helpers.scenarios import Results, scenario
from helpers.sharded import Deep, Stack, fit
from hybrid import STEPS
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.two_tensor import TwoTensor

from helios_lite import DataModule, Model, Split
from helios_lite.callbacks import EMA
from helios_lite.changes.run_description import read_starts
from helios_lite.metrics.digests import Digests, digest_of_weights
from helios_lite.networks.dtensors import full_tensor, is_dtensor
from helios_lite.networks.fsdp import explain, make_mesh, sharded_modules
from helios_lite.networks.parallel import ParallelStrategy
from helios_lite.networks.shard_units import find_units
from helios_lite.processes.world import World
from helios_lite.tools.diff import compare

TESTS = Path(__file__).parents[1]
STRATEGIES = ["ddp", "fsdp"]


@pytest.fixture(autouse=True, scope="module")
def ended() -> Iterator[None]:
    with deadline(240):
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(__name__, tmp_path_factory.mktemp("scenarios"))


# What a rank holds in an evaluation.


@scenario(ranks=2)
def evaluations_of_different_lengths(root: Path, world: World) -> dict[int, Any]:
    """For each length: the metrics, the indices that each rank has seen, and how many blocks it held at a time."""
    found = {}
    for length in (1, 3, 8, 9):
        model = Deep()
        trainer = quiet(max_epochs=1, strategy="fsdp")
        metrics = trainer.test(model, DataModule(test=Split(Indices(length), batch_size=2)))
        gathered = [number for layer in model.net.layers for number in layer.gathered]
        left = sum(not is_dtensor(layer.linear.weight) for layer in model.net.layers)
        found[length] = metrics, world.gather((model.validated, gathered, left))
    return found


def test_an_evaluation_gathers_one_block_at_a_time_though_ranks_have_different_numbers_of_batches(
    result: Results,
) -> None:
    for length, (metrics, ranks) in result(evaluations_of_different_lengths, ranks=2).items():
        one = quiet(max_epochs=1).test(Deep(), DataModule(test=Split(Indices(length), batch_size=2)))
        assert metrics["test/loss"] == pytest.approx(one["test/loss"], rel=1e-6)
        assert sorted(index for validated, _, _ in ranks for index in validated) == list(range(length))
        for validated, gathered, left in ranks:
            assert len(gathered) == 3 * ((len(validated) + 1) // 2)
            assert set(gathered) <= {1}
            assert left == 0


class Wandering(Deep):
    """Each rank runs other parts of the network, in another order and number; and one alone after the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def valid_step(self, batch: Any, step: int) -> None:
        index, x = batch
        net = self.net
        hidden = torch.ones(2, 8) * index.sum()
        for i in range(1 + int(index[0]) % 3):
            self.outputs.append(net(x + i))
            self.outputs += [net.layers[2 - i](hidden) for _ in range(i)]
        if int(index[0]) >= 5:
            self.outputs += [net.layers[0](hidden), net(x), net.layers[0](hidden), net.layers[1](hidden)]

    def on_validation_end(self, validation_cycle: int) -> None:
        if self.global_rank == 0:
            self.outputs.append(self.net(torch.ones(1, 3)))


@scenario(ranks=2)
def forward_passes_that_differ_among_the_ranks(root: Path, world: World) -> list[list[Tensor]]:
    model = Wandering()
    quiet(max_epochs=1, strategy="fsdp").validate(model, data(valid=11, batch_size=1), checkpoint=None)
    return world.gather(model.outputs)


def test_ranks_may_run_different_parts_of_a_sharded_network_in_an_evaluation(result: Results) -> None:
    one = Wandering()
    quiet(max_epochs=1).validate(one, data(valid=11, batch_size=1), checkpoint=None)
    first, second = result(forward_passes_that_differ_among_the_ranks, ranks=2)
    assert len(first) != len(second)
    assert close([*first[:-1], *second, first[-1]], one.outputs)


class Routed(nn.Module):
    """Runs one of its parts, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.last = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)]), nn.Linear(3, 1)

    def forward(self, x: Tensor, which: int) -> Tensor:
        y: Tensor = self.last(self.parts[which](x))
        return y


class RoutedByRank(Model):
    """Each rank runs its part; without blocks the other one in the second micro-batch, so that gradients reach both."""

    def __init__(self, *blocks: type[nn.Module], is_own: bool = False) -> None:
        super().__init__("routed")
        self.blocks, self.is_own = blocks, is_own

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Routed(), blocks=self.blocks)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.initial = weights(self)["net"]

    def train_step(self, batch: Any, state: Any) -> None:
        loss = self.net(batch[1], (self.global_rank + state.batch) % 2).square().mean()
        if self.is_own:
            loss.backward()
            self.optimizer.step()
        else:
            self.backward(loss)
            self.optimizer_step(self.optimizer)


@scenario(ranks=2)
def ranks_that_run_other_blocks(root: Path, world: World) -> list[str]:
    found = []
    for model, micro_batches in (
        (RoutedByRank(nn.Linear), 1),
        (RoutedByRank(nn.Linear, is_own=True), 1),
        (RoutedByRank(), 2),
    ):
        with pytest.raises(RuntimeError) as error:
            fit(model, accumulation_steps=micro_batches, valid_every_epochs=None, clip_norm=1e-9)
        assert same(weights(model)["net"], model.initial)
        gradients = [p.grad.to_local() for p in model.net.parameters() if is_dtensor(p.grad)]
        assert sum(gradient.abs().sum() for gradient in gradients) > 1e-3  # They have not been clipped.
        found.append(str(error.value))
    return found


def test_ranks_that_run_other_blocks_are_an_error_that_names_them_before_a_wrong_step(result: Results) -> None:
    blocks, own, parts = result(ranks_that_run_other_blocks, ranks=2)
    start = "optimizer_step: the ranks have run other parts of sharded networks: rank 0"
    assert blocks == own
    assert blocks.startswith(
        f"{start} gathers parts.0 where rank 1 gathers parts.1. All ranks must run the same blocks"
    )
    averages = "averages the gradient of parts"
    assert parts.startswith(f"{start} {averages}.0.weight where rank 1 {averages}.1.weight.")


class Attacked(Deep):
    """Evaluates with inputs that a gradient has moved."""

    @torch.enable_grad()
    def valid_step(self, batch: Any, step: int) -> None:
        x = batch[1].requires_grad_()
        torch.autograd.grad(self.net(x).sum(), x)


@scenario(ranks=2)
def backward_pass_in_an_evaluation(root: Path, world: World) -> str:
    with pytest.raises(RuntimeError) as error:
        quiet(max_epochs=1, strategy="fsdp").validate(Attacked(), data(valid=4), checkpoint=None)
    return str(error.value)


def test_a_backward_pass_through_a_sharded_network_in_an_evaluation_is_an_error(result: Results) -> None:
    assert result(backward_pass_in_an_evaluation, ranks=2).startswith("valid_step, test_step: a backward pass through")


# How it is made.


class Noted(nn.Linear):
    """Notes how many layers exist as a whole when one gets its values."""

    made: list["Noted"] = []
    whole: list[int] = []

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.made.append(self)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self in self.made:
            self.whole.append(sum(not p.is_meta and not is_dtensor(p) for p in (each.weight for each in self.made)))


class Parts(Model):
    """A network on the meta device with batch norm and tied weights, of which each `Noted` is a block."""

    def __init__(self, device: str = "meta", **options: Any) -> None:
        super().__init__("parts")
        self.made_on = device

    def setup(self, fast_init: bool = False) -> None:
        Noted.made.clear()
        Noted.whole.clear()
        with torch.device(self.made_on):
            net = nn.Sequential(nn.Embedding(5, 4), Noted(4, 6), nn.BatchNorm1d(6), Noted(6, 6), Noted(6, 4))
            net.append(nn.Linear(4, 5))
            net[5].weight = net[0].weight
        self.net = self.parallelize(net, blocks=(Noted,))
        self.draw = torch.rand(1)
        if not fast_init:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch: Any, state: Any) -> None:
        index, _ = batch
        self.backward(nn.functional.cross_entropy(self.net(index % 5), index % 5))
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None: ...


class Initial(Parts):
    """Notes what `setup` has made."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.initial = weights(self)["net"], self.draw
        self.most_whole = max(Noted.whole, default=0)


@scenario(ranks=2)
def networks_made_on_the_meta_device(root: Path, world: World) -> dict[str, Any]:
    found = {}
    for strategy in STRATEGIES:
        model = Initial()
        quiet(max_epochs=1, strategy=strategy).fit(model, data(12))
        tied = model.net[5].weight is model.net[0].weight
        found[strategy] = model.initial, model.most_whole, tied, weights(model)["net"]
    return found


@pytest.mark.parametrize("strategy", ["one", *STRATEGIES])
def test_a_network_made_on_the_meta_device_has_the_same_initial_values(strategy: str, result: Results) -> None:
    made = Initial("cpu")
    quiet(max_epochs=1).fit(made, data(12, batch_size=8))
    if strategy == "one":
        model = Initial()
        quiet(max_epochs=1).fit(model, data(12, batch_size=8))
        assert same(model.initial, made.initial)
        assert same(weights(model), weights(made))
        return
    initial, most_whole, tied, trained = result(networks_made_on_the_meta_device, ranks=2)[strategy]
    assert same(initial, made.initial)
    assert tied
    assert most_whole == (1 if strategy == "fsdp" else 3)
    assert not same(trained, initial[0])


class Marked(nn.Module):
    """Parameters with an attribute, of which one has a hook of a kind."""

    def __init__(self, hook: str | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        for index, p in enumerate(self.parameters()):
            p.order = [index]  # type: ignore[attr-defined]
        if hook is not None:
            getattr(self.last.bias, hook)(lambda p: p)


def marked(world: World, strategy: str, device: str) -> list[Any]:
    """The attributes of the parameters after `parallelize`, and for each kind of hook what its error says."""
    found = list[Any]()
    for hook in (None, "register_hook", "register_post_accumulate_grad_hook"):
        with torch.device(device):
            net = Marked(hook)
        strategies = ParallelStrategy(torch.device("cpu"), world, strategy)
        try:
            strategies.wrap(net, (nn.Linear,))
            if hook is None and strategy == "fsdp":
                net.last.bias.register_post_accumulate_grad_hook(lambda p: None)
                strategies.refresh()
                net.last.bias.register_hook(lambda gradient: gradient)
                strategies.refresh()
        except ValueError as error:
            found.append(str(error))
        if hook is None:
            found.append([p.order for p in net.parameters()])
            for module in sharded_modules(net):
                module.unshard()
            assert [p.order for p in net.parameters()] == found[-1]  # What a forward pass sees.
    return found


@scenario(ranks=2)
def marked_by_two(root: Path, world: World) -> dict[str, list[Any]]:
    return {device: marked(world, "fsdp", device) for device in ("cpu", "meta")}


@pytest.mark.parametrize(("strategy", "device"), [("ddp", "meta"), ("fsdp", "cpu"), ("fsdp", "meta")])
def test_attributes_of_parameters_are_kept_and_hooks_that_would_be_dropped_are_an_error(
    strategy: str, device: str, result: Results
) -> None:
    found = marked(World(), "ddp", device) if strategy == "ddp" else result(marked_by_two, ranks=2)[device]
    *errors, last, other = [each for each in found if isinstance(each, str)]
    assert [[0], [1], [2], [3]] in found
    assert len(errors) == (strategy == "fsdp")  # Of the hook that was added later.
    for error in (*errors, last, other):
        assert error.startswith("parallelize: last.bias has a hook that would never be called; register it after")


def test_a_version_that_ends_with_other_weights_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.12.1+cpu"))
    strategies = ParallelStrategy(torch.device("cpu"), World(0, 0, 2, 2), "fsdp")
    with pytest.raises(RuntimeError, match=r"^strategy: sharded networks need PyTorch 2.13 or newer, and this is 2.12"):
        strategies.wrap(nn.Linear(2, 2), ())


def test_parameters_of_classes_that_pytorch_moves_by_swapping_can_be_moved_again() -> None:
    """As quantized ones are."""
    net = nn.Linear(2, 1)
    net.weight = weight = nn.Parameter(TwoTensor(torch.ones(1, 2), torch.ones(1, 2)))
    strategies = ParallelStrategy(torch.device("cpu"), World(), "ddp")
    for _ in range(2):  # The second time nothing is to be done.
        assert strategies.wrap(net, ()) is net
        net.to(torch.device("cpu"))  # As an evaluation does.
    assert net.weight is weight


class Adapted(nn.Module):
    """A frozen layer in bf16 with an adapter in fp32 that has a child in float64; their scale has another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.adapter, self.other = nn.Linear(3, 3, dtype=torch.bfloat16), nn.Linear(3, 3), nn.Linear(3, 3)
        self.adapter.child = nn.Linear(3, 3, dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float16))
        self.frozen.requires_grad_(False)


def test_a_block_of_several_dtypes_is_divided_by_its_submodules_or_is_an_error_that_names_one() -> None:
    net = nn.Sequential(Adapted(), nn.Linear(3, 3, dtype=torch.float64))
    block, last = net
    assert find_units(net, [block]) == {
        net: torch.float64,
        block: torch.float32,
        block.adapter.child: torch.float64,
    }
    last.weight = block.adapter.child.weight
    with pytest.raises(ValueError, match=r"^parallelize: 0.adapter.child of a Sequential shares a parameter with"):
        find_units(net, [block])
    block.adapter.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"^parallelize: 0.adapter of a Sequential trains parameters of float32 and fl"
    ):
        find_units(net, [block])


class Sharing(nn.Module):
    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.own, self.tied = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.tied.weight = other.weight


def shared(world: World, strategy: str, device: str, frozen: str = "none") -> str:
    """What happens to a parameter that two networks share, of which the first, the last or none is frozen."""
    with torch.device(device):
        first = nn.Linear(3, 3)
        last = Sharing(first)
    for name, net in (("first", first), ("last", last)):
        if name == frozen:
            net.requires_grad_(False)
    strategies = ParallelStrategy(torch.device("cpu"), world, strategy)
    try:
        strategies.wrap(first, ())
        strategies.wrap(last, (nn.Linear,))
    except ValueError as error:
        return str(error)
    assert first.weight is last.tied.weight
    return "shared"


@scenario(ranks=2)
def shared_by_networks(root: Path, world: World) -> dict[str, str]:
    found = {frozen: shared(world, "fsdp", "cpu", frozen) for frozen in ("none", "first", "last")}
    found["replicas"] = shared(world, "ddp", "cpu")
    strategies = ParallelStrategy(torch.device("cpu"), world, "fsdp")
    first = nn.Linear(3, 3)
    head = Sharing(first)
    strategies.wrap(first, ())
    with pytest.raises(ValueError, match="tied") as error:
        strategies.check_passed([("first", first), ("tied", head)])
    return {**found, "alone": str(error.value)}


def test_a_parameter_of_two_networks_stays_one_or_is_an_error_that_names_both(result: Results) -> None:
    found = result(shared_by_networks, ranks=2)
    assert shared(World(), "ddp", "cpu") == found.pop("replicas") == "shared"
    assert found.pop("alone") == "tied: is trained by 2 processes but not passed through parallelize"
    for message in (*found.values(), shared(World(), "ddp", "meta")):
        assert message.startswith("parallelize: tied.weight of a Sharing is also weight of a Linear, and would become")


def test_a_model_that_was_set_up_here_can_be_sent_to_processes() -> None:
    model = Deep()
    model.setup()
    assert same(weights(pickle.loads(pickle.dumps(model))), weights(model))


class NoReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class HalfReset(NoReset):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)


class Masked(nn.Module):
    """Tensors of several kinds, all of which `reset_parameters` fills, but for a part of one."""

    def __init__(self, missing: str = "") -> None:
        super().__init__()
        self.missing = missing
        for name, dtype in (("mask", torch.bool), ("positions", torch.int64), ("rotations", torch.complex64)):
            self.register_buffer(name, torch.empty(3, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, buffer in self.named_buffers():
            some = buffer.real if buffer.is_complex() else buffer[1:]
            part = some if name == self.missing else buffer
            part.copy_(torch.randint(9, part.shape))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.steps = nn.Linear(3, 3), torch.arange(3)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (functools.partial(Masked, "mask"), r"^1\.mask: reset_parameters of Masked does not fill it, or with other"),
        (functools.partial(Masked, "positions"), r"^1\.positions: reset_parameters of Masked does not fill it, or"),
        (functools.partial(Masked, "rotations"), r"^1\.rotations: reset_parameters of Masked does not fill it$"),
        (Plain, r"^1\.steps: was made under torch.device\('meta'\) and gets no values, as it is neither a parameter"),
        (
            NoReset,
            r"^1: NoReset was made under torch.device\('meta'\) and needs a method reset_parameters\(\) that fills",
        ),
        (HalfReset, r"^1\.table: reset_parameters of HalfReset does not fill it$"),
    ],
)
def test_a_module_on_the_meta_device_that_cannot_be_filled_is_an_error_that_names_it(module: Any, message: str) -> None:
    class Unfilled(Parts):
        def setup(self, fast_init: bool = False) -> None:
            with torch.device("meta"):
                net = nn.Sequential(nn.Linear(3, 3), module())
            self.net = self.parallelize(net)

    with pytest.raises(ValueError, match=message):
        quiet(max_epochs=1).fit(Unfilled(), data())


def test_tensors_of_every_kind_made_on_the_meta_device_are_those_made_without_it() -> None:
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        with torch.device(device):
            net = nn.Sequential(Masked(), nn.BatchNorm1d(3), Masked())
        ParallelStrategy(torch.device("cpu"), World()).wrap(net, ())
        found.append((net.state_dict(), torch.rand(1)))
    assert same(*found)


def test_a_checkpoint_is_loaded_into_a_network_made_on_the_meta_device(tmp_path: Path) -> None:
    model = Parts("cpu")
    saved = quiet(max_epochs=1, root=tmp_path).fit(model, data()).last_checkpoint
    assert saved is not None
    assert same(weights(Parts.load_from_checkpoint(saved))["net"], weights(model)["net"])
    resumed = Parts()
    quiet(max_epochs=1, root=tmp_path).fit(resumed, data())
    assert same(weights(resumed), weights(model))


# Precision, accumulation, recomputed activations.


@scenario(ranks=2)
def training_in_bf16(root: Path, world: World) -> Any:
    model = Deep()
    metrics = fit(model, precision="bf16")
    dtypes = set.union(*(layer.dtypes for layer in model.net.layers))
    return dtypes, {p.dtype for p in model.net.parameters()}, metrics["train/loss"]


def test_a_sharded_network_is_gathered_in_bf16_and_keeps_its_weights_in_fp32(result: Results) -> None:
    gathered, kept, loss = result(training_in_bf16, ranks=2)
    assert gathered == {torch.bfloat16}
    assert kept == {torch.float32}
    one = fit(Deep(), batch_size=4, precision="bf16", strategy="ddp")
    assert loss == pytest.approx(one["train/loss"], rel=0.02)


class Timed(nn.Module):
    """A block with two normalizations. It notes the value and the type of a float input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.before, self.after = nn.Linear(3, 3), nn.LayerNorm(3), nn.BatchNorm1d(3)
        self.seen: set[tuple[torch.dtype, float]] = set()

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, time = inputs
        self.seen.add((time.dtype, time[0].item()))
        return x + self.after(self.linear(self.before(x))) * (0.01 * time).cos(), time


class Mixing(nn.Linear):
    """An operation that takes tensors of one type only."""

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, time = inputs
        return torch.lerp(x, self.bias.expand_as(x), 0.5), time


class Last(nn.LayerNorm):
    """A normalization that belongs to no block."""

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, time = inputs
        return super().forward(x), time


class Times(Model):
    """Trains under autocast, after a pass without gradients, and validates without autocast."""

    def __init__(self, *kinds: Callable[[], nn.Module]) -> None:
        super().__init__("times")
        self.kinds = kinds

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(*(kind() for kind in self.kinds)), blocks=(Timed,))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def loss(self, x: Tensor) -> Tensor:
        y, _ = self.net((x, torch.full((len(x), 1), 257.0)))  # 256 or 258 in bf16.
        return (y - x.cos()).square().mean()

    def train_step(self, batch: Any, state: Any) -> None:
        with self.autocast():
            with torch.no_grad():
                self.loss(batch[1])
            loss = self.loss(batch[1])
        self.backward(loss)
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        self.loss(batch[1])


@scenario(ranks=2)
def inputs_and_normalizations_in_bf16(root: Path, world: World) -> Any:
    found = {}
    for strategy in STRATEGIES:
        model = Times(Timed, Timed, functools.partial(Last, 3))
        fit(model, batch_size=8, valid=4, precision="bf16", strategy=strategy)
        found[strategy] = weights(model)["net"], model.net[1].seen
    with pytest.raises(RuntimeError) as error:
        fit(Times(functools.partial(Mixing, 3, 3)), precision="bf16", valid_every_epochs=None)
    found["error"] = str(error.value)
    return found


def test_sharded_networks_in_bf16_leave_inputs_to_autocast_and_normalize_in_fp32(result: Results) -> None:
    found = result(inputs_and_normalizations_in_bf16, ranks=2)
    (replicated, exact), (sharded, seen) = found["ddp"], found["fsdp"]
    assert all((sharded[name].float() - value).abs().max() < 0.01 for name, value in replicated.items())
    assert exact == {(torch.float32, 257.0)}
    assert seen == {*exact, (torch.bfloat16, 256.0)}  # Outside of autocast inputs become what the parameters are.
    assert "convert one of the tensors" in found["error"]


@scenario(ranks=2)
def sum_of_gradients_in_bf16(root: Path, world: World) -> Tensor:
    """The gradient 1 of rank 0 and 2**-9 of rank 1: their mean has no exact bf16."""

    class One(Model):
        def setup(self, fast_init: bool = False) -> None:
            self.net = self.parallelize(nn.Linear(1, 1, bias=False))

        def train_step(self, batch: Any, state: Any) -> None:
            self.backward(self.net(torch.tensor([[2.0 ** (-9 * self.global_rank)]])).sum())
            self.gradient = full_tensor(self.net.weight.grad)

        def valid_step(self, batch: Any, step: int) -> None: ...

    model = One("one")
    quiet(max_steps=1, strategy="fsdp", precision="bf16").fit(model, data())
    return model.gradient


def test_gradients_are_reduced_in_fp32_under_bf16(result: Results) -> None:
    assert result(sum_of_gradients_in_bf16, ranks=2).item() == (1 + 2.0**-9) / 2


class Chosen(Deep):
    """Trains with an optimizer, which it gives a closure or not."""

    def __init__(self, optimizer: str, *, has_closure: bool = False) -> None:
        super().__init__()
        self.name, self.has_closure = optimizer, has_closure

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.optimizer = OPTIMIZERS[self.name](self.net.parameters())

    def train_step(self, batch: Any, state: Any) -> None:
        if self.has_closure:
            self.optimizer.step(lambda: self.backward(self.net(batch[1]).square().mean()))
        super().train_step(batch, state)


@scenario(ranks=2)
def optimizers_that_cannot_be_sharded(root: Path, world: World) -> list[str]:
    handlers, reading = DTensor._op_dispatcher._custom_op_handlers, torch.ops.aten._local_scalar_dense.default
    handlers.pop(reading, None)  # Of a strategy that nobody has closed.
    found = []
    for model in (Chosen("LBFGS"), Chosen("in place"), Chosen("reading"), Chosen("Muon", has_closure=True)):
        with pytest.raises((ValueError, AssertionError, RuntimeError)) as error:
            fit(model)
        assert same(dict(weights(model)["net"]), model.initial)
        found.append("\n".join([str(error.value), *getattr(error.value, "__notes__", [])]))
    assert reading not in handlers
    return found


def test_an_optimizer_that_cannot_train_shards_is_an_error_in_words_before_a_step(result: Results) -> None:
    vector, in_place, reading, closure = result(optimizers_that_cannot_be_sharded, ranks=2)
    assert vector.startswith("optimizer: LBFGS makes one vector of all parameters, which cannot be sharded; use")
    assert "InPlace.step computes with the parameters of a sharded network, which are DTensors" in in_place
    assert "let every rank call value.full_tensor() before, as in self.log('norm', norm.full_tensor())" in reading
    assert closure.startswith("Matrices.step: takes no closure for sharded networks; call backward before it")


def halve(p: Tensor) -> None:
    assert p.grad is not None
    p.grad *= 0.5


class Halved(Deep):
    """A hook changes gradients of one parameter."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net.first.weight.register_post_accumulate_grad_hook(halve)


@scenario(ranks=2)
def sharded_training_with_a_hook(root: Path, world: World) -> Any:
    model = Halved()
    fit(model)
    return weights(model)["net"]


def test_a_hook_of_a_sharded_parameter_changes_its_average(result: Results) -> None:
    one = Halved()
    fit(one, batch_size=4, strategy="ddp")
    assert close(result(sharded_training_with_a_hook, ranks=2), weights(one)["net"])


class Counting(nn.BatchNorm1d):
    """Computes with a buffer that each forward pass changes."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x) * self.num_batches_tracked
        return y


class Changing(Deep):
    """Blocks with buffers that change; one has a `forward` of its own."""

    def make(self) -> Stack:
        net = super().make()
        for layer in net.layers:
            layer.dropout = nn.Sequential(Counting(8), layer.dropout)
        net.layers[1].forward = functools.partial(doubled, net.layers[1])
        return net


def doubled(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = 2 * type(layer).forward(layer, x)
    return y


def recomputed(strategy: str) -> list[Any]:
    """The weights after a training with and without `checkpoint_activations`, and the forward passes of a block."""
    found = []
    for checkpoints in (False, True):
        model = Changing(dropout=0.3)
        fit(model, checkpoint_activations=checkpoints, strategy=strategy, valid_every_epochs=None)
        layer = model.net.layers[1]
        found.append((weights(model), len(layer.gathered), max(layer.gathered)))
    return found


@scenario(ranks=2)
def recomputed_by_two(root: Path, world: World) -> dict[str, list[Any]]:
    return {strategy: recomputed(strategy) for strategy in STRATEGIES}


@pytest.mark.parametrize("strategy", ["one", *STRATEGIES])
def test_recomputed_activations_do_not_change_one_bit(strategy: str, result: Results) -> None:
    kept, again = recomputed("ddp") if strategy == "one" else result(recomputed_by_two, ranks=2)[strategy]
    assert same(kept[0], again[0])
    assert again[1] == 2 * kept[1]
    assert list(kept[0]["net"]) == list(Changing().make().state_dict())
    if strategy == "fsdp":
        assert again[2] <= 2  # Its own block, and the one that is gathered ahead.


def test_a_copy_of_a_block_with_recomputed_activations_computes_with_its_own_weights() -> None:
    model = Deep()
    fit(model, checkpoint_activations=True, strategy="ddp")
    twin = copy.deepcopy(model.net)
    nn.init.zeros_(twin.layers[0].linear.weight)
    nn.init.zeros_(twin.layers[0].linear.bias)
    x = torch.ones(1, 8)
    assert torch.equal(twin.layers[0](x), x)
    assert not torch.equal(model.net.layers[0](x), x)


def test_recomputed_activations_need_blocks() -> None:
    class NoBlocks(Deep):
        def setup(self, fast_init: bool = False) -> None:
            self.net = self.parallelize(Stack())

    with pytest.raises(ValueError, match=r"^checkpoint_activations=True: no network has blocks; pass the types"):
        fit(NoBlocks(), checkpoint_activations=True)


def test_a_rank_that_has_lost_another_one_says_what_it_has_gathered() -> None:
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    explain(caught.value, {"net": nn.Linear(3, 3)}, "fp32", "gathers layers.1")
    assert "it has run other parts of a sharded network than this one, which gathers layers.1" in str(caught.value)


# Averaged weights.


class ByHand(Deep):
    """Averages its full weights by hand, and notes those with which it evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.average: dict[str, Tensor] = {}

    def full(self) -> dict[str, Tensor]:
        return {name: full_tensor(p.detach()).clone() for name, p in self.net.named_parameters()}

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.average = self.average or self.full()
        for name, value in self.full().items():
            self.average[name].lerp_(value, 0.25)
        with torch.no_grad():  # Leaves the root gathered, which EMA must not notice.
            self.net(batch[1])

    def on_validation_end(self, validation_cycle: int) -> None:
        self.evaluated = self.full()


@scenario(ranks=2)
def averages_of_shards(root: Path, world: World) -> Any:
    """The averages at the end of a training and of one in two parts; what the first has noted, and its weights."""
    found = []
    for folder, stops in (("whole", (8,)), ("parts", (3, 8))):
        for steps in stops:
            model, ema = ByHand(), EMA(decay=0.75)
            options: dict[str, Any] = {"max_epochs": None, "max_steps": steps, "root": root / folder}
            fit(model, valid=4, callbacks=[ema], valid_every_steps=4, valid_every_epochs=None, **options)
        state = ema.state_dict()
        average = {name: full_tensor(value) for name, value in state.pop("evaluation_weights")["net"].items()}
        found.append(((average, state), model.average, model.evaluated, weights(model)))
    numbers = [sum(p.to_local().numel() for p in net.parameters()) for net in (ema.averaged.module, model.net)]
    other = ByHand()
    fit(other, max_epochs=None, max_steps=8)
    return *found, numbers, weights(other)


def test_an_average_of_a_sharded_network_is_that_of_its_full_weights_and_resumes_with_the_same_bits(
    result: Results,
) -> None:
    (state, by_hand, evaluated, final), (resumed, *_), sizes, other = result(averages_of_shards, ranks=2)
    average, counts = state
    averaged, shards = sizes
    assert averaged == shards < sum(p.numel() for p in Stack().parameters())
    assert same(state, resumed)
    assert counts["step"] == 8
    assert same(average, by_hand)
    assert same(average, evaluated)
    assert same(final, other)


# Machines.


@scenario(ranks=2)
def mesh_of_machines_of_different_sizes(root: Path, world: World) -> str:
    try:
        make_mesh(torch.device("cpu"), dataclasses.replace(world, local_size=3 + world.rank), is_hybrid=True)
    except ValueError as error:
        return str(error)
    return "none"


def test_machines_with_different_numbers_of_processes_are_an_error(result: Results) -> None:
    message = result(mesh_of_machines_of_different_sizes, ranks=2)
    assert message.startswith("strategy='hsdp' needs the same number of processes on every machine")


def test_shards_of_each_of_two_machines_are_replicated_and_do_what_one_process_does(tmp_path: Path) -> None:
    """Two agents of torchrun stand for the machines; each starts two processes."""
    options = {"batch_size": 8, "strategy": "ddp", **STEPS}
    fit(Deep(), 22, root=tmp_path / "one", **{**options, "max_steps": 4})
    checkpoint = tmp_path / "one/deep/checkpoints/deep_epoch_1_iter_4.pth"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "x", "--local-addr", "127.0.0.1"]
    command = [*torchrun, TESTS / "hybrid.py", tmp_path, checkpoint]
    agents = [scripts.start(*command, cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [agent.communicate(timeout=scripts.DEADLINE)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errors
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert {str(each["mesh"]) for each in found} == {str(([[0, 1], [2, 3]], ["R", "S(0)"]))}

    whole, accumulated, resumed = Deep(), Deep(), Deep()
    metrics = fit(whole, 22, **options)
    fit(accumulated, 22, accumulation_steps=2, **options)
    of_four = tmp_path / "own/deep/checkpoints/deep_epoch_1_iter_4"
    fit(resumed, 22, resume=of_four, **options)
    assert close(found[1]["weights"], weights(whole))
    assert close(found[2]["weights"], weights(whole))
    assert close(found[3]["weights"], weights(accumulated))
    assert close(weights(resumed), weights(whole))
    assert found[1]["loss"] == pytest.approx(metrics["valid/loss"], rel=1e-5)


# What rows have to tell runs apart.


class Rotation(nn.Module):
    """A block of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


class Rotating(Deep):
    """A block of complex numbers before one of real ones."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(Rotation(), nn.Linear(1, 1)), (Rotation, nn.Linear))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)


def first_digest(folder: Path) -> str:
    """Return the digest of the weights with which a run in a folder has begun."""
    return read_starts(folder / "deep/config.json")[0]["weights_digest"]


@scenario(ranks=2)
def digests_of_rows(root: Path, world: World) -> Any:
    """The rows of networks that are sharded, and of replicated ones; and the digest of the full weights at the end."""
    found = {}
    for strategy in STRATEGIES:
        model, folder = Deep(), root / f"digests-{strategy}"
        fit(model, 18, strategy=strategy, root=folder, log_every_steps=3)
        full = copy.deepcopy(Stack())
        full.load_state_dict({name: full_tensor(value) for name, value in model.net.state_dict().items()})
        last = digest_of_weights(Digests(), [full], World(), has_shards=False)
        fit(Rotating(), 18, strategy=strategy, root=folder / "rotating")
        firsts = [first_digest(folder), first_digest(folder / "rotating")]
        found[strategy] = folder / "deep", firsts, last
    return found


def test_digests_of_rows_do_not_depend_on_how_networks_and_samples_are_divided(result: Results, tmp_path: Path) -> None:
    fit(Deep(), 18, batch_size=4, strategy="ddp", root=tmp_path, log_every_steps=3)
    alone = read_rows(tmp_path / "deep")
    fit(Rotating(), 18, strategy="ddp", root=tmp_path / "rotating")
    expected = [
        read_starts(each / "deep/config.json")[0]["weights_digest"] for each in (tmp_path, tmp_path / "rotating")
    ]
    for folder, firsts, last in result(digests_of_rows, ranks=2).values():
        rows = read_rows(folder)
        assert [row.get("samples_digest") for row in rows[:2]] == [row.get("samples_digest") for row in alone[:2]]
        assert firsts == expected
        assert rows[-1]["weights_digest"] == last
        differences = compare(tmp_path / "deep", folder)  # What runs of one and of two processes differ by is named.
        assert ("environment.processes", "1", "2") in differences.options
        (cause,) = [each for each in differences.causes if each.kind == "kernels"]
        assert "environment.processes" in cause.text
        assert differences.rows.relative is None or differences.rows.relative < 1e-5


# Steps that are computed twice.


class DeepAdafactor(Deep):
    """A hook of its optimizer makes the step."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.optimizer = torch.optim.Adafactor(self.net.parameters(), lr=0.01)  # type: ignore[assignment]


@scenario(ranks=2)
def verified_steps(root: Path, world: World) -> dict[str, Any]:
    found: dict[str, Any] = {"weights": []}
    for options in ({}, {"verify_every_steps": 2}):
        model = DeepAdafactor(dropout=0.3)
        fit(model, max_epochs=1, accumulation_steps=2, precision="bf16", **options)
        found["weights"].append(weights(model))
    for where in ("output", "parameter"):
        failing = Failing(where, at=2 * world.rank)
        with pytest.raises(RuntimeError, match="verify_every_steps") as error:
            fit(failing, verify_every_steps=1, valid_every_epochs=None)
        found[where] = str(error.value)
    return found


def test_a_verified_step_of_shards_has_the_same_bits_and_names_the_rank(result: Results) -> None:
    found = result(verified_steps, ranks=2)
    assert same(*found["weights"])
    assert "on rank 1 (" in found["output"]
    assert "in the output of net.1 (Faulty). The update was not made" in found["output"]
    assert "on rank 1 (" in found["parameter"]
    assert "averaged over the ranks, of net.0.weight. Which rank is the cause cannot be told" in found["parameter"]
