"""The command `diff`: planted differences between two runs are named, and equal runs are said to be equal."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Indices, quiet
from torch import nn

from helios_lite import Callback, DataModule, Model, Split
from helios_lite.checkpoints import files
from helios_lite.tools.command import main
from helios_lite.tools.diff import _difference


class Line(Model):
    """Each planted difference is an argument."""

    def __init__(self, rate: float = 0.1, *, nudge: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__("line")
        self.rate, self.nudge, self.dtype = rate, nudge, dtype

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(nn.Linear(3, 1).to(self.dtype))
        if self.nudge is not None:
            with torch.no_grad():
                self.net.weight[0, self.nudge] += 1e-4
        if not fast_init:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=self.rate)

    def train_step(self, batch: Any, state: Any) -> None:
        loss = (self.net(batch[1].to(self.dtype)) - 1).square().mean()
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)


class Known(Line):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__(rate)
        self.hparams["rate"] = rate


class OneOther(Indices):
    """One sample is another one."""

    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        return value if index != 7 else (index, value[1] + 1)


class LateOther(Indices):
    """A late sample is another one."""

    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        return value if index != 12 else (index, value[1] + 1)


class Backwards(Indices):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(self.length - 1 - index)


def train(
    root: Path, model: Model | None = None, dataset: Any = None, *, split: Any = None, threads: int = 1, **options: Any
) -> Path:
    """Train a model, and return the run folder."""
    split = {"batch_size": 4, "shuffle": True, **(split or {})}
    options = {"max_steps": 8, "log_every_steps": 1, "save_every_steps": 4, "keep_last": -1, **options}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = DataModule(train=Split(dataset or Indices(16), **split))
        quiet(root=root, run_name="run", **options).fit(model or Line(), data)
    finally:
        torch.set_num_threads(before)
    return root / "run"


@pytest.fixture(scope="module")
def first(tmp_path_factory: Any) -> Path:
    return train(tmp_path_factory.mktemp("first"))


def told(capsys: Any, a: Path, b: Path) -> tuple[int, str]:
    """Return the exit status, and what the command has printed, with spaces in place of breaks and of columns."""
    capsys.readouterr()
    status = 0
    try:
        main(["diff", str(a), str(b)])
    except SystemExit as end:
        status = int(end.code or 0)
    return status, " ".join(capsys.readouterr().out.split())


def planted() -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Return what differs in the second run, and what must be told of it, by the name of the difference."""
    loss = "metrics.jsonl: equal up to step 0; at step 1 train/loss is"
    weight = "checkpoints: at step 4 model.net.weight differs in 3 of 3 elements, by at most "
    return {
        "seed": (
            {"seed": 1},
            [
                "trainer.seed 0 1",
                loss,
                weight,
                "most likely initial weights: those of the first start differ, by trainer",
                "or data: other samples were read, or in another order, by trainer.seed",
            ],
        ),
        "rate": ({"model": Line(0.2)}, ["equal up to step 0; at step 1 train/lr is 0.1 in A and 0.2 in B", weight]),
        "hparams": ({"model": Known(0.2)}, ["hparams.rate 0.2", "at step 1 train/lr is"]),
        "one weight": (
            {"model": Line(nudge=2)},
            [
                loss,
                "what differs besides: the weights",
                weight,
                "most likely initial weights: those of the first start",
            ],
        ),
        "one sample": ({"dataset": OneOther(16)}, ["'Indices' 'OneOther'", "of A read the samples", " 7"]),
        "option": ({"clip_norm": 0.001}, ["trainer.clip_norm None 0.001", weight, "likely options: trainer.clip"]),
        "order": ({"split": {"shuffle": False}}, ["data.train.shuffle True False", loss]),
        "another order of the data": ({"dataset": Backwards(16)}, ["data.train.dataset 'Indices' 'Backwards'", loss]),
        "batch size": (
            {"split": {"batch_size": 8}},
            ["data.train.batch_size 4 8", "metrics.jsonl: equal up to step 0"],
        ),
        "length": ({"dataset": Indices(20)}, ["data.train.samples 16 20", "metrics.jsonl: equal up to step 0"]),
        "dtype": (
            {"model": Line(dtype=torch.float64)},
            ["checkpoints: at step 4 model.net.weight has dtype float32 in A and float64 in B"],
        ),
        "accumulation": ({"accumulation_steps": 2}, ["trainer.accumulation_steps 1 2"]),
        "threads": (
            {"threads": 2},
            ["environment.threads 1 2", "the runs are equal bit for bit in all that both have"],
        ),
        "length of the run": (
            {"max_steps": 6},
            ["trainer.max_steps 8 6", "equal up to step 6, where B ends; A goes on", "checkpoints: equal at step 4"],
        ),
        "log points": (
            {"log_every_steps": 2},
            ["trainer.log_every_steps 1 2", "equal at 4 steps that both have, up to step 8", "checkpoints: equal at"],
        ),
    }


SAME_BITS = {"threads", "length of the run", "log points"}


@pytest.mark.parametrize("name", planted())
def test_a_planted_difference_is_named(name: str, first: Path, tmp_path: Path, capsys: Any) -> None:
    options, texts = planted()[name]
    status, text = told(capsys, first, train(tmp_path, **options))
    for expected in texts:
        assert expected in text
    assert status == (name not in SAME_BITS)


def test_runs_without_a_common_step_are_not_called_equal(tmp_path: Path, capsys: Any) -> None:
    pairs = {"a": (4, 0, 8), "b": (3, 1, 6)}
    a, b = (
        train(
            tmp_path / name,
            dataset=Indices(64),
            log_every_steps=rows,
            seed=seed,
            max_steps=steps,
            save_every_steps=None,
        )
        for name, (rows, seed, steps) in pairs.items()
    )
    for path in [*a.glob("checkpoints/*"), *b.glob("checkpoints/*")]:
        path.unlink()
    status, text = told(capsys, a, b)
    assert status == 2
    assert text.endswith("the runs have no metrics of the same steps, and no checkpoints of the same step")


class Lagging(Line):
    """A metric and a buffer whose names end as those of what is measured with a clock."""

    def __init__(self, lag: float, memory: float = 1.0) -> None:
        super().__init__()
        self.lag, self.memory = lag, memory

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net.register_buffer("lag_seconds", torch.tensor(self.lag))

    def train_step(self, batch: Any, state: Any) -> None:
        super().train_step(batch, state)
        self.log("lag_seconds", self.lag)
        self.log("memory_mib", self.memory)  # As `DeviceMemory` does, whose mean over an epoch is measured too.


def test_only_what_the_trainer_measures_is_left_out(tmp_path: Path, capsys: Any) -> None:
    a = train(tmp_path / "a", Lagging(1.0))
    status, text = told(capsys, a, train(tmp_path / "b", Lagging(2.0)))
    assert status == 1
    assert "at step 1 train/lag_seconds is 1 in A and 2 in B" in text
    assert "at step 4 model.net.lag_seconds differs in 1 of 1 elements" in text
    status, text = told(capsys, a, train(tmp_path / "c", Lagging(1.0, memory=2.0)))
    assert status == 0, text


class Growing(DataModule):
    """The train split is another one in every epoch."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    def setup(self) -> None:
        self.train = Split(torch.utils.data.Subset(self.dataset, range(8)), batch_size=4, shuffle=True)

    def teardown(self) -> None:
        self.train = None


class Grow(Callback):
    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.datamodule.train = Split(
            torch.utils.data.Subset(self.datamodule.dataset, range(8 * current_epoch)), batch_size=4, shuffle=True
        )


class Skipping(Line):
    """The first windows overflow in fp16."""

    def train_step(self, batch: Any, state: Any) -> None:
        with self.autocast():
            loss = (self.net(batch[1]) - 1).square().mean() * 10
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)


def test_samples_are_not_named_where_it_is_not_known_which_they_were(tmp_path: Path, capsys: Any) -> None:
    for name in ("a", "b"):
        dataset = Indices(16) if name == "a" else LateOther(16)
        options = {"root": tmp_path / name, "log_every_steps": 1, "max_steps": 6}
        quiet(**options, run_name="grown", callbacks=[Grow()]).fit(Line(), Growing(dataset))
        data = DataModule(Split((Indices if name == "a" else Backwards)(64), batch_size=4, shuffle=True))
        quiet(**options, run_name="skipped", precision="fp16").fit(Skipping(1e-4), data)
    for run in ("grown", "skipped"):
        status, text = told(capsys, tmp_path / "a" / run, tmp_path / "b" / run)
        assert (status, "of A read the samples" in text) == (1, False)
        assert "train/loss is" in text


def test_equal_runs_are_said_to_be_equal_wherever_they_are(first: Path, tmp_path: Path, capsys: Any) -> None:
    status, text = told(capsys, first, train(tmp_path))
    assert status == 0
    assert "metrics.jsonl: 8 rows are equal, up to step 8" in text
    assert "checkpoints: equal at step 4, 8" in text
    assert text.endswith("the runs are equal bit for bit in all that both have")
    assert "trainer." not in text


def test_the_step_that_read_another_sample_is_the_one_that_is_named(first: Path, tmp_path: Path, capsys: Any) -> None:
    _, text = told(capsys, first, train(tmp_path, dataset=OneOther(16), max_steps=4))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed_of_epoch_0())).tolist()
    update = order.index(7) // 4 + 1
    samples = ", ".join(map(str, order[4 * update - 4 : 4 * update]))
    assert f"step {update} of A read the samples {samples} of its train split" in text


def test_the_samples_of_a_step_are_told_of_a_global_batch_size_too(tmp_path: Path, capsys: Any) -> None:
    split, options = {"batch_size": None, "global_batch_size": 8}, {"accumulation_steps": 2, "max_steps": 2}
    a, b = (
        train(tmp_path / name, dataset=dataset, split=split, **options)
        for name, dataset in (("a", Indices(16)), ("b", OneOther(16)))
    )
    _, text = told(capsys, a, b)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed_of_epoch_0())).tolist()
    update = order.index(7) // 8
    samples = ", ".join(map(str, order[8 * update : 8 * update + 8]))
    assert f"step {update + 1} of A read the samples {samples} of its train split" in text


def seed_of_epoch_0() -> int:
    from helios_lite.processes.rng import derive_seed

    return derive_seed(0, 0)


def test_the_sign_of_a_zero_and_a_nan_are_differences(first: Path, tmp_path: Path, capsys: Any) -> None:
    for name, change in {"zero": lambda x: x.copysign(-x), "nan": lambda x: x.log()}.items():
        other = tmp_path / name
        shutil.copytree(first, other)
        path = next(other.glob("checkpoints/*_iter_4*"))
        content = torch.load(path, weights_only=True)
        content["model"]["net"]["bias"] = change(torch.zeros(1)) * 1
        files.write_file(content, path)
        status, text = told(capsys, first, other)
        assert status == 1
        assert "at step 4 model.net.bias differs in 1 of 1 elements" in text


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints"])
def test_what_a_foreign_folder_lacks_or_has_damaged_is_told_in_a_line(
    name: str, first: Path, tmp_path: Path, capsys: Any
) -> None:
    other = tmp_path / "run"
    shutil.copytree(first, other)
    path = other / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, text = told(capsys, first, other)
    assert status == 0
    assert "the runs are equal" in text
    if name != "checkpoints":
        path.write_bytes(b'{"trainer": [[[\n{"step": "\x1b[2J"}\n')
        status, text = told(capsys, first, other)
        assert "\x1b" not in text


def test_a_damaged_checkpoint_is_named_and_all_else_compared(first: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "run"
    shutil.copytree(first, other)
    path = next(other.glob("checkpoints/*_iter_4*"))
    path.write_bytes(path.read_bytes()[:-1000])
    status, text = told(capsys, first, other)
    assert status == 2
    assert "8 rows are equal, up to step 8 checkpoints: equal at step 8 not compared: " in text
    assert path.name in text
    assert "the runs are equal bit for bit in the rest that both have" in text
    status, text = told(capsys, other, train(tmp_path / "other", seed=1, max_steps=4))
    assert status == 1
    assert "most likely initial weights" in text


def test_a_checkpoint_that_would_call_a_function_is_refused(first: Path, tmp_path: Path, capsys: Any) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "called",)

    other = tmp_path / "run"
    shutil.copytree(first, other)
    path = next(other.glob("checkpoints/*_iter_4*"))
    torch.save({"format": files.FORMAT_VERSION, "model": Evil()}, path, pickle_module=pickle)
    status, _ = told(capsys, first, other)
    assert status == 2
    assert not (tmp_path / "called").exists()


def test_names_with_control_characters_are_shown_escaped(first: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "run"
    shutil.copytree(first, other)
    rows = (other / "metrics.jsonl").read_text().splitlines()
    (other / "metrics.jsonl").write_text("".join(json.dumps({**json.loads(r), "\x1b[2J": 1.0}) + "\n" for r in rows))
    status, text = told(capsys, first, other)
    assert status == 1
    assert "'\\x1b[2J' is only in B (1.0)" in text


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_what_is_no_run_folder_is_wrong_usage(make: Any, first: Path, tmp_path: Path, capsys: Any) -> None:
    make(tmp_path / "other")
    status, _ = told(capsys, first, tmp_path / "other")
    assert status == 2


def test_json_has_the_keys_that_the_page_names(first: Path, tmp_path: Path, capsys: Any) -> None:
    other = train(tmp_path, seed=1, max_steps=4)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["diff", str(first), str(other), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert found.keys() == {"runs", "status", "options", "starts", "rows", "checkpoints", "causes"}
    assert (found["runs"], found["status"]) == ([str(first), str(other)], "differ")
    assert {"name": "trainer.seed", "a": "0", "b": "1"} in found["options"]
    assert found["starts"] == {name: [{"step": 0, "checkpoint": None}] for name in "ab"}
    for part in ("rows", "checkpoints"):
        assert found[part].keys() == {"text", "differs", "number", "equal_until", "step", "what", "relative", "unread"}
    rows = found["rows"]
    assert (rows["differs"], rows["number"], rows["equal_until"], rows["step"]) == (True, 1, 0, 1)
    assert rows["what"] == ["samples_digest", "batch_digest", "train/loss", "weights_digest"]
    assert [cause["kind"] for cause in found["causes"]] == ["initial weights", "data"]
    assert all(cause.keys() == {"kind", "text"} for cause in found["causes"])


@pytest.mark.filterwarnings("ignore")  # PyTorch is going to have another kind of them.
def test_quantized_tensors_are_compared_with_their_scales() -> None:
    def quantized(values: list[float], scale: float = 0.1) -> torch.Tensor:
        return torch.quantize_per_tensor(torch.tensor(values), scale, 0, torch.qint8)

    first = quantized([1.0, 2.0])
    assert _difference(first, quantized([1.0, 2.0])) is None
    for other in (quantized([1.0, 3.0]), quantized([1.0, 2.0], 0.2)):
        assert _difference(first, other) == "differs in its quantized elements, or in their scale"
