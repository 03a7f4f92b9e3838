"""Posting sign-ups: a few keep-alive connections to the ingress, as a web front end would have."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bitactor.errors import BitActorError


class PostResult(NamedTuple):
    """The response to one posted row."""

    row: int
    status: int
    """The response's HTTP status."""
    content: Mapping[str, Any]


async def post(url: str, path: str, given: object, key: str) -> tuple[int, Mapping[str, Any]]:
    """Post one stimulus on a connection of its own; returns HTTP status and JSON document."""
    connection = await _Connection.open(url)
    try:
        return await connection.post(path, given, key)
    finally:
        connection.close()


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
        connection = await _Connection.open(url)
        try:
            while due:
                number, row = due.popleft()
                status, content = await connection.post(path, row, f"{key}-{number}")
                posted.append(PostResult(number, status, content))
                answered(posted[-1])
        finally:
            connection.close()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(connections, len(due))):
                group.create_task(work())
    except* (OSError, EOFError, ValueError) as errors:
        raise BitActorError(f"the service at {url} went away: {errors.exceptions[0]}") from None
    return sorted(posted)


class _Connection:
    """One keep-alive connection; the ingress always says how long its answers are."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> _Connection:
        address = urlsplit(url)
        return cls(address.netloc, *await asyncio.open_connection(address.hostname, address.port))

    async def post(self, path: str, given: object, key: str) -> tuple[int, Mapping[str, Any]]:
        body = json.dumps(given).encode()
        head = (
            f"POST {path} HTTP/1.1", f"Host: {self._host}", "Content-Type: application/json",
            f"Idempotency-Key: {key}", f"Content-Length: {len(body)}", "", "",
        )  # fmt: skip
        self._writer.write("\r\n".join(head).encode() + body)
        await self._writer.drain()
        status = int((await self._reader.readuntil(b"\r\n")).split()[1])
        length = 0
        while (line := await self._reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(await self._reader.readexactly(length))

    def close(self) -> None:
        self._writer.close()
