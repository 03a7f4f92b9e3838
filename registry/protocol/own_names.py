"""The names that a client registered: values, grants, who waits for a verdict, and what the server has yet to be
told."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from registry.entry import AlreadyRegistered, Entry, InvalidEntry, Loss, NotRegistered, RegistryError, RegistryFull
from registry.watches import Waiting, fail, resolve
from registry.wire import (
    FULL_FRAME_BYTES,
    GRANTED,
    INVALID,
    SETTLING,
    TAKEN,
    Register,
    Registered,
    Registration,
    RegistryMessage,
    Unregister,
    decode_detail,
    decode_entry,
    encode,
    encode_row,
    in_frames,
)

_MILLISECOND: Final = 1_000_000
_FULL_RETRY_NS: Final = 1_000 * _MILLISECOND
# One frame of them is on its way at a time: heartbeats must not queue behind a long repopulation.
_REGISTRATIONS_PER_FRAME: Final = 128

_log = logging.getLogger("bitactor.registry")


class Requests:
    """Frames to the server, in order, and the numbers that its answers repeat."""

    def __init__(self, now_ns: int) -> None:
        self.outgoing: deque[bytes] = deque()
        # When an answer came last, or the first of the awaited ones was asked for, by the monotonic clock.
        self.progress_ns = now_ns
        self._request = 0

    def next_number(self) -> int:
        """The number of the next request."""
        self._request += 1
        return self._request

    def send(self, message: RegistryMessage) -> None:
        """Queue a message behind those to be sent."""
        self.outgoing.append(encode(message))


@dataclass(slots=True, eq=False)
class NameState:
    """A name that a client registered: its value, who waits for the verdict, and the grant.

    Versions of all names rise together.  The registration began with version `first`; verdicts on lower ones are on a
    withdrawn registration.  A grant has beside its entry None, or the time until which a restarted server must confirm
    it.  `void_epoch` is the highest epoch whose grant is void; lower ones are void too.
    """

    name: str
    value: Mapping[str, Any]
    unique: bool
    first: int
    version: int
    origin: Waiting
    waiting: list[tuple[int, Waiting]]
    grant: tuple[Entry, int | None] | None = None
    lost_entry: Entry | None = None
    void_epoch: int = -1

    @property
    def entry(self) -> Entry | None:
        """The granted entry, or None."""
        return self.grant[0] if self.grant is not None else None


class OwnNames:
    """The registered names of one client.  For one thread, but `grant`, `entry` and `entries` are for any."""

    def __init__(
        self, holder: str, requests: Requests, on_granted: Callable[[Entry], None], on_lost: Callable[[Loss], None]
    ) -> None:
        self.holder = holder
        self._requests = requests
        self._on_granted = on_granted  # called before those who wait for the entry are answered
        self._on_lost = on_lost
        self._names: dict[str, NameState] = {}
        self._version = 0
        self._unsent: dict[str, None] = {}
        self.retries: dict[str, int] = {}  # name -> when `retry_due` is needed for it
        self._registering: tuple[int, list[tuple[str, int]], int] | None = None
        self._unregistering: dict[str, list[Waiting]] = {}
        self._unsent_unregisters: dict[str, None] = {}
        self._unregister_requests: dict[int, list[str]] = {}

    # Questions

    @property
    def awaits_answer(self) -> bool:
        """Whether the server was asked something that it has not answered."""
        return self._registering is not None or bool(self._unregister_requests)

    @property
    def has_unsent(self) -> bool:
        """Whether the server has yet to be told something."""
        return bool(self._unsent or self._unsent_unregisters)

    def grant(self, name: str) -> tuple[Entry, int | None] | None:
        """The granted entry of `name`, and until when it must be confirmed; None if there is none."""
        state = self._names.get(name)
        return None if state is None else state.grant

    def entries(self) -> dict[str, Entry | None]:
        """Registered name → its granted entry, or None."""
        return {name: state.entry for name, state in self._names.items()}

    def waiting(self) -> list[Waiting]:
        """Everyone who waits for an answer."""
        waiting = [other for state in self._names.values() for _, other in state.waiting]
        return waiting + [other for others in self._unregistering.values() for other in others]

    # Registrations

    def register(self, name: str, value: Mapping[str, Any], unique: bool, waiting: Waiting) -> None:
        """Hold `name` from now on; `waiting` gets the entry once it is granted, or `AlreadyRegistered`, `RegistryFull`,
        …"""
        state = self._names.get(name)
        if state is not None:
            own = state.entry or Entry(name, self.holder, state.value, state.unique, 0)
            fail(waiting, AlreadyRegistered(own))
            return
        self._version += 1
        version = self._version
        self._names[name] = NameState(name, value, unique, version, version, waiting, [(version, waiting)])
        self._unsent[name] = None

    def withdraw(self, name: str, waiting: Waiting) -> None:
        """Take back a `register` or `update` whose caller gave up: a name registered for its sake is unregistered."""
        state = self._names.get(name)
        if state is None:
            return
        if state.origin is waiting:
            self.unregister(name, Future())
        else:
            state.waiting = [item for item in state.waiting if item[1] is not waiting]

    def update(self, name: str, value: Mapping[str, Any], waiting: Waiting) -> None:
        """Give a registered name another value; `waiting` gets the changed entry."""
        state = self._names.get(name)
        if state is None:
            fail(waiting, NotRegistered(f"{self.holder!r} does not hold {name!r}"))
            return
        state.value = value
        self._version += 1
        state.version = self._version
        state.waiting.append((state.version, waiting))
        self._unsent[name] = None

    def unregister(self, name: str, waiting: Waiting) -> None:
        """Give `name` up; `waiting` is done when the server has agreed, at once if the name was not registered."""
        state = self._names.pop(name, None)
        if state is None:
            if name in self._unregistering:
                self._unregistering[name].append(waiting)
            else:
                resolve(waiting, None)
            return
        self._unsent.pop(name, None)
        self.retries.pop(name, None)
        for _, other in state.waiting:
            fail(other, NotRegistered(f"{name!r} was unregistered meanwhile"))
        self._unregistering.setdefault(name, []).append(waiting)
        self._unsent_unregisters[name] = None

    def give_back(self, name: str) -> None:
        """Unregister a name that the table has as this client's and that is not registered."""
        if name not in self._names and name not in self._unregistering:
            self._unregistering[name] = []
            self._unsent_unregisters[name] = None

    # Sending

    def retry_due(self, now_ns: int) -> None:
        """Ask again for the names whose retry is due by now."""
        for name in [name for name, at in self.retries.items() if at <= now_ns]:
            del self.retries[name]
            if name in self._names:
                self._unsent[name] = None

    def begin_again(self) -> None:
        """Mark everything as yet to be sent: the server has welcomed this client."""
        self._registering = None
        self._unregister_requests.clear()
        self.retries.clear()
        # Unique names first: their grants may run out.
        self._unsent = dict.fromkeys(sorted(self._names, key=lambda name: not self._names[name].unique))
        self._unsent_unregisters = dict.fromkeys(self._unregistering)

    def flush(self) -> None:
        """Send the server what it has not been told."""
        if self._unsent_unregisters:
            names = list(self._unsent_unregisters)
            self._unsent_unregisters.clear()
            for begin, end in in_frames(names):
                request = self._requests.next_number()
                self._unregister_requests[request] = names[begin:end]
                self._requests.send(Unregister(request, tuple(names[begin:end])))
        if self._unsent and self._registering is None:
            self._send_registrations()

    def _send_registrations(self) -> None:
        asked: list[tuple[str, int]] = []
        rows: list[bytes] = []
        size = 0
        for name in list(islice(self._unsent, _REGISTRATIONS_PER_FRAME)):
            if size > FULL_FRAME_BYTES:
                break
            state = self._names[name]
            del self._unsent[name]
            former = state.entry.epoch if state.entry is not None else 0
            rows.append(encode_row(Registration(name, dict(state.value), state.unique, former)))
            size += len(rows[-1])
            asked.append((name, state.version))
        request = self._requests.next_number()
        self._registering = (request, asked, len(asked))
        self._requests.send(Register(request, tuple(rows)))

    # Verdicts

    def take_verdicts(self, message: Registered, now_ns: int) -> None:
        """Take in the server's verdicts on registrations."""
        if self._registering is None or self._registering[0] != message.request:
            return
        request, asked, left = self._registering
        rows = asked[message.first : message.first + len(message.verdicts)]
        left -= len(rows)
        self._registering = (request, asked, left) if left > 0 and rows else None
        self._requests.progress_ns = now_ns
        for (name, version), verdict, detail in zip(rows, message.verdicts, message.details, strict=False):
            state = self._names.get(name)
            if state is None or version < state.first:
                continue
            if verdict == GRANTED:
                self._granted(state, version, decode_entry(detail))
            elif verdict == TAKEN:
                self._taken(state, decode_entry(detail))
            elif verdict == SETTLING:
                self.retries[name] = now_ns + int(decode_detail(detail)) + _MILLISECOND
            else:
                kind = InvalidEntry if verdict == INVALID else RegistryFull
                self._denied(state, version, kind(str(decode_detail(detail))), now_ns)

    def take_done(self, request: int) -> None:
        """Take in the answer to a request to unregister."""
        for name in self._unregister_requests.pop(request, ()):
            for waiting in self._unregistering.pop(name, ()):
                resolve(waiting, None)

    def _granted(self, state: NameState, version: int, entry: Entry) -> None:
        if state.unique and entry.epoch <= state.void_epoch:
            self._unsent[state.name] = None
            return
        for waiting in self._unregistering.pop(state.name, ()):
            resolve(waiting, None)
        before = state.entry
        state.grant = (entry, None)
        state.lost_entry = None
        if state.unique and before is not None and before.epoch != entry.epoch:
            state.void_epoch = before.epoch
            self._on_lost(Loss(before, None))
        self._on_granted(entry)
        done = [waiting for at, waiting in state.waiting if at <= version]
        state.waiting = [(at, waiting) for at, waiting in state.waiting if at > version]
        for waiting in done:
            resolve(waiting, entry)

    def _taken(self, state: NameState, by: Entry) -> None:
        before = state.entry or state.lost_entry
        del self._names[state.name]
        self._unsent.pop(state.name, None)
        for _, waiting in state.waiting:
            fail(waiting, AlreadyRegistered(by))
        if before is not None and state.unique:
            self._on_lost(Loss(before, by))
        elif before is not None:
            _log.warning("%r lost the duplicate name %r: %r holds it as unique", self.holder, state.name, by.holder)

    def _denied(self, state: NameState, version: int, error: RegistryError, now_ns: int) -> None:
        for at, waiting in state.waiting:
            if at <= version:
                fail(waiting, error)
        state.waiting = [(at, waiting) for at, waiting in state.waiting if at > version]
        held = state.entry or state.lost_entry
        if held is None:
            self.unregister(state.name, Future())
        elif state.version == version and held.value != state.value:
            state.value = held.value
        else:
            self.retries[state.name] = now_ns + _FULL_RETRY_NS

    # Grants

    def displaced(self, entry: Entry) -> None:
        """Ask again for a name whose granted entry is not in the table any more."""
        state = self._names.get(entry.name)
        held = state.entry if state is not None else None
        if state is None or held is None or held.epoch != entry.epoch:
            return
        if state.unique:
            self.void_grants(lambda other: other is state)
        self._unsent[entry.name] = None

    def freeze_grants(self, until_ns: int) -> None:
        """Let unique grants end at `until_ns` unless the restarted server confirms them."""
        for state in self._names.values():
            if state.unique and state.grant is not None and state.grant[1] is None:
                state.grant = (state.grant[0], until_ns)

    def void_grants(self, which: Callable[[NameState], bool]) -> None:
        """Void the unique grants of these names: they are lost, and asked for again."""
        for state in self._names.values():
            held = state.entry
            if state.unique and held is not None and which(state):
                state.grant = None
                state.lost_entry = held
                state.void_epoch = held.epoch
                self._on_lost(Loss(held, None))
                self._unsent[state.name] = None
