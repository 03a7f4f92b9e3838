"""The activity of a mesh, as far as a test has to know it: whether to wait for something real, or to let time pass, and
what is still there at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Final

from mesh.hops.executor import Executor
from mesh.hops.ports import QUEUED, STARTED, Actor
from mesh.runtime.live import LiveTransaction
from mesh.runtime.node import Node

QUIESCENT: Final = 0
"""Activity in which whatever runs waits for time to pass."""
MAYBE_WORKING: Final = 1
"""Activity in which something may be waiting for the world outside: a coroutine that is suspended, a commit."""
WORKING: Final = 2
"""Activity in which a function runs in a thread or a process, and will say when it has ended."""

LINGER: Final = 2.0
"""Real seconds that transactions are given to end by themselves."""
_POLL_SECONDS: Final = 0.002
_TURNS: Final = 20
"""Turns of the loop that are enough for everything that waits for nobody else."""


async def turns() -> None:
    """Let everything happen that waits for nobody else."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def activity(nodes: Iterable[Node]) -> int:
    """How much of what these nodes do goes on without the fake clock: `QUIESCENT`, `MAYBE_WORKING` or `WORKING`."""
    most = QUIESCENT
    for node in nodes:
        for live in node.unsettled():
            most = max(most, _run_activity(live, node.executor))
        if node.delivering():
            most = max(most, MAYBE_WORKING)
    return most


def has_unfinished(nodes: Iterable[Node]) -> bool:
    """Whether transactions run, or emitted signals are on their way to somebody who is there."""
    return any(node.unsettled() or node.delivering() for node in nodes)


def steps_in_threads(nodes: Iterable[Node]) -> list[str]:
    """Addresses of the steps that run in a thread or a process."""
    return [
        actor.signal.name
        for node in nodes
        for live in node.unsettled()
        for actor in live.actors.values()
        if _actor_activity(actor, node.executor) == WORKING
    ]


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
        await turns()
        while has_unfinished(self._nodes) and loop.time() < until:
            if clock_frozen and activity(self._nodes) == QUIESCENT:
                break
            await asyncio.sleep(_POLL_SECONDS)
        self._running = [line for node in self._nodes for line in _describe_unfinished(node)]

    async def failure_message(self) -> str:
        """The text that tells the user what is left, once the nodes are closed; empty if nothing is."""
        await turns()
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


def _describe_unfinished(node: Node) -> Iterator[str]:
    """A line for each transaction that has not settled, which says what it waits for."""
    for live in node.unsettled():
        waits = [_actor_waits(actor) for actor in live.actors.values()]
        waits += [
            f"{live.state.plan.steps[index].name!r} waits for its retry"
            for index in live.retry_timers
            if index < len(live.plan.steps)
        ]
        if live.grace_timer is not None:
            waits.append("its undo waits for a late reply")
        yield f"{live.plan.workflow!r} {live.state.transaction}: {', '.join(waits) or 'waits for its turn'}"


def _actor_waits(actor: Actor) -> str:
    signal = actor.signal
    what = f"{actor.step.name!r} ({signal.direction}, attempt {signal.attempt})"
    if actor.state == QUEUED:
        return f"{what} waits for a place to run"
    return f"{what} runs on the loop" if actor.spawner.traits.on_loop else f"{what} runs ({actor.step.spawn})"


def _run_activity(live: LiveTransaction, executor: Executor) -> int:
    if not live.actors and not live.retry_timers and live.grace_timer is None:
        return MAYBE_WORKING
    return max((_actor_activity(actor, executor) for actor in live.actors.values()), default=QUIESCENT)


def _actor_activity(actor: Actor, executor: Executor) -> int:
    if actor.state != STARTED:
        return QUIESCENT
    runs = executor.preparation.runs(actor)
    if runs:
        return max(_actor_activity(run, executor) for run in runs)
    if not actor.spawner.traits.on_loop:
        return WORKING
    callback = actor.step.compensate or actor.step.backoff
    in_thread = (
        actor.compensating is not None
        and not getattr(callback, "is_async", True)
        and executor.spawners[actor.step.spawn].traits.interruptible
    )
    return WORKING if in_thread else MAYBE_WORKING


def _describe_task(task: asyncio.Task[Any]) -> str:
    code = getattr(task.get_coro(), "cr_code", None)
    where = f", {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
    return f"{task.get_name()!r}: {getattr(task.get_coro(), '__qualname__', task.get_coro())}{where}"
