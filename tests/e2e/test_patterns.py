"""Patterns in a whole mesh: over transactions, with undo, retries and cancelling, wherever a step runs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bitactor import Backoff, Context, Halt, Signal, UnknownArgument, Workflow, WorkflowFailed, consumer
from bitactor.patterns import (
    Batching,
    Cache,
    CircuitBreaker,
    CircuitOpen,
    ErrorHandler,
    Fallback,
    RateLimit,
    RetryPolicy,
    TimedOut,
    Timeout,
    parallel_fetch,
)
from bitactor.testing import FakeClock
from mesh import Mesh, Transaction
from tests.e2e.support import BOUND, SPAWNERS, finish, for_spawner, pass_time, pulse_lines, start, turns, undone, until


def patterns(mesh: Mesh) -> dict[str, Any]:
    return {pattern["name"]: pattern for pattern in mesh.node.about()["patterns"]}


async def value_of(transaction: Transaction) -> Any:
    return await transaction.result(BOUND)


@pytest.mark.parametrize("where", SPAWNERS)
async def test_all_of_them_around_one_step_wherever_it_runs(store: str, where: str) -> None:
    calls: list[str] = []

    def price(item: str) -> str:
        calls.append(item)
        if item == "moon":
            raise LookupError(item)
        if len(calls) == 1:
            raise ConnectionError("blip")
        return f"{item}: 40"

    workflow = Workflow("prices", input={"item": str}, ttl=1)
    policies = [
        Fallback("none", "unknown", on=(LookupError, CircuitOpen)),
        ErrorHandler("told", "log", level="debug"),
        Cache("prices", key="{item}"),
        CircuitBreaker("shop", failures=2),
        RetryPolicy("blips", backoff=Backoff(initial=0.001), on=ConnectionError),
        RateLimit("shop", per_second=1000, burst=10),
        Timeout("shop", 30.0),
    ]
    workflow.step(policies=policies, spawn=where)(for_spawner(where, price))
    async with Mesh(workflow, store=store) as mesh:
        for item, expected in (("lamp", "lamp: 40"), ("lamp", "lamp: 40"), *[("moon", "unknown")] * 3):
            transaction = await finish(mesh, workflow, {"item": item})
            assert (transaction.status, await value_of(transaction)) == ("completed", expected)
            assert pulse_lines(transaction) == ["accepted", "spawned price", "completed price", "finished"]
        assert calls == ["lamp", "lamp", "moon", "moon"], "a blip, a hit of the cache, and an open circuit"
        seen = mesh.node.about()["patterns"]
        assert [(pattern["pattern"], pattern["name"]) for pattern in seen] == sorted(policy.key for policy in policies)
        assert patterns(mesh)["blips"]["recovered"] == 1


async def test_a_value_from_a_pattern_is_undone_like_any_other() -> None:
    workflow = Workflow("reserved", ttl=2)
    taken_back: list[Any] = []

    @workflow.step(policies=[Fallback("backup", "backup shelf")])
    async def reserve() -> str:
        raise ConnectionError

    @reserve.undo
    async def put_back(result: str) -> None:
        taken_back.append(result)

    @workflow.step(after=["reserve"])
    async def pay() -> None:
        raise ValueError("no money")

    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow)
    assert transaction.status == "compensated" and undone(transaction) == ["reserve"] and taken_back == ["backup shelf"]


async def test_an_undo_is_not_held_back_by_the_patterns_of_its_step() -> None:
    workflow = Workflow("limited", ttl=2)

    @workflow.step(policies=[RateLimit("slow", rate=1, per=3600.0, max_wait=0)])
    async def reserve() -> int:
        return 1

    @reserve.undo
    async def put_back() -> None: ...

    @workflow.step(after=["reserve"])
    async def pay() -> None:
        raise ValueError

    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow)
    assert transaction.status == "compensated" and undone(transaction) == ["reserve"]


async def test_a_refusal_is_an_error_that_durable_retries_can_wait_for() -> None:
    clock = FakeClock()
    workflow = Workflow("partner", input={"up": bool}, ttl=1)
    up: list[bool] = []

    def when_it_says(error: Exception) -> float:
        return error.retry_after or 0.0 if isinstance(error, CircuitOpen) else 0.0

    @workflow.step(retries=3, backoff=when_it_says, policies=[CircuitBreaker("partner", failures=2, open_for=30.0)])
    async def ask() -> str:
        if not up:
            raise ConnectionError
        return "answer"

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await start(mesh, workflow, {"up": False})
        for failures in (1, 2, 3):
            await until(lambda failures=failures: pulse_lines(transaction).count("retried ask") == failures)
            await pass_time(clock, 0.01)
        assert patterns(mesh)["partner"]["state"] == "open" and patterns(mesh)["partner"]["rejected"] == 1
        up.append(True)
        await pass_time(clock, 29.9)
        assert patterns(mesh)["partner"]["calls"] == 3, "nobody asks before it is time"
        assert transaction.status == "running"
        await pass_time(clock, 0.2)
        assert await value_of(transaction) == "answer"
        assert patterns(mesh)["partner"]["state"] == "closed"


async def test_the_caller_gets_the_patterns_error() -> None:
    workflow = Workflow("partner", ttl=1, errors=[CircuitOpen])

    @workflow.step(policies=[CircuitBreaker("partner", failures=1, open_for=30.0)])
    async def ask() -> str:
        raise ConnectionError

    async with Mesh(workflow, clock=FakeClock()) as mesh:
        await finish(mesh, workflow)
        with pytest.raises(WorkflowFailed) as caught:
            await value_of(await finish(mesh, workflow))
    error = caught.value.errors[0]
    assert isinstance(error, CircuitOpen) and error.retry_after == 30.0


async def test_a_cancelled_transaction_takes_its_item_out_of_the_batch() -> None:
    batches: list[list[str]] = []

    async def insert(items: list[str]) -> list[int]:
        batches.append(items)
        return [len(items)] * len(items)

    workflow = Workflow("orders", input={"order": str}, ttl=1)

    @workflow.step(policies=[Batching("orders", size=2, interval=3600.0, handler=insert)])
    async def record(order: str) -> str:
        return order

    async with Mesh(workflow) as mesh:
        regretted = await start(mesh, workflow, {"order": "moon"})
        await until(lambda: patterns(mesh)["orders"].get("waiting") == 1)
        await regretted.cancel()
        assert await regretted.ended(BOUND) == "cancelled"
        kept = [await start(mesh, workflow, {"order": order}) for order in ("lamp", "desk")]
        assert [await value_of(transaction) for transaction in kept] == [2, 2]
        assert patterns(mesh)["orders"]["withdrawn"] == 1
    assert batches == [["lamp", "desk"]]


async def test_a_cancelled_transaction_gives_its_turn_away() -> None:
    clock = FakeClock()
    workflow = Workflow("limited", input={"number": int}, ttl=1)
    began: list[int] = []

    @workflow.step(policies=[RateLimit("x", per_second=1)])
    async def ask(number: int) -> int:
        began.append(number)
        return number

    async with Mesh(workflow, clock=clock) as mesh:
        transactions = [await start(mesh, workflow, {"number": number}) for number in range(4)]
        await turns()
        assert began == [0] and patterns(mesh)["x"]["waiting"] == 3
        await transactions[1].cancel()
        await pass_time(clock, 1.0)
        assert began == [0, 2]
        await pass_time(clock, 1.0)
        assert began == [0, 2, 3]
        assert [await value_of(transaction) for transaction in transactions[2:]] == [2, 3]


async def test_a_batch_of_many_transactions_loses_nothing(store: str) -> None:
    seen: list[int] = []

    async def insert(items: list[int]) -> list[Any]:
        await asyncio.sleep(0)
        seen.extend(items)
        return [ValueError(item) if item % 10 == 3 else -item for item in items]

    workflow = Workflow("many", input={"number": int}, ttl=1)

    @workflow.step(policies=[Batching("many", size=7, interval=0.01, handler=insert)])
    def record(number: int) -> int:
        return number

    async with Mesh(workflow, store=store) as mesh:
        transactions = [await start(mesh, workflow, {"number": number}) for number in range(100)]
        for number, transaction in enumerate(transactions):
            status = await transaction.ended(BOUND)
            assert status == ("compensated" if number % 10 == 3 else "completed")
            if status == "completed":
                assert await value_of(transaction) == -number
    assert sorted(seen) == list(range(100))


async def test_a_late_thread_does_not_hold_up_the_fallback() -> None:
    clock, go = FakeClock(), threading.Event()
    workflow = Workflow("slow", ttl=1)

    @workflow.step(policies=[Timeout("slow", 1.0, fallback="last known")])
    def ask() -> str:
        go.wait(BOUND)
        return "late"

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await start(mesh, workflow)
        await until(lambda: patterns(mesh)["slow"].get("calls") == 1)
        await pass_time(clock, 1.1)
        await pass_time(clock, 1.1)  # the grace: a thread cannot be stopped, and may be about to end
        assert await value_of(transaction) == "last known"
        go.set()


async def test_a_timeout_is_an_error_that_can_be_told_apart() -> None:
    clock = FakeClock()
    workflow = Workflow("slow", ttl=1)

    @workflow.step(policies=[Fallback("slow", "too slow", on=TimedOut), Timeout("slow", 1.0)])
    async def ask() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await start(mesh, workflow)
        await turns()
        await pass_time(clock, 1.1)
        assert await value_of(transaction) == "too slow"


async def test_what_a_step_decides_passes_through_all_of_them() -> None:
    async def insert(items: list[Any]) -> list[Any]:
        return items

    workflow = Workflow("halting", ttl=1)
    policies = [
        Fallback("x", "hidden"),
        ErrorHandler("x", "ignore"),
        Cache("x", key=lambda: "one"),
        CircuitBreaker("x", failures=1),
        RetryPolicy("x"),
        Batching("x", 9, 3600.0, insert),
        Timeout("x", 30.0),
    ]

    @workflow.step(policies=policies)
    async def ask() -> Any:
        return Halt("somebody should look at this")

    async with Mesh(workflow) as mesh:
        assert (await finish(mesh, workflow)).status == "halted"
        assert (
            mesh.node.about()["patterns"][1]["pattern"] == "cache" and mesh.node.about()["patterns"][1]["entries"] == 0
        )


async def test_emits_of_the_attempt_that_worked_are_sent_once() -> None:
    workflow = Workflow("telling", ttl=2)
    tries: list[int] = []

    @workflow.step(policies=[RetryPolicy("blips", backoff=Backoff(initial=0.001))])
    async def tell(ctx: Context) -> None:
        tries.append(1)
        await ctx.emit("told", len(tries))
        if len(tries) < 3:
            raise ConnectionError

    heard: list[Any] = []

    @consumer("told")
    async def hear(signal: Signal) -> None:
        heard.append(signal.token)

    async with Mesh(workflow, hear) as mesh:
        await finish(mesh, workflow)
        await until(lambda: heard)
    assert tries == [1, 1, 1] and heard == [3]


async def test_an_argument_that_is_not_there_is_found_when_the_step_is_declared() -> None:
    workflow = Workflow("users", input={"userid": int})
    with pytest.raises(UnknownArgument, match=r"'user_id' is no argument of the step\. Did you mean 'userid'"):

        @workflow.step(policies=[Cache("users", key="user:{user_id}")])
        async def load(userid: int) -> None: ...

        workflow.check()


async def test_functions_for_many_at_once_inside_a_step() -> None:
    workflow = Workflow("dashboard", ttl=1)

    async def slow() -> None:
        await asyncio.Event().wait()

    async def quick() -> int:
        return 3

    @workflow.step
    async def gather() -> dict[str, Any]:
        fetched = await parallel_fetch({"orders": quick, "reviews": slow}, timeout=0.02)
        return {"got": fetched.successful, "missing": sorted(fetched.failed)}

    async with Mesh(workflow) as mesh:
        assert await value_of(await finish(mesh, workflow)) == {"got": {"orders": 3}, "missing": ["reviews"]}
        assert not [task for task in asyncio.all_tasks() if "slow" in repr(task.get_coro())]
