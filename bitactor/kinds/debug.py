"""debug: a step that logs its arguments and where it is, and answers with the arguments."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.errors import DefinitionError, suggest
from bitactor.kinds.base import FunctionKind, Key, with_parameters

LEVELS: Final = ("debug", "info", "warning", "error")


class Debug(FunctionKind):
    """A log record of arguments, in `bitactor.step.<workflow>.<step>`; declared."""

    label = "debug"
    keys = {"sources": Key(list[str], required=True), "level": Key(str)}

    def __init__(self, what: str, sources: Iterable[str], level: str = "info") -> None:
        if level not in LEVELS:
            raise DefinitionError(f"debug: level={level!r}.{suggest(str(level), LEVELS)}")
        self.sources, self.level = [*sources], level
        number = logging.getLevelNamesMapping()[level.upper()]

        def looked(ctx: Context, **arguments: Any) -> Any:
            shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            where = (ctx.transaction, ctx.attempt, ctx.ttl)
            ctx.logger.log(number, "%s (transaction %s, attempt %d, ttl %d)", shown, *where)
            return arguments

        super().__init__(what, with_parameters(looked, self.sources, self.label, context=True))

    @override
    def result_type(self, name: str) -> Any:
        return dict[str, Any]
