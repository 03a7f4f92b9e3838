"""The registry inside one process: the table of the served one, without sockets and leases."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from registry.entry import Entry, Loss, Notice
from registry.errors import HolderInUse, RegistryClosed, RegistryError
from registry.limits import check_name
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
        self._deliveries: deque[Callable[[], None]] = deque()
        self._delivering: threading.Thread | None = None

    @property
    def delivering_here(self) -> bool:
        """Whether this thread is in a callback."""
        return self._delivering is threading.current_thread()

    def announce(self, *notices: Notice | None) -> None:
        """Queue notices for all participants; call with the lock held."""
        news = [notice for notice in notices if notice is not None]
        if news:
            for watches in self.participants.values():
                self.queue(lambda watches=watches: watches.tell(news))  # type: ignore[misc]

    def queue(self, delivery: Callable[[], None]) -> None:
        """Queue a delivery; call with the lock held."""
        self._deliveries.append(delivery)

    def deliver(self) -> None:
        """Make the queued deliveries; call without the lock.  While another thread, or a callback's caller, is
        delivering, it makes these too."""
        while True:
            with self.lock:
                if self._delivering or not self._deliveries:
                    return
                self._delivering = threading.current_thread()
                delivery = self._deliveries.popleft()
            try:
                delivery()
            finally:
                with self.lock:
                    self._delivering = None


class LocalRegistry:
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
    def holder(self) -> str:
        """The id of the holder whose registrations these are."""
        return self._holder

    @property
    def connected(self) -> bool:
        """True from `start` to `close`."""
        return self._open

    def start(self, timeout: float = 5.0) -> None:
        """Begin to take part in the registry.  Raises `HolderInUse`, `RegistryClosed`."""
        with self._shared.lock:
            if self._closed:
                raise RegistryClosed(f"the registry of {self._holder!r} is closed; make another one")
            if self._open:
                return
            if self._holder in self._shared.participants:
                raise HolderInUse(f"{self._holder!r} takes part already")
            self._shared.participants[self._holder] = self._watches
            self._open = True

    def close(self, leave: bool = True) -> None:
        """Take part no more.  There are no leases here, so the names of the holder go at once in any case."""
        with self._shared.lock:
            if self._open:
                self._open = False
                del self._shared.participants[self._holder]
                self._shared.announce(*self._shared.table.leave(self._holder))
                self._shared.queue(self._watches.close)
            self._closed = True
        self._shared.deliver()

    def __enter__(self) -> LocalRegistry:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def register(
        self, name: str, value: Mapping[str, Any] | None = None, *, unique: bool = False, timeout: float = 5.0
    ) -> Entry:
        """Hold `name`.  Raises `AlreadyRegistered`, `InvalidEntry`, `RegistryFull`, `RegistryClosed`."""
        with self._locked() as shared:
            notice = shared.table.register(name, self._holder, value, unique=unique, now_ns=0)
            shared.announce(notice)
        shared.deliver()
        return notice.entry

    def unregister(self, name: str, *, timeout: float = 5.0) -> None:
        """Give `name` up.  Nothing happens if the holder does not have it."""
        with self._locked() as shared:
            shared.announce(shared.table.unregister(name, self._holder))
        shared.deliver()

    def update(self, name: str, value: Mapping[str, Any] | None, *, timeout: float = 5.0) -> Entry:
        """Change the value of a name that the holder has.  Raises `NotRegistered`, `InvalidEntry`, `RegistryFull`."""
        with self._locked() as shared:
            shared.announce(shared.table.update(name, self._holder, value))
            entry = next(entry for entry in shared.table.lookup(name) if entry.holder == self._holder)
        shared.deliver()
        return entry

    def lookup(self, name: str) -> tuple[Entry, ...]:
        """All entries of a name."""
        with self._shared.lock:
            return self._shared.table.lookup(name)

    def get(self, name: str) -> Entry | None:
        """The entry of a unique name; None if nobody holds it."""
        entries = self.lookup(name)
        return entries[0] if entries and entries[0].unique else None

    def keys(self, holder: str | None = None) -> tuple[str, ...]:
        """The names that `holder` has; by default, those of this holder."""
        with self._shared.lock:
            return self._shared.table.keys(self._holder if holder is None else holder)

    def count(self) -> int:
        """The number of entries, of all holders."""
        return self._shared.table.count()

    def match(self, pattern: str = "*") -> tuple[Entry, ...]:
        """The entries whose name matches a glob."""
        with self._shared.lock:
            return self._shared.table.match(pattern)

    def await_name(self, name: str, timeout: float) -> tuple[Entry, ...]:
        """The entries of `name`, as soon as there are any.  Raises `RegistryTimeout`, `RegistryClosed`."""
        if self._shared.delivering_here:
            raise RegistryError("a registry callback must not wait for the registry: it would wait for itself for ever")
        return wait_for_name(self.when_name(name), name, timeout)

    def when_name(self, name: str) -> Future[tuple[Entry, ...]]:
        """A future of what `await_name` gives; cancelled when the registry closes."""
        waiting: Future[tuple[Entry, ...]] = Future()
        with self._locked() as shared:
            entries = shared.table.lookup(name)
            if entries:
                waiting.set_result(entries)
                return waiting
            shared.queue(lambda: self._watches.add_name(name, waiting))
        shared.deliver()
        waiting.add_done_callback(lambda done: self._enqueue(lambda: self._watches.remove_name(name, done)))
        return waiting

    def watch(self, callback: Callable[[Notice], None], pattern: str = "*") -> Watch:
        """Call back for each change of matching names, first with `appeared` for what is there."""
        watch = Watch(callback, self._cancelled)
        with self._locked() as shared:
            present = shared.table.match()
            shared.queue(lambda: self._watches.add(watch, pattern, present))
        shared.deliver()
        return watch

    def on_lost(self, callback: Callable[[tuple[Loss, ...]], None]) -> Watch:
        """Register a callback that is never called: inside one process no lease lapses."""
        return Watch(callback, lambda watch: None)

    def is_current(self, entry: Entry) -> bool:
        """Whether this entry of the holder is still valid."""
        return entry.holder == self._holder and any(
            held.holder == entry.holder and held.epoch == entry.epoch and held.unique == entry.unique
            for held in self.lookup(entry.name)
        )

    def ping(self, timeout: float = 5.0) -> float:
        """Always 0.0 seconds.  Raises `RegistryClosed`."""
        with self._locked():
            return 0.0

    def _locked(self) -> _LockedTable:
        return _LockedTable(self)

    def _cancelled(self, watch: Watch) -> None:
        self._enqueue(lambda: self._watches.remove(watch))

    def _enqueue(self, delivery: Callable[[], None]) -> None:
        with self._shared.lock:
            self._shared.queue(delivery)
        self._shared.deliver()


class _LockedTable:
    """A context manager: the shared table, locked; raises `RegistryClosed` unless the registry takes part."""

    __slots__ = ("_registry",)

    def __init__(self, registry: LocalRegistry) -> None:
        self._registry = registry

    def __enter__(self) -> _SharedTable:
        shared = self._registry._shared
        shared.lock.acquire()
        if not self._registry._open:
            shared.lock.release()
            raise RegistryClosed(f"the registry of {self._registry.holder!r} is not started, or closed")
        return shared

    def __exit__(self, *_: object) -> None:
        self._registry._shared.lock.release()
