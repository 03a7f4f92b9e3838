"""What a step can answer, and what happens then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bitactor import Backoff, Context, Fail, Ok, Result, StepFailed, StepTimeout, Then, Value, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.hostile import UNCARRIABLE
from tests.conformance.support import failure_of, finished, journal, ran, result_of
from tests.e2e.support import BOUND, SPAWNERS, finish, for_spawner, pass_time, pulse_lines, turns, undone, until


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


@claim(
    "Outcomes of a step",
    "It returns `Then(value, steps=[...])`: the value, and new steps are planned into this transaction.",
)
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
        return Then(
            start.upper(), steps=[fetch.planned(f"fetch-{n}", bind={"url": Value(f"{start}/{n}")}) for n in (1, 2)]
        )

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


@claim(
    "Outcomes of a step", "A step with the emitter's own name replaces it (recursion) and can read the previous result."
)
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


@claim("Outcomes of a step", "It returns `Ok(value)`: the value is what it wraps.")
async def test_ok(store: str) -> None:
    workflow = Workflow("says")
    workflow.step(name="says")(lambda: Ok({"wrapped": 1}))
    assert await result_of(workflow, store=store) == {"wrapped": 1}


@claim(
    "Outcomes of a step",
    "It returns or raises `Fail(reason)`: it fails for good with that reason, whatever tries are left.",
)
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(("reason", "said"), [("on purpose", "on purpose"), ("\ud800", "ud800")])
async def test_fail(store: str, raises: bool, reason: str, said: str) -> None:
    workflow = Workflow("says")

    @workflow.step(retries=2)
    async def says() -> Any:
        if raises:
            raise Fail(reason)
        return Fail(reason)

    async with finished(workflow, store=store) as transaction:
        assert transaction.status == "compensated" and journal(transaction, "spawned") == ["says"]
        error = transaction.errors()[0]
        assert isinstance(error, StepFailed) and said in str(error)


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
async def test_failing_undoes(store: str) -> None:
    workflow = Workflow("failing")
    workflow.step(name="a")(lambda: "a").undo(lambda result: None)
    workflow.step(name="b")(breaks)
    async with finished(workflow, store=store) as transaction:
        assert (transaction.status, undone(transaction)) == ("compensated", ["a"])


async def breaks(a: str) -> None:
    raise ValueError("b breaks")


@claim("Outcomes of a step", "It exceeds its timeout, which is per attempt: as if it had raised `StepTimeout`.")
async def test_timeout(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("slow")

    @workflow.step(timeout=1.0, retries=1, backoff=Backoff(initial=1, jitter=0))
    async def hangs() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        for number in (1, 2):
            await until(lambda number=number: pulse_lines(transaction).count("spawned hangs") == number)
            await turns()
            await pass_time(clock, 0.9)
            assert pulse_lines(transaction).count("timed_out hangs") == number - 1
            await pass_time(clock, 0.2)
            await pass_time(clock, 1.1 if number == 1 else 0)
        assert await transaction.ended(BOUND) == "compensated"
        assert isinstance((await failure_of(transaction)).__cause__, StepTimeout)


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
        assert not [
            pulse for pulse in transaction.raw_pulses() if pulse.kind == "retried" and (pulse.data or {}).get("emits")
        ]


@claim("Outcomes of a step", "What cannot be carried as a value is that step's clear failure.")
@pytest.mark.parametrize("place", SPAWNERS)
@pytest.mark.parametrize(("make", "said"), UNCARRIABLE.values(), ids=UNCARRIABLE.keys())
async def test_what_cannot_be_carried(place: str, make: Callable[[], Any], said: str) -> None:
    workflow = Workflow("uncarriable", ttl=1)

    def odd() -> Any:
        return make()

    workflow.step(name="odd", retries=3, spawn=place)(for_spawner(place, odd))
    transaction = await ran(workflow)
    assert transaction.status == "compensated"
    error = str(transaction.errors()[0])
    assert "uncarriable/odd" in error and said in error
    assert journal(transaction, "spawned") == ["odd"], "the same function would return the same"
