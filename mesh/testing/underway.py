"""What a mesh is doing, as far as a test has to know: whether to wait for something real, or to let time pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mesh.actor import QUEUED, STARTED, BitActor
from mesh.node import Node
from mesh.run import Run

NOTHING: Final = 0
"""Whatever runs waits for time to pass."""
PERHAPS: Final = 1
"""Something may be waiting for the world outside: a coroutine that is suspended, a commit."""
SURELY: Final = 2
"""A function runs in a thread or a process, and will say when it has ended."""


def underway(nodes: Iterable[Node]) -> int:
    """How much of what these nodes do goes on without the fake clock: `NOTHING`, `PERHAPS` or `SURELY`."""
    most = NOTHING
    for node in nodes:
        for run in running(node):
            most = max(most, _of_run(run))
        if _emits_on_the_way(node):
            most = max(most, PERHAPS)
    return most


def busy(nodes: Iterable[Node]) -> bool:
    """Whether transactions run, or emitted signals are on their way to somebody who is there."""
    return any(running(node) or _emits_on_the_way(node) for node in nodes)


def running(node: Node) -> list[Run]:
    """Transactions that have not settled."""
    return [run for run in node.supervisor.runs.values() if not run.settled] if hasattr(node, "supervisor") else []


def in_threads(nodes: Iterable[Node]) -> list[str]:
    """Addresses of the steps that run in a thread or a process."""
    return [
        actor.signal.name
        for node in nodes
        for run in running(node)
        for actor in run.actors.values()
        if _of_actor(actor) == SURELY
    ]


def described(node: Node) -> Iterator[str]:
    """A line for each transaction that has not settled: what it waits for."""
    for run in running(node):
        waits = [_actor_waits(actor) for actor in run.actors.values()]
        waits += [
            f"{run.saga.plan.steps[index].name!r} waits for its retry"
            for index in run.retries
            if index < len(run.plan.steps)
        ]
        if run.grace is not None:
            waits.append("its undo waits for a late reply")
        yield f"{run.plan.workflow!r} {run.saga.transaction}: {', '.join(waits) or 'waits for its turn'}"


def _actor_waits(actor: BitActor) -> str:
    signal = actor.signal
    what = f"{actor.step.name!r} ({signal.direction}, attempt {signal.attempt})"
    if actor.state == QUEUED:
        return f"{what} waits for a place to run"
    return (
        f"{what} runs on the {actor.step.spawn}" if actor.step.spawn == "loop" else f"{what} runs ({actor.step.spawn})"
    )


def _of_run(run: Run) -> int:
    if not run.actors and not run.retries and run.grace is None:
        return PERHAPS
    return max((_of_actor(actor) for actor in run.actors.values()), default=NOTHING)


def _of_actor(actor: BitActor) -> int:
    if actor.state != STARTED:
        return NOTHING
    runs = actor.host.preparing.runs(actor)
    if runs:
        return max(map(_of_actor, runs))
    spawners = actor.host.spawners
    if actor.spawner is spawners.get("thread") or actor.spawner is spawners.get("process"):
        return SURELY
    judge = actor.step.compensate or actor.step.backoff
    in_thread = actor.compensating is not None and not getattr(judge, "is_async", True) and actor.step.spawn != "inline"
    return SURELY if in_thread else PERHAPS


def _emits_on_the_way(node: Node) -> bool:
    return hasattr(node, "outbox") and node.outbox.on_the_way()
