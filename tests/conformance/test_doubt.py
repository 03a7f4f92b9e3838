"""What is under way when something fails: stopped or awaited, then undone; and what nobody knows the end of is in
doubt."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bitactor import Context, UndoFailed, Workflow
from bitactor.messages.ids import idempotency_key
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of
from tests.e2e.support import BOUND, audit, finish, pass_time, pulse_lines, spawned, turns, until


@claim("Compensation and undo", "What is in flight when something fails is cancelled or awaited, then undone.")
@pytest.mark.parametrize("way", ["on the loop, ends at once", "on the loop, takes its time", "in a thread"])
async def test_in_flight_on_failure(store: str, way: str) -> None:
    workflow = Workflow("siblings", ttl=1, grace=BOUND)
    begun, may_end = threading.Event(), threading.Event()
    log: list[str] = []

    if way == "in a thread":

        def sibling() -> str:
            begun.set()
            may_end.wait(BOUND)
            log.append("ended")
            return "done all the same"
    else:

        async def sibling() -> str:  # type: ignore[misc]
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.append("asked to stop")
                if way == "on the loop, takes its time":
                    await until(may_end.is_set)
            log.append("ended")
            return "done all the same"

    workflow.step(name="sibling")(sibling).undo(lambda result: log.append(f"undo {result}"))

    @workflow.step
    async def breaks() -> None:
        await until(begun.is_set)
        raise ValueError("now")

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: "failed breaks" in pulse_lines(transaction))
        if way != "on the loop, ends at once":
            expected = [] if way == "in a thread" else ["asked to stop"]
            await until(lambda: log == expected)
            await turns()
            assert (transaction.status, log) == ("running", expected)
        may_end.set()
        assert await transaction.ended(BOUND) == "compensated"
        assert log == [*([] if way == "in a thread" else ["asked to stop"]), "ended", "undo done all the same"]
        assert pulse_lines(transaction).index("completed sibling") < pulse_lines(transaction).index("undone ~sibling")
        audit(transaction)


@claim(
    "Compensation and undo",
    "A bare `undo` is only called when the step is known to have happened; `undo(in_doubt=True)` also when nobody "
    "knows.",
)
@pytest.mark.parametrize("takes_doubt", [True, False])
async def test_undo_in_doubt(store: str, takes_doubt: bool) -> None:
    workflow = Workflow("doubtful", ttl=2)
    taken_back: list[Any] = []
    begun = asyncio.Event()

    @workflow.step
    async def before() -> str:
        return "before"

    before.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def hangs(before: str) -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    @hangs.undo(in_doubt=takes_doubt)
    async def unhang(result: str | None, before: str, ctx: Context) -> None:
        taken_back.append((result, before, ctx.in_doubt, ctx.forward_key))

    @workflow.step
    async def breaks(before: str) -> None:
        await begun.wait()
        raise ValueError("now")

    breaks.undo(lambda: taken_back.append("the failed one is not undone"))
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        if takes_doubt:
            assert transaction.status == "compensated"
            assert taken_back == [(None, "before", True, idempotency_key(transaction.id, "hangs")), "before"]
        else:
            assert transaction.status == "stuck"
            assert taken_back == ["before"], "the rollback goes on"
            errors = (await failure_of(transaction)).errors
            assert isinstance(errors[0], ValueError)
            assert any(isinstance(error, UndoFailed) and "doubtful/hangs" in str(error) for error in errors)


@claim(
    "Outcomes of a step",
    "A hop that exceeded its timeout is in doubt: only an undo that can take doubt is called for it.",
)
@pytest.mark.parametrize("takes_doubt", [False, True])
async def test_a_timed_out_hop_is_in_doubt(store: str, takes_doubt: bool) -> None:
    clock = FakeClock()
    workflow = Workflow("doubtful", grace=1.0)
    seen: list[Any] = []

    @workflow.step(timeout=1.0)
    async def hangs() -> str:
        await asyncio.Event().wait()
        return "never"

    @hangs.undo(in_doubt=takes_doubt)
    async def unhang(result: str | None, ctx: Context) -> None:
        seen.append((result, ctx.in_doubt))

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "hangs")
        await pass_time(clock, 1.1)
        await pass_time(clock, 5)
        assert await transaction.ended(BOUND) == ("compensated" if takes_doubt else "stuck")
        assert seen == ([(None, True)] if takes_doubt else [])


@claim("Compensation and undo", "Nothing is left running after a failure, and nothing is abandoned.")
async def test_nothing_is_left_running(store: str) -> None:
    workflow = Workflow("siblings")
    ended: list[str] = []
    began = [asyncio.Event() for _ in range(5)]
    for number in range(5):

        @workflow.step(name=f"s{number}")
        async def hangs(number: int = number) -> None:
            try:
                began[number].set()
                await asyncio.Event().wait()
            finally:
                ended.append(f"s{number}")

    @workflow.step
    async def breaks() -> None:
        for event in began:
            await event.wait()
        raise ValueError

    async with Mesh(workflow, store=store) as mesh:
        before = len(asyncio.all_tasks())
        transaction = await finish(mesh, workflow)
        assert transaction.status == "compensated"
        assert sorted(ended) == [f"s{number}" for number in range(5)]
        await turns()
        assert len(asyncio.all_tasks()) == before and mesh.node.about()["running"] == 0
