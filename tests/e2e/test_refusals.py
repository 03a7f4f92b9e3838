"""What a node logs while it refuses everything: once, and how often, but no line for each that asks."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from bitactor import StaleOwner, StoreError, Workflow
from mesh import Mesh
from tests.e2e.support import BOUND, until
from tests.e2e.test_http_ingress import Shop, serving
from tests.store_faults import Disk

OFTEN = 20


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pulses.db"


def echo() -> Workflow:
    workflow = Workflow("echo", input={"text": str})

    @workflow.step
    async def say(text: str) -> int:
        return len(text)

    return workflow


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.name, record.getMessage()) for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_fence_is_logged_once_and_what_it_refuses_is_counted(
    sqlite: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop, free = Shop(), asyncio.Event()
    shop.definitions = [echo()]
    async with serving(sqlite, shop) as (mesh, _, _, http, _):
        rejoin = mesh.node.store.rejoin

        async def later(owner: str) -> None:
            await free.wait()
            await rejoin(owner)

        monkeypatch.setattr(mesh.node.store, "rejoin", later)
        for times in (1, 2):
            caplog.clear()
            free.clear()
            mesh.node.ownership.fenced(StaleOwner(f"declared dead, time {times}"))
            for number in range(OFTEN):
                with pytest.raises(StoreError, match=f"takes no work at the moment: declared dead, time {times}"):
                    await mesh.stimulate("echo", {"text": "x"})
                answer = await http.post("/stimuli/echo", json={"text": "x"})
                assert (answer.status_code, number) == (503, number)
            assert mesh.about()["fenced"]["refused"] == 2 * OFTEN
            free.set()
            await until(lambda: mesh.about()["healthy"], "another name")
            fenced, unserved, goes_on = lines(caplog)
            assert fenced[0] == goes_on[0] == "bitactor.recovery" and f"time {times}" in fenced[1]
            assert unserved[0] == "bitactor.ingress" and f"time {times}" in unserved[1]
            assert f"{2 * OFTEN} stimuli were refused meanwhile" in goes_on[1]
        assert await (await mesh.stimulate("echo", {"text": "x"})).result(BOUND) == 1


async def test_a_full_disk_is_logged_once_however_many_ask(
    sqlite: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each that asks is told."""
    disk, large = Disk(monkeypatch), {"text": "x" * 1_000_000}
    async with Mesh(echo(), store=sqlite) as mesh:
        disk.fill()
        for _ in range(OFTEN):
            with pytest.raises(StoreError, match="disk is full"):
                await mesh.stimulate("echo", large)
        ((name, said),) = lines(caplog)
        assert name == "bitactor.supervisor" and "the journal could not be written" in said
        disk.free()
        assert await (await mesh.stimulate("echo", large)).result(BOUND) == 1_000_000
