"""Objects as plain data: tables with the class of an object and the arguments of its constructor.

`Options.config` describes callbacks and loggers by such tables, `{"class": "package.module.Class", "decay": 0.9}`, and
a configuration makes objects from them. Describing an object only reads its attributes. Making one imports the module
of its class and calls the class, so a table may run any code, as a program does.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from torch import nn
from torch.utils.data import Dataset, Sampler

from helios_lite.arguments import did_you_mean, shown
from helios_lite.data import DataModule, Split
from helios_lite.hooks import Hooks
from helios_lite.loggers import Logger

_CLASSES: tuple[type, ...] = (Hooks, Logger, Dataset, Sampler, Split, nn.Module, DataModule)
_CLASS_NAMES = "Callback, Logger, Dataset, Sampler, Split, Module, Model, DataModule"
_TYPE_NAMES = {int: "an int", float: "a number", str: "a str", bool: "true or false", NoneType: "None"}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ConfigError(ValueError):
    """A configuration is invalid. The message begins with the full key, such as "trainer.max_epochs"."""


class ConfigTypeError(ConfigError, TypeError):
    """A value in a configuration has the wrong type."""


def to_plain_data(value: Any) -> Any:
    """Return the value of an option as numbers, strings, lists and tables. It never fails.

    An object becomes a table with its class and the arguments of its constructor. They are read from its attributes
    with the names of the parameters, or these names after an underscore, and must be plain: None, numbers, strings,
    paths (which become strings), lists and tuples (which become lists), and dicts of these. If one is missing or not
    plain, or the class has no import path, the object becomes the name of its class.
    """
    if value is None or isinstance(value, bool):
        return value
    for plain_type in (int, float, str):
        if isinstance(value, plain_type):  # A checkpoint cannot hold a subclass, such as a numpy number.
            return plain_type.__str__(value) if plain_type is str else plain_type(value)
    if isinstance(value, os.PathLike):
        return str(Path(value))
    if isinstance(value, Sequence):
        return [to_plain_data(item) for item in value]
    kind = type(value)
    try:
        arguments = _constructor_arguments(value)
    except Exception:  # A class of the user may do anything. A checkpoint must be saved all the same.
        return kind.__name__
    # In the processes that a program has launched, its own module has this other name as well.
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return {"class": f"{module}.{kind.__name__}", **arguments}


def _constructor_arguments(value: object) -> dict[str, Any]:
    """Return the arguments with which an object can be made again; raise an exception if they cannot be found."""
    kind, attributes = type(value), vars(value)
    if getattr(sys.modules[kind.__module__], kind.__name__) is not kind:
        raise TypeError("another object has the import path of the class")
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        argument = _to_argument(attributes[name if name in attributes else f"_{name}"])
        if parameter.kind in _NAMED:
            arguments[name] = argument
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD and not arguments.keys() & argument.keys():
            arguments |= argument
        else:
            raise TypeError(f"{name}: cannot be passed by name")
    return arguments


def _to_argument(value: Any) -> Any:
    if type(value) in (list, tuple):
        return [_to_argument(item) for item in value]
    if type(value) is dict and all(type(name) is str for name in value) and not {"class", "call"} & value.keys():
        return {name: _to_argument(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str | os.PathLike):
        return to_plain_data(value)
    raise TypeError(f"a {type(value).__name__} is not plain")


def _build_value(value: Any, annotation: Any, key: str, folder: Path | None) -> Any:
    """Return a value in which every table with `class` or `call` is replaced by an object, at any depth.

    Args:
        value: the value.
        annotation: that of the argument. It may name classes that are accepted beside `_CLASSES`.
        key: the full key of the value.
        folder: the folder of the file; see `build`.

    Raises:
        ConfigTypeError: a class is none of those that are accepted. It has not been called.
    """
    if isinstance(value, dict):
        if "class" in value:
            target = import_object(value["class"], f"{key}.class", folder)
            if not is_subclass(target, (*_CLASSES, *_classes_in(annotation))):
                raise ConfigTypeError(
                    f"{key}.class={value['class']!r}: must be a subclass of one of {_CLASS_NAMES}, or of what the "
                    "annotation names; the key for any other class or function is `call`"
                )
            return build_object(target, value, "class", key, folder)
        if "call" in value:
            return build_object(import_object(value["call"], f"{key}.call", folder), value, "call", key, folder)
        return {name: _build_value(item, annotation, f"{key}.{name}", folder) for name, item in value.items()}
    if isinstance(value, list):
        return [_build_value(item, annotation, f"{key}.{i}", folder) for i, item in enumerate(value)]
    return value


def build_object(target: Callable[..., Any], table: Mapping[str, Any], used: str, key: str, folder: Path | None) -> Any:
    """Return the object of a table; `used` is the key of the table that names the target, "class" or "call"."""
    return build(target, {name: value for name, value in table.items() if name != used}, key, folder)


def is_subclass(target: Any, accepted: tuple[type, ...]) -> bool:
    """Return whether something is a class, and a subclass of one of those that are accepted."""
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


def build(
    target: Callable[..., Any],
    table: Mapping[str, Any],
    key: str,
    folder: Path | None,
    hint: Callable[[str, Iterable[str], str], str] = did_you_mean,
) -> Any:
    """Return an instance of a class. The arguments are the values in a table, and are checked by its signature.

    Args:
        target: the class, or another callable.
        table: the arguments by name.
        key: the full key of the table, for messages; empty for the table of the whole configuration.
        folder: the folder of a TOML file, in which the string "none" may mean None. None for a dict of Python.
        hint: returns what to write in place of an unknown name, from it, those that are known, and their prefix.

    Raises:
        ConfigError: a name is unknown or missing, or a value is invalid.
        ConfigTypeError: a value has a wrong type.
        Exception: the import of a module or a constructor failed.
    """
    parameters = _parameters(target, key)
    takes_any_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {name: parameter for name, parameter in parameters.items() if parameter.kind in _NAMED}
    for name in table:
        if name not in known and not takes_any_name:
            raise ConfigError(unknown_message(_join(key, name), known, hint=hint))
    for name, parameter in known.items():
        if name not in table and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{_join(key, name)}: missing")
    arguments = {}
    for name, value in table.items():
        annotation = known[name].annotation if name in known else inspect.Parameter.empty
        value = _build_value(value, annotation, _join(key, name), folder)
        if folder is not None and isinstance(value, str) and value == "none" and NoneType in _union_members(annotation):
            value = None  # TOML has no null.
        arguments[name] = _convert(value, annotation, _join(key, name)) if name in known else value
    try:
        return target(**arguments)
    except Exception as error:
        # The messages of our own constructors begin with the name of the argument, so the key is only a prefix.
        if f"{target.__module__}".startswith("helios_lite.") and isinstance(error, TypeError | ValueError):
            error_type = ConfigTypeError if isinstance(error, TypeError) else ConfigError
            raise error_type(_join(key, str(error))) from error
        error.add_note(f"(while making the object of [{key or target.__name__}])")
        raise


def _parameters(target: Callable[..., Any], key: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # A name in an annotation is imported for type checkers only: the others are checked.
        return {name: _evaluated(target, each) for name, each in inspect.signature(target).parameters.items()}
    except ValueError as error:  # A class or function in C may have none.
        raise ConfigError(f"{key}: {error}") from error


def _evaluated(target: Callable[..., Any], parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter with its annotation evaluated, without one if it cannot be."""
    function = inspect.unwrap(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    annotation: Any = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, getattr(function, "__globals__", {}))
        except Exception:
            annotation = inspect.Parameter.empty
    return parameter.replace(annotation=annotation)


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """Return a value, a string as a path if that is annotated; raise an error if it does not have the annotated type.

    Only annotations made of int, float, str, bool and None are checked.
    """
    types = _union_members(annotation)
    if isinstance(value, str) and Path in types and str not in types:
        return Path(value)
    if not all(item in list(_TYPE_NAMES) for item in types):
        return value
    accepted = (*types, int) if float in types else types
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in types):
        raise ConfigTypeError(f"{key}={value!r}: must be {' or '.join(_TYPE_NAMES[item] for item in types)}")
    return value


def _union_members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def import_object(path: Any, key: str, folder: Path | None) -> Callable[..., Any]:
    """Return the class, or another callable, at an import path. Modules in the folder of a file take precedence."""
    module_name, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not module_name or not name or module_name.startswith("."):  # Relative to nothing.
        raise ConfigTypeError(f'{key}={path!r}: must be an import path, "package.module.Class"')
    module = import_from(folder, module_name, f"{key}={path!r}")
    if not hasattr(module, name):
        raise ConfigError(unknown_message(path, vars(module), f"{key}={path!r}"))
    found = getattr(module, name)
    if not callable(found):
        raise ConfigTypeError(f"{key}={path!r}: must be a class or a function, but is {shown(found)}")
    return found  # type: ignore[no-any-return]


def import_from(folder: Path | None, module_name: str, where: str) -> ModuleType:
    """Return a module. Those in the folder of a file take precedence.

    Args:
        folder: that of a file; None for any module that Python finds.
        module_name: the name.
        where: begins the message of an error.

    Raises:
        ConfigError: there is no such module, or another one has its name already.
    """
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # The module exists, but a module that it imports does not.
        raise ConfigError(f"{where}: there is no module {error.name!r}") from error
    top = module_name.split(".")[0]
    files = [] if folder is None else [folder / f"{top}.py", folder / top / "__init__.py"]
    local_files = [file.resolve() for file in files if file.is_file()]
    used = getattr(sys.modules[top], "__file__", None)
    if local_files and top != "helios_lite" and (used is None or Path(used).resolve() not in local_files):
        # Python keeps the first module that was imported by a name, such as the module of a file in another folder.
        raise ConfigError(f"{where}: means {local_files[0]}, but another module {top!r} is imported already: {used}")
    return module


def unknown_message(
    key: str,
    known: Iterable[str],
    where: str | None = None,
    hint: Callable[[str, Iterable[str], str], str] = did_you_mean,
) -> str:
    """Return the error message for an unknown key, with the most similar known key as a hint."""
    names = [name for name in known if not name.startswith("_")]
    prefix, dot, name = key.rpartition(".")
    return f"{where or key}: unknown; {hint(name, names, prefix + dot)}"
