"""Waking a thread that polls, from any other thread."""

from __future__ import annotations

import contextlib
import os
import threading


class Wakeup:
    """A file descriptor that is readable once `set` was called, until `clear`."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.RLock()  # a signal handler may call `set` while its thread is in here
        self._is_set = False
        self._closed = False

    def fileno(self) -> int:
        """The file descriptor to poll for reading."""
        return self._reader

    def set(self) -> None:
        """Wake the poller, now or when it next polls.  Nothing happens once closed."""
        with self._lock:
            if self._is_set or self._closed:
                return
            self._is_set = True
            os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Make the descriptor unreadable again; look for work after this, not before."""
        with self._lock:
            if self._is_set and not self._closed:
                self._is_set = False
                with contextlib.suppress(BlockingIOError):
                    os.read(self._reader, 16)

    def close(self) -> None:
        """Release the descriptors.  A second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                os.close(self._writer)
