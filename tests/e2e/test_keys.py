"""Idempotency keys, and how many may be in flight."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bitactor import Halt, Workflow, consumer
from bitactor.errors import BitActorError, DuplicateTransaction, Overloaded
from bitactor.messages.codec import encode_token
from bitactor.messages.signal import Receipt, Signal, Stimulus
from mesh import Mesh
from tests.e2e.support import BOUND, audit, turns, until


def counting(name: str = "counting") -> tuple[Workflow, list[int], asyncio.Event]:
    workflow = Workflow(name, input={"x": int}, ttl=1)
    runs: list[int] = []
    go = asyncio.Event()

    @workflow.step
    async def only(x: int) -> int:
        runs.append(x)
        await go.wait()
        return x

    return workflow, runs, go


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_a_hundred_at_once_are_one(tmp_path: Any, durability: str) -> None:
    workflow, runs, go = counting()
    go.set()
    async with Mesh(workflow, store=f"sqlite:///{tmp_path}/p.db", durability=durability) as mesh:
        transactions = await asyncio.gather(*(mesh.stimulate(workflow, {"x": 1}, key="k") for _ in range(100)))
        assert len({tx.id for tx in transactions}) == 1
        assert await asyncio.gather(*(tx.result(BOUND) for tx in transactions)) == [1] * 100
        assert runs == [1]
        assert len(mesh.node.store.reader().list()) == 1
        audit(transactions[0])


async def test_mixed_inputs_at_once(store: str) -> None:
    workflow, runs, go = counting()
    go.set()
    async with Mesh(workflow, store=store) as mesh:
        answers = await asyncio.gather(
            *(mesh.stimulate(workflow, {"x": n % 2}, key="k") for n in range(20)), return_exceptions=True
        )
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        bad = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len({tx.id for tx in good}) == 1 and len(good) == 10
        assert {type(error) for error in bad} == {DuplicateTransaction}
        assert await good[0].result(BOUND) == 0
        assert runs == [0]


async def test_keys_are_per_workflow(store: str) -> None:
    one, _, go1 = counting("one")
    two, _, go2 = counting("two")
    go1.set(), go2.set()
    async with Mesh(one, two, store=store) as mesh:
        a = await mesh.stimulate(one, {"x": 1}, key="k")
        b = await mesh.stimulate(two, {"x": 2}, key="k")
        assert (await a.result(BOUND), await b.result(BOUND)) == (1, 2)


async def test_equal_inputs_are_equal_however_they_are_written(store: str) -> None:
    workflow, _, go = counting()
    go.set()
    async with Mesh(workflow, store=store) as mesh:
        first = await mesh.stimulate(workflow, {"x": 1}, key="k")
        second = await mesh.stimulate(workflow, {"x": "1"}, key="k")
        assert first.id == second.id
        assert await second.result(BOUND) == 1


async def test_the_key_of_a_halted_and_of_a_failed_one(store: str) -> None:
    workflow = Workflow("ends badly", input={"x": int}, ttl=1)
    runs: list[int] = []

    @workflow.step
    async def only(x: int) -> Any:
        runs.append(x)
        if x:
            raise ValueError
        return Halt("look")

    async with Mesh(workflow, store=store) as mesh:
        for x, status in ((0, "halted"), (1, "compensated")):
            tx = await mesh.stimulate(workflow, {"x": x}, key=f"k{x}")
            assert await tx.ended(BOUND) == status
            same = await mesh.stimulate(workflow, {"x": x}, key=f"k{x}")
            assert same.id == tx.id and same.status == status
        assert runs == [0, 1]


async def test_two_processes_one_file_one_key(sqlite: str) -> None:
    """Two meshes on one file stand in for two processes: whoever is second gets the first one's transaction."""
    workflow, runs, go = counting()
    go.set()
    async with Mesh(workflow, store=sqlite) as a, Mesh(workflow, store=sqlite) as b:
        ta = await a.stimulate(workflow, {"x": 1}, key="k")
        await ta.result(BOUND)
        tb = await b.stimulate(workflow, {"x": 1}, key="k")
        assert tb.id == ta.id and await tb.result(BOUND) == 1
        with pytest.raises(DuplicateTransaction):
            await b.stimulate(workflow, {"x": 2}, key="k")
    assert runs == [1]


@contextmanager
def locked(sqlite: str) -> Iterator[None]:
    """The file's write lock is held, so that commits wait in their threads."""
    connection = sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        connection.close()


async def test_equal_requests_at_two_nodes_at_once_are_one(sqlite: str) -> None:
    """Whoever is refused the key looks up the transaction that has it, and so does everybody who waits for the refused
    one."""
    workflow, runs, go = counting()
    go.set()
    async with Mesh(workflow, store=sqlite) as a, Mesh(workflow, store=sqlite) as b:
        with locked(sqlite):
            asked = [
                asyncio.ensure_future(mesh.stimulate(workflow, {"x": 1}, key="k")) for _ in range(5) for mesh in (a, b)
            ]
            run = [
                asyncio.ensure_future(asyncio.to_thread(mesh.blocking.run, workflow, {"x": 1}, key="k", timeout=BOUND))
                for mesh in (a, b)
            ]
            others = [
                asyncio.ensure_future(mesh.stimulate(workflow, {"x": 2}, key="k")) for _ in range(2) for mesh in (a, b)
            ]
            await turns()
            assert not any(task.done() for task in (*asked, *run, *others))
        transactions = await asyncio.gather(*asked)
        assert len({tx.id for tx in transactions}) == 1
        assert await asyncio.gather(*(tx.result(BOUND) for tx in transactions)) == [1] * 10
        assert await asyncio.gather(*run) == [1, 1]
        for refused in await asyncio.gather(*others, return_exceptions=True):
            assert isinstance(refused, DuplicateTransaction)
            assert f"began transaction {transactions[0].id} of 'counting' with another input" in str(refused)
        assert runs == [1]
        assert len(a.node.store.reader().list()) == 1
        assert not a.node.supervisor.keyed and not b.node.supervisor.keyed
        audit(transactions[0])


async def test_a_caller_that_goes_away_takes_nobody_along(sqlite: str) -> None:
    workflow, runs, go = counting()
    go.set()
    async with Mesh(workflow, store=sqlite) as a, Mesh(workflow, store=sqlite) as b:
        with locked(sqlite):
            asked = [
                asyncio.ensure_future(mesh.stimulate(workflow, {"x": 1}, key="k")) for _ in range(3) for mesh in (a, b)
            ]
            await turns()
            for task in asked[:2]:
                task.cancel()
            await turns()
        transactions = await asyncio.gather(*asked[2:])
        assert len({tx.id for tx in transactions}) == 1
        assert await transactions[0].result(BOUND) == 1
        assert runs == [1]


def blind(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The mesh looks for keys a moment before another has committed what it then does not find."""
    store, left = mesh.node.store, iter(range(times))
    find = store.find

    async def found(*key: str) -> str | None:
        return await find(*key) if next(left, None) is None else None

    monkeypatch.setattr(store, "find", found)


@pytest.mark.parametrize("end", ["completed", "compensated", "halted", "running"])
async def test_whatever_has_become_of_the_others_transaction(
    end: str, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow, go = Workflow("ends", input={"x": int}, ttl=1), asyncio.Event()

    @workflow.step
    async def only(x: int) -> Any:
        if end == "compensated":
            raise ValueError
        if end == "running":
            await go.wait()
        return Halt("look") if end == "halted" else x

    async with Mesh(workflow, store=sqlite) as a, Mesh(workflow, store=sqlite) as b:
        first = await a.stimulate(workflow, {"x": 1}, key="k")
        if end != "running":
            assert await first.ended(BOUND) == end
        blind(b, monkeypatch, 1)
        found = await asyncio.gather(*(b.stimulate(workflow, {"x": 1}, key="k") for _ in range(3)))
        assert {tx.id for tx in found} == {first.id}
        go.set()
        assert await found[0].ended(BOUND) == ("completed" if end == "running" else end)
        blind(b, monkeypatch, 1)
        with pytest.raises(DuplicateTransaction, match="with another input"):
            await b.stimulate(workflow, {"x": 2}, key="k")


async def test_a_store_that_answers_at_once_refuses_a_taken_key_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that is registered from outside and is shared."""
    workflow, runs, go = counting()
    go.set()
    async with Mesh(workflow) as mesh:
        first = await mesh.stimulate(workflow, {"x": 1}, key="k")
        await first.result(BOUND)
        blind(mesh, monkeypatch, 1)
        assert (await mesh.stimulate(workflow, {"x": 1}, key="k")).id == first.id
        blind(mesh, monkeypatch, 1)
        with pytest.raises(DuplicateTransaction, match="with another input"):
            await mesh.stimulate(workflow, {"x": 2}, key="k")
        assert runs == [1] and mesh.node.supervisor.running_count == 0


async def test_a_delivery_at_two_nodes_is_answered_with_the_one_transaction(sqlite: str) -> None:
    taken: list[int] = []

    @consumer("told", group="all")
    async def takes(signal: Signal) -> None:
        taken.append(signal.token)

    delivery = Stimulus("0" * 16 + ":0>all", "told", "all", encode_token(7), 5, None, "")
    receipts: list[Receipt] = []
    async with Mesh(takes, store=sqlite) as a, Mesh(takes, store=sqlite) as b:
        with locked(sqlite):
            for mesh in (a, b, a, b):
                mesh.node.intake.receive(delivery, receipts.append)
            await turns()
            assert not receipts
        await until(lambda: len(receipts) == 4)
        (row,) = a.node.store.reader().list()
        assert {(receipt.transaction, receipt.error) for receipt in receipts} == {(row.transaction, "")}
        await (await b.transaction(row.transaction)).ended(BOUND)
        assert taken == [7]


async def test_room_is_waited_for_and_then_refused(store: str) -> None:
    workflow, runs, go = counting()
    async with Mesh(workflow, store=store, max_in_flight=2, patience=0.05) as mesh:
        first = await mesh.stimulate(workflow, {"x": 1})
        await mesh.stimulate(workflow, {"x": 2})
        with pytest.raises(Overloaded):
            await mesh.stimulate(workflow, {"x": 3})
        go.set()
        await first.result(BOUND)
        await (await mesh.stimulate(workflow, {"x": 4})).result(BOUND)
    assert sorted(runs) == [1, 2, 4]


async def test_room_that_comes_free_is_used_and_the_key_looked_up_again(store: str) -> None:
    workflow, runs, go = counting()
    async with Mesh(workflow, store=store, max_in_flight=1, patience=BOUND) as mesh:
        first = await mesh.stimulate(workflow, {"x": 1})
        waiting = [asyncio.ensure_future(mesh.stimulate(workflow, {"x": 2}, key="k")) for _ in range(5)]
        await turns()
        assert not any(task.done() for task in waiting)
        go.set()
        transactions = await asyncio.gather(*waiting)
        assert len({tx.id for tx in transactions}) == 1
        assert await asyncio.gather(*(tx.result(BOUND) for tx in transactions)) == [2] * 5
        await first.result(BOUND)
    assert runs == [1, 2]


async def test_many_more_than_fit_all_get_through(store: str) -> None:
    workflow, _, go = counting()
    go.set()
    async with Mesh(workflow, store=store, max_in_flight=3, patience=BOUND) as mesh:

        async def one(x: int) -> int:
            return await (await mesh.stimulate(workflow, {"x": x})).result(BOUND)

        assert await asyncio.gather(*(one(x) for x in range(40))) == list(range(40))


async def test_after_closing_nothing_is_taken(store: str) -> None:
    workflow, _, go = counting()
    go.set()
    mesh = Mesh(workflow, store=store)
    with pytest.raises(BitActorError, match="open the mesh first"):
        await mesh.stimulate(workflow, {"x": 1})
    async with mesh:
        tx = await mesh.stimulate(workflow, {"x": 1})
        await tx.result(BOUND)
    with pytest.raises(BitActorError, match="closed"):
        await mesh.stimulate(workflow, {"x": 1})
    await mesh.close()
    assert tx.status == "completed" and await tx.result() == 1


async def test_a_waiter_is_told_when_the_mesh_closes_on_it(store: str) -> None:
    workflow, _, _ = counting()
    async with Mesh(workflow, store=store, drain=0.05) as mesh:
        tx = await mesh.stimulate(workflow, {"x": 1})
        waiting = asyncio.ensure_future(tx.result())
        await until(lambda: tx.about()["waiting"] == 1)
    with pytest.raises(BitActorError, match="closed"):
        await asyncio.wait_for(waiting, BOUND)
