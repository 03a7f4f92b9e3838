"""Span records as OTLP protobuf bytes, written with the official message classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status

from mesh.sinks.otel.record import CONSUMER, INTERNAL, SpanRecord

_KINDS: Final = {INTERNAL: Span.SPAN_KIND_INTERNAL, CONSUMER: Span.SPAN_KIND_CONSUMER}
# Span flags: sampled, parent not remote; which process made the parent is not known here, and nobody loses by it
_FLAGS: Final = 0x01 | SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK

_UNIQUE: Final = frozenset(("bitactor.hop", "bitactor.transaction", "bitactor.parent", "bitactor.error"))
_CACHED: Final = frozenset((str, int, bool))
_PAUSE_EVERY: Final = 32
_MAX_CACHED: Final = 4_096
_MAX_CACHED_TEXT: Final = 128


class SpanEncoder:
    """Encodes batches of spans of one resource; 12 to 20 µs a span.

    Most attributes of hops repeat (workflow, step, direction, …), so their messages are made once and copied; the
    cache is bounded.
    """

    def __init__(self, resource: Mapping[str, Any], scope: str, scope_version: str = "") -> None:
        self._resource = Resource(
            attributes=[KeyValue(key=key, value=_value(value)) for key, value in resource.items()]
        )
        self._scope = InstrumentationScope(name=scope, version=scope_version)

    def encode(self, records: Iterable[SpanRecord], pause: Callable[[], None] = lambda: None) -> tuple[bytes, int]:
        """The body of one export request, and how many records were left out because they cannot be said in OTLP.

        `pause` is called every now and then, so that a thread that encodes can let others run.
        """
        scope_spans = ScopeSpans(scope=self._scope)
        left_out = 0
        for number, record in enumerate(records, 1):
            if number % _PAUSE_EVERY == 0:
                pause()
            size = len(scope_spans.spans)
            try:
                self._add(scope_spans, record)
            except (ValueError, TypeError, OverflowError):  # ids that are no hex, times before 1970, …
                del scope_spans.spans[size:]
                left_out += 1
        request = ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[scope_spans])]
        )
        return request.SerializeToString(), left_out

    def _add(self, scope_spans: ScopeSpans, record: SpanRecord) -> None:
        span = scope_spans.spans.add(
            trace_id=bytes.fromhex(record.trace_id),
            span_id=bytes.fromhex(record.span_id),
            parent_span_id=bytes.fromhex(record.parent_id),
            name=record.name,
            kind=_KINDS[record.kind],
            start_time_unix_nano=record.start_ns,
            end_time_unix_nano=record.end_ns,
            flags=_FLAGS,
        )
        span.attributes.extend(_attributes(record.attributes))
        for trace_id, span_id in record.links:
            span.links.add(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id))
        for event in record.events:
            span.events.add(name=event.name, time_unix_nano=event.at_ns, attributes=_attributes(event.attributes))
        if record.failed:
            span.status.code = Status.STATUS_CODE_ERROR
            span.status.message = _text(record.description)
        if record.dropped_events:
            span.dropped_events_count = record.dropped_events
        if record.dropped_links:
            span.dropped_links_count = record.dropped_links


def _attributes(attributes: Mapping[str, Any]) -> list[KeyValue]:
    messages = []
    for key, value in attributes.items():
        kind = type(value)
        if key in _UNIQUE or kind not in _CACHED or (kind is str and len(value) > _MAX_CACHED_TEXT):
            messages.append(KeyValue(key=key, value=_value(value)))
        else:
            messages.append(_repeated(key, value))
    return messages


# Typed: True equals 1 and 1 equals 1.0, but they are different attributes.
@lru_cache(_MAX_CACHED, typed=True)
def _repeated(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=_value(value))


def _value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=_text(value))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value) if -(1 << 63) <= value < 1 << 63 else AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, Sequence):
        return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value]))
    return AnyValue(string_value=_text(str(value)))


def _text(text: str) -> str:
    """`text` without lone surrogates, which protobuf refuses and a message made from file names can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
