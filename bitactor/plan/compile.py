"""From a declared workflow to a plan: each step compiled and bound, the graph ordered, indexed and measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bitactor.declare.resource import Resource
from bitactor.declare.step import Step
from bitactor.errors import DefinitionError, DuplicateName, MissingReturn
from bitactor.messages.duration import nanoseconds, nanoseconds_or_none
from bitactor.messages.faults import type_path
from bitactor.plan.bind import bind_parameters, compile_predicate
from bitactor.plan.declaration import Declaration
from bitactor.plan.dependencies import steps_waited_for
from bitactor.plan.kind import Site, kind_of, refuse_misfits
from bitactor.plan.order import refuse_too_deep, topological_order
from bitactor.plan.plan import Container, Plan, PlanStep, plan_digest
from bitactor.plan.steps import has_no_undo


def compile_workflow(workflow: Declaration, address: str | None = None) -> Plan:
    """The plan of a workflow; raises `DefinitionError` and its kinds.

    Args:
        address: what its steps' addresses begin with, if that is not the workflow's own name: where it is nested.
    """
    owner = f"workflow {workflow.name!r}"
    address = address or workflow.name
    names = [name for name, step in workflow.steps.items() if not step.deferred]
    if not names:
        raise MissingReturn(f"{owner} has only deferred steps; one has to run first to plan them")
    dependencies = {name: steps_waited_for(workflow, workflow.steps[name]) for name in names}
    ordered = topological_order(dependencies, owner)
    inputs = tuple(workflow.input_model.model_fields)
    slots = {name: index for index, name in enumerate([*names, *inputs])}
    steps = tuple(_compile_step(workflow, workflow.steps[name], slots, dependencies[name], address) for name in names)
    deferred = {  # without a place in the plan, until a `Then` gives them one
        name: _compile_step(workflow, step, {**slots, name: -1}, steps_waited_for(workflow, step), address)
        for name, step in workflow.steps.items()
        if step.deferred
    }
    depths = {step.name: step.container.depth for step in steps if step.container is not None}
    depth = refuse_too_deep(owner, workflow.ttl, dependencies, ordered, depths)
    for step in steps:
        for dependency in step.dependencies:
            steps[dependency].dependents += (step.index,)
    returned = workflow.returned or names[-1]
    if returned in deferred:
        raise MissingReturn(
            f"{owner} returns {returned!r}, which is deferred, and runs only where a Then plans it, if at all"
        )
    bodies = [body for step in steps if step.container is not None for body in step.container.bodies]
    return Plan(
        workflow=workflow.name,
        digest=plan_digest(workflow.name, workflow.ttl, returned, inputs, [*steps, *deferred.values()]),
        ttl=workflow.ttl,
        deadline_ns=nanoseconds_or_none(workflow.deadline),
        undo_timeout_ns=nanoseconds(workflow.undo_timeout),
        grace_ns=nanoseconds(workflow.grace),
        redeliveries=workflow.redeliveries,
        steps=steps,
        by_name={step.name: step.index for step in steps},
        inputs=inputs,
        initial=tuple(step.index for step in steps if not step.dependencies),
        dependency_counts=tuple(len(step.dependencies) for step in steps),
        returns=slots[returned],
        errors=_errors_of(workflow, bodies),
        resources=_merged_resources(owner, workflow, bodies),
        max_concurrency=workflow.max_concurrency,
        max_hops=workflow.max_hops,
        deferred=deferred,
        depth=depth,
        has_no_undo=has_no_undo([*steps, *deferred.values()]),
    )


def _errors_of(workflow: Declaration, bodies: Iterable[Plan]) -> dict[str, type[BaseException]]:
    errors = {type_path(kind): kind for kind in workflow.errors}
    for body in bodies:
        errors |= body.errors
    return errors


def _merged_resources(owner: str, workflow: Declaration, bodies: Iterable[Plan]) -> dict[str, Resource]:
    resources = dict(workflow.resources)
    for body in bodies:
        for name, resource in body.resources.items():
            if resources.setdefault(name, resource) is not resource:
                raise DuplicateName(
                    f"{owner} and what is nested in it have two different resources {name!r}; share one, or rename it"
                )
    return resources


def _compile_step(
    workflow: Declaration, step: Step[Any, Any], slots: Mapping[str, int], waits_for: Iterable[str], address: str
) -> PlanStep:
    what = f"step {step.name!r} of {workflow.name!r}"
    kind = kind_of(step)
    bound = bind_parameters(workflow, step, slots, what, kind.parameters(what))
    arguments, injected, beside, _ = bound
    refuse_misfits(workflow, step, what, kind, {argument.name for argument in arguments})
    dependencies = tuple(slots[other] for other in waits_for)
    compiled = kind.compile(Site(workflow, step, what, f"{address}/{step.name}", arguments, injected, beside))
    _refuse_miscompiled(what, compiled)
    compiled.index, compiled.name, compiled.address = slots[step.name], step.name, f"{address}/{step.name}"
    compiled.dependencies, compiled.deferred = dependencies, step.deferred
    for role in ("when", "guard"):
        if getattr(step.options, role) is not None:
            callback, extra = compile_predicate(workflow, step, role, bound, slots, dependencies, what)
            setattr(compiled, role, callback)
            compiled.when_arguments += tuple(argument for argument in extra if argument not in compiled.when_arguments)
    decided = compiled.container is not None or any(argument.transform is not None for argument in arguments)
    compiled.needs_evaluation = decided or compiled.when is not None or compiled.guard is not None
    compiled.forward_code = compiled.code("forward", 1)
    return compiled


def _refuse_miscompiled(what: str, compiled: Any) -> None:
    """Raises `DefinitionError` unless a step of a kind, which may be from outside, is one that a plan can hold."""
    if not isinstance(compiled, PlanStep):
        raise DefinitionError(
            f"{what} compiles to a {type(compiled).__name__}; the compile() of its kind gives a PlanStep"
        )
    container = compiled.container
    if container is None:
        return
    kind = f"{what}: its container, of the kind {compiled.kind!r},"
    if not isinstance(container, Container):
        raise DefinitionError(f"{kind} is a {type(container).__name__}; it is one below bitactor.kinds.base.Container")
    bodies, depth = container.bodies, container.depth
    if not isinstance(bodies, tuple) or not bodies or not all(isinstance(body, Plan) for body in bodies):
        raise DefinitionError(
            f"{kind} has no bodies; give it a tuple of plans, such as (workflow.nested_plan(address),)"
        )
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise DefinitionError(f"{kind} has depth={depth!r}; it is the number of hops on its longest path, at least 1")
