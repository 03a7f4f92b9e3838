"""Signals that end a long-running command: the first SIGTERM or SIGINT drains, the second ends it now."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from types import TracebackType
from typing import Final, Self

from mesh.cli.exits import OK

_FORCE_DELAY: Final = 1.0
"""Seconds the second signal leaves for releasing files and sockets, before the process is ended under them."""


class StopSignals:
    """The signals that ask a command to end.  A context manager on the event loop's main thread; afterwards signals are
    as they were.

    `requested` is set by the first signal, and, with `until_stdin_closes`, when standard input ends: whoever held its
    other end is gone.  The second signal sets `forced`, and a second later ends the process whatever it does.
    """

    def __init__(self, *, until_stdin_closes: bool) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()
        self.code = OK
        """The command's exit code: 0, or 128 + signal after a second one."""
        self._loop = asyncio.get_running_loop()
        self._until_stdin_closes = until_stdin_closes

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        if self._until_stdin_closes:
            threading.Thread(target=self._watch_stdin, name="end-of-stdin", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def force(self) -> None:
        """End the command now: whatever has not ended within a second is ended with the process."""
        if not self.forced.is_set():
            self.forced.set()
            last = threading.Timer(_FORCE_DELAY, os._exit, (self.code,))
            last.daemon = True
            last.start()

    def _on_signal(self, number: int) -> None:
        if self.requested.is_set():
            self.code = 128 + number
            self.force()
        self.requested.set()

    def _watch_stdin(self) -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        self._loop.call_soon_threadsafe(self.requested.set)
