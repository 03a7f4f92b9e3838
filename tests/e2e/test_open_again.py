"""What is left when a mesh is closed: handles answer, and it can be opened again, on any loop, one at a time."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitactor import Resource, Workflow
from bitactor.errors import BitActorError, ConfigurationError, StoreError, UnknownTransaction, WorkflowFailed
from mesh import Mesh, stores
from mesh.network.client import Client
from mesh.sinks import JsonlSink, LiveSink
from mesh.stores.memory import MemoryStore
from mesh.testing import MeshFactory
from mesh.transaction import transaction as handles
from registry import RegistryServer
from tests.e2e.support import BOUND

KINDS = ["accepted", "spawned", "completed", "finished"]


def doubling() -> Workflow:
    workflow = Workflow("doubling", input={"x": int}, ttl=1)

    @workflow.step
    async def twice(x: int) -> int:
        if x < 0:
            raise ValueError("negative")
        return x * 2

    return workflow


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


# Handles of a mesh that was closed


async def test_a_transaction_that_settled_still_answers(store: str) -> None:
    workflow = doubling()
    async with Mesh(workflow, store=store) as mesh:
        good, bad = await mesh.stimulate(workflow, {"x": 2}), await mesh.stimulate(workflow, {"x": -2})
        assert (await good.ended(BOUND), await bad.ended(BOUND)) == ("completed", "compensated")
        loaded = await mesh.transaction(good.id)
    for tx in (good, loaded):
        assert (await tx.result(), tx.value(), tx.results(), tx.errors(), tx.faults()) == (4, 4, {"twice": 4}, [], [])
        assert [pulse.kind for pulse in tx.pulses()] == KINDS
        assert (await tx.ended(), await tx.cancel(), tx.progress()) == ("completed", "completed", {})
    assert [str(error) for error in bad.errors()] == ["negative"] and "failed" in {pulse.kind for pulse in bad.pulses()}
    with pytest.raises(WorkflowFailed, match="negative"):
        await bad.result()
    for call in (good.undo, bad.undo):
        with pytest.raises(BitActorError, match="this mesh is closed"):
            await call()


async def test_one_that_had_not_ended_says_so(store: str) -> None:
    workflow = Workflow("hangs", ttl=1)

    @workflow.step
    async def hangs() -> None:
        await asyncio.Event().wait()

    async with Mesh(workflow, store=store, drain=0) as mesh:
        tx = await mesh.stimulate(workflow)
    for call in (tx.result, lambda: tx.result(BOUND), lambda: mesh.blocking.transaction(tx.id).result(BOUND)):
        with pytest.raises(StoreError, match=r"when (its|this) mesh was closed"):
            answer: Any = call()
            await answer
    assert tx.errors() == [] and tx.results() == {} and tx.pulses()[0].kind == "accepted"


async def test_what_was_read_is_kept_when_the_file_is_gone(sqlite: str, tmp_path: Path) -> None:
    workflow = doubling()
    async with Mesh(workflow, store=sqlite) as mesh:
        read, unread = await mesh.stimulate(workflow, {"x": 2}), await mesh.stimulate(workflow, {"x": 3})
        assert (await read.result(BOUND), await unread.result(BOUND)) == (4, 6)
        assert len(read.pulses()) == len(KINDS)
    remove_all(tmp_path)
    assert [pulse.kind for pulse in read.pulses()] == KINDS
    with pytest.raises(StoreError, match=r"pulses\.db: no such file"):
        unread.pulses()
    assert (await unread.result(), unread.errors()) == (6, [])


async def test_no_more_is_kept_than_is_said(sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "KEPT_PULSES", len(KINDS) - 1)
    workflow = doubling()
    async with Mesh(workflow, store=sqlite) as mesh:
        tx = await mesh.stimulate(workflow, {"x": 2})
        await tx.result(BOUND)
        assert len(tx.pulses()) == len(KINDS)
    remove_all(tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        tx.pulses()


async def test_what_a_store_in_memory_forgot_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MemoryStore", partial(MemoryStore, retained=1))
    workflow = doubling()
    async with Mesh(workflow) as here:
        first, read = await here.stimulate(workflow, {"x": 1}), await here.stimulate(workflow, {"x": 2})
        assert await first.result(BOUND) == 2
        assert await read.result(BOUND) == 4 and len(read.pulses()) == len(KINDS)
        assert await (await here.stimulate(workflow, {"x": 3})).result(BOUND) == 6
        with pytest.raises(StoreError, match=f"no pulse of transaction {first.id} any more"):
            first.pulses()
        assert len(read.pulses()) == len(KINDS) and await first.result() == 2


def test_handles_of_threads(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also in a thread that was not there, and from another directory."""
    workflow = doubling()
    monkeypatch.chdir(tmp_path)
    with Mesh(workflow, store=store if store == "memory://" else "sqlite:///here.db") as mesh:
        tx = mesh.submit(workflow, {"x": 2})
        assert tx.result(BOUND) == 4
    monkeypatch.chdir("/")
    with ThreadPoolExecutor(1) as pool:
        for call, answer in ((tx.result, 4), (tx.results, {"twice": 4}), (tx.errors, []), (tx.ended, "completed")):
            assert pool.submit(call).result(BOUND) == answer == call()
        assert [pulse.kind for pulse in pool.submit(tx.pulses).result(BOUND)] == KINDS
    assert mesh.transaction(tx.id).value() == 4 and [row.transaction for row in mesh.transactions()] == [tx.id]


# Again


async def test_a_mesh_is_opened_again(store: str) -> None:
    workflow = doubling()
    mesh = Mesh(workflow, store=store)
    async with mesh:
        first = await mesh.stimulate(workflow, {"x": 1}, key="k")
        assert await first.result(BOUND) == 2
        node = mesh.about()["node"]
    assert mesh.state == "closed"
    async with mesh:
        assert mesh.state == "open" and mesh.about()["node"] != node
        second = await mesh.stimulate(workflow, {"x": 1}, key="k")
        assert await second.result(BOUND) == 2
        if store == "memory://":
            assert second.id != first.id
            with pytest.raises(UnknownTransaction):
                await mesh.transaction(first.id)
        else:
            assert second.id == first.id
            assert await (await mesh.transaction(first.id)).result() == 2
        assert await first.result() == 2 and [pulse.kind for pulse in first.pulses()] == KINDS
    with mesh as blocking:
        assert blocking.run(workflow, {"x": 4}) == 8
    assert [mesh.run(workflow, {"x": x}) for x in (5, 6)] == [10, 12]


def test_on_loops_after_each_other_and_in_threads(store: str) -> None:
    workflow = doubling()
    mesh = Mesh(workflow, store=store)

    async def once(x: int) -> Any:
        async with mesh:
            return await (await mesh.stimulate(workflow, {"x": x})).result(BOUND)

    assert [asyncio.run(once(x)) for x in (1, 2)] == [2, 4]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asyncio.run, once(3)).result(BOUND) == 6
        assert pool.submit(mesh.run, workflow, {"x": 4}).result(BOUND) == 8
    assert asyncio.run(once(5)) == 10


async def test_with_a_registry() -> None:
    workflow = doubling()
    directory = Path(tempfile.mkdtemp(prefix="ba-"))
    registry = f"ipc://{directory}/registry"
    try:
        with RegistryServer(registry):
            mesh, nodes = Mesh(workflow, registry=registry), set()
            for x in (1, 2):
                async with mesh, Client(registry) as client:
                    began = await client.stimulate("doubling", {"x": x})
                    assert await client.result(began["transaction"], BOUND) == 2 * x
                    nodes |= {entry.holder for entry in client.entries("node:*")}
            assert len(nodes) == 2
    finally:
        shutil.rmtree(directory)


async def test_what_a_mesh_holds_begins_anew() -> None:
    made: list[int] = []

    def connect() -> int:
        made.append(len(made))
        return made[-1]

    workflow = Workflow("uses", ttl=1, resources=[Resource("connection", connect)])

    @workflow.step
    async def uses(connection: int) -> int:
        return connection

    mesh = Mesh(workflow)
    for number in (0, 1):
        async with mesh:
            assert await (await mesh.stimulate(workflow)).result(BOUND) == number


async def test_a_mesh_that_was_closed_before_it_was_opened() -> None:
    workflow = doubling()
    mesh = Mesh(workflow)
    await mesh.close()
    assert (mesh.state, mesh.loop) == ("closed", None)
    with pytest.raises(BitActorError, match="this mesh is closed"):
        mesh.submit(workflow, {"x": 1})
    async with mesh:
        assert await (await mesh.stimulate(workflow, {"x": 1})).result(BOUND) == 2


async def test_it_is_open_once_at_a_time() -> None:
    workflow = doubling()
    mesh = Mesh(workflow)
    async with mesh:
        with pytest.raises(BitActorError, match="this mesh is open: it is open once at a time; use it where it was"):
            await mesh.__aenter__()
        for enter in (mesh.__enter__, lambda: asyncio.run(mesh.__aenter__())):
            with pytest.raises(BitActorError, match="open once at a time"):
                await asyncio.to_thread(enter)
        assert mesh.state == "open" and await (await mesh.stimulate(workflow, {"x": 1})).result(BOUND) == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "bitactor-mesh"]


def test_of_several_that_open_it_at_once_one_does() -> None:
    workflow = doubling()
    mesh = Mesh(workflow)
    start, leave = threading.Barrier(4), threading.Event()
    refused = threading.Semaphore(0)

    def opens(_: int) -> str:
        start.wait(BOUND)
        try:
            with mesh as opened:
                leave.wait(BOUND)
                return str(opened.run(workflow, {"x": 1}))
        except BitActorError as error:
            refused.release()
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(opens, number) for number in range(4)]
        assert all(refused.acquire(timeout=BOUND) for _ in range(3))
        leave.set()
        said = sorted(answer.result(BOUND) for answer in answers)
    assert said[0] == "2" and all("open once at a time" in answer for answer in said[1:])
    assert mesh.state == "closed"


def test_runs_of_several_threads_hang_nobody() -> None:
    """Of a mesh that nobody has opened: each run opens it, or goes on in another's, or is told why not."""
    workflow = doubling()
    mesh = Mesh(workflow)
    start = threading.Barrier(4)

    def runs(number: int) -> Any:
        start.wait(BOUND)
        try:
            return mesh.run(workflow, {"x": number}, timeout=BOUND)
        except BitActorError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(runs, range(4), timeout=BOUND))
    assert any(answer == 2 * number for number, answer in enumerate(answers))
    assert all(answer == 2 * number or isinstance(answer, BitActorError) for number, answer in enumerate(answers))
    assert mesh.state == "closed"
    assert not [thread for thread in threading.enumerate() if thread.name == "bitactor-mesh"]


def test_a_mesh_that_could_not_be_opened_can_be_later(tmp_path: Path) -> None:
    workflow = doubling()
    mesh = Mesh(workflow, store=f"sqlite:///{tmp_path}/later/pulses.db")
    with pytest.raises(StoreError, match="create it"), mesh:
        pass
    (tmp_path / "later").mkdir()
    assert mesh.run(workflow, {"x": 1}) == 2


def test_closed_inside_its_block_and_opened_again_there() -> None:
    workflow = doubling()
    mesh = Mesh(workflow)
    with mesh as blocking:
        blocking.close()
        assert mesh.run(workflow, {"x": 1}) == 2
        with mesh as inner:
            assert inner.run(workflow, {"x": 2}) == 4
    assert mesh.state == "closed"
    assert not [thread for thread in threading.enumerate() if thread.name == "bitactor-mesh"]


async def test_sinks_of_a_mesh_that_is_opened_again(tmp_path: Path) -> None:
    workflow, path = doubling(), tmp_path / "pulses.jsonl"
    mesh = Mesh(workflow, sinks=[f"jsonl:///{path}"])
    for _ in range(2):
        async with mesh:
            await (await mesh.stimulate(workflow, {"x": 1})).result(BOUND)
    assert len(path.read_text().splitlines()) == 2 * len(KINDS)
    for sink in (JsonlSink(path), LiveSink()):
        given = Mesh(workflow, sinks=[sink])
        async with given:
            pass
        with pytest.raises(ConfigurationError, match=f"the sink {type(sink).__name__} was closed with this mesh"):
            await given.__aenter__()


def test_a_mesh_of_the_fixture(mesh: MeshFactory) -> None:
    """In a test without a loop: its other face, opened when it is first used, and again with the same replacements."""
    workflow = doubling()
    running = mesh(workflow, steps={"twice": lambda x: -x})
    begun = running.blocking.stimulate(workflow, {"x": 1})
    assert begun.result(BOUND) == -1 and running.blocking.transaction(begun.id).value() == -1
    running.blocking.close()
    with pytest.raises(BitActorError, match="this mesh is closed"):
        running.submit(workflow, {"x": 1})
    with running as again:
        assert again.run(workflow, {"x": 2}, timeout=BOUND) == -2
        assert [row.status for row in again.transactions()] == ["completed"]
    assert begun.results() == {"twice": -1}


async def test_a_mesh_of_the_fixture_on_a_loop(mesh: MeshFactory) -> None:
    workflow = doubling()
    running = mesh(workflow, steps={"twice": lambda x: -x})
    for number in (1, 2):
        async with running:
            begun = await running.stimulate(workflow, {"x": number})
            assert await begun.result(BOUND) == -number
        assert running.state == "closed"
