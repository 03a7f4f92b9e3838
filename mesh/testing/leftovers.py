"""Leftovers of a test: what is still there when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import Any, Final

from mesh.runtime.node import Node
from mesh.testing.activity import QUIESCENT, activity, describe_unfinished, has_unfinished

LINGER: Final = 2.0
"""Real seconds that transactions are given to end by themselves."""
_POLL_SECONDS: Final = 0.002
_TURNS: Final = 20


class Leftovers:
    """Looks for transactions that go on, functions that were given up and run on, and tasks that steps have begun and
    left.

    Args:
        nodes: all live on the loop that this is used on.
        before: tasks that are none of theirs.
    """

    def __init__(self, nodes: Sequence[Node], before: Container[asyncio.Task[Any]]) -> None:
        self._nodes = nodes
        self._before = before
        self._running: list[str] = []

    async def linger(self, seconds: float, *, clock_frozen: bool) -> None:
        """Let transactions end that do so by themselves, then note those that do not.

        Args:
            clock_frozen: time stands, so nothing that waits for time to pass will ever end.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        while has_unfinished(self._nodes) and loop.time() < until:
            if clock_frozen and activity(self._nodes) == QUIESCENT:
                break
            await asyncio.sleep(_POLL_SECONDS)
        self._running = [line for node in self._nodes for line in describe_unfinished(node)]

    async def failure_message(self) -> str:
        """The text that tells the user what is left, once the nodes are closed; empty if nothing is."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        said = []
        if self._running:
            said += ["Transactions were still running at the end of the test:", *self._running]
            said.append(
                "Wait for each (`await tx.ended()`, with a fake clock inside `fake_clock.run_until(…)`), cancel it, "
                "or close the mesh yourself (`await mesh.close(0)`) to say that it may be left."
            )
        zombies = [actor.signal.name for node in self._nodes for actor in node.executor.zombies]
        if zombies:
            said += ["Functions that were given up still run:", *map(repr, zombies)]
            said.append("Let them end before the test does.")
        tasks = [task for task in asyncio.all_tasks() if self._is_left(task)]
        if tasks and not zombies:
            said += ["Tasks were left behind, by steps or by the test:", *map(_describe_task, tasks)]
            said.append("Whoever begins a task awaits it, or cancels and awaits it; `asyncio.TaskGroup` does that.")
        return "\n".join(said)

    def _is_left(self, task: asyncio.Task[Any]) -> bool:
        return (
            task not in self._before
            and task is not asyncio.current_task()
            and not task.done()
            and not task.cancelling()
        )


def _describe_task(task: asyncio.Task[Any]) -> str:
    code = getattr(task.get_coro(), "cr_code", None)
    where = f", {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
    return f"{task.get_name()!r}: {getattr(task.get_coro(), '__qualname__', task.get_coro())}{where}"
