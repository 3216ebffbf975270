"""Memory maps that are sent to other processes: it is little, and what arrives is the same part of the file."""

import io
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from helios_lite import Split
from helios_lite.loading.loaders import make_loader
from helios_lite.processes import memory_maps

VIEWS = {
    "all": lambda map: map,
    "part": lambda map: map[5000:9000],
    "every third": lambda map: map[7::3],
    "backwards": lambda map: map[::-2, ::-1],
    "turned": lambda map: map.T[1:],
    "one row": lambda map: map[3],
    "other dtype": lambda map: map.view(np.uint8)[:, 3:],
    "read only": lambda map: read_only(map),
}


def read_only(map: np.ndarray) -> np.ndarray:
    part = map[1:]
    part.flags.writeable = False
    return part


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "map.npy", np.arange(120_000, dtype=np.float32).reshape(30_000, 4))
    return tmp_path / "map.npy"


def sent(value: Any) -> tuple[Any, int]:
    """What arrives in a launched process, and how many bytes were written."""
    file = io.BytesIO()
    torch.save(value, file, memory_maps)
    file.seek(0)
    return torch.load(file, weights_only=False), len(file.getvalue())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_memory_map_is_sent_as_its_place_in_the_file(view: str, mode: str, path: Path) -> None:
    map = VIEWS[view](np.load(path, mmap_mode=mode))
    arrived, size = sent({"map": map, "tensor": torch.arange(3)})
    again, _ = sent(arrived)
    assert size < 4000
    for found in (arrived["map"], again["map"]):
        assert type(found) is np.memmap
        assert (found.dtype, found.shape, found.flags.writeable) == (map.dtype, map.shape, map.flags.writeable)
        assert (found == map).all()
    if mode == "r+" and view != "read only":
        map[0] = 7
        assert (again["map"][0] == 7).all()


def test_what_is_not_in_a_file_any_more_is_sent_as_a_copy(path: Path) -> None:
    changed = np.load(path, mmap_mode="c")
    changed[0] = -1
    kept = np.load(path, mmap_mode="r")
    for map in (changed, kept + 1, kept[kept > 3], kept[:0]):
        assert (sent(map)[0] == map).all()
    path.unlink()
    assert (sent(kept)[0] == kept).all()


class Sizes(Exception):
    pass


class Told(Dataset):
    """Says in an error how large its map would be, when a worker that is started gets it."""

    def __init__(self, path: Path) -> None:
        self.map = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.map)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.map[index]

    def __getstate__(self) -> object:
        raise Sizes(len(reduction.ForkingPickler.dumps(self.map)))


class ToldStream(Told, IterableDataset):
    def __iter__(self) -> Any:
        return iter(self.map)


@pytest.mark.parametrize("kind", [Told, ToldStream])
def test_workers_get_the_place_too_and_other_processes_of_the_program_are_left_alone(kind: type, path: Path) -> None:
    dataset = kind(path)
    before = len(reduction.ForkingPickler.dumps(dataset.map))
    loader = make_loader(Split(dataset, 2, num_workers=1, multiprocessing_context="spawn"), "train", 0)
    with pytest.raises(Sizes) as sizes:
        next(loader.epoch(0).batches)
    assert sizes.value.args[0] < 1000 < before
    assert len(reduction.ForkingPickler.dumps(dataset.map)) == before
