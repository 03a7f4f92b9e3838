"""Sources: what a user names as the origin of an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from bitactor.declare.functions import called
from bitactor.errors import DefinitionError
from bitactor.messages.values import is_text, shown


@dataclass(frozen=True, slots=True)
class Chain:
    """The transform of a source that was given several: each is called with what the one before it answered."""

    functions: tuple[Callable[[Any], Any], ...]

    def __call__(self, value: Any) -> Any:
        for function in self.functions:
            value = function(value)
        return value

    @override
    def __repr__(self) -> str:
        return " then ".join(map(called, self.functions))


def functions_of(transform: Callable[[Any], Any] | None) -> tuple[Callable[[Any], Any], ...]:
    """The functions that a source's value is passed through, in order."""
    if transform is None:
        return ()
    return transform.functions if isinstance(transform, Chain) else (transform,)


def transform_of(functions: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any] | None:
    """The transform of these functions; one alone is that function itself."""
    return functions[0] if len(functions) == 1 else Chain(tuple(functions)) if functions else None


def refuse_bad_parts(what: str, source: Source) -> None:
    """Raises `DefinitionError` if the path of a source has a part that leads nowhere in any value."""
    for part in getattr(source, "path", ()):
        if not isinstance(part, int) and not is_text(part):
            raise DefinitionError(
                f"{what} has {shown(part)} in its path; a path is names, without lone surrogates, and indices"
            )


@dataclass(frozen=True, slots=True)
class Source:
    """Base of `Input`, `Result` and `Value`: one argument's origin, with an optional transform."""

    transform: Callable[[Any], Any] | None = None
    """The function that the value is passed through; None without one."""

    def map(self, function: Callable[[Any], Any]) -> Self:
        """The same source, passed through `function`, after the transform that it has; evaluated once, by the
        supervisor, and recorded.  (An `Element`: in the hop that works on it, and not recorded.)"""
        made = copy(self)
        object.__setattr__(made, "transform", transform_of((*functions_of(self.transform), function)))
        return made


@dataclass(frozen=True, slots=True, init=False)
class Input(Source):
    """A field of the workflow's input, and a path into it."""

    name: str = ""
    """The field of the input."""
    path: tuple[str | int, ...] = ()
    """The way from there into the value."""

    def __init__(self, name: str, *path: str | int, transform: Callable[[Any], Any] | None = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "transform", transform)


@dataclass(frozen=True, slots=True, init=False)
class Result(Source):
    """Another step's result, and a path into it through mappings, attributes and list indices."""

    step: str = ""
    """The step's name."""
    path: tuple[str | int, ...] = ()
    """The way from there into its result."""

    def __init__(self, step: Any, *path: str | int, transform: Callable[[Any], Any] | None = None) -> None:
        name = step if isinstance(step, str) else getattr(step, "name", None)
        if not isinstance(name, str):
            raise DefinitionError(f"Result({step!r}): give a step, or its name")
        object.__setattr__(self, "step", name)
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "transform", transform)


@dataclass(frozen=True, slots=True, init=False)
class Value(Source):
    """A constant."""

    value: Any = None
    """The constant."""

    def __init__(self, value: Any, transform: Callable[[Any], Any] | None = None) -> None:
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "transform", transform)


@dataclass(frozen=True, slots=True, init=False)
class Element(Source):
    """The current element of a map, and a path into it."""

    path: tuple[str | int, ...] = ()
    """The way into the element."""

    def __init__(self, *path: str | int, transform: Callable[[Any], Any] | None = None) -> None:
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "transform", transform)
