"""The containers of a map: a scope of one step for each batch, and over a workflow one for each element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from typing_extensions import override

from bitactor.declare.functions import is_coroutine_function, may_need_awaiting
from bitactor.declare.source import Element
from bitactor.declare.spawners import SPAWNERS, default_spawn
from bitactor.errors import DefinitionError, SignalTooLarge
from bitactor.kinds.base import (
    Close,
    Container,
    ContainerArguments,
    Declaration,
    NextAction,
    Open,
    Opening,
    Parameter,
    Plan,
    Progress,
    Site,
    function_parameters,
)
from bitactor.kinds.batch import (
    ACCUMULATED,
    ELEMENTS,
    OVER,
    POSITION,
    BatchRunner,
    DeclaredMap,
    ElementHandler,
)
from bitactor.kinds.batch_result import BATCH, BatchResult
from bitactor.kinds.batch_undo import BatchUndo
from bitactor.messages.codec import (
    Packed,
    check_token,
    decode_token,
    encode_token,
    join_packed_lists,
    pack,
    pack_tokens,
    token_bytes,
    token_from_bytes,
    unpack,
)
from bitactor.messages.signal import Fault
from bitactor.messages.wire import MAX_FRAME_BYTES
from bitactor.plan.arguments import Argument, Converter, converter_for
from bitactor.plan.callbacks import compile_callback, injected_as, resources_among
from bitactor.plan.container import WAIT, FailContainer
from bitactor.plan.fit import element_of
from bitactor.plan.kind import given_type, refuse_misfit
from bitactor.plan.plan import Callback, PlanStep
from bitactor.plan.steps import function_step, single_step_plan

_LIST_OF_ONE: Final = b"\x91"
"""The msgpack header of a list of one."""


class MapContainer(Container):
    """A map, compiled: a scope of one step for each batch."""

    keyed = True

    def __init__(self, site: Site, declared: DeclaredMap, step: PlanStep, runner: BatchRunner) -> None:
        self.declared = declared
        """The map as declared."""
        self._what = site.what
        self._runner = runner
        self.bodies = (batch_plan(site, declared, step, runner),)
        self.depth = 1
        self.batch, self.mark = declared.batch, f", batches of {declared.batch:,}"

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """The first batch is opened, at position 0."""
        fields = self.bodies[0].inputs[:-2]
        return Open(
            [
                Opening(
                    f"{BATCH}0",
                    0,
                    (*(arguments.token(name) for name in fields), 0, encode_token(self.declared.initial)),
                )
            ]
        )

    @override
    def release(self, transaction: str) -> None:
        self._runner.release(transaction)

    def _batch_done(self, progress: Progress, batch: BatchResult) -> None:
        position = batch.taken if progress.token is None else progress.token[0] + batch.taken
        progress.token = (position, batch.more, batch.accumulated)
        progress.rounds += 1
        if batch.errors:
            self._record_errors(progress, batch.errors)

    def _record_errors(self, progress: Progress, errors: bytes) -> None:
        progress.errors.append(errors)
        progress.size += len(errors)

    def _next(self, progress: Progress) -> NextAction:
        """Open the next batch; with none left, close with the result, or fail if that is too large."""
        position, more, accumulated = progress.token
        if progress.size > progress.limit:
            return self._too_large(progress)
        if not more:
            try:
                return Close(self._result(progress))
            except SignalTooLarge:
                return self._too_large(progress)
        inputs = (*progress.inputs[:-2], position, token_from_bytes(accumulated))
        return Open([Opening(f"{BATCH}{progress.rounds}", 0, inputs)])

    def _too_large(self, progress: Progress) -> FailContainer:
        text = (
            f"the results of {self._what} are more than {progress.limit:,} bytes, which is too much for one value; "
            "use reduce=…, or "
            "keep=False, and let the function put them where they belong"
        )
        return FailContainer(Fault("bitactor.errors:SignalTooLarge", text))

    def _result(self, progress: Progress) -> Any:
        declared = self.declared
        if declared.reduce is not None:
            result, name = token_from_bytes(progress.token[2]), "result"
        elif declared.keep:
            result, name = join_packed_lists(progress.results), "results"
        else:
            result, name = encode_token({"count": progress.token[0]}), ""
        if declared.on_error == "fail":
            return result
        errors = decode_token(join_packed_lists(progress.errors))
        errors.sort(key=lambda error: error["index"])
        if not name:
            return encode_token({"count": progress.token[0] - len(errors), "errors": errors}, progress.limit)
        token = pack_tokens({name: result, "errors": encode_token(errors, progress.limit)})
        check_token(token, progress.limit)
        return token


class FunctionMapContainer(MapContainer):
    """A map over a function, compiled: its scopes are the batches."""

    def __init__(self, site: Site, declared: DeclaredMap) -> None:
        function = declared.function
        assert function is not None
        if site.step.compensate_function is not None:
            raise DefinitionError(
                f"compensate of {site.what}: what failed is an element, and what it would decide about is a batch; use "
                "on_error='collect', or "
                "map over a workflow (workflow=…)"
            )
        takes = [parameter.name for parameter in function_parameters(function, site.what)]
        handler = ElementHandler(declared, site.what, element_converters(declared, site.what, takes))
        _refuse_misfits(site, declared)
        step = (
            function_step(site.workflow, site.step, (), {}, site.what)
            if site.step.undo_function is None
            else _with_undo(site, whole=declared.whole)
        )
        # A `def` that passes a coroutine on is called where that is awaited, unless its place is named.
        passes_on = may_need_awaiting(function) and site.step.options.spawn in (None, "loop")
        runner = BatchRunner(handler, is_async=is_coroutine_function(function) or passes_on)
        super().__init__(site, declared, step, runner)
        if step.undo is not None:
            undo = BatchUndo(handler, step.undo)
            step.undo = Callback(
                undo.run_async if step.undo.is_async else undo.run, step.undo.is_async,
                {"ctx": "ctx", "result": "result"}, ("tokens",), retries=step.undo.retries,
            )  # fmt: skip

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The batch's results are kept, and the next batch is opened, or the container closed."""
        batch = BatchResult(*decode_token(token))
        self._batch_done(progress, batch)
        if self.declared.keep and self.declared.reduce is None:
            progress.results.append(batch.results)
            progress.size += len(batch.results)
        return self._next(progress)

    @override
    def elements(self, token: Any) -> tuple[int, int] | None:
        if isinstance(token, Mapping):  # as `readable_batch` shows it
            return token["taken"] - len(token["errors"]), len(token["errors"])
        try:
            batch = BatchResult(*decode_token(token))
            failed = len(unpack(batch.errors)) if batch.errors else 0
        except Exception:  # shown otherwise than as the journal has it
            return None
        return batch.taken - failed, failed


class WorkflowMapContainer(MapContainer):
    """A map over a workflow, compiled: each batch is followed by a scope for each of its elements."""

    main_body = 1
    drawn = slice(1, None)

    def __init__(self, site: Site, declared: DeclaredMap, workflow: Declaration) -> None:
        handler = ElementHandler(declared, site.what, {})
        _refuse_misfits(site, declared)
        step = function_step(site.workflow, site.step, (), {}, site.what, function=_takes_elements)
        super().__init__(site, declared, step, BatchRunner(handler, is_async=False))
        nested = workflow.nested_plan(site.address)
        handler.inputs = nested.inputs
        self.bodies += (nested,)
        self.catches = handler.keeps_elements = declared.on_error == "collect"
        if self.catches and not nested.has_no_undo:
            raise DefinitionError(
                f"{site.what}: on_error='collect' leaves what a failed element did as it is, but {workflow.name!r} has "
                "steps with an undo; take the undo away; or use on_error='fail', which undoes all elements; or, to "
                f"have each undone alone, begin a transaction for each: stimulate({workflow.name!r}, …, key=…)"
            )
        self.depth = max(self.depth, nested.depth)  # a batch and its elements are side by side

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """After a batch, a scope is opened for each of its elements; after the last of these, the next batch."""
        if key.startswith(BATCH):
            batch = BatchResult(*decode_token(token))
            self._batch_done(progress, batch)
            progress.batch = unpack(batch.elements, MAX_FRAME_BYTES) if self.catches else []
            elements = decode_token(Packed(batch.results))
            if not elements:
                return self._next(progress)
            return Open([Opening(str(index), 1, tuple(map(token_from_bytes, tokens))) for index, tokens in elements])
        progress.round_results[int(key)] = token
        return self._settled(progress)

    def _settled(self, progress: Progress) -> NextAction:
        """The next action after one more element has settled: wait for the others, or what `_next` says."""
        if progress.open:
            return WAIT
        round_results = progress.round_results
        if self.declared.keep:
            order = sorted(round_results) if self.declared.ordered else list(round_results)
            packed = bytes(join_packed_lists(_LIST_OF_ONE + token_bytes(round_results[index]) for index in order))
            progress.results.append(packed)
            progress.size += len(packed)
        round_results.clear()
        return self._next(progress)

    @override
    def after_failed_scope(self, progress: Progress, key: str, fault: Fault) -> NextAction:
        """The element's error is kept for the report, and the map goes on; called with `on_error="collect"` only."""
        index = int(key)
        taken: int = progress.token[0]
        element = progress.batch[index - (taken - len(progress.batch))]
        self._record_errors(
            progress, pack([{"index": index, "element": element, "error": fault.summary()}], MAX_FRAME_BYTES)
        )
        return self._settled(progress)


def batch_plan(site: Site, declared: DeclaredMap, step: PlanStep, runner: BatchRunner) -> Plan:
    """The body of a batch: one step, whose function decodes its arguments itself."""
    fields = [argument.name for argument in site.arguments]
    inputs = (*fields, POSITION, ACCUMULATED)
    functions = [function for function in (declared.function, declared.factory) if function is not None]
    parameters = [parameter for function in functions for parameter in function_parameters(function, site.what)]
    kinds = {
        parameter.name: converter_for(parameter.annotation, site.what)
        for parameter in parameters
        if parameter.name in fields
    }
    injected = {
        parameter.name: injected_as(site.workflow, parameter)
        for parameter in parameters
        if parameter.name not in fields
    }
    runner.injected = {name: what for name, what in injected.items() if what is not None}
    resources = {name: what for name, what in injected.items() if what is not None and what.startswith("resource:")}
    step.run = Callback(
        runner.run_async if runner.is_async else runner.run, runner.is_async, {"ctx": "ctx", **resources},
        ("tokens",), resources=resources_among(resources),
    )  # fmt: skip
    refusal = SPAWNERS[step.spawn].refusal(runner.is_async)
    if refusal and site.step.options.spawn is None:
        step.spawn = default_spawn(runner.is_async)  # an async source of a plain function is read on the loop
    elif refusal:
        raise DefinitionError(
            f"{site.what}: a map with an async source is `async def` as a whole, and spawn={step.spawn!r} {refusal}"
        )
    if not SPAWNERS[step.spawn].carries_objects:
        raise DefinitionError(
            f"{site.what}: a map's source is read where the transaction is; with spawn={step.spawn!r} nothing could be "
            f"read there; map over a workflow (workflow=…) whose step has spawn={step.spawn!r}"
        )
    step.name, step.address, step.kind, step.takes_raw_arguments = "", site.address, "batch", True
    step.arguments = tuple(
        Argument(name, 1 + number, (), None, kinds.get(name), None, f"input.{name}")
        for number, name in enumerate(inputs)
    )
    step.token_in = tuple(argument.reference for argument in step.arguments)
    return single_step_plan(site.workflow, step, inputs)


def element_converters(declared: DeclaredMap, what: str, takes: list[str]) -> dict[str, Converter | None]:
    """Parameter → the converter to its annotation, for each parameter that takes the element; None where nothing is to
    be converted."""
    assert declared.function is not None
    found = {}
    for parameter in function_parameters(declared.function, what):
        if parameter.name == "element" or parameter.name in declared.elements:
            found[parameter.name] = converter_for(parameter.annotation, f"{what}, parameter {parameter.name!r}")
    if not declared.whole and not found:
        raise DefinitionError(
            f"{what}: the function takes no element; call a parameter `element`, or bind one: "
            f"bind={{{(takes or ['name'])[0]!r}: Element()}}"
        )
    if declared.whole and "elements" not in takes:
        raise DefinitionError(
            f"{what}: with whole=True the function takes the batch as `elements`; give it that parameter"
        )
    return found


def _refuse_misfits(site: Site, declared: DeclaredMap) -> None:
    """Raises `DefinitionError` if what the map is over has no elements, or none that its function can be given."""
    over = given_type(site.workflow, site.step, OVER) if declared.factory is None else Any
    refuse_misfit(site.what, Parameter("over", list, False), over, "what it iterates", exactly=False)
    element, function = element_of(over), declared.function
    for parameter in () if function is None else function_parameters(function, site.what):
        source = declared.elements.get(parameter.name, Element() if parameter.name == "element" else None)
        if source is not None and not source.path and source.transform is None and not declared.whole:
            refuse_misfit(site.what, parameter, element, "an element")
        elif any(argument.name == parameter.name for argument in site.arguments):
            refuse_misfit(
                site.what, parameter, given_type(site.workflow, site.step, parameter.name), repr(parameter.name)
            )


def _with_undo(site: Site, *, whole: bool) -> PlanStep:
    """The step with its undo compiled; an undo of a map may take the element and its result, and the arguments that are
    the same for every element."""
    takes = tuple(argument.name for argument in site.arguments if argument.name != OVER)
    assert site.step.undo_function is not None
    if site.step.undo_in_doubt:
        raise DefinitionError(
            f"undo of {site.what}: of a batch in doubt nobody knows which elements happened; leave out in_doubt=True, "
            "or map over a workflow "
            "(workflow=…), whose elements are hops of their own"
        )
    takes += ("elements",) if whole else ()
    undo = compile_callback("undo", site.step.undo_function, (*takes, *ELEMENTS), f"undo of {site.what}", site.workflow)
    undo.retries = site.step.undo_retries
    plain = function_step(site.workflow, site.step, (), {}, site.what, undo=False)
    plain.undo = undo
    return plain


def _takes_elements() -> None:
    """The function of a map over a workflow, which has none of its own."""
