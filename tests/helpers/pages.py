"""The programs of pages, and what they are said to print."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[tuple[str, str | None]]:
    """Return the blocks of a language in a text, each with the text that it is said to print, if any."""
    return [(code, printed or None) for kind, code, printed in BLOCK.findall(page) if kind == language]


def run(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a program in a folder as a script and return its names."""
    monkeypatch.chdir(folder)
    path = folder / "program.py"
    path.write_text(program, encoding="utf-8")
    return runpy.run_path(str(path), run_name="__main__")


NUMBER = re.compile(r"\d+\.\d+")


def require_shown(output: str, page: str) -> None:
    """Require that a program printed what its page shows. Processors round differently, so numbers may differ a little.

    The words and the whole numbers are the same, and numbers that are equal on the page are equal in the output. Others
    differ by a thousandth, or by one in the last digit.
    """
    assert NUMBER.sub("#", output) == NUMBER.sub("#", page)
    numbers = list(zip(NUMBER.findall(page), NUMBER.findall(output), strict=True))
    assert len(dict(numbers)) == len(set(numbers))
    for shown, printed in numbers:
        last_digit = 10 ** -len(shown.partition(".")[2])
        assert float(printed) == pytest.approx(float(shown), rel=1e-3, abs=1.01 * last_digit)
