"""Inspection of users' functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether a call of `function` returns a coroutine; looks through partials and callable objects."""
    if inspect.iscoroutinefunction(function):
        return True  # also when it wraps a plain `def`
    inner = inspect.unwrap(function)
    while hasattr(inner, "func"):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004
