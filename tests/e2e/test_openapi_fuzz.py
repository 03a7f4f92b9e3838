"""Strangers at the port: what the description promises holds for whatever schemathesis thinks of, and for plain
noise."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import re
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict, Field

from bitactor import Workflow
from mesh import Mesh
from mesh.ingress.http import HttpServer
from tests.amounts import amount
from tests.e2e.support import BOUND

MAX_SECONDS = 120
EXAMPLES = amount(quick=15, long=100)
SEED = 20_260_101
NOISE = 400

FALSE_ALARMS = "negative_data_rejection"
"""It wants a request refused that has a header the description does not name."""


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(BaseModel):
    name: str = Field(min_length=1, max_length=20)
    price: float | None = None
    tags: list[str] = []


class Order(BaseModel):
    """Something of every kind."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: uuid.UUID
    colour: Colour
    items: list[Item] = Field(max_length=3)
    size: int
    ratio: float
    raw: bytes = b""
    extra: dict[str, int] = {}


def workflows() -> list[Workflow]:
    order = Workflow("shop/order now", input=Order)

    @order.step(spawn="inline")
    def echo(id: Any, colour: Any, items: Any, size: Any, ratio: Any, raw: Any, extra: Any) -> Any:
        return [id, colour, items, size, ratio, raw, extra]

    fails = Workflow("always.fails", input={"why": str})

    @fails.step
    async def book(why: str) -> str:
        return why

    @book.undo
    async def unbook() -> None: ...

    @fails.step
    async def pay(book: str) -> None:
        raise RuntimeError(book)

    late = Workflow("late")

    @late.step(timeout=0.05)
    async def wait() -> None:
        await asyncio.Event().wait()

    empty = Workflow("empty")

    @empty.step(spawn="inline")
    def nothing() -> str:
        return "nothing"

    return [order, fails, late, empty]


@asynccontextmanager
async def served(caplog: pytest.LogCaptureFixture) -> AsyncIterator[tuple[Mesh, str]]:
    """A mesh behind a port; intact afterwards, and nothing was logged that only a defect would log."""
    mesh = Mesh(*workflows())
    server = HttpServer(mesh, port=0, drain=BOUND)
    running = asyncio.ensure_future(server.run())
    await asyncio.wait_for(server.started.wait(), BOUND)
    try:
        yield mesh, server.url
        async with httpx2.AsyncClient(base_url=server.url, timeout=BOUND) as http:
            assert (await http.get("/readyz")).status_code == 200
            assert (await http.post("/stimuli/empty")).json()["result"] == "nothing"
    finally:
        server.stop()
        await asyncio.wait_for(running, BOUND)
    assert mesh.node.supervisor.running_count == 0
    assert not mesh.node.supervisor.transactions
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_description_holds(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """No 5xx, no undescribed status, type, header or body, over every operation and the links between them."""
    async with served(caplog) as (_, url):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", "all",
            "--exclude-checks", FALSE_ALARMS, "--max-examples", str(EXAMPLES), "--seed", str(SEED),
            "--generation-database", "none", "--no-color",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(MAX_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        said = output.decode()
        assert process.returncode == 0, said
        assert "14 selected / 14 total" in said
        warned = re.findall(r"^  - (.+)$", said, re.MULTILINE)
        assert warned == ["POST /dead-letters/{letter}/send-again"], said  # there is no dead letter in this service


async def test_noise(caplog: pytest.LogCaptureFixture) -> None:
    """Requests with bytes changed, cut, doubled: every one is answered below 500 or dropped, and the port serves on."""
    chance = random.Random(SEED)
    async with served(caplog) as (_, url):
        port = int(url.rpartition(":")[2])
        answered: dict[int, int] = {}
        for start in range(0, NOISE, 20):
            mangled = [_mangled(chance, port) for _ in range(start, start + 20)]
            for status in await asyncio.gather(*(_exchange(port, raw) for raw in mangled)):
                answered[status] = answered.get(status, 0) + 1
        assert not [status for status in answered if status >= 500], answered
        assert answered.get(400, 0) and answered.get(422, 0), answered


def _mangled(chance: random.Random, port: int) -> bytes:
    body = chance.choice(
        [b'{"why": "x"}', b'{"why": 1}', b"[[[[", b"\xff\xfe", b'{"why": "\\ud800"}', b'{"why": NaN}', b""]
    )
    target = chance.choice(
        [
            b"POST /stimuli/always.fails",
            b"POST /stimuli/empty",
            b"GET /transactions?limit=5",
            b"GET /transactions/" + b"0" * 32,
        ]
    )
    lines = [
        target + b" HTTP/1.1",
        b"Host: localhost:%d" % port,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Prefer: wait=1",
        b"BitActor-TTL: 8",
        b"Connection: close",
    ]
    raw = bytearray(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    for _ in range(chance.choice([0, 1, 1, 2, 8])):
        at = chance.randrange(len(raw))
        what = chance.randrange(4)
        if what == 0:
            raw[at] = chance.randrange(256)
        elif what == 1:
            del raw[at : at + chance.randrange(1, 20)]
        elif what == 2:
            raw[at:at] = raw[at : at + chance.randrange(1, 40)]
        else:
            raw[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 10)))
        if not raw:
            break
    return bytes(raw)


async def _exchange(port: int, raw: bytes) -> int:
    """The status of the answer; 0 when the connection was dropped without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(BOUND):
            answer = await reader.read()
    except ConnectionError:
        return 0
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
