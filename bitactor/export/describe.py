"""The description of a workflow in plain data: its input, its steps, its result.

    {"name": "shop.order", "ttl": 8, "deadline": 30.0, "depth": 3, "digest": "…",
     "input": {JSON Schema}, "result": {JSON Schema}, "returns": "report",
     "steps": [{"name": "reserve", "kind": "step", "arguments": {"sku": "input.sku"}, "result": {JSON Schema}, …}, …]}

Types are as far known as functions are annotated; where nothing is said, the schema is `{}`, which anything fits.
"""

from __future__ import annotations

import inspect
from typing import Any

from bitactor.declare.options import STEP_OPTIONS
from bitactor.declare.step import Step
from bitactor.kinds.result_types import result_type, schema_of, step_type, target_type
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import Kind, kind_of
from bitactor.plan.plan import Container, Plan, PlanStep


def describe(workflow: Declaration) -> dict[str, Any]:
    """The description of a workflow, of the form that the docstring of the module shows.

    Raises:
        DefinitionError: the workflow cannot work as declared.
    """
    plan = workflow.check()
    return {
        "name": workflow.name,
        "digest": plan.digest,
        "ttl": workflow.ttl,
        "deadline": workflow.deadline,
        "depth": plan.depth,
        "input": schema_of(workflow.input_model, mode="validation"),
        "result": schema_of(result_type(workflow)),
        "returns": plan.steps[plan.returns].name,
        "steps": _steps(workflow, plan),
    }


def _steps(workflow: Declaration, plan: Plan) -> list[dict[str, Any]]:
    return [_step(workflow.steps[planned.name], planned, plan) for planned in (*plan.steps, *plan.deferred.values())]


def _step(step: Step[Any, Any], planned: PlanStep, plan: Plan) -> dict[str, Any]:
    kind, container = kind_of(step), planned.container
    hop = planned if container is None else container.bodies[0].steps[0]
    about = inspect.getdoc(kind.function) if kind.function is not None else None
    told: dict[str, Any] = {"name": step.name, "kind": step.label}
    if about:
        told["about"] = about.partition("\n\n")[0].replace("\n", " ")
    told["arguments"] = {argument.name.strip("()"): argument.reference for argument in planned.arguments}
    told["waits_for"] = [plan.steps[index].name for index in planned.dependencies]
    told |= _evaluated(planned) | (_hop(hop) if kind.function is not None else {})
    told["result"] = schema_of(step_type(step))
    return told | (_within(kind, container) if container is not None else {})


def _evaluated(planned: PlanStep) -> dict[str, Any]:
    """`deferred`, `when` and `guard`: True for each that the step has."""
    said = {"deferred": planned.deferred, "when": planned.when is not None, "guard": planned.guard is not None}
    return {name: True for name, is_so in said.items() if is_so}


def _hop(planned: PlanStep) -> dict[str, Any]:
    """Where the function of the step runs, and the options that differ from those of an ordinary step."""
    said: dict[str, Any] = {
        name: value
        for name, option in STEP_OPTIONS.items()
        if not option.metadata and (value := getattr(planned.options, name)) != option.default
    }
    said |= {
        "timeout": None if planned.timeout_ns is None else planned.timeout_ns / 1e9,
        "policies": [f"{policy.pattern} {policy.name}" for policy in planned.policies] or None,
        "undo": None if planned.undo is None else "also in doubt" if planned.undo.in_doubt else "when done",
        "compensate": planned.compensate is not None or None,
    }
    return {"spawn": planned.spawn} | {name: value for name, value in said.items() if value is not None}


def _within(kind: Kind, container: Container) -> dict[str, Any]:
    """The description of the steps nested in a container."""
    said = {"at_most": container.max_rounds, "batch": container.batch}
    told: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    if kind.targets:
        branches = zip(kind.targets, container.cases, container.bodies, strict=True)
        told["cases"] = [_case(target, case, body) for target, case, body in branches]
    elif kind.workflow is not None:
        body = container.bodies[container.main_body]
        told |= {"workflow": kind.workflow.name, "steps": _steps(kind.workflow, body)}
    return told


def _case(target: Any, case: str, body: Plan) -> dict[str, Any]:
    told: dict[str, Any] = {"case": case, "result": schema_of(target_type(target))}
    if isinstance(target, Declaration):
        return {**told, "workflow": target.name, "steps": _steps(target, body)}
    return {**told, "step": body.steps[0].name}
