"""Heartbeats: a step says that it goes on, from the loop, from a thread, inside policies; and only where its time is
kept."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bitactor import Backoff, Context, Workflow
from bitactor.errors import DeadlineExceeded, StepTimeout
from bitactor.patterns import RetryPolicy
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.e2e.heartbeat_steps import beats_in_a_process
from tests.e2e.support import BOUND, finish, pass_time, pulse_lines, spawned, turns, until


class Beating:
    """A step that beats when it is told to, in a thread or on the loop, and ends when it may."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.beat, self.beaten = threading.Semaphore(0), threading.Semaphore(0)
        self.may_end = self.may_beat = False
        self.left: list[float | None] = []
        self.beats_so_far = 0

    def workflow(self, **options: object) -> Workflow:
        workflow = Workflow(
            "beating", grace=0.1, **{name: options.pop(name) for name in ("deadline",) if name in options}
        )

        async def on_loop(ctx: Context) -> str:
            while not self.may_end:
                while not self.beat.acquire(blocking=False):  # noqa: ASYNC110 (who tells it may be on a thread)
                    await asyncio.sleep(0)
                self.once(ctx)
            return "done"

        def in_thread(ctx: Context) -> str:
            while not self.may_end:
                self.beat.acquire()
                self.once(ctx)
            return "done"

        workflow.step(name="works", spawn=self.where, **options)(on_loop if self.where == "loop" else in_thread)
        return workflow

    def once(self, ctx: Context) -> None:
        if self.may_beat:
            ctx.heartbeat(self.beats_so_far)
            self.beats_so_far += 1
        self.left.append(ctx.deadline_left)
        self.beaten.release()

    async def beats(self) -> None:
        """Once, and the loop has heard of it."""
        self.may_beat = True
        await self.looks()
        self.may_beat = False

    async def looks(self) -> None:
        """At what is left, once."""
        self.beat.release()
        await until(lambda: self.beaten.acquire(blocking=False))
        await turns()

    def end(self) -> None:
        self.may_end = True
        self.beat.release()


everywhere = pytest.mark.parametrize("where", ["loop", "thread"])
bare_or_not = pytest.mark.parametrize(
    "policies", [(), [RetryPolicy("again", attempts=2, backoff=Backoff(initial=0))]], ids=["bare", "policies"]
)


@everywhere
@bare_or_not
async def test_as_long_as_it_beats_its_time_is_not_over(where: str, policies: list[RetryPolicy]) -> None:
    clock, step = FakeClock(), Beating(where)
    workflow = step.workflow(timeout=1.0, policies=policies)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "works")
        for number in range(4):
            await pass_time(clock, 0.9)
            await step.beats()
            assert transaction.progress() == {"works": number}
        step.end()
        assert await transaction.result(BOUND) == "done"
    assert pulse_lines(transaction).count("spawned works") == 1


@everywhere
@bare_or_not
async def test_when_it_stops_beating_its_time_is_over(where: str, policies: list[RetryPolicy]) -> None:
    clock, step = FakeClock(), Beating(where)
    workflow = step.workflow(timeout=1.0, policies=policies)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "works")
        await pass_time(clock, 0.9)
        await step.beats()
        await pass_time(clock, 0.9)
        assert transaction.status == "running"
        await pass_time(clock, 0.2)
        await until(lambda: transaction.errors())
        assert isinstance(transaction.errors()[0], StepTimeout)
        step.end()
        await pass_time(clock, 0.2)
        assert await transaction.ended(BOUND) != "completed"


@everywhere
@bare_or_not
async def test_how_much_is_left_is_told_as_it_is_after_a_heartbeat(where: str, policies: list[RetryPolicy]) -> None:
    clock, step = FakeClock(), Beating(where)
    workflow = step.workflow(timeout=1.0, policies=policies)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "works")
        await pass_time(clock, 0.75)
        await step.looks()
        assert step.left[-1] == pytest.approx(0.25)
        await step.beats()
        await step.looks()
        assert step.left[-1] == pytest.approx(1.0)
        await pass_time(clock, 0.5)
        await step.looks()
        assert step.left[-1] == pytest.approx(0.5)
        step.end()
        assert await transaction.result(BOUND) == "done"


async def test_the_transactions_deadline_stays() -> None:
    clock, step = FakeClock(), Beating("loop")
    workflow = step.workflow(timeout=2.0, deadline=3.0)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "works")
        await pass_time(clock, 1.5)
        await step.beats()
        await pass_time(clock, 1.6)
        await until(lambda: transaction.errors())
        assert isinstance(transaction.errors()[0], DeadlineExceeded)
        await pass_time(clock, 0.2)
        assert await transaction.ended(BOUND) == "compensated"


async def test_what_beats_after_it_was_given_up_is_not_heard() -> None:
    clock, step = FakeClock(), Beating("thread")
    workflow = step.workflow(timeout=1.0)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "works")
        await step.looks()  # in its thread it has begun: what has not when its time is over never does
        await pass_time(clock, 1.1)
        await until(lambda: mesh.node.executor.zombies)
        await step.beats()
        assert transaction.progress() == {}
        step.end()
        await until(lambda: not mesh.node.executor.zombies)
        await pass_time(clock, 0.2)
        assert await transaction.ended(BOUND) == "compensated"


async def test_where_its_time_is_not_kept_it_is_told_so() -> None:
    async with Mesh(beats_in_a_process, processes=1) as mesh:
        transaction = await finish(mesh, beats_in_a_process)
        assert "cannot send heartbeats from a worker process" in await transaction.result()
