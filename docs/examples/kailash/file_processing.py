"""3. File processing: every CSV below a directory, five at once; what cannot be processed is reported, and the rest is
stored."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bitactor import Element, Result, Workflow
from mesh.ready.resources.database import database as database_at

AT_ONCE = "files"
"""The pool whose places bound how many files are processed at once."""


def file_processing(data: str) -> Workflow:
    """The pipeline; `data` is the URL of the database."""
    one_file = Workflow("kailash.one_file", input={"path": Path, "into": Path})
    one_file.add(processed, timeout=300.0, limit=AT_ONCE)

    inputs = {"directory": Path, "into": Path}
    workflow = Workflow(
        "kailash.file_processing", input=inputs, deadline=600, resources=[database_at("database", data)]
    )
    found = workflow.add(scan_files)
    files = workflow.map(
        name="process_files", workflow=one_file, over=found, bind={"path": Element()}, batch=10, on_error="collect"
    )
    workflow.add(store_results, bind={"done": Result(files, "results")})
    workflow.add(summary, bind={"done": Result(files, "results"), "failed": Result(files, "errors")})
    return workflow


def scan_files(directory: Path, into: Path) -> list[str]:
    """The files, in order; a directory that is not there is an error."""
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is no directory; nothing to process")
    into.mkdir(parents=True, exist_ok=True)
    return sorted(str(path) for path in directory.rglob("*.csv") if path.is_file())


def processed(path: Path, into: Path) -> dict[str, Any]:
    """Read, validate, count, and write what was read as JSON lines; the file appears whole or not at all."""
    rows = list(checked_rows(path))
    target = into / f"{path.parent.name}-{path.stem}.jsonl"
    part = target.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(target)
    missing = sum(value == "" for row in rows for value in row.values())
    return {"file": str(path), "processed": str(target), "rows": len(rows), "missing_values": missing}


def checked_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows; every one has all the columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames:
            raise ValueError("the file is empty")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise ValueError(f"row {number} has not {len(reader.fieldnames)} columns")
            yield row


async def store_results(done: list[dict[str, Any]], database: Any) -> int:
    """The log of what was processed; a second try finds its own rows and replaces them."""
    async with database.begin() as connection:
        await connection.execute(
            text("CREATE TABLE IF NOT EXISTS file_processing_log (file TEXT PRIMARY KEY, processed TEXT, stats TEXT)")
        )
        if done:
            await connection.execute(
                text("INSERT OR REPLACE INTO file_processing_log VALUES (:file, :processed, :stats)"),
                [
                    {**file, "stats": json.dumps({"rows": file["rows"], "missing_values": file["missing_values"]})}
                    for file in done
                ],
            )
    return len(done)


def summary(done: list[dict[str, Any]], failed: list[dict[str, Any]], store_results: int) -> dict[str, Any]:
    """What came of it."""
    return {
        "processed_count": store_results,
        "failed_count": len(failed),
        "total_rows": sum(file["rows"] for file in done),
        "missing_values": sum(file["missing_values"] for file in done),
        "failed_files": {Path(file["element"]).name: file["error"] for file in failed},
    }
