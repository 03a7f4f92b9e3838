"""Posting sign-ups: a few keep-alive connections to the ingress, as a web front end would have."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bitactor.errors import BitActorError

Send = Callable[[str, object, str], Awaitable[tuple[int, Mapping[str, Any]]]]
"""Posts a stimulus to a path, with an idempotency key; returns HTTP status and JSON document."""


class PostResult(NamedTuple):
    """The response to one posted row."""

    row: int
    status: int
    """The response's HTTP status."""
    content: Mapping[str, Any]


async def post(url: str, path: str, given: object, key: str) -> tuple[int, Mapping[str, Any]]:
    """Post one stimulus on a connection of its own; returns HTTP status and JSON document."""
    async with _connection(url) as send:
        return await send(path, given, key)


async def post_all(
    url: str, path: str, rows: Sequence[object], *, connections: int, key: str, answered: Callable[[PostResult], None]
) -> list[PostResult]:
    """Post every row, each with an idempotency key of its own; returns the results in order of the rows.

    Raises:
        BitActorError: the ingress is gone.
    """
    due = deque(enumerate(rows))
    posted: list[PostResult] = []

    async def work() -> None:
        async with _connection(url) as send:
            while due:
                number, row = due.popleft()
                posted.append(PostResult(number, *await send(path, row, f"{key}-{number}")))
                answered(posted[-1])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(connections, len(due))):
                group.create_task(work())
    except* (OSError, EOFError, ValueError) as errors:
        raise BitActorError(f"the service at {url} went away: {errors.exceptions[0]}") from None
    return sorted(posted)


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[Send]:
    """One keep-alive connection; the ingress always says how long its answers are."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)

    async def send(path: str, given: object, key: str) -> tuple[int, Mapping[str, Any]]:
        body = json.dumps(given).encode()
        head = (
            f"POST {path} HTTP/1.1", f"Host: {address.netloc}", "Content-Type: application/json",
            f"Idempotency-Key: {key}", f"Content-Length: {len(body)}", "", "",
        )  # fmt: skip
        writer.write("\r\n".join(head).encode() + body)
        await writer.drain()
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        length = 0
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(await reader.readexactly(length))

    try:
        yield send
    finally:
        writer.close()
