"""A client's cache of the table's entries.  Written by one thread; `lookup` may be called from any.

Between a restart of the server and its peers' return, entries that the fresh table does not have yet are *unconfirmed*:
still answered, and dropped only when they have not come back in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from registry.entry import APPEARED, CHANGED, DISAPPEARED, Entry, Notice

_Key = tuple[str, str]
_MAX_EXTENSIONS: Final = 50


class EntryCache:
    """Entries by name, as tuples that are replaced, never changed, so that readers need no lock."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[Entry, ...]] = {}
        self._holders: dict[str, dict[str, None]] = {}
        self._count = 0
        self._not_synced: set[_Key] = set()
        self._unconfirmed: set[_Key] = set()
        self._confirming = False
        self._extensions = 0
        self.grace_until_ns: int | None = None  # when unconfirmed entries are dropped; None if there are none

    # Questions; safe on any thread

    def lookup(self, name: str) -> tuple[Entry, ...]:
        """All entries of a name."""
        return self._names.get(name, ())

    def count(self) -> int:
        """The number of entries."""
        return self._count

    def keys(self, holder: str) -> tuple[str, ...]:
        """The names that a holder has."""
        return tuple((self._holders.get(holder) or {}).copy())

    def names(self) -> dict[str, tuple[Entry, ...]]:
        """All entries by name, in a copy."""
        return self._names.copy()

    # Changes; on the owning thread

    def put(self, entry: Entry, revision: int = 0) -> list[Notice]:
        """Add or change an entry; the notices of that.  A unique name displaces every other entry of the name."""
        key = (entry.name, entry.holder)
        self._not_synced.discard(key)
        if key in self._unconfirmed:
            self._unconfirmed.remove(key)
            self._confirming = True
        known = self._names.get(entry.name, ())
        notices: list[Notice] = []
        kept: list[Entry] = []
        before: Entry | None = None
        for other in known:
            if other.holder == entry.holder:
                before = other
            elif entry.unique or other.unique:
                self._unindex(other)
                notices.append(Notice(DISAPPEARED, other, revision))
            else:
                kept.append(other)
        if before == entry and not notices:
            return notices
        self._names[entry.name] = (*kept, entry)
        if before is None:
            self._count += 1
            self._holders.setdefault(entry.holder, {})[entry.name] = None
        if before != entry:
            notices.append(Notice(APPEARED if before is None else CHANGED, entry, revision))
        return notices

    def remove(self, name: str, holder: str, revision: int = 0) -> list[Notice]:
        """Remove an entry; the notices of that, none if it was not known."""
        known = self._names.get(name, ())
        for entry in known:
            if entry.holder == holder:
                rest = tuple(other for other in known if other is not entry)
                if rest:
                    self._names[name] = rest
                else:
                    del self._names[name]
                self._unindex(entry)
                return [Notice(DISAPPEARED, entry, revision)]
        return []

    def begin_sync(self) -> None:
        """Mark all entries as missing until they are `put` again: the whole table follows."""
        self._not_synced = {(entry.name, entry.holder) for entries in self._names.values() for entry in entries}

    def end_sync(self, grace_until_ns: int | None) -> list[Notice]:
        """Drop the entries that were not put since `begin_sync`, or, with a grace (the table was restarted), make them
        unconfirmed until then; the notices of that."""
        missing, self._not_synced = self._not_synced, set()
        if grace_until_ns is not None:
            self._unconfirmed |= missing
            self._confirming = False
            self._extensions = 0
            self.grace_until_ns = grace_until_ns if self._unconfirmed else None
            return []
        return self._drop(missing - self._unconfirmed)

    def end_grace(self, now_ns: int, extension_ns: int) -> list[Notice]:
        """Drop the unconfirmed entries, if it is time; while entries keep coming back, the others get `extension_ns`
        more."""
        if self.grace_until_ns is None or now_ns < self.grace_until_ns:
            return []
        if self._unconfirmed and self._confirming and self._extensions < _MAX_EXTENSIONS:
            self._confirming = False
            self._extensions += 1
            self.grace_until_ns = now_ns + extension_ns
            return []
        self.grace_until_ns = None
        unconfirmed, self._unconfirmed = self._unconfirmed, set()
        return self._drop(unconfirmed)

    def _drop(self, keys: Iterable[_Key]) -> list[Notice]:
        return [notice for name, holder in sorted(keys) for notice in self.remove(name, holder)]

    def _unindex(self, entry: Entry) -> None:
        self._not_synced.discard((entry.name, entry.holder))
        self._unconfirmed.discard((entry.name, entry.holder))
        self._count -= 1
        names = self._holders[entry.holder]
        del names[entry.name]
        if not names:
            del self._holders[entry.holder]
