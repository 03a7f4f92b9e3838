"""The description of a workflow in plain data: its input, its steps, its result.

    {"name": "shop.order", "ttl": 8, "deadline": 30.0, "depth": 3, "digest": "…",
     "input": {JSON Schema}, "result": {JSON Schema}, "returns": "report",
     "steps": [{"name": "reserve", "kind": "step", "arguments": {"sku": "input.sku"}, "result": {JSON Schema}, …}, …]}

Types are as far known as functions are annotated; where nothing is said, the schema is `{}`, which anything fits.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from bitactor.declare.options import STEP_OPTIONS
from bitactor.declare.step import Step, StepKind
from bitactor.declare.then import Then
from bitactor.errors import BitActorError
from bitactor.kinds.around import Around
from bitactor.kinds.compose import Compose
from bitactor.kinds.group import Group
from bitactor.kinds.iterate import Iterate
from bitactor.kinds.map import Map
from bitactor.kinds.recurse import Recurse
from bitactor.kinds.switch import Switch
from bitactor.messages.outcome import Continue, Ok, Outcome
from bitactor.plan.declaration import Declaration
from bitactor.plan.plan import Plan, PlanStep

_NO_VALUE: Final = (Outcome, Ok, Continue, Then)
"""Annotations of a return type that are not the type of the value, or do not say it."""


class FailedElement(BaseModel):
    """What `on_error="collect"` tells of an element."""

    index: int
    element: Any
    error: str


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


def schema_of(kind: Any, *, mode: typing.Literal["validation", "serialization"] = "serialization") -> dict[str, Any]:
    """The JSON Schema of a type; `{}` where it has none."""
    try:
        return TypeAdapter(kind).json_schema(mode=mode)
    except (BitActorError, KeyboardInterrupt):
        raise
    except Exception:  # pydantic has many ways to say that there is none, and a type may have hooks of its own
        return {}


def result_type(workflow: Declaration) -> Any:
    """The type of a workflow's result; Any if no annotation says it."""
    name = workflow.returned or next(name for name in reversed(workflow.steps) if not workflow.steps[name].deferred)
    return step_type(workflow.steps[name])


def step_type(step: Step[Any, Any]) -> Any:
    """The type of a step's result, or None if the step can be skipped or may fail."""
    kind = _kind_type(step.kind) if step.kind is not None else _own_type(step)
    left_out = step.options.when is not None or not step.options.required
    return _either(kind, None) if left_out else kind


def _own_type(step: Step[Any, Any]) -> Any:
    if step.label == "collect":
        transform = step.function.made_from["transform"]  # type: ignore[attr-defined]
        return (
            _mapping(step.name, dict.fromkeys(step.options.bind, Any)) if transform is None else answer_type(transform)
        )
    if step.label == "debug":
        return dict[str, Any]
    return str if step.label == "template" else answer_type(step.function)


def _kind_type(kind: StepKind) -> Any:
    match kind:
        case Map():
            return _map_type(kind)
        case Iterate() | Around():
            return answer_type(kind.function)
        case Compose() | Recurse():
            return result_type(kind.workflow)
        case Group():
            return answer_type(kind.after) if kind.after is not None else result_type(kind.workflow)
        case Switch():
            branches = [_target_type(target) for target in kind.targets]
            return _either(*branches, *((None,) if kind.optional else ()))
    return Any


def _map_type(kind: Map) -> Any:
    if kind.reduce is not None:
        whole, name = answer_type(kind.reduce), "result"
    elif kind.keep:
        whole, name = list[_target_type(kind.workflow or kind.function)], "results"  # type: ignore[misc]
    else:
        whole, name = int, "count"
    if kind.on_error == "fail":
        return _mapping("map", {name: whole}) if name == "count" else whole
    return _mapping("map", {name: whole, "errors": list[FailedElement]})


def _target_type(target: Any) -> Any:
    return result_type(target) if isinstance(target, Declaration) else answer_type(getattr(target, "function", target))


def _mapping(name: str, fields: Mapping[str, Any]) -> Any:
    """The type of a mapping of exactly these keys, as a pydantic model."""
    given: dict[str, Any] = {key: (kind, ...) for key, kind in fields.items()}
    model: Any = create_model(name, __config__=ConfigDict(protected_namespaces=()), **given)
    return model


def answer_type(function: Callable[..., Any]) -> Any:
    """The type of the value that a function returns; Any if no annotation says it."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # a name that is nowhere to be found, or whatever evaluating it raises
        return Any
    return _value_type(hints.get("return", Any))


def _value_type(annotation: Any) -> Any:
    if annotation in (typing.NoReturn, typing.Never):
        return Any
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    values = [member for member in members if not (isinstance(member, type) and issubclass(member, _NO_VALUE))]
    kind = _either(*values) if values and not _may_be_any(members) else Any
    return kind if schema_of(kind) else Any


def _may_be_any(members: tuple[Any, ...]) -> bool:
    """Whether the members of a union have `Then`, `Ok` or `Continue`, which carry a value of any type."""
    return any(isinstance(member, type) and issubclass(member, (Then, Ok, Continue)) for member in members)


def _either(*kinds: Any) -> Any:
    if any(kind is Any for kind in kinds):
        return Any
    return (
        functools.reduce(operator.or_, (type(None) if kind is None else kind for kind in kinds))
        if len(kinds) > 1
        else kinds[0]
    )


# Steps


def _steps(workflow: Declaration, plan: Plan) -> list[dict[str, Any]]:
    return [_step(workflow.steps[planned.name], planned, plan) for planned in (*plan.steps, *plan.deferred.values())]


def _step(step: Step[Any, Any], planned: PlanStep, plan: Plan) -> dict[str, Any]:
    function = step.function if step.label == "step" else getattr(step.kind, "function", None)
    about = inspect.getdoc(function) if function is not None else None
    told: dict[str, Any] = {"name": step.name, "kind": step.label}
    if about:
        told["about"] = about.partition("\n\n")[0].replace("\n", " ")
    told["arguments"] = {argument.name.strip("()"): argument.reference for argument in planned.arguments}
    told["waits_for"] = [plan.steps[index].name for index in planned.dependencies]
    if planned.container is None:
        told |= _evaluated(planned) | _hop(planned)
    else:
        told |= _evaluated(planned) | (_hop(planned.container.bodies[0].steps[0]) if function is not None else {})
    told["result"] = schema_of(step_type(step))
    return told | (_within(step.kind, planned) if step.kind is not None else {})


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


def _within(kind: StepKind, planned: PlanStep) -> dict[str, Any]:
    """The description of the steps nested in a container."""
    container = planned.container
    assert container is not None
    told: dict[str, Any] = {}
    if container.max_rounds is not None:
        told["at_most"] = container.max_rounds
    if container.batch is not None:
        told["batch"] = container.batch
    if isinstance(kind, Switch):
        told["cases"] = [_case(kind, number, body) for number, body in enumerate(container.bodies)]
        return told
    workflow: Declaration | None = getattr(kind, "workflow", None)
    if workflow is None:
        return told
    body = container.bodies[-1 if isinstance(kind, Map | Around) else 0]
    return {**told, "workflow": workflow.name, "steps": _steps(workflow, body)}


def _case(kind: Switch, number: int, body: Plan) -> dict[str, Any]:
    target: Any = kind.targets[number]
    told: dict[str, Any] = {"case": kind.case(number), "result": schema_of(_target_type(target))}
    if isinstance(target, Declaration):
        return {**told, "workflow": target.name, "steps": _steps(target, body)}
    return {**told, "step": body.steps[0].name}
