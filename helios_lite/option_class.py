"""How a class of options behaves: it takes names only, answers wrong ones, and its help reads what its source says.

Type checkers and editors look through the decorators, and see a plain dataclass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterable
from typing import Any, TypeVar

from helios_lite.arguments import did_you_mean, shown
from helios_lite.other_trainers import ELSEWHERE

T = TypeVar("T")


def option_class(cls: type[T]) -> type[T]:
    """Make wrong arguments of a dataclass errors that say what to write, and document its fields; a decorator."""
    generated: Any = getattr(cls, "__init__")  # noqa: B009 (mypy)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(generated)  # So that inspect.signature and help show the options.
    def __init__(self: Any, /, *values: Any, **options: Any) -> None:
        name = type(self).__name__
        if values:
            raise TypeError(
                f"{name}: takes no positional arguments; {shown(values[0])} needs the name of an option before it, "
                f"as in {name}(max_epochs=3)"
            )
        for option in options:
            if option not in known:
                raise TypeError(f"{option}: is no option of {name}; {option_hint(option, known)}")
        generated(self, **options)

    cls.__init__ = __init__  # type: ignore[method-assign, assignment]
    return documented(cls)


def option_hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return what to write in place of an unknown option: what other trainers call so, or `did_you_mean`."""
    return f"write {ELSEWHERE[name]}" if name in ELSEWHERE else did_you_mean(name, known, prefix)


def documented(cls: type[T]) -> type[T]:
    """Append the fields of a dataclass, and the docstrings below them, to its docstring; a decorator.

    The source is read when the docstring is. Without it the fields are there, but not their docstrings.
    """
    if cls.__doc__ is not None:  # A subclass inherits the docstring, and `python -OO` removes it.
        docstring: Any = _LazyDocstring(cls.__doc__)
        cls.__doc__ = docstring
    return cls


class _LazyDocstring:
    """A docstring that is completed when it is read: `__get__` of what a class has as `__doc__` is called."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, instance: object, owner: Any) -> str:
        kinds = [kind for kind in reversed(owner.__mro__) if "__dataclass_fields__" in vars(kind)]
        docs = {name: doc for kind in kinds for name, doc in _documented_fields(kind).items()}
        parameters = inspect.signature(owner).parameters
        fields = [
            docs.get(name, str(parameters.get(name, name)))
            for name in (field.name for field in dataclasses.fields(owner))
        ]
        return "\n".join(
            [inspect.cleandoc(self._text), "\nOptions:", *(textwrap.indent(text, " " * 4) for text in fields)]
        )


def _documented_fields(cls: type) -> dict[str, str]:
    """Return the declaration of each field in the source of a class, with the docstring below; none without source."""
    import ast

    try:
        source = textwrap.dedent(inspect.getsource(cls))
        (node,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError):  # Of a class that was typed in a console, or has no .py file.
        return {}
    assert isinstance(node, ast.ClassDef)
    lines, docs = source.splitlines(), {}
    for item, below in itertools.pairwise([*node.body, ast.Pass()]):
        if isinstance(item, ast.AnnAssign):
            name = ast.unparse(item.target)
            docs[name] = "\n".join(lines[item.lineno - 1 : item.end_lineno]).strip()
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[name] += "\n" + textwrap.indent(inspect.cleandoc(str(below.value.value)), " " * 4)
    return docs
