"""A module that ends every process that imports it, except the test's."""

from __future__ import annotations

import os
import sys

from bitactor import Workflow

if "pytest" not in sys.modules:
    os._exit(9)

dying = Workflow("dying", input={"value": int})


@dying.step(spawn="process")
def never(value: int) -> int:
    return value
