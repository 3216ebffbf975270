"""The table of what each method of a program has in hand, from a recording of real calls in two processes.

python -m helpers.hook_table    # In tests/: writes it into docs/order_of_hooks.md
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from helios_lite import Callback, DataModule, Split
from helios_lite.processes.launch import launch
from helios_lite.processes.world import World, join_world
from helpers.models import HOOKS, Indices, Tiny, quiet

PAGE = Path(__file__).parents[2] / "docs" / "order_of_hooks.md"
TABLE = re.compile(r"^\| method \| of \|(?:.*\n\|)+.*\n", re.MULTILINE)
CALLS = ("fit", "validate", "test", "predict")
OF_THE_DATA = ("prepare_data", "setup", "teardown")
OF_A_MODEL = (
    *("setup", "load_state_dict", "load_for_testing", "append_to_banner"),
    *("train_step", "valid_step", "test_step", "predict_step", "have_metrics_improved", "should_save_checkpoint"),
    *("append_metadata_to_chkpt_name", "state_dict"),
)
NAMES = [*(f"DataModule.{name}" for name in OF_THE_DATA), *dict.fromkeys([*OF_A_MODEL, *HOOKS])]
Seen = tuple[str, str, int, str, str, str, str]  # Method, whose, rank, call, mode, split, batch.


class Predicting(Tiny):
    def predict_step(self, batch: Any, step: int) -> Any:
        return self.net(batch[1])


class Recording:
    """Notes every call of the methods of a program on this rank."""

    def __init__(self, rank: int) -> None:
        self.rank, self.call, self.seen = rank, "fit", set[Seen]()

    def of(self, kind: Any, names: Any, whose: str) -> Any:
        """Return a subclass that notes the calls of its methods."""

        def method(name: str) -> Any:
            def call(owner: Any, *arguments: Any, **options: Any) -> Any:
                self.note(owner, name if whose != "data" else f"DataModule.{name}", whose)
                return getattr(super(cls, owner), name)(*arguments, **options)

            return call

        cls = type(kind.__name__, (kind,), {name: method(name) for name in names})
        return cls

    def note(self, owner: Any, name: str, whose: str) -> None:
        mode = split = batch = ""
        if whose != "data" and name not in ("setup", "load_state_dict", "load_for_testing"):  # Which prepare a call.
            model = owner.model if isinstance(owner, Callback) else owner
            gradients = "with" if torch.is_grad_enabled() else "without"
            mode = f"{'training' if model.net.training else 'evaluation'}, {gradients} gradients"
            split, batch = f"`{model.split_name}`", "" if model.batch is None else "yes"
        self.seen.add((name, whose, self.rank, self.call, mode, split, batch))


def record(root: Path, world: World) -> list[Seen]:
    """Return what a program meets in all calls of a Trainer on this rank, also if it is resumed and if it fails."""
    recording = Recording(world.rank)
    program = recording.of(Predicting, dict.fromkeys([*OF_A_MODEL, *HOOKS]), "model")
    data = recording.of(DataModule, OF_THE_DATA, "data")(*[Split(Indices(8), batch_size=2) for _ in range(4)])
    callbacks = [recording.of(Callback, HOOKS, "callback")()]
    options = {"root": root, "async_save": False, "callbacks": callbacks, "print_banner": True}
    for limit in (1, 2):
        trainer = quiet(max_epochs=limit, save_every_steps=1, **options)
        trainer.fit(program(), data)
    model = program()
    for recording.call in CALLS[1:]:
        result = getattr(trainer, recording.call)(model, data)
        _ = list(result) if recording.call == "predict" else result
    recording.call = "test"
    quiet().test(program("untrained"), data)
    recording.call, data.train = "fit", None
    with contextlib.suppress(ValueError):  # There is no train split.
        quiet(**options).fit(program("failing"), data)
    return sorted(recording.seen)


def rows(seen: list[Seen]) -> Iterator[str]:
    """Yield the lines of the table, from what all ranks have recorded."""
    yield "| method | of | called by | ranks | networks | `split_name` | `batch` |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in NAMES:
        of_name = [each for each in seen if each[0] == name]

        def column(
            position: int, order: tuple[str, ...] = (), of_name: list[Seen] = of_name, separator: str = ", "
        ) -> str:
            values = {each[position] for each in of_name} - {""}
            return separator.join(
                sorted(values, key=lambda value: (value not in order, value in order and order.index(value), value))
            )

        ranks = "every" if {each[2] for each in of_name} == {0, 1} else "rank 0"
        whose = column(1, ("model",)).replace("callback", "callbacks")
        cells = [
            f"`{name}`",
            whose,
            column(3, CALLS),
            ranks,
            column(4, separator=" or "),
            column(5, ("`train`",)),
            column(6),
        ]
        yield f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def everywhere(root: Path, world: World) -> str:
    """Return the table. Call on every rank."""
    seen = sorted({each for part in world.gather(record(root, world)) for each in part})
    return "".join(f"{line}\n" for line in rows(seen))


def of_the_page() -> str:
    """Return the table that the page has."""
    (table,) = TABLE.findall(PAGE.read_text("utf-8"))
    return str(table)


def _of_all_ranks(root: Path) -> str:
    return everywhere(root, join_world("cpu"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = launch(_of_all_ranks, {"root": Path(folder)}, processes=2, max_restarts=0)
    PAGE.write_text(PAGE.read_text("utf-8").replace(of_the_page(), made), "utf-8")
