"""Reading requests of strangers: bounded bodies, strict JSON, headers that are obeyed or refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from starlette.requests import Request

from bitactor.declare.stimulus import MAX_KEY, StimulusOptions
from bitactor.errors import InvalidInput
from mesh.ingress.headers import HEADERS
from mesh.ingress.problems import Problem, invalid_input
from mesh.sinks.otel.context import parse_traceparent

BODY_TIMEOUT: Final = 30.0
"""Seconds a request's body may take to arrive."""
MIN_DEADLINE: Final = 0.001
MAX_DEADLINE: Final = 31_536_000
MAX_WAIT: Final = 86_400

_NUMBER: Final = re.compile(r"\d{1,20}(\.\d{1,20})?([eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE: Final = re.compile(r"\d{1,9}", re.ASCII)
_INTEGER: Final = re.compile(r"-?\d{1,20}", re.ASCII)
_ESCAPED: Final = re.compile(r"\\([\"\\])")
_PRINTABLE: Final = re.compile(r"[ -~]+")
_MEDIA_TYPE: Final = re.compile(r"application/(json|[a-z0-9.+-]+\+json)")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_TRACEPARENT_LENGTH: Final = 55


class Preferences(NamedTuple):
    """The preferences of a `Prefer` header (RFC 7240)."""

    respond_async: bool = False
    wait: int | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds to wait for the transaction's end; None: until it comes."""
        return 0 if self.respond_async and self.wait is None else self.wait

    def applied(self) -> dict[str, str]:
        """The `Preference-Applied` header, if there is something to say."""
        said = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            said.append(f"wait={self.wait}")
        return {"Preference-Applied": ", ".join(said)} if said else {}


def read_stimulus_headers(request: Request) -> StimulusOptions:
    """The options that a request's headers give.

    Raises:
        Problem: a header cannot be obeyed; all offending ones are named.
    """
    wrong: list[tuple[str, str]] = []
    given: dict[str, Any] = {"traceparent": _traceparent(request)}
    for name, read in _READ.items():
        text = _single(request, HEADERS[name])
        if text is not None:
            try:
                given[name] = read(text)
            except ValueError as error:
                wrong.append((HEADERS[name], str(error)))
    try:
        options = StimulusOptions(**given)
    except InvalidInput as error:
        wrong += [(HEADERS[name], rule) for name, rule in error.fields]
    if wrong:
        raise invalid_input(wrong)
    return options


def preferences(request: Request) -> Preferences:
    """The preferences of a request; those that are unknown or malformed are ignored, as RFC 7240 wants."""
    respond_async, wait = False, None
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        name, value = name.strip().lower(), value.strip().strip('"')
        if name == "respond-async" and not value:
            respond_async = True
        elif name == "wait" and wait is None and _WHOLE.fullmatch(value):
            wait = min(int(value), MAX_WAIT)
    return Preferences(respond_async, wait)


async def read_json(request: Request, limit: int) -> str:
    """The body as text that is JSON in the strict sense, or an empty string when there is none.

    Raises:
        Problem: it is too large, too slow, of another media type, not UTF-8 or not JSON.
        ClientDisconnect: the client went away.
    """
    body = await _read(request, limit)
    if not body:
        return ""
    _require_json(request)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Problem("malformed-request", f"the body is not UTF-8 (byte {error.start})") from None
    try:
        _strict_json(text)
    except ValueError as error:
        raise Problem("malformed-request", f"the body {error}") from None
    return text


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "").lstrip("0")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise Problem(
            "request-timeout", f"the body did not arrive within {BODY_TIMEOUT:g} s", {"Connection": "close"}
        ) from None
    return bytes(body)


def _too_large(limit: int) -> Problem:
    return Problem(
        "payload-too-large",
        f"the body has more than {limit:,} bytes (payload_limit, unless max_body_bytes is given); keep large data "
        "elsewhere and pass a reference, or raise that",
    )


def _require_json(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise Problem(
            "unsupported-media-type",
            "compressed bodies are not taken; leave Content-Encoding out",
            {"Accept-Encoding": "identity"},
        )
    media_type, _, parameters = (_single(request, "Content-Type") or "").partition(";")
    media_type = media_type.strip().lower()
    if not _MEDIA_TYPE.fullmatch(media_type):
        said = f"not {media_type!r}" if media_type else "and no Content-Type was given"
        raise Problem(
            "unsupported-media-type",
            f"the body must be sent as application/json, {said} (with curl: --json '{{…}}')",
            {"Accept": "application/json"},
        )
    charset = parameters.strip().lower().replace('"', "")
    if charset.startswith("charset=") and charset.removeprefix("charset=").strip() not in ("utf-8", "utf8", "us-ascii"):
        raise Problem("unsupported-media-type", "JSON is sent as UTF-8", {"Accept": "application/json"})


def _single(request: Request, name: str) -> str | None:
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise Problem("malformed-request", f"the header {name} was given {len(values)} times")
    return values[0] if values else None


def _strict_json(text: str) -> Any:
    """The value of a JSON text that is JSON in the strict sense.

    Raises:
        ValueError: what is wrong, as the end of a sentence.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("has a lone surrogate (\\ud800 … \\udfff), which is no character") from None
    except ValueError as error:
        raise ValueError(f"has a number out of range: {error}") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:32]} is larger than a double can be")
    return value


def _key(text: str) -> str:
    """The idempotency key, bare as most clients send it, or a quoted string as the IETF draft has it; both mean the
    same key."""
    key = text.strip()
    if len(key) > 2 and key[0] == key[-1] == '"':
        key = _ESCAPED.sub(r"\1", key[1:-1])
    if not _PRINTABLE.fullmatch(key) or len(key) > MAX_KEY:
        raise ValueError(f"a key is 1 to {MAX_KEY} printable ASCII characters")
    return key


def _integer(text: str) -> int | str:
    """The whole number; a text that is none stays one, and the option's own rule refuses it."""
    return int(text) if _INTEGER.fullmatch(text) else text


def _deadline(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not MIN_DEADLINE <= float(text) <= MAX_DEADLINE:
        raise ValueError(f"a deadline is a number of seconds from {MIN_DEADLINE:g} to {MAX_DEADLINE:,}")
    return float(text)


def _metadata(text: str) -> Any:
    if not _PRINTABLE.fullmatch(text):
        raise ValueError("metadata are a JSON object in ASCII")
    return _strict_json(text)


def _traceparent(request: Request) -> str | None:
    """The W3C trace context, shortened to the fields we know; absent, repeated and malformed ones do not matter."""
    given = request.headers.getlist("traceparent")
    if len(given) != 1 or parse_traceparent(given[0]) is None:
        return None
    if given[0].startswith("00-") and len(given[0]) != _TRACEPARENT_LENGTH:
        return None
    return given[0][:_TRACEPARENT_LENGTH]


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "key": _key,
    "ttl": _integer,
    "deadline": _deadline,
    "max_concurrency": _integer,
    "priority": _integer,
    "metadata": _metadata,
}
"""Option → how the text of its header is read."""
