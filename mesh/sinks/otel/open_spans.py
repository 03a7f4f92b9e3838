"""Spans that have not ended: the state kept of a transaction and its attempts until their outcome is known."""

from __future__ import annotations

from typing import Final

from bitactor.messages.ids import TransactionId, transaction_span_id
from bitactor.messages.pulse import Pulse
from mesh.sinks.otel.record import INTERNAL, Attributes, SpanEvent

MAX_EVENTS: Final = 128
"""The most events of one span; more are counted as dropped.  OpenTelemetry's own limit."""


class BoundedEvents:
    """The events of one span, at most `MAX_EVENTS`."""

    __slots__ = ("dropped", "kept")

    def __init__(self) -> None:
        self.kept: list[SpanEvent] = []
        self.dropped = 0

    def add(self, event: SpanEvent) -> None:
        """Add an event to the span."""
        if len(self.kept) < MAX_EVENTS:
            self.kept.append(event)
        else:
            self.dropped += 1


class OpenHop:
    """The span of an attempt that has no outcome yet."""

    __slots__ = ("deliveries", "events", "provisional", "reason", "spawned")

    def __init__(self, spawned: Pulse) -> None:
        self.spawned = spawned
        self.deliveries = 1
        self.events: BoundedEvents | None = None
        self.provisional: Pulse | None = None  # the `timed_out` pulse, while something may still follow it
        self.reason = ""  # the reason of a tombstone that the hop got; empty without one

    def add(self, event: SpanEvent) -> None:
        """Add an event to the span."""
        if self.events is None:
            self.events = BoundedEvents()
        self.events.add(event)


class OpenTransaction:
    """The span of a transaction that has not finished; keeps no payloads."""

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
        # Whether every pulse since `accepted` was seen, so that an outcome without a `spawned` is a repetition, not a
        # gap.
        self.gapless = True

    def add(self, event: SpanEvent) -> None:
        """Add an event to the span."""
        if self.events is None:
            self.events = BoundedEvents()
        self.events.add(event)
