"""The port: what a node asks of a registry, whether it is in this process or served to many.

Both adapters, `LocalRegistry` and `RegistryClient`, pass one contract suite.  All methods are safe on any thread.
Callbacks come one at a time, in the order of the changes, on a thread of the registry's choice; they must be quick and
must not call what blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from registry.entry import Entry, Loss, Notice
from registry.watches import Watch


class Registry(Protocol):
    """Names to holders.

    A unique name has one holder; a duplicate name any number, each once.  All names of a holder go when it closes, or
    when it is not heard from for a lease time.
    """

    @property
    def holder(self) -> str:
        """Whose registrations these are."""

    @property
    def connected(self) -> bool:
        """Whether answers are current; else they are the last that were known."""

    def start(self, timeout: float = 5.0) -> None:
        """Take part; returns once all that is registered is known.

        Raises:
            RegistryTimeout: nothing heard from the registry in `timeout` seconds.
            HolderInUse: another live process goes by this holder id.
            RegistryFull: it serves nobody more.
        """

    def close(self, leave: bool = True) -> None:
        """Take part no more; with `leave`, all our names are gone at once, else when the lease ends.  Twice is once."""

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
        """Hold `name` no more.  Nothing happens if we do not.

        Raises:
            RegistryTimeout: the registry is away; the name goes as soon as it is back, or with our lease.
        """

    def update(self, name: str, value: Mapping[str, Any] | None, *, timeout: float = 5.0) -> Entry:
        """Change the value of a name we hold.

        Raises:
            NotRegistered, InvalidEntry, RegistryFull
            RegistryTimeout: the registry is away; it gets the value when it is back.
        """

    def lookup(self, name: str) -> tuple[Entry, ...]:
        """All entries of a name."""

    def get(self, name: str) -> Entry | None:
        """The entry of a unique name."""

    def keys(self, holder: str | None = None) -> tuple[str, ...]:
        """The names a holder has; by default ours."""

    def count(self) -> int:
        """How many entries there are, of all holders."""

    def match(self, pattern: str = "*") -> tuple[Entry, ...]:
        """The entries whose name matches a glob (see `limits.name_filter`)."""

    def await_name(self, name: str, timeout: float) -> tuple[Entry, ...]:
        """The entries of `name`, as soon as there are any; raises `RegistryTimeout` after `timeout` seconds."""

    def when_name(self, name: str) -> Future[tuple[Entry, ...]]:
        """The same as a future; cancelled when the registry closes."""

    def watch(self, callback: Callable[[Notice], None], pattern: str = "*") -> Watch:
        """Call back for each change of matching names, first with `appeared` for each entry that is there already."""

    def on_lost(self, callback: Callable[[tuple[Loss, ...]], None]) -> Watch:
        """Call back when unique names we held are not ours any more."""

    def is_current(self, entry: Entry) -> bool:
        """Whether this registration of ours holds this moment.

        Judged by our own clock: False once a lease time has passed since the last heartbeat that was acknowledged was
        sent.
        """

    def ping(self, timeout: float = 5.0) -> float:
        """Seconds to the registry and back; raises `RegistryTimeout`."""
