"""A handle tells how its transaction stands now, whoever let that go on: another handle, thread, or process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bitactor import Context, Halt, Workflow, WorkflowFailed
from bitactor.errors import InvalidInput, StoreError, Unroutable
from mesh import Mesh, Transaction
from mesh.runtime import settled
from tests.e2e.support import BOUND, undone, until

WAYS = ["handle", "mesh"]
"""Who lets the transaction go on: another handle of the same mesh, or another mesh on the same file."""


class Shop:
    """A workflow that halts until it `may` go on, and then waits for the `gate`; what its meshes share."""

    def __init__(self) -> None:
        self.may: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.workflow = workflow = Workflow("shop", ttl=2)

        @workflow.step
        async def reserve() -> str:
            return "reserved"

        @reserve.undo
        async def release() -> None: ...

        @workflow.step(after=["reserve"])
        async def ask(ctx: Context) -> str:
            if not self.may:
                raise Halt("ask somebody")
            ctx.heartbeat("asking")
            await self.gate.wait()
            if self.may == ["fail"]:
                raise ValueError("no")
            return self.may[-1]


@asynccontextmanager
async def two(way: str, sqlite: str) -> AsyncIterator[tuple[Shop, Mesh, Mesh]]:
    """A mesh, and the one through which others act: the same, or another on its file."""
    shop = Shop()
    store = "memory://" if way == "handle" else sqlite
    async with Mesh(shop.workflow, store=store) as mesh:
        if way == "handle":
            yield shop, mesh, mesh
            return
        async with Mesh(shop.workflow, store=store) as other:
            yield shop, mesh, other


async def begun(mesh: Mesh, other: Mesh, status: str) -> tuple[Transaction, Transaction]:
    """Two handles of a transaction that stands so: ours, and that of another."""
    mine = await mesh.stimulate("shop")
    assert await mine.ended(BOUND) == status
    return mine, await other.transaction(mine.id)


@pytest.mark.parametrize("way", WAYS)
async def test_resumed_by_another(way: str, sqlite: str) -> None:
    async with two(way, sqlite) as (shop, mesh, other):
        mine, theirs = await begun(mesh, other, "halted")
        seen = await mesh.transaction(mine.id)
        shop.may.append("yes")
        shop.gate.clear()
        await theirs.resume()
        await until(lambda: theirs.progress() == {"ask": "asking"})
        assert (mine.status, "running" in repr(mine), seen.status) == ("running", True, "running")
        assert mine.progress() == (theirs.progress() if way == "handle" else {})
        with pytest.raises(InvalidInput, match="is running; only"):
            await mine.resume()
        with pytest.raises(TimeoutError):
            await mine.result(0.001)
        shop.gate.set()
        assert (await mine.result(BOUND), mine.value(), seen.status) == ("yes", "yes", "completed")
        assert seen.results() == {"reserve": "reserved", "ask": "yes"} and seen.about()["status"] == "completed"


@pytest.mark.parametrize("way", WAYS)
async def test_resumed_by_another_and_halted_or_failed_again(way: str, sqlite: str) -> None:
    async with two(way, sqlite) as (shop, mesh, other):
        mine, theirs = await begun(mesh, other, "halted")
        before = mine.snapshot()
        await theirs.resume()
        assert await theirs.ended(BOUND) == "halted"
        assert mine.status == "halted" and mine.snapshot() == theirs.snapshot() != before
        shop.may.append("fail")
        await theirs.resume()
        assert await theirs.ended(BOUND) == "compensated"
        assert ["no" in str(error) for error in mine.errors()] == [True] and mine.status == "compensated"
        with pytest.raises(WorkflowFailed, match="no"):
            await mine.result()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("verb", "of", "end"), [("cancel", "halted", "cancelled"), ("undo", "completed", "compensated")]
)
async def test_cancelled_or_undone_by_another(way: str, verb: str, of: str, end: str, sqlite: str) -> None:
    async with two(way, sqlite) as (shop, mesh, other):
        if of == "completed":
            shop.may.append("yes")
        mine, theirs = await begun(mesh, other, of)
        assert await getattr(theirs, verb)("changed my mind") == end
        assert (mine.status, await mine.ended(), await mine.cancel()) == (end, end, end)
        assert undone(mine) == ["reserve"] and len(mine.faults()) == 1
        with pytest.raises(InvalidInput, match=f"is {end}; only"):
            await mine.resume()
        with pytest.raises(WorkflowFailed):
            await mine.result()


@pytest.mark.parametrize("way", WAYS)
async def test_a_running_one_is_cancelled_by_who_runs_it_and_others_say_who_that_is(way: str, sqlite: str) -> None:
    async with two(way, sqlite) as (shop, mesh, other):
        shop.may.append("yes")
        shop.gate.clear()
        mine = await mesh.stimulate("shop")
        theirs = await other.transaction(mine.id)
        if way == "mesh":
            with pytest.raises(Unroutable, match=f"run by node {mesh.node.id}.*`bitactor cancel {mine.id}`"):
                await theirs.cancel()
            await mine.cancel()
        else:
            await theirs.cancel()
        assert (mine.status, theirs.status) == ("cancelled", "cancelled")


async def test_after_the_mesh_was_closed_it_says_what_was_last_known(store: str) -> None:
    shop = Shop()
    async with Mesh(shop.workflow, store=store) as mesh:
        mine, theirs = await begun(mesh, mesh, "halted")
        shop.may.append("yes")
        await theirs.resume()
        assert await theirs.ended(BOUND) == "completed"
        del theirs
    assert (mine.status, await mine.result(), mine.errors(), mine.progress()) == ("completed", "yes", [], {})
    assert mine.pulses()[-1].kind == "finished"


async def test_more_went_on_than_a_mesh_keeps_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "KNOWN_REOPENED", 1)
    shop = Shop()
    async with Mesh(shop.workflow) as mesh:
        handles = [await begun(mesh, mesh, "halted") for _ in range(3)]
        shop.may.append("yes")
        for _, theirs in handles:
            await theirs.resume()
            assert await theirs.ended(BOUND) == "completed"
        assert [mine.status for mine, _ in handles] == ["completed"] * 3


def test_two_handles_in_two_threads(store: str) -> None:
    shop = Shop()
    with Mesh(shop.workflow, store=store) as mesh, ThreadPoolExecutor(1) as thread:

        def elsewhere(call: Callable[[], Any]) -> Any:
            return thread.submit(call).result(BOUND)

        mine = mesh.stimulate("shop")
        assert mine.ended(BOUND) == "halted"
        theirs = elsewhere(lambda: mesh.transaction(mine.id))
        shop.may.append("yes")
        elsewhere(theirs.resume)
        assert (mine.result(BOUND), mine.status, elsewhere(lambda: theirs.status)) == ("yes", "completed", "completed")
        assert elsewhere(theirs.undo) == mine.status == "compensated"
    assert (mine.status, theirs.status) == ("compensated", "compensated")


async def test_a_handle_looked_at_from_another_thread_or_loop_says_what_is_known(sqlite: str) -> None:
    async with two("mesh", sqlite) as (shop, mesh, other):
        mine, theirs = await begun(mesh, other, "halted")
        blocking = await asyncio.to_thread(mesh.blocking.transaction, mine.id)
        shop.may.append("yes")
        await theirs.resume()
        await theirs.ended(BOUND)
        assert await asyncio.to_thread(lambda: mine.status) == "halted"  # a thread of its own cannot ask the store
        assert blocking.status == "completed" == await asyncio.to_thread(lambda: blocking.status)


async def test_the_store_cannot_be_asked(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two("mesh", sqlite) as (_, mesh, other):
        mine, _ = await begun(mesh, other, "halted")
        monkeypatch.setattr(type(mesh.node.store), "get", _unreadable)
        assert (mine.status, mine.errors(), await mine.ended()) == ("halted", [], "halted")


def _unreadable(*_: Any) -> Any:
    raise StoreError("the disk is gone")


async def test_a_transaction_that_runs_cannot_be_undone(store: str) -> None:
    """It is refused at once, and goes on."""
    shop = Shop()
    shop.may.append("yes")
    shop.gate.clear()
    async with Mesh(shop.workflow, store=store) as mesh:
        transaction = await mesh.stimulate(shop.workflow)
        with pytest.raises(InvalidInput, match="is running; only a completed one can be undone"):
            await transaction.undo()
        shop.gate.set()
        assert await transaction.result(BOUND) == "yes"


async def test_what_ran_when_its_mesh_was_closed_takes_no_verb(store: str) -> None:
    """Nothing is lost in silence: each says that it ran then."""
    shop = Shop()
    shop.may.append("yes")
    shop.gate.clear()
    async with Mesh(shop.workflow, store=store, drain=0) as mesh:
        transaction = await mesh.stimulate(shop.workflow)
    for verb in (transaction.ended, transaction.cancel, transaction.result):
        with pytest.raises(StoreError, match="was still running when its mesh was closed"):
            await verb()
