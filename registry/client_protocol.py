"""The client's side of the protocol, without sockets, threads or clocks: registrations, frames and time go in, frames
and notices come out.

The names that are *registered* (with their values) are kept here; what is *granted* follows from the server's verdicts.
After every welcome all registrations are sent again, so a restarted server, a lost answer and a lost lease are one
case.

The lease is judged by our own clock, from the moment a heartbeat was *sent* that was acknowledged later, so it ends
here before it can end at the server.  A unique grant is void from then on, even if the server has not noticed: it is
asked for again, and comes under a new epoch.  When the server was restarted, a grant stays valid until the lease it had
under the old server ends, and is given back under the same epoch if we ask before that (the fresh server grants unique
names to nobody else meanwhile).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from bitactor.errors import MalformedSignal, ProtocolError
from registry.entry import DISAPPEARED, Entry, Loss, Notice
from registry.entry_cache import EntryCache
from registry.errors import (
    AlreadyRegistered,
    HolderInUse,
    InvalidEntry,
    NotRegistered,
    RegistryError,
    RegistryFull,
)
from registry.support.log_throttle import LogThrottle
from registry.table import DEFAULT_LEASE_NS
from registry.wire import (
    FULL_FRAME_BYTES,
    GRANTED,
    INVALID,
    KINDS,
    REFUSED_HOLDER_IN_USE,
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
    decode_detail,
    decode_entry,
    encode,
    encode_registration,
    in_frames,
)

_MILLISECOND: Final = 1_000_000
_HELLO_INTERVAL_NS: Final = 100 * _MILLISECOND
_DEFAULT_HEARTBEAT_NS: Final = 300 * _MILLISECOND
_OVERDUE_NS: Final = 2_000 * _MILLISECOND
_FULL_RETRY_NS: Final = 1_000 * _MILLISECOND
_MAX_HEARTBEATS: Final = 64
_REGISTRATIONS_PER_FRAME: Final = 128
"""One such frame is on its way at a time: heartbeats must not queue behind a long repopulation."""
_MISSED_HEARTBEATS: Final = 3

_log = logging.getLogger("bitactor.registry")

_Waiting = Future[Any]


class _NameState:
    """The state of one name that we registered: its value, who waits for the verdict, and the grant."""

    __slots__ = (
        "first",
        "grant",
        "lost_entry",
        "name",
        "origin",
        "unique",
        "value",
        "version",
        "void_epoch",
        "waiting",
    )

    def __init__(self, name: str, value: Mapping[str, Any], unique: bool, version: int, origin: _Waiting) -> None:
        self.name = name
        self.value = value
        self.unique = unique
        self.origin = origin
        self.first = self.version = version
        """Verdicts on versions before `first` are on a registration that was withdrawn; versions of all registrations
        rise together."""
        self.waiting: list[tuple[int, _Waiting]] = [(version, origin)]
        self.grant: tuple[Entry, int | None] | None = None
        """What we hold; with a time when it is to be confirmed by a restarted server before that time."""
        self.lost_entry: Entry | None = None
        self.void_epoch = -1
        """Grants up to this epoch are void."""

    @property
    def entry(self) -> Entry | None:
        return self.grant[0] if self.grant is not None else None


class ClientProtocol:
    """The client's protocol state machine.  For one thread, but `is_current`, `connected` and the cache's questions are
    for any."""

    def __init__(self, holder: str, instance: bytes, now_ns: int) -> None:
        self.holder = holder
        self.cache = EntryCache()
        self.outgoing: deque[bytes] = deque()
        self.notices: list[Notice] = []
        self.losses: list[Loss] = []
        self.connected = False
        self.blocked = False
        """To be set while `outgoing` cannot be sent."""
        self.synced: _Waiting = Future()
        """Done when the whole table has been seen for the first time."""
        self.refusal: RegistryError | None = None
        self.malformed = 0
        self.last_received_ns = now_ns
        """When the server was last heard."""
        self.lease_ns = DEFAULT_LEASE_NS
        self.next_tick_ns = now_ns
        self._instance = instance
        self._heartbeat_ns = _DEFAULT_HEARTBEAT_NS
        self._lease_until_ns = now_ns
        self._lease_valid = False
        self._frozen_until_ns: int | None = None
        self._incarnation: bytes | None = None
        self._welcomed = False
        self._sequence = 0
        self._heartbeats: dict[int, int] = {}  # sequence -> when sent
        self._request = 0
        self._version = 0
        self._progress_ns = now_ns
        self._names: dict[str, _NameState] = {}
        self._unsent: dict[str, None] = {}
        self._retries: dict[str, int] = {}
        self._registering: tuple[int, list[tuple[str, int]], int] | None = None
        self._unregistering: dict[str, list[_Waiting]] = {}
        self._unsent_unregisters: dict[str, None] = {}
        self._unregister_requests: dict[int, list[str]] = {}
        self._leaving: tuple[int, _Waiting] | None = None
        self._pings: dict[int, _Waiting] = {}
        self._syncing: int | None = None
        self._sync_restarted = False
        self._revision: int | None = None
        self._log_throttle = LogThrottle(_log)
        self._handlers: dict[type[RegistryMessage], Callable[[Any, int], None]] = {
            Welcome: self._on_welcome,
            Refused: self._on_refused,
            Acknowledged: self._on_acknowledged,
            Unknown: self._on_unknown,
            Registered: self._on_registered,
            Done: self._on_done,
            Part: self._on_part,
            Notices: self._on_notices,
            Pong: self._on_pong,
        }

    @property
    def incarnation(self) -> bytes | None:
        """Which life of the server welcomed us last; None before the first welcome."""
        return self._incarnation

    def granted(self, name: str) -> Entry | None:
        """What we were granted of `name`; `is_current` says whether it holds."""
        state = self._names.get(name)
        return None if state is None else state.entry

    def registrations(self) -> dict[str, Entry | None]:
        """Each registered name, and what we were granted of it."""
        return {name: state.entry for name, state in self._names.items()}

    # Registrations

    def register(self, name: str, value: Mapping[str, Any], unique: bool, waiting: _Waiting) -> None:
        """Hold `name` from now on; `waiting` gets the entry once it is granted, or `AlreadyRegistered`, `RegistryFull`,
        …"""
        state = self._names.get(name)
        if state is not None:
            own = state.entry or Entry(name, self.holder, state.value, state.unique, 0)
            _fail(waiting, AlreadyRegistered(own))
            return
        self._version += 1
        self._names[name] = _NameState(name, value, unique, self._version, waiting)
        self._unsent[name] = None

    def withdraw(self, name: str, waiting: _Waiting) -> None:
        """The caller of `register` or `update` gave up: a name that was registered for its sake is unregistered."""
        state = self._names.get(name)
        if state is None:
            return
        if state.origin is waiting:
            self.unregister(name, Future())
        else:
            state.waiting = [item for item in state.waiting if item[1] is not waiting]

    def update(self, name: str, value: Mapping[str, Any], waiting: _Waiting) -> None:
        """Give a name we hold another value; `waiting` gets the changed entry."""
        state = self._names.get(name)
        if state is None:
            _fail(waiting, NotRegistered(f"{self.holder!r} does not hold {name!r}"))
            return
        state.value = value
        self._version += 1
        state.version = self._version
        state.waiting.append((state.version, waiting))
        self._unsent[name] = None

    def unregister(self, name: str, waiting: _Waiting) -> None:
        """Hold `name` no more; `waiting` is done when the server has agreed, at once if we had not registered it."""
        state = self._names.pop(name, None)
        if state is None:
            if name in self._unregistering:
                self._unregistering[name].append(waiting)
            else:
                _resolve(waiting, None)
            return
        self._unsent.pop(name, None)
        self._retries.pop(name, None)
        for _, other in state.waiting:
            _fail(other, NotRegistered(f"{name!r} was unregistered meanwhile"))
        self._unregistering.setdefault(name, []).append(waiting)
        self._unsent_unregisters[name] = None

    def leave(self, waiting: _Waiting) -> None:
        """End our lease; `waiting` is done when the server has, at once if it is away."""
        if not self._welcomed:
            _resolve(waiting, None)
            return
        self._leaving = (self._next_request(), waiting)
        self._send(Leave(self._leaving[0]))

    def ping(self, waiting: _Waiting) -> None:
        """`waiting` is done when the server answered; nothing is sent again."""
        request = self._next_request()
        self._pings = {number: other for number, other in self._pings.items() if not other.done()}
        self._pings[request] = waiting
        self._send(Ping(request))

    def is_current(self, entry: Entry, now_ns: int) -> bool:
        """Whether this grant of ours holds at `now_ns`."""
        # Read before the grant: a lease is prolonged only after grants that it does not cover were marked.
        until_ns = self._lease_until_ns
        state = self._names.get(entry.name)
        grant = state.grant if state is not None else None
        if grant is None or entry.holder != self.holder:
            return False
        held, confirm_until_ns = grant
        if confirm_until_ns is not None:
            until_ns = min(until_ns, confirm_until_ns)
        return held.epoch == entry.epoch and held.unique == entry.unique and now_ns < until_ns

    def fail_all(self, error: RegistryError) -> None:
        """Nobody is answered any more: everyone who waits gets `error`."""
        waiting = [self.synced, *self._pings.values()]
        waiting += [other for state in self._names.values() for _, other in state.waiting]
        waiting += [other for others in self._unregistering.values() for other in others]
        if self._leaving is not None:
            waiting.append(self._leaving[1])
        for other in waiting:
            _fail(other, error)
        self.connected = False
        self._lease_until_ns = 0

    # Time

    def tick(self, now_ns: int) -> None:
        """Do what is due; call when `next_tick_ns` is reached, after `receive` of what has come by then."""
        self._check_lease(now_ns)
        if self.connected:
            self.notices += self.cache.end_grace(now_ns, 2 * self._heartbeat_ns)
        for name in [name for name, at in self._retries.items() if at <= now_ns]:
            del self._retries[name]
            if name in self._names:
                self._unsent[name] = None
        if now_ns < self.next_tick_ns:
            return
        self.connected = self.connected and now_ns - self.last_received_ns < _MISSED_HEARTBEATS * self._heartbeat_ns
        waits = self._registering is not None or self._unregister_requests or self._syncing is not None
        if self.blocked or (waits and self.connected and now_ns - self._progress_ns > _OVERDUE_NS):
            self._disconnect()
        self._send_heartbeat(now_ns)

    def next_wake_ns(self) -> int:
        """When `tick` is next needed."""
        times = [self.next_tick_ns, *self._retries.values()]
        if self._lease_valid:
            times.append(self._lease_until_ns)
        if self._frozen_until_ns is not None:
            times.append(self._frozen_until_ns)
        if self.connected and self.cache.grace_until_ns is not None:
            times.append(self.cache.grace_until_ns)
        return min(times)

    def on_reconnect(self, now_ns: int) -> None:
        """The connection was made anew; nothing on its way will arrive."""
        self.last_received_ns = now_ns
        self._disconnect()
        self.next_tick_ns = now_ns

    def flush(self, now_ns: int) -> None:
        """Tell the server what it has not been told."""
        if not self._welcomed:
            return
        if self._unsent_unregisters:
            names = list(self._unsent_unregisters)
            self._unsent_unregisters.clear()
            for begin, end in in_frames(names):
                request = self._next_request()
                self._start_answer_timer(now_ns)
                self._unregister_requests[request] = names[begin:end]
                self._send(Unregister(request, tuple(names[begin:end])))
        if self._unsent and self._registering is None:
            self._send_registrations(now_ns)

    # Frames

    def receive(self, frame: bytes, now_ns: int) -> None:
        """Take one frame of the server; what is none is counted and dropped."""
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
        restarted = self._incarnation is not None and message.incarnation != self._incarnation
        if self._welcomed and not restarted and not message.fresh:
            self._extend_lease(sent_ns)
            return
        if restarted:
            self._freeze_grants()
            self._sync_restarted = True
        elif message.fresh:
            self._void_grants(lambda state: True)
        self.lease_ns, self._heartbeat_ns = message.lease_ns, max(message.heartbeat_ns, _MILLISECOND)
        self._incarnation = message.incarnation
        self._welcomed = self.connected = True
        self.refusal = None
        self._reset_requests()
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

    def _on_registered(self, message: Registered, now_ns: int) -> None:
        if self._registering is None or self._registering[0] != message.request:
            return
        request, asked, left = self._registering
        rows = asked[message.first : message.first + len(message.verdicts)]
        left -= len(rows)
        self._registering = (request, asked, left) if left > 0 and rows else None
        self._progress_ns = now_ns
        for (name, version), verdict, detail in zip(rows, message.verdicts, message.details, strict=False):
            state = self._names.get(name)
            if state is None or version < state.first:
                continue
            if verdict == GRANTED:
                self._on_granted(state, version, decode_entry(detail))
            elif verdict == TAKEN:
                self._on_taken(state, decode_entry(detail))
            elif verdict == SETTLING:
                self._retries[name] = now_ns + int(decode_detail(detail)) + _MILLISECOND
            else:
                kind = InvalidEntry if verdict == INVALID else RegistryFull
                self._on_denied(state, version, kind(str(decode_detail(detail))), now_ns)

    def _on_done(self, message: Done, now_ns: int) -> None:
        self._progress_ns = now_ns
        for name in self._unregister_requests.pop(message.request, ()):
            for waiting in self._unregistering.pop(name, ()):
                _resolve(waiting, None)
        if self._leaving is not None and self._leaving[0] == message.request:
            self._welcomed = self.connected = False
            _resolve(self._leaving[1], None)

    def _on_part(self, message: Part, now_ns: int) -> None:
        if message.request != self._syncing:
            return
        self._progress_ns = now_ns
        if self._revision is None:
            self._revision = message.revision
        for row in message.entries:
            entry = decode_entry(row)
            self.notices += self.cache.put(entry, message.revision)
            if entry.holder == self.holder and entry.name not in self._names and entry.name not in self._unregistering:
                self._unregistering[entry.name] = []
                self._unsent_unregisters[entry.name] = None
        if message.more:
            return
        if message.cursor:
            self._request_part(message.cursor, now_ns)
            return
        self._syncing = None
        grace_until_ns = now_ns + self.lease_ns + 2 * self._heartbeat_ns if self._sync_restarted else None
        self._sync_restarted = False
        self.notices += self.cache.end_sync(grace_until_ns)
        _resolve(self.synced, None)

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
                    self._on_displaced(entry)
            else:
                self.notices += self.cache.put(entry, revision)

    def _on_pong(self, message: Pong, now_ns: int) -> None:
        waiting = self._pings.pop(message.request, None)
        if waiting is not None:
            _resolve(waiting, None)

    # Verdicts

    def _on_granted(self, state: _NameState, version: int, entry: Entry) -> None:
        if state.unique and entry.epoch <= state.void_epoch:
            self._unsent[state.name] = None
            return
        for waiting in self._unregistering.pop(state.name, ()):
            _resolve(waiting, None)
        before = state.entry
        state.grant = (entry, None)
        state.lost_entry = None
        if state.unique and before is not None and before.epoch != entry.epoch:
            state.void_epoch = before.epoch
            self.losses.append(Loss(before, None))
        if self._revision is None:
            self.notices += self.cache.put(entry)
        done = [waiting for at, waiting in state.waiting if at <= version]
        state.waiting = [(at, waiting) for at, waiting in state.waiting if at > version]
        for waiting in done:
            _resolve(waiting, entry)

    def _on_taken(self, state: _NameState, by: Entry) -> None:
        before = state.entry or state.lost_entry
        del self._names[state.name]
        self._unsent.pop(state.name, None)
        for _, waiting in state.waiting:
            _fail(waiting, AlreadyRegistered(by))
        if before is not None and state.unique:
            self.losses.append(Loss(before, by))
        elif before is not None:
            _log.warning("%r lost the duplicate name %r: %r holds it as unique", self.holder, state.name, by.holder)

    def _on_denied(self, state: _NameState, version: int, error: RegistryError, now_ns: int) -> None:
        for at, waiting in state.waiting:
            if at <= version:
                _fail(waiting, error)
        state.waiting = [(at, waiting) for at, waiting in state.waiting if at > version]
        held = state.entry or state.lost_entry
        if held is None:
            self.unregister(state.name, Future())
        elif state.version == version and held.value != state.value:
            state.value = held.value
        else:
            self._retries[state.name] = now_ns + _FULL_RETRY_NS

    def _on_displaced(self, entry: Entry) -> None:
        state = self._names.get(entry.name)
        held = state.entry if state is not None else None
        if state is None or held is None or held.epoch != entry.epoch:
            return
        if state.unique:
            self._void_grants(lambda other: other is state)
        self._unsent[entry.name] = None

    # Lease

    def _check_lease(self, now_ns: int) -> None:
        if self._lease_valid and now_ns >= self._lease_until_ns:
            self._lease_valid = False
            self._frozen_until_ns = None
            self._void_grants(lambda state: True)
        if self._frozen_until_ns is not None and now_ns >= self._frozen_until_ns:
            self._frozen_until_ns = None
            self._void_grants(lambda state: state.grant is not None and state.grant[1] is not None)

    def _extend_lease(self, sent_ns: int) -> None:
        until_ns = sent_ns + self.lease_ns
        if until_ns > self._lease_until_ns:
            self._lease_until_ns = until_ns
        self._lease_valid = True

    def _freeze_grants(self) -> None:
        for state in self._names.values():
            if state.unique and state.grant is not None and state.grant[1] is None:
                state.grant = (state.grant[0], self._lease_until_ns)
        if self._frozen_until_ns is None or self._lease_until_ns < self._frozen_until_ns:
            self._frozen_until_ns = self._lease_until_ns

    def _void_grants(self, which: Callable[[_NameState], bool]) -> None:
        for state in self._names.values():
            held = state.entry
            if state.unique and held is not None and which(state):
                state.grant = None
                state.lost_entry = held
                state.void_epoch = held.epoch
                self.losses.append(Loss(held, None))
                self._unsent[state.name] = None

    # Sending

    def _send_heartbeat(self, now_ns: int) -> None:
        self._sequence += 1
        self._heartbeats[self._sequence] = now_ns
        if len(self._heartbeats) > _MAX_HEARTBEATS:
            del self._heartbeats[next(iter(self._heartbeats))]
        if self._leaving is not None:
            self._heartbeats.clear()
        elif self._welcomed:
            self._send(Heartbeat(self._sequence, self._revision or 0))
        else:
            self._send(Hello(self._sequence, self.holder, self._instance))
        self.next_tick_ns = now_ns + (self._heartbeat_ns if self._welcomed else _HELLO_INTERVAL_NS)

    def _disconnect(self) -> None:
        self.outgoing.clear()
        self.blocked = False
        self._heartbeats.clear()
        self._welcomed = self.connected = False
        self._syncing = self._revision = None
        if self._leaving is not None:
            _resolve(self._leaving[1], None)

    def _reset_requests(self) -> None:
        self._registering = None
        self._unregister_requests.clear()
        self._retries.clear()
        # Unique names first: their grants may run out.
        self._unsent = dict.fromkeys(sorted(self._names, key=lambda name: not self._names[name].unique))
        self._unsent_unregisters = dict.fromkeys(self._unregistering)

    def _begin_sync(self, now_ns: int) -> None:
        self._revision = None
        self.cache.begin_sync()
        self._request_part(0, now_ns)

    def _request_part(self, cursor: int, now_ns: int) -> None:
        self._start_answer_timer(now_ns)
        self._syncing = self._next_request()
        self._send(Sync(self._syncing, cursor))

    def _send_registrations(self, now_ns: int) -> None:
        asked: list[tuple[str, int]] = []
        rows: list[bytes] = []
        size = 0
        for name in list(islice(self._unsent, _REGISTRATIONS_PER_FRAME)):
            if size > FULL_FRAME_BYTES:
                break
            state = self._names[name]
            del self._unsent[name]
            former = state.entry.epoch if state.entry is not None else 0
            rows.append(encode_registration(Registration(name, dict(state.value), state.unique, former)))
            size += len(rows[-1])
            asked.append((name, state.version))
        request = self._next_request()
        self._start_answer_timer(now_ns)
        self._registering = (request, asked, len(asked))
        self._send(Register(request, tuple(rows)))

    def _start_answer_timer(self, now_ns: int) -> None:
        if self._registering is None and not self._unregister_requests and self._syncing is None:
            self._progress_ns = now_ns

    def _next_request(self) -> int:
        self._request += 1
        return self._request

    def _send(self, message: RegistryMessage) -> None:
        self.outgoing.append(encode(message))


def _resolve(waiting: _Waiting, value: object) -> None:
    with suppress(InvalidStateError):
        waiting.set_result(value)


def _fail(waiting: _Waiting, error: BaseException) -> None:
    with suppress(InvalidStateError):
        waiting.set_exception(error)
