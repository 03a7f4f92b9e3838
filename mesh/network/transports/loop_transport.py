"""The base of transports: one loop, one thread, one flush a turn, and a receive callback that cannot hurt."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, Generic, TypeVar

from typing_extensions import override

from bitactor.errors import ConfigurationError
from bitactor.ports import Transport
from mesh.network.transports.send_queue import SendQueue
from registry.support.log_throttle import LogThrottle

FRAMES_PER_TURN: Final = 64
"""The most frames taken in, or sent to one peer, before the loop's other callbacks get their turn."""
MESSAGES_PER_TURN: Final = 4_096
"""The same bound in messages, because a frame may hold many."""
CONNECTIONS: Final = 1_024
"""The most endpoints a node keeps in touch with; those unused longest make room."""

_NO_THREAD: Final = 0
_log = logging.getLogger("bitactor.transport")

Receive = Callable[[list[bytes]], None]
Queue = TypeVar("Queue", bound=SendQueue)


@dataclass(slots=True)
class Counters:
    """Totals of a transport since `open`."""

    frames_in: int = 0
    frames_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    """Bytes of frames, as they came."""
    bytes_out: int = 0
    malformed: int = 0
    """Frames that could not be read as frames."""
    too_large: int = 0
    """Frames above the limit.  ZeroMQ cuts off who sends such; it does not tell us about those."""
    dropped: int = 0
    """Messages to a peer that was forgotten, is unknown, or did not take them before `close`."""
    receive_failures: int = 0
    """Times the receive callback raised."""


class LoopBoundTransport(Transport, Generic[Queue]):
    """A transport that collects messages per endpoint and flushes each endpoint once a turn.

    All its methods run on the thread of `loop`.
    """

    def __init__(
        self, *, loop: asyncio.AbstractEventLoop, queue_limit: int, queue_bytes: int, connections: int
    ) -> None:
        for name, value in (("queue_limit", queue_limit), ("queue_bytes", queue_bytes), ("connections", connections)):
            if value < 1:
                raise ConfigurationError(f"{name}={value!r}: must be at least 1")
        self._loop = loop
        self._queue_limit = queue_limit
        self._queue_bytes = queue_bytes
        self._connections = connections
        self._thread = _NO_THREAD
        self._closed = False
        self._receive: Receive = _ignore
        self._queues: OrderedDict[str, Queue] = OrderedDict()
        self._dirty: list[Queue] = []
        self._flush_is_due = False
        self._counters = Counters()
        self._bad_frames = LogThrottle(_log)
        self._failures = LogThrottle(_log)
        self._drops = LogThrottle(_log)
        self._endpoint = ""
        self._early_flush = 0

    @property
    @override
    def endpoint(self) -> str:
        """Raises `RuntimeError` before `open`."""
        if not self._endpoint:
            raise RuntimeError("the endpoint is known after open()")
        return self._endpoint

    @override
    def statistics(self) -> dict[str, int]:
        """The transport's totals since `open`, see `Counters`; and `connections`, the endpoints in touch with now."""
        return {**asdict(self._counters), "connections": len(self._queues)}

    @override
    def send(self, endpoint: str, message: bytes) -> None:
        """Frames are flushed at the end of the loop's turn, or earlier with `early_flush`.

        Raises:
            Overloaded: the queue towards that endpoint is full, or there are too many endpoints with a queue.
            Unroutable: that endpoint cannot be reached by this transport at all.
            SignalTooLarge: the message fits no frame.
            RuntimeError: not open, closed, or called from another thread than the loop's.
        """
        if threading.get_ident() != self._thread:
            raise self._misuse("send")
        queue = self._queues.get(endpoint)
        if queue is None:
            queue = self._connect(endpoint)
        queue.add(message)
        if not queue.scheduled:
            self._schedule(queue)
        elif self._early_flush and queue.queued % self._early_flush == 0:
            self._flush_queue(queue)

    def _connect(self, endpoint: str) -> Queue:
        """Make the send queue for an endpoint that has none."""
        raise NotImplementedError

    def _flush_queue(self, queue: Queue) -> bool:
        """Pass on the messages of `queue`, within the budget; True: more could go right away."""
        raise NotImplementedError

    def _start(self, receive: Receive) -> None:
        if self._closed:
            raise self._misuse("open")
        if self._thread != _NO_THREAD:
            raise RuntimeError(f"{self._endpoint or 'this transport'} is open already")
        if self._loop_runs_on_another_thread():
            raise RuntimeError("open() must be called on the thread of its loop")
        self._thread = threading.get_ident()
        self._receive = receive

    def _stop(self) -> bool:
        """Take no more calls; True: there is something to release."""
        if self._closed:
            return False
        if self._thread not in (_NO_THREAD, threading.get_ident()) and self._loop_runs_on_another_thread():
            raise self._misuse("close")
        opened = self._thread != _NO_THREAD
        self._closed = True
        self._thread = _NO_THREAD
        self._receive = _ignore
        return opened

    def _loop_runs_on_another_thread(self) -> bool:
        """Whether the loop runs now, on another thread; a loop that stands still has handed over to whoever calls."""
        if not self._loop.is_running():
            return False
        try:
            return asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            return True

    def _misuse(self, call: str) -> RuntimeError:
        where = self._endpoint or "this transport"
        if self._closed:
            return RuntimeError(f"{call}: {where} is closed")
        if self._thread == _NO_THREAD:
            return RuntimeError(f"{call}: {where} is not open yet, call open() first")
        return RuntimeError(f"{call}: {where} belongs to its loop's thread; use loop.call_soon_threadsafe from others")

    def _schedule(self, queue: Queue) -> None:
        queue.scheduled = True
        self._dirty.append(queue)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        dirty, self._dirty = self._dirty, []
        for queue in dirty:
            queue.scheduled = False
        for queue in dirty:
            if self._flush_queue(queue):
                self._schedule(queue)

    def _deliver(self, messages: list[bytes], size: int) -> None:
        counters = self._counters
        counters.frames_in += 1
        counters.messages_in += len(messages)
        counters.bytes_in += size
        try:
            self._receive(messages)
        except Exception as error:
            counters.receive_failures += 1
            if self._failures.is_due(time.monotonic_ns()):
                _log.warning(
                    "%s: the receive callback raised; %d messages may be lost",
                    self._endpoint,
                    len(messages),
                    exc_info=error,
                )

    def _drop(self, count: int, why: str) -> None:
        if count:
            self._counters.dropped += count
            self._drops.warn(time.monotonic_ns(), "%s: dropped %d messages, %s", self._endpoint, count, why)


def _ignore(messages: list[bytes]) -> None:
    """Drop messages; the receive callback where none is set."""
