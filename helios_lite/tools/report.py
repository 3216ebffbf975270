"""The command `report`: one HTML file with all that the files of runs tell. It needs no server, network or script."""

from __future__ import annotations

import argparse
import dataclasses
import html
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helios_lite.changes.run_description import read_starts
from helios_lite.display.console import format_number
from helios_lite.display.lines import duration
from helios_lite.processes.output import harmless
from helios_lite.state import is_extra
from helios_lite.tools.run_files import (
    CONFIG_FILE,
    ROWS_FILE,
    RunFiles,
    differing,
    labels,
    number,
    numbers_of_rows,
    run_folders,
)
from helios_lite.tools.usage import UsageError

_MOST_RUNS = 32  # Eight colors in four dash patterns.
_MOST_METRICS = 60
_MOST_POINTS = 400  # Of a curve; more are not seen.
_MOST_LOG = 1 << 22  # Bytes from the end of train.log.
_MOST_WARNINGS = 20
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) (.*)")
Points = list[tuple[int, float | None]]
"""The step and the value of each row; None for one that is not finite."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a report has of a run: its files, curves, plan, checkpoints, and what is to be looked at."""

    label: str
    files: RunFiles
    curves: Mapping[str, Points]
    plan: str
    starts: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[Mapping[str, Any]]
    findings: Sequence[str]


def report(arguments: argparse.Namespace) -> None:
    """Write a report of runs. Exits with status 1 if it has findings."""
    output: Path = arguments.output
    if output.suffix not in (".html", ".htm"):
        raise UsageError(f"--output {output}: must end with .html")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}")
    folders = [run for path in arguments.runs for run in run_folders(path, ROWS_FILE)]
    if len(folders) > _MOST_RUNS:
        raise UsageError(f"report: {len(folders)} runs are more than {_MOST_RUNS}; name fewer, see helios-lite runs")
    runs = [_read(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    try:
        output.write_text(_page(runs), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from error
    if arguments.json:
        print(json.dumps({"output": str(output), "runs": [_as_dict(run) for run in runs]}, indent=2))
    else:
        print(harmless(str(output)))
        for run in runs:
            for finding in run.findings:
                print(harmless(f"{run.label}: {finding}"))
    if any(run.findings for run in runs):
        sys.exit(1)


def _as_dict(run: _Run) -> dict[str, Any]:
    files = run.files
    return {
        "run": str(files.folder),
        "state": files.state,
        "step": files.step,
        "monitor": files.monitor or None,
        "best_score": files.best_score,
        "metrics": [*run.curves],
        "checkpoints": [str(entry["file"]) for entry in run.checkpoints],
        "findings": [*run.findings],
    }


# What the files tell.


def _read(folder: Path, label: str) -> _Run:
    files = RunFiles.read(folder)
    curves = _curves(folder)
    log = [*_log(folder / "train.log")]
    starts = read_starts(folder / CONFIG_FILE)
    findings = [*_findings(files, curves, log)]
    return _Run(label, files, curves, _plan(log), starts, _checkpoints(folder), findings)


def _curves(folder: Path) -> dict[str, Points]:
    """Return the points of each metric, the monitored one of a validation before those of a training."""
    curves: dict[str, Points] = {}
    for name, step, value in numbers_of_rows(folder):
        if not is_extra(name):
            curves.setdefault(name, []).append((step, value))
    names = sorted(curves, key=lambda name: not name.startswith("valid/"))
    return {name: sorted(curves[name], key=lambda point: point[0]) for name in names}


def _log(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the level and the text of each line of train.log, of its end if it is large."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_LOG))
            lines = file.read(_MOST_LOG).decode(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if found := _LOG_LINE.fullmatch(line):
            yield found[1], found[2]


def _plan(log: Sequence[tuple[str, str]]) -> str:
    """Return the plan that the newest start has said, in lines; "" if it is not known."""
    begins = [i for i, (_, text) in enumerate(log) if text.startswith("plan: ")]
    if not begins:
        return ""
    lines = [log[begins[-1]][1].removeprefix("plan: ")]
    for _, text in log[begins[-1] + 1 :]:
        if not text.startswith("      "):
            break
        lines.append(text.strip())
    return "\n".join(lines)


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of the manifest of a run that name a file."""
    try:
        entries = json.loads((folder / "checkpoints/manifest.json").read_bytes())["checkpoints"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    found = entries if isinstance(entries, list) else []
    return [each for each in found if isinstance(each, dict) and isinstance(each.get("file"), str)]


def _findings(files: RunFiles, curves: Mapping[str, Points], log: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield what somebody should look at."""
    if files.error is not None:
        yield files.error
    if files.is_dead:
        yield "its process is gone without a word; start it again to go on"
    if files.status.get("state") == "failed":
        yield f"failed: {files.status.get('reason')}"
    for name, points in curves.items():
        steps = [step for step, value in points if value is None]
        if steps:
            yield f"{name} is not finite in {len(steps)} of {len(points)} rows, first at step {steps[0]}"
    warnings = [*dict.fromkeys(text for level, text in log if level in ("WARNING", "ERROR", "CRITICAL"))]
    yield from (f"train.log: {text}" for text in warnings[:_MOST_WARNINGS])
    if len(warnings) > _MOST_WARNINGS:
        yield f"train.log: {len(warnings) - _MOST_WARNINGS} more warnings"


# The page.

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --dim: #595959; --back: #fff; --card: #f6f6f7; --line: #d3d3d6;
  --bad: #a3140b; --c0: #0b62a4; --c1: #b5400b; --c2: #1f7a3d; --c3: #8a2d8f; --c4: #7a6200; --c5: #0a757c;
  --c6: #a3224e; --c7: #4b4b4b; }
@media (prefers-color-scheme: dark) { :root { --text: #ececec; --dim: #ababab; --back: #17181a; --card: #212326;
  --line: #44474c; --bad: #ff9b90; --c0: #6db3f2; --c1: #ff9a5c; --c2: #6fd08c; --c3: #d9a0e0; --c4: #e0c552;
  --c5: #5cd0d6; --c6: #ff8fb0; --c7: #c4c4c4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; } h3 { font-size: 1rem; margin: 0 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  min-width: 4rem; max-width: 24rem; }
tbody th { font-weight: 600; } .number { text-align: right; white-space: nowrap; }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure, .card { margin: 0; padding: .75rem; background: var(--card); border-radius: .5rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; } .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; }
ul.legend svg { display: inline-block; width: 2rem; height: .8rem; vertical-align: middle; }
details { margin-top: .5rem; } pre { white-space: pre-wrap; margin: 0; font-size: .9rem; }
summary { cursor: pointer; } .bad { color: var(--bad); }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
@media print { figure { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def _page(runs: Sequence[_Run]) -> str:
    title = _text(f"Report of {runs[0].label}" if len(runs) == 1 else f"Report of {len(runs)} runs")
    parts = [
        f"<h1>{title}</h1>",
        _section("findings", "Findings", _findings_of(runs)),
        _section("runs", "Runs", _summary(runs)),
        _section("curves", "Curves", _figures(runs)),
        _section("plan", "Plan", _plans(runs)),
        _section("configuration", "Configuration", _configuration(runs)),
        _section("checkpoints", "Checkpoints", _checkpoint_table(runs)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Return a value as HTML: nothing in it is a tag, and nothing steers how the rest is shown."""
    return html.escape(harmless("" if value is None else str(value)))


def _section(name: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{content}\n</section>'


def _table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """Return a table, which scrolls by itself where it is wider than the page. First cells are the headers of rows."""

    def cell(i: int, value: object, tag: str, scope: str = "") -> str:
        scope = f' scope="{scope}"' if scope else ""
        kind = ' class="number"' if i in numbers else ""
        return f"<{tag}{scope}{kind}>{_text(value)}</{tag}>"

    def cells(row: Sequence[object]) -> str:
        return cell(0, row[0], "th", "row") + "".join(cell(i, each, "td") for i, each in enumerate(row) if i > 0)

    head = "".join(cell(i, header, "th", "col") for i, header in enumerate(headers))
    body = "\n".join(f"<tr>{cells(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" role="region" aria-label="{_text(caption)}" tabindex="0"><table>'
        f"<caption>{_text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _findings_of(runs: Sequence[_Run]) -> str:
    found = [f'<li><strong>{_text(run.label)}</strong>: <span class="bad">{_text(each)}</span></li>' for run in runs
             for each in run.findings]  # fmt: skip
    return f"<ul>{''.join(found)}</ul>" if found else "<p>None.</p>"


def _summary(runs: Sequence[_Run]) -> str:
    rows = []
    for run in runs:
        status, files = run.files.status, run.files
        seconds, resumed = number(status.get("seconds")), [start["step"] for start in run.starts if start["step"] > 0]
        rows.append([
            run.label, files.state, files.step, status.get("total_steps"), status.get("epoch"),
            files.monitor, format_number(files.best_score), status.get("best_step"),
            "" if seconds is None else duration(max(0.0, seconds)), ", ".join(map(str, resumed)),
            str(run.starts[-1].get("commit") or "")[:12] if run.starts else "",
        ])  # fmt: skip
    headers = ["run", "state", "step", "of", "epoch", "monitor", "best", "at step", "time", "resumed at", "commit"]
    return _table("What each run has done", headers, rows, (2, 3, 4, 6, 7, 8))


def _plans(runs: Sequence[_Run]) -> str:
    cards = [f'<div class="card"><h3>{_text(run.label)}</h3><pre>{_text(run.plan or "not known")}</pre></div>'
             for run in runs]  # fmt: skip
    return f'<div class="curves">{"".join(cards)}</div>'


def _configuration(runs: Sequence[_Run]) -> str:
    configs = [run.files.config for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    differs = [*differing([config for config in configs if config])]

    def table(caption: str, shown: Iterable[str]) -> str:
        rows = ([name, *(str(config[name]) if name in config else "" for config in configs)] for name in shown)
        return _table(caption, ["name", *(run.label for run in runs)], rows)

    parts = [table("What differs between the runs", differs)] if differs else []
    parts.append(
        f"<details><summary>All {len(names)} values</summary>{table('All values of config.json', names)}</details>"
    )
    return "\n".join(parts)


def _checkpoint_table(runs: Sequence[_Run]) -> str:
    rows = []
    for run in runs:
        best = run.files.status.get("best_checkpoint")
        for entry in run.checkpoints:
            is_best = isinstance(best, str) and Path(best).name == entry["file"]
            score = format_number(number(entry.get("score")))
            rows.append(
                [entry["file"], run.label, entry.get("epoch"), entry.get("step"), score, "best" if is_best else ""]
            )
    headers = ["file", "run", "epoch", "step", "score", ""]
    return _table("Files that are kept", [*headers[:5], "note"], rows, (2, 3, 4)) if rows else "<p>None.</p>"


# The curves.

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 240, 64, 10, 8, 34
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


def _figures(runs: Sequence[_Run]) -> str:
    names = [*dict.fromkeys(name for run in runs for name in run.curves)]
    if not names:
        return "<p>There are no metrics yet.</p>"
    key = "".join(
        f'<li><svg viewBox="0 0 32 12" aria-hidden="true"><path class="curve" d="M0 6H32" {_stroke(i)}/></svg> '
        f"{_text(run.label)}</li>"
        for i, run in enumerate(runs)
    )
    figures = "\n".join(_figure(i, name, runs) for i, name in enumerate(names[:_MOST_METRICS]))
    more = f"<p>{len(names) - _MOST_METRICS} more metrics are not drawn.</p>" if len(names) > _MOST_METRICS else ""
    return f'<ul class="legend" aria-label="Runs">{key}</ul>\n<div class="curves">\n{figures}\n</div>{more}'


def _stroke(i: int) -> str:
    dash = _DASHES[i // 8 % len(_DASHES)]
    return f'style="stroke: var(--c{i % 8})"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _figure(index: int, name: str, runs: Sequence[_Run]) -> str:
    """Return the curves of a metric, described in words and by a table for whoever does not see them."""
    curves = [run.curves.get(name, []) for run in runs]
    values = [value for points in curves for _, value in points if value is not None]
    steps = [step for points in curves for step, _ in points]
    rows = []
    for run, points in zip(runs, curves, strict=True):
        finite = [value for _, value in points if value is not None]
        if finite:
            rows.append([run.label, *map(format_number, (finite[0], min(finite), max(finite), finite[-1]))])
    table = _table(f"{name} of each run", ["run", "first", "lowest", "highest", "last"], rows, (1, 2, 3, 4))
    if not values:
        return f"<figure><h3>{_text(name)}</h3><p>No value is finite.</p></figure>"
    x, y = _Scale(steps, _LEFT, _WIDTH - _RIGHT), _Scale(values, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<path class="grid" d="M{_LEFT} {y.at(tick):.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{tick:.5g}</text>'
        for tick in y.ticks(4)
    ]
    parts += [
        f'<text x="{x.at(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:.6g}</text>'
        for tick in x.ticks(4)
        if tick == int(tick)
    ]
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 3}" text-anchor="middle">step</text>')
    parts += [_curve(points, x, y, _stroke(i)) for i, points in enumerate(curves)]
    words = f"{name} over {min(steps)} to {max(steps)} steps, between {min(values):.6g} and {max(values):.6g}"
    return (
        f'<figure><h3>{_text(name)}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="c{index}">'
        f'<title id="c{index}">{_text(words)}</title>{"".join(parts)}</svg>'
        f"<details><summary>{_text(name)} as a table</summary>{table}</details></figure>"
    )


def _curve(points: Points, x: _Scale, y: _Scale, stroke: str) -> str:
    """Return a curve with a gap where values are not finite, and dots where a value stands alone."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for step, value in _thinned(points):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((step, value))
    drawn = []
    for piece in filter(None, pieces):
        places = [f"{x.at(step):.1f} {y.at(value):.1f}" for step, value in piece]
        # A line of no length with round ends is a dot.
        drawn.append("M" + "L".join(places if len(places) > 1 else places * 2))
    return f'<path class="curve" stroke-linecap="round" d="{"".join(drawn)}" {stroke}/>' if drawn else ""


def _thinned(points: Points) -> Points:
    """Return at most about `_MOST_POINTS` points: of each part the lowest, the highest and the last one."""
    if len(points) <= _MOST_POINTS:
        return points
    found: Points = []
    parts = _MOST_POINTS // 4
    for i in range(parts):
        part = [*enumerate(points[i * len(points) // parts : (i + 1) * len(points) // parts])]
        finite = [(value, j) for j, (_, value) in part if value is not None]
        gaps = [j for j, (_, value) in part if value is None]
        kept = {min(finite)[1], max(finite)[1]} if finite else set()
        found += [part[j][1] for j in sorted({*kept, *gaps[:1], len(part) - 1})]
    return found


class _Scale:
    """Where values are on an axis of the picture; the axis begins and ends at the lowest and the highest one."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low, self.high = float(min(values)), float(max(values))
        if not self.high / 2 - self.low / 2 > 1e-12 * max(abs(self.low), abs(self.high)):  # They are all the same.
            margin = abs(self.low) / 2 or 0.5
            self.low, self.high = self.low - margin, self.high + margin
        self.begin, self.end = begin, end

    def at(self, value: float) -> float:
        """Return the place of a value."""
        # The half avoids a difference that is too large for a float.
        part = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.begin + (self.end - self.begin) * part

    def ticks(self, most: int) -> list[float]:
        """Return round values on the axis, about as many as `most`."""
        width = self.high / most - self.low / most
        if not 0.0 < width < math.inf:
            return [self.low, self.high]
        power = 10.0 ** math.floor(math.log10(width))
        size = next((power * factor for factor in (1, 2, 5, 10) if power * factor >= width), width)
        if size == 0.0 or not math.isfinite(self.low / size) or not math.isfinite(self.high / size):
            return [self.low, self.high]
        first, last = math.ceil(self.low / size), math.floor(self.high / size)
        return [i * size for i in range(first, last + 1)][: 4 * most]
