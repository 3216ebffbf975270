"""Checkpoints of sharded tensors, written and read by `torch.distributed.checkpoint` (DCP).

A sharded checkpoint is a folder. `main.pth` is a checkpoint file with a marker in place of every sharded tensor, and
with the places of these tensors. The other files are DCP's: those of each rank with its parts of the tensors, and
`.metadata`, which says again where each part is. That file is a pickle, so it is written for DCP's own tools and never
read. The import of DCP takes half a second, so this module is imported where it is used.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.sharded_content import ShardedTensors, marked_names, replace_markers
from helios_lite.file_errors import naming as naming_file
from helios_lite.processes.devices import pins_memory
from helios_lite.processes.world import World

Places = dict[str, dict[str, Any]]
"""Where sharded tensors are, as plain data: by name the "shape", the "dtype" and the "chunks" of a tensor.

It also has the "dim" along which a tensor is sharded, if that is not the first: None of one that every rank has. A
chunk is (offsets in the tensor, shape, name of a file in the folder, first byte, number of bytes) of an archive.
"""
_PLACES = "sharded"
"""The key of the places in main.pth. The archives in the other files have checksums of their own."""


class ShardWriter:
    """Writes the sharded tensors of a checkpoint, all ranks in parallel. Call every method on every rank.

    The ranks communicate in a process group of their own, so that a write in the background does not disturb the
    training. It is made at the first save.

    Args:
        world: the ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._stager: DefaultStager | None = None
        self._saving: Future[Any] | None = None

    def write(
        self, sharded: ShardedTensors, folder: Path, publish: Callable[[Places], object], *, background: bool
    ) -> None:
        """Write DTensors into a new folder.

        Args:
            sharded: the tensors, with the same names in the same order on every rank.
            folder: the folder; all ranks must see the same.
            publish: called on rank 0 with the places of the tensors when the parts of all ranks are durable.
            background: copy to CPU memory, and write while the program goes on, until `join`.

        Raises:
            RuntimeError: the ranks have different tensors.
            Exception: the error of the first rank that failed, or that of `publish`, on every rank. For a write in the
                background `join` raises it.
        """
        group = _own_group()
        stored_as = self._world.broadcast(sharded.stored_as)
        if list(stored_as) != list(sharded.tensors):
            raise RuntimeError(
                f"rank {self._world.rank} has other sharded tensors than rank 0 ({len(sharded.tensors)} and "
                f"{len(stored_as)}): networks and optimizers must be alike on every rank"
            )
        options = {
            "storage_writer": _FolderWriter(folder, lambda places: publish(_with_dims(places, sharded.tensors))),
            "planner": DefaultSavePlanner(flatten_state_dict=False),
            "process_group": group,
        }
        distinct = {name: tensor.detach() for name, tensor in sharded.tensors.items() if stored_as[name] == name}
        if background:
            if self._stager is None:
                pins = any(pins_memory(tensor.device) for tensor in distinct.values())
                self._stager = DefaultStager(StagingOptions(pins, False, False, pins))
            self._saving = async_save(distinct, async_stager=self._stager, **options)  # type: ignore[assignment]
        else:
            with _first_failure():
                save(distinct, **options)

    def join(self) -> None:
        """Wait for the write in the background, and raise its error, if any."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with _first_failure():
                saving.result()


class _FolderWriter(FileSystemWriter):
    """Writes the files of a folder, and calls a function on rank 0 when all of them are durable."""

    def __init__(self, folder: Path, publish: Callable[[Places], object]) -> None:
        # Without looking ahead, for which a thread in the background would use the first device of the machine.
        super().__init__(folder, sync_files=True, per_thread_copy_ahead=0)
        self._publish = publish

    def storage_meta(self) -> StorageMeta:
        """Return no path: a folder may be moved."""
        return StorageMeta()

    def write_data(self, plan: Any, planner: Any) -> Any:
        with naming_file(Path(self.path), when_full=files.WHEN_FULL):
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        self._publish(_places(metadata))


class _FolderReader(FileSystemReader):
    """Reads tensors from the files of a folder after comparing their checksums, by metadata made from places."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def read_data(self, plan: Any, planner: Any) -> Any:
        for index in {item.storage_index: None for item in plan.items}:
            place = self.storage_data[index]
            path = Path(self.path) / place.relative_path
            with files.explained(path), path.open("rb") as file:
                file.seek(place.offset)
                # torch.load does not compare the checksums of tensors.
                with zipfile.ZipFile(io.BytesIO(file.read(place.length))) as archive:
                    damaged = archive.testzip()
                if damaged is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of {index.fqn}")
        return super().read_data(plan, planner)


@contextlib.contextmanager
def _first_failure() -> Iterator[None]:
    """A context in which DCP's collection of the errors of all ranks is raised as the first of them."""
    try:
        yield
    except CheckpointException as error:
        first, _ = error.failures[min(error.failures)]
        raise first from error


@functools.cache
def _own_group() -> Any:
    """Return a process group for saves alone. Call on every rank."""
    atexit.register(_own_group.cache_clear)  # Runs before the groups are destroyed, which must hold the last reference.
    return dist.new_group(backend="gloo")


def _places(metadata: Metadata) -> Places:
    """Return what the metadata of a checkpoint of tensors says, as plain data."""
    places: Places = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)  # `ShardWriter.write` takes no others.
        stored = [metadata.storage_data[MetadataIndex(name, chunk.offsets)] for chunk in entry.chunks]
        places[name] = {
            "shape": tuple(entry.size),
            "dtype": entry.properties.dtype,
            "chunks": [
                (tuple(chunk.offsets), tuple(chunk.sizes), place.relative_path, place.offset, place.length)
                for chunk, place in zip(entry.chunks, stored, strict=True)
            ],
        }
    return places


def _with_dims(places: Places, tensors: dict[str, Tensor]) -> Places:
    """Add the dimensions along which tensors are sharded."""
    for name, place in places.items():
        dim = getattr(tensors[name].placements[-1], "dim", None)  # type: ignore[attr-defined]
        if dim != 0:
            place["dim"] = dim
    return places


def _metadata(places: Places) -> Metadata:
    """Return the metadata that `_places` has been made of, with the dimensions by name in "planner_data".

    Raises:
        Exception: the places are not those of whole tensors in files of the folder. A tensor of which a part has no
            place would keep what was in its memory.
    """
    tensors: dict[str, Any] = {}
    storage, dims = {}, {}
    for name, entry in places.items():
        shape, dtype, chunks = torch.Size(entry["shape"]), entry["dtype"], []
        dims[name] = entry.get("dim", 0)
        if dims[name] is not None and dims[name] not in range(len(shape)):
            raise ValueError(f"{name!r} has no dimension {dims[name]}")
        for offsets, sizes, file, start, length in entry["chunks"]:
            chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            is_inside = all(0 <= a <= a + n <= end for a, n, end in zip(offsets, sizes, shape, strict=True))
            is_in_file = file == PurePath(file).name and start >= 0 and length >= chunk.sizes.numel() * dtype.itemsize
            if not is_inside or not is_in_file:
                raise ValueError(f"a part of {name!r} is outside of the tensor or of the file")
            chunks.append(chunk)
            storage[MetadataIndex(name, chunk.offsets)] = _StorageInfo(file, start, length)
        if sum(chunk.sizes.numel() for chunk in chunks) != shape.numel():
            raise ValueError(f"the parts of {name!r} are not the whole tensor")
        tensors[name] = TensorStorageMetadata(TensorProperties(dtype), shape, chunks)
    return Metadata(tensors, dims, storage_data=storage)


def write_main(content: dict[str, Any], places: Places, folder: Path) -> None:
    """Write `main.pth`, after the other files of a folder; then the folder holds a complete checkpoint.

    Args:
        content: what `files.to_serializable` has returned.
        places: the places of the sharded tensors.
        folder: the folder.

    Raises:
        OSError: as `files.write_file`.
    """
    files.write_serializable({**content, _PLACES: places}, folder / naming.MAIN)


def read_main(folder: Path) -> tuple[dict[str, Any], Metadata]:
    """Return the content of `main.pth`, with markers, and the metadata of the tensors; check the sizes of the files.

    Raises:
        FileNotFoundError: the folder does not exist.
        CheckpointError: a file is missing, damaged, too short, unsafe or of another format.
    """
    if not folder.is_dir():
        raise FileNotFoundError(2, os.strerror(2), str(folder))
    main = folder / naming.MAIN
    if not main.is_file():
        raise files.CheckpointError(f"{folder}: {naming.MAIN} is missing")
    content = files.read_file(main)
    with files.explained(main):
        metadata = _metadata(content.pop(_PLACES))
    ends: dict[str, int] = {}
    for place in metadata.storage_data.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size < end:
            raise files.CheckpointError(f"{path}: is {'too short' if path.is_file() else 'missing'}")
    for name in marked_names(content):
        if name not in metadata.state_dict_metadata:
            raise files.CheckpointError(f"{folder}: has no tensor {name!r}")
    return content, metadata


def _shape_and_dtype(metadata: Metadata, name: str) -> tuple[torch.Size, torch.dtype]:
    entry = metadata.state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata)  # `_metadata` makes no others.
    return entry.size, entry.properties.dtype


def read_parts(
    folder: Path, content: dict[str, Any], metadata: Metadata, like: Tensor, is_needed: Callable[[str], bool]
) -> dict[str, Any]:
    """Return the content of a sharded checkpoint with tensors of which each rank has read its part. Call on every rank.

    Args:
        folder: the folder; all ranks must see the same.
        content: the content of `main.pth`.
        metadata: the metadata of the tensors.
        like: a DTensor; those of the checkpoint get its device mesh, and are sharded over the last dimension of it.
        is_needed: tells by the name of a tensor whether it is read; the others keep their markers.

    Raises:
        CheckpointError: a rank has found a damaged tensor; raised on every rank.
    """
    from torch.distributed.tensor import Replicate, Shard, empty

    mesh = like.device_mesh  # type: ignore[attr-defined]
    tensors: dict[str, Any] = {}
    for name in filter(is_needed, marked_names(content)):
        shape, dtype = _shape_and_dtype(metadata, name)
        dim = metadata.planner_data[name]
        placements = (*[Replicate()] * (mesh.ndim - 1), Replicate() if dim is None else Shard(dim))
        tensors[name] = empty(*shape, dtype=dtype, device_mesh=mesh, placements=placements)
    with files.explained(folder / naming.MAIN), _first_failure():
        load(
            tensors,
            storage_reader=_FolderReader(folder, metadata),
            planner=DefaultLoadPlanner(flatten_state_dict=False),
        )
    full: dict[str, Any] = replace_markers(content, tensors)
    return full


def read_full(folder: Path) -> dict[str, Any]:
    """Return the content of a sharded checkpoint with full tensors in CPU memory, which this process reads by itself.

    Raises:
        FileNotFoundError, CheckpointError: as `read_main`, or a tensor is damaged.
    """
    content, metadata = read_main(folder)
    tensors: dict[str, Any] = {}
    for name in marked_names(content):
        shape, dtype = _shape_and_dtype(metadata, name)
        tensors[name] = torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings(), files.explained(folder / naming.MAIN), _first_failure():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)  # That is what is meant.
        load(
            tensors,
            storage_reader=_FolderReader(folder, metadata),
            planner=DefaultLoadPlanner(flatten_state_dict=False),
            no_dist=True,
        )
    full: dict[str, Any] = replace_markers(content, tensors)
    return full
