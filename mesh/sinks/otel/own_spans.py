"""Spans that users make themselves (`get_tracer("shop").start_as_current_span(…)`), on their way to the sinks of the
meshes of this process, or, in a worker process, to its parent's.

OpenTelemetry has one tracer provider a process, which can be set once.  If none is set when a mesh that exports spans
opens, one is set that gives what ends to the mesh in whose hop it ended, or, outside of any, to the one that opened
last; without a mesh that exports, to nobody.  A provider that the user has set is left alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import StatusCode
from opentelemetry.util.types import AttributeValue
from typing_extensions import override

from mesh.sinks.otel.record import SpanEvent, SpanRecord

Take = Callable[[ReadableSpan], None]

_TAKE: Final = create_key("bitactor-take")
_NOBODY: Final = object()


class _OwnSpans(SpanProcessor):
    """Gives spans that end to who takes them."""

    def __init__(self) -> None:
        self.takers: list[Take] = []

    @override
    def on_end(self, span: ReadableSpan) -> None:
        take: Any = get_value(_TAKE)
        takers = self.takers
        if take is not _NOBODY and take not in takers:
            take = takers[-1] if takers else _NOBODY
        if take is not _NOBODY and span.context.trace_flags.sampled:
            take(span)


_OWN: Final = _OwnSpans()
_SETTING: Final = threading.Lock()
_OURS: Final[list[TracerProvider]] = []


def collect(take: Take) -> Callable[[], None] | None:
    """Have `take` called with each span that ends, on its thread; returns what ends that.  None: the user has set a
    tracer provider, to which they go."""
    with _SETTING:
        if not _OURS and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(_OWN)
            _OURS.append(provider)
            trace.set_tracer_provider(provider)
        if trace.get_tracer_provider() not in _OURS:
            return None
        _OWN.takers.append(take)
    return lambda: _OWN.takers.remove(take)


def context_of(take: Take | None) -> Context:
    """The OpenTelemetry context of hops in which users' spans go to `take`; None: to nobody of ours."""
    return Context({_TAKE: _NOBODY if take is None else take})


def record_of(span: ReadableSpan) -> SpanRecord:
    """A span of the SDK as a record."""
    context, scope = span.context, span.instrumentation_scope
    return SpanRecord(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        f"{span.parent.span_id:016x}" if span.parent is not None else "",
        span.name,
        span.kind.name.lower(),
        span.start_time or 0,
        span.end_time or span.start_time or 0,
        _plain(span.attributes),
        tuple(SpanEvent(event.name, event.timestamp, _plain(event.attributes)) for event in span.events),
        tuple((f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in span.links),
        span.status.status_code is StatusCode.ERROR,
        span.status.description or "",
        span.dropped_events,
        span.dropped_links,
        (scope.name, scope.version or "") if scope is not None else ("", ""),
        span.status.status_code is StatusCode.OK,
    )


def _plain(attributes: Any) -> dict[str, AttributeValue]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in (attributes or {}).items()}


def packed(spans: Sequence[ReadableSpan]) -> list[Any]:
    """Spans as plain data, for another process."""
    return [[*record[:8], [list(event) for event in record.events], *record[9:]] for record in map(record_of, spans)]


def unpacked(data: Any) -> list[SpanRecord]:
    """The records in plain data that `packed` made."""
    return [_restored(SpanRecord._make(fields)) for fields in data]


def _restored(record: SpanRecord) -> SpanRecord:
    events = tuple(SpanEvent(*event) for event in record.events)
    links = tuple((trace_id, span_id) for trace_id, span_id in record.links)
    return record._replace(events=events, links=links, scope=(record.scope[0], record.scope[1]))
