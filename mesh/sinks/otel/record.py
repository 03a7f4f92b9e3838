"""Spans: finished ones as records, whoever exports them, and the state kept of a transaction and its attempts until
their outcome is known."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from bitactor.messages.ids import TransactionId, transaction_span_id
from bitactor.messages.pulse import Pulse

INTERNAL: Final = "internal"
CONSUMER: Final = "consumer"

MAX_EVENTS: Final = 128
"""The most events of one span; more are counted as dropped.  OpenTelemetry's own limit."""

Attributes = dict[str, Any]


class SpanEvent(NamedTuple):
    """An event at one moment within a span."""

    name: str
    at_ns: int
    attributes: Attributes


class SpanRecord(NamedTuple):
    """A finished span, ids in hex as pulses have them."""

    trace_id: str
    span_id: str
    parent_id: str
    """Span id of the parent; empty for the root of a trace."""
    name: str
    kind: str
    """The span's kind: `internal` or `consumer`."""
    start_ns: int
    end_ns: int
    attributes: Attributes
    """Values are str, int or bool."""
    events: tuple[SpanEvent, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """Linked spans as (trace id, span id)."""
    failed: bool = False
    """Whether the span's status is ERROR; otherwise it is UNSET."""
    description: str = ""
    dropped_events: int = 0
    dropped_links: int = 0


class OpenSpan:
    """A span that has not ended, with at most `MAX_EVENTS` events."""

    __slots__ = ("dropped", "events", "reason")

    def __init__(self) -> None:
        self.events: list[SpanEvent] = []
        self.dropped = 0
        self.reason = ""  # the reason of a tombstone that came; empty without one

    def add(self, event: SpanEvent) -> None:
        """Add an event to the span."""
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.dropped += 1


class OpenHop(OpenSpan):
    """The span of an attempt that has no outcome yet."""

    __slots__ = ("deliveries", "provisional", "spawned")

    def __init__(self, spawned: Pulse) -> None:
        super().__init__()
        self.spawned = spawned
        self.deliveries = 1
        self.provisional: Pulse | None = None  # the `timed_out` pulse, while something may still follow it


class OpenTransaction(OpenSpan):
    """The span of a transaction that has not finished; keeps no payloads."""

    __slots__ = (
        "adopted", "attributes", "gapless", "halted_ns", "hops", "is_resumption", "kind", "links", "name",
        "next_seq", "parent_id", "root", "span_id", "start_ns", "transaction",
    )  # fmt: skip

    def __init__(self, pulse: Pulse) -> None:
        super().__init__()
        self.transaction = pulse.transaction
        self.root = pulse.root
        self.name = pulse.workflow
        self.span_id: str = transaction_span_id(TransactionId(pulse.transaction))
        self.parent_id = ""
        self.kind = INTERNAL
        self.start_ns = pulse.at_ns
        self.next_seq = pulse.seq
        self.attributes: Attributes = {
            "bitactor.workflow": pulse.workflow,
            "bitactor.transaction": pulse.transaction,
        }
        self.links: tuple[tuple[str, str], ...] = ()
        self.hops: dict[str, OpenHop] = {}
        self.halted_ns = 0
        self.adopted = False
        self.is_resumption = False
        # Whether every pulse since `accepted` was seen, so that an outcome without a `spawned` is a repetition, not a
        # gap.
        self.gapless = True
