"""What can come of an HTTP request instead of an answer.

HttpError              the server's answer is none of those expected
└── HttpBusy           one that may be another one later: 408, 425, 429 and 5xx
HttpUnreachable        no answer came: no connection, or it broke
HttpRequestInvalid     the request cannot be sent at all
HttpResponseInvalid    the answer is too large, or not what it says it is

URLs are shown without credentials and without the values of their query; what headers carried is redacted.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from typing_extensions import override

from bitactor.errors import RunError

EXCERPT: Final = 500
"""Characters of a response's body that an error shows."""
WORTH_ANOTHER_TRY: Final = frozenset((408, 425, 429))
"""HTTP statuses of client errors that say nothing against the request itself."""


class HttpError(RunError):
    """The server's answer is none of those expected."""

    def __init__(self, method: str, url: str, status: int, body: str = "") -> None:
        super().__init__(method, url, status, body)
        self.method = method
        self.url = url
        self.status = status
        self.body = body
        """The beginning of the response's body, as text."""

    @override
    def __str__(self) -> str:
        return f"{self.method} {self.url} was answered with {self.status}{f': {self.body}' if self.body else ''}"


class HttpBusy(HttpError):
    """The server's answer is none of those expected, and may be another one later."""


class HttpUnreachable(RunError):
    """No answer came: there was no connection, or it broke, or took too long."""

    def __init__(self, method: str, url: str, reason: str) -> None:
        super().__init__(method, url, reason)
        self.method = method
        self.url = url
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.method} {self.url} got no answer: {self.reason}"


class HttpRequestInvalid(RunError):
    """The request cannot be sent at all; another try would change nothing."""


class HttpResponseInvalid(RunError):
    """The answer is too large, or not what it says it is."""


def http_error(method: str, url: str, status: int, body: str) -> HttpError:
    """The error for an unexpected status: `HttpBusy` if another try may succeed, else `HttpError`."""
    again = status in WORTH_ANOTHER_TRY or 500 <= status <= 599
    excerpt = body if len(body) <= EXCERPT else f"{body[:EXCERPT]}…"
    return (HttpBusy if again else HttpError)(method, url, status, " ".join(excerpt.split()))


def shown_url(url: str) -> str:
    """A URL for people: without user and password, and without what its query says."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(f"{name}=…" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    return urlunsplit((parts.scheme, host, parts.path, query, ""))
