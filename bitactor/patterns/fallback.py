"""Fallback: a value, or a function, in place of an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.messages.outcome import Outcome
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
        return FallbackState(self)


class FallbackState(PolicyState):
    """Counts of calls and fallbacks, and the last error."""

    def __init__(self, policy: Fallback) -> None:
        self._policy = policy
        self._calls = self._fell_back = 0
        self._last_error = ""

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """An error that `on` names is replaced by the fallback; other errors pass."""
        self._calls += 1
        try:
            return await proceed()
        except Outcome:
            raise
        except self._policy.on as error:
            self._fell_back += 1
            self._last_error = repr(error)[:200]
            return await self._policy.substitute(call.arguments, error=error)

    @override
    def about(self) -> Mapping[str, Any]:
        return {"calls": self._calls, "fell_back": self._fell_back, "last_error": self._last_error}
