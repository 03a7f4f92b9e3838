"""Policies around a step, whose state lives in the mesh across runs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from bitactor import Backoff, ConfigurationError, Workflow
from bitactor.patterns import (
    Batching,
    Bulkhead,
    BulkheadFull,
    Cache,
    CircuitBreaker,
    CircuitOpen,
    ErrorHandler,
    Fallback,
    RateLimit,
    RateLimited,
    RetryPolicy,
    Timeout,
)
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of, ran, result_of
from tests.e2e.support import BOUND, Peak, finish, pass_time, turns

SECTION = "Resilience patterns"


@claim("Where Kailash was caught", "A retry policy in the pattern library was accepted and without effect.")
@claim(SECTION, "Retry with backoff, and which exceptions are worth it, within one attempt.")
async def test_retry() -> None:
    calls: list[str] = []
    workflow = Workflow("retried", input={"kind": str})
    policy = RetryPolicy("blips", attempts=3, backoff=Backoff(initial=0.001), on=ConnectionError)

    @workflow.step(policies=[policy])
    async def asks(kind: str) -> int:
        calls.append(kind)
        if len(calls) < 3 or kind == "value":
            raise {"value": ValueError, "connection": ConnectionError}[kind]
        return len(calls)

    assert await result_of(workflow, {"kind": "connection"}) == 3
    calls.clear()
    assert isinstance((await failure_of(await ran(workflow, {"kind": "value"}))).__cause__, ValueError)
    assert calls == ["value"]


@claim("Where Kailash was caught", "A rate limiter was accepted and without effect.")
@claim(
    SECTION, "Rate limit: a token bucket with a burst, over all transactions; what may not wait so long fails at once."
)
async def test_rate_limit() -> None:
    clock = FakeClock()
    calls: list[int] = []
    workflow = Workflow("limited", input={"number": int})

    @workflow.step(policies=[RateLimit("api", per_second=1, burst=2)])
    async def asks(number: int) -> None:
        calls.append(number)

    impatient = Workflow("impatient")

    @impatient.step(policies=[RateLimit("other", per_second=1, max_wait=0)])
    async def asks_now() -> None:
        return None

    async with Mesh(workflow, impatient, clock=clock) as mesh:
        began = [await mesh.stimulate(workflow, {"number": number}) for number in range(5)]
        await turns()
        assert calls == [0, 1]
        for expected in (3, 4, 5):
            await pass_time(clock, 1.0)
            await turns()
            assert len(calls) == expected
        for transaction in began:
            assert await transaction.ended(BOUND) == "completed"
        assert calls == [0, 1, 2, 3, 4]
        assert (await finish(mesh, impatient)).status == "completed"
        refused = await failure_of(await finish(mesh, impatient))
        assert isinstance(refused.__cause__, RateLimited) and refused.__cause__.retry_after == pytest.approx(1.0)


def breaking(policy: Any) -> tuple[Workflow, list[str]]:
    """Does what its input says, behind a breaker."""
    workflow = Workflow("behind", input={"what": str})
    calls: list[str] = []

    @workflow.step(policies=[policy])
    async def asks(what: str) -> str:
        calls.append(what)
        if what == "break":
            raise ConnectionError(what)
        return what

    return workflow, calls


@claim("Where Kailash was caught", "A circuit breaker was accepted and without effect.")
@claim(SECTION, "Circuit breaker: closed → open, over runs; an open circuit fails fast, with the time until a retry.")
async def test_breaker_opens() -> None:
    clock = FakeClock()
    workflow, calls = breaking(CircuitBreaker("shop", failures=3, open_for=30.0))
    async with Mesh(workflow, clock=clock) as mesh:
        for _ in range(3):
            await finish(mesh, workflow, {"what": "break"})
        await pass_time(clock, 10)
        refused = await failure_of(await finish(mesh, workflow, {"what": "fine"}))
        assert isinstance(refused.__cause__, CircuitOpen) and refused.__cause__.retry_after == pytest.approx(20.0)
        assert calls == ["break"] * 3, "the step was not called"


@claim(
    SECTION, "Half-open with a bounded number of probes → closed after n successes, or open again after one failure."
)
async def test_breaker_closes() -> None:
    clock = FakeClock()
    workflow, calls = breaking(CircuitBreaker("shop", failures=1, open_for=30.0, probes=1, successes=2))
    async with Mesh(workflow, clock=clock) as mesh:
        await finish(mesh, workflow, {"what": "break"})
        await pass_time(clock, 30.1)
        await finish(mesh, workflow, {"what": "break"})
        assert isinstance((await failure_of(await finish(mesh, workflow, {"what": "fine"}))).__cause__, CircuitOpen)
        await pass_time(clock, 30.1)
        for _ in range(2):
            assert (await finish(mesh, workflow, {"what": "fine"})).status == "completed"
        assert calls == ["break", "break", "fine", "fine"]
        began = [await mesh.stimulate(workflow, {"what": "fine"}) for _ in range(5)]
        assert {await transaction.ended(BOUND) for transaction in began} == {"completed"}, "closed"


@claim(SECTION, "While half-open no more probes than allowed are under way at once.")
async def test_breaker_probes() -> None:
    clock = FakeClock()
    go, inside = asyncio.Event(), Peak()
    workflow = Workflow("probed", input={"what": str})

    @workflow.step(policies=[CircuitBreaker("shop", failures=1, open_for=1.0, probes=2, successes=5)])
    async def asks(what: str) -> None:
        if what == "break":
            raise ConnectionError
        with inside:
            await go.wait()

    async with Mesh(workflow, clock=clock) as mesh:
        await finish(mesh, workflow, {"what": "break"})
        await pass_time(clock, 1.1)
        began = [await mesh.stimulate(workflow, {"what": "fine"}) for _ in range(6)]
        await turns()
        go.set()
        ended = [await transaction.ended(BOUND) for transaction in began]
    assert inside.most == 2 and sorted(ended) == ["compensated"] * 4 + ["completed"] * 2


@claim("Where Kailash was caught", "A timeout's fallback was accepted and without effect.")
@claim(SECTION, "Timeout with fallback.")
async def test_timeout() -> None:
    clock = FakeClock()
    workflow = Workflow("timed", input={"symbol": str})

    @workflow.step(policies=[Timeout("quotes", 0.5, fallback=lambda symbol, error: f"last known of {symbol}")])
    async def quote(symbol: str) -> str:
        await asyncio.Event().wait()
        return "never"

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow, {"symbol": "X"})
        await turns()
        await pass_time(clock, 0.6)
        assert await transaction.result(BOUND) == "last known of X"


@claim("Where Kailash was caught", "A batch size was accepted and without effect.")
@claim(SECTION, "Batching: handled together when there are so many.")
async def test_batching_by_size() -> None:
    batches: list[list[int]] = []

    async def insert(items: list[int]) -> list[int]:
        batches.append(items)
        return [item * 10 for item in items]

    workflow = Workflow("batched", input={"number": int})
    workflow.step(name="record", policies=[Batching("audit", size=3, interval=3600, handler=insert)])(
        lambda number: number
    )
    async with Mesh(workflow) as mesh:
        began = [await mesh.stimulate(workflow, {"number": number}) for number in range(6)]
        results = [await transaction.result(BOUND) for transaction in began]
    assert results == [0, 10, 20, 30, 40, 50]
    assert [len(batch) for batch in batches] == [3, 3] and sorted(item for batch in batches for item in batch) == list(
        range(6)
    )


@claim(SECTION, "Batching: or when the first has waited so long.")
async def test_batching_by_interval() -> None:
    clock = FakeClock()
    batches: list[list[int]] = []

    async def insert(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    workflow = Workflow("batched", input={"number": int})

    @workflow.step(policies=[Batching("audit", size=100, interval=1.0, handler=insert)])
    async def record(number: int) -> int:
        return number

    async with Mesh(workflow, clock=clock) as mesh:
        began = [await mesh.stimulate(workflow, {"number": number}) for number in range(2)]
        await turns()
        assert batches == []
        await pass_time(clock, 1.1)
        assert [await transaction.result(BOUND) for transaction in began] == [0, 1]
    assert batches == [[0, 1]]


@claim(SECTION, "Batching: flushed at shutdown, nothing lost.")
async def test_batching_at_shutdown() -> None:
    batches: list[list[int]] = []

    async def insert(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    workflow = Workflow("batched", input={"number": int})

    @workflow.step(policies=[Batching("audit", size=100, interval=3600.0, handler=insert)])
    async def record(number: int) -> int:
        return number

    async with Mesh(workflow, drain=0.1) as mesh:
        began = [await mesh.stimulate(workflow, {"number": number}) for number in range(3)]
        await turns()
    assert batches == [[0, 1, 2]]
    assert {transaction.status for transaction in began} == {"completed"}


@claim("Where Kailash was caught", "A cache was accepted and without effect.")
@claim(SECTION, "Cache aside: key template, ttl; a hit does not ask, a miss is a miss, and a kept None is a hit.")
async def test_cache() -> None:
    clock = FakeClock()
    calls: list[str] = []
    workflow = Workflow("cached", input={"user": str})

    @workflow.step(policies=[Cache("users", key="user:{user}", ttl=60.0)])
    async def load(user: str) -> str | None:
        calls.append(user)
        return None if user == "nobody" else user.upper()

    async with Mesh(workflow, clock=clock) as mesh:
        for user in ("ada", "ada", "eve", "nobody", "nobody"):
            expected = None if user == "nobody" else user.upper()
            assert await (await mesh.stimulate(workflow, {"user": user})).result(BOUND) == expected
        assert calls == ["ada", "eve", "nobody"]
        await pass_time(clock, 61)
        await finish(mesh, workflow, {"user": "ada"})
        assert calls[-1] == "ada"


@claim("Where Kailash was caught", "An error handler was accepted and without effect.")
@claim(SECTION, "Error handler: log, ignore, a fallback value, or a function.")
@pytest.mark.parametrize(
    ("handler", "result"),
    [
        (ErrorHandler("h", "ignore"), None),
        (ErrorHandler("h", "fallback", value=["none"]), ["none"]),
        (ErrorHandler("h", lambda error, what: f"{what}: {error}"), "asks: no"),
        (ErrorHandler("h", "log", level="warning"), ValueError),
        (ErrorHandler("h", "ignore", on=KeyError), ValueError),
    ],
)
async def test_error_handler(handler: ErrorHandler, result: Any, caplog: pytest.LogCaptureFixture) -> None:
    workflow = Workflow("handled", input={"what": str})

    @workflow.step(policies=[handler])
    async def asks(what: str) -> Any:
        raise ValueError("no")

    with caplog.at_level(logging.DEBUG, "bitactor.step"):
        transaction = await ran(workflow, {"what": "asks"})
    if result is ValueError:
        assert isinstance((await failure_of(transaction)).__cause__, ValueError)
    else:
        assert await transaction.result() == result
    assert bool([record for record in caplog.records if record.levelname == "WARNING"]) == (handler.handle == "log")


@claim(SECTION, "Bulkhead: at most so many calls at once, and what is too much is refused.")
async def test_bulkhead() -> None:
    go, inside = asyncio.Event(), Peak()
    workflow = Workflow("bulky")

    @workflow.step(policies=[Bulkhead("reports", concurrent=2, queue=1)])
    async def reports() -> None:
        with inside:
            await go.wait()

    async with Mesh(workflow) as mesh:
        began = [await mesh.stimulate(workflow) for _ in range(4)]
        assert await began[3].ended(BOUND) == "compensated"
        assert isinstance((await failure_of(began[3])).__cause__, BulkheadFull)
        go.set()
        assert [await transaction.ended(BOUND) for transaction in began[:3]] == ["completed"] * 3
    assert inside.most == 2


@claim("Where Kailash was caught", "A fallback was accepted and without effect.")
@claim(SECTION, "Patterns stack in the order written: the first is the outermost.")
async def test_stacking() -> None:
    calls: list[int] = []

    def stacked(name: str, policies: list[Any]) -> Workflow:
        workflow = Workflow(name)

        @workflow.step(policies=policies)
        async def breaks() -> None:
            calls.append(1)
            raise ConnectionError

        return workflow

    retry = RetryPolicy("r", attempts=3, backoff=Backoff(initial=0.001))
    assert await result_of(stacked("outer fallback", [Fallback("f", "instead"), retry])) == "instead"
    assert len(calls) == 3
    calls.clear()
    assert await result_of(stacked("inner fallback", [retry, Fallback("f", "instead")])) == "instead"
    assert len(calls) == 1


@claim(
    SECTION, "Their state lives in the mesh across runs, by name; two declarations of one name that differ are refused."
)
async def test_state_is_shared_by_name() -> None:
    one, calls = breaking(CircuitBreaker("shop", failures=2))
    other = Workflow("other")
    other.step(name="asks", policies=[CircuitBreaker("shop", failures=2)])(lambda: "never asked")
    async with Mesh(one, other) as mesh:
        for _ in range(2):
            await finish(mesh, one, {"what": "break"})
        assert isinstance((await failure_of(await finish(mesh, other))).__cause__, CircuitOpen)
    differs = Workflow("differs")
    differs.step(name="asks", policies=[CircuitBreaker("shop", failures=3)])(lambda: None)
    with pytest.raises(ConfigurationError, match="shop"):
        Mesh(one, differs)
    assert calls


@claim(SECTION, "A policy wraps a `def` step as well as an `async def` one.")
async def test_policies_around_plain_functions() -> None:
    workflow = Workflow("plain")

    @workflow.step(policies=[Fallback("f", "instead")])
    def breaks() -> None:
        raise ValueError

    assert await result_of(workflow) == "instead"


@claim(SECTION, "How each pattern stands is there to be seen.")
async def test_patterns_are_visible() -> None:
    workflow, _ = breaking(CircuitBreaker("shop", failures=2))
    async with Mesh(workflow) as mesh:
        [before] = mesh.node.about()["patterns"]
        for _ in range(2):
            await finish(mesh, workflow, {"what": "break"})
        [after] = mesh.node.about()["patterns"]
    assert (before["pattern"], before["name"]) == ("circuit breaker", "shop")
    assert after["state"] == "open"
