"""What becomes of hops that wait for a holder: which fail after `patience`, which wait, and until when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final

import pytest
from typing_extensions import override

from bitactor import DeadlineExceeded, Overloaded, StoreError, Unroutable, Workflow, WorkflowFailed
from bitactor.declare.stimulus import StimulusOptions
from bitactor.messages.codec import encode_token
from bitactor.messages.duration import nanoseconds
from bitactor.messages.signal import Reply, Signal
from bitactor.messages.wire import decode_message
from bitactor.testing import FakeClock
from mesh import Transaction
from mesh.hops.executor import FOREVER
from mesh.network.grant import NodeGrant
from mesh.network.router import HopRouter
from mesh.runtime.names import node_name, step_name
from mesh.runtime.node import Node, NodeParts
from mesh.runtime.ports import Network
from mesh.runtime.settings import settings
from registry import Entry, LocalRegistry, Notice
from tests.e2e.support import BOUND, pass_time, tombstones, turns, undone

PATIENCE: Final = 5.0
A_DAY: Final = 86_400.0


def _granted() -> Any:
    return SimpleNamespace(granted_until_ns=lambda: FOREVER)


class Elsewhere(Network):
    """A network of one supervisor, whose holders are played by the test: `sent` is what they were sent."""

    def __init__(self, parts: NodeParts) -> None:
        self.registry = LocalRegistry("supervisor")
        self.registry.start()
        self.sent: list[Signal] = []
        self.plan = parts.plans["orders"]
        self.grant = NodeGrant(_granted(), "supervisor", parts.clock)
        self.router: HopRouter = HopRouter(
            parts.enqueue, self.registry, parts.clock, parts.wheel, self.send, lambda: "memory://supervisor",
            nanoseconds(parts.settings.patience), nanoseconds(parts.settings.delivery_timeout),
            self.grant, parts.executor,
        )  # fmt: skip
        self._holders: dict[str, LocalRegistry] = {}

    def send(self, endpoint: str, message: bytes) -> None:
        signal = decode_message(message)
        if isinstance(signal, Signal):
            self.sent.append(signal)

    def comes(self, holder: str, *steps: str, told: bool = True, **value: Any) -> None:
        registry = self._holders[holder] = self.registry.peer(holder)
        registry.start()
        self.grant.on_notice(Notice("appeared", Entry(node_name(holder), holder, {}, True, 1)))
        entries = {"endpoint": f"memory://{holder}", "digest": self.plan.digest, "window": 10, **value}
        for step in steps:
            entry = registry.register(step_name(f"orders/{step}"), entries)
            if told:
                self.router.appeared(entry)

    def goes(self, holder: str) -> None:
        self._holders.pop(holder).close()
        self.node_goes(holder)

    def node_goes(self, holder: str) -> None:
        """What it registers is still there, as it may be after a restart of the registry."""
        self.grant.on_notice(Notice("disappeared", Entry(node_name(holder), holder, {}, True, 1)))
        self.router.disappeared(holder)

    def node_comes(self, holder: str) -> None:
        entry = Entry(node_name(holder), holder, {}, True, 2)
        self.grant.on_notice(Notice("appeared", entry))
        self.router.appeared(entry)

    def answers(self, outcome: str = "ok", token: Any = None) -> None:
        signal = self.sent[-1]
        own = (signal.transaction, signal.hop, signal.delivery, signal.epoch)
        self.router.on_reply(Reply(*own, outcome, encode_token(token)))

    @property
    @override
    def endpoint(self) -> str:
        return "memory://supervisor"

    @override
    async def open(self) -> None: ...

    @override
    async def announce(self, consumers: Any) -> None: ...

    @override
    async def withdraw(self) -> None: ...

    @override
    def send_stimulus(self, entry: Any, stimulus: Any) -> None: ...

    @override
    def on_notice(self, notice: Any) -> None: ...

    @override
    def about(self) -> dict[str, Any]:
        return {"transport": {}, "refused": {}, "repeated": 0, "waiting": self.router.about()}

    @override
    async def close(self) -> None:
        self.router.close()
        self.registry.close()


def orders(**options: Any) -> Workflow:
    workflow = Workflow("orders", ttl=8, **options)

    @workflow.step
    async def pay() -> int:
        return 1

    @pay.undo
    async def refund(result: int) -> None: ...

    @workflow.step
    async def ship(pay: int) -> int:
        return 2

    return workflow


class Desk:
    """A supervisor that hosts nothing, and the clock it lives by."""

    def __init__(self, node: Node, network: Elsewhere, clock: FakeClock) -> None:
        self.node = node
        self.network = network
        self.clock = clock

    async def begin(self, **options: Any) -> Transaction:
        live = await self.node.intake.stimulate("orders", None, StimulusOptions(**options))
        await turns()
        return Transaction(self.node.transactions, live)

    async def wait(self, seconds: float) -> None:
        await pass_time(self.clock, seconds)

    async def answer(self, outcome: str = "ok", token: Any = None) -> None:
        self.network.answers(outcome, token)
        await turns()

    @property
    def waiting(self) -> dict[str, Any]:
        return {name: each["hops"] for name, each in self.node.about()["waiting"].items()}


@asynccontextmanager
async def desk(workflow: Workflow | None = None, **options: Any) -> AsyncIterator[Desk]:
    made: list[Elsewhere] = []
    clock = FakeClock()

    def network(parts: NodeParts) -> Network:
        made.append(Elsewhere(parts))
        return made[0]

    chosen = settings(hosts=False, registry="memory://none", patience=PATIENCE, drain=0.0, **options)
    node = Node([workflow or orders()], chosen, network=network, clock=clock)
    await node.open()
    try:
        yield Desk(node, made[0], clock)
    finally:
        await node.close()


async def fault(transaction: Transaction) -> BaseException | None:
    with pytest.raises(WorkflowFailed) as failed:
        await transaction.result(BOUND)
    return failed.value.__cause__


async def test_a_transaction_of_which_nothing_ran_fails_after_patience() -> None:
    async with desk() as at:
        tx = await at.begin()
        await at.wait(PATIENCE - 0.1)
        assert tx.status == "running" and at.waiting == {"orders/pay": 1}
        await at.wait(0.2)
        error = await fault(tx)
        assert isinstance(error, Unroutable) and "none appeared within 5 s" in str(error)
        assert at.waiting == {} and tombstones(tx) == ["unroutable"]


async def test_a_node_that_is_gone_is_sent_nothing_although_its_steps_are_still_there() -> None:
    """Nobody would tell that it has lost it."""
    async with desk() as at:
        at.network.comes("w", "pay", "ship")
        tx = await at.begin()
        at.network.node_goes("w")
        await turns()
        assert len(at.network.sent) == 1 and at.waiting == {"orders/pay": 1}
        await at.wait(10)
        assert len(at.network.sent) == 1 and tx.status == "running"
        at.network.node_comes("w")
        await turns()
        assert [sent.delivery for sent in at.network.sent] == [1, 2] and at.waiting == {}
        await at.answer(token=1)
        await at.answer(token=2)
        assert await tx.ended(BOUND) == "completed"


async def test_so_it_does_when_its_first_hop_was_only_refused_as_busy() -> None:
    """The time that it waits counts, not the time that it was with a holder."""
    async with desk() as at:
        at.network.comes("w", "pay", window=1)
        tx = await at.begin()
        for times in (1, 2):
            await at.wait(60)
            await at.answer("busy")
            assert tx.status == "running" and at.waiting == {"orders/pay": 1}
            await at.wait(2.1)  # until it is sent again
            assert len(at.network.sent) == times + 1 and at.waiting == {}
        await at.answer("busy")
        await at.wait(1)
        error = await fault(tx)
        assert isinstance(error, Overloaded) and "had room within 5 s" in str(error)


async def begun(at: Desk, **options: Any) -> Transaction:
    """A transaction whose first step ran, and whose only worker is gone since."""
    at.network.comes("w", "pay", "ship")
    tx = await at.begin(**options)
    await at.answer(token=1)
    assert at.network.sent[-1].name == "orders/ship"
    at.network.goes("w")
    await turns()
    return tx


async def test_what_was_delivered_once_waits_for_a_worker_and_completes() -> None:
    async with desk() as at:
        tx = await begun(at)
        await at.wait(8)
        await at.wait(3_600)
        assert tx.status == "running" and at.waiting == {"orders/ship": 1}
        at.network.comes("w2", "pay", "ship")
        await turns()
        assert at.network.sent[-1].delivery == 2 and at.waiting == {}
        await at.answer(token=2)
        assert await tx.result(BOUND) == 2
        assert tombstones(tx) == [] and undone(tx) == []


async def test_a_worker_of_whom_no_notice_came_is_found_too() -> None:
    async with desk() as at:
        await begun(at)
        await at.wait(PATIENCE + 1)
        at.network.comes("w2", "pay", "ship", told=False)
        await at.wait(2.1)
        assert at.network.sent[-1].delivery == 2 and at.waiting == {}


async def test_a_later_hop_waits_also_when_it_was_never_sent() -> None:
    async with desk() as at:
        at.network.comes("w", "pay")
        tx = await at.begin()
        await at.answer(token=1)
        await at.wait(3_600)
        assert tx.status == "running" and at.waiting == {"orders/ship": 1}


async def test_without_a_deadline_it_waits_for_the_delivery_timeout() -> None:
    async with desk(delivery_timeout=A_DAY) as at:
        tx = await begun(at)
        await at.wait(PATIENCE)
        await at.wait(A_DAY - PATIENCE - 1)
        assert tx.status == "running"
        await at.wait(1)
        at.network.comes("w2", "pay")
        await turns()
        assert at.network.sent[-1].direction == "undo"
        await at.answer()
        error = await fault(tx)
        assert isinstance(error, Unroutable) and "none appeared within 86400 s" in str(error)
        assert tombstones(tx) == ["unroutable"] and undone(tx) == ["pay"]


async def test_with_a_deadline_it_waits_until_that_and_says_for_what(caplog: pytest.LogCaptureFixture) -> None:
    async with desk(delivery_timeout=20.0) as at:
        tx = await begun(at, deadline=60.0)
        await at.wait(PATIENCE)
        await at.wait(54)
        assert tx.status == "running"
        await at.wait(2)
        at.network.comes("w2", "pay")
        await turns()
        await at.answer()
        error = await fault(tx)
        assert isinstance(error, DeadlineExceeded)
        assert "'orders/ship' has waited 60 s for a node with room for it (no node runs it)" in str(error)
        said = [record.getMessage() for record in caplog.records if record.name == "bitactor.router"]
        assert said == ["hops of 'orders/ship' have waited 5 s: no node runs it; they wait on, 1 of them"]


async def test_an_undo_waits_until_the_time_for_undo_is_over() -> None:
    async with desk(orders(undo_timeout=600.0, grace=0.0), delivery_timeout=20.0) as at:
        tx = await begun(at)
        tx.request_cancel("enough")
        await turns()
        await at.wait(599)
        assert tx.status == "running" and at.waiting == {"orders/pay": 1}
        await at.wait(2)
        assert await tx.ended(BOUND) == "stuck"
        await turns()
        assert at.waiting == {}
        at.network.comes("w2", "pay")
        await tx.resume()
        await turns()
        await at.answer()
        assert await tx.ended(BOUND) == "cancelled" and undone(tx) == ["pay"]


async def test_one_that_waits_can_be_cancelled() -> None:
    async with desk() as at:
        tx = await begun(at)
        await at.wait(60)
        tx.request_cancel("not wanted any more")
        await turns()
        at.network.comes("w2", "pay")
        await turns()
        assert at.waiting == {}
        await at.answer()
        assert await tx.ended(BOUND) == "cancelled" and undone(tx) == ["pay"]


async def test_full_nodes_are_waited_for_too_and_named() -> None:
    async with desk() as at:
        at.network.comes("w", "pay", "ship", window=1)
        first = await at.begin()
        await at.answer(token=1)  # its second hop takes the only place
        second = await at.begin()
        await at.wait(PATIENCE + 0.1)
        error = await fault(second)
        assert isinstance(error, Overloaded) and "none of the 1 nodes that run 'orders/pay' had room" in str(error)
        assert first.status == "running"


async def test_about_says_what_waits_and_since_when() -> None:
    async with desk() as at:
        await begun(at)
        await at.wait(60)
        assert at.node.about()["waiting"] == {"orders/ship": {"hops": 1, "for_s": 60.0, "why": "no node runs it"}}
        assert at.node.about()["healthy"]


async def test_a_lease_of_our_own_that_was_not_renewed_is_named_and_not_the_workers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What waits for it goes out once it holds again; and what nothing ran of fails with the true reason."""
    why = "this node could not renew its lease on its transactions in the store"
    async with desk() as at:
        at.network.comes("w", "pay", "ship")
        first = await at.begin(deadline=60.0)
        executor = at.node.executor
        executor.lease_until_ns, executor.lease = 0, lambda: 0
        await at.answer(token=1)
        second = await at.begin()
        await at.wait(PATIENCE + 0.1)
        error = await fault(second)
        assert isinstance(error, StoreError) and str(error) == f"'orders/pay' was not sent within 5 s: {why}"
        assert at.node.about()["waiting"] == {"orders/ship": {"hops": 1, "for_s": 5.1, "why": why}}
        said = [record.getMessage() for record in caplog.records if record.name == "bitactor.router"]
        assert said == [f"hops of 'orders/ship' have waited 5 s: {why}; they wait on, 1 of them"]
        (live,) = at.node.unsettled()
        assert at.network.router.waits_for(live) == f"'orders/ship' has waited 5.1 s to be sent ({why})"
        executor.lease = lambda: None
        await at.wait(2.1)
        assert at.waiting == {} and at.network.sent[-1].name == "orders/ship"
        await at.answer(token=2)
        assert await first.result(BOUND) == 2


async def test_what_recovery_took_over_waits(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/pulses.db"
    async with desk(store=url) as at:
        tx = await at.begin()  # never sent to anybody
    async with desk(store=url) as at:
        await turns()
        await at.wait(3_600)
        assert at.waiting == {"orders/pay": 1}
        at.network.comes("w", "pay", "ship")
        await turns()
        await at.answer(token=1)
        await at.answer(token=2)
        assert await (Transaction(at.node.transactions, await at.node.transactions.load(tx.id))).result(BOUND) == 2


async def test_many_that_wait_are_dropped_each_at_once() -> None:
    """In whatever order they end."""
    async with desk(orders(undo_timeout=1.0)) as at:
        at.network.comes("w", "pay", window=1_000)
        for _ in range(20):
            await at.begin()
        for signal in list(at.network.sent):
            own = (signal.transaction, signal.hop, signal.delivery, signal.epoch)
            at.network.router.on_reply(Reply(*own, "ok", encode_token(1)))
        await turns()
        assert at.waiting == {"orders/ship": 20}
        for live in reversed(at.node.unsettled()):
            Transaction(at.node.transactions, live).request_cancel("")
        await turns()
        assert at.waiting == {}
