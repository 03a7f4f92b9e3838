"""A database as a resource: an SQLAlchemy async engine, with its pool of connections.

    shop = database("shop", "postgresql+asyncpg://shop@db/shop")
    orders = Workflow("orders", input={...}, resources=[shop])

    @orders.step
    async def load(order: int, shop: AsyncEngine) -> dict:
        async with shop.connect() as connection: ...

The engine is made when it is first needed, checked, and disposed of when the mesh closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from bitactor.declare.resource import DEFAULT_CHECK_EVERY, Resource
from bitactor.errors import ConfigurationError, DefinitionError
from mesh.ready.extras import missing_extra

try:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
except ModuleNotFoundError as missing:
    raise missing_extra("database", __name__, missing) from None

_ASYNC_DRIVERS: Final = {"sqlite": "aiosqlite", "postgresql": "asyncpg", "mysql": "aiomysql", "mariadb": "aiomysql"}


def database(
    name: str,
    url: str,
    *,
    pool_size: int | None = None,
    max_overflow: int | None = None,
    pool_timeout: float | None = None,
    pool_recycle: int | None = None,
    isolation_level: str | None = None,
    connect_args: Mapping[str, Any] | None = None,
    check_every: float = DEFAULT_CHECK_EVERY,
) -> Resource:
    """A resource that is an `AsyncEngine`.  It is checked with `SELECT 1`, made anew if that fails, and disposed of
    when the mesh closes.

    Args:
        name: what the parameter of a step is called that takes it.
        url: of SQLAlchemy, with a driver that awaits: `sqlite+aiosqlite:///shop.db`,
            `postgresql+asyncpg://user:password@host/shop`.
        pool_size: connections that are kept.
        max_overflow: connections beyond that, while there is need.
        pool_timeout: seconds to wait for a connection.
        pool_recycle: seconds after which a connection is replaced.
        isolation_level: of each transaction, as the database calls it.
        connect_args: for the driver.
        check_every: seconds between two checks.

    Raises:
        DefinitionError: the name or the URL is wrong.
    """
    options = {
        "pool_size": pool_size, "max_overflow": max_overflow, "pool_timeout": pool_timeout,
        "pool_recycle": pool_recycle, "isolation_level": isolation_level,
        "connect_args": None if connect_args is None else dict(connect_args),
    }  # fmt: skip
    given = {option: value for option, value in options.items() if value is not None}
    factory = partial(_make, name, _url(name, url), given)
    return Resource(
        name,
        factory,
        close=AsyncEngine.dispose,
        check=_is_alive,
        check_every=check_every,
        provides=AsyncEngine,
        requires=(),
    )


def _make(name: str, url: sqlalchemy.URL, options: Mapping[str, Any]) -> AsyncEngine:
    """Makes the engine; it connects when it is first used."""
    try:
        return create_async_engine(url, **options)
    except (ArgumentError, TypeError) as error:
        raise ConfigurationError(f"resource {name!r}: {url.drivername} does not take these options: {error}") from None
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"resource {name!r}: {url.drivername} needs the driver {error.name!r}; install it"
        ) from None


def _url(name: str, url: str) -> sqlalchemy.URL:
    try:
        made = sqlalchemy.make_url(url)
        is_async = made.get_dialect().is_async
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        detail = f" ({error})" if isinstance(error, NoSuchModuleError) else ""
        raise DefinitionError(
            f"resource {name!r}: that is no URL of a database{detail}; for example sqlite+aiosqlite:///shop.db"
        ) from None
    except ModuleNotFoundError as error:
        raise DefinitionError(f"resource {name!r}: {made.drivername} needs {error.name!r}; install it") from None
    if not is_async:
        kind = made.get_backend_name()
        driver = _ASYNC_DRIVERS.get(kind)
        hint = f"; write {kind}+{driver}://…" if driver else ""
        raise DefinitionError(
            f"resource {name!r}: the driver of {made.drivername}:// blocks and cannot be awaited{hint}"
        )
    return made


async def _is_alive(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return (await connection.execute(sqlalchemy.text("SELECT 1"))).scalar() == 1
