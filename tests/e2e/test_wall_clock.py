"""The wall clock is set forward and back: while a process runs a transaction that changes nothing, from one process to
the next it counts."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from bitactor import Context, DeadlineExceeded, Halt, Retry, Workflow, consumer
from bitactor.messages.signal import Signal
from bitactor.testing import FakeClock
from bitactor.testing.fakes import START_NS
from mesh import Mesh, Transaction
from tests.amounts import examples
from tests.e2e.support import BOUND, audit, pass_time, pulse_lines, spawned, turns, undone, until

HOUR = 3_600.0
ROUNDS = 10


class WallClock(FakeClock):
    """Its wall time can be set, which moves nothing else."""

    def __init__(self, wall_ns: int = START_NS) -> None:
        super().__init__(wall_ns)
        self.moved_ns = 0

    def wall_ns(self) -> int:
        return super().wall_ns() + self.moved_ns

    def move(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self.moved_ns += round(seconds * 1e9)


def times(transaction: Transaction) -> list[int]:
    """When each pulse was made, counted from the first."""
    pulses = transaction.pulses()
    return [pulse.at_ns - pulses[0].at_ns for pulse in pulses]


def shop() -> Workflow:
    """Takes 8.5 s of its 20: steps in a row, one of which is tried again, and one that is out of time and undone."""
    workflow = Workflow("shop", ttl=9, deadline=20.0, grace=1.0)

    @workflow.step
    async def reserve(ctx: Context) -> float:
        await ctx.emit("reserved", 1)
        assert ctx.deadline_left is not None
        return ctx.deadline_left

    @reserve.undo(retries=1)
    async def release(ctx: Context) -> Retry | None:
        return Retry(after=1.5) if ctx.attempt == 1 else None

    @workflow.step(retries=1)
    async def charge(ctx: Context, reserve: float) -> Retry | float | None:
        return Retry(after=4.0) if ctx.attempt == 1 else ctx.deadline_left

    @workflow.step(timeout=3.0)
    async def ship(charge: float) -> None:
        await asyncio.Event().wait()

    return workflow


@consumer("reserved", deadline=30.0)
async def audits(signal: Signal) -> None:
    await asyncio.sleep(0)


async def told(moves: list[float]) -> list[Any]:
    """What the journals say of a run in which the wall clock is set every second."""
    clock = WallClock()
    async with Mesh(shop(), audits, clock=clock) as mesh:
        transaction = await mesh.stimulate("shop")
        await turns()
        for seconds in moves:
            clock.move(seconds)
            await pass_time(clock, 1.0)
        assert await transaction.ended(BOUND) == "compensated"
        audit(transaction)
        receivers = next(pulse.data for pulse in transaction.pulses() if pulse.kind == "emitted")["receivers"]
        others = [await mesh.transaction(receiver) for receiver in receivers]
        for other in others:
            await other.ended(BOUND)
        found = [(pulse_lines(one), times(one)) for one in (transaction, *others)]
        return [*found, [str(error) for error in transaction.errors()], transaction.results()]


@functools.cache
def undisturbed() -> list[Any]:
    return asyncio.run(told([0.0] * ROUNDS))


@examples(quick=100, long=2_000, suppress_health_check=list(HealthCheck), deadline=None)
@given(moves=st.lists(st.sampled_from([0.0, HOUR, -HOUR, 1e8, -1e8, 0.004]), min_size=ROUNDS, max_size=ROUNDS))
def test_whatever_the_wall_clock_does_a_transaction_is_the_same(moves: list[float]) -> None:
    assert asyncio.run(told(moves)) == undisturbed()


@pytest.mark.parametrize("moved", [HOUR, -HOUR])
async def test_a_deadline_is_as_far_away_as_before(moved: float, store: str) -> None:
    clock = WallClock()
    workflow = Workflow("waits", ttl=3, deadline=30.0, grace=0.5)
    let = asyncio.Event()

    @workflow.step
    async def first() -> None:
        await let.wait()

    @workflow.step(after=["first"])
    async def second(ctx: Context) -> None:
        assert ctx.deadline_left == 28.0, "the step has what is left"
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "first")
        await pass_time(clock, 2.0)
        clock.move(moved)
        let.set()
        await spawned(transaction, "second")
        await pass_time(clock, 27.9)
        assert transaction.status == "running"
        await pass_time(clock, 0.2)
        await pass_time(clock, 1.0)
        assert await transaction.ended(BOUND) == "compensated"
        error = transaction.errors()[0]
        assert isinstance(error, DeadlineExceeded)
        assert (error.clock, error.unattended) == ("monotonic", False) and 0 <= error.late_by < 0.2
        assert "still running 30 s after it began" in str(error).replace("30.1", "30")


@pytest.mark.parametrize("moved", [HOUR, -HOUR])
async def test_what_is_halted_has_the_time_that_was_left(moved: float, store: str) -> None:
    clock = WallClock()
    workflow = Workflow("halts", ttl=3, deadline=10.0)

    @workflow.step
    async def stops(ctx: Context) -> Halt | float | None:
        return Halt("look") if ctx.attempt == 1 else ctx.deadline_left

    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await transaction.ended(BOUND)
        clock.move(moved)
        await pass_time(clock, 100.0)
        await transaction.resume()
        assert await transaction.result(BOUND) == 10.0
        at = [pulse.at_ns for pulse in transaction.pulses()]
        assert at == sorted(at)


def endless() -> tuple[Workflow, list[str]]:
    effects: list[str] = []
    workflow = Workflow("endless", ttl=3, deadline=30.0, grace=0.5)

    @workflow.step
    async def made() -> None:
        effects.append("made")

    @made.undo
    async def unmade() -> None:
        effects.append("unmade")

    @workflow.step(after=["made"], retries=1)
    async def hangs() -> None:
        effects.append("hangs")
        await asyncio.Event().wait()

    return workflow, effects


async def begun(workflow: Workflow, store: str, clock: FakeClock) -> str:
    """A transaction whose process ends while it runs, 5 s after its beginning."""
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await spawned(transaction, "made")
        await pass_time(clock, 5.0)
        await spawned(transaction, "hangs")
        await mesh.close(drain=0)
    return transaction.id


async def test_over_a_restart_the_wall_clock_counts_and_the_error_says_so(tmp_path: Path) -> None:
    workflow, effects = endless()
    store = f"sqlite:///{tmp_path}/journal.db"
    transaction = await begun(workflow, store, WallClock())
    assert effects == ["made", "hangs"]
    clock = WallClock(START_NS + round(HOUR * 1e9))
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        found = await mesh.transaction(transaction)
        await until(lambda: "failed" in pulse_lines(found))
        await pass_time(clock, 0.6)
        assert await found.ended(BOUND) == "compensated"
        assert effects == ["made", "hangs", "unmade"], "nothing is delivered again whose time is over"
        error = found.errors()[0]
        assert isinstance(error, DeadlineExceeded)
        assert (error.late_by, error.clock, error.unattended) == (HOUR - 30, "wall", True)
        assert str(error) == (
            "'endless' was taken over 3,570 s after its deadline, which passed, by the wall clock, while no process "
            "ran it; that is 3,600 s after it began, at 'endless/hangs', attempt 1"
        )
        assert undone(found) == ["made"]
        audit(found)


async def test_a_deadline_that_passes_after_a_takeover_says_that_wall_time_is_in_it(tmp_path: Path) -> None:
    workflow, _ = endless()
    store = f"sqlite:///{tmp_path}/journal.db"
    transaction = await begun(workflow, store, WallClock())
    clock = WallClock(START_NS + round(20e9))
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        found = await mesh.transaction(transaction)
        await until(lambda: pulse_lines(found).count("spawned hangs") == 2)
        await turns()
        clock.move(HOUR)
        await pass_time(clock, 9.9)
        assert found.status == "running"
        await pass_time(clock, 0.2)
        await pass_time(clock, 0.6)
        assert await found.ended(BOUND) == "compensated"
        error = found.errors()[0]
        assert isinstance(error, DeadlineExceeded) and (error.clock, error.unattended) == ("wall", False)
        assert "after it began by the wall clock, which counts from one process to the next" in str(error)


async def test_a_process_whose_clock_is_behind_takes_over(tmp_path: Path) -> None:
    workflow, _ = endless()
    store = f"sqlite:///{tmp_path}/journal.db"
    transaction = await begun(workflow, store, WallClock())
    clock = WallClock(START_NS - round(HOUR * 1e9))
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        found = await mesh.transaction(transaction)
        await until(lambda: pulse_lines(found).count("spawned hangs") == 2)
        await turns()
        await pass_time(clock, 29.9)
        assert found.status == "running", "of the time since the latest pulse nothing is known"
        await pass_time(clock, 0.2)
        await pass_time(clock, 0.6)
        assert await found.ended(BOUND) == "compensated"
        at = [pulse.at_ns for pulse in found.pulses()]
        assert at == sorted(at), "time does not go back in a journal"
        assert all((pulse.elapsed_ns or 0) >= 0 for pulse in found.pulses())
        audit(found)


async def test_a_signal_whose_time_is_over_before_it_is_offered_says_why(tmp_path: Path) -> None:
    workflow = Workflow("tells", ttl=3, deadline=30.0)

    @workflow.step
    async def tells(ctx: Context) -> None:
        await ctx.emit("nobody there yet", 1)

    store = f"sqlite:///{tmp_path}/journal.db"
    clock = WallClock()
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        assert await transaction.ended(BOUND) == "completed"
        clock.move(HOUR)
        await pass_time(clock, 20.0)
        assert not any(pulse.kind == "tombstone" for pulse in transaction.pulses()), "its time is not over"
        await mesh.close(drain=0)
    clock = WallClock(START_NS + round(HOUR * 1e9))
    async with Mesh(workflow, store=store, clock=clock) as mesh:
        found = await mesh.transaction(transaction.id)
        buried = await until(lambda: [pulse for pulse in found.pulses() if pulse.kind == "tombstone"])
        assert "had passed before it was offered here" in buried[0].data["why"]
