"""HTTP requests as steps.

    http.get(orders, "fetch_user", "/users/{user_id}", headers={"X-Tenant": "{tenant}"}, retries=3)
    http.post(orders, "charge", "/charges", json={"amount": Result("total"), "note": "order {order.id}"})

`{fields}` in the address, the headers, the parameters and the JSON body are arguments of the step, found by name like any parameter, with a path behind
them if need be; `Input`, `Result` and `Value` can stand for whole values.  The client is a resource of the workflow, see
`mesh.ready.resources.http_client`.  The result is a mapping: `status`, `headers`, `url`, and `json` or `text`.

An answer that is not 2xx is an `HttpError`.  It is worth another try, within `retries`, if it is 408, 425, 429 or 5xx, or if no answer came; where the server
says `Retry-After`, that is waited for, at most `longest_wait` seconds.  Requests that change something carry an `Idempotency-Key`, the same over all tries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from bitactor import Backoff, Context, Retry, Step, Workflow
from bitactor.arguments import Source
from bitactor.errors import DefinitionError, RunError
from bitactor.kinds.signatures import with_parameters
from bitactor.kinds.template import Text
from mesh.ready.extras import required

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = required("httpx2", "http")

WORTH_ANOTHER_TRY: Final = frozenset((408, 425, 429))
SHOWN: Final = 300
"""Characters of a body that an error shows."""
MAX_BODY: Final = 2 * 1024 * 1024
CHANGING: Final = frozenset(("POST", "PUT", "PATCH", "DELETE"))


class HttpError(RunError):
    """The server answered, and not with 2xx; or not at all."""

    def __init__(self, message: str, status: int = 0, url: str = "", body: str = "") -> None:
        super().__init__(message, status, url, body)
        self.message = message
        self.status = status
        """0 if no answer came."""
        self.url = url
        self.body = body
        """How the answer began."""

    def __str__(self) -> str:
        return self.message

    @property
    def worth_another_try(self) -> bool:
        """Whether it may well be otherwise next time."""
        return self.status == 0 or self.status in WORTH_ANOTHER_TRY or self.status >= 500


class _Request:
    """What is sent, but for the values."""

    def __init__(
        self, method: str, url: str, headers: Mapping[str, str], params: Mapping[str, Any], json: Any, longest_wait: float
    ) -> None:
        self.method = method
        self.url = Text(url)
        self.longest_wait = longest_wait
        self.sources: dict[str, Source] = {}
        self.headers = {name: Text(text) for name, text in headers.items()}
        self.params = self._prepared(params)
        self.json = self._prepared(json)

    @property
    def arguments(self) -> list[str]:
        """The step's parameters."""
        found = dict.fromkeys(self.url.arguments)
        for text in self.headers.values():
            found |= dict.fromkeys(text.arguments)
        for part in _texts([self.params, self.json]):
            found |= dict.fromkeys(part.arguments)
        return [*found, *self.sources]

    def _prepared(self, part: Any) -> Any:
        """A structure with its texts read, and a parameter for each source in it."""
        if isinstance(part, Mapping):
            return {name: self._prepared(value) for name, value in part.items()}
        if isinstance(part, list | tuple):
            return [self._prepared(value) for value in part]
        if isinstance(part, Source):
            name = f"value_{len(self.sources)}"
            self.sources[name] = part
            return _Argument(name)
        return Text(part) if isinstance(part, str) else part

    async def send(self, client: httpx2.AsyncClient, ctx: Context, values: Mapping[str, Any]) -> dict[str, Any] | Retry:
        """One try.

        Raises:
            HttpError: no answer, or not 2xx.
        """
        quoted = {name: _Quoted(value) for name, value in values.items()}
        headers = {name: text.filled(values) for name, text in self.headers.items()}
        if self.method in CHANGING:
            headers.setdefault("Idempotency-Key", ctx.idempotency_key)
        url = self.url.filled(quoted)
        body = {"json": _filled(self.json, values)} if self.json is not None else {}
        try:
            response = await client.request(self.method, url, headers=headers, params=_filled(self.params, values) or None, **body)
        except httpx2.HTTPStatusError as error:
            raise HttpError(str(error), error.response.status_code, str(error.request.url)) from None
        except httpx2.HTTPError as error:
            raise HttpError(f"{self.method} {url}: {type(error).__name__}: {error}", 0, url) from None
        return self._judged(response, ctx)

    def _judged(self, response: httpx2.Response, ctx: Context) -> dict[str, Any] | Retry:
        if response.is_success:
            return _answer(response)
        begin = response.text[:SHOWN]
        message = (
            f"{self.method} {response.request.url.copy_with(query=None)} answered {response.status_code} {response.reason_phrase}"
        )
        error = HttpError(f"{message}: {begin}" if begin else message, response.status_code, str(response.request.url), begin)
        if not error.worth_another_try:
            raise error
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait is not None and ctx.retries_left > 0:
            return Retry(after=min(wait, self.longest_wait), reason=str(error))
        raise error


class _Argument:
    """Stands for a whole argument in a structure."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Quoted:
    """A value whose text is safe in an address; attributes and items of it are as well."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __format__(self, form: str) -> str:
        return quote(format(self._value, form), safe="")

    def __getitem__(self, name: Any) -> Any:
        return _Quoted(self._value[name])

    def __getattr__(self, name: str) -> Any:
        value = self._value
        return _Quoted(value[name] if isinstance(value, Mapping) else getattr(value, name))


def _texts(part: Any) -> list[Text]:
    if isinstance(part, Text):
        return [part]
    if isinstance(part, dict):
        part = list(part.values())
    return [text for value in part for text in _texts(value)] if isinstance(part, list) else []


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(part, Text):
        return part.filled(values)
    if isinstance(part, _Argument):
        return values[part.name]
    if isinstance(part, dict):
        return {name: _filled(value, values) for name, value in part.items()}
    if isinstance(part, list):
        return [_filled(value, values) for value in part]
    return part


def _answer(response: httpx2.Response) -> dict[str, Any]:
    if len(response.content) > MAX_BODY:
        raise HttpError(
            f"{response.request.url} answered with {len(response.content):,} bytes, more than the {MAX_BODY:,} a result may be; fetch pages, or let a "
            "step of your own put it where it belongs",
            response.status_code,
        )
    answer: dict[str, Any] = {"status": response.status_code, "headers": dict(response.headers), "url": str(response.request.url)}
    if response.content and "json" in response.headers.get("Content-Type", ""):
        try:
            return {**answer, "json": response.json()}
        except ValueError as error:
            raise HttpError(f"{response.request.url} said JSON, and sent none: {error}", response.status_code) from None
    return {**answer, "text": response.text}


def _retry_after(value: str) -> float | None:
    """Seconds, from a number of them or from a date (RFC 9110, section 10.2.3); None if it says nothing."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(when.tzinfo or UTC)).total_seconds())


def request(
    workflow: Workflow,
    method: str,
    name: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    json: Any = None,
    client: str = "http",
    retries: int = 0,
    backoff: Backoff | Callable[..., float] | None = None,
    timeout: float | None = 30.0,
    longest_wait: float = 60.0,
    **options: Any,
) -> Step[..., Any]:
    """Declare a request as a step of a workflow.

    Args:
        url, headers, params, json: what is sent; see the module.
        client: name of the resource that is the client.
        retries, backoff, timeout: as for any step.
        longest_wait: seconds that a `Retry-After` is honoured.
        options: `bind`, `after`, `when`, `guard`, `policies`, `limit`, `required`, `priority`, as for any step.

    Raises:
        DefinitionError: the workflow has no such resource, or a field names nothing.
    """
    if client not in workflow.resources:
        known = ", ".join(workflow.resources) or "none"
        raise DefinitionError(
            f"step {name!r} of {workflow.name!r}: the workflow has no resource {client!r} (it has {known}); "
            "Workflow(…, resources=[http_client()])"
        )
    wanted = _Request(method, url, headers or {}, params or {}, json, longest_wait)

    async def send(ctx: Context, **values: Any) -> Any:
        return await wanted.send(values.pop(client), ctx, values)

    function = with_parameters(send, [*wanted.arguments, client], method.lower(), made_from={}, context=True)
    again: dict[str, Any] = {"retries": retries, "retry_on": _Worth, "backoff": backoff or Backoff(initial=0.2)} if retries else {}
    if backoff is not None and not retries:
        again = {"backoff": backoff}
    bind = {**wanted.sources, **(options.pop("bind", None) or {})}
    declare: Any = workflow.step(name=name, timeout=timeout, bind=bind, **again, **options)
    declared: Step[..., Any] = declare(function)
    return declared


class _WorthAnotherTry(type):
    """So that `retry_on` can tell errors apart by more than their class."""

    def __instancecheck__(cls, error: object) -> bool:
        return not isinstance(error, HttpError) or error.worth_another_try


class _Worth(Exception, metaclass=_WorthAnotherTry):
    """Every error but an `HttpError` that would come again."""


def get(workflow: Workflow, name: str, url: str, **options: Any) -> Step[..., Any]:
    """See `request`."""
    return request(workflow, "GET", name, url, **options)


def head(workflow: Workflow, name: str, url: str, **options: Any) -> Step[..., Any]:
    """See `request`."""
    return request(workflow, "HEAD", name, url, **options)


def post(workflow: Workflow, name: str, url: str, **options: Any) -> Step[..., Any]:
    """See `request`."""
    return request(workflow, "POST", name, url, **options)


def put(workflow: Workflow, name: str, url: str, **options: Any) -> Step[..., Any]:
    """See `request`."""
    return request(workflow, "PUT", name, url, **options)


def patch(workflow: Workflow, name: str, url: str, **options: Any) -> Step[..., Any]:
    """See `request`."""
    return request(workflow, "PATCH", name, url, **options)


def delete(workflow: Workflow, name: str, url: str, **options: Any) -> Step[..., Any]:
    """See `request`."""
    return request(workflow, "DELETE", name, url, **options)
