"""Numbers of optimizers and schedulers that `setup` makes otherwise when a run goes on."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.all_schedules import SCHEDULES
from helpers.models import Tiny, data, quiet
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as torch_schedules

STEPS = 9


class Trained(Tiny):
    """Notes the learning rates, or other numbers of its optimizer, that each step uses."""

    def __init__(self, make: Callable[[Any], tuple[Optimizer, Any]], keys: tuple[str, ...] = ("lr",)) -> None:
        super().__init__("trained")
        self.make, self.keys = make, keys
        self.used: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))
        self.optimizer, self.scheduler = self.make(self.net)

    def train_step(self, batch: Any, state: Any) -> None:
        self.used.append([[group[key] for key in self.keys] for group in self.optimizer.param_groups])
        self.backward((self.net(batch[1]) - 1).square().mean())
        self.optimizer_step(self.optimizer, self.scheduler)


def used(make: Any, root: Path | None = None, steps: int = STEPS, **options: Any) -> list[Any]:
    model = Trained(make, options.pop("keys", ("lr",)))
    quiet(root=root, max_steps=steps, sanity_batches=0, **options).fit(model, data(20, batch_size=4))
    return model.used


def two_groups(kind: str, lr: float, length: int) -> Callable[[Any], tuple[Optimizer, Any]]:
    def make(net: Any) -> tuple[Optimizer, Any]:
        groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), "lr": 3 * lr}]
        optimizer = SGD(groups, lr, momentum=0.9)
        return optimizer, SCHEDULES[kind](optimizer, length)

    return make


@functools.cache
def whole(kind: str, lr: float, length: int) -> list[Any]:
    """What a run uses that is never cut; one of fewer steps uses the first of them."""
    return used(two_groups(kind, lr, length), steps=STEPS + 2)


@pytest.mark.parametrize("cut", [1, 5])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_run_goes_on_with_the_rates_of_one_that_had_them_from_the_start(kind: str, cut: int, tmp_path: Path) -> None:
    before, after, expected = two_groups(kind, 0.1, 12), two_groups(kind, 0.04, 20), whole(kind, 0.04, 20)
    assert used(before, tmp_path, steps=cut) == whole(kind, 0.1, 12)[:cut]
    found = used(after, tmp_path)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected[cut:STEPS]), rtol=1e-12, atol=0)
    assert used(after, tmp_path, steps=STEPS + 2) == expected[STEPS:]  # The change is made once.


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind not in ("none", "lambda", "multiplicative")])
def test_a_schedule_of_another_length_goes_on_as_if_it_always_had_it(kind: str, tmp_path: Path) -> None:
    before, after = two_groups(kind, 0.1, 12), two_groups(kind, 0.1, 20)
    used(before, tmp_path, steps=4)
    found, expected = used(after, tmp_path), whole(kind, 0.1, 20)[4:STEPS]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_run_with_the_same_numbers_goes_on_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    make = two_groups(kind, 0.1, 12)
    used(make, tmp_path, steps=4)
    assert used(make, tmp_path) == whole(kind, 0.1, 12)[4:STEPS]


NUMBERS: list[tuple[type[Optimizer], dict[str, Any], dict[str, Any]]] = [
    (AdamW, {"weight_decay": 0.1, "betas": (0.9, 0.99)}, {"weight_decay": 0.2, "betas": (0.8, 0.95)}),
    (Adam, {"eps": 1e-8, "amsgrad": False}, {"eps": 1e-6, "amsgrad": False}),
    (SGD, {"lr": 0.1, "momentum": 0.5, "nesterov": False}, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
]


@pytest.mark.parametrize(("kind", "before", "after"), NUMBERS)
def test_every_number_of_an_optimizer_is_the_one_of_now(
    kind: Any, before: dict[str, Any], after: dict[str, Any], tmp_path: Path, caplog: Any
) -> None:
    used(lambda net: (kind(net.parameters(), **before), None), tmp_path, steps=3)
    with caplog.at_level("INFO", logger="helios_lite"):
        found = used(lambda net: (kind(net.parameters(), **after), None), tmp_path, keys=tuple(after))
    assert found == [[[*after.values()]]] * (STEPS - 3)
    text = (tmp_path / "trained" / "train.log").read_text()
    for name, value in after.items():
        said = f"optimizer: {name} {before[name]} before, {value} now: used from step 4 on"
        assert (said in text) is (before[name] != value)


class Halving(Trained):
    """Halves its learning rate after three steps, which is no change of `setup`."""

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.step == 3:
            self.optimizer.param_groups[0]["lr"] = 0.05


def test_a_rate_that_a_hook_has_set_stays(tmp_path: Path) -> None:
    models = [Halving(lambda net: (SGD(net.parameters(), 0.1), None)) for _ in range(2)]
    for model, steps in zip(models, (7, 9), strict=True):
        quiet(root=tmp_path, max_steps=steps).fit(model, data(20, batch_size=4))
    assert models[1].used == [[[0.05]]] * 2


class OnPlateau(Trained):
    def on_validation_end(self, validation_cycle: int) -> None:
        self.scheduler.step(1.0)


def test_a_plateau_keeps_what_it_has_seen(tmp_path: Path) -> None:
    def make(lr: float, factor: float) -> Any:
        def both(net: Any) -> Any:
            optimizer = SGD(net.parameters(), lr)
            return optimizer, torch_schedules.ReduceLROnPlateau(optimizer, factor=factor, patience=1)

        return both

    class Unstepped(OnPlateau):
        def train_step(self, batch: Any, state: Any) -> None:
            self.used.append(self.optimizer.param_groups[0]["lr"])
            self.backward((self.net(batch[1]) - 1).square().mean())
            self.optimizer_step(self.optimizer)

    def run(make: Any, steps: int) -> list[float]:
        model = Unstepped(make)
        options = {"root": tmp_path, "valid_every_steps": 1, "sanity_batches": 0}
        quiet(max_steps=steps, **options).fit(model, data(40, batch_size=4))
        return model.used

    # The first validation is the best one; after two that are not better the rate is cut, and so on.
    assert run(make(2**-7, 0.5), 4) == [2**-7, 2**-7, 2**-7, 2**-8]
    # One validation since was not better. The new rate is halved too, as what was seen asks for.
    assert run(make(2**-6, 0.25), 7) == [2**-7, 2**-9, 2**-9]


class Phases(Trained):
    """Its second scheduler takes over after the first three steps: a schedule, or one that waits for a plateau."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.second, self.first = self.scheduler[::-1]

    def train_step(self, batch: Any, state: Any) -> None:
        self.used.append([group["lr"] for group in self.optimizer.param_groups])
        self.backward((self.net(batch[1]) - 1).square().mean())
        self.optimizer_step(self.optimizer, self.first if state.step < 3 else None)
        if state.step >= 3:
            is_plateau = isinstance(self.second, torch_schedules.ReduceLROnPlateau)
            self.second.step(*[1.0] * is_plateau)


def linear(optimizer: Any) -> Any:
    return torch_schedules.LinearLR(optimizer, 0.5, total_iters=3)


def by_function(optimizer: Any) -> Any:
    return torch_schedules.LambdaLR(optimizer, lambda step: (step + 1) / 4)


def plateau(optimizer: Any) -> Any:
    return torch_schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def of_phases(phases: Any, lr: float, steps: int, root: Path | None = None) -> list[Any]:
    def make(net: Any) -> Any:
        groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), "lr": 3 * lr}]
        optimizer = SGD(groups, lr)
        return optimizer, tuple(phase(optimizer) for phase in phases)

    model = Phases(make)
    quiet(root=root, max_steps=steps, sanity_batches=0).fit(model, data(40, batch_size=4))
    return model.used


@pytest.mark.parametrize("cut", [2, 5])
@pytest.mark.parametrize("first", [linear, by_function])
@pytest.mark.parametrize("second", [plateau, lambda each: torch_schedules.LambdaLR(each, lambda step: 0.8**step)])
def test_a_second_phase_goes_on_with_the_rates_of_one_that_had_them_from_the_start(
    first: Any, second: Any, cut: int, tmp_path: Path
) -> None:
    phases = (first, second)
    of_phases(phases, 0.1, cut, tmp_path)
    found, expected = of_phases(phases, 0.04, 9, tmp_path), of_phases(phases, 0.04, 9)
    torch.testing.assert_close(found, expected[cut:], rtol=1e-12, atol=0)


def test_cuts_that_cannot_be_kept_are_named(tmp_path: Path) -> None:
    of_phases((linear, plateau), 0.1, 5, tmp_path)
    found = of_phases(
        (lambda optimizer: torch_schedules.LinearLR(optimizer, 0.25, total_iters=3), plateau), 0.1, 6, tmp_path
    )
    assert found == [[pytest.approx(0.1), pytest.approx(0.3)]]
    text = (tmp_path / "trained" / "train.log").read_text()
    changed = "cut rates before, and uncut ones now because scheduler.0 has changed: used from step 6 on"
    assert f"scheduler.1: {changed}" in text


def test_another_optimizer_is_an_error_that_names_both(tmp_path: Path) -> None:
    used(lambda net: (SGD(net.parameters(), 0.1), None), tmp_path, steps=2)
    text = "made otherwise: optimizer: torch.optim.sgd.SGD in the checkpoint, torch.optim.adam.Adam now"
    with pytest.raises(ValueError, match=text):
        used(lambda net: (Adam(net.parameters(), 0.1), None), tmp_path)


def test_an_optimizer_that_trains_its_parameters_in_another_order_is_an_error(tmp_path: Path) -> None:
    """Their states would be those of other parameters; here two have the same shape."""

    def make(backwards: bool) -> Any:
        def both(net: Any) -> Any:
            net.append(nn.Linear(1, 1))
            parameters = [*net.parameters()]
            return Adam(reversed(parameters) if backwards else parameters, 0.1), None

        return both

    used(make(False), tmp_path, steps=2)
    text = "made otherwise: optimizer: parameter 0 of group 0 is net.0.weight in the checkpoint, net.2.bias now"
    with pytest.raises(ValueError, match=text):
        used(make(True), tmp_path)


def test_what_else_is_made_otherwise_is_said_and_takes_effect(tmp_path: Path) -> None:
    class Changed(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net[0].requires_grad_(False)
            self.net[2].double()

        def train_step(self, batch: Any, state: Any) -> None:
            self.backward(self.net[2](self.net[0](batch[1]).double()).mean())
            self.optimizer_step(self.optimizer)

        def valid_step(self, batch: Any, step: int) -> None:
            pass

    quiet(root=tmp_path, max_steps=2).fit(Tiny(), data(20, batch_size=4))
    model = Changed()
    quiet(root=tmp_path, max_steps=4).fit(model, data(20, batch_size=2, num_workers=1))
    text = (tmp_path / "tiny" / "train.log").read_text()
    for said in (
        "net.0.weight, and 3 more tensors: float32 (8, 3) before, float32 (8, 3), frozen now",
        "train.batch_size: 4 before, 2 now",
        "valid.batch_size: 4 before, 2 now",
        "train.num_workers: 0 before, 1 now",
        "a step takes 2 samples now, 4 before",
    ):
        assert f"INFO {said}\n" in text
    assert model.net[2].weight.dtype is torch.float64


def parts_kept(optimizer: Optimizer) -> Any:
    parts = [torch_schedules.LinearLR(optimizer, total_iters=3), torch_schedules.CosineAnnealingLR(optimizer, 12)]
    return parts, torch_schedules.SequentialLR(optimizer, parts, [3])


class Kept(Trained):
    """Has its scheduler, the parts of it, and its optimizer under more than one name."""

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))
        self.optimizer, self.parts = self.make(self.net)
        self.parts, self.scheduler = self.parts
        self.optimizers, self.schedulers = [self.optimizer], [self.scheduler]


def test_what_the_model_holds_under_two_names_is_moved_once(tmp_path: Path) -> None:
    def make(lr: float) -> Any:
        def both(net: Any) -> Any:
            optimizer = SGD(net.parameters(), lr)
            return optimizer, parts_kept(optimizer)

        return both

    def run(lr: float, steps: int, root: Path | None = None) -> list[Any]:
        model = Kept(make(lr))
        quiet(root=root, max_steps=steps, sanity_batches=0).fit(model, data(20, batch_size=4))
        return model.used

    run(0.1, 9, tmp_path)
    found = run(0.04, 12, tmp_path)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(run(0.04, 12)[9:]), rtol=1e-12, atol=0)
    assert run(0.04, 14, tmp_path) == run(0.04, 14)[12:]


class Counting(SGD):
    """Keeps a number of its own in its groups, as optimizers without a schedule do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return super().step(closure)


def test_numbers_that_have_not_changed_stay_as_the_run_has_made_them(tmp_path: Path) -> None:
    def make(lr: float, decay: float) -> Any:
        return lambda net: (Counting([{"params": net.parameters(), "k": 0}], lr, weight_decay=decay), None)

    class ByHand(Trained):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            if state.step == 2:
                self.optimizer.param_groups[0]["lr"] = 0.01

    found = []
    for make_optimizer, steps in ((make(0.1, 0.0), 4), (make(0.1, 0.5), 6), (make(0.2, 0.5), 8)):
        model = ByHand(make_optimizer, ("lr", "weight_decay", "k"))
        quiet(root=tmp_path, max_steps=steps, sanity_batches=0).fit(model, data(40, batch_size=4))
        found += [used[0] for used in model.used]
    assert found[4:] == [[0.01, 0.5, 4], [0.01, 0.5, 5], [0.2, 0.5, 6], [0.2, 0.5, 7]]


@pytest.mark.parametrize("kind", ["none", "cosine", "our linear"])
def test_a_rate_that_is_a_tensor_changes_too(kind: str, tmp_path: Path) -> None:
    def make(lr: float) -> Any:
        def both(net: Any) -> Any:
            optimizer = Adam(net.parameters(), torch.tensor(lr))
            return optimizer, SCHEDULES[kind](optimizer, 12)

        return both

    def run(lr: float, steps: int, root: Path | None = None) -> list[float]:
        model = Trained(make(lr))
        quiet(root=root, max_steps=steps, sanity_batches=0).fit(model, data(20, batch_size=4))
        return [float(used[0][0]) for used in model.used]

    run(0.1, 4, tmp_path)
    assert run(0.03, 9, tmp_path) == pytest.approx(run(0.03, 9)[4:], rel=1e-6)


def test_a_class_whose_module_has_another_name_is_the_same(tmp_path: Path) -> None:
    for module in ("__main__", "__mp_main__"):
        kind = type("Own", (SGD,), {"__module__": module})
        assert len(used(lambda net, kind=kind: (kind(net.parameters(), 0.1), None), tmp_path, 3)) in (0, 3)
        tmp_path.joinpath("trained").exists()


class OwnState(Trained):
    def load_state_dict(self, state_dict: Any, fast_init: bool = False) -> None:
        super().load_state_dict(state_dict, fast_init)


def test_a_model_that_loads_its_state_itself_is_told_what_is_not_used(tmp_path: Path, caplog: Any) -> None:
    for lr, steps in ((0.1, 2), (0.05, 4)):
        model = OwnState(lambda net, lr=lr: (SGD(net.parameters(), lr), None))
        quiet(root=tmp_path, max_steps=steps).fit(model, data(20, batch_size=4))
    assert model.used == [[[0.1]]] * 2
    said = "optimizer: lr 0.1 before, 0.05 now: not used, because OwnState has a load_state_dict of its own"
    assert said in [record.getMessage() for record in caplog.records]
