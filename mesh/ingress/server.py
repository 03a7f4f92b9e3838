"""An HTTP server of a mesh: bind, serve, stop in order."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import uvicorn
from typing_extensions import override

from bitactor.errors import BitActorError, ConfigurationError
from bitactor.messages.duration import duration_rule, is_duration
from mesh.ingress.application import application, require_own_loop
from mesh.ingress.endpoints import Endpoints
from mesh.mesh import Mesh

logger = logging.getLogger("bitactor.ingress")

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""The largest body in bytes: as much as a value may take, unless the mesh says another `payload_limit`."""
MAX_CONNECTIONS: Final = 10_000
KEEP_ALIVE_SECONDS: Final = 5
FLUSH_SECONDS: Final = 2
"""Seconds that answers may take to leave once there is nothing to wait for."""

_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class HttpServer:
    """Serves one mesh on one port, until it is stopped.

    Guarantees: a mesh that was not open is opened before the first request and closed afterwards; one that was open is
    left open. Stopping refuses new work at once, and gives what runs `drain` seconds; who still waits then is told so
    (503, with the transaction's id), not cut off.  Stopping a second time takes at most a few seconds.

    Args:
        root_path: the prefix that a proxy takes off before requests come here; paths in answers have it.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        drain: float | None = None,
        max_body_bytes: int | None = None,
        max_connections: int = MAX_CONNECTIONS,
        allowed_hosts: Sequence[str] | None = None,
        access_log: bool = False,
        root_path: str = "",
        ready: Callable[[str], None] | None = None,
    ) -> None:
        self._mesh = mesh
        self._ready = ready
        if drain is not None and not is_duration(drain, zero=True):
            raise ConfigurationError(f"drain={drain!r}; give {duration_rule(zero=True)}")
        self._drain = mesh.settings.drain if drain is None else drain
        self._address = (host, port)
        local = _is_loopback(host)
        if allowed_hosts is None and local:
            allowed_hosts = (*_LOOPBACK_NAMES, f"[{host}]" if ":" in host else host)
        app = application(mesh, open_mesh=False, max_body_bytes=max_body_bytes, allowed_hosts=allowed_hosts)
        self._endpoints: Endpoints = app.state.endpoints
        config = uvicorn.Config(
            app, lifespan="off", ws="none", log_config=None, log_level="info" if access_log else "error",
            access_log=access_log, server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
            limit_concurrency=max_connections, root_path=root_path,
        )  # fmt: skip
        self._server = _Server(config, self._begin_stopping)
        self._owns_mesh = False
        self._closing: asyncio.Task[None] | None = None
        self._stop_calls = 0
        self.started = asyncio.Event()
        """Set once requests are taken; `url` is known then."""
        self.url = ""
        """The URL under which the server is reached; empty until it has started."""

    @property
    def answering(self) -> int:
        """How many requests are being answered now."""
        return len(self._server.server_state.tasks)

    async def run(self) -> None:
        """Serve until stopped; cancelling stops at once.

        Raises:
            ConfigurationError: the port cannot be bound.
            BitActorError: the mesh cannot be opened, or lives on another loop.
        """
        require_own_loop(self._mesh)
        listener = bind(*self._address)
        try:
            if self._mesh.state in ("new", "closed"):
                await self._mesh.__aenter__()
                self._owns_mesh = True
            elif self._mesh.state not in ("opening", "open"):
                raise BitActorError(f"this mesh is {self._mesh.state}; it takes no more work")
            await self._serve(listener)
        finally:
            listener.close()
            await self._finish_closing()

    def stop(self) -> None:
        """Stop the server: the first call takes no new work and drains, the second ends it now.  On the loop's
        thread."""
        self._stop_calls += 1
        if self._stop_calls == 1:
            logger.info("stopping: no new work is taken; what runs has %g s; stop again to stop now", self._drain)
            self._endpoints.draining = True
            self._server.should_exit = True
        elif self._stop_calls == 2:
            logger.warning("stopping now")
            self._server.should_exit = True
            if self._closing is not None:
                self._closing.cancel()
            self._endpoints.stopped.set()
            asyncio.get_running_loop().call_later(FLUSH_SECONDS / 4, self._server.abort)

    async def _serve(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._server.on_started = self._announce
        serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self.stop()
            self.stop()
            with suppress(Exception):
                await serving
            raise

    def _announce(self) -> None:
        host = self._address[0]
        if _is_loopback(host):
            logger.info("listening on %s", self.url)
        else:
            logger.warning(
                "LISTENING ON %s, BEYOND THIS MACHINE, WITHOUT AUTHENTICATION OR ENCRYPTION: who reaches it can start, "
                "see and "
                "cancel everything; put a proxy in front, or bind 127.0.0.1",
                self.url,
            )
        self.started.set()
        if self._ready is not None:
            self._ready(self.url)

    def _begin_stopping(self) -> None:
        self._server.config.timeout_graceful_shutdown = int(self._drain) + 1 + FLUSH_SECONDS
        self._closing = asyncio.ensure_future(self._close())
        if self._stop_calls > 1:
            self._closing.cancel()

    async def _close(self) -> None:
        """Close our own mesh, which drains it, or give the requests that wait for somebody else's their time."""
        try:
            if self._owns_mesh:
                await self._mesh.close(drain=self._drain)
            else:
                await asyncio.sleep(self._drain)
        finally:
            self._endpoints.stopped.set()

    async def _finish_closing(self) -> None:
        """Wait until our own mesh is closed, drained if there was time for it."""
        closing = self._closing
        if closing is not None:
            if not self._owns_mesh or self._stop_calls > 1:
                closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
        if self._owns_mesh:
            await self._mesh.close(drain=0)


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals and draining to its owner."""

    def __init__(self, config: uvicorn.Config, on_stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_started: Callable[[], None] = lambda: None
        self._on_stopping = on_stopping

    @contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        """Captures none: `serve` handles signals."""
        yield

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take requests, then calls `on_started`."""
        await super().startup(sockets=sockets)
        self.on_started()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections, and lets those that are there end."""
        self._on_stopping()
        await super().shutdown(sockets=sockets)

    def abort(self) -> None:
        """Drop every connection that is still there."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            transport: Any = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


async def serve(mesh: Mesh, *, signals: bool = True, **options: Any) -> None:
    """Serve a mesh over HTTP until a signal: the first SIGINT or SIGTERM drains, the second stops now.  Returns when
    all is closed.

    Args:
        signals: handle them here (only in the main thread); otherwise cancel, or use `HttpServer`.
        options: see `HttpServer`; `ready` is called with the URL once requests are taken.

    Raises:
        What `HttpServer.run` raises.
    """
    server = HttpServer(mesh, **options)
    with _signal_handlers(server.stop, signals):
        await server.run()


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket that does not listen yet.

    Raises:
        ConfigurationError: the address is wrong or taken.
    """
    if not 0 <= port <= 65_535:
        raise ConfigurationError(f"cannot listen on {host}:{port}: a port is a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error}; choose another port, or 0 for any free one"
        ) from None
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@contextmanager
def _signal_handlers(stop: Callable[[], None], enabled: bool) -> Iterator[None]:
    """Have signals call `stop` while this context is open; afterwards they do what they did before."""
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:
                signal.signal(number, handler)
