"""A small table as HTML, for notebooks. Standard library only."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """Return a table as HTML. All texts are escaped. It sets no colors, so that it fits light and dark themes.

    Args:
        title: what to show above the table.
        headers: the header of each column; none is shown if all are empty.
        rows: the cells of each row. Columns after the first one are right-aligned if they have a header.
        notes: lines below the table.
    """

    def cells(tag: str, texts: Sequence[str]) -> str:
        aligned = ["right" if i > 0 and headers[i] else "left" for i in range(len(texts))]
        shown = zip(aligned, map(html.escape, texts), strict=True)
        return "".join(f'<{tag} style="text-align: {side}">{text}</{tag}>' for side, text in shown)

    head = f"<thead><tr>{cells('th', headers)}</tr></thead>" if any(headers) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    below = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
    return f"<div><div>{html.escape(title)}</div><table>{head}<tbody>{body}</tbody></table>{below}</div>"
