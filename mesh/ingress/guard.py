"""A guard that every request passes: no calls from other sites' pages, no foreign host names; answers stay out of
caches, and name places as the client sees them.

A browser lets any page send requests to a server on its user's machine.  It says so in `Origin`, and it cannot send
JSON across origins without asking first; a page that has rebound its own name to our address still gives that name in
`Host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.ingress.headers import prefix_of
from mesh.ingress.problems import Problem

_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))


class Guard:
    """The guard as ASGI middleware."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Sequence[str] | None = None) -> None:
        self._app = app
        self._allowed = None if allowed_hosts is None else frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
                if "location" in headers:
                    headers["location"] = prefix_of(scope) + headers["location"]
            await send(message)

        problem = self._refusal(scope["method"], Headers(scope=scope))
        handler = self._app if problem is None else problem.response()
        await handler(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if self._allowed is not None and host and _without_port(host) not in self._allowed:
            return Problem("misdirected", f"this server does not answer to the name {host[:100]!r}; see allowed_hosts")
        origin = headers.get("origin")
        if origin is not None and method not in _SAFE and _authority(origin) != host.lower():
            return Problem("forbidden-origin", f"the origin {origin[:100]!r} is not this server's")
        return None


def _without_port(host: str) -> str:
    """The value of `Host` without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
