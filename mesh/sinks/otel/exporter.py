"""A span target that is an exporter of the OpenTelemetry SDK."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mesh.sinks.otel.collector import ExportFailed
from mesh.sinks.otel.record import CONSUMER, INTERNAL, SpanRecord

_log = logging.getLogger("bitactor.sinks")

_KINDS: Final = {INTERNAL: SpanKind.INTERNAL, CONSUMER: SpanKind.CONSUMER}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)


class ExporterTarget:
    """A span target over any `SpanExporter`.  Retrying is the exporter's affair; a batch it fails on is lost."""

    def __init__(self, exporter: SpanExporter, resource: Resource, scope: str, scope_version: str) -> None:
        self._exporter = exporter
        self._resource = resource
        self._scope = InstrumentationScope(scope, scope_version)
        self._shut = False

    def send(self, records: Sequence[SpanRecord], connect_timeout: float) -> tuple[int, str]:
        """Export `records` as `ReadableSpan`s; raises `ExportFailed`."""
        try:
            result = self._exporter.export([self._readable(record) for record in records])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ExportFailed(f"the exporter raised {reason}", retryable=False, reached=True) from error
        if result is not SpanExportResult.SUCCESS:
            raise ExportFailed("the exporter reported a failure", retryable=False, reached=True)
        return 0, ""

    def abort(self) -> None:
        """Shut the exporter down, which ends the waiting of those that retry."""
        self.close()

    def close(self) -> None:
        """Shut the exporter down, once."""
        if self._shut:
            return
        self._shut = True
        try:
            self._exporter.shutdown()
        except Exception:
            _log.exception("the span exporter raised while shutting down")

    def _readable(self, record: SpanRecord) -> ReadableSpan:
        return ReadableSpan(
            record.name,
            context=_context(record.trace_id, record.span_id),
            parent=_context(record.trace_id, record.parent_id) if record.parent_id else None,
            resource=self._resource,
            attributes=record.attributes,
            events=[Event(event.name, event.attributes, event.at_ns) for event in record.events],
            links=[Link(_context(trace_id, span_id)) for trace_id, span_id in record.links],
            kind=_KINDS[record.kind],
            status=Status(StatusCode.ERROR, record.description) if record.failed else _UNSET,
            start_time=record.start_ns,
            end_time=record.end_ns,
            instrumentation_scope=self._scope,
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), False, _SAMPLED)
