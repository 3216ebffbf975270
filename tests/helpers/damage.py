"""What may happen to the files of a run folder, and what a run must then do."""

import contextlib
import logging
import random
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_lite import FitResult
from helios_lite.checkpoints import files, naming
from helpers import resumable
from helpers.compare import same
from helpers.processes import deadline

OPTIONS: dict[str, Any] = {"save_every_steps": 1, "keep_last": 3, "async_save": False}
NOT_OURS = {"checkpoints/notes.txt": b"mine", "checkpoints/rich.pth": b"mine too", "checkpoints/.x.tmp": b"and this"}


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """A context in which the system refuses to delete a file; the test is skipped where no file can be made so."""
    command = shutil.which("chattr")
    if command is None or subprocess.run([command, "+i", path], capture_output=True).returncode != 0:
        pytest.skip("needs the right to make a file immutable")
    try:
        yield
    finally:
        subprocess.run([command, "-i", path], check=True)


@contextlib.contextmanager
def replaced_by_folder(path: Path) -> Iterator[None]:
    """A context in which a folder is in the place of a file, which no process can delete as a file."""
    aside = path.with_name("aside")
    path.rename(aside)
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        aside.rename(path)


class Original:
    """A run that was stopped in its middle, and what it must end with.

    Attributes:
        root: where the stopped run is; it is copied for every case.
        expected: the outcome of a run that was never stopped.
        contents: the content of each checkpoint, by its (step, epoch).
        scores: what `validate` returns for each checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        whole, self.root = folder / "whole", folder / "stopped"
        for root, options in ((whole, {}), (self.root, {"max_steps": 6})):
            root.mkdir()
            resumable.trainer(root, **OPTIONS, **options).fit(resumable.Rich(root / "indices"), resumable.data())
        for name, content in NOT_OURS.items():
            (self.root / "rich" / name).write_bytes(content)
        (self.root / "rich/checkpoints/.rich_epoch_0_iter_2.pth.1.tmp").write_bytes(b"half")
        self.expected = resumable.outcome(whole)
        self.contents, self.scores = {}, []
        for path in naming.find(self.root / "rich/checkpoints", "rich"):
            content = torch.load(path, weights_only=True)
            self.contents[content["state"]["step"], content["state"]["epoch"]] = content
            model = resumable.Rich(self.root / "indices")
            self.scores.append(resumable.trainer(self.root).validate(model, resumable.data(), checkpoint=path))


def flip(path: Path, chance: random.Random) -> None:
    """Flip some bits."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 4))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    """Cut the end off, or all."""
    content = path.read_bytes()
    path.write_bytes(content[: chance.choice((0, chance.randrange(len(content) + 1)))])


def zero(path: Path, chance: random.Random) -> None:
    """Overwrite a part with zeros."""
    content = path.read_bytes()
    start = chance.randrange(len(content) + 1)
    length = min(len(content) - start, chance.randrange(1, 600))
    path.write_bytes(content[:start] + bytes(length) + content[start + length :])


def append(path: Path, chance: random.Random) -> None:
    """Append random bytes, or the file itself."""
    content = path.read_bytes()
    path.write_bytes(content + chance.choice((content, chance.randbytes(chance.randrange(1, 99)))))


def remove(path: Path, chance: random.Random) -> None:
    """Remove the file."""
    path.unlink()


def duplicate(path: Path, chance: random.Random) -> None:
    """Copy the file to another name, which may be that of an earlier or a later checkpoint."""
    name = chance.choice((f"{path.stem} copy{path.suffix}", f"rich_epoch_{chance.randrange(9)}_iter_5_x.pth"))
    shutil.copyfile(path, path.with_name(name))


def swap(path: Path, chance: random.Random) -> None:
    """Exchange the contents of two files of the same folder."""
    other = chance.choice([each for each in sorted(path.parent.iterdir()) if each.is_file() and not each.is_symlink()])
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def replace_by_folder(path: Path, chance: random.Random) -> None:
    """Put a folder in the place of the file."""
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path, chance: random.Random) -> None:
    """Put a link to a file elsewhere in the place of the file."""
    path.unlink()
    path.symlink_to(
        path.parents[2] / "elsewhere" if path.parent.name == "checkpoints" else path.parents[1] / "elsewhere"
    )


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    *(flip, cut, zero, append, remove, duplicate, swap, replace_by_folder, replace_by_link)
]
MAY_BE_REFUSED = {"replace_by_folder", "replace_by_link"}


class Case:
    """One damaged copy of a run folder.

    Args:
        original: what is copied.
        folder: where the copy goes.
        seed: the number of the case, which decides about everything.

    Attributes:
        story: what was done to which files.
    """

    def __init__(self, original: Original, folder: Path, seed: int) -> None:
        self.original, self.root = original, folder
        shutil.copytree(original.root, folder, ignore=shutil.ignore_patterns("elsewhere"))
        (folder / "elsewhere").write_bytes(b"elsewhere")
        self.run = folder / "rich"
        chance = random.Random(seed)
        self.story: list[tuple[str, str]] = []
        for _ in range(chance.choice((1, 1, 2, 3))):
            choices = [path for path in sorted(self.run.rglob("*")) if self.may_be_damaged(path)]
            if choices:
                path, damage = chance.choice(choices), chance.choice(DAMAGES)
                damage(path, chance)
                self.story.append((damage.__name__, path.relative_to(self.run).as_posix()))
        self.evaluates = chance.random() < 0.5
        self.not_ours = {name: (self.run / name).read_bytes() for name in NOT_OURS}
        self.log = _Log()

    def may_be_damaged(self, path: Path) -> bool:
        """Return whether a path is a file of the run."""
        return path.is_file() and not path.is_symlink() and path.relative_to(self.run).as_posix() not in NOT_OURS

    def problems(self) -> list[str]:
        """Evaluate, resume to the end, and return what is wrong with that; nothing if all is as it must be."""
        found: list[str] = []
        logging.getLogger().addHandler(self.log)
        try:
            with deadline(60):
                if self.evaluates:
                    found += self.evaluate()
                found += self.resume()
        except Exception as error:
            if not self.may_raise(error):
                found.append(f"raised {type(error).__name__}: {error}")
        finally:
            logging.getLogger().removeHandler(self.log)
        found += [f"{name} was changed" for name, content in self.not_ours.items() if self.read(name) != content]
        if self.read("../elsewhere") != b"elsewhere" and not self.links_to_logs():
            found.append("the target of a link was changed")
        return found

    def evaluate(self) -> list[str]:
        """Evaluate the best checkpoint."""
        valid = self.valid_files()
        metrics = resumable.trainer(self.root).validate(resumable.Rich(self.root / "indices"), resumable.data())
        if valid and metrics not in self.original.scores:
            return [f"{metrics} are those of no checkpoint"]
        return []

    def resume(self) -> list[str]:
        """Resume to the end."""
        valid, before = self.valid_files(), naming.find(self.run / "checkpoints", "rich")
        self.log.messages.clear()
        model = resumable.Rich(self.root / "indices")
        result = resumable.trainer(self.root, **OPTIONS).fit(model, resumable.data())
        found = []
        text = "\n".join(self.log.messages)
        chosen = valid[0] if valid else None
        if chosen is not None and f"({chosen.name})" not in text:
            found.append(f"did not continue from {chosen}")
        found += [
            f"{path} was passed over without a warning"
            for path in (before if chosen is None else before[: before.index(chosen)])
            if str(path) not in text
        ]
        found += self.compare(text)
        return found + self.check_best(result)

    def check_best(self, result: FitResult) -> list[str]:
        """Read the best checkpoint. Damage in its tensors, which a training does not read, must be told here."""
        best = result.best_checkpoint
        if best is None:
            return []
        try:
            step = files.read_file(best)["state"]["step"]
        except files.CheckpointError as error:
            return [] if str(best) in str(error) else [f"{error}: does not name {best}"]
        return [] if step == result.state.best_step else [f"{best} is not the best"]

    def compare(self, text: str) -> list[str]:
        """Compare the end with that of a run that was never stopped."""
        end, expected = resumable.outcome(self.root), self.original.expected
        found = [
            f"{name} differs"
            for name in expected
            if name not in ("rows", "metrics") and not same(end[name], expected[name])
        ]
        log_is_hurt = any("metrics.jsonl" in path for _, path in self.story) or ("swap" in dict(self.story))
        if str(self.run / "metrics.jsonl") in text:
            return found
        for part in ("rows", "metrics"):
            if not same(end[part], expected[part]) and not (log_is_hurt and len(end["rows"]) == len(expected["rows"])):
                found.append(f"{part} differ without a warning")
        return found

    def valid_files(self) -> list[Path]:
        """Return the files, newest first, that hold bit for bit what their name says. Appended bytes do not matter."""
        return [path for path in naming.find(self.run / "checkpoints", "rich") if self.is_valid(path)]

    def is_valid(self, path: Path) -> bool:
        epoch, step = map(int, re.findall(r"_(?:epoch|iter)_(\d+)", path.name))
        expected = self.original.contents.get((step, epoch))
        try:
            with zipfile.ZipFile(path) as archive:
                is_whole = archive.testzip() is None
            return expected is not None and is_whole and same(torch.load(path, weights_only=True), expected)
        except Exception:
            return False  # torch raises errors of many types for damaged files.

    def may_raise(self, error: Exception) -> bool:
        """Return whether nothing better could be done than to raise this error."""
        hurt = [Path(path).name for damage, path in self.story if damage in MAY_BE_REFUSED]
        return isinstance(error, OSError | RuntimeError) and any(name in str(error) for name in hurt)

    def links_to_logs(self) -> bool:
        """Return whether a log is a link: what is appended to it goes to its target, as its owner wanted."""
        return any(
            damage == "replace_by_link" and path in ("metrics.jsonl", "train.log") for damage, path in self.story
        )

    def read(self, name: str) -> bytes | None:
        path = self.run / name
        return path.read_bytes() if path.is_file() else None


class _Log(logging.Handler):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
