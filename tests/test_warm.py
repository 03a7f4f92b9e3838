"""Programs that are forked from a process with our packages imported find them imported."""

from __future__ import annotations

from pathlib import Path

from tests import warm

PROGRAM = """
import sys
known = set(sys.modules)
from bitactor import Workflow
from bitactor.patterns import RetryPolicy
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.cli import main
from registry import RegistryServer

workflow = Workflow("brief")
workflow.step(name="works", policies=[RetryPolicy("blips")])(lambda: 1)
run_workflow(workflow)
with Mesh(workflow, store="sqlite:///pulses.db") as mesh:
    mesh.run(workflow)
try:
    main(["list", "--store", "sqlite:///pulses.db"])
finally:
    print(*sorted(name for name in set(sys.modules) - known if name.startswith(("bitactor", "mesh", "registry"))))
"""


def test_nothing_of_ours_is_left_to_import(tmp_path: Path) -> None:
    """Else a program would take half a second more, and nobody would see it."""
    done = warm.run(["-c", PROGRAM], cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and "brief" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "", done.stdout
