"""The options of a step."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bitactor import Backoff, ConfigurationError, DefinitionError, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes
from tests.conformance.support import journal, ran
from tests.conformance.workers import deadly
from tests.e2e.support import BOUND, Peak, pass_time, pulse_lines, tombstones, turns, until


@claim("Kinds: step", "`retries` is 0 unless told otherwise.")
async def test_no_retries_by_default() -> None:
    workflow = Workflow("once")
    workflow.step(name="breaks")(breaks)
    assert journal(await ran(workflow), "spawned") == ["breaks"]


async def breaks() -> None:
    raise ValueError("no")


@claim("Kinds: step", "`timeout` holds for `async def` and for `def`, wherever it runs.")
@pytest.mark.parametrize("place", ["loop", "thread"])
async def test_timeout(place: str) -> None:
    clock = FakeClock()
    workflow = Workflow("limited", grace=1.0)
    began, go = threading.Event(), threading.Event()
    if place == "loop":

        @workflow.step(name="works", timeout=2.0)
        async def waits() -> None:
            began.set()
            await asyncio.Event().wait()

    else:

        @workflow.step(name="works", timeout=2.0)
        def blocks() -> None:
            began.set()
            go.wait(BOUND)

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(began.is_set)
        await pass_time(clock, 1.9)
        assert transaction.status == "running"
        await pass_time(clock, 0.2)
        await pass_time(clock, 2)
        assert await transaction.ended(BOUND) == "compensated"
        assert "timed_out works" in pulse_lines(transaction)
        go.set()


@claim(
    "Kinds: step",
    "`spawn` says where it runs: `def` in a thread, `async def` on the loop, or inline, or in a worker process.",
)
async def test_spawn() -> None:
    workflow = Workflow("places")
    here = threading.get_ident()
    workflow.step(name="thread")(lambda: threading.get_ident())

    @workflow.step(name="loop")
    async def on_loop() -> int:
        return threading.get_ident()

    workflow.step(name="inline", spawn="inline")(lambda: threading.get_ident())
    transaction = await ran(workflow)
    assert {name: value == here for name, value in transaction.results().items()} == {
        "thread": False, "loop": True, "inline": True,
    }  # fmt: skip
    assert {pulse.step: pulse.spawn for pulse in transaction.pulses() if pulse.kind == "spawned"} == {
        "thread": "thread", "loop": "loop", "inline": "inline",
    }  # fmt: skip


@claim(
    "Kinds: step",
    "A step in a worker process that dies is delivered again, at most `redeliveries` times; then it is `poison`.",
)
@pytest.mark.parametrize(("times", "status"), [(2, "completed"), (3, "compensated")])
async def test_process(times: int, status: str, tmp_path: Path) -> None:
    async with Mesh(deadly, processes=1) as mesh:
        transaction = await mesh.stimulate(deadly, {"directory": str(tmp_path), "times": times})
        assert await transaction.ended(BOUND * 6) == status
        assert Notes(tmp_path).lines.count("explode") == 3
        if status == "completed":
            assert await transaction.result() != os.getpid()
        else:
            assert tombstones(transaction) == ["poison"]
            assert Notes(tmp_path).lines[-1] == "compensate WorkerLost", "its compensation is asked all the same"


@claim(
    "Kinds: step",
    "`limit` names a pool: so many hops run at once, over all transactions; one that is not there is refused.",
)
async def test_limit() -> None:
    workflow = Workflow("limited")
    inside = Peak()

    @workflow.step(limit="database")
    async def queries() -> None:
        with inside:
            await turns(3)

    async with Mesh(workflow, pools={"database": 2}) as mesh:
        for transaction in [await mesh.stimulate(workflow) for _ in range(10)]:
            assert await transaction.ended(BOUND) == "completed"
        assert (inside.most, mesh.node.about()["pools"]["database"]["taken"]) == (2, 0)
    with pytest.raises(ConfigurationError, match="'database'"):
        Mesh(workflow, pools={"databases": 2})


@claim("Kinds: step", "`required=False`: its failure leaves `None` and a pulse instead of failing the transaction.")
async def test_not_required() -> None:
    workflow = Workflow("optional")
    workflow.step(name="enrich", required=False, retries=1, backoff=Backoff(initial=0))(breaks)

    @workflow.step
    async def use(enrich: Any) -> Any:
        return ["used", enrich]

    transaction = await ran(workflow)
    assert await transaction.result() == ["used", None]
    [failed] = [pulse for pulse in transaction.pulses() if pulse.kind == "failed"]
    assert failed.step == "enrich" and "no" in (failed.error or "")
    assert journal(transaction, "spawned") == ["enrich", "enrich", "use"]


@claim(
    "Kinds: step",
    "`priority`: among hops that wait for a place the highest goes first; left unset it is 0, not the highest.",
)
async def test_priority() -> None:
    order: list[str] = []
    workflow = Workflow("urgent")
    go = asyncio.Event()
    holds = Workflow("holds")

    @holds.step(limit="one")
    async def hold() -> None:
        await go.wait()

    for name, options in {"unset": {}, "low": {"priority": -1}, "high": {"priority": 5}}.items():

        @workflow.step(name=name, limit="one", **options)
        async def works(name: str = name) -> None:
            order.append(name)

    async with Mesh(workflow, holds, pools={"one": 1}) as mesh:
        await mesh.stimulate(holds)
        transaction = await mesh.stimulate(workflow)
        await until(lambda: mesh.node.about()["pools"]["one"]["waiting"] == 3)
        go.set()
        assert await transaction.ended(BOUND) == "completed"
    assert order == ["high", "unset", "low"]


@claim("Kinds: step", "An option that is unknown, or could never do anything, is refused when declared.")
@pytest.mark.parametrize(
    "options",
    [
        {"retry": 3}, {"retries": -1}, {"backoff": Backoff()}, {"retry_on": OSError}, {"timeout": 0},
        {"spawn": "fibre"}, {"spawn": "ray"}, {"priority": "high"}, {"required": 1}, {"limit": ""},
        {"policies": ["retry"]}, {"spawn": "inline", "timeout": 1.0},
    ],
)  # fmt: skip
def test_options_are_refused(options: dict[str, Any]) -> None:
    workflow = Workflow("refusing")
    with pytest.raises(DefinitionError):
        workflow.step(name="works", **options)(lambda: None)


@claim("Kinds: step", "`compensate` is asked when the step's time was up, too.")
async def test_compensate_after_a_timeout() -> None:
    clock = FakeClock()
    workflow = Workflow("forgiving")
    seen: list[str] = []

    @workflow.step(timeout=1.0)
    async def hangs() -> str:
        await asyncio.Event().wait()
        return "never"

    @hangs.compensate
    async def instead(error: Exception) -> Any:
        seen.append(type(error).__name__)

    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: "spawned hangs" in pulse_lines(transaction))
        await turns()
        await pass_time(clock, 1.1)
        assert await transaction.ended(BOUND) == "compensated"
    assert seen == ["StepTimeout"]
