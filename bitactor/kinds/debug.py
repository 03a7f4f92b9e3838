"""debug: a step that logs its arguments and where it is, and answers with the arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from bitactor.declare.context import Context
from bitactor.errors import DefinitionError, suggest
from bitactor.kinds.signatures import with_parameters

LEVELS: Final = ("debug", "info", "warning", "error")


def debug_function(names: Sequence[str], level: str) -> Callable[..., Any]:
    """A function with these parameters that logs them to `bitactor.step.<workflow>.<step>`, and returns a mapping of
    them."""
    if level not in LEVELS:
        raise DefinitionError(f"debug: level={level!r}.{suggest(str(level), LEVELS)}")
    number = logging.getLevelNamesMapping()[level.upper()]

    def looked(ctx: Context, **arguments: Any) -> Any:
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        ctx.logger.log(number, "%s (transaction %s, attempt %d, ttl %d)", shown, ctx.transaction, ctx.attempt, ctx.ttl)
        return arguments

    return with_parameters(looked, names, "debug", made_from={"sources": [*names], "level": level}, context=True)
