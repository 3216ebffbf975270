"""Runs from TOML files. A file describes the Trainer, the model and the data: the class of each, and its arguments.

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
defined in a module in the folder of the file.

A file is a program: modules that it names are imported, and what it names is called. Whoever may write the file may
run any code, as with a Python script. Read a file from someone else before you run it.

TOML has no null: if the annotation of an argument allows None, the string "none" means None. Relative paths, such as
`trainer.root`, are relative to the working directory of the program.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from torch import nn
from torch.utils.data import Dataset, Sampler

from helios_lite.callbacks import Callback
from helios_lite.data import DataModule, Split
from helios_lite.loggers import Logger
from helios_lite.model import Model
from helios_lite.state import FitResult
from helios_lite.trainer import Trainer

_TABLES = ("trainer", "model", "data")
_CLASSES: tuple[type, ...] = (Callback, Logger, Dataset, Sampler, Split, nn.Module, Model, DataModule)
_TYPE_NAMES = {int: "an int", float: "a number", str: "a str", bool: "true or false", NoneType: "None"}


class ConfigError(ValueError):
    """A configuration is invalid. The message begins with the full key, such as "trainer.max_epochs"."""


class ConfigTypeError(ConfigError, TypeError):
    """A value in a configuration has the wrong type."""


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


def load(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> tuple[Trainer, Model, DataModule]:
    """Return the trainer, the model and the data that a TOML file describes.

    The folder of the file becomes the first entry of `sys.path`, as for a script, and is not removed.

    Args:
        path: the path of the file.
        overrides: values that replace values of the file or are added to them, see `fit_from_file`.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file is not a TOML file, a key is unknown or missing, or a value is invalid. This is a
            ValueError.
        ConfigTypeError: a value has a wrong type. This is a ConfigError and a TypeError.
        Exception: the import of a module or a constructor failed. The error of a constructor has a note that names
            the table.
    """
    path = Path(path)
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    for key, value in (overrides or {}).items():
        tables = _replace(tables, key.split("."), value, key)
    for name, table in tables.items():
        if name not in _TABLES:
            raise ConfigError(_unknown_message(name, _TABLES))
        if not isinstance(table, dict):
            raise ConfigTypeError(f"{name}={table!r}: must be a table")

    folder = path.resolve().parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    trainer = _build(Trainer, tables.get("trainer", {}), "trainer", folder)
    parts = []
    for name, required in (("model", Model), ("data", DataModule)):
        if "class" not in tables.get(name, {}):
            raise ConfigError(f"{name}.class: missing")
        target = _import(tables[name]["class"], f"{name}.class", folder)
        if not _is_subclass(target, (required,)):
            raise ConfigTypeError(f"{name}.class={tables[name]['class']!r}: must be a subclass of {required.__name__}")
        parts.append(_build_object(target, tables[name], "class", name, folder))
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


def _build_value(value: Any, annotation: Any, key: str, folder: Path) -> Any:
    """Return a value in which every table with `class` or `call` is replaced by an object, at any depth.

    Args:
        value: the value.
        annotation: that of the argument. It may name classes that are accepted beside `_CLASSES`.
        key: the full key of the value.
        folder: the folder of the file.

    Raises:
        ConfigTypeError: a class is none of those that are accepted. It has not been called.
    """
    if isinstance(value, dict):
        if "class" in value:
            target = _import(value["class"], f"{key}.class", folder)
            if not _is_subclass(target, (*_CLASSES, *_classes_in(annotation))):
                names = ", ".join(accepted.__name__ for accepted in _CLASSES)
                raise ConfigTypeError(
                    f"{key}.class={value['class']!r}: must be a subclass of one of {names}, or of what the annotation "
                    "names; the key for any other class or function is `call`"
                )
            return _build_object(target, value, "class", key, folder)
        if "call" in value:
            return _build_object(_import(value["call"], f"{key}.call", folder), value, "call", key, folder)
        return {name: _build_value(item, annotation, f"{key}.{name}", folder) for name, item in value.items()}
    if isinstance(value, list):
        return [_build_value(item, annotation, f"{key}.{i}", folder) for i, item in enumerate(value)]
    return value


def _build_object(target: Callable[..., Any], table: Mapping[str, Any], used: str, key: str, folder: Path) -> Any:
    return _build(target, {name: value for name, value in table.items() if name != used}, key, folder)


def _is_subclass(target: Any, accepted: tuple[type, ...]) -> bool:
    return isinstance(target, type) and issubclass(target, accepted)


def _classes_in(annotation: Any) -> list[type]:
    """Return the classes that an annotation names, also inside of a union or a container."""
    # The arguments of a Callable are a list.
    parts = annotation if isinstance(annotation, list | tuple) else get_args(annotation)
    if parts:
        return [found for part in parts for found in _classes_in(part)]
    is_checked = (
        isinstance(annotation, type) and annotation is not object and not getattr(annotation, "_is_protocol", 0)
    )
    return [annotation] if is_checked else []


def _build(target: Callable[..., Any], table: Mapping[str, Any], key: str, folder: Path) -> Any:
    """Return an instance of a class. The arguments are the values in a table, and are checked by its signature."""
    parameters = _parameters(target, key)
    takes_any_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: parameter for name, parameter in parameters.items() if parameter.kind in named}
    for name in table:
        if name not in known and not takes_any_name:
            raise ConfigError(_unknown_message(f"{key}.{name}", known))
    for name, parameter in known.items():
        if name not in table and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{key}.{name}: missing")
    arguments = {}
    for name, value in table.items():
        annotation = known[name].annotation if name in known else inspect.Parameter.empty
        value = _build_value(value, annotation, f"{key}.{name}", folder)
        arguments[name] = _convert(value, annotation, f"{key}.{name}") if name in known else value
    try:
        return target(**arguments)
    except Exception as error:
        # The messages of our own constructors begin with the name of the argument, so the key is only a prefix.
        if f"{target.__module__}".startswith("helios_lite.") and isinstance(error, TypeError | ValueError):
            error_type = ConfigTypeError if isinstance(error, TypeError) else ConfigError
            raise error_type(f"{key}.{error}") from error
        error.add_note(f"(while making the object of [{key}])")
        raise


def _parameters(target: Callable[..., Any], key: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # A name in an annotation is imported for type checkers only.
        return inspect.signature(target).parameters
    except ValueError as error:  # A class or function in C may have none.
        raise ConfigError(f"{key}: {error}") from error


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """Return a value with "none" and paths converted, or raise an error if it does not have the annotated type.

    Only annotations made of int, float, str, bool and None are checked.
    """
    types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if isinstance(value, str) and value == "none" and NoneType in types:
        return None
    if isinstance(value, str) and Path in types and str not in types:
        return Path(value)
    if not all(item in list(_TYPE_NAMES) for item in types):
        return value
    accepted = (*types, int) if float in types else types
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in types):
        raise ConfigTypeError(f"{key}={value!r}: must be {' or '.join(_TYPE_NAMES[item] for item in types)}")
    return value


def _import(path: Any, key: str, folder: Path) -> Callable[..., Any]:
    """Return the class, or another callable, at an import path. Modules in the folder of the file take precedence."""
    module_name, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not module_name or not name:
        raise ConfigTypeError(f'{key}={path!r}: must be an import path, "package.module.Class"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # The module exists, but a module that it imports does not.
        raise ConfigError(f"{key}={path!r}: there is no module {error.name!r}") from error
    top = module_name.split(".")[0]
    local_files = [file.resolve() for file in (folder / f"{top}.py", folder / top / "__init__.py") if file.is_file()]
    used = getattr(sys.modules[top], "__file__", None)
    if local_files and top != "helios_lite" and (used is None or Path(used).resolve() not in local_files):
        # Python keeps the first module that was imported by a name, such as the module of a file in another folder.
        raise ConfigError(
            f"{key}={path!r}: means {local_files[0]}, but another module {top!r} is imported already: {used}"
        )
    if not callable(getattr(module, name, None)):
        raise ConfigError(_unknown_message(path, vars(module), f"{key}={path!r}"))
    return getattr(module, name)  # type: ignore[no-any-return]


def _unknown_message(key: str, known: Iterable[str], where: str | None = None) -> str:
    """Return the error message for an unknown key, with the most similar known key as a hint."""
    names = [name for name in known if not name.startswith("_")]
    prefix, dot, name = key.rpartition(".")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {prefix}{dot}{near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
    return f"{where or key}: unknown; {hint}"
