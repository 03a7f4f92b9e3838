"""The client's side of the protocol, without sockets, threads or clocks: wishes, frames and time go in, frames and news
come out.

What we *want* (names with values) is kept here; what we *hold* follows from the server's verdicts.  After every welcome
all wishes are told again, so a restarted server, a lost answer and a lost lease are one case.

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
from registry.cache import Cache
from registry.entry import DISAPPEARED, Entry, Loss, Notice
from registry.errors import (
    AlreadyRegistered,
    HolderInUse,
    InvalidEntry,
    NotRegistered,
    RegistryError,
    RegistryFull,
)
from registry.occasionally import Occasionally
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
    RegistryMessage,
    Sync,
    Unknown,
    Unregister,
    Welcome,
    Wish,
    decode,
    decode_detail,
    decode_entry,
    encode,
    encode_wish,
    in_frames,
)

_MILLISECOND: Final = 1_000_000
_AWAY_INTERVAL_NS: Final = 100 * _MILLISECOND
_DEFAULT_HEARTBEAT_NS: Final = 300 * _MILLISECOND
_OVERDUE_NS: Final = 2_000 * _MILLISECOND
_FULL_RETRY_NS: Final = 1_000 * _MILLISECOND
_HEARTBEATS_REMEMBERED: Final = 64
_WISHES_PER_FRAME: Final = 128
"""One such frame is on its way at a time: heartbeats must not queue behind a long repopulation."""
_MISSED_HEARTBEATS: Final = 3

_log = logging.getLogger("bitactor.registry")

_Waiting = Future[Any]


class _Wanted:
    """One name we want."""

    __slots__ = ("first", "grant", "lost", "name", "origin", "unique", "value", "version", "void", "waiting")

    def __init__(self, name: str, value: Mapping[str, Any], unique: bool, version: int, origin: _Waiting) -> None:
        self.name = name
        self.value = value
        self.unique = unique
        self.origin = origin
        self.first = self.version = version
        """Verdicts on versions before `first` are on a wish that was withdrawn; versions of all wishes rise
        together."""
        self.waiting: list[tuple[int, _Waiting]] = [(version, origin)]
        self.grant: tuple[Entry, int | None] | None = None
        """What we hold; with a time when it is to be confirmed by a restarted server before that time."""
        self.lost: Entry | None = None
        self.void = -1
        """Grants up to this epoch are void."""

    @property
    def entry(self) -> Entry | None:
        return self.grant[0] if self.grant is not None else None


class Conversation:
    """See the module's docstring.  For one thread, but `is_current`, `connected` and the cache's questions are for
    any."""

    def __init__(self, holder: str, instance: bytes, now_ns: int) -> None:
        self.holder = holder
        self.cache = Cache()
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
        self.heard_ns = now_ns
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
        self._beats: dict[int, int] = {}  # sequence -> when sent
        self._request = 0
        self._version = 0
        self._progress_ns = now_ns
        self._wanted: dict[str, _Wanted] = {}
        self._untold: dict[str, None] = {}
        self._retries: dict[str, int] = {}
        self._registering: tuple[int, list[tuple[str, int]], int] | None = None
        self._unregistering: dict[str, list[_Waiting]] = {}
        self._unregister_untold: dict[str, None] = {}
        self._done: dict[int, list[str]] = {}
        self._leaving: tuple[int, _Waiting] | None = None
        self._pings: dict[int, _Waiting] = {}
        self._syncing: int | None = None
        self._sync_restarted = False
        self._revision: int | None = None
        self._complain = Occasionally(_log)
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
        wanted = self._wanted.get(name)
        return None if wanted is None else wanted.entry

    def wanted(self) -> dict[str, Entry | None]:
        """Each name we want, and what we were granted of it."""
        return {name: wanted.entry for name, wanted in self._wanted.items()}

    # Wishes

    def want(self, name: str, value: Mapping[str, Any], unique: bool, waiting: _Waiting) -> None:
        """Hold `name` from now on; `waiting` gets the entry once it is granted, or `AlreadyRegistered`, `RegistryFull`,
        …"""
        wanted = self._wanted.get(name)
        if wanted is not None:
            own = wanted.entry or Entry(name, self.holder, wanted.value, wanted.unique, 0)
            _fail(waiting, AlreadyRegistered(own))
            return
        self._version += 1
        self._wanted[name] = _Wanted(name, value, unique, self._version, waiting)
        self._untold[name] = None

    def withdraw(self, name: str, waiting: _Waiting) -> None:
        """The caller of `want` or `change` gave up: a name that was wanted for its sake is wanted no more."""
        wanted = self._wanted.get(name)
        if wanted is None:
            return
        if wanted.origin is waiting:
            self.unwant(name, Future())
        else:
            wanted.waiting = [item for item in wanted.waiting if item[1] is not waiting]

    def change(self, name: str, value: Mapping[str, Any], waiting: _Waiting) -> None:
        """Give a name we hold another value; `waiting` gets the changed entry."""
        wanted = self._wanted.get(name)
        if wanted is None:
            _fail(waiting, NotRegistered(f"{self.holder!r} does not hold {name!r}"))
            return
        wanted.value = value
        self._version += 1
        wanted.version = self._version
        wanted.waiting.append((wanted.version, waiting))
        self._untold[name] = None

    def unwant(self, name: str, waiting: _Waiting) -> None:
        """Hold `name` no more; `waiting` is done when the server has agreed, at once if we did not want it."""
        wanted = self._wanted.pop(name, None)
        if wanted is None:
            if name in self._unregistering:
                self._unregistering[name].append(waiting)
            else:
                _finish(waiting, None)
            return
        self._untold.pop(name, None)
        self._retries.pop(name, None)
        for _, other in wanted.waiting:
            _fail(other, NotRegistered(f"{name!r} was unregistered meanwhile"))
        self._unregistering.setdefault(name, []).append(waiting)
        self._unregister_untold[name] = None

    def leave(self, waiting: _Waiting) -> None:
        """End our lease; `waiting` is done when the server has, at once if it is away."""
        if not self._welcomed:
            _finish(waiting, None)
            return
        self._leaving = (self._next_request(), waiting)
        self._say(Leave(self._leaving[0]))

    def ping(self, waiting: _Waiting) -> None:
        """`waiting` is done when the server answered; nothing is sent again."""
        request = self._next_request()
        self._pings = {number: other for number, other in self._pings.items() if not other.done()}
        self._pings[request] = waiting
        self._say(Ping(request))

    def is_current(self, entry: Entry, now_ns: int) -> bool:
        """Whether this grant of ours holds at `now_ns`."""
        # Read before the grant: a lease is prolonged only after grants that it does not cover were marked.
        until_ns = self._lease_until_ns
        wanted = self._wanted.get(entry.name)
        grant = wanted.grant if wanted is not None else None
        if grant is None or entry.holder != self.holder:
            return False
        held, confirm_until_ns = grant
        if confirm_until_ns is not None:
            until_ns = min(until_ns, confirm_until_ns)
        return held.epoch == entry.epoch and held.unique == entry.unique and now_ns < until_ns

    def fail_all(self, error: RegistryError) -> None:
        """Nobody is answered any more: everyone who waits gets `error`."""
        waiting = [self.synced, *self._pings.values()]
        waiting += [other for wanted in self._wanted.values() for _, other in wanted.waiting]
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
            if name in self._wanted:
                self._untold[name] = None
        if now_ns < self.next_tick_ns:
            return
        self.connected = self.connected and now_ns - self.heard_ns < _MISSED_HEARTBEATS * self._heartbeat_ns
        waits = self._registering is not None or self._done or self._syncing is not None
        if self.blocked or (waits and self.connected and now_ns - self._progress_ns > _OVERDUE_NS):
            self._lose_contact()
        self._beat(now_ns)

    def wake_ns(self) -> int:
        """When `tick` is next needed."""
        times = [self.next_tick_ns, *self._retries.values()]
        if self._lease_valid:
            times.append(self._lease_until_ns)
        if self._frozen_until_ns is not None:
            times.append(self._frozen_until_ns)
        if self.connected and self.cache.grace_until_ns is not None:
            times.append(self.cache.grace_until_ns)
        return min(times)

    def reopened(self, now_ns: int) -> None:
        """The connection was made anew; nothing on its way will arrive."""
        self.heard_ns = now_ns
        self._lose_contact()
        self.next_tick_ns = now_ns

    def flush(self, now_ns: int) -> None:
        """Tell the server what it has not been told."""
        if not self._welcomed:
            return
        if self._unregister_untold:
            names = list(self._unregister_untold)
            self._unregister_untold.clear()
            for begin, end in in_frames(names):
                request = self._next_request()
                self._expect(now_ns)
                self._done[request] = names[begin:end]
                self._say(Unregister(request, tuple(names[begin:end])))
        if self._untold and self._registering is None:
            self._tell_wishes(now_ns)

    # Frames

    def receive(self, frame: bytes, now_ns: int) -> None:
        """Take one frame of the server; what is none is counted and dropped."""
        try:
            message = decode(frame)
            handler = self._handlers.get(type(message))
            if handler is None:
                self.malformed += 1
                return
            self.heard_ns = now_ns
            handler(message, now_ns)
        except (ProtocolError, InvalidEntry, ValueError) as error:
            self.malformed += 1
            self._complain.warn(now_ns, "a malformed frame of the registry is dropped: %s", str(error)[:200])

    def _on_welcome(self, message: Welcome, now_ns: int) -> None:
        sent_ns = self._beats.pop(message.sequence, None)
        if sent_ns is None:
            return
        self._check_lease(now_ns)
        restarted = self._incarnation is not None and message.incarnation != self._incarnation
        if self._welcomed and not restarted and not message.fresh:
            self._prolong(sent_ns)
            return
        if restarted:
            self._freeze_grants()
            self._sync_restarted = True
        elif message.fresh:
            self._void_grants(lambda wanted: True)
        self.lease_ns, self._heartbeat_ns = message.lease_ns, max(message.heartbeat_ns, _MILLISECOND)
        self._incarnation = message.incarnation
        self._welcomed = self.connected = True
        self.refusal = None
        self._forget_requests()
        self._prolong(sent_ns)
        self.next_tick_ns = min(self.next_tick_ns, now_ns + self._heartbeat_ns)
        self._begin_sync(now_ns)

    def _on_refused(self, message: Refused, now_ns: int) -> None:
        if self._beats.pop(message.sequence, None) is not None and not self._welcomed:
            kind = HolderInUse if message.reason == REFUSED_HOLDER_IN_USE else RegistryFull
            self.refusal = kind(f"the registry refused {self.holder!r}: {message.detail}")

    def _on_acknowledged(self, message: Acknowledged, now_ns: int) -> None:
        sent_ns = self._beats.pop(message.sequence, None)
        if sent_ns is None or not self._welcomed:
            return
        self.connected = True
        self._check_lease(now_ns)
        self._prolong(sent_ns)
        if self._revision is not None and message.revision > self._revision:
            self._begin_sync(now_ns)

    def _on_unknown(self, message: Unknown, now_ns: int) -> None:
        if self._welcomed:
            self._lose_contact()
            self._beat(now_ns)

    def _on_registered(self, message: Registered, now_ns: int) -> None:
        if self._registering is None or self._registering[0] != message.request:
            return
        request, asked, left = self._registering
        rows = asked[message.first : message.first + len(message.verdicts)]
        left -= len(rows)
        self._registering = (request, asked, left) if left > 0 and rows else None
        self._progress_ns = now_ns
        for (name, version), verdict, detail in zip(rows, message.verdicts, message.details, strict=False):
            wanted = self._wanted.get(name)
            if wanted is None or version < wanted.first:
                continue
            if verdict == GRANTED:
                self._granted(wanted, version, decode_entry(detail))
            elif verdict == TAKEN:
                self._taken(wanted, decode_entry(detail))
            elif verdict == SETTLING:
                self._retries[name] = now_ns + int(decode_detail(detail)) + _MILLISECOND
            else:
                kind = InvalidEntry if verdict == INVALID else RegistryFull
                self._denied(wanted, version, kind(str(decode_detail(detail))), now_ns)

    def _on_done(self, message: Done, now_ns: int) -> None:
        self._progress_ns = now_ns
        for name in self._done.pop(message.request, ()):
            for waiting in self._unregistering.pop(name, ()):
                _finish(waiting, None)
        if self._leaving is not None and self._leaving[0] == message.request:
            self._welcomed = self.connected = False
            _finish(self._leaving[1], None)

    def _on_part(self, message: Part, now_ns: int) -> None:
        if message.request != self._syncing:
            return
        self._progress_ns = now_ns
        if self._revision is None:
            self._revision = message.revision
        for row in message.entries:
            entry = decode_entry(row)
            self.notices += self.cache.put(entry, message.revision)
            if entry.holder == self.holder and entry.name not in self._wanted and entry.name not in self._unregistering:
                self._unregistering[entry.name] = []
                self._unregister_untold[entry.name] = None
        if message.more:
            return
        if message.cursor:
            self._ask_part(message.cursor, now_ns)
            return
        self._syncing = None
        grace_until_ns = now_ns + self.lease_ns + 2 * self._heartbeat_ns if self._sync_restarted else None
        self._sync_restarted = False
        self.notices += self.cache.end_sync(grace_until_ns)
        _finish(self.synced, None)

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
                    self._displaced(entry)
            else:
                self.notices += self.cache.put(entry, revision)

    def _on_pong(self, message: Pong, now_ns: int) -> None:
        waiting = self._pings.pop(message.request, None)
        if waiting is not None:
            _finish(waiting, None)

    # Verdicts

    def _granted(self, wanted: _Wanted, version: int, entry: Entry) -> None:
        if wanted.unique and entry.epoch <= wanted.void:
            self._untold[wanted.name] = None
            return
        for waiting in self._unregistering.pop(wanted.name, ()):
            _finish(waiting, None)
        before = wanted.entry
        wanted.grant = (entry, None)
        wanted.lost = None
        if wanted.unique and before is not None and before.epoch != entry.epoch:
            wanted.void = before.epoch
            self.losses.append(Loss(before, None))
        if self._revision is None:
            self.notices += self.cache.put(entry)
        done = [waiting for at, waiting in wanted.waiting if at <= version]
        wanted.waiting = [(at, waiting) for at, waiting in wanted.waiting if at > version]
        for waiting in done:
            _finish(waiting, entry)

    def _taken(self, wanted: _Wanted, by: Entry) -> None:
        before = wanted.entry or wanted.lost
        del self._wanted[wanted.name]
        self._untold.pop(wanted.name, None)
        for _, waiting in wanted.waiting:
            _fail(waiting, AlreadyRegistered(by))
        if before is not None and wanted.unique:
            self.losses.append(Loss(before, by))
        elif before is not None:
            _log.warning("%r lost the duplicate name %r: %r holds it as unique", self.holder, wanted.name, by.holder)

    def _denied(self, wanted: _Wanted, version: int, error: RegistryError, now_ns: int) -> None:
        for at, waiting in wanted.waiting:
            if at <= version:
                _fail(waiting, error)
        wanted.waiting = [(at, waiting) for at, waiting in wanted.waiting if at > version]
        held = wanted.entry or wanted.lost
        if held is None:
            self.unwant(wanted.name, Future())
        elif wanted.version == version and held.value != wanted.value:
            wanted.value = held.value
        else:
            self._retries[wanted.name] = now_ns + _FULL_RETRY_NS

    def _displaced(self, entry: Entry) -> None:
        wanted = self._wanted.get(entry.name)
        held = wanted.entry if wanted is not None else None
        if wanted is None or held is None or held.epoch != entry.epoch:
            return
        if wanted.unique:
            self._void_grants(lambda other: other is wanted)
        self._untold[entry.name] = None

    # Lease

    def _check_lease(self, now_ns: int) -> None:
        if self._lease_valid and now_ns >= self._lease_until_ns:
            self._lease_valid = False
            self._frozen_until_ns = None
            self._void_grants(lambda wanted: True)
        if self._frozen_until_ns is not None and now_ns >= self._frozen_until_ns:
            self._frozen_until_ns = None
            self._void_grants(lambda wanted: wanted.grant is not None and wanted.grant[1] is not None)

    def _prolong(self, sent_ns: int) -> None:
        until_ns = sent_ns + self.lease_ns
        if until_ns > self._lease_until_ns:
            self._lease_until_ns = until_ns
        self._lease_valid = True

    def _freeze_grants(self) -> None:
        for wanted in self._wanted.values():
            if wanted.unique and wanted.grant is not None and wanted.grant[1] is None:
                wanted.grant = (wanted.grant[0], self._lease_until_ns)
        if self._frozen_until_ns is None or self._lease_until_ns < self._frozen_until_ns:
            self._frozen_until_ns = self._lease_until_ns

    def _void_grants(self, which: Callable[[_Wanted], bool]) -> None:
        for wanted in self._wanted.values():
            held = wanted.entry
            if wanted.unique and held is not None and which(wanted):
                wanted.grant = None
                wanted.lost = held
                wanted.void = held.epoch
                self.losses.append(Loss(held, None))
                self._untold[wanted.name] = None

    # Talking

    def _beat(self, now_ns: int) -> None:
        self._sequence += 1
        self._beats[self._sequence] = now_ns
        if len(self._beats) > _HEARTBEATS_REMEMBERED:
            del self._beats[next(iter(self._beats))]
        if self._leaving is not None:
            self._beats.clear()
        elif self._welcomed:
            self._say(Heartbeat(self._sequence, self._revision or 0))
        else:
            self._say(Hello(self._sequence, self.holder, self._instance))
        self.next_tick_ns = now_ns + (self._heartbeat_ns if self._welcomed else _AWAY_INTERVAL_NS)

    def _lose_contact(self) -> None:
        self.outgoing.clear()
        self.blocked = False
        self._beats.clear()
        self._welcomed = self.connected = False
        self._syncing = self._revision = None
        if self._leaving is not None:
            _finish(self._leaving[1], None)

    def _forget_requests(self) -> None:
        self._registering = None
        self._done.clear()
        self._retries.clear()
        # Unique names first: their grants may run out.
        self._untold = dict.fromkeys(sorted(self._wanted, key=lambda name: not self._wanted[name].unique))
        self._unregister_untold = dict.fromkeys(self._unregistering)

    def _begin_sync(self, now_ns: int) -> None:
        self._revision = None
        self.cache.begin_sync()
        self._ask_part(0, now_ns)

    def _ask_part(self, cursor: int, now_ns: int) -> None:
        self._expect(now_ns)
        self._syncing = self._next_request()
        self._say(Sync(self._syncing, cursor))

    def _tell_wishes(self, now_ns: int) -> None:
        asked: list[tuple[str, int]] = []
        rows: list[bytes] = []
        size = 0
        for name in list(islice(self._untold, _WISHES_PER_FRAME)):
            if size > FULL_FRAME_BYTES:
                break
            wanted = self._wanted[name]
            del self._untold[name]
            former = wanted.entry.epoch if wanted.entry is not None else 0
            rows.append(encode_wish(Wish(name, dict(wanted.value), wanted.unique, former)))
            size += len(rows[-1])
            asked.append((name, wanted.version))
        request = self._next_request()
        self._expect(now_ns)
        self._registering = (request, asked, len(asked))
        self._say(Register(request, tuple(rows)))

    def _expect(self, now_ns: int) -> None:
        if self._registering is None and not self._done and self._syncing is None:
            self._progress_ns = now_ns

    def _next_request(self) -> int:
        self._request += 1
        return self._request

    def _say(self, message: RegistryMessage) -> None:
        self.outgoing.append(encode(message))


def _finish(waiting: _Waiting, value: object) -> None:
    with suppress(InvalidStateError):
        waiting.set_result(value)


def _fail(waiting: _Waiting, error: BaseException) -> None:
    with suppress(InvalidStateError):
        waiting.set_exception(error)
