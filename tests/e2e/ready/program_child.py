"""A process that dies while a program of its runs; see test_subprocess.

`python -m tests.e2e.ready.program_child STORE DIRECTORY`: the program writes its number into DIRECTORY/pid, and in its
second run ends at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from bitactor import Workflow
from mesh import Mesh
from mesh.ready.steps import subprocess

SCRIPT = """
import os, pathlib, sys, time
home = pathlib.Path(sys.argv[1])
again = (home / "pid").exists()
(home / "pid.new").write_text(str(os.getpid()))
(home / "pid.new").replace(home / "pid")
while not again:
    time.sleep(0.1)
"""


def build(directory: str) -> Workflow:
    scans = Workflow("scans")
    subprocess.run(scans, "scan", [sys.executable, "-c", SCRIPT.replace("{", "{{").replace("}", "}}"), directory])
    return scans


async def main(store: str, directory: str) -> None:
    scans = build(directory)
    async with Mesh(scans, store=store) as mesh:
        await mesh.stimulate(scans, key="the one")
        while not Path(directory, "pid").exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)
        os._exit(9)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
