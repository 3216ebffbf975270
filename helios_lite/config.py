"""Runs from TOML files: options of the Trainer, a model and its data, each given by class and arguments.

    [trainer]
    max_epochs = 40

    [model]
    class = "digits.Digits"
    width = 32

    [data]
    class = "digits.DigitsData"

`[trainer]` has the options of `helios_lite.Trainer`. `[model]` and `[data]` have `class`, an import path, and arguments
of its constructor. A table inside of one becomes an object too if it has `class`, as `[[trainer.callbacks]]` do, and is
a plain dict otherwise. A module that lies beside the file is found. TOML has no null: where an annotation allows None,
"none" stands for it. Relative paths, such as `trainer.root`, start from where the program runs.
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

from helios_lite.data import DataModule
from helios_lite.model import Model
from helios_lite.state import FitResult
from helios_lite.trainer import Trainer

_TABLES = ("trainer", "model", "data")
_JUDGED = {int: "an int", float: "a number", str: "a str", bool: "true or false", NoneType: "None"}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message begins with the full key, such as "trainer.max_epochs"."""


class ConfigTypeError(ConfigError, TypeError):
    """A value in a configuration that has the wrong type."""


def fit_from_file(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> FitResult:
    """Train what a TOML file describes, or go on with a training of it that was stopped.

    Args:
        path: the file.
        overrides: values that replace or complete those of the file, by full key: {"trainer.max_epochs": 3}.
            Elements of a list have their number as a name: "trainer.callbacks.0.decay".

    Raises:
        FileNotFoundError, ConfigError, Exception: as `load`.
        Exception: as `Trainer.fit`.
    """
    return Trainer.fit(*load(path, overrides))


def load(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> tuple[Trainer, Model, DataModule]:
    """Return what a TOML file describes, ready for `Trainer.fit`; the arguments are as in `fit_from_file`.

    The folder of the file is put first on `sys.path`, as it is for a script, and stays there.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no TOML file, a key is unknown or missing, or a value is refused (a ValueError).
        ConfigTypeError: a value has a wrong type (a TypeError).
        Exception: whatever the import of a module or a constructor raises, as it is, with a note that names the table.
    """
    path = Path(path)
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    for key, value in (overrides or {}).items():
        tables = _replaced(tables, key.split("."), value, key)
    for name, table in tables.items():
        if name not in _TABLES:
            raise ConfigError(_unknown(name, _TABLES))
        if not isinstance(table, dict):
            raise ConfigTypeError(f"{name}={table!r}: must be a table")

    folder = path.resolve().parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    trainer = _make(Trainer, tables.get("trainer", {}), "trainer", folder)
    parts = []
    for name, kind in (("model", Model), ("data", DataModule)):
        if "class" not in tables.get(name, {}):
            raise ConfigError(f"{name}.class: missing")
        part = _object(tables[name], name, folder)
        if not isinstance(part, kind):
            raise ConfigTypeError(f"{name}.class={tables[name]['class']!r}: must be a {kind.__name__}")
        parts.append(part)
    return trainer, *parts


def _replaced(part: Any, path: list[str], value: Any, key: str) -> Any:
    """Return a table or list with one value replaced, in fresh containers."""
    if not path:
        return value
    name, *rest = path
    if isinstance(part, list):
        if name not in map(str, range(len(part))):
            raise ConfigError(f"{key}: {name!r} is none of the numbers of a list of {len(part)}")
        return [_replaced(item, rest, value, key) if str(i) == name else item for i, item in enumerate(part)]
    if not isinstance(part, dict):
        raise ConfigTypeError(f"{key}: {part!r} is no table, it has no {name!r}")
    return {**part, name: _replaced(part.get(name, {}), rest, value, key)}


def _value(value: Any, key: str, folder: Path) -> Any:
    """Return a value with every table that has a class made an object, at any depth."""
    if isinstance(value, dict):
        if "class" in value:
            return _object(value, key, folder)
        return {name: _value(item, f"{key}.{name}", folder) for name, item in value.items()}
    if isinstance(value, list):
        return [_value(item, f"{key}.{i}", folder) for i, item in enumerate(value)]
    return value


def _object(table: Mapping[str, Any], key: str, folder: Path) -> Any:
    arguments = {name: value for name, value in table.items() if name != "class"}
    return _make(_imported(table["class"], f"{key}.class", folder), arguments, key, folder)


def _make(target: Callable[..., Any], table: Mapping[str, Any], key: str, folder: Path) -> Any:
    """Call a class with the arguments in a table, checked against its signature."""
    parameters = _parameters(target)
    anything = inspect.Parameter.VAR_KEYWORD in [parameter.kind for parameter in parameters.values()]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: parameter for name, parameter in parameters.items() if parameter.kind in named}
    for name in table:
        if name not in known and not anything:
            raise ConfigError(_unknown(f"{key}.{name}", known))
    for name, parameter in known.items():
        if name not in table and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{key}.{name}: missing")
    arguments = {}
    for name, value in table.items():
        value = _value(value, f"{key}.{name}", folder)
        arguments[name] = _checked(value, known[name].annotation, f"{key}.{name}") if name in known else value
    try:
        return target(**arguments)
    except Exception as error:
        # Where our own constructors refuse an argument, the message begins with its name.
        if target.__module__.startswith("helios_lite.") and isinstance(error, TypeError | ValueError):
            kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
            raise kind(f"{key}.{error}") from error
        error.add_note(f"(while making the object of [{key}])")
        raise


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # An annotation names what is imported for type checkers only.
        return inspect.signature(target).parameters


def _checked(value: Any, annotation: Any, key: str) -> Any:
    """Return a value as its parameter wants it. Only annotations of plain values are judged."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if isinstance(value, str) and value == "none" and NoneType in kinds:
        return None
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    if not all(kind in list(_JUDGED) for kind in kinds):
        return value
    wanted = tuple(kinds) + ((int,) if float in kinds else ())
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigTypeError(f"{key}={value!r}: must be {' or '.join(_JUDGED[kind] for kind in kinds)}")
    return value


def _imported(path: Any, key: str, folder: Path) -> Callable[..., Any]:
    """Return what an import path means; a module in the folder of the file comes first."""
    module_name, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not module_name or not name:
        raise ConfigTypeError(f'{key}={path!r}: must be an import path, "package.module.Class"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # What is missing is something that the module imports.
        raise ConfigError(f"{key}={path!r}: there is no module {error.name!r}") from error
    top = module_name.split(".")[0]
    beside = [file for file in (folder / f"{top}.py", folder / top / "__init__.py") if file.is_file()]
    used = getattr(sys.modules[top], "__file__", None)
    if beside and top != "helios_lite" and (used is None or Path(used).resolve() not in [f.resolve() for f in beside]):
        # Python keeps the first module of a name, such as that of another configuration in another folder.
        raise ConfigError(f"{key}={path!r}: means {beside[0]}, but another module {top!r} is imported already: {used}")
    if not callable(getattr(module, name, None)):
        raise ConfigError(_unknown(path, vars(module), f"{key}={path!r}"))
    return getattr(module, name)  # type: ignore[no-any-return]


def _unknown(key: str, known: Iterable[str], where: str | None = None) -> str:
    """Return the message for a key that is not there, with the nearest one that is."""
    names = [name for name in known if not name.startswith("_")]
    prefix, dot, name = key.rpartition(".")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {prefix}{dot}{near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
    return f"{where or key}: unknown; {hint}"
