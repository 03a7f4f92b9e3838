"""Transports, by which a message crosses from one node to another: one file per transport."""

from __future__ import annotations

import asyncio

from bitactor.errors import ConfigurationError
from mesh.network.transports.memory import PROCESS_HUB, MemoryHub, MemoryTransport
from mesh.network.transports.send_queue import QUEUE_BYTES, QUEUE_MESSAGES
from mesh.network.transports.zmq import ZmqTransport
from registry.support.curve import Curve

__all__ = ["MemoryHub", "MemoryTransport", "ZmqTransport", "open_transport"]


def open_transport(
    url: str,
    *,
    loop: asyncio.AbstractEventLoop,
    curve: Curve | None = None,
    advertise: str = "",
    hub: MemoryHub | None = None,
    queue_limit: int = QUEUE_MESSAGES,
    queue_bytes: int = QUEUE_BYTES,
    early_flush: int = 0,
) -> MemoryTransport | ZmqTransport:
    """The transport for `memory://name`, `ipc:///directory/name` or `tcp://host:port`; its `open` is still to be
    called.

    Args:
        curve: keys of the mesh; needed for tcp://, optional for ipc://.
        advertise: for a tcp:// address that binds every interface, the host (or `tcp://host:port`) others use.
        hub: for memory://, where names are looked up.
        early_flush: see `ZmqTransport`; of no use to memory://, where nobody works meanwhile.

    Raises:
        ConfigurationError: an unknown scheme, or an option that does not go with it.
    """
    if not url.startswith("memory://"):
        if hub is not None:
            raise ConfigurationError(f"hub= is for memory:// only, not for {url}")
        return ZmqTransport(
            url,
            loop=loop,
            curve=curve,
            advertise=advertise,
            queue_limit=queue_limit,
            queue_bytes=queue_bytes,
            early_flush=early_flush,
        )
    if curve is not None or advertise:
        raise ConfigurationError(f"curve= and advertise= do not go with {url}: nothing leaves this process")
    return MemoryTransport(url, loop=loop, hub=hub or PROCESS_HUB, queue_limit=queue_limit, queue_bytes=queue_bytes)
