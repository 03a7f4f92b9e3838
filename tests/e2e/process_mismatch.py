"""A workflow that looks different in a process that is not the test's."""

from __future__ import annotations

import sys

from bitactor import Workflow

shifty = Workflow("shifty", input={"value": int})


@shifty.step(spawn="process")
def steady(value: int) -> int:
    return value


if "pytest" not in sys.modules:

    @shifty.step
    def extra(steady: int) -> int:
        return steady
