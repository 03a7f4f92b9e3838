"""Where orchwf (Go) was caught failing; each case passes here."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from bitactor import Backoff, CycleError, DuplicateName, Value, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes, begin, dying
from tests.conformance.support import journal, ran
from tests.e2e.support import BOUND, Peak, pass_time, pulse_lines, spawned, turns, until


@claim(
    "Where orchwf was caught",
    "Compensators, non-retryable errors, worker limits and priorities were accepted and never executed.",
)
async def test_options_are_executed() -> None:
    log: list[str] = []
    inside = Peak()
    workflow = Workflow("options")

    @workflow.step
    async def pay() -> None:
        return None

    pay.undo(lambda: log.append("compensated"))

    @workflow.step(retries=5, backoff=Backoff(initial=0), retry_on=ConnectionError, after=["pay"])
    async def ship() -> None:
        log.append("ship")
        raise ValueError("not worth another try")

    assert (await ran(workflow)).status == "compensated"
    assert log == ["ship", "compensated"]

    limited = Workflow("limited")
    order: list[int] = []
    for number in range(6):

        @limited.step(name=f"s{number}", limit="workers", priority=number)
        async def works(number: int = number) -> None:
            order.append(number)
            with inside:
                await turns(3)

    async with Mesh(limited, pools={"workers": 2}) as mesh:
        await (await mesh.stimulate(limited)).result(BOUND)
    assert inside.most == 2 and order[2:] == [5, 4, 3, 2], "the first two found a place at once"


@claim("Where orchwf was caught", 'A dependency cycle "completed successfully" with 0 steps run.')
def test_a_cycle() -> None:
    workflow = Workflow("circle")
    workflow.step(name="a", after=["b"])(lambda: None)
    with pytest.raises(CycleError):
        workflow.step(name="b", after=["a"])(lambda: None)
        workflow.check()


@claim("Where orchwf was caught", "Duplicate step ids were accepted.")
def test_duplicate_ids() -> None:
    workflow = Workflow("twice")
    workflow.step(name="a")(lambda: None)
    with pytest.raises(DuplicateName):
        workflow.step(name="a")(lambda: None)


@claim("Where orchwf was caught", "A cancelled context ran every step and said completed.")
async def test_cancelling() -> None:
    workflow = Workflow("cancelled", ttl=5)
    go = asyncio.Event()

    @workflow.step
    async def first() -> None:
        await go.wait()

    for number in range(3):
        workflow.step(name=f"s{number}", after=["first"])(lambda: None)
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "first")
        assert await transaction.cancel() == "cancelled"
        go.set()
        await turns()
        assert journal(transaction, "spawned") == ["first"]


@claim("Where orchwf was caught", "Resume re-ran completed steps.")
async def test_resume(sqlite: str, tmp_path: Path) -> None:
    begin("dying", sqlite, tmp_path)
    notes = Notes(tmp_path)
    async with Mesh(dying(notes), store=sqlite) as mesh:
        [row] = await mesh.transactions()
        assert await (await mesh.transaction(row.transaction)).result(BOUND) == "lives"
    assert notes.lines.count("first") == 1


@claim("Where orchwf was caught", "Fan-out was a data race that crashed the process.")
async def test_fan_out_in_threads() -> None:
    workflow = Workflow("wide", ttl=2)
    for number in range(200):
        workflow.step(name=f"s{number}", bind={"number": Value(number)})(lambda number: {"squared": number * number})
    workflow.collect("all", [f"s{number}" for number in range(200)])
    async with Mesh(workflow, threads=16) as mesh:
        transactions = [await mesh.stimulate(workflow) for _ in range(5)]
        for transaction in transactions:
            result = await transaction.result(BOUND * 3)
            assert result == {f"s{number}": {"squared": number * number} for number in range(200)}


@claim("Where orchwf was caught", "The timeout spanned all retries.")
async def test_the_timeout_is_per_attempt() -> None:
    clock = FakeClock()
    workflow = Workflow("each", grace=0.1)

    @workflow.step(timeout=1.0, retries=2, backoff=Backoff(initial=0.5, factor=1, jitter=0))
    async def slow(attempt: int) -> str:
        if attempt < 3:
            await asyncio.Event().wait()
        return "third time lucky"

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for number in (1, 2):
            await until(lambda number=number: pulse_lines(transaction).count("spawned slow") == number)
            await turns()
            await pass_time(clock, 1.1)
            await pass_time(clock, 0.6)
        assert await transaction.result(BOUND) == "third time lucky"


@claim("Where orchwf was caught", "Fan-out copied everything for each branch, at a cost of the number squared.")
async def test_fan_out_is_linear() -> None:
    """Generously: a square would be a factor of twenty."""

    async def cost(width: int) -> float:
        workflow = Workflow(f"wide {width}", ttl=3)
        workflow.step(name="source", spawn="inline")(lambda: list(range(100)))
        for number in range(width):
            workflow.step(name=f"s{number}", spawn="inline")(lambda source: len(source))
        workflow.collect("all", [f"s{number}" for number in range(width)], transform=lambda found: sum(found.values()))
        async with Mesh(workflow) as mesh:
            best = float("inf")
            for _ in range(4):
                before = time.process_time()
                transaction = await mesh.stimulate(workflow)
                assert await transaction.result(BOUND) == 100 * width
                best = min(best, (time.process_time() - before) / width)
            return best

    assert await cost(1_000) < 5 * await cost(50)
