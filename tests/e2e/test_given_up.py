"""A transaction whose last write fails has not ended: everything that is said of it is what the store has, and once it
goes on, how that goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bitactor import Halt, Workflow, WorkflowFailed
from bitactor.errors import InvalidInput, StoreError, Unroutable
from bitactor.saga import Saga
from mesh import Mesh, Transaction
from tests.e2e import test_http_ingress as ingress
from tests.e2e.support import BOUND, until
from tests.store_faults import Disk

FAULT = "the disk is full|cannot be written"
ENDS = ["completed", "compensated", "cancelled", "undone", "halted"]


class Shop:
    """A workflow that is about to end as `end` says when it has `entered` its last hop, which waits for the `gate`."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.gate, self.entered = asyncio.Event(), asyncio.Event()
        self.workflow = workflow = Workflow("shop", ttl=2)

        @workflow.step
        async def reserve() -> str:
            return "reserved"

        @reserve.undo
        async def release() -> None:
            await self.wait()

        @workflow.step(after=["reserve"])
        async def pay() -> str:
            if self.end == "compensated":
                raise ValueError("no money")
            await self.wait()
            if self.end == "halted":
                raise Halt("ask somebody")
            return "paid"

    async def wait(self) -> None:
        self.entered.set()
        await self.gate.wait()

    async def begun(self, mesh: Mesh) -> tuple[Transaction, asyncio.Future[str]]:
        """A transaction in its last hop, and whoever waits for its end."""
        tx = await mesh.stimulate(self.workflow)
        act: Callable[[], Any] = tx.ended
        if self.end == "undone":
            self.gate.set()
            assert await tx.ended(BOUND) == "completed"
            self.again()
            act = tx.undo
        elif self.end == "cancelled":
            await asyncio.wait_for(self.entered.wait(), BOUND)
            self.again()
            act = tx.cancel
        acting = asyncio.ensure_future(act())
        await asyncio.wait_for(self.entered.wait(), BOUND)
        return tx, acting

    def again(self) -> None:
        self.gate.clear()
        self.entered.clear()


def break_store(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail each append to a store that keeps at once."""
    monkeypatch.setattr(mesh.node.store, "append", lambda writes, done: done((), StoreError("the disk is full")))


async def runs_says_everyone(mesh: Mesh, tx: Transaction) -> None:
    """Each face says of a transaction that it runs, and nothing that is not kept."""
    seen, blocking = await mesh.transaction(tx.id), await asyncio.to_thread(mesh.blocking.transaction, tx.id)
    kept = Saga.fold(tx.plan, tx.raw_pulses())
    for handle in (tx, seen):
        assert (handle.status, handle.about()["status"], handle.about()["here"]) == ("running", "running", False)
        assert "running" in repr(handle) and handle.value() is None and handle.progress() == {}
        assert handle.snapshot() == kept.snapshot() and len(handle.errors()) == len(handle.faults())
        assert handle.results().keys() == kept.state.results().keys()
        assert len(handle.faults()) == len(kept.state.errors)
        with pytest.raises(StoreError):
            await handle.cancel()
        with pytest.raises(StoreError):
            handle.request_cancel()
        for verb in (handle.undo, handle.resume):
            with pytest.raises(InvalidInput, match="is running"):
                await verb()
    assert await asyncio.to_thread(lambda: (blocking.status, blocking.value())) == ("running", None)
    for _ in range(2):
        for wait in (tx.ended, tx.result):
            with pytest.raises(StoreError, match=FAULT):
                await wait(BOUND)


@pytest.mark.parametrize("end", ENDS)
async def test_the_last_write_fails_and_later_it_goes_on(
    end: str, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, shop = Disk(monkeypatch), Shop(end)
    async with Mesh(shop.workflow, store=sqlite, lease=0.2) as mesh:
        tx, acting = await shop.begun(mesh)
        disk.protect()
        shop.gate.set()
        with pytest.raises(StoreError, match=FAULT):
            await acting
        shop.gate.clear()
        await runs_says_everyone(mesh, tx)
        disk.unprotect()
        await until(lambda: tx.about()["here"])
        assert (tx.status, tx.value()) == ("running", None)
        waiting = asyncio.ensure_future(tx.ended(BOUND))
        shop.gate.set()
        status = "compensated" if end == "undone" else end
        assert (await waiting, tx.status, await tx.ended()) == (status, status, status)
        assert tx.snapshot() == Saga.fold(tx.plan, tx.raw_pulses()).snapshot()
        if end == "completed":
            assert (await tx.result(), tx.value()) == ("paid", "paid")
        else:
            with pytest.raises(WorkflowFailed):
                await tx.result()
    assert tx.status == status


@pytest.mark.parametrize("end", ENDS)
async def test_the_last_write_fails_in_a_store_that_keeps_at_once(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(end)
    async with Mesh(shop.workflow, drain=0) as mesh:
        tx, acting = await shop.begun(mesh)
        break_store(mesh, monkeypatch)
        shop.gate.set()
        with pytest.raises(StoreError, match=FAULT):
            await acting
        await runs_says_everyone(mesh, tx)
    assert (tx.status, tx.value()) == ("running", None)


@pytest.mark.parametrize(("verb", "of"), [("undo", "completed"), ("resume", "halted"), ("cancel", "halted")])
async def test_what_was_asked_for_is_not_kept(verb: str, of: str, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked is told, and the transaction stands as it stood: it can be asked again."""
    disk, shop = Disk(monkeypatch), Shop(of)
    shop.gate.set()
    async with Mesh(shop.workflow, store=store) as mesh:
        tx = await mesh.stimulate(shop.workflow)
        assert await tx.ended(BOUND) == of
        with monkeypatch.context() as broken:
            break_store(mesh, broken) if store == "memory://" else disk.protect()
            with pytest.raises(StoreError, match=FAULT):
                await getattr(tx, verb)()
                await tx.ended()
            assert (tx.status, await tx.ended(), (await mesh.transaction(tx.id)).status) == (of, of, of)
        if store != "memory://":
            disk.unprotect()
        shop.end = "completed"
        await getattr(tx, verb)()
        assert await tx.ended(BOUND) == {"undo": "compensated", "resume": "completed", "cancel": "cancelled"}[verb]


async def test_a_full_disk_by_http(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, shop, served = Disk(monkeypatch), Shop("completed"), ingress.Shop()
    served.definitions = [shop.workflow]
    async with ingress.serving(sqlite, served, lease=0.2) as (mesh, _, _, http, _):
        asking = asyncio.ensure_future(http.post("/stimuli/shop", json={}))
        await asyncio.wait_for(shop.entered.wait(), BOUND)
        disk.protect()
        shop.gate.set()
        answer = await asking
        assert answer.status_code == 503, answer.text
        where = f"/transactions/{answer.json()['transaction']}"
        assert (await http.get(where)).json()["status"] == (await http.get(f"{where}/pulses")).json()["status"]
        assert (await http.get(where)).json()["status"] == "running"
        for verb, code in (("cancel", 503), ("undo", 503), ("resume", 503)):
            refused = await http.post(f"{where}/{verb}", json={})
            assert refused.status_code == code, refused.text
        disk.unprotect()
        await (await mesh.transaction(answer.json()["transaction"])).ended(BOUND)
        ended = (await http.get(where)).json()
        assert (ended["status"], ended["result"]) == ("completed", "paid")


@pytest.mark.parametrize("kept", [True, False])
async def test_what_is_being_written_is_not_said_before_it_is_kept(
    kept: bool, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, held = Shop("completed"), list[Any]()
    async with Mesh(shop.workflow, store=sqlite, drain=0) as mesh:
        tx, acting = await shop.begun(mesh)
        store, blocking = mesh.node.store, await asyncio.to_thread(mesh.blocking.transaction, tx.id)
        append = store.append
        monkeypatch.setattr(store, "append", lambda writes, done: held.append((writes, done)))
        shop.gate.set()
        await until(lambda: held)
        fold = Saga.fold(tx.plan, tx.raw_pulses())
        for handle in (tx, await mesh.transaction(tx.id)):
            assert (handle.status, handle.value(), handle.about()["here"]) == ("running", None, True)
            assert handle.results() == {"reserve": "reserved"} and handle.snapshot() == fold.snapshot()
        said = await asyncio.to_thread(lambda: (blocking.status, blocking.value(), blocking.results()))
        assert said == ("running", None, {"reserve": "reserved"})
        [(writes, done)] = held
        monkeypatch.setattr(store, "append", append)
        append(writes, done) if kept else done((), StoreError("the disk is full"))
        if kept:
            assert (await acting, tx.value(), tx.results()["pay"]) == ("completed", "paid", "paid")
        else:
            with pytest.raises(StoreError, match=FAULT):
                await acting
            await runs_says_everyone(mesh, tx)


async def test_the_store_cannot_be_asked_either(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, shop = Disk(monkeypatch), Shop("completed")
    async with Mesh(shop.workflow, store=sqlite, drain=0) as mesh:
        tx, acting = await shop.begun(mesh)
        disk.protect()
        shop.gate.set()
        with pytest.raises(StoreError, match=FAULT):
            await acting
        with monkeypatch.context() as broken:
            broken.setattr(type(mesh.node.store), "get", _unreadable)
            broken.setattr(type(mesh.node.store.reader()), "get", _unreadable)
            assert (tx.status, tx.about()["status"]) == ("running", "running")
            for read in (tx.value, tx.results, tx.errors, tx.faults, tx.snapshot):
                with pytest.raises(StoreError, match=FAULT):
                    read()
        assert tx.results() == {"reserve": "reserved"}


def _unreadable(*_: Any) -> Any:
    raise StoreError("no disk")


async def test_closed_while_it_was_given_up_and_finished_by_another(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, shop = Disk(monkeypatch), Shop("completed")
    async with Mesh(shop.workflow, store=sqlite, drain=0) as mesh:
        tx, acting = await shop.begun(mesh)
        disk.protect()
        shop.gate.set()
        with pytest.raises(StoreError, match=FAULT):
            await acting
        disk.unprotect()
    assert (tx.status, tx.value(), tx.results()) == ("running", None, {"reserve": "reserved"})
    shop.again()
    async with Mesh(shop.workflow, store=sqlite) as heir:
        await asyncio.wait_for(shop.entered.wait(), BOUND)
        assert (tx.status, tx.value()) == ("running", None)
        with pytest.raises(Unroutable, match=f"run by node {heir.node.id}"):
            await tx.cancel()
        with pytest.raises(StoreError, match="when this mesh was closed"):
            await tx.ended()
        shop.gate.set()
        assert await (await heir.transaction(tx.id)).result(BOUND) == "paid"
    assert (tx.status, tx.value(), await tx.result()) == ("completed", "paid", "paid")
