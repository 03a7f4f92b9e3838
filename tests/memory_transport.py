"""A transport that is not ours, for tests: between nodes of one process, which may live on different loops and
threads.

An endpoint is `memory://<name>` within a `MemoryHub`.  The receiver gets the very bytes that were sent, in the same
batches as frames would hold, on its own loop.  Messages to a name nobody has are dropped and counted, as if the peer
had died.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any, Final

from typing_extensions import override

from bitactor.errors import ConfigurationError, Unroutable
from mesh.network.transports import register_transport
from mesh.network.transports.loop_transport import (
    CONNECTIONS,
    FRAMES_PER_TURN,
    MESSAGES_PER_TURN,
    LoopBoundTransport,
    Receive,
)
from mesh.network.transports.send_queue import QUEUE_BYTES, QUEUE_MESSAGES, SendQueue

SCHEME: Final = "memory://"


class MemoryHub:
    """A namespace of memory endpoints; nodes of different hubs never meet.  May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, MemoryTransport] = {}

    def find(self, endpoint: str) -> MemoryTransport | None:
        """The transport that has this endpoint now; None if there is none."""
        return self._nodes.get(endpoint)

    def bind(self, endpoint: str, node: MemoryTransport) -> None:
        """Give an endpoint to a transport; raises `ConfigurationError` if another has it."""
        with self._lock:
            if endpoint in self._nodes:
                raise ConfigurationError(f"{endpoint} is in use by another node; give each node a name of its own")
            self._nodes[endpoint] = node

    def unbind(self, endpoint: str, node: MemoryTransport) -> None:
        """Take an endpoint back from a transport, if it still has it."""
        with self._lock:
            if self._nodes.get(endpoint) is node:
                del self._nodes[endpoint]


PROCESS_HUB: Final = MemoryHub()
"""The hub of transports that are given none."""


class MemoryTransport(LoopBoundTransport[SendQueue]):
    """A `Transport` within one process.

    Args:
        name: of this node, or its whole endpoint `memory://<name>`.
        loop: the one whose thread makes all calls and gets what comes.
        hub: where names are looked up; by default the one of this process.
        queue_limit: messages that may wait for one receiver, until it took them.
        queue_bytes: the same in bytes.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: asyncio.AbstractEventLoop,
        hub: MemoryHub = PROCESS_HUB,
        queue_limit: int = QUEUE_MESSAGES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        super().__init__(loop=loop, queue_limit=queue_limit, queue_bytes=queue_bytes, connections=CONNECTIONS)
        self._name = name.removeprefix(SCHEME)
        if not self._name:
            raise ConfigurationError(f"{name!r}: give the node a name, as in memory://node-1")
        self._hub = hub
        self._inbox: deque[tuple[SendQueue, list[bytes], int]] = deque()
        self._inbox_lock = threading.Lock()
        self._drain_is_due = False
        self._accepting = False

    @override
    def open(self, receive: Receive) -> None:
        """Takes the name in the hub.

        Raises:
            ConfigurationError: the name is taken.
        """
        self._start(receive)
        endpoint = SCHEME + self._name
        self._accepting = True
        try:
            self._hub.bind(endpoint, self)
        except ConfigurationError:
            self._stop()
            raise
        self._endpoint = endpoint

    @override
    def forget(self, endpoint: str) -> None:
        if threading.get_ident() != self._thread:
            if self._closed:
                return
            raise self._misuse("forget")
        queue = self._queues.pop(endpoint, None)
        if queue is not None:
            self._discard(queue, f"{endpoint} was forgotten")

    @override
    def close(self, timeout: float = 0.5) -> None:
        """Hands over what is queued, gives up the name, drops what came and was not taken; never waits."""
        if not self._stop():
            return
        self._hub.unbind(self._endpoint, self)
        with self._inbox_lock:
            self._accepting = False
            left = list(self._inbox)
            self._inbox.clear()
        for queue, messages, size in left:
            queue.release(len(messages), size)
        for queue in self._queues.values():
            self._flush_queue(queue)
        self._queues.clear()
        self._dirty.clear()

    @override
    def _connect(self, endpoint: str) -> SendQueue:
        if not endpoint.startswith(SCHEME):
            raise Unroutable(f"{endpoint!r} cannot be reached from {self._endpoint}: this mesh is memory:// only")
        if len(self._queues) >= self._connections:
            self._drop_unreachable()
        queue = self._queues[endpoint] = SendQueue(endpoint, self._queue_limit, self._queue_bytes)
        return queue

    def _drop_unreachable(self) -> None:
        unreachable = [
            queue for queue in self._queues.values() if not queue.queued and self._hub.find(queue.endpoint) is None
        ]
        for queue in unreachable:
            del self._queues[queue.endpoint]

    @override
    def _flush_queue(self, queue: SendQueue) -> bool:
        receiver = self._hub.find(queue.endpoint)
        if receiver is None:
            self._queues.pop(queue.endpoint, None)
            self._discard(queue, f"nobody has {queue.endpoint}")
            return False
        while queue.queued:
            messages, size = queue.next_batch()
            if not receiver.accept(queue, messages, size):
                queue.release(len(messages), size)
                self._drop(len(messages), f"{queue.endpoint} is closed")
                continue
            self._counters.frames_out += 1
            self._counters.messages_out += len(messages)
            self._counters.bytes_out += size
        return False

    def _discard(self, queue: SendQueue, why: str) -> None:
        count = 0
        while queue.queued:
            messages, size = queue.next_batch()
            queue.release(len(messages), size)
            count += len(messages)
        self._drop(count, why)

    def accept(self, queue: SendQueue, messages: list[bytes], size: int) -> bool:
        """Take a batch from another node, on that node's thread; False: this transport is closed."""
        with self._inbox_lock:
            if not self._accepting:
                return False
            if not self._drain_is_due:
                try:
                    self._loop.call_soon_threadsafe(self._drain)
                except RuntimeError:  # the loop was closed without closing us
                    return False
                self._drain_is_due = True
            self._inbox.append((queue, messages, size))
        return True

    def _drain(self) -> None:
        count = 0
        try:
            for _ in range(FRAMES_PER_TURN):
                with self._inbox_lock:
                    if not self._inbox or count >= MESSAGES_PER_TURN:
                        break
                    queue, messages, size = self._inbox.popleft()
                queue.release(len(messages), size)
                count += len(messages)
                self._deliver(messages, size)
        finally:
            with self._inbox_lock:
                self._drain_is_due = bool(self._inbox)
                if self._drain_is_due:
                    self._loop.call_soon(self._drain)


def _open(url: str, *, loop: asyncio.AbstractEventLoop, **options: Any) -> MemoryTransport:
    return MemoryTransport(url, loop=loop)


register_transport("memory", _open)
