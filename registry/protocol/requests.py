"""A client's requests: frames to be sent, their numbers, and since when an answer is awaited."""

from __future__ import annotations

from collections import deque

from registry.wire import RegistryMessage, encode


class Requests:
    """Frames to the server, in order, and the numbers that its answers repeat."""

    def __init__(self, now_ns: int) -> None:
        self.outgoing: deque[bytes] = deque()
        self.progress_ns = now_ns
        """Monotonic time at which an answer came last, or the first of the awaited ones was asked for."""
        self._request = 0

    def next_number(self) -> int:
        """The number of the next request."""
        self._request += 1
        return self._request

    def send(self, message: RegistryMessage) -> None:
        """Queue a message behind those to be sent."""
        self.outgoing.append(encode(message))
