"""A process that dies when a file step has put its file there and not yet said so; see test_files.

`python -m tests.e2e.ready.file_child STORE DIRECTORY`
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from bitactor import Workflow
from mesh import Mesh
from mesh.ready.steps import files


def build(directory: str) -> Workflow:
    """save → check, which fails if it is told to."""
    reports = Workflow("reports", input={"text": str, "fail": bool})
    files.write(reports, "save", f"{directory}/report.txt", "{text}")

    @reports.step(after=["save"])
    def check(fail: bool) -> str:
        if fail:
            raise ValueError("not good")
        return "good"

    return reports


async def main(store: str, directory: str) -> None:
    real = Path.replace

    def replace(self: Path, target: Any) -> Path:
        done = real(self, target)
        if Path(target).name == "report.txt":
            os._exit(9)
        return done

    Path.replace = replace  # type: ignore[method-assign]
    reports = build(directory)
    async with Mesh(reports, store=store) as mesh:
        await (await mesh.stimulate(reports, {"text": "new", "fail": "fail" in directory}, key="the one")).ended()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
