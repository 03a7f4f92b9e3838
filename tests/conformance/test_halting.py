"""Halting: what is under way is awaited and kept, and it goes on from there when somebody says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bitactor import Halt, InvalidInput, Retry, Workflow
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes, begin, halting
from tests.conformance.support import failure_of
from tests.e2e.support import BOUND, audit, pulse_lines, turns, until


@claim(
    "Outcomes of a step",
    "It returns or raises `Halt(reason)`: in-flight hops are awaited and kept; the transaction is stored as halted.",
)
@pytest.mark.parametrize("raises", [False, True])
async def test_halt(store: str, raises: bool) -> None:
    workflow = Workflow("halts", ttl=2)
    go = asyncio.Event()
    runs: list[str] = []

    @workflow.step
    async def asks() -> Any:
        runs.append("asks")
        if runs.count("asks") == 2:
            return "answered"
        if raises:
            raise Halt("ask somebody")
        return Halt("ask somebody")

    @workflow.step
    async def slow() -> str:
        runs.append("slow")
        await go.wait()
        return "slow"

    @workflow.step
    async def last(slow: str, asks: str) -> list[str]:
        runs.append("last")
        return [slow, asks]

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: "halted asks" in pulse_lines(transaction))
        assert transaction.status == "running", "the slow one is awaited"
        go.set()
        assert await transaction.ended(BOUND) == "halted"
        failure = await failure_of(transaction)
        assert "ask somebody" in str(failure) and failure.status == "halted"
        assert "completed slow" in pulse_lines(transaction)
        assert [row.transaction for row in await mesh.transactions(status="halted")] == [transaction.id]
        await transaction.resume()
        assert await transaction.result(BOUND) == ["slow", "answered"]
        assert sorted(runs[:2]) == ["asks", "slow"] and runs[2:] == ["asks", "last"]
        assert mesh.node.about()["running"] == 0
        audit(transaction)


@claim(
    "Outcomes of a step",
    "A halted transaction can be resumed, here or in another process, and finished hops are not run again.",
)
async def test_resuming_what_another_process_has_begun(sqlite: str, tmp_path: Path) -> None:
    transaction = begin("halting", sqlite, tmp_path)
    notes = Notes(tmp_path)
    assert notes.lines == ["first", "asks"]
    workflow = halting(notes)
    async with Mesh(workflow, store=sqlite) as mesh:
        taken = await mesh.transaction(transaction)
        assert taken.status == "halted"
        await taken.resume()
        assert await taken.result(BOUND) == "answered"
        audit(taken)
    assert notes.lines == ["first", "asks", "asks", "last"]


@claim(
    "Halting and cancelling",
    "It is resumed by another mesh on the same store while its own is open, which then knows that it has ended.",
)
async def test_resume_by_another_mesh_on_the_same_file(sqlite: str) -> None:
    workflow = Workflow("handed over", ttl=2)
    runs: list[str] = []
    answers = [Halt("look"), "fine"]

    @workflow.step
    async def first() -> str:
        runs.append("first")
        return "first"

    @workflow.step
    async def asks(first: str) -> Any:
        runs.append("asks")
        return answers.pop(0)

    async with Mesh(workflow, store=sqlite) as one:
        transaction = await one.stimulate(workflow)
        assert await transaction.ended(BOUND) == "halted"
        async with Mesh(workflow, store=sqlite) as other:
            theirs = await other.transaction(transaction.id)
            assert theirs.status == "halted"
            await theirs.resume()
            assert await theirs.result(BOUND) == "fine"
            audit(theirs)
        assert runs == ["first", "asks", "asks"]
        with pytest.raises(InvalidInput, match="completed"):
            await transaction.resume()
        assert one.node.about()["running"] == 0
    async with Mesh(workflow, store=sqlite) as third:
        assert (await third.transaction(transaction.id)).status == "completed"


@claim("Halting and cancelling", "A mesh that opens the store later does not resume it of itself.")
async def test_halted_then_reopened(sqlite: str) -> None:
    workflow = Workflow("over night", ttl=2)
    answers = [Halt("till tomorrow"), "fine"]

    @workflow.step
    async def asks() -> Any:
        return answers.pop(0)

    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await mesh.stimulate(workflow)
        assert await transaction.ended(BOUND) == "halted"
    async with Mesh(workflow, store=sqlite) as mesh:
        again = await mesh.transaction(transaction.id)
        assert again.status == "halted", "opening does not resume it"
        await turns()
        await again.resume()
        assert await again.result(BOUND) == "fine"


@claim("Halting and cancelling", "Resuming twice at once is once; the second is refused.")
async def test_resuming_twice_at_once_is_once(store: str) -> None:
    workflow = Workflow("twice", ttl=1)
    runs: list[int] = []

    @workflow.step
    async def asks() -> Any:
        runs.append(1)
        return Halt("look") if len(runs) == 1 else "fine"

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        assert await transaction.ended(BOUND) == "halted"
        other = await mesh.transaction(transaction.id)
        await transaction.resume()
        with pytest.raises(InvalidInput):
            await transaction.resume()
        with pytest.raises(InvalidInput):
            await other.resume()
        assert await transaction.result(BOUND) == "fine"
        assert len(runs) == 2 and mesh.node.about()["running"] == 0


@claim("Halting and cancelling", "A failure of what is awaited while halting undoes it all.")
async def test_a_failure_while_halting_undoes(store: str) -> None:
    workflow = Workflow("halt and fail", ttl=1)
    taken_back: list[Any] = []
    halted = asyncio.Event()

    @workflow.step
    async def done() -> str:
        return "done"

    done.undo(lambda result: taken_back.append(result))

    @workflow.step
    async def halts() -> Halt:
        return Halt("look")

    @workflow.step
    async def breaks() -> None:
        await halted.wait()
        raise ValueError("no")

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: "halted halts" in pulse_lines(transaction))
        halted.set()
        assert await transaction.ended(BOUND) == "compensated"
        assert taken_back == ["done"]
        audit(transaction)


@claim("Halting and cancelling", "What waits for another try when it halts has that try when it is resumed.")
async def test_halting_while_another_waits_for_a_retry(store: str) -> None:
    workflow = Workflow("halt and retry", ttl=1)
    resumed = [False]
    attempts: list[int] = []

    @workflow.step
    async def halts() -> Any:
        await until(lambda: attempts)
        return 1 if resumed[0] else Halt("look")

    @workflow.step(retries=1)
    async def retries(attempt: int) -> Any:
        attempts.append(attempt)
        return 2 if resumed[0] else Retry(after=1000)

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        assert await transaction.ended(BOUND) == "halted"
        resumed[0] = True
        await transaction.resume()
        assert await transaction.result(BOUND) == 2
        assert attempts == [1, 2]
        audit(transaction)
