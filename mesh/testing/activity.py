"""The activity of a mesh, as far as a test has to know it: whether to wait for something real, or to let time pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

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


def activity(nodes: Iterable[Node]) -> int:
    """How much of what these nodes do goes on without the fake clock: `QUIESCENT`, `MAYBE_WORKING` or `WORKING`."""
    most = QUIESCENT
    for node in nodes:
        for live in unsettled_runs(node):
            most = max(most, _run_activity(live, node.executor))
        if _emissions_delivering(node):
            most = max(most, MAYBE_WORKING)
    return most


def has_unfinished(nodes: Iterable[Node]) -> bool:
    """Whether transactions run, or emitted signals are on their way to somebody who is there."""
    return any(unsettled_runs(node) or _emissions_delivering(node) for node in nodes)


def unsettled_runs(node: Node) -> list[LiveTransaction]:
    """Transactions that have not settled."""
    return (
        [live for live in node.supervisor.transactions.values() if not live.settled]
        if hasattr(node, "supervisor")
        else []
    )


def steps_in_threads(nodes: Iterable[Node]) -> list[str]:
    """Addresses of the steps that run in a thread or a process."""
    return [
        actor.signal.name
        for node in nodes
        for live in unsettled_runs(node)
        for actor in live.actors.values()
        if _actor_activity(actor, node.executor) == WORKING
    ]


def describe_unfinished(node: Node) -> Iterator[str]:
    """A line for each transaction that has not settled, which says what it waits for."""
    for live in unsettled_runs(node):
        waits = [_actor_waits(actor) for actor in live.actors.values()]
        waits += [
            f"{live.saga.plan.steps[index].name!r} waits for its retry"
            for index in live.retry_timers
            if index < len(live.plan.steps)
        ]
        if live.grace_timer is not None:
            waits.append("its undo waits for a late reply")
        yield f"{live.plan.workflow!r} {live.saga.transaction}: {', '.join(waits) or 'waits for its turn'}"


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


def _emissions_delivering(node: Node) -> bool:
    return hasattr(node, "emissions") and node.emissions.delivering()
