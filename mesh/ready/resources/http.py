"""An HTTP client as a resource.

    partner = http_client("partner", base_url="https://api.example.org", auth=ClientCredentials("/token", "me",
    os.environ["SECRET"])) orders = Workflow("orders", input={...}, resources=[partner])

    @orders.step
    async def load(order: str, partner: httpx2.AsyncClient) -> dict: ...

The client keeps its connections open between requests, for all steps of a mesh.  With `ClientCredentials` (OAuth 2) it
fetches a token for this service itself, when first needed and anew when it expires.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import quote_plus

from typing_extensions import override

from bitactor.declare.resource import Resource
from bitactor.errors import DefinitionError
from bitactor.messages.duration import duration_rule, is_duration
from mesh.ready.extras import missing_extra
from mesh.ready.http_errors import http_error, shown_url
from mesh.ready.templates import redact

try:
    import httpx2
except ModuleNotFoundError as missing:
    raise missing_extra("http", __name__, missing) from None

__all__ = ["DEFAULT_TIMEOUT", "ClientCredentials", "http_client"]

DEFAULT_TIMEOUT: Final = 10.0
DEFAULT_LIMITS: Final = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30.0)
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


Auth = httpx2.Auth | ClientCredentials | tuple[str, str]


def http_client(
    name: str = "http",
    *,
    base_url: str | Callable[[], str] = "",
    headers: Mapping[str, str] | None = None,
    timeout: float | httpx2.Timeout = DEFAULT_TIMEOUT,
    limits: httpx2.Limits = DEFAULT_LIMITS,
    auth: Auth | None = None,
    follow_redirects: bool = False,
) -> Resource:
    """A resource that is an `httpx2.AsyncClient`, with its pool of connections.

    Args:
        name: what the parameter of a step is called that takes it.
        base_url: what relative URLs are below; tokens of `ClientCredentials` go to this origin only.  A function is
            asked when the client
            is made: `base_url=lambda: os.environ["PARTNER_URL"]`.
        headers: sent with every request.
        timeout: seconds for each of: a connection, a place in the pool, the next bytes sent or received.
        limits: of the pool.
        auth: user and password, `ClientCredentials`, or an `httpx2.Auth`.
        follow_redirects: whether a redirect is followed, or is the answer.

    Raises:
        DefinitionError: the name or an option is wrong.
    """
    if not isinstance(timeout, httpx2.Timeout) and not is_duration(timeout):
        raise DefinitionError(f"resource {name!r}: timeout={timeout!r}; give {duration_rule()}, or an httpx2.Timeout")
    if not callable(base_url):
        _checked_url(name, base_url, auth)
    factory = partial(
        _make, name, base_url, auth,
        headers=dict(headers or {}), timeout=httpx2.Timeout(timeout), limits=limits, follow_redirects=follow_redirects,
    )  # fmt: skip
    return Resource(
        name,
        factory,
        close=httpx2.AsyncClient.aclose,
        check=_is_open,
        provides=httpx2.AsyncClient,
        requires=(),
    )


def _make(
    name: str, given: str | Callable[[], str], auth: Auth | None, *, headers: Mapping[str, str], **options: Any
) -> httpx2.AsyncClient:
    """Makes the client; called in a thread, for reading the certificates takes its time."""
    base_url = _checked_url(name, given() if callable(given) else given, auth)
    token_auth = TokenAuth(auth, base_url) if isinstance(auth, ClientCredentials) else auth
    return httpx2.AsyncClient(base_url=base_url, auth=token_auth, headers=dict(headers), **options)


async def _is_open(client: httpx2.AsyncClient) -> bool:
    return not client.is_closed


def _checked_url(name: str, base_url: str, auth: Auth | None) -> httpx2.URL:
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise DefinitionError(f"resource {name!r}: base_url={base_url!r} is no URL ({error})") from None
    if base_url and (url.scheme not in ("http", "https") or not url.host):
        raise DefinitionError(
            f"resource {name!r}: base_url={base_url!r} is no URL; it begins with http:// or https:// and a host"
        )
    if isinstance(auth, ClientCredentials) and not base_url and "://" not in auth.token_url:
        raise DefinitionError(f"resource {name!r}: token_url={auth.token_url!r} is relative, but there is no base_url")
    return url


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
