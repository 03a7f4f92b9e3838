"""The two ways to call a mesh, from coroutines and from threads, and what is left when it is closed."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from bitactor import Workflow
from bitactor.errors import BitActorError, StoreError
from mesh import BlockingMesh, BlockingTransaction, Mesh, Transaction
from mesh.ingress.http import application
from tests.conformance.claims import claim
from tests.e2e.support import BOUND


def doubling() -> Workflow:
    workflow = Workflow("doubling", input={"x": int}, ttl=1)

    @workflow.step
    async def twice(x: int) -> int:
        return x * 2

    return workflow


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@claim("Two ways to call it", "What can be awaited in a coroutine can be called in a thread, under the same name.")
@pytest.mark.parametrize(("one", "other"), [(Mesh, BlockingMesh), (Transaction, BlockingTransaction)])
def test_same_methods(one: type, other: type) -> None:
    methods = [name for name in dir(one) if not name.startswith("_") and inspect.isfunction(getattr(one, name))]
    for name in methods:
        mine, theirs = (inspect.signature(getattr(face, name)).parameters for face in (one, other))
        assert mine == theirs, name


@claim("Two ways to call it", "A transaction found by its id is a blocking one for a thread.")
def test_transaction_in_a_thread() -> None:
    workflow = doubling()
    with Mesh(workflow) as mesh:
        begun = mesh.stimulate(workflow, {"x": 1})
        assert begun.result(BOUND) == 2
        found = mesh.transaction(begun.id)
        assert (found.value(), found.status, found.faults(), found.progress()) == (2, "completed", [], {})


@claim("Two ways to call it", "A keyword that a stimulus does not have is refused at once, with what was meant.")
@pytest.mark.parametrize(
    ("given", "words"),
    [({"x": 1}, "an input is one mapping"), ({"timeout": 5}, "deadline="), ({"prority": 1}, "Did you mean 'priority'")],
)
async def test_unknown_keyword(given: dict[str, Any], words: str) -> None:
    workflow = doubling()

    def threaded() -> None:
        with Mesh(workflow) as mesh:
            mesh.submit(workflow, **given)

    with pytest.raises(TypeError, match=words):
        await asyncio.to_thread(threaded)
    async with Mesh(workflow) as mesh:
        with pytest.raises(TypeError, match=words):
            await mesh.stimulate(workflow, **given)


@claim("Two ways to call it", "A call that nobody could answer is refused: on the loop itself, or on another one.")
async def test_on_the_wrong_loop() -> None:
    workflow = doubling()
    async with Mesh(workflow) as mesh:
        with pytest.raises(BitActorError, match="await the async one"):
            mesh.run(workflow, {"x": 1})
        with pytest.raises(BitActorError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(mesh.close()))
        assert await asyncio.to_thread(mesh.blocking.run, workflow, {"x": 1}) == 2


@claim("Two ways to call it", "When its mesh is closed, a transaction still says how it ended, with its pulses.")
async def test_handles_of_a_closed_mesh(store: str) -> None:
    workflow = doubling()
    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow, {"x": 1})
        await transaction.result(BOUND)
    assert (await transaction.result(), transaction.results(), transaction.errors()) == (2, {"twice": 2}, [])
    assert [pulse.kind for pulse in transaction.pulses()] == ["accepted", "spawned", "completed", "finished"]


@claim("Two ways to call it", "What cannot be had any more is said, not left out.")
async def test_pulses_that_are_gone(sqlite: str, tmp_path: Path) -> None:
    workflow = doubling()
    async with Mesh(workflow, store=sqlite) as mesh:
        transaction = await mesh.stimulate(workflow, {"x": 1})
        await transaction.result(BOUND)
    remove_all(tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        transaction.pulses()


@claim("Two ways to call it", "A mesh can be opened again after it was closed, with all that its store has.")
async def test_opened_again(store: str) -> None:
    workflow = doubling()
    mesh = Mesh(workflow, store=store)
    begun = []
    for _ in range(2):
        async with mesh:
            begun.append(await mesh.stimulate(workflow, {"x": 1}, key="once"))
            assert await begun[-1].result(BOUND) == 2
    assert (begun[0].id == begun[1].id) == (store != "memory://")


@claim("Two ways to call it", "A mesh is open once at a time; another who opens it is refused.")
async def test_open_once() -> None:
    mesh = Mesh(doubling())
    async with mesh:
        for enter in (mesh.__enter__, lambda: asyncio.run(mesh.__aenter__())):
            with pytest.raises(BitActorError, match="open once at a time"):
                await asyncio.to_thread(enter)
        with pytest.raises(BitActorError, match="open once at a time"):
            await mesh.__aenter__()


@claim("Two ways to call it", "Mounted under a prefix, the HTTP description has the paths that a client uses.")
def test_mounted() -> None:
    app = application(Mesh(doubling()))
    outer = Starlette(routes=[Mount("/bit", app)], lifespan=lambda _: app.router.lifespan_context(app))
    for _ in range(2):
        with TestClient(outer) as http:
            [path] = [path for path in http.get("/bit/openapi.json").json()["paths"] if "stimuli" in path]
            assert http.post(path, json={"x": 1}).json()["result"] == 2
