"""What a stimulus can say of its transaction, and what a user adds to the runtime from outside."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bitactor import Context, InvalidInput, Workflow
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.sinks import open_sink
from tests.conformance.claims import claim
from tests.e2e.support import BOUND, finish
from tests.extensions import Tally


def shows() -> Workflow:
    workflow = Workflow("shows", max_concurrency=5)

    @workflow.step
    async def show(ctx: Context) -> list[Any]:
        return [ctx.ttl, dict(ctx.metadata)]

    return workflow


OPTIONS = {"ttl": 3, "deadline": 60.0, "metadata": {"who": "Ada"}}


@claim("Running", "What a stimulus says of its transaction means the same in a mesh, blocking or not, and without one.")
async def test_options_of_a_stimulus() -> None:
    workflow = shows()
    expected = [2, {"who": "Ada"}]
    assert run_workflow(workflow, **OPTIONS).result == expected
    async with Mesh(workflow) as mesh:
        assert await (await mesh.stimulate(workflow, **OPTIONS)).result(BOUND) == expected
        assert await asyncio.to_thread(mesh.run, workflow, **OPTIONS) == expected


@claim("Running", "What a single stimulus says of its concurrency and priority is kept with its transaction.")
async def test_concurrency_and_priority_of_a_stimulus(store: str) -> None:
    workflow = shows()
    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow, max_concurrency=2, priority=7)
        await transaction.result(BOUND)
        about = transaction.about()
    assert (about["max_concurrency"], about["priority"]) == (2, 7)


WRONG = {"ttl": -1, "deadline": 0, "key": "", "metadata": 3, "max_concurrency": True, "priority": 0.5}


@claim("Running", "An option of a stimulus that cannot be is refused before anything is accepted, and named.")
@pytest.mark.parametrize("name", WRONG)
async def test_wrong_options_of_a_stimulus(name: str) -> None:
    workflow = shows()
    said = r"hop budget|deadline|key|metadata|how many hops|priority|whole number"
    async with Mesh(workflow) as mesh:
        with pytest.raises(InvalidInput, match=said):
            await mesh.stimulate(workflow, **{name: WRONG[name]})
        assert await mesh.transactions() == []


@claim("Running", "A spawner, a store and a sink from outside, each added by one call, serve like ours.")
async def test_what_is_added_from_outside() -> None:
    workflow, ran = Workflow("foreign"), list[str]()

    @workflow.step(spawn="unpooled")
    def works() -> str:
        ran.append(threading.current_thread().name)
        return "done"

    works.undo(lambda result: ran.append(f"takes back {result}"))

    @workflow.step(spawn="unpooled", after=["works"])
    def fails() -> None:
        raise ValueError("enough")

    tally = open_sink("tally://")
    assert isinstance(tally, Tally)
    async with Mesh(workflow, store="tardy://", sinks=[tally]) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "compensated" and ran == ["unpooled", "takes back done"]
    assert tally.kinds["undone"] == tally.kinds["finished"] == 1
