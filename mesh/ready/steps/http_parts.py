"""The parts of a request, made from values that may be anything: nothing that is put in leaves its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urldefrag, urlencode

import httpx2
from pydantic_core import PydanticSerializationError, to_jsonable_python

from bitactor.errors import InvalidInput
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


def url(template: Template, given: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """The URL of a request, each field quoted, and the query.

    Raises:
        InvalidInput: a field is empty where the path needs it, or the path would lead elsewhere.
    """
    made = urldefrag(template.text(given, _quote_field)).url
    path, mark, query = made.partition("?")
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


def _quote_field(field: str, filled: str, before: str) -> str:
    if not before:
        return filled
    if not filled and "?" not in before:
        raise InvalidInput(f"{{{field}}} is empty, and the URL would be another one")
    return quote(filled, safe="")


def _pairs(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    several = [
        (name, value if isinstance(value, list) else [value]) for name, value in given.items() if value is not None
    ]
    return [(name, text_of(value, name)) for name, values in several for value in values]
