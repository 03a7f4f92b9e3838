"""The server's side of the protocol, without sockets or clocks: frames and time go in, frames come out.

A *session* ties a connection (its routing id) to a holder.  A session that is `synced` gets every change, in order; one
that does not read what it is sent is taken out of the broadcast, and learns from the next acknowledgement that it must
sync again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from bitactor.errors import ProtocolError
from registry.entry import AlreadyRegistered, InvalidEntry, Notice, RegistryFull
from registry.support.log_throttle import LogThrottle
from registry.table import BUCKETS, Table
from registry.wire import (
    FULL,
    FULL_FRAME_BYTES,
    GRANTED,
    INVALID,
    KINDS,
    MAX_ROWS,
    REFUSED_FULL,
    REFUSED_HOLDER_IN_USE,
    REFUSED_INVALID,
    SETTLING,
    TAKEN,
    Acknowledged,
    Done,
    Heartbeat,
    Hello,
    Leave,
    Notices,
    Part,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    Registration,
    RegistryMessage,
    Sync,
    Unknown,
    Unregister,
    Welcome,
    decode,
    decode_registration,
    encode,
    encode_detail,
    encode_row,
    in_frames,
)

MAX_UNREAD_BYTES: Final = 16 * 1024 * 1024
"""Bytes that may be on their way to one client before it counts as one that does not read."""
FULL_OUTGOING_BYTES: Final = 4 * 1024 * 1024
# Frames up to this size (acknowledgements, by which a client learns that it missed something) are bounded by the socket
# alone.
_SMALL_FRAME_BYTES: Final = 256

_log = logging.getLogger("bitactor.registry")


class Statistics(NamedTuple):
    """A server's counts since it started; they only rise, except `clients` and `entries`."""

    boot: int
    """The registry's boot epoch."""
    revision: int
    """Number of the latest change of the table."""
    clients: int
    """Clients that are connected."""
    entries: int
    """Names that are held."""
    received: int
    """Frames that came in."""
    sent: int
    """Frames that went out."""
    malformed: int
    """Frames that were no message, or no message that a client may send."""
    strangers: int
    """Messages of connections that had not said hello, or whose lease had ended."""
    refused: int
    """Hellos refused."""
    dropped: int
    """Times a client was taken out of the broadcast because it did not read."""
    failed: int
    """Frames whose handling raised an unexpected error; each is a defect of ours."""


@dataclass(slots=True, eq=False)
class _Session:
    holder: str
    instance: bytes
    routing: bytes
    synced: bool = False
    unread: int = 0
    sent_revision: int = 0


class ServerProtocol:
    """The server's protocol state machine.  Not thread-safe; the counts may be read from anywhere."""

    def __init__(
        self,
        table: Table,
        *,
        incarnation: bytes,
        heartbeat_ns: int,
        settle_until_ns: int,
        now_ns: int,
        max_clients: int,
    ) -> None:
        self.table = table
        self._incarnation = incarnation
        self._heartbeat_ns = heartbeat_ns
        self._settle_until_ns = settle_until_ns
        self._max_clients = max_clients
        self._sessions: dict[bytes, _Session] = {}
        self._holders: dict[str, _Session] = {}
        self._changes: list[Notice] = []
        self._replies: list[tuple[bytes, bytes]] = []
        self._outgoing: deque[tuple[bytes, bytes]] = deque()
        self._outgoing_bytes = 0
        self._last_tick_ns = now_ns
        self._expire_from_ns = now_ns
        self._received = self._sent = self._malformed = self._strangers = 0
        self._refused = self._dropped = self._failed = 0
        self._log_throttle = LogThrottle(_log)
        self._handlers: dict[type[RegistryMessage], Callable[[_Session, Any, int], None]] = {
            Heartbeat: self._heartbeat,
            Register: self._register,
            Unregister: self._unregister,
            Leave: self._leave,
            Sync: self._sync,
        }

    # In

    def receive(self, routing: bytes, frame: bytes, now_ns: int) -> None:
        """Handle one frame of one connection; never raises because of what is in it."""
        self._received += 1
        try:
            self._handle(routing, decode(frame), now_ns)
        except ProtocolError as error:
            self.malformed(str(error), now_ns)
        except Exception:
            self._failed += 1
            _log.exception("handling a frame of %d bytes failed; it is dropped", len(frame))

    def malformed(self, reason: str, now_ns: int) -> None:
        """Count a frame that was no message."""
        self._malformed += 1
        self._log_throttle.warn(now_ns, "a malformed frame is dropped: %s", reason[:200])

    def tick(self, now_ns: int) -> None:
        """End leases that ran out; call several times a heartbeat.

        After a pause of this process (its clients may have been heard and not yet read) no lease ends for one lease
        time.
        """
        if now_ns - self._last_tick_ns > self.table.lease_ns // 2:
            self._expire_from_ns = now_ns + self.table.lease_ns
        self._last_tick_ns = now_ns
        if now_ns < self._expire_from_ns:
            return
        gone, notices = self.table.expire(now_ns)
        self._changes += notices
        for holder in gone:
            self._end_session(holder)

    # Out

    @property
    def full(self) -> bool:
        """True: so much waits to be sent that it should be before more is received."""
        return self._outgoing_bytes >= FULL_OUTGOING_BYTES

    def take_outgoing(self) -> deque[tuple[bytes, bytes]]:
        """The frames to be sent, as (routing id, frame): changes first, so that who reads an answer has read what led
        to it."""
        self._publish()
        for routing, frame in self._replies:
            self._send(routing, frame)
        self._replies.clear()
        outgoing, self._outgoing = self._outgoing, deque()
        self._outgoing_bytes = 0
        self._sent += len(outgoing)
        return outgoing

    def undeliverable(self, routing: bytes) -> None:
        """Take the receiver of a frame that could not be sent out of the broadcast: it is gone, or does not read."""
        session = self._sessions.get(routing)
        if session is not None and session.synced:
            session.synced = False
            self._dropped += 1

    def statistics(self) -> Statistics:
        """The counts so far."""
        return Statistics(
            boot=self.table.boot,
            revision=self.table.revision,
            clients=len(self._holders),
            entries=self.table.count(),
            received=self._received,
            sent=self._sent,
            malformed=self._malformed,
            strangers=self._strangers,
            refused=self._refused,
            dropped=self._dropped,
            failed=self._failed,
        )

    # Messages

    def _handle(self, routing: bytes, message: RegistryMessage, now_ns: int) -> None:
        if type(message) is Ping:
            self._reply(routing, Pong(message.request))
            return
        if type(message) is Hello:
            self._hello(routing, message, now_ns)
            return
        handler = self._handlers.get(type(message))
        if handler is None:
            self.malformed(f"a {type(message).__name__} is not for a server", now_ns)
            return
        session = self._sessions.get(routing)
        if session is None:
            self._strangers += 1
            self._reply(routing, Unknown())
            return
        handler(session, message, now_ns)

    def _hello(self, routing: bytes, message: Hello, now_ns: int) -> None:
        session = self._holders.get(message.holder)
        here = self._sessions.get(routing)
        if session is not None and session.instance != message.instance:
            self._refuse(routing, message, REFUSED_HOLDER_IN_USE, f"another live process is {message.holder!r}")
        elif here is not None and here is not session:
            self._refuse(routing, message, REFUSED_INVALID, "a connection is for one holder")
        elif session is None and len(self._holders) >= self._max_clients:
            self._refuse(routing, message, REFUSED_FULL, f"the registry serves {self._max_clients:,} clients at most")
        else:
            try:
                fresh = self.table.open(message.holder, now_ns)
            except InvalidEntry as error:
                self._refuse(routing, message, REFUSED_INVALID, str(error))
                return
            self._end_session(message.holder)
            self._holders[message.holder] = self._sessions[routing] = _Session(
                message.holder, message.instance, routing
            )
            answer = Welcome(message.sequence, self._incarnation, self.table.lease_ns, self._heartbeat_ns, fresh)
            self._reply(routing, answer)

    def _refuse(self, routing: bytes, message: Hello, reason: int, detail: str) -> None:
        self._refused += 1
        self._reply(routing, Refused(message.sequence, reason, detail))

    def _heartbeat(self, session: _Session, message: Heartbeat, now_ns: int) -> None:
        self.table.renew(session.holder, now_ns)
        if message.revision >= session.sent_revision:
            session.sent_revision = self.table.revision
            session.unread = 0
        self._reply(session.routing, Acknowledged(message.sequence, self.table.revision))

    def _register(self, session: _Session, message: Register, now_ns: int) -> None:
        registrations = [decode_registration(row) for row in message.registrations]
        verdicts = bytearray()
        details: list[bytes] = []
        for registration in registrations:
            verdict, detail = self._decide(session.holder, registration, now_ns)
            verdicts.append(verdict)
            details.append(detail)
        for begin, end in in_frames(details):
            answer = Registered(message.request, begin, bytes(verdicts[begin:end]), tuple(details[begin:end]))
            self._reply(session.routing, answer)

    def _decide(self, holder: str, registration: Registration, now_ns: int) -> tuple[int, bytes]:
        try:
            claimed = self.table.claim(
                registration.name,
                holder,
                registration.value,
                unique=registration.unique,
                former=registration.former,
                now_ns=now_ns,
                settling=now_ns < self._settle_until_ns,
            )
        except AlreadyRegistered as error:
            return TAKEN, encode_row(error.entry)
        except InvalidEntry as error:
            return INVALID, encode_detail(str(error))
        except RegistryFull as error:
            return FULL, encode_detail(str(error))
        self._changes += claimed.notices
        if claimed.entry is None:
            return SETTLING, encode_detail(self._settle_until_ns - now_ns)
        return GRANTED, encode_row(claimed.entry)

    def _unregister(self, session: _Session, message: Unregister, now_ns: int) -> None:
        for name in message.names:
            notice = self.table.unregister(name, session.holder)
            if notice is not None:
                self._changes.append(notice)
        self._reply(session.routing, Done(message.request))

    def _leave(self, session: _Session, message: Leave, now_ns: int) -> None:
        self._changes += self.table.leave(session.holder)
        self._end_session(session.holder)
        self._reply(session.routing, Done(message.request))

    def _sync(self, session: _Session, message: Sync, now_ns: int) -> None:
        # What changed so far must be sent before the part that contains it, and what changes later after it.
        self._publish()
        if message.cursor == 0:
            session.synced = True
            session.sent_revision = self.table.revision
        session.unread = 0
        cursor = message.cursor
        rows: list[bytes] = []
        size = 0
        while cursor < BUCKETS and size < FULL_FRAME_BYTES and len(rows) < MAX_ROWS:
            for entry in self.table.bucket(cursor):
                rows.append(encode_row(entry))
                size += len(rows[-1])
            cursor += 1
        after = cursor if cursor < BUCKETS else 0
        for begin, end in in_frames(rows):
            part = Part(message.request, after, end < len(rows), self.table.revision, tuple(rows[begin:end]))
            self._send(session.routing, encode(part))

    # The rest

    def _end_session(self, holder: str) -> None:
        session = self._holders.pop(holder, None)
        if session is not None:
            self._sessions.pop(session.routing, None)

    def _reply(self, routing: bytes, message: RegistryMessage) -> None:
        frame = encode(message)
        self._replies.append((routing, frame))
        self._outgoing_bytes += len(frame)

    def _publish(self) -> None:
        if not self._changes:
            return
        changes, self._changes = self._changes, []
        receivers = [session.routing for session in self._sessions.values() if session.synced]
        if not receivers:
            return
        rows = [encode_row(change.entry) for change in changes]
        kinds = bytes(KINDS.index(change.kind) for change in changes)
        for begin, end in in_frames(rows):
            frame = encode(Notices(changes[begin].revision, kinds[begin:end], tuple(rows[begin:end])))
            for routing in receivers:
                self._send(routing, frame)

    def _send(self, routing: bytes, frame: bytes) -> None:
        session = self._sessions.get(routing)
        if session is not None:
            if session.unread + len(frame) > MAX_UNREAD_BYTES and len(frame) > _SMALL_FRAME_BYTES:
                self.undeliverable(routing)
                return
            session.unread += len(frame)
        self._outgoing.append((routing, frame))
        self._outgoing_bytes += len(frame)
