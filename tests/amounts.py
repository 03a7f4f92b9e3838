"""How much a test does: a little in `make test`, much in `make test-long`, which sets TEST_LONG=1.

A loop takes `amount(quick=…, long=…)` rounds, a property `@examples(quick=…, long=…)`; both numbers stand where the
test is read. What else differs between the two is in the profiles of tests/conftest.py.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

LONG = os.environ.get("TEST_LONG", "") not in ("", "0")


def amount(*, quick: int, long: int) -> int:
    """The number for this run."""
    return long if LONG else quick


def examples(*, quick: int, long: int, **options: Any) -> settings:
    """Settings for a property, also as its decorator; `options` are Hypothesis's own."""
    return settings(max_examples=amount(quick=quick, long=long), **options)
