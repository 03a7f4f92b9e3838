"""Resources: things with a life of their own that steps use."""

from __future__ import annotations

from typing import Any

import pytest

from bitactor import Context, DefinitionError, Resource, UnknownArgument, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import failure_of
from tests.e2e.support import BOUND, finish, pass_time

SECTION = "Resources"


class Client:
    """What a factory makes here."""

    def __init__(self, log: list[str], name: str = "client") -> None:
        self.log, self.name = log, name
        self.healthy = True
        log.append(f"open {name}")

    async def close(self) -> None:
        self.log.append(f"close {self.name}")


def using(log: list[str], **options: Any) -> Workflow:
    client = Resource("client", lambda: Client(log), close=lambda client: client.close(), **options)
    workflow = Workflow("using", resources=[client])

    @workflow.step
    async def asks(client: Any) -> str:
        return f"{client.name} {id(client)}"

    return workflow


@claim(SECTION, "Created lazily, once for all transactions, and closed when the mesh closes.")
async def test_lazily_once() -> None:
    log: list[str] = []
    workflow = using(log)
    async with Mesh(workflow) as mesh:
        assert log == []
        began = [await mesh.stimulate(workflow) for _ in range(20)]
        assert len({await transaction.result(BOUND) for transaction in began}) == 1
        assert log == ["open client"]
    assert log == ["open client", "close client"]


@claim(SECTION, "Health-checked, and recreated when the check fails.")
async def test_health() -> None:
    log: list[str] = []
    clock = FakeClock()
    made: list[Client] = []

    def factory() -> Client:
        made.append(Client(log))
        return made[-1]

    client = Resource(
        "client", factory, close=lambda client: client.close(), check=lambda client: client.healthy, check_every=10.0
    )
    workflow = Workflow("checked", resources=[client])
    workflow.step(name="asks", spawn="loop")(asks_client)
    async with Mesh(workflow, clock=clock) as mesh:
        await finish(mesh, workflow)
        await pass_time(clock, 11)
        await finish(mesh, workflow)
        assert log == ["open client"]
        made[0].healthy = False
        await pass_time(clock, 11)
        await finish(mesh, workflow)
        assert log == ["open client", "close client", "open client"]


async def asks_client(client: Any) -> str:
    return str(client.name)


@claim(SECTION, "Closed in reverse order; what a factory takes is made first and closed last.")
async def test_order() -> None:
    log: list[str] = []
    pool = Resource("pool", lambda: Client(log, "pool"), close=lambda client: client.close())
    session = Resource(
        "session", lambda pool: Client(log, f"session of {pool.name}"), close=lambda client: client.close()
    )
    workflow = Workflow("ordered", resources=[session, pool])
    workflow.step(name="asks")(lambda session: session.name)
    async with Mesh(workflow) as mesh:
        assert await (await mesh.stimulate(workflow)).result(BOUND) == "session of pool"
    assert log == ["open pool", "open session of pool", "close session of pool", "close pool"]


@claim(SECTION, "Injected by name, or by annotation.")
async def test_injection() -> None:
    log: list[str] = []
    workflow = Workflow("injected", resources=[Resource("client", lambda: Client(log), provides=Client)])

    @workflow.step
    async def by_annotation(c: Client) -> str:
        return c.name

    assert await _result(workflow) == "client"
    unknown = Workflow("unknown", resources=[Resource("client", lambda: Client(log))])
    with pytest.raises(UnknownArgument, match="client"):
        unknown.step(name="asks")(lambda clinet: None)
        unknown.check()
    with pytest.raises(DefinitionError):
        Resource("client", "no function")  # type: ignore[arg-type]


async def _result(workflow: Workflow) -> Any:
    async with Mesh(workflow) as mesh:
        return await (await mesh.stimulate(workflow)).result(BOUND)


@claim("Context and builder", "`Context` gives resources by name, too: `await ctx.resources.get(name)`.")
async def test_resources_of_a_context() -> None:
    log: list[str] = []
    workflow = Workflow("asking", resources=[Resource("client", lambda: Client(log))])

    @workflow.step
    async def asks(ctx: Context) -> str:
        assert log == [], "nobody has needed it yet"
        return (await ctx.resources.get("client")).name

    assert await _result(workflow) == "client"


@claim(SECTION, "Replaceable in tests.")
async def test_replacing() -> None:
    log: list[str] = []
    workflow = using(log)
    async with Mesh(workflow, replace={"client": Client([], "fake")}) as mesh:
        assert (await (await mesh.stimulate(workflow)).result(BOUND)).startswith("fake")
    assert log == []


@claim(SECTION, "A factory that fails fails the step that needed it, and is called again for the next.")
async def test_a_factory_that_fails() -> None:
    tries: list[int] = []

    def factory() -> dict:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not up yet")
        return {"up": True}

    workflow = Workflow("up", resources=[Resource("client", factory)])
    workflow.step(name="asks")(lambda client: client["up"])
    async with Mesh(workflow) as mesh:
        assert "not up yet" in str(await failure_of(await finish(mesh, workflow)))
        assert await (await finish(mesh, workflow)).result() is True
