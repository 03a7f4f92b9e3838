"""HTTP steps and the client resource, against a real server."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from bitactor import Context, DefinitionError, Input, InvalidInput, Result, Value, Workflow, WorkflowFailed
from mesh import Mesh, Transaction
from mesh.ready.resources.http import ClientCredentials, http_client
from mesh.ready.steps import http
from tests.e2e.ready.http_server import Server, serving
from tests.e2e.support import audit, pulse_lines, undone

SECRET = "s3cret-value"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def made(server: Server, input: dict[str, Any] | None = None, **client: Any) -> Workflow:
    return Workflow("orders", input=input or {}, resources=[http_client(base_url=server.url, **client)])


async def run(workflow: Workflow, given: Any = None, **options: Any) -> Transaction:
    async with Mesh(workflow, **options) as mesh:
        transaction = await mesh.stimulate(workflow, given)
        await transaction.ended(30)
        audit(transaction)
        return transaction


async def result_of(workflow: Workflow, given: Any = None, **options: Any) -> Any:
    async with Mesh(workflow, **options) as mesh:
        transaction = await mesh.stimulate(workflow, given)
        return await transaction.result(timeout=30)


async def error_of(workflow: Workflow, given: Any = None) -> Any:
    transaction = await run(workflow, given)
    assert transaction.status == "compensated"
    return transaction.errors()[0]


# What is asked


async def test_fields_of_the_url_are_arguments_and_are_quoted(server: Server) -> None:
    orders = made(server, {"user": dict})
    http.get(orders, "fetch", "/users/{user.id}", params={"tag": "a {user.tag}"}, headers={"X-Name": "{user.tag}"})
    answer = await result_of(orders, {"user": {"id": "a/b c", "tag": "x&y"}})
    assert (answer["status"], answer["json"]["path"]) == (200, "/users/a/b c")
    assert answer["url"].endswith("/users/a%2Fb%20c?tag=a+x%26y")
    assert server.requests[0]["query"] == {"tag": "a x&y"}
    assert server.requests[0]["headers"]["x-name"] == "x&y"


@pytest.mark.parametrize("bad", ["..", ".", "", None, ["x"], {"a": 1}, b"x"])
async def test_a_field_cannot_leave_its_place_in_the_url(server: Server, bad: Any) -> None:
    orders = made(server, {"user": Any})
    http.delete(orders, "drop", "/users/{user}/files", retries=2)
    error = await error_of(orders, {"user": bad})
    assert isinstance(error, InvalidInput)
    assert server.requests == []


async def test_a_step_may_learn_the_address_from_another(server: Server) -> None:
    orders = made(server)
    server.answers["/list"] = [JSONResponse({"next": f"{server.url}/list?page=2&of=3"})]
    http.get(orders, "first", "/list")
    http.get(orders, "second", "{first.json.next}")
    assert (await result_of(orders))["json"]["path"] == "/list"
    assert server.requests[1]["query"] == {"page": "2", "of": "3"}


async def test_parameters_that_are_none_are_left_out_and_lists_are_several(server: Server) -> None:
    orders = made(server, {"tags": list, "page": int | None, "open": bool, "since": dt.date})
    params = {"tag": "{tags}", "page": "{page}", "open": "{open}", "since": "{since}", "n": 3}
    http.get(orders, "fetch", "/things?x=1", params=params)
    answer = await result_of(orders, {"tags": ["a", "b"], "page": None, "open": True, "since": dt.date(2026, 1, 2)})
    assert answer["url"].endswith("/things?x=1&tag=a&tag=b&open=true&since=2026-01-02&n=3")


async def test_a_json_body_is_a_structure_with_texts_sources_and_values(server: Server) -> None:
    orders = made(server, {"total": int, "order": dict})

    @orders.step
    def account(order: dict) -> dict:
        return {"id": 9}

    body = {
        "amount": Input("total"), "again": "{total}", "text": "{total!s}", "note": "order {order.id}",
        "to": Result(account, "id"), "lines": [1, Value({"a": 2}), "{{}}"], "flag": True, "none": None,
    }  # fmt: skip
    http.post(orders, "charge", "/charges", json=body)
    await result_of(orders, {"total": 5, "order": {"id": 7}})
    assert json.loads(server.requests[0]["body"]) == {
        "amount": 5, "again": 5, "text": "5", "note": "order 7", "to": 9, "lines": [1, {"a": 2}, "{}"], "flag": True,
        "none": None,
    }  # fmt: skip


async def test_a_form_and_a_text_as_body(server: Server) -> None:
    orders = made(server, {"name": str})
    http.post(orders, "form", "/form", form={"name": "{name}", "x": 1})
    http.put(orders, "text", "/text-in", content="Hello {name}", headers={"Content-Type": "text/markdown"})
    await result_of(orders, {"name": "Ada & Bob"})
    by_path = {request["path"]: request for request in server.requests}
    assert by_path["/form"]["body"] == "name=Ada+%26+Bob&x=1"
    assert by_path["/text-in"]["body"] == "Hello Ada & Bob"
    assert by_path["/text-in"]["headers"]["content-type"] == "text/markdown"


@pytest.mark.parametrize("verb", ["get", "post", "put", "patch", "delete", "head"])
async def test_each_verb(server: Server, verb: str) -> None:
    orders = made(server)
    getattr(http, verb)(orders, "send", "/thing")
    answer = await result_of(orders)
    assert (answer["status"], server.requests[0]["method"]) == (200, verb.upper())
    assert ("idempotency-key" in server.requests[0]["headers"]) == (verb in ("post", "patch"))


@pytest.mark.parametrize("value", ["two\r\nX-Evil: 1", "caf\u00e9 latte"])
async def test_a_header_cannot_be_broken_out_of_and_is_not_shown(server: Server, value: str) -> None:
    orders = made(server, {"token": str})
    http.get(orders, "send", "/thing", headers={"Authorization": "Bearer {token}"}, retries=2)
    error = await error_of(orders, {"token": value})
    assert isinstance(error, InvalidInput)
    assert "'authorization'" in str(error) and value not in str(error)
    assert server.requests == []


# What comes back


async def test_what_the_body_is_is_in_the_result_and_nothing_else(server: Server) -> None:
    server.answers["/image"] = [Response(b"\x00\xff", media_type="image/png")]
    server.answers["/empty"] = [Response(status_code=204)]
    server.answers["/latin"] = [
        Response("caf\u00e9".encode("latin-1"), headers={"Content-Type": "text/plain; charset=latin-1"})
    ]
    orders = made(server)
    for path in ("text", "image", "empty", "latin"):
        http.get(orders, path, f"/{path}")
    transaction = await run(orders)
    results = transaction.results()
    assert results["text"]["text"] == "plain"
    assert results["image"]["content"] == b"\x00\xff"
    assert sorted(results["empty"]) == ["headers", "status", "url"]
    assert results["latin"]["text"] == "caf\u00e9"


async def test_an_answer_that_is_too_large_says_what_to_do(server: Server) -> None:
    server.answers["/big"] = [PlainTextResponse("x" * 1001)]
    server.answers["/just"] = [PlainTextResponse("x" * 1000)]
    orders = made(server)
    http.get(orders, "just", "/just", max_bytes=1000)
    http.get(orders, "big", "/big", max_bytes=1000, retries=2)
    transaction = await run(orders)
    assert len(transaction.results()["just"]["text"]) == 1000
    assert isinstance(transaction.errors()[0], http.HttpResponseInvalid)
    assert "max_bytes=1,000" in str(transaction.errors()[0])
    assert server.asked["/big"] == 1


async def test_what_says_it_is_json_and_is_not(server: Server) -> None:
    server.answers["/broken"] = [Response(b'{"a": ', media_type="application/json")]
    orders = made(server)
    http.get(orders, "fetch", "/broken")
    assert "says it is JSON, but is not" in str(await error_of(orders))


async def test_what_is_expected_is_no_error(server: Server) -> None:
    server.answers["/users/1"] = [PlainTextResponse("no such user", 404)]
    orders = made(server)
    http.get(orders, "fetch", "/users/1", expect=[200, 404])
    http.get(orders, "other", "/users/2", expect=201, after=["fetch"])
    transaction = await run(orders)
    assert transaction.results()["fetch"]["status"] == 404
    assert isinstance(transaction.errors()[0], http.HttpError)
    assert transaction.errors()[0].status == 200


# Trying again


async def test_a_retry_keeps_the_idempotency_key_and_honours_retry_after(server: Server) -> None:
    now = datetime.now(UTC) + timedelta(days=400)  # the server's clock is what counts
    date, later = format_datetime(now, usegmt=True), format_datetime(now + timedelta(seconds=90), usegmt=True)
    server.answers["/charges"] = [
        JSONResponse({}, 503, {"Retry-After": "0"}),
        JSONResponse({}, 429, {"Retry-After": later, "Date": date}),
        JSONResponse({}, 429, {"Retry-After": "86400"}),
        JSONResponse({}, 500),
    ]
    orders = made(server)
    http.post(orders, "charge", "/charges", json={}, retries=4, longest_wait=0.02)
    transaction = await run(orders)
    assert transaction.status == "completed"
    waits = [pulse.data["after_ns"] for pulse in transaction.pulses() if pulse.kind == "retried" and pulse.data]
    assert waits[:3] == [0, 20_000_000, 20_000_000]
    assert len({request["headers"]["idempotency-key"] for request in server.requests}) == 1
    assert server.asked["/charges"] == 5


def answered(status: int, headers: dict[str, str]) -> httpx2.Response:
    return httpx2.Response(status, headers=headers)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "17"}, 17.0),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:30:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 120.0),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:30:00 GMT"}, 0.0),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        (503, {"Retry-After": "soon"}, None),
        (503, {"Retry-After": "-1"}, None),
        (503, {}, None),
        (500, {"Retry-After": "17"}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    assert http.http_message.retry_after(answered(status, headers)) == seconds


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 301])
async def test_what_would_come_again_is_not_tried_again(server: Server, status: int) -> None:
    server.answers["/users/1"] = [PlainTextResponse("so\n  it is", status)]
    orders = made(server, {"id": int})
    http.get(orders, "fetch", "/users/{id}", retries=5)
    error = await error_of(orders, {"id": 1})
    assert isinstance(error, http.HttpError) and not isinstance(error, http.HttpBusy)
    assert (error.method, error.status, error.body) == ("GET", status, "so it is")
    assert str(error) == f"GET {server.url}/users/1 was answered with {status}: so it is"
    assert server.asked["/users/1"] == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_what_may_be_better_later_is_tried_again(server: Server, status: int) -> None:
    server.answers["/users/1"] = [PlainTextResponse("busy", status) for _ in range(2)]
    orders = made(server)
    http.get(orders, "fetch", "/users/1", retries=1)
    error = await error_of(orders)
    assert isinstance(error, http.HttpBusy)
    assert (error.status, server.asked["/users/1"]) == (status, 2)


async def test_the_last_try_of_a_server_that_says_when_is_its_error(server: Server) -> None:
    server.answers["/users/1"] = [PlainTextResponse("busy", 429, {"Retry-After": "0"}) for _ in range(2)]
    orders = made(server)
    http.get(orders, "fetch", "/users/1", retries=1)
    assert (await error_of(orders)).status == 429


async def test_no_answer_is_worth_another_try(server: Server) -> None:
    orders = Workflow("orders", resources=[http_client(base_url="http://127.0.0.1:9")])
    http.get(orders, "fetch", "/", retries=1)
    transaction = await run(orders)
    assert isinstance(transaction.errors()[0], http.HttpUnreachable)
    assert "ConnectError" in str(transaction.errors()[0])
    assert pulse_lines(transaction).count("retried fetch") == 1


async def test_an_attempt_that_its_step_cuts_off_is_in_doubt_and_undone(server: Server) -> None:
    server.hold("/charges")
    orders = Workflow("orders", grace=0.05, resources=[http_client(base_url=server.url, timeout=30)])
    charge = http.post(orders, "charge", "/charges", json={}, timeout=0.6)
    taken_back: list[Any] = []

    @charge.undo(in_doubt=True)
    async def refund(result: Any, ctx: Context) -> None:
        taken_back.append((result, ctx.forward_key))

    transaction = await run(orders)
    assert transaction.status == "compensated"
    assert "timed_out charge" in pulse_lines(transaction)
    assert undone(transaction) == ["charge"]
    assert taken_back == [(None, server.requests[0]["headers"]["idempotency-key"])]


# Secrets


async def test_errors_show_no_secrets(server: Server) -> None:
    server.answers["/private"] = [PlainTextResponse(f"you sent Bearer {SECRET} and key-{SECRET}", 400)]
    orders = made(server, {"token": str}, headers={"X-Api-Key": f"key-{SECRET}"})
    http.get(
        orders, "fetch", "/open", params={"sig": "{token}"}, headers={"Authorization": "Bearer {token}"}, expect=201
    )
    http.get(orders, "other", "/private", headers={"Authorization": "Bearer {token}"}, after=["fetch"])
    first = await error_of(orders, {"token": SECRET})
    assert SECRET not in str(first) and "sig=…" in str(first)
    orders = made(server, {"token": str}, headers={"X-Api-Key": f"key-{SECRET}"})
    http.get(orders, "other", "/private", headers={"Authorization": "Bearer {token}"})
    second = await error_of(orders, {"token": SECRET})
    assert SECRET not in f"{second} {second.args}" and "you sent" in str(second)


async def test_a_url_with_a_password_does_not_show_it(server: Server) -> None:
    address = server.url.replace("http://", f"http://me:{SECRET}@")
    orders = made(server, {"address": str})
    http.get(orders, "fine", "{address}/thing")
    http.get(orders, "fetch", "{address}/thing", expect=201, after=["fine"])
    transaction = await run(orders, {"address": address})
    assert transaction.results()["fine"]["url"] == f"{server.url}/thing"
    assert SECRET not in str(transaction.errors()[0])


# Tokens


async def test_a_token_is_fetched_once_for_all_and_again_when_it_has_expired(server: Server) -> None:
    credentials = ClientCredentials("/token", "me", SECRET)
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
    assert SECRET not in repr(credentials)


async def test_a_token_is_fetched_anew_before_it_ends(server: Server) -> None:
    server.token_life = 1e-6
    orders = made(server, auth=ClientCredentials(f"{server.url}/token", "me", SECRET))
    for number in range(3):
        http.get(orders, f"fetch_{number}", "/private/x", after=[f"fetch_{number - 1}"] if number else [])
    assert (await result_of(orders))["status"] == 200
    assert server.asked["/private/x"] == 3, "none was refused first"
    assert server.issued == 3


async def test_a_server_that_always_refuses_is_asked_twice(server: Server) -> None:
    server.answers["/private/x"] = [JSONResponse({}, 401), JSONResponse({}, 401)]
    orders = made(server, auth=ClientCredentials("/token", "me", SECRET))
    http.get(orders, "fetch", "/private/x", retries=3)
    error = await error_of(orders)
    assert (error.status, server.asked["/private/x"], server.issued) == (401, 2, 2)


async def test_a_token_that_is_not_given_is_an_error_of_the_token_server(server: Server) -> None:
    server.answers["/token"] = [PlainTextResponse("later", 503), JSONResponse({"token_type": "Bearer"})]
    orders = made(server, auth=ClientCredentials("/token", "me", SECRET))
    http.get(orders, "fetch", "/private/x", retries=1)
    error = await error_of(orders)
    assert server.issued == 0 and server.asked["/token"] == 2, "a busy one is asked again"
    assert str(error) == f"POST {server.url}/token was answered with 200: no access_token in it"


async def test_who_is_cancelled_while_fetching_a_token_leaves_it_to_the_next(server: Server) -> None:
    server.hold("/token")
    orders = made(server, {"n": int}, auth=ClientCredentials("/token", "me", SECRET))
    http.get(orders, "fetch", "/private/{n}")
    async with Mesh(orders) as mesh:
        first = await mesh.stimulate(orders, {"n": 1})
        await server.waits_for("/token")
        second = await mesh.stimulate(orders, {"n": 2})
        await first.cancel()
        server.release("/token")
        assert (await second.result(timeout=30))["status"] == 200
        assert await first.ended(30) == "cancelled"


async def test_a_token_goes_to_its_own_origin_only(server: Server) -> None:
    with serving() as stranger:
        orders = made(server, {"where": str}, auth=ClientCredentials("/token", "me", SECRET))
        http.get(orders, "fetch", "{where}/thing")
        await result_of(orders, {"where": stranger.url})
        assert "authorization" not in stranger.requests[0]["headers"]


# Declaring


def test_wrong_declarations_are_refused(server: Server) -> None:
    with pytest.raises(DefinitionError, match="has no resource 'http'"):
        http.get(Workflow("orders"), "fetch", "/")
    with pytest.raises(DefinitionError, match="Did you mean 'http'"):
        http.get(made(server), "fetch", "/", client="htp")
    orders = made(server)
    http.get(orders, "fetch", "/users/{nobody}")
    with pytest.raises(DefinitionError, match="'nobody' is neither an input field nor a step"):
        orders.check()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"url": "/users/{0}"}, "begins with no argument"),
        ({"url": "/users/{"}, "cannot be read"),
        ({"url": "/{ctx}"}, "reserved"),
        ({"url": "/{http}"}, "name of the resource"),
        ({"url": "/", "header": {}}, "Did you mean 'headers'"),
        ({"url": "/", "json": 1, "form": {}}, "json and form are two bodies"),
        ({"url": "/", "json": object()}, "made of texts with fields"),
        ({"url": "/", "expect": "2xx"}, "is no status"),
        ({"url": "/", "max_bytes": 10**9}, "max_bytes=1000000000"),
        ({"url": "/", "longest_wait": -1}, "longest_wait"),
        ({"url": "/", "retry_on": ValueError}, "retries=0"),
        ({"url": "/", "bind": {"x": Value(1)}}, "no parameter"),
    ]
    for options, message in wrong:
        with pytest.raises(DefinitionError, match=message):
            orders = made(server)
            http.get(orders, "fetch", **options)
            orders.check()
    with pytest.raises(DefinitionError, match="Did you mean 'GET'"):
        http.request(made(server), "fetch", "GETT", "/")


def test_wrong_clients_are_refused() -> None:
    for options, message in (
        ({"base_url": "example.org"}, "begins with http"),
        ({"timeout": 0}, "more than zero"),
        ({"auth": ClientCredentials("/token", "me", SECRET)}, "is relative"),
    ):
        with pytest.raises(DefinitionError, match=message):
            http_client(**options)


async def test_another_client_can_stand_in(server: Server) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"fake": request.url.path})

    orders = made(server)
    http.get(orders, "fetch", "/x")
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://fake") as fake:
        assert (await result_of(orders, replace={"http": fake}))["json"] == {"fake": "/x"}
    assert server.requests == []


async def test_it_can_be_written_down_and_read_again(server: Server) -> None:
    orders = Workflow("orders", input={"id": int}, resources=[CLIENT])
    http.post(
        orders,
        "fetch",
        "{where}/users/{id}",
        json={"a": [Input("id"), None]},
        expect=(200, 201),
        bind={"where": Value(server.url)},
    )
    again = Workflow.from_dict(json.loads(json.dumps(orders.to_dict())))
    answer = await result_of(again, {"id": 3})
    assert json.loads(answer["json"]["body"]) == {"a": [3, None]}


CLIENT = http_client()


async def test_an_error_is_itself_after_a_crash_too(server: Server, sqlite: str) -> None:
    server.answers["/users/1"] = [PlainTextResponse("no such user", 404)]
    orders = made(server)
    http.get(orders, "fetch", "/users/1")
    transaction = await run(orders, store=sqlite)
    async with Mesh(orders, store=sqlite) as mesh:
        again = await mesh.transaction(transaction.id)
        with pytest.raises(WorkflowFailed) as failed:
            await again.result(timeout=5)
        error = failed.value.errors[0]
        assert isinstance(error, http.HttpError)
        assert error.status == 404
