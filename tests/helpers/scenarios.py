"""Scenarios: functions that several ranks run, each of which stands directly above the test of its result.

Starting processes takes seconds, so all scenarios for as many ranks share one launch:

    @scenario(ranks=2)
    def sum_of_the_ranks(root: Path, world: World) -> int:
        return sum(world.gather(world.rank))

    def test_ranks_are_numbered_from_zero(result: Results) -> None:
        assert result(sum_of_the_ranks, ranks=2) == 1
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from helios_lite.processes.launch import launch
from helios_lite.processes.world import World, join_world

Function = TypeVar("Function", bound=Callable[[Path, World], Any])

_registered: dict[int, list[Callable[[Path, World], Any]]] = {}


def scenario(*, ranks: int | tuple[int, ...]) -> Callable[[Function], Function]:
    """Register a function of the top level of a module to be run in order by so many processes.

    It is called on every rank with a folder that all scenarios share and with the world; what rank 0 returns is the
    result. What is compared among ranks it gathers itself. It must not need another scenario. Given several numbers of
    ranks, it runs once for each.
    """

    def register(function: Function) -> Function:
        for number in (ranks,) if isinstance(ranks, int) else ranks:
            _registered.setdefault(number, []).append(function)
        return function

    return register


class Results:
    """What the scenarios of one module have returned; each number of ranks is launched when it is first asked for.

    A scenario that fails on any rank ends the launch. It fails the tests that ask for its result and no others: what
    was finished before is kept, and a further launch runs what comes after.

    Args:
        module: the name of the module.
        root: the folder that scenarios get.
    """

    def __init__(self, module: str, root: Path) -> None:
        self.module, self.root = module, root
        self._errors: dict[int, dict[str, BaseException]] = {}

    def __call__(self, function: Callable[[Path, World], Any], *, ranks: int) -> Any:
        """Return the result of a scenario, or raise what it has raised."""
        folder = self.root / f"results-{ranks}"
        if ranks not in self._errors:
            self._errors[ranks] = self._launch(ranks, folder)
        if function.__name__ in self._errors[ranks]:
            raise self._errors[ranks][function.__name__]
        return torch.load(folder / function.__name__, weights_only=False)

    def _launch(self, ranks: int, folder: Path) -> dict[str, BaseException]:
        folder.mkdir()
        errors: dict[str, BaseException] = {}
        pending = [each for each in _registered[ranks] if each.__module__ == self.module]
        while pending:
            try:
                arguments = {"scenarios": pending, "root": self.root, "folder": folder}
                launch(_run, arguments, processes=ranks, max_restarts=0)
            except Exception as error:
                unfinished = [each for each in pending if not (folder / each.__name__).exists()]
                late = unfinished if isinstance(error, TimeoutError) else unfinished[:1]  # The alarm rings only once.
                errors |= {each.__name__: error for each in late}
            pending = [
                each for each in pending if not (folder / each.__name__).exists() and each.__name__ not in errors
            ]
        return errors


def _run(scenarios: list[Callable[[Path, World], Any]], root: Path, folder: Path) -> None:
    """Run in every process; leave each result in a file that has the scenario's name."""
    world = join_world("cpu")
    for function in scenarios:
        value = function(root, world)
        world.gather(None)  # It is finished when all ranks have finished.
        if world.is_main:
            torch.save(value, folder / f"{function.__name__}.part")
            (folder / f"{function.__name__}.part").rename(folder / function.__name__)
