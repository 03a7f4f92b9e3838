"""HTTP steps and the client resource, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from bitactor import DefinitionError, Input, Value, Workflow, WorkflowFailed
from mesh import Mesh
from mesh.ready.resources.http_client import ClientCredentials, http_client
from mesh.ready.steps import http
from tests.e2e.ready.http_server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def made(server: Server, input: dict[str, Any] | None = None, **client: Any) -> Workflow:
    return Workflow("orders", input=input or {}, resources=[http_client(base_url=server.url, **client)])


async def result_of(workflow: Workflow, given: Any = None) -> Any:
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow, given)
        return await transaction.result(timeout=30)


async def test_fields_of_the_address_are_arguments_and_are_quoted(server: Server) -> None:
    orders = made(server, {"user": dict})
    http.get(orders, "fetch", "/users/{user.id}", params={"tag": "a {user.tag}"}, headers={"X-Name": "{user.tag}"})
    answer = await result_of(orders, {"user": {"id": "a/b c", "tag": "x&y"}})
    assert (answer["status"], answer["json"]["path"]) == (200, "/users/a/b c")
    assert answer["url"].endswith("/users/a%2Fb%20c?tag=a+x%26y") or answer["url"].endswith("/users/a%2Fb%20c?tag=a%20x%26y")
    assert server.requests[0]["query"] == {"tag": "a x&y"}
    assert server.requests[0]["headers"]["x-name"] == "x&y"


async def test_a_json_body_is_a_structure_with_texts_sources_and_values(server: Server) -> None:
    orders = made(server, {"total": int, "order": dict})
    body = {"amount": Input("total"), "note": "order {order.id}", "lines": [1, Value({"a": 2})], "flag": True}
    http.post(orders, "charge", "/charges", json=body)
    await result_of(orders, {"total": 5, "order": {"id": 7}})
    assert json.loads(server.requests[0]["body"]) == {"amount": 5, "note": "order 7", "lines": [1, {"a": 2}], "flag": True}


@pytest.mark.parametrize("verb", ["get", "post", "put", "patch", "delete", "head"])
async def test_each_verb(server: Server, verb: str) -> None:
    orders = made(server)
    getattr(http, verb)(orders, "send", "/thing")
    answer = await result_of(orders)
    assert (answer["status"], server.requests[0]["method"]) == (200, verb.upper())
    assert ("idempotency-key" in server.requests[0]["headers"]) == (verb in ("post", "put", "patch", "delete"))


async def test_text_is_text(server: Server) -> None:
    orders = made(server)
    http.get(orders, "send", "/text")
    assert (await result_of(orders))["text"] == "plain"


async def test_a_retry_keeps_the_idempotency_key_and_honours_retry_after(server: Server) -> None:
    later = format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)
    server.answers["/charges"] = [
        JSONResponse({}, 503, {"Retry-After": "0"}), JSONResponse({}, 429, {"Retry-After": later}), JSONResponse({}, 500),
    ]  # fmt: skip
    orders = made(server)
    http.post(orders, "charge", "/charges", json={}, retries=3)
    async with Mesh(orders) as mesh:
        transaction = await mesh.stimulate(orders)
        await transaction.result(timeout=30)
        waits = [pulse.data["after_ns"] for pulse in transaction.pulses() if pulse.kind == "retried" and pulse.data]
    assert waits[:2] == [0, 0]
    assert len({request["headers"]["idempotency-key"] for request in server.requests}) == 1
    assert server.asked["/charges"] == 4


async def test_what_would_come_again_is_not_tried_again(server: Server) -> None:
    server.answers["/users/1"] = [PlainTextResponse("no such user", 404)]
    orders = made(server, {"id": int})
    http.get(orders, "fetch", "/users/{id}", retries=5)
    with pytest.raises(WorkflowFailed, match="404 Not Found: no such user") as failed:
        await result_of(orders, {"id": 1})
    error = failed.value.errors[0]
    assert isinstance(error, http.HttpError)
    assert (error.status, error.worth_another_try, server.asked["/users/1"]) == (404, False, 1)


async def test_no_answer_is_worth_another_try(server: Server) -> None:
    orders = Workflow("orders", resources=[http_client(base_url="http://127.0.0.1:9")])
    http.get(orders, "fetch", "/", retries=1)
    async with Mesh(orders) as mesh:
        transaction = await mesh.stimulate(orders)
        with pytest.raises(WorkflowFailed, match="ConnectError"):
            await transaction.result(timeout=30)
        assert [pulse.kind for pulse in transaction.pulses()].count("retried") == 1


async def test_a_token_is_fetched_once_for_all_and_again_when_it_has_expired(server: Server) -> None:
    credentials = ClientCredentials(f"{server.url}/token", "me", "secret")
    orders = made(server, {"n": int}, auth=credentials)
    http.get(orders, "fetch", "/private/{n}")
    async with Mesh(orders) as mesh:

        async def all_of(count: int) -> None:
            begun = [await mesh.stimulate(orders, {"n": number}) for number in range(count)]
            await asyncio.gather(*(transaction.result(timeout=30) for transaction in begun))

        await all_of(20)
        assert server.issued == 1
        server.tokens.clear()
        await all_of(20)
    assert server.issued == 2
    assert "secret" not in repr(credentials)


async def test_an_answer_that_is_too_large_says_what_to_do(server: Server) -> None:
    server.answers["/big"] = [PlainTextResponse("x" * (http.MAX_BODY + 1))]
    orders = made(server)
    http.get(orders, "fetch", "/big")
    with pytest.raises(WorkflowFailed, match="fetch pages"):
        await result_of(orders)


def test_wrong_declarations_are_refused(server: Server) -> None:
    with pytest.raises(DefinitionError, match="has no resource 'http'"):
        http.get(Workflow("orders"), "fetch", "/")
    orders = made(server)
    http.get(orders, "fetch", "/users/{nobody}")
    with pytest.raises(DefinitionError, match="'nobody' is neither an input field nor a step"):
        orders.check()
    with pytest.raises(DefinitionError, match="begins with no argument"):
        http.get(made(server), "fetch", "/users/{0}")
