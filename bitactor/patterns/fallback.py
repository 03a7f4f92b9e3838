"""Fallback: a value, or a function, in place of an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from typing_extensions import override

from bitactor.declare.policy import Policy
from bitactor.patterns.error_handler import ErrorHandlerState
from bitactor.patterns.options import Exceptions, check_name, fix_exceptions
from bitactor.patterns.substitute import Substitute, substitute
from bitactor.ports import Clock


@dataclass(frozen=True)
class Fallback(Policy):
    """Answers in place of what failed.

        Fallback("prices", {"price": None})
        Fallback("prices", cached_price, on=(CircuitOpen, ConnectionError))

        async def cached_price(symbol: str, error: Exception) -> dict: ...

    The step counts as done with that value.  Errors of the function itself are the step's.  `Retry`, `Fail` and `Halt`
    pass through.

    Args:
        fallback: a value, or a function (`def` or `async def`) of `error` and any of the step's arguments, by name; it
            may answer with `Retry(…)`, `Fail(…)` or `Halt(…)`.
        on: errors it stands in for.

    Raises:
        DefinitionError: an option is invalid.
    """

    pattern: ClassVar[str] = "fallback"
    name: str
    fallback: Any = field(hash=False)
    on: Exceptions = Exception
    substitute: Substitute = field(init=False, repr=False, compare=False)
    """The fallback, as a value or a function to call."""

    def __post_init__(self) -> None:
        check_name(self)
        fix_exceptions(self, "on")
        object.__setattr__(
            self, "substitute", substitute(self.fallback, f"Fallback({self.name!r}): fallback={self.fallback!r}")
        )

    @override
    def check(self, takes: Sequence[str]) -> None:
        self.substitute.check(takes)

    @override
    def open(self, clock: Clock) -> FallbackState:
        return FallbackState(self.on, self.substitute)


class FallbackState(ErrorHandlerState):
    """Counts of calls and fallbacks, and the last error."""

    counted = "fell_back"
