"""around: a function wrapped around a nested workflow, such as a lock that is held or a transaction that is open while
its steps run.

    @orders.around(workflow=booking)
    async def with_lock(proceed, account: str):
        async with locks[account]:
            return await proceed()

The function is a hop, `with_lock/around`, in flight as long as the nested steps are; `proceed()` runs them, and answers
with the nested result. When one of them fails, the function is cancelled where it waits, so that what it holds is
released or rolled back, and then undo begins.  When the transaction halts, or the process dies, the function is called
afresh; nested steps that are done stay done, and none runs before it has called `proceed()` again.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.declare.functions import may_need_awaiting
from bitactor.declare.spawners import SPAWNERS
from bitactor.errors import DefinitionError, DuplicateName, InvalidOutcome
from bitactor.kinds.base import (
    CALLED,
    NESTED,
    Arrow,
    Close,
    ContainerArguments,
    ContainerKind,
    Declaration,
    NextAction,
    Open,
    Opening,
    Parameter,
    Progress,
    Site,
    merge_parameters,
    nested_inputs,
    require_workflow,
    target_parameters,
)
from bitactor.plan.container import ANSWER_FUNCTION_AROUND, WAIT
from bitactor.plan.plan import SurroundingContainer

PROCEED: Final = "proceed"
AROUND: Final = "around"
_NESTED: Final = 0
_OWN: Final = 1


class AroundContainer(SurroundingContainer):
    """A function around a nested workflow, compiled: a scope of one step for the function, and one for the workflow
    when it proceeds."""

    function_key = AROUND
    main_body = 1

    def __init__(self, site: Site, declared: Around) -> None:
        self._declared = declared
        self._proceeds: dict[tuple[str, str], Callable[[], Awaitable[Any]]] = {}
        nested = declared.workflow.nested_plan(site.address)
        function = site.function_body(self._runner(declared.function), "", f"{site.address}/{AROUND}")
        step = function.steps[0]
        if not SPAWNERS[step.spawn].on_loop:
            raise DefinitionError(
                f"{site.what}: a function around steps runs on the loop; leave out spawn={step.spawn!r}"
            )
        if step.policies:
            raise DefinitionError(
                f"{site.what}: policies are for attempts that can be made again, and this one holds other steps; give "
                "them theirs"
            )
        step.around_container = self
        self._own = len(function.inputs)
        self.bodies = (
            replace(function, inputs=(*function.inputs, *(f"(nested) {name}" for name in nested.inputs))),
            nested,
        )
        self.depth = 1 + nested.depth

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        """The function's scope is opened, its inputs followed by those of the nested workflow, which are validated
        here."""
        function, nested = self.bodies
        own = tuple(arguments.token(name) for name in function.inputs[: self._own])
        return Open([Opening(AROUND, 0, (*own, *nested_inputs(self._declared.workflow, nested, arguments)))])

    @override
    def nested(self, progress: Progress) -> list[Opening]:
        """The scope of the nested workflow, with the inputs that `open` validated; none if it was opened before."""
        return [] if progress.opened > 1 else [Opening("", 1, progress.inputs[self._own :])]

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        """The function is answered once the nested scope has settled; the container closes, with the function's result,
        once both have."""
        progress.round_results[_OWN if key == AROUND else _NESTED] = token
        if progress.open:
            return WAIT if key == AROUND else ANSWER_FUNCTION_AROUND
        return Close(progress.round_results[_OWN])

    @override
    def attach_proceed(self, transaction: str, path: str, proceed: Callable[[], Awaitable[Any]]) -> None:
        """`proceed` is kept until a run of the function takes it, or until `release`."""
        self._proceeds[transaction, path] = proceed

    @override
    def release(self, transaction: str) -> None:
        for key in [key for key in self._proceeds if key[0] == transaction]:
            del self._proceeds[key]

    @override
    def arrows(self, place: str) -> Iterable[Arrow]:
        return [Arrow(f"{place}_0_s0", f"{place}_1_s{index}", "proceeds") for index in self.bodies[1].initial]

    def _runner(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A step's function that calls the user's with the `proceed` attached for its transaction and step."""
        signature = inspect.signature(function)
        takes_context = "ctx" in signature.parameters

        async def run(ctx: Context, **arguments: Any) -> Any:
            proceed = self._proceeds.pop((ctx.transaction, ctx.step), None)
            if proceed is None:
                raise InvalidOutcome(f"{ctx.step!r} of {ctx.workflow!r} can only run where its transaction is")
            if takes_context:
                arguments["ctx"] = ctx
            asked: list[Any] = []

            def asking() -> Any:
                asked.append(proceed())
                return asked[-1]

            try:
                value = await function(**arguments, proceed=asking)
            finally:
                unawaited = [waiting for waiting in asked if inspect.getcoroutinestate(waiting) == inspect.CORO_CREATED]
                for waiting in unawaited:
                    waiting.close()
            if unawaited:
                raise InvalidOutcome(
                    f"{ctx.step!r} of {ctx.workflow!r} did not await proceed(), so the nested steps did not run; write "
                    "`await proceed()`"
                )
            return value

        parameters = [parameter for name, parameter in signature.parameters.items() if name not in (PROCEED, "ctx")]
        parameters.append(inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=Context))
        parameters.sort(key=lambda parameter: parameter.kind)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        annotations = getattr(function, "__annotations__", {})
        run.__annotations__ = {name: kind for name, kind in annotations.items() if name not in (PROCEED, "return")} | {
            "ctx": Context
        }
        run.__name__ = getattr(function, "__name__", AROUND)
        return run


class Around(ContainerKind):
    """A function around a nested workflow, declared."""

    label = "around"
    keys = {"function": CALLED, "workflow": NESTED}
    takes_attempts = True
    container = AroundContainer
    function: Callable[..., Any]
    workflow: Declaration

    def __init__(self, what: str, function: Callable[..., Any], workflow: Declaration) -> None:
        require_workflow(what, workflow)
        if not may_need_awaiting(function):
            raise DefinitionError(f"{what}: a function around steps waits for them; make it `async def`")
        if PROCEED not in inspect.signature(function).parameters:
            raise DefinitionError(
                f"{what}: the function runs the nested steps with `await proceed()`; give it a parameter `proceed`"
            )
        if AROUND in workflow.steps:
            raise DuplicateName(
                f"{what}: {workflow.name!r} has a step {AROUND!r}, and so has what is around it; rename that one"
            )
        self.function, self.workflow = function, workflow

    @override
    def parameters(self, what: str) -> list[Parameter]:
        """The inputs of the nested workflow, and the parameters of the function except `proceed`."""
        nested = (self.workflow, self.function)
        return merge_parameters([target_parameters(target, what, (PROCEED,)) for target in nested])
