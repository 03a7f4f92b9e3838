"""The table of names: who holds what, for how long, and under which epoch.  Pure: time comes in as `now_ns`.

Guarantees:

- A unique name has one holder; a duplicate name has any number, each once.  A name is not both at a time.
- Every grant of a unique name has a higher epoch than every grant of any unique name before it: `(boot << 32) +
  counter`.
- A holder has one lease.  All its names live and die with it: `leave`, or `expire` once it was not renewed for
  `lease_ns`.
- Every change returns its notices, numbered 1, 2, 3, … without gaps by `revision`.

Costs: lookup, register, unregister and renew are O(1); keys and leave O(names of the holder); match O(names); expire
O(holders).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from registry.entry import APPEARED, CHANGED, DISAPPEARED, AlreadyRegistered, Entry, Notice, NotRegistered, RegistryFull
from registry.limits import MAX_NAMES_PER_HOLDER, check_name, name_filter, normal_value

DEFAULT_LEASE_NS: Final = 1_500_000_000
BUCKETS: Final = 256
_EPOCH_BITS: Final = 32
_ENTRY_OVERHEAD: Final = 512  # bytes that an entry is counted with beside its name and value


class Claimed(NamedTuple):
    """The result of a claim: the entry now held, or None while the table is settling; and the notices."""

    entry: Entry | None
    notices: tuple[Notice, ...]


@dataclass(slots=True)
class _Lease:
    until_ns: int
    names: dict[str, int] = field(default_factory=dict)  # name -> bytes it is taken to need


class Table:
    """The table of names; see the docstring of the module.  Not thread-safe."""

    def __init__(
        self,
        *,
        boot: int = 1,
        lease_ns: int = DEFAULT_LEASE_NS,
        max_entries: int = 500_000,
        max_bytes: int = 512 * 1024 * 1024,
        max_names_per_holder: int = MAX_NAMES_PER_HOLDER,
    ) -> None:
        self.boot = boot
        self.lease_ns = lease_ns
        self.revision = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_names_per_holder = max_names_per_holder
        self._counter = 0
        self._count = 0
        self._bytes = 0
        # By a name's hash, so that a reader can go through all names in steps while they change.
        self._buckets: list[dict[str, dict[str, Entry]]] = [{} for _ in range(BUCKETS)]
        self._leases: dict[str, _Lease] = {}

    # Leases

    def renew(self, holder: str, now_ns: int) -> bool:
        """Let the holder's lease run from `now_ns`; False, and nothing done, when it has none."""
        lease = self._leases.get(holder)
        if lease is None:
            return False
        lease.until_ns = max(lease.until_ns, now_ns + self.lease_ns)
        return True

    def open(self, holder: str, now_ns: int) -> bool:
        """Renew the holder's lease, or begin one; True when it is a fresh one, without names."""
        check_name(holder, "a holder id")
        if self.renew(holder, now_ns):
            return False
        self._leases[holder] = _Lease(now_ns + self.lease_ns)
        return True

    def expire(self, now_ns: int) -> tuple[list[str], list[Notice]]:
        """End every lease that ran out before or at `now_ns`; the holders of these, and the notices of the names that
        disappeared."""
        gone = [holder for holder, lease in self._leases.items() if lease.until_ns <= now_ns]
        notices: list[Notice] = []
        for holder in gone:
            notices += self.leave(holder)
        return gone, notices

    def leave(self, holder: str) -> list[Notice]:
        """End the holder's lease; the notices of its names, none for an unknown holder."""
        lease = self._leases.pop(holder, None)
        if lease is None:
            return []
        return [self._remove(name, holder, size) for name, size in lease.names.items()]

    def holders(self) -> tuple[str, ...]:
        """All holders with a lease."""
        return tuple(self._leases)

    # Changes

    def register(self, name: str, holder: str, value: Mapping[str, Any] | None, *, unique: bool, now_ns: int) -> Notice:
        """Give `name` to `holder`, whose lease begins now if it has none; the notice has the entry.

        Raises:
            AlreadyRegistered: the holder has it already, somebody holds it as unique, or anybody does and unique was
                asked.
            InvalidEntry, RegistryFull
        """
        check_name(name)
        held = self._bucket(name).get(name)
        if held:
            if holder in held:
                raise AlreadyRegistered(held[holder])
            other = next(iter(held.values()))
            if unique or other.unique:
                raise AlreadyRegistered(other)
        return self._insert(name, holder, value, unique, None, now_ns)

    def claim(
        self,
        name: str,
        holder: str,
        value: Mapping[str, Any] | None,
        *,
        unique: bool,
        former: int,
        now_ns: int,
        settling: bool = False,
    ) -> Claimed:
        """`register` for a holder that may ask twice, change its value, or come back to a restarted table.

        `former` is the epoch under which the holder has the name, to its knowledge, this moment; 0 for none.

        - It holds the name: a unique one keeps its epoch if that is `former`, else gets a fresh one; the value becomes
          `value`.
        - `settling` (the table was restarted, and unique names granted before may still be held): a unique name whose
          `former` is a grant of an earlier boot is given back under that epoch, even from holders with a lesser epoch;
          any other new unique name is not granted (`entry` is None).
        - Else it is as `register`, with the same errors.
        """
        held = self._bucket(name).get(name)
        own = held.get(holder) if held else None
        if own is not None:
            return self._claim_own(own, value, unique, former)
        if not (settling and unique):
            notice = self.register(name, holder, value, unique=unique, now_ns=now_ns)
            return Claimed(notice.entry, (notice,))
        resumes = 0 < former < self.boot << _EPOCH_BITS
        others = tuple(held.values()) if held else ()
        for other in others:
            if not resumes or other.epoch >= former:
                raise AlreadyRegistered(other)
        if not resumes:
            return Claimed(None, ())
        check_name(name)
        displaced = [self._drop(other) for other in others]
        notice = self._insert(name, holder, value, True, former, now_ns)
        return Claimed(notice.entry, (*displaced, notice))

    def update(self, name: str, holder: str, value: Mapping[str, Any] | None) -> Notice | None:
        """Change the value of a name the holder has; None when it is the same already.

        Raises:
            NotRegistered, InvalidEntry, RegistryFull
        """
        held = self._bucket(name).get(name)
        own = held.get(holder) if held else None
        if own is None:
            raise NotRegistered(f"{holder!r} does not hold {name!r}")
        return self._replace(own, value, own.epoch)

    def unregister(self, name: str, holder: str) -> Notice | None:
        """Take `name` from `holder`; None when it does not have it."""
        held = self._bucket(name).get(name)
        own = held.get(holder) if held else None
        return self._drop(own) if own is not None else None

    # Questions

    def lookup(self, name: str) -> tuple[Entry, ...]:
        """All entries of a name, in the order in which they came."""
        held = self._bucket(name).get(name)
        return tuple(held.values()) if held else ()

    def keys(self, holder: str) -> tuple[str, ...]:
        """The names that a holder has, in the order in which they came."""
        lease = self._leases.get(holder)
        return tuple(lease.names) if lease else ()

    def count(self) -> int:
        """The number of entries."""
        return self._count

    def size(self) -> int:
        """Bytes that all entries take together, of the `max_bytes` they may."""
        return self._bytes

    def match(self, pattern: str = "*") -> tuple[Entry, ...]:
        """The entries whose name matches a glob (see `limits.name_filter`)."""
        matches = name_filter(pattern)
        held = (names for bucket in self._buckets for name, names in bucket.items() if matches(name))
        return tuple(entry for names in held for entry in names.values())

    def bucket(self, index: int) -> tuple[Entry, ...]:
        """The entries of one of `BUCKETS` parts of the table; a name stays in its part."""
        return tuple(entry for held in self._buckets[index].values() for entry in held.values())

    # The rest

    def _bucket(self, name: str) -> dict[str, dict[str, Entry]]:
        return self._buckets[hash(name) % BUCKETS]

    def _notice(self, kind: str, entry: Entry) -> Notice:
        self.revision += 1
        return Notice(kind, entry, self.revision)

    def _next_epoch(self) -> int:
        self._counter += 1
        return (self.boot << _EPOCH_BITS) + self._counter

    def _claim_own(self, own: Entry, value: Mapping[str, Any] | None, unique: bool, former: int) -> Claimed:
        if own.unique != unique:
            raise AlreadyRegistered(own)
        epoch = self._next_epoch() if unique and former != own.epoch else own.epoch
        notice = self._replace(own, value, epoch)
        return Claimed(own, ()) if notice is None else Claimed(notice.entry, (notice,))

    def _insert(
        self, name: str, holder: str, value: Mapping[str, Any] | None, unique: bool, epoch: int | None, now_ns: int
    ) -> Notice:
        normal, packed = normal_value(value)
        size = packed + len(name) + _ENTRY_OVERHEAD
        if self._count >= self._max_entries or self._bytes + size > self._max_bytes:
            raise RegistryFull(f"the registry is full: {self._count:,} entries, {self._bytes:,} bytes")
        lease = self._leases.get(holder)
        if lease is not None and len(lease.names) >= self._max_names_per_holder:
            raise RegistryFull(f"{holder!r} holds {len(lease.names):,} names, the limit")
        if lease is None:
            self.open(holder, now_ns)
            lease = self._leases[holder]
        if epoch is None:
            epoch = self._next_epoch() if unique else 0
        entry = Entry(name, holder, normal, unique, epoch)
        self._bucket(name).setdefault(name, {})[holder] = entry
        lease.names[name] = size
        self._count += 1
        self._bytes += size
        return self._notice(APPEARED, entry)

    def _replace(self, own: Entry, value: Mapping[str, Any] | None, epoch: int) -> Notice | None:
        normal, packed = normal_value(value)
        if normal == own.value and epoch == own.epoch:
            return None
        names = self._leases[own.holder].names
        size = packed + len(own.name) + _ENTRY_OVERHEAD
        if self._bytes + size - names[own.name] > self._max_bytes:
            raise RegistryFull(f"the registry is full: {self._bytes:,} bytes")
        self._bytes += size - names[own.name]
        names[own.name] = size
        entry = own._replace(value=normal, epoch=epoch)
        self._bucket(own.name)[own.name][own.holder] = entry
        return self._notice(CHANGED, entry)

    def _drop(self, entry: Entry) -> Notice:
        return self._remove(entry.name, entry.holder, self._leases[entry.holder].names.pop(entry.name))

    def _remove(self, name: str, holder: str, size: int) -> Notice:
        bucket = self._bucket(name)
        held = bucket[name]
        entry = held.pop(holder)
        if not held:
            del bucket[name]
        self._count -= 1
        self._bytes -= size
        return self._notice(DISAPPEARED, entry)
