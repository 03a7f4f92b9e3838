"""Cancelling: what is under way is stopped and what was done is undone, at any time before the end."""

from __future__ import annotations

import asyncio
import threading

from bitactor import Cancelled, Halt, Retry, Workflow
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of
from tests.e2e.support import BOUND, audit, pulse_lines, spawned, turns, until


@claim("Compensation and undo", "What is in flight is stopped on a cancel, too, and the rest undone.")
async def test_cancel_undoes(store: str) -> None:
    workflow = Workflow("amid", ttl=2)
    log: list[str] = []
    workflow.step(name="a")(lambda: "a").undo(lambda result: log.append(result))

    @workflow.step
    async def hangs(a: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("stopped")

    hangs.undo(in_doubt=True)(lambda result, ctx: log.append("hangs"))
    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "hangs")
        assert await transaction.cancel("changed my mind") == "cancelled"
        assert log == ["stopped", "hangs", "a"]
        audit(transaction)


@claim(
    "Halting and cancelling",
    "A cancel right after the stimulus is one, too; waiting for the result raises `Cancelled`, with its reason.",
)
async def test_cancel_before_the_first_hop(store: str) -> None:
    workflow = Workflow("early", ttl=1)

    @workflow.step
    async def only() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        assert await transaction.cancel("changed my mind") == "cancelled"
        failure = await failure_of(transaction)
        assert isinstance(failure.__cause__, Cancelled) and "changed my mind" in str(failure)
        assert mesh.node.about()["running"] == 0
        audit(transaction)


@claim("Halting and cancelling", "A cancel ends a wait for another try, at once.")
@claim("What users of durable systems complain of", "Cancelling a run that is waiting for a retry does nothing.")
async def test_cancel_during_a_wait_for_a_retry(store: str) -> None:
    workflow = Workflow("waiting", ttl=2)
    taken_back: list[str] = []

    @workflow.step
    async def a() -> str:
        return "a"

    a.undo(lambda result: taken_back.append(result))

    @workflow.step(retries=5)
    async def b(a: str) -> Retry:
        return Retry(after=3600)

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: "retried b" in pulse_lines(transaction))
        assert await transaction.cancel() == "cancelled"
        assert taken_back == ["a"] and pulse_lines(transaction).count("spawned b") == 1
        assert len(mesh.node.wheel) == 0
        audit(transaction)


@claim(
    "Halting and cancelling",
    "A cancel while it undoes, or after its end, is too late: it waits for the end, and changes nothing.",
)
async def test_cancel_while_undoing_and_after_the_end(store: str) -> None:
    workflow = Workflow("too late", ttl=2)
    undoing, go = asyncio.Event(), asyncio.Event()

    @workflow.step
    async def a() -> str:
        return "a"

    @a.undo
    async def una(result: str) -> None:
        undoing.set()
        await go.wait()

    @workflow.step
    async def b(a: str) -> None:
        raise ValueError

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(undoing.is_set)
        cancelling = asyncio.ensure_future(transaction.cancel())
        await turns()
        assert not cancelling.done()
        go.set()
        assert await cancelling == "compensated"
        before = pulse_lines(transaction)
        assert await transaction.cancel() == "compensated"
        await turns()
        assert pulse_lines(transaction) == before
        audit(transaction)


@claim("Halting and cancelling", "A halted transaction can be cancelled, by two at once, too.")
async def test_cancel_of_a_halted_one(store: str) -> None:
    workflow = Workflow("halted", ttl=2)
    taken_back: list[str] = []

    @workflow.step
    async def a() -> str:
        return "a"

    a.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def b(a: str) -> Halt:
        return Halt("look")

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        assert await transaction.ended(BOUND) == "halted"
        assert await asyncio.gather(transaction.cancel(), transaction.cancel()) == ["cancelled", "cancelled"]
        assert taken_back == ["a"]
        assert mesh.node.about()["running"] == 0
        audit(transaction)


@claim(
    "Halting and cancelling",
    "A hop that still waits for a thread when it is cancelled is known not to have begun, and is not undone.",
)
async def test_cancel_while_a_hop_waits_for_a_thread(store: str) -> None:
    blocker, waiting = Workflow("blocker", ttl=1), Workflow("waiting", ttl=1)
    go, begun = threading.Event(), threading.Event()
    runs: list[object] = []

    @blocker.step
    def block() -> None:
        begun.set()
        go.wait(BOUND)

    @waiting.step
    def never() -> None:
        runs.append(1)

    never.undo(lambda result: runs.append("undone"))
    async with Mesh(blocker, waiting, store=store, threads=1) as mesh:
        first = await mesh.stimulate(blocker)
        await until(begun.is_set)
        transaction = await mesh.stimulate(waiting)
        await spawned(transaction, "never")
        assert await transaction.cancel() == "cancelled"
        go.set()
        await first.result(BOUND)
        assert runs == [], "it is known not to have begun"
        audit(transaction)
