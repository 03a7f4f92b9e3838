"""The demo's mail server: a real HTTP server in the demo's own process, with the moods of a real one."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self
from zlib import crc32

from typing_extensions import override

FULL_MAILBOX: Final = 24
"""One address in so many has a full mailbox: a letter to it is refused each time."""
GREYLISTED: Final = 11
"""One address in so many is greylisted: its first letter is told to come again."""


class MailServer(ThreadingHTTPServer):
    """A mail server that takes letters at `POST /letters`; a letter that comes again with the key it had is the same
    letter."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delivered: set[str] = set()
        """Idempotency keys of the letters that were taken."""
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="mail-server", daemon=True)

    @property
    def address(self) -> str:
        """The URL on which the server listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @override
    def __enter__(self) -> Self:
        self._thread.start()
        return self

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def take(self, to: str, key: str) -> tuple[int, str]:
        """Take one letter; returns HTTP status and text."""
        mood = crc32(to.encode())
        with self._lock:
            self._tries[key] += 1
            if mood % FULL_MAILBOX == 0:
                return 503, f"{to}: mailbox full"
            if mood % GREYLISTED == 0 and self._tries[key] == 1:
                return 451, f"{to}: greylisted, try again"
            self.delivered.add(key)
            return 202, f"letter {key[:8]} to {to}"

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores errors: a worker that was killed hangs up in the middle; that is the point."""


class _Handler(BaseHTTPRequestHandler):
    server: MailServer
    timeout = 5.0

    def do_POST(self) -> None:
        letter = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, text = self.server.take(letter["to"], self.headers["Idempotency-Key"])
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""
