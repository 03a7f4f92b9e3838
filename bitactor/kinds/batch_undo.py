"""The undo of a batch of a map over a function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bitactor.declare.context import Context
from bitactor.kinds.batch import POSITION, ElementHandler, of_the_hop
from bitactor.kinds.batch_result import BatchResult
from bitactor.messages.codec import decode_token, unpack
from bitactor.plan.arguments import RawArguments
from bitactor.plan.plan import Callback


class BatchUndo:
    """The undo of a batch: the function is called for each element that succeeded, the last first; with `whole`,
    once."""

    def __init__(self, handler: ElementHandler, undo: Callback) -> None:
        self._handler = handler
        self._undo = undo
        handler.keeps_elements = True

    def run(self, tokens: RawArguments, ctx: Context, result: Any) -> None:
        """Undo with a plain function."""
        for arguments in self._calls(tokens, ctx, result):
            self._undo.function(**arguments)

    async def run_async(self, tokens: RawArguments, ctx: Context, result: Any) -> None:
        """Undo with a function that awaits."""
        for arguments in self._calls(tokens, ctx, result):
            await self._undo.function(**arguments)

    def _calls(self, tokens: RawArguments, ctx: Context, result: Any) -> Iterable[dict[str, Any]]:
        undo = self._undo
        outer = tokens.values(undo.takes)
        outer |= of_the_hop(ctx, undo.injected, undo.injected)
        named = [name for name, what in undo.injected.items() if what == "result"]
        batch = BatchResult(*result)
        handler, convert_result = self._handler, undo.convert_result
        elements = unpack(batch.elements, classes=handler.classes)
        results = unpack(batch.results, classes=convert_result.classes if convert_result is not None else None)
        if convert_result is not None:
            results = [value if value is None else convert_result.convert(value) for value in results]
        failed = {error["index"] for error in unpack(batch.errors)} if batch.errors else set()
        position: int = decode_token(tokens.token(POSITION))
        if handler.declared.whole:
            own = {"elements": elements, "index": position}
            call = outer | {name: own[name] for name in undo.takes if name in own}
            yield call | dict.fromkeys(named, results[0] if results else None)
            return
        done = [(index, element) for index, element in enumerate(elements, position) if index not in failed]
        for (index, element), value in reversed(list(zip(done, results, strict=True))):
            own = {"element": handler.as_called(element), "index": index}
            call = outer | {name: own[name] for name in undo.takes if name in own}
            yield call | dict.fromkeys(named, value)
