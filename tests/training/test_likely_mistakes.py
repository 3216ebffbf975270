"""What people get wrong first, and the one line that they are told."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import scripts
from helpers.compare import same, weights
from helpers.models import Tiny, data, quiet
from torch import nn

from helios_lite import Callback, DataModule, Model
from helios_lite.options import Options
from helios_lite.other_trainers import METHODS_ELSEWHERE

REPOSITORY = Path(__file__).parents[2]

PROGRAM = """
import torch
from helios_lite import DataModule, Model, Split, Trainer

class Line(Model):
    def setup(self, fast_init=False):
        self.net = self.parallelize(torch.nn.Linear(3, 1))

    def train_step(self, batch, state):
        pass

data = DataModule(train=Split(torch.utils.data.TensorDataset(torch.ones(8, 3)), batch_size=4))
Trainer(max_epochs=1, devices=2, accelerator="cpu", root=None).fit(Line("line"), data)
"""


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> Any:
    """Return a function that returns the warnings of this test."""
    monkeypatch.setattr(logging.getLogger("helios_lite"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# Hooks that nothing calls.


class Misspelt(Tiny):
    def on_train_epoch_end(self, current_epoch: int) -> None:
        raise AssertionError("it is called after all")

    def validation_step(self, batch: Any, step: int) -> None:
        raise AssertionError("it is called after all")

    def on_click(self) -> None:
        pass

    def pretrain_step(self) -> None:
        pass

    def critic_step(self) -> None:
        pass


class MisspeltCallback(Callback):
    def on_validation_starts(self, validation_cycle: int) -> None:
        pass


def test_a_misspelt_hook_is_a_warning_with_the_nearest_name(warnings: Any) -> None:
    quiet(max_epochs=1, callbacks=[MisspeltCallback()]).fit(Misspelt(), data())
    assert warnings() == [
        "Misspelt.on_train_epoch_end is never called: there is no such hook; here it is "
        "on_training_epoch_end(current_epoch)",
        "Misspelt.validation_step is never called: there is no such hook; here it is valid_step(batch, step)",
        "MisspeltCallback.on_validation_starts is never called: there is no such hook; the nearest is "
        "on_validation_start",
    ]


class Ported(Tiny):
    """Has methods of other trainers, of which it calls some itself."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.configure_optimizers()

    def configure_optimizers(self) -> None:
        pass

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        [self.compute_loss(x) for x in batch[1]]

    def compute_loss(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).mean()

    def compute_metrics(self, predictions: Any) -> dict[str, float]:
        return {}

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]


class PortedData(DataModule):
    def val_dataloader(self) -> Any:
        raise AssertionError("it is called after all")


def test_a_method_of_another_trainer_is_a_warning_unless_the_program_calls_it(warnings: Any) -> None:
    datamodule = PortedData(data().train, data().valid)
    for _ in range(2):
        quiet(max_epochs=1).fit(Ported(), datamodule)
    found = [
        "Ported.compute_metrics is never called: there is no such hook; here it is valid_step(batch, step), which "
        "calls log",
        "Ported.on_save_checkpoint is never called: there is no such hook; here it is state_dict; state_attributes for "
        "plain attributes of a model",
        "PortedData.val_dataloader is never called: there is no such hook; here it is the attribute `valid` of a "
        "DataModule",
    ]
    assert warnings() == found * 2  # Once at each start.


def test_what_is_in_the_place_of_a_method_of_another_trainer_exists() -> None:
    known = {*dir(Model), *dir(Callback), *vars(DataModule()), *Options.__dataclass_fields__}
    known |= {"Trainer", "DataModule", "Logger", "register_step_pre_hook", "step", "batch", "phase", "metrics", "state"}
    for name, instead in METHODS_ELSEWHERE.items():
        assert name not in dir(Model), name
        called = re.findall(r"(\w+)\(", instead) + re.findall(r"\b(on_\w+|\w+_\w+)\b(?! of)", instead)
        assert set(called) - known <= {
            "should_log",
            "current_epoch",
            "validation_cycle",
            "is_best",
            "path",
            "optimizer",
        }, name


def test_no_program_of_ours_has_such_a_method() -> None:
    programs = [path.read_text("utf-8") for path in (REPOSITORY / "examples").rglob("*.py")]
    pages = (path for path in (REPOSITORY / "docs").rglob("*.md") if not path.name.startswith("from_"))
    for text in (*programs, *(path.read_text("utf-8") for path in pages)):
        assert not set(re.findall(r"def (\w+)\(self", text)) & METHODS_ELSEWHERE.keys()


def test_a_model_that_does_not_call_its_base_class_is_told_so() -> None:
    class Forgetful(Tiny):
        def __init__(self) -> None:
            self.width = 3

    with pytest.raises(TypeError, match=r"^Forgetful.__init__ must call super\(\).__init__\(save_name\) first$"):
        quiet(max_epochs=1).fit(Forgetful(), data())


# Steps that change nothing.


class NoBackward(Tiny):
    def train_step(self, batch: Any, state: Any) -> None:
        self.log("loss", self.net(batch[1]).mean())


class ByHand(Tiny):
    def train_step(self, batch: Any, state: Any) -> None:
        self.net(batch[1]).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class NoOptimizer(Tiny):
    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 1))

    def train_step(self, batch: Any, state: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        (NoBackward(), "backward(loss) and optimizer_step(optimizer)"),
        (ByHand(), None),
        (NoOptimizer(), None),
        (Tiny(), None),
    ],
)
def test_a_step_that_changes_no_parameter_is_told_at_the_first_row(
    model: Model, missing: str | None, warnings: Any
) -> None:
    quiet(max_steps=4, log_every_steps=2).fit(model, data(train=20))
    text = f"no optimizer has changed a parameter up to step 2: train_step does not call {missing}"
    assert warnings() == ([] if missing is None else [text])


@pytest.mark.parametrize("name", ["scheduler", "no_optimizer"])
def test_optimizer_step_wants_an_optimizer(name: str) -> None:
    class Wrong(Tiny):
        no_optimizer = None

        def train_step(self, batch: Any, state: Any) -> None:
            self.optimizer_step(getattr(self, name))

    kind = {"scheduler": "ExponentialLR", "no_optimizer": "NoneType"}[name]
    with pytest.raises(TypeError, match=rf"^optimizer_step: needs an optimizer, not a {kind}$"):
        quiet(max_epochs=1).fit(Wrong(), data())


# Programs that processes cannot import.


def test_a_program_without_a_main_guard_is_told_so_once_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = scripts.run("program.py", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: the processes import the program, which calls the trainer when it is imported: put this call "
        'under if __name__ == "__main__":'
    )


@pytest.mark.parametrize("arguments", [["-"], ["-c", PROGRAM]], ids=["standard input", "a text"])
def test_classes_that_are_in_no_file_are_told_to_move_to_one(arguments: list[str], tmp_path: Path) -> None:
    by_python = arguments == ["-"]  # One of them by Python itself.
    done = scripts.run(*arguments, input=PROGRAM, cwd=tmp_path, check=False, new_interpreter=by_python)
    assert done.returncode == 1
    assert "Put the model and its data into a file, import them from it" in done.stderr.splitlines()[-1]


# Modes.


class Distilled(Tiny):
    """A network with a frozen teacher inside, and one beside it."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.teacher = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)).requires_grad_(False).eval()
        self.net.add_module("inner", nn.Identity().eval())
        self.modes: list[tuple[bool, ...]] = []

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.modes.append((self.net.training, self.net[1].training, self.net.inner.training, self.teacher.training))

    def valid_step(self, batch: Any, step: int) -> None:
        self.modes.append((self.net.training, self.net[1].training, self.net.inner.training, self.teacher.training))


def test_what_setup_has_put_in_evaluation_mode_stays_in_it(tmp_path: Path, warnings: Any) -> None:
    for steps in (3, 6):  # The second one resumes.
        model = Distilled()
        quiet(max_steps=steps, valid_every_steps=2, root=tmp_path).fit(model, data(train=20))
        assert set(model.modes) == {(True, True, False, False), (False, False, False, False)}
        model.eval()
        model.eval()
        assert not model.net.training
        model.train()
        assert (model.net.training, model.net.inner.training, model.teacher.training) == (True, False, False)
    assert warnings() == []


def test_a_network_that_is_trained_in_evaluation_mode_is_a_warning(warnings: Any) -> None:
    class Pretrained(Tiny):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net.eval()

    quiet(max_epochs=1).fit(Pretrained(), data())
    assert warnings() == [
        "net.0 (2 modules in all) is trained in evaluation mode, in which setup has left it; for the other mode, call "
        "its method train() in setup"
    ]
    quiet(max_epochs=1).validate(Pretrained(), data(), checkpoint=None)
    assert len(warnings()) == 1


# Gradients of another optimizer.


class Leaking(Model):
    """The generator's loss passes through the critic, which is not protected from its gradients."""

    def __init__(self) -> None:
        super().__init__("leaking")

    def setup(self, fast_init: bool = False) -> None:
        self.generator, self.critic = self.parallelize(nn.Linear(3, 3)), self.parallelize(nn.Linear(3, 1))
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.critic, self.generator)]

    def train_step(self, batch: Any, state: Any) -> None:
        _, x = batch
        self.backward((self.critic(self.generator(x).detach()) - self.critic(x)).square().mean())
        self.optimizer_step(self.optimizers[0])
        self.backward(-self.critic(self.generator(x)).mean())
        self.optimizer_step(self.optimizers[1])

    def valid_step(self, batch: Any, step: int) -> None:
        pass


def test_a_window_begins_without_gradients_that_another_loss_has_left(tmp_path: Path) -> None:
    model, parts = Leaking(), data(train=16)
    parts.train.shuffle = False
    quiet(max_epochs=2, root=tmp_path / "whole").fit(model, parts)
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (critic, generator)]
    for i in range(8):
        x = torch.stack([parts.train.dataset[4 * (i % 4) + j][1] for j in range(4)])
        for optimizer in optimizers:
            optimizer.zero_grad()
        (critic(generator(x).detach()) - critic(x)).square().mean().backward()
        optimizers[0].step()
        (-critic(generator(x)).mean()).backward()
        optimizers[1].step()
    assert same(weights(model)["generator"], generator.state_dict())
    assert same(weights(model)["critic"], critic.state_dict())
    for steps in (3, 8):  # A resumed run does the same: no checkpoint holds gradients.
        resumed = Leaking()
        quiet(max_steps=steps, root=tmp_path / "cut").fit(resumed, parts)
    assert same(weights(resumed), weights(model))


class Learning(Tiny):
    """Learns from a teacher that setup has put in evaluation mode."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.teacher = nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1)).requires_grad_(False).eval()
        self.modes: set[bool] = set()

    def train_step(self, batch: Any, state: Any) -> None:
        self.modes |= {module.training for module in self.teacher.modules()}
        super().train_step(batch, state)


@pytest.mark.parametrize("between", ["test", "validate", "predict"])
def test_what_setup_puts_in_evaluation_mode_stays_in_it_in_a_second_fit_too(between: str) -> None:
    class Model(Learning):
        def predict_step(self, batch: Any, step: int) -> Any:
            return self.net(batch[1])

    model, trainer = Model(), quiet(max_epochs=1, sanity_batches=0)
    trainer.fit(model, data())
    found = getattr(trainer, between)(model, data(), checkpoint=None)
    assert between != "predict" or len([*found]) > 0
    trainer.fit(model, data())
    assert model.modes == {False}
    assert model.net.training


# What has no effect.


class WithPhase(Tiny):
    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.log("train/other", 1.0)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("valid/accuracy", 1.0)
        self.log("validity", 1.0)


def test_a_name_with_the_phase_in_it_is_named_once(warnings: Any) -> None:
    result = quiet(max_epochs=2, log_every_steps=1).fit(WithPhase(), data())
    assert {"train/train/other", "valid/valid/accuracy", "valid/validity"} <= result.metrics.keys()
    assert warnings() == [
        "log('valid/accuracy'): the phase is put before the name, which makes 'valid/valid/accuracy'; "
        "write log('accuracy')",
        "log('train/other'): the phase is put before the name, which makes 'train/train/other'; write log('other')",
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"accumulation_steps": 2}, "accumulation_steps"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"accumulation_steps": 2, "clip_norm": 1.0}, "accumulation_steps and clip_norm"),
        ({}, None),
    ],
)
@pytest.mark.parametrize("by_hand", [True, False])
def test_options_that_a_model_does_not_use_are_named_at_the_first_row(
    by_hand: bool, options: dict[str, Any], named: str | None, warnings: Any
) -> None:
    quiet(max_epochs=2, log_every_steps=1, **options).fit(ByHand() if by_hand else Tiny(), data())
    said = [text for text in warnings() if "effect" in text]
    if not by_hand or named is None:
        assert said == []
    else:
        (text,) = said
        assert text.startswith(f"{named}: without effect, because train_step does not call optimizer_step")


class Unstepped(Tiny):
    """Its schedulers are stepped, or not, as it is told."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer)

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.net(batch[1]).mean())
        self.optimizer_step(self.optimizer, self.scheduler if self.way == "step" else None)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        if self.way == "epoch":
            self.scheduler.step()


@pytest.mark.parametrize("way", ["step", "epoch", "never"])
def test_a_scheduler_that_is_never_stepped_is_named_once(way: str, warnings: Any) -> None:
    quiet(max_epochs=3).fit(Unstepped(way), data())
    said = warnings()
    assert [text.split(" has not been stepped until now")[0] for text in said] == (
        ["scheduler"] if way == "never" else []
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deterministic": True, "benchmark": True}, "^deterministic: excludes benchmark"),
        ({"accelerator": "cpu", "devices": [1]}, r"^devices=\[1\]: CPUs have no numbers; write devices=1"),
        ({"accelerator": "cpu", "devices": [1, 0]}, r"^devices=\[1, 0\]: CPUs have no numbers; write devices=2"),
    ],
)
def test_options_that_contradict_each_other_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(max_epochs=1, **options)


# Weights.


@pytest.mark.parametrize("root", [None, "runs"])
def test_a_second_training_of_a_model_says_that_its_weights_are_replaced(
    root: str | None, tmp_path: Path, warnings: Any
) -> None:
    text = (
        "tiny: has been set up before; setup has made its networks anew, so the weights that it had are replaced. To "
        "start from trained weights, set init_from to their checkpoint"
    )
    where = None if root is None else tmp_path / root
    model = Tiny()
    result = quiet(max_epochs=1, root=where).fit(model, data())
    assert warnings() == []
    quiet(max_epochs=2, root=where).fit(model, data())
    assert warnings() == ([text] if root is None else [])  # It goes on from its checkpoint.
    if root is not None:
        quiet(max_epochs=1, root=where, run_name="other", init_from=result.last_checkpoint).fit(model, data())
        assert warnings() == []
        quiet(max_epochs=1, root=where, run_name="third").fit(model, data())
        assert warnings() == [text]


@pytest.mark.parametrize("keep_best", [0, 1])
def test_a_best_checkpoint_that_was_not_kept_is_named(keep_best: int, tmp_path: Path, warnings: Any) -> None:
    class Worse(Tiny):
        def valid_step(self, batch: Any, step: int) -> None:
            self.log("score", float(len(self.seen)))

    trainer = quiet(max_epochs=3, root=tmp_path, keep_best=keep_best, monitor="valid/score")
    trainer.fit(Worse(), data())
    trainer.test(Worse(), data(), checkpoint="best")
    text = 'checkpoint="best": that of step 3 was not kept (keep_best=0); tiny_epoch_3_iter_9.pth is used in its place'
    assert warnings() == ([text] if keep_best == 0 else [])
