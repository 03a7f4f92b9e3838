"""A mesh behind a real port, asked by a stock client (curl) and by httpx2."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from bitactor import Context, Halt, Workflow
from mesh import Mesh
from mesh.ingress import requests
from mesh.ingress.http import HttpServer
from tests.e2e.support import BOUND, turns, until

ROOT = Path(__file__).parents[2]


class Shop:
    """Workflows whose steps wait for the test."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = 0
        self.undone: list[str] = []
        self.changed = asyncio.Condition()
        self.definitions = [self._echo(), self._waits(), self._fails(), self._halts()]

    async def note(self) -> None:
        self.entered += 1
        async with self.changed:
            self.changed.notify_all()

    async def has_entered(self, count: int) -> None:
        async with asyncio.timeout(BOUND), self.changed:
            await self.changed.wait_for(lambda: self.entered >= count)

    def _echo(self) -> Workflow:
        echo = Workflow("echo", input={"value": Any})

        @echo.step(spawn="inline")
        def give(value: Any) -> Any:
            return value

        return echo

    def _waits(self) -> Workflow:
        waits = Workflow("waits", input={"name": str})

        @waits.step
        async def book(name: str) -> str:
            return name

        @book.undo
        async def unbook(result: str) -> None:
            self.undone.append(result)

        @waits.step
        async def wait(book: str) -> str:
            await self.note()
            await self.gate.wait()
            return f"{book} is done"

        return waits

    def _fails(self) -> Workflow:
        fails = Workflow("fails")

        @fails.step
        async def pay() -> None:
            raise PermissionError("no money")

        return fails

    def _halts(self) -> Workflow:
        halts = Workflow("halts")

        @halts.step
        async def book(ctx: Context) -> str:
            return "room"

        @book.undo
        async def unbook(result: str) -> None:
            self.undone.append(result)

        @halts.step(after=["book"])
        async def ask() -> None:
            raise Halt("ask a person")

        return halts


class Served(NamedTuple):
    mesh: Mesh
    shop: Shop
    server: HttpServer
    http: httpx2.AsyncClient
    running: asyncio.Task[None]


@asynccontextmanager
async def serving(
    store: str = "memory://", shop: Shop | None = None, drain: float = 0.0, **options: Any
) -> AsyncIterator[Served]:
    """A mesh behind a port of its own; everything is closed and accounted for afterwards."""
    shop = shop or Shop()
    mesh = Mesh(*shop.definitions, store=store, **options)
    server = HttpServer(mesh, port=0, drain=drain)
    running = asyncio.ensure_future(server.run())
    started = asyncio.ensure_future(server.started.wait())
    await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED, timeout=BOUND)
    started.cancel()
    assert server.url, running
    try:
        async with httpx2.AsyncClient(base_url=server.url, timeout=BOUND) as http:
            yield Served(mesh, shop, server, http, running)
    finally:
        server.stop()
        await asyncio.wait_for(running, BOUND)
    assert mesh.node.state == "closed"


@pytest.fixture
async def served(store: str) -> AsyncIterator[Served]:
    async with serving(store) as served:
        yield served
        await assert_intact(served)


@pytest.fixture
async def quick() -> AsyncIterator[Served]:
    """For what does not depend on the store."""
    async with serving() as served:
        yield served
        await assert_intact(served)


async def assert_intact(served: Served) -> None:
    served.shop.gate.set()
    assert (await served.http.post("/stimuli/echo", json={"value": "intact"})).json()["result"] == "intact"
    assert (await served.http.get("/readyz")).status_code == 200


async def curl(*arguments: str) -> tuple[int, dict[str, str], Any]:
    """What curl gets: status, headers and JSON."""
    process = await asyncio.create_subprocess_exec(
        "curl",
        "-q",
        "-sS",
        "-i",
        "--max-time",
        str(BOUND),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors
    head, _, body = output.decode().rpartition("\r\n\r\n")
    lines = head.rpartition("HTTP/1.1 ")[2].split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[0]), headers, json.loads(body) if body.strip() else None


def requests_in(served: Served) -> int:
    """How many requests are being answered now."""
    return served.server.answering


def problem(response: httpx2.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in response.text
    return str(response.json()["type"].removeprefix("urn:bitactor:problem:"))


async def test_curl_gets_a_result_and_finds_the_transaction(served: Served) -> None:
    url = served.server.url
    status, headers, about = await curl("--json", '{"value": ["ü", 1.5, null]}', f"{url}/stimuli/echo")
    assert status == 200
    assert about["result"] == ["ü", 1.5, None]
    assert headers["bitactor-transaction"] == about["transaction"]
    assert (await curl(f"{url}/transactions/{about['transaction']}"))[2] == about
    _, _, log = await curl(f"{url}/transactions/{about['transaction']}/pulses")
    assert [pulse["kind"] for pulse in log["pulses"]] == ["accepted", "spawned", "completed", "finished"]
    _, _, page = await curl(f"{url}/transactions?workflow=echo")
    assert [row["transaction"] for row in page["transactions"]] == [about["transaction"]]
    _, _, api = await curl(f"{url}/openapi.json")
    assert "/stimuli/echo" in api["paths"]


@pytest.mark.parametrize(
    ("arguments", "status", "name"),
    [
        (["--json", "{}", "/stimuli/echo"], 422, "invalid-input"),
        (["--json", "{", "/stimuli/echo"], 400, "malformed-request"),
        (["-d", '{"value": 1}', "/stimuli/echo"], 415, "unsupported-media-type"),
        (["--json", "{}", "/stimuli/ecko"], 404, "unknown-workflow"),
        (["-X", "POST", "/stimuli/fails"], 409, "workflow-failed"),
        (["/stimuli/echo"], 405, "method-not-allowed"),
        (["/nowhere"], 404, "not-found"),
        (["/transactions/17"], 422, "invalid-input"),
        (["-H", "Host: rebound.example", "/livez"], 421, "misdirected"),
        (["-H", "Origin: https://evil.example", "-X", "POST", "/stimuli/echo"], 403, "forbidden-origin"),
        (
            ["-H", "Idempotency-Key: a", "-H", "Idempotency-Key: b", "--json", "{}", "/stimuli/echo"],
            400,
            "malformed-request",
        ),
        (["-H", "BitActor-TTL: many", "--json", "{}", "/stimuli/echo"], 422, "invalid-input"),
    ],
)
async def test_curl_is_told_what_is_wrong(quick: Served, arguments: list[str], status: int, name: str) -> None:
    *options, path = arguments
    answer = await curl(*options, f"{quick.server.url}{path}")
    assert answer[0] == status
    assert answer[1]["content-type"] == "application/problem+json"
    assert answer[2]["type"] == f"urn:bitactor:problem:{name}"
    assert "Traceback" not in str(answer[2])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-H", "Expect:"],
        ["-H", "Transfer-Encoding: chunked"],
        ["-H", "Expect:", "-H", "Transfer-Encoding: chunked"],
    ],
)
async def test_curl_sends_too_much(quick: Served, tmp_path: Path, options: list[str]) -> None:
    """Whether it asks first, says how much, or neither: it reads the answer, not a reset connection."""
    large = tmp_path / "large"
    large.write_bytes(b" " * 20_000_000)
    status, _, about = await curl(*options, "--json", f"@{large}", f"{quick.server.url}/stimuli/echo")
    assert status == 413
    assert about["type"] == "urn:bitactor:problem:payload-too-large"


async def test_one_connection_serves_on_after_refusals(quick: Served) -> None:
    url = quick.server.url
    limits = httpx2.Limits(max_connections=1)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=BOUND) as http:
        for _ in range(3):
            assert (await http.post("/stimuli/echo", content=b"x" * 100_000)).status_code == 415
            assert (await http.post("/stimuli/echo", content=b" " * 5_000_000)).status_code == 413
            assert (await http.post("/nowhere", content=b"x" * 100_000)).status_code == 404
            assert (await http.post("/stimuli/echo", json={"value": 1})).status_code == 200


async def test_a_key_begins_one_transaction(served: Served) -> None:
    async def post(value: Any) -> httpx2.Response:
        return await served.http.post("/stimuli/echo", json={"value": value}, headers={"Idempotency-Key": "k"})

    answers = await asyncio.gather(*(post(1) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["transaction"] for answer in answers}) == 1
    assert problem(await post(2)) == "duplicate-transaction"


async def test_the_same_request_however_its_json_is_written(served: Served) -> None:
    async def post(body: str) -> httpx2.Response:
        headers = {"Idempotency-Key": "written", "Content-Type": "application/json"}
        return await served.http.post("/stimuli/echo", content=body, headers=headers)

    bodies = ['{"value": {"a": 1, "b": [2]}}', '{"value":{"b":[2.0],"a":1.0}}', '{ "value": { "b": [2], "a": 1 } }']
    answers = [await post(body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.json()["transaction"] for answer in answers}) == 1
    assert problem(await post('{"value": {"a": 1, "b": [2, 0]}}')) == "duplicate-transaction"


async def test_respond_async_and_look_later(served: Served) -> None:
    answer = await served.http.post("/stimuli/waits", json={"name": "Ada"}, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.json()["status"] == "running"
    where = answer.headers["location"]
    assert (await served.http.get(where)).json()["status"] == "running"
    served.shop.gate.set()
    await (await served.mesh.transaction(answer.json()["transaction"])).result(BOUND)
    assert (await served.http.get(where)).json()["result"] == "Ada is done"


async def test_a_wait_is_bounded(quick: Served) -> None:
    for wait in ("wait=0", "wait=1", "respond-async, wait=1"):
        answer = await quick.http.post("/stimuli/waits", json={"name": "Ada"}, headers={"Prefer": wait})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == wait
    quick.shop.gate.set()
    answer = await quick.http.post("/stimuli/waits", json={"name": "Ada"}, headers={"Prefer": "wait=20"})
    assert answer.status_code == 200
    assert answer.json()["result"] == "Ada is done"


async def test_many_at_once_over_few_connections(served: Served) -> None:
    limits = httpx2.Limits(max_connections=20)
    async with httpx2.AsyncClient(base_url=served.server.url, limits=limits, timeout=BOUND) as http:
        answers = await asyncio.gather(*(http.post("/stimuli/echo", json={"value": n}) for n in range(300)))
    assert [answer.json()["result"] for answer in answers] == list(range(300))


async def test_cancelling_undoes(served: Served) -> None:
    waiting = asyncio.ensure_future(served.http.post("/stimuli/waits", json={"name": "Ada"}))
    await served.shop.has_entered(1)
    (row,) = (await served.http.get("/transactions?status=running")).json()["transactions"]
    answer = await served.http.post(f"/transactions/{row['transaction']}/cancel", json={"reason": "changed my mind"})
    assert answer.status_code == 200
    assert answer.json()["status"] == "cancelled"
    assert served.shop.undone == ["Ada"]
    failed = await waiting
    assert failed.status_code == 409
    assert failed.json()["transaction_status"] == "cancelled"
    assert failed.json()["errors"] == [{"type": "Cancelled", "message": "changed my mind"}]


async def test_cancelling_what_has_halted_undoes_it(served: Served) -> None:
    halted = await served.http.post("/stimuli/halts")
    assert halted.status_code == 409
    assert halted.json()["transaction_status"] == "halted"
    why = {"message": "ask a person", "step": "ask", "direction": "forward", "attempt": 1}
    assert (halted.json()["halt"], halted.json()["errors"]) == (why, [])
    assert halted.json()["detail"] == "'halts' ended halted at 'halts/ask', attempt 1: ask a person"
    looked = await served.http.get(f"/transactions/{halted.json()['transaction']}")
    assert looked.json()["halt"] == why and "errors" not in looked.json()
    answer = await served.http.post(f"/transactions/{halted.json()['transaction']}/cancel")
    assert answer.status_code == 200 and "halt" not in answer.json()
    assert answer.json()["status"] == "cancelled"
    assert served.shop.undone == ["room"]


async def test_cancel_and_look_later(served: Served) -> None:
    begun = await served.http.post("/stimuli/waits", json={"name": "Ada"}, headers={"Prefer": "respond-async"})
    await served.shop.has_entered(1)
    name = begun.json()["transaction"]
    answer = await served.http.post(f"/transactions/{name}/cancel", headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/transactions/{name}"
    assert await (await served.mesh.transaction(name)).ended(BOUND) == "cancelled"


async def test_a_client_that_goes_away_leaves_the_transaction_and_nothing_else(served: Served) -> None:
    await served.http.get("/livez")
    for count in range(1, 4):
        waiting = asyncio.ensure_future(served.http.post("/stimuli/waits", json={"name": "Ada"}))
        await served.shop.has_entered(count)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    runs = served.mesh.node.supervisor.transactions
    assert len(runs) == 3
    await until(lambda: not any(run.waiters for run in runs.values()) and not requests_in(served))
    names = list(runs)
    served.shop.gate.set()
    for name in names:
        assert await (await served.mesh.transaction(name)).result(BOUND) == "Ada is done"


async def test_a_client_that_goes_away_before_there_was_room_began_nothing() -> None:
    async with serving(max_in_flight=1, patience=60.0) as served:
        first = asyncio.ensure_future(served.http.post("/stimuli/waits", json={"name": "Ada"}))
        await served.shop.has_entered(1)
        second = asyncio.ensure_future(served.http.post("/stimuli/echo", json={"value": 1}))
        await until(lambda: requests_in(served) == 2)
        second.cancel()
        await until(lambda: requests_in(served) == 1)
        served.shop.gate.set()
        assert (await first).status_code == 200
        page = (await served.http.get("/transactions")).json()["transactions"]
        assert [row["workflow"] for row in page] == ["waits"]


async def test_too_many_at_once() -> None:
    async with serving(max_in_flight=1, patience=0.0) as served:
        first = asyncio.ensure_future(served.http.post("/stimuli/waits", json={"name": "Ada"}))
        await served.shop.has_entered(1)
        refused = await served.http.post("/stimuli/echo", json={"value": 1})
        assert refused.status_code == 503
        assert problem(refused) == "overloaded"
        assert refused.headers["retry-after"] == "1"
        assert problem(await served.http.get("/readyz")) == "not-ready"
        served.shop.gate.set()
        assert (await first).status_code == 200


async def test_a_body_that_does_not_arrive(quick: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(quick.server.url.rpartition(":")[2]))
    writer.write(
        b"POST /stimuli/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        b"99\r\n\r\n{"
    )
    async with asyncio.timeout(BOUND):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()
    await writer.wait_closed()


async def test_a_connection_that_breaks_within_a_body(quick: Served, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", int(quick.server.url.rpartition(":")[2]))) as raw:
            raw.sendall(
                b"POST /stimuli/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
                b"99\r\n\r\n{"
            )
    await quick.http.get("/livez")
    await until(lambda: not requests_in(quick))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# Stopping


@pytest.mark.parametrize("sent", ["at once", "while draining"])
async def test_the_first_stop_refuses_new_work_and_lets_what_runs_end(store: str, sent: str) -> None:
    async with serving(store, drain=BOUND) as served:
        waiting = asyncio.ensure_future(served.http.post("/stimuli/waits", json={"name": "Ada"}))
        await served.shop.has_entered(1)
        stopped = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b'{"value": '
            await stopped.wait()
            yield b"1}"

        # A stimulus that is on its way when the server stops: its connection is there, which a later one would not get.
        headers = {"content-type": "application/json"}
        refused = asyncio.ensure_future(served.http.post("/stimuli/echo", content=body(), headers=headers))
        await until(lambda: served.server.answering == 2)
        await turns()
        served.server.stop()
        if sent == "while draining":
            await until(lambda: served.mesh.node.state == "draining")
        stopped.set()
        try:
            assert problem(await refused) == "stopping"
        finally:
            served.shop.gate.set()
        assert (await waiting).json()["result"] == "Ada is done"
        await asyncio.wait_for(asyncio.shield(served.running), BOUND)


@pytest.mark.parametrize("stops", [1, 2])
async def test_who_still_waits_at_the_end_is_told(store: str, stops: int) -> None:
    async with serving(store, drain=0.2 if stops == 1 else 60.0) as served:
        waiting = asyncio.ensure_future(served.http.post("/stimuli/waits", json={"name": "Ada"}))
        await served.shop.has_entered(1)
        for _ in range(stops):
            served.server.stop()
        answer = await waiting
        assert answer.status_code == 503
        assert problem(answer) == "stopping"
        assert answer.headers["location"] == f"/transactions/{answer.json()['transaction']}"
        await asyncio.wait_for(asyncio.shield(served.running), BOUND)


async def test_a_mesh_that_was_open_stays_open() -> None:
    shop = Shop()
    async with Mesh(*shop.definitions) as mesh:
        server = HttpServer(mesh, port=0, drain=0.2)
        running = asyncio.ensure_future(server.run())
        await asyncio.wait_for(server.started.wait(), BOUND)
        async with httpx2.AsyncClient(base_url=server.url, timeout=BOUND) as http:
            waiting = asyncio.ensure_future(http.post("/stimuli/waits", json={"name": "Ada"}))
            await shop.has_entered(1)
            server.stop()
            answer = await waiting
        await asyncio.wait_for(running, BOUND)
        assert problem(answer) == "stopping"
        shop.gate.set()
        assert await (await mesh.transaction(answer.json()["transaction"])).result(BOUND) == "Ada is done"


async def test_cancelling_the_server_closes_everything() -> None:
    shop = Shop()
    mesh = Mesh(*shop.definitions)
    server = HttpServer(mesh, port=0, drain=60.0)
    running = asyncio.ensure_future(server.run())
    await asyncio.wait_for(server.started.wait(), BOUND)
    async with httpx2.AsyncClient(base_url=server.url, timeout=BOUND) as http:
        waiting = asyncio.ensure_future(http.post("/stimuli/waits", json={"name": "Ada"}))
        await shop.has_entered(1)
        running.cancel()
        assert problem(await waiting) == "stopping"
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, BOUND)
    assert mesh.node.state == "closed"
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


SERVICE = """
import asyncio, sys
from bitactor import Workflow
from mesh import Mesh
from mesh.ingress.http import serve

nap = Workflow("nap", input={"seconds": float})

@nap.step
async def sleep(seconds: float) -> str:
    print("napping", flush=True)
    await asyncio.sleep(seconds)
    return "rested"

mesh, drain = Mesh(nap, store=sys.argv[1]), float(sys.argv[2])
asyncio.run(serve(mesh, port=0, drain=drain, ready=lambda url: print(url, flush=True)))
print("closed", flush=True)
"""


@asynccontextmanager
async def service(path: Path, store: str, drain: float) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of its own that serves until it is told to stop."""
    (path / "service.py").write_text(SERVICE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(path / "service.py"), store, str(drain),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(BOUND):
            while not (line := (await process.stdout.readline()).decode()).startswith("http"):
                assert line == "napping\n"  # taken over from the process before
        yield process, line.strip()
        async with asyncio.timeout(BOUND):
            assert (await process.stdout.read()).endswith(b"closed\n")
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    async with service(tmp_path, "memory://", 20.0) as (process, url):
        assert process.stdout is not None
        waiting = asyncio.ensure_future(curl("--json", '{"seconds": 1}', f"{url}/stimuli/nap"))
        await process.stdout.readline()
        process.send_signal(number)
        status, _, about = await waiting
        assert (status, about["result"]) == (200, "rested")


async def test_the_second_signal_means_now_and_the_next_start_goes_on(tmp_path: Path, sqlite: str) -> None:
    async with service(tmp_path, sqlite, 60.0) as (process, url):
        assert process.stdout is not None
        waiting = asyncio.ensure_future(curl("--json", '{"seconds": 1}', f"{url}/stimuli/nap"))
        await process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        status, headers, about = await waiting
        assert status == 503
        assert about["type"] == "urn:bitactor:problem:stopping"
    async with service(tmp_path, sqlite, 60.0) as (process, url):
        async with httpx2.AsyncClient(base_url=url) as http:
            found = (await http.get(headers["location"])).json()
            while found["status"] == "running":
                found = (await http.get(headers["location"])).json()
        assert found["result"] == "rested"
        process.send_signal(signal.SIGTERM)


# Several meshes on one store


async def test_another_process_transaction_is_seen_and_waited_for(sqlite: str) -> None:
    async with serving(sqlite) as one, serving(sqlite) as other:
        request = {"json": {"name": "Ada"}, "headers": {"Idempotency-Key": "k"}}
        begun = asyncio.ensure_future(one.http.post("/stimuli/waits", **request))
        await one.shop.has_entered(1)
        (row,) = (await other.http.get("/transactions?status=running")).json()["transactions"]
        where = f"/transactions/{row['transaction']}"
        assert (await other.http.get(where)).json()["status"] == "running"
        refused = await other.http.post(f"{where}/cancel")
        assert refused.status_code == 409
        assert problem(refused) == "owned-elsewhere"
        assert (
            await other.http.post(
                "/stimuli/waits", **{**request, "headers": {"Idempotency-Key": "k", "Prefer": "wait=1"}}
            )
        ).status_code == 202
        again = asyncio.ensure_future(other.http.post("/stimuli/waits", **request))
        one.shop.gate.set()
        assert (await begun).json() == (await again).json()
        assert other.shop.entered == 0


async def test_a_transaction_of_a_workflow_that_is_not_declared_here(sqlite: str) -> None:
    async with serving(sqlite) as served:
        name = (await served.http.post("/stimuli/echo", json={"value": 1})).json()["transaction"]
    shop = Shop()
    shop.definitions = shop.definitions[1:]
    async with serving(sqlite, shop) as other:
        found = await other.http.get(f"/transactions/{name}")
        assert found.json() == {"transaction": name, "root": name, "workflow": "echo", "status": "completed"}
        log = (await other.http.get(f"/transactions/{name}/pulses")).json()
        assert [pulse["kind"] for pulse in log["pulses"]] == ["accepted", "spawned", "completed", "finished"]
        assert problem(await other.http.post(f"/transactions/{name}/cancel")) == "owned-elsewhere"
