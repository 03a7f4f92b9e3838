"""A transport between processes, over ZeroMQ.

Each node has one bound PULL socket, its inbox, and one PUSH socket per peer, made at the first send.  PULL and not
ROUTER, because nothing goes back over a connection: messages name their reply endpoint, so identities would only be one
more part to every frame, and PULL lets in nobody but PUSH.  And since the inbox never sends and the others never
receive, no send can swallow the edge that the inbox' reader waits for.

What ZeroMQ is not trusted with: telling us that a peer died (leases and acknowledgements of the mesh do), and bounding
memory (the send queue does; its own queues are kept short, so that a slow peer's frames grow fuller instead of more).
What it cannot bound: somebody inside (same user on ipc, same key on tcp) who sends one message of endlessly many parts.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import threading
import time
from pathlib import Path
from typing import Any, Final

import zmq
from typing_extensions import override

from bitactor.errors import ConfigurationError, Overloaded, ProtocolError, SignalTooLarge, Unroutable
from bitactor.messages.wire import MAX_FRAME_BYTES, join_frame, split_frame
from mesh.network.transports.addresses import check_bind, check_peer, prepare_ipc, reachable_endpoint, remove_ipc
from mesh.network.transports.loop_transport import (
    CONNECTIONS,
    FRAMES_PER_TURN,
    MESSAGES_PER_TURN,
    LoopBoundTransport,
    Receive,
)
from mesh.network.transports.send_queue import QUEUE_BYTES, QUEUE_MESSAGES, SendQueue
from registry.support.curve import Curve, Gatekeeper, secure_client, secure_server
from registry.support.private import private_connections, private_socket

FRAMES_IN_FLIGHT: Final = 32
"""High-water mark of each socket, in frames: 8 MiB of full ones, more only where single messages are larger."""
_FRAME_LIMIT: Final = MAX_FRAME_BYTES + 16 + 64
"""Bytes that a PULL socket takes: the most that `split_frame` does, and what CURVE adds to it on the wire."""
_ANSWER_LIMIT: Final = 64 * 1024
"""Bytes that a PUSH socket takes: it gets nothing but handshakes; more than that is an attack on our memory."""
_LINGER_MS: Final = 500
_HANDSHAKE_MS: Final = 10_000
_RECONNECT_MS: Final = 20
_RECONNECT_MAX_MS: Final = 1_000
_HEARTBEAT_MS: Final = 5_000

_Socket = zmq.Socket[bytes]

# As plain numbers: `&` of an enum's flags makes another of them, which takes longer than the call to ZeroMQ.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_READABLE: Final = int(zmq.POLLIN)
_WRITABLE: Final = int(zmq.POLLOUT)


class Connection(SendQueue):
    """A send queue with the socket it goes out by, and the frame that the socket had no room for."""

    __slots__ = ("blocked", "fd", "frame", "frame_bytes", "frame_messages", "socket")

    def __init__(self, endpoint: str, limit: int, byte_limit: int, socket: _Socket) -> None:
        super().__init__(endpoint, limit, byte_limit)
        self.socket = socket
        self.fd = socket.fileno()
        self.blocked = False
        """Whether `fd` is watched for room."""
        self.frame: bytes | None = None
        self.frame_messages = 0
        self.frame_bytes = 0

    def next_frame(self) -> bytes | None:
        """The next frame to go out; None if there is none."""
        if self.frame is None and self.queued:
            messages, self.frame_bytes = self.next_batch()
            self.frame_messages = len(messages)
            self.frame = join_frame(messages)
        return self.frame

    def frame_sent(self) -> None:
        """Note that the socket took the frame."""
        self.release(self.frame_messages, self.frame_bytes)
        self.frame = None


class ZmqTransport(LoopBoundTransport[Connection]):
    """A `Transport` over `ipc://` or, with CURVE keys, `tcp://`.

    Sent frames reach a peer that is not there yet once it appears.  When a peer dies, what was on its way to it is lost
    without a word.  A slow peer slows its senders: first their frames grow fuller, then `send` raises `Overloaded`.

    Args:
        bind: `ipc:///directory/name` (the directory is made 0700, or must be) or `tcp://host:port`, port `*` for any.
        loop: the one whose thread makes all calls and gets what comes.
        curve: keys of the mesh; every socket then takes and makes only connections of their holders.
        advertise: the host, or `tcp://host:port`, under which others reach a wildcard address.
        queue_limit: messages that may wait for one endpoint, beside `FRAMES_IN_FLIGHT` frames on their way.
        queue_bytes: the same in bytes.
        early_flush: pass messages on before the turn ends whenever so many wait; 0: never.  With one frame a turn two
            busy nodes take turns, each idle while the other works; with several they overlap.
        connections: endpoints kept in touch with; None: 1,024, or a quarter of the file descriptors if these are fewer.

    Raises:
        ConfigurationError: the address cannot be bound, or not safely.
    """

    def __init__(
        self,
        bind: str,
        *,
        loop: asyncio.AbstractEventLoop,
        curve: Curve | None = None,
        advertise: str = "",
        queue_limit: int = QUEUE_MESSAGES,
        queue_bytes: int = QUEUE_BYTES,
        early_flush: int = 0,
        connections: int | None = None,
    ) -> None:
        check_bind(bind, secured=curve is not None, advertise=advertise)
        super().__init__(
            loop=loop,
            queue_limit=queue_limit,
            queue_bytes=queue_bytes,
            connections=_affordable_connections() if connections is None else connections,
        )
        self._early_flush = early_flush
        self._bind = bind
        self._curve = curve
        self._advertise = advertise
        self._context: zmq.Context[_Socket] | None = None
        self._gatekeeper: Gatekeeper | None = None
        self._inbox: _Socket | None = None
        self._inbox_fd = -1
        self._drain_is_due = False

    @override
    def open(self, receive: Receive) -> None:
        """Binds the socket.

        Raises:
            ConfigurationError: the address is in use, or others may write its directory.
        """
        self._start(receive)
        try:
            self._bind_inbox()
        except BaseException:
            self.close(0)
            raise
        self._loop.add_reader(self._inbox_fd, self._drain)

    @override
    def forget(self, endpoint: str) -> None:
        """Forgetting a peer that is not known does nothing."""
        if threading.get_ident() != self._thread:
            if self._closed:
                return
            raise self._misuse("forget")
        connection = self._queues.pop(endpoint, None)
        if connection is not None:
            self._disconnect(connection, 0, f"{endpoint} was forgotten")

    @override
    def close(self, timeout: float = 0.5) -> None:
        """Blocks until what is queued is sent, for at most `timeout` seconds."""
        if not self._stop():
            return
        deadline = time.monotonic() + timeout
        if self._inbox is not None:
            if self._inbox_fd >= 0:
                self._unwatch(self._inbox_fd)
                remove_ipc(self._endpoint)
            self._inbox.close(0)
        self._flush_until(deadline)
        linger = max(0, round((deadline - time.monotonic()) * 1_000))
        for connection in self._queues.values():
            self._disconnect(connection, linger, f"{connection.endpoint} did not take them before close")
        self._queues.clear()
        self._dirty.clear()
        if self._gatekeeper is not None:  # after the inbox: without a gatekeeper, ZeroMQ would let any key in
            self._gatekeeper.stop()
        if self._context is not None:
            self._context.term()

    def _bind_inbox(self) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, self._connections + 64)
        if self._curve is not None:
            self._gatekeeper = Gatekeeper(self._context, self._curve)
            self._gatekeeper.start()
        inbox = self._inbox = self._context.socket(zmq.PULL)
        inbox.set(zmq.LINGER, 0)
        inbox.set(zmq.RCVHWM, FRAMES_IN_FLIGHT)
        inbox.set(zmq.MAXMSGSIZE, _FRAME_LIMIT)
        inbox.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        if self._curve is not None:
            secure_server(inbox, self._curve)
        address = prepare_ipc(self._bind) if self._bind.startswith("ipc://") else self._bind
        _set_up_tcp(inbox, address)
        is_file = address.startswith("ipc://")
        if is_file:
            private_connections(inbox)
        try:
            inbox.bind(address)
        except zmq.ZMQError as error:
            raise ConfigurationError(f"cannot bind {address}: {error.strerror}; choose another address") from error
        bound = address if is_file else inbox.get_string(zmq.LAST_ENDPOINT)
        if is_file:
            private_socket(Path(address.removeprefix("ipc://")))
        self._endpoint = reachable_endpoint(bound, self._advertise)
        self._inbox_fd = inbox.fileno()

    # Sending

    @override
    def _connect(self, endpoint: str) -> Connection:
        check_peer(endpoint, secured=self._curve is not None)
        if len(self._queues) >= self._connections:
            self._evict_idle(endpoint)
        try:
            socket = self._open_socket(endpoint)
        except zmq.ZMQError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise Overloaded(f"no connection to {endpoint}: {error.strerror}; raise ulimit -n") from error
            raise Unroutable(f"cannot connect to {endpoint!r}: {error.strerror}") from error
        connection = Connection(endpoint, self._queue_limit, self._queue_bytes, socket)
        self._queues[endpoint] = connection
        return connection

    def _open_socket(self, endpoint: str) -> _Socket:
        assert self._context is not None
        socket = self._context.socket(zmq.PUSH)
        try:
            socket.set(zmq.LINGER, _LINGER_MS)
            socket.set(zmq.SNDHWM, FRAMES_IN_FLIGHT)
            socket.set(zmq.RCVHWM, 1)
            socket.set(zmq.MAXMSGSIZE, _ANSWER_LIMIT)
            socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
            socket.set(zmq.RECONNECT_IVL, _RECONNECT_MS)
            socket.set(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
            if self._curve is not None:
                secure_client(socket, self._curve)
            _set_up_tcp(socket, endpoint)
            socket.connect(endpoint)
        except BaseException:
            socket.close(0)
            raise
        return socket

    def _evict_idle(self, endpoint: str) -> None:
        """Close the connection unused longest of those that have nothing waiting."""
        for connection in self._queues.values():
            if not connection.waiting:
                del self._queues[connection.endpoint]
                self._disconnect(connection, _LINGER_MS, "")
                return
        raise Overloaded(
            f"no room for a connection to {endpoint}: all {len(self._queues):,} have messages waiting; "
            "raise connections= (and ulimit -n)"
        )

    def _disconnect(self, connection: Connection, linger_ms: int, why: str) -> None:
        if connection.blocked:
            connection.blocked = False
            self._unwatch(connection.fd)
        self._drop(connection.waiting, why)
        connection.release(connection.waiting, 0)
        connection.frame = None
        connection.socket.close(linger_ms)

    @override
    def _flush_queue(self, connection: Connection) -> bool:
        if connection.blocked or connection.socket.closed:
            return False
        self._queues.move_to_end(connection.endpoint)
        if self._push_frames(connection):
            return connection.waiting > 0
        connection.blocked = connection.scheduled = True
        self._loop.add_reader(connection.fd, self._on_writable, connection)
        return False

    def _push_frames(self, connection: Connection) -> bool:
        """Send frames within the budget; False: the socket has no room."""
        counters = self._counters
        for _ in range(FRAMES_PER_TURN):
            frame = connection.next_frame()
            if frame is None:
                return True
            try:
                connection.socket.send(frame, _NOBLOCK)
            except zmq.Again:
                return False
            counters.frames_out += 1
            counters.messages_out += connection.frame_messages
            counters.bytes_out += len(frame)
            connection.frame_sent()
        return True

    def _on_writable(self, connection: Connection) -> None:
        """Flush a connection whose socket may have room.  `_is_ready` must ask before: a send alone may not even look
        at what the FD announced."""
        if not _is_ready(connection.socket, _WRITABLE) or not self._push_frames(connection):
            return
        self._unwatch(connection.fd)
        connection.blocked = connection.scheduled = False
        if connection.waiting:
            self._schedule(connection)

    def _flush_until(self, deadline: float) -> None:
        """Block until everything queued is with ZeroMQ, or time is up."""
        while True:
            left = [queue for queue in self._queues.values() if queue.waiting and not self._push_out(queue)]
            wait_ms = round((deadline - time.monotonic()) * 1_000)
            if not left or wait_ms <= 0:
                return
            poller = zmq.Poller()
            for queue in left:
                poller.register(queue.socket, zmq.POLLOUT)
            poller.poll(wait_ms)

    def _push_out(self, connection: Connection) -> bool:
        while connection.waiting:
            if not self._push_frames(connection):
                return False
        return True

    def _unwatch(self, fd: int) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)

    # Receiving

    def _drain(self) -> None:
        """Take frames until there are none, or the budget is spent and the next turn goes on.

        What the callback sends meanwhile leaves in one flush at the end, without waiting for the next turn.
        """
        self._drain_is_due = False
        if self._closed:
            return
        flush_here = not self._flush_is_due
        self._flush_is_due = True
        drained = False
        try:
            drained = self._receive_frames()
        finally:
            if not drained and not self._closed and not self._drain_is_due:
                self._drain_is_due = True
                self._loop.call_soon(self._drain)
            if flush_here:
                self._flush()

    def _receive_frames(self) -> bool:
        """Take frames within the budget; True: none is left."""
        inbox = self._inbox
        assert inbox is not None
        count = 0
        for _ in range(FRAMES_PER_TURN):
            try:
                part = inbox.recv(_NOBLOCK, copy=False)
            except zmq.Again:
                return True
            if part.more:
                self._skip_parts(inbox)
            else:
                count += self._receive_frame(part.bytes)
            if self._closed:
                return True
            if not _is_ready(inbox, _READABLE):
                return True
            if count >= MESSAGES_PER_TURN:
                return False
        return False

    def _receive_frame(self, frame: bytes) -> int:
        try:
            messages = split_frame(frame)
        except ProtocolError as error:
            if isinstance(error, SignalTooLarge):
                self._counters.too_large += 1
            else:
                self._counters.malformed += 1
            said = "%s: dropped a frame of %d bytes: %s"
            self._bad_frames.warn(time.monotonic_ns(), said, self._endpoint, len(frame), error)
            return 1
        if messages:
            self._deliver(messages, len(frame))
        return len(messages)

    def _skip_parts(self, inbox: _Socket) -> None:
        """Skip the rest of a message of many parts, which is no frame of ours.  ZeroMQ hands it over complete, so this
        cannot block."""
        count = 1
        while inbox.recv(_NOBLOCK, copy=False).more:
            count += 1
        self._counters.malformed += 1
        said = "%s: dropped a message of %d parts; frames have one"
        self._bad_frames.warn(time.monotonic_ns(), said, self._endpoint, count + 1)


def _is_ready(socket: _Socket, event: int) -> bool:
    """Whether the socket could receive (`_READABLE`) or send (`_WRITABLE`) now; asking also clears the edge of the
    socket's FD."""
    events: Any = socket.get(zmq.EVENTS)
    return bool(events & event)


def _set_up_tcp(socket: _Socket, address: str) -> None:
    """Have a socket notice a connection that died silently, and speak IPv6 where the address does."""
    if not address.startswith("tcp://"):
        return
    options: dict[Any, int] = {zmq.HEARTBEAT_IVL: _HEARTBEAT_MS, zmq.TCP_KEEPALIVE: 1}
    if "[" in address:
        options[zmq.IPV6] = 1
    for option, value in options.items():
        socket.set(option, value)


def _affordable_connections() -> int:
    """How many connections a process may keep: each takes two file descriptors, and the process needs some for other
    things."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft // 4))
