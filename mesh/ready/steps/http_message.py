"""Requests and responses: a request's parts, made from values that may be anything (nothing that is put in leaves its
place), and the result that a step makes of a response, plain data within a bound."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, unquote, urldefrag, urlencode

import httpx2
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import override

from bitactor.errors import InvalidInput
from mesh.ready.http_errors import EXCERPT, HttpResponseInvalid
from mesh.ready.templates import Template, text_of

BODIES: Final = ("json", "form", "content")
_NO_SECRETS: Final = frozenset(
    (
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "user-agent",
    )
)
_EXCERPT_BYTES: Final = 4 * EXCERPT
_TEXTS: Final = ("application/xml", "application/javascript", "application/x-www-form-urlencoded", "application/yaml")
_WAITING: Final = frozenset((429, 503))
"""HTTP statuses whose `Retry-After` says when the same request may succeed."""


class UrlTemplate(Template):
    """A URL with fields, each quoted, unless the URL begins with it.  One that is empty where the path needs it is
    refused."""

    @override
    def _written(self, value: Any, form: str, field: str, before: str) -> str:
        text = super()._written(value, form, field, before)
        if not before:
            return text
        if not text and "?" not in before:
            raise InvalidInput(f"{{{field}}} is empty, and the URL would be another one")
        return quote(text, safe="")


def url(filled: str, params: Mapping[str, Any]) -> str:
    """The URL of a request, from its template filled in and its query.

    Raises:
        InvalidInput: the path would lead elsewhere.
    """
    path, mark, query = urldefrag(filled).url.partition("?")
    if any(unquote(segment) in (".", "..") for segment in path.split("/")):
        raise InvalidInput(f"the URL {path!r} leads out of its path; a field is '.' or '..'")
    pairs = _pairs(params)
    return f"{path}?{'&'.join(part for part in (query, urlencode(pairs)) if part)}" if mark or pairs else path


def headers(given: Mapping[str, Any]) -> dict[str, str]:
    """Headers by their lower-case names, without those that are None.

    Raises:
        InvalidInput: a value has characters that no header can carry; it is not shown.
    """
    made = {name.lower(): text_of(value, name) for name, value in given.items() if value is not None}
    for name, value in made.items():
        if not (value.isascii() and value.isprintable()):
            raise InvalidInput(
                f"the header {name!r} has characters that a header cannot carry; only printable ASCII goes there"
            )
    return made


def body(given: Mapping[str, Any]) -> tuple[bytes | None, str]:
    """The body of a request and its media type.

    Raises:
        InvalidInput: the value cannot be written as what it is declared to be.
    """
    if "json" in given:
        try:
            text = json.dumps(
                given["json"], default=to_jsonable_python, allow_nan=False, ensure_ascii=False, separators=(",", ":")
            )
            return text.encode(), "application/json"
        except (ValueError, TypeError, RecursionError, PydanticSerializationError) as error:
            raise InvalidInput(f"no JSON can be made of the body: {error}") from None
    if "form" in given:
        return urlencode(_pairs(given["form"])).encode(), "application/x-www-form-urlencoded"
    if "content" in given:
        content = given["content"]
        if isinstance(content, bytes):
            return content, "application/octet-stream"
        return text_of(content, "content").encode(), "text/plain; charset=utf-8"
    return None, ""


def secrets(request: httpx2.Request) -> set[str]:
    """The texts of a request that no error may show: what its headers carry, but for those that everybody sends, and a
    password."""
    found = {value for name, value in request.headers.items() if name not in _NO_SECRETS}
    found |= {part for value in found for part in value.split()}
    return found | ({request.url.password} if request.url.password else set())


async def result_of(response: httpx2.Response, max_bytes: int, what: str) -> dict[str, Any]:
    """The result of a response: `status`, `url`, `headers`, and `json`, `text` or `content` if there is a body.

    Raises:
        HttpResponseInvalid: the body is larger than `max_bytes`, or is not the JSON that it says it is.
    """
    body = await _body(response, max_bytes + 1)
    if len(body) > max_bytes:
        raise HttpResponseInvalid(
            f"{what}: the answer has more than max_bytes={max_bytes:,}; ask for less at a time, or write a step that "
            "streams it to a file"
        )
    url = response.url.copy_with(username=None, password=None) if response.url.userinfo else response.url
    result: dict[str, Any] = {
        "status": response.status_code,
        "url": str(url),
        "headers": dict(response.headers.items()),
    }
    if not body:
        return result
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return result | {"json": json.loads(body)}
        except (ValueError, RecursionError) as error:
            raise HttpResponseInvalid(f"{what}: the answer says it is JSON, but is not: {error}") from None
    if kind.startswith("text/") or kind.endswith("+xml") or kind in _TEXTS:
        return result | {"text": _text(response, body)}
    return result | {"content": body}


async def excerpt_of(response: httpx2.Response) -> str:
    """The beginning of a response's body, as text."""
    return _text(response, await _body(response, _EXCERPT_BYTES))


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds until the server wants to be asked again; None if it does not say.

    A date is compared with the server's own, so that nobody's clock has to be right.
    """
    said = response.headers.get("retry-after", "").strip()
    if response.status_code not in _WAITING or not said:
        return None
    if said.isascii() and said.isdigit():
        return float(said)
    then, now = _moment(said), _moment(response.headers.get("date", "")) or dt.datetime.now(dt.UTC)
    return None if then is None else max(0.0, (then - now).total_seconds())


def _pairs(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    several = [
        (name, value if isinstance(value, list) else [value]) for name, value in given.items() if value is not None
    ]
    return [(name, text_of(value, name)) for name, values in several for value in values]


async def _body(response: httpx2.Response, at_most: int) -> bytes:
    """The body, or as much of it as `at_most` allows: the rest is not even received."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= at_most:
            break
    return bytes(body[:at_most])


def _text(response: httpx2.Response, body: bytes) -> str:
    try:
        return body.decode(response.charset_encoding or "utf-8", "replace")
    except LookupError:
        return body.decode("utf-8", "replace")


def _moment(text: str) -> dt.datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
