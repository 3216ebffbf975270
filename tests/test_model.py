"""The Model: its hooks and properties, what its state holds, and what its steps compute."""

import inspect
import io
import re

import pytest
import torch
import torch.nn.functional as F
from helpers.models import Tiny, data, quiet
from rich.console import Console
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.checkpoints import naming

HOOKS = {
    "setup": "fast_init=False",
    "load_for_testing": "",
    "load_state_dict": "state_dict, fast_init=False",
    "state_dict": "",
    "trained_state_dict": "*args, **kwargs",
    "append_metadata_to_chkpt_name": "chkpt_name",
    "append_to_banner": "banner",
    "train": "",
    "on_training_start": "",
    "on_training_epoch_start": "current_epoch",
    "on_training_batch_start": "state",
    "train_step": "batch, state",
    "on_training_batch_end": "state, should_log=False",
    "on_training_epoch_end": "current_epoch",
    "on_training_end": "",
    "eval": "",
    "on_validation_start": "validation_cycle",
    "on_validation_batch_start": "step",
    "valid_step": "batch, step",
    "on_validation_batch_end": "step",
    "on_validation_end": "validation_cycle",
    "have_metrics_improved": "",
    "should_training_stop": "",
    "on_testing_start": "",
    "on_testing_batch_start": "step",
    "test_step": "batch, step",
    "on_testing_batch_end": "step",
    "on_testing_end": "",
    "process_metrics": "phase, metrics",
}
TOOLS = {
    "parallelize": "net, blocks=()",
    "autocast": "",
    "backward": "loss, weight=None, retain_graph=False",
    "optimizer_step": "optimizer, scheduler=None, clip_norm=None, closure=None",
    "log": "name, value, count=None, reduce='mean', bar=False",
    "gather": "value",
    "batch_to_device": "batch, phase",
    "should_save_checkpoint": "",
    "load_from_checkpoint": "path, device='cpu', **overrides",
    "num_parameters": "trainable_only=False",
    "summary": "depth=1",
}
PROPERTIES = ["save_name", "trainer", "device", "map_loc", "is_distributed", "rank", "global_rank", "world_size"]
TABLES = ["_loss_items", "_running_losses", "_val_scores", "_test_scores"]


class Regression(Model):
    """Least squares, one Linear; `width` and `scale` are there to be stored and replaced."""

    def __init__(self, width=3, scale=1.0, save_name="regression"):
        super().__init__(save_name)
        self.hparams = {"width": width, "scale": scale}
        self.changed = []

    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(self.hparams["width"], 1))
        if not fast_init:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
            self.scheduler = StepLR(self.optimizer, 1, gamma=0.5)

    def error(self, batch):
        x, y = batch
        return F.mse_loss(self.hparams["scale"] * self.net(x), y)

    def train_step(self, batch, state):
        self.backward(self.error(batch))
        self.changed.append(self.optimizer_step(self.optimizer, self.scheduler))

    def valid_step(self, batch, step):
        self.log("error", self.error(batch))


class Nameless(Regression):
    """A model that names itself."""

    def __init__(self, width=3, scale=1.0):
        super().__init__(width, scale, "nameless")


class Everything(Model):
    """Has every kind of state, in every place where it is looked for."""

    def setup(self, fast_init=False):
        self.net = nn.Linear(2, 1)
        self.average = AveragedModel(self.net)
        self.pair = [nn.Linear(1, 1), nn.Linear(1, 2)]
        self.parts = {"head": nn.Linear(1, 3), "note": "no state", "deep": (nn.Dropout(), 7)}
        if not fast_init:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
            self.others = (torch.optim.AdamW(self.pair[0].parameters()), [])
            self.schedulers = {"step": StepLR(self.optimizer, 1, gamma=0.5)}
        self.last = nn.Linear(1, 1)

    def use(self):
        """Move everything away from its initial state."""
        for optimizer, net in [(self.optimizer, self.net), (self.others[0], self.pair[0])]:
            net(torch.ones(1, net.in_features)).sum().backward()
            optimizer.step()
        self.schedulers["step"].step()
        self.average.update_parameters(self.net)


def regression_data(samples=8, width=3):
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(samples, width, generator=generator), torch.randn(samples, 1, generator=generator))


def fit(model, train, *, root=None, valid=None, **options):
    options = {"max_epochs": 1, "accelerator": "cpu", "progress": False, "print_banner": False, **options}
    return Trainer(root=root, **options).fit(model, DataModule(train=train, valid=valid))


def ready(model, fast_init=False):
    model.setup(fast_init=fast_init)
    return model


def plain(value):
    """Tensors as lists, so that whole states compare with ==."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def initial_net(width=3, outputs=1):
    """The net that a run with seed 0 begins with, as `Regression.setup` makes it."""
    torch.manual_seed(0)
    return nn.Linear(width, outputs)


def assert_same_weights(net, other, tolerance=1e-6):
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


# The contract.


@pytest.mark.parametrize(("name", "arguments"), [*HOOKS.items(), *TOOLS.items()])
def test_a_method_of_the_contract_has_its_name_and_arguments(name, arguments):
    parameters = inspect.signature(getattr(Model, name)).parameters.values()
    bare = [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters if p.name != "self"]
    assert ", ".join(bare) == arguments


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_of_the_contract_is_a_property(name):
    assert isinstance(inspect.getattr_static(Model, name), property)


@pytest.mark.parametrize("name", TABLES)
def test_every_model_has_its_own_empty_tables(name):
    first, second = Regression(), Regression()
    assert getattr(first, name) == {}
    assert getattr(first, name) is not getattr(second, name)


def test_only_setup_must_be_written():
    assert Model.__abstractmethods__ == {"setup"}
    with pytest.raises(TypeError, match="setup"):
        Model("name")


@pytest.mark.parametrize("bases", [(Model, nn.Module), (nn.Module, Model), (Tiny, nn.Linear)])
def test_a_model_that_is_a_module_too_is_told_how_it_is_done_here(bases):
    with pytest.raises(TypeError, match=r"^Both: a Model cannot be an nn\.Module too.*self\.parallelize\(Net\(\)\)"):
        type("Both", bases, {"setup": lambda self, fast_init=False: None})


def test_a_module_in_place_of_a_model_is_told_to_be_put_into_one():
    with pytest.raises(TypeError, match=r"^model: is an nn\.Module; assign it in `setup` of a Model"):
        quiet(max_steps=1).fit(nn.Linear(1, 1), data())


class Hiding(Tiny):
    """Assigns an attribute where it is asked to."""

    def __init__(self, name, value, where):
        super().__init__()
        self.assigned = name, value, where
        self.assign("init")

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.assign("setup")

    def assign(self, now):
        name, value, where = self.assigned
        if where == now:
            setattr(self, name, value)


@pytest.mark.parametrize("where", ["init", "setup"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("log", []), ("log", print), ("train", Split(TensorDataset(torch.ones(2)), 1)), ("eval", True), ("valid_step", 3)],
)
def test_an_attribute_that_hides_a_method_is_an_error_that_names_both(name, value, where):
    match = rf"^Hiding\.{name}: is an attribute \(\w+\) that hides the method `{name}` of Model"
    with pytest.raises(AttributeError, match=match):
        quiet(max_steps=1).fit(Hiding(name, value, where), data())
    with pytest.raises(AttributeError, match=match):
        quiet().validate(Hiding(name, value, where), data(), checkpoint=None)


@pytest.mark.parametrize("name", ["metrics", "trainer", "device", "rank", "save_name"])
def test_an_assignment_to_a_property_is_an_error_that_names_it(name):
    with pytest.raises(AttributeError, match=name):
        Hiding(name, {}, "init")


def test_a_step_may_be_replaced_by_its_compiled_form():
    calls = []

    class Compiled(Tiny):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            step = self.train_step
            self.train_step = lambda *arguments: (calls.append(1), step(*arguments))

    quiet(max_steps=2).fit(Compiled(), data())
    assert len(calls) == 2


def test_a_step_that_is_needed_but_not_written_is_named():
    with pytest.raises(NotImplementedError, match="Everything has no train_step"):
        fit(Everything("everything"), Split(regression_data(), batch_size=4))
    with pytest.raises(NotImplementedError, match="Everything has no valid_step"):
        ready(Everything("everything")).test_step(None, 0)


def test_a_test_step_that_is_not_written_is_the_valid_step():
    model, data = Regression(), DataModule(test=Split(regression_data(), batch_size=4))
    metrics = Trainer(root=None, max_epochs=1, progress=False, print_banner=False).test(model, data, checkpoint=None)
    assert list(metrics) == ["test/error"]


def test_outside_of_a_run_a_model_is_one_process_on_the_cpu():
    model = Regression(save_name="lonely")
    assert model.save_name == "lonely"
    assert model.device == torch.device("cpu")
    assert torch.device(model.map_loc) == model.device
    assert (model.is_distributed, model.rank, model.global_rank, model.world_size) == (False, 0, 0, 1)


def test_one_process_gathers_a_list_of_one():
    value = {"x": torch.arange(3), "name": "a"}
    (gathered,) = Regression().gather(value)
    assert gathered["name"] == "a"
    assert torch.equal(gathered["x"], value["x"])


def test_before_a_run_there_is_neither_trainer_nor_log():
    with pytest.raises(RuntimeError, match=r"Regression\.trainer"):
        _ = Regression().trainer
    with pytest.raises(RuntimeError, match="loss"):
        Regression().log("loss", 1.0)


def test_after_a_run_a_logged_value_is_refused_and_not_lost():
    model = Regression()
    fit(model, Split(regression_data(), batch_size=4))
    with pytest.raises(RuntimeError, match="loss"):
        model.log("loss", 1.0)


def test_in_a_run_the_trainer_is_the_one_that_runs():
    class Curious(Regression):
        def on_training_start(self):
            self.seen = self.trainer

    trainer = Trainer(root=None, max_steps=1, progress=False, print_banner=False)
    model = Curious()
    trainer.fit(model, DataModule(train=Split(regression_data(), batch_size=4)))
    assert model.seen is trainer


# What checkpoints hold.


def test_state_dict_holds_everything_that_has_a_state_in_the_order_assigned():
    assert list(ready(Everything("everything")).state_dict()) == [
        "net",
        "average",
        "pair.0",
        "pair.1",
        "parts.head",
        "parts.deep.0",
        "optimizer",
        "others.0",
        "schedulers.step",
        "last",
    ]


def test_load_state_dict_restores_all_that_state_dict_returned():
    used, fresh = ready(Everything("everything")), ready(Everything("everything"))
    used.use()
    assert plain(fresh.state_dict()) != plain(used.state_dict())
    fresh.load_state_dict(used.state_dict())
    assert plain(fresh.state_dict()) == plain(used.state_dict())


def test_fast_init_loads_networks_and_nothing_else():
    used, fresh = ready(Everything("everything")), ready(Everything("everything"))
    used.use()
    before = plain(fresh.optimizer.state_dict())
    fresh.load_state_dict(used.state_dict(), fast_init=True)
    assert plain(fresh.trained_state_dict()) == plain(used.trained_state_dict())
    assert plain(fresh.optimizer.state_dict()) == before


def test_a_model_set_up_with_fast_init_loads_a_whole_state():
    used, bare = ready(Everything("everything")), ready(Everything("everything"), fast_init=True)
    bare.load_state_dict(used.state_dict(), fast_init=True)
    assert plain(bare.state_dict()) == plain(used.trained_state_dict())


@pytest.mark.parametrize("fast_init", [False, True])
def test_a_name_missing_in_the_loaded_state_is_an_error_that_names_it(fast_init):
    model = ready(Everything("everything"))
    state = model.state_dict()
    del state["pair.1"]
    with pytest.raises(ValueError, match=r"pair.1: only in the model"):
        model.load_state_dict(state, fast_init=fast_init)


def test_an_unknown_name_in_the_loaded_state_is_an_error_that_names_it():
    model = ready(Everything("everything"))
    with pytest.raises(ValueError, match=r"ghost: only in the checkpoint"):
        model.load_state_dict({**model.state_dict(), "ghost": {}})


def test_trained_state_dict_holds_the_networks_alone():
    names = ["net", "average", "pair.0", "pair.1", "parts.head", "parts.deep.0", "last"]
    assert list(ready(Everything("everything")).trained_state_dict()) == names


def test_train_and_eval_switch_every_network():
    model = ready(Everything("everything"))
    networks = [model.net, model.average, *model.pair, model.parts["head"], model.parts["deep"][0], model.last]
    model.eval()
    assert [net.training for net in networks] == [False] * 7
    model.train()
    assert [net.training for net in networks] == [True] * 7


@pytest.mark.parametrize("save_name", ["", ".", "../x", "/x", "a/../../x", "n" * 201, "ü" * 101, 1])
def test_a_save_name_that_leads_out_of_the_root_or_is_too_long_is_an_error_that_names_it(save_name):
    with pytest.raises((TypeError, ValueError), match=rf"^save_name={re.escape(repr(save_name)[:100])}.*: must"):
        Regression(save_name=save_name)


@pytest.mark.parametrize("save_name", ["n" * 200, "ü" * 100, "a/" + "n" * 198], ids=["ascii", "umlauts", "path"])
def test_the_longest_save_name_trains_and_resumes_with_any_counters(save_name, tmp_path):
    for max_steps in (1, 2):
        result = quiet(root=tmp_path, max_steps=max_steps).fit(Tiny(save_name), data())
        assert result.state.step == max_steps
    name = naming.file_name(save_name, 2**63, 2**63, lambda name: name + "x" * 300)
    assert len(name) <= 255
    assert naming.counters(name, save_name) == (2**63, 2**63)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device")
@pytest.mark.parametrize("device", ["cuda", "nowhere"])
def test_a_device_that_is_not_there_is_not_told_as_a_damaged_file(device, tmp_path):
    path = quiet(root=tmp_path, max_steps=1).fit(Tiny(), data()).last_checkpoint
    with pytest.raises(ValueError, match=f"^device='{device}' cannot be used: "):
        Tiny.load_from_checkpoint(path, device=device)


@pytest.mark.parametrize(("model", "save_name"), [(Regression(5, save_name="mine"), "mine"), (Nameless(5), "nameless")])
def test_load_from_checkpoint_rebuilds_the_trained_model_from_its_hparams(model, save_name, tmp_path):
    result = fit(model, Split(regression_data(width=5), batch_size=4), root=tmp_path)
    loaded = type(model).load_from_checkpoint(result.last_checkpoint)
    x = torch.randn(4, 5)
    assert torch.equal(loaded.net(x), model.net(x))
    assert loaded.hparams == {"width": 5, "scale": 1.0}
    assert loaded.save_name == save_name
    assert not loaded.net.training
    assert not hasattr(loaded, "optimizer")


def test_loading_draws_no_random_numbers(tmp_path):
    result = quiet(max_steps=1, root=tmp_path).fit(Tiny(), data())
    before = torch.get_rng_state()
    Tiny.load_from_checkpoint(result.last_checkpoint, save_name="tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_load_from_checkpoint_takes_arguments_that_replace_the_stored_ones(tmp_path):
    result = fit(Regression(), Split(regression_data(), batch_size=4), root=tmp_path)
    loaded = Regression.load_from_checkpoint(result.last_checkpoint, scale=2.0, save_name="copy")
    assert loaded.hparams == {"width": 3, "scale": 2.0}
    assert loaded.save_name == "copy"


class Worsening(Tiny):
    def on_validation_start(self, validation_cycle):
        self.cycle = validation_cycle

    def valid_step(self, batch, step):
        self.log("loss", float(self.cycle))


def test_load_from_checkpoint_takes_the_best_of_a_run_folder(tmp_path):
    options = {"max_steps": 3, "valid_every_steps": 1, "monitor": "valid/loss", "root": tmp_path}
    result = quiet(**options).fit(Worsening(), data(12))
    assert result.state.best_step == 1
    best = Tiny.load_from_checkpoint(result.best_checkpoint)
    last = Tiny.load_from_checkpoint(result.last_checkpoint)
    loaded = Tiny.load_from_checkpoint(result.run_folder)
    assert torch.equal(loaded.net[0].weight, best.net[0].weight)
    assert not torch.equal(loaded.net[0].weight, last.net[0].weight)
    content = result.best_checkpoint.read_bytes()
    weight = best.net[0].weight.detach().numpy().tobytes()
    assert content.count(weight) == 1
    result.best_checkpoint.write_bytes(content.replace(weight, bytes(len(weight))))
    assert torch.equal(Tiny.load_from_checkpoint(result.run_folder).net[0].weight, last.net[0].weight)


def test_load_from_checkpoint_of_a_run_folder_without_checkpoints_names_it(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run: this run folder has no checkpoint that can be read"):
        Tiny.load_from_checkpoint(tmp_path / "run")


class WithoutHparams(Tiny):
    def __init__(self, width):
        super().__init__()


def test_load_from_checkpoint_says_how_hparams_work(tmp_path):
    path = quiet(root=tmp_path, max_steps=1).fit(WithoutHparams(3), data()).last_checkpoint
    text = r"missing a required argument: 'width'.*hparams that the checkpoint holds \(none\); set self.hparams"
    with pytest.raises(TypeError, match=text):
        WithoutHparams.load_from_checkpoint(path)
    assert WithoutHparams.load_from_checkpoint(path, width=3).save_name == "tiny"


class Placed(Tiny):
    """Notes its data and its run folder."""

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.places = [(self.datamodule, self.run_folder)]

    def on_training_end(self):
        self.places.append((self.datamodule, self.run_folder))


@pytest.mark.parametrize("options", [{"run_name": "second"}, {}, {"fast_dev_run": True}, {"root": None}])
def test_a_model_knows_its_data_and_its_run_folder(options, tmp_path):
    model, datamodule = Placed(), data()
    result = quiet(**{"max_steps": 1, "root": tmp_path, **options}).fit(model, datamodule)
    writes = "fast_dev_run" not in options and options.get("root", tmp_path) is not None
    expected = tmp_path / options.get("run_name", "tiny") if writes else None
    assert model.places == [(datamodule, expected)] * 2
    assert result.run_folder == expected
    for name in ("datamodule", "run_folder"):
        with pytest.raises(RuntimeError, match=f"^Placed.{name}: no Trainer is running this model"):
            getattr(model, name)


# What it consists of.


class Tied(Model):
    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5, bias=False))
        self.net[1].weight = self.net[0].weight
        self.head = nn.Linear(5, 1)
        self.head.weight.requires_grad_(False)
        self.head_again = self.head


def test_num_parameters_counts_shared_ones_once():
    assert ready(Tied("tied")).num_parameters() == 10 + 6


def test_num_parameters_can_leave_out_the_frozen_ones():
    assert ready(Tied("tied")).num_parameters(trainable_only=True) == 10 + 1


def summary(model, **options):
    """The rows of the table, as lists of words."""
    file = io.StringIO()
    Console(width=80, file=file).print(ready(model).summary(**options))
    rows = [line.split() for line in file.getvalue().splitlines()]
    return [row for row in rows if len(row) > 2]


def test_summary_lists_networks_their_parts_and_the_total():
    assert summary(Tied("tied")) == [
        ["module", "type", "parameters", "trainable"],
        ["net", "Sequential", "10", "10"],
        ["net.0", "Embedding", "10", "10"],
        ["net.1", "Linear", "10", "10"],
        ["head", "Linear", "6", "1"],
        ["head_again", "Linear", "6", "1"],
        ["total", "16", "11"],
    ]


class Nested(Model):
    def setup(self, fast_init=False):
        inner = nn.Sequential(nn.Linear(2, 3, dtype=torch.bfloat16), nn.ReLU())
        inner[0].bias.requires_grad_(False)
        self.net = nn.Sequential(nn.Embedding(5, 2), inner)
        self.net.register_parameter("scale", nn.Parameter(torch.ones(())))


@pytest.mark.parametrize("depth", [0, 1, 2, 9, None])
def test_summary_goes_as_deep_as_it_is_told_and_at_last_to_each_parameter(depth):
    _, *rows, total = summary(Nested("nested"), depth=depth)
    by_depth = [
        (0, ["net", "Sequential", "20", "17"]),
        (None, ["net.scale", "float32", "()", "1", "1"]),
        (1, ["net.0", "Embedding", "10", "10"]),
        (None, ["net.0.weight", "float32", "(5,", "2)", "10", "10"]),
        (1, ["net.1", "Sequential", "9", "6"]),
        (2, ["net.1.0", "Linear", "9", "6"]),
        (None, ["net.1.0.weight", "bfloat16", "(3,", "2)", "6", "6"]),
        (None, ["net.1.0.bias", "bfloat16", "(3,)", "3", "0"]),
    ]
    assert rows == [row for level, row in by_depth if depth is None or (level is not None and level <= depth)]
    assert total == ["total", "20", "17"]


@pytest.mark.parametrize(("depth", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_wrong_depth_is_an_error_that_names_it(depth, error):
    with pytest.raises(error, match=f"depth={depth}"):
        Nested("nested").summary(depth=depth)


# What steps use.


def test_batch_to_device_of_the_user_makes_what_steps_get():
    class Marked(Regression):
        phases = []

        def batch_to_device(self, batch, phase):
            self.phases.append(phase)
            return super().batch_to_device(batch, phase), phase

        def train_step(self, batch, state):
            super().train_step(batch[0], state)
            assert batch[1] == "train"

        def valid_step(self, batch, step):
            assert batch[1] == "valid"

        def test_step(self, batch, step):
            assert batch[1] == "test"

    split = Split(regression_data(4), batch_size=4)
    trainer = Trainer(root=None, max_epochs=1, sanity_batches=0, progress=False, print_banner=False)
    model, data = Marked(), DataModule(train=split, valid={"named": split}, test=split)
    trainer.fit(model, data)
    trainer.test(model, data)
    assert model.phases == ["train", "valid", "test"]


@pytest.mark.parametrize(("argument", "option"), [(0.1, None), (None, 0.1), (0.1, 5.0)])
def test_clipping_is_that_of_torch_by_argument_or_else_by_option(argument, option):
    class Clipped(Regression):
        def train_step(self, batch, state):
            self.backward(self.error(batch))
            self.optimizer_step(self.optimizer, clip_norm=argument)

    data = regression_data()
    model = Clipped()
    fit(model, Split(data, batch_size=8), clip_norm=option)

    net = initial_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    F.mse_loss(net(data.tensors[0]), data.tensors[1]).backward()
    assert nn.utils.clip_grad_norm_(net.parameters(), 0.1) > 0.1
    optimizer.step()
    assert_same_weights(model.net, net, tolerance=0)


def test_ten_batches_at_accumulation_four_make_three_steps_and_scheduler_steps():
    model = Regression()
    result = fit(model, Split(regression_data(20), batch_size=2), accumulation_steps=4)
    assert model.changed == [False, False, False, True, False, False, False, True, False, True]
    assert (result.state.step, result.state.batch) == (3, 10)
    assert model.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3


@pytest.mark.parametrize("make", [Split, DataLoader])
@pytest.mark.parametrize(("samples", "size", "window"), [(24, 4, 3), (20, 2, 4), (22, 4, 3), (25, 4, 3), (7, 3, 2)])
def test_accumulated_batches_equal_one_large_batch(make, samples, size, window):
    data = regression_data(samples)
    accumulated, large = Regression(), Regression()
    result = fit(accumulated, make(data, batch_size=size), accumulation_steps=window, max_epochs=2)
    expected = fit(large, make(data, batch_size=size * window), max_epochs=2)
    assert_same_weights(accumulated.net, large.net)
    assert result.state.step == expected.state.step


class Tokens(Model):
    """Predicts tokens of sequences with different lengths; `weigh` is what is given as the weight."""

    def __init__(self, weigh):
        super().__init__("tokens")
        self.weigh = weigh

    def setup(self, fast_init=False):
        self.net = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)

    def train_step(self, batch, state):
        x, y, mask = batch
        loss = F.mse_loss(self.net(x)[mask], y[mask])
        self.backward(loss, weight=self.weigh(mask.sum()))
        self.optimizer_step(self.optimizer)


def token_data(samples=7, length=6):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, length + 1, (samples, 1), generator=generator)
    x = torch.randn(samples, length, 2, generator=generator)
    return TensorDataset(x, x.sum(-1, keepdim=True).sin(), torch.arange(length) < lengths)


def train_by_hand(net, data, samples_per_step):
    """One epoch in which every step is the mean over all tokens of its samples."""
    parts = zip(*(tensor.split(samples_per_step) for tensor in data.tensors), strict=True)
    for x, y, mask in parts:
        gradients = torch.autograd.grad(F.mse_loss(net(x)[mask], y[mask]), list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    return net


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize(
    "weigh", [float, int, torch.Tensor.float, torch.Tensor.clone], ids=["float", "int", "float-tensor", "int-tensor"]
)
def test_a_weighted_step_is_the_weighted_mean_over_the_window(weigh, window):
    data = token_data()
    model = Tokens(weigh)
    fit(model, Split(data, batch_size=2), accumulation_steps=window)
    assert_same_weights(model.net, train_by_hand(initial_net(2), data, 2 * window))


def test_a_second_weighted_backward_needs_an_optimizer_step_before_it():
    class Twice(Tokens):
        def train_step(self, batch, state):
            loss = self.net(batch[0]).mean()
            self.backward(loss, weight=1)
            self.backward(loss, weight=1)

    with pytest.raises(RuntimeError, match="optimizer_step"):
        fit(Twice(int), Split(token_data(), batch_size=2))


def test_one_weighted_backward_serves_every_optimizer_that_steps_after_it():
    class Shared(Tokens):
        def setup(self, fast_init=False):
            self.net = nn.Linear(2, 1)
            self.optimizers = [torch.optim.SGD([p], lr=0.5) for p in self.net.parameters()]

        def train_step(self, batch, state):
            x, y, mask = batch
            self.backward(F.mse_loss(self.net(x)[mask], y[mask]), weight=mask.sum())
            for optimizer in self.optimizers:
                self.optimizer_step(optimizer)

    data = token_data()
    model = Shared(int)
    fit(model, Split(data, batch_size=2), accumulation_steps=2)
    assert_same_weights(model.net, train_by_hand(initial_net(2), data, 4))


def test_a_run_that_failed_inside_a_window_leaves_nothing_for_the_next_one():
    class Fails(Tokens):
        fails = True

        def optimizer_step(self, optimizer, scheduler=None, clip_norm=None):
            if self.fails:
                raise OSError("no more")
            return super().optimizer_step(optimizer, scheduler, clip_norm)

    data, model = token_data(), Fails(int)
    with pytest.raises(OSError, match="no more"):
        fit(model, Split(data, batch_size=2))
    model.fails = False
    fit(model, Split(data, batch_size=2))
    assert_same_weights(model.net, train_by_hand(initial_net(2), data, 2))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_several_updates_of_a_batch_are_those_of_a_loop_by_hand_and_count_as_one_step(precision, tmp_path):
    class Updating(Regression):
        def train_step(self, batch, state):
            (x,) = batch
            for i in range(3):
                self.backward(self.net(x).square().mean())
                self.optimizer_step(self.optimizer, self.scheduler if i == 2 else None)
            self.log("loss", self.net(x).square().mean())

    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(3))
    data = TensorDataset(x)
    model, cut = Updating(2), Updating(2)
    result = fit(model, Split(data, batch_size=4), precision=precision, max_epochs=2)
    assert (result.state.step, result.state.batch, result.state.skipped_steps) == (6, 6, 0)
    assert model.scheduler.last_epoch == 6
    for steps in (2, 6):
        fit(cut, Split(data, batch_size=4), precision=precision, root=tmp_path, max_epochs=None, max_steps=steps)
    assert_same_weights(cut.net, model.net)
    net = initial_net(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    for _ in range(2):
        for batch in x.split(4):
            for _ in range(3):
                net(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            scheduler.step()
    if precision == "fp32":
        assert_same_weights(model.net, net)


def adversarial_losses(generator, critic, x):
    """The critic's and (made when it is asked for) the generator's; the latter leaves the critic alone."""
    yield F.softplus(critic(generator(x).detach())).mean() + F.softplus(-critic(x)).mean()
    critic.requires_grad_(False)
    yield F.softplus(-critic(generator(x))).mean()
    critic.requires_grad_(True)


def adversarial_parts():
    generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    return generator, critic, [torch.optim.Adam(net.parameters(), lr=0.1) for net in (critic, generator)]


@pytest.mark.parametrize("weight", [None, "samples"])
def test_two_optimizers_under_accumulation_equal_a_loop_by_hand(weight):
    class Adversarial(Model):
        def setup(self, fast_init=False):
            self.generator, self.critic, self.optimizers = adversarial_parts()

        def train_step(self, batch, state):
            (x,) = batch
            losses = adversarial_losses(self.generator, self.critic, x)
            for loss, optimizer in zip(losses, self.optimizers, strict=True):
                self.backward(loss, weight=None if weight is None else len(x))
                self.optimizer_step(optimizer)

    x = torch.randn(11, 2, generator=torch.Generator().manual_seed(3))
    model = Adversarial("gan")
    fit(model, Split(TensorDataset(x), batch_size=2), accumulation_steps=4)

    torch.manual_seed(0)
    generator, critic, optimizers = adversarial_parts()
    for window in x.split(8):
        batches = window.split(2)
        for i, batch in enumerate(batches):
            losses = adversarial_losses(generator, critic, batch)
            for loss, optimizer in zip(losses, optimizers, strict=True):
                (loss * len(batch) / len(window)).backward()
                if i == len(batches) - 1:
                    optimizer.step()
                    optimizer.zero_grad()
    assert_same_weights(model.generator, generator)
    assert_same_weights(model.critic, critic)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_computes_in_the_precision_of_the_trainer(precision, dtype):
    class Watched(Regression):
        def train_step(self, batch, state):
            with self.autocast():
                self.inside = torch.is_autocast_enabled("cpu"), self.net(batch[0]).dtype
            self.outside = torch.is_autocast_enabled("cpu"), self.net(batch[0]).dtype

    model = Watched()
    fit(model, Split(regression_data(), batch_size=8), precision=precision)
    assert model.inside == (precision == "bf16", dtype)
    assert model.outside == (False, torch.float32)
    assert model.net.weight.dtype == torch.float32


# The style of the seed: everything done by the model itself.


class SeedStyle(Model):
    def setup(self, fast_init=False):
        self._net = nn.Linear(3, 1).to(self.device)
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=0.1, momentum=0.9)
        self.losses, self.running = [], []

    def state_dict(self):
        return {"net": self._net.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state_dict, fast_init=False):
        self._net.load_state_dict(state_dict["net"])
        if not fast_init:
            self._optimizer.load_state_dict(state_dict["optimizer"])

    def train_step(self, batch, state):
        assert self._loss_items == {}
        inputs, targets = batch
        self._optimizer.zero_grad()
        loss = F.mse_loss(self._net(inputs), targets)
        loss.backward()
        self._optimizer.step()
        self._loss_items["mse"] = loss
        self.losses.append(loss.item())

    def _add_error(self, scores, batch):
        scores["error"] = scores.get("error", 0.0) + (self._net(batch[0]) - batch[1]).abs().sum()

    def valid_step(self, batch, step):
        self._add_error(self._val_scores, batch)

    def on_validation_end(self, validation_cycle):
        self._val_scores["error"] /= 8
        self.running.append({name: value.item() for name, value in self._running_losses.items()})
        super().on_validation_end(validation_cycle)

    def test_step(self, batch, step):
        self._add_error(self._test_scores, batch)


def fit_seed_style(model, **options):
    data = regression_data()
    valid = Split(data, batch_size=2)
    return fit(model, Split(data, batch_size=4, shuffle=True), valid=valid, sanity_batches=0, **options)


def test_a_model_in_the_style_of_the_seed_has_its_losses_and_scores_in_the_metrics():
    model = SeedStyle("seed")
    result = fit_seed_style(model, max_epochs=3)
    inputs, targets = regression_data().tensors
    errors = (model._net(inputs) - targets).abs()
    assert result.metrics["train/mse"] == pytest.approx(sum(model.losses[-2:]) / 2)
    assert result.metrics["valid/error"] == pytest.approx(errors.mean().item())
    assert model.running == [{"mse": pytest.approx(sum(model.losses[i : i + 2]))} for i in (0, 2, 4)]

    tested = Trainer(root=None, max_epochs=3, progress=False, print_banner=False).test(
        model, DataModule(test=Split(regression_data(), batch_size=2))
    )
    assert tested == {"test/error": pytest.approx(errors.sum().item())}


def test_a_loss_that_is_none_is_an_error_that_names_it():
    class Forgetful(SeedStyle):
        def train_step(self, batch, state):
            super().train_step(batch, state)
            self._loss_items["other"] = None

    with pytest.raises(TypeError, match=r"_loss_items\['other'\] is None"):
        fit_seed_style(Forgetful("forgetful"), max_epochs=1)


def test_running_losses_are_up_to_date_after_every_batch_and_summed_in_full_precision():
    class Low(SeedStyle):
        sums = []

        def train_step(self, batch, state):
            super().train_step(batch, state)
            self._loss_items["mse"] = torch.tensor(256.0 if state.step == 0 else 1.0, dtype=torch.bfloat16)

        def on_training_batch_end(self, state, should_log=False):
            super().on_training_batch_end(state, should_log)
            self._loss_items["mse"].zero_()  # The sum is not the tensor itself.
            self.sums.append(self._running_losses["mse"].item())

    model = Low("low")
    fit(model, Split(regression_data(), batch_size=2), max_epochs=1)
    assert model.sums == [256.0, 257.0, 258.0, 259.0]


def test_a_model_in_the_style_of_the_seed_resumes(tmp_path):
    whole, resumed = SeedStyle("seed"), SeedStyle("seed")
    fit_seed_style(whole, max_epochs=3)
    fit_seed_style(SeedStyle("seed"), max_epochs=1, root=tmp_path)
    result = fit_seed_style(resumed, max_epochs=3, root=tmp_path)
    assert len(resumed.losses) == 4
    assert result.state.epoch == 3
    assert plain(resumed.state_dict()) == plain(whole.state_dict())
