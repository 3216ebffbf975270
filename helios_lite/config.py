"""Runs from TOML files and dicts, which describe the Trainer, the model and the data by classes and arguments.

    [trainer]
    max_epochs = 40

    [model]
    class = "digits.Digits"
    width = 32

    [data]
    class = "digits.DigitsData"

The table `[trainer]` holds the options of `helios_lite.Trainer`. The tables `[model]` and `[data]` hold `class`, which
is the import path of a subclass of Model or DataModule, and the arguments of its constructor. A table inside them that
has `class`, such as each of `[[trainer.callbacks]]`, becomes an object too. That class must be a Callback, a logger, a
dataset, a sampler, a Split, an `nn.Module`, a Model, a DataModule, or of a class in the annotation of the argument. Any
other class or function needs the key `call` in place of `class`. A table with neither becomes a dict. A class may be
defined in a module in the folder of the file. `fit_from_config` takes the same tables as a dict.

A file is a program: modules that it names are imported, and what it names is called. Whoever may write the file may
run any code, as with a Python script. Read a file from someone else before you run it.

The table `[audit]` is for `helios-lite audit` only: its list `accept` names relations that are broken by intention.

TOML has no null: if the annotation of an argument allows None, the string "none" means None. Relative paths, such as
`trainer.root`, are relative to the working directory of the program.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helios_lite.arguments import did_you_mean, require_kind, require_path
from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.object_tables import (
    ConfigError,
    ConfigTypeError,
    build,
    build_object,
    import_from,
    import_object,
    is_subclass,
    unknown_message,
)
from helios_lite.option_class import option_hint
from helios_lite.processes.tracebacks import ShortTraceback
from helios_lite.state import FitResult
from helios_lite.trainer import Trainer

_TABLES = ("trainer", "model", "data")
_OF_TOOLS = ("audit",)  # Tables that tools read, and a training does not.
__all__ = ["ConfigError", "ConfigTypeError", "fit_from_config", "fit_from_file", "load"]


def fit_from_file(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> FitResult:
    """Train the model that a TOML file describes, or resume its training if it was stopped.

    Args:
        path: the path of the file.
        overrides: values that replace values of the file or are added to them, by full key, such as
            `{"trainer.max_epochs": 3}`. The index of an element of a list is part of its key:
            "trainer.callbacks.0.decay".

    Raises:
        FileNotFoundError, ConfigError, Exception: see `load`.
        Exception: see `Trainer.fit`.
    """
    return Trainer.fit(*load(path, overrides))


def fit_from_config(config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> FitResult:
    """Train the model that a dict describes, or resume its training if it was stopped.

    The dict has the tables of a TOML file: `{"trainer": {...}, "model": {"class": ..., ...}, "data": {"class": ...}}`.
    The table "trainer" may be what `Trainer.config` returned, such as the one in `config.json` of a run. Modules are
    found through `sys.path`, and the string "none" is no None. A dict is a program as a file is: it names code to
    import and to call.

    Args:
        config: the tables by name.
        overrides: values that replace values of the dict or are added to them, see `fit_from_file`.

    Raises:
        ConfigError, Exception: see `load`.
        Exception: see `Trainer.fit`.
    """
    with ShortTraceback():
        return Trainer.fit(*_build_all(config, overrides, None))


def load(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> tuple[Trainer, Model, DataModule]:
    """Return the trainer, the model and the data that a TOML file describes, or that a function in a Python file makes.

    The folder of the file becomes the first entry of `sys.path`, as for a script, and is not removed.

    Args:
        path: the path of a TOML file; or that of a Python file, which may end with ":" and the name of a function
            without arguments that returns (Trainer, Model, DataModule) anew, by default "make".
        overrides: values that replace values of the file or are added to them, see `fit_from_file`. Of a Python file
            they can replace options of the trainer only.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file is not a TOML file, a key is unknown or missing, or a value is invalid. This is a
            ValueError.
        ConfigTypeError: a value has a wrong type. This is a ConfigError and a TypeError.
        Exception: the import of a module or a constructor failed. The error of a constructor has a note that names
            the table.
    """
    require_path("path", path)
    path, function = split_function(path)
    folder = path.resolve().parent
    if function:
        return _make(path, function, overrides or {})
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    _add_to_path(folder)
    with ShortTraceback():
        return _build_all(tables, overrides, folder)


def split_function(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Return the path of a file, and the name of the function that makes a program, "" if it is no Python file."""
    text = os.fspath(path)
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py") and function.isidentifier():
        return Path(file), function
    return Path(text), "make" if text.endswith(".py") else ""


def _make(path: Path, function: str, overrides: Mapping[str, Any]) -> tuple[Trainer, Model, DataModule]:
    """Return what a function in a Python file returns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    for key in overrides:
        if key.count(".") != 1 or not key.startswith("trainer."):
            raise ConfigError(f"{key}: {path} makes this itself; only options of the trainer can be replaced")
    folder = path.resolve().parent
    _add_to_path(folder)
    with ShortTraceback():
        module = import_from(folder, path.stem, str(path))
        make = getattr(module, function, None)
        if not callable(make):
            functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
            raise ConfigError(f"{path}: has no function {function!r}; {did_you_mean(function, functions)}")
        made = make()
        kinds = (Trainer, Model, DataModule)
        is_three = isinstance(made, tuple | list) and len(made) == len(kinds)
        if not is_three or not all(isinstance(part, kind) for part, kind in zip(made, kinds, strict=True)):
            raise ConfigTypeError(f"{path}:{function}: must return (Trainer, Model, DataModule), but returned {made!r}")
        trainer, model, data = made
        values = {key.partition(".")[2]: None if value == "none" else value for key, value in overrides.items()}
        try:
            return dataclasses.replace(trainer, **values), model, data
        except (TypeError, ValueError) as error:
            raise ConfigError(f"trainer.{error}") from error


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _build_all(
    tables: Mapping[str, Any], overrides: Mapping[str, Any] | None, folder: Path | None
) -> tuple[Trainer, Model, DataModule]:
    """Return the trainer, the model and the data; `folder` is that of a TOML file, None for a dict."""
    require_kind("config", tables, Mapping, "a dict of tables")
    if overrides is not None:
        require_kind("overrides", overrides, Mapping, "a dict of values by full key, or None")
    for key, value in (overrides or {}).items():
        tables = _replace(tables, key.split("."), value, key)
    for name, table in tables.items():
        if name in _OF_TOOLS:
            continue
        if name not in _TABLES:
            raise ConfigError(unknown_message(name, _TABLES))
        if not isinstance(table, dict):
            raise ConfigTypeError(f"{name}={table!r}: must be a table")
    trainer = build(Trainer, tables.get("trainer", {}), "trainer", folder, option_hint)
    parts = []
    for name, required in (("model", Model), ("data", DataModule)):
        if "class" not in tables.get(name, {}):
            raise ConfigError(f"{name}.class: missing")
        target = import_object(tables[name]["class"], f"{name}.class", folder)
        if not is_subclass(target, (required,)):
            raise ConfigTypeError(f"{name}.class={tables[name]['class']!r}: must be a subclass of {required.__name__}")
        parts.append(build_object(target, tables[name], "class", name, folder))
    return trainer, *parts


def _replace(part: Any, path: list[str], value: Any, key: str) -> Any:
    """Return a copy of a table or list in which one value is replaced or added."""
    if not path:
        return value
    name, *rest = path
    if isinstance(part, list):
        if name not in map(str, range(len(part))):
            raise ConfigError(f"{key}: {name!r} is none of the numbers of a list of {len(part)}")
        return [_replace(item, rest, value, key) if str(i) == name else item for i, item in enumerate(part)]
    if not isinstance(part, dict):
        raise ConfigTypeError(f"{key}: {part!r} is no table, it has no {name!r}")
    return {**part, name: _replace(part.get(name, {}), rest, value, key)}
