"""The commands `inspect` and `consolidate`: the tables of a checkpoint, and one file of a sharded one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.display import console
from helios_lite.display.console import format_number, make_table
from helios_lite.nested import leaves
from helios_lite.options import Options
from helios_lite.processes.output import harmless
from helios_lite.tools.choosing import chosen_checkpoint
from helios_lite.tools.usage import UsageError

if TYPE_CHECKING:
    from rich.table import Table


def consolidate(arguments: argparse.Namespace) -> None:
    """Write a sharded checkpoint as one file."""
    folder, reason = chosen_checkpoint(arguments.folder)
    if folder.name in ("", ".."):  # As "." has no name.
        folder = folder.resolve()
    file = arguments.file if arguments.file is not None else folder.with_name(f"{folder.name}.pth")
    if not naming.is_sharded(folder):
        also = "" if reason == "" else f", but {reason}"
        raise UsageError(f"{folder}: is not the folder of a sharded checkpoint{also}")
    if file.exists():
        raise UsageError(f"{file}: exists already; name another file")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: there is no such folder")
    try:
        content = read_checkpoint(folder)
    except files.CheckpointError as error:
        raise UsageError(str(error)) from error
    files.write_file(content, file)
    print(file)


_REQUIRED_KEYS = {"version", "save_name", "state", "model", "monitor", "metrics", "config", "hparams", "tables"}


def inspect(arguments: argparse.Namespace) -> None:
    """Show what a checkpoint holds."""
    path, reason = chosen_checkpoint(arguments.file)
    content = _read(path)
    makers = (
        _metrics_table,
        _parts_table,
        _networks_table,
        _hparams_table,
        _options_table,
        _made_table,
        _data_table,
    )
    try:
        tables = [_facts_table(content, naming.size(path)), *(make(content) for make in makers)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: is not complete, or is no helios_lite checkpoint ({error!r})") from error
    print(harmless(str(path) if reason == "" else f"{path}: {reason}"))
    for table in tables:
        if table.rows:
            console.show_table(table)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_checkpoint(path)
    except files.CheckpointError as error:
        raise UsageError(str(error)) from error
    if not content.keys() >= _REQUIRED_KEYS:
        raise UsageError(f"{path}: is not a helios_lite checkpoint")
    return content


def _facts_table(content: Mapping[str, Any], num_bytes: int) -> Table:
    state = content["state"]
    best = "" if state["best_step"] is None else f"step {state['best_step']}"
    if state["best_score"] is not None:
        best += f" ({format_number(state['best_score'])})"
    facts = {
        "model": content["save_name"],
        "epochs / steps": f"{state['epoch']} / {state['step']}",
        "training time": f"{state['seconds']:.1f} s",
        "best": best,
        "written by": f"helios_lite {content['version']} (format {content['format']})",
        "size": f"{num_bytes / 1e6:.2f} MB",
    }
    return make_table(["checkpoint", ""], [[name, text] for name, text in facts.items() if text])


def _metrics_table(content: Mapping[str, Any]) -> Table:
    latest, best = content["metrics"]["latest"], content["monitor"]["best"]
    rows = []
    for name, value in latest.items():
        # Training metrics are averages over the steps before a row, so they do not belong to the best step.
        best_value = best.get(name) if name.startswith("valid/") else None
        rows.append([name, format_number(value), format_number(best_value)])
    return make_table(["metric", ">last", ">best"], rows)


def _parts_table(content: Mapping[str, Any]) -> Table:
    rows = [[name, *_sizes(_tensors(part))] for name, part in _parts(content)]
    totals = [["total", *_sizes(_tensors(content))]] if rows else []
    return make_table(["part", ">tensors", ">elements", ">MB"], rows, *totals)


def _networks_table(content: Mapping[str, Any]) -> Table:
    """Return the table of the networks, with a row for each child module below its network."""
    rows: list[list[str]] = []
    all_tensors: list[torch.Tensor] = []
    for name, part in content["model"].items():
        if not _is_module_state(part):
            continue
        all_tensors += part.values()
        rows.append([name, *_sizes(part.values())[:2]])
        children: dict[str, list[torch.Tensor]] = {}
        for key, tensor in part.items():
            children.setdefault(key.partition(".")[0], []).append(tensor)
        rows += [[f"  {name}.{child}", *_sizes(tensors)[:2]] for child, tensors in children.items()]
    totals = [["total", *_sizes(all_tensors)[:2]]] if rows else []
    return make_table(["network", ">tensors", ">parameters and buffers"], rows, *totals)


def _hparams_table(content: Mapping[str, Any]) -> Table:
    return make_table(["hparams", ""], [[str(name), repr(value)] for name, value in content["hparams"].items()])


def _options_table(content: Mapping[str, Any]) -> Table:
    defaults = Options().config()
    options = content["config"].items()
    rows = [[name, repr(value)] for name, value in options if value != defaults.get(name)]
    return make_table(["trainer", "(what differs from the defaults)"], rows)


def _made_table(content: Mapping[str, Any]) -> Table:
    """Return the table of optimizers and schedulers as `setup` has made them; those of networks have tables above."""
    rows = []
    for name, made in content["tables"].get("made", {}).items():
        numbers = {key: value for key, value in made.items() if key in ("groups", "numbers")}
        if numbers:
            rows.append([name, made["class"].rpartition(".")[2]])
            shown = {key: value for key, value in leaves(numbers) if value is not None and value != []}
            rows += [[f"  {key.partition('.')[2]}", repr(value)] for key, value in shown.items()]
    return make_table(["made by setup", ""], rows)


def _data_table(content: Mapping[str, Any]) -> Table:
    options = leaves(content["tables"].get("data", {}))
    rows = [[name, repr(value)] for name, value in options if value not in (None, False, {}, 0)]
    return make_table(["data", ""], rows)


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every part that has tensors. The model and the callbacks yield each of theirs."""
    for name, part in content.items():
        inner = part.items() if name in ("model", "callbacks") else [("", part)]
        for key, value in inner:
            if next(_tensors(value), None) is not None:
                yield f"{name}.{key}".rstrip("."), value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested containers."""
    return (leaf for _, leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def _is_module_state(part: Any) -> bool:
    """Return whether a part is the `state_dict` of a module: a mapping of tensors only, and not empty."""
    return isinstance(part, Mapping) and len(part) > 0 and all(isinstance(item, torch.Tensor) for item in part.values())


def _sizes(tensors: Iterable[torch.Tensor]) -> list[str]:
    """Return the number of tensors, elements and megabytes. Tensors that share memory are counted once."""
    distinct = {(tensor.data_ptr() or id(tensor), tensor.shape): tensor for tensor in tensors}.values()
    elements = sum(tensor.numel() for tensor in distinct)
    return [f"{len(distinct):,}", f"{elements:,}", f"{sum(tensor.nbytes for tensor in distinct) / 1e6:.2f}"]
