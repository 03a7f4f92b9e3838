"""A database as a resource, by SQLAlchemy's asyncio engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitactor import Resource
from mesh.ready.extras import required

if TYPE_CHECKING:
    import sqlalchemy
    import sqlalchemy.ext.asyncio as sqlalchemy_asyncio
else:
    sqlalchemy = required("sqlalchemy", "database")
    sqlalchemy_asyncio = required("sqlalchemy.ext.asyncio", "database")


def database(name: str, url: str, *, check_every: float = 30.0, **options: Any) -> Resource:
    """A resource: one `AsyncEngine` with its pool of connections for all steps of a mesh.

    Args:
        name: what a parameter is called that takes it; `AsyncEngine` as its annotation will do as well.
        url: with an async driver: `sqlite+aiosqlite:///shop.db`, `postgresql+asyncpg://…`.
        check_every: seconds between two `SELECT 1`; if that fails, the engine is made anew.
        options: of `create_async_engine`: `pool_size`, `max_overflow`, `pool_timeout`, …
    """

    async def opened() -> sqlalchemy_asyncio.AsyncEngine:
        return sqlalchemy_asyncio.create_async_engine(url, **options)

    async def answers(engine: sqlalchemy_asyncio.AsyncEngine) -> bool:
        async with engine.connect() as connection:
            return (await connection.execute(sqlalchemy.text("SELECT 1"))).scalar() == 1

    async def dispose(engine: sqlalchemy_asyncio.AsyncEngine) -> None:
        await engine.dispose()

    return Resource(name, opened, check=answers, check_every=check_every, close=dispose, provides=sqlalchemy_asyncio.AsyncEngine)
