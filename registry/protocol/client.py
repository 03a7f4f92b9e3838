"""The client's side of the protocol, without sockets, threads or clocks: registrations, frames and time go in, frames
and notices come out.

The names that are *registered* (with their values) are kept on this side (`own_names`); what is *granted* follows from
the server's verdicts.  After every welcome all registrations are sent again, so a restarted server, a lost answer and a
lost lease are one case.

The lease is judged by our own clock, from the moment a heartbeat was *sent* that was acknowledged later, so it ends
here before it can end at the server.  A unique grant is void from then on, even if the server has not noticed: it is
asked for again, and comes under a new epoch.  When the server was restarted, a grant stays valid until the lease it had
under the old server ends, and is given back under the same epoch if we ask before that (the fresh server grants unique
names to nobody else meanwhile).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from bitactor.errors import MalformedSignal, ProtocolError
from registry.entry import DISAPPEARED, Entry, HolderInUse, InvalidEntry, Loss, Notice, RegistryError, RegistryFull
from registry.protocol.entry_cache import EntryCache
from registry.protocol.own_names import OwnNames, Requests
from registry.support.log_throttle import LogThrottle
from registry.table import DEFAULT_LEASE_NS
from registry.watches import Waiting, fail, resolve
from registry.wire import (
    KINDS,
    REFUSED_HOLDER_IN_USE,
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
    Registered,
    RegistryMessage,
    Sync,
    Unknown,
    Welcome,
    decode,
    decode_entry,
)

_MILLISECOND: Final = 1_000_000
_HELLO_INTERVAL_NS: Final = 100 * _MILLISECOND
_DEFAULT_HEARTBEAT_NS: Final = 300 * _MILLISECOND
_OVERDUE_NS: Final = 2_000 * _MILLISECOND
_MAX_HEARTBEATS: Final = 64
_MISSED_HEARTBEATS: Final = 3

_log = logging.getLogger("bitactor.registry")


class ClientProtocol:
    """The client's protocol state machine.  For one thread, but `is_current`, `granted_until_ns`, `connected` and the
    cache's questions are for any."""

    def __init__(self, holder: str, instance: bytes, now_ns: int) -> None:
        self.holder = holder
        self.cache = EntryCache()
        self._requests = Requests(now_ns)
        self.outgoing = self._requests.outgoing
        self.names = OwnNames(holder, self._requests, self._on_granted, lambda loss: self.losses.append(loss))
        self.notices: list[Notice] = []
        self.losses: list[Loss] = []
        self.connected = False
        self.blocked = False  # set by the owner while `outgoing` cannot be sent
        self.synced: Waiting = Future()  # done when the whole table has been seen for the first time
        self.refusal: RegistryError | None = None
        self.malformed = 0
        self.last_received_ns = now_ns
        self.lease_ns = DEFAULT_LEASE_NS
        self.next_tick_ns = now_ns
        self._instance = instance
        self._heartbeat_ns = _DEFAULT_HEARTBEAT_NS
        self._lease_until_ns = now_ns
        self._lease_valid = False
        self._frozen_until_ns: int | None = None
        self.incarnation: bytes | None = None
        self._welcomed = False
        self._sequence = 0
        self._heartbeats: dict[int, int] = {}  # sequence -> when sent
        self._leaving: tuple[int, Waiting] | None = None
        self._pings: dict[int, Waiting] = {}
        self._syncing: int | None = None
        self._sync_restarted = False
        self._revision: int | None = None
        self._log_throttle = LogThrottle(_log)
        self._handlers: dict[type[RegistryMessage], Callable[[Any, int], None]] = {
            Welcome: self._on_welcome,
            Refused: self._on_refused,
            Acknowledged: self._on_acknowledged,
            Unknown: self._on_unknown,
            Registered: self.names.take_verdicts,
            Done: self._on_done,
            Part: self._on_part,
            Notices: self._on_notices,
            Pong: self._on_pong,
        }

    # Requests

    def leave(self, waiting: Waiting) -> None:
        """End the lease; `waiting` is done when the server has, at once if it is away."""
        if not self._welcomed:
            resolve(waiting, None)
            return
        self._leaving = (self._requests.next_number(), waiting)
        self._requests.send(Leave(self._leaving[0]))

    def ping(self, waiting: Waiting) -> None:
        """Ask the server for an answer; `waiting` is done when it comes.  A ping is not sent again."""
        request = self._requests.next_number()
        self._pings = {number: other for number, other in self._pings.items() if not other.done()}
        self._pings[request] = waiting
        self._requests.send(Ping(request))

    def is_current(self, entry: Entry, now_ns: int) -> bool:
        """Whether this granted entry is valid at `now_ns`."""
        grant = self.names.grant(entry.name)
        if grant is None or entry.holder != self.holder or grant[0].unique != entry.unique:
            return False
        return now_ns < self.granted_until_ns(entry.name, entry.epoch)

    def granted_until_ns(self, name: str, epoch: int) -> int:
        """Until when the grant of `name` under this epoch is valid, as far as is known; 0: it is not."""
        # Read before the grant: a lease is prolonged only after grants that it does not cover were marked.
        until_ns = self._lease_until_ns
        grant = self.names.grant(name)
        if grant is None or grant[0].epoch != epoch:
            return 0
        confirm_until_ns = grant[1]
        return until_ns if confirm_until_ns is None or confirm_until_ns > until_ns else confirm_until_ns

    def fail_all(self, error: RegistryError) -> None:
        """Give `error` to everyone who waits; nobody is answered any more."""
        waiting = [self.synced, *self._pings.values(), *self.names.waiting()]
        if self._leaving is not None:
            waiting.append(self._leaving[1])
        for other in waiting:
            fail(other, error)
        self.connected = False
        self._lease_until_ns = 0

    # Time

    def tick(self, now_ns: int) -> None:
        """Do what is due; call when `next_tick_ns` is reached, after `receive` of what has come by then."""
        self._check_lease(now_ns)
        if self.connected:
            self.notices += self.cache.end_grace(now_ns, 2 * self._heartbeat_ns)
        self.names.retry_due(now_ns)
        if now_ns < self.next_tick_ns:
            return
        self.connected = self.connected and now_ns - self.last_received_ns < _MISSED_HEARTBEATS * self._heartbeat_ns
        waits = self.names.awaits_answer or self._syncing is not None
        if self.blocked or (waits and self.connected and now_ns - self._requests.progress_ns > _OVERDUE_NS):
            self._disconnect()
        self._send_heartbeat(now_ns)

    def next_wake_ns(self) -> int:
        """Monotonic time at which `tick` is next needed."""
        times = [self.next_tick_ns, *self.names.retries.values()]
        if self._lease_valid:
            times.append(self._lease_until_ns)
        if self._frozen_until_ns is not None:
            times.append(self._frozen_until_ns)
        if self.connected and self.cache.grace_until_ns is not None:
            times.append(self.cache.grace_until_ns)
        return min(times)

    def on_reconnect(self, now_ns: int) -> None:
        """Begin again after the connection was made anew; nothing that was on its way will arrive."""
        self.last_received_ns = now_ns
        self._disconnect()
        self.next_tick_ns = now_ns

    def flush(self, now_ns: int) -> None:
        """Send the server what it has not been told."""
        if self._welcomed and self.names.has_unsent:
            self._start_answer_timer(now_ns)
            self.names.flush()

    # Frames

    def receive(self, frame: bytes, now_ns: int) -> None:
        """Handle one frame of the server; bytes that are no message are counted and dropped."""
        try:
            message = decode(frame)
            handler = self._handlers.get(type(message))
            if handler is None:
                self.malformed += 1
                return
            self.last_received_ns = now_ns
            handler(message, now_ns)
        except (ProtocolError, InvalidEntry, ValueError) as error:
            self.malformed += 1
            self._log_throttle.warn(now_ns, "a malformed frame of the registry is dropped: %s", str(error)[:200])

    def _on_welcome(self, message: Welcome, now_ns: int) -> None:
        sent_ns = self._heartbeats.pop(message.sequence, None)
        if sent_ns is None:
            return
        self._check_lease(now_ns)
        restarted = self.incarnation is not None and message.incarnation != self.incarnation
        if self._welcomed and not restarted and not message.fresh:
            self._extend_lease(sent_ns)
            return
        if restarted:
            self._freeze_grants()
            self._sync_restarted = True
        elif message.fresh:
            self.names.void_grants(lambda state: True)
        self.lease_ns, self._heartbeat_ns = message.lease_ns, max(message.heartbeat_ns, _MILLISECOND)
        self.incarnation = message.incarnation
        self._welcomed = self.connected = True
        self.refusal = None
        self.names.begin_again()
        self._extend_lease(sent_ns)
        self.next_tick_ns = min(self.next_tick_ns, now_ns + self._heartbeat_ns)
        self._begin_sync(now_ns)

    def _on_refused(self, message: Refused, now_ns: int) -> None:
        if self._heartbeats.pop(message.sequence, None) is not None and not self._welcomed:
            kind = HolderInUse if message.reason == REFUSED_HOLDER_IN_USE else RegistryFull
            self.refusal = kind(f"the registry refused {self.holder!r}: {message.detail}")

    def _on_acknowledged(self, message: Acknowledged, now_ns: int) -> None:
        sent_ns = self._heartbeats.pop(message.sequence, None)
        if sent_ns is None or not self._welcomed:
            return
        self.connected = True
        self._check_lease(now_ns)
        self._extend_lease(sent_ns)
        if self._revision is not None and message.revision > self._revision:
            self._begin_sync(now_ns)

    def _on_unknown(self, message: Unknown, now_ns: int) -> None:
        if self._welcomed:
            self._disconnect()
            self._send_heartbeat(now_ns)

    def _on_done(self, message: Done, now_ns: int) -> None:
        self._requests.progress_ns = now_ns
        self.names.take_done(message.request)
        if self._leaving is not None and self._leaving[0] == message.request:
            self._welcomed = self.connected = False
            resolve(self._leaving[1], None)

    def _on_part(self, message: Part, now_ns: int) -> None:
        if message.request != self._syncing:
            return
        self._requests.progress_ns = now_ns
        if self._revision is None:
            self._revision = message.revision
        for row in message.entries:
            entry = decode_entry(row)
            self.notices += self.cache.put(entry, message.revision)
            if entry.holder == self.holder:
                self.names.give_back(entry.name)
        if message.more:
            return
        if message.cursor:
            self._request_part(message.cursor, now_ns)
            return
        self._syncing = None
        grace_until_ns = now_ns + self.lease_ns + 2 * self._heartbeat_ns if self._sync_restarted else None
        self._sync_restarted = False
        self.notices += self.cache.end_sync(grace_until_ns)
        resolve(self.synced, None)

    def _on_notices(self, message: Notices, now_ns: int) -> None:
        if self._revision is None:
            return
        if message.revision > self._revision + 1:
            self._begin_sync(now_ns)
            return
        for revision, (code, row) in enumerate(zip(message.kinds, message.entries, strict=False), message.revision):
            if revision <= self._revision:
                continue
            entry = decode_entry(row)
            self._revision = revision
            if code >= len(KINDS):
                raise MalformedSignal(f"a notice of unknown kind {code}")
            if KINDS[code] == DISAPPEARED:
                self.notices += self.cache.remove(entry.name, entry.holder, revision)
                if entry.holder == self.holder:
                    self.names.displaced(entry)
            else:
                self.notices += self.cache.put(entry, revision)

    def _on_pong(self, message: Pong, now_ns: int) -> None:
        waiting = self._pings.pop(message.request, None)
        if waiting is not None:
            resolve(waiting, None)

    # Own names

    def _on_granted(self, entry: Entry) -> None:
        if self._revision is None:
            self.notices += self.cache.put(entry)

    # Lease

    def _check_lease(self, now_ns: int) -> None:
        if self._lease_valid and now_ns >= self._lease_until_ns:
            self._lease_valid = False
            self._frozen_until_ns = None
            self.names.void_grants(lambda state: True)
        if self._frozen_until_ns is not None and now_ns >= self._frozen_until_ns:
            self._frozen_until_ns = None
            self.names.void_grants(lambda state: state.grant is not None and state.grant[1] is not None)

    def _extend_lease(self, sent_ns: int) -> None:
        self._lease_until_ns = max(self._lease_until_ns, sent_ns + self.lease_ns)
        self._lease_valid = True

    def _freeze_grants(self) -> None:
        self.names.freeze_grants(self._lease_until_ns)
        if self._frozen_until_ns is None or self._lease_until_ns < self._frozen_until_ns:
            self._frozen_until_ns = self._lease_until_ns

    # Sending

    def _send_heartbeat(self, now_ns: int) -> None:
        self._sequence += 1
        self._heartbeats[self._sequence] = now_ns
        if len(self._heartbeats) > _MAX_HEARTBEATS:
            del self._heartbeats[next(iter(self._heartbeats))]
        if self._leaving is not None:
            self._heartbeats.clear()
        elif self._welcomed:
            self._requests.send(Heartbeat(self._sequence, self._revision or 0))
        else:
            self._requests.send(Hello(self._sequence, self.holder, self._instance))
        self.next_tick_ns = now_ns + (self._heartbeat_ns if self._welcomed else _HELLO_INTERVAL_NS)

    def _disconnect(self) -> None:
        self.outgoing.clear()
        self.blocked = False
        self._heartbeats.clear()
        self._welcomed = self.connected = False
        self._syncing = self._revision = None
        if self._leaving is not None:
            resolve(self._leaving[1], None)

    def _begin_sync(self, now_ns: int) -> None:
        self._revision = None
        self.cache.begin_sync()
        self._request_part(0, now_ns)

    def _request_part(self, cursor: int, now_ns: int) -> None:
        self._start_answer_timer(now_ns)
        self._syncing = self._requests.next_number()
        self._requests.send(Sync(self._syncing, cursor))

    def _start_answer_timer(self, now_ns: int) -> None:
        if not self.names.awaits_answer and self._syncing is None:
            self._requests.progress_ns = now_ns
