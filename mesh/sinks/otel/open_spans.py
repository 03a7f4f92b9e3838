"""Spans that have not ended: what is kept of a transaction and its attempts until their outcome is known."""

from __future__ import annotations

from typing import Final

from bitactor.messages.ids import TransactionId, transaction_span_id
from bitactor.messages.pulse import Pulse
from mesh.sinks.otel.record import INTERNAL, Attributes, SpanEvent

MAX_EVENTS: Final = 128
"""Events of one span; more are counted as dropped.  OpenTelemetry's own limit."""


class BoundedEvents:
    """The events of one span, bounded."""

    __slots__ = ("dropped", "kept")

    def __init__(self) -> None:
        self.kept: list[SpanEvent] = []
        self.dropped = 0

    def add(self, event: SpanEvent) -> None:
        """One more event of the span."""
        if len(self.kept) < MAX_EVENTS:
            self.kept.append(event)
        else:
            self.dropped += 1


class OpenHop:
    """An attempt that has no outcome yet."""

    __slots__ = ("deliveries", "events", "provisional", "reason", "spawned")

    def __init__(self, spawned: Pulse) -> None:
        self.spawned = spawned
        self.deliveries = 1
        self.events: BoundedEvents | None = None
        self.provisional: Pulse | None = None
        """The `timed_out` pulse, while something may still follow it."""
        self.reason = ""
        """Of a tombstone it got."""

    def add(self, event: SpanEvent) -> None:
        """One more event of the span."""
        if self.events is None:
            self.events = BoundedEvents()
        self.events.add(event)


class OpenTransaction:
    """A transaction that has not finished; keeps no payloads."""

    __slots__ = (
        "adopted", "attributes", "events", "gapless", "halted_ns", "hops", "is_resumption", "kind", "links", "name",
        "next_seq", "parent_id", "reason", "root", "span_id", "start_ns", "transaction",
    )  # fmt: skip

    def __init__(self, pulse: Pulse) -> None:
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
        self.events: BoundedEvents | None = None
        self.halted_ns = 0
        self.reason = ""
        self.adopted = False
        self.is_resumption = False
        self.gapless = True
        """Every pulse since `accepted` was seen, so an outcome without a `spawned` is a repetition, not a gap."""

    def add(self, event: SpanEvent) -> None:
        """One more event of the span."""
        if self.events is None:
            self.events = BoundedEvents()
        self.events.add(event)
