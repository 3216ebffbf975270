"""Predicting: what comes, in which order, what the caller sees of it, and the file."""

import gc
import inspect
import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.compare import same
from helpers.models import Indices, Plain, Tiny, data, quiet
from helpers.processes import deadline
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helios_lite import DataModule, Split
from helios_lite.callbacks import EMA, Callback


class Noisy(Plain):
    """Predicts its input, random numbers and how it was called; fails at a batch if it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at

    def predict_step(self, batch: Any, step: int) -> Any:
        if step == self.fails_at:
            raise LookupError(f"batch {step}")
        index, x = batch
        return {"index": index, "out": (self.net(x), torch.rand(len(x))), "step": torch.full_like(index, step)}


def predict_split(length: int = 10, **options: Any) -> DataModule:
    return DataModule(predict=Split(Indices(length), **{"batch_size": 4, **options}))


def test_each_sample_is_predicted_once_in_order_by_the_only_network() -> None:
    model = Tiny()
    datamodule = DataModule(test=DataLoader([torch.full((3,), float(i)) for i in range(5)], batch_size=2))
    found = list(quiet().predict(model, datamodule, checkpoint=None))
    assert [indices.tolist() for indices, _ in found] == [[0, 1], [2, 3], [4]]
    model.eval()
    for indices, output in found:
        assert torch.equal(output, model.net(indices[:, None].expand(-1, 3).float()))
    assert not any(output.requires_grad for _, output in found)


def test_indices_are_those_of_the_dataset_and_predict_goes_before_test() -> None:
    datamodule = DataModule(test=Split(Indices(3), 1), predict=Split(Indices(10), 4, sampler=[7, 2, 9, 0, 1]))
    found = list(quiet().predict(Noisy(), datamodule))
    assert [indices.tolist() for indices, _ in found] == [[7, 2, 9, 0], [1]]
    assert [output["index"].tolist() for _, output in found] == [[7, 2, 9, 0], [1]]


def test_the_indices_of_a_batch_are_no_part_of_those_of_the_epoch() -> None:
    datamodule = DataModule(predict=Split(TensorDataset(torch.rand(50, 3)), batch_size=8))
    found = [indices for indices, _ in quiet(max_epochs=1).predict(Tiny(), datamodule, checkpoint=None)]
    assert torch.cat(found).tolist() == list(range(50))
    assert [indices.untyped_storage().nbytes() for indices in found] == [64] * 6 + [16]


def test_nothing_of_a_prediction_is_seen_by_the_code_between_its_outputs() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    predictions = quiet().predict(Noisy(), predict_split(length=16))
    first = next(predictions)  # Sets the model up, which seeds.
    torch.manual_seed(3)
    seen, found = [], [first[1]["out"][1]]
    for _, output in predictions:
        seen.append(torch.rand(1))
        found.append(output["out"][1])
        assert torch.is_grad_enabled()
    assert torch.equal(torch.cat(seen), expected[:3])
    undisturbed = [output["out"][1] for _, output in quiet().predict(Noisy(), predict_split(length=16))]
    assert same(found, undisturbed)
    assert len({values[0].item() for values in found}) == 4


class Noting(Callback):
    """Notes what is called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_predicting_start(self) -> None:
        self.calls.append(f"start {torch.is_grad_enabled()} {self.model.net.training}")

    def on_predicting_end(self) -> None:
        self.calls.append("end")


def test_a_caller_that_takes_no_more_ends_the_prediction() -> None:
    noting, datamodule = Noting(), predict_split()
    datamodule.teardown = lambda: noting.calls.append("teardown")  # type: ignore[method-assign]
    trainer = quiet(callbacks=[noting])
    predictions = trainer.predict(Noisy(), datamodule)
    assert noting.calls == []
    next(predictions)
    with pytest.raises(RuntimeError, match="is running in this process"):
        trainer.test(Plain(), data())
    predictions.close()  # type: ignore[attr-defined]
    assert noting.calls == ["start False False", "end", "teardown"]
    assert len(list(trainer.predict(Noisy(), predict_split()))) == 3


def test_an_exception_comes_after_what_was_predicted_before_it() -> None:
    predictions = quiet().predict(Noisy(fails_at=1), predict_split())
    next(predictions)
    with pytest.raises(LookupError, match="batch 1"):
        next(predictions)


def test_averaged_weights_predict_as_they_are_tested(tmp_path: Path) -> None:
    ema, model = EMA(decay=0.5), Tiny()
    trainer = quiet(root=tmp_path, max_epochs=1, callbacks=[ema])
    trainer.fit(model, data())
    trained = model.net[0].weight.clone()
    for checkpoint in (None, "best"):
        (_, output), *_ = trainer.predict(model, DataModule(predict=[torch.ones(1, 3)]), checkpoint=checkpoint)
        ema.averaged.eval()
        assert torch.equal(output, ema.averaged(torch.ones(1, 3)))
        if checkpoint is None:
            assert torch.equal(model.net[0].weight, trained)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class TwoNetworks(Plain):
    def setup(self, fast_init: bool = False) -> None:
        self.net, self.teacher = nn.Linear(3, 1), nn.Linear(3, 1)


class Logging(Plain):
    def predict_step(self, batch: Any, step: int) -> Any:
        self.log("x", 1)


@pytest.mark.parametrize(
    ("model", "datamodule", "error", "match"),
    [
        (Plain(), DataModule(train=[1]), ValueError, "no predict split, and no test split"),
        (Plain(), DataModule(test={"a": [1], "b": [2]}), ValueError, "the test split is a dict of splits: assign one"),
        (Plain(), DataModule(predict={"a": [1]}), TypeError, "the predict split is a dict: it must be one Split"),
        (Plain(), DataModule(predict=Indices(3)), TypeError, r"it must be Split\(dataset, batch_size"),
        (TwoNetworks(), DataModule(predict=[torch.ones(1, 3)]), NotImplementedError, r"2 networks \(net, teacher\)"),
        (Plain(), DataModule(predict=[{"x": torch.ones(1, 3)}]), TypeError, "needs a predict_step: .* this is a dict"),
        (Logging(), DataModule(predict=[1]), RuntimeError, "not in process_metrics or predict_step"),
    ],
)
def test_what_cannot_be_predicted_is_an_error_that_says_what_to_do(
    model: Any, datamodule: DataModule, error: Any, match: str
) -> None:
    with pytest.raises(error, match=match):
        next(quiet().predict(model, datamodule))


def test_a_file_has_all_outputs_and_their_indices(tmp_path: Path) -> None:
    path = tmp_path / "new" / "predictions.pth"
    quiet().write_predictions(Noisy(), predict_split(sampler=[9, 8, 7, 0, 1]), path)
    content = torch.load(path, weights_only=True)
    found = list(quiet().predict(Noisy(), predict_split(sampler=[9, 8, 7, 0, 1])))
    assert content["indices"].tolist() == content["outputs"]["index"].tolist() == [9, 8, 7, 0, 1]
    assert isinstance(content["outputs"]["out"], tuple)
    assert torch.equal(content["outputs"]["out"][0], torch.cat([output["out"][0] for _, output in found]))
    assert [each.name for each in path.parent.iterdir()] == ["predictions.pth"]


class Returning(Plain):
    """Returns what a function makes of the indices."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def predict_step(self, batch: Any, step: int) -> Any:
        return self.function(batch[0], step)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda index, step: (index > 4)[:, None], torch.tensor([[False]] * 5 + [[True]] * 5)),
        (lambda index, step: [index.bfloat16()], [torch.arange(10).bfloat16()]),
        (lambda index, step: Pair(index.expand(2, -1).T, index[:, None][:, :0]),
         {"x": torch.arange(10).expand(2, -1).T, "y": torch.empty(10, 0, dtype=torch.int64)}),
    ],
)  # fmt: skip
def test_a_file_takes_tensors_of_any_dtype_and_layout(tmp_path: Path, function: Any, expected: Any) -> None:
    quiet().write_predictions(Returning(function), predict_split(), tmp_path / "p.pth")
    assert same(torch.load(tmp_path / "p.pth", weights_only=True)["outputs"], expected)


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda index, step: {"text": "a"}, TypeError, r"returned a str \(output\['text'\]\)"),
        (lambda index, step: index.sum(), ValueError, r"output has the shape \(\) for a batch of 4 samples"),
        (lambda index, step: index[:1].expand(step + 3), ValueError, r"the shape \(3,\) for a batch of 4"),
        (
            lambda index, step: index[:, None].expand(-1, step + 1),
            ValueError,
            r"\(samples, 2\), and was .* 1\)",
        ),
        (lambda index, step: {f"a{step}": index}, ValueError, r"\[\"output\['a1'\]\"\] for a batch"),
        (lambda index, step: {}, ValueError, "no tensor"),
    ],
)
def test_what_a_file_cannot_hold_is_named_and_leaves_the_earlier_file(
    tmp_path: Path, function: Any, error: Any, match: str
) -> None:
    path = tmp_path / "p.pth"
    path.write_bytes(b"earlier")
    with pytest.raises(error, match=match) as caught:
        quiet().write_predictions(Returning(function), predict_split(), path)
    generators = [each for each in gc.get_objects() if inspect.isgenerator(each) and each.gi_code.co_name == "_run"]
    assert caught.traceback
    assert not any(each.gi_frame for each in generators)  # None is left to end when the garbage is collected.
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("p.pth", b"earlier")]


def test_a_folder_in_place_of_the_file_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="give the path of the file"):
        quiet().write_predictions(Noisy(fails_at=0), predict_split(), tmp_path)


# Several processes.


@pytest.fixture
def ended() -> Iterator[None]:
    with deadline(120):
        yield
    assert multiprocessing.active_children() == []


def test_launched_processes_write_the_file_of_one_process(
    tmp_path: Path, ended: None, caplog: pytest.LogCaptureFixture
) -> None:
    model = Noisy()
    for devices in (2, 1):
        path = tmp_path / f"{devices}.pth"
        quiet(devices=devices, accelerator="cpu").write_predictions(model, predict_split(21, shuffle=True), path)
        assert not model.net.training  # It was set up here too.
    one, two = (torch.load(tmp_path / f"{devices}.pth", weights_only=True) for devices in (1, 2))
    assert same(one, two)
    shapes = (
        "output['index'] int64 of shape (21,), output['out'][0] float32 of shape (21, 1), "
        "output['out'][1] float32 of shape (21,), output['step'] int64 of shape (21,)"
    )
    assert caplog.messages == [f"wrote {tmp_path / f'{devices}.pth'}: 21 samples, {shapes}" for devices in (2, 1)]


class Counted(Dataset):
    """Samples with a trace of each that was read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        (self.folder / str(index)).touch()
        return index, torch.ones(3)


def test_launched_processes_wait_for_the_caller_and_end_with_it(tmp_path: Path, ended: None) -> None:
    trainer = quiet(devices=2, accelerator="cpu")
    predictions = trainer.predict(Noisy(), DataModule(predict=Split(Counted(tmp_path), batch_size=1)))
    found = [next(predictions)[0].item() for _ in range(9)]
    time.sleep(0.5)  # They would have read all of it by now.
    predictions.close()  # type: ignore[attr-defined]
    assert found == list(range(9))
    assert len(list(tmp_path.iterdir())) < 60


def test_an_exception_of_a_launched_process_reaches_the_caller_as_itself(ended: None) -> None:
    predictions = quiet(devices=2, accelerator="cpu").predict(Noisy(fails_at=3), predict_split(20))
    assert [next(predictions)[0][0] for _ in range(3)] == [0, 4, 8]
    with pytest.raises(LookupError, match="batch 3"):
        next(predictions)


class Filling(Plain):
    """Predicts what the disk of the temporary folder has no room for."""

    def predict_step(self, batch: Any, step: int) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return torch.zeros(100_000)


def test_a_temporary_folder_without_room_for_the_outputs_is_named(ended: None) -> None:
    with pytest.raises(OSError, match=r"\[Errno 27\] File too large: '.*/helios_lite-\w+/\d-0\.output'"):
        list(quiet(devices=2, accelerator="cpu").predict(Filling(), predict_split()))
