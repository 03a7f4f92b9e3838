"""A run as a whole, and many of them."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitactor import Context, DeadlineExceeded, Halt, InvalidInput, Result, Workflow
from bitactor.export.mermaid import mermaid
from bitactor.testing import FakeClock
from mesh import Mesh
from mesh.hops.actor import BitActor
from mesh.limits.pools import PermitSet
from mesh.limits.timing_wheel import Timer
from mesh.runtime.live import LiveTransaction
from tests.amounts import amount
from tests.conformance.claims import claim
from tests.conformance.hostile import cyclic, deep
from tests.conformance.support import Meeting, failure_of, ran, resident, result_of
from tests.e2e.support import BOUND, Peak, audit, chain, finish, pass_time, spawned, turns, undone, until


@claim(
    "Running",
    "`max_concurrency` bounds how many hops of one transaction run at once; the caller may say another number.",
)
async def test_max_concurrency() -> None:
    inside = Peak()
    workflow = Workflow("narrow", max_concurrency=3)
    for number in range(12):

        @workflow.step(name=f"s{number}")
        async def works() -> None:
            with inside:
                await turns(3)

    async with Mesh(workflow) as mesh:
        assert await (await mesh.stimulate(workflow)).ended(BOUND) == "completed"
        assert inside.most == 3
        inside.most = 0
        assert await (await mesh.stimulate(workflow, max_concurrency=1)).ended(BOUND) == "completed"
        assert inside.most == 1


@claim("Running", "Named pools are shared between transactions, and between workflows.")
async def test_shared_pools() -> None:
    inside = Peak()

    def using(name: str) -> Workflow:
        workflow = Workflow(name)

        @workflow.step(limit="database")
        async def queries() -> None:
            with inside:
                await turns(3)

        return workflow

    one, other = using("one"), using("other")
    async with Mesh(one, other, pools={"database": 2}) as mesh:
        transactions = [await mesh.stimulate(workflow) for workflow in (one, other) for _ in range(10)]
        assert {await transaction.ended(BOUND) for transaction in transactions} == {"completed"}
    assert inside.most == 2


@claim("Running", "Two workflows with one shared pool of 1 and nested transactions do not deadlock.")
async def test_nested_transactions_share_a_pool() -> None:
    inside = Peak()
    inner, one, other = (
        Workflow("inner"),
        Workflow("one", input={"depth": int}),
        Workflow("other", input={"depth": int}),
    )

    @inner.step(limit="one place")
    async def works() -> str:
        with inside:
            await turns(2)
        return "worked"

    async with (
        Mesh(inner, one, other, pools={"one place": 1}) if declare_nesting(inner, one, other) else Mesh() as mesh
    ):
        STARTING["mesh"] = mesh
        transactions = [await mesh.stimulate(workflow, {"depth": 2}) for _ in range(10) for workflow in (one, other)]
        assert {await transaction.result(BOUND * 3) for transaction in transactions} == {"worked"}
        assert mesh.node.about()["pools"]["one place"] == {"places": 1, "taken": 0, "waiting": 0, "lent": 0}
    assert inside.most == 1


STARTING: dict[str, Mesh] = {}
"""The mesh in which steps begin transactions."""


def declare_nesting(inner: Workflow, one: Workflow, other: Workflow) -> bool:
    """Each, holding the place, begins a transaction of the other that needs it too, and waits for it."""
    for workflow, nested in ((one, other), (other, one)):

        @workflow.step(limit="one place")
        async def begins(depth: int, nested: Workflow = nested) -> Any:
            mesh = STARTING["mesh"]
            began = await (mesh.stimulate(nested, {"depth": depth - 1}) if depth else mesh.stimulate(inner))
            return await began.result(BOUND * 3)

    return True


@claim("Running", "A pool's places do not leak after failures, timeouts and cancels.")
async def test_pools_after_failures() -> None:
    clock = FakeClock()
    workflow = Workflow("failing", input={"way": int}, grace=0.1)

    @workflow.step(limit="few", timeout=1.0)
    async def breaks(way: int) -> None:
        if way == 0:
            raise ValueError
        if way == 1:
            raise SystemExit
        await asyncio.Event().wait()

    async with Mesh(workflow, pools={"few": 3}, clock=clock) as mesh:
        transactions = [await mesh.stimulate(workflow, {"way": number % 4}) for number in range(40)]
        cancelled = [transaction for number, transaction in enumerate(transactions) if number % 4 == 3]
        await asyncio.gather(*(transaction.cancel() for transaction in cancelled))
        while mesh.node.supervisor.running_count:
            await pass_time(clock, 1.1)
        assert {transaction.status for transaction in transactions} == {"compensated", "cancelled"}
        assert mesh.node.about()["pools"]["few"] == {"places": 3, "taken": 0, "waiting": 0, "lent": 0}


@claim(
    "Running",
    "A `timeout` for the whole: the workflow's `deadline`, or the caller's; what is in flight is stopped then, and "
    "undone.",
)
async def test_deadline() -> None:
    clock = FakeClock()
    workflow = Workflow("whole", deadline=10.0, grace=0.1)
    log: list[str] = []
    workflow.step(name="a")(lambda: "a").undo(lambda result: log.append("undo a"))

    @workflow.step
    async def hangs(a: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("stopped")

    async with Mesh(workflow, clock=clock) as mesh:
        for seconds, options in ((10.0, {}), (3.0, {"deadline": 3.0})):
            log.clear()
            transaction = await mesh.stimulate(workflow, **options)
            await spawned(transaction, "hangs")
            await pass_time(clock, seconds - 0.1)
            assert transaction.status == "running"
            await pass_time(clock, 0.15)  # within the grace
            await until(lambda: log, "what was in flight is stopped")
            await pass_time(clock, 1)
            assert await transaction.ended(BOUND) == "compensated"
            assert isinstance((await failure_of(transaction)).__cause__, DeadlineExceeded)
            assert log == ["stopped", "undo a"]


@claim(
    "Running",
    "`max_hops` bounds how many hops a transaction may take, planned and repeated ones too; beyond it fails and "
    "undoes.",
)
async def test_max_hops() -> None:
    workflow = Workflow("bounded", input={"start": int}, ttl=50, max_hops=5)
    workflow.step(name="before")(lambda: None).undo(lambda: None)

    @workflow.iterate(start="start", at_most=30, after=["before"])
    async def again(state: int) -> int:
        return state + 1

    transaction = await ran(workflow, {"start": 0})
    assert transaction.status == "compensated"
    assert transaction.results().keys() >= {"before"} and undone(transaction) == ["before"]
    hops = [pulse.step for pulse in transaction.pulses() if pulse.kind == "completed"]
    assert hops == ["before", "again/1", "again/2", "again/3", "again/4"]
    assert "max_hops" in str(await failure_of(transaction))


@claim(
    "Running",
    "Halt and resume, cancel and undo: each by the transaction, at any time, and refused where it has no meaning.",
)
async def test_steering(store: str) -> None:
    answers: list[Any] = [Halt("look"), "done"]
    workflow = Workflow("steered")
    log: list[str] = []

    @workflow.step
    async def asks() -> Any:
        return answers.pop(0)

    asks.undo(lambda result: log.append(result))
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "halted"
        with pytest.raises(InvalidInput, match="halted"):
            await transaction.undo()
        await transaction.resume()
        assert await transaction.result(BOUND) == "done"
        with pytest.raises(InvalidInput, match="completed"):
            await transaction.resume()
        assert await transaction.cancel() == "completed", "too late, and without effect"
        assert (await transaction.undo(), log) == ("compensated", ["done"])
        audit(transaction)


@claim("Running", "Per-run metadata: what the caller attaches is what every step sees, nested ones and undos too.")
async def test_metadata(store: str) -> None:
    seen: list[Any] = []
    inner = Workflow("inner")
    inner.step(name="works")(lambda ctx: seen.append(dict(ctx.metadata))).undo(
        lambda ctx: seen.append(dict(ctx.metadata))
    )
    workflow = Workflow("outer", ttl=8)
    workflow.step(name="first")(lambda ctx: seen.append(dict(ctx.metadata)))
    workflow.compose("inner", inner, after=["first"])
    workflow.flunk("stop", "the end", after=["inner"])
    async with Mesh(workflow, store=store) as mesh:
        await finish(mesh, workflow, metadata={"user": "ada", "tags": [1]})
    assert seen == [{"user": "ada", "tags": [1]}] * 3


@claim("Running", "Diagrams: Mermaid, with nested workflows expanded.")
def test_mermaid() -> None:
    inner = Workflow("inner", input={"element": int})
    inner.step(name="innermost_step")(lambda element: element)
    middle = Workflow("middle", input={"numbers": list[int]})
    middle.map(name="over_all", workflow=inner, over="numbers")
    workflow = Workflow("outer", input={"numbers": list[int]}, ttl=8)
    workflow.compose("nested", middle)
    workflow.switch("either", on="numbers", cases=[(len, lambda nested: "chosen_branch")])
    drawn = mermaid(workflow.check())
    assert drawn.startswith("flowchart")
    for word in ("nested", "over_all", "innermost_step", "either"):
        assert word in drawn, word


@claim("Running", "A diagram after a run is coloured by what happened.")
async def test_mermaid_of_a_run() -> None:
    workflow = Workflow("drawn")
    workflow.step(name="works")(lambda: 1).undo(lambda: None)
    workflow.step(name="breaks")(lambda works: 1 / 0)
    async with Mesh(workflow) as mesh:
        transaction = await finish(mesh, workflow)
        drawn = workflow.mermaid(transaction.raw_pulses())
    assert drawn != workflow.mermaid()
    assert "classDef undone" in drawn and "classDef failed" in drawn, drawn


@claim("Running", "A transaction's caller may go away; it runs on to its end.")
async def test_the_caller_goes_away(store: str) -> None:
    workflow = Workflow("orphan")
    go = asyncio.Event()

    @workflow.step
    async def works() -> str:
        await go.wait()
        return "done"

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow)
        waiting = asyncio.ensure_future(transaction.result(BOUND))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert transaction.status == "running"
        go.set()
        assert await transaction.result(BOUND) == "done"


@claim("Running", "Two meshes in one process do not mix, whatever the names and keys.")
async def test_two_meshes_in_one_process_do_not_mix(tmp_path: Path) -> None:
    workflow = Workflow("same name", ttl=1)

    @workflow.step
    async def who(ctx: Context) -> str:
        return str(ctx.metadata.get("mesh"))

    async with (
        Mesh(workflow, store=f"sqlite:///{tmp_path}/a.db") as a,
        Mesh(workflow, store=f"sqlite:///{tmp_path}/b.db") as b,
    ):
        ta = await a.stimulate(workflow, metadata={"mesh": "a"}, key="same")
        tb = await b.stimulate(workflow, metadata={"mesh": "b"}, key="same")
        assert (await ta.result(BOUND), await tb.result(BOUND)) == ("a", "b")
        assert ta.id != tb.id


@claim("Running", "Input and metadata that cannot be kept are refused at the stimulus, and nothing has begun.")
async def test_what_cannot_be_kept_is_refused_at_the_stimulus(store: str) -> None:
    workflow = Workflow("given", input={"x": (Any, None)}, ttl=1)

    @workflow.step
    async def only(x: Any) -> Any:
        return x

    async with Mesh(workflow, store=store) as mesh:
        for metadata in ({"x": object()}, {"x": "\ud800"}, {"deep": deep()}, {1: 2}):
            with pytest.raises(InvalidInput, match="metadata"):
                await mesh.stimulate(workflow, metadata=metadata)
        for value in (object(), "\ud800", deep(), cyclic(), lambda: 1):
            with pytest.raises(InvalidInput):
                await mesh.stimulate(workflow, {"x": value})
        assert mesh.node.about()["running"] == 0
        transaction = await finish(mesh, workflow, {"x": {"fine": [1, 2]}}, metadata={"also": ["fine"]})
        assert await transaction.result() == {"fine": [1, 2]}


@claim("Running", "A slow step of one transaction does not delay other transactions.")
async def test_other_transactions() -> None:
    slow, fast = Workflow("slow"), chain("fast", 8)
    go = asyncio.Event()

    @slow.step
    async def sleeps() -> None:
        await go.wait()

    async with Mesh(slow, fast) as mesh:
        sleeping = [await mesh.stimulate(slow) for _ in range(100)]
        for _ in range(20):
            assert await (await mesh.stimulate(fast, {"start": 0})).result(BOUND) == 8
        assert {transaction.status for transaction in sleeping} == {"running"}
        go.set()
        assert {await transaction.ended(BOUND) for transaction in sleeping} == {"completed"}


@claim("Running", "A blocking `def` step delays nobody on the loop.")
async def test_blocking_steps() -> None:
    workflow = Workflow("blocking")
    go = threading.Event()
    workflow.step(name="blocks")(lambda: go.wait(BOUND))

    @workflow.step
    async def frees() -> str:
        go.set()
        return "freed"

    assert await result_of(workflow) == "freed"


@claim(
    "Running", "10,000 runs leak nothing: tasks, threads, pools, timers and memory stay flat, whatever way they end."
)
async def test_ten_thousand_runs(sqlite: str) -> None:
    workflow = Workflow("often", input={"way": int}, ttl=4, max_concurrency=2, deadline=600.0)
    meeting = Meeting(1)
    counted = amount(quick=2_000, long=9_000)

    @workflow.step(limit="shared", timeout=60.0)
    async def first(way: int) -> dict:
        return {"way": way}

    first.undo(lambda result: None)

    @workflow.step(when=lambda first: first["way"] == 1)
    async def beside(first: dict) -> None:
        await asyncio.Event().wait()

    @workflow.map(over=Result("first").map(list))
    def each(element: Any) -> Any:
        return element

    @workflow.step
    async def ends(first: dict) -> str:
        await meeting.join()
        if first["way"]:
            raise ValueError("with a traceback")
        return "done"

    async def some(mesh: Mesh, count: int) -> Counter[str]:
        statuses: Counter[str] = Counter()
        for start in range(0, count, 200):
            began = [await mesh.stimulate(workflow, {"way": number % 3}) for number in range(start, start + 200)]
            statuses.update([await transaction.ended(BOUND * 3) for transaction in began])
        await turns()
        return statuses

    async with Mesh(workflow, store=sqlite, pools={"shared": 50}, threads=4) as mesh:
        await some(mesh, 1_000)
        before, first_bytes = held(), resident()
        await some(mesh, counted)
        after, last_bytes = held(), resident()
        assert mesh.node.about()["pools"]["shared"] == {"places": 50, "taken": 0, "waiting": 0, "lent": 0}
        assert len(mesh.node.wheel) == 0 and not mesh.node.supervisor.transactions
    # The thread that commits may still hold its last group.
    assert not {name: count for name, count in after.items() if count > before[name] + 250}, (before, after)
    # A run that is kept holds 5 KiB and more; the heap itself breathes by some MB.
    left = (last_bytes - first_bytes) / counted
    assert left * counted < 3_000_000 + 2_500 * counted, f"{left:.0f} bytes a run are left"


KEPT: tuple[type, ...] = (LiveTransaction, BitActor, Timer, PermitSet, asyncio.Task, asyncio.Handle, threading.Thread)


def held() -> Counter[str]:
    """What a run could leave behind."""
    gc.collect()
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, KEPT))
