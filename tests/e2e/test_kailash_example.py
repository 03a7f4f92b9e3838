"""The four use cases of Kailash's guide, against real local services: each promise is looked for where it has to
show."""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import httpx2
import pytest

from bitactor import Pulse, WorkflowFailed
from bitactor.testing import FakeClock
from mesh import Mesh, Transaction
from tests.e2e.support import BOUND, until

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "kailash"
MODULES = ("stand_ins", "api_pipeline", "multi_source", "file_processing", "resilient_service")
LONG = 60.0
"""Seconds for a whole pipeline; never reached when all is well."""


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
def services(example: SimpleNamespace) -> Iterator[Any]:
    with example.stand_ins.StandIns() as services:
        yield services


def data(directory: Path) -> str:
    return f"sqlite+aiosqlite:///{directory}/data.db"


def rows(directory: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(directory / "data.db")) as connection:
        return connection.execute(query).fetchall()


def of_kind(transaction: Transaction, kind: str, ending: str = "") -> list[Pulse]:
    return [pulse for pulse in transaction.pulses() if pulse.kind == kind and pulse.step.endswith(ending)]


# 1. API data pipeline


def pipeline(example: SimpleNamespace, services: Any, directory: Path, **options: Any) -> tuple[Mesh, Any]:
    workflow = example.api_pipeline.api_pipeline(services.url, data(directory))
    return Mesh(workflow, pools={example.api_pipeline.AT_ONCE: 10}, **options), workflow


async def test_the_rate_limit_limits(example: SimpleNamespace, services: Any, tmp_path: Path) -> None:
    clock = FakeClock()
    services.allowed = 1_000  # which is of real time
    limit = example.api_pipeline.LIMIT
    mesh, workflow = pipeline(example, services, tmp_path, clock=clock)
    async with mesh:
        transaction = await mesh.stimulate(workflow, {"pages": 24})
        await until(lambda: len(of_kind(transaction, "spawned", "/users")) == 24)
        for allowed in range(limit.burst, 25):
            await until(lambda allowed=allowed: services.asked["users"] >= allowed)
            assert services.asked["users"] == allowed, "not one more, while time stands still"
            clock.advance(1 / limit.per_second)
        await until(lambda: clock.advance(0.001) or transaction.status == "completed")


async def test_the_limit_is_what_keeps_the_server_from_refusing(
    example: SimpleNamespace, services: Any, tmp_path: Path
) -> None:
    mesh, workflow = pipeline(example, services, tmp_path)
    async with mesh, httpx2.AsyncClient(base_url=services.url) as client:
        await (await mesh.stimulate(workflow, {"pages": 24})).result(LONG)
        assert services.refused == 0
        answers = await asyncio.gather(*(client.get("/users") for _ in range(80)))
    assert 429 in {answer.status_code for answer in answers}


async def test_every_user_is_stored_or_reported(example: SimpleNamespace, services: Any, tmp_path: Path) -> None:
    mesh, workflow = pipeline(example, services, tmp_path)
    async with mesh:
        report = await (await mesh.stimulate(workflow, {"pages": 24})).result(LONG)
    without = sorted(example.stand_ins.WITHOUT_PROFILE)
    assert report["fetched"] == example.stand_ins.USERS
    assert report["without_profile"] == without
    assert report["batches"] == [50, 50, example.stand_ins.USERS - 100 - len(without)]
    stored = [user for (user,) in rows(tmp_path, "SELECT id FROM users ORDER BY id")]
    assert sorted([*stored, *without]) == list(range(1, example.stand_ins.USERS + 1))


async def test_profiles_are_fetched_ten_at_once_and_a_blip_is_tried_again(
    example: SimpleNamespace, services: Any, tmp_path: Path
) -> None:
    mesh, workflow = pipeline(example, services, tmp_path)
    async with mesh:
        services.slow.add("profiles")
        transaction = await mesh.stimulate(workflow, {"pages": 24})
        await until(lambda: services.asked["profiles"] == 10)
        services.slow.clear()
        await transaction.result(LONG)
        assert services.most_at_once["profiles"] == 10
        (again,) = of_kind(transaction, "retried")
        assert again.step == f"process_users/{example.stand_ins.BLIP_AT - 1}/profile" and "503" in (again.error or "")


async def test_partial_results_outlive_a_failure(example: SimpleNamespace, services: Any, tmp_path: Path) -> None:
    mesh, workflow = pipeline(example, services, tmp_path / "nowhere")
    async with mesh:
        transaction = await mesh.stimulate(workflow, {"pages": 2})
        with pytest.raises(WorkflowFailed, match="unable to open database"):
            await transaction.result(LONG)
        assert [len(page["json"]["users"]) for page in transaction.results()["fetch_users"]] == [5, 5]
        assert len(transaction.results()["process_users"]["results"]) == 10


# 2. Multi-source aggregation


async def test_all_sources_are_put_together(
    example: SimpleNamespace, services: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example.multi_source, "PATIENCE", BOUND)
    sources = example.multi_source
    for make in (sources.multi_source, sources.multi_source_in_one):
        workflow = make(services.url)
        async with Mesh(workflow) as mesh:
            found = await (await mesh.stimulate(workflow)).result(BOUND)
            assert found["data_sources"] == list(sources.SOURCES)
            assert not found["failed_sources"]
            assert found["insights"]["total_orders"] == 60
            assert found["insights"]["out_of_stock"] == 7


async def test_a_slow_source_loses_nobody_elses_result(example: SimpleNamespace, services: Any) -> None:
    services.slow.add("warehouse")
    services.down.add("analytics")
    clock = FakeClock()
    workflow = example.multi_source.multi_source(services.url)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: len(of_kind(transaction, "completed")) == 2 and of_kind(transaction, "failed", "analytics"))
        assert transaction.status == "running", "the slow one is still being waited for"
        clock.advance(example.multi_source.PATIENCE)
        found = await transaction.result(BOUND)
        assert found["data_sources"] == ["customers", "orders"]
        assert found["failed_sources"] == ["inventory", "analytics"]
        assert found["insights"]["orders_per_customer"] == 3
        assert [pulse.step for pulse in of_kind(transaction, "timed_out")] == ["inventory"]
        assert any("503" in (pulse.error or "") for pulse in of_kind(transaction, "failed", "analytics"))
        assert set(transaction.results()) >= {"customers", "orders"}, "each is in the journal by itself"


async def test_in_one_hop_it_is_said_why_a_source_is_missing(
    example: SimpleNamespace, services: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example.multi_source, "PATIENCE", 2.0)  # of real time, and enough for those that answer
    services.slow.add("warehouse")
    services.down.add("analytics")
    workflow = example.multi_source.multi_source_in_one(services.url)
    async with Mesh(workflow) as mesh:
        found = await (await mesh.stimulate(workflow)).result(BOUND)
    assert found["data_sources"] == ["customers", "orders"]
    assert found["failed_sources"] == {"inventory": "TimedOut", "analytics": "HTTPStatusError"}


async def test_nothing_waits_for_a_level(example: SimpleNamespace, services: Any) -> None:
    services.slow.add("warehouse")
    workflow = example.multi_source.multi_source(services.url)
    async with Mesh(workflow, clock=FakeClock()) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(
            lambda: {pulse.step for pulse in of_kind(transaction, "completed")} >= {"customers", "orders", "analytics"}
        )
        assert transaction.status == "running", "the slow one is still being waited for"
        services.slow.clear()
        assert (await transaction.result(BOUND))["failed_sources"] == []


# 3. File processing


class Progress:
    """How many files are through, and whether the whole was still running then."""

    def __init__(self) -> None:
        self.transaction: Transaction | None = None
        self.seen: list[str] = []

    def receive(self, pulses: Sequence[Pulse]) -> None:
        for pulse in pulses:
            if pulse.kind in ("completed", "failed") and pulse.step.endswith("/processed"):
                self.seen.append(self.transaction.status if self.transaction else "running")

    def close(self, timeout: float) -> None:
        pass


@pytest.fixture
def incoming(example: SimpleNamespace, tmp_path: Path) -> dict[str, str]:
    example.stand_ins.make_files(tmp_path / "incoming")
    return {"directory": str(tmp_path / "incoming"), "into": str(tmp_path / "processed")}


def processing(example: SimpleNamespace, directory: Path, **options: Any) -> tuple[Mesh, Any]:
    workflow = example.file_processing.file_processing(data(directory))
    return Mesh(workflow, pools={example.file_processing.AT_ONCE: 5}, **options), workflow


async def test_files_with_errors_are_reported_and_the_rest_is_stored(
    example: SimpleNamespace, incoming: dict[str, str], tmp_path: Path
) -> None:
    mesh, workflow = processing(example, tmp_path)
    async with mesh:
        transaction = await mesh.stimulate(workflow, incoming)
        summary = await transaction.result(LONG)
    assert (summary["processed_count"], summary["failed_count"]) == (12, 3)
    assert summary["total_rows"] == 600 and summary["missing_values"] == 60
    assert set(summary["failed_files"]) == {"empty.csv", "ragged.csv", "latin.csv"}
    assert "row 2 has not 3 columns" in summary["failed_files"]["ragged.csv"]
    assert "UnicodeDecodeError" in summary["failed_files"]["latin.csv"]
    assert len(rows(tmp_path, "SELECT * FROM file_processing_log")) == 12
    assert len(list((tmp_path / "processed").iterdir())) == 12, "and no part of a file that failed"


async def test_five_files_at_once_and_no_more(
    example: SimpleNamespace, incoming: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, lock = example.file_processing.checked_rows, threading.Lock()
    five, sixth = threading.Barrier(5), threading.Event()
    inside = most = 0

    def watched(path: Path) -> Iterator[Any]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if inside > 5:
                sixth.set()
        try:
            five.wait(BOUND)
            sixth.wait(0.2)  # time for one too many, which never comes
            yield from read(path)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(example.file_processing, "checked_rows", watched)
    mesh, workflow = processing(example, tmp_path)
    async with mesh:
        summary = await (await mesh.stimulate(workflow, incoming)).result(LONG)
    assert (most, summary["processed_count"]) == (5, 12)


async def test_a_file_that_takes_too_long_is_given_up_and_no_other(
    example: SimpleNamespace, incoming: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, released, clock = example.file_processing.checked_rows, threading.Event(), FakeClock()

    def hanging(path: Path) -> Iterator[Any]:
        if path.name == "sales-03.csv":
            released.wait(LONG)
        yield from read(path)

    monkeypatch.setattr(example.file_processing, "checked_rows", hanging)
    mesh, workflow = processing(example, tmp_path, clock=clock)
    async with mesh:
        transaction = await mesh.stimulate(workflow, incoming)
        await until(
            lambda: (
                len(of_kind(transaction, "completed", "/processed") + of_kind(transaction, "failed", "/processed")) == 9
            )
        )
        clock.advance(300)
        try:
            summary = await transaction.result(LONG)
        finally:
            released.set()
    assert (summary["processed_count"], summary["failed_count"]) == (11, 4)
    assert summary["failed_files"]["sales-03.csv"].startswith("StepTimeout")


async def test_progress_is_seen_while_it_runs(
    example: SimpleNamespace, incoming: dict[str, str], tmp_path: Path
) -> None:
    progress = Progress()
    mesh, workflow = processing(example, tmp_path, sinks=[progress])
    async with mesh:
        progress.transaction = await mesh.stimulate(workflow, incoming)
        await progress.transaction.result(LONG)
    assert progress.seen == ["running"] * 15


async def test_a_directory_that_is_not_there_is_an_error(
    example: SimpleNamespace, incoming: dict[str, str], tmp_path: Path
) -> None:
    mesh, workflow = processing(example, tmp_path)
    async with mesh:
        transaction = await mesh.stimulate(workflow, {**incoming, "directory": str(tmp_path / "nowhere")})
        with pytest.raises(WorkflowFailed, match="nowhere is no directory"):
            await transaction.result(LONG)
        assert [pulse.step for pulse in of_kind(transaction, "spawned")] == ["scan_files"]
    assert not (tmp_path / "processed").exists()


# 4. Resilient external service


class Asking:
    """Asks the resilient service, in a mesh of its own."""

    def __init__(self, example: SimpleNamespace, services: Any, clock: FakeClock | None = None) -> None:
        self.workflow = example.resilient_service.resilient_service(services.url, services.url)
        self.mesh = Mesh(self.workflow, clock=clock or FakeClock())

    async def __aenter__(self) -> Self:
        await self.mesh.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.mesh.__aexit__(*error)

    async def begin(self, item: str) -> Transaction:
        return await self.mesh.stimulate(self.workflow, {"item": item})

    async def __call__(self, item: str) -> Any:
        return await (await self.begin(item)).result(BOUND)


async def test_a_cache_hit_does_not_reach_the_server(example: SimpleNamespace, services: Any) -> None:
    clock = FakeClock()
    async with Asking(example, services, clock) as ask:
        answers = [await ask("lamp") for _ in range(5)]
        assert answers == [{"item": "lamp", "price": 40, "by": "primary", "used_backup": False}] * 5
        assert (services.asked["primary"], services.asked["backup"]) == (1, 0)
        clock.advance(1_801)
        await ask("lamp")
        assert services.asked["primary"] == 2, "after half an hour it is asked for again"


async def test_the_backup_is_asked_when_the_primary_fails_and_what_it_says_is_not_cached(
    example: SimpleNamespace, services: Any
) -> None:
    services.down.add("primary")
    async with Asking(example, services) as ask:
        answers = [await ask("lamp") for _ in range(2)]
        assert [(answer["by"], answer["used_backup"]) for answer in answers] == [("backup", True)] * 2
        assert (services.asked["primary"], services.asked["backup"]) == (2, 2)


async def test_the_breaker_opens_half_opens_and_closes(example: SimpleNamespace, services: Any) -> None:
    clock = FakeClock()
    open_for = example.resilient_service.OPEN_FOR
    async with Asking(example, services, clock) as ask:
        services.down.add("primary")
        for number in range(8):
            assert (await ask(f"item {number}"))["by"] == "backup"
        assert services.asked["primary"] == 5, "open: left alone"
        services.down.clear()
        clock.advance(open_for - 1)
        assert (await ask("early"))["by"] == "backup"
        assert services.asked["primary"] == 5, "still open"
        services.down.add("primary")
        clock.advance(1)
        assert (await ask("probe"))["by"] == "backup"
        assert (await ask("after a bad probe"))["by"] == "backup"
        assert services.asked["primary"] == 6, "half-open: one probe, which failed, so open again"
        services.down.clear()
        clock.advance(open_for)
        assert [(await ask(item))["by"] for item in ("probe", "next", "and next")] == ["primary"] * 3, "closed"


async def test_what_is_cached_is_known_while_the_circuit_is_open(example: SimpleNamespace, services: Any) -> None:
    async with Asking(example, services) as ask:
        await ask("lamp")
        services.down.add("primary")
        for number in range(6):
            await ask(f"item {number}")
        assert (await ask("lamp"))["by"] == "primary"


async def test_a_slow_primary_is_given_up(example: SimpleNamespace, services: Any) -> None:
    clock = FakeClock()
    services.slow.add("primary")
    async with Asking(example, services, clock) as ask:
        transaction = await ask.begin("lamp")
        await until(lambda: services.asked["primary"])
        clock.advance(10.1)
        assert (await transaction.result(BOUND))["by"] == "backup"
        (failed,) = of_kind(transaction, "failed", "primary_service")
        assert failed.error is not None and failed.error.startswith("TimedOut")


async def test_with_neither_there_is_still_an_answer(example: SimpleNamespace, services: Any) -> None:
    services.down.update(("primary", "backup"))
    async with Asking(example, services) as ask:
        transaction = await ask.begin("lamp")
        assert await transaction.result(BOUND) == {"item": None, "price": None, "by": "nobody", "used_backup": True}
        assert [pulse.step for pulse in of_kind(transaction, "failed")] == ["primary_service"], "a failed step is told"
