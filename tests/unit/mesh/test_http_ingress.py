"""The HTTP ingress without a network: requests in, answers out, over a real mesh."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from starlette.requests import Request

from bitactor import Context, Workflow, consumer
from bitactor.errors import BitActorError, ConfigurationError, StoreError
from mesh import Mesh
from mesh.ingress.http import HttpServer, application
from mesh.ingress.openapi import describe_api
from mesh.ingress.problems import TITLES, Problem, problem_of
from mesh.ingress.render import as_json
from mesh.ingress.requests import preferences, read_stimulus_headers
from mesh.ingress.server import bind
from tests import extensions  # noqa: F401  (which adds a store)

BOUND = 30.0
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Order(BaseModel):
    """What somebody wants to have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: UUID
    when: dt.datetime
    count: int = Field(1, ge=1)


class Guarded(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _broken(cls, value: str) -> str:
        raise RuntimeError("secret of the validator")


class Hidden(BaseModel):
    password: SecretStr


def workflows() -> list[Workflow]:
    echo = Workflow("echo", input={"value": Any})

    @echo.step(spawn="inline")
    def give(value: Any) -> Any:
        """Give it back."""
        return value

    order = Workflow("shop/order now", input=Order, deadline=5.0)

    @order.step(spawn="inline")
    def place(id: UUID, when: dt.datetime, count: int) -> Any:
        return {
            "id": id,
            "when": when,
            "count": count,
            "raw": b"\xff\xfe",
            "price": Decimal("1.50"),
            "none": float("nan"),
        }

    fails = Workflow("fails", input={"why": str})

    @fails.step
    async def book(why: str, ctx: Context) -> int:
        await ctx.emit("booked", why)
        return 1

    @book.undo
    async def unbook() -> None: ...

    @fails.step(after=["book"])
    async def pay(why: str) -> None:
        raise PermissionError(why)

    guarded = Workflow("guarded", input=Guarded)
    guarded.step(spawn="inline")(named("greet", "name"))
    hidden = Workflow("hidden", input=Hidden)
    hidden.step(spawn="inline")(named("log_in", "password"))
    empty = Workflow("empty")

    @empty.step(spawn="inline")
    def nothing() -> str:
        return "nothing"

    return [echo, order, fails, guarded, hidden, empty]


def named(name: str, argument: str) -> Any:
    scope: dict[str, Any] = {}
    exec(f"def {name}({argument}): return 1", scope)
    return scope[name]


@asynccontextmanager
async def client(mesh: Mesh, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(application(mesh, **options))
    async with httpx2.AsyncClient(transport=transport, base_url="http://mesh") as http:
        yield http


@consumer("booked")
async def note(signal: Any) -> None: ...


@pytest.fixture(params=["memory://", "tardy://"])
async def http(request: pytest.FixtureRequest) -> AsyncIterator[httpx2.AsyncClient]:
    async with Mesh(*workflows(), note, store=request.param) as mesh, client(mesh) as http:
        yield http
        assert mesh.node.about()["running"] == 0
        assert (await http.post("/stimuli/empty")).json()["result"] == "nothing"


def problem(response: httpx2.Response) -> str:
    """The problem's name, when the response is a well-formed one."""
    about = response.json()
    name = about["type"].removeprefix("urn:bitactor:problem:")
    assert response.headers["content-type"] == "application/problem+json"
    assert (about["status"], about["title"]) == TITLES[name]
    assert about["status"] == response.status_code
    assert about["detail"]
    assert "Traceback" not in response.text
    assert 'File "' not in response.text
    return str(name)


# Stimuli


async def test_the_answer_is_the_result(http: httpx2.AsyncClient) -> None:
    response = await http.post("/stimuli/echo", json={"value": {"a": [1, 2.5, None, "ü", True]}})
    about = response.json()
    assert response.status_code == 200
    assert response.headers["bitactor-transaction"] == about["transaction"] == about["root"]
    assert about["workflow"] == "echo"
    assert about["status"] == "completed"
    assert about["result"] == {"a": [1, 2.5, None, "ü", True]}
    assert response.headers["cache-control"] == "no-store"


async def test_values_of_every_kind_and_a_name_with_a_slash(http: httpx2.AsyncClient) -> None:
    """A strict model takes from JSON what JSON can say; the name's slash and blank arrive."""
    given = {"id": "01a1fbf9-e579-7539-9af4-21674b9e6025", "when": "2026-11-21T02:40:21Z", "count": 3}
    response = await http.post("/stimuli/shop%2Forder%20now", json=given)
    assert response.json()["result"] == {**given, "raw": "__4=", "price": "1.50", "none": "NaN"}


async def test_input_that_does_not_fit_names_each_field(http: httpx2.AsyncClient) -> None:
    response = await http.post("/stimuli/shop%2Forder%20now", json={"id": 7, "count": 0, "cuont": 1})
    assert problem(response) == "invalid-input"
    assert {error["field"] for error in response.json()["errors"]} == {"id", "when", "count", "cuont"}


async def test_an_unknown_workflow_is_told_what_was_meant(http: httpx2.AsyncClient) -> None:
    response = await http.post("/stimuli/ecko", json={})
    assert problem(response) == "unknown-workflow"
    assert "Did you mean 'echo'?" in response.json()["detail"]


async def test_a_failing_workflow_is_an_answer(http: httpx2.AsyncClient) -> None:
    response = await http.post("/stimuli/fails", json={"why": "no money"})
    about = response.json()
    assert response.status_code == 409
    assert problem(response) == "workflow-failed"
    assert about["transaction_status"] == "compensated"
    place = {"step": "pay", "direction": "forward", "attempt": 1}
    assert about["errors"] == [{"type": "PermissionError", "message": "no money", **place}]
    assert about["detail"] == "'fails' ended compensated at 'fails/pay', attempt 1: PermissionError: no money"
    assert about["transaction"] == response.headers["bitactor-transaction"]
    looked = (await http.get(f"/transactions/{about['transaction']}")).json()
    assert looked["status"] == "compensated"
    assert looked["errors"] == about["errors"]


async def test_no_input_at_all(http: httpx2.AsyncClient) -> None:
    assert (await http.post("/stimuli/empty")).status_code == 200
    assert (await http.post("/stimuli/empty", json={})).status_code == 200
    assert (
        await http.post("/stimuli/empty", content=b"null", headers={"Content-Type": "application/json"})
    ).status_code == 200
    assert problem(await http.post("/stimuli/empty", json={"x": 1})) == "invalid-input"
    assert problem(await http.post("/stimuli/echo")) == "invalid-input"


async def test_a_validator_that_breaks_is_no_server_error(
    http: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await http.post("/stimuli/guarded", json={"name": "x"})
    assert problem(response) == "invalid-input"
    assert "secret" not in response.text
    assert "secret of the validator" in caplog.text


async def test_a_secret_is_not_shown(http: httpx2.AsyncClient) -> None:
    response = await http.post("/stimuli/hidden", json={"password": "hunter2"})
    assert response.status_code == 200
    pulses = await http.get(f"/transactions/{response.json()['transaction']}/pulses")
    assert "hunter2" not in response.text + pulses.text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{", "malformed-request"),
        ("", "invalid-input"),
        ("[]", "invalid-input"),
        ("null", "invalid-input"),
        ('"value"', "invalid-input"),
        ('{"value": NaN}', "malformed-request"),
        ('{"value": -Infinity}', "malformed-request"),
        ('{"value": 1e999}', "malformed-request"),
        ('{"value": ' + "9" * 5_000 + "}", "malformed-request"),
        ('{"value": ' + "[" * 50_000, "malformed-request"),
        ('{"value": ' + "[" * 50_000 + "]" * 50_000 + "}", "malformed-request"),
        ('{"value": ' + "[" * 100 + "]" * 100 + "}", "invalid-input"),
        ('{"value": ' + '{"a":' * 100 + "1" + "}" * 100 + "}", "invalid-input"),
        ('{"value": "\\ud800"}', "malformed-request"),
        ('{"\\uDFFF": 1}', "malformed-request"),
        ('{"value": 1} {}', "malformed-request"),
        ('\ufeff{"value": 1}', "malformed-request"),
        ('{"value": "\n"}', "malformed-request"),
        ("{'value': 1}", "malformed-request"),
    ],
)
async def test_bodies_that_are_refused(http: httpx2.AsyncClient, body: str, expected: str) -> None:
    response = await http.post("/stimuli/echo", content=body.encode(), headers={"Content-Type": "application/json"})
    assert problem(response) == expected


@pytest.mark.parametrize("body", [b"\xff\xfe{}", '{"value": 1}'.encode("utf-16"), b'{"value": "\xed\xa0\x80"}'])
async def test_bodies_that_are_no_utf8(http: httpx2.AsyncClient, body: bytes) -> None:
    response = await http.post("/stimuli/echo", content=body, headers={"Content-Type": "application/json"})
    assert problem(response) == "malformed-request"


@pytest.mark.parametrize(
    "value", ["9" * 4_000, "-" + "9" * 400, '"\\ud83d\\ude00"', '"\\u0000"', "[" * 60 + "]" * 60, "1e308"]
)
async def test_unusual_values_that_are_carried(http: httpx2.AsyncClient, value: str) -> None:
    body = f'{{"value": {value}}}'
    response = await http.post("/stimuli/echo", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    assert response.json()["result"] == json.loads(value)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=UTF-8"}, 200),
        ({"Content-Type": "APPLICATION/JSON"}, 200),
        ({"Content-Type": "application/vnd.shop+json"}, 200),
        ({"Content-Type": "application/json", "Content-Encoding": "identity"}, 200),
        ({}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
    ],
)
async def test_media_types(http: httpx2.AsyncClient, headers: dict[str, str], status: int) -> None:
    response = await http.post("/stimuli/echo", content=b'{"value": 1}', headers=headers)
    assert response.status_code == status
    if status == 415:
        assert problem(response) == "unsupported-media-type"


async def test_a_body_within_the_limit_and_one_byte_more() -> None:
    async with Mesh(*workflows()) as mesh, client(mesh, max_body_bytes=100) as http:
        body = b'{"value": "' + b"x" * 87 + b'"}'
        headers = {"Content-Type": "application/json"}
        assert (await http.post("/stimuli/echo", content=body, headers=headers)).status_code == 200
        assert problem(await http.post("/stimuli/echo", content=body + b" ", headers=headers)) == "payload-too-large"

        async def drops() -> AsyncIterator[bytes]:
            for byte in body + b" ":
                yield bytes([byte])

        assert problem(await http.post("/stimuli/echo", content=drops(), headers=headers)) == "payload-too-large"


async def test_input_larger_than_a_token_may_be() -> None:
    async with Mesh(*workflows()) as mesh, client(mesh, max_body_bytes=8 * 1024 * 1024) as http:
        assert problem(await http.post("/stimuli/echo", json={"value": "x" * 5_000_000})) == "payload-too-large"


# Headers


def request(*headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw})


@pytest.mark.parametrize(
    ("given", "respond_async", "wait"),
    [
        ("respond-async", True, None),
        ("Respond-Async, WAIT=10", True, 10),
        ('wait="5"; foo=bar', False, 5),
        ("wait=5, wait=7", False, 5),
        ("wait=0", False, 0),
        ("wait=99999999", False, 86_400),
        ("wait=-1", False, None),
        ("wait=1e3", False, None),
        ("wait=", False, None),
        ("wait=\u00b2", False, None),
        ("respond-async=yes", False, None),
        (",,;=;,", False, None),
        ("return=minimal", False, None),
    ],
)
def test_preferences(given: str, respond_async: bool, wait: int | None) -> None:
    assert preferences(request(("Prefer", given))) == (respond_async, wait)


def test_preferences_in_two_headers() -> None:
    wanted = preferences(request(("Prefer", "respond-async"), ("Prefer", "wait=3")))
    assert wanted.seconds == 3
    assert wanted.applied() == {"Preference-Applied": "respond-async, wait=3"}


@pytest.mark.parametrize(("given", "key"), [("k 1", "k 1"), ('"k-1"', "k-1"), ('"a\\"b\\\\"', 'a"b\\'), ('"', '"')])
def test_idempotency_keys(given: str, key: str) -> None:
    assert read_stimulus_headers(request(("Idempotency-Key", given))).key == key


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "x" * 256),
        ("Idempotency-Key", "k\u00fc"),
        ("BitActor-TTL", "1001"),
        ("BitActor-TTL", "-1"),
        ("BitActor-TTL", "1.5"),
        ("BitActor-TTL", ""),
        ("BitActor-TTL", "\u00b2"),
        ("BitActor-Deadline", "0"),
        ("BitActor-Deadline", "-1"),
        ("BitActor-Deadline", "nan"),
        ("BitActor-Deadline", "inf"),
        ("BitActor-Deadline", "1e999"),
        ("BitActor-Deadline", "1_0"),
        ("BitActor-Deadline", "soon"),
    ],
)
def test_headers_that_cannot_be_obeyed_are_refused(name: str, value: str) -> None:
    with pytest.raises(Problem) as caught:
        read_stimulus_headers(request((name, value)))
    assert caught.value.name == "invalid-input"
    assert [error["field"] for error in caught.value.extensions["errors"]] == [name]


@pytest.mark.parametrize("name", ["Idempotency-Key", "BitActor-TTL", "BitActor-Deadline"])
def test_single_headers_given_twice_are_refused(name: str) -> None:
    with pytest.raises(Problem, match="given 2 times"):
        read_stimulus_headers(request((name, "5"), (name, "5")))


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([TRACEPARENT], TRACEPARENT),
        (["01" + TRACEPARENT[2:] + "-more"], "01" + TRACEPARENT[2:]),
        ([], None),
        ([TRACEPARENT, TRACEPARENT], None),
        ([TRACEPARENT + "-more"], None),
        ([TRACEPARENT.upper()], None),
        (["ff" + TRACEPARENT[2:]], None),
        (["00-" + "0" * 32 + "-b7ad6b7169203331-01"], None),
        (["nonsense"], None),
    ],
)
def test_trace_context_is_passed_on_or_ignored(given: list[str], passed: str | None) -> None:
    assert read_stimulus_headers(request(*(("traceparent", value) for value in given))).traceparent == passed


async def test_what_the_headers_say_is_obeyed(http: httpx2.AsyncClient) -> None:
    headers = {"BitActor-TTL": "3", "BitActor-Deadline": "2.5", "traceparent": TRACEPARENT, "Idempotency-Key": "k1"}
    response = await http.post("/stimuli/echo", json={"value": 1}, headers=headers)
    pulses = (await http.get(f"/transactions/{response.json()['transaction']}/pulses")).json()["pulses"]
    accepted = pulses[0]
    assert accepted["data"]["traceparent"] == TRACEPARENT
    assert accepted["data"]["key"] == "k1"
    assert accepted["ttl"] == 3
    at = dt.datetime.fromisoformat(accepted["at"][:26] + "+00:00").timestamp()
    assert accepted["data"]["deadline_ns"] / 1e9 - at == pytest.approx(2.5, abs=0.01)


async def test_too_small_a_budget_is_an_answer(http: httpx2.AsyncClient) -> None:
    response = await http.post("/stimuli/echo", json={"value": 1}, headers={"BitActor-TTL": "0"})
    assert problem(response) == "workflow-failed"
    assert response.json()["errors"][0]["type"] == "TtlExpired"


# Transactions


async def test_pulses_show_values_and_no_tracebacks(http: httpx2.AsyncClient) -> None:
    response = await http.post("/stimuli/fails", json={"why": "no money"})
    shown = await http.get(f"/transactions/{response.json()['transaction']}/pulses")
    about = shown.json()
    assert [pulse["seq"] for pulse in about["pulses"]] == list(range(len(about["pulses"])))
    kinds = [pulse["kind"] for pulse in about["pulses"] if pulse["kind"] != "emitted"]  # which may be said later
    assert kinds[-1] == "finished"
    booked = next(pulse for pulse in about["pulses"] if pulse["kind"] == "completed")
    assert booked["token_out"] == 1
    assert booked["data"]["emits"] == [{"name": "booked", "value": "no money"}]
    spawned = next(pulse for pulse in about["pulses"] if pulse["kind"] == "spawned")
    assert spawned["token_in"] == {"why": "no money"}
    failed = next(pulse for pulse in about["pulses"] if pulse["kind"] == "failed")
    assert failed["error"] == "PermissionError: no money"
    assert failed["data"]["fault"] == {"type": "PermissionError", "message": "no money"}
    assert "Traceback" not in shown.text
    assert __file__ not in shown.text


async def test_lists_in_pages(http: httpx2.AsyncClient) -> None:
    made = [(await http.post("/stimuli/echo", json={"value": n})).json()["transaction"] for n in range(5)]
    await http.post("/stimuli/fails", json={"why": "x"})
    seen: list[str] = []
    before = None
    while True:
        query: dict[str, Any] = {"workflow": "echo", "limit": 2, **({"before": before} if before else {})}
        page = (await http.get("/transactions", params=query)).json()
        seen += [row["transaction"] for row in page["transactions"]]
        before = page["before"]
        if before is None:
            break
    assert seen == made[::-1]
    rows = (await http.get("/transactions?status=compensated")).json()["transactions"]
    assert [row["workflow"] for row in rows] == ["fails"]


@pytest.mark.parametrize(
    "query",
    ["status=done", "limit=0", "limit=1001", "limit=x", "before=1", "statsu=running", "workflow=", "limit=1&limit=2"],
)
async def test_a_query_that_cannot_be_obeyed_is_refused(http: httpx2.AsyncClient, query: str) -> None:
    for path in ("/transactions", "/dead-letters"):
        response = await http.get(f"{path}?{query}")
        assert problem(response) == "invalid-input"
        assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_dead_letters_are_described_as_they_are() -> None:
    books = Workflow("books", input={"seat": int})
    schemas = describe_api([books], 1)["components"]["schemas"]

    @books.step
    async def book(seat: int) -> str:
        return f"ticket {seat}"

    book.undo(lambda result: 1 / 0)

    @books.step(after=["book"])
    async def fail() -> None:
        raise ValueError("no")

    async with Mesh(books) as mesh, client(mesh) as http:
        assert (await http.get("/dead-letters")).json() == {"dead_letters": [], "before": None}
        for seat in range(3):
            await http.post("/stimuli/books", json={"seat": seat})
        seen, before = [], ""
        while before is not None:
            page = (
                await http.get("/dead-letters", params={"limit": 2, **({"before": before} if before else {})})
            ).json()
            seen, before = [*seen, *page["dead_letters"]], page["before"]
        assert [letter["payload"]["seat"] for letter in seen] == [2, 1, 0]
        assert all(letter.keys() == schemas["BitActorDeadLetter"]["properties"].keys() for letter in seen)
        assert page.keys() == schemas["BitActorDeadLetters"]["properties"].keys()


async def test_a_dead_letter_is_sent_again_once() -> None:
    books, broken = Workflow("books"), [True]

    @books.step
    async def book() -> int:
        return 7

    book.undo(lambda result: 1 / 0 if broken else None)

    @books.step(after=["book"])
    async def fail() -> None:
        raise ValueError("no")

    async with Mesh(books) as mesh, client(mesh) as http:
        await http.post("/stimuli/books")
        (letter,) = (await http.get("/dead-letters")).json()["dead_letters"]
        broken.clear()
        path = f"/dead-letters/{letter['id']}/send-again"
        answer = await http.post(path, json={"reason": "mended"})
        assert answer.status_code == 200 and answer.json()["transaction"] == letter["transaction"]
        await (await mesh.transaction(letter["transaction"])).ended(BOUND)
        again = await http.post(path)
        assert problem(again) == "other-status" and "resumed since, and is compensated" in again.json()["detail"]
        for wrong in ("x", letter["transaction"], f"{letter['id']}x", f"{'0' * 31}-1", f"{'0' * 32}-", "%00"):
            assert problem(await http.post(f"/dead-letters/{wrong}/send-again")) == "invalid-input"
        assert problem(await http.post(f"/dead-letters/{'0' * 32}-1/send-again")) == "unknown-transaction"
        assert problem(await http.post(path, json={"why": 1})) == "invalid-input"
        assert problem(await http.get(path)) == "method-not-allowed"


@pytest.mark.parametrize("path", ["", "/pulses"])
async def test_unknown_and_malformed_ids(http: httpx2.AsyncClient, path: str) -> None:
    assert problem(await http.get(f"/transactions/{'0' * 32}{path}")) == "unknown-transaction"
    for wrong in ("x", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "%00", "%ff", "0" * 31 + "%0a", "\u0660" * 32):
        assert problem(await http.get(f"/transactions/{wrong}{path}")) == "invalid-input"
        assert problem(await http.post(f"/transactions/{wrong}/cancel")) == "invalid-input"


async def test_cancelling_what_has_ended_changes_nothing(http: httpx2.AsyncClient) -> None:
    name = (await http.post("/stimuli/echo", json={"value": 1})).json()["transaction"]
    response = await http.post(f"/transactions/{name}/cancel", json={"reason": "too late"})
    assert response.status_code == 200
    assert response.json()["status"] == "completed"
    assert problem(await http.post(f"/transactions/{name}/cancel", json={"raeson": "x"})) == "invalid-input"
    assert problem(await http.post(f"/transactions/{'0' * 32}/cancel")) == "unknown-transaction"


# Methods, paths, hosts, origins


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/stimuli/echo", "OPTIONS, POST"),
        ("DELETE", "/transactions", "GET, HEAD, OPTIONS"),
        ("PUT", "/readyz", "GET, HEAD, OPTIONS"),
        ("TRACE", "/openapi.json", "GET, HEAD, OPTIONS"),
        ("BREW", f"/transactions/{'0' * 32}/cancel", "OPTIONS, POST"),
    ],
)
async def test_methods(http: httpx2.AsyncClient, method: str, path: str, allow: str) -> None:
    refused = await http.request(method, path)
    assert problem(refused) == "method-not-allowed"
    assert refused.headers["allow"] == allow
    asked = await http.options(path)
    assert asked.status_code == 204
    assert asked.headers["allow"] == allow
    assert asked.content == b""


async def test_head_is_get_without_the_body(http: httpx2.AsyncClient) -> None:
    assert (await http.head("/livez")).status_code == 200
    assert (await http.head("/nothing")).status_code == 404


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/livez/", "/transactions/", "/stimuli", "/stimuli/a%0Ab", "//evil.example/"]
)
async def test_unknown_paths(http: httpx2.AsyncClient, path: str) -> None:
    assert problem(await http.get(httpx2.URL("http://mesh").copy_with(raw_path=path.encode()))) == "not-found"


async def test_pages_of_other_sites_are_kept_out(http: httpx2.AsyncClient) -> None:
    for origin in ("https://evil.example", "null", "http://mesh:81", "http://["):
        assert problem(await http.post("/stimuli/empty", headers={"Origin": origin})) == "forbidden-origin"
    assert (await http.post("/stimuli/empty", headers={"Origin": "http://mesh"})).status_code == 200
    assert (await http.get("/livez", headers={"Origin": "https://evil.example"})).status_code == 200


async def test_hosts() -> None:
    async with Mesh(*workflows()) as mesh, client(mesh, allowed_hosts=["localhost", "[::1]"]) as http:
        for host, status in [
            ("LocalHost:80", 200),
            ("localhost", 200),
            ("[::1]:80", 200),
            ("rebound.example", 421),
            ("[::2]", 421),
        ]:
            assert (await http.get("/livez", headers={"Host": host})).status_code == status


# The server's own state


async def test_health_follows_the_mesh() -> None:
    mesh = Mesh(*workflows())
    async with client(mesh) as http:
        assert problem(await http.get("/readyz")) == "not-ready"
        for response in (await http.post("/stimuli/empty"), await http.get("/transactions")):
            assert problem(response) == "stopping"
            assert response.headers["retry-after"]
        async with mesh:
            assert (await http.get("/readyz")).status_code == 200
            mesh.node.supervisor.healthy = False
            broken = await http.get("/readyz")
            assert broken.status_code == 503
            assert broken.json()["reasons"] == ["the journal cannot be written"]
        assert problem(await http.get("/readyz")) == "not-ready"
        assert problem(await http.post("/stimuli/empty")) == "stopping"
        assert (await http.get("/livez")).status_code == 200


async def test_the_application_opens_the_mesh_it_was_given_and_closes_it() -> None:
    mesh = Mesh(*workflows())
    app = application(mesh)
    async with app.router.lifespan_context(app):
        assert mesh.node.state == "open"
    assert mesh.node.state == "closed"


async def test_the_application_leaves_an_open_mesh_open() -> None:
    async with Mesh(*workflows()) as mesh:
        app = application(mesh)
        async with app.router.lifespan_context(app):
            assert mesh.node.state == "open"
        assert mesh.node.state == "open"
    other = Mesh(*workflows())
    app = application(other, open_mesh=False)
    async with app.router.lifespan_context(app):
        assert other.node.state == "new"


async def test_a_mesh_of_another_loop_is_refused() -> None:
    mesh = Mesh(*workflows())
    with mesh as blocking:
        wrong: Any = blocking
        with pytest.raises(ConfigurationError, match="an ingress awaits its mesh: give it the Mesh itself"):
            application(wrong)
        app = application(mesh)
        with pytest.raises(BitActorError, match="another event loop"):
            async with app.router.lifespan_context(app):
                pass


async def test_a_port_that_is_taken_is_named_before_anything_is_opened() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        mesh = Mesh(*workflows())
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}: .*choose another port"):
            await HttpServer(mesh, port=port).run()
        assert mesh.node.state == "new"
    for host, wrong in (("127.0.0.1", 70_000), ("host.invalid", 0)):
        with pytest.raises(ConfigurationError, match="cannot listen"):
            bind(host, wrong)


async def test_listening_beyond_this_machine_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitactor.ingress")

    async def said(host: str) -> list[str]:
        caplog.clear()
        server = HttpServer(Mesh(*workflows()), host=host, port=0)
        running = asyncio.create_task(server.run())
        async with asyncio.timeout(BOUND):
            await server.started.wait()
            levels = [record.levelname for record in caplog.records]
            text = caplog.text
            server.stop()
            await running
        assert server.url in text
        assert ("WITHOUT AUTHENTICATION" in text) == (levels == ["WARNING"])
        return levels

    assert await said("127.0.0.1") == ["INFO"]
    assert await said("0.0.0.0") == ["WARNING"]


def test_what_only_the_operator_can_use_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    hidden = problem_of(StoreError("/var/lib/secret.db is full"))
    assert hidden.name == "store-unavailable"
    assert "secret" not in hidden.detail
    assert "/var/lib/secret.db is full" in caplog.text
    for error in (BitActorError("secret"), ValueError("secret")):
        assert problem_of(error).name == "internal-error"
        assert "secret" not in problem_of(error).detail


async def test_what_is_wrong_with_the_journals_file_is_told_without_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "of us" / "pulses.db"
    path.parent.mkdir()
    async with Mesh(*workflows(), note, store=f"sqlite:///{path}") as mesh, client(mesh) as http:
        mesh.node.unready["store file"] = f"{path} was overwritten while it was in use; put a sound copy there"
        answers = [await http.post("/stimuli/empty"), await http.post(f"/transactions/{'0' * 32}/cancel")]
        del mesh.node.unready["store file"]
    assert answers[0].status_code == 503 and answers[0].json()["type"].endswith("store-unavailable")
    assert answers[0].json()["detail"] == "pulses.db was overwritten while it was in use; put a sound copy there"
    assert all(str(path.parent) not in answer.text for answer in answers)


# JSON


def test_a_lone_surrogate_does_not_break_an_answer() -> None:
    assert json.loads(as_json({"a\ud800": ["x\udfff", {"\U0001f600"}]})) == {"a\ufffd": ["x\ufffd", ["\U0001f600"]]}


def test_keys_that_are_no_strings_become_strings() -> None:
    assert json.loads(as_json({1: 2, None: 3, 1.5: 4})) == {"1": 2, "None": 3, "1.5": 4}


# The description


def test_the_description_has_a_path_per_workflow() -> None:
    api = describe_api(workflows(), 1_000)
    assert api["openapi"] == "3.1.0"
    order = api["paths"]["/stimuli/shop%2Forder%20now"]["post"]
    schema = order["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Order"}
    assert order["requestBody"]["required"]
    assert api["components"]["schemas"]["Order"]["description"] == "What somebody wants to have."
    assert "What somebody wants to have." in order["description"]
    assert "- `give`: Give it back." in api["paths"]["/stimuli/echo"]["post"]["description"]
    assert not api["paths"]["/stimuli/empty"]["post"]["requestBody"]["required"]
    assert set(order["responses"]) == {
        "200",
        "202",
        "400",
        "403",
        "404",
        "408",
        "409",
        "413",
        "415",
        "421",
        "422",
        "500",
        "503",
    }


def test_every_reference_in_the_description_leads_somewhere() -> None:
    api = describe_api(workflows(), 1_000)
    text = json.dumps(api)
    for part in text.split('"$ref": "')[1:]:
        name = part.partition('"')[0].removeprefix("#/components/schemas/")
        assert name in api["components"]["schemas"]


def test_models_of_one_name_stay_apart() -> None:
    def declare(name: str, kind: type) -> Workflow:
        model = type("Same", (BaseModel,), {"__annotations__": {"value": kind}, "__module__": f"app.{name}"})
        workflow = Workflow(name, input=model)
        workflow.step(spawn="inline")(named("go", "value"))
        return workflow

    api = describe_api([declare("one", int), declare("two", str)], 1)
    kinds = []
    for name in ("one", "two"):
        reference = api["paths"][f"/stimuli/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"][
            "$ref"
        ]
        kinds.append(api["components"]["schemas"][reference.rpartition("/")[2]]["properties"]["value"]["type"])
    assert kinds == ["integer", "string"]


def test_a_model_without_a_schema_takes_any_object(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: logging.Logger

    odd = Workflow("odd", input=Odd)
    odd.step(spawn="inline")(named("use", "thing"))
    api = describe_api([odd], 1)
    body = api["paths"]["/stimuli/odd"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"type": "object"}
    assert "odd cannot be described" in caplog.text


async def test_what_a_compensation_raised_stands_behind_the_error_that_it_was_asked_about() -> None:
    """The same while the transaction is live and from the journal."""
    asked = Workflow("asked")

    @asked.step(spawn="inline")
    def pay() -> None:
        raise PermissionError("no money")

    @pay.compensate
    def ask() -> None:
        raise LookupError("nobody to ask")

    async with Mesh(asked) as mesh, client(mesh) as http:
        about = (await http.post("/stimuli/asked")).json()
        looked = (await http.get(f"/transactions/{about['transaction']}")).json()
    message, place = (
        "no money (and its compensate raised LookupError: nobody to ask)",
        {"step": "pay", "direction": "forward", "attempt": 1},
    )
    assert (
        about["errors"]
        == looked["errors"]
        == [
            {"type": "PermissionError", "message": message, **place},
            {"type": "LookupError", "message": "nobody to ask", **place},
        ]
    )


async def test_what_came_with_an_error_is_in_the_answer() -> None:
    sums = Workflow("sums")

    @sums.step(spawn="inline")
    def add() -> None:
        try:
            raise KeyError("x")
        except KeyError as missing:
            error = ExceptionGroup("both", [ValueError("a")])
            error.add_note("of the second column")
            raise error from missing

    async with Mesh(sums) as mesh, client(mesh) as http:
        (error,) = (await http.post("/stimuli/sums")).json()["errors"]
    assert error == {
        "type": "ExceptionGroup",
        "message": "both (1 sub-exception)",
        "step": "add",
        "direction": "forward",
        "attempt": 1,
        "notes": ["of the second column"],
        "cause": {"type": "KeyError", "message": "'x'"},
        "members": [{"type": "ValueError", "message": "a"}],
    }
