"""A sink that sends pulses as OpenTelemetry spans, by OTLP over HTTP or through any SDK exporter, off the hot path."""

from __future__ import annotations

import logging
import random
import socket
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, islice
from threading import Event, Lock, Thread
from typing import Any, Final, NamedTuple

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event as OtelEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from bitactor.messages.pulse import Pulse
from mesh.sinks.buffer import PulseBuffer
from mesh.sinks.otel.otlp import Collector, ExportFailed, SpanEncoder, collector_settings
from mesh.sinks.otel.own_spans import record_of
from mesh.sinks.otel.record import SpanRecord
from mesh.sinks.otel.spans import SpanAssembler
from registry.support.log_throttle import LogThrottle

_log = logging.getLogger("bitactor.sinks")

SCOPE: Final = "bitactor"
CONNECT_SECONDS: Final = 2.0
"""Seconds that a connection may take to come about."""
UNREACHABLE_GRACE_SECONDS: Final = 1.0
"""Seconds that closing keeps trying a collector that cannot be reached, whatever its timeout."""

_FOLD_CHUNK: Final = 64
_YIELD_SECONDS: Final = 0.000_05
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 5.0
_MAX_LIMITED_TRIES: Final = 5
_WARN_INTERVAL_NS: Final = 60_000_000_000

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)


class OtlpTarget:
    """A span target that is a collector, spoken to in OTLP/HTTP.  `send` and `close` are called on the sink's thread,
    `abort`, which makes a `send` under way return soon, on the closing one."""

    def __init__(self, encoder: SpanEncoder, collector: Collector) -> None:
        self._encoder = encoder
        self._collector = collector
        self.abort = collector.abort
        self.close = collector.close

    def describe(self, resource: Resource) -> None:
        """Take this for the resource of the spans."""
        self._encoder.describe(resource.attributes or {})

    def send(self, records: Sequence[SpanRecord], connect_timeout: float) -> tuple[int, str]:
        """Encode and post `records` in one request; returns how many were rejected and why.  Raises `ExportFailed`."""
        body, left_out = self._encoder.encode(records, _yield_gil)
        rejected, reason = self._collector.post(body, connect_timeout)
        return rejected + left_out, reason or (f"{left_out} cannot be said in OTLP" if left_out else "")


class ExporterTarget:
    """A span target over any `SpanExporter`.  Retrying is the exporter's affair; a batch it fails on is lost."""

    def __init__(self, exporter: SpanExporter, resource: Resource, scope: str, scope_version: str) -> None:
        self._exporter = exporter
        self._resource = resource
        self._scope = InstrumentationScope(scope, scope_version)
        self._shut = False

    def describe(self, resource: Resource) -> None:
        """Take this for the resource of the spans."""
        self._resource = resource

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
            events=[OtelEvent(event.name, event.attributes, event.at_ns) for event in record.events],
            links=[Link(_context(trace_id, span_id)) for trace_id, span_id in record.links],
            kind=SpanKind[record.kind.upper()],
            status=_status(record),
            start_time=record.start_ns,
            end_time=record.end_ns,
            instrumentation_scope=InstrumentationScope(*record.scope) if record.scope[0] else self._scope,
        )


def _status(record: SpanRecord) -> Status:
    if record.failed:
        return Status(StatusCode.ERROR, record.description)
    return Status(StatusCode.OK) if record.ok else _UNSET


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), False, _SAMPLED)


class _Recalled(NamedTuple):
    """A pulse of which another process has told."""

    transaction: str
    pulse: Pulse


class OtelStatistics(NamedTuple):
    """What an `OtelSink` has done so far."""

    received: int
    """Pulses that found room."""
    dropped: int
    """Pulses, and spans that users made, that found no room."""
    spans: int
    """Spans built."""
    exported: int
    """Spans the target took."""
    lost: int
    """Spans the target did not take: rejected, given up, or left over when the sink was closed."""
    broken: int
    """Pulses that could not be folded."""
    adopted: int
    """Transactions first seen in the middle."""
    evicted: int
    """Open transactions forgotten to make room."""


class OtelSink:
    """A sink that sends a span per transaction and per attempt (see `mesh.sinks.otel.spans` for their shape).

    `receive` queues, well below 0.5 µs a pulse; one daemon thread folds, encodes and posts.  At most `max_pulses`
    pulses and `max_spans` spans wait; what does not fit is dropped at `receive`, and counted.  While the collector
    answers 429, 502, 503 or 504, or cannot be reached, a batch is tried again with backoff for as long as the sink is
    open; after any other 5xx a few times.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        exporter: SpanExporter | None = None,
        service_name: str | None = None,
        resource: Resource | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        max_pulses: int = 200_000,
        max_spans: int = 50_000,
        batch: int = 512,
        linger: float = 0.2,
        timeout: float = 10.0,
    ) -> None:
        """`endpoint` is an OTLP/HTTP base URL, by default as OTEL_EXPORTER_OTLP_ENDPOINT says, else
        `http://localhost:4318`.

        `exporter` takes its place if given.  The resource is `Resource.create` (OTEL_SERVICE_NAME,
        OTEL_RESOURCE_ATTRIBUTES), what is given here on top.  `linger` is how long pulses gather before they are
        folded, `timeout` how long a collector may take to answer, both in seconds.

        Raises:
            ConfigurationError: an endpoint or environment variable that cannot be used.
        """
        self._make_resource = partial(make_resource, service_name, resource)
        otel_resource = self._make_resource()
        self._target: OtlpTarget | ExporterTarget
        if exporter is not None:
            self._target = ExporterTarget(exporter, otel_resource, SCOPE, _version())
        else:
            encoder = SpanEncoder(otel_resource.attributes or {}, SCOPE, _version())
            self._target = OtlpTarget(encoder, Collector(collector_settings(endpoint, headers), timeout))
        self._buffer: PulseBuffer[Pulse | _Recalled] = PulseBuffer(max_pulses)
        self._assembler = SpanAssembler()
        self._own: deque[ReadableSpan | SpanRecord] = deque()
        self._own_dropped = 0
        self._pending: deque[SpanRecord] = deque()
        self._max_pending = max_spans
        self._batch = batch
        self._linger = linger
        self._spans = self._exported = self._lost = self._broken = 0
        self._tries = 0
        self._retry_at = 0.0
        self._unreachable = False
        self._hurried = False
        self._log_throttle = LogThrottle(_log, _WARN_INTERVAL_NS)
        self._close_deadline = self._unreachable_deadline = float("inf")
        self._closing = Lock()
        self._done = Event()
        self._thread = Thread(target=self._run, name="bitactor-otel", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it takes no more pulses."""
        return self._buffer.closing

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """Queue `pulses`; never blocks."""
        self._buffer.put(pulses)

    def serve(self, node: str) -> None:
        """Tell of the pulses of this node, whose id is the instance's, and who ran what no other has run."""
        self._assembler.holder = node
        self._target.describe(self._make_resource(node))

    def recall(self, pulses: Sequence[Pulse]) -> None:
        """Queue the journal of a transaction that this process takes over: of these pulses the process before has told,
        and what follows belongs to them."""
        self._buffer.put([_Recalled(pulse.transaction, pulse) for pulse in pulses])

    def take(self, span: ReadableSpan | SpanRecord) -> None:
        """Queue a span that a user made; from any thread, never blocks."""
        if len(self._own) >= self._max_pending or self._buffer.closing:
            self._own_dropped += 1
            return
        self._own.append(span)
        self._buffer.wake()

    def statistics(self) -> OtelStatistics:
        """The sink's counts so far."""
        return OtelStatistics(
            received=self._buffer.accepted,
            dropped=self._buffer.dropped + self._own_dropped,
            spans=self._spans,
            exported=self._exported,
            lost=self._lost,
            broken=self._broken,
            adopted=self._assembler.adopted,
            evicted=self._assembler.evicted,
        )

    def close(self, timeout: float) -> None:
        """Send the spans that are left within `timeout` seconds (at most 2, if the collector cannot be reached), then
        stop.

        Twice is once.
        """
        with self._closing:
            now = time.monotonic()
            self._close_deadline = min(self._close_deadline, now + timeout)
            self._unreachable_deadline = min(self._close_deadline, now + UNREACHABLE_GRACE_SECONDS)
            self._buffer.close()
        if not self._done.wait(max(0.0, self._close_deadline - time.monotonic())):
            self._target.abort()
            self._done.wait(0.5)
        if self._done.is_set():
            self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                closing = self._buffer.closing
                if closing and not self._hurried:
                    self._hurried, self._tries, self._retry_at = True, 0, 0.0
                self._fold()
                if self._pending:
                    if closing and time.monotonic() >= self._deadline():
                        return
                    self._export()
                elif closing and not self._buffer.waiting and not self._own:
                    return
                elif not self._buffer.waiting and not self._own:
                    self._buffer.wait(lambda: bool(self._own))
                    self._buffer.linger(self._linger)
        except Exception:
            _log.exception("the OpenTelemetry sink stopped; the run goes on without traces")
        finally:
            self._finish()

    def _finish(self) -> None:
        left = len(self._pending)
        self._lost += left
        if left or self._buffer.waiting:
            _log.warning("%d spans and %d pulses were not sent before closing", left, self._buffer.waiting)
        self._buffer.close()
        self._target.close()
        self._done.set()

    def _fold(self) -> None:
        closing = self._buffer.closing
        while self._own and len(self._pending) < self._max_pending:
            span = self._own.popleft()
            self._enqueue([span if isinstance(span, SpanRecord) else record_of(span)])
        while len(self._pending) < self._max_pending:
            pulses = self._buffer.take(_FOLD_CHUNK)
            if not pulses:
                if closing:
                    self._enqueue(self._assembler.close())
                return
            try:
                self._feed(pulses)
            except Exception:
                self._broken += len(pulses)
                self._warn("%d pulses could not be folded into spans", len(pulses), trace=True)
            _yield_gil()
            if len(self._pending) >= self._batch and not self._retry_at:
                return

    def _feed(self, pulses: Sequence[Pulse | _Recalled]) -> None:
        for recalled, group in groupby(pulses, lambda pulse: isinstance(pulse, _Recalled)):
            if recalled:
                self._assembler.recall(pulse.pulse for pulse in group if isinstance(pulse, _Recalled))
            else:
                self._enqueue(self._assembler.feed(pulse for pulse in group if isinstance(pulse, Pulse)))

    def _enqueue(self, records: list[SpanRecord]) -> None:
        self._spans += len(records)
        self._pending.extend(records)

    def _export(self) -> None:
        """Try once to send the oldest spans, or wait until it is time for a try."""
        now = time.monotonic()
        if now < self._retry_at:
            self._pause(self._retry_at - now)
            return
        records = list(islice(self._pending, self._batch))
        grace = self._unreachable_deadline - now
        try:
            rejected, reason = self._target.send(records, max(0.05, min(CONNECT_SECONDS, grace)))
        except ExportFailed as failure:
            self._on_failure(failure, len(records))
            return
        self._drop(len(records))
        self._exported += len(records) - rejected
        self._lost += rejected
        self._tries, self._retry_at, self._unreachable = 0, 0.0, False
        if rejected:
            self._warn("the collector rejected %d spans: %s", rejected, reason)

    def _on_failure(self, failure: ExportFailed, count: int) -> None:
        self._tries += 1
        self._unreachable = not failure.reached
        if not failure.retryable or (failure.limit_tries and self._tries >= _MAX_LIMITED_TRIES):
            self._drop(count)
            self._lost += count
            self._tries, self._retry_at = 0, 0.0
            self._warn("%d spans are given up: %s", count, failure)
            return
        backoff = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** min(self._tries - 1, 10))
        wait = max(failure.retry_after or 0.0, backoff * random.uniform(0.8, 1.2))
        self._retry_at = time.monotonic() + wait
        self._warn("spans cannot be sent and are tried again: %s", failure)

    def _pause(self, seconds: float) -> None:
        """Wait, but not for long: pulses are folded meanwhile, so that payloads do not pile up in the buffer."""
        if self._buffer.closing:
            time.sleep(min(seconds, max(0.0, self._deadline() - time.monotonic())))
        else:
            self._buffer.pause(min(seconds, self._linger))

    def _deadline(self) -> float:
        return self._unreachable_deadline if self._unreachable else self._close_deadline

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._pending.popleft()

    def _warn(self, message: str, *details: object, trace: bool = False) -> None:
        if self._log_throttle.is_due(time.monotonic_ns()):
            _log.warning(message, *details, exc_info=trace)


def _yield_gil() -> None:
    """Give up the GIL for a moment; without that, the loop's thread would wait its switch interval (5 ms) turn after
    turn."""
    time.sleep(_YIELD_SECONDS)


def make_resource(
    service_name: str | None, resource: Resource | Mapping[str, Any] | None, instance: str = ""
) -> Resource:
    """The OpenTelemetry resource that sends the spans: from its environment, then what is given here; host and instance
    are filled in."""
    given = dict((resource.attributes if isinstance(resource, Resource) else resource) or {})
    if service_name:
        given["service.name"] = service_name
    if "service.instance.id" not in OTELResourceDetector().detect().attributes:
        given.setdefault("service.instance.id", instance or str(uuid.uuid4()))
    base = {"host.name": socket.gethostname()}
    return Resource(base).merge(Resource.create(given))


def _version() -> str:
    try:
        return version("bitactor")
    except PackageNotFoundError:
        return ""
