"""A queue of messages to one endpoint: bounded, in order, cut into frames."""

from __future__ import annotations

from typing import Final

from bitactor.errors import Overloaded, SignalTooLarge
from bitactor.messages.wire import MAX_FRAME_BYTES, MAX_MESSAGES_PER_FRAME

QUEUE_MESSAGES: Final = 10_000
"""Messages that may wait for one endpoint."""
QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Bytes that may wait for one endpoint."""
FRAME_BYTES: Final = 256 * 1024
"""Bytes past which a frame does not grow, unless it holds one message only."""


class SendQueue:
    """The messages that wait for one endpoint.

    A message counts as waiting from `add` until `release`.  Each counter has one writer (`add` and `next_batch`: the
    sender's thread; `release`: whoever passes the messages on), so the two may be different threads without a lock.
    """

    __slots__ = (
        "_added",
        "_added_bytes",
        "_byte_limit",
        "_limit",
        "_queued",
        "_queued_bytes",
        "_released",
        "_released_bytes",
        "endpoint",
        "scheduled",
    )

    def __init__(self, endpoint: str, limit: int, byte_limit: int) -> None:
        self.endpoint = endpoint
        self.scheduled = False
        """Whether the queue will be flushed anyway: at the end of the turn, or once the peer takes more."""
        self._limit = limit
        self._byte_limit = byte_limit
        self._queued: list[bytes] = []
        self._queued_bytes = 0
        self._added = 0
        self._added_bytes = 0
        self._released = 0
        self._released_bytes = 0

    @property
    def waiting(self) -> int:
        """How many messages are not passed on yet."""
        return self._added - self._released

    @property
    def queued(self) -> int:
        """How many messages are not even taken from the queue yet."""
        return len(self._queued)

    def add(self, message: bytes) -> None:
        """Append a message.

        A message larger than the whole bound is let in when nothing else waits, for it would never get through
        otherwise.

        Raises:
            Overloaded: there is no room.
            SignalTooLarge: it fits no frame.
        """
        size = len(message)
        if size > MAX_FRAME_BYTES:
            raise SignalTooLarge(f"a message of {size:,} bytes, the limit of a frame is {MAX_FRAME_BYTES:,}")
        waiting = self._added - self._released
        if waiting >= self._limit or (waiting and self._added_bytes - self._released_bytes + size > self._byte_limit):
            raise Overloaded(
                f"the queue towards {self.endpoint} is full: {waiting:,} messages of at most {self._limit:,}, "
                f"{self._added_bytes - self._released_bytes:,} bytes of at most {self._byte_limit:,}; "
                "that peer is slow or gone, try again later"
            )
        self._added += 1
        self._added_bytes += size
        self._queued_bytes += size
        self._queued.append(message)

    def next_batch(self) -> tuple[list[bytes], int]:
        """The next messages that fit one frame, and their size in bytes; they count as waiting until `release`."""
        messages, size = self._queued, self._queued_bytes
        if size <= FRAME_BYTES and len(messages) <= MAX_MESSAGES_PER_FRAME:
            self._queued, self._queued_bytes = [], 0
            return messages, size
        count = size = 0
        for message in messages[:MAX_MESSAGES_PER_FRAME]:
            if count and size + len(message) > FRAME_BYTES:
                break
            count += 1
            size += len(message)
        batch = messages[:count]
        del messages[:count]
        self._queued_bytes -= size
        return batch, size

    def release(self, count: int, size: int) -> None:
        """Note that `count` messages of `size` bytes are passed on."""
        self._released += count
        self._released_bytes += size
