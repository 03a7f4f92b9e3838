"""Waking a thread that polls, from any other thread."""

from __future__ import annotations

import contextlib
import os
import threading


class Wakeup:
    """A file descriptor that is readable once `set` was called, until `clear`."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.RLock()  # a signal handler may call `set` while its thread is in here
        self._closed = False

    def fileno(self) -> int:
        """The file descriptor to poll for reading."""
        return self._descriptor

    def set(self) -> None:
        """Wake the poller, now or when it next polls.  Nothing happens once closed."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Make the descriptor unreadable again; look for work after this, not before."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Release the descriptor.  A second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)
