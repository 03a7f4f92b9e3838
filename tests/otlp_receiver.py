"""A real OTLP/HTTP trace receiver on loopback, for tests: official protobufs, keep-alive, and answers a test can
choose."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Event, Thread
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


class OtlpReceiver:
    """Collects `ResourceSpans` posted to `{endpoint}/v1/traces`.

    `answers` are HTTP statuses for the first requests, in order; then 200.  Spans of a request that is not answered
    by 200 are not collected.  While `gate` is cleared, requests wait before they are answered.  Unless it is
    `listening` from the beginning, its port refuses connections until `listen` is called.
    """

    def __init__(
        self, answers: Sequence[int] = (), *, retry_after: str = "", reject: int = 0, listening: bool = True
    ) -> None:
        self.resource_spans: list[ResourceSpans] = []
        self.requests: list[dict[str, str]] = []
        """The headers of each request, names in lower case."""
        self.paths: list[str] = []
        self.connections = 0
        self.gate = Event()
        self.gate.set()
        self._answers = list(answers)
        self.retry_after = retry_after
        self.reject = reject
        self._changed = Condition()
        self._sockets: set[socket.socket] = set()
        self._server = _Server(self)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="otlp-receiver")
        if listening:
            self.listen()

    def listen(self) -> None:
        """Take connections from now on."""
        self._server.server_activate()
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """The base URL, as OTEL_EXPORTER_OTLP_ENDPOINT wants it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spans(self) -> list[Span]:
        """All spans collected so far, in the order they came."""
        with self._changed:
            return [span for group in self.resource_spans for scope in group.scope_spans for span in scope.spans]

    def wait_for_spans(self, count: int, timeout: float = 20.0) -> list[Span]:
        """At least `count` spans, or an AssertionError that says what there is."""
        self.wait_until(lambda: len(self.spans) >= count, timeout, lambda: f"{len(self.spans)} of {count} spans came")
        return self.spans

    def wait_for_requests(self, count: int, timeout: float = 20.0) -> None:
        """At least `count` requests have begun."""
        self.wait_until(lambda: len(self.requests) >= count, timeout, lambda: f"{len(self.requests)} requests came")

    def wait_until(self, condition: Callable[[], bool], timeout: float, complaint: Callable[[], str]) -> None:
        """Until `condition` holds; looked at whenever something came."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise AssertionError(complaint())

    def hang_up(self) -> None:
        """Close every connection there is; new ones are welcome."""
        with self._changed:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop, hang up on everybody, join all threads.  Twice is once."""
        self.gate.set()
        self._server.shutdown()
        self.hang_up()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> OtlpReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def began(self, path: str, headers: dict[str, str]) -> int:
        with self._changed:
            self.paths.append(path)
            self.requests.append(headers)
            self._changed.notify_all()
            return self._answers.pop(0) if self._answers else 200

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.resource_spans.extend(request.resource_spans)
            self._changed.notify_all()

    def connected(self, connection: socket.socket) -> None:
        with self._changed:
            self.connections += 1
            self._sockets.add(connection)

    def hung_up(self, connection: socket.socket) -> None:
        with self._changed:
            self._sockets.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, receiver: OtlpReceiver) -> None:
        self.receiver = receiver
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.receiver.connected(self.connection)

    def finish(self) -> None:
        self.server.receiver.hung_up(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status = receiver.began(self.path, {name.lower(): value for name, value in self.headers.items()})
        receiver.gate.wait(60)
        answer = b""
        if status == 200:
            receiver.take(body)
            response = ExportTraceServiceResponse()
            if receiver.reject:
                response.partial_success.rejected_spans = receiver.reject
                response.partial_success.error_message = "too old"
            answer = response.SerializeToString()
        self.send_response(status)
        if receiver.retry_after and status != 200:
            self.send_header("Retry-After", receiver.retry_after)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    """OTLP attributes as a mapping of plain values."""
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> bool:
    """For what gives no signal of its own: look every few milliseconds until it holds, or the bound is reached."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
