"""An HTTP client as a resource, with a token that is fetched, and fetched anew when it has expired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from bitactor import Resource
from bitactor.errors import ConfigurationError
from mesh.ready.extras import required

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = required("httpx2", "http")

EARLY = 5.0
"""Seconds before its end that a token counts as expired."""


def http_client(
    name: str = "http",
    *,
    base_url: str | Callable[[], str] = "",
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    max_connections: int = 100,
    auth: ClientCredentials | None = None,
) -> Resource:
    """A resource: one `httpx2.AsyncClient` for all steps of a mesh, which keeps connections open between requests.

    Args:
        name: what a parameter is called that takes it; `httpx2.AsyncClient` as its annotation will do as well.
        base_url: what relative addresses are relative to; or a function that says so when the client is made, from the environment for example.
        headers: sent with each request.
        timeout: seconds for connecting, and between two bytes; a step's own timeout is for the whole.
        max_connections: at once.
        auth: see `ClientCredentials`.

    Raises:
        ConfigurationError: an option makes no sense.
    """
    if not timeout > 0 or max_connections < 1:
        raise ConfigurationError(
            f"http_client({name!r}): timeout={timeout!r} and max_connections={max_connections!r} must be more than zero"
        )

    @asynccontextmanager
    async def opened() -> AsyncGenerator[httpx2.AsyncClient, None]:
        limits = httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        async with httpx2.AsyncClient(
            base_url=base_url() if callable(base_url) else base_url,
            headers=dict(headers or {}),
            timeout=timeout,
            limits=limits,
            auth=auth.flow() if auth is not None else None,
        ) as client:
            yield client

    return Resource(name, opened, provides=httpx2.AsyncClient)


class ClientCredentials:
    """OAuth 2.0 client credentials (RFC 6749, section 4.4): the token is fetched when first needed, once for all who wait for it, and anew shortly before
    it expires, or when a server answers 401 to it.

    Args:
        token_url: where tokens are had; absolute.
        client_id, client_secret: sent as HTTP basic authentication.
        scope: asked for, if not empty.
    """

    def __init__(self, token_url: str, client_id: str, client_secret: str, scope: str = "") -> None:
        self.token_url = token_url
        self.client_id = client_id
        self.client_secret = client_secret
        self.scope = scope

    def __repr__(self) -> str:
        return f"<ClientCredentials of {self.client_id!r} at {self.token_url}>"

    def flow(self) -> httpx2.Auth:
        """For one client."""
        return _TokenAuth(self)


class _TokenAuth(httpx2.Auth):
    def __init__(self, credentials: ClientCredentials) -> None:
        self._credentials = credentials
        self._token = ""
        self._expires = 0.0
        self._fetching = asyncio.Lock()

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        used = self._token
        if not used or time.monotonic() >= self._expires:
            async for fetched in self._fetch(used):
                self._keep(await _read((yield fetched)))
        used = self._token
        request.headers["Authorization"] = f"Bearer {used}"
        answered = yield request
        if answered.status_code != 401:
            return
        async for fetched in self._fetch(used):
            self._keep(await _read((yield fetched)))
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request

    async def _fetch(self, stale: str) -> AsyncGenerator[httpx2.Request, None]:
        """The request for a token, unless somebody has fetched one since `stale`."""
        async with self._fetching:
            if self._token != stale and time.monotonic() < self._expires:
                return
            asked = {"grant_type": "client_credentials"} | ({"scope": self._credentials.scope} if self._credentials.scope else {})
            request = httpx2.Request("POST", self._credentials.token_url, data=asked)
            basic = httpx2.BasicAuth(self._credentials.client_id, self._credentials.client_secret)
            yield next(basic.auth_flow(request))

    def _keep(self, response: httpx2.Response) -> None:
        if response.status_code != 200:
            raise httpx2.HTTPStatusError(
                f"no token from {self._credentials.token_url}: {response.status_code}", request=response.request, response=response
            )
        answered: dict[str, Any] = response.json()
        self._token = str(answered["access_token"])
        self._expires = time.monotonic() + float(answered.get("expires_in", 3600)) - EARLY


async def _read(response: httpx2.Response) -> httpx2.Response:
    await response.aread()
    return response
