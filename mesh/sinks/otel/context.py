"""The OpenTelemetry context that makes a user's own spans children of the hop they run in."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_EMPTY = Context()


def hop_context(root: str, hop: str) -> Context:
    """An OpenTelemetry context whose current span is the hop: trace id `root` (32 hex digits), span id `hop` (16).

    Attach it before the step's function runs, detach it afterwards.  The hop's real span is built later, from pulses,
    with these same ids.  It starts from an empty context, so that a hop sees the same here as in a worker process;
    1.2 to 1.7 µs.
    """
    return set_span_in_context(NonRecordingSpan(SpanContext(int(root, 16), int(hop, 16), False, _SAMPLED)), _EMPTY)
