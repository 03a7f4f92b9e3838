"""Transports, by which a message crosses from one node to another: one file per transport.  `register_transport` adds a
scheme."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from bitactor.errors import ConfigurationError
from bitactor.ports import Transport
from mesh.network.transports.zmq import ZmqTransport
from registry.support.curve import Curve

__all__ = ["ZmqTransport", "open_transport", "register_transport"]

_OPENERS: Final[dict[str, tuple[str, Callable[..., Transport]]]] = {
    "ipc": ("ipc:///directory/name", ZmqTransport),
    "tcp": ("tcp://host:port", ZmqTransport),
}
"""Scheme → an example of its addresses, and who opens them."""


def register_transport(scheme: str, opener: Callable[..., Transport]) -> None:
    """Let addresses of this scheme be opened by `opener`, which is called as `open_transport` is, from now on."""
    _OPENERS[scheme] = f"{scheme}://name", opener


def open_transport(
    url: str, *, loop: asyncio.AbstractEventLoop, curve: Curve | None = None, early_flush: int = 0
) -> Transport:
    """The transport for `ipc:///directory/name` or `tcp://host:port`; its `open` is still to be called.

    Args:
        curve: keys of the mesh; needed for tcp://, optional for ipc://.
        early_flush: see `ZmqTransport`.

    Raises:
        ConfigurationError: an unknown scheme, or an option that does not go with it.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _OPENERS:
        known = " or ".join(example for example, _ in _OPENERS.values())
        raise ConfigurationError(f"cannot bind {url!r}: an address is {known}")
    return _OPENERS[scheme][1](url, loop=loop, curve=curve, early_flush=early_flush)
