"""The registry: names, their holders, leases and watches; in one process, or served over ZeroMQ to a whole mesh."""

from typing import TYPE_CHECKING

from bitactor.face import late

if TYPE_CHECKING:
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

if not TYPE_CHECKING:
    __getattr__, __dir__ = late(
        __name__,
        {
            "registry.entry": " ".join(__all__),  # those that no other has
            "registry.client": "RegistryClient",
            "registry.local": "LocalRegistry",
            "registry.port": "Registry",
            "registry.protocol.server": "Statistics",
            "registry.server": "RegistryServer",
            "registry.support.curve": "Curve Gatekeeper secure_client secure_server",
            "registry.table": "Table",
            "registry.watches": "Watch",
        },
    )
