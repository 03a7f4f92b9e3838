"""A client of a node's HTTP ingress, with what the standard library has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from mesh.cli.exits import UNREACHABLE, CommandError, UsageError


class HttpResponse(NamedTuple):
    """The status and the JSON document of a response."""

    status: int
    content: Any
    """The value of the response's JSON document."""


def post_stimulus(
    base: str, workflow: str, given: Any, headers: Mapping[str, str], timeout: float | None
) -> HttpResponse:
    """`POST /stimuli/{workflow}` at the ingress whose address is `base`.

    Raises:
        UsageError: `base` is no http address.
        CommandError: nobody answers there, or what answers is no ingress.
    """
    connection = _connect(base, timeout)
    path = f"{urlsplit(base).path.rstrip('/')}/stimuli/{quote(workflow, safe='')}"
    try:
        connection.request("POST", path, json.dumps(given), {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return HttpResponse(response.status, json.loads(response.read()))
    except TimeoutError:
        raise CommandError(
            f"{base} did not answer within {timeout:g} s; the transaction, if it began, goes on", UNREACHABLE
        ) from None
    except ValueError:
        raise CommandError(
            f"what answers at {base} is no BitActor ingress: its answer is not JSON", UNREACHABLE
        ) from None
    except (OSError, HTTPException) as error:
        raise CommandError(
            f"nobody answers at {base}: {error}", UNREACHABLE, "'bitactor run MODULE:OBJECT --http 8000' serves it"
        ) from None
    finally:
        connection.close()


def _connect(base: str, timeout: float | None) -> HTTPConnection:
    url = urlsplit(base)
    kinds: dict[str, type[HTTPConnection]] = {"http": HTTPConnection, "https": HTTPSConnection}
    try:
        port = url.port
    except ValueError:
        port = -1
    if url.scheme not in kinds or not url.hostname or port == -1:
        raise UsageError(f"--http {base!r} is no address", "such as http://127.0.0.1:8000")
    return kinds[url.scheme](url.hostname, port, timeout=timeout)
