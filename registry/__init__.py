"""The registry: names, their holders, leases and watches; in one process, or served over ZeroMQ to a whole mesh."""

from registry.client import RegistryClient
from registry.entry import (
    APPEARED,
    CHANGED,
    DISAPPEARED,
    AlreadyRegistered,
    EndpointInUse,
    Entry,
    HolderInUse,
    InvalidEntry,
    Loss,
    Notice,
    NotRegistered,
    RegistryClosed,
    RegistryError,
    RegistryFull,
    RegistryTimeout,
)
from registry.local import LocalRegistry
from registry.port import Registry
from registry.protocol.server import Statistics
from registry.server import RegistryServer
from registry.support.curve import Curve, Gatekeeper, secure_client, secure_server
from registry.table import Table
from registry.watches import Watch

__all__ = [
    "APPEARED",
    "CHANGED",
    "DISAPPEARED",
    "AlreadyRegistered",
    "Curve",
    "EndpointInUse",
    "Entry",
    "Gatekeeper",
    "HolderInUse",
    "InvalidEntry",
    "LocalRegistry",
    "Loss",
    "NotRegistered",
    "Notice",
    "Registry",
    "RegistryClient",
    "RegistryClosed",
    "RegistryError",
    "RegistryFull",
    "RegistryServer",
    "RegistryTimeout",
    "Statistics",
    "Table",
    "Watch",
    "secure_client",
    "secure_server",
]
