"""The values of the registry (an entry, a notice that one came, went or changed, the loss of a grant) and its errors.

BitActorError
├── RegistryError
│   ├── AlreadyRegistered     somebody holds the name; `entry` says who
│   ├── NotRegistered         we do not hold the name we want to change
│   ├── InvalidEntry          the name, holder or value is not allowed
│   ├── RegistryFull          a limit of the registry is reached
│   ├── HolderInUse           another live process goes by the same holder id
│   ├── RegistryTimeout       no answer, or no such name, in the time allowed (a TimeoutError too)
│   └── RegistryClosed        not started, or closed already
└── ConfigurationError
    └── EndpointInUse         another server is bound there
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from bitactor.errors import BitActorError, ConfigurationError

APPEARED: Final = "appeared"
DISAPPEARED: Final = "disappeared"
CHANGED: Final = "changed"


class Entry(NamedTuple):
    """One holder's claim to one name."""

    name: str
    """The name that is held."""
    holder: str
    """The id of the holder, the node that holds the name."""
    value: Mapping[str, Any]
    """Read-only metadata, such as an endpoint."""
    unique: bool
    """True: nobody else can hold the name at the same time."""
    epoch: int
    """Fencing epoch: each grant of a unique name has a higher one than every grant before it.  0 for a duplicate
    name."""


class Notice(NamedTuple):
    """A change in the registry."""

    kind: str
    """The change: `appeared | disappeared | changed`."""
    entry: Entry
    """The entry as it is now; for `disappeared`, as it was."""
    revision: int = 0
    """Number of the change of the table, 1, 2, 3, …; 0 when the entry was there before the watch began."""


class Loss(NamedTuple):
    """A unique name that the holder has lost."""

    entry: Entry
    """The grant that is void; whatever was begun under its epoch must not go on."""
    taken_by: Entry | None
    """The entry of the new holder.  None: the holder's lease lapsed, and the name is asked for again, under a new
    epoch."""


class RegistryError(BitActorError):
    """The root of the registry's errors."""


class AlreadyRegistered(RegistryError):
    """The name is held in a way that excludes this registration; `entry` is the holder's (perhaps our own)."""

    def __init__(self, entry: Entry) -> None:
        kind = "unique" if entry.unique else "duplicate"
        super().__init__(f"{entry.name!r} is held by {entry.holder!r} as a {kind} name")
        self.entry = entry


class NotRegistered(RegistryError):
    """The holder does not hold that name."""


class InvalidEntry(RegistryError):
    """A name, holder id or value breaks the limits; the message says which."""


class RegistryFull(RegistryError):
    """The registry, or this holder's share of it, is full."""


class HolderInUse(RegistryError):
    """Another process with the same holder id has a live lease; ids are for one process at a time."""


class RegistryTimeout(RegistryError, TimeoutError):
    """The registry did not answer, or the name did not appear, within the time allowed."""


class RegistryClosed(RegistryError):
    """This registry was not started, or is closed."""


class EndpointInUse(ConfigurationError):
    """Another server is bound to the endpoint, or serves from the same state file."""
