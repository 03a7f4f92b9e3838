"""1. API data pipeline: pages of users, at a bounded rate; a profile for each, ten at once; stored, fifty in a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from places import api, database
from sqlalchemy import text

from bitactor import Element, Result, Workflow
from bitactor.patterns import RateLimit
from mesh.ready.steps import http

AT_ONCE = "profiles"
"""The pool whose places bound how many profiles are asked for at once."""

fetch_page = Workflow("kailash.fetch_page", input={"page": int}, resources=[api])
enrich_user = Workflow("kailash.enrich_user", input={"user": dict[str, Any]}, resources=[api])
api_pipeline = Workflow("kailash.api_pipeline", input={"pages": int}, deadline=120, resources=[api, database])


http.get(
    fetch_page, "users", "/users?page={page}", client="api", policies=[RateLimit("users-api", per_second=20, burst=4)], retries=2
)


def numbers(pages: int) -> Iterator[int]:
    """The pages to ask for."""
    yield from range(1, pages + 1)


fetch_users = api_pipeline.map(name="fetch_users", workflow=fetch_page, over=numbers, bind={"page": Element()})


http.get(enrich_user, "profile", "/users/{user[id]}/profile", client="api", retries=2, timeout=10.0, limit=AT_ONCE)


@enrich_user.step(spawn="inline", bind={"profile": Result("profile", "json")})
def enriched(user: dict[str, Any], profile: dict[str, Any]) -> dict[str, Any]:
    """The user with a profile."""
    return {**user, "profile": profile}


def each_user(fetch_users: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The users of all pages."""
    for page in fetch_users:
        yield from page["json"]["users"]


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
