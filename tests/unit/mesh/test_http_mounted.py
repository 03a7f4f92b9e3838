"""The ingress under a prefix, and served again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from bitactor import Workflow
from mesh import Mesh
from mesh.ingress.http import HttpServer, application
from mesh.testing import MeshFactory

BOUND = 30.0


def echoes() -> Workflow:
    workflow = Workflow("echo", input={"value": Any})

    @workflow.step
    async def give(value: Any) -> Any:
        return value

    return workflow


def waits() -> Workflow:
    workflow = Workflow("waits")

    @workflow.step
    async def wait() -> None:
        await asyncio.Event().wait()

    return workflow


def mounted(mesh: Mesh, prefix: str = "/bit") -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with mesh:
            yield

    return Starlette(routes=[Mount(prefix, application(mesh))], lifespan=lifespan)


def hidden(mesh: Mesh) -> Any:
    """Behind a proxy that takes the prefix off, and says so."""
    app = application(mesh)

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": "/bit", "path": f"/bit{scope['path']}"}
        await app(scope, receive, send)

    return behind


WAYS = {
    "a mount": (mounted, "/bit", "/bit"),
    "a mount in a mount": (lambda mesh: nested(mesh), "/outer/bit", "/outer/bit"),
    "a mount with a space": (lambda mesh: mounted(mesh, "/a b"), "/a%20b", "/a%20b"),
    "a proxy": (hidden, "", "/bit"),
    "none": (application, "", ""),
}
"""How it is reached → the application, where a client of this test asks, and what a client outside sees."""


def nested(mesh: Mesh) -> Starlette:
    inner = mounted(mesh)
    return Starlette(routes=[Mount("/outer", inner)], lifespan=lambda app: inner.router.lifespan_context(inner))


@pytest.mark.parametrize("way", WAYS)
def test_under_a_prefix(way: str) -> None:
    make, at, prefix = WAYS[way]
    with TestClient(make(Mesh(echoes()))) as http:
        for _ in range(2):
            paths = http.get(f"{at}/openapi.json").json()["paths"]
            assert all(path.startswith(f"{prefix}/") for path in paths) and f"{prefix}/stimuli/echo" in paths
        begun = http.post(f"{at}/stimuli/echo", json={"value": 1}, headers={"Prefer": "respond-async"})
        place = f"{prefix}/transactions/{begun.json()['transaction']}"
        assert (begun.status_code, begun.headers["location"]) == (202, place)
        assert http.get(at + place.removeprefix(prefix)).json()["workflow"] == "echo"
        lost = http.get(f"{at}/nowhere")
        assert lost.status_code == 404 and f"{prefix}/openapi.json says" in lost.json()["detail"]


def test_one_application_under_two_prefixes() -> None:
    mesh = Mesh(echoes())
    app = application(mesh)
    both = Starlette(routes=[Mount("/a", app), Mount("/b", app)], lifespan=lambda _: app.router.lifespan_context(app))
    with TestClient(both) as http:
        for prefix in ("/a", "/b", "/a"):
            assert f"{prefix}/stimuli/echo" in http.get(f"{prefix}/openapi.json").json()["paths"]


async def test_a_server_behind_a_proxy_is_told_its_prefix() -> None:
    server = HttpServer(Mesh(echoes()), port=0, root_path="/bit")
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(BOUND):
        await server.started.wait()
        async with httpx2.AsyncClient(base_url=server.url) as http:
            assert "/bit/stimuli/echo" in (await http.get("/openapi.json")).json()["paths"]
            headers = {"Prefer": "respond-async"}
            begun = await http.post("/stimuli/echo", json={"value": 1}, headers=headers)
        server.stop()
        await running
    assert begun.headers["location"] == f"/bit/transactions/{begun.json()['transaction']}"


def test_a_mounted_application_whose_mesh_nobody_opened_says_what_to_do() -> None:
    outer = Starlette(routes=[Mount("/bit", application(Mesh(echoes())))])
    with TestClient(outer) as http:
        answer = http.post("/bit/stimuli/echo", json={"value": 1})
    assert answer.status_code == 503
    assert "open the mesh in the lifespan of the application that this one is mounted in" in answer.json()["detail"]


# Again

MESH = Mesh(echoes(), waits(), drain=0)
"""As in a module of a service."""
APPS = {"by itself": application(MESH), "mounted": mounted(MESH)}


@pytest.mark.parametrize("which", APPS)
@pytest.mark.parametrize("time", [1, 2])
def test_two_clients_after_each_other(which: str, time: int) -> None:
    at = "/bit" if which == "mounted" else ""
    for number in range(2):
        with TestClient(APPS[which]) as http:
            answer = http.post(f"{at}/stimuli/echo", json={"value": number})
            assert (answer.status_code, answer.json()["result"]) == (200, number)
            waiting = http.post(f"{at}/stimuli/waits", headers={"Prefer": "respond-async"})
            assert waiting.status_code == 202
            listed = http.get(f"{at}/transactions").json()["transactions"]
            assert {row["transaction"] for row in listed} == {
                answer.json()["transaction"],
                waiting.json()["transaction"],
            }
            assert http.get(f"{at}/readyz").status_code == 200
    assert MESH.state == "closed"


def test_clients_of_a_mesh_of_the_fixture(mesh: MeshFactory) -> None:
    app = application(mesh(echoes(), steps={"give": lambda value: [value]}))
    for number in range(2):
        with TestClient(app) as http:
            assert http.post("/stimuli/echo", json={"value": number}).json()["result"] == [number]


def test_two_clients_at_the_same_time_are_refused() -> None:
    with TestClient(APPS["by itself"]) as http:
        with pytest.raises(BaseException, match="another event loop"), TestClient(APPS["by itself"]):
            pass
        assert http.post("/stimuli/echo", json={"value": 1}).status_code == 200


def test_a_client_without_lifespan_is_told() -> None:
    mesh = Mesh(echoes())
    with mesh:
        answer = TestClient(application(mesh), raise_server_exceptions=False).post("/stimuli/echo", json={"value": 1})
    assert answer.status_code == 500


async def test_a_server_after_another() -> None:
    mesh = Mesh(echoes())
    for number in range(2):
        server = HttpServer(mesh, port=0)
        running = asyncio.create_task(server.run())
        async with asyncio.timeout(BOUND):
            await server.started.wait()
            async with httpx2.AsyncClient(base_url=server.url) as http:
                assert (await http.post("/stimuli/echo", json={"value": number})).json()["result"] == number
            server.stop()
            await running


async def test_a_mesh_on_another_loop_than_its_ingress_says_so() -> None:
    mesh = Mesh(echoes())
    transport = httpx2.ASGITransport(application(mesh))
    with mesh:
        async with httpx2.AsyncClient(transport=transport, base_url="http://mesh") as http:
            answer = await http.post("/stimuli/echo", json={"value": 1})
    assert answer.status_code == 500


@pytest.mark.parametrize("number", [1, 2])
async def test_a_mesh_of_the_module_on_the_loops_of_tests(number: int) -> None:
    async with MESH:
        assert await (await MESH.stimulate("echo", {"value": number})).result(BOUND) == number
