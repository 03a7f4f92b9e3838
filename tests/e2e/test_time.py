"""Timeouts and deadlines, under a clock that stands still until it is told otherwise."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bitactor import Backoff, Context, Halt, Retry, Workflow, WorkflowFailed
from bitactor.errors import DeadlineExceeded, StepTimeout
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.e2e.support import BOUND, audit, pass_time, pulse_lines, spawned, tombstones, turns, undone, until


async def test_a_loop_step_is_cancelled_at_its_timeout(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("slow", ttl=2)
    cleaned: list[str] = []

    @workflow.step(timeout=1.0)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cleaned.append("wholly")
            raise

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await spawned(tx, "slow")
        await pass_time(clock, 0.99)
        assert tx.status == "running"
        await pass_time(clock, 0.02)
        assert await tx.ended(BOUND) == "compensated"
        with pytest.raises(WorkflowFailed) as caught:
            await tx.result()
        assert [type(error) for error in caught.value.errors] == [StepTimeout]
        assert "slow/slow" in str(caught.value) and "1 s" in str(caught.value)
        assert pulse_lines(tx) == ["accepted", "spawned slow", "timed_out slow", "failed slow", "finished"]
        await until(lambda: not mesh.node.executor.zombies)
        assert cleaned == ["wholly"], "its clean-up is not cancelled a second time"
        audit(tx)


async def test_the_time_of_an_attempt_that_fails_at_once_is_kept_while_its_compensation_is_asked() -> None:
    clock = FakeClock()
    workflow = Workflow("asking", ttl=2)

    @workflow.step(timeout=1.0, retries=3)
    async def fail() -> None:
        raise LookupError("nothing there")

    @fail.compensate
    async def consider() -> Retry:
        await asyncio.Event().wait()
        return Retry()

    async with Mesh(workflow, store="memory://", clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await spawned(tx, "fail")
        await pass_time(clock, 0.99)
        assert tx.status == "running"
        await pass_time(clock, 0.02)
        assert await tx.ended(BOUND) == "compensated"
        with pytest.raises(
            WorkflowFailed, match=r"nothing there \(and its compensate took longer than what was left"
        ) as caught:
            await tx.result()
        assert [type(error) for error in caught.value.errors] == [LookupError]


async def test_swallowing_cancellation_makes_a_zombie_that_is_counted_and_told(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("deaf", ttl=2)
    go = asyncio.Event()

    @workflow.step(timeout=1.0)
    async def deaf() -> str:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await spawned(tx, "deaf")
        await pass_time(clock, 1.1)
        await pass_time(clock, 10)
        assert await tx.ended(BOUND) == "compensated"
        assert mesh.node.about()["zombies"] == 1
        go.set()
        await until(lambda: mesh.node.about()["zombies"] == 0)
        await until(lambda: "late deaf" in pulse_lines(tx))
        late = tx.pulses()[-1]
        assert late.data and late.data["outcome"] == "ok"
        assert tx.status == "compensated"
        audit(tx)


async def test_a_thread_step_is_fenced(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("stuck thread", ttl=2, grace=1.0)
    go = threading.Event()
    started = threading.Event()

    @workflow.step(timeout=1.0)
    def blocked() -> str:
        started.set()
        go.wait(BOUND)
        return "late"

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(started.is_set)
        await pass_time(clock, 1.1)
        await pass_time(clock, 5)
        assert await tx.ended(BOUND) == "compensated"
        assert mesh.node.about()["zombies"] == 1
        go.set()
        await until(lambda: mesh.node.about()["zombies"] == 0)
        await until(lambda: "late blocked" in pulse_lines(tx))
        assert pulse_lines(tx).count("late blocked") == 1
        audit(tx)


async def test_fenced_threads_are_replaced(store: str) -> None:
    """A pool of two, both stuck: others still get a thread; in the end there are no more threads than the pool has."""
    clock = FakeClock()
    workflow = Workflow("hang", ttl=2, grace=1.0)
    easy = Workflow("easy", ttl=2)
    go = threading.Event()
    started: list[int] = []

    @workflow.step(timeout=1.0)
    def hang() -> None:
        started.append(1)
        go.wait(BOUND)

    @easy.step
    def work() -> str:
        return "done"

    async with Mesh(workflow, easy, store=store, clock=clock, threads=2) as mesh:
        transactions = [await mesh.stimulate(workflow) for _ in range(2)]
        await until(lambda: len(started) == 2)
        waiting = await mesh.stimulate(easy)
        await turns()
        assert waiting.status == "running"
        await pass_time(clock, 1.1)
        assert await waiting.result(BOUND) == "done"
        await pass_time(clock, 5)
        for tx in transactions:
            assert await tx.ended(BOUND) == "compensated"
        assert mesh.node.about()["zombies"] == 2
        go.set()
        await until(lambda: mesh.node.about()["zombies"] == 0)
        for _ in range(20):
            assert await (await mesh.stimulate(easy)).result(BOUND) == "done"

        def alive() -> int:
            return sum(thread.name == "bitactor-thread" for thread in threading.enumerate())

        await until(lambda: alive() <= 2)


async def test_waiting_for_a_thread_is_not_in_the_timeout(store: str) -> None:
    clock = FakeClock()
    blocker, patient = Workflow("blocker", ttl=1), Workflow("patient", ttl=1)
    go, started = threading.Event(), threading.Event()

    @blocker.step
    def block() -> None:
        started.set()
        go.wait(BOUND)

    @patient.step(timeout=1.0)
    def brief() -> str:
        return "done"

    async with Mesh(blocker, patient, store=store, clock=clock, threads=1) as mesh:
        first = await mesh.stimulate(blocker)
        await until(started.is_set)
        second = await mesh.stimulate(patient)
        await spawned(second, "brief")
        await pass_time(clock, 100)
        assert second.status == "running"
        go.set()
        assert await second.result(BOUND) == "done"
        await first.result(BOUND)


async def test_a_timed_out_attempt_is_tried_again(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("second try", ttl=2)
    attempts: list[int] = []

    @workflow.step(timeout=1.0, retries=1, backoff=Backoff(initial=3, jitter=0))
    async def flaky(attempt: int) -> str:
        attempts.append(attempt)
        if attempt == 1:
            await asyncio.Event().wait()
        return "done"

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: attempts)
        await pass_time(clock, 1.1)
        assert "retried flaky" in pulse_lines(tx)
        await pass_time(clock, 2.8)
        assert attempts == [1]
        await pass_time(clock, 0.3)
        assert await tx.result(BOUND) == "done"
        assert attempts == [1, 2]
        retried = next(pulse for pulse in tx.pulses() if pulse.kind == "retried")
        assert retried.error and retried.error.startswith("StepTimeout")
        audit(tx)


async def test_each_attempt_has_the_whole_timeout(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("each", ttl=2)
    attempts: list[int] = []

    @workflow.step(timeout=1.0, retries=2, backoff=Backoff(initial=0, jitter=0))
    async def hangs(attempt: int) -> None:
        attempts.append(attempt)
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        for number in (1, 2, 3):
            await until(lambda number=number: len(attempts) == number)
            await pass_time(clock, 0.9)
            assert tx.status == "running"
            await pass_time(clock, 0.15)
            await pass_time(clock, 0.02)
        assert await tx.ended(BOUND) == "compensated"
        assert attempts == [1, 2, 3]
        assert pulse_lines(tx).count("timed_out hangs") == 3
        audit(tx)


async def test_only_errors_worth_it_are_retried(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("not worth", ttl=2)

    @workflow.step(timeout=1.0, retries=5, retry_on=ValueError)
    async def hangs() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await spawned(tx, "hangs")
        await pass_time(clock, 1.1)
        assert await tx.ended(BOUND) == "compensated"
        assert pulse_lines(tx).count("spawned hangs") == 1


@pytest.mark.parametrize("place", ["loop", "thread"])
async def test_the_transactions_deadline(store: str, place: str) -> None:
    clock = FakeClock()
    workflow = Workflow("late", ttl=3, deadline=5.0, grace=1.0)
    taken_back: list[Any] = []
    go, started = threading.Event(), threading.Event()

    @workflow.step
    async def first() -> int:
        return 1

    @first.undo
    async def unfirst(result: int) -> None:
        taken_back.append(result)

    async def on_loop(first: int) -> None:
        started.set()
        await asyncio.Event().wait()

    def in_thread(first: int) -> None:
        started.set()
        go.wait(BOUND)

    workflow.step(name="never", retries=3)(on_loop if place == "loop" else in_thread)

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(started.is_set)
        await pass_time(clock, 4.9)
        assert tx.status == "running"
        await pass_time(clock, 0.2)
        await pass_time(clock, 1.5)
        assert await tx.ended(BOUND) == "compensated"
        with pytest.raises(WorkflowFailed) as caught:
            await tx.result()
        assert isinstance(caught.value.__cause__, DeadlineExceeded), caught.value.errors
        assert tombstones(tx)[0] == "deadline_exceeded"
        assert taken_back == [1], "undo is not stopped by the deadline that began it"
        go.set()
        await until(lambda: not mesh.node.executor.zombies)
        audit(tx)


async def test_the_callers_deadline(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("asked", ttl=1)

    @workflow.step
    async def waits(ctx: Context) -> None:
        assert ctx.deadline_left == 2.0
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow, deadline=2.0)
        await spawned(tx, "waits")
        await pass_time(clock, 2.1)
        assert await tx.ended(BOUND) == "compensated"
        assert isinstance(tx.errors()[0], DeadlineExceeded)


async def test_the_deadline_ends_a_wait_for_a_retry(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("waiting", ttl=1, deadline=2.0)

    @workflow.step(retries=9)
    async def waits() -> Retry:
        return Retry(after=100.0)

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: "retried waits" in pulse_lines(tx))
        await pass_time(clock, 2.1)
        assert await tx.ended(BOUND) == "compensated"
        assert isinstance(tx.errors()[0], DeadlineExceeded)
        audit(tx)


async def test_undo_has_a_time_of_its_own(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("long undo", ttl=2, deadline=5.0, undo_timeout=60.0, grace=1.0)
    undoing, go = asyncio.Event(), asyncio.Event()

    @workflow.step
    async def made() -> int:
        return 1

    @made.undo
    async def unmake(result: int) -> None:
        undoing.set()
        await go.wait()

    @workflow.step
    async def breaks(made: int) -> None:
        raise ValueError("no")

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(undoing.is_set)
        await pass_time(clock, 50)
        assert tx.status == "running", "the deadline of 5 s does not count for undo"
        go.set()
        assert await tx.ended(BOUND) == "compensated"
        assert undone(tx) == ["made"]
        audit(tx)


async def test_undo_that_takes_too_long_is_stuck(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("endless undo", ttl=2, undo_timeout=10.0, grace=1.0)
    undoing = asyncio.Event()

    @workflow.step
    async def made() -> int:
        return 1

    @made.undo
    async def unmake(result: int) -> None:
        undoing.set()
        await asyncio.Event().wait()

    @workflow.step
    async def breaks(made: int) -> None:
        raise ValueError("no")

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(undoing.is_set)
        await pass_time(clock, 12)
        assert await tx.ended(BOUND) == "stuck"
        assert tombstones(tx) == ["deadline_exceeded"]
        assert [type(error) for error in tx.errors()] == [ValueError, DeadlineExceeded]
        audit(tx)


async def test_undo_waits_for_a_late_reply_and_uses_it(store: str) -> None:
    """DESIGN, rule 6: a step that timed out may still answer within the grace period; then its undo has a result and no
    doubt."""
    clock = FakeClock()
    workflow = Workflow("grace", ttl=2, grace=2.0)
    go, started = threading.Event(), threading.Event()
    taken_back: list[Any] = []

    @workflow.step(timeout=1.0)
    def slow() -> str:
        started.set()
        go.wait(BOUND)
        return "made it"

    @slow.undo
    def unslow(result: str) -> None:
        taken_back.append(result)

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(started.is_set)
        await pass_time(clock, 1.5)
        assert tx.status == "running"
        go.set()
        assert await tx.ended(BOUND) == "compensated"
        assert taken_back == ["made it"]
        assert "late slow" in pulse_lines(tx)
        audit(tx)


async def test_a_step_that_answers_just_in_time_is_not_disturbed(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("in time", ttl=1, deadline=3.0)
    go = asyncio.Event()

    @workflow.step(timeout=1.0)
    async def quick() -> str:
        await go.wait()
        return "done"

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await spawned(tx, "quick")
        await pass_time(clock, 0.9)
        go.set()
        assert await tx.result(BOUND) == "done"
        await pass_time(clock, 100)
        assert pulse_lines(tx) == ["accepted", "spawned quick", "completed quick", "finished"]
        assert len(mesh.node.wheel) == 0


async def test_a_compensation_that_hangs_is_over_at_the_timeout(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("hung compensate", ttl=1, grace=1.0)
    asked = asyncio.Event()

    @workflow.step(timeout=1.0)
    async def breaks() -> None:
        raise ValueError("no")

    @breaks.compensate
    async def hang(error: Exception) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(asked.is_set)
        await pass_time(clock, 1.1)
        await pass_time(clock, 5)
        assert await tx.ended(BOUND) == "compensated"
        audit(tx)
        assert len(mesh.node.executor.compensations) <= 1
    assert not mesh.node.executor.compensations


async def test_a_hanging_compensation_does_not_hold_back_a_cancel(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("hung compensate 2", ttl=1, grace=1.0)
    asked = asyncio.Event()

    @workflow.step
    async def breaks() -> None:
        raise ValueError("no")

    @breaks.compensate
    async def hang(error: Exception) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(asked.is_set)
        cancelling = asyncio.ensure_future(tx.cancel())
        await turns()
        await pass_time(clock, 3)
        assert await cancelling == "cancelled"
        audit(tx)


async def test_cancelled_thread_steps_do_not_use_up_the_pool(store: str) -> None:
    """Given up after the grace period, without a timeout of its own: counted as a zombie, and its place is free
    again."""
    clock = FakeClock()
    workflow, easy = Workflow("hang", ttl=1, grace=1.0), Workflow("easy", ttl=1)
    go = threading.Event()
    started: list[int] = []

    @workflow.step
    def hang() -> str:
        started.append(1)
        go.wait(BOUND)
        return "late"

    @easy.step
    def work() -> str:
        return "done"

    async with Mesh(workflow, easy, store=store, clock=clock, threads=1) as mesh:
        tx = await mesh.stimulate(workflow)
        await until(lambda: started)
        cancelling = asyncio.ensure_future(tx.cancel())
        await turns()
        await pass_time(clock, 2)
        assert await cancelling == "cancelled"
        assert mesh.node.about()["zombies"] == 1
        assert await (await mesh.stimulate(easy)).result(5) == "done"
        go.set()
        await until(lambda: mesh.node.about()["zombies"] == 0)
        await until(lambda: "late hang" in pulse_lines(tx))
        audit(tx)


async def test_a_waiting_caller_gives_up_and_the_transaction_goes_on(store: str) -> None:
    workflow = Workflow("patient", ttl=1)
    go = asyncio.Event()

    @workflow.step
    async def waits() -> str:
        await go.wait()
        return "done"

    async with Mesh(workflow, store=store) as mesh:
        tx = await mesh.stimulate(workflow)
        with pytest.raises(TimeoutError):
            await tx.result(timeout=0.01)
        assert tx.status == "running" and tx.about()["waiting"] == 0
        go.set()
        assert await tx.result(BOUND) == "done"


async def test_a_halted_transactions_deadline_stands_still(store: str) -> None:
    clock = FakeClock()
    workflow = Workflow("paused", ttl=2, deadline=5.0)
    first_time = [True]

    @workflow.step
    async def asks() -> Any:
        if first_time.pop() if first_time else False:
            return Halt("look at this")
        return 1

    @workflow.step
    async def waits(asks: int, ctx: Context) -> float | None:
        return ctx.deadline_left

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        tx = await mesh.stimulate(workflow)
        assert await tx.ended(BOUND) == "halted"
        await pass_time(clock, 100)
        assert tx.status == "halted"
        await tx.resume()
        assert await tx.result(BOUND) == 5.0
        audit(tx)
