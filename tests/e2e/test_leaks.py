"""A thousand failing transactions leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitactor import Context, Retry, Workflow, consumer
from mesh import Mesh
from mesh.hops.actor import BitActor
from mesh.limits.timing_wheel import COMPACT_AT, Timer, TimingWheel
from mesh.runtime.emissions import Parcel
from mesh.runtime.live import LiveTransaction
from tests.amounts import amount
from tests.e2e.support import BOUND, SPAWNERS, for_spawner, turns, until

MANY = amount(quick=200, long=1_000)
TRACKED: tuple[type, ...] = (LiveTransaction, BitActor, Parcel, Timer, asyncio.Task, asyncio.Handle, asyncio.Event)


def failing(place: str) -> Workflow:
    """Fails in one of five ways, after something that is undone, beside something in flight, with timers armed."""
    workflow = Workflow("failing", input={"way": int}, ttl=4, deadline=3600.0)
    timeout = None if place == "inline" else 600.0

    def first(way: int) -> dict:
        return {"way": way}

    workflow.step(name="first", spawn=place, timeout=timeout)(for_spawner(place, first)).undo(
        for_spawner(place, lambda result: None)
    )

    @workflow.step(timeout=600.0)
    async def sibling(first: dict) -> None:
        await asyncio.Event().wait()

    def breaks(first: dict, attempt: int, ctx: Context) -> Any:
        match first["way"]:
            case 0:
                raise ValueError("with a traceback")
            case 1:
                raise SystemExit
            case 2:
                return object()
            case 3:
                ctx.emit_later("never")
                return Retry(after=0)
        raise KeyError(attempt)

    step = workflow.step(name="breaks", spawn=place, retries=1, backoff=lambda error: 0.0, timeout=timeout)(
        for_spawner(place, breaks)
    )
    step.undo(for_spawner(place, lambda result: None))

    @workflow.step(after=["first"])
    async def tells(ctx: Context) -> None:
        await ctx.emit("told", "something")

    return workflow


@consumer("told", concurrency=5)
async def fails_too(signal: Any) -> None:
    raise ValueError


async def run_many(mesh: Mesh, workflow: Workflow, count: int) -> None:
    for start in range(0, count, 100):
        transactions = [await mesh.stimulate(workflow, {"way": number % 5}) for number in range(start, start + 100)]
        statuses = Counter([await tx.ended(BOUND) for tx in transactions])
        assert statuses == {"compensated": 100}
    await until(lambda: mesh.node.about()["running"] == 0 and mesh.node.about()["undelivered"] == 0)
    await turns()


def alive() -> Counter[str]:
    for _ in range(3):  # what has a finaliser goes in a second pass
        gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in TRACKED)


def grown(before: Counter[str], slack: int) -> dict[str, int]:
    """What there is more of than before; of handles the loop itself holds some, at one time more than at another."""
    few = {"Handle": 10}
    return {kind: count for kind, count in alive().items() if count > before[kind] + slack + few.get(kind, 0)}


def timers() -> list[asyncio.TimerHandle]:
    """What loops have scheduled and not cancelled."""
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, asyncio.TimerHandle) and not thing.cancelled()]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("place", "kind"), [*((place, "memory") for place in SPAWNERS), ("loop", "sqlite")])
async def test_nothing_is_left(place: str, kind: str, sqlite: str) -> None:
    store = sqlite if kind == "sqlite" else "memory://"
    workflow = failing(place)
    async with Mesh(workflow, fails_too, store=store, threads=4) as mesh:
        node = mesh.node
        await run_many(mesh, workflow, 100)
        before, objects = about(mesh), alive()
        await run_many(mesh, workflow, MANY)
        after = about(mesh)
        # A file's own threads open it when they are first needed.
        assert before["files"] <= after["files"] <= before["files"] + (12 if kind == "sqlite" else 0)
        assert {**after, "files": 0} == {**before, "files": 0}
        # The thread that commits when the file is locked may still hold its last group.
        slack = 150 if kind == "sqlite" else 0
        assert not grown(objects, slack)
        assert len(node.wheel) == 0 and not node.supervisor.transactions
        left = mesh.about()
        assert left["keyed"] == left["timers"]["armed"] == left["deliveries"] == 0
        assert not node.executor.zombies and not node.executor.compensations and len(node.emissions) == 0
        assert left["timers"]["buckets"] <= COMPACT_AT
        assert [(turn["taken"], turn["waiting"]) for turn in left["turns"].values()] == [(0, 0)]
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bitactor")]


def about(mesh: Mesh) -> dict[str, Any]:
    """What a process can run out of."""
    threads = Counter(thread.name for thread in threading.enumerate() if thread.name.startswith("bitactor"))
    return {
        "pool": threads.pop("bitactor-thread", 0) <= 4,
        "committing": threads.pop("bitactor-store-commit", 0) <= 1,
        "threads": threads,
        "files": open_files(),
        "tasks": len(asyncio.all_tasks()),
        "names": sorted(mesh.node.registry.keys()),
    }


async def test_memory_stays_flat(sqlite: str) -> None:
    """On a file, where the journal is not in memory: more transactions need no more of it."""
    workflow = failing("inline")
    async with Mesh(workflow, fails_too, store=sqlite) as mesh:
        await run_many(mesh, workflow, 100)
        tracemalloc.start()
        try:
            await run_many(mesh, workflow, 100)
            gc.collect()
            first = tracemalloc.get_traced_memory()[0]
            await run_many(mesh, workflow, 400)
            gc.collect()
            second = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        # Buckets of timers that were disarmed come and go, up to half a MiB; a transaction that is kept holds 5 KiB and
        # more.
        assert second - first < 1_000_000, f"{(second - first) / 400:.0f} bytes a transaction are left"


async def test_opening_and_closing_many_times_leaves_nothing(store: str) -> None:
    workflow = Workflow("brief", ttl=1)

    @workflow.step
    def works() -> int:
        return 1

    async def once() -> None:
        async with Mesh(workflow, store=store) as mesh:
            await (await mesh.stimulate(workflow)).result(BOUND)

    for _ in range(3):
        await once()
    before = (open_files(), len(asyncio.all_tasks()))
    known = timers()
    for _ in range(10):
        await once()
    assert (open_files(), len(asyncio.all_tasks())) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bitactor")]
    left = [handle for handle in timers() if not any(handle is other for other in known)]
    assert not [handle for handle in left if "mesh" in repr(handle)], left


def test_the_wheel_forgets_disarmed_timers() -> None:
    """A node whose transactions have long deadlines and end soon arms and disarms at ever later ticks."""

    class Still:
        now = 0

        def wall_ns(self) -> int:
            return self.now

        def monotonic_ns(self) -> int:
            return self.now

        def call_at(self, when_ns: int, callback: Any) -> Any:
            return _Nothing()

    class _Nothing:
        def cancel(self) -> None:
            pass

    clock = Still()
    wheel = TimingWheel(clock)
    kept = Timer(wheel, 10**15, lambda: None)
    for _ in range(100_000):
        clock.now += 5_000_000
        Timer(wheel, clock.now + 3600 * 10**9, lambda: None).cancel()
    assert len(wheel) == 1
    about = wheel.about()
    assert about["buckets"] <= 2 * COMPACT_AT and about["ticks"] <= 2 * COMPACT_AT
    kept.cancel()
