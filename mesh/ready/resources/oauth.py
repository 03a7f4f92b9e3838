"""OAuth 2 client credentials: a token for this service itself, fetched when first needed and anew when it expires."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_plus

from typing_extensions import override

from mesh.ready.extras import missing_extra
from mesh.ready.http_errors import http_error, shown_url
from mesh.ready.templates import redact

try:
    import httpx2
except ModuleNotFoundError as missing:
    raise missing_extra("http", __name__, missing) from None

LEEWAY: Final = 30.0
"""Seconds before its end that a token is fetched anew; for a short-lived one, a tenth of its life."""


@dataclass(frozen=True)
class ClientCredentials:
    """The credentials with which a client gets its tokens (RFC 6749, 4.4).

    Args:
        token_url: absolute, or below the client's `base_url`.
        client_id, client_secret: what the authorization server knows this service by.
        scope: what is asked for, separated by spaces.
        in_body: whether the credentials go into the form instead of an `Authorization: Basic` header.
    """

    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""
    in_body: bool = False


class TokenAuth(httpx2.Auth):
    """Puts a token into each request to the client's own origin.

    However many requests find that there is none, or that it has expired, one of them fetches it and the others wait.
    A request that is refused with 401 is tried once more, with a token fetched after the refused one.

    Raises:
        HttpError: from a request, if there is no token to be had.
    """

    def __init__(
        self, credentials: ClientCredentials, base_url: httpx2.URL, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._credentials = credentials
        self._token_url = _resolve_url(base_url, credentials.token_url)
        self._origin = _origin(base_url) if base_url.host else None
        self._now = now
        self._token = ""
        self._expires_at = 0.0
        self._fetching = asyncio.Lock()

    @override
    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Sends a request to the client's own origin with a token, and once more with a new one after a 401; others
        without."""
        if self._origin is not None and _origin(request.url) != self._origin:
            yield request
            return
        refused = ""
        for _ in range(2):
            if not self._is_usable(refused):
                async with self._fetching:
                    if not self._is_usable(refused):
                        token_response = yield self._token_request()
                        await token_response.aread()
                        self._store_token(token_response)
            used = self._token
            request.headers["Authorization"] = f"Bearer {used}"
            response = yield request
            if response.status_code != 401:
                return
            refused = used

    def _is_usable(self, refused: str) -> bool:
        return self._token != "" and self._token != refused and self._now() < self._expires_at

    def _token_request(self) -> httpx2.Request:
        credentials, headers = self._credentials, {"Accept": "application/json"}
        form = {"grant_type": "client_credentials"} | ({"scope": credentials.scope} if credentials.scope else {})
        if credentials.in_body:
            form |= {"client_id": credentials.client_id, "client_secret": credentials.client_secret}
        else:
            pair = f"{quote_plus(credentials.client_id)}:{quote_plus(credentials.client_secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return httpx2.Request("POST", self._token_url, data=form, headers=headers)

    def _store_token(self, token_response: httpx2.Response) -> None:
        given = _json_object(token_response) if token_response.is_success else {}
        token = given.get("access_token")
        if not isinstance(token, str) or not token:
            body = (
                "no access_token in it"
                if token_response.is_success
                else redact(token_response.text, [self._credentials.client_secret])
            )
            raise http_error("POST", shown_url(str(self._token_url)), token_response.status_code, body)
        seconds = given.get("expires_in")
        life = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else float("inf")
        self._token, self._expires_at = token, self._now() + life - min(LEEWAY, life / 10)


def _resolve_url(base_url: httpx2.URL, url: str) -> httpx2.URL:
    """A relative URL as the client itself would complete it."""
    if "://" in url:
        return httpx2.URL(url)
    return base_url.copy_with(raw_path=b"/".join((base_url.raw_path.rstrip(b"/"), url.lstrip("/").encode())))


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _json_object(token_response: httpx2.Response) -> dict[str, Any]:
    try:
        given = token_response.json()
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
