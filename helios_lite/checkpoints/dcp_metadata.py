"""Reads the `.metadata` file of `torch.distributed.checkpoint` without executing what an altered one might ask for.

The file is a pickle, and unpickling can call any function. Here every class and function that it names is replaced by a
class that only keeps what it is given; the metadata is made from that afterwards, with every value checked.
"""

from __future__ import annotations

import io
import pickle
from pathlib import PurePath
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_KNOWN = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    (_FILES, "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


class MetadataError(ValueError):
    """The bytes are not the metadata of a checkpoint of tensors; the message says why."""


def parse_metadata(data: bytes) -> Metadata:
    """Return the metadata of a checkpoint from the bytes of its file.

    Raises:
        MetadataError: the bytes name something else than the classes of metadata, a value has the wrong type, or an
            entry is not a tensor, so that it would have to be unpickled.
        Exception: the bytes are not a pickle.
    """
    root = _record(_RecordUnpickler(io.BytesIO(data)).load(), "Metadata")
    return Metadata(
        state_dict_metadata={
            _typed(name, str): _tensor(name, entry) for name, entry in _typed(root["state_dict_metadata"], dict).items()
        },
        storage_data={_index(index): _place(info) for index, info in _typed(root["storage_data"], dict).items()},
    )


class _Record:
    """What a pickle says about an object: the name of its class, the arguments, and the state.

    The class of each record is made for one file, since a pickle may also assign attributes of classes.
    """

    kind = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Record:
        self = super().__new__(cls)
        self.arguments, self.state = arguments, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RecordUnpickler(pickle.Unpickler):
    """Makes records of the classes of metadata, and refuses every other global name."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._classes: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            module, name = "pathlib", "Path"  # Where the checkpoint was written; not used.
        elif (module, name) not in _KNOWN:
            raise MetadataError(f"it names {module}.{name}, which is no class of metadata")
        if name not in self._classes:
            self._classes[name] = type(name, (_Record,), {"kind": name})
        return self._classes[name]


def _typed(value: Any, kind: Any) -> Any:
    if type(value) is not kind:
        raise MetadataError(f"there is a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _record(value: Any, kind: str) -> dict[str, Any]:
    """Return the attributes of a record of that kind."""
    if not isinstance(value, _Record) or type(value).__name__ != kind:
        raise MetadataError(f"there is a {type(value).__name__} in place of a {kind}")
    return _typed(value.state, dict)  # type: ignore[no-any-return]


def _size(value: Any) -> torch.Size:
    if not isinstance(value, _Record) or type(value).__name__ != "Size":
        raise MetadataError(f"there is a {type(value).__name__} in place of a size")
    (numbers,) = value.arguments
    if not all(type(number) is int and number >= 0 for number in _typed(numbers, tuple)):
        raise MetadataError("a size has other values than numbers from 0")
    return torch.Size(numbers)


def _tensor(name: str, entry: Any) -> TensorStorageMetadata:
    if isinstance(entry, _Record) and type(entry).__name__ == "BytesStorageMetadata":
        raise MetadataError(f"its entry {name!r} is not a tensor")
    state = _record(entry, "TensorStorageMetadata")
    properties = state["properties"]
    if not isinstance(properties, _Record) or type(properties).__name__ != "TensorProperties":
        raise MetadataError(f"the tensor {name!r} has no properties")
    dtype = _typed(_typed(properties.state, tuple)[0], torch.dtype)
    chunks = [_record(chunk, "ChunkStorageMetadata") for chunk in _typed(state["chunks"], list)]
    return TensorStorageMetadata(
        TensorProperties(dtype),
        _size(state["size"]),
        [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks],
    )


def _index(value: Any) -> MetadataIndex:
    state = _record(value, "MetadataIndex")
    index = state.get("index")
    return MetadataIndex(
        _typed(state["fqn"], str), _size(state["offset"]), None if index is None else _typed(index, int)
    )


def _place(value: Any) -> _StorageInfo:
    state = _record(value, "_StorageInfo")
    name = _typed(state["relative_path"], str)
    numbers = [_typed(state[key], int) for key in ("offset", "length")]
    if name != PurePath(name).name or min(numbers) < 0 or state.get("transform_descriptors"):
        raise MetadataError(f"the place {name!r} is not in a file of the folder")
    return _StorageInfo(name, *numbers)
