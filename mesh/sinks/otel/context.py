"""Trace contexts: the one of OpenTelemetry that makes a user's own spans children of the hop they run in, and the W3C
`traceparent` header that a stimulus came with."""

from __future__ import annotations

import re
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_EMPTY = Context()
_SHAPE: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


def hop_context(root: str, hop: str) -> Context:
    """An OpenTelemetry context whose current span is the hop: trace id `root` (32 hex digits), span id `hop` (16).

    Attach it before the step's function runs, detach it afterwards.  The hop's real span is built later, from pulses,
    with these same ids.  It starts from an empty context, so that a hop sees the same here as in a worker process;
    1.2 to 1.7 µs.
    """
    return hop_context_in(_EMPTY, root, hop)


def hop_context_in(base: Context, root: str, hop: str) -> Context:
    """`hop_context`, with what is in `base` beside it."""
    return set_span_in_context(NonRecordingSpan(SpanContext(int(root, 16), int(hop, 16), False, _SAMPLED)), base)


def parse_traceparent(header: Any) -> tuple[str, str] | None:
    """(trace id, span id), or None for what is absent or malformed: it comes from a stranger and must not matter."""
    match = _SHAPE.fullmatch(header) if isinstance(header, str) else None
    return (match[1], match[2]) if match else None
