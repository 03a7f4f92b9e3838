"""What users see is what they saw; a change of it is made on purpose, with a word in the changelog and `python -m tests.public_face`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.public_face import LISTING

ROOT = Path(__file__).parents[2]


def test_the_public_face_is_as_it_was_listed(tmp_path: Path) -> None:
    """In a process of its own, so that no other test's imports, warnings or terminal have a part in it."""
    script = "import json, sys, tests.public_face as face; json.dump(face.listing(), open(sys.argv[1], 'w'))"
    environment = {"COLUMNS": "100", "NO_COLOR": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    made = tmp_path / "face.json"
    subprocess.run([sys.executable, "-c", script, str(made)], cwd=ROOT, env=environment, check=True, timeout=120)
    found, listed = json.loads(made.read_text()), json.loads(LISTING.read_text())
    assert found.keys() == listed.keys()
    for part in listed:
        assert found[part] == listed[part], part
