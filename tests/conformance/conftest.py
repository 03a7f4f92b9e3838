"""The marker that a claim is written with."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Strict markers want to know it."""
    config.addinivalue_line(
        "markers", "claim(section, words): the sentence that this test shows; see tests/conformance/claims.py"
    )
