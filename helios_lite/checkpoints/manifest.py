"""The manifest of a folder of checkpoints: which files the runs of the folder wrote, with their scores.

It caches what the checkpoints hold. Only the list of files that a run may delete is stored nowhere else.
Missing and wrong entries are read from the checkpoints.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from helios_lite.checkpoints import files, naming
from helios_lite.checkpoints.reading import read_checkpoint_header

logger = logging.getLogger("helios_lite")
_UNSURE = "unsure"
"""The key of an entry whose file was about to be written or deleted."""
Entry = dict[str, Any]
"""A file of the manifest: its name, epoch, step, score, and whether its validation improved on the best."""


class Manifest:
    """The entries of a manifest: those of a model's files, and those of other models, which stay as they are.

    Args:
        folder: the folder of the checkpoints.
        save_name: the name of the model.

    Attributes:
        own: the entries of the model's files that exist, in the order in which they were written.
        found: names of files whose entry was read from the file itself. It is unknown who wrote them, so they are
            compared when the best is chosen, but never deleted.
        path: the file `manifest.json`.
    """

    def __init__(self, folder: Path, save_name: str) -> None:
        self._folder, self._save_name = folder, save_name
        self.path = folder / "manifest.json"
        self.own: list[Entry] = []
        self.found: set[str] = set()
        self._foreign: dict[str, list[Entry]] = {"checkpoints": [], "found": []}
        self._is_stale = False
        self._encoded: dict[int, tuple[str, Entry]] = {}  # By the id of an entry, which exists as long as it is here.

    def read(self) -> None:
        """Read the file, warn of wrong entries and of checkpoints that are gone, and read those that it does not list.

        A checkpoint that was consolidated takes the place of its folder, if that is gone.
        """
        stored = self._read_json()
        wrong, listed, gone = 0, {}, []
        for group, foreign in self._foreign.items():
            for entry in stored[group]:
                if not _is_valid(entry):
                    wrong += 1
                elif (at := naming.counters(entry["file"], self._save_name)) is None:
                    foreign.append(entry)
                elif at != (entry["step"], entry["epoch"]):
                    wrong += 1
                elif (name := self._name_now(entry["file"])) is not None:
                    listed[name] = {**entry, "file": name}
                    listed[name].pop(_UNSURE, None)
                    is_own = group == "checkpoints" and name == entry["file"]
                    self.found |= set() if is_own else {name}
                else:
                    gone.append(entry)
        if wrong:
            logger.warning(
                "%s: ignoring entries that are wrong (%d); the checkpoints are read instead", self.path, wrong
            )
        missing = self._read_missing(listed)
        self.found |= {entry["file"] for entry in missing}
        self.own = [*missing, *listed.values()]
        self._is_stale |= wrong > 0 or len(missing) > 0 or len(gone) > 0
        self._warn_of_gone([entry["file"] for entry in gone if _UNSURE not in entry])

    def tidy(self) -> None:
        """Write the file if its entries differ from the files. Call it before a run, so that errors come early."""
        if self._is_stale or self.path.is_dir():
            self.write(self.own)

    def write(self, entries: Iterable[Entry], unsure: Collection[str] = ()) -> None:
        """Write the file, with these entries of the model.

        Args:
            entries: the entries.
            unsure: the files that are about to be written or deleted. After a kill they may be there or not.
        """
        entries = [{**entry, _UNSURE: True} if entry["file"] in unsure else entry for entry in entries]
        groups = {name: [*foreign] for name, foreign in self._foreign.items()}
        groups["checkpoints"] += [e for e in entries if e["file"] not in self.found] if self.found else entries
        groups["found"] += [entry for entry in entries if entry["file"] in self.found] if self.found else ()
        if not groups["found"]:  # The usual case.
            del groups["found"]
        files.write_text(self._text(groups), self.path)
        self._is_stale = False

    def _text(self, groups: dict[str, list[Entry]]) -> str:
        """Return the groups as json, an entry a line; an entry that was written before is not encoded again."""
        known, self._encoded, lists = self._encoded, {}, []
        for group, entries in groups.items():
            found = zip(map(known.get, map(id, entries)), entries, strict=True)
            encoded = [(json.dumps(entry), entry) if each is None else each for each, entry in found]
            self._encoded.update(zip(map(id, entries), encoded, strict=True))
            lists.append(f'  "{group}": [\n    ' + ",\n    ".join([text for text, _ in encoded]) + "\n  ]")
        return "{\n" + ",\n".join(lists) + "\n}\n"

    def _name_now(self, name: str) -> str | None:
        """Return the name under which a checkpoint is there: its own, or that of a file made of a folder; else None."""
        names = [name] if name.endswith(".pth") else [name, f"{name}.pth"]
        return next((each for each in names if naming.exists(self._folder / each)), None)

    def _warn_of_gone(self, names: list[str]) -> None:
        if names:
            newest = next(iter(naming.find(self._folder, self._save_name)), None)
            logger.warning(
                "%s lists %s, which %s not there any more; %s",
                self.path,
                ", ".join(names),
                "is" if len(names) == 1 else "are",
                "there is no other" if newest is None else f"the newest that is there is {newest.name}",
            )

    def _read_json(self) -> dict[str, list[Any]]:
        """Return the two lists of the file, empty if it is missing or damaged."""
        try:
            content = json.loads(self.path.read_bytes())
            lists = {"checkpoints": content["checkpoints"], "found": content.get("found", [])}
            if not all(isinstance(entries, list) for entries in lists.values()):
                raise ValueError("no lists")
            return lists
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("%s: cannot be read (%s)", self.path, error.strerror)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            logger.warning("%s: is damaged; the checkpoints are read instead", self.path)
        return {"checkpoints": [], "found": []}

    def _read_missing(self, listed: Iterable[str]) -> list[Entry]:
        """Return entries, oldest first, of the model's checkpoints that are not listed.

        The scores of those that monitored something else than the newest of them are not compared.
        """
        entries: list[Entry] = []
        monitored: list[Any] | None = None
        for path in naming.find(self._folder, self._save_name):
            if path.name in listed:
                continue
            try:
                content = read_checkpoint_header(path)
                described = _describe(content, path.name)
            except (files.CheckpointError, OSError, KeyError, TypeError, AttributeError) as error:
                logger.debug("not counted among the best: %s: %r", path, error)
                continue
            if content.get("save_name") != self._save_name or not _is_valid(described):
                continue
            if (described["step"], described["epoch"]) != naming.counters(path.name, self._save_name):
                continue  # It was renamed.
            config = content.get("config")
            options = [config.get(name) for name in ("monitor", "mode")] if isinstance(config, dict) else None
            monitored = options if monitored is None else monitored
            if options != monitored:
                described |= {"score": None, "improved": False}
            entries.append(described)
        return entries[::-1]


def _describe(content: dict[str, Any], name: str) -> Entry:
    """Return the entry of a checkpoint, computed from its content."""
    state, score = content["state"], content["monitor"]["score"]
    is_compared = content["monitor"]["step"] == state["step"]
    if not is_compared or (isinstance(score, float) and math.isnan(score)):
        score = None
    improved = is_compared and state["best_step"] == state["step"]
    return {"file": name, "epoch": state["epoch"], "step": state["step"], "score": score, "improved": improved}


def _is_valid(entry: Any) -> bool:
    """Return whether an entry has all values, each of its type, and the plain name of a file in the folder."""
    if not isinstance(entry, dict) or not entry.keys() >= {"file", "epoch", "step", "score", "improved"}:
        return False
    score, name = entry["score"], entry["file"]
    return (
        all(type(entry[count]) is int and entry[count] >= 0 for count in ("epoch", "step"))
        and type(entry["improved"]) is bool
        and (score is None or (type(score) in (int, float) and not math.isnan(score)))
        and isinstance(name, str)
        and name == Path(name).name
        and name not in ("", "..")
        and "\0" not in name
    )
