"""A sink that writes one line of JSON per pulse, to a file or to standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple, TextIO

from bitactor.messages.pulse import Pulse
from mesh.sinks.buffer import PulseBuffer
from mesh.sinks.plain import plain_pulse

_log = logging.getLogger("bitactor.sinks")

_LINGER_SECONDS = 0.05
_CHUNK = 256


class JsonlStatistics(NamedTuple):
    """What a `JsonlSink` has done so far, in pulses."""

    written: int
    dropped: int
    """Pulses for which there was no room in the buffer, or which came after the sink was closed."""
    lost: int
    """Pulses that could not be written to the file."""


class JsonlSink:
    """A sink that appends every pulse as a line of JSON, values decoded (see `mesh.sinks.plain`).

    A file that it makes is for this user alone (mode 600).  One that is moved away or deleted meanwhile, as a log that
    is rotated, is made afresh at its path.
    `receive` only queues; a thread writes and flushes.  At most `limit` pulses wait; what does not fit is dropped and
    counted.  When the file cannot be written any more (disk full, reader of the pipe gone) that is logged once and the
    rest is counted as lost.
    """

    def __init__(self, path: str | Path = "-", *, limit: int = 200_000) -> None:
        """Open `path` for appending (`-`: standard output, which is never closed); raises `OSError` if that fails."""
        self._owned = str(path) != "-"
        self._path = Path(path).absolute()
        self._file: TextIO = self._open() if self._owned else sys.stdout
        self._buffer: PulseBuffer[Pulse] = PulseBuffer(limit)
        self._written = 0
        self._lost = 0
        self._broken = False
        self._done = Event()
        self._thread = Thread(target=self._run, name="bitactor-jsonl", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it takes no more pulses."""
        return self._buffer.closing

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """Queue `pulses`; never blocks."""
        self._buffer.put(pulses)

    def statistics(self) -> JsonlStatistics:
        """The sink's counts so far."""
        return JsonlStatistics(self._written, self._buffer.dropped, self._lost)

    def close(self, timeout: float) -> None:
        """Write what is queued within `timeout` seconds, flush and close the file.  Twice is once."""
        self._buffer.close()
        if self._done.wait(timeout):
            self._thread.join()
        else:
            _log.warning("%d pulses were not written within %.1f s of closing", self._buffer.waiting, timeout)

    def _run(self) -> None:
        try:
            while True:
                self._buffer.wait()
                self._buffer.linger(_LINGER_SECONDS)
                closing = self._buffer.closing
                if self._owned and not self._broken and self._buffer.waiting:
                    self._attempt(self._follow, 0)
                while pulses := self._buffer.take(_CHUNK):
                    self._write(pulses)
                    time.sleep(0)
                if not self._broken:
                    self._attempt(self._file.flush, 0)
                if closing:
                    return
        finally:
            if self._owned:
                self._attempt(self._file.close, 0)
            self._done.set()

    def _open(self) -> TextIO:
        return os.fdopen(_open_private(self._path), "a", encoding="utf-8")

    def _follow(self) -> None:
        """Make the file afresh if it is no longer at its path."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            found = None
        if found is None or not os.path.samestat(found, os.fstat(self._file.fileno())):
            former, self._file = self._file, self._open()
            former.close()

    def _write(self, pulses: list[Pulse]) -> None:
        if self._broken:
            self._lost += len(pulses)
            return
        lines = [line for pulse in pulses if (line := self._line(pulse))]
        self._attempt(lambda: self._file.write("".join(lines)), len(lines))

    def _line(self, pulse: Pulse) -> str:
        try:
            return json.dumps(plain_pulse(pulse), separators=(",", ":")) + "\n"
        except Exception:
            self._lost += 1
            _log.exception("a pulse of transaction %s could not be written as JSON", pulse.transaction)
            return ""

    def _attempt(self, action: Callable[[], object], count: int) -> None:
        """Do `action` to the file, by which `count` pulses are written; from the first failure on, pulses are lost."""
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: someone closed standard output
            self._lost += count
            if not self._broken:
                self._broken = True
                _log.error(
                    "pulses can no longer be written: %s: %s; they are dropped from now on", type(error).__name__, error
                )
        else:
            self._written += count


def _open_private(path: Path) -> int:
    """The descriptor of a file to append to; a new one is for this user alone, whatever the umask."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor
