"""Many things at once within a step: bounded, each with its own time, and nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any

from bitactor import Workflow
from bitactor.patterns import TooFewAnswers, parallel_fetch, parallel_map, scatter_gather
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, ran, result_of
from tests.e2e.support import BOUND, Peak, pass_time, turns, until

SECTION = "Resilience patterns"


@claim(SECTION, "Bounded parallel map: at most so many at once, results in order, failures raised or collected.")
async def test_parallel_map() -> None:
    inside = Peak()

    async def work(number: int) -> int:
        with inside:
            await turns(10 - number)
        if number == 7:
            raise ValueError(number)
        return number * 2

    workflow = Workflow("many", input={"upto": int})

    @workflow.step
    async def works(upto: int) -> list[int]:
        return await parallel_map(work, range(upto), concurrency=3)

    @workflow.step
    async def collects() -> list[Any]:
        successful, failed = await parallel_map(work, range(9), concurrency=3, on_error="collect")
        return [successful, [(one.index, type(one.error).__name__) for one in failed]]

    transaction = await ran(workflow, {"upto": 6})
    assert transaction.results() == {
        "works": [0, 2, 4, 6, 8, 10],
        "collects": [[0, 2, 4, 6, 8, 10, 12, 16], [[7, "ValueError"]]],
    }
    assert 0 < inside.most <= 6, "three in each of two steps"
    assert isinstance((await failure_of(await ran(workflow, {"upto": 9}))).__cause__, ValueError)


@claim(
    SECTION,
    "Parallel fetch: a timeout per operation, `successful` and `failed`; one slow operation loses nobody else's "
    "result.",
)
async def test_parallel_fetch() -> None:
    clock = FakeClock()
    stopped: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("slow")
        return "never"

    async def fast() -> str:
        return "fast"

    async def breaks() -> str:
        raise ConnectionError("refused")

    workflow = Workflow("fetch")

    @workflow.step
    async def fetches() -> dict:
        operations = {"slow": slow, "fast": fast, "breaks": breaks}
        fetched = await parallel_fetch(operations, timeout={"slow": 1.0}, clock=clock)
        return {
            "successful": fetched.successful,
            "failed": {name: type(error).__name__ for name, error in fetched.failed.items()},
        }

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await turns()
        await pass_time(clock, 1.1)
        assert await transaction.result(BOUND) == {
            "successful": {"fast": "fast"},
            "failed": {"slow": "TimedOut", "breaks": "ConnectionError"},
        }
    assert stopped == ["slow"]


@claim(SECTION, "Scatter/gather: one question to many, and the answers of enough of them.")
async def test_scatter_gather() -> None:
    async def ask(supplier: str) -> int:
        if supplier == "shut":
            raise ConnectionError
        return len(supplier)

    workflow = Workflow("quotes", input={"at_least": int})

    @workflow.step
    async def quotes(at_least: int) -> dict:
        gathered = await scatter_gather(ask, ["one", "three", "shut"], at_least=at_least)
        return gathered.successful

    assert await result_of(workflow, {"at_least": 2}) == {"one": 3, "three": 5}
    assert isinstance((await failure_of(await ran(workflow, {"at_least": 3}))).__cause__, TooFewAnswers)


@claim(SECTION, "What a pattern has started ends with the step: when that is cancelled, nothing goes on.")
async def test_nothing_outlives_the_step() -> None:
    inside = Peak()

    async def hangs(number: int) -> None:
        with inside:
            await asyncio.Event().wait()

    workflow = Workflow("hanging")

    @workflow.step
    async def works() -> None:
        await parallel_map(hangs, range(10), concurrency=4)

    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: inside.now == 4)
        assert await transaction.cancel() == "cancelled"
        assert inside.now == 0
