"""What a step can answer, and what happens then."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bitactor import Backoff, Context, Halt, Result, Retry, StepTimeout, Then, Value, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes, begin, halting
from tests.conformance.support import failure_of, journal, ran, result_of
from tests.e2e.support import BOUND, audit, finish, pass_time, spawned, told, turns, undone, until


@claim("Outcomes of a step", "It returns a value: the hop is done, its output is in the journal.")
async def test_a_value(sqlite: str) -> None:
    workflow = Workflow("value")
    workflow.step(name="works")(lambda: {"a": [1, 2]})
    async with Mesh(workflow, store=sqlite) as mesh:
        identity = (await finish(mesh, workflow)).id
    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await mesh.transaction(identity)
        [completed] = [pulse for pulse in transaction.pulses() if pulse.kind == "completed"]
        assert (completed.step, completed.token_out) == ("works", {"a": [1, 2]})


@claim("Outcomes of a step", "It returns `Then(value, steps=[...])`: the value, and new steps are planned into this transaction.")
async def test_then() -> None:
    workflow = Workflow("crawl", input={"start": str})
    undone_pages: list[str] = []

    @workflow.deferred
    async def fetch(url: str) -> str:
        return f"page {url}"

    @fetch.undo
    async def drop(result: str) -> None:
        undone_pages.append(result)

    @workflow.step
    async def seeds(start: str) -> Then:
        return Then(start.upper(), steps=[fetch.planned(f"fetch-{n}", bind={"url": Value(f"{start}/{n}")}) for n in (1, 2)])

    transaction = await ran(workflow, {"start": "a"})
    assert await transaction.result() == "A"
    assert transaction.results() == {"seeds": "A", "fetch-1": "page a/1", "fetch-2": "page a/2"}
    assert {pulse.transaction for pulse in transaction.pulses()} == {transaction.id}


@claim("Outcomes of a step", "What `Then` has planned is undone with the rest when a later step fails.")
async def test_then_is_undone() -> None:
    workflow = Workflow("crawl and fail")
    taken_back: list[str] = []

    @workflow.deferred
    async def fetch(url: str) -> str:
        return url

    @fetch.undo
    async def drop(result: str) -> None:
        taken_back.append(result)

    @workflow.deferred
    async def breaks() -> None:
        raise ValueError

    @workflow.step
    async def seeds() -> Then:
        page = fetch.planned("page", bind={"url": Value("a")})
        return Then(None, steps=[page, breaks.planned("end", after=["page"])])

    transaction = await ran(workflow)
    assert (transaction.status, taken_back) == ("compensated", ["a"])


@claim("Outcomes of a step", "A step with the emitter's own name replaces it (recursion) and can read the previous result.")
async def test_self_replacement() -> None:
    workflow = Workflow("countdown", input={"start": int})

    @workflow.deferred
    async def again(previous: int) -> Any:
        return next_of(previous - 1)

    def next_of(value: int) -> Any:
        return Then(value, steps=[again.planned("count", bind={"previous": Result("count")})]) if value else value

    @workflow.step
    async def count(start: int) -> Any:
        return next_of(start)

    @workflow.step
    async def after(count: int) -> str:
        return f"landed at {count}"

    transaction = await ran(workflow, {"start": 3})
    assert await transaction.result() == "landed at 0"
    assert journal(transaction, "spawned") == ["count", "count#2", "count#3", "count#4", "after"]


@claim(
    "Outcomes of a step",
    "It returns or raises `Retry(after=, reason=)`: tried again, without compensation, up to `retries` more times.",
)
@pytest.mark.parametrize("raises", [False, True])
async def test_retry(raises: bool) -> None:
    clock = FakeClock()
    workflow = Workflow("retried")
    attempts: list[int] = []
    asked: list[str] = []

    @workflow.step(retries=2)
    async def tries(attempt: int) -> str:
        attempts.append(attempt)
        if attempt == 3:
            return "done"
        if raises:
            raise Retry(after=5, reason="busy")
        return Retry(after=5, reason="busy")  # type: ignore[return-value]

    tries.compensate(lambda error: asked.append("compensate"))
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for number in (1, 2):
            await until(lambda number=number: told(transaction).count("retried tries") == number)
            await pass_time(clock, 4.9)
            assert len(attempts) == number
            await pass_time(clock, 0.2)
        assert await transaction.result(BOUND) == "done"
        assert (attempts, asked) == ([1, 2, 3], [])


@claim("Outcomes of a step", "When no tries are left, `Retry` fails with its reason.")
async def test_retry_runs_out() -> None:
    workflow = Workflow("tired")

    @workflow.step(retries=1)
    async def tries() -> Retry:
        return Retry(after=0, reason="the shop is shut")

    transaction = await ran(workflow)
    assert transaction.status == "compensated" and journal(transaction, "spawned") == ["tries", "tries"]
    assert "the shop is shut" in str(await failure_of(transaction))


@claim(
    "Outcomes of a step",
    "It raises: tried again while `retries` are left and the error is one of `retry_on` (default `Exception`).",
)
@pytest.mark.parametrize(
    ("options", "error", "tries"),
    [
        ({}, ValueError, 1),
        ({"retries": 2}, ValueError, 3),
        ({"retries": 2, "retry_on": OSError}, ConnectionError, 3),
        ({"retries": 2, "retry_on": (OSError, KeyError)}, ValueError, 1),
    ],
)
async def test_raising(options: dict[str, Any], error: type[Exception], tries: int) -> None:
    workflow = Workflow("raising")
    if "retries" in options:
        options = {**options, "backoff": Backoff(initial=0)}

    @workflow.step(**options)
    async def breaks() -> None:
        raise error("no")

    transaction = await ran(workflow)
    assert journal(transaction, "spawned") == ["breaks"] * tries
    assert isinstance((await failure_of(transaction)).__cause__, error)


@claim("Outcomes of a step", "A step that raises for good fails, and the transaction undoes.")
async def test_failing_undoes() -> None:
    workflow = Workflow("failing")
    workflow.step(name="a")(lambda: "a").undo(lambda result: None)
    workflow.step(name="b")(breaks)
    transaction = await ran(workflow)
    assert (transaction.status, undone(transaction)) == ("compensated", ["a"])


async def breaks(a: str) -> None:
    raise ValueError("b breaks")


@claim("Outcomes of a step", "Between tries it waits: `backoff(error, attempt, **args)` says how many seconds.")
async def test_backoff_function() -> None:
    clock = FakeClock()
    workflow = Workflow("patient", input={"base": float})
    asked: list[Any] = []

    def wait(error: Exception, attempt: int, base: float) -> float:
        asked.append((str(error), attempt))
        return base * attempt

    @workflow.step(retries=2, backoff=wait)
    async def tries(base: float, attempt: int) -> int:
        if attempt < 3:
            raise ValueError("not yet")
        return attempt

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow, {"base": 10.0})
        for number, seconds in ((1, 10.0), (2, 20.0)):
            await until(lambda number=number: told(transaction).count("retried tries") == number)
            await pass_time(clock, seconds - 0.1)
            assert told(transaction).count("spawned tries") == number
            await pass_time(clock, 0.2)
        assert await transaction.result(BOUND) == 3
    assert asked == [("not yet", 1), ("not yet", 2)]


@claim("Outcomes of a step", "Or a `Backoff(initial, factor, cap, jitter)` says it.")
async def test_backoff_policy() -> None:
    workflow = Workflow("exponential")
    clock = FakeClock()

    @workflow.step(retries=4, backoff=Backoff(initial=1, factor=3, cap=10, jitter=0.5))
    async def tries() -> None:
        raise ValueError

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for number in range(1, 5):
            await until(lambda number=number: told(transaction).count("retried tries") == number)
            await pass_time(clock, 10.1)
        assert await transaction.ended(BOUND) == "compensated"
        waits = [pulse.data["after_ns"] / 1e9 for pulse in transaction.pulses() if pulse.kind == "retried"]  # type: ignore[index]
    for seconds, full in zip(waits, (1, 3, 9, 10), strict=True):
        assert full / 2 <= seconds <= full, waits


@claim(
    "Outcomes of a step",
    "It returns or raises `Halt(reason)`: in-flight hops are awaited and kept; the transaction is stored as halted.",
)
@pytest.mark.parametrize("raises", [False, True])
async def test_halt(store: str, raises: bool) -> None:
    workflow = Workflow("halts")
    go = asyncio.Event()
    first_time = [True]

    @workflow.step
    async def slow() -> str:
        await go.wait()
        return "slow"

    @workflow.step
    async def asks() -> Any:
        if first_time:
            first_time.clear()
            if raises:
                raise Halt("ask somebody")
            return Halt("ask somebody")
        return "answered"

    @workflow.step
    async def last(slow: str, asks: str) -> list[str]:
        return [slow, asks]

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: "halted asks" in told(transaction))
        assert transaction.status == "running", "the slow one is awaited"
        go.set()
        assert await transaction.ended(BOUND) == "halted"
        assert "completed slow" in told(transaction) and "ask somebody" in str(await failure_of(transaction))
        assert [row.transaction for row in await mesh.transactions(status="halted")] == [transaction.id]
        await transaction.resume()
        assert await transaction.result(BOUND) == ["slow", "answered"]
        assert told(transaction).count("spawned slow") == 1
        audit(transaction)


@claim(
    "Outcomes of a step", "A halted transaction can be resumed, here or in another process, and finished hops are not run again."
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


@claim("Outcomes of a step", "It exceeds its timeout, which is per attempt: as if it had raised `StepTimeout`.")
async def test_timeout() -> None:
    clock = FakeClock()
    workflow = Workflow("slow")

    @workflow.step(timeout=1.0, retries=1, backoff=Backoff(initial=1, jitter=0))
    async def hangs() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for number in (1, 2):
            await until(lambda number=number: told(transaction).count("spawned hangs") == number)
            await turns()
            await pass_time(clock, 0.9)
            assert told(transaction).count("timed_out hangs") == number - 1
            await pass_time(clock, 0.2)
            await pass_time(clock, 1.1 if number == 1 else 0)
        assert await transaction.ended(BOUND) == "compensated"
        assert isinstance((await failure_of(transaction)).__cause__, StepTimeout)


@claim("Outcomes of a step", "A hop that exceeded its timeout is in doubt: only an undo that can take doubt is called for it.")
@pytest.mark.parametrize("takes_doubt", [False, True])
async def test_a_timed_out_hop_is_in_doubt(takes_doubt: bool) -> None:
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

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "hangs")
        await pass_time(clock, 1.1)
        await pass_time(clock, 5)
        assert await transaction.ended(BOUND) == ("compensated" if takes_doubt else "stuck")
        assert seen == ([(None, True)] if takes_doubt else [])


@claim("Outcomes of a step", "What a step emits leaves with its hop, and not at all if the hop fails.")
async def test_what_is_emitted_by_a_failed_attempt() -> None:
    workflow = Workflow("emitting")

    @workflow.step(retries=1, backoff=Backoff(initial=0))
    async def tells(attempt: int, ctx: Context) -> int:
        await ctx.emit("told", attempt)
        if attempt == 1:
            raise ValueError
        return attempt

    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        assert await transaction.result(BOUND) == 2
        [completed] = [pulse for pulse in transaction.raw_pulses() if pulse.kind == "completed"]
        assert len((completed.data or {})["emits"]) == 1
        assert not [pulse for pulse in transaction.raw_pulses() if pulse.kind == "retried" and (pulse.data or {}).get("emits")]


@claim("Outcomes of a step", "What cannot be carried as a value is that step's clear failure.")
async def test_what_cannot_be_carried() -> None:
    workflow = Workflow("uncarriable")
    workflow.step(name="opens")(lambda: object())
    failure = await failure_of(await ran(workflow))
    assert "'uncarriable/opens'" in str(failure) or "opens" in str(failure)
    assert "object" in str(failure)
    fine = Workflow("carriable")
    fine.step(name="opens")(lambda: [1])
    assert await result_of(fine) == [1]
