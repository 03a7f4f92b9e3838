"""The right to begin what others sent, and what a sender answers to a holder that is not sure of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bitactor import Workflow
from bitactor.messages.codec import Packed, encode_token, token_bytes
from bitactor.messages.signal import Cancel, Reply, Sending, Signal
from bitactor.messages.wire import decode_message
from bitactor.saga import Accept, HopExpired, Lost, Replied, Saga
from bitactor.testing.fakes import FakeClock
from mesh.hops.executor import Executor
from mesh.hops.ports import ENDED, FOREVER
from mesh.limits.timing_wheel import SystemClock, TimingWheel
from mesh.network.grant import CONFIRMED_NS, FENCED, TAKES_PIDS, NodeGrant
from mesh.network.remote_hops import RemoteHops
from mesh.network.router import BACKSTOP_NS, HopRouter
from mesh.runtime.live import LiveTransaction
from registry import Entry, Notice
from registry.table import DEFAULT_LEASE_NS

SECOND = 1_000_000_000


class FakeRegistry:
    """One holder of every name, and our own grant."""

    def __init__(self) -> None:
        self.granted = (7, FOREVER)
        self.entries: tuple[Entry, ...] = ()

    def granted_until_ns(self, name: str, epoch: int) -> int:
        assert name == "node:us"
        return self.granted[1] if epoch == self.granted[0] else 0

    def lookup(self, name: str) -> tuple[Entry, ...]:
        return self.entries

    def match(self, pattern: str) -> tuple[Entry, ...]:
        return self.entries


class Desk:
    """A router that sends to one holder, with all that it sends and all events that come of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workflow: Workflow) -> None:
        self.clock = FakeClock()
        self.clock.advance(100)
        self.registry: Any = FakeRegistry()
        self.grant = NodeGrant(self.registry, "us", self.clock)
        self.wheel = TimingWheel(self.clock)
        self.executor = Executor(loop, self.clock, self.wheel, {})
        self.events: list[Any] = []
        self.sent: list[Any] = []
        self.plan = workflow.check()
        value = {"endpoint": "ipc://h", "digest": self.plan.digest, FENCED: True}
        self.registry.entries = (Entry("step:errand/go", "them", value, False, 0),)
        self.grant.on_notice(Notice("appeared", Entry("node:them", "them", {}, True, 41)))
        self.router = HopRouter(
            lambda live, event, first=False: self.events.append(event),
            self.registry,
            self.clock,
            self.wheel,
            lambda endpoint, message: self.sent.append(decode_message(message)),
            lambda: "ipc://s",
            5 * SECOND,
            86_400 * SECOND,
            self.grant,
            self.executor,
        )
        saga = Saga(self.plan, "a" * 32)
        saga.react(Accept(encode_token({}), (), 8, None), 1)
        self.live = LiveTransaction(saga, "", {}, 0)

    def dispatch(self, budget_ns: int | None) -> Signal:
        state = self.live.state
        signal = Signal(
            "errand/go", state.transaction, state.root, state.hops[0], (), "forward", 1, state.deliveries[0], 0, 7,
            budget_ns, None,
        )  # fmt: skip
        self.router.dispatch(self.live, self.plan.steps[0], signal, Packed(encode_token({})), None)
        return self.sent[-1]

    def ask(self, signal: Signal, asked_ns: int = 55) -> None:
        self.router.on_reply(
            Reply(signal.transaction, signal.hop, signal.delivery, signal.epoch, "busy", after_ns=asked_ns)
        )


@pytest.fixture
async def desk() -> Iterator[Desk]:
    errand = Workflow("errand")

    @errand.step(timeout=2.0)
    async def go() -> int:
        return 0

    made = Desk(asyncio.get_running_loop(), errand)
    yield made
    made.router.close()


async def test_a_hop_is_sent_to_the_grant_that_its_holder_has_and_with_the_time_it_has_to_begin(desk: Desk) -> None:
    sent = desk.dispatch(2 * SECOND)
    assert sent.sending == Sending(41, 0, desk.clock.monotonic_ns(), 2 * SECOND + BACKSTOP_NS)
    desk.grant.on_notice(Notice("changed", Entry("node:them", "them", {}, True, 42)))
    desk.ask(sent)
    assert desk.sent[-1].sending.grant == 42


async def test_less_time_than_the_step_may_take_is_what_is_left_to_the_transaction(desk: Desk) -> None:
    assert desk.dispatch(SECOND).sending.within_ns == SECOND


async def test_a_holder_that_does_not_look_at_it_is_not_told(desk: Desk) -> None:
    (entry,) = desk.registry.entries
    desk.registry.entries = (entry._replace(value={**entry.value, FENCED: False}),)
    assert desk.dispatch(2 * SECOND).sending is None


async def test_a_holder_that_asks_gets_the_hop_once_more_with_its_question_and_all_of_its_time(desk: Desk) -> None:
    sent = desk.dispatch(2 * SECOND)
    desk.clock.advance(3)
    desk.ask(sent)
    again = desk.sent[-1]
    assert again._replace(sending=None) == sent._replace(sending=None), "the same delivery"
    assert again.sending == Sending(41, 0, desk.clock.monotonic_ns(), 2 * SECOND + BACKSTOP_NS, 55)
    assert not desk.events
    desk.clock.advance(3 + BACKSTOP_NS / SECOND)
    assert [(type(event), event.hop) for event in desk.events] == [(HopExpired, sent.hop)]
    desk.ask(sent)
    assert len(desk.sent) == 2, "nobody waits for it any more"
    reply = desk.events[-1].reply
    assert (reply.outcome, reply.after_ns) == ("fail", None), "and it is known not to have happened"


@pytest.mark.parametrize(("pid", "holder"), [(0, "them"), (4711, "them/4711"), (-1, "them"), (2**63, "them")])
async def test_the_worker_process_of_another_node_is_named_with_it(desk: Desk, pid: int, holder: str) -> None:
    sent = desk.dispatch(2 * SECOND)
    desk.router.on_reply(Reply(sent.transaction, sent.hop, sent.delivery, sent.epoch, "ok", encode_token(0), pid=pid))
    (event,) = desk.events
    assert type(event) is Replied and event.holder == holder


async def test_who_takes_process_ids_is_known_while_its_node_says_so(desk: Desk) -> None:
    def notice(kind: str, value: dict[str, Any]) -> frozenset[str]:
        desk.grant.on_notice(Notice(kind, Entry("node:n", "n", value, True, 1)))
        return desk.grant.takes_pids

    assert notice("appeared", {"endpoint": "ipc://n"}) == frozenset(), "a node of a release before"
    assert notice("changed", {"endpoint": "ipc://n", TAKES_PIDS: True}) == {"ipc://n"}
    assert notice("changed", {"endpoint": "ipc://n"}) == frozenset()
    notice("changed", {"endpoint": "ipc://n", TAKES_PIDS: True})
    assert notice("disappeared", {"endpoint": "ipc://n", TAKES_PIDS: True}) == frozenset()


@pytest.mark.parametrize(("takes", "holder", "said"), [(True, 4711, 4711), (False, 4711, 0), (True, "", 0)])
def test_the_worker_process_is_said_to_a_node_that_takes_it(takes: bool, holder: str | int, said: int) -> None:
    errand = Workflow("errand")
    errand.step(lambda: 0, name="go")
    sent: list[Any] = []
    grant = NodeGrant(FakeRegistry(), "us", FakeClock())  # type: ignore[arg-type]
    value = {"endpoint": "ipc://s", TAKES_PIDS: True} if takes else {"endpoint": "ipc://s"}
    grant.on_notice(Notice("appeared", Entry("node:them", "them", value, True, 1)))

    def launch(plan: Any, step: Any, signal: Signal, arguments: Any, result: Any, done: Any, **_: Any) -> Any:
        actor = SimpleNamespace(state=ENDED, holder=holder, signal=signal)
        done(actor, Reply(signal.transaction, signal.hop, 1, 0, "ok", encode_token(0)), None)
        return actor

    hops = RemoteHops(
        SimpleNamespace(launch=launch),  # type: ignore[arg-type]
        {"errand": errand.check()},
        lambda endpoint, message: sent.append((endpoint, decode_message(message))),
        grant,
    )
    parts = encode_token([bytes(token_bytes(encode_token(value))) for value in ({}, None)])
    signal = Signal("errand/go", "f" * 32, "f" * 32, "a" * 16, (), "forward", 1, 1, 0, 7, None, parts, "ipc://s")
    hops.receive(signal)
    hops.receive(signal)  # answered from what is remembered
    assert [(endpoint, reply.pid) for endpoint, reply in sent] == [("ipc://s", said)] * 2


async def test_a_hop_that_was_given_to_another_is_passed_over(desk: Desk) -> None:
    sent = desk.dispatch(2 * SECOND)
    desk.router.disappeared("them")
    assert [(type(event), event.hop) for event in desk.events] == [(Lost, sent.hop)]
    desk.ask(sent)
    assert (len(desk.sent), len(desk.events)) == (1, 1)


async def test_a_hop_that_was_stopped_is_known_not_to_have_begun(desk: Desk) -> None:
    sent = desk.dispatch(2 * SECOND)
    desk.router.abandon(desk.live, 0)
    assert type(desk.sent[-1]) is Cancel
    desk.ask(sent)
    assert [(type(event), event.reply.outcome) for event in desk.events] == [(Replied, "fail")]
    assert len(desk.sent) == 2


async def test_a_hop_whose_transactions_time_is_over_is_answered_when_that_stops_it(desk: Desk) -> None:
    sent = desk.dispatch(SECOND)
    desk.clock.advance(1)
    desk.ask(sent)
    assert (len(desk.sent), desk.events) == (1, [])
    desk.router.abandon(desk.live, 0)
    assert [event.reply.outcome for event in desk.events] == ["fail"]


async def test_what_is_not_surely_ours_any_more_is_not_sent(desk: Desk) -> None:
    """A node that was stopped may wake to find its transactions with another."""
    desk.executor.lease_until_ns, until = 0, [0]
    desk.executor.lease = lambda: until[-1]
    state = desk.live.state
    signal = Signal("errand/go", state.transaction, state.root, state.hops[0], (), "forward", 1, 1, 0, 7, None, None)
    desk.router.dispatch(desk.live, desk.plan.steps[0], signal, Packed(encode_token({})), None)
    desk.clock.advance(1)
    assert not desk.sent
    until.append(FOREVER)
    desk.clock.advance(1)
    assert [type(message) for message in desk.sent] == [Signal]


async def test_a_lease_holds_under_the_grant_it_was_sent_to_and_as_long_as_the_sender_waits(desk: Desk) -> None:
    now = desk.clock.monotonic_ns()
    grant, registry = desk.grant, desk.registry
    sender = Entry("node:s", "s", {"endpoint": "ipc://s"}, True, 3)
    assert grant.lease(Sending(7, 0, 1, None), "ipc://s").until_ns() == 0, "the registry has not told of its sender"
    grant.on_notice(Notice("appeared", sender))
    assert grant.lease(Sending(7, 0, 1, None), "ipc://s").until_ns() == FOREVER
    assert grant.lease(Sending(8, 0, 1, None), "ipc://s").until_ns() == 0, "another grant than ours"
    # What was on its way for longer than a lease was sent to a grant that is over; so much may be gone already
    assert grant.lease(Sending(7, 0, 1, 3 * SECOND), "ipc://s").until_ns() == now + 3 * SECOND - DEFAULT_LEASE_NS
    registry.granted = (7, now + 5)
    assert grant.lease(Sending(7, 0, 1, None), "ipc://s").until_ns() == now + 5
    assert grant.lease(Sending(7, 0, 1, 2), "ipc://s").until_ns() < now
    registry.granted = (9, FOREVER)
    confirmed = grant.lease(Sending(7, 0, 1, 5 * SECOND, now - 3), "ipc://s")
    assert confirmed.until_ns() == now - 3 + CONFIRMED_NS, "it was asked for at that moment"
    assert grant.lease(Sending(7, 0, 1, 5 * SECOND, now + 3), "ipc://s").until_ns() == 0, "nobody asks in the future"
    registry.granted = (7, FOREVER)
    held = grant.lease(Sending(7, 0, 1, None), "ipc://s")
    assert held.until_ns() == FOREVER
    grant.on_notice(Notice("disappeared", sender))
    assert held.until_ns() == 0, "whoever took over from it has given the hop to another"


async def test_clocks_of_one_boot_are_compared_to_the_nanosecond() -> None:
    clock = SystemClock(asyncio.get_running_loop())
    grant = NodeGrant(FakeRegistry(), "us", clock)  # type: ignore[arg-type]
    grant.on_notice(Notice("appeared", Entry("node:us", "us", {"endpoint": "ipc://s"}, True, 7)))
    sending = grant.sending(Entry("step:a/b", "us", {FENCED: True}, False, 0), 1_000)
    assert sending is not None and sending.grant == 7
    if sending.clock:
        assert grant.lease(sending, "ipc://s").until_ns() == sending.sent_ns + 1_000
