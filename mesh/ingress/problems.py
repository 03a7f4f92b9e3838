"""Errors as RFC 9457 problem details, sorted by whose fault they are.

A problem says what the caller needs to mend the call.  What only the operator can use (paths, tracebacks, causes) goes
to the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachetools import LRUCache
from starlette.responses import Response

from bitactor.errors import (
    BitActorError,
    DamagedJournal,
    DuplicateTransaction,
    InvalidInput,
    InvalidOutcome,
    Overloaded,
    SignalTooLarge,
    StoreError,
    UnknownTransaction,
    UnknownWorkflow,
    Unroutable,
)
from mesh.ingress.render import respond
from registry.support.log_throttle import LogThrottle

logger = logging.getLogger("bitactor.ingress")

_unserved: Final[LRUCache[str, LogThrottle]] = LRUCache(100)
"""Why requests could not be served → what has been logged of that: it is the same for each, and they may be many."""

TITLES: Final[Mapping[str, tuple[int, str]]] = {
    "malformed-request": (400, "The request cannot be read"),
    "forbidden-origin": (403, "Web pages of other sites may not call this"),
    "not-found": (404, "There is no such resource"),
    "unknown-workflow": (404, "There is no such workflow"),
    "unknown-transaction": (404, "There is no such transaction"),
    "method-not-allowed": (405, "The resource does not know this method"),
    "request-timeout": (408, "The request's body did not arrive in time"),
    "workflow-failed": (409, "The transaction did not complete"),
    "duplicate-transaction": (409, "The idempotency key was used with another input"),
    "other-status": (409, "The transaction does not stand so that this can be done"),
    "owned-elsewhere": (409, "Another process owns the transaction"),
    "payload-too-large": (413, "The request's body is too large"),
    "unsupported-media-type": (415, "The request's body is not JSON"),
    "misdirected": (421, "This server does not go by that name"),
    "invalid-input": (422, "The input is not valid"),
    "internal-error": (500, "Something went wrong in this server"),
    "journal-damaged": (500, "What the journal keeps of the transaction cannot be read"),
    "overloaded": (503, "Too many transactions are running"),
    "stopping": (503, "This server takes no work now"),
    "store-unavailable": (503, "The journal cannot be read or written"),
    "not-ready": (503, "This server is not ready"),
}
"""Problem → HTTP status and title; its type is `urn:bitactor:problem:<name>`."""

CLIENT_CLOSED_REQUEST: Final = 499
"""HTTP status for a client that has gone; never seen by anybody."""


class Problem(Exception):
    """A request that cannot be answered as asked."""

    def __init__(self, name: str, detail: str, headers: Mapping[str, str] | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.name = name
        self.detail = detail
        self.status, self.title = TITLES[name]
        self.headers = dict(headers or {})
        if self.status == 503:
            self.headers.setdefault("Retry-After", "1")
        self.extensions = extensions

    def response(self) -> Response:
        """The problem as `application/problem+json`."""
        content = {
            "type": f"urn:bitactor:problem:{self.name}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extensions,
        }
        return respond(content, self.status, self.headers, "application/problem+json")


def invalid_input(fields: Sequence[tuple[str, str]]) -> Problem:
    """An `invalid-input` problem that names each offending field."""
    shown = "; ".join(f"{path or 'input'}: {message}" for path, message in fields[:5])
    errors = [{"field": path or "input", "message": message} for path, message in fields]
    return Problem("invalid-input", shown, errors=errors)


_PROBLEMS: Final[Sequence[tuple[type[BitActorError], str, str]]] = (
    (SignalTooLarge, "payload-too-large", "the input is too large: {}"),
    (UnknownWorkflow, "unknown-workflow", "{}"),
    (UnknownTransaction, "unknown-transaction", "no transaction has that id here; it may have been forgotten since"),
    (DuplicateTransaction, "duplicate-transaction", "{}"),
    (Overloaded, "overloaded", "too many transactions are running and none ended in time; try again later"),
    (Unroutable, "owned-elsewhere", "{}"),
    (DamagedJournal, "journal-damaged", "{}; it stays so until a sound copy is restored"),
)
"""Error → its problem, and the detail."""


def problem_of(error: BaseException, unready: str = "") -> Problem:
    """The problem an error of BitActor's stands for; anything else is `internal-error`, and logged.

    Args:
        unready: what keeps the node from taking work and what to do, without directories; empty: nothing is known to.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, InvalidInput):
        return invalid_input(error.fields or [("", str(error))])
    if isinstance(error, InvalidOutcome):
        return invalid_input([("", f"the input cannot be carried: {error}")])
    for kind, name, detail in _PROBLEMS:
        if isinstance(error, kind):
            return Problem(name, detail.format(error))
    if isinstance(error, StoreError):
        _log_unserved(error)
        return Problem(
            "store-unavailable",
            unready or "the journal could not be read or written just now; the server's log says why",
        )
    if isinstance(error, BitActorError):
        _log_unserved(error)
    else:
        logger.error("a request failed: %r", error, exc_info=error)
    return Problem("internal-error", "the server's log says more")


def _log_unserved(error: BitActorError) -> None:
    why = str(error)
    throttle = _unserved.setdefault(why, LogThrottle(logger))
    throttle.log(logging.ERROR, time.monotonic_ns(), "a request could not be served: %s", why)
