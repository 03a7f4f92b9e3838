"""The compilation of steps that call a function, and of plans of one such step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from bitactor.declare.functions import is_coroutine_function
from bitactor.declare.options import StepOptions
from bitactor.declare.spawners import default_spawn
from bitactor.declare.step import Step
from bitactor.errors import DefinitionError
from bitactor.messages.duration import nanoseconds, nanoseconds_or_none
from bitactor.plan.arguments import Argument
from bitactor.plan.callbacks import compile_backoff, compile_callback, exception_types, resources_among
from bitactor.plan.declaration import Declaration
from bitactor.plan.plan import Callback, Plan, PlanStep, plan_digest


def function_step(
    workflow: Declaration,
    step: Step[Any, Any],
    arguments: tuple[Argument, ...],
    injected: dict[str, str],
    what: str,
    *,
    function: Callable[..., Any] | None = None,
    undo: bool = True,
    beside: Collection[str] = (),
) -> PlanStep:
    """A step that calls a function, compiled with the options of its declaration; its name and places are filled in by
    the caller.

    Args:
        function: instead of the declared one.
        undo: whether the declared undo is compiled too.
        beside: names of arguments that the function does not take, only its undo, compensate or backoff.
    """
    takes = tuple(argument.name for argument in arguments)
    compiled = step_with_options(step.options, function or step.function, arguments, injected, takes, what, workflow)
    compiled.kind = step.label
    compiled.has_beside = bool(beside)
    compiled.run.takes = tuple(name for name in takes if name not in beside)
    for policy in compiled.policies:
        policy.check(compiled.run.takes)
    if step.undo_function is not None and undo:
        compiled.undo = compile_callback("undo", step.undo_function, takes, f"undo of {what}", workflow)
        compiled.undo.in_doubt, compiled.undo.retries = step.undo_in_doubt, step.undo_retries
        if step.undo_in_doubt and not compiled.undo.takes and not compiled.undo.injected:
            raise DefinitionError(
                f"undo of {what}: with in_doubt=True it needs `ctx` or an argument to know what to look for"
            )
    if step.compensate_function is not None:
        compiled.compensate = compile_callback(
            "compensate", step.compensate_function, takes, f"compensate of {what}", workflow
        )
    return compiled


def step_with_options(
    options: StepOptions,
    function: Callable[..., Any],
    arguments: tuple[Argument, ...],
    injected: dict[str, str],
    takes: tuple[str, ...],
    what: str,
    workflow: Declaration | None = None,
) -> PlanStep:
    """A step that calls a function, with its options compiled; its name, places and kind are filled in by the
    caller.

    Args:
        takes: the arguments that the function and the options' functions may take.
    """
    is_async = is_coroutine_function(function)
    return PlanStep(
        index=0,
        name="",
        address="",
        run=Callback(function, is_async, injected, takes, resources=resources_among(injected)),
        spawn=options.spawn or default_spawn(is_async),
        arguments=arguments,
        dependencies=(),
        retries=options.retries,
        backoff=compile_backoff(options.backoff, what, takes, workflow),
        retry_on=exception_types(options.retry_on, what),
        timeout_ns=nanoseconds_or_none(options.timeout),
        required=options.required,
        priority=options.priority,
        limit=options.limit,
        policies=options.policies,
        token_in=tuple(argument.reference for argument in arguments),
        options=options,
    )


def with_function(step: PlanStep, function: Callable[..., Any], role: str = "run") -> PlanStep:
    """A copy of the step with another function as its `run`, `undo` or `compensate`, which may take any of the step's
    arguments, and what is given to that role.

    Raises:
        DefinitionError: it is no function, or asks for something else.
    """
    takes = [argument.name for argument in step.arguments]
    what = f"replacement of {step.address if role == 'run' else f'{step.address}.{role}'!r}"
    callback = compile_callback(role, function, takes, what)
    original: Callback = getattr(step, role)
    callback.in_doubt, callback.retries = original.in_doubt, original.retries
    changed: dict[str, Any] = {role: callback}
    return replace(step, **changed)


def single_step_plan(workflow: Declaration, step: PlanStep, inputs: tuple[str, ...]) -> Plan:
    """A plan of one step, to be a body."""
    return Plan(
        workflow=workflow.name,
        digest=plan_digest(step.address, 0, step.name, inputs, (step,)),
        ttl=workflow.ttl,
        deadline_ns=None,
        undo_timeout_ns=nanoseconds(workflow.undo_timeout),
        grace_ns=nanoseconds(workflow.grace),
        redeliveries=workflow.redeliveries,
        steps=(step,),
        by_name={step.name: 0},
        inputs=inputs,
        initial=(0,),
        dependency_counts=(0,),
        returns=0,
        errors={},
        resources=workflow.resources,
        depth=1,
        has_no_undo=has_no_undo((step,)),
    )


def has_no_undo(steps: Iterable[PlanStep]) -> bool:
    """Whether none of these steps, nor of the bodies in them, has an undo."""
    return all(
        step.undo is None and (step.container is None or all(body.has_no_undo for body in step.container.bodies))
        for step in steps
    )
