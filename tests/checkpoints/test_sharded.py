"""Checkpoints of several processes under FSDP: the same state for any number of processes, complete or absent, safe."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import close, same, weights
from helpers.models import Plain, data, quiet
from helpers.optimizers import OPTIMIZERS
from helpers.processes import deadline
from helpers.scenarios import Results, scenario
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helios_lite import Model
from helios_lite.callbacks import EMA
from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.files import CheckpointError
from helios_lite.checkpoints.reading import read_checkpoint, read_checkpoint_header, read_on_every_rank
from helios_lite.checkpoints.sharded import read_main
from helios_lite.networks.dtensors import full_tensor
from helios_lite.processes.launch import launch
from helios_lite.processes.world import World, join_world
from helios_lite.tools.command import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def ended() -> Iterator[None]:
    with deadline(240):
        yield


class Tied(nn.Module):
    """An output layer with the weights of the input layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(3, 3), nn.Linear(3, 3)
        self.out.weight = self.into.weight
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.out(torch.tanh(self.into(x)))


class Mixed(Model):
    """Tied weights, a frozen layer, a frozen network, AdamW and SGD with momentum."""

    def __init__(self) -> None:
        super().__init__("mixed")

    def setup(self, fast_init: bool = False) -> None:
        self.tied = self.parallelize(Tied())
        net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1))
        net[1].requires_grad_(False)
        self.net = self.parallelize(net, blocks=(nn.Linear,))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        if not fast_init:
            trained = [p for p in self.net.parameters() if p.requires_grad]
            self.optimizers = [
                torch.optim.AdamW(self.tied.parameters(), lr=0.01),
                torch.optim.SGD(trained, lr=0.01, momentum=0.9),
            ]

    def train_step(self, batch: Any, state: Any) -> None:
        loss = self.net(self.frozen(self.tied(batch[1]))).square().mean()
        self.backward(loss)
        for optimizer in self.optimizers:
            self.optimizer_step(optimizer)

    def valid_step(self, batch: Any, step: int) -> None:
        self.log("loss", self.net(self.frozen(self.tied(batch[1]))).square().mean())


class Own(Mixed):
    """Decides itself what checkpoints hold, and where."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "all": [{"the.net": self.net.state_dict()}, self.tied.state_dict()],
            "sgd": self.optimizers[1].state_dict(),
            # A part on each rank, unless it is that of a checkpoint.
            "sum": getattr(self, "sum", self.net[0].weight.detach().sum()),
        }

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        self.net.load_state_dict(state_dict["all"][0]["the.net"])
        self.tied.load_state_dict(state_dict["all"][1])
        self.sum = state_dict["sum"]
        if not fast_init:
            self.optimizers[1].load_state_dict(state_dict["sgd"])


class Together(nn.Module):
    """The sum of the losses of networks."""

    def __init__(self, nets: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, net in nets.items():
            self.add_module(name, net)

    def forward(self, x: torch.Tensor) -> Any:
        return sum((net(x) - x.cos()).square().mean() for net in self.children())


class States(Model):
    """A network for each optimizer, whose states have all kinds of shapes and names."""

    names = ("Adafactor", "Rprop", "Muon", "norm", "factored", "named", "counting", "precise")

    def __init__(self) -> None:
        super().__init__("mixed")

    def setup(self, fast_init: bool = False) -> None:
        made = {name: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)) for name in self.names}
        self.net = self.parallelize(Together(made), blocks=(nn.Sequential,))
        self.optimizers = {name: OPTIMIZERS[name](net.parameters()) for name, net in self.net.named_children()}

    def train_step(self, batch: Any, state: Any) -> None:
        self.backward(self.net(batch[1]))
        for optimizer in self.optimizers.values():
            self.optimizer_step(optimizer)


MODELS: dict[str, type[Model]] = {"mixed": Mixed, "own": Own, "states": States}
STEPS = 3


def checkpoint(root: Path, name: str, processes: int) -> Path:
    path = root / f"{name}-by-{processes}/mixed/checkpoints/mixed_epoch_0_iter_{STEPS}"
    return path.with_name(f"{path.name}.pth") if processes == 1 else path


def trained(name: str, root: Path, batch_size: int = 2, **options: Any) -> dict[str, Any]:
    """The full state, the average included, after a run that ends at the same step: a resume changes nothing."""
    model, ema = MODELS[name](), EMA(decay=0.5)
    options = {"max_steps": STEPS, "strategy": "fsdp", "valid_every_epochs": None, "root": root, **options}
    quiet(**options, callbacks=[ema]).fit(model, data(40, batch_size=batch_size))
    average = {part: full_tensor(value).clone() for part, value in ema.averaged.module.state_dict().items()}
    return {"model": weights(model), "average": average, "updates": int(ema.averaged.n_averaged)}


def left_by(root: Path, world: World) -> None:
    """Leave a checkpoint of each model, and what it must hold."""
    for name in MODELS:
        state = trained(name, root / f"{name}-by-{world.size}", async_save=name == "own")
        if world.is_main:
            torch.save(state, root / f"{name}-by-{world.size}.expected")


# Which model, how many processes have saved it, and the strategy of the resume.
RESUMES = [
    *(("mixed", source, "fsdp") for source in (1, 2, 3)),
    *(("mixed", source, "ddp") for source in (1, 3)),
    *(("own", 3, strategy) for strategy in ("ddp", "fsdp")),
    *(("states", 3, strategy) for strategy in ("ddp", "fsdp")),
]


OF_FOUR = [("mixed", 3, "fsdp"), ("states", 3, "fsdp")]


def resumed(resumes: list[Any], root: Path, world: World) -> dict[Any, Any]:
    """The states after each of these resumes."""
    return {
        (name, source, strategy): trained(
            name,
            root / f"{name}-{source}-to-{strategy}-{world.size}",
            strategy=strategy,
            resume=checkpoint(root, name, source),
        )
        for name, source, strategy in resumes
    }


def left_by_launched(root: Path) -> None:
    left_by(root, join_world("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all scenarios, in which one process and three have left checkpoints."""
    root = tmp_path_factory.mktemp("sharded")
    left_by(root, World())
    launch(left_by_launched, {"root": root}, processes=3, max_restarts=0)
    return root


@pytest.fixture(scope="module")
def result(root: Path) -> Results:
    return Results(__name__, root)


def expected(root: Path, name: str, processes: int) -> dict[str, Any]:
    return torch.load(root / f"{name}-by-{processes}.expected", weights_only=True)


# Any number of processes, any strategy.


@scenario(ranks=2)
def resumed_by_two(root: Path, world: World) -> dict[Any, Any]:
    left_by(root, world)
    return resumed(RESUMES, root, world)


@scenario(ranks=4)
def resumed_by_four(root: Path, world: World) -> dict[Any, Any]:
    return resumed(OF_FOUR, root, world)


def test_any_number_of_processes_restores_what_any_other_has_saved_bit_for_bit(root: Path, result: Results) -> None:
    for function, ranks, resumes in ((resumed_by_two, 2, RESUMES), (resumed_by_four, 4, OF_FOUR)):
        found = result(function, ranks=ranks)
        assert [*found] == resumes
        for (name, source, strategy), state in found.items():
            assert same(state, expected(root, name, source)), (ranks, name, source, strategy)
    for name in MODELS:
        for source in (2, 3):
            found = trained(name, root / f"{name}-{source}-to-1", resume=checkpoint(root, name, source))
            assert same(found, expected(root, name, source)), (name, source)


@scenario(ranks=2)
def gone_on_by_two(root: Path, world: World) -> list[dict[str, Any]]:
    """The states two steps later: of a whole run, from the folder of two processes, and from the file of one."""
    left_by_two = root / "states-by-2"
    if not left_by_two.exists():
        world.barrier()
        trained("states", left_by_two)
    found = []
    for source, size in ((None, 2), (2, 2), (1, 1)):
        options = {} if source is None else {"resume": checkpoint(root, "states", source)}
        found.append(trained("states", root / f"on-from-{source}", size, max_steps=STEPS + 2, **options))
    return found


def test_states_of_any_shape_and_name_go_on_with_their_bits_and_as_those_of_one_process(
    root: Path, result: Results
) -> None:
    whole, resumed, from_file = result(gone_on_by_two, ranks=2)
    assert same(resumed, whole)
    assert close(trained("states", root / "on-by-one", 4, max_steps=STEPS + 2), whole)
    assert close(trained("states", root / "on-from-one", 2, max_steps=STEPS + 2), from_file)


def test_a_sharded_checkpoint_holds_what_a_file_of_one_process_holds(root: Path) -> None:
    one, three = (read_checkpoint(checkpoint(root, "mixed", processes)) for processes in (1, 3))
    assert list(three) == list(one)
    state, (average,) = expected(root, "mixed", 3), three["callbacks"].values()
    assert same(three["model"], state["model"])
    assert same(dict(average["evaluation_weights"]["net"]), state["average"])
    assert not same(state["average"], dict(state["model"]["net"]))
    assert [list(part) for part in three["model"].values()] == [list(part) for part in one["model"].values()]
    tied = three["model"]["tied"]
    assert tied["into.weight"].data_ptr() == tied["out.weight"].data_ptr()
    assert tied._metadata == one["model"]["tied"]._metadata
    assert len(three["ranks"]) == 3


def test_the_tensors_are_in_the_shards_once_under_the_names_of_parameters(root: Path) -> None:
    names = torch.load(checkpoint(root, "mixed", 3) / "main.pth", weights_only=True)["sharded"]
    tied = {f"model.tied.{name}" for name in ("into.weight", "into.bias", "out.bias")}
    assert tied | {"model.optimizers.0.state.tied.out.bias.exp_avg_sq"} <= set(names)
    assert "model.optimizers.1.state.net.2.bias.momentum_buffer" in names
    assert "model.tied.out.weight" not in names
    states = torch.load(checkpoint(root, "states", 3) / "main.pth", weights_only=True)["sharded"]
    assert "model.optimizers.Muon.state.net.Muon.0.weight.momentum_buffer" in states


def test_one_process_consolidates_inspects_tests_and_loads_a_folder(root: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / checkpoint(root, "mixed", 3).name
    shutil.copytree(checkpoint(root, "mixed", 3), folder)
    main(["consolidate", str(folder)])
    file = folder.with_name(f"{folder.name}.pth")
    assert capsys.readouterr().out == f"{file}\n"
    content = torch.load(file, weights_only=True)
    file.unlink()
    with contextlib.chdir(folder):
        main(["consolidate", "."])
    assert capsys.readouterr().out == f"{file.resolve()}\n"
    assert same(content, read_checkpoint(folder))
    assert content["model"]["tied"]["into.weight"].data_ptr() == content["model"]["tied"]["out.weight"].data_ptr()
    tables = []
    for path in (folder, file):
        main(["inspect", str(path)])
        tables.append([line for line in capsys.readouterr().out.splitlines() if "size" not in line and "/" not in line])
    assert tables[0] == tables[1]
    metrics = [quiet(max_steps=1).test(Mixed(), data(), checkpoint=path) for path in (folder, file)]
    assert metrics[0] == metrics[1]
    model = Mixed.load_from_checkpoint(folder)
    (average,) = content["callbacks"].values()
    assert same(weights(model)["net"], average["evaluation_weights"]["net"])
    with pytest.raises(SystemExit):
        main(["consolidate", str(folder)])
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["consolidate", str(tmp_path)])
    assert "is a folder, but no sharded checkpoint and no run folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["consolidate", str(file)])
    assert capsys.readouterr().err == f"helios-lite: {file}: is not the folder of a sharded checkpoint\n"
    run = tmp_path / "run"
    shutil.copytree(checkpoint(root, "mixed", 3).parents[1], run)
    main(["consolidate", str(run)])
    made = run / "checkpoints" / file.name
    assert capsys.readouterr().out == f"{made}\n"
    assert same(torch.load(made, weights_only=True), content)
    shutil.rmtree(run / "checkpoints" / folder.name)
    with pytest.raises(SystemExit):
        main(["consolidate", str(run)])
    newest = f"the newest checkpoint of {run}, which has no best one"
    assert f"{made}: is not the folder of a sharded checkpoint, but {newest}\n" in capsys.readouterr().err


def test_a_file_that_was_made_of_a_folder_takes_its_place_in_the_run(
    root: Path, tmp_path: Path, caplog: Any, capsys: Any
) -> None:
    source = checkpoint(root, "mixed", 3)
    shutil.copytree(source.parents[1], tmp_path / "mixed")
    folder = tmp_path / "mixed/checkpoints" / source.name
    manifest = folder.with_name("manifest.json")
    listed = json.loads(manifest.read_text())
    listed["checkpoints"][0] |= {"score": 0.25, "improved": True, "final": True}  # What the file itself does not hold.
    manifest.write_text(json.dumps(listed))
    trainer = quiet(root=tmp_path, max_steps=STEPS + 1, keep_best=0)
    metrics = trainer.test(Mixed(), data(), checkpoint="last")
    main(["consolidate", str(folder)])
    file = folder.with_name(f"{folder.name}.pth")
    shutil.rmtree(folder)
    caplog.clear()
    for choice in ("best", "last"):
        assert trainer.test(Mixed(), data(), checkpoint=choice) == metrics
    assert same(weights(Mixed.load_from_checkpoint(tmp_path / "mixed")), weights(Mixed.load_from_checkpoint(source)))
    assert "manifest" not in caplog.text
    assert trainer.fit(Mixed(), data(40, batch_size=2)).state.step == STEPS + 1
    assert f"({file.name})" in caplog.text
    assert file.exists()  # Nobody but the user deletes what the user has made.
    entries = json.loads(manifest.read_text())
    assert [entry["file"] for entry in entries["checkpoints"]] == [f"mixed_epoch_0_iter_{STEPS + 1}.pth"]
    (entry,) = entries["found"]
    assert entry == listed["checkpoints"][0] | {"file": file.name, "score": None, "improved": False, "final": False}


def test_the_command_tests_a_folder_and_the_run_that_has_it(root: Path, tmp_path: Path, capsys: Any) -> None:
    file, folder = tmp_path / "run.toml", checkpoint(root, "mixed", 3)
    file.write_text(f"""
        model.class = "{Mixed.__module__}.Mixed"
        [trainer]
        root = "{folder.parents[2]}"
        [data]
        class = "helios_lite.DataModule"
        [data.test]
        class = "helios_lite.Split"
        batch_size = 2
        dataset = {{class = "helpers.models.Indices", length = 5}}
    """)
    main(["test", str(file)])
    best = capsys.readouterr().out
    assert best.startswith(f"test of {folder.name}\n")
    for path in (folder, folder.parents[1]):
        main(["test", str(file), "--checkpoint", str(path)])
        assert capsys.readouterr().out == best
    with pytest.raises(SystemExit):
        main(["test", str(file), "--checkpoint", str(folder / "main.pth")])
    assert f"is a part of a sharded checkpoint; give its folder, {folder}" in capsys.readouterr().err


@scenario(ranks=2)
def gathered_for_a_file(root: Path, world: World) -> list[Any]:
    model = Mixed()
    quiet(max_steps=1, strategy="fsdp").fit(model, data(batch_size=2))
    mine = model.trained_state_dict()
    full = {name: full_tensor(value).clone() for name, value in model.net.state_dict().items()}
    return world.gather((mine, full))


def test_the_weights_for_a_file_of_their_own_are_gathered_on_rank_0(result: Results) -> None:
    (first, full), (second, _) = result(gathered_for_a_file, ranks=2)
    assert list(first) == list(second) == ["tied", "net", "frozen"]
    assert same(dict(first["net"]), full)
    assert second["net"] == second["tied"] == {}


# Sharded stays sharded.


class Largest(TorchDispatchMode):
    """Notes the number of bytes of the largest tensor that an operation of this process has made.

    Integers are those of digests, which are made for a block at a time, however large a tensor is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(made) if type(each) is torch.Tensor and each.is_floating_point()]
        self.bytes = max([self.bytes, *(tensor.nbytes for tensor in tensors)])
        return made


class Wide(Plain):
    """Watches the tensors of every save and of a resume, which lie between these hooks."""

    def setup(self, fast_init: bool = False) -> None:
        self.largest: list[int] = []
        net = nn.Sequential(nn.Linear(3, 256), nn.Linear(256, 256), nn.Linear(256, 1))
        self.net = self.parallelize(net, blocks=(nn.Linear,))
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.watch()

    def watch(self) -> None:
        self.mode: Largest | None = Largest()
        self.mode.__enter__()

    def note(self) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.largest.append(self.mode.bytes)
            self.mode = None

    def on_training_start(self) -> None:
        self.note()

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.watch()

    def on_training_batch_start(self, state: Any) -> None:
        self.note()

    def on_training_end(self) -> None:
        self.note()


@scenario(ranks=2)
def tensors_of_saves_and_a_resume(root: Path, world: World) -> list[list[int]]:
    options = {"strategy": "fsdp", "root": root / "wide", "save_every_steps": 1}
    options |= {"valid_every_epochs": None, "check_finite": False}
    found = []
    for steps, in_background in ((3, False), (6, True)):
        model = Wide()
        quiet(max_steps=steps, async_save=in_background, **options).fit(model, data(40, batch_size=2))
        found.append(model.largest)
    return world.gather([*found[0][1:3], *found[1][:3]])


def test_no_rank_makes_more_than_its_part_of_a_tensor_in_a_save_and_in_a_resume(result: Results) -> None:
    for saves_and_resume in result(tensors_of_saves_and_a_resume, ranks=2):
        assert len(saves_and_resume) == 5  # Two saves, a resume, two saves in the background.
        assert all(256 * 128 <= size / 4 < 256 * 256 for size in saves_and_resume), saves_and_resume


# Failures.


def listing(root: Path, run: str) -> list[str]:
    return sorted(path.name for path in (root / run / "plain/checkpoints").iterdir() if path.name != ".lock")


@scenario(ranks=2)
def full_disk_of_rank_1(root: Path, world: World) -> list[Any]:
    """In the foreground and in the background: the errors of the ranks, and what is left."""
    found = []
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Plain):
        fills = True

        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.large = self.parallelize(nn.Linear(256, 256))

        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            if self.fills and state.step == 2 and world.rank == 1:
                while "plain_epoch_0_iter_2" not in listing(root, name):
                    time.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))

    class Finishing(Filling):
        fills = False

    for background in (False, True):
        name = f"full-{background}"
        try:
            quiet(
                max_steps=6, root=root / name, save_every_steps=1, async_save=background, strategy="fsdp", keep_last=2
            ).fit(Filling(), data(40, batch_size=2))
            error = ""
        except OSError as raised:
            error = type(raised).__name__
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        errors = world.gather(error)
        left = listing(root, name)
        result = quiet(max_steps=6, root=root / name, strategy="fsdp").fit(Finishing(), data(40, batch_size=2))
        found.append((errors, left, result.state.step))
    return found


def test_a_full_disk_of_one_rank_is_an_oserror_on_all_and_leaves_the_earlier_checkpoints(result: Results) -> None:
    kept = ["manifest.json", "plain_epoch_0_iter_1", "plain_epoch_0_iter_2"]
    assert result(full_disk_of_rank_1, ranks=2) == [(["OSError", "OSError"], kept, 6)] * 2


@scenario(ranks=2)
def damaged_newest(root: Path, world: World) -> list[Any]:
    """What each rank resumes from when the newest folder is damaged, or only rank 1 cannot read it."""
    found = []
    for strategy in ("fsdp", "ddp"):
        folder = root / f"damaged-{strategy}"
        trainer = {"root": folder, "save_every_steps": 1, "keep_last": -1, "strategy": "fsdp"}
        quiet(max_steps=3, **trainer).fit(Plain(), data(40, batch_size=2))
        if world.is_main:
            with next((folder / "plain/checkpoints/plain_epoch_0_iter_3").glob("__1_*")).open("r+b") as file:
                file.seek(500)
                file.write(b"damage" * 500)
            os.truncate(next((folder / "plain/checkpoints/plain_epoch_0_iter_2").glob("__0_*")), 100)
        world.barrier()
        model = Plain()
        result = quiet(max_steps=4, root=folder, strategy=strategy).fit(model, data(40, batch_size=2))
        found.append((world.gather(len(model.rates)), result.state.step))
    return found


def test_all_ranks_pass_over_damaged_folders(result: Results) -> None:
    assert result(damaged_newest, ranks=2) == [([3, 3], 4)] * 2


@scenario(ranks=2)
def reads_where_rank_1_has_no_file(root: Path, world: World) -> list[list[str]]:
    """The errors of both ranks, of a checkpoint that is whole on rank 0: read in full, and each its part of it."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world.size,))
    part = torch.distributed.tensor.distribute_tensor(torch.zeros(4, 4), mesh)
    found = []
    for like in (None, part):
        for source in (1, 2):
            path = checkpoint(root, "mixed", source)
            path = path if world.is_main else path.with_name(f"missing{path.suffix}")
            with pytest.raises(RuntimeError) as error:
                read_on_every_rank(path, world, like, lambda name: True)
            found.append(world.gather(str(error.value)))
    return found


def test_a_checkpoint_that_one_rank_alone_cannot_read_is_an_error_on_all(result: Results) -> None:
    result(resumed_by_two, ranks=2)  # Leaves a checkpoint of two processes.
    for errors in result(reads_where_rank_1_has_no_file, ranks=2):
        assert all("rank 1 cannot read it, but rank 0 can (FileNotFoundError: " in error for error in errors), errors


def flip(path: Path, place: float) -> None:
    """Flip a bit at a place, as a part of the length."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A copy of a sharded checkpoint of three processes."""
    shutil.copytree(checkpoint(root, "mixed", 3), tmp_path / "checkpoints/mixed_epoch_0_iter_3")
    return tmp_path / "checkpoints/mixed_epoch_0_iter_3"


@pytest.mark.parametrize("name", ["main.pth", "__1_0.distcp"])
def test_a_missing_file_is_noticed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for read in (read_checkpoint, read_checkpoint_header):
        with pytest.raises(CheckpointError, match=rf"mixed_epoch_0_iter_3.*{name}.*missing"):
            read(folder)


@pytest.mark.parametrize("name", ["main.pth", "__1_0.distcp"])
def test_a_truncated_file_is_noticed(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    for length in (0, size // 2, size - 1):
        os.truncate(folder / name, length)
        for read in (read_checkpoint, read_checkpoint_header):
            with pytest.raises(CheckpointError, match="mixed_epoch_0_iter_3"):
                read(folder)


@pytest.mark.parametrize("name", ["main.pth", "__1_0.distcp"])
def test_a_flipped_bit_is_noticed_or_changes_nothing(folder: Path, name: str) -> None:
    """An archive has some bytes that mean nothing, such as dates."""
    before, content = read_checkpoint(folder)["model"], (folder / name).read_bytes()
    noticed = 0
    for place in range(1, 20):
        flip(folder / name, place / 20)
        try:
            assert same(read_checkpoint(folder)["model"], before)
        except CheckpointError:
            noticed += 1
        (folder / name).write_bytes(content)
    assert noticed > 3


def test_a_flipped_bit_of_a_tensor_is_noticed(folder: Path) -> None:
    part = read_checkpoint(folder)["model"]["net"]["0.weight"][2:4].numpy().tobytes()
    content = bytearray((folder / "__1_0.distcp").read_bytes())
    content[content.index(part) + 5] ^= 1
    (folder / "__1_0.distcp").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"mixed_epoch_0_iter_3.*damaged"):
        read_checkpoint(folder)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.victim),)


def test_metadata_of_dcp_has_no_effect_whatever_it_holds(root: Path, folder: Path, tmp_path: Path, caplog: Any) -> None:
    metadata, before = folder / ".metadata", read_checkpoint(folder)
    other = (checkpoint(root, "own", 3) / ".metadata").read_bytes()
    metadata.unlink()
    assert same(read_checkpoint(folder), before)
    for content in (b"", b"garbage", other, pickle.dumps(Malicious(tmp_path / "victim"))):
        metadata.write_bytes(content)
        assert same(read_checkpoint(folder), before)
        assert same(read_checkpoint_header(folder)["state"], before["state"])
    run = quiet(max_steps=4, root=tmp_path.parent, run_name=tmp_path.name)
    assert run.fit(Mixed(), data(40, batch_size=6)).state.step == 4
    assert f"({folder.name})" in caplog.text
    assert "passing over" not in caplog.text
    assert not (tmp_path / "victim").exists()


def test_places_are_those_of_the_metadata_of_dcp(folder: Path) -> None:
    _, found = read_main(folder)
    written = pickle.loads((folder / ".metadata").read_bytes())
    assert found.state_dict_metadata == written.state_dict_metadata
    assert found.storage_data == written.storage_data


def lead_out(places: Any) -> None:
    offsets, sizes, _, *rest = places["chunks"][0]
    places["chunks"][0] = (offsets, sizes, "../mixed_epoch_0_iter_3/__0_0.distcp", *rest)


def begin_before_the_file(places: Any) -> None:
    *rest, _, length = places["chunks"][0]
    places["chunks"][0] = (*rest, -1, length)


def begin_before_the_tensor(places: Any) -> None:
    (_, *offsets), *rest = places["chunks"][-1]
    places["chunks"][-1] = ((-1, *offsets), *rest)


def reach_beyond_the_tensor(places: Any) -> None:
    (first, *offsets), *rest = places["chunks"][-1]
    places["chunks"][-1] = ((first + 1, *offsets), *rest)


def claim_a_size_that_the_file_does_not_have(places: Any) -> None:
    places["shape"] = (10**15, *places["shape"][1:])
    _, sizes, *rest = places["chunks"][0]
    places["chunks"] = [((0,) * len(sizes), places["shape"], *rest)]


def have_another_dimension(places: Any) -> None:
    places["dim"] = 2


def forget_a_part(places: Any) -> None:
    del places["chunks"][-1]


def have_no_dtype(places: Any) -> None:
    places["dtype"] = "float32"


def be_numbers(places: Any) -> None:
    places["chunks"] = [1, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        lead_out,
        begin_before_the_file,
        begin_before_the_tensor,
        reach_beyond_the_tensor,
        claim_a_size_that_the_file_does_not_have,
        have_another_dimension,
        forget_a_part,
        have_no_dtype,
        be_numbers,
    ],
)
def test_places_of_anything_but_whole_tensors_in_the_folder_are_refused(folder: Path, change: Any) -> None:
    content = torch.load(folder / "main.pth", weights_only=True)
    change(content["sharded"]["model.net.0.weight"])
    torch.save(content, folder / "main.pth")
    for read in (read_checkpoint, read_checkpoint_header):
        with pytest.raises(CheckpointError, match=r"mixed_epoch_0_iter_3/main\.pth: it is damaged"):
            read(folder)


@pytest.mark.parametrize("places", [None, [], {}, {"model.net.0.weight": None}, "missing"])
def test_a_folder_without_places_is_refused(folder: Path, places: Any) -> None:
    content = torch.load(folder / "main.pth", weights_only=True)
    content["sharded"] = places
    if places == "missing":
        del content["sharded"]
    torch.save(content, folder / "main.pth")
    for read in (read_checkpoint, read_checkpoint_header):
        with pytest.raises(CheckpointError, match="mixed_epoch_0_iter_3"):
            read(folder)


# Killed at any moment.


def test_a_start_removes_half_written_folders_and_gives_a_replaced_one_its_name_back(folder: Path) -> None:
    parent = folder.parent
    shutil.copytree(folder, parent / ".mixed_epoch_0_iter_5.123.shards.tmp")  # Killed before it got its name.
    (parent / ".mixed_epoch_0_iter_4.123.shards.tmp").mkdir()  # Killed while it was deleted.
    folder.rename(parent / f".{folder.name}.old")  # Killed while it was replaced.
    (parent / ".mine.old").mkdir()
    files.remove_half_written(parent)
    assert sorted(path.name for path in parent.iterdir()) == [".mine.old", folder.name]
    shutil.copytree(folder, parent / f".{folder.name}.old")
    files.remove_half_written(parent)
    assert sorted(path.name for path in parent.iterdir()) == [".mine.old", folder.name]
    assert naming.find(parent, "mixed") == [folder]


def test_a_folder_replaces_one_of_the_same_name(folder: Path) -> None:
    temporary = files.temporary_folder(folder)
    shutil.copytree(folder, temporary)
    (temporary / "new").touch()
    files.publish_folder(temporary, folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "new").exists()


def test_files_and_folders_are_found_together_newest_first(folder: Path) -> None:
    parent = folder.parent
    for name in ("mixed_epoch_0_iter_2.pth", "mixed_epoch_1_iter_4.pth", "mixed_epoch_0_iter_1_mine.txt"):
        (parent / name).touch()
    (parent / "mixed_epoch_0_iter_9_plots").mkdir()
    shutil.copytree(folder, parent / "mixed_epoch_0_iter_3_loss=0.5")
    assert [path.name for path in naming.find(parent, "mixed")] == [
        "mixed_epoch_1_iter_4.pth",
        "mixed_epoch_0_iter_3_loss=0.5",
        "mixed_epoch_0_iter_3",
        "mixed_epoch_0_iter_2.pth",
    ]
