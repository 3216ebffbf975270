"""A new training that starts from the weights of another one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import same, weights
from helpers.models import Tiny, data, quiet
from torch import nn

from helios_lite import FitResult
from helios_lite.callbacks import EMA


class Start(Tiny):
    """Keeps the state at the start of the training, and the weights of its first evaluation."""

    evaluated: Any = None

    def on_training_start(self) -> None:
        self.start = weights(self)
        self.draw = torch.get_rng_state()

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        self.evaluated = self.evaluated or copy.deepcopy(self.net.state_dict())


class Divided(Start):
    """Has a body, which others share, and a head of its own size."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__("divided")
        self.outputs = outputs

    def setup(self, fast_init: bool = False) -> None:
        self.body = self.parallelize(nn.Linear(3, 8))
        self.head = self.parallelize(nn.Linear(8, self.outputs))
        self.net = nn.Sequential(self.body, self.head)
        if not fast_init:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """A training of Tiny whose best checkpoint is not its newest."""
    root = tmp_path_factory.mktemp("trained")
    options: dict[str, Any] = {"monitor": "valid/loss", "mode": "max"}
    result = quiet(root=root, run_name="first", max_epochs=2, seed=5, **options).fit(Tiny(), data())
    assert result.best_checkpoint != result.last_checkpoint
    return result


def state(path: Path) -> Any:
    return torch.load(path, weights_only=True)["model"]


def fit(model: Any, **options: Any) -> FitResult:
    return quiet(**{"max_steps": 1, **options}).fit(model, data())


def test_a_new_training_takes_the_networks_and_nothing_else(
    trained: FitResult, caplog: pytest.LogCaptureFixture
) -> None:
    new, model = Start(), Start()
    fit(new, max_steps=3)
    result = fit(model, max_steps=3, init_from=trained.last_checkpoint)
    assert same(model.start["net"], state(trained.last_checkpoint)["net"])
    assert same(model.evaluated, model.start["net"])  # By the sanity validation.
    for name in ("optimizer", "scheduler"):
        assert same(model.start[name], new.start[name])
    assert torch.equal(model.draw, new.draw)
    assert model.seen == new.seen
    assert (result.state.step, result.state.epoch) == (3, 1)
    assert f"initialized from {trained.last_checkpoint} (epoch 2, step 6): net" in caplog.text


def test_a_run_folder_gives_its_best_checkpoint(trained: FitResult) -> None:
    model = Start("another")
    fit(model, init_from=trained.best_checkpoint.parents[1])
    assert same(model.start["net"], state(trained.best_checkpoint)["net"])


def test_all_parts_and_parts_by_name(trained: FitResult) -> None:
    model, new, saved = Start(), Start(), state(trained.last_checkpoint)
    fit(new)
    fit(model, init_from=trained.last_checkpoint, init_parts="all")
    assert same(model.start, saved)
    fit(model, init_from=trained.last_checkpoint, init_parts=["optimizer"])
    assert same(model.start, {**new.start, "optimizer": saved["optimizer"]})


def test_missing_and_unknown_parts_are_told(trained: FitResult, tmp_path: Path, caplog: Any) -> None:
    path = fit(Divided(), root=tmp_path).last_checkpoint

    class Other(Divided):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.decoder = nn.Linear(1, 1)
            del self.head

    model = Other()
    fit(model, init_from=path, init_parts=["body"])
    assert same(model.start["body"], state(path)["body"])
    caplog.clear()
    fit(model, init_from=path)
    assert "init_from: not in the checkpoint, and so as setup made them: decoder" in caplog.text
    assert "init_from: in the checkpoint, but not in the model: head" in caplog.text
    assert "(epoch 0, step 1): body, net" in caplog.text


@pytest.mark.parametrize(("parts", "missing"), [(["net", "tail", "body"], "tail, body"), (["body"], "body")])
def test_a_named_part_that_is_missing_is_an_error_that_says_what_there_is(
    trained: FitResult, parts: list[str], missing: str
) -> None:
    path = trained.last_checkpoint
    has = rf"the model has body, head, net, optimizer, scheduler, and {path} has net, optimizer, scheduler$"
    with pytest.raises(ValueError, match=rf"init_from: {missing} must be in the model and .*{has}"):
        fit(Divided(), init_from=path, init_parts=parts)


def test_no_network_in_common_is_an_error(trained: FitResult) -> None:
    class Other(Start):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.other = self.net
            del self.net

    with pytest.raises(ValueError, match="init_from: other must be in the model and in the checkpoint; the model has"):
        fit(Other(), init_from=trained.last_checkpoint)


def test_a_part_that_does_not_fit_is_an_error_that_names_the_parameter(tmp_path: Path) -> None:
    path = fit(Divided(), root=tmp_path).last_checkpoint
    with pytest.raises(ValueError, match=r"init_from: 'head' of .* does not fit the model's: [^$]*mismatch for weight"):
        fit(Divided(outputs=2), init_from=path)
    model = Divided(outputs=2)
    fit(model, init_from=path, init_parts=["body"])
    assert same(model.start["body"], state(path)["body"])


def test_a_run_that_resumes_ignores_it(trained: FitResult, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = []
    for source in (trained.last_checkpoint, tmp_path / "gone.pth"):
        fit(Start(), root=tmp_path, run_name=f"run{len(ends)}", init_from=trained.last_checkpoint)
        result = fit(Start(), root=tmp_path, run_name=f"run{len(ends)}", init_from=source, max_steps=2)
        assert f"init_from={str(source)!r} is not used, because this run continues from" in caplog.text
        ends.append(state(result.last_checkpoint))
    assert same(*ends)
    whole = fit(Start(), root=tmp_path, run_name="whole", init_from=trained.last_checkpoint, max_steps=2)
    assert same(state(whole.last_checkpoint), ends[0])


def test_averaged_weights_are_taken_and_an_average_starts_from_what_was_taken(tmp_path: Path) -> None:
    options: dict[str, Any] = {"root": tmp_path, "callbacks": [EMA(decay=0.5)]}
    path = fit(Start(), run_name="first", max_steps=4, **options).last_checkpoint
    averaged = Start.load_from_checkpoint(path).net.state_dict()
    assert not same(averaged, state(path)["net"])
    model, ema = Start(), EMA(decay=0.5)
    fit(model, init_from=path, callbacks=[ema])
    assert same(model.start["net"], averaged)
    assert same(model.evaluated, averaged)
    assert same(dict(ema.averaged.module.state_dict()), weights(model)["net"])  # A copy, after the first step.
    fit(model, init_from=path, init_parts="all")
    assert same(model.start, state(path))  # Those that the optimizer belongs to.


class Own(Start):
    """Decides itself what checkpoints hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"mine": super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        super().load_state_dict(state_dict["mine"], fast_init)


def test_a_model_with_its_own_load_state_dict_loads_its_networks_or_all(tmp_path: Path) -> None:
    path = fit(Own(), root=tmp_path).last_checkpoint
    model, new = Own(), Own()
    fit(new)
    fit(model, init_from=path)
    mine = state(path)["mine"]
    assert same(model.start, {"mine": {**new.start["mine"], "net": mine["net"]}})
    fit(model, init_from=path, init_parts="all")
    assert same(model.start, {"mine": mine})
    with pytest.raises(ValueError, match=r"^init_parts=\['mine'\]: Own has its own load_state_dict, which cannot"):
        fit(model, init_from=path, init_parts=["mine"])
