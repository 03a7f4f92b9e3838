"""What patterns and the mesh around them have to agree on: timeouts, cancellation, and the end."""

from __future__ import annotations

import asyncio
import time

from bitactor import Backoff, Workflow
from bitactor.patterns import Batching, CircuitBreaker, RetryPolicy
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.e2e.support import BOUND, finish, pass_time, start, turns


def hanging(timeout: float) -> Workflow:
    """One step that never answers, behind a breaker that opens at the first failure."""
    workflow = Workflow("hanging", ttl=1)

    @workflow.step(timeout=timeout, policies=[CircuitBreaker("partner", failures=1)])
    async def ask() -> None:
        await asyncio.Event().wait()

    return workflow


async def test_an_attempt_that_ran_into_its_timeout_is_a_failure_for_the_breaker() -> None:
    clock, workflow = FakeClock(), hanging(1.0)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await start(mesh, workflow)
        await turns()
        await pass_time(clock, 1.1)
        await transaction.ended(BOUND)
        await turns()
        [breaker] = mesh.node.about()["patterns"]
        assert breaker["state"] == "open"
        transaction = await start(mesh, workflow)
        assert await transaction.ended(BOUND) == "compensated"


async def test_one_that_was_cancelled_is_none() -> None:
    workflow = hanging(100.0)
    async with Mesh(workflow) as mesh:
        transaction = await start(mesh, workflow)
        await turns()
        await transaction.cancel()
        await transaction.ended(BOUND)
        [breaker] = mesh.node.about()["patterns"]
        assert breaker["state"] == "closed"


async def test_the_real_error_comes_rather_than_a_pause_past_the_end_of_the_attempt() -> None:
    workflow = Workflow("retrying", ttl=1)

    @workflow.step(timeout=1.0, policies=[RetryPolicy("partner", backoff=Backoff(initial=5.0, jitter=0))])
    async def ask() -> None:
        raise ConnectionError("real")

    async with Mesh(workflow, clock=FakeClock()) as mesh:
        transaction = await finish(mesh, workflow)
        assert "real" in repr(transaction.errors())


async def test_a_batch_does_not_wait_out_the_drain() -> None:
    batches: list[list[int]] = []

    async def insert(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    workflow = Workflow("batched", input={"number": int}, ttl=1)

    @workflow.step(policies=[Batching("audit", size=100, interval=3600.0, handler=insert)])
    async def record(number: int) -> int:
        return number

    began = time.monotonic()
    async with Mesh(workflow, drain=60.0) as mesh:
        transactions = [await start(mesh, workflow, {"number": number}) for number in range(3)]
        await turns()
    assert time.monotonic() - began < 30
    assert {transaction.status for transaction in transactions} == {"completed"}
    assert batches == [[0, 1, 2]]
