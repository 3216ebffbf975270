"""The site of these pages: `sphinx-build -W docs build/site`. It is built without network.

The pages are Markdown (MyST). The reference comes from the docstrings, which are plain text with names in backticks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from helios_lite.version import __version__  # noqa: E402

project = "helios_lite"
author = copyright = "The helios_lite developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

smartquotes_action = "D"  # Dashes only: what is quoted is often a value to type.
highlight_language = "none"  # Of a block that names no language.

html_theme = "furo"
html_title = f"helios_lite {version}"
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

default_role = "code"  # So that `name` in a docstring is code.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

_FILES = {"maintainers/contributing": "CONTRIBUTING.md", "maintainers/changelog": "CHANGELOG.md"}
_INDENTED_AFTER_COLON = re.compile(r":\n(?=\n {4,}\S)")
_SEVERAL_NAMES = re.compile(r"^:ivar (\w+(?:, \w+)+):(.*(?:\n +.*)*)", re.MULTILINE)
_PLURALS = re.compile(r"(`[^`]+`)(\w?)")  # Of a name in backticks, whose letter would belong to it.
_SECTIONS = Config(napoleon_numpy_docstring=False, napoleon_use_ivar=True, napoleon_attr_annotations=True)


def _one_by_one(several: re.Match[str]) -> str:
    """Return an entry for each of several names that have one text."""
    return "\n".join(f":ivar {name}:{several[2]}" for name in several[1].split(", "))


def _convert(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring: of its sections ("Args:"), and of what is indented, such as a formula."""
    text = "\n".join(lines)
    if what == "class":  # The fields of a dataclass are documented one by one.
        text = text.partition("\nOptions:\n")[0]
    text = _PLURALS.sub(lambda span: span[1] + "\\ " * bool(span[2]) + span[2], _INDENTED_AFTER_COLON.sub("::\n", text))
    kind = "method" if what in ("attribute", "data", "property") else what  # Its colons separate no type from a text.
    text = "\n".join(GoogleDocstring(text, _SECTIONS, app, kind, name, obj, options).lines())
    lines[:] = _SEVERAL_NAMES.sub(_one_by_one, text).splitlines()


def _read_file_of_the_repository(app: Any, name: str, source: list[str]) -> None:
    """Put a file of the repository in place of the page for it, with links that lead on from there."""
    if name in _FILES:
        text = (REPOSITORY / _FILES[name]).read_text(encoding="utf-8")
        for page, file in _FILES.items():
            text = text.replace(f"]({file})", f"](/{page}.md)")
        source[0] = re.sub(r"\]\((?!/|#|https?:)", "](../../", text)


def setup(app: Any) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", _read_file_of_the_repository)
    app.connect("autodoc-process-docstring", _convert)
