"""The command `plot`: reads the metrics of runs, chooses which to show, and draws their curves."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from helios_lite.arguments import did_you_mean
from helios_lite.state import MEASURED
from helios_lite.tools.run_files import ROWS_FILE, labels, numbers_of_rows, run_folders
from helios_lite.tools.usage import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves: TypeAlias = dict[str, list[tuple[int, float]]]  # The points of each metric: the step and the value.
_MAX_METRICS = 24  # One figure with more plots is hard to read.


def plot(arguments: argparse.Namespace) -> None:
    """Draw the curves of runs, one plot per metric, into a file."""
    output: Path = arguments.output
    wanted: list[str] = arguments.metric or []
    if not arguments.runs:
        raise UsageError("plot: name a run folder, before --metric, which takes all names that follow it")
    for name in wanted:
        if Path(name).is_dir():
            raise UsageError(f"--metric {name}: is a folder and no metric; name it before --metric")
    _check_output(output)
    runs = {run: _read_curves(run) for path in arguments.runs for run in run_folders(path, ROWS_FILE)}
    metrics = _choose_metrics(wanted, list(runs.values()))
    _draw(metrics, runs).savefig(output)
    print(output)


def _check_output(output: Path) -> None:
    if output.suffix not in (".png", ".svg"):
        raise UsageError(f"--output {output}: must end with .png or .svg")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}")


def _read_curves(run: Path) -> Curves:
    """Return the curves of a run folder."""
    curves: Curves = {}
    for name, step, value in numbers_of_rows(run, with_evaluations=True):
        curves.setdefault(name, []).append((step, math.nan if value is None else value))
    # A checkpoint may have been evaluated after later steps were trained.
    return {name: sorted(curve, key=lambda point: point[0]) for name, curve in curves.items()}


def _choose_metrics(wanted: Sequence[str], runs: Sequence[Curves]) -> list[str]:
    """Return the names of the metrics to draw: the wanted ones, or else all but times and speeds."""
    known = list(dict.fromkeys(name for curves in runs for name in curves))
    for name in wanted:
        if name not in known:
            raise UsageError(f"--metric {name}: unknown; {did_you_mean(name, known)}")
    metrics = list(dict.fromkeys(wanted or (name for name in known if name not in MEASURED)))
    if not metrics:
        raise UsageError("there are no metrics yet")
    if not wanted and len(metrics) > _MAX_METRICS:
        raise UsageError(f"there are {len(metrics)} metrics: choose some with --metric, such as {metrics[0]}")
    return metrics


def _draw(metrics: Sequence[str], runs: Mapping[Path, Curves]) -> Figure:
    """Return a figure with one plot per metric, and one legend of the runs for all plots."""
    try:
        # A figure without pyplot is drawn by Agg, or written as SVG, whatever display and backend there are.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UsageError("plot needs matplotlib: pip install matplotlib") from error

    columns = min(len(metrics), 2 if len(metrics) <= 4 else 3)
    lines = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.6 * lines + 0.5), dpi=110, layout="constrained")
    for i, name in enumerate(metrics):
        axes = figure.add_subplot(lines, columns, i + 1)
        _draw_metric(axes, name, [curves.get(name, []) for curves in runs.values()])
    handles = figure.axes[0].lines
    figure.legend(
        handles, labels(list(runs)), loc="outside upper center", ncols=min(len(runs), 2 * columns), fontsize=11
    )
    return figure


def _draw_metric(axes: Axes, name: str, curves: Sequence[Sequence[tuple[int, float]]]) -> None:
    """Draw one metric of several runs, each run in the color of its position."""
    for i, points in enumerate(curves):
        steps, values = [step for step, _ in points], [value for _, value in points]
        style = "o-" if len(points) <= 50 else "-"
        axes.plot(steps, values, style, color=f"C{i}", markersize=3, linewidth=1.4)
    axes.set_title(name, fontsize=12)
    axes.set_xlabel("step", fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(alpha=0.3)
