"""Scenarios: functions that several ranks run, each of which stands directly above the test of its result.

Starting processes takes seconds, so all scenarios for as many ranks share one launch:

    @scenario(ranks=2)
    def sum_of_the_ranks(root: Path, world: World) -> int:
        return sum(world.gather(world.rank))

    def test_ranks_are_numbered_from_zero(result: Results) -> None:
        assert result(sum_of_the_ranks, ranks=2) == 1
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from helios_lite.distributed import World, join_world
from helios_lite.launch import launch

Function = TypeVar("Function", bound=Callable[[Path, World], Any])

_registered: dict[int, list[Callable[[Path, World], Any]]] = {}


def scenario(*, ranks: int | tuple[int, ...]) -> Callable[[Function], Function]:
    """Register a function of the top level of a module to be run in order by so many processes.

    It is called on every rank with a folder that all scenarios share and with the world; what rank 0 returns is the
    result. What is compared among ranks it gathers itself. Given several numbers of ranks, it runs once for each.
    """

    def register(function: Function) -> Function:
        for number in (ranks,) if isinstance(ranks, int) else ranks:
            _registered.setdefault(number, []).append(function)
        return function

    return register


class ScenarioError(Exception):
    """A scenario has failed; the message is the traceback of every rank on which it did."""


class Results:
    """What the scenarios of one module have returned; each number of ranks is launched when it is first asked for.

    Args:
        module: the name of the module.
        root: the folder that scenarios get.
    """

    def __init__(self, module: str, root: Path) -> None:
        self.module, self.root = module, root
        self._launched: dict[int, dict[str, tuple[Any, str]] | BaseException] = {}

    def __call__(self, function: Callable[[Path, World], Any], *, ranks: int) -> Any:
        """Return the result of a scenario.

        Raises:
            ScenarioError: it has failed. The other scenarios have run nevertheless, unless it has left one rank alone
                in a collective: then the launch as a whole fails, at the latest by the deadline of the test module.
        """
        if ranks not in self._launched:
            scenarios = [each for each in _registered[ranks] if each.__module__ == self.module]
            try:
                arguments = {"scenarios": scenarios, "root": self.root}
                self._launched[ranks] = launch(_run, arguments, processes=ranks, max_restarts=0)
            except BaseException as error:
                self._launched[ranks] = error
        found = self._launched[ranks]
        if isinstance(found, BaseException):
            raise found
        value, errors = found[function.__name__]
        if errors:
            raise ScenarioError(errors)
        return value


def _run(scenarios: list[Callable[[Path, World], Any]], root: Path) -> dict[str, tuple[Any, str]]:
    """Run in every process; return each scenario's value and the tracebacks of the ranks where it failed, by name."""
    world = join_world("cpu")
    found = {}
    for function in scenarios:
        value, error = None, ""
        try:
            value = function(root, world)
        except Exception:
            error = f"on rank {world.rank}:\n{traceback.format_exc()}"
        found[function.__name__] = value, "\n".join(filter(None, world.gather(error)))
    return found
