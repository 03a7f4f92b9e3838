"""The registry inside one process: the table of the served one, without sockets and leases."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from typing_extensions import override

from registry.entry import Entry, HolderInUse, Loss, Notice, RegistryClosed, RegistryError
from registry.limits import check_name
from registry.port import Adapter
from registry.table import Table
from registry.watches import Watch, Watches, wait_for_name


class _SharedTable:
    """A table, and the queue of deliveries to those who watch it.

    Deliveries queue up in the order of the changes and are made outside the lock by one thread at a time, so a callback
    may register.
    """

    def __init__(self) -> None:
        self.table = Table()
        self.lock = threading.RLock()
        self.participants: dict[str, Watches] = {}
        self.deliveries: deque[Callable[[], None]] = deque()  # appended to with the lock held
        self.delivering: threading.Thread | None = None

    def announce(self, *notices: Notice | None) -> None:
        """Queue notices for all participants; call with the lock held."""
        news = [notice for notice in notices if notice is not None]
        if news:
            for watches in self.participants.values():
                self.deliveries.append(lambda watches=watches: watches.tell(news))  # type: ignore[misc]

    def deliver(self) -> None:
        """Make the queued deliveries; call without the lock.  While another thread, or a callback's caller, is
        delivering, it makes these too."""
        while True:
            with self.lock:
                if self.delivering or not self.deliveries:
                    return
                self.delivering = threading.current_thread()
                delivery = self.deliveries.popleft()
            try:
                delivery()
            finally:
                with self.lock:
                    self.delivering = None


class LocalRegistry(Adapter):
    """One holder's view of a registry in this process (the port is `registry.port.Registry`).

    Callbacks come on the thread that made the change, or on one that made another change at the same time.
    """

    def __init__(self, holder: str = "local") -> None:
        """Raises `InvalidEntry` when `holder` is no name."""
        check_name(holder, "a holder id")
        self._holder = holder
        self._shared = _SharedTable()
        self._watches = Watches(self.lookup)
        self._open = False
        self._closed = False

    def peer(self, holder: str) -> LocalRegistry:
        """Another holder's view of the same registry, to be started like this one."""
        other = LocalRegistry(holder)
        other._shared = self._shared
        return other

    @property
    @override
    def holder(self) -> str:
        return self._holder

    @property
    @override
    def connected(self) -> bool:
        """True from `start` to `close`."""
        return self._open

    @override
    def start(self, timeout: float = 5.0) -> None:
        with self._shared.lock:
            if self._closed:
                raise RegistryClosed(f"the registry of {self._holder!r} is closed; make another one")
            if self._open:
                return
            if self._holder in self._shared.participants:
                raise HolderInUse(f"{self._holder!r} takes part already")
            self._shared.participants[self._holder] = self._watches
            self._open = True

    @override
    def close(self, leave: bool = True) -> None:
        """Take part no more.  There are no leases here, so the names of the holder go at once in any case."""
        with self._shared.lock:
            if self._open:
                self._open = False
                del self._shared.participants[self._holder]
                self._shared.announce(*self._shared.table.leave(self._holder))
                self._shared.deliveries.append(self._watches.close)
            self._closed = True
        self._shared.deliver()

    @override
    def register(
        self, name: str, value: Mapping[str, Any] | None = None, *, unique: bool = False, timeout: float = 5.0
    ) -> Entry:
        with self._changing() as shared:
            notice = shared.table.register(name, self._holder, value, unique=unique, now_ns=0)
            shared.announce(notice)
        return notice.entry

    @override
    def unregister(self, name: str, *, timeout: float = 5.0) -> None:
        with self._changing() as shared:
            shared.announce(shared.table.unregister(name, self._holder))

    @override
    def update(self, name: str, value: Mapping[str, Any] | None, *, timeout: float = 5.0) -> Entry:
        with self._changing() as shared:
            shared.announce(shared.table.update(name, self._holder, value))
            held = shared.table.lookup(name)
        return next(entry for entry in held if entry.holder == self._holder)

    @override
    def lookup(self, name: str) -> tuple[Entry, ...]:
        with self._shared.lock:
            return self._shared.table.lookup(name)

    @override
    def keys(self, holder: str | None = None) -> tuple[str, ...]:
        with self._shared.lock:
            return self._shared.table.keys(self._holder if holder is None else holder)

    @override
    def count(self) -> int:
        return self._shared.table.count()

    @override
    def match(self, pattern: str = "*") -> tuple[Entry, ...]:
        with self._shared.lock:
            return self._shared.table.match(pattern)

    @override
    def await_name(self, name: str, timeout: float) -> tuple[Entry, ...]:
        if self._shared.delivering is threading.current_thread():
            raise RegistryError("a registry callback must not wait for the registry: it would wait for itself for ever")
        return wait_for_name(self.when_name(name), name, timeout)

    @override
    def when_name(self, name: str) -> Future[tuple[Entry, ...]]:
        waiting: Future[tuple[Entry, ...]] = Future()
        with self._changing() as shared:
            entries = shared.table.lookup(name)
            if entries:
                waiting.set_result(entries)
                return waiting
            shared.deliveries.append(lambda: self._watches.add_name(name, waiting))
        waiting.add_done_callback(lambda done: self._enqueue(lambda: self._watches.remove_name(name, done)))
        return waiting

    @override
    def watch(self, callback: Callable[[Notice], None], pattern: str = "*") -> Watch:
        watch = Watch(callback, self._cancelled)
        with self._changing() as shared:
            present = shared.table.match()
            shared.deliveries.append(lambda: self._watches.add(watch, pattern, present))
        return watch

    @override
    def on_lost(self, callback: Callable[[tuple[Loss, ...]], None]) -> Watch:
        """Register a callback that is never called: inside one process no lease lapses."""
        return Watch(callback, lambda watch: None)

    @override
    def is_current(self, entry: Entry) -> bool:
        return entry.holder == self._holder and any(
            held.holder == entry.holder and held.epoch == entry.epoch and held.unique == entry.unique
            for held in self.lookup(entry.name)
        )

    @override
    def ping(self, timeout: float = 5.0) -> float:
        """Always 0.0 seconds.  Raises `RegistryClosed`."""
        with self._changing():
            pass
        return 0.0

    @contextmanager
    def _changing(self) -> Iterator[_SharedTable]:
        """The shared table, locked; what is queued meanwhile is delivered then.  Raises `RegistryClosed`."""
        with self._shared.lock:
            if not self._open:
                raise RegistryClosed(f"the registry of {self._holder!r} is not started, or closed")
            yield self._shared
        self._shared.deliver()

    def _cancelled(self, watch: Watch) -> None:
        self._enqueue(lambda: self._watches.remove(watch))

    def _enqueue(self, delivery: Callable[[], None]) -> None:
        with self._shared.lock:
            self._shared.deliveries.append(delivery)
        self._shared.deliver()
