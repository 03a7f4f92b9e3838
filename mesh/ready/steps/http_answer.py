"""The result that a step makes of an HTTP response: plain data within a bound."""

from __future__ import annotations

import datetime as dt
import json
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx2

from mesh.ready.http_errors import EXCERPT, HttpResponseInvalid

_EXCERPT_BYTES: Final = 4 * EXCERPT
_TEXTS: Final = ("application/xml", "application/javascript", "application/x-www-form-urlencoded", "application/yaml")
_WAITING: Final = frozenset((429, 503))
"""HTTP statuses whose `Retry-After` says when the same request may succeed."""


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


async def _body(response: httpx2.Response, at_most: int) -> bytes:
    """The body, or as much of it as `at_most` allows: the rest is not even received."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= at_most:
            break
    return bytes(body[:at_most])


def _text(response: httpx2.Response, body: bytes) -> str:
    return (
        body.decode(response.charset_encoding or "utf-8", "replace")
        if _is_known(response)
        else body.decode("utf-8", "replace")
    )


def _is_known(response: httpx2.Response) -> bool:
    try:
        b"".decode(response.charset_encoding or "utf-8")
    except LookupError:
        return False
    return True


def _moment(text: str) -> dt.datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
