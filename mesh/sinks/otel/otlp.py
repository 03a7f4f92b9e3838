"""OTLP over HTTP: span records as protobuf bytes, written with the official message classes, and a client of a
collector, over one kept-alive connection."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.util.re import parse_env_headers

from bitactor.errors import ConfigurationError
from mesh.sinks.otel.record import CLIENT, CONSUMER, INTERNAL, PRODUCER, SERVER, SpanRecord

DEFAULT_ENDPOINT: Final = "http://localhost:4318"
TRACES_PATH: Final = "/v1/traces"

_RETRYABLE: Final = frozenset((429, 502, 503, 504))
_MAX_ANSWER_BYTES: Final = 65_536
_MAX_RETRY_AFTER_SECONDS: Final = 60.0

_KINDS: Final = {
    INTERNAL: Span.SPAN_KIND_INTERNAL,
    CONSUMER: Span.SPAN_KIND_CONSUMER,
    PRODUCER: Span.SPAN_KIND_PRODUCER,
    SERVER: Span.SPAN_KIND_SERVER,
    CLIENT: Span.SPAN_KIND_CLIENT,
}
# Span flags: sampled, parent not remote; which process made the parent is not known here, and nobody loses by it
_FLAGS: Final = 0x01 | SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK

_UNIQUE: Final = frozenset(
    (
        "bitactor.hop", "bitactor.transaction", "bitactor.parent", "bitactor.error", "bitactor.elapsed_ns",
        "workflow.id", "messaging.message.id",
    )
)  # fmt: skip
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
        self.describe(resource)
        self._scope = InstrumentationScope(name=scope, version=scope_version)

    def describe(self, resource: Mapping[str, Any]) -> None:
        """Take these for the attributes of the resource."""
        self._resource = Resource(
            attributes=[KeyValue(key=key, value=_value(value)) for key, value in resource.items()]
        )

    def encode(self, records: Iterable[SpanRecord], pause: Callable[[], None] = lambda: None) -> tuple[bytes, int]:
        """The body of one export request, and how many records were left out because they cannot be said in OTLP.

        `pause` is called every now and then, so that a thread that encodes can let others run.
        """
        groups: dict[tuple[str, str], ScopeSpans] = {}
        left_out = 0
        for number, record in enumerate(records, 1):
            if number % _PAUSE_EVERY == 0:
                pause()
            scope_spans = groups.get(record.scope)
            if scope_spans is None:
                name, number_of = record.scope
                scope = InstrumentationScope(name=name, version=number_of) if name else self._scope
                scope_spans = groups[record.scope] = ScopeSpans(scope=scope)
            size = len(scope_spans.spans)
            try:
                self._add(scope_spans, record)
            except (ValueError, TypeError, OverflowError):  # ids that are no hex, times before 1970, …
                del scope_spans.spans[size:]
                left_out += 1
        request = ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(resource=self._resource, scope_spans=list(groups.values()))]
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
        elif record.ok:
            span.status.code = Status.STATUS_CODE_OK
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


class ExportFailed(Exception):
    """A batch of spans was not taken."""

    def __init__(
        self,
        reason: str,
        *,
        retryable: bool,
        reached: bool,
        retry_after: float | None = None,
        limit_tries: bool = False,
    ) -> None:
        super().__init__(reason)
        self.retryable = retryable  # whether the same batch is worth trying again
        self.reached = reached  # whether the collector answered, or at least let us connect
        self.retry_after = retry_after  # seconds that the collector asked us to wait; None: it did not
        # Whether the fault may lie with this very batch, so that it is tried a few times only
        self.limit_tries = limit_tries


class CollectorSettings(NamedTuple):
    """Where spans are sent, and how."""

    url: str
    headers: Mapping[str, str]
    compress: bool
    tls: ssl.SSLContext | None


def collector_settings(
    endpoint: str | None = None, headers: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
) -> CollectorSettings:
    """Collector settings from the arguments, completed by OpenTelemetry's environment variables, those for traces
    before the general ones.

    `endpoint` is a base to which `/v1/traces` is added (unless it ends so), as is OTEL_EXPORTER_OTLP_ENDPOINT;
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is taken as it stands.  Also honoured: ..._HEADERS, ..._COMPRESSION (gzip |
    none), ..._CERTIFICATE, ..._CLIENT_CERTIFICATE, ..._CLIENT_KEY.

    Raises:
        ConfigurationError: no usable URL, or a protocol or compression that is not built.
    """
    variables = os.environ if environment is None else environment

    def setting(name: str) -> str:
        general = variables.get(f"OTEL_EXPORTER_OTLP_{name}", "")
        return (variables.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "") or general).strip()

    if (protocol := setting("PROTOCOL")) not in ("", "http/protobuf"):
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not built; use http/protobuf (port 4318)")
    if (compression := setting("COMPRESSION").lower()) not in ("", "none", "gzip"):
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_COMPRESSION={compression} is not built; use gzip or none")
    url = _traces_url(endpoint, variables)
    all_headers = {
        **parse_env_headers(variables.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True),
        **parse_env_headers(variables.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS", ""), liberal=True),
        **(headers or {}),
    }
    for name, value in all_headers.items():
        if not (value.isascii() and value.isprintable() and name.isascii() and name.isprintable()):
            raise ConfigurationError(f"the header {name!r} for the collector holds what a header cannot")
    tls = None
    if url.startswith("https:"):
        tls = ssl.create_default_context(cafile=setting("CERTIFICATE") or None)
        if certificate := setting("CLIENT_CERTIFICATE"):
            tls.load_cert_chain(certificate, setting("CLIENT_KEY") or None)
    return CollectorSettings(url, all_headers, compression == "gzip", tls)


def _traces_url(endpoint: str | None, variables: Mapping[str, str]) -> str:
    exact = variables.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    if endpoint is None and exact:
        url = exact
    else:
        base = (endpoint or variables.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or DEFAULT_ENDPOINT).rstrip("/")
        url = base if base.endswith(TRACES_PATH) else base + TRACES_PATH
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"{url!r} is no collector's URL; write it like {DEFAULT_ENDPOINT}")
    if "@" in parts.netloc:
        raise ConfigurationError("a collector's URL holds no password; put it into OTEL_EXPORTER_OTLP_HEADERS")
    return url


class Collector:
    """The client's connection to one collector.

    `post` and `close` belong to one thread; `abort` may come from another and ends a `post` under way.
    """

    def __init__(self, settings: CollectorSettings, timeout: float) -> None:
        parts = urlsplit(settings.url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if settings.tls else 80)
        self._path = f"{parts.path}?{parts.query}" if parts.query else parts.path or "/"
        self._settings = settings
        self._timeout = timeout
        self._headers = {**settings.headers, "Content-Type": "application/x-protobuf", "User-Agent": "bitactor-otlp"}
        if settings.compress:
            self._headers["Content-Encoding"] = "gzip"
        self._connection: HTTPConnection | None = None
        self._aborted = False

    def post(self, body: bytes, connect_timeout: float) -> tuple[int, str]:
        """Deliver one export request; returns how many of its spans the collector rejected, and why.

        Raises:
            ExportFailed: the request was not taken.
        """
        if self._settings.compress:
            body = gzip.compress(body, compresslevel=1)
        while True:
            reused = self._connection is not None
            connection = self._connection or self._connect(connect_timeout)
            try:
                response, answer = _exchange(connection, self._path, body, self._headers)
            except (OSError, HTTPException) as error:
                self.close()
                # A kept-alive connection that the collector closed meanwhile says nothing about the collector.
                if not reused or isinstance(error, TimeoutError):
                    raise ExportFailed(_summary(error), retryable=True, reached=True) from error
            else:
                break
        if response.will_close:
            self.close()
        if 200 <= response.status < 300:
            return _rejected_spans(answer)
        raise _export_failed(response, answer)

    def abort(self) -> None:
        """Make a `post` under way fail now, and those to come."""
        self._aborted = True
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next `post` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self, connect_timeout: float) -> HTTPConnection:
        connection = (
            HTTPSConnection(self._host, self._port, timeout=connect_timeout, context=self._settings.tls)
            if self._settings.tls
            else HTTPConnection(self._host, self._port, timeout=connect_timeout)
        )
        self._connection = connection
        try:
            connection.connect()
            connection.sock.settimeout(self._timeout)
            if self._aborted:
                raise ConnectionAbortedError("closing")
        except (OSError, HTTPException) as error:
            self.close()
            raise ExportFailed(_summary(error), retryable=True, reached=False) from error
        return connection


def _exchange(
    connection: HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[HTTPResponse, bytes]:
    connection.request("POST", path, body=body, headers=headers)
    response = connection.getresponse()
    answer = response.read(_MAX_ANSWER_BYTES)
    if not response.isclosed():
        response.will_close = True  # more than we want to read: the connection cannot be used again
        response.close()
    return response, answer


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _export_failed(response: HTTPResponse, answer: bytes) -> ExportFailed:
    detail = answer[:200].decode("utf-8", "replace").strip()
    reason = f"HTTP {response.status} {response.reason}" + (f": {detail}" if detail.isprintable() and detail else "")
    retryable = response.status in _RETRYABLE or response.status >= 500
    return ExportFailed(
        reason,
        retryable=retryable,
        reached=True,
        retry_after=_retry_after(response.getheader("Retry-After")),
        limit_tries=response.status not in _RETRYABLE,
    )


def _retry_after(header: str | None) -> float | None:
    """The delay in seconds that a collector asks for, within reason; the form with a date is left to our own
    backoff."""
    if header is None or not header.strip().isdecimal():
        return None
    return min(float(header), _MAX_RETRY_AFTER_SECONDS)


def _rejected_spans(answer: bytes) -> tuple[int, str]:
    try:
        partial = ExportTraceServiceResponse.FromString(answer).partial_success
    except DecodeError:  # some collectors answer 200 with JSON or nothing
        return 0, ""
    return max(0, partial.rejected_spans), partial.error_message
