"""A finished span as a record, whoever exports it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

INTERNAL: Final = "internal"
CONSUMER: Final = "consumer"

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
