"""The port of a registry: what a node asks of it, whether it is in this process or served to many.

Both adapters, `LocalRegistry` and `RegistryClient`, pass one contract suite.  All methods are safe on any thread.
Callbacks come one at a time, in the order of the changes, on a thread of the registry's choice; they must be quick and
must not call what blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, Self

from typing_extensions import override

from registry.entry import Entry, Loss, Notice
from registry.watches import Watch


class Registry(Protocol):
    """Names and their holders, as one holder sees them.

    A unique name has one holder; a duplicate name any number, each once.  All names of a holder go when it closes, or
    when it is not heard from for a lease time.
    """

    @property
    def holder(self) -> str:
        """The id of the holder whose registrations these are."""

    @property
    def connected(self) -> bool:
        """True: answers are current; False: they are the last that were known."""

    def start(self, timeout: float = 5.0) -> None:
        """Begin to take part; returns once the whole table is known.

        Raises:
            RegistryTimeout: nothing heard from the registry in `timeout` seconds.
            HolderInUse: another live process goes by this holder id.
            RegistryFull: it serves nobody more.
        """

    def close(self, leave: bool = True) -> None:
        """Take part no more; with `leave`, all names of the holder are gone at once, else when its lease ends.  A
        second call does nothing."""

    def register(
        self, name: str, value: Mapping[str, Any] | None = None, *, unique: bool = False, timeout: float = 5.0
    ) -> Entry:
        """Hold `name`, until it is unregistered, even if the registry is restarted meanwhile.

        Raises:
            AlreadyRegistered: we hold it already, somebody holds it as unique, or anybody does and unique was asked.
            InvalidEntry: the name or value breaks the limits.
            RegistryFull, RegistryTimeout, RegistryClosed: the name is not held.
        """

    def unregister(self, name: str, *, timeout: float = 5.0) -> None:
        """Give `name` up.  Nothing happens if the holder does not have it.

        Raises:
            RegistryTimeout: the registry is away; the name goes as soon as it is back, or with our lease.
        """

    def update(self, name: str, value: Mapping[str, Any] | None, *, timeout: float = 5.0) -> Entry:
        """Change the value of a name that the holder has.

        Raises:
            NotRegistered, InvalidEntry, RegistryFull
            RegistryTimeout: the registry is away; it gets the value when it is back.
        """

    def lookup(self, name: str) -> tuple[Entry, ...]:
        """All entries of a name."""

    def get(self, name: str) -> Entry | None:
        """The entry of a unique name; None if nobody holds it."""

    def keys(self, holder: str | None = None) -> tuple[str, ...]:
        """The names that `holder` has; by default, those of this holder."""

    def count(self) -> int:
        """The number of entries, of all holders."""

    def match(self, pattern: str = "*") -> tuple[Entry, ...]:
        """The entries whose name matches a glob (see `limits.name_filter`)."""

    def await_name(self, name: str, timeout: float) -> tuple[Entry, ...]:
        """The entries of `name`, as soon as there are any; raises `RegistryTimeout` after `timeout` seconds."""

    def when_name(self, name: str) -> Future[tuple[Entry, ...]]:
        """A future of what `await_name` gives; cancelled when the registry closes."""

    def watch(self, callback: Callable[[Notice], None], pattern: str = "*") -> Watch:
        """Call back for each change of matching names, first with `appeared` for each entry that is there already."""

    def on_lost(self, callback: Callable[[tuple[Loss, ...]], None]) -> Watch:
        """Call back when unique names are lost, that is, not held by this holder any more."""

    def is_current(self, entry: Entry) -> bool:
        """Whether this entry of the holder is still valid.

        Judged by our own clock: False once a lease time has passed since the last heartbeat that was acknowledged was
        sent.
        """

    def ping(self, timeout: float = 5.0) -> float:
        """Seconds that a message takes to the registry and back; raises `RegistryTimeout`."""


class Adapter(Registry):
    """What both adapters do alike."""

    @override
    def get(self, name: str) -> Entry | None:
        entries = self.lookup(name)
        return entries[0] if entries and entries[0].unique else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
