"""1. API data pipeline: pages of users, at a bounded rate; a profile for each, ten at once; stored, fifty in a
batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from bitactor import Element, Result, Workflow
from bitactor.patterns import RateLimit
from mesh.ready.resources.database import database as database_at
from mesh.ready.resources.http import http_client
from mesh.ready.steps import http

AT_ONCE = "profiles"
"""The pool whose places bound how many profiles are asked for at once."""
LIMIT = RateLimit("users-api", per_second=20, burst=4)


def api_pipeline(services: str, data: str) -> Workflow:
    """The pipeline.

    Args:
        services: URL of the service.
        data: URL of the database.
    """
    api, database = http_client("api", base_url=services), database_at("database", data)

    page = Workflow("kailash.page", input={"page": int}, resources=[api])
    http.get(page, "users", "/users?page={page}", client="api", policies=[LIMIT], retries=2)

    user = Workflow("kailash.user", input={"user": dict[str, Any]}, resources=[api])
    http.get(user, "profile", "/users/{user.id}/profile", client="api", retries=2, timeout=10.0, limit=AT_ONCE)
    user.add(enriched, bind={"profile": Result("profile", "json")}, spawn="inline")

    workflow = Workflow("kailash.api_pipeline", input={"pages": int}, deadline=120, resources=[api, database])
    workflow.map(name="fetch_users", workflow=page, over=numbers, bind={"page": Element()})
    users = workflow.map(
        name="process_users", workflow=user, over=each_user, bind={"user": Element()}, on_error="collect"
    )
    workflow.map(store_users, over=Result(users, "results"), batch=50, whole=True)
    workflow.add(report, bind={"found": Result(users, "results"), "errors": Result(users, "errors")})
    return workflow


def numbers(pages: int) -> Iterator[int]:
    """The pages to ask for."""
    yield from range(1, pages + 1)


def each_user(fetch_users: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The users of all pages."""
    for page in fetch_users:
        yield from page["json"]["users"]


def enriched(user: dict[str, Any], profile: dict[str, Any]) -> dict[str, Any]:
    """The user with a profile."""
    return {**user, "profile": profile}


async def store_users(elements: list[dict[str, Any]], database: Any) -> int:
    """A batch of users in one transaction of the database; those that were there already are replaced."""
    async with database.begin() as connection:
        await connection.execute(
            text(
                "CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT, email TEXT, city TEXT, since "
                "INTEGER)"
            )
        )
        await connection.execute(
            text("INSERT OR REPLACE INTO users VALUES (:id, :name, :email, :city, :since)"),
            [{"id": user["id"], "name": user["name"], "email": user["email"], **user["profile"]} for user in elements],
        )
    return len(elements)


def report(found: list[dict[str, Any]], errors: list[dict[str, Any]], store_users: list[int]) -> dict[str, Any]:
    """What came of it; nobody is missing: a user is stored, or reported with the reason."""
    return {
        "fetched": len(found) + len(errors),
        "stored": sum(store_users),
        "batches": store_users,
        "without_profile": [error["element"]["id"] for error in errors],
        "cities": dict(sorted(Counter(user["profile"]["city"] for user in found).items())),
    }
