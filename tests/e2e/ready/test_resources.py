"""The ready-made database and cache, in a mesh; and what is said where an extra is not installed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine

from bitactor import DefinitionError, ResourceUnavailable, Workflow
from bitactor.testing import FakeClock
from mesh import Mesh
from mesh.ready.resources.cache import MISSING, Cache, cache
from mesh.ready.resources.database import database
from tests.e2e.support import BOUND

ROOT = Path(__file__).parents[3]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Database


async def test_steps_share_an_engine_that_is_disposed_of(tmp_path: Path) -> None:
    shop = database(
        "shop", f"sqlite+aiosqlite:///{tmp_path}/shop.db", pool_size=2, max_overflow=0, connect_args={"timeout": 5}
    )
    orders = Workflow("orders", resources=[shop])
    engines: list[AsyncEngine] = []

    @orders.step
    async def create(shop: AsyncEngine) -> None:
        engines.append(shop)
        async with shop.begin() as connection:
            await connection.execute(sqlalchemy.text("CREATE TABLE orders (id INTEGER)"))
            await connection.execute(sqlalchemy.text("INSERT INTO orders VALUES (7)"))

    @orders.step(after=[create])
    async def load(any_name: AsyncEngine) -> int:
        engines.append(any_name)
        assert any_name.pool.size() == 2  # type: ignore[attr-defined]
        async with any_name.connect() as connection:
            return int((await connection.execute(sqlalchemy.text("SELECT id FROM orders"))).scalar_one())

    async with Mesh(orders) as mesh:
        assert await (await mesh.stimulate(orders)).result(BOUND) == 7
        before = engines[0].pool
        assert before.checkedin() == 1  # type: ignore[attr-defined]
    assert engines[0] is engines[1]
    assert engines[0].pool is not before, (
        "disposed of: it has a pool afresh, and the connections of the old one are closed"
    )
    assert before.checkedin() == 0  # type: ignore[attr-defined]


async def test_one_that_does_not_answer_is_made_anew(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    clock = FakeClock()
    shop = database("shop", f"sqlite+aiosqlite:///{home}/shop.db", check_every=30.0)
    orders = Workflow("orders", resources=[shop])
    engines: list[Any] = []

    @orders.step
    async def use(shop: AsyncEngine) -> None:
        engines.append(shop)

    async with Mesh(orders, clock=clock) as mesh:

        async def once() -> None:
            await (await mesh.stimulate(orders)).result(BOUND)

        await once()
        clock.advance(31)
        await once()
        assert engines[0] is engines[1], "it has answered"
        await engines[0].dispose()
        home.rename(tmp_path / "gone")
        clock.advance(31)
        await once()
        assert engines[2] is not engines[0]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///shop.db", r"write sqlite\+aiosqlite://"),
        ("postgresql://me:s3cret@db/shop", "postgresql"),
        ("nosuch://db/shop", "nosuch"),
        ("shop.db", "that is no URL"),
    ],
)
def test_a_url_that_cannot_work_is_refused_and_its_password_not_shown(url: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as refused:
        database("shop", url)
    assert "s3cret" not in str(refused.value)


async def test_options_that_the_driver_does_not_take(tmp_path: Path) -> None:
    orders = Workflow("orders", resources=[database("shop", "sqlite+aiosqlite://", pool_size=5)])

    @orders.step
    async def use(shop: AsyncEngine) -> None: ...

    async with Mesh(orders) as mesh:
        transaction = await mesh.stimulate(orders)
        await transaction.ended(BOUND)
        error = transaction.errors()[0]
        assert isinstance(error, ResourceUnavailable)
        assert "does not take these options" in str(error)


# Cache


async def test_a_miss_is_a_miss_and_none_a_value() -> None:
    kept = Cache(10, None)
    assert await kept.get("a") is None
    assert await kept.get("a", MISSING) is MISSING
    await kept.set("a", None)
    assert await kept.get("a", MISSING) is None
    assert await kept.get_or_make("a", forbidden) is None
    assert (kept.hits, kept.misses) == (2, 2)
    assert await kept.delete("a") and not await kept.delete("a")
    assert await kept.get("a", MISSING) is MISSING


async def forbidden() -> Any:
    raise AssertionError("made, though it was there")


async def test_values_go_when_their_time_is_over_or_there_is_no_room() -> None:
    clock = Clock()
    kept = Cache(2, 10.0, clock)
    await kept.set("a", 1)
    await kept.set("b", 2, ttl=100)
    clock.now += 5
    assert await kept.get("a") == 1
    await kept.set("c", 3)
    assert (await kept.get("b"), len(kept)) == (None, 2), "the least recently used has gone"
    clock.now += 6
    assert (await kept.get("a"), await kept.get("c"), len(kept)) == (None, 3, 1)
    await kept.clear()
    assert len(kept) == 0


async def test_of_many_who_ask_at_once_one_makes_it() -> None:
    kept, made, may = Cache(10, None), 0, asyncio.Event()

    async def make() -> str:
        nonlocal made
        made += 1
        await may.wait()
        return "value"

    asked = [asyncio.create_task(kept.get_or_make("a", make)) for _ in range(100)]
    await asyncio.sleep(0)
    may.set()
    assert set(await asyncio.gather(*asked)) == {"value"}
    assert made == 1
    assert kept.making == 0


async def test_the_next_one_tries_when_the_first_fails_or_is_cancelled() -> None:
    kept, made, may = Cache(10, None), 0, asyncio.Event()

    async def make() -> str:
        nonlocal made
        made += 1
        if made == 1:
            await may.wait()
        if made == 2:
            raise ValueError("not now")
        return "value"

    first, second, third = (asyncio.create_task(kept.get_or_make("a", make)) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    results = await asyncio.gather(first, second, third, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], ValueError)
    assert (results[2], made) == ("value", 3)
    assert kept.making == 0


async def test_it_is_a_resource() -> None:
    orders = Workflow("orders", input={"item": str}, resources=[cache("prices", max_entries=100, ttl=60)])
    asked: list[str] = []

    @orders.step
    async def price(item: str, prices: Cache) -> int:
        async def ask() -> int:
            asked.append(item)
            return 40

        return int(await prices.get_or_make(item, ask))

    async with Mesh(orders) as mesh:
        for item in ("lamp", "moon", "lamp"):
            assert await (await mesh.stimulate(orders, {"item": item})).result(BOUND) == 40
    assert asked == ["lamp", "moon"]


def test_wrong_options_are_refused() -> None:
    for options in ({"max_entries": 0}, {"max_entries": 1.5}, {"ttl": 0}, {"ttl": "1"}):
        with pytest.raises(DefinitionError, match=next(iter(options))):
            cache("prices", **options)  # type: ignore[arg-type]


# Extras


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("mesh.ready.resources.http", "httpx2", "http"),
        ("mesh.ready.steps.http", "httpx2", "http"),
        ("mesh.ready.resources.database", "sqlalchemy", "database"),
    ],
)
def test_without_its_extra_a_module_says_which(module: str, library: str, extra: str) -> None:
    script = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from bitactor import ConfigurationError\n"
        f"try: import {module}\n"
        "except ImportError as error:\n"
        "    assert isinstance(error, ConfigurationError) and error.__suppress_context__\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{module} needs {library!r}, which is not installed; run: pip install 'bitactor[{extra}]'\n"


def test_what_needs_no_extra_comes_without_any() -> None:
    script = (
        "import sys; sys.modules.update({'httpx2': None, 'sqlalchemy': None})\n"
        "import mesh.ready.resources.cache, mesh.ready.steps.files, mesh.ready.steps.subprocess"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60, check=True)
