"""1. API data pipeline: pages of users, at a bounded rate; a profile for each, ten at once; stored, fifty in a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from places import api, database
from sqlalchemy import text

from bitactor import Element, Fail, Result, Retry, Workflow
from bitactor.patterns import RateLimit

AT_ONCE = "profiles"
"""The pool whose places bound how many profiles are asked for at once."""

fetch_page = Workflow("kailash.fetch_page", input={"page": int}, resources=[api])
enrich_user = Workflow("kailash.enrich_user", input={"user": dict[str, Any]}, resources=[api])
api_pipeline = Workflow("kailash.api_pipeline", input={"pages": int}, deadline=120, resources=[api, database])


@fetch_page.step(policies=[RateLimit("users-api", per_second=20, burst=4)], retries=2, timeout=30.0)
async def users(page: int, api: Any) -> list[dict[str, Any]]:
    """One page."""
    found = await asked(api, f"/users?page={page}")
    return list(found["users"])


def numbers(pages: int) -> Iterator[int]:
    """The pages to ask for."""
    yield from range(1, pages + 1)


fetch_users = api_pipeline.map(name="fetch_users", workflow=fetch_page, over=numbers, bind={"page": Element()})


@enrich_user.step(retries=2, timeout=10.0, limit=AT_ONCE)
async def enriched(user: dict[str, Any], api: Any) -> dict[str, Any]:
    """The user with a profile."""
    return {**user, "profile": await asked(api, f"/users/{user['id']}/profile")}


async def asked(api: Any, path: str) -> dict[str, Any]:
    """What the service answers; when it is busy it is asked again when it says, and what it does not have is not asked for twice."""
    answer = await api.get(path)
    if answer.status_code in (429, 503):
        raise Retry(after=float(answer.headers["Retry-After"]), reason=f"{path}: {answer.status_code}, {answer.json()['error']}")
    if answer.status_code == 404:
        raise Fail(answer.json()["error"])
    answer.raise_for_status()
    return dict(answer.json())


def each_user(fetch_users: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The users of all pages."""
    for page in fetch_users:
        yield from page


process_users = api_pipeline.map(
    name="process_users", workflow=enrich_user, over=each_user, bind={"user": Element()}, on_error="collect"
)


@api_pipeline.map(over=Result(process_users, "results"), batch=50, whole=True)
async def store_users(elements: list[dict[str, Any]], database: Any) -> int:
    """Fifty users in one transaction of the database; those that were there already are replaced."""
    async with database.begin() as connection:
        await connection.execute(
            text("CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT, email TEXT, city TEXT, since INTEGER)")
        )
        await connection.execute(
            text("INSERT OR REPLACE INTO users VALUES (:id, :name, :email, :city, :since)"),
            [{"id": user["id"], "name": user["name"], "email": user["email"], **user["profile"]} for user in elements],
        )
    return len(elements)


@api_pipeline.step(bind={"errors": Result(process_users, "errors"), "found": Result(process_users, "results")})
def report(errors: list[dict[str, Any]], found: list[dict[str, Any]], store_users: list[int]) -> dict[str, Any]:
    """What came of it; nobody is missing: a user is stored, or reported with the reason."""
    return {
        "fetched": len(found) + len(errors),
        "stored": sum(store_users),
        "batches": store_users,
        "without_profile": [error["element"]["id"] for error in errors],
        "cities": dict(sorted(Counter(user["profile"]["city"] for user in found).items())),
    }
