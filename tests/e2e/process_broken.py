"""A module that can be imported by the test only."""

from __future__ import annotations

import sys

from bitactor import Workflow

if "pytest" not in sys.modules:
    sys.exit("not here")

broken = Workflow("broken", input={"value": int})


@broken.step(spawn="process")
def never(value: int) -> int:
    return value
