"""The hop of a map: takes the next elements from the source, calls the function for each (or makes the inputs of the
nested workflow), and answers with a `BatchResult`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from typing import Any, Final, Protocol

from bitactor.declare.answer import plain_answer
from bitactor.declare.context import Context
from bitactor.declare.source import Element
from bitactor.errors import InvalidInput, InvalidOutcome
from bitactor.kinds.batch_result import BatchResult
from bitactor.kinds.cursor import Cursor
from bitactor.kinds.result_types import answer_type
from bitactor.messages.classes import AnnotatedClasses, first_of
from bitactor.messages.codec import decode_token, encode_token, pack, token_bytes
from bitactor.messages.faults import add_note, utf8_safe
from bitactor.messages.outcome import Fail, Outcome
from bitactor.messages.values import named_text, shown, text_of
from bitactor.plan.arguments import Converter, RawArguments, value_at
from bitactor.plan.declaration import Declaration

OVER: Final = "(over)"
POSITION: Final = "(position)"
ACCUMULATED: Final = "(accumulated)"
ELEMENTS: Final = ("element", "index")

ElementError = dict[str, Any]


class DeclaredMap(Protocol):
    """The options of a declared map that its batches use; see `Workflow.map` for their meaning."""

    function: Callable[..., Any] | None
    workflow: Declaration | None
    factory: Callable[..., Any] | None
    elements: dict[str, Element]
    """Parameter → the part of the element that `bind` gives it."""
    batch: int
    ordered: bool
    on_error: str
    keep: bool
    reduce: Callable[[Any, list[Any]], Any] | None
    initial: Any
    whole: bool


class ElementHandler:
    """Arguments, nested inputs and error notes for each element of one map."""

    def __init__(self, declared: DeclaredMap, what: str, converters: Mapping[str, Converter | None]) -> None:
        self.declared = declared
        self.what = what
        self.converters = converters
        self.classes = first_of(converter.classes for converter in converters.values() if converter is not None)
        """Classes of elements that are restored."""
        if declared.workflow is not None:
            self.classes = declared.workflow.input_classes
        self.reduced = declared.reduce and AnnotatedClasses([answer_type(declared.reduce), type(declared.initial)])
        """Classes of what `reduce` made that are restored for its next call."""
        self.inputs: tuple[str, ...] = ()
        """Input names of the nested workflow, in order; empty over a function."""
        self.takes, self.factory_takes = (
            tuple(inspect.signature(called).parameters) if called is not None else ()
            for called in (declared.function, declared.factory)
        )
        self.plain = self.takes == ("element",) and not declared.elements
        self.keeps_elements = False

    def arguments(self, element: Any, index: int) -> dict[str, Any]:
        """The function's arguments that depend on the element, as their annotations ask.

        Raises:
            InvalidInput: the element is not what an annotation asks for, or a path leads nowhere.
        """
        found: dict[str, Any] = {}
        for name, converter in self.converters.items():
            source = self.declared.elements.get(name)
            value = self._bound(source, element, index) if source is not None else element
            if converter is not None:
                try:
                    value = converter.convert(value)
                except Exception as error:
                    text = text_of(error).splitlines()[0]
                    raise InvalidInput(f"element {index} of {self.what}, parameter {name!r}: {text}") from None
            found[name] = value
        if "index" in self.takes:
            found["index"] = index
        return found

    def _bound(self, source: Element, element: Any, index: int) -> Any:
        """What a parameter is bound to; a transform gets plain data of what was carried, as transforms do anywhere."""
        value = value_at(element, source.path, f"element {index} of {self.what}") if source.path else element
        if source.transform is None:
            return value
        given = value if self.declared.factory is not None else decode_token(encode_token(value))
        return plain_answer("the transform of an element", source.transform(given))

    def as_called(self, element: Any) -> Any:
        """The element as the function was called with it."""
        converter = None if "element" in self.declared.elements else self.converters.get("element")
        return element if converter is None else converter.convert(element)

    def nested_inputs(self, element: Any, index: int, outer: Mapping[str, Any]) -> list[bytes]:
        """The nested workflow's inputs for one element, as token bytes, validated by its model.

        Raises:
            InvalidInput: they do not fit.
        """
        workflow = self.declared.workflow
        assert workflow is not None
        own, fields = {"element": element, "index": index}, workflow.input_model.model_fields
        values = {**outer, **{name: value for name, value in own.items() if name in fields}}
        for name, source in self.declared.elements.items():
            values[name] = self._bound(source, element, index)
        valid = workflow.validate_input(values, named=True)
        return [bytes(token_bytes(encode_token(valid[name]))) for name in self.inputs]

    def failed(self, index: int, element: Any, error: BaseException) -> ElementError:
        """What is told of an element that failed, where errors are collected.

        Raises:
            BaseException: the error, with a note that names element and map, where they are not, or if it is no
                `Exception`; as it is if it is a verdict for the saga (`Retry`, `Halt`), about the whole batch.
        """
        is_outcome, is_fail = issubclass(type(error), Outcome), issubclass(type(error), Fail)
        is_verdict = is_outcome and not is_fail and self.declared.function is not None
        if self.declared.on_error == "fail" or is_verdict or not issubclass(type(error), Exception):
            if not is_outcome:
                add_note(error, f"element {index} of {self.what}")
            raise error  # with the cause that it has
        return {"index": index, "element": _shown(element), "error": utf8_safe(named_text(error))}


class BatchRunner:
    """Runs the batches of one map, and holds the sources that are open in this process."""

    def __init__(self, handler: ElementHandler, *, is_async: bool) -> None:
        self._awaits = is_async
        factory = handler.declared.factory
        if factory is not None and (inspect.isasyncgenfunction(factory) or inspect.iscoroutinefunction(factory)):
            is_async = True
        self.is_async = is_async
        self.injected: Mapping[str, str] = {}
        self._handler = handler
        self._cursors: dict[tuple[str, str], Cursor] = {}

    # As a hop

    def run(self, tokens: RawArguments, ctx: Context, **resources: Any) -> list[Any]:
        """One batch of plain calls; answers with the fields of a `BatchResult`."""
        outer, position = self._read_arguments(tokens, ctx, resources)
        cursor = self._cursor(ctx, position)
        if cursor is None:
            cursor = self._open_cursor(ctx, self._make_source(tokens, position, resources, ctx), position)
        elements = cursor.take(self._elements_to_skip(position), self._handler.declared.batch)
        results, errors = self._work(elements, position, outer)
        more = len(elements) == self._handler.declared.batch and cursor.has_more(ctx)
        answer = self._result(tokens, position, elements, results, errors, more)
        self._close_at_end(ctx, cursor, answer)
        return answer

    def _work(
        self, elements: Sequence[Any], position: int, outer: Mapping[str, Any]
    ) -> tuple[list[Any], list[ElementError]]:
        function = self._handler.declared.function
        if function is None:
            return self._inputs_of_each(elements, position, outer)
        if self._handler.declared.whole:
            return [self._call_once(function, elements, position, outer)] if elements else [], []
        return self._call_each(function, elements, position, outer)

    async def run_async(self, tokens: RawArguments, ctx: Context, **resources: Any) -> list[Any]:
        """One batch of calls side by side, from a synchronous or asynchronous source; answers as `run` does."""
        outer, position = self._read_arguments(tokens, ctx, resources)
        cursor = self._cursor(ctx, position)
        if cursor is None:
            made = self._make_source(tokens, position, resources, ctx)
            cursor = self._open_cursor(ctx, await made if inspect.isawaitable(made) else made, position)
        elements = await cursor.take_async(self._elements_to_skip(position), self._handler.declared.batch)
        results, errors = await self._work_async(elements, position, outer)
        more = len(elements) == self._handler.declared.batch and await cursor.has_more_async(ctx)
        answer = self._result(tokens, position, elements, results, errors, more)
        self._close_at_end(ctx, cursor, answer)
        return answer

    async def _work_async(
        self, elements: Sequence[Any], position: int, outer: Mapping[str, Any]
    ) -> tuple[list[Any], list[ElementError]]:
        function = self._handler.declared.function
        if function is not None and self._handler.declared.whole and elements:
            value = self._call_once(function, elements, position, outer)
            return [await value if inspect.isawaitable(value) else value], []
        if function is None or not self._awaits:
            return self._work(elements, position, outer)
        return await self._call_each_async(elements, position, outer)

    def _call_once(
        self, function: Callable[..., Any], elements: Sequence[Any], position: int, outer: Mapping[str, Any]
    ) -> Any:
        where = {"index": position} if "index" in self._handler.takes else {}
        return function(**outer, **where, elements=elements)

    def release(self, transaction: str) -> None:
        """Close the sources that are open for a transaction that has settled."""
        for key in [key for key in self._cursors if key[0] == transaction]:
            self._cursors.pop(key).close()

    # Sources

    def _read_arguments(
        self, tokens: RawArguments, ctx: Context, resources: Mapping[str, Any]
    ) -> tuple[dict[str, Any], int]:
        """The arguments that are the same for every element, and the position at which this batch begins."""
        handler = self._handler
        if handler.declared.workflow is not None:
            nested = [name for name in handler.inputs if name not in handler.declared.elements]
            outer = tokens.values(nested, handler.classes)
        else:
            outer = tokens.values(handler.takes)
        if resources:
            outer |= {name: resource for name, resource in resources.items() if name in handler.takes}
        if self.injected:
            outer |= of_the_hop(ctx, self.injected, handler.takes)
        position: int = decode_token(tokens.token(POSITION))
        return outer, position

    def _cursor(self, ctx: Context, position: int) -> Cursor | None:
        key = (ctx.transaction, ctx.step.rpartition("/")[0])
        cursor = self._cursors.get(key)
        if cursor is None:
            return None
        cursor.holder = ctx
        if cursor.taking or not cursor.advance_to(position):
            self._cursors.pop(key).close()
            return None
        return cursor

    def _close_at_end(self, ctx: Context, cursor: Cursor, answer: Sequence[Any]) -> None:
        """Close the source after its last batch; a map nested in the elements of another would else keep it open until
        the transaction ends."""
        key = (ctx.transaction, ctx.step.rpartition("/")[0])
        if not BatchResult(*answer).more and self._cursors.get(key) is cursor:
            self._cursors.pop(key).close()

    def _open_cursor(self, ctx: Context, source: Any, position: int) -> Cursor:
        if isinstance(source, Mapping | str | bytes) or not (
            hasattr(source, "__iter__") or hasattr(source, "__aiter__")
        ):
            raise InvalidInput(
                f"{self._handler.what} is over a {type(source).__name__}, which is no list or iterable of elements"
            )
        iterator: Any = aiter(source) if hasattr(source, "__aiter__") else iter(source)
        if isinstance(iterator, AsyncIterator) and not self.is_async:
            raise InvalidInput(
                f"{self._handler.what}: an async source needs an async function, or a factory that is declared `async "
                "def`"
            )
        cursor = Cursor(iterator, position, ctx)
        key = (ctx.transaction, ctx.step.rpartition("/")[0])
        self._cursors[key] = cursor
        return cursor

    def _make_source(self, tokens: RawArguments, position: int, resources: Mapping[str, Any], ctx: Context) -> Any:
        handler = self._handler
        if handler.declared.factory is None:
            return decode_token(tokens.token(OVER), handler.classes)
        given = tokens.values(handler.factory_takes)
        given |= {name: resource for name, resource in resources.items() if name in handler.factory_takes}
        if "start" in handler.factory_takes:
            given["start"] = position
        return handler.declared.factory(**given, **of_the_hop(ctx, self.injected, handler.factory_takes))

    def _elements_to_skip(self, position: int) -> int:
        """The number of elements to read past in a source that was just opened."""
        return 0 if "start" in self._handler.factory_takes else position

    # Elements

    def _call_each(
        self, function: Callable[..., Any], elements: Sequence[Any], position: int, outer: Mapping[str, Any]
    ) -> tuple[list[Any], list[ElementError]]:
        handler = self._handler
        results: list[Any] = []
        errors: list[ElementError] = []
        plain = handler.plain and not outer and handler.converters.get("element") is None
        for index, element in enumerate(elements, position):
            try:
                value = function(element=element) if plain else function(**outer, **handler.arguments(element, index))
                if issubclass(type(value), Outcome):
                    raise value
            except BaseException as error:
                errors.append(handler.failed(index, element, error))
            else:
                results.append(value)
        return results, errors

    async def _call_each_async(
        self, elements: Sequence[Any], position: int, outer: Mapping[str, Any]
    ) -> tuple[list[Any], list[ElementError]]:
        handler = self._handler
        function = handler.declared.function
        assert function is not None
        errors: dict[int, ElementError] = {}
        results: dict[int, Any] = {}

        async def one(index: int, element: Any) -> None:
            try:
                value = function(**outer, **handler.arguments(element, index))
                value = await value if inspect.isawaitable(value) else value
                if issubclass(type(value), Outcome):
                    raise value
            except BaseException as error:
                errors[index] = handler.failed(index, element, error)
            else:
                results[index] = value

        tasks = [asyncio.ensure_future(one(index, element)) for index, element in enumerate(elements, position)]
        try:
            await _all_or_first_error(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        order = sorted(results) if handler.declared.ordered or handler.keeps_elements else list(results)
        return [results[index] for index in order], [errors[index] for index in sorted(errors)]

    def _inputs_of_each(
        self, elements: Sequence[Any], position: int, outer: Mapping[str, Any]
    ) -> tuple[list[Any], list[ElementError]]:
        handler = self._handler
        results: list[Any] = []
        errors: list[ElementError] = []
        for index, element in enumerate(elements, position):
            try:
                results.append([index, handler.nested_inputs(element, index, outer)])
            except BaseException as error:
                errors.append(handler.failed(index, element, error))
        return results, errors

    def _result(
        self,
        tokens: RawArguments,
        position: int,
        elements: Sequence[Any],
        results: list[Any],
        errors: list[ElementError],
        more: bool,
    ) -> list[Any]:
        declared = self._handler.declared
        accumulated = tokens.token(ACCUMULATED)
        if declared.reduce is not None and results:
            reduced = declared.reduce(decode_token(accumulated, self._handler.reduced), results)
            accumulated = encode_token(plain_answer("reduce=", reduced))
        keeps = (
            (declared.keep and declared.reduce is None) or declared.workflow is not None or self._handler.keeps_elements
        )
        return [
            len(elements), more, self._pack_results(results, position) if keeps else pack([]),
            pack(errors) if errors else b"", bytes(token_bytes(accumulated)),
            self._pack_elements(elements) if self._handler.keeps_elements else b"",
        ]  # fmt: skip

    def _pack_elements(self, elements: Sequence[Any]) -> bytes:
        """The elements, packed: as they were for an undo, in a form that can be shown for a report of errors."""
        if self._handler.declared.workflow is None:
            return pack(list(elements))
        return pack([_shown(element) for element in elements])

    def _pack_results(self, results: list[Any], position: int) -> bytes:
        try:
            return pack(results)
        except InvalidOutcome:
            for offset, result in enumerate(results):
                try:
                    pack(result)
                except InvalidOutcome as error:
                    raise InvalidOutcome(f"result {position + offset} of {self._handler.what}: {error}") from None
            raise


def of_the_hop(ctx: Context, injected: Mapping[str, str], names: Container[str]) -> dict[str, Any]:
    """The arguments that say which hop this is, of those that are `names`."""
    told = {"ctx": ctx, "attempt": ctx.attempt}
    return {name: told[what] for name, what in injected.items() if what in told and name in names}


def _shown(element: Any) -> Any:
    """The element itself if it can be carried, else its `repr`, cut at 1,000 characters."""
    try:
        pack(element)
    except InvalidOutcome:
        return utf8_safe(shown(element, 1_000))
    return element


async def _all_or_first_error(tasks: Sequence[asyncio.Future[None]]) -> None:
    if not tasks:
        return
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
