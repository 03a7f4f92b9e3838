"""Nodes that are stopped (a paused container, a laptop's lid) for longer than their lease, and wake with what was given
to others meanwhile: they begin none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mesh import Mesh
from tests.conformance.claims import claim
from tests.e2e.errands import effects, errand, left_over, redelivered
from tests.e2e.processes import PATIENCE, Town, stop, town, wake
from tests.e2e.test_mesh_processes import until

SECTION = "When the world misbehaves"


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        made.serve_registry()
        yield made


async def go(mesh: Mesh, notes: str) -> str:
    transaction = await mesh.stimulate("errand", {"notes": notes})
    await transaction.ended()
    return transaction.status


@claim(
    SECTION,
    "A worker that was stopped (SIGSTOP, a paused container, a laptop's lid) for longer than its lease begins, when it "
    "wakes, nothing that was given to another and undone meanwhile.",
)
async def test_a_woken_worker_begins_nothing_that_was_given_to_another_and_undone(place: Town) -> None:
    workers = [place.node("errand", threads=2), place.node("errand", threads=2)]
    notes = place.directory / "effects"
    async with Mesh(errand, registry=place.registry, hosts=False) as mesh:
        first = [asyncio.create_task(go(mesh, str(notes))) for _ in range(60)]
        await until(lambda: len(effects(notes)) > 10, "the first steps")
        stop(workers[0])
        try:
            statuses = set(await asyncio.gather(*first))
        finally:
            wake(workers[0])
        assert statuses == {"compensated"}
        again = redelivered(mesh)
        assert again >= 10
        assert await go(mesh, str(notes)) == "compensated"
        pid = workers[0].child.pid
        last = effects(notes)[-1].at_ns

        async def back_at_work() -> None:
            while not any(effect.pid == pid and effect.at_ns > last for effect in effects(notes)):
                await go(mesh, str(notes))

        await asyncio.wait_for(back_at_work(), PATIENCE)
    found = effects(notes)
    assert not left_over(found), f"of {again} that were delivered again"
