"""To whom a signal is sent, and when it is sent again."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import pytest

from bitactor.messages.signal import Receipt, Stimulus
from bitactor.saga import Emission, EmissionAccepted
from bitactor.testing import FakeClock
from mesh.limits.timing_wheel import TimingWheel
from mesh.runtime.emissions import RECEIPT_WITHIN_NS, Emissions
from mesh.runtime.names import consumer_name
from registry import LocalRegistry

NEWS: Final = consumer_name("news")
SECOND: Final = 1_000_000_000


class Office:
    """Emissions of one node, whose consumers are played by the test."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.wheel = TimingWheel(self.clock)
        self.registry = LocalRegistry("emitter")
        self.registry.start()
        self.nodes: dict[str, LocalRegistry] = {}
        self.sent: list[tuple[str, str, int]] = []
        """Node, group, and the moment of the question that it answers."""
        self.events: list[Any] = []
        self.emissions = Emissions(
            lambda live, event, first=False: self.events.append(event),
            self.registry, self.clock, self.wheel, self._send, 60 * SECOND,
        )  # fmt: skip
        state = SimpleNamespace(
            deadline_ns=None, place_of=lambda hop: None, trail=(), metadata=None, root="r" * 32, transaction="t" * 32
        )
        self.live: Any = SimpleNamespace(state=state, plan=SimpleNamespace(workflow="w"), offset_ns=0)

    def _send(self, entry: Any, stimulus: Stimulus, asked_ns: int = 0) -> None:
        self.sent.append((entry.holder, stimulus.group, asked_ns))

    def comes(self, node: str, *groups: str) -> None:
        registry = self.nodes[node] = self.registry.peer(node)
        registry.start()
        registry.register(NEWS, {"groups": [[group, False] for group in groups]})
        self.emissions.appeared(NEWS)

    def goes(self, node: str) -> None:
        self.nodes.pop(node).close()
        self.emissions.disappeared(NEWS, node)

    def emit(self) -> None:
        self.emissions.deliver(self.live, Emission("e:0", "news", None, 8, "h" * 16))

    def told(self, group: str, *, transaction: str = "", error: str = "", asked_ns: int = 0) -> None:
        self.emissions.on_receipt(Receipt(f"e:0>{group}", transaction, error, asked_ns))

    def passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def taken(self) -> list[tuple[str, str, int]]:
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    made.emissions.close()
    for registry in (*made.nodes.values(), made.registry):
        registry.close()


def test_what_is_on_its_way_to_one_is_not_sent_to_another_that_appears(office: Office) -> None:
    """Each has a store of its own, and would accept it."""
    office.comes("one", "a")
    office.emit()
    assert office.taken() == [("one", "a", 0)]
    office.comes("two", "a")
    assert office.taken() == []
    office.comes("three", "a", "b")
    assert office.taken() == [("three", "b", 0)]
    office.told("a", transaction="x")
    office.told("b", transaction="y")
    assert office.events == [EmissionAccepted("e:0", ("x", "y"))]


def test_what_one_had_that_is_gone_is_sent_to_another_and_nothing_else_is(office: Office) -> None:
    office.comes("one", "a")
    office.comes("two", "b")
    office.emit()
    assert sorted(office.taken()) == [("one", "a", 0), ("two", "b", 0)]
    office.comes("three", "a", "b")
    office.goes("one")
    assert office.taken() == [("three", "a", 0)]
    office.goes("three")
    assert office.taken() == []
    office.told("a", asked_ns=5)  # of one that is there no more
    assert office.taken() == []
    office.comes("one", "a")
    assert office.taken() == [("one", "a", 0)]


def test_without_a_receipt_in_time_it_is_sent_again(office: Office) -> None:
    office.comes("one", "a")
    office.emit()
    office.passes(1.0)
    office.comes("two", "b")
    assert office.taken() == [("one", "a", 0), ("two", "b", 0)]
    office.passes(RECEIPT_WITHIN_NS / SECOND - 1.0 + 0.1)
    assert office.taken() == [("one", "a", 0)]
    office.told("b", transaction="y")
    office.passes(RECEIPT_WITHIN_NS / SECOND + 0.1)
    assert office.taken() == [("one", "a", 0)]


def test_what_was_refused_is_sent_again_soon_and_a_late_receipt_counts(office: Office) -> None:
    office.comes("one", "a")
    office.emit()
    office.taken()
    office.told("a", error="full")
    office.passes(0.1)
    assert office.taken() == [("one", "a", 0)]
    office.told("a", error="full")
    office.told("a", transaction="x")
    assert office.events == [EmissionAccepted("e:0", ("x",))]
    office.passes(5.0)
    assert office.taken() == [] and office.emissions.about()["deliveries"] == 0


def test_who_asks_is_answered_and_has_time_from_then_on(office: Office) -> None:
    office.comes("one", "a")
    office.emit()
    office.taken()
    office.comes("two", "a")
    office.passes(1.5)
    office.told("a", asked_ns=77)
    assert office.taken() == [("one", "a", 77)]
    office.passes(1.0)
    assert office.taken() == []
    office.passes(1.1)
    assert [node for node, _, _ in office.taken()] == ["two"]
