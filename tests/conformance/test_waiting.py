"""When the world misbehaves: nobody is there who runs a step, or takes a signal."""

from __future__ import annotations

from bitactor import Context, Workflow
from bitactor.declare.stimulus import StimulusOptions
from bitactor.testing import FakeClock
from mesh.runtime.names import consumer_name
from mesh.runtime.node import Node
from mesh.runtime.settings import settings
from tests.conformance.claims import claim
from tests.e2e.support import BOUND, pass_time, tombstones, turns, undone, until
from tests.unit.mesh.test_waiting_hops import begun, desk

SECTION = "When the world misbehaves"


@claim(
    SECTION,
    "A worker that is away for longer than `patience` undoes nothing: what has begun waits for one until its deadline, "
    "or `delivery_timeout`, and `mesh.about()` tells of it.",
)
async def test_a_worker_that_is_away() -> None:
    async with desk() as at:
        transaction = await begun(at)
        await at.wait(60)
        assert at.node.about()["waiting"] == {"orders/ship": {"hops": 1, "for_s": 60.0, "why": "no node runs it"}}
        at.network.comes("another", "pay", "ship")
        await turns()
        await at.answer(token=2)
        assert await transaction.result(BOUND) == 2
        assert tombstones(transaction) == [] and undone(transaction) == []


@claim(
    SECTION,
    "A signal that nobody takes waits until its deadline, or `delivery_timeout`, without polling, and `mesh.about()` "
    "tells of it.",
)
async def test_a_signal_that_nobody_takes() -> None:
    workflow = Workflow("tells")

    @workflow.step
    async def tell(ctx: Context) -> None:
        await ctx.emit("told", {})

    clock = FakeClock()
    node = Node([workflow], settings(drain=0.0, delivery_timeout=3_600.0), clock=clock)
    await node.open()
    try:
        await node.intake.stimulate("tells", None, StimulusOptions())
        await until(lambda: node.about()["unheard"])
        await pass_time(clock, 60, 2)
        assert node.about()["unheard"] == {"told": {"signals": 1, "for_s": 60.0}}
        assert len(node.wheel) == 2  # when it is over, and when consumers are looked for again
        await pass_time(clock, 3_500, 4)
        peer = node.registry.peer("somebody")
        peer.start()
        peer.register(consumer_name("told"), {"groups": [("somebody", False)]})
        await until(lambda: node.about()["deliveries"] == 1)
        assert node.about()["unheard"] == {}
        await pass_time(clock, 60, 2)
        await until(lambda: node.about()["undelivered"] == 0)
    finally:
        await node.close()
