"""Owners that others have declared dead: nodes that were stopped or hung for longer than the bound, in real processes,
and meshes that are fenced by hand, as a peer would do it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bitactor import Context, Signal, StaleOwner, StoreError, Unroutable, Workflow, consumer
from mesh import Mesh
from tests.e2e.apps import definitions
from tests.e2e.processes import Town, town
from tests.e2e.support import BOUND, until
from tests.e2e.test_cli import Running, directory  # noqa: F401  # pyright: ignore[reportUnusedImport]
from tests.e2e.test_http_ingress import Shop, serving

BRIEF: dict[str, Any] = {"lease": 0.15, "hung_after": 0.4}


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pulses.db"


def file_of(store: str) -> str:
    return store.removeprefix("sqlite:///")


def fence(store: str, owner: str) -> None:
    """Declare an owner dead, as a peer does that can carry on with nothing of it."""
    with closing(sqlite3.connect(file_of(store), isolation_level=None, timeout=BOUND)) as somebody:
        somebody.execute("UPDATE owners SET fenced = 'heir' WHERE owner = ?", (owner,))


async def test_who_was_stopped_for_too_long_is_taken_over_and_goes_on(place: Town) -> None:
    """What ran is finished once, by the peer; who waits for it in the woken process is told; that takes work again."""
    store = f"sqlite:///{place.directory}/pulses.db"
    node = place.node("slow", "chain", registry="", store=store, **BRIEF)
    node.tell('run slow {"seconds": 3600}')
    async with Mesh(definitions["slow"], definitions["chain"], store=store, **BRIEF) as heir:
        (row,) = await until(lambda: heir.node.store.reader().list(status="running"), "its transaction")
        os.kill(node.child.pid, signal.SIGSTOP)
        try:
            await until(lambda: row.transaction in heir.node.supervisor.transactions, "a takeover")
            handle = await heir.transaction(row.transaction)
            await handle.cancel("long enough")
        finally:
            os.kill(node.child.pid, signal.SIGCONT)
        assert node.expect("ended") == ["ended", row.transaction, "cancelled"]
        node.tell(f'run chain {{"notes": "{place.notes}"}}')
        _, transaction, status = node.expect("ended")
        assert status == "completed" and (place.counted("one"), place.counted("three")) == (1, 1)
        owner = heir.node.store.reader().get(transaction)
        assert owner is not None and owner.owner == f"{row.owner}.2"
        assert heir.about()["fenced"]["times"] == 0


async def test_a_loop_that_hangs_for_too_long_is_taken_over_and_goes_on(place: Town) -> None:
    """Its process is there, and so is the thread that renews its lease."""
    store = f"sqlite:///{place.directory}/pulses.db"
    flag = place.directory / "go"
    hangs = Workflow("hangs", ttl=2)

    @hangs.step
    async def hang() -> int:
        until_s = time.monotonic() + BOUND
        while not flag.exists() and time.monotonic() < until_s:
            threading.Event().wait(0.005)
        return os.getpid()

    async def taken() -> None:
        answered = Workflow("hangs", ttl=2)

        @answered.step(name="hang")
        async def hang() -> int:
            return 7

        async with Mesh(answered, store=store, **BRIEF) as heir:
            found = await until(lambda: heir.node.store.reader().list(status="completed"), "a takeover")
            assert found
        flag.touch()

    async with Mesh(hangs, store=store, blocked_after=0, **BRIEF) as mesh:
        peer = asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(taken()))
        transaction = await mesh.stimulate(hangs)
        assert await transaction.result(BOUND) == 7, "what the peer's step returned"
        await peer
        await until(lambda: mesh.about()["healthy"], "another name")
        assert mesh.about()["fenced"]["times"] == 1
        assert await (await mesh.stimulate(hangs)).result(BOUND) == os.getpid()


async def test_a_fenced_node_goes_on_under_another_name(sqlite: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else can carry its transactions on here, so that it takes them up itself, and everything that they held
    has been released."""
    held = Workflow("held", ttl=3)
    go, heard = asyncio.Event(), asyncio.Event()
    runs: list[int] = []

    @held.step(limit="desk", retries=0)
    async def sit(ctx: Context) -> str:
        runs.append(ctx.signal.delivery)
        await ctx.emit("sat", len(runs))
        if len(runs) == 1:
            await asyncio.Event().wait()
        await go.wait()
        return "up"

    @held.step
    async def call(sit: str, ctx: Context) -> str:
        await ctx.emit("called", 1)
        return sit

    @consumer("called")
    async def hear(signal: Signal) -> None:
        heard.set()

    async with Mesh(held, hear, store=sqlite, pools={"desk": 1}, **BRIEF) as mesh:
        transaction = await mesh.stimulate(held, key="once")
        await until(lambda: runs, "its first run")
        waiting = asyncio.ensure_future(transaction.result(BOUND))
        fence(sqlite, mesh.node.id)
        await until(lambda: len(runs) == 2, "its second run")
        about = mesh.about()
        assert (about["owner"], about["node"], about["healthy"]) == (f"{mesh.node.id}.2", mesh.node.id, True)
        assert about["fenced"]["times"] == 1 and "by 'heir'" in about["fenced"]["last"]
        assert (about["running"], about["pools"]["desk"]["taken"]) == (1, 1)
        assert caplog.text.count("declared dead by 'heir'") == 1 and "goes on as owner" in caplog.text
        again = await mesh.stimulate(held, key="once")
        assert again.id == transaction.id and transaction.status == "running" and transaction.about()["here"]
        go.set()
        assert await waiting == await again.result(BOUND) == "up"
        await asyncio.wait_for(heard.wait(), BOUND)
        fence(sqlite, f"{mesh.node.id}.2")
        await until(lambda: mesh.about()["owner"].endswith(".3"), "another name")
        await until(lambda: not mesh.about()["running"], "nothing is left to do")
        assert mesh.about()["fenced"]["times"] == 2
        assert await (await mesh.stimulate(held)).result(BOUND) == "up"


async def test_who_owns_nothing_takes_nothing_and_says_so(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until another name is taken, which may have to wait for the file."""
    slow = definitions["slow"]
    shop, free = Shop(), asyncio.Event()
    shop.definitions = [slow]
    async with serving(sqlite, shop, lease=0.15, hung_after=0.0) as (mesh, _, _, http, _):
        rejoin = mesh.node.store.rejoin

        async def later(owner: str) -> None:
            await free.wait()
            await rejoin(owner)

        monkeypatch.setattr(mesh.node.store, "rejoin", later)
        transaction = await mesh.stimulate(slow, {"seconds": 3600.0})
        with closing(sqlite3.connect(file_of(sqlite), isolation_level=None, timeout=BOUND)) as somebody:
            somebody.execute("BEGIN IMMEDIATE")
            somebody.execute(
                "INSERT INTO owners SELECT 'heir', pid, boot_id, process_started, expires_ns, '', 1 FROM owners"
            )
            somebody.execute("UPDATE owners SET fenced = 'heir' WHERE owner <> 'heir'")
            somebody.execute("UPDATE transactions SET owner = 'heir', epoch = epoch + 1")
            somebody.execute("COMMIT")
        await until(lambda: not mesh.about()["healthy"], "it knows")
        with pytest.raises(StoreError, match=r"takes no work at the moment.*by 'heir'"):
            await mesh.stimulate(slow, {"seconds": 0.0})
        answer = await http.get("/readyz")
        assert answer.status_code == 503 and "by 'heir'" in answer.json()["detail"]
        free.set()
        await until(lambda: mesh.about()["healthy"], "another name")
        assert (await http.get("/readyz")).status_code == 200
        await (await mesh.stimulate(slow, {"seconds": 0.0})).result(BOUND)
        assert transaction.status == "running" and not transaction.about()["here"]
        with pytest.raises(Unroutable, match="heir"):
            await transaction.cancel()
        with pytest.raises(TimeoutError):
            await transaction.result(timeout=0.01)


def test_a_node_that_shall_ends_with_a_code_of_its_own(directory: Path) -> None:  # noqa: F811
    store = f"sqlite:///{directory}/pulses.db"
    node = Running("run", "shop:order", "--store", store, "--when-fenced", "exit", cwd=directory)
    fence(store, node.ready["owner"])
    code, said = node.end()
    assert code == 75, said
    assert "declared dead by 'heir'" in said and "this node ends" in said


async def test_a_store_that_refuses_a_name_is_asked_again(sqlite: str, caplog: pytest.LogCaptureFixture) -> None:
    slow = definitions["slow"]
    async with Mesh(slow, store=sqlite, **BRIEF) as mesh:
        with closing(sqlite3.connect(file_of(sqlite), isolation_level=None, timeout=BOUND)) as somebody:
            somebody.execute(
                "INSERT INTO owners SELECT owner || '.2', pid, boot_id, process_started, expires_ns, '', 1 FROM owners"
            )
        fence(sqlite, mesh.node.id)
        await until(lambda: mesh.about()["owner"].endswith(".3"), "another name")
        assert "tries again" in caplog.text
        await (await mesh.stimulate(slow, {"seconds": 0.0})).result(BOUND)
        mesh.node.ownership.fenced(stale(mesh.node.id))
        assert not mesh.node.ownership.lost, "what is said of a name that was given up is old"


def stale(owner: str) -> StaleOwner:
    error = StaleOwner("late")
    error.owner = owner
    return error
