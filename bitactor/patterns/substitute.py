"""Values that take a result's place: a constant, or a function of the error and the step's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from typing_extensions import override

from bitactor.declare.functions import refuse_generator, warn_of_near_misses
from bitactor.errors import BitActorError, DefinitionError, UnknownArgument, suggest
from bitactor.messages.classes import Kept
from bitactor.messages.values import shown


class Missing:
    """The class of `MISSING`."""

    @override
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
"""The value of an option that was not given, where None is a value."""


class UserFunction:
    """A user's function, called with those of the available arguments that it has parameters for.

    Args:
        function: `def` or `async def`; a `def` runs on the mesh's loop and must not block.
        what: who it belongs to, for errors.
        always: names that are there besides the step's arguments.

    Raises:
        DefinitionError: its parameters cannot be known, or cannot be given by name.
    """

    __slots__ = ("_always", "_everything", "_function", "_optional", "_required", "_what")

    def __init__(self, function: Callable[..., Any], what: str, always: Collection[str] = ()) -> None:
        try:
            parameters = inspect.signature(function).parameters.values()
        except Exception:  # a builtin, or an object that does as it likes
            raise DefinitionError(
                f"{what}: the parameters of {shown(function)} cannot be known; wrap it in a lambda or a def"
            ) from None
        refuse_generator(what, function)
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise DefinitionError(
                    f"{what}: {shown(function)} is called with names, but its {parameter.name!r} cannot be given by "
                    "name; wrap it in a lambda or a def"
                )
        self._function = function
        self._what = what
        self._always = frozenset(always)
        named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        self._everything = len(named) < len(parameters)
        self._required = tuple(parameter.name for parameter in named if parameter.default is parameter.empty)
        self._optional = tuple(parameter.name for parameter in named if parameter.default is not parameter.empty)

    def check(self, takes: Sequence[str] | Mapping[str, Any]) -> None:
        """Refuse a parameter that a step which takes these arguments cannot give.

        Raises:
            UnknownArgument: with the parameter's name and the likely one.
        """
        self._refuse_unknown({*takes, *self._always})
        warn_of_near_misses(
            self._what,
            self._function,
            [name for name in self._optional if name not in takes and name not in self._always],
            (*takes, *self._always),
            (*self._required, *self._optional),
        )

    def _refuse_unknown(self, known: Collection[str]) -> None:
        for name in self._required:
            if name not in known:
                raise UnknownArgument(
                    f"{self._what}: parameter {name!r} is no argument of the step.{suggest(name, known)}"
                )

    async def __call__(self, arguments: Mapping[str, Any], **always: Any) -> Any:
        """The function's value, awaited if need be, for a step called with `arguments`."""
        value = self.call(arguments, **always)
        return await value if inspect.isawaitable(value) else value

    def call(self, arguments: Mapping[str, Any], **always: Any) -> Any:
        """What the function returns; an awaitable for an `async def`."""
        there = {**arguments, **always}
        self._refuse_unknown({*there, *self._always})
        wanted = (
            there
            if self._everything
            else {name: there[name] for name in (*self._required, *self._optional) if name in there}
        )
        return self._function(**wanted)


class Constant:
    """A constant, decoded afresh at each call.

    Raises:
        DefinitionError: it cannot be carried.
    """

    __slots__ = ("_value",)

    def __init__(self, value: Any, what: str) -> None:
        try:
            self._value = Kept(value)
        except BitActorError as error:
            raise DefinitionError(f"{what}: {error}") from None

    def check(self, takes: Sequence[str]) -> None:
        """Accepts any step: a constant takes no arguments."""

    async def __call__(self, arguments: Mapping[str, Any], **always: Any) -> Any:
        """The constant."""
        return self._value()


Substitute = UserFunction | Constant


def substitute(given: Any, what: str) -> Substitute:
    """`given` as something to call: a `UserFunction` if it is a function, else a `Constant`.

    Raises:
        DefinitionError: it can be neither.
    """
    return UserFunction(given, what, ("error",)) if callable(given) else Constant(given, what)
