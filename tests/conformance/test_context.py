"""What a step knows of itself, and workflows that are built by a program."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bitactor import Backoff, Context, Input, Result, Value, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import ran, result_of
from tests.e2e.support import BOUND, finish, pass_time, spawned, until


@claim(
    "Context and builder", "`Context` knows transaction id, workflow, step path, attempt, retries left, ttl and causes."
)
async def test_context() -> None:
    seen: dict[str, Any] = {}
    inner = Workflow("inner", input={"a": int})

    @inner.step(retries=2, backoff=Backoff(initial=0))
    async def works(a: int, ctx: Context) -> None:
        seen.update(
            transaction=ctx.transaction, root=ctx.root, workflow=ctx.workflow, step=ctx.step, attempt=ctx.attempt,
            retries_left=ctx.retries_left, ttl=ctx.ttl, causes=ctx.causes,
        )  # fmt: skip
        if ctx.attempt == 1:
            raise ValueError

    workflow = Workflow("outer", ttl=8)
    workflow.step(name="a")(lambda: 1)
    workflow.compose("nested", inner)
    transaction = await ran(workflow)
    hops = {pulse.step: (pulse.hop, pulse.causes) for pulse in transaction.pulses() if pulse.kind == "spawned"}
    assert hops["nested"][1] == (hops["a"][0],)
    cause = hops["nested"][0]
    assert seen == {
        "transaction": transaction.id, "root": transaction.root, "workflow": "outer", "step": "nested/works",
        "attempt": 2, "retries_left": 1, "ttl": 6, "causes": (cause,),
    }  # fmt: skip


@claim("Context and builder", "`Context` knows how much of the deadline is left.")
async def test_deadline_left() -> None:
    clock = FakeClock()
    workflow = Workflow("limited", deadline=10.0)
    left: list[float | None] = []

    @workflow.step(timeout=4.0)
    async def asks(ctx: Context) -> None:
        left.append(ctx.deadline_left)
        await asks_again.wait()
        left.append(ctx.deadline_left)

    asks_again = asyncio.Event()
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: left)
        await pass_time(clock, 1.5)
        asks_again.set()
        assert await transaction.ended(BOUND) == "completed"
    assert left == [pytest.approx(4.0), pytest.approx(2.5)]


@claim(
    "Context and builder",
    "`Context` has an idempotency key: the same over all attempts, another one for each step, and undo finds it.",
)
async def test_idempotency_key() -> None:
    keys: list[str] = []
    workflow = Workflow("keyed")

    @workflow.step(retries=1, backoff=Backoff(initial=0))
    async def tries(ctx: Context) -> None:
        keys.append(ctx.idempotency_key)
        if ctx.attempt == 1:
            raise ValueError

    tries.undo(lambda ctx: keys.append(ctx.forward_key))

    @workflow.step(after=["tries"])
    async def other(ctx: Context) -> None:
        keys.append(ctx.idempotency_key)
        raise ValueError

    async with Mesh(workflow) as mesh:
        await finish(mesh, workflow)
        first, again, another, undoing = keys
        assert first == again == undoing != another
        await finish(mesh, workflow)
        assert keys[4] != first, "of another transaction"


@claim(
    "Context and builder",
    "`Context` has a heartbeat: it says that the work goes on, and the step's timeout counts from there again.",
)
async def test_heartbeat() -> None:
    clock = FakeClock()
    workflow = Workflow("long", grace=0.1)
    beats, beaten = asyncio.Semaphore(0), asyncio.Semaphore(0)

    @workflow.step(timeout=1.0)
    async def works(ctx: Context) -> None:
        for number in range(10):
            await beats.acquire()
            ctx.heartbeat({"done": number})
            beaten.release()

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "works")
        for number in range(3):
            await pass_time(clock, 0.9)
            beats.release()
            await beaten.acquire()
            assert transaction.progress() == {"works": {"done": number}}
        assert transaction.status == "running"
        await pass_time(clock, 1.1)
        assert await transaction.ended(BOUND) == "compensated"


@claim("Context and builder", "`Context` has a logger that knows where it is, and `emit`.")
async def test_logger_and_emit(caplog: pytest.LogCaptureFixture) -> None:
    workflow = Workflow("talks")

    @workflow.step
    async def says(ctx: Context) -> None:
        ctx.logger.warning("look here")
        await ctx.emit("said", 1)

    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        await transaction.result(BOUND)
        [record] = [record for record in caplog.records if record.name == "bitactor.step.talks.says"]
        assert vars(record)["transaction"] == transaction.id and vars(record)["step"] == "says"
        [completed] = [pulse for pulse in transaction.raw_pulses() if pulse.kind == "completed"]
        assert (completed.data or {})["emits"]


@claim("Context and builder", "A workflow is built by calls as well as by decorators, with the same reach.")
async def test_builder() -> None:
    def built(length: int) -> Workflow:
        workflow = Workflow(f"built {length}", input={"start": int}, ttl=length + 3)
        before: Any = Input("start")
        for number in range(length):
            step = workflow.step(name=f"s{number}", bind={"value": before}, retries=1)(add)
            step.undo(lambda result: undone.append(result))
            step.compensate(lambda error: None)
            before = Result(step)
        workflow.map(name="each", over=Value([1, 2]))(double)
        workflow.collect("end", {"sum": before, "each": "each"})
        workflow.flunk("stop", "{end}", when=lambda end: length > 4)
        workflow.returns("end")
        return workflow

    undone: list[int] = []
    assert await result_of(built(4), {"start": 1}) == {"sum": 5, "each": [2, 4]}
    assert (await ran(built(5), {"start": 1})).status == "compensated"
    assert undone == [6, 5, 4, 3, 2]


@claim(
    "Context and builder",
    "`to_dict` and `from_dict`: the graph as plain data (functions by import path) is the same workflow again.",
)
async def test_graph_as_data() -> None:
    workflow = Workflow("written", input={"start": int}, ttl=8)
    workflow.step(name="a", bind={"value": Input("start")}, retries=2, backoff=Backoff(initial=0))(add)
    workflow.map(name="each", over=Value([1, 2]))(double)
    workflow.collect("end", {"sum": "a", "each": "each"})
    data = json.loads(json.dumps(workflow.to_dict()))
    again = Workflow.from_dict(data)
    assert again.check().digest == workflow.check().digest
    assert await result_of(again, {"start": 1}) == {"sum": 2, "each": [2, 4]}


@claim("Context and builder", "`workflow.describe()` is the JSON schema of inputs and result.")
def test_describe() -> None:
    workflow = Workflow("described", input={"value": int})
    workflow.step(name="add")(add)
    described = workflow.describe()
    assert described["input"]["properties"]["value"]["type"] == "integer" and described["input"]["required"] == [
        "value"
    ]
    assert described["result"]["type"] == "integer"


async def add(value: int) -> int:
    return value + 1


async def double(element: int) -> int:
    return element * 2
