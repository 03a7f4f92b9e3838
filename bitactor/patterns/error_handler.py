"""Error handler: an error is logged, ignored, replaced by a value, or given to a function."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from typing_extensions import override

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.errors import suggest
from bitactor.messages.outcome import Outcome
from bitactor.messages.values import shown
from bitactor.patterns.options import Exceptions, check_name, fix_exceptions, refuse
from bitactor.patterns.substitute import MISSING, Constant, Substitute, substitute
from bitactor.ports import Clock

LOG: Final = "log"
IGNORE: Final = "ignore"
FALLBACK: Final = "fallback"
_WORDS: Final = (LOG, IGNORE, FALLBACK)
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True)
class ErrorHandler(Policy):
    """Handles errors of the call.

        ErrorHandler("audit", "log", level="warning")
        ErrorHandler("optional", "ignore", on=LookupError)
        ErrorHandler("enrich", "fallback", value={"tags": []})
        ErrorHandler("charge", on_declined, on=CardDeclined)

        async def on_declined(error: CardDeclined, order: str): ...     # returns the step's value, or raises what the
        step is to raise

    Args:
        handle: `"log"`: the error is logged (logger `bitactor.step.<workflow>.<step>`, with its traceback) and goes on
            · `"ignore"`: the step's value is None · `"fallback"`: it is `value` · a function (`def` or `async def`) of
            `error` and any of the step's arguments: it is what that returns, which may be `Retry(…)`, `Fail(…)` or
            `Halt(…)`.
        value: for `"fallback"`.
        level: for `"log"`: `"debug"`, `"info"`, `"warning"` or `"error"` (the default).
        on: errors it handles; others pass, and so do `Retry`, `Fail` and `Halt`.

    Raises:
        DefinitionError: an option is invalid, or does not belong to what `handle` says.
    """

    pattern: ClassVar[str] = "error handler"
    name: str
    handle: Any
    value: Any = field(default=MISSING, hash=False)
    level: str | None = None
    on: Exceptions = Exception
    substitute: Substitute | None = field(init=False, repr=False, compare=False)
    """The value or function that stands in for the error; None: errors are only logged."""

    def __post_init__(self) -> None:
        check_name(self)
        if not callable(self.handle) and self.handle not in _WORDS:
            near = suggest(self.handle, _WORDS) if isinstance(self.handle, str) else ""
            raise refuse(self, "handle", f"it is 'log', 'ignore', 'fallback' or a function.{near}")
        if (self.handle == FALLBACK) != (self.value is not MISSING):
            raise refuse(self, "value", "it belongs to 'fallback', and 'fallback' needs it")
        if self.level is not None and (self.handle != LOG or self.level not in _LEVELS):
            raise refuse(self, "level", "it belongs to 'log', and is 'debug', 'info', 'warning' or 'error'")
        fix_exceptions(self, "on")
        object.__setattr__(self, "substitute", self._substitute())

    def _substitute(self) -> Substitute | None:
        what = f"ErrorHandler({self.name!r})"
        if self.handle == LOG:
            return None
        if callable(self.handle):
            return substitute(self.handle, f"{what}: handle={self.handle!r}")
        value = None if self.handle == IGNORE else self.value
        return Constant(value, f"{what}: value={value!r}")

    @override
    def check(self, takes: Sequence[str]) -> None:
        if self.substitute is not None:
            self.substitute.check(takes)

    @override
    def open(self, clock: Clock) -> ErrorHandlerState:
        return ErrorHandlerState(self.on, self.substitute, _LEVELS[self.level or "error"])


class ErrorHandlerState(PolicyState):
    """Counts of calls and handled errors, and the last of these.

    Args:
        on: errors that are handled.
        substitute: what stands in for them; None: they are logged at `level` and raised.
    """

    counted: ClassVar[str] = "handled"

    def __init__(self, on: Exceptions, substitute: Substitute | None, level: int = logging.ERROR) -> None:
        self._on, self._substitute, self._level = on, substitute, level
        self._calls = self._handled = 0
        self._last_error = ""

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """An error that `on` names is logged and raised, or the answer is what stands in for it; other errors pass."""
        self._calls += 1
        try:
            return await proceed()
        except Outcome:
            raise
        except self._on as error:
            self._handled += 1
            self._last_error = shown(error)
            if self._substitute is None:
                self._log(call, error)
                raise
            return await self._substitute(call.arguments, error=error)

    @override
    def about(self) -> Mapping[str, Any]:
        return {"calls": self._calls, self.counted: self._handled, "last_error": self._last_error}

    def _log(self, call: Call, error: Exception) -> None:
        logging.getLogger(f"bitactor.step.{call.workflow}.{call.step}").log(
            self._level,
            "%s/%s of %s, attempt %d: %s",
            call.workflow, call.step, call.transaction, call.attempt, shown(error),
            exc_info=error,
            extra={
                "workflow": call.workflow, "step": call.step, "transaction": call.transaction, "attempt": call.attempt,
            },
        )  # fmt: skip
