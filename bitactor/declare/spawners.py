"""What each spawner says of itself, for the rules about steps; `mesh` has the spawners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class SpawnerTraits:
    """What the rules ask of a spawner, a place where the functions of steps run."""

    refuses_def: str = ""
    """Why a `def` function cannot run there, said behind the spawner's name; empty: it can."""
    refuses_async: str = ""
    """The same of an `async def` function."""
    on_loop: bool = False
    """True: functions run on the node's event loop, as soon as they are started; False: elsewhere, given room."""
    interruptible: bool = True
    """True: an attempt whose time is up ends, even if its function goes on; False: functions, and the other `def`
    functions of their steps, run on the supervisor's own turn."""
    carries_objects: bool = True
    """True: functions run in the node's process, where resources, policies and middleware reach them."""
    imports: bool = False
    """True: a function is imported there by its name."""

    def refusal(self, is_async: bool) -> str:
        """Why an `async def` or a `def` function cannot run there; empty: it can."""
        return self.refuses_async if is_async else self.refuses_def


SPAWNERS: Final = {
    "inline": SpawnerTraits(
        refuses_async="runs on the supervisor's own turn and cannot await; make it `def` or use 'loop'",
        on_loop=True,
        interruptible=False,
    ),
    "loop": SpawnerTraits(
        refuses_def="needs `async def`; a `def` there would block everything; use 'thread' or 'inline'", on_loop=True
    ),
    "thread": SpawnerTraits(refuses_async="cannot await; make it `def` or use 'loop'"),
    "process": SpawnerTraits(carries_objects=False, imports=True),
}
"""Name of a spawner → what it says of itself; `mesh.spawners.register_spawner` adds one."""


def default_spawn(is_async: bool) -> str:
    """The name of the spawner of a function for which none is named."""
    return "loop" if is_async else "thread"


def spawn_beside(spawn: str, is_async: bool) -> str:
    """The name of the spawner of another function of a step: the step's own if that takes such a function."""
    return default_spawn(is_async) if SPAWNERS[spawn].refusal(is_async) else spawn
