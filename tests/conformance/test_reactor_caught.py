"""Where Elixir's Reactor (1.0.6) was caught failing; each case passes here, or in the file of its subject."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitactor import (
    DeadlineExceeded,
    DefinitionError,
    Element,
    Halt,
    InvalidInput,
    Result,
    StepTimeout,
    UnknownArgument,
    Value,
    Workflow,
)
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes, begin, dying
from tests.conformance.support import failure_of, ran, result_of
from tests.e2e.support import BOUND, audit, chain, finish, pass_time, pulse_lines, spawned, turns, until


async def fails() -> None:
    raise ValueError("the end")


@claim("Where Reactor was caught", "In-flight async steps were neither awaited nor undone on failure.")
async def test_in_flight_steps_on_failure() -> None:
    workflow = Workflow("in flight")
    log: list[str] = []
    began = asyncio.Event()

    @workflow.step
    async def books() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            log.append("ended")
        return "never"

    @books.undo(in_doubt=True)
    async def unbook(result: str | None) -> None:
        log.append("undone")

    @workflow.step
    async def breaks() -> None:
        await began.wait()
        raise ValueError

    transaction = await ran(workflow)
    assert (transaction.status, log) == ("compensated", ["ended", "undone"])


@claim("Where Reactor was caught", "Killing the caller left steps running that nobody knew of.")
async def test_killing_the_caller() -> None:
    workflow = Workflow("owned")
    ended: list[str] = []
    workflow.step(name="a")(lambda: "a").undo(lambda result: ended.append("undo a"))

    @workflow.step
    async def hangs(a: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("stopped")

    async with Mesh(workflow) as mesh:
        began: list[Any] = []

        async def caller() -> None:
            began.append(await mesh.stimulate(workflow))
            await began[0].result()

        calling = asyncio.ensure_future(caller())
        await until(lambda: began and "spawned hangs" in pulse_lines(began[0]))
        calling.cancel()
        await turns()
        assert mesh.node.about()["running"] == 1, "it is known, and goes on"
        found = await mesh.transaction(began[0].id)
        assert await found.cancel() == "cancelled"
        assert ended == ["stopped", "undo a"] and mesh.node.about()["running"] == 0


@claim("Where Reactor was caught", "Fifty failed runs leaked fifty concurrency pools.")
async def test_fifty_failed_runs() -> None:
    workflow = Workflow("failing", max_concurrency=2)
    workflow.step(name="fails", limit="shared")(fails)
    async with Mesh(workflow, pools={"shared": 1}) as mesh:
        for _ in range(50):
            assert (await finish(mesh, workflow)).status == "compensated"
        assert mesh.node.about()["pools"] == {"shared": {"places": 1, "taken": 0, "waiting": 0, "lent": 0}}
        assert not mesh.node.supervisor.transactions


@claim("Where Reactor was caught", "Beside one sleeping step each trivial step of a chain took 200 ms.")
async def test_a_chain_beside_a_sleeping_step() -> None:
    workflow = Workflow("beside", ttl=60)
    go = asyncio.Event()

    @workflow.step
    async def sleeps() -> None:
        await go.wait()

    before: Any = Value(0)
    for number in range(50):
        before = Result(workflow.step(name=f"s{number}", bind={"value": before})(plus_one))
    async with Mesh(workflow) as mesh:
        began = time.perf_counter()
        transaction = await mesh.stimulate(workflow)
        await until(lambda: transaction.results().get("s49") == 50)
        assert transaction.status == "running" and "completed sleeps" not in pulse_lines(transaction)
        assert time.perf_counter() - began < 5, "which would have been ten seconds"
        go.set()
        await transaction.ended(BOUND)


async def plus_one(value: int) -> int:
    return value + 1


@claim("Where Reactor was caught", "There was no timeout per step.")
async def test_a_timeout_per_step() -> None:
    clock = FakeClock()
    workflow = Workflow("timed", grace=0.1)

    @workflow.step(timeout=0.5)
    async def hangs() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "hangs")
        await pass_time(clock, 0.6)
        assert await transaction.ended(BOUND) == "compensated"
        assert isinstance((await failure_of(transaction)).__cause__, StepTimeout)


@claim("Where Reactor was caught", "A run timeout of 100 ms came back after 801 ms.")
async def test_a_timeout_of_a_run() -> None:
    clock = FakeClock()
    workflow = Workflow("whole", deadline=0.1, grace=0.1)

    @workflow.step
    async def sleeps() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "sleeps")
        await pass_time(clock, 0.095)
        assert transaction.status == "running"
        await pass_time(clock, 0.015)
        assert await transaction.ended(BOUND) == "compensated"
        assert isinstance((await failure_of(transaction)).__cause__, DeadlineExceeded)


@claim("Where Reactor was caught", "An unordered map always failed.")
async def test_an_unordered_map() -> None:
    workflow = Workflow("unordered", ttl=4)

    @workflow.map(over=Value([3, 1, 2]), ordered=False, batch=2)
    async def double(element: int) -> int:
        for _ in range(element):
            await asyncio.sleep(0)
        return element * 2

    assert sorted(await result_of(workflow)) == [2, 4, 6]


@claim("Where Reactor was caught", "A nested map crashed.")
async def test_a_nested_map() -> None:
    row = Workflow("row", input={"cells": list[int]})
    row.map(name="each", over="cells")(lambda element: element + 1)
    workflow = Workflow("table", ttl=8)
    workflow.map(name="rows", workflow=row, over=Value([[1, 2], [3]]), bind={"cells": Element()})
    assert await result_of(workflow) == [[2, 3], [4]]


@claim("Where Reactor was caught", "Halting inside group, around or compose lost the value.")
@pytest.mark.parametrize("kind", ["group", "compose", "around", "map", "recurse", "switch"])
async def test_halting_inside(kind: str, store: str) -> None:
    answers: list[Any] = [Halt("look"), "the value"]
    inner = Workflow("inner")
    inner.step(name="earlier")(lambda: "kept")

    @inner.step
    async def asks(earlier: str) -> Any:
        answer = answers.pop(0)
        return answer if isinstance(answer, Halt) else [earlier, answer]

    workflow = Workflow("outer", ttl=8)
    match kind:
        case "group":
            workflow.group("inside", inner, before_all=lambda: None, after_all=lambda result: result)
        case "compose":
            workflow.compose("inside", inner)
        case "around":
            workflow.around(name="inside", workflow=inner)(passing_through)
        case "map":
            inner_of = Workflow("of an element", input={"element": int}, ttl=8)
            inner_of.compose("inside", inner)
            workflow.map(name="inside", workflow=inner_of, over=Value([1]))
        case "recurse":
            workflow.recurse("inside", inner, at_most=1)
        case "switch":
            workflow.switch("inside", on=Value(1), cases={1: inner})
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "halted"
        await transaction.resume()
        value = await transaction.result(BOUND)
        assert (value[0] if kind == "map" else value) == ["kept", "the value"]
        audit(transaction)


async def passing_through(proceed: Callable[[], Any]) -> Any:
    return await proceed()


@claim("Where Reactor was caught", "Steps inside a group were not undone by a later outer failure.")
async def test_undo_of_a_group() -> None:
    log: list[str] = []
    inner = Workflow("inner")
    inner.step(name="a")(lambda: None).undo(lambda: log.append("a"))
    workflow = Workflow("outer", ttl=8)
    workflow.group("group", inner, before_all=lambda: None)
    workflow.step(name="fails", after=["group"])(fails)
    assert ((await ran(workflow)).status, log) == ("compensated", ["a"])


@claim("Where Reactor was caught", "Callbacks of the wrong shape were silently ignored.")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda step: step.undo(lambda result, amout: None),
        lambda step: step.compensate(lambda error, amout: None),
        lambda step: step.undo(lambda error: None),
        lambda step: step.compensate(lambda result: None),
        lambda step: step.undo(lambda *arguments: None),
        lambda step: step.compensate("retry"),
        lambda step: step.workflow.step(name="x", when=lambda amout: True)(lambda amount: None),
        lambda step: step.workflow.step(name="x", retries=1, backoff=lambda error, amout: 1.0)(lambda amount: None),
        lambda step: step.workflow.step(name="x", guard=lambda amout: None)(lambda amount: None),
    ],
)
def test_callbacks_of_the_wrong_shape(spoil: Callable[[Any], Any]) -> None:
    workflow = Workflow("shapes", input={"amount": int})
    step = workflow.step(name="pay")(lambda amount: None)
    with pytest.raises(DefinitionError):
        spoil(step)
        workflow.check()


@claim("Where Reactor was caught", "The cost of a step grew with their number: 8.7 µs at 10, 394 µs at 1,000.")
@pytest.mark.parametrize("shape", ["chain", "fan-out"])
async def test_cost_of_many_steps(shape: str) -> None:
    """Generously: growth as there would be a factor of forty."""

    async def cost(count: int) -> float:
        if shape == "chain":
            workflow = chain(f"chain {count}", count, ttl=1_000)
        else:
            workflow = Workflow(f"wide {count}", input={"start": int})
            for number in range(count):
                workflow.step(name=f"s{number}", bind={"value": Value(number)})(plus_one)
        async with Mesh(workflow) as mesh:
            await (await mesh.stimulate(workflow, {"start": 0})).result(BOUND)
            best = float("inf")
            for _ in range(5):
                before = time.process_time()
                await (await mesh.stimulate(workflow, {"start": 0})).result(BOUND)
                best = min(best, (time.process_time() - before) / count)
            return best

    assert await cost(1_000) < 8 * await cost(20)


@claim("Where Reactor was caught", "Bigger batches made a map slower.")
async def test_bigger_batches() -> None:
    async def cost(batch: int) -> float:
        workflow = Workflow(f"batch {batch}")
        workflow.map(name="each", over=lambda: range(20_000), batch=batch, keep=False, spawn="inline")(
            lambda element: None
        )
        async with Mesh(workflow) as mesh:
            best = float("inf")
            for _ in range(3):
                before = time.process_time()
                await (await mesh.stimulate(workflow)).result(BOUND * 3)
                best = min(best, time.process_time() - before)
            return best

    assert await cost(5_000) < 3 * await cost(50)


@claim("Where Reactor was caught", "Unknown inputs failed only at run time.")
async def test_unknown_inputs() -> None:
    workflow = Workflow("typed", input={"amount": int})
    with pytest.raises(UnknownArgument, match="'amount'"):
        workflow.step(lambda amont: None)
        workflow.check()
    fine = Workflow("fine", input={"amount": int})
    fine.step(name="pay")(lambda amount: amount)
    async with Mesh(fine) as mesh:
        with pytest.raises(InvalidInput, match="amont"):
            await mesh.stimulate(fine, {"amont": 1})
        assert not await mesh.transactions()


@claim("Where Reactor was caught", "There was no durability.")
async def test_durability(sqlite: str, tmp_path: Path) -> None:
    begin("dying", sqlite, tmp_path)
    notes = Notes(tmp_path)
    assert notes.lines == ["first", "dies"]
    async with Mesh(dying(notes), store=sqlite) as mesh:
        [row] = await mesh.transactions()
        transaction = await mesh.transaction(row.transaction)
        assert await transaction.result(BOUND) == "lives"
        audit(transaction)
    assert notes.lines == ["first", "dies", "dies", "last"]
