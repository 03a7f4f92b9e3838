"""Inspection of users' functions: what is wrong with one as a callback, the same for every place that takes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from bitactor.errors import DefinitionError
from bitactor.messages.values import shown


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether a call of `function` returns a coroutine; looks through partials and callable objects."""
    if inspect.iscoroutinefunction(function):
        return True  # also when it wraps a plain `def`
    inner = inspect.unwrap(function)
    while hasattr(inner, "func"):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004


def is_generator_function(function: Any) -> bool:
    """Whether a call of `function` does nothing but make a generator, plain or async."""
    while isinstance(function, functools.partial):
        function = function.func
    call = function if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)


def refuse_generator(what: str, function: Callable[..., Any]) -> None:
    """Raises `DefinitionError` if `function` is a generator function, whose body nobody would run."""
    if is_generator_function(function):
        raise DefinitionError(
            f"{what}: {called(function)!r} has a `yield`, and a call of it would do nothing but make a generator; "
            "return a value, such as a list"
        )


def refuse_uncallable(what: str, function: Any, gives: Sequence[str], *, may_await: bool = False) -> None:
    """Raises `DefinitionError` unless `function` can be called by position with what `gives` names.

    A builtin that does not say what it takes is taken at its word.
    """
    given = f"({', '.join(gives)})"
    if not callable(function):
        raise DefinitionError(f"{what} is {shown(function)}; give a {'' if may_await else 'plain '}function of {given}")
    if not may_await and is_coroutine_function(function):
        raise DefinitionError(f"{what} cannot await; make it a plain function of {given}, a `def`")
    refuse_generator(what, function)
    try:
        signature = inspect.signature(function)
    except Exception:  # a builtin, or an object that does as it likes
        return
    try:
        signature.bind(*gives)
    except TypeError:
        raise DefinitionError(
            f"{what} is called with {given}, by position, and takes {signature}; "
            f"give it {'that parameter' if len(gives) == 1 else 'these parameters'}"
        ) from None


def called(function: Any) -> str:
    """The name of a function in messages."""
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else shown(function)
