"""What a partner knows about people, from either version of its API, made into one report that is published and
announced."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import httpx2
from pydantic import BaseModel

from bitactor import Backoff, Context, Element, Input, Result, Retry, Value, Workflow
from bitactor.patterns import Bulkhead, Cache, CircuitBreaker, Fallback, RateLimit
from mesh.ready.resources.http import ClientCredentials, http_client
from mesh.ready.steps import http

AT_ONCE: Final = "partner"
"""The pool whose places bound how many requests about people are under way."""

partner = http_client(
    "partner",
    base_url=lambda: os.environ["PARTNER_URL"],
    headers={"User-Agent": "aggregator/1.0"},
    auth=ClientCredentials("/oauth/token", "aggregator", "s3cret"),
)
rate = RateLimit("partner", per_second=40, burst=10)

ASKING: Final[dict[str, Any]] = {
    "client": "partner", "retries": 3, "backoff": Backoff(initial=0.05, cap=1.0), "timeout": 15.0, "policies": [rate],
}  # fmt: skip
"""How the partner is asked: within its quota; again when it is busy, after as long as it says; each time for so
long."""

# Who there is: pages by number in version 1, behind a cursor in version 2

page_v1 = Workflow("partner.v1.page", input={"number": int}, resources=[partner])
http.get(page_v1, "page", "/v1/users", params={"page": Input("number")}, **ASKING)

listing_v1 = Workflow("partner.v1.listing", resources=[partner])
http.get(listing_v1, "first", "/v1/users", **ASKING)


def further_pages(first: dict[str, Any]) -> Iterator[int]:
    """The numbers of the other pages."""
    yield from range(2, first["json"]["pages"] + 1)


listing_v1.map(name="further", workflow=page_v1, over=further_pages, batch=4, bind={"number": Element()})


@listing_v1.step
def ids_v1(first: dict[str, Any], further: list[dict[str, Any]]) -> list[int]:
    """The ids of all pages."""
    return [user for page in (first, *further) for user in page["json"]["user_ids"]]


page_v2 = Workflow("partner.v2.page", input={"cursor": str, "ids": list[int]}, resources=[partner])
http.get(page_v2, "page", "/v2/users", params={"cursor": Input("cursor")}, **ASKING)


@page_v2.step(bind={"more": Result("page", "json", "ids"), "cursor": Result("page", "json", "next")})
def so_far(ids: list[int], more: list[int], cursor: str | None) -> dict[str, Any]:
    """What the next round begins with."""
    return {"cursor": cursor, "ids": [*ids, *more]}


listing_v2 = Workflow("partner.v2.listing", resources=[partner], ttl=30)
listing_v2.recurse(
    "pages",
    page_v2,
    at_most=10,
    until=lambda page: page["cursor"] is None,
    bind={"cursor": Value("0"), "ids": Value([])},
)
listing_v2.collect("ids_v2", {"found": Result("pages", "ids")}, transform=lambda gathered: gathered["found"])

# One of them, in the words of either version

user_v1 = Workflow("partner.v1.user", input={"user_id": int}, resources=[partner])
http.get(user_v1, "fetched", "/v1/users/{user_id}", limit=AT_ONCE, **ASKING)


@user_v1.step(bind={"body": Result("fetched", "json")})
def normalised(body: dict[str, Any]) -> dict[str, Any]:
    """Version 1's names are ours now."""
    return {"id": body["user_id"], "name": body["full_name"], "email": body["email_address"]}


user_v2 = Workflow("partner.v2.user", input={"user_id": int}, resources=[partner])
http.get(user_v2, "fetched", "/v2/users/{user_id}", limit=AT_ONCE, **ASKING)
user_v2.collect("body", {"it": Result("fetched", "json")}, transform=lambda gathered: gathered["it"])

unsupported = Workflow("partner.unsupported", input={"version": str})
unsupported.flunk("unsupported_version", "Unsupported API version: {version}")

# All about one of them

person = Workflow("partner.person", input={"version": str, "user_id": int}, resources=[partner])
person.switch("user", on="version", cases={"v1": user_v1, "v2": user_v2}, default=unsupported)
http.get(
    person,
    "preferences",
    "/{version}/users/{user.id}/preferences",
    limit=AT_ONCE,
    **{**ASKING, "policies": [Cache("preferences", key=lambda user: user["id"], ttl=600.0), rate]},
)
http.get(
    person,
    "recommendations",
    "/recommendations/{user.id}",
    client="partner",
    timeout=30.0,
    policies=[
        Fallback("recommendations", {"json": []}),
        Bulkhead("recommendations", concurrent=1, queue=1_000),
        CircuitBreaker("recommendations", failures=3, open_for=60.0),
        rate,
    ],
)
person.collect(
    "whole",
    {
        "user": Result("user"),
        "theme": Result("preferences", "json", "theme"),
        "recommendations": Result("recommendations", "json"),
    },
    transform=lambda gathered: {**gathered.pop("user"), **gathered},
)

# The report


class Wanted(BaseModel):
    """Which version is asked, and who is to know of the report."""

    version: str = "v1"
    audience: str = "everybody"


aggregate = Workflow(
    "partner.aggregate", input=Wanted, resources=[partner], ttl=40, deadline=120.0, errors=[http.HttpError]
)
aggregate.switch("listing", on="version", cases={"v1": listing_v1, "v2": listing_v2}, default=unsupported)
aggregate.map(name="people", workflow=person, over="listing", batch=15, on_error="collect", bind={"user_id": Element()})
http.get(aggregate, "headlines", "/headlines", client="partner", timeout=0.5, required=False, after=["listing"])


@aggregate.step(bind={"found": Result("people", "results"), "errors": Result("people", "errors")})
def report(found: list[dict[str, Any]], errors: list[dict[str, Any]], headlines: Any) -> dict[str, Any]:
    """What came of it all, and what did not come."""
    return {
        "people": [entry["name"] for entry in found],
        "missing": {str(error["element"]): error["error"] for error in errors},
        "themes": dict(sorted(Counter(entry["theme"] for entry in found).items())),
        "recommendations": sum(len(entry["recommendations"]) for entry in found),
        "headlines": headlines and headlines["json"],
    }


published = http.post(aggregate, "published", "/reports", json=Result("report"), **ASKING)


@published.undo(in_doubt=True)
async def withdraw(partner: httpx2.AsyncClient, ctx: Context) -> None:
    """Take the report back; the partner names reports by our key, so that it is found also when nobody knows whether it
    was published."""
    answer = await partner.delete(f"/reports/{ctx.forward_key[:8]}")
    if answer.status_code != 404:
        answer.raise_for_status()


@published.compensate
async def perhaps_published(error: Exception, partner: httpx2.AsyncClient, ctx: Context) -> Retry | None:
    """Try again, with the same key; a request whose answer never came may have arrived, so in the end make sure that
    nothing is left of it."""
    if isinstance(error, http.HttpBusy | http.HttpUnreachable) and ctx.retries_left:
        return Retry()
    await withdraw(partner, ctx)
    return None


http.post(
    aggregate,
    "announced",
    "/announcements",
    json={"report": Result("published", "json", "id"), "audience": "{audience}"},
    **ASKING,
)
aggregate.collect("outcome", {"report": "report", "announced": Result("announced", "json", "told")})
