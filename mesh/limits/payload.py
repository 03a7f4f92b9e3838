"""The payload limit of this process: the meshes that are open in it have the same, and hold it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from bitactor.errors import ConfigurationError, SignalTooLarge
from bitactor.messages.faults import fault_of
from bitactor.messages.signal import Reply
from bitactor.messages.values import MAX_TOKEN_BYTES, PAYLOAD, Packed

LEAST_LIMIT: Final = 64 * 1024
"""The lowest limit there may be."""
MOST_LIMIT: Final = 15 * 1024 * 1024
"""The highest: with what goes with it, such a value fits a frame between two processes."""

_lock = threading.Lock()
_holders: list[int] = []


def hold_limit(limit: int) -> Callable[[], None]:
    """Let this be the limit until what is returned is called.

    Raises:
        ConfigurationError: a mesh that is open has another.
    """
    with _lock:
        if _holders and limit != PAYLOAD.bytes:
            raise ConfigurationError(
                f"payload_limit={limit:,}: a mesh that is open in this process has {PAYLOAD.bytes:,}, and a process "
                "has one; give both the same, or close the other first"
            )
        PAYLOAD.bytes = limit
        _holders.append(limit)
    return _release


def _release() -> None:
    with _lock:
        _holders.pop()
        if not _holders:
            PAYLOAD.bytes = MAX_TOKEN_BYTES


def require_room(what: str, token: Any) -> None:
    """Refuse a token that another process sent, if it is larger than what may come to be in this one.

    Raises:
        SignalTooLarge: says whose limit it is.
    """
    kind, limit = type(token), PAYLOAD.bytes
    if kind is not Packed and (kind is not str or len(token) * 4 <= limit):
        return
    size = len(token) if kind is Packed else len(token.encode())
    if size > limit:
        raise SignalTooLarge(
            f"{what}: {size:,} bytes; the node that it was sent to takes {limit:,} (its payload_limit), the node that "
            "sent it more; give both the same, or keep large data elsewhere and pass a reference"
        )


def within_limit(reply: Reply) -> Reply:
    """The reply, or, if what it carries is larger than values are here, one that says so."""
    try:
        require_room("the result", reply.token)
        for name, token in reply.emits:
            require_room(f"the signal {name!r} that it emits", token)
    except SignalTooLarge as error:
        return reply._replace(outcome="fail", token=None, emits=(), planned=None, fault=fault_of(error))
    return reply
