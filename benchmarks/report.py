"""Numbers for people, and for programs."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zmq
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Row

_PIPED_WIDTH = 200


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    loop = asyncio.new_event_loop()
    loop.close()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "loop": type(loop).__name__,
        "sqlite": sqlite3.sqlite_version,
        "zmq": zmq.zmq_version(),
        "pykka": version("pykka"),
        "disk": f"{tempfile.gettempdir()} ({_file_system(tempfile.gettempdir())})",
    }


def document(rows: Sequence[Row], about: Mapping[str, Any], *, quick: bool) -> str:
    """All of it as one JSON document."""
    return json.dumps(
        {"machine": about, "quick": quick, "rows": [row._asdict() for row in rows]}, ensure_ascii=False, indent=2
    )


def show(rows: Sequence[Row], about: Mapping[str, Any], *, quick: bool) -> None:
    """A table on standard output; plain when nobody looks at a terminal."""
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else _PIPED_WIDTH)
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for heading in ("name", "value", "unit", "goal", "floor", "ratio", "best"):
        table.add_column(heading, justify="left" if heading in ("name", "unit", "goal") else "right", no_wrap=True)
    table.add_column("the floor is")
    table.add_column("what")
    for row in rows:
        numbers = (
            _number(row.value),
            row.unit,
            _goal(row, quick),
            _number(row.floor),
            _ratio(row, quick),
            _number(row.best),
        )
        table.add_row(row.name, *numbers, row.floor_is, row.about)
    console.print(table)
    load = " ".join(map(str, about["load"]))
    console.print(f"{about['cpu']}, {about['cores']} cores, load {load}; {about['system']}")
    console.print(f"{about['python']}, {about['loop']}, pykka {about['pykka']}, ZeroMQ {about['zmq']}")
    console.print(f"SQLite {about['sqlite']} on {about['disk']}")
    console.print(
        "Values and floors are medians of interleaved repeats; ratio = value / floor; best: our least disturbed repeat."
    )
    if quick:
        console.print("--quick: tiny counts, one repeat; these numbers say that it runs, not how fast.")


def _goal(row: Row, quick: bool) -> str:
    if row.goal is None:
        return ""
    sign = "≤" if row.better == "lower" else "≥"
    if quick:
        return f"{sign} {row.goal:,g}"
    verdict = f"missed ×{row.missed_by:.2f}" if row.missed_by is not None else "met"
    return f"{sign} {row.goal:,g} {verdict}"


def _ratio(row: Row, quick: bool) -> str:
    ratio = f"{row.ratio:.2f}" if row.ratio >= 0.1 else f"{row.ratio:.4f}"
    if row.ratio_goal is None:
        return ratio
    verdict = "" if quick else " met" if row.ratio <= row.ratio_goal else " missed"
    return f"{ratio} ≤ {row.ratio_goal:g}{verdict}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(place: str) -> str:
    """The kind of file system that `place` is on; what a journal costs depends on it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    here = Path(place).resolve()
    fitting = [(point, kind) for point, kind in mounts if here.is_relative_to(point)]
    return max(fitting, key=lambda mount: len(mount[0]), default=("", "unknown file system"))[1]
