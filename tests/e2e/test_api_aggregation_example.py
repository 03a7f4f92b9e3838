"""The API aggregation of the docs, against its real server: what is promised is looked for where it has to show, at the
partner."""

from __future__ import annotations

import asyncio
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from bitactor import WorkflowFailed
from mesh import Mesh, Transaction
from mesh.ready.resources.http import ClientCredentials, TokenAuth
from mesh.ready.steps.http import HttpError, HttpUnreachable

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "api_aggregation"
MODULES = ("server", "aggregate")
LONG = 60.0
"""Seconds for a whole run; never reached when all is well."""


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The example's modules, as its program imports them."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def served(example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with example.server.Served() as served:
        monkeypatch.setenv("PARTNER_URL", served.url)
        yield served


def opened(example: SimpleNamespace, **options: Any) -> Mesh:
    return Mesh(example.aggregate.aggregate, pools={example.aggregate.AT_ONCE: 4}, **options)


async def run(mesh: Mesh, **given: str) -> Transaction:
    transaction = await mesh.stimulate("partner.aggregate", given)
    await transaction.ended(LONG)
    return transaction


def retried(transaction: Transaction) -> dict[str, int]:
    """Step → nanoseconds until it was tried again."""
    return {
        pulse.step: (pulse.data or {}).get("after_ns", -1) for pulse in transaction.pulses() if pulse.kind == "retried"
    }


async def test_both_versions_make_the_same_report(example: SimpleNamespace, served: Any) -> None:
    async with opened(example) as mesh:
        first, second = [(await (await run(mesh, version=version)).result(LONG))["report"] for version in ("v1", "v2")]
    names = [name for number, (name, _) in example.server.USERS.items() if number != example.server.DELETED]
    assert first["people"] == second["people"] == names
    assert first["themes"] == second["themes"] == {"dark": 10, "light": 19}
    for report in (first, second):
        assert list(report["missing"]) == ["7"] and report["missing"]["7"].endswith("answered with 404: no user 7")
        assert (report["headlines"], report["recommendations"]) == (None, 0)
    assert list(served.partner.reports.values()) == [first, second]


async def test_the_partner_is_asked_within_its_quota_and_only_when_it_wants_to_be(
    example: SimpleNamespace, served: Any
) -> None:
    async with opened(example) as mesh:
        transaction = await run(mesh, version="v1")
    seen = served.partner.seen
    assert (seen["over quota"], seen["too early"]) == (0, 0)
    assert (seen["answered 503"], seen["answered 429"]) == (4, 2)
    assert 1 < served.partner.most_at_once <= 4
    waits = retried(transaction)
    assert {step: after for step, after in waits.items() if step.startswith(("people/3/", "people/5/"))} == {
        "people/3/user/fetched": 0, "people/3/preferences": 0,
        "people/5/user/fetched": 1_000_000_000, "people/5/preferences": 1_000_000_000,
    }  # fmt: skip
    assert {"people/8/user/fetched", "people/8/preferences"} == {step for step in waits if step.startswith("people/8/")}
    assert len(waits) == 6


async def test_the_partner_does_refuse_who_comes_too_fast_or_too_early(example: SimpleNamespace, served: Any) -> None:
    basic = httpx2.BasicAuth(example.server.CLIENT, example.server.SECRET)
    async with httpx2.AsyncClient(base_url=served.url, timeout=LONG) as client:

        async def ask(path: str, token: str) -> httpx2.Response:
            return await client.get(path, headers={"Authorization": f"Bearer {token}"})

        async def fresh() -> str:
            answer = await client.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=basic)
            return str(answer.json()["access_token"])

        token = await fresh()
        assert [(await ask("/v1/users/6", token)).status_code for _ in range(2)] == [429, 200]
        assert served.partner.seen["too early"] == 1
        tokens = [await fresh() for _ in range(8)]
        answers = await asyncio.gather(*(ask("/v1/users/1", token) for token in tokens for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert served.partner.seen["over quota"] > 0
        assert (await ask("/v1/users/1", tokens[0])).status_code == 401, "its token has ended"


async def test_a_token_is_fetched_once_for_all_and_again_when_it_has_ended(
    example: SimpleNamespace, served: Any
) -> None:
    async with opened(example) as mesh:
        first = await run(mesh, version="v1")
        assert served.partner.seen["tokens"] == 2, "not one for each of those that were refused"
        await run(mesh, version="v2")
    seen = served.partner.seen
    assert seen["tokens"] == math.ceil((seen["requests"] + seen["headlines"]) / example.server.USES) == 3
    assert seen["stale tokens"] >= 2
    told = repr([(pulse.token_in, pulse.token_out, pulse.error, pulse.data) for pulse in first.pulses()])
    assert "token-" not in told and example.server.SECRET not in told


async def test_what_is_down_is_left_alone_over_runs_and_what_is_known_is_not_asked_again(
    example: SimpleNamespace, served: Any
) -> None:
    async with opened(example) as mesh:
        assert (await run(mesh, version="v1")).status == "completed"
        assert served.partner.seen["recommendations"] == 3
        before = served.partner.seen["requests"]
        assert (await run(mesh, version="v2")).status == "completed"
        assert served.partner.seen["recommendations"] == 3
        pages, people, busy, published = 3, 30, 3, 2
        assert served.partner.seen["requests"] - before == pages + people + busy + published, "no preferences"


async def test_a_report_that_cannot_be_announced_is_withdrawn(example: SimpleNamespace, served: Any) -> None:
    async with opened(example) as mesh:
        transaction = await run(mesh, version="v2", audience="nobody")
    assert transaction.status == "compensated"
    with pytest.raises(WorkflowFailed) as failed:
        await transaction.result(LONG)
    error = failed.value.errors[0]
    assert isinstance(error, HttpError) and error.status == 422
    assert [pulse.step for pulse in transaction.pulses() if pulse.kind == "undone"] == ["published"]
    assert (served.partner.seen["created"], served.partner.seen["deleted"], served.partner.reports) == (1, 1, {})
    assert len(transaction.results()["people"]["results"]) == 29, "what was found is still there"


class LosesAnswers(httpx2.AsyncHTTPTransport):
    """Reports are sent, and the connection breaks before their answer comes."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await super().handle_async_request(request)
        if request.method == "POST" and request.url.path == "/reports":
            await answer.aread()
            await answer.aclose()
            raise httpx2.ReadError("connection reset", request=request)
        return answer


async def test_a_report_whose_answer_is_lost_is_sent_with_one_key_and_in_the_end_withdrawn(
    example: SimpleNamespace, served: Any
) -> None:
    auth = TokenAuth(
        ClientCredentials("/oauth/token", example.server.CLIENT, example.server.SECRET), httpx2.URL(served.url)
    )
    async with (
        httpx2.AsyncClient(base_url=served.url, auth=auth, transport=LosesAnswers()) as client,
        opened(example, replace={"partner": client}) as mesh,
    ):
        transaction = await run(mesh, version="v2")
    assert transaction.status == "compensated"
    assert isinstance(transaction.errors()[0], HttpUnreachable)
    seen = served.partner.seen
    assert (seen["created"], seen["deleted"], served.partner.reports) == (4, 1, {}), "four tries made one report"


async def test_a_version_there_is_not_is_refused_before_anything_is_sent(example: SimpleNamespace, served: Any) -> None:
    async with opened(example) as mesh:
        transaction = await run(mesh, version="v3")
        with pytest.raises(WorkflowFailed, match="Unsupported API version: v3"):
            await transaction.result(LONG)
    assert not served.partner.seen


async def test_a_partner_that_is_not_there_at_all_is_tried_as_often_as_was_said(
    example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTNER_URL", "http://127.0.0.1:9")
    async with opened(example) as mesh:
        transaction = await run(mesh, version="v1")
        with pytest.raises(WorkflowFailed) as failed:
            await transaction.result(LONG)
    assert isinstance(failed.value.errors[0], HttpUnreachable)
    assert [pulse.kind for pulse in transaction.pulses() if pulse.step == "listing/first"].count("retried") == 3
