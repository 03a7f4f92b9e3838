"""HTTP requests as steps.

    http.get(orders, "customer", "/customers/{order.customer}", retries=3, timeout=5.0)
    http.post(orders, "charge", "/charges", json={"amount": "{order.total}", "to": Result("customer", "json",
    "account")}, retries=3)

The URL, the parameters, the headers and the body are templates; a field is an input field or another step's result,
`{order.customer}`.  In a URL it
is quoted and stays within its place: an empty value or one that would lead elsewhere (`..`) is refused.  Only a URL
that *begins* with a field takes that as it is, for an address that an earlier step has learned; let no stranger say
what it is.

The result is a mapping: `status`, `url`, `headers` (lower-case names), and what the body is: `json`, `text` or, if it
is neither, `content`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Unpack

from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.declare.options import refuse_unknown
from bitactor.declare.step import Step
from bitactor.errors import ConfigurationError, DefinitionError, StepTimeout, suggest
from bitactor.messages.codec import MAX_TOKEN_BYTES
from bitactor.messages.outcome import Retry
from bitactor.workflow import Workflow
from mesh.ready.declare import ReadyKeywords, ReadyStep, declare, refuse_bound, refuse_seconds
from mesh.ready.extras import missing_extra
from mesh.ready.http_errors import (
    HttpBusy,
    HttpError,
    HttpRequestInvalid,
    HttpResponseInvalid,
    HttpUnreachable,
    http_error,
    shown_url,
)
from mesh.ready.templates import Structure, redact

try:
    import httpx2
except ModuleNotFoundError as missing:
    raise missing_extra("http", __name__, missing) from None

from mesh.ready.steps import http_message

__all__ = [
    "HttpBusy", "HttpError", "HttpRequestInvalid", "HttpResponseInvalid", "HttpUnreachable", "Request", "delete", "get",
    "head", "patch", "post", "put", "request",
]  # fmt: skip

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
METHODS_WITH_KEY: Final = frozenset(("POST", "PATCH"))
"""HTTP methods that may not be repeated as they are: these requests carry `Idempotency-Key`."""
DEFAULT_RETRY_ON: Final = (HttpBusy, HttpUnreachable, StepTimeout)
DEFAULT_MAX_BYTES: Final = 1024 * 1024
DEFAULT_LONGEST_WAIT: Final = 60.0


class RequestOptions(ReadyKeywords, total=False):
    """The options of a request step beside method and URL."""

    params: Mapping[str, Any]
    headers: Mapping[str, Any]
    json: Any
    form: Mapping[str, Any]
    content: Any
    expect: int | Collection[int]
    client: str
    max_bytes: int
    longest_wait: float


@dataclass(frozen=True)
class Request(ReadyStep):
    """One request; what is to be called as the step.  See `request` for its fields."""

    _FIELDS = {"url": http_message.UrlTemplate, "params": Structure, "headers": Structure, "body": Structure}
    method: str
    url: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    """Template of the body, under one of `json`, `form`, `content`."""
    expect: int | Collection[int] = ()
    """The statuses that are no error; none given: 2xx."""
    client: str = "http"
    """The name of the resource that sends it."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """The largest body of an answer."""
    longest_wait: float = DEFAULT_LONGEST_WAIT
    """The longest `Retry-After`, in seconds, that is waited for."""
    timed: bool = False
    """Whether the step has a `timeout`."""
    _expected: tuple[int, ...] = field(init=False, repr=False, compare=False)

    @override
    def __post_init__(self) -> None:
        expected = (self.expect,) if isinstance(self.expect, int) else tuple(self.expect)
        _refuse_wrong(self, expected)
        object.__setattr__(self, "_expected", expected)
        super().__post_init__()

    async def __call__(self, *, ctx: Context, **given: Any) -> Any:
        client = given.pop(self.client)
        if not isinstance(client, httpx2.AsyncClient):
            raise ConfigurationError(
                f"{self.client!r} is a {type(client).__name__}; a step of HTTP needs an httpx2.AsyncClient"
            )
        prepared = self._build_request(client, given, ctx)
        url, secrets = shown_url(str(prepared.url)), http_message.secrets(prepared)
        try:
            response = await client.send(prepared, stream=True)
            try:
                secrets |= http_message.secrets(response.request)
                return await self._result_or_retry(response, ctx, secrets)
            finally:
                await response.aclose()
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as error:
            raise HttpRequestInvalid(f"{self.method} {url}: {redact(str(error), secrets)}") from None
        except httpx2.DecodingError as error:
            raise HttpResponseInvalid(f"{self.method} {url}: {error}") from None
        except httpx2.TransportError as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise HttpUnreachable(self.method, url, redact(reason, secrets)) from None

    async def _result_or_retry(self, response: httpx2.Response, ctx: Context, secrets: set[str]) -> Any:
        url, status = shown_url(str(response.url)), response.status_code
        if status in self._expected if self._expected else response.is_success:
            return await http_message.result_of(response, self.max_bytes, f"{self.method} {url}")
        error = http_error(self.method, url, status, redact(await http_message.excerpt_of(response), secrets))
        after = http_message.retry_after(response)
        if after is not None and ctx.retries_left > 0:
            return Retry(after=min(after, self.longest_wait), reason=str(error))
        raise error

    @override
    def _resource(self) -> tuple[str, ...]:
        return (self.client,)

    def _build_request(self, client: httpx2.AsyncClient, given: Mapping[str, Any], ctx: Context) -> httpx2.Request:
        headers = http_message.headers(self._value("headers", given))
        content, kind = http_message.body(self._value("body", given))
        if kind:
            headers.setdefault("content-type", kind)
        if self.method in METHODS_WITH_KEY:
            headers.setdefault("idempotency-key", ctx.idempotency_key)
        # Where the step has a limit of its own, that one holds: what it cuts off is in doubt, and not, as with the
        # client's, known to have failed.
        timeout = httpx2.Timeout(None, connect=client.timeout.connect) if self.timed else client.timeout
        try:
            return client.build_request(
                self.method,
                http_message.url(self._text("url", given), self._value("params", given)),
                headers=headers,
                content=content,
                timeout=timeout,
            )
        except httpx2.InvalidURL as error:
            raise HttpRequestInvalid(f"{self.method} {self.url}: no URL can be made of that: {error}") from None


def request(workflow: Workflow, name: str, method: str, url: str, **options: Unpack[RequestOptions]) -> Step[..., Any]:
    """Declare a step that sends a request.

    A status that was not expected is an `HttpError` (`HttpBusy`, if it may be another one later), no answer an
    `HttpUnreachable`.  With `retries`, the latter two and a timeout are tried again, other errors are not; `retry_on`
    says otherwise.  A 429 or 503 that says `Retry-After` is tried again then.  POST and PATCH carry `Idempotency-Key`,
    the same over all attempts.

    Give a request that changes something a `timeout`: an attempt that it cuts off is in doubt, and an undo declared
    with `in_doubt=True` is asked.

    Args:
        workflow, name: where, and what it is called.
        url: absolute, or below the client's base URL.
        params: the query; a parameter that is None is left out, a list gives several.
        headers: a header that is None is left out.
        json, form, content: the body, at most one of them: any structure; a mapping; a text or bytes.
        expect: which statuses are good; by default all of 2xx.
        client: the resource that sends it.
        max_bytes: of the body; a larger one is an `HttpResponseInvalid`.
        longest_wait: seconds that `Retry-After` may make it wait.
        options: those of `Workflow.step`.

    Raises:
        DefinitionError: or one of its kinds.
    """
    what = f"step {name!r} of {workflow.name!r}"
    refuse_unknown(what, options, RequestOptions.__annotations__)
    client = options.get("client", "http")
    if client not in workflow.resources:
        hint = (
            suggest(client, workflow.resources)
            or f" Declare one: Workflow({workflow.name!r}, …, resources=[http_client({client!r})])."
        )
        raise DefinitionError(f"{what}: the workflow has no resource {client!r} to send it with.{hint}")
    if client in workflow.input_model.model_fields or client in workflow.steps:
        raise DefinitionError(f"{what}: {client!r} is a resource and also an input field or a step; rename one of them")
    shapes = {part: value for part, value in options.items() if part in Request.__dataclass_fields__}
    shapes |= {
        "method": method,
        "url": url,
        "timed": options.get("timeout") is not None,
        "body": {part: options[part] for part in http_message.BODIES if part in options},
    }
    rest = {option: value for option, value in options.items() if option in ReadyKeywords.__annotations__}
    if rest.get("retries"):
        rest.setdefault("retry_on", DEFAULT_RETRY_ON)
    step = declare(workflow, name, Request, shapes, rest)
    workflow.errors = tuple(dict.fromkeys((*workflow.errors, HttpError, HttpBusy, HttpUnreachable)))
    return step


def get(workflow: Workflow, name: str, url: str, **options: Unpack[RequestOptions]) -> Step[..., Any]:
    """Declare a step that sends a GET request; see `request`."""
    return request(workflow, name, "GET", url, **options)


def head(workflow: Workflow, name: str, url: str, **options: Unpack[RequestOptions]) -> Step[..., Any]:
    """Declare a step that sends a HEAD request; see `request`."""
    return request(workflow, name, "HEAD", url, **options)


def post(workflow: Workflow, name: str, url: str, **options: Unpack[RequestOptions]) -> Step[..., Any]:
    """Declare a step that sends a POST request; see `request`."""
    return request(workflow, name, "POST", url, **options)


def put(workflow: Workflow, name: str, url: str, **options: Unpack[RequestOptions]) -> Step[..., Any]:
    """Declare a step that sends a PUT request; see `request`."""
    return request(workflow, name, "PUT", url, **options)


def patch(workflow: Workflow, name: str, url: str, **options: Unpack[RequestOptions]) -> Step[..., Any]:
    """Declare a step that sends a PATCH request; see `request`."""
    return request(workflow, name, "PATCH", url, **options)


def delete(workflow: Workflow, name: str, url: str, **options: Unpack[RequestOptions]) -> Step[..., Any]:
    """Declare a step that sends a DELETE request; see `request`."""
    return request(workflow, name, "DELETE", url, **options)


def _refuse_wrong(wanted: Request, expected: Collection[int]) -> None:
    if wanted.method not in METHODS:
        raise DefinitionError(f"method={wanted.method!r}.{suggest(str(wanted.method), METHODS)}")
    if len(wanted.body) > 1:
        raise DefinitionError(f"{' and '.join(wanted.body)} are two bodies; a request has one")
    wrong = [
        status
        for status in expected
        if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599
    ]
    if wrong:
        raise DefinitionError(f"expect={wrong[0]!r} is no status; it is a number from 100 to 599, or several")
    refuse_bound("max_bytes", wanted.max_bytes, MAX_TOKEN_BYTES, ", which is what a journal carries of a step")
    refuse_seconds("longest_wait", wanted.longest_wait)
