"""python docs/examples/kailash [api | sources | files | service]

Each case against local stand-ins, one after the other; it ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from api_pipeline import AT_ONCE as PROFILES
from api_pipeline import api_pipeline
from file_processing import AT_ONCE as FILES
from file_processing import file_processing
from multi_source import multi_source, multi_source_in_one
from resilient_service import OPEN_FOR, resilient_service
from stand_ins import PER_PAGE, USERS, StandIns, make_files

from bitactor import Pulse
from bitactor.testing import FakeClock
from mesh import Mesh


class Progress:
    """Says how many files are done, as each becomes durable."""

    def __init__(self) -> None:
        self.done = 0

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """See `bitactor.ports.Sink`."""
        for pulse in pulses:
            if (
                pulse.kind in ("completed", "failed")
                and pulse.step.startswith("process_files/")
                and pulse.step.endswith("/processed")
            ):
                self.done += 1
                if self.done % 5 == 0:
                    print(f"  {self.done} files are through")

    def close(self, timeout: float) -> None:
        """See `bitactor.ports.Sink`."""


async def api(services: StandIns, directory: Path) -> None:
    """1. API data pipeline"""
    workflow = api_pipeline(services.url, data(directory))
    async with Mesh(workflow, pools={PROFILES: 10}, store=f"sqlite:///{directory}/pulses.db") as mesh:
        transaction = await mesh.stimulate(workflow, {"pages": USERS // PER_PAGE})
        show(await transaction.result(60))
        again = [pulse.step for pulse in transaction.pulses() if pulse.kind == "retried"]
    print(f"  pages asked for: {services.asked['users']}, refused as too fast: {services.refused}")
    ten = services.most_at_once["profiles"] <= 10
    print(f"  profiles asked for: {services.asked['profiles']}, never more than 10 at once: {ten}")
    print(f"  asked for again: {again}")
    print(f"  rows in the database: {count(directory, 'users')}")


async def sources(services: StandIns, directory: Path) -> None:
    """2. Multi-source aggregation"""
    each, in_one = multi_source(services.url), multi_source_in_one(services.url)
    async with Mesh(each, store=f"sqlite:///{directory}/pulses.db") as mesh:
        print(" all answer")
        show(await (await mesh.stimulate(each)).result(30))
        services.slow.add("warehouse")
        services.down.add("analytics")
        print(" one is slow, one is down")
        transaction = await mesh.stimulate(each)
        show(await transaction.result(30))
        for pulse in sorted(
            (pulse for pulse in transaction.pulses() if pulse.kind == "failed"), key=lambda pulse: pulse.step
        ):
            print(f"  failed: {pulse.step}: {(pulse.error or '').partition(' http')[0].partition(':')[0]}")
    async with Mesh(in_one) as mesh:
        print(" the same in one hop")
        found = await (await mesh.stimulate(in_one)).result(30)
        show({name: found[name] for name in ("data_sources", "failed_sources")})


async def files(services: StandIns, directory: Path) -> None:
    """3. File processing"""
    make_files(directory / "incoming")
    workflow = file_processing(data(directory))
    async with Mesh(workflow, pools={FILES: 5}, store=f"sqlite:///{directory}/pulses.db", sinks=[Progress()]) as mesh:
        transaction = await mesh.stimulate(
            workflow, {"directory": directory / "incoming", "into": directory / "processed"}
        )
        show(await transaction.result(60))
    print(f"  files written: {len(list((directory / 'processed').glob('*.jsonl')))}")
    print(f"  rows in the log: {count(directory, 'file_processing_log')}")


async def service(services: StandIns, directory: Path) -> None:
    """4. Resilient external service"""
    clock = FakeClock()  # minutes pass in no time
    workflow = resilient_service(services.url, services.url)
    async with Mesh(workflow, clock=clock) as mesh:

        async def ask(*items: str) -> None:
            for item in items:
                answer = await (await mesh.stimulate(workflow, {"item": item})).result(30)
                print(f"  {item}: {answer['price']} from {answer['by']}")
            print(f"  so far asked: primary {services.asked['primary']}, backup {services.asked['backup']}")

        print(" all is well; the second lamp comes from the cache")
        await ask("lamp", "lamp", "chair")
        services.down.add("primary")
        print(
            " the primary is down: five failures open the circuit, then it is left alone; what is cached is still known"
        )
        await ask("desk", "shelf", "sofa", "stool", "bench", "table", "couch", "lamp")
        services.down.add("backup")
        print(" the backup too")
        await ask("carpet")
        services.down.clear()
        print(" both are back, but the circuit is still open")
        await ask("carpet")
        clock.advance(OPEN_FOR)
        print(" a minute later one call is let through, and closes it")
        await ask("carpet", "desk")


CASES: dict[str, Callable[[StandIns, Path], Coroutine[Any, Any, None]]] = {
    "api": api,
    "sources": sources,
    "files": files,
    "service": service,
}


def show(result: dict[str, Any]) -> None:
    """A result, name by name."""
    for name, value in result.items():
        print(f"  {name}: {value}")


def data(directory: Path) -> str:
    """The URL of the database."""
    return f"sqlite+aiosqlite:///{directory}/data.db"


def count(directory: Path, table: str) -> int:
    """Rows of a table."""
    with closing(sqlite3.connect(directory / "data.db")) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python docs/examples/kailash", description="The four Kailash use cases on BitActor."
    )
    parser.add_argument("case", choices=CASES, nargs="?", help="one of them; by default all")
    chosen = parser.parse_args().case
    for name in [chosen] if chosen else CASES:
        print(CASES[name].__doc__)
        with tempfile.TemporaryDirectory() as directory, StandIns() as services:
            asyncio.run(CASES[name](services, Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
