"""python docs/examples/etl [airports | readings] [--directory DIR] [--break-archive] [--rows N]

Run again after it was killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airports import airports
from readings import BATCH, generate, readings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bitactor import Pulse, WorkflowFailed
from mesh import Mesh

BATCH_STEP = "load/batch-"


class ProgressSink:
    """Moves a progress bar with each batch that is durable."""

    def __init__(self, progress: Progress, task: TaskID, total: int) -> None:
        self._progress, self._task, self._total = progress, task, total

    def receive(self, pulses: Sequence[Pulse]) -> None:
        """See `bitactor.ports.Sink`."""
        done = [pulse for pulse in pulses if pulse.kind == "completed" and pulse.step.startswith(BATCH_STEP)]
        if done:
            number = int(done[-1].step.removeprefix(BATCH_STEP)) + 1
            self._progress.update(self._task, completed=min(number * BATCH, self._total))

    def close(self, timeout: float) -> None:
        """See `bitactor.ports.Sink`."""


def packaged(name: str) -> Path:
    """A file that the package `airportsdata` ships."""
    found = importlib.util.find_spec("airportsdata")
    if found is None or found.origin is None:
        raise SystemExit("the data comes with a package: pip install airportsdata")
    return Path(found.origin).parent / name


async def load_airports(directory: Path, *, break_archive: bool) -> dict[str, Any]:
    """The airports, or a `WorkflowFailed`."""
    given = {
        "source": packaged("airports.csv"), "metropolitan": packaged("iata_macs.csv"),
        "database": directory / "airports.db", "archive": directory / "airports.jsonl", "break_archive": break_archive,
    }  # fmt: skip
    async with Mesh(airports, store=f"sqlite:///{directory}/pulses.db") as mesh:
        transaction = await mesh.stimulate(airports, given, key=f"airports, break_archive={break_archive}")
        result: dict[str, Any] = await transaction.result()
        return result


async def load_readings(directory: Path, rows: int, console: Console) -> dict[str, Any]:
    """The readings, with a progress bar."""
    source, database = directory / "readings.csv", directory / "readings.db"
    if not source.exists():
        generate(source, rows)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        sink = ProgressSink(progress, progress.add_task("readings", total=rows), rows)
        async with Mesh(readings, store=f"sqlite:///{directory}/pulses.db", sinks=[sink]) as mesh:
            transaction = await mesh.stimulate(
                readings, {"source": str(source), "database": str(database)}, key="readings"
            )
            result: dict[str, Any] = await transaction.result()
    return {**result, "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python docs/examples/etl", description="A data pipeline on BitActor.")
    parser.add_argument("what", choices=["airports", "readings"], nargs="?", default="airports")
    parser.add_argument("--directory", type=Path, default=Path("etl-data"), help="where results and the journal go")
    parser.add_argument("--break-archive", action="store_true", help="let the second destination fail")
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many readings to generate")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    directory = options.directory.resolve()
    try:
        if options.what == "airports":
            result = asyncio.run(load_airports(directory, break_archive=options.break_archive))
        else:
            result = asyncio.run(load_readings(directory, options.rows, Console(stderr=True)))
    except WorkflowFailed as error:
        print(f"{error.status}: {error.errors[0]}", file=sys.stderr)
        return 1
    for name, value in result.items():
        print(f"{name:>12}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
