"""Inspection of users' functions: what is wrong with one as a callback, the same for every place that takes one."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any, Final

from bitactor.errors import DefinitionError, DefinitionWarning
from bitactor.messages.values import shown

SHORTEST_MISS: Final = 4
NEAR: Final = 0.85
"""How alike two names are, of 1, that are taken for one with a slip: one letter too many in four, say."""
SWAPPED: Final = 0.75
"""The same of two names that have the same letters."""


def is_coroutine_function(function: Any) -> bool:
    """Whether a call of `function` returns a coroutine, as the outermost function says: what a decorator has wrapped is
    not looked at.  Looks through partials and callable objects."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(innermost(function))


def may_need_awaiting(function: Any) -> bool:
    """Whether a call of `function` returns a coroutine, or may: it is a `def` around a coroutine function, which either
    runs that or passes its coroutine on."""
    return is_coroutine_function(function) or inspect.iscoroutinefunction(written(function))


def written(function: Any) -> Any:
    """The function that its user wrote, beneath decorators (`functools.wraps`, `functools.cache`) and partials."""
    inner = inspect.unwrap(function)
    return inner if inspect.isfunction(inner) else inspect.unwrap(innermost(inner))


def is_generator_function(function: Any) -> bool:
    """Whether a call of `function` does nothing but make a generator, plain or async."""
    call = innermost(function)
    return inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)


def innermost(function: Any) -> Any:
    """The function whose code a call of `function` runs: within partials, and the `__call__` of an object."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, staticmethod):
            function = function.__func__
        elif getattr(type(function), "_calls_its_function", False):
            function = function.function
        else:
            break
    if inspect.isroutine(function) or isinstance(function, type):
        return function
    return getattr(type(function), "__call__", function)  # noqa: B004


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
    if not may_await and may_need_awaiting(function):
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
            f"{what} is called with {given}, by position, and takes {_told(signature)}; "
            f"give it {'that parameter' if len(gives) == 1 else 'these parameters'}"
        ) from None


def _told(signature: inspect.Signature) -> str:
    """A signature without annotations and defaults, which are objects of users."""
    empty = inspect.Parameter.empty
    parameters = [
        parameter.replace(annotation=empty, default=empty if parameter.default is empty else ...)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters)).replace("Ellipsis", "…")


def warn_of_near_misses(
    what: str, function: Any, unused: Iterable[str], known: Iterable[str], taken: Iterable[str]
) -> None:
    """Warn, with `DefinitionWarning`, of each `unused` parameter, which keeps its default, that is called nearly as
    something `known` that `function` does not take."""
    left = {*known}.difference(taken)
    for name in unused:
        near = near_miss(name, left)
        if near is None:
            continue
        message = (
            f"{what}: parameter {name!r} keeps its default, for nothing is called so; call it {near!r} if that is "
            "meant, or else give it another name"
        )
        code, home = getattr(function, "__code__", None), getattr(function, "__globals__", None)
        if isinstance(code, types.CodeType) and isinstance(home, dict):  # told once for each place, as Python does
            registry = home.setdefault("__warningregistry__", {})
            warnings.warn_explicit(
                message, DefinitionWarning, code.co_filename, code.co_firstlineno, function.__module__, registry
            )
        else:
            warnings.warn(message, DefinitionWarning, stacklevel=2)


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that `name` was probably meant to be; names that differ in their numbers are not
    taken for one another, nor are short ones."""
    plain = _plain(name)
    candidates = {
        _plain(other): other
        for other in known
        if min(len(other), len(name)) >= SHORTEST_MISS and (_plain(other) == plain or not _numbered_alike(plain, other))
    }
    for found in get_close_matches(plain, candidates, n=3, cutoff=SWAPPED):
        if sorted(found) == sorted(plain) or SequenceMatcher(None, found, plain).ratio() >= NEAR:
            return candidates[found]
    return None


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()


def _numbered_alike(plain: str, other: str) -> bool:
    return plain.strip("0123456789") == _plain(other).strip("0123456789")


def called(function: Any) -> str:
    """The name of a function in messages."""
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else shown(function)
