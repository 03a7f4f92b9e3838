"""Where the services and the database are: resources that the four workflows share, configured by the environment."""

from __future__ import annotations

import os

import httpx2
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bitactor import Resource


def open_services() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=os.environ["KAILASH_SERVICES"], timeout=30.0)


async def close_services(client: httpx2.AsyncClient) -> None:
    await client.aclose()


def open_database() -> AsyncEngine:
    return create_async_engine(os.environ["KAILASH_DATABASE"])


async def close_database(engine: AsyncEngine) -> None:
    await engine.dispose()


api = Resource("api", open_services, close=close_services)
primary_api = Resource("primary_api", open_services, close=close_services)
backup_api = Resource("backup_api", open_services, close=close_services)
database = Resource("database", open_database, close=close_database, provides=AsyncEngine)
