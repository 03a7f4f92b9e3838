"""An HTTP client as a resource.

    partner = http_client("partner", base_url="https://api.example.org", auth=ClientCredentials("/token", "me",
    os.environ["SECRET"])) orders = Workflow("orders", input={...}, resources=[partner])

    @orders.step
    async def load(order: str, partner: httpx2.AsyncClient) -> dict: ...

The client keeps its connections open between requests, for all steps of a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bitactor.declare.resource import Resource
from bitactor.errors import DefinitionError
from mesh.ready.extras import missing_extra

try:
    import httpx2
except ModuleNotFoundError as missing:
    raise missing_extra("http", __name__, missing) from None

from mesh.ready.resources.oauth import ClientCredentials, TokenAuth

__all__ = ["DEFAULT_TIMEOUT", "ClientCredentials", "http_client"]

DEFAULT_TIMEOUT: Final = 10.0
DEFAULT_LIMITS: Final = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30.0)

Auth = httpx2.Auth | ClientCredentials | tuple[str, str]


@dataclass(frozen=True)
class _Factory:
    """Makes the client; called in a thread, for reading the certificates takes its time."""

    name: str
    base_url: str | Callable[[], str]
    headers: Mapping[str, str]
    timeout: httpx2.Timeout
    limits: httpx2.Limits
    auth: Auth | None
    follow_redirects: bool

    def __call__(self) -> httpx2.AsyncClient:
        base_url = _checked_url(self.name, self.base_url() if callable(self.base_url) else self.base_url, self.auth)
        auth = TokenAuth(self.auth, base_url) if isinstance(self.auth, ClientCredentials) else self.auth
        return httpx2.AsyncClient(
            base_url=base_url,
            headers=dict(self.headers),
            timeout=self.timeout,
            limits=self.limits,
            auth=auth,
            follow_redirects=self.follow_redirects,
        )


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
    if not isinstance(timeout, httpx2.Timeout) and (isinstance(timeout, bool) or not timeout > 0):
        raise DefinitionError(
            f"resource {name!r}: timeout={timeout!r}; give seconds, more than zero, or an httpx2.Timeout"
        )
    if not callable(base_url):
        _checked_url(name, base_url, auth)
    factory = _Factory(name, base_url, dict(headers or {}), httpx2.Timeout(timeout), limits, auth, follow_redirects)
    return Resource(name, factory, close=_close, check=_is_open, provides=httpx2.AsyncClient, requires=())


async def _close(client: httpx2.AsyncClient) -> None:
    await client.aclose()


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
