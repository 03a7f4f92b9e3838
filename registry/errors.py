"""The errors of the registry.

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

from bitactor.errors import BitActorError, ConfigurationError
from registry.entry import Entry


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
